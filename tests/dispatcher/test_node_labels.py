"""The dispatcher labels the Nodes, and the pods of the node Jobs have no token."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from dispatcher.fake_api_server import FakeApiServer, Fault
from dispatcher.harness import (
    CLEANUP,
    CONFIG,
    HANDLERS,
    INSTALLATION_LABEL,
    dispatch,
    outcomes,
    serve,
    workers,
)
from kata_node.cluster.labels import SETTER_ANNOTATION
from kata_node.dispatcher.config_parts import LabelConfig
from kata_node.dispatcher.run import run
from kata_node.kube import node_status
from kata_node.kube.node import SHARED_LABEL, STABLE_FOR
from kata_node.kube.node_status import NodeStatus
from kata_node.plan.report import StageReport, termination_message

HOW = LabelConfig("0123456789ab", 60, ("example.org/kata", "example.org/agent:NoSchedule"))
INSTALL, REMOVE = replace(CONFIG, label_nodes=HOW), replace(CLEANUP, label_nodes=HOW)
CHECKED = StageReport("host-check", "done", "the node can run Kata", kata_version="4.1.0")
PLACED = StageReport("artifacts", "done", "3 files placed")
SERVED = StageReport("cri", "done", "handlers kata-clh, kata-qemu served", handlers=HANDLERS)
REVERTED = StageReport("revert-cri", "done", "handlers removed")
REMOVED = StageReport("remove-artifacts", "done", "3 files removed")

Ended = Callable[[dict[str, Any]], object]


def ended(report: StageReport, code: int = 0) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": termination_message(report).decode()}}


def succeed(api: FakeApiServer, *reports: StageReport) -> None:
    """Let the Jobs succeed with these reports, and keep what was on the Node when each was created."""

    def end(job: dict[str, Any]) -> None:
        *first, last = reports
        before = {each.stage.replace("-", "_"): ended(each) for each in first}
        api.pod(job, last.stage, ended(last), **before)
        api.finish(job["metadata"]["name"])

    api.on_create = lambda job: api.time.after(1, lambda: end(job))


def labels(api: FakeApiServer, name: str) -> tuple[str | None, str | None]:
    found = api.nodes[name]["metadata"]["labels"]
    return found.get(SHARED_LABEL), found.get(INSTALLATION_LABEL)


def record(api: FakeApiServer, name: str) -> NodeStatus | None:
    return node_status.read(api.nodes[name]["metadata"].get("annotations", {}), "default")


def reasons(api: FakeApiServer) -> list[str]:
    return [event["reason"] for event in api.events]


def test_a_node_is_claimed_before_its_job_and_labeled_after_it(api: FakeApiServer) -> None:
    workers(api, 2)
    succeed(api, CHECKED, PLACED, SERVED)
    seen = []

    def create(job: dict[str, Any], then: Ended | None = api.on_create) -> None:
        name = job["spec"]["template"]["spec"]["nodeName"]
        found = record(api, name)
        seen.append((labels(api, name), found and found.outcome))
        assert then is not None
        then(job)

    api.on_create = create
    assert outcomes(dispatch(api, INSTALL)) == {"n0": "done", "n1": "done"}
    assert seen == [(("false", "false"), "installing")] * 2
    for name in ("n0", "n1"):
        assert labels(api, name) == ("true", "true")
        assert api.nodes[name]["metadata"]["annotations"][SETTER_ANNOTATION] == "kata-node"
        found = record(api, name)
        assert found is not None
        assert (found.outcome, found.kata_version, found.settings) == ("installed", "4.1.0", "0123456789ab")
        assert (found.handlers, found.machine_id) == (HANDLERS, f"machine-{name}")
    assert reasons(api) == ["KataInstalled"] * 2
    assert "handlers kata-clh, kata-qemu served" in api.events[-1]["message"]


def test_a_node_whose_pods_cannot_be_read_fails_alone(api: FakeApiServer) -> None:
    workers(api, 3)
    succeed(api, CHECKED, PLACED, SERVED)
    refusal = Fault("GET", "/pods", 400, message="pods are not to be had")
    api.time.after(0.5, lambda: api.faults.append(refusal))
    result = dispatch(api, INSTALL)
    assert sorted(outcomes(result).values()) == ["done", "done", "failed"]
    [failed] = [task for task in result.tasks if task.problem]
    assert "pods are not to be had" in str(failed.problem)
    assert labels(api, failed.target.name) == ("false", "false")


def test_the_wait_for_one_node_delays_no_other_and_the_labels_are_proven_to_stay(api: FakeApiServer) -> None:
    workers(api, 3)
    succeed(api, SERVED)
    api.nodes["n0"]["status"]["conditions"][0]["status"] = "False"
    api.time.after(30, lambda: api.nodes["n0"]["status"]["conditions"][0].update(status="True"))
    undone = []

    def undo() -> None:
        undone.append(labels(api, "n1"))
        api.nodes["n1"]["metadata"]["labels"].update({SHARED_LABEL: "false"})

    api.time.after(5, undo)
    result = dispatch(api, INSTALL)
    assert undone == [("true", "true")]
    assert {labels(api, name) for name in ("n0", "n1", "n2")} == {("true", "true")}
    took = {task.target.name: task.seconds for task in result.tasks}
    assert took["n2"] < took["n1"] < took["n0"]
    assert took["n1"] >= 5 + STABLE_FOR


@pytest.mark.parametrize(
    ("status", "why"),
    [
        pytest.param({"runtimeHandlers": [{"name": "runc"}]}, "does not report kata-clh", id="handlers"),
        pytest.param({"conditions": []}, "is not Ready", id="not ready"),
    ],
)
def test_a_node_that_does_not_report_the_handlers_in_time_fails_and_gets_no_label(
    api: FakeApiServer, status: dict[str, Any], why: str
) -> None:
    workers(api, 1)
    succeed(api, SERVED)
    api.nodes["n0"]["status"] |= status
    result = dispatch(api, INSTALL)
    (task,) = result.tasks
    assert (result.outcome, str(task.outcome)) == ("failed", "failed")
    assert why in str(task.problem)
    assert labels(api, "n0") == ("false", "false")
    found = record(api, "n0")
    assert found is not None
    assert found.outcome == "failed"
    assert reasons(api) == ["KataInstallFailed"]


def test_a_change_of_the_record_alone_is_not_watched(api: FakeApiServer) -> None:
    workers(api, 1)
    serve(api, "n0")
    succeed(api, CHECKED, PLACED, SERVED)
    result = dispatch(api, INSTALL)
    found = record(api, "n0")
    assert found is not None
    assert (found.outcome, found.settings) == ("installed", "0123456789ab")
    assert result.tasks[0].seconds < STABLE_FOR


def test_a_cleanup_withdraws_the_labels_and_removes_them_after_its_job(api: FakeApiServer) -> None:
    workers(api, 1)
    serve(api, "n0")
    api.nodes["n0"]["metadata"]["annotations"][SETTER_ANNOTATION] = "kata-node"
    succeed(api, REVERTED, REMOVED)
    seen = []

    def create(job: dict[str, Any], then: Ended | None = api.on_create) -> None:
        seen.append(labels(api, "n0"))
        assert then is not None
        then(job)

    api.on_create = create
    assert outcomes(dispatch(api, REMOVE)) == {"n0": "done"}
    assert seen == [("false", "false")]
    assert labels(api, "n0") == (None, None)
    assert api.nodes["n0"]["metadata"]["annotations"] == {}
    assert reasons(api) == ["KataRemoved"]


def test_the_shared_label_stays_if_the_runtime_has_handlers_of_another_program(api: FakeApiServer) -> None:
    workers(api, 1)
    serve(api, "n0")
    succeed(api, replace(REVERTED, other_install_dirs=("/opt/other",)), REMOVED)
    dispatch(api, REMOVE)
    assert labels(api, "n0") == ("true", None)


def test_a_failed_cleanup_leaves_the_label_so_that_the_next_one_finds_the_node(api: FakeApiServer) -> None:
    workers(api, 1)
    serve(api, "n0")
    api.on_create = lambda job: api.time.after(
        1, lambda: api.fail(job["metadata"]["name"], stage="revert-cri", message="no")
    )
    assert outcomes(dispatch(api, REMOVE)) == {"n0": "failed"}
    assert labels(api, "n0") == ("false", "false")


def test_startup_taints_are_removed_and_others_stay(api: FakeApiServer) -> None:
    taints = ("example.org/kata:NoExecute", "example.org/agent:NoExecute")
    api.node("n0", taints=taints)
    succeed(api, SERVED)
    dispatch(api, replace(INSTALL, templates=INSTALL.templates.tolerating_everything()))
    assert api.nodes["n0"]["spec"]["taints"] == [{"key": "example.org/agent", "effect": "NoExecute"}]
    assert "example.org/agent:NoExecute stays because startupTaints lists" in api.events[-1]["message"]
    assert api.events[-1]["type"] == "Warning"


def fail(api: FakeApiServer, *, unfit: bool, not_served: str = "") -> None:
    error = {"what": "no /dev/kvm", "where": "", "hint": "", "exit_code": 3, "unfit": unfit}
    check = {"stage": "host-check", "outcome": "done", "summary": "looked", "not_served": not_served}
    message = json.dumps({"stage": "cri", "outcome": "failed", "summary": "no", "error": error})

    def end(job: dict[str, Any]) -> None:
        checked = {"terminated": {"exitCode": 0, "message": json.dumps(check)}}
        api.pod(job, "cri", {"terminated": {"exitCode": 3, "message": message}}, host_check=checked)
        api.finish(job["metadata"]["name"], "Failed", "PodFailurePolicy")

    api.on_create = lambda job: api.time.after(1, lambda: end(job))


def test_an_unfit_node_gets_its_label_record_and_event(api: FakeApiServer) -> None:
    workers(api, 1)
    fail(api, unfit=True)
    assert outcomes(dispatch(api, INSTALL)) == {"n0": "unfit"}
    assert labels(api, "n0") == ("false", "unfit")
    found = record(api, "n0")
    assert found is not None
    assert found.outcome == "unfit"
    assert "no /dev/kvm" in found.reason
    assert reasons(api) == ["KataNodeUnfit"]


@pytest.mark.parametrize(("not_served", "expected"), [("", "true"), ("containerd lost them", "false")])
def test_a_failed_job_withdraws_the_labels_only_if_it_found_that_the_node_does_not_serve(
    api: FakeApiServer, not_served: str, expected: str
) -> None:
    workers(api, 1)
    serve(api, "n0")
    fail(api, unfit=False, not_served=not_served)
    assert outcomes(dispatch(api, INSTALL)) == {"n0": "failed"}
    assert labels(api, "n0") == (expected, expected)
    found = record(api, "n0")
    assert found is not None
    assert found.outcome == "failed"


def test_labels_that_the_node_contradicts_are_withdrawn_before_its_job(api: FakeApiServer) -> None:
    workers(api, 1)
    serve(api, "n0", reports=())
    api.on_create = lambda job: None
    api.time.after(3, lambda: found.append(labels(api, "n0")))
    api.time.after(4, lambda: api.fail("install-n0"))
    found: list[tuple[str | None, str | None]] = []
    dispatch(api, INSTALL)
    assert found == [("false", "false")]
    assert reasons(api)[0] == "KataNotServed"


def test_a_dispatcher_that_was_replaced_after_the_job_labels_the_node(api: FakeApiServer) -> None:
    workers(api, 1)
    succeed(api, CHECKED, PLACED, SERVED)
    with api.client() as connection:
        # The Job ends after one second, and the labels are watched for longer than this.
        api.time.after(3, lambda: setattr(connection.stop, "requested", True))
        assert run(INSTALL, connection).outcome == "interrupted"
    api.nodes["n0"]["metadata"]["labels"] = {SHARED_LABEL: "false", INSTALLATION_LABEL: "false"}
    api.made.clear()
    assert outcomes(dispatch(api, INSTALL)) == {"n0": "unchanged"}
    assert api.made == []
    assert labels(api, "n0") == ("true", "true")
    assert reasons(api)[-1] == "KataInstalled"
    # A third one has nothing to do, and says nothing.
    count = len(api.events)
    assert outcomes(dispatch(api, INSTALL)) == {"n0": "unchanged"}
    assert len(api.events) == count


def test_a_conflict_is_tried_again_and_a_refusal_stops_the_rollout(api: FakeApiServer) -> None:
    workers(api, 3)
    succeed(api, SERVED)
    api.faults.append(Fault("PATCH", "/nodes/n0", 409, "modified", times=2, reason="Conflict"))
    assert outcomes(dispatch(api, INSTALL)) == {"n0": "done", "n1": "done", "n2": "done"}
    assert {labels(api, name) for name in ("n0", "n1", "n2")} == {("true", "true")}
    api.jobs.clear()
    for name in ("n0", "n1", "n2"):
        api.nodes[name]["metadata"]["labels"] = {}
    why = 'nodes "n0" is forbidden: User "d" cannot patch resource "nodes"'
    api.faults.append(Fault("PATCH", "/nodes/", 403, why, times=99, reason="Forbidden"))
    api.made.clear()
    result = dispatch(api, replace(INSTALL, generation="2", parallelism=1))
    assert api.made == []
    assert "no node can get a Job" in result.reason


def test_an_install_costs_few_requests_for_each_node(api: FakeApiServer) -> None:
    workers(api, 20)
    succeed(api, CHECKED, PLACED, SERVED)
    dispatch(api, replace(INSTALL, events=False))
    about_nodes = [each for each in api.requests if each.startswith("PATCH n") or each == "GET nodes"]
    assert len([each for each in about_nodes if each.startswith("PATCH")]) == 2 * 20
    assert len(about_nodes) <= 6 * 20
