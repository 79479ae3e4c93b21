"""What the dispatcher decides, as tables: taints, Jobs that are there, waves, causes, and what is told."""

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
def test_taints_keep_a_node_out_as_they_keep_pods_out(
    tolerations: list[Toleration], taint: Taint, tolerated: bool
) -> None:
    assert (blocking_taint([taint], tolerations) is None) == tolerated


@pytest.mark.parametrize("order", [1, -1])
def test_a_taint_that_somebody_wants_goes_before_one_that_passes_by_itself(order: int) -> None:
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
def test_the_runtime_of_a_node_is_what_its_kubelet_calls_it(version: str, runtime: str) -> None:
    info = msgspec.convert({"containerRuntimeVersion": version}, NodeInfo)
    assert info.runtime == runtime


def test_the_first_taint_in_the_way_is_named_as_kubectl_names_it() -> None:
    taints = [Taint("a", "PreferNoSchedule"), DEDICATED, Taint("b", "NoExecute")]
    assert str(blocking_taint(taints, [])) == "dedicated=gpu:NoSchedule"
    assert str(Taint("b", "NoExecute")) == "b:NoExecute"


# --- Jobs that are there ----------------------------------------------------------------------------

WANTED = DesiredJob("install-n", "install", "d1", "1", "n", "u1", {"release": "mine"})
UNDO = DesiredJob("cleanup-n", "cleanup", "d9", "1", "n", "u1", {"release": "mine"})


def there(name: str = "install-n", *, condition: str = "", deleted: bool = False, **change: str) -> Job:
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
        pytest.param(there(), WANTED, JobDecision.ADOPT, id="runs and does what is wanted"),
        pytest.param(there(generation="0"), WANTED, JobDecision.ADOPT, id="runs since another generation"),
        pytest.param(there(condition="Complete"), WANTED, JobDecision.DONE, id="has done it"),
        pytest.param(
            there(condition="Complete", generation="0"), WANTED, JobDecision.REPLACE, id="did it before"
        ),
        pytest.param(
            there(condition="Complete", digest="d0"), WANTED, JobDecision.REPLACE, id="did something else"
        ),
        pytest.param(
            there(condition="Complete", uid="u0"), WANTED, JobDecision.REPLACE, id="did it on another node"
        ),
        pytest.param(there(condition="Failed"), WANTED, JobDecision.REPLACE, id="has failed"),
        pytest.param(
            there(condition="FailureTarget"), WANTED, JobDecision.AWAIT, id="is about to have failed"
        ),
        pytest.param(there(digest="d0"), WANTED, JobDecision.AWAIT, id="does something else"),
        pytest.param(
            there(uid="u0"), WANTED, JobDecision.AWAIT, id="was meant for another node of this name"
        ),
        pytest.param(there(deleted=True), WANTED, JobDecision.AWAIT, id="is being deleted"),
        pytest.param(there(release="other"), WANTED, JobDecision.FOREIGN, id="is of another release"),
        pytest.param(
            there(release="other", deleted=True), WANTED, JobDecision.FOREIGN, id="is foreign, and going"
        ),
        pytest.param(there(node="m"), WANTED, JobDecision.FOREIGN, id="has the name for another node"),
        pytest.param(there(node=""), WANTED, JobDecision.FOREIGN, id="was not made here"),
        pytest.param(
            there(action="cleanup"), WANTED, JobDecision.FOREIGN, id="has the name and does the opposite"
        ),
        pytest.param(there("cleanup-n", action="cleanup"), WANTED, JobDecision.AWAIT, id="undoes right now"),
        pytest.param(
            there("cleanup-n", action="cleanup", condition="Complete"),
            WANTED,
            JobDecision.REPLACE,
            id="has undone",
        ),
        pytest.param(there(), UNDO, JobDecision.STOP, id="does what is to be undone"),
        pytest.param(there(deleted=True), UNDO, JobDecision.AWAIT, id="is already made to stop"),
        pytest.param(there(condition="Complete"), UNDO, JobDecision.REPLACE, id="did what is to be undone"),
        pytest.param(there("old-n"), WANTED, JobDecision.AWAIT, id="runs under an older name"),
        pytest.param(
            there("old-n", condition="Complete"), WANTED, JobDecision.IGNORE, id="ran under an older name"
        ),
        pytest.param(there("x", release="other"), WANTED, JobDecision.IGNORE, id="is none of ours"),
        pytest.param(there("install-m", node="m"), WANTED, JobDecision.IGNORE, id="is for another node"),
    ],
)
def test_what_a_job_that_is_there_means(job: Job, wanted: DesiredJob, expected: JobDecision) -> None:
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
def test_nodes_are_put_into_waves(count: int, plan: RolloutPlan, expected: list[int]) -> None:
    assert assign_waves(count, plan) == expected


