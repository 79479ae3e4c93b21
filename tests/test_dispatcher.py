"""Whole runs of the dispatcher against a small API server, in which all sorts of things happen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from dispatcher_api import FakeApi, Fault, Object, Time

from kata_node.dispatcher import api as client
from kata_node.dispatcher.config import Amount, Config, Removed
from kata_node.dispatcher.objects import DIGEST, NODE
from kata_node.dispatcher.rollout import Outcome
from kata_node.dispatcher.run import run
from kata_node.dispatcher.stop import Stopped
from kata_node.dispatcher.telling import Result
from kata_node.dispatcher.template import Owner, Template, Templates
from kata_node.errors import KubeError

LABELS = {"app.kubernetes.io/instance": "mine"}
MARK = "kata-deploy.katacontainers.io/default"


def template(image: str = "kata", **spec: Any) -> Template:
    pod = {"restartPolicy": "Never", "containers": [{"name": "label", "image": image}], **spec}
    return Template({"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": {"spec": pod}}})


def every(template: Template) -> Templates:
    return Templates(template)


CONFIG = Config(
    action="install",
    namespace="kata",
    name_prefix="install",
    labels=LABELS,
    templates=every(template()),
    generation="1",
    mark=MARK,
)
CLEANUP = replace(CONFIG, action="cleanup", name_prefix="cleanup", templates=every(template("cleanup")))


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def api(time: Time) -> Iterator[FakeApi]:
    with FakeApi(time) as api:
        yield api


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PAGE", 25)


def dispatch(api: FakeApi, config: Config = CONFIG, *, owner: Owner | None = None) -> Result:
    with api.client() as connection:
        return run(config, connection, owner=owner)


def outcomes(result: Result) -> dict[str, str]:
    return {task.target.name: str(task.outcome) for task in result.tasks}


def workers(api: FakeApi, count: int) -> list[str]:
    names = [f"n{number}" for number in range(count)]
    for name in names:
        api.node(name)
    return names


def left_by(api: FakeApi, config: Config = CONFIG, *, state: str = "") -> None:
    """An earlier run was stopped and has left its Jobs; they run, or are in this state by now."""
    before = api.on_create
    with api.client() as connection:
        api.on_create = lambda job: api.time.after(0.5, lambda: setattr(connection.stop, "requested", True))
        assert run(config, connection).outcome == "interrupted"
    api.on_create = before
    for name in list(api.jobs) if state else ():
        api.finish(name, state)
    api.made.clear()
    api.requests.clear()


# --- one Job per node -------------------------------------------------------------------------------


def test_every_node_gets_one_job_that_is_bound_to_it_and_says_whose_it_is(api: FakeApi) -> None:
    names = workers(api, 3)
    api.node("n9.example.org")
    config = replace(CONFIG, templates=every(template("of-@NODE_NAME@-@MACHINE_ID@-@NODE_UID@-@JOB_NAME@")))
    result = dispatch(api, config, owner=Owner("dispatcher", "owner-uid"))
    assert result.outcome == "ok"
    assert api.made == [*names, "n9.example.org"]
    for job in api.jobs.values():
        metadata, pod = job["metadata"], job["spec"]["template"]
        name, node = metadata["name"], pod["spec"]["nodeName"]
        assert metadata["annotations"][NODE] == node
        assert metadata["labels"].items() >= LABELS.items()
        assert pod["metadata"]["labels"].items() >= {**LABELS, NODE: node}.items()
        assert pod["spec"]["containers"][0]["image"] == f"of-{node}-machine-{node}-uid-of-{node}-{name}"
        (owner,) = metadata["ownerReferences"]
        assert (owner["name"], owner["uid"], owner["controller"]) == ("dispatcher", "owner-uid", False)


def test_no_more_jobs_run_at_once_than_allowed_and_each_end_makes_room(api: FakeApi, time: Time) -> None:
    names = workers(api, 7)
    api.on_create = lambda job: time.after(10, lambda: api.finish(job["metadata"]["name"]))
    result = dispatch(api, replace(CONFIG, parallelism=3))
    assert (api.made, api.most, result.outcome) == (names, 3, "ok")
    assert 30 <= time.passed < 60


def test_a_node_costs_one_request_however_many_there_are(api: FakeApi, small_pages: None) -> None:
    workers(api, 60)
    result = dispatch(api)
    assert result.requests["create a job"] == 60
    assert sum(result.requests.values()) < 75
    assert api.requests.count("GET nodes") == 3  # pages


def test_a_list_that_changed_too_much_between_its_pages_is_begun_again(
    api: FakeApi, small_pages: None
) -> None:
    names = workers(api, 60)
    api.expire_pages = 1
    dispatch(api)
    assert sorted(api.made) == sorted(names)


# --- which nodes ------------------------------------------------------------------------------------


def test_the_label_selector_selects(api: FakeApi) -> None:
    api.node("a", labels={"pool": "kata"})
    api.node("b", labels={"pool": "other"})
    assert outcomes(dispatch(api, replace(CONFIG, selector="pool=kata"))) == {"a": "done"}


def test_a_name_given_of_which_there_is_no_node_is_a_failure_and_the_others_get_theirs(api: FakeApi) -> None:
    workers(api, 3)
    result = dispatch(api, replace(CONFIG, nodes=("n2", "typo")))
    assert outcomes(result) == {"n2": "done", "typo": "failed"}
    assert result.exit_code == 1
    result = dispatch(api, replace(CLEANUP, nodes=("n2", "typo")))
    assert outcomes(result) == {"n2": "done", "typo": "gone"}
    assert result.exit_code == 0


def test_many_names_are_picked_from_one_list_of_all_nodes(api: FakeApi) -> None:
    names = workers(api, 30)
    dispatch(api, replace(CONFIG, nodes=tuple(names[:25])))
    assert api.made == sorted(names[:25])
    assert api.requests.count("GET nodes") == 1


def test_a_node_whose_taint_is_not_tolerated_is_passed_over_and_told(api: FakeApi) -> None:
    api.node("a", taints=("dedicated:NoSchedule",))
    api.node("b", taints=("dedicated:PreferNoSchedule",))
    result = dispatch(api)
    assert outcomes(result) == {"a": "skipped", "b": "done"}
    assert result.exit_code == 0
    (skipped,) = [task for task in result.tasks if task.outcome is Outcome.SKIPPED]
    assert "dedicated:NoSchedule" in skipped.note
    tolerant = template(tolerations=[{"key": "dedicated", "operator": "Exists"}])
    assert outcomes(dispatch(api, replace(CONFIG, templates=every(tolerant)))) == {"a": "done", "b": "done"}


# --- nodes that are not ready -----------------------------------------------------------------------

NOT_READY = "node.kubernetes.io/not-ready:NoSchedule"


def becomes_ready(api: FakeApi, name: str, seconds: float) -> None:
    api.time.after(seconds, lambda: api.nodes[name]["spec"].pop("taints"))


def test_a_node_that_is_not_ready_is_waited_for_while_the_others_get_theirs(api: FakeApi, time: Time) -> None:
    api.node("a", taints=(NOT_READY, "node.kubernetes.io/not-ready:NoExecute"))
    workers(api, 2)
    becomes_ready(api, "a", 40)
    result = dispatch(api)
    assert outcomes(result) == {"a": "done", "n0": "done", "n1": "done"}
    assert api.made == ["n0", "n1", "a"]
    assert 40 <= time.passed < 50
    assert result.exit_code == 0


@pytest.mark.parametrize("taint", ["node.kubernetes.io/unreachable:NoExecute", NOT_READY])
def test_one_that_stays_so_is_told_and_no_success(api: FakeApi, time: Time, taint: str) -> None:
    workers(api, 1)
    api.node("a", taints=(taint,))
    result = dispatch(api, replace(CONFIG, max_failures=Amount(0), wait_for_ready=90))
    assert outcomes(result) == {"n0": "done", "a": "not ready"}
    assert (result.outcome, result.exit_code) == ("failed", 1)
    assert 90 <= time.passed < 100
    (task,) = [task for task in result.tasks if task.target.name == "a"]
    assert f"its taint {taint} has not gone within 90 s" in str(task.trouble)
    assert api.made == ["n0"]
    assert api.events == [], "what keeps it is told by others"


def test_many_that_stay_so_are_waited_for_at_the_same_time(api: FakeApi, time: Time) -> None:
    for number in range(9):
        api.node(f"a{number}", taints=(NOT_READY,))
    dispatch(api, replace(CONFIG, parallelism=2))
    assert time.passed < 140


def test_a_canary_is_a_node_that_is_ready(api: FakeApi) -> None:
    api.node("a", taints=(NOT_READY,))
    workers(api, 2)
    result = dispatch(api, replace(CONFIG, canary=1, wait_for_ready=0))
    assert {task.target.name: task.wave for task in result.tasks} == {"n0": 0, "n1": 1, "a": 1}
    assert api.made == ["n0", "n1"]


def test_a_taint_of_conditions_that_is_tolerated_is_not_waited_for(api: FakeApi, time: Time) -> None:
    api.node("a", taints=(NOT_READY,))
    tolerant = template(tolerations=[{"operator": "Exists"}])
    assert outcomes(dispatch(api, replace(CONFIG, templates=every(tolerant)))) == {"a": "done"}
    assert time.passed < 5


def test_what_somebody_does_to_a_node_that_is_waited_for_is_seen(api: FakeApi, time: Time) -> None:
    for name in ("cordoned", "gone", "other"):
        api.node(name, taints=(NOT_READY,))
    time.after(20, lambda: api.node("cordoned", taints=(NOT_READY, "dedicated:NoSchedule")))
    time.after(20, lambda: api.nodes.pop("gone"))
    time.after(20, lambda: api.node("other", runtime="docker://28.1"))
    both = Templates(by_runtime={"containerd": template()})
    result = dispatch(api, replace(CONFIG, templates=both))
    assert outcomes(result) == {"cordoned": "skipped", "gone": "gone", "other": "failed"}


def test_a_node_registered_anew_meanwhile_gets_the_job_of_what_it_is_now(api: FakeApi, time: Time) -> None:
    api.node("n", taints=(NOT_READY,))

    def registered() -> None:
        api.node("n", runtime="cri-o://1.36.1")
        api.nodes["n"]["metadata"]["uid"] = "new"

    time.after(20, lambda: api.nodes.pop("n"))
    time.after(30, registered)
    templates = Templates(by_runtime={"containerd": template(), "cri-o": template("of-@NODE_UID@")})
    assert outcomes(dispatch(api, replace(CONFIG, templates=templates))) == {"n": "done"}
    pod = api.jobs["install-n"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "of-new"


def test_a_node_that_its_own_job_made_unready_is_not_waited_for(api: FakeApi, time: Time) -> None:
    api.node("n")
    api.on_create = lambda job: None
    left_by(api)
    api.node("n", taints=(NOT_READY,))
    time.after(10, lambda: api.finish("install-n"))
    result = dispatch(api)
    assert outcomes(result) == {"n": "done"}
    assert result.tasks[0].adopted
    assert time.passed < 60


def test_no_node_that_was_waited_for_is_begun_once_the_rollout_has_stopped(api: FakeApi, time: Time) -> None:
    api.node("a", taints=(NOT_READY,))
    becomes_ready(api, "a", 30)
    workers(api, 1)
    api.on_create = lambda job: time.after(20, lambda: api.fail(job["metadata"]["name"]))
    result = dispatch(api, replace(CONFIG, max_failures=Amount(0)))
    assert outcomes(result) == {"n0": "failed", "a": "not started"}


def test_nobody_eligible_but_nodes_that_are_not_ready_is_said_so(api: FakeApi) -> None:
    api.node("a", taints=(NOT_READY,))
    with pytest.raises(KubeError, match=f"no eligible node .1 are selected.*a has {NOT_READY}"):
        dispatch(api, replace(CONFIG, wait_for_nodes=30))


# --- runtimes ---------------------------------------------------------------------------------------

BY_RUNTIME = replace(
    CONFIG,
    templates=Templates(by_runtime={"containerd": template("for-containerd"), "cri-o": template("for-crio")}),
)


def image(api: FakeApi, node: str) -> str:
    return str(api.jobs[f"install-{node}"]["spec"]["template"]["spec"]["containers"][0]["image"])


def test_each_node_gets_the_job_of_its_runtime(api: FakeApi) -> None:
    api.node("a")
    api.node("b", runtime="cri-o://1.36.1")
    assert outcomes(dispatch(api, BY_RUNTIME)) == {"a": "done", "b": "done"}
    assert (image(api, "a"), image(api, "b")) == ("for-containerd", "for-crio")
    digests = [api.jobs[f"install-{node}"]["metadata"]["labels"][DIGEST] for node in "ab"]
    assert len(set(digests)) == 2


@pytest.mark.parametrize(
    ("runtime", "what", "hint"),
    [
        pytest.param(
            "docker://28.1", "no Job for nodes that run docker://28.1", "containerRuntime", id="other"
        ),
        pytest.param("", "does not say which container runtime", "kubelet", id="none reported"),
    ],
)
def test_a_node_whose_runtime_has_no_template_fails_and_no_other(
    api: FakeApi, runtime: str, what: str, hint: str
) -> None:
    api.node("a", runtime=runtime)
    api.node("b")
    result = dispatch(api, BY_RUNTIME)
    assert outcomes(result) == {"a": "failed", "b": "done"}
    assert result.exit_code == 1
    (failed,) = [task.trouble for task in result.tasks if task.trouble]
    assert what in failed.what
    assert hint in failed.hint
    assert [event["involvedObject"]["name"] for event in api.events] == ["a"]


def test_a_node_that_changed_its_runtime_is_worked_on_and_one_that_did_not_is_not(api: FakeApi) -> None:
    workers(api, 2)
    dispatch(api, BY_RUNTIME)
    api.node("n0", runtime="cri-o://1.36.1")
    assert outcomes(dispatch(api, BY_RUNTIME)) == {"n0": "done", "n1": "unchanged"}
    assert image(api, "n0") == "for-crio"


def test_a_node_that_left_the_selection_is_cleaned_as_its_runtime_is(api: FakeApi) -> None:
    api.node("a", labels={"pool": "kata"})
    api.node("b", labels={MARK: "true"}, runtime="cri-o://1.36.1")
    api.node("c", labels={MARK: "true"}, runtime="docker://28.1")
    removed = Removed("removed", Templates(by_runtime={"cri-o": template("clean-crio")}))
    result = dispatch(api, replace(BY_RUNTIME, selector="pool=kata", removed=removed))
    assert outcomes(result) == {"a": "done", "b": "done", "c": "failed"}
    assert api.jobs["removed-b"]["spec"]["template"]["spec"]["containers"][0]["image"] == "clean-crio"


# --- nodes that serve -------------------------------------------------------------------------------


def test_nodes_that_serve_already_are_passed_over_where_that_is_asked_for(api: FakeApi) -> None:
    api.node("new")
    api.node("half", labels={MARK: "false"})
    api.node("old", labels={MARK: "true"})
    result = dispatch(api, replace(CONFIG, skip_serving=True))
    assert outcomes(result) == {"new": "done", "half": "done", "old": "unchanged"}
    assert api.made == ["half", "new"]


def test_a_node_that_lost_its_mark_is_worked_on_again(api: FakeApi) -> None:
    api.node("n")
    config = replace(CONFIG, skip_serving=True)
    assert [outcomes(dispatch(api, config)) for _ in range(2)] == [{"n": "done"}] * 2
    assert api.made == ["n", "n"]


def test_it_waits_until_the_set_of_eligible_nodes_stays_the_same(api: FakeApi, time: Time) -> None:
    for second, name in ((4, "a"), (12, "b"), (22, "c")):
        time.after(second, lambda name=name: api.node(name))  # type: ignore[misc]
    result = dispatch(api, replace(CONFIG, wait_for_nodes=120))
    assert outcomes(result) == {"a": "done", "b": "done", "c": "done"}
    assert 37 <= time.passed < 60


def test_it_waits_for_all_nodes_that_are_given_by_name(api: FakeApi, time: Time) -> None:
    api.node("a")
    time.after(40, lambda: api.node("b"))
    result = dispatch(api, replace(CONFIG, nodes=("a", "b"), wait_for_nodes=120))
    assert outcomes(result) == {"a": "done", "b": "done"}


def test_nodes_that_never_settle_are_taken_as_they_are_in_the_end(api: FakeApi, time: Time) -> None:
    for second in range(1, 60, 4):
        time.after(second, lambda second=second: api.node(f"n{second}"))  # type: ignore[misc]
    result = dispatch(api, replace(CONFIG, wait_for_nodes=30))
    assert result.outcome == "ok"
    assert 5 < len(result.tasks) < 15


def test_no_eligible_node_after_the_wait_is_an_error_that_names_the_taints(api: FakeApi, time: Time) -> None:
    api.node("a", taints=("dedicated:NoSchedule",))
    with pytest.raises(KubeError, match=r"after 30 s there is no eligible node.*a has dedicated:NoSchedule"):
        dispatch(api, replace(CONFIG, wait_for_nodes=30))
    assert time.passed == 30


def test_no_node_and_no_wait_is_nothing_to_do(api: FakeApi, caplog: pytest.LogCaptureFixture) -> None:
    assert dispatch(api).exit_code == 0
    assert "no node is selected" in caplog.text


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


def test_a_failed_node_is_told_with_its_stage_and_words_and_stops_no_other(api: FakeApi) -> None:
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
    trouble = next(task.trouble for task in result.tasks if task.trouble)
    assert (trouble.stage, trouble.exit_code, trouble.where) == ("cri", 4, "containerd.service")
    assert (trouble.what, trouble.hint) == ("containerd did not serve", "see its log")


def told(api: FakeApi) -> list[tuple[str, str, str]]:
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
    api: FakeApi, config: Config, code: int, reason: str
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
    api: FakeApi, time: Time, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    workers(api, 6)
    api.faults = [fault]
    api.on_create = lambda job: api.fail(job["metadata"]["name"], message=MESSAGE)
    result = dispatch(api)
    assert set(outcomes(result).values()) == {"failed"}
    assert result.requests["create an event"] == 3
    assert time.passed < 5, "none is tried again"
    assert "none of those that follow is tried" in caplog.text


def test_an_event_that_was_not_taken_leaves_those_after_it_their_chance(api: FakeApi) -> None:
    workers(api, 6)
    api.faults = [Fault("POST", "/events", 500, times=2)]
    api.on_create = lambda job: api.fail(job["metadata"]["name"], message=MESSAGE)
    dispatch(api)
    assert [node for node, _, _ in told(api)] == ["n2", "n3", "n4", "n5"]


def test_a_node_there_is_not_has_no_events(api: FakeApi) -> None:
    dispatch(api, replace(CONFIG, nodes=("missing",)))
    assert api.events == []


def test_a_job_at_its_deadline_is_asked_while_its_pod_is_still_there(api: FakeApi, time: Time) -> None:
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
    assert "ImagePullBackOff: no such image" in str(result.tasks[0].trouble)
    assert time.passed >= 35, "its place is free only when its Pod has ended"


def test_a_job_that_may_not_be_looked_into_has_still_failed(api: FakeApi) -> None:
    api.node("n")
    api.on_create = lambda job: api.fail(job["metadata"]["name"])
    api.faults = [Fault("GET", "/pods", 403, 'User "x" cannot list resource "pods"', times=9)]
    result = dispatch(api)
    assert "BackoffLimitExceeded" in str(result.tasks[0].trouble)


def test_a_job_that_is_refused_for_one_node_leaves_the_others_alone(api: FakeApi) -> None:
    workers(api, 3)
    api.faults = [Fault("POST", "/jobs", 403, "exceeded quota: pods")]
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert outcomes(result) == {"n0": "failed", "n1": "done", "n2": "done"}
    assert "exceeded quota" in str(result.tasks[0].trouble)


@pytest.mark.parametrize(
    ("status", "message", "hint"),
    [
        pytest.param(403, 'User "x" cannot create resource "jobs"', "create, get, list", id="no rights"),
        pytest.param(422, "spec.template: Invalid value", "correct the Job's template", id="a bad template"),
        pytest.param(404, 'namespaces "kata" not found', "", id="no namespace"),
    ],
)
def test_what_is_refused_for_every_node_is_not_tried_on_all_of_them(
    api: FakeApi, status: int, message: str, hint: str
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
    assert hint in (result.tasks[0].trouble.hint if result.tasks[0].trouble else "")


# --- the watch, and an API server in trouble --------------------------------------------------------


def test_a_watch_that_breaks_in_the_middle_of_a_line_goes_on_from_where_it_was(
    api: FakeApi, time: Time
) -> None:
    workers(api, 5)
    api.breaks = 3
    result = dispatch(api, replace(CONFIG, parallelism=2))
    assert (result.outcome, len(api.made)) == ("ok", 5)
    assert api.requests.count("GET jobs") == 1, "nothing was listed again"


@pytest.mark.parametrize("status", [0, 410])
def test_a_watch_that_has_fallen_behind_lists_again_and_misses_nothing(
    api: FakeApi, time: Time, status: int
) -> None:
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


def test_what_happens_to_other_jobs_does_not_put_a_watch_behind(api: FakeApi, time: Time) -> None:
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
    api: FakeApi, time: Time, method: str, path: str, watch: bool, status: int
) -> None:
    names = workers(api, 3)
    api.faults = [Fault(method, path, status, times=7, watch=watch)]
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert (result.outcome, api.made) == ("ok", names)
    assert 40 < time.passed < 120


@pytest.mark.parametrize("watch", [pytest.param(False, id="create"), pytest.param(True, id="watch")])
def test_a_right_that_was_there_is_only_missing_while_the_api_server_starts(
    api: FakeApi, time: Time, watch: bool
) -> None:
    names = workers(api, 4)
    refused = Fault(
        "GET" if watch else "POST", "/jobs", 403, 'User "x" cannot watch resource "jobs"', 3, watch=watch
    )
    time.after(3, lambda: api.faults.append(refused))
    api.on_create = lambda job: time.after(5, lambda: api.finish(job["metadata"]["name"]))
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert (result.outcome, api.made) == ("ok", names)


def test_a_right_that_was_taken_away_ends_the_run(api: FakeApi, time: Time) -> None:
    workers(api, 2)
    lost = Fault("GET", "/jobs", 403, 'User "x" cannot watch resource "jobs"', times=99, watch=True)
    time.after(1, lambda: api.faults.append(lost))
    api.on_create = lambda job: time.after(2, lambda: None)
    result = dispatch(api)
    assert (result.outcome, result.exit_code) == ("interrupted", 1)
    assert time.passed < 60


def test_an_api_server_that_stays_away_ends_the_run_and_what_runs_is_left_alone(
    api: FakeApi, time: Time, caplog: pytest.LogCaptureFixture
) -> None:
    workers(api, 3)
    api.on_create = lambda job: api.faults.append(Fault("GET", "/jobs", 503, times=99, watch=True))
    result = dispatch(api, replace(CONFIG, parallelism=2))
    assert (result.outcome, result.exit_code) == ("interrupted", 1)
    assert outcomes(result) == {"n0": "running", "n1": "running", "n2": "not started"}
    assert "2 Jobs that run go on by themselves" in result.reason
    assert 250 < time.passed < 330


def test_a_node_that_got_no_job_before_the_end_is_told_as_not_begun(api: FakeApi, time: Time) -> None:
    workers(api, 2)
    api.faults = [Fault("POST", "/jobs", 503, times=99)]
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert outcomes(result) == {"n0": "not started", "n1": "not started"}
    assert "0 Jobs that run" in result.reason


def test_a_job_made_whose_answer_was_lost_is_taken_for_what_it_is(api: FakeApi) -> None:
    names = workers(api, 2)
    api.faults = [Fault("POST", "/jobs", carried_out=True)]
    result = dispatch(api)
    assert (result.outcome, api.made) == ("ok", names)


# --- Jobs that are there already --------------------------------------------------------------------


def test_running_jobs_of_an_earlier_run_are_taken_over_with_their_owner(api: FakeApi, time: Time) -> None:
    workers(api, 3)
    left_by(api)
    for name in list(api.jobs):
        time.after(30, lambda name=name: api.finish(name))  # type: ignore[misc]
    result = dispatch(api, owner=Owner("second", "second-uid"))
    assert outcomes(result) == {"n0": "done", "n1": "done", "n2": "done"}
    assert api.made == []
    owners = [job["metadata"]["ownerReferences"][0]["uid"] for job in api.jobs.values()]
    assert owners == ["second-uid"] * 3


def test_they_count_among_those_that_run_at_once(api: FakeApi, time: Time) -> None:
    workers(api, 2)
    left_by(api)
    for name in list(api.jobs):
        time.after(30, lambda name=name: api.finish(name))  # type: ignore[misc]
    api.node("a-new-one")
    api.on_create = None
    dispatch(api, replace(CONFIG, parallelism=2))
    assert api.most == 2


@pytest.mark.parametrize(
    ("change", "made"),
    [
        pytest.param({}, 0, id="nothing"),
        pytest.param({"generation": "2"}, 2, id="another generation"),
        pytest.param({"templates": every(template("newer"))}, 2, id="another template"),
    ],
)
def test_jobs_that_have_succeeded_count_as_long_as_nothing_has_changed(
    api: FakeApi, change: dict[str, Any], made: int
) -> None:
    workers(api, 2)
    left_by(api, state="Complete")
    result = dispatch(api, replace(CONFIG, **change))
    assert result.outcome == "ok"
    assert len(api.made) == made
    assert set(outcomes(result).values()) == ({"done"} if made else {"unchanged"})


def test_a_node_that_is_another_one_of_the_same_name_is_worked_on(api: FakeApi) -> None:
    workers(api, 2)
    left_by(api, state="Complete")
    api.nodes["n1"]["metadata"]["uid"] = "reinstalled"
    assert outcomes(dispatch(api)) == {"n0": "unchanged", "n1": "done"}


def test_a_failed_job_is_tried_again_by_the_next_run(api: FakeApi) -> None:
    workers(api, 2)
    left_by(api, state="Failed")
    assert outcomes(dispatch(api)) == {"n0": "done", "n1": "done"}


def test_a_running_job_of_an_older_template_is_waited_for(api: FakeApi, time: Time) -> None:
    api.node("n")
    left_by(api)
    (old,) = api.jobs.values()
    api.pod(old, "cri", {"running": {}})
    time.after(40, lambda: api.finish("install-n"))
    newer = replace(CONFIG, templates=every(template("newer")))
    result = dispatch(api, newer)
    assert outcomes(result) == {"n": "done"}
    assert time.passed >= 40
    assert api.jobs["install-n"]["metadata"]["labels"][DIGEST] == template("newer").digest


def test_one_that_has_not_begun_on_the_node_is_not_waited_for(api: FakeApi, time: Time) -> None:
    api.node("n")
    left_by(api)
    (old,) = api.jobs.values()
    api.pod(old, "host-check", {"waiting": {"reason": "ImagePullBackOff"}})
    result = dispatch(api, replace(CONFIG, templates=every(template("newer"))))
    assert outcomes(result) == {"n": "done"}
    assert 5 <= time.passed < 60


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"labels": {}}, id="without our labels"),
        pytest.param({"annotations": {NODE: "elsewhere"}}, id="for another node"),
    ],
)
def test_a_foreign_job_of_the_same_name_is_refused_and_left_alone(
    api: FakeApi, change: dict[str, Any]
) -> None:
    workers(api, 2)
    left_by(api, replace(CONFIG, nodes=("n0",)))
    api.jobs["install-n0"]["metadata"] |= change
    result = dispatch(api)
    assert outcomes(result) == {"n0": "failed", "n1": "done"}
    assert "is not of this release" in str(next(task.trouble for task in result.tasks if task.trouble))
    assert "install-n0" in api.jobs
    assert api.made == ["n1"]


def test_an_uninstall_ends_an_install_that_still_runs_before_it_begins(api: FakeApi, time: Time) -> None:
    api.node("n")
    left_by(api)
    result = dispatch(api, CLEANUP)
    assert outcomes(result) == {"n": "done"}
    assert list(api.jobs) == ["cleanup-n"]
    assert time.passed >= 5, "its Pod had to end first"


@pytest.mark.parametrize(
    ("deadline", "seconds"),
    [pytest.param(None, 1800, id="default"), pytest.param(600, 600, id="the Job's own")],
)
def test_a_job_that_never_ends_is_not_waited_for_without_end(
    api: FakeApi, time: Time, deadline: Any, seconds: int
) -> None:
    workers(api, 2)
    left_by(api, replace(CONFIG, nodes=("n0",)))
    api.stuck = True
    job = {"spec": {"activeDeadlineSeconds": deadline, "template": {"spec": {"containers": []}}}}
    work = Template({"apiVersion": "batch/v1", "kind": "Job", **job})
    result = dispatch(api, replace(CLEANUP, templates=every(work)))
    assert outcomes(result) == {"n0": "failed", "n1": "done"}
    assert str(result.tasks[0].trouble) == "another Job does not end there: install-n0"
    assert seconds <= time.passed < seconds * 2.2


def test_an_uninstall_and_another_install_do_their_work_each_time(api: FakeApi) -> None:
    api.node("n")
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert outcomes(dispatch(api, CLEANUP)) == {"n": "done"}
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert outcomes(dispatch(api)) == {"n": "unchanged"}
    assert api.made == ["n"] * 3


@pytest.mark.parametrize("end", ["before", "meanwhile", "deleted"])
def test_what_an_uninstall_undoes_is_not_taken_for_done(api: FakeApi, time: Time, end: str) -> None:
    api.node("n")
    left_by(api, CLEANUP)
    (cleanup,) = api.jobs.values()
    api.pod(cleanup, "revert-cri", {"running": {}})
    api.jobs.clear()
    left_by(api, state="Complete")
    api.jobs["cleanup-n"] = cleanup
    match end:
        case "before":
            api.finish("cleanup-n")
        case "meanwhile":
            time.after(30, lambda: api.finish("cleanup-n"))
        case "deleted":
            time.after(30, lambda: api.remove("cleanup-n"))
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert api.made == ["n"]


def test_a_job_that_took_the_place_of_the_one_to_be_deleted_is_not_deleted(api: FakeApi, time: Time) -> None:
    api.node("n")
    left_by(api, state="Failed")
    old = api.jobs["install-n"]

    def replaced() -> None:
        api.remove("install-n")
        api.add({**old, "metadata": {**old["metadata"], "uid": "of-another-run"}, "status": {}})
        time.after(10, lambda: api.finish("install-n"))

    api.on_delete = replaced
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert (api.made, api.jobs["install-n"]["metadata"]["uid"]) == ([], "of-another-run")


# --- what happens to Jobs and Nodes meanwhile -------------------------------------------------------


def test_a_job_deleted_under_it_is_made_anew(api: FakeApi, time: Time) -> None:
    api.node("n")

    def created(job: Object) -> None:
        api.on_create = None
        time.after(5, lambda: api.remove(job["metadata"]["name"]))

    api.on_create = created
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert api.made == ["n", "n"]


def test_a_job_deleted_again_and_again_is_a_failure(api: FakeApi, time: Time) -> None:
    api.node("n")
    api.on_create = lambda job: time.after(5, lambda: api.remove(job["metadata"]["name"]))
    result = dispatch(api)
    assert outcomes(result) == {"n": "failed"}
    assert "deleted 3 times" in str(result.tasks[0].trouble)


def test_a_finished_job_that_is_removed_at_once_has_finished(api: FakeApi) -> None:
    api.node("n")

    def created(job: Object) -> None:
        name = job["metadata"]["name"]
        api.finish(name)
        api.remove(name)

    api.on_create = created
    assert outcomes(dispatch(api)) == {"n": "done"}
    assert api.made == ["n"]


def test_a_node_that_goes_while_its_job_runs_is_no_failure(api: FakeApi, time: Time) -> None:
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
    assert list(api.jobs) == ["install-n1"], "nothing waits for the node to come back"


def test_a_node_that_goes_and_whose_job_fails_for_it_is_no_failure(api: FakeApi, time: Time) -> None:
    api.node("n")

    def created(job: Object) -> None:
        api.nodes.clear()
        time.after(10, lambda: api.finish("install-n", "Failed"))

    api.on_create = created
    assert outcomes(dispatch(api)) == {"n": "gone"}


def test_a_node_that_was_only_away_for_a_moment_has_failed(api: FakeApi, time: Time) -> None:
    api.node("n")
    kept = dict(api.nodes)

    def created(job: Object) -> None:
        api.nodes.clear()
        time.after(10, lambda: api.fail("install-n", message="broken"))
        time.after(20, lambda: api.nodes.update(kept))

    api.on_create = created
    result = dispatch(api)
    assert outcomes(result) == {"n": "failed"}
    assert "broken" in str(result.tasks[0].trouble)


def test_a_long_job_costs_few_looks_at_its_node(api: FakeApi, time: Time) -> None:
    api.node("n")
    api.on_create = lambda job: time.after(1800, lambda: api.finish("install-n"))
    result = dispatch(api)
    assert outcomes(result) == {"n": "done"}
    assert api.requests.count("GET nodes") <= 6


# --- nodes that left the selection ------------------------------------------------------------------

REMOVING = replace(
    CONFIG,
    selector="pool=kata",
    removed=Removed("removed", every(template("cleanup", tolerations=[{"operator": "Exists"}]))),
)


def test_a_node_that_left_the_selection_is_cleaned_when_the_others_are_through(api: FakeApi) -> None:
    api.node("in", labels={"pool": "kata"})
    api.node("out", labels={MARK: "true"}, taints=("any:NoExecute",))
    api.node("half", labels={MARK: "false"})
    api.node("other", labels={"kata-deploy.katacontainers.io/blue": "true"})
    result = dispatch(api, REMOVING)
    assert outcomes(result) == {"in": "done", "half": "done", "out": "done"}
    assert list(api.jobs) == ["install-in", "removed-half", "removed-out"]


def test_a_selected_node_with_a_taint_has_not_left(api: FakeApi) -> None:
    api.node("in", labels={"pool": "kata"})
    api.node("cordoned", labels={"pool": "kata", MARK: "true"}, taints=("unschedulable:NoSchedule",))
    assert outcomes(dispatch(api, REMOVING)) == {"in": "done", "cordoned": "skipped"}


def test_a_selection_that_is_empty_removes_nothing(api: FakeApi, caplog: pytest.LogCaptureFixture) -> None:
    api.node("a", labels={MARK: "true"})
    assert outcomes(dispatch(api, REMOVING)) == {}
    assert "nothing is removed" in caplog.text


def test_a_node_that_is_selected_again_by_the_time_it_is_its_turn_is_left_alone(
    api: FakeApi, time: Time
) -> None:
    api.node("in", labels={"pool": "kata"})
    api.node("out", labels={MARK: "true"})

    def created(job: Object) -> None:
        api.nodes["out"]["metadata"]["labels"]["pool"] = "kata"
        api.finish(job["metadata"]["name"])

    api.on_create = created
    assert outcomes(dispatch(api, REMOVING)) == {"in": "done", "out": "skipped"}


def test_nothing_is_removed_after_a_rollout_that_was_stopped(api: FakeApi) -> None:
    api.node("in", labels={"pool": "kata"})
    api.node("out", labels={MARK: "true"})
    api.on_create = lambda job: api.fail(job["metadata"]["name"])
    result = dispatch(api, replace(REMOVING, max_failures=Amount(0)))
    assert outcomes(result) == {"in": "failed", "out": "not started"}


# --- canaries and waves -----------------------------------------------------------------------------


def test_canaries_go_alone_and_when_one_fails_no_other_node_is_touched(api: FakeApi) -> None:
    workers(api, 6)
    api.on_create = lambda job: api.fail(job["metadata"]["name"], message="no KVM")
    result = dispatch(api, replace(CONFIG, canary=2))
    assert api.made == ["n0", "n1"]
    assert result.outcome == "stopped"
    assert "a canary has failed" in result.reason
    assert list(outcomes(result).values()) == ["failed"] * 2 + ["not started"] * 4


def test_a_wave_begins_when_the_one_before_has_ended(api: FakeApi, time: Time) -> None:
    workers(api, 9)
    began: dict[str, float] = {}

    def created(job: Object) -> None:
        began[job["spec"]["template"]["spec"]["nodeName"]] = time.passed
        time.after(10, lambda: api.finish(job["metadata"]["name"]))

    api.on_create = created
    dispatch(api, replace(CONFIG, canary=1, wave_size=Amount(50, share=True)))
    assert [round(began[f"n{number}"] / 10) for number in range(9)] == [0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_by_default_failures_stop_nothing(api: FakeApi) -> None:
    names = workers(api, 5)
    api.on_create = lambda job: api.fail(job["metadata"]["name"])
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert (result.outcome, api.made) == ("failed", names)


def test_with_too_many_failures_no_more_are_begun_and_what_runs_is_seen_to_its_end(
    api: FakeApi, time: Time
) -> None:
    workers(api, 10)
    api.on_create = lambda job: time.after(10, lambda: api.fail(job["metadata"]["name"]))
    result = dispatch(api, replace(CONFIG, parallelism=3, max_failures=Amount(10, share=True)))
    tally = sorted(outcomes(result).values())
    assert len(api.made) in (3, 4)
    assert tally == ["failed"] * len(api.made) + ["not started"] * (10 - len(api.made))
    assert result.reason == "2 nodes have failed, and at most 1 may"


# --- being asked to stop ----------------------------------------------------------------------------


def test_asked_to_stop_it_begins_no_more_and_leaves_what_runs(api: FakeApi, time: Time) -> None:
    workers(api, 5)
    with api.client() as connection:
        api.on_create = lambda job: time.after(20, lambda: setattr(connection.stop, "requested", True))
        result = run(replace(CONFIG, parallelism=2), connection)
    assert (result.outcome, result.exit_code) == ("interrupted", 1)
    assert list(outcomes(result).values()) == ["running"] * 2 + ["not started"] * 3
    assert len(api.jobs) == 2
    assert "DELETE" not in "".join(api.requests)


def test_a_stop_before_the_first_job_leaves_nothing(api: FakeApi, time: Time) -> None:
    with api.client() as connection:
        connection.stop.requested = True
        with pytest.raises(Stopped):
            run(replace(CONFIG, wait_for_nodes=60), connection)
    assert api.jobs == {}
