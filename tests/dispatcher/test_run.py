"""Whole runs of the dispatcher: failures, an API server in trouble, rollouts that stop."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from dispatcher.fake_api_server import FakeApiServer, FakeClock, Fault, Object
from dispatcher.harness import (
    CLEANUP,
    CONFIG,
    LABELS,
    dispatch,
    for_all_runtimes,
    outcomes,
    template,
    workers,
)
from kata_node.dispatcher import api as client
from kata_node.dispatcher.config import Config, IntOrPercent
from kata_node.dispatcher.kubernetes_objects import NODE_KEY
from kata_node.dispatcher.run import run
from kata_node.dispatcher.shutdown import ShutdownRequested
from kata_node.dispatcher.template import Owner, Template


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAGE_SIZE", 25)


# --- one Job per node -------------------------------------------------------------------------------


def test_every_node_gets_one_job_that_is_bound_to_it_and_says_whose_it_is(api: FakeApiServer) -> None:
    names = workers(api, 3)
    api.node("n9.example.org")
    config = replace(
        CONFIG, templates=for_all_runtimes(template("of-@NODE_NAME@-@MACHINE_ID@-@NODE_UID@-@JOB_NAME@"))
    )
    result = dispatch(api, config, owner=Owner("dispatcher", "owner-uid"))
    assert result.outcome == "ok"
    assert api.made == [*names, "n9.example.org"]
    for job in api.jobs.values():
        metadata, pod = job["metadata"], job["spec"]["template"]
        name, node = metadata["name"], pod["spec"]["nodeName"]
        assert metadata["annotations"][NODE_KEY] == node
        assert metadata["labels"].items() >= LABELS.items()
        assert pod["metadata"]["labels"].items() >= {**LABELS, NODE_KEY: node}.items()
        assert pod["spec"]["containers"][0]["image"] == f"of-{node}-machine-{node}-uid-of-{node}-{name}"
        (owner,) = metadata["ownerReferences"]
        assert (owner["name"], owner["uid"], owner["controller"]) == ("dispatcher", "owner-uid", False)


def test_no_more_jobs_run_at_once_than_allowed_and_each_end_makes_room(
    api: FakeApiServer, time: FakeClock
) -> None:
    names = workers(api, 7)
    api.on_create = lambda job: time.after(10, lambda: api.finish(job["metadata"]["name"]))
    result = dispatch(api, replace(CONFIG, parallelism=3))
    assert (api.made, api.max_running, result.outcome) == (names, 3, "ok")
    assert 30 <= time.passed < 60


def test_a_node_costs_one_request_however_many_there_are(api: FakeApiServer, small_pages: None) -> None:
    workers(api, 60)
    result = dispatch(api)
    assert result.requests["create a job"] == 60
    assert sum(result.requests.values()) < 75
    assert api.requests.count("GET nodes") == 3  # pages


def test_a_list_that_changed_too_much_between_its_pages_is_begun_again(
    api: FakeApiServer, small_pages: None
) -> None:
    names = workers(api, 60)
    api.expire_pages = 1
    dispatch(api)
    assert sorted(api.made) == sorted(names)


# --- failures ---------------------------------------------------------------------------------------

MESSAGE = json.dumps(
    {
        "stage": "cri",
        "outcome": "failed",
        "summary": "put back",
        "error": {
            "what": "containerd did not serve",
            "where": "containerd.service",
            "hint": "see its log",
            "exit_code": 4,
        },
    }
)


def test_a_failed_node_is_told_with_its_stage_and_words_and_stops_no_other(api: FakeApiServer) -> None:
    workers(api, 4)

    def created(job: Object) -> None:
        name = job["metadata"]["name"]
        if name == "install-n1":
            api.fail(name, code=4, message=MESSAGE)
        else:
            api.finish(name)

    api.on_create = created
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert outcomes(result) == {"n0": "done", "n1": "failed", "n2": "done", "n3": "done"}
    assert result.exit_code == 1
    problem = next(task.problem for task in result.tasks if task.problem)
    assert (problem.stage, problem.exit_code, problem.where) == ("cri", 4, "containerd.service")
    assert (problem.what, problem.hint) == ("containerd did not serve", "see its log")


def told(api: FakeApiServer) -> list[tuple[str, str, str]]:
    return [(each["involvedObject"]["name"], each["reason"], each["message"]) for each in api.events]


@pytest.mark.parametrize(
    ("config", "code", "reason"),
    [
        pytest.param(CONFIG, 1, "KataInstallFailed", id="an install"),
        pytest.param(CONFIG, 4, "KataRolledBack", id="an install that was taken back"),
        pytest.param(CLEANUP, 1, "KataRemoveFailed", id="a removal"),
    ],
)
def test_a_failure_is_told_on_the_node_with_its_stage_exit_code_and_words(
    api: FakeApiServer, config: Config, code: int, reason: str
) -> None:
    workers(api, 2)
    api.on_create = lambda job: (
        api.finish(job["metadata"]["name"])
        if job["metadata"]["name"].endswith("n1")
        else api.fail(job["metadata"]["name"], code=code, message=MESSAGE)
    )
    with api.client() as connection:
        run(config, connection, reporter="a-pod")
    message = f"default: cri: containerd.service: containerd did not serve (exit code {code}); see its log"
    assert told(api) == [("n0", reason, message)]
    (event,) = api.events
    assert (event["type"], event["reportingInstance"]) == ("Warning", "a-pod")
    assert event["source"] == {"component": "kata-deploy-job-dispatcher"}
    assert event["metadata"]["namespace"] == "default"


@pytest.mark.parametrize("fault", [Fault("POST", "/events", 403, times=9), Fault("POST", "/events", times=9)])
def test_events_that_are_not_taken_hold_nothing_up_and_are_given_up(
    api: FakeApiServer, time: FakeClock, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    workers(api, 6)
    api.faults = [fault]
    api.on_create = lambda job: api.fail(job["metadata"]["name"], message=MESSAGE)
    result = dispatch(api)
    assert set(outcomes(result).values()) == {"failed"}
    assert result.requests["create an event"] == 3
    assert time.passed < 5, "none is tried again"
    assert "none of those that follow is tried" in caplog.text


def test_an_event_that_was_not_taken_leaves_those_after_it_their_chance(api: FakeApiServer) -> None:
    workers(api, 6)
    api.faults = [Fault("POST", "/events", 500, times=2)]
    api.on_create = lambda job: api.fail(job["metadata"]["name"], message=MESSAGE)
    dispatch(api)
    assert [node for node, _, _ in told(api)] == ["n2", "n3", "n4", "n5"]


def test_nodes_are_told_nothing_unless_that_is_asked_for(api: FakeApiServer) -> None:
    workers(api, 1)
    api.on_create = lambda job: api.fail(job["metadata"]["name"], message=MESSAGE)
    result = dispatch(api, replace(CONFIG, events=False))
    assert set(outcomes(result).values()) == {"failed"}
    assert "POST events" not in api.requests


def test_a_node_there_is_not_has_no_events(api: FakeApiServer) -> None:
    dispatch(api, replace(CONFIG, nodes=("missing",)))
    assert api.events == []


def test_a_job_at_its_deadline_is_asked_while_its_pod_is_still_there(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("n")

    def created(job: Object) -> None:
        name = job["metadata"]["name"]
        waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
        api.pod(job, "host-check", waiting)
        time.after(5, lambda: api.finish(name, "FailureTarget", "DeadlineExceeded", "too long"))
        time.after(6, api.pods.clear)
        time.after(35, lambda: api.finish(name, "Failed", "DeadlineExceeded", "too long"))

    api.on_create = created
    result = dispatch(api)
    assert outcomes(result) == {"n": "failed"}
    assert "ImagePullBackOff: no such image" in str(result.tasks[0].problem)
    assert time.passed >= 35, "its place is free only when its Pod has ended"


def test_a_job_that_may_not_be_looked_into_has_still_failed(api: FakeApiServer) -> None:
    api.node("n")
    refused = Fault("GET", "/pods", 403, 'User "x" cannot list resource "pods"', times=9)

    def created(job: Object) -> None:
        api.faults.append(refused)
        api.fail(job["metadata"]["name"])

    api.on_create = created
    result = dispatch(api)
    assert "BackoffLimitExceeded" in str(result.tasks[0].problem)


PULLING = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}


@pytest.mark.parametrize(
    ("state", "said"),
    [
        pytest.param(
            PULLING, "host-check: it could not be started (ImagePullBackOff: no such image)", id="image"
        ),
        pytest.param(
            {"waiting": {"reason": "PodInitializing"}},
            "nothing of its Pod has begun; `kubectl describe pod pod-0 -n kata` tells why",
            id="a host path that is not there",
        ),
        pytest.param(
            None, "its Job has no Pod; `kubectl describe job install-n -n kata` tells why", id="not admitted"
        ),
    ],
)
def test_a_job_of_which_nothing_begins_is_told_long_before_its_deadline_and_once(
    api: FakeApiServer, time: FakeClock, state: Object | None, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    api.node("n")
    caplog.set_level("INFO", "kata_node")

    def created(job: Object) -> None:
        if state:
            api.pod(job, "host-check", state)
        time.after(3600, api.pods.clear)
        time.after(3601, lambda: api.finish("install-n", "Failed", "DeadlineExceeded", "too long"))

    api.on_create = created
    result = dispatch(api)
    told = [(record.levelname, record.message) for record in caplog.records if said in record.message]
    level, first = told[0]
    assert (level, first.startswith(f"n: {said}")) == ("WARNING", True)
    assert [level for level, _ in told].count("WARNING") == 2, "and once more at the end"
    assert any(f"n for 5 min ({said})" in message for _, message in told)
    assert f"before that, {said}" in str(result.tasks[0].problem)
    assert sum(result.requests.values()) < 100


def test_that_a_stage_is_tried_again_is_told_with_its_words(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    api.node("n")

    def created(job: Object) -> None:
        api.pod(job, "cri", {"terminated": {"exitCode": 5, "message": MESSAGE}})
        api.pod(job, "cri", {"running": {}})
        time.after(200, lambda: api.finish("install-n"))

    api.on_create = created
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert "n: tried again after cri: containerd.service: containerd did not serve" in caplog.text


NOT_BEGUN = {"waiting": {"reason": "PodInitializing"}}


@pytest.mark.parametrize("state", [PULLING, NOT_BEGUN, None], ids=["image", "mount", "not admitted"])
def test_a_job_of_which_nothing_begins_is_told_within_half_a_minute_and_all_of_them_cost_one_list(
    api: FakeApiServer, time: FakeClock, state: Object | None, caplog: pytest.LogCaptureFixture
) -> None:
    workers(api, 20)
    early: list[str] = []

    def created(job: Object) -> None:
        if state:
            api.pod(job, "host-check", state)
        time.after(20, lambda: early.append(caplog.text))
        time.after(21, lambda: api.finish(job["metadata"]["name"]))

    api.on_create = created
    result = dispatch(api)
    assert all(f"n{number}: " in early[0] for number in range(20))
    # One before the first Job, one for all of them; of a Job that has no Pod it is made sure.
    assert result.requests["list pods"] == (2 if state else 2 + 20)


def test_that_nothing_begins_is_told_with_what_a_failed_mount_means(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    api.node("n")

    def created(job: Object) -> None:
        api.pod(job, "host-check", NOT_BEGUN)
        time.after(100, lambda: api.finish("install-n", "Failed", "DeadlineExceeded", "too long"))

    api.on_create = created
    result = dispatch(api)
    hint = (
        "a FailedMount there means that k8sDistribution, containerRuntime or containerd.* of the values "
        "are not what the node runs"
    )
    assert f"`kubectl describe pod pod-0 -n kata` tells why; {hint}" in caplog.text
    assert result.tasks[0].problem
    assert result.tasks[0].problem.hint == hint


def test_a_large_rollout_that_goes_well_costs_hardly_more_than_its_jobs(
    api: FakeApiServer, time: FakeClock
) -> None:
    workers(api, 300)

    def created(job: Object) -> None:
        name = job["metadata"]["name"]
        api.pod(job, "cri", {"running": {}})
        time.after(20 + len(api.made) % 20, lambda: api.finish(name))

    api.on_create = created
    result = dispatch(api, replace(CONFIG, parallelism=20))
    assert set(outcomes(result).values()) == {"done"}
    assert result.requests["create a job"] == 300
    assert result.requests["list pods"] < 5 + time.passed / 60
    assert result.requests["list nodes"] == 2, "none is looked at alone"


def test_a_rollout_that_is_long_past_its_beginning_looks_into_new_jobs_within_75_s(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    workers(api, 10)
    seen: list[str] = []

    def created(job: Object) -> None:
        name = job["metadata"]["name"]
        if name == "install-n9":
            api.pod(job, "cri", PULLING)
            time.after(76, lambda: seen.append(caplog.text))
            time.after(77, lambda: api.finish(name))
        else:
            api.pod(job, "cri", {"running": {}})
            time.after(30, lambda: api.finish(name))

    api.on_create = created
    dispatch(api, replace(CONFIG, parallelism=1))
    assert "n9: cri: it could not be started" in seen[0]


def fails_once(api: FakeApiServer, job: Object) -> None:
    """The Pod of a Job has failed, and the Job controller counts that, and makes no new one for a while."""
    api.pod(job, "cri", {"terminated": {"exitCode": 5, "message": MESSAGE}})
    api.pods[-1]["status"]["phase"] = "Failed"
    status = job.setdefault("status", {})
    status["failed"] = status.get("failed", 0) + 1
    api._changed("MODIFIED", job)


def test_a_try_that_failed_is_told_at_once_with_its_number_and_cause_and_once(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    api.node("n")
    early: list[str] = []
    manifest = {"template": {"spec": {"containers": []}}, "backoffLimit": 3}

    def created(job: Object) -> None:
        time.after(2, lambda: fails_once(api, job))
        time.after(4, lambda: early.append(caplog.text))
        time.after(100, lambda: api.pod(job, "cri", {"running": {}}))
        time.after(200, lambda: fails_once(api, job))
        time.after(300, lambda: api.finish("install-n"))

    api.on_create = created
    work = Template({"apiVersion": "batch/v1", "kind": "Job", "spec": manifest})
    assert outcomes(dispatch(api, replace(CONFIG, templates=for_all_runtimes(work)))) == {"n": "done"}
    cause = "after cri: containerd.service: containerd did not serve (exit code 5)"
    assert f"n: try 2 of 4, {cause}" in early[0]
    told = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert [message.partition(",")[0] for message in told] == ["n: try 2 of 4", "n: try 3 of 4"]


def test_the_last_try_that_failed_is_no_other_try(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    api.node("n")

    def created(job: Object) -> None:
        job["spec"]["backoffLimit"] = 0
        time.after(2, lambda: fails_once(api, job))
        time.after(4, lambda: api.finish("install-n", "Failed", "BackoffLimitExceeded"))

    api.on_create = created
    assert outcomes(dispatch(api)) == {"n": "failed"}
    assert "try 2" not in caplog.text


def test_what_holds_jobs_up_is_not_known_where_pods_cannot_be_read_and_nothing_depends_on_it(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("n")

    def created(job: Object) -> None:
        api.faults = [Fault("GET", "/pods", 403, 'User "x" cannot list resource "pods"', times=999)]
        time.after(600, lambda: api.finish("install-n"))

    api.on_create = created
    assert outcomes(dispatch(api)) == {"n": "done"}


def test_a_job_that_is_refused_for_one_node_leaves_the_others_alone(api: FakeApiServer) -> None:
    workers(api, 3)
    api.faults = [Fault("POST", "/jobs", 403, "exceeded quota: pods")]
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert outcomes(result) == {"n0": "failed", "n1": "done", "n2": "done"}
    assert "exceeded quota" in str(result.tasks[0].problem)


def test_a_quota_that_many_write_to_is_not_taken_for_a_job_of_that_name(api: FakeApiServer) -> None:
    workers(api, 2)
    busy = 'Operation cannot be fulfilled on resourcequotas "q": please apply your changes and try again'
    api.faults = [Fault("POST", "/jobs", 409, busy, reason="Conflict")]
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert outcomes(result) == {"n0": "failed", "n1": "done"}
    assert busy in str(result.tasks[0].problem)
    assert "GET install-n0" not in api.requests


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [
        pytest.param(403, 'User "x" cannot create resource "jobs"', "create, get, list", id="no rights"),
        pytest.param(422, "spec.template: Invalid value", "correct the Job's template", id="a bad template"),
        pytest.param(404, 'namespaces "kata" not found', "", id="no namespace"),
    ],
)
def test_what_is_refused_for_every_node_is_not_tried_on_all_of_them(
    api: FakeApiServer, status: int, message: str, hint: str
) -> None:
    workers(api, 5)
    api.faults = [Fault("POST", "/jobs", status, message, times=9)]
    result = dispatch(api)
    assert (result.outcome, result.exit_code) == ("stopped", 1)
    assert message in result.reason
    asked = set(api.requests[api.requests.index("POST jobs") :])
    assert asked == {"POST jobs", "POST events"}, "and nothing else was done"
    assert api.requests.count("POST jobs") == (6 if status == 403 else 1), "a role may be new"
    assert sorted(outcomes(result).values()) == ["failed", *["not started"] * 4]
    assert hint in (result.tasks[0].problem.hint if result.tasks[0].problem else "")


# --- the watch, and an API server in trouble --------------------------------------------------------


def test_a_watch_that_breaks_in_the_middle_of_a_line_goes_on_from_where_it_was(
    api: FakeApiServer, time: FakeClock
) -> None:
    workers(api, 5)
    api.broken_watches = 3
    result = dispatch(api, replace(CONFIG, parallelism=2))
    assert (result.outcome, len(api.made)) == ("ok", 5)
    assert api.requests.count("GET jobs") == 1, "nothing was listed again"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        pytest.param(0, 410, id="told in the watch"),
        pytest.param(410, 410, id="told as its answer"),
        pytest.param(0, 504, id="of a server that knows less than before"),
    ],
)
def test_a_watch_that_cannot_go_on_lists_again_and_misses_nothing(
    api: FakeApiServer, time: FakeClock, status: int, code: int
) -> None:
    api.forgotten_code = code
    names = workers(api, 3)

    def created(job: Object) -> None:
        name = job["metadata"]["name"]
        if name == "install-n0":
            time.after(10, lambda: api.finish(name))
        elif name == "install-n1":
            time.after(10, lambda: api.finish(name, "Failed"))
        else:
            time.after(10, lambda: api.remove(name))
            api.on_create = None
        time.after(10, api.forget)
        if status:
            time.after(10, lambda: api.faults.append(Fault("GET", "/jobs", status, watch=True)))

    api.on_create = created
    result = dispatch(api)
    assert outcomes(result) == {"n0": "done", "n1": "failed", "n2": "done"}
    assert api.made == [*names, "n2"], "the Job that went meanwhile was made anew"


def test_what_happens_to_other_jobs_does_not_put_a_watch_behind(api: FakeApiServer, time: FakeClock) -> None:
    api.node("n")

    def elsewhere() -> None:
        for number in range(3):
            api.add({"metadata": {"name": f"other-{time.passed}-{number}"}, "status": {"conditions": [{}]}})

    api.on_create = lambda job: time.after(150, lambda: api.finish("install-n"))
    time.after(50, elsewhere)
    time.after(100, lambda: setattr(api, "forgotten", api.version))
    assert dispatch(api).outcome == "ok"
    assert api.requests.count("GET jobs") == 1, "nothing was listed again"


@pytest.mark.parametrize(
    ("method", "path", "watch"),
    [
        pytest.param("GET", "/nodes", False, id="nodes"),
        pytest.param("GET", "/jobs", False, id="jobs"),
        pytest.param("GET", "/jobs", True, id="watch"),
        pytest.param("POST", "/jobs", False, id="create"),
    ],
)
@pytest.mark.parametrize("status", [pytest.param(0, id="cut"), 429, 500, 503])
def test_an_api_server_that_is_away_for_a_minute_is_survived(
    api: FakeApiServer, time: FakeClock, method: str, path: str, watch: bool, status: int
) -> None:
    names = workers(api, 3)
    api.faults = [Fault(method, path, status, times=7, watch=watch)]
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert (result.outcome, api.made) == ("ok", names)
    assert 40 < time.passed < 120


@pytest.mark.parametrize("watch", [pytest.param(False, id="create"), pytest.param(True, id="watch")])
def test_a_right_that_was_there_is_only_missing_while_the_api_server_starts(
    api: FakeApiServer, time: FakeClock, watch: bool
) -> None:
    names = workers(api, 4)
    refused = Fault(
        "GET" if watch else "POST", "/jobs", 403, 'User "x" cannot watch resource "jobs"', 3, watch=watch
    )
    time.after(3, lambda: api.faults.append(refused))
    api.on_create = lambda job: time.after(5, lambda: api.finish(job["metadata"]["name"]))
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert (result.outcome, api.made) == ("ok", names)


def test_a_right_that_was_taken_away_ends_the_run(api: FakeApiServer, time: FakeClock) -> None:
    workers(api, 2)
    lost = Fault("GET", "/jobs", 403, 'User "x" cannot watch resource "jobs"', times=99, watch=True)
    time.after(1, lambda: api.faults.append(lost))
    api.on_create = lambda job: time.after(2, lambda: None)
    result = dispatch(api)
    assert (result.outcome, result.exit_code) == ("interrupted", 1)
    assert time.passed < 60


def test_an_api_server_that_stays_away_ends_the_run_and_what_runs_is_left_alone(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    workers(api, 3)
    api.on_create = lambda job: api.faults.append(Fault("GET", "/jobs", 503, times=99, watch=True))
    result = dispatch(api, replace(CONFIG, parallelism=2))
    assert (result.outcome, result.exit_code) == ("interrupted", 1)
    assert outcomes(result) == {"n0": "running", "n1": "running", "n2": "not started"}
    assert "2 Jobs that run go on by themselves" in result.reason
    assert 250 < time.passed < 330


def test_a_node_that_got_no_job_before_the_end_is_told_as_not_begun(
    api: FakeApiServer, time: FakeClock
) -> None:
    workers(api, 2)
    api.faults = [Fault("POST", "/jobs", 503, times=99)]
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert outcomes(result) == {"n0": "not started", "n1": "not started"}
    assert "0 Jobs that run" in result.reason


def test_a_job_made_whose_answer_was_lost_is_taken_for_what_it_is(api: FakeApiServer) -> None:
    names = workers(api, 2)
    api.faults = [Fault("POST", "/jobs", carried_out=True)]
    result = dispatch(api)
    assert (result.outcome, api.made) == ("ok", names)


# --- canaries and waves -----------------------------------------------------------------------------


def test_canaries_go_alone_and_when_one_fails_no_other_node_is_touched(api: FakeApiServer) -> None:
    workers(api, 6)
    api.on_create = lambda job: api.fail(job["metadata"]["name"], message="no KVM")
    result = dispatch(api, replace(CONFIG, canary=2))
    assert api.made == ["n0", "n1"]
    assert result.outcome == "stopped"
    assert result.reason == "1 of 2 canaries have failed, and at most 0 may"
    assert list(outcomes(result).values()) == ["failed"] * 2 + ["not started"] * 4


def test_a_wave_begins_when_the_one_before_has_ended(api: FakeApiServer, time: FakeClock) -> None:
    workers(api, 9)
    began: dict[str, float] = {}

    def created(job: Object) -> None:
        began[job["spec"]["template"]["spec"]["nodeName"]] = time.passed
        time.after(10, lambda: api.finish(job["metadata"]["name"]))

    api.on_create = created
    dispatch(api, replace(CONFIG, canary=1, wave_size=IntOrPercent(50, percent=True)))
    assert [round(began[f"n{number}"] / 10) for number in range(9)] == [0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_by_default_failures_stop_nothing(api: FakeApiServer) -> None:
    names = workers(api, 5)
    api.on_create = lambda job: api.fail(job["metadata"]["name"])
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert (result.outcome, api.made) == ("failed", names)


def test_with_too_many_failures_no_more_are_begun_and_what_runs_is_seen_to_its_end(
    api: FakeApiServer, time: FakeClock
) -> None:
    workers(api, 10)
    api.on_create = lambda job: time.after(10, lambda: api.fail(job["metadata"]["name"]))
    result = dispatch(api, replace(CONFIG, parallelism=3, max_failures=IntOrPercent(10, percent=True)))
    tally = sorted(outcomes(result).values())
    assert len(api.made) in (3, 4)
    assert tally == ["failed"] * len(api.made) + ["not started"] * (10 - len(api.made))
    assert result.reason == "2 nodes have failed, and at most 1 may"


# --- being asked to stop ----------------------------------------------------------------------------


def test_asked_to_stop_it_begins_no_more_and_leaves_what_runs(api: FakeApiServer, time: FakeClock) -> None:
    workers(api, 5)
    with api.client() as connection:
        api.on_create = lambda job: time.after(20, lambda: setattr(connection.stop, "requested", True))
        result = run(replace(CONFIG, parallelism=2), connection)
    assert (result.outcome, result.exit_code) == ("interrupted", 1)
    assert list(outcomes(result).values()) == ["running"] * 2 + ["not started"] * 3
    assert len(api.jobs) == 2
    assert "DELETE" not in "".join(api.requests)


def test_a_stop_before_the_first_job_leaves_nothing(api: FakeApiServer, time: FakeClock) -> None:
    with api.client() as connection:
        connection.stop.requested = True
        with pytest.raises(ShutdownRequested):
            run(replace(CONFIG, wait_for_nodes=60), connection)
    assert api.jobs == {}