def rollout(count: int, plan: RolloutPlan, last: int = 0) -> Rollout:
    tasks = [Task(Target(f"n{number}"), "install", f"job-{number}") for number in range(count)]
    more = [Task(Target(f"x{number}"), "cleanup", f"job-x{number}") for number in range(last)]
    return Rollout(tasks, plan, more)


def begun(rollout: Rollout, now: float = 0) -> list[str]:
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
            "1 nodes have failed, and at most 0 may",
            id="none",
        ),
        pytest.param(RolloutPlan(1, max_failures=IntOrPercent(2)), 2, "", id="as many as may"),
        pytest.param(
            RolloutPlan(1, max_failures=IntOrPercent(2)),
            3,
            "3 nodes have failed, and at most 2 may",
            id="more",
        ),
        pytest.param(
            RolloutPlan(1, max_failures=IntOrPercent(20, percent=True)), 2, "", id="as large a share as may"
        ),
        pytest.param(
            RolloutPlan(1, max_failures=IntOrPercent(20, percent=True)),
            3,
            "3 nodes have failed, and at most 2 may",
            id="larger",
        ),
        pytest.param(RolloutPlan(1, canary=1), 1, "the canary has failed", id="the canary"),
        pytest.param(
            RolloutPlan(1, canary=2), 1, "1 of 2 canaries have failed, and at most 0 may", id="a canary"
        ),
        pytest.param(RolloutPlan(1, canary=3, max_failures=IntOrPercent(2)), 2, "", id="canaries that may"),
        pytest.param(
            RolloutPlan(1, canary=2, max_failures=IntOrPercent(5)),
            2,
            "all 2 canaries have failed",
            id="all canaries",
        ),
        pytest.param(
            RolloutPlan(1, canary=2, max_failures=IntOrPercent(40, percent=True)),
            1,
            "1 of 2 canaries have failed, and at most 0 may",
            id="a share is one of the canaries",
        ),
    ],
)
def test_it_stops_when_more_have_failed_than_may(plan: RolloutPlan, failures: int, stopped: str) -> None:
    whole = rollout(10, plan)
    for _ in range(failures):
        task = whole.start_next(0)
        assert task
        whole.end(task, Outcome.FAILED, 0)
    assert whole.stopped == stopped
    assert (whole.start_next(0) is None) == (failures == 10 or bool(stopped))


def test_a_failure_after_the_canaries_stops_nothing_without_a_limit() -> None:
    whole = rollout(4, RolloutPlan(1, canary=1))
    for outcome in (Outcome.DONE, Outcome.FAILED, Outcome.FAILED):
        task = whole.start_next(0)
        assert task
        whole.end(task, outcome, 0)
    assert begun(whole) == ["n3"]


def test_what_comes_last_waits_for_all_others_and_its_failures_stop_nothing() -> None:
    whole = rollout(1, RolloutPlan(1, max_failures=IntOrPercent(0)), last=2)
    assert begun(whole) == ["n0"]
    whole.end(whole.running()[0], Outcome.DONE, 0)
    assert begun(whole) == ["x0"]
    whole.end(whole.running()[0], Outcome.FAILED, 0)
    assert begun(whole) == ["x1"]
    assert not whole.is_complete()
    whole.end(whole.running()[0], Outcome.DONE, 0)
    assert whole.is_complete()


def test_those_named_come_first_within_their_waves() -> None:
    whole = rollout(4, RolloutPlan(9, canary=1))
    whole.prioritize({"n3", "n2"})
    assert begun(whole) == ["n0"]
    whole.end(whole.running()[0], Outcome.DONE, 0)
    assert begun(whole) == ["n2", "n3", "n1"]


