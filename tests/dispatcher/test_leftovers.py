"""The dispatcher with leftovers of earlier runs, and with objects that are deleted during its run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from dispatcher.fake_api_server import FakeApiServer, FakeClock, Object
from dispatcher.harness import (
    CLEANUP,
    CONFIG,
    LABELS,
    dispatch,
    for_all_runtimes,
    leave_unfinished_run,
    outcomes,
    serve,
    template,
    workers,
)
from kata_node.dispatcher.config import OtherJobsConfig
from kata_node.dispatcher.kubernetes_objects import NODE_KEY, TEMPLATE_DIGEST_LABEL
from kata_node.dispatcher.progress import text
from kata_node.dispatcher.run import run
from kata_node.dispatcher.template import Owner, Template

# --- existing Jobs ----------------------------------------------------------------------------------


def test_running_jobs_of_an_earlier_run_are_adopted_and_get_the_new_owner(
    api: FakeApiServer, time: FakeClock
) -> None:
    workers(api, 3)
    leave_unfinished_run(api)
    for name in list(api.jobs):
        time.after(30, lambda name=name: api.finish(name))  # type: ignore[misc]
    result = dispatch(api, owner=Owner("second", "second-uid"))
    assert outcomes(result) == {"n0": "done", "n1": "done", "n2": "done"}
    assert api.made == []
    owners = [job["metadata"]["ownerReferences"][0]["uid"] for job in api.jobs.values()]
    assert owners == ["second-uid"] * 3


def test_adopted_jobs_count_for_parallelism(api: FakeApiServer, time: FakeClock) -> None:
    workers(api, 2)
    leave_unfinished_run(api)
    for name in list(api.jobs):
        time.after(30, lambda name=name: api.finish(name))  # type: ignore[misc]
    api.node("a-new-one")
    api.on_create = None
    dispatch(api, replace(CONFIG, parallelism=2))
    assert api.max_running == 2


@pytest.mark.parametrize(
    ("change", "made"),
    [
        pytest.param({}, 0, id="nothing"),
        pytest.param({"generation": "2"}, 2, id="another generation"),
        pytest.param({"templates": for_all_runtimes(template("newer"))}, 2, id="another template"),
    ],
)
def test_succeeded_jobs_are_not_repeated_for_the_same_generation_and_template(
    api: FakeApiServer, change: dict[str, Any], made: int
) -> None:
    workers(api, 2)
    leave_unfinished_run(api, state="Complete")
    result = dispatch(api, replace(CONFIG, **change))
    assert result.outcome == "ok"
    assert len(api.made) == made
    assert set(outcomes(result).values()) == ({"done"} if made else {"unchanged"})


def test_a_new_node_with_the_same_name_gets_a_new_job(api: FakeApiServer) -> None:
    workers(api, 2)
    leave_unfinished_run(api, state="Complete")
    api.nodes["n1"]["metadata"]["uid"] = "reinstalled"
    assert outcomes(dispatch(api)) == {"n0": "unchanged", "n1": "done"}


def test_the_next_run_replaces_a_failed_job(api: FakeApiServer) -> None:
    workers(api, 2)
    leave_unfinished_run(api, state="Failed")
    assert outcomes(dispatch(api)) == {"n0": "done", "n1": "done"}


def test_it_waits_for_a_running_job_with_an_older_template(api: FakeApiServer, time: FakeClock) -> None:
    api.node("n")
    leave_unfinished_run(api)
    (old,) = api.jobs.values()
    api.pod(old, "cri", {"running": {}})
    time.after(40, lambda: api.finish("install-n"))
    newer = replace(CONFIG, templates=for_all_runtimes(template("newer")))
    result = dispatch(api, newer)
    assert outcomes(result) == {"n": "done"}
    assert time.passed >= 40
    assert api.jobs["install-n"]["metadata"]["labels"][TEMPLATE_DIGEST_LABEL] == template("newer").digest


def test_a_job_with_an_older_template_that_has_not_started_is_deleted(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("n")
    leave_unfinished_run(api)
    (old,) = api.jobs.values()
    api.pod(old, "host-check", {"waiting": {"reason": "ImagePullBackOff"}})
    result = dispatch(api, replace(CONFIG, templates=for_all_runtimes(template("newer"))))
    assert outcomes(result) == {"n": "done"}
    assert 5 <= time.passed < 60


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"labels": {}}, id="without our labels"),
        pytest.param({"annotations": {NODE_KEY: "elsewhere"}}, id="for another node"),
    ],
)
def test_a_foreign_job_with_the_same_name_fails_the_node_and_is_not_changed(
    api: FakeApiServer, change: dict[str, Any]
) -> None:
    workers(api, 2)
    leave_unfinished_run(api, replace(CONFIG, nodes=("n0",)))
    api.jobs["install-n0"]["metadata"] |= change
    result = dispatch(api)
    assert outcomes(result) == {"n0": "failed", "n1": "done"}
    assert "does not belong to this release" in str(
        next(task.problem for task in result.tasks if task.problem)
    )
    assert "install-n0" in api.jobs
    assert api.made == ["n1"]


def test_a_cleanup_deletes_a_running_install_job_and_waits_for_its_end(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("n")
    leave_unfinished_run(api)
    result = dispatch(api, CLEANUP)
    assert outcomes(result) == {"n": "done"}
    assert list(api.jobs) == ["cleanup-n"]
    assert time.passed >= 5, "the Pod of the install must end first"


@pytest.mark.parametrize("by", ["this run", "somebody before"])
def test_a_pod_that_does_not_end_is_logged_at_once_and_only_once(
    api: FakeApiServer, time: FakeClock, by: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kata_node")
    api.node("n")
    leave_unfinished_run(api)
    api.stuck = True
    job = api.jobs["install-n"]
    api.pod(job, "cri", {"running": {}})
    if by == "somebody before":
        job["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    early_log: list[str] = []
    time.after(3, lambda: early_log.append(caplog.text))
    dispatch(api, CLEANUP)
    line = "n: waiting for the Pod pod-0, which is terminating"
    assert line in early_log[0]
    assert caplog.text.count(line) == 1


@pytest.mark.parametrize(
    ("deadline", "seconds"),
    [pytest.param(None, 1800, id="default"), pytest.param(600, 600, id="the Job's own")],
)
def test_the_wait_for_an_earlier_job_has_a_limit(
    api: FakeApiServer, time: FakeClock, deadline: Any, seconds: int
) -> None:
    workers(api, 2)
    leave_unfinished_run(api, replace(CONFIG, nodes=("n0",)))
    api.stuck = True
    job = {"spec": {"activeDeadlineSeconds": deadline, "template": {"spec": {"containers": []}}}}
    work = Template({"apiVersion": "batch/v1", "kind": "Job", **job})
    result = dispatch(api, replace(CLEANUP, templates=for_all_runtimes(work)))
    assert outcomes(result) == {"n0": "failed", "n1": "done"}
    assert str(result.tasks[0].problem) == "a leftover of an earlier run does not end: the Job install-n0"
    assert seconds <= time.passed < seconds * 2.2


def test_install_cleanup_and_install_each_run_a_job(api: FakeApiServer) -> None:
    api.node("n")
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert outcomes(dispatch(api, CLEANUP)) == {"n": "done"}
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert outcomes(dispatch(api)) == {"n": "unchanged"}
    assert api.made == ["n"] * 3


@pytest.mark.parametrize("end", ["before", "meanwhile", "deleted"])
def test_an_install_job_that_a_cleanup_reverted_does_not_count(
    api: FakeApiServer, time: FakeClock, end: str
) -> None:
    api.node("n")
    leave_unfinished_run(api, CLEANUP)
    (cleanup,) = api.jobs.values()
    api.jobs.clear()
    leave_unfinished_run(api, state="Complete")
    api.jobs["cleanup-n"] = cleanup
    api.pod(cleanup, "revert-cri", {"running": {}})
    match end:
        case "before":
            api.finish("cleanup-n")
        case "meanwhile":
            time.after(30, lambda: api.finish("cleanup-n"))
        case "deleted":
            time.after(30, lambda: api.remove("cleanup-n"))
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert api.made == ["n"]


def test_a_new_job_with_the_name_of_the_deleted_one_is_not_deleted(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("n")
    leave_unfinished_run(api, state="Failed")
    old = api.jobs["install-n"]

    def replaced() -> None:
        api.remove("install-n")
        api.add({**old, "metadata": {**old["metadata"], "uid": "of-another-run"}, "status": {}})
        time.after(10, lambda: api.finish("install-n"))

    api.on_delete = replaced
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert (api.made, api.jobs["install-n"]["metadata"]["uid"]) == ([], "of-another-run")


# --- Jobs and Nodes that are deleted during the run -------------------------------------------------


def test_a_job_that_is_deleted_during_the_run_is_created_again(api: FakeApiServer, time: FakeClock) -> None:
    api.node("n")

    def created(job: Object) -> None:
        api.on_create = None
        time.after(5, lambda: api.remove(job["metadata"]["name"]))

    api.on_create = created
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert api.made == ["n", "n"]


def test_a_node_fails_when_its_job_is_deleted_three_times(api: FakeApiServer, time: FakeClock) -> None:
    api.node("n")
    api.on_create = lambda job: time.after(5, lambda: api.remove(job["metadata"]["name"]))
    result = dispatch(api)
    assert outcomes(result) == {"n": "failed"}
    assert "deleted 3 times" in str(result.tasks[0].problem)


def test_a_job_that_is_deleted_right_after_its_end_counts_as_done(api: FakeApiServer) -> None:
    api.node("n")

    def created(job: Object) -> None:
        name = job["metadata"]["name"]
        api.finish(name)
        api.remove(name)

    api.on_create = created
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert api.made == ["n"]


def test_a_node_that_is_deleted_while_its_job_runs_is_not_a_failure(
    api: FakeApiServer, time: FakeClock
) -> None:
    workers(api, 2)

    def created(job: Object) -> None:
        if job["metadata"]["name"] == "install-n1":
            api.finish("install-n1")
        else:
            time.after(10, lambda: api.nodes.pop("n0"))

    api.on_create = created
    result = dispatch(api)
    assert outcomes(result) == {"n0": "gone", "n1": "done"}
    assert result.exit_code == 0
    assert list(api.jobs) == ["install-n1"], "the Job of the deleted Node is deleted"


def test_a_node_that_is_deleted_before_its_job_fails_is_not_a_failure(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("n")

    def created(job: Object) -> None:
        api.nodes.clear()
        time.after(10, lambda: api.finish("install-n", "Failed"))

    api.on_create = created
    assert outcomes(dispatch(api)) == {"n": "gone"}


def test_a_failed_node_that_was_absent_for_a_moment_has_failed(api: FakeApiServer, time: FakeClock) -> None:
    api.node("n")
    kept = dict(api.nodes)

    def created(job: Object) -> None:
        api.nodes.clear()
        time.after(10, lambda: api.fail("install-n", message="broken"))
        time.after(20, lambda: api.nodes.update(kept))

    api.on_create = created
    result = dispatch(api)
    assert outcomes(result) == {"n": "failed"}
    assert "broken" in str(result.tasks[0].problem)


def test_a_long_job_costs_few_reads_of_its_node(api: FakeApiServer, time: FakeClock) -> None:
    api.node("n")
    api.on_create = lambda job: time.after(1800, lambda: api.finish("install-n"))
    result = dispatch(api)
    assert outcomes(result) == {"n": "done"}
    assert api.requests.count("GET nodes") <= 6


# --- Pods of deleted Jobs ---------------------------------------------------------------------------


def require_no_pods_at_creation(api: FakeApiServer) -> list[float]:
    """Let new Jobs succeed, and fail the test if one is created while a Pod exists.

    Return the list that gets the time of each creation.
    """
    made: list[float] = []

    def created(job: Object) -> None:
        assert not api.pods, "two runs on a node at the same time"
        made.append(api.time.passed)
        api.finish(job["metadata"]["name"])

    api.on_create = created
    return made


def test_it_waits_for_the_pods_of_jobs_that_were_deleted_before_the_run(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kata_node")
    workers(api, 3)
    leave_unfinished_run(api, replace(CONFIG, nodes=("n0", "n1")))
    started = time.passed
    api.lingering = 200
    for name in ("install-n0", "install-n1"):
        api.pod(api.jobs[name], "cri", {"running": {}})
        api.remove(name)
    made: list[float] = []
    created_alone = require_no_pods_at_creation(api)
    checked = api.on_create

    def created(job: Object) -> None:
        assert checked
        if job["metadata"]["name"] == "install-n2":
            made.append(time.passed)
            api.finish("install-n2")
        else:
            checked(job)

    api.on_create = created
    result = dispatch(api, replace(CONFIG, generation="2"))
    assert outcomes(result) == {"n0": "done", "n1": "done", "n2": "done"}
    assert made == [started], "the other node does not wait"
    assert all(200 <= moment < 210 for moment in created_alone)
    assert "n0: waiting for the Pod pod-0 of a deleted Job" in caplog.text
    assert result.requests["list pods"] < 50, "one list covers all nodes"


def test_it_waits_for_the_pods_of_a_job_that_is_deleted_during_the_run(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("n")
    api.lingering = 40
    made = require_no_pods_at_creation(api)
    checked = api.on_create

    def created(job: Object) -> None:
        api.on_create = checked
        api.pod(job, "cri", {"running": {}})
        time.after(5, lambda: api.remove(job["metadata"]["name"]))

    api.on_create = created
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert len(made) == 1
    assert 45 <= made[0] < 55


def test_the_wait_for_the_pods_of_a_deleted_job_has_a_limit(api: FakeApiServer, time: FakeClock) -> None:
    api.node("n")
    leave_unfinished_run(api)
    api.lingering = 1e6
    api.pod(api.jobs["install-n"], "cri", {"running": {}})
    api.remove("install-n")
    result = dispatch(api)
    assert outcomes(result) == {"n": "failed"}
    assert "a leftover of an earlier run does not end: the Pod pod-0" in str(result.tasks[0].problem)
    assert 1800 <= time.passed < 4000


@pytest.mark.parametrize("kind", ["FailureTarget", pytest.param("Failed", id="Kubernetes before 1.31")])
def test_a_node_fails_when_its_pod_does_not_end_after_the_deadline(
    api: FakeApiServer, time: FakeClock, kind: str
) -> None:
    api.node("n")

    def created(job: Object) -> None:
        api.pod(job, "cri", {"running": {}})
        late = (kind, "DeadlineExceeded", "too long")
        time.after(100, lambda: api.finish("install-n", *late, ends=False))

    api.on_create = created
    slow = template(terminationGracePeriodSeconds=300)
    result = dispatch(api, replace(CONFIG, templates=for_all_runtimes(slow)))
    assert outcomes(result) == {"n": "failed"}
    assert str(result.tasks[0].problem) == (
        "cri: its Job exceeded its deadline (DeadlineExceeded: too long); its Pod has still not ended"
    )
    assert 460 <= time.passed < 600


# --- two dispatchers at the same time ---------------------------------------------------------------

RECONCILE = replace(CONFIG, skip_serving=True)


@pytest.mark.parametrize("image", [pytest.param("kata", id="the same"), pytest.param("newer", id="a newer")])
def test_a_reconciling_run_skips_a_node_with_a_running_job_of_an_upgrade(
    api: FakeApiServer, image: str
) -> None:
    workers(api, 2)
    leave_unfinished_run(
        api, replace(CONFIG, generation="2", nodes=("n0",), templates=for_all_runtimes(template(image)))
    )
    api.pod(api.jobs["install-n0"], "host-check", {"waiting": {"reason": "ImagePullBackOff"}})
    result = dispatch(api, RECONCILE, owner=Owner("reconcile", "reconcile-uid"))
    assert outcomes(result) == {"n0": "skipped", "n1": "done"}
    assert (result.exit_code, api.made) == (0, ["n1"])
    assert not api.jobs["install-n0"]["metadata"].get("ownerReferences")
    assert "DELETE" not in "".join(api.requests)


def test_a_reconciling_run_creates_no_job_for_a_node_that_serves_meanwhile(
    api: FakeApiServer, time: FakeClock
) -> None:
    workers(api, 2)

    def created(job: Object) -> None:
        serve(api, "n1")
        api.finish(job["metadata"]["name"])

    api.on_create = created
    result = dispatch(api, replace(RECONCILE, parallelism=1))
    assert outcomes(result) == {"n0": "done", "n1": "unchanged"}
    assert api.made == ["n0"]


def test_a_reconciling_run_does_not_create_its_job_again_when_an_upgrade_deletes_it(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("n")
    old = replace(RECONCILE, templates=for_all_runtimes(template("older")))

    def created(job: Object) -> None:
        def upgraded() -> None:
            api.remove("install-n")
            api.on_create = None

        time.after(5, upgraded)

    api.on_create = created
    result = dispatch(api, old)
    assert outcomes(result) == {"n": "skipped"}
    assert api.made == ["n"]


def test_a_cleanup_stops_other_dispatchers_of_the_release_before_it_reads_the_nodes(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("n")
    own = api.dispatcher("cleanup-dispatcher", LABELS)
    api.dispatcher("install-dispatcher", LABELS)
    api.dispatcher("of-another-release", {"app.kubernetes.io/instance": "other"})
    result = dispatch(api, CLEANUP, owner=Owner("cleanup-dispatcher", own))
    assert outcomes(result) == {"n": "done"}
    assert sorted(api.jobs) == ["cleanup-dispatcher", "cleanup-n", "of-another-release"]
    assert api.requests.index("DELETE install-dispatcher") < api.requests.index("GET nodes")
    assert 5 <= time.passed < 10, "the Pod of the other dispatcher ended first"


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param({"app.kubernetes.io/instance": "other"}, id="of another release"),
        pytest.param({}, id="of another program"),
    ],
)
def test_a_pod_with_false_labels_does_not_delete_the_job_that_it_names(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture, labels: dict[str, str]
) -> None:
    api.node("n")
    uid = api.dispatcher("backup", LABELS)
    api.jobs["backup"]["metadata"]["labels"] = labels
    assert outcomes(dispatch(api, CLEANUP)) == {"n": "done"}
    assert api.jobs["backup"]["metadata"]["uid"] == uid
    assert "Job backup does not belong to this release; leaving both alone" in caplog.text
    assert time.passed < 60, "the Pod is not waited for"


def test_a_cleanup_without_an_owner_does_not_stop_itself(api: FakeApiServer) -> None:
    api.node("n")
    api.dispatcher("cleanup-dispatcher", LABELS)
    with api.client() as connection:
        assert outcomes(run(CLEANUP, connection, reporter="pod-0")) == {"n": "done"}
    assert "cleanup-dispatcher" in api.jobs


def test_the_wait_for_another_dispatcher_has_a_limit(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    api.node("n")
    api.stuck = True
    api.dispatcher("install-dispatcher", LABELS)
    assert outcomes(dispatch(api, CLEANUP)) == {"n": "done"}
    assert 120 <= time.passed < 130
    assert "these dispatcher Pods did not end within 120 s: pod-0; continuing" in caplog.text
    assert api.requests.count("DELETE install-dispatcher") == 1


def test_an_install_does_not_stop_other_dispatchers(api: FakeApiServer) -> None:
    api.node("n")
    api.dispatcher("reconcile-1", LABELS)
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert "reconcile-1" in api.jobs


@pytest.mark.parametrize(("retries", "made"), [(False, []), (True, ["n0"])])
def test_the_pod_that_replaces_a_lost_one_takes_its_results_over(
    api: FakeApiServer, time: FakeClock, retries: bool, made: list[str]
) -> None:
    workers(api, 3)
    config, own = replace(CONFIG, retries_failed_nodes=retries), Owner("own", "own-uid")
    with api.client() as connection:
        api.on_create = lambda job: time.after(0.5, lambda: setattr(connection.stop, "requested", True))
        assert run(config, connection, owner=own).outcome == "interrupted"
    api.fail("install-n0", code=4, message="rolled back")
    api.finish("install-n1")
    time.after(30, lambda: api.finish("install-n2"))
    api.on_create, api.made[:] = None, []
    result = dispatch(api, config, owner=own)
    failed = "done" if retries else "failed"
    assert outcomes(result) == {"n0": failed, "n1": "unchanged", "n2": "done"}
    assert api.made == made
    # Another Job of the dispatcher, made by the next helm command, tries again.
    assert outcomes(dispatch(api, config, owner=Owner("next", "next-uid")))["n0"] != "failed"


# --- running pods before a cleanup ------------------------------------------------------------------

ASKING = replace(CLEANUP, check=OtherJobsConfig("check", for_all_runtimes(template("check"))))
RUNS = json.dumps({"stage": "check-pods", "error": {"what": "1 pod runs on a handler", "pods_run": True}})


def answers(api: FakeApiServer, failures: Mapping[str, str]) -> None:
    """Let Jobs with these names fail with a message; all others succeed."""

    def created(job: Object) -> None:
        name = job["metadata"]["name"]
        if name in failures:
            api.fail(name, stage="check-pods", message=failures[name])
        else:
            api.finish(name)

    api.on_create = created


def test_a_cleanup_changes_no_node_while_pods_run_in_kata_on_one(api: FakeApiServer) -> None:
    workers(api, 3)
    answers(api, {"check-n1": RUNS})
    result = dispatch(api, ASKING)
    assert (result.outcome, result.exit_code) == ("stopped", 1)
    assert "pods run in Kata on 1 of 3 nodes, so no node was changed" in result.reason
    assert outcomes(result) == {"n0": "not started", "n1": "failed", "n2": "not started"}
    assert sorted(api.jobs) == ["check-n0", "check-n1", "check-n2"]
    assert 'check-pods: the node says "1 pod runs on a handler"' in text(result)
    # The next run asks again, although the Jobs of the first one are still there.
    answers(api, {})
    assert outcomes(dispatch(api, ASKING)) == dict.fromkeys(("n0", "n1", "n2"), "done")


def test_a_cleanup_goes_on_if_a_node_cannot_say_whether_pods_run(
    api: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    workers(api, 2)
    answers(api, {"check-n0": "the CRI socket does not answer"})
    assert outcomes(dispatch(api, ASKING)) == {"n0": "done", "n1": "done"}
    assert "the CRI socket does not answer" in caplog.text


def test_a_node_that_is_not_ready_is_not_asked(api: FakeApiServer) -> None:
    api.node("n0")
    api.node("n1", taints=("node.kubernetes.io/unreachable:NoExecute",))
    answers(api, {})
    assert outcomes(dispatch(api, ASKING)) == {"n0": "done", "n1": "not ready"}
    assert api.made == ["n0", "n0"]


def test_the_check_ends_the_install_job_of_an_earlier_run_and_keeps_finished_ones(
    api: FakeApiServer, time: FakeClock
) -> None:
    workers(api, 2)
    leave_unfinished_run(api)
    api.finish("install-n0")
    answers(api, {"check-n0": RUNS})
    dispatch(api, ASKING)
    assert sorted(api.jobs) == ["check-n0", "check-n1", "install-n0"]
