"""Tables of decisions: taints, existing Jobs, waves, causes of failures, and messages."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from kata_node.dispatcher.adoption import DesiredJob, JobDecision, decide
from kata_node.dispatcher.config import IntOrPercent
from kata_node.dispatcher.failures import NodeProblem, diagnose, stuck_reason
from kata_node.dispatcher.kubernetes_objects import (
    ACTION_LABEL,
    GENERATION_ANNOTATION,
    NODE_KEY,
    NODE_UID_ANNOTATION,
    TEMPLATE_DIGEST_LABEL,
    Job,
    NodeInfo,
    Pod,
    Taint,
    Toleration,
)
from kata_node.dispatcher.nodes import blocking_taint
from kata_node.dispatcher.progress import build_result, document, duration, task_line, text
from kata_node.dispatcher.rollout import Outcome, Rollout, RolloutPlan, Task, assign_waves
from kata_node.dispatcher.template import Target

# --- taints -----------------------------------------------------------------------------------------

DEDICATED = Taint("dedicated", "NoSchedule", "gpu")


@pytest.mark.parametrize(
    ("tolerations", "taint", "tolerated"),
    [
        pytest.param([], DEDICATED, False, id="nothing is tolerated"),
        pytest.param([], Taint("a", "PreferNoSchedule"), True, id="a taint that only prefers"),
        pytest.param([Toleration(operator="Exists")], DEDICATED, True, id="everything is"),
        pytest.param([Toleration("dedicated", "Exists")], DEDICATED, True, id="the key, whatever its value"),
        pytest.param([Toleration("dedicated", "Equal", "gpu")], DEDICATED, True, id="the value"),
        pytest.param([Toleration("dedicated", "", "gpu")], DEDICATED, True, id="no operator is Equal"),
        pytest.param([Toleration("dedicated", "Equal", "cpu")], DEDICATED, False, id="another value"),
        pytest.param([Toleration("dedicated", "Exists", effect="NoExecute")], DEDICATED, False, id="effect"),
        pytest.param([Toleration("other", "Exists")], DEDICATED, False, id="another key"),
        pytest.param([Toleration("dedicated", "Gt", "1")], DEDICATED, False, id="an operator of the future"),
        pytest.param(
            [Toleration(value="gpu")], Taint("", "NoExecute", "gpu"), False, id="no key needs Exists"
        ),
    ],
)
def test_a_taint_that_is_not_tolerated_blocks_a_node(
    tolerations: list[Toleration], taint: Taint, tolerated: bool
) -> None:
    assert (blocking_taint([taint], tolerations) is None) == tolerated


@pytest.mark.parametrize("order", [1, -1])
def test_a_permanent_taint_is_reported_before_a_temporary_one(order: int) -> None:
    taints = [Taint("node.kubernetes.io/not-ready", "NoSchedule"), DEDICATED][::order]
    assert blocking_taint(taints, []) == DEDICATED
    assert blocking_taint(taints, [Toleration("dedicated", "Exists")]) == Taint(
        "node.kubernetes.io/not-ready", "NoSchedule"
    )


@pytest.mark.parametrize(
    ("version", "runtime"),
    [
        pytest.param("containerd://2.3.4", "containerd", id="containerd"),
        pytest.param("cri-o://1.36.1", "cri-o", id="CRI-O"),
        pytest.param("containerd://Unknown", "containerd", id="containerd that is being restarted"),
        pytest.param("containerd", "", id="no version"),
        pytest.param("", "", id="nothing reported yet"),
    ],
)
def test_the_runtime_of_a_node_comes_from_its_node_info(version: str, runtime: str) -> None:
    info = msgspec.convert({"containerRuntimeVersion": version}, NodeInfo)
    assert info.runtime == runtime


def test_the_first_blocking_taint_has_the_format_of_kubectl() -> None:
    taints = [Taint("a", "PreferNoSchedule"), DEDICATED, Taint("b", "NoExecute")]
    assert str(blocking_taint(taints, [])) == "dedicated=gpu:NoSchedule"
    assert str(Taint("b", "NoExecute")) == "b:NoExecute"


# --- existing Jobs ----------------------------------------------------------------------------------

INSTALL = DesiredJob("install-n", "install", "d1", "1", "n", "u1", {"release": "mine"})
CLEANUP = DesiredJob("cleanup-n", "cleanup", "d9", "1", "n", "u1", {"release": "mine"})


def existing_job(
    name: str = "install-n", *, condition: str = "", deleted: bool = False, **change: str
) -> Job:
    values = {
        "action": "install",
        "digest": "d1",
        "generation": "1",
        "node": "n",
        "uid": "u1",
        "release": "mine",
    }
    values |= change
    labels = {
        "release": values["release"],
        ACTION_LABEL: values["action"],
        TEMPLATE_DIGEST_LABEL: values["digest"],
    }
    annotations = {
        NODE_KEY: values["node"],
        NODE_UID_ANNOTATION: values["uid"],
        GENERATION_ANNOTATION: values["generation"],
    }
    metadata: dict[str, Any] = {"name": name, "uid": "j", "labels": labels, "annotations": annotations}
    if deleted:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    conditions = [{"type": condition, "status": "True"}] if condition else []
    return msgspec.convert({"metadata": metadata, "status": {"conditions": conditions}}, Job)


@pytest.mark.parametrize(
    ("job", "wanted", "expected"),
    [
        pytest.param(existing_job(), INSTALL, JobDecision.ADOPT, id="runs and does what is wanted"),
        pytest.param(
            existing_job(generation="0"), INSTALL, JobDecision.ADOPT, id="runs since another generation"
        ),
        pytest.param(existing_job(condition="Complete"), INSTALL, JobDecision.DONE, id="has done it"),
        pytest.param(
            existing_job(condition="Complete", generation="0"),
            INSTALL,
            JobDecision.REPLACE,
            id="did it before",
        ),
        pytest.param(
            existing_job(condition="Complete", digest="d0"),
            INSTALL,
            JobDecision.REPLACE,
            id="did something else",
        ),
        pytest.param(
            existing_job(condition="Complete", uid="u0"),
            INSTALL,
            JobDecision.REPLACE,
            id="did it on another node",
        ),
        pytest.param(existing_job(condition="Failed"), INSTALL, JobDecision.REPLACE, id="has failed"),
        pytest.param(
            existing_job(condition="FailureTarget"), INSTALL, JobDecision.AWAIT, id="is about to have failed"
        ),
        pytest.param(existing_job(digest="d0"), INSTALL, JobDecision.AWAIT, id="does something else"),
        pytest.param(
            existing_job(uid="u0"), INSTALL, JobDecision.AWAIT, id="was meant for another node of this name"
        ),
        pytest.param(existing_job(deleted=True), INSTALL, JobDecision.AWAIT, id="is being deleted"),
        pytest.param(existing_job(release="other"), INSTALL, JobDecision.FOREIGN, id="is of another release"),
        pytest.param(
            existing_job(release="other", deleted=True),
            INSTALL,
            JobDecision.FOREIGN,
            id="is foreign, and going",
        ),
        pytest.param(
            existing_job(node="m"), INSTALL, JobDecision.FOREIGN, id="has the name for another node"
        ),
        pytest.param(existing_job(node=""), INSTALL, JobDecision.FOREIGN, id="was not made here"),
        pytest.param(
            existing_job(action="cleanup"),
            INSTALL,
            JobDecision.FOREIGN,
            id="has the name and does the opposite",
        ),
        pytest.param(
            existing_job("cleanup-n", action="cleanup"), INSTALL, JobDecision.AWAIT, id="undoes right now"
        ),
        pytest.param(
            existing_job("cleanup-n", action="cleanup", condition="Complete"),
            INSTALL,
            JobDecision.REPLACE,
            id="has undone",
        ),
        pytest.param(existing_job(), CLEANUP, JobDecision.STOP, id="does what is to be undone"),
        pytest.param(existing_job(deleted=True), CLEANUP, JobDecision.AWAIT, id="is already made to stop"),
        pytest.param(
            existing_job(condition="Complete"), CLEANUP, JobDecision.REPLACE, id="did what is to be undone"
        ),
        pytest.param(existing_job("old-n"), INSTALL, JobDecision.AWAIT, id="runs under an older name"),
        pytest.param(
            existing_job("old-n", condition="Complete"),
            INSTALL,
            JobDecision.IGNORE,
            id="ran under an older name",
        ),
        pytest.param(existing_job("x", release="other"), INSTALL, JobDecision.IGNORE, id="is none of ours"),
        pytest.param(
            existing_job("install-m", node="m"), INSTALL, JobDecision.IGNORE, id="is for another node"
        ),
    ],
)
def test_the_decision_about_an_existing_job(job: Job, wanted: DesiredJob, expected: JobDecision) -> None:
    assert decide(job, wanted) is expected


# --- waves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "plan", "expected"),
    [
        pytest.param(3, RolloutPlan(9), [0, 0, 0], id="one wave"),
        pytest.param(4, RolloutPlan(9, canary=1), [0, 1, 1, 1], id="a canary"),
        pytest.param(2, RolloutPlan(9, canary=5), [0, 0], id="more canaries than nodes"),
        pytest.param(5, RolloutPlan(9, wave_size=IntOrPercent(2)), [0, 0, 1, 1, 2], id="waves"),
        pytest.param(5, RolloutPlan(9, canary=1, wave_size=IntOrPercent(2)), [0, 1, 1, 2, 2], id="both"),
        pytest.param(
            5, RolloutPlan(9, wave_size=IntOrPercent(40, percent=True)), [0, 0, 1, 1, 2], id="a share"
        ),
        pytest.param(
            3,
            RolloutPlan(9, wave_size=IntOrPercent(1, percent=True)),
            [0, 1, 2],
            id="a share of less than one",
        ),
        pytest.param(0, RolloutPlan(9, canary=1), [], id="no node"),
    ],
)
def test_nodes_are_assigned_to_waves(count: int, plan: RolloutPlan, expected: list[int]) -> None:
    assert assign_waves(count, plan) == expected


def make_rollout(count: int, plan: RolloutPlan, last: int = 0) -> Rollout:
    tasks = [Task(Target(f"n{number}"), "install", f"job-{number}") for number in range(count)]
    more = [Task(Target(f"x{number}"), "cleanup", f"job-x{number}") for number in range(last)]
    return Rollout(tasks, plan, more)


def start_all(rollout: Rollout, now: float = 0) -> list[str]:
    names = []
    while task := rollout.start_next(now):
        names.append(task.target.name)
    return names


@pytest.mark.parametrize(
    ("plan", "failures", "stopped"),
    [
        pytest.param(RolloutPlan(1), 10, "", id="no limit"),
        pytest.param(
            RolloutPlan(1, max_failures=IntOrPercent(0)),
            1,
            "1 of 10 nodes failed, maxFailures allows 0",
            id="none",
        ),
        pytest.param(RolloutPlan(1, max_failures=IntOrPercent(2)), 2, "", id="as many as may"),
        pytest.param(
            RolloutPlan(1, max_failures=IntOrPercent(2)),
            3,
            "3 of 10 nodes failed, maxFailures allows 2",
            id="more",
        ),
        pytest.param(
            RolloutPlan(1, max_failures=IntOrPercent(20, percent=True)), 2, "", id="as large a share as may"
        ),
        pytest.param(
            RolloutPlan(1, max_failures=IntOrPercent(20, percent=True)),
            3,
            "3 of 10 nodes failed, maxFailures allows 2",
            id="larger",
        ),
        pytest.param(RolloutPlan(1, canary=1), 1, "the canary node failed", id="the canary"),
        pytest.param(
            RolloutPlan(1, canary=2), 1, "1 of 2 canary nodes failed, maxFailures allows 0", id="a canary"
        ),
        pytest.param(RolloutPlan(1, canary=3, max_failures=IntOrPercent(2)), 2, "", id="canaries that may"),
        pytest.param(
            RolloutPlan(1, canary=2, max_failures=IntOrPercent(5)),
            2,
            "all 2 canary nodes failed",
            id="all canaries",
        ),
        pytest.param(
            RolloutPlan(1, canary=2, max_failures=IntOrPercent(40, percent=True)),
            1,
            "1 of 2 canary nodes failed, maxFailures allows 0",
            id="a share is one of the canaries",
        ),
    ],
)
def test_the_rollout_stops_when_more_nodes_fail_than_max_failures_allows(
    plan: RolloutPlan, failures: int, stopped: str
) -> None:
    rollout = make_rollout(10, plan)
    for _ in range(failures):
        task = rollout.start_next(0)
        assert task
        rollout.end(task, Outcome.FAILED, 0)
    assert rollout.stopped == stopped
    assert (rollout.start_next(0) is None) == (failures == 10 or bool(stopped))


def test_without_max_failures_only_canary_nodes_can_stop_the_rollout() -> None:
    rollout = make_rollout(4, RolloutPlan(1, canary=1))
    for outcome in (Outcome.DONE, Outcome.FAILED, Outcome.FAILED):
        task = rollout.start_next(0)
        assert task
        rollout.end(task, outcome, 0)
    assert start_all(rollout) == ["n3"]


def test_the_last_wave_waits_for_all_others_and_its_failures_do_not_stop_it() -> None:
    rollout = make_rollout(1, RolloutPlan(1, max_failures=IntOrPercent(0)), last=2)
    assert start_all(rollout) == ["n0"]
    rollout.end(rollout.running()[0], Outcome.DONE, 0)
    assert start_all(rollout) == ["x0"]
    rollout.end(rollout.running()[0], Outcome.FAILED, 0)
    assert start_all(rollout) == ["x1"]
    assert not rollout.is_complete()
    rollout.end(rollout.running()[0], Outcome.DONE, 0)
    assert rollout.is_complete()


def test_prioritized_nodes_come_first_within_their_waves() -> None:
    rollout = make_rollout(4, RolloutPlan(9, canary=1))
    rollout.prioritize({"n3", "n2"})
    assert start_all(rollout) == ["n0"]
    rollout.end(rollout.running()[0], Outcome.DONE, 0)
    assert start_all(rollout) == ["n2", "n3", "n1"]


def test_the_estimate_uses_the_mean_time_of_the_ended_nodes() -> None:
    rollout = make_rollout(9, RolloutPlan(2))
    assert start_all(rollout) == ["n0", "n1"]
    assert rollout.estimate_remaining(5) is None
    rollout.end(rollout.running()[0], Outcome.DONE, 10)
    rollout.end(rollout.running()[0], Outcome.DONE, 10)
    assert rollout.estimate_remaining(10) == 35
    assert start_all(rollout, 10) == ["n2", "n3"]
    assert rollout.estimate_remaining(15) == 30


# --- causes of failures -----------------------------------------------------------------------------


def failed_job(reason: str = "BackoffLimitExceeded", message: str = "") -> Job:
    condition = {"type": "Failed", "status": "True", "reason": reason, "message": message}
    metadata = {"name": "job", "namespace": "kata"}
    return msgspec.convert({"metadata": metadata, "status": {"conditions": [condition]}}, Job)


def pod(*containers: tuple[str, dict[str, Any]], created: int = 0, **status: Any) -> Pod:
    states = [{"name": name, "state": state} for name, state in containers]
    metadata = {"name": "p", "creationTimestamp": f"2026-01-01T00:00:{created:02}Z"}
    return msgspec.convert({"metadata": metadata, "status": {"initContainerStatuses": states, **status}}, Pod)


def ended(code: int, message: str = "", reason: str = "Error") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message, "reason": reason}}


DONE = ("host-check", ended(0))
LATE = failed_job("DeadlineExceeded", "too long")


@pytest.mark.parametrize(
    ("job", "pods", "expected"),
    [
        pytest.param(
            failed_job(),
            [pod(DONE, ("cri", ended(4, '{"error": {"what": "no", "where": "unit", "hint": "h"}}')))],
            'cri: the node says "unit: no" (exit code 4)',
            id="the stage's own words",
        ),
        pytest.param(
            failed_job(),
            [pod(("cri", ended(4, '{"error": {"what": "no", "unit_log": "x.service wrote: y"}}')))],
            'cri: the node says "no; x.service wrote: y" (exit code 4)',
            id="the words of the unit",
        ),
        pytest.param(
            failed_job(),
            [pod(("cri", ended(1, '{"summary": "so"}')))],
            'cri: the node says "so" (exit code 1)',
            id="a summary",
        ),
        pytest.param(
            failed_job(),
            [pod(("cri", ended(1, "Trace\n  back")))],
            'cri: the node says "Trace back" (exit code 1)',
            id="others",
        ),
        pytest.param(
            failed_job(),
            [pod(("cri", ended(137, reason="OOMKilled")))],
            'cri: the container ended without a message (the node says "OOMKilled") (exit code 137)',
            id="out of memory",
        ),
        pytest.param(
            failed_job(),
            [pod(("cri", ended(1, "old")), created=1), pod(("cri", ended(1, "new")), created=2)],
            'cri: the node says "new" (exit code 1)',
            id="the newest Pod's",
        ),
        pytest.param(
            failed_job(),
            [pod(("cri", ended(1, "why")), created=1), pod(created=2)],
            'cri: the node says "why" (exit code 1)',
            id="the newest that tells",
        ),
        pytest.param(
            failed_job(),
            [pod(reason="Evicted", message="disk")],
            'its Pod failed (the node says "Evicted: disk")',
            id="evicted",
        ),
        pytest.param(
            failed_job(message="too often"),
            [],
            "its Job failed (BackoffLimitExceeded: too often), and none of its Pods shows the cause",
            id="no Pod left",
        ),
        pytest.param(
            LATE,
            [pod(DONE, ("cri", {"waiting": {"reason": "ErrImagePull", "message": "no"}}))],
            'cri: the container cannot start (the node says "ErrImagePull: no")',
            id="an image that is not there",
        ),
        pytest.param(
            LATE,
            [pod(DONE, ("cri", {"running": {}}), ("label", {"waiting": {"reason": "PodInitializing"}}))],
            "cri: its Job exceeded its deadline (DeadlineExceeded: too long)",
            id="too slow a stage",
        ),
        pytest.param(
            LATE,
            [pod(DONE, ("cri", ended(143)))],
            "cri: its Job exceeded its deadline (DeadlineExceeded: too long)",
            id="too slow a stage, killed by now",
        ),
        pytest.param(
            LATE,
            [pod(("cri", ended(1, "why")), created=1), pod(("cri", ended(137)), created=2)],
            'cri: the node says "why" (exit code 1)',
            id="a stage that failed before",
        ),
        pytest.param(
            LATE,
            [],
            "its Job exceeded its deadline (DeadlineExceeded: too long)",
            id="too slow, and nothing left",
        ),
    ],
)
def test_the_problem_of_a_failed_job_names_its_stage(job: Job, pods: list[Pod], expected: str) -> None:
    assert str(diagnose(job, pods)) == expected


@pytest.mark.parametrize(
    ("pods", "expected"),
    [
        pytest.param([pod(DONE, ("cri", {"running": {}}))], "", id="it goes well"),
        pytest.param(
            [pod(("a", {"waiting": {"reason": "ContainerCreating"}}))],
            "`kubectl describe pod p -n kata`",
            id="a volume",
        ),
        pytest.param([pod()], "`kubectl describe pod p -n kata`", id="not taken up by the kubelet"),
        pytest.param([], "`kubectl describe job job -n kata`", id="no Pod"),
        pytest.param(
            [pod(("a", {"waiting": {"reason": "ErrImagePull"}}))],
            'a: the container cannot start (the node says "ErrImagePull")',
            id="an image",
        ),
        pytest.param(
            [pod(DONE, ("cri", {"waiting": {"reason": "ErrImagePull"}}))],
            'cri: the container cannot start (the node says "ErrImagePull")',
            id="the image of a later stage",
        ),
        pytest.param(
            [pod(("cri", ended(5, "locked")), created=1), pod(("cri", {"running": {}}), created=2)],
            'retrying after a failure: cri: the node says "locked" (exit code 5)',
            id="another try",
        ),
    ],
)
def test_the_reason_why_a_job_is_stuck(pods: list[Pod], expected: str) -> None:
    reason = stuck_reason(failed_job(), pods)
    assert expected in str(reason)
    assert bool(expected) == (reason is not None)


# --- messages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0 s"), (99, "99 s"), (420, "7 min"), (7500, "2 h 5 min"), (90000, "25 h 0 min")],
)
def test_durations_are_formatted_with_units(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_a_log_line_has_the_change_of_a_node_and_the_counts_of_the_rollout() -> None:
    rollout = make_rollout(4, RolloutPlan(2), last=1)
    assert start_all(rollout) == ["n0", "n1"]
    first, second = rollout.running()
    assert task_line(first, rollout, 0) == "n0: started Job job-0  [0 of 5 nodes ended, 2 running]"
    second.adopted = True
    assert "n1: adopted running Job job-1  [" in task_line(second, rollout, 0)
    first.problem = NodeProblem("broken", stage="cri", exit_code=1)
    rollout.end(first, Outcome.FAILED, 60)
    counts = "[1 of 5 nodes ended, 1 failed, 1 running, about 90 s left]"
    assert task_line(first, rollout, 60) == f"n0: failed after 60 s: cri: broken (exit code 1)  {counts}"
    assert task_line(rollout.tasks[-1], rollout, 60).startswith("x0: cleanup: ")


def test_nodes_that_take_longer_than_the_mean_get_no_estimate() -> None:
    rollout = make_rollout(2, RolloutPlan(2))
    start_all(rollout)
    rollout.end(rollout.running()[0], Outcome.DONE, 60)
    assert task_line(rollout.tasks[0], rollout, 61) == "n0: done after 60 s  [1 of 2 nodes ended, 1 running]"


def finished(*outcomes: Outcome, stopped: str = "") -> Any:
    tasks = [
        Task(Target(f"n{number}"), "install", "job", outcome=outcome, seconds=2, note="a note")
        for number, outcome in enumerate(outcomes)
    ]
    for task in tasks:
        if task.outcome is Outcome.FAILED:
            task.problem = NodeProblem("broken", stage="cri", exit_code=4, hint="mend it")
    return build_result(
        "install", tasks, stopped=stopped, interrupted="", seconds=5, requests={"a": 1, "b": 2}
    )


def test_the_table_has_the_worst_outcome_first_and_a_hint() -> None:
    lines = text(finished(Outcome.DONE, Outcome.FAILED, Outcome.SKIPPED)).splitlines()
    assert lines[0].split() == ["NODE", "ACTION", "OUTCOME", "TIME", "DETAIL"]
    assert [each.split()[0] for each in lines[1:5]] == ["n1", "hint:", "n2", "n0"]
    assert "cri: broken (exit code 4)" in lines[1]
    assert lines[-1] == (
        "install failed (1 of 3 nodes did not succeed): 3 nodes: 1 done, 1 failed, 1 skipped; took 5 s"
    )


def test_many_nodes_with_the_same_outcome_and_detail_share_a_row() -> None:
    outcomes = [Outcome.FAILED] * 800 + [Outcome.NOT_STARTED] * 2000 + [Outcome.DONE] * 200
    lines = text(finished(*outcomes, stopped="too many")).splitlines()
    assert [each.split("  ")[0] for each in lines[1:4]] == [
        "n0 and 799 more",
        "",
        "n1000 and 1999 more",
    ]
    assert lines[-2:] == [
        "failed nodes by stage: 800 at cri (exit code 4)",
        "install stopped (too many): 3000 nodes: 200 done, 800 failed, 2000 not started; took 5 s",
    ]


def test_the_table_has_a_maximum_length() -> None:
    result = finished(*[Outcome.FAILED] * 300)
    for number, task in enumerate(result.tasks):
        task.problem = NodeProblem(f"broken in way {number}", stage="cri" if number % 3 else "host-check")
    lines = text(result).splitlines()
    assert len(lines) < 60
    assert lines[-3:-1] == [
        "… and 250 more nodes; see the log, which has a line for each node",
        "failed nodes by stage: 200 at cri, 100 at host-check",
    ]


def test_the_table_of_many_nodes_omits_done_nodes() -> None:
    table = text(finished(*[Outcome.DONE] * 200, Outcome.FAILED))
    assert len(table.splitlines()) == 4
    assert text(finished(*[Outcome.DONE] * 200)) == "install ok: 200 nodes: 200 done; took 5 s"


@pytest.mark.parametrize(
    ("outcome", "run_outcome", "code"),
    [
        (Outcome.DONE, "ok", 0),
        (Outcome.UNCHANGED, "ok", 0),
        (Outcome.SKIPPED, "ok", 0),
        (Outcome.GONE, "ok", 0),
        (Outcome.FAILED, "failed", 1),
        (Outcome.NOT_READY, "failed", 1),
        (Outcome.NOT_STARTED, "failed", 1),
        (Outcome.RUNNING, "failed", 1),
    ],
)
def test_one_node_can_make_the_run_fail(outcome: Outcome, run_outcome: str, code: int) -> None:
    result = finished(Outcome.DONE, outcome)
    assert (result.outcome, result.exit_code) == (run_outcome, code)


def test_the_json_document_has_all_results() -> None:
    result = document(finished(Outcome.DONE, Outcome.FAILED, stopped="the canary node failed"))
    assert (result["outcome"], result["reason"], result["requests"]) == (
        "stopped",
        "the canary node failed",
        3,
    )
    assert result["counts"] == {"done": 1, "failed": 1}
    assert result["nodes"][1]["error"] == {
        "what": "broken",
        "stage": "cri",
        "exit_code": 4,
        "where": "",
        "hint": "mend it",
    }


def test_the_result_without_nodes_is_one_line() -> None:
    assert text(finished()) == "install ok: 0 nodes; took 5 s"
