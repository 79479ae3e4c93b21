"""Complete runs of the dispatcher: failures, errors of the API server, and rollouts that stop."""

from __future__ import annotations

import json
import re

import pytest
from msgspec.structs import replace

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
from kata_node.dispatcher.failures import NodeWords
from kata_node.dispatcher.kubernetes_objects import NODE_KEY
from kata_node.dispatcher.progress import document, summary
from kata_node.dispatcher.run import run
from kata_node.dispatcher.shutdown import ShutdownRequested
from kata_node.dispatcher.template import Owner, Template


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAGE_SIZE", 25)


# --- one Job per node -------------------------------------------------------------------------------


def test_every_node_gets_one_job_with_its_node_name_labels_and_owner(api: FakeApiServer) -> None:
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


def test_parallelism_limits_the_running_jobs_and_each_end_starts_the_next(
    api: FakeApiServer, time: FakeClock
) -> None:
    names = workers(api, 7)
    api.on_create = lambda job: time.after(10, lambda: api.finish(job["metadata"]["name"]))
    result = dispatch(api, replace(CONFIG, parallelism=3))
    assert (api.made, api.max_running, result.outcome) == (names, 3, "ok")
    assert 30 <= time.passed < 60


def test_each_node_costs_one_request_in_a_large_cluster(api: FakeApiServer, small_pages: None) -> None:
    workers(api, 60)
    result = dispatch(api)
    assert result.requests["create a job"] == 60
    assert sum(result.requests.values()) < 75
    assert api.requests.count("GET nodes") == 3  # pages