def test_the_estimate_is_how_long_nodes_took_so_far() -> None:
    whole = rollout(9, RolloutPlan(2))
    assert begun(whole) == ["n0", "n1"]
    assert whole.estimate_remaining(5) is None
    whole.end(whole.running()[0], Outcome.DONE, 10)
    whole.end(whole.running()[0], Outcome.DONE, 10)
    assert whole.estimate_remaining(10) == 35
    assert begun(whole, 10) == ["n2", "n3"]
    assert whole.estimate_remaining(15) == 30


# --- causes -----------------------------------------------------------------------------------------


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
    ("job", "pods", "said"),
    [
        pytest.param(
            failed_job(),
            [pod(DONE, ("cri", ended(4, '{"error": {"what": "no", "where": "unit", "hint": "h"}}')))],
            "cri: unit: no (exit code 4)",
            id="the stage's own words",
        ),
        pytest.param(
            failed_job(),
            [pod(("cri", ended(1, '{"summary": "so"}')))],
            "cri: so (exit code 1)",
            id="a summary",
        ),
        pytest.param(
            failed_job(),
            [pod(("cri", ended(1, "Trace\n  back")))],
            "cri: Trace back (exit code 1)",
            id="others",
        ),
        pytest.param(
            failed_job(),
            [pod(("cri", ended(137, reason="OOMKilled")))],
            "cri: it ended without a word (OOMKilled) (exit code 137)",
            id="out of memory",
        ),
        pytest.param(
            failed_job(),
            [pod(("cri", ended(1, "old")), created=1), pod(("cri", ended(1, "new")), created=2)],
            "cri: new (exit code 1)",
            id="the newest Pod's",
        ),
        pytest.param(
            failed_job(),
            [pod(("cri", ended(1, "why")), created=1), pod(created=2)],
            "cri: why (exit code 1)",
            id="the newest that tells",
        ),
        pytest.param(
            failed_job(),
            [pod(reason="Evicted", message="disk")],
            "its Pod has failed (Evicted: disk)",
            id="evicted",
        ),
        pytest.param(
            failed_job(message="too often"),
            [],
            "its Job has failed (BackoffLimitExceeded: too often), and no Pod is left that tells why",
            id="no Pod left",
        ),
        pytest.param(
            LATE,
            [pod(DONE, ("cri", {"waiting": {"reason": "ErrImagePull", "message": "no"}}))],
            "cri: it could not be started (ErrImagePull: no)",
            id="an image that is not there",
        ),
        pytest.param(
            LATE,
            [pod(DONE, ("cri", {"running": {}}), ("label", {"waiting": {"reason": "PodInitializing"}}))],
            "cri: its Job took longer than it may (DeadlineExceeded: too long)",
            id="too slow a stage",
        ),
        pytest.param(
            LATE,
            [pod(DONE, ("cri", ended(143)))],
            "cri: its Job took longer than it may (DeadlineExceeded: too long)",
            id="too slow a stage, killed by now",
        ),
        pytest.param(
            LATE,
            [pod(("cri", ended(1, "why")), created=1), pod(("cri", ended(137)), created=2)],
            "cri: why (exit code 1)",
            id="a stage that failed before",
        ),
        pytest.param(
            LATE,
            [],
            "its Job took longer than it may (DeadlineExceeded: too long)",
            id="too slow, and nothing left",
        ),
    ],
)
def test_a_failed_job_is_told_by_its_stage(job: Job, pods: list[Pod], said: str) -> None:
    assert str(diagnose(job, pods)) == said


@pytest.mark.parametrize(
    ("pods", "said"),
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
            "a: it could not be started (ErrImagePull)",
            id="an image",
        ),
        pytest.param(
            [pod(DONE, ("cri", {"waiting": {"reason": "ErrImagePull"}}))],
            "cri: it could not be started (ErrImagePull)",
            id="the image of a later stage",
        ),
        pytest.param(
            [pod(("cri", ended(5, "locked")), created=1), pod(("cri", {"running": {}}), created=2)],
            "tried again after cri: locked (exit code 5)",
            id="another try",
        ),
    ],
)
def test_what_holds_a_job_up_is_told(pods: list[Pod], said: str) -> None:
    told = stuck_reason(failed_job(), pods)
    assert said in str(told)
    assert bool(said) == (told is not None)