def test_a_list_that_expires_between_two_pages_is_started_again(
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


def test_a_failed_node_is_reported_with_its_stage_and_message_and_the_others_continue(
    api: FakeApiServer,
) -> None:
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
    assert (problem.stage, problem.exit_code, problem.hint) == ("cri", 4, "")
    assert problem.node_words == NodeWords("containerd did not serve", "containerd.service", "see its log")
    assert document(result)["nodes"][1]["error"]["node_words"]["hint"] == "see its log"


def recorded_events(api: FakeApiServer) -> list[tuple[str, str, str]]:
    return [(each["involvedObject"]["name"], each["reason"], each["message"]) for each in api.events]


@pytest.mark.parametrize(
    ("config", "code", "reason"),
    [
        pytest.param(CONFIG, 1, "KataInstallFailed", id="an install"),
        pytest.param(CONFIG, 4, "KataRolledBack", id="an install that was taken back"),
        pytest.param(CLEANUP, 1, "KataRemoveFailed", id="a removal"),
    ],
)
def test_a_failure_is_recorded_as_an_event_with_stage_exit_code_and_message(
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
    message = (
        'default: cri: the node says "containerd.service: containerd did not serve" '
        f'(exit code {code}); the node\'s hint: "see its log"'
    )
    assert recorded_events(api) == [("n0", reason, message)]
    (event,) = api.events
    assert (event["type"], event["reportingInstance"]) == ("Warning", "a-pod")
    assert event["source"] == {"component": "kata-deploy-job-dispatcher"}
    assert event["metadata"]["namespace"] == "default"


@pytest.mark.parametrize("fault", [Fault("POST", "/events", 403, times=9), Fault("POST", "/events", times=9)])
def test_failed_requests_for_events_delay_nothing_and_stop_after_three(
    api: FakeApiServer, time: FakeClock, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    workers(api, 6)
    api.faults = [fault]
    api.on_create = lambda job: api.fail(job["metadata"]["name"], message=MESSAGE)
    result = dispatch(api)
    assert set(outcomes(result).values()) == {"failed"}
    assert result.requests["create an event"] == 3
    assert time.passed < 5, "there is no retry"
    assert "no more Events are recorded" in caplog.text


def test_one_failed_request_for_an_event_does_not_affect_later_events(api: FakeApiServer) -> None:
    workers(api, 6)
    api.faults = [Fault("POST", "/events", 500, times=2)]
    api.on_create = lambda job: api.fail(job["metadata"]["name"], message=MESSAGE)
    dispatch(api)
    assert [node for node, _, _ in recorded_events(api)] == ["n2", "n3", "n4", "n5"]


def test_no_events_are_recorded_without_the_setting(api: FakeApiServer) -> None:
    workers(api, 1)
    api.on_create = lambda job: api.fail(job["metadata"]["name"], message=MESSAGE)
    result = dispatch(api, replace(CONFIG, events=False))
    assert set(outcomes(result).values()) == {"failed"}
    assert "POST events" not in api.requests


def test_a_node_that_does_not_exist_gets_no_event(api: FakeApiServer) -> None:
    dispatch(api, replace(CONFIG, nodes=("missing",)))
    assert api.events == []


def test_the_cause_of_a_missed_deadline_is_read_while_the_pod_still_exists(
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
    assert time.passed >= 35, "the node has a result only when its Pod has ended"


def test_a_node_whose_job_failed_before_its_pod_ended_has_its_result_with_the_end_of_the_pod(
    api: FakeApiServer, time: FakeClock
) -> None:
    """A Job of Kubernetes before 1.31 fails at its deadline, when it has only asked its Pods to end."""
    api.node("n")

    def created(job: Object) -> None:
        late = ("Failed", "DeadlineExceeded", "too long")
        api.pod(job, "cri", {"running": {}})
        time.after(5, lambda: api.finish(job["metadata"]["name"], *late, ends=False))
        time.after(35, api.pods.clear)

    api.on_create = created
    result = dispatch(api)
    assert outcomes(result) == {"n": "failed"}
    assert "cri: its Job exceeded its deadline" in str(result.tasks[0].problem)
    assert "still not ended" not in str(result.tasks[0].problem)
    assert 35 <= time.passed < 50


def test_a_failed_job_is_reported_even_if_its_pods_cannot_be_read(api: FakeApiServer) -> None:
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
    ("state", "reason_text"),
    [
        pytest.param(
            PULLING,
            'host-check: the container cannot start (the node says "ImagePullBackOff: no such image")',
            id="image",
        ),
        pytest.param(
            {"waiting": {"reason": "PodInitializing"}},
            "no container of its Pod has started; run `kubectl describe pod pod-0 -n kata` to see why",
            id="a host path that is not there",
        ),
        pytest.param(
            None,
            "its Job has no Pod; run `kubectl describe job install-n -n kata` to see why",
            id="not admitted",
        ),
    ],
)
def test_a_job_that_does_not_start_is_reported_once_and_long_before_its_deadline(
    api: FakeApiServer,
    time: FakeClock,
    state: Object | None,
    reason_text: str,
    caplog: pytest.LogCaptureFixture,
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
    logged = [
        (record.levelname, record.message) for record in caplog.records if reason_text in record.message
    ]
    level, first = logged[0]
    assert (level, first.startswith(f"n: {reason_text}")) == ("WARNING", True)
    assert [level for level, _ in logged].count("WARNING") == 2, "once while it is stuck, and once at the end"
    row = re.compile(rf"^n +install +running +\d+ min +{re.escape(reason_text)}$", re.MULTILINE)
    assert any(row.search(message) for _, message in logged), "the tables in the log show it"
    assert f"before that: {reason_text}" in str(result.tasks[0].problem)
    assert sum(result.requests.values()) < 300, "in an hour, for a cluster of any size"


def test_a_retry_of_a_stage_is_logged_with_its_message(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    api.node("n")

    def created(job: Object) -> None:
        api.pod(job, "cri", {"terminated": {"exitCode": 5, "message": MESSAGE}})
        api.pod(job, "cri", {"running": {}})
        time.after(200, lambda: api.finish("install-n"))

    api.on_create = created
    assert outcomes(dispatch(api)) == {"n": "done"}
    said = 'cri: the node says "containerd.service: containerd did not serve"'
    assert f"n: retrying after a failure: {said}" in caplog.text


NOT_STARTED = {"waiting": {"reason": "PodInitializing"}}


@pytest.mark.parametrize("state", [PULLING, NOT_STARTED, None], ids=["image", "mount", "not admitted"])
def test_jobs_that_do_not_start_are_reported_within_20_s_with_one_list_of_pods(
    api: FakeApiServer, time: FakeClock, state: Object | None, caplog: pytest.LogCaptureFixture
) -> None:
    workers(api, 20)
    early_log: list[str] = []

    def created(job: Object) -> None:
        if state:
            api.pod(job, "host-check", state)
        time.after(20, lambda: early_log.append(caplog.text))
        time.after(21, lambda: api.finish(job["metadata"]["name"]))

    api.on_create = created
    result = dispatch(api)
    assert all(f"n{number}: " in early_log[0] for number in range(20))
    # One list before the first Job and one for all Jobs. Each Job without a Pod costs one more list.
    assert result.requests["list pods"] == (2 if state else 2 + 20)


def test_a_pod_that_does_not_start_is_reported_with_the_meaning_of_a_failed_mount(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    api.node("n")

    def created(job: Object) -> None:
        api.pod(job, "host-check", NOT_STARTED)
        time.after(100, lambda: api.finish("install-n", "Failed", "DeadlineExceeded", "too long"))

    api.on_create = created
    result = dispatch(api)
    hint = (
        "correct k8sDistribution, containerRuntime or containerd.* in the values if the Events show "
        "FailedMount; these settings do not match the node then"
    )
    assert f"`kubectl describe pod pod-0 -n kata` to see why; hint: {hint}" in caplog.text
    assert result.tasks[0].problem
    assert result.tasks[0].problem.hint == hint


def test_a_large_successful_rollout_costs_few_requests_besides_its_jobs(
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
    assert result.requests["list nodes"] <= 2 + time.passed / 5
    assert result.requests["read a node"] == 0


def test_a_stuck_job_is_reported_within_76_s_after_the_startup_period(
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
    assert "n9: cri: the container cannot start" in seen[0]


def fail_one_try(api: FakeApiServer, job: Object) -> None:
    """Add a failed Pod to a Job and count it in its status, as the Job controller does."""
    api.pod(job, "cri", {"terminated": {"exitCode": 5, "message": MESSAGE}})
    api.pods[-1]["status"]["phase"] = "Failed"
    status = job.setdefault("status", {})
    status["failed"] = status.get("failed", 0) + 1
    api._changed("MODIFIED", job)


def test_a_failed_try_is_logged_once_and_at_once_with_its_number_and_cause(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    api.node("n")
    early_log: list[str] = []
    manifest = {"template": {"spec": {"containers": []}}, "backoffLimit": 3}

    def created(job: Object) -> None:
        time.after(2, lambda: fail_one_try(api, job))
        time.after(4, lambda: early_log.append(caplog.text))
        time.after(100, lambda: api.pod(job, "cri", {"running": {}}))
        time.after(200, lambda: fail_one_try(api, job))
        time.after(300, lambda: api.finish("install-n"))

    api.on_create = created
    work = Template({"apiVersion": "batch/v1", "kind": "Job", "spec": manifest})
    assert outcomes(dispatch(api, replace(CONFIG, templates=for_all_runtimes(work)))) == {"n": "done"}
    cause = 'after a failure: cri: the node says "containerd.service: containerd did not serve" (exit code 5)'
    assert f"n: try 2 of 4 {cause}" in early_log[0]
    logged = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert [message.partition(" after")[0] for message in logged] == ["n: try 2 of 4", "n: try 3 of 4"]


def test_no_retry_is_logged_after_the_last_try(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    api.node("n")

    def created(job: Object) -> None:
        job["spec"]["backoffLimit"] = 0
        time.after(2, lambda: fail_one_try(api, job))
        time.after(4, lambda: api.finish("install-n", "Failed", "BackoffLimitExceeded"))

    api.on_create = created
    assert outcomes(dispatch(api)) == {"n": "failed"}
    assert "try 2" not in caplog.text


def test_a_run_succeeds_without_the_right_to_read_pods(api: FakeApiServer, time: FakeClock) -> None:
    api.node("n")

    def created(job: Object) -> None:
        api.faults = [Fault("GET", "/pods", 403, 'User "x" cannot list resource "pods"', times=999)]
        time.after(600, lambda: api.finish("install-n"))

    api.on_create = created
    assert outcomes(dispatch(api)) == {"n": "done"}


DENIED = 'jobs.batch "n" is forbidden: ValidatingAdmissionPolicy "kata" denied request: another image'


def test_a_job_that_the_policy_of_the_previous_release_denies_is_created_a_moment_later(
    api: FakeApiServer, time: FakeClock
) -> None:
    workers(api, 2)
    api.faults = [Fault("POST", "/jobs", 403, DENIED, times=3)]
    assert dispatch(api).outcome == "ok"
    assert time.passed < 10


def test_a_job_that_a_policy_keeps_denying_fails_after_one_wait_for_all_nodes(
    api: FakeApiServer, time: FakeClock
) -> None:
    names = workers(api, 5)
    api.faults = [Fault("POST", "/jobs", 403, DENIED, times=999)]
    result = dispatch(api)
    assert outcomes(result) == dict.fromkeys(names, "failed")
    assert 20 <= time.passed < 30


def test_a_refused_job_of_one_node_does_not_affect_the_others(api: FakeApiServer) -> None:
    workers(api, 3)
    api.faults = [Fault("POST", "/jobs", 403, "exceeded quota: pods")]
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert outcomes(result) == {"n0": "failed", "n1": "done", "n2": "done"}
    assert "exceeded quota" in str(result.tasks[0].problem)


def test_a_conflict_of_a_quota_is_not_taken_for_an_existing_job(api: FakeApiServer) -> None:
    workers(api, 2)
    busy = "Operation cannot be fulfilled on resourcequotas 'q': please apply your changes and try again"
    api.faults = [Fault("POST", "/jobs", 409, busy, reason="Conflict")]
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert outcomes(result) == {"n0": "failed", "n1": "done"}
    assert busy in str(result.tasks[0].problem)
    assert "GET install-n0" not in api.requests


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [
        pytest.param(403, 'User "x" cannot create resource "jobs"', "create, get, list", id="no rights"),
        pytest.param(422, "spec.template: Invalid value", "correct the Helm values", id="a bad template"),
        pytest.param(404, 'namespaces "kata" not found', "", id="no namespace"),
    ],
)
def test_an_error_that_concerns_every_node_stops_the_rollout(
    api: FakeApiServer, status: int, message: str, hint: str
) -> None:
    workers(api, 5)
    api.faults = [Fault("POST", "/jobs", status, message, times=9)]
    result = dispatch(api)
    assert (result.outcome, result.exit_code) == ("stopped", 1)
    assert message.replace('"', "'") in result.reason
    asked = set(api.requests[api.requests.index("POST jobs") :])
    assert asked == {"POST jobs", "POST events", "GET nodes"}, "no other requests"
    assert api.requests.count("POST jobs") == (6 if status == 403 else 1), (
        "403 is retried, because a role may be new"
    )
    assert sorted(outcomes(result).values()) == ["failed", *["not started"] * 4]
    assert hint in (result.tasks[0].problem.hint if result.tasks[0].problem else "")


# --- the watch, and errors of the API server --------------------------------------------------------


def test_a_watch_that_breaks_in_the_middle_of_a_line_is_resumed(api: FakeApiServer, time: FakeClock) -> None:
    workers(api, 5)
    api.broken_watches = 3
    result = dispatch(api, replace(CONFIG, parallelism=2))
    assert (result.outcome, len(api.made)) == ("ok", 5)
    assert api.requests.count("GET jobs") == 1, "the Jobs were not listed again"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        pytest.param(0, 410, id="told in the watch"),
        pytest.param(410, 410, id="told as its answer"),
        pytest.param(0, 504, id="of a server that knows less than before"),
    ],
)
def test_an_expired_watch_lists_the_jobs_again_and_misses_no_change(
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
    assert api.made == [*names, "n2"], "the Job that was deleted meanwhile was created again"


def test_bookmarks_keep_a_watch_current_while_other_jobs_change(api: FakeApiServer, time: FakeClock) -> None:
    api.node("n")

    def elsewhere() -> None:
        for number in range(3):
            api.add({"metadata": {"name": f"other-{time.passed}-{number}"}, "status": {"conditions": [{}]}})

    api.on_create = lambda job: time.after(150, lambda: api.finish("install-n"))
    time.after(50, elsewhere)
    time.after(100, lambda: setattr(api, "forgotten", api.version))
    assert dispatch(api).outcome == "ok"
    assert api.requests.count("GET jobs") == 1, "the Jobs were not listed again"


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
def test_a_run_survives_an_api_server_that_is_unreachable_for_a_minute(
    api: FakeApiServer, time: FakeClock, method: str, path: str, watch: bool, status: int
) -> None:
    names = workers(api, 3)
    api.faults = [Fault(method, path, status, times=7, watch=watch)]
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert (result.outcome, api.made) == ("ok", names)
    assert 40 < time.passed < 120


@pytest.mark.parametrize("watch", [pytest.param(False, id="create"), pytest.param(True, id="watch")])
def test_a_403_of_a_starting_api_server_is_retried(api: FakeApiServer, time: FakeClock, watch: bool) -> None:
    names = workers(api, 4)
    refused = Fault(
        "GET" if watch else "POST", "/jobs", 403, 'User "x" cannot watch resource "jobs"', 3, watch=watch
    )
    time.after(3, lambda: api.faults.append(refused))
    api.on_create = lambda job: time.after(5, lambda: api.finish(job["metadata"]["name"]))
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert (result.outcome, api.made) == ("ok", names)


def test_a_right_that_is_removed_ends_the_run(api: FakeApiServer, time: FakeClock) -> None:
    workers(api, 2)
    lost = Fault("GET", "/jobs", 403, 'User "x" cannot watch resource "jobs"', times=99, watch=True)
    time.after(1, lambda: api.faults.append(lost))
    api.on_create = lambda job: time.after(2, lambda: None)
    result = dispatch(api)
    assert (result.outcome, result.exit_code) == ("interrupted", 1)
    assert time.passed < 60


def test_an_api_server_that_stays_unreachable_ends_the_run_and_running_jobs_continue(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    workers(api, 3)
    api.on_create = lambda job: api.faults.append(Fault("GET", "/jobs", 503, times=99, watch=True))
    result = dispatch(api, replace(CONFIG, parallelism=2))
    assert (result.outcome, result.exit_code) == ("interrupted", 1)
    assert outcomes(result) == {"n0": "running", "n1": "running", "n2": "not started"}
    assert "running Jobs that continue by themselves: 2" in result.reason
    assert 250 < time.passed < 330


def test_a_node_without_a_job_at_the_end_of_the_run_is_not_started(
    api: FakeApiServer, time: FakeClock
) -> None:
    workers(api, 2)
    api.faults = [Fault("POST", "/jobs", 503, times=99)]
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert outcomes(result) == {"n0": "not started", "n1": "not started"}
    assert "running Jobs that continue by themselves: 0" in result.reason


def test_a_job_is_adopted_when_the_answer_to_its_creation_was_lost(api: FakeApiServer) -> None:
    names = workers(api, 2)
    api.faults = [Fault("POST", "/jobs", carried_out=True)]
    result = dispatch(api)
    assert (result.outcome, api.made) == ("ok", names)


# --- canary nodes and waves -------------------------------------------------------------------------


def test_a_failed_canary_node_stops_the_rollout_before_any_other_node(api: FakeApiServer) -> None:
    workers(api, 6)
    api.on_create = lambda job: api.fail(job["metadata"]["name"], message="no KVM")
    result = dispatch(api, replace(CONFIG, canary=2))
    assert api.made == ["n0", "n1"]
    assert result.outcome == "stopped"
    assert result.reason == "1 of 2 canary nodes failed, maxFailures allows 0"
    assert list(outcomes(result).values()) == ["failed"] * 2 + ["not started"] * 4


def test_a_wave_starts_when_the_previous_wave_has_ended(api: FakeApiServer, time: FakeClock) -> None:
    workers(api, 9)
    start_times: dict[str, float] = {}

    def created(job: Object) -> None:
        start_times[job["spec"]["template"]["spec"]["nodeName"]] = time.passed
        time.after(10, lambda: api.finish(job["metadata"]["name"]))

    api.on_create = created
    dispatch(api, replace(CONFIG, canary=1, wave_size=IntOrPercent(50, percent=True)))
    assert [round(start_times[f"n{number}"] / 10) for number in range(9)] == [0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_without_a_limit_failures_do_not_stop_the_rollout(api: FakeApiServer) -> None:
    names = workers(api, 5)
    api.on_create = lambda job: api.fail(job["metadata"]["name"])
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert (result.outcome, api.made) == ("failed", names)


def test_a_canary_node_that_rolls_back_stops_an_install_by_default(api: FakeApiServer) -> None:
    workers(api, 6)
    api.on_create = lambda job: api.fail(job["metadata"]["name"], code=4, message=MESSAGE)
    result = dispatch(api, replace(CONFIG, canary=None))
    assert (result.outcome, api.made) == ("stopped", ["n0"])
    assert result.reason == "the canary node n0 rolled back"


def test_nodes_that_roll_back_after_the_canary_node_stop_an_install_by_default(api: FakeApiServer) -> None:
    workers(api, 9)

    def created(job: Object) -> None:
        name = job["metadata"]["name"]
        node = job["spec"]["template"]["spec"]["nodeName"]
        if node == "n0":
            api.finish(name)
        else:
            api.fail(name, code=1 if node == "n1" else 4, message=MESSAGE)

    api.on_create = created
    result = dispatch(api, replace(CONFIG, canary=None, parallelism=1))
    assert (result.reason, api.made[-1]) == ("3 of 9 nodes rolled back", "n4")


def test_a_canary_node_that_fails_otherwise_does_not_stop_an_install_by_default(api: FakeApiServer) -> None:
    names = workers(api, 6)
    api.on_create = lambda job: api.fail(job["metadata"]["name"], code=3, message=MESSAGE)
    result = dispatch(api, replace(CONFIG, canary=None))
    assert (result.outcome, api.made) == ("failed", names)


def test_after_too_many_failures_running_nodes_end_and_no_more_start(
    api: FakeApiServer, time: FakeClock
) -> None:
    workers(api, 10)
    api.on_create = lambda job: time.after(10, lambda: api.fail(job["metadata"]["name"]))
    result = dispatch(api, replace(CONFIG, parallelism=3, max_failures=IntOrPercent(10, percent=True)))
    tally = sorted(outcomes(result).values())
    assert len(api.made) in (3, 4)
    assert tally == ["failed"] * len(api.made) + ["not started"] * (10 - len(api.made))
    assert result.reason == "2 of 10 nodes failed, maxFailures allows 1"


# --- requests to stop -------------------------------------------------------------------------------


def test_a_request_to_stop_starts_no_more_nodes_and_leaves_running_jobs(
    api: FakeApiServer, time: FakeClock
) -> None:
    workers(api, 5)
    with api.client() as connection:
        api.on_create = lambda job: time.after(20, lambda: setattr(connection.stop, "requested", True))
        result = run(replace(CONFIG, parallelism=2), connection)
    assert (result.outcome, result.exit_code) == ("interrupted", 1)
    assert list(outcomes(result).values()) == ["running"] * 2 + ["not started"] * 3
    assert len(api.jobs) == 2
    assert "DELETE" not in "".join(api.requests)


def test_a_request_to_stop_before_the_first_job_creates_nothing(api: FakeApiServer, time: FakeClock) -> None:
    with api.client() as connection:
        connection.stop.requested = True
        with pytest.raises(ShutdownRequested):
            run(replace(CONFIG, wait_for_nodes=60), connection)
    assert api.jobs == {}


def test_a_node_that_becomes_not_ready_is_told_as_that_and_not_as_a_failed_mount(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kata_node")
    workers(api, 2)

    def created(job: Object) -> None:
        api.pod(job, "host-check", NOT_STARTED)
        if job["metadata"]["name"] == "install-n0":
            time.after(600, lambda: api.finish("install-n0", "Failed", "DeadlineExceeded", "too long"))
        else:
            time.after(200, lambda: api.finish("install-n1"))

    api.on_create = created
    for node in ("n0", "n1"):
        time.after(2, lambda node=node: api.set_ready(node, ready=False))  # type: ignore[misc]
    time.after(60, lambda: api.set_ready("n1", ready=True))
    result = dispatch(api)
    assert outcomes(result) == {"n0": "failed", "n1": "done"}
    told = "n0: its Node has become NotReady since its Job was created; hint: run `kubectl describe node n0`"
    assert told in caplog.text
    assert "n1: its Node is Ready again" in caplog.text
    problem = result.tasks[0].problem
    assert problem
    assert "NotReady" in problem.what
    assert "DeadlineExceeded" in problem.what
    assert "kubelet" in problem.hint
    # `n1` gets the hint of a failed mount when its Node is Ready again, `n0` never.
    assert [record for record in caplog.messages if "n0: no container" in record] == []


def test_an_expired_watch_of_nodes_reads_them_again(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    workers(api, 1)
    api.on_create = lambda job: time.after(300, lambda: api.finish("install-n0"))

    def lost() -> None:
        api.set_ready("n0", ready=False)
        api.forget()

    time.after(100, lost)
    assert outcomes(dispatch(api)) == {"n0": "done"}
    assert "n0: its Node has become NotReady" in caplog.text


def test_the_log_has_a_table_of_failed_and_running_nodes_while_it_works(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kata_node")
    workers(api, 3)

    def created(job: Object) -> None:
        name = job["metadata"]["name"]
        if name == "install-n0":
            time.after(5, lambda: api.fail(name, message=MESSAGE))
        else:
            time.after(300, lambda: api.finish(name))

    api.on_create = created
    dispatch(api)
    table = next(record for record in caplog.messages if "NODE" in record)
    assert table.startswith("1 of 3 nodes ended, 1 failed, 2 running")
    assert [line.split()[:3] for line in table.splitlines() if line.startswith("n")] == [
        ["n0", "install", "failed"],
        ["n1", "install", "running"],
        ["n2", "install", "running"],
    ]


def test_a_node_without_anything_of_this_installation_is_counted_as_not_ours(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("foreign", labels={"katacontainers.io/kata-runtime": "true"})
    api.node("lost-its-label")
    api.node("ours", labels={CONFIG.installation_label: "true"})

    def created(job: Object) -> None:
        name = job["metadata"]["name"]
        summary = "reverted" if "lost" in name else "not ours: no receipt and no file of it is on this node"
        message = json.dumps({"stage": "revert-cri", "outcome": "skipped", "summary": summary})
        api.pod(job, "revert-cri", {"terminated": {"exitCode": 0, "message": message}})
        time.after(1, lambda: api.finish(name))

    api.on_create = created
    result = dispatch(api, CLEANUP)
    assert outcomes(result) == {"foreign": "not ours", "lost-its-label": "done", "ours": "done"}
    assert "cleanup ok: 3 nodes: 2 done, 1 not ours" in summary(result)
    assert result.requests["list pods"] <= 4, "only Nodes without the label cost a request"