# --- what is told -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (99, "99 s"), (420, "7 min"), (7500, "2 h 5 min"), (90000, "25 h 0 min")],
)
def test_durations_are_told_for_people(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_line_tells_the_change_and_how_far_the_whole_is() -> None:
    whole = rollout(4, RolloutPlan(2), last=1)
    assert begun(whole) == ["n0", "n1"]
    first, second = whole.running()
    assert task_line(first, whole, 0) == "n0: started: job-0  [0 of 5 ended, 2 running]"
    second.adopted = True
    assert "n1: taken over: job-1  [" in task_line(second, whole, 0)
    first.problem = NodeProblem("broken", stage="cri", exit_code=1)
    whole.end(first, Outcome.FAILED, 60)
    counts = "[1 of 5 ended, 1 failed, 1 running, about 90 s left]"
    assert task_line(first, whole, 60) == f"n0: failed after 60 s: cri: broken (exit code 1)  {counts}"
    assert task_line(whole.tasks[-1], whole, 60).startswith("x0: cleanup ")


def test_of_nodes_that_take_longer_than_those_before_no_end_is_foretold() -> None:
    whole = rollout(2, RolloutPlan(2))
    begun(whole)
    whole.end(whole.running()[0], Outcome.DONE, 60)
    assert task_line(whole.tasks[0], whole, 61) == "n0: done after 60 s  [1 of 2 ended, 1 running]"


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


def test_the_table_has_the_worst_first_and_says_what_to_do() -> None:
    lines = text(finished(Outcome.DONE, Outcome.FAILED, Outcome.SKIPPED)).splitlines()
    assert lines[0].split() == ["NODE", "ACTION", "OUTCOME", "TIME", "DETAIL"]
    assert [each.split()[0] for each in lines[1:5]] == ["n1", "hint:", "n2", "n0"]
    assert "cri: broken (exit code 4)" in lines[1]
    assert lines[-1] == (
        "install failed (1 of 3 nodes are not as wanted): 3 nodes: 1 done, 1 failed, 1 skipped; 5 s"
    )


def test_of_many_nodes_those_of_which_there_is_the_same_to_tell_have_one_row() -> None:
    outcomes = [Outcome.FAILED] * 800 + [Outcome.NOT_STARTED] * 2000 + [Outcome.DONE] * 200
    lines = text(finished(*outcomes, stopped="too many")).splitlines()
    assert [each.split("  ")[0] for each in lines[1:4]] == [
        "n0 and 799 more",
        "",
        "n1000 and 1999 more",
    ]
    assert lines[-2:] == [
        "failed: 800 at cri (exit code 4)",
        "install stopped (too many): 3000 nodes: 200 done, 800 failed, 2000 not started; 5 s",
    ]


def test_of_many_different_ones_the_table_has_an_end() -> None:
    result = finished(*[Outcome.FAILED] * 300)
    for number, task in enumerate(result.tasks):
        task.problem = NodeProblem(f"broken in way {number}", stage="cri" if number % 3 else "host-check")
    lines = text(result).splitlines()
    assert len(lines) < 60
    assert lines[-3:-1] == [
        "… and 250 more nodes; each has a line of its own in the log",
        "failed: 200 at cri, 100 at host-check",
    ]


def test_of_many_nodes_only_those_worth_a_look_are_shown() -> None:
    told = text(finished(*[Outcome.DONE] * 200, Outcome.FAILED))
    assert len(told.splitlines()) == 4
    assert text(finished(*[Outcome.DONE] * 200)) == "install ok: 200 nodes: 200 done; 5 s"


@pytest.mark.parametrize(
    ("outcome", "whole", "code"),
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
def test_one_node_decides_how_the_whole_ends(outcome: Outcome, whole: str, code: int) -> None:
    result = finished(Outcome.DONE, outcome)
    assert (result.outcome, result.exit_code) == (whole, code)


def test_the_document_has_it_all() -> None:
    told = document(finished(Outcome.DONE, Outcome.FAILED, stopped="a canary has failed"))
    assert (told["outcome"], told["reason"], told["requests"]) == ("stopped", "a canary has failed", 3)
    assert told["counts"] == {"done": 1, "failed": 1}
    assert told["nodes"][1]["error"] == {
        "what": "broken",
        "stage": "cri",
        "exit_code": 4,
        "where": "",
        "hint": "mend it",
    }


def test_no_node_at_all_is_told_in_one_line() -> None:
    assert text(finished()) == "install ok: 0 nodes; 5 s"
