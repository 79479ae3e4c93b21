"""Which nodes get a Job, and which nodes the dispatcher waits for, skips or cleans up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from msgspec.structs import replace

from dispatcher.fake_api_server import FakeApiServer, FakeClock, Fault, Object
from dispatcher.harness import (
    CLEANUP,
    CONFIG,
    INSTALLATION_LABEL,
    dispatch,
    for_all_runtimes,
    leave_unfinished_run,
    outcomes,
    serve,
    template,
    workers,
)
from kata_node.dispatcher.config import Config, IntOrPercent, OtherJobsConfig
from kata_node.dispatcher.kubernetes_objects import TEMPLATE_DIGEST_LABEL
from kata_node.dispatcher.nodes import Nodes, Selection
from kata_node.dispatcher.progress import summary
from kata_node.dispatcher.rollout import Outcome
from kata_node.dispatcher.template import Target, Templates
from kata_node.errors import KubeError

# --- the selection ----------------------------------------------------------------------------------


def test_only_nodes_with_the_label_selector_get_a_job(api: FakeApiServer) -> None:
    api.node("a", labels={"pool": "kata"})
    api.node("b", labels={"pool": "other"})
    assert outcomes(dispatch(api, replace(CONFIG, selector="pool=kata"))) == {"a": "done"}


def test_an_unknown_node_name_fails_an_install_and_is_gone_for_a_cleanup(
    api: FakeApiServer,
) -> None:
    workers(api, 3)
    result = dispatch(api, replace(CONFIG, nodes=("n2", "typo")))
    assert outcomes(result) == {"n2": "done", "typo": "failed"}
    assert result.exit_code == 1
    result = dispatch(api, replace(CLEANUP, nodes=("n2", "typo")))
    assert outcomes(result) == {"n2": "done", "typo": "gone"}
    assert result.exit_code == 0


def test_many_node_names_cost_one_list_of_all_nodes(api: FakeApiServer) -> None:
    names = workers(api, 30)
    dispatch(api, replace(CONFIG, nodes=tuple(names[:25])))
    assert api.made == sorted(names[:25])
    assert api.requests.count("GET nodes") == 1


def test_a_node_with_a_taint_that_is_not_tolerated_is_skipped_with_a_note(api: FakeApiServer) -> None:
    api.node("a", taints=("dedicated:NoSchedule",))
    api.node("b", taints=("dedicated:PreferNoSchedule",))
    result = dispatch(api)
    assert outcomes(result) == {"a": "skipped", "b": "done"}
    assert result.exit_code == 0
    (skipped,) = [task for task in result.tasks if task.outcome is Outcome.SKIPPED]
    assert "dedicated:NoSchedule" in skipped.note
    tolerant = template(tolerations=[{"key": "dedicated", "operator": "Exists"}])
    assert outcomes(dispatch(api, replace(CONFIG, templates=for_all_runtimes(tolerant)))) == {
        "a": "done",
        "b": "done",
    }


# --- named nodes ------------------------------------------------------------------------------------


def test_a_named_node_gets_a_job_that_tolerates_its_taints(api: FakeApiServer) -> None:
    api.node("w1", taints=("dedicated=gpu:NoExecute",))
    api.node("cp1", taints=("node-role.kubernetes.io/control-plane:NoSchedule",))
    tolerant = template(tolerations=[{"key": "a", "operator": "Exists"}])
    config = replace(CONFIG, nodes=("w1", "cp1"), templates=for_all_runtimes(tolerant))
    assert outcomes(dispatch(api, config)) == {"w1": "done", "cp1": "done"}
    for job in api.jobs.values():
        tolerations = job["spec"]["template"]["spec"]["tolerations"]
        assert tolerations == [{"key": "a", "operator": "Exists"}, {"operator": "Exists"}]


def test_named_nodes_that_all_exist_are_not_waited_for(api: FakeApiServer, time: FakeClock) -> None:
    workers(api, 3)
    config = replace(CONFIG, nodes=("n0", "n1"), wait_for_nodes=120)
    assert outcomes(dispatch(api, config)) == {"n0": "done", "n1": "done"}
    assert time.passed < 5


def test_a_named_node_with_a_dead_kubelet_is_not_ready(api: FakeApiServer, time: FakeClock) -> None:
    api.node("n", taints=("node.kubernetes.io/unreachable:NoExecute",))
    result = dispatch(api, replace(CONFIG, nodes=("n",), wait_for_nodes=300))
    assert outcomes(result) == {"n": "not ready"}
    assert result.exit_code == 1
    assert 120 <= time.passed < 130


# --- node affinity ----------------------------------------------------------------------------------


def requires(key: str, operator: str, *values: str) -> dict[str, Object]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}  # type: ignore[dict-item]


def test_a_node_must_match_the_label_selector_and_one_term_of_the_affinity(api: FakeApiServer) -> None:
    api.node("a", labels={"pool": "kata", "zone": "1"})
    api.node("b", labels={"pool": "kata", "memory": "64"})
    api.node("c", labels={"pool": "kata", "memory": "16"})
    api.node("d", labels={"zone": "1"})
    name = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["e"]}]}
    api.node("e", labels={"pool": "kata"})
    terms = (requires("zone", "In", "1"), requires("memory", "Gt", "32"), name)
    result = dispatch(api, replace(CONFIG, selector="pool=kata", terms=terms))
    assert outcomes(result) == {"a": "done", "b": "done", "e": "done"}


def test_a_node_that_no_term_matches_any_more_is_cleaned_up(api: FakeApiServer) -> None:
    api.node("in", labels={"zone": "1", INSTALLATION_LABEL: "true"})
    api.node("out", labels={"zone": "2", INSTALLATION_LABEL: "true"})
    result = dispatch(api, replace(REMOVING, selector="", terms=(requires("zone", "In", "1"),)))
    assert outcomes(result) == {"in": "done", "out": "done"}
    assert list(api.jobs) == ["install-in", "removed-out"]


def test_the_error_without_eligible_nodes_names_the_node_affinity(api: FakeApiServer) -> None:
    workers(api, 2)
    with pytest.raises(KubeError, match=r"0 of 2 Nodes match .* and the node affinity"):
        dispatch(api, replace(CONFIG, terms=(requires("zone", "Exists"),), wait_for_nodes=5))


VIRTUALIZED = (
    requires("feature.node.kubernetes.io/cpu-cpuid.VMX", "In", "true"),
    requires("kubernetes.io/arch", "In", "arm64"),
)


def features(api: FakeApiServer, name: str, **labels: str) -> None:
    made = {f"feature.node.kubernetes.io/{key.replace('_', '.')}": value for key, value in labels.items()}
    api.nodes[name]["metadata"]["labels"].update(made)


def test_the_dispatcher_waits_until_node_feature_discovery_has_labeled_all_nodes(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("a", labels={"kubernetes.io/arch": "amd64"})
    api.node("b", labels={"kubernetes.io/arch": "amd64"})
    api.node("c", labels={"kubernetes.io/arch": "arm64"})
    vmx = "cpu-cpuid_VMX"
    time.after(20, lambda: features(api, "a", **{"kernel-version_major": "6", vmx: "true"}))
    time.after(60, lambda: features(api, "b", **{"kernel-version_major": "6"}))
    result = dispatch(api, replace(CONFIG, terms=VIRTUALIZED, wait_for_nodes=120))
    assert outcomes(result) == {"a": "done", "c": "done"}
    assert 60 <= time.passed < 90


def test_a_node_that_is_never_labeled_is_skipped_and_its_kata_stays(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("a", labels={"kubernetes.io/arch": "arm64"})
    api.node("b", labels={INSTALLATION_LABEL: "true"})
    result = dispatch(api, replace(REMOVING, selector="", terms=VIRTUALIZED, wait_for_nodes=60))
    assert outcomes(result) == {"a": "done", "b": "skipped"}
    (skipped,) = [task for task in result.tasks if task.outcome is Outcome.SKIPPED]
    assert "node-feature-discovery has not labeled it" in skipped.note
    assert time.passed == 60


def test_the_error_without_labels_of_node_feature_discovery_says_so(api: FakeApiServer) -> None:
    workers(api, 2)
    with pytest.raises(KubeError) as caught:
        dispatch(api, replace(CONFIG, terms=VIRTUALIZED, wait_for_nodes=30))
    assert "0 of 2 Nodes match" in caught.value.what
    assert "node-feature-discovery has not labeled n0, n1" in caught.value.what
    assert "pods of node-feature-discovery" in caught.value.hint


def test_the_settle_time_is_configurable(api: FakeApiServer, time: FakeClock) -> None:
    workers(api, 1)
    dispatch(api, replace(CONFIG, wait_for_nodes=120, node_settle=2))
    assert time.passed < 4
    dispatch(api, replace(CONFIG, wait_for_nodes=120, node_settle=40))
    assert 42 <= time.passed < 50


# --- changes between the selection and the Job ------------------------------------------------------


def before_second_job(api: FakeApiServer, change: Callable[[], object]) -> None:
    """Call ``change`` when the first Job has been created; every Job takes 10 s."""

    def created(job: Object) -> None:
        if len(api.made) == 1:
            change()
        api.time.after(10, lambda: api.finish(job["metadata"]["name"]))

    api.on_create = created


ONE_BY_ONE = replace(CONFIG, parallelism=1)


def test_a_taint_that_was_added_after_the_selection_is_seen_before_the_job_is_made(
    api: FakeApiServer,
) -> None:
    workers(api, 2)
    before_second_job(api, lambda: api.node("n1", taints=("dedicated:NoSchedule",)))
    result = dispatch(api, ONE_BY_ONE)
    assert outcomes(result) == {"n0": "done", "n1": "skipped"}
    assert api.made == ["n0"]


def test_the_nodes_that_come_next_are_read_again_together(api: FakeApiServer, time: FakeClock) -> None:
    workers(api, 100)
    api.on_create = lambda job: time.after(3, lambda: api.finish(job["metadata"]["name"]))
    result = dispatch(api, replace(CONFIG, parallelism=5))
    assert set(outcomes(result).values()) == {"done"}
    assert result.requests["read a node"] == 0
    assert result.requests["list nodes"] <= 1 + time.passed / 5


def test_nodes_are_read_one_by_one_behind_a_proxy_that_refuses_a_long_request(
    api: FakeApiServer, time: FakeClock
) -> None:
    workers(api, 12)
    time.after(15, lambda: api.faults.append(Fault("GET", "/api/v1/nodes", 414)))
    api.on_create = lambda job: time.after(3, lambda: api.finish(job["metadata"]["name"]))
    result = dispatch(api, ONE_BY_ONE)
    assert set(outcomes(result).values()) == {"done"}
    assert result.requests["read a node"] == 7  # all nodes after the refusal, each alone


def test_a_slow_rollout_does_not_read_many_nodes_again_for_each_job(
    api: FakeApiServer, time: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers(api, 30)
    api.on_create = lambda job: time.after(20, lambda: api.finish(job["metadata"]["name"]))
    read: list[int] = []
    select_again = Nodes.select_again

    def spy(self: Nodes, targets: Sequence[Target]) -> Selection:
        read.append(len(targets))
        return select_again(self, targets)

    monkeypatch.setattr(Nodes, "select_again", spy)
    assert set(outcomes(dispatch(api, ONE_BY_ONE)).values()) == {"done"}
    assert read == [29, *[2] * 27, 1]


def test_a_node_with_another_hostname_and_one_without_are_read_again(api: FakeApiServer) -> None:
    for name, hostname in (("n0", "n0"), ("n1", "ip-10-0-0-1"), ("n2", "")):
        api.node(name, labels={"kubernetes.io/hostname": hostname})

    def change() -> None:
        for name in ("n1", "n2"):
            api.node(name, taints=("dedicated:NoSchedule",))

    before_second_job(api, change)
    assert outcomes(dispatch(api, ONE_BY_ONE)) == {"n0": "done", "n1": "skipped", "n2": "skipped"}


def test_a_node_that_became_not_ready_after_the_selection_is_waited_for(
    api: FakeApiServer, time: FakeClock
) -> None:
    workers(api, 2)
    before_second_job(api, lambda: api.node("n1", taints=(NOT_READY,)))
    becomes_ready(api, "n1", 100)
    result = dispatch(api, replace(ONE_BY_ONE, wait_for_ready=95))
    assert outcomes(result) == {"n0": "done", "n1": "done"}, "the wait begins when the taint is seen"
    assert 100 <= time.passed < 120


def test_a_node_that_was_replaced_after_the_selection_gets_the_job_of_its_new_machine(
    api: FakeApiServer,
) -> None:
    workers(api, 2)

    def replaced() -> None:
        api.node("n1", runtime="cri-o://1.36.1")
        api.nodes["n1"]["metadata"]["uid"] = "new"

    before_second_job(api, replaced)
    templates = Templates(by_runtime={"containerd": template(), "cri-o": template("of-@NODE_UID@")})
    assert outcomes(dispatch(api, replace(ONE_BY_ONE, templates=templates)))["n1"] == "done"
    assert api.jobs["install-n1"]["spec"]["template"]["spec"]["containers"][0]["image"] == "of-new"


def test_a_replaced_node_is_not_taken_for_done_by_an_earlier_run(api: FakeApiServer) -> None:
    workers(api, 2)
    dispatch(api)
    api.jobs.pop("install-n0")
    before_second_job(api, lambda: api.nodes["n1"]["metadata"].update(uid="new"))
    api.made.clear()
    assert outcomes(dispatch(api, ONE_BY_ONE)) == {"n0": "done", "n1": "done"}
    assert api.made == ["n0", "n1"]


@pytest.mark.parametrize(("back_after", "outcome"), [(20, "done"), (None, "gone")])
def test_a_node_that_vanished_after_the_selection_may_come_back(
    api: FakeApiServer, time: FakeClock, back_after: float | None, outcome: str
) -> None:
    workers(api, 2)
    before_second_job(api, lambda: api.nodes.pop("n1"))
    if back_after:
        time.after(back_after, lambda: api.node("n1"))
    assert outcomes(dispatch(api, ONE_BY_ONE)) == {"n0": "done", "n1": outcome}
    assert time.passed < 130


def test_a_node_that_is_no_longer_selected_before_its_job_is_skipped(api: FakeApiServer) -> None:
    for name in ("n0", "n1"):
        api.node(name, labels={"pool": "kata"})
    before_second_job(api, lambda: api.node("n1"))
    result = dispatch(api, replace(ONE_BY_ONE, selector="pool=kata"))
    assert outcomes(result) == {"n0": "done", "n1": "skipped"}


# --- nodes that are not ready -----------------------------------------------------------------------

NOT_READY = "node.kubernetes.io/not-ready:NoSchedule"


def becomes_ready(api: FakeApiServer, name: str, seconds: float) -> None:
    api.time.after(seconds, lambda: api.nodes[name]["spec"].pop("taints"))


def test_the_other_nodes_run_while_the_dispatcher_waits_for_a_node_that_is_not_ready(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("a", taints=(NOT_READY, "node.kubernetes.io/not-ready:NoExecute"))
    workers(api, 2)
    becomes_ready(api, "a", 40)
    result = dispatch(api)
    assert outcomes(result) == {"a": "done", "n0": "done", "n1": "done"}
    assert api.made == ["n0", "n1", "a"]
    assert 40 <= time.passed < 50
    assert result.exit_code == 0


@pytest.mark.parametrize("taint", ["node.kubernetes.io/unreachable:NoExecute", NOT_READY])
def test_a_node_that_stays_not_ready_is_reported_and_fails_the_run(
    api: FakeApiServer, time: FakeClock, taint: str
) -> None:
    workers(api, 1)
    api.node("a", taints=(taint,))
    result = dispatch(api, replace(CONFIG, max_failures=IntOrPercent(0), wait_for_ready=90))
    assert outcomes(result) == {"n0": "done", "a": "not ready"}
    assert (result.outcome, result.exit_code) == ("failed", 1)
    assert 90 <= time.passed < 100
    (task,) = [task for task in result.tasks if task.target.name == "a"]
    assert f"it still has the taint {taint} after 90 s" in str(task.problem)
    assert api.made == ["n0"]
    assert api.events == [], "the cluster already reports nodes that are not ready"


@pytest.mark.parametrize(
    ("config", "of", "code"),
    [
        pytest.param(CONFIG, 9, 1, id="one of nine"),
        pytest.param(CONFIG, 10, 0, id="one of ten"),
        pytest.param(replace(CONFIG, max_not_ready=IntOrPercent(0)), 10, 1, id="one where none may"),
        pytest.param(replace(CONFIG, max_not_ready=IntOrPercent(1)), 2, 0, id="one where one may"),
        pytest.param(replace(CONFIG, skip_serving=True), 2, 0, id="of one who comes back"),
        pytest.param(CLEANUP, 50, 1, id="of one who takes everything away"),
    ],
)
def test_the_run_fails_when_more_nodes_are_not_ready_than_max_not_ready_allows(
    api: FakeApiServer, config: Config, of: int, code: int
) -> None:
    workers(api, of - 1)
    api.node("a", taints=(NOT_READY,))
    result = dispatch(api, config)
    assert outcomes(result)["a"] == "not ready"
    assert result.exit_code == code
    assert "1 not ready" in summary(result)
    allowed = config.max_not_ready.number if config.max_not_ready else 0
    assert result.reason == (f"1 of {of} nodes are not ready, maxNotReady allows {allowed}" if code else "")


@pytest.mark.parametrize(
    ("config", "hint"), [(CONFIG, "job.reconcileSchedule"), (CLEANUP, "delete its Node first")]
)
def test_an_unreachable_node_gets_no_job_even_if_the_job_tolerates_everything(
    api: FakeApiServer, time: FakeClock, config: Config, hint: str
) -> None:
    api.node("a", taints=("node.kubernetes.io/unreachable:NoExecute",))
    everything = template(tolerations=[{"operator": "Exists"}])
    result = dispatch(api, replace(config, templates=for_all_runtimes(everything)))
    assert outcomes(result) == {"a": "not ready"}
    assert (result.exit_code, api.made) == (1, [])
    assert 120 <= time.passed < 130
    assert hint in (result.tasks[0].problem.hint if result.tasks[0].problem else "")


def test_a_node_that_became_unreachable_during_its_job_has_the_same_wait_limit(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("n")
    leave_unfinished_run(api)
    api.node("n", taints=("node.kubernetes.io/unreachable:NoSchedule",))
    assert outcomes(dispatch(api)) == {"n": "not ready"}
    assert time.passed < 140


def test_the_dispatcher_waits_for_many_nodes_that_are_not_ready_at_the_same_time(
    api: FakeApiServer, time: FakeClock
) -> None:
    for number in range(9):
        api.node(f"a{number}", taints=(NOT_READY,))
    dispatch(api, replace(CONFIG, parallelism=2))
    assert time.passed < 140


def test_a_node_that_is_not_ready_is_never_a_canary_node(api: FakeApiServer) -> None:
    api.node("a", taints=(NOT_READY,))
    workers(api, 2)
    result = dispatch(api, replace(CONFIG, canary=1, wait_for_ready=0))
    assert {task.target.name: task.wave for task in result.tasks} == {"n0": 0, "n1": 1, "a": 1}
    assert api.made == ["n0", "n1"]


def test_the_dispatcher_does_not_wait_for_a_temporary_taint_that_is_tolerated(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("a", taints=(NOT_READY,))
    tolerant = template(tolerations=[{"operator": "Exists"}])
    assert outcomes(dispatch(api, replace(CONFIG, templates=for_all_runtimes(tolerant)))) == {"a": "done"}
    assert time.passed < 5


def test_changes_of_a_node_during_the_wait_for_it_are_noticed(api: FakeApiServer, time: FakeClock) -> None:
    for name in ("cordoned", "gone", "other"):
        api.node(name, taints=(NOT_READY,))
    time.after(20, lambda: api.node("cordoned", taints=(NOT_READY, "dedicated:NoSchedule")))
    time.after(20, lambda: api.nodes.pop("gone"))
    time.after(20, lambda: api.node("other", runtime="docker://28.1"))
    both = Templates(by_runtime={"containerd": template()})
    result = dispatch(api, replace(CONFIG, templates=both))
    assert outcomes(result) == {"cordoned": "skipped", "gone": "gone", "other": "failed"}


def test_a_node_that_is_registered_again_during_the_wait_gets_the_job_of_its_new_runtime(
    api: FakeApiServer, time: FakeClock
) -> None:
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


def test_the_running_job_of_a_node_that_is_not_ready_is_adopted_at_once(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("n")
    api.on_create = lambda job: None
    leave_unfinished_run(api)
    api.node("n", taints=(NOT_READY,))
    time.after(10, lambda: api.finish("install-n"))
    result = dispatch(api)
    assert outcomes(result) == {"n": "done"}
    assert result.tasks[0].adopted
    assert time.passed < 60


def test_a_node_that_becomes_ready_after_the_rollout_has_stopped_is_not_started(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("a", taints=(NOT_READY,))
    becomes_ready(api, "a", 30)
    workers(api, 1)
    api.on_create = lambda job: time.after(20, lambda: api.fail(job["metadata"]["name"]))
    result = dispatch(api, replace(CONFIG, max_failures=IntOrPercent(0)))
    assert outcomes(result) == {"n0": "failed", "a": "not started"}


def test_the_error_without_eligible_nodes_names_nodes_that_are_not_ready(api: FakeApiServer) -> None:
    api.node("a", taints=(NOT_READY,))
    with pytest.raises(
        KubeError, match=f"no node is eligible .*: 1 of 1 Nodes .*a has the taint {NOT_READY}"
    ):
        dispatch(api, replace(CONFIG, wait_for_nodes=30))


# --- container runtimes -----------------------------------------------------------------------------

BY_RUNTIME = replace(
    CONFIG,
    templates=Templates(by_runtime={"containerd": template("for-containerd"), "cri-o": template("for-crio")}),
)


def image(api: FakeApiServer, node: str) -> str:
    return str(api.jobs[f"install-{node}"]["spec"]["template"]["spec"]["containers"][0]["image"])


def test_each_node_gets_the_job_of_its_runtime(api: FakeApiServer) -> None:
    api.node("a")
    api.node("b", runtime="cri-o://1.36.1")
    assert outcomes(dispatch(api, BY_RUNTIME)) == {"a": "done", "b": "done"}
    assert (image(api, "a"), image(api, "b")) == ("for-containerd", "for-crio")
    digests = [api.jobs[f"install-{node}"]["metadata"]["labels"][TEMPLATE_DIGEST_LABEL] for node in "ab"]
    assert len(set(digests)) == 2


@pytest.mark.parametrize(
    ("runtime", "what", "hint"),
    [
        pytest.param(
            "docker://28.1",
            'no Job template for the container runtime "docker://28.1"',
            "containerRuntime",
            id="other",
        ),
        pytest.param("", "does not name its container runtime", "kubelet", id="none reported"),
    ],
)
def test_a_node_without_a_template_for_its_runtime_fails_alone(
    api: FakeApiServer, runtime: str, what: str, hint: str
) -> None:
    api.node("a", runtime=runtime)
    api.node("b")
    result = dispatch(api, BY_RUNTIME)
    assert outcomes(result) == {"a": "failed", "b": "done"}
    assert result.exit_code == 1
    (failed,) = [task.problem for task in result.tasks if task.problem]
    assert what in failed.what
    assert hint in failed.hint
    assert [event["involvedObject"]["name"] for event in api.events] == ["a"]


def test_only_a_node_with_a_changed_runtime_gets_a_new_job(api: FakeApiServer) -> None:
    workers(api, 2)
    dispatch(api, BY_RUNTIME)
    api.node("n0", runtime="cri-o://1.36.1")
    assert outcomes(dispatch(api, BY_RUNTIME)) == {"n0": "done", "n1": "unchanged"}
    assert image(api, "n0") == "for-crio"


def test_a_node_that_is_no_longer_selected_gets_the_cleanup_job_of_its_runtime(api: FakeApiServer) -> None:
    api.node("a", labels={"pool": "kata"})
    api.node("b", labels={INSTALLATION_LABEL: "true"}, runtime="cri-o://1.36.1")
    api.node("c", labels={INSTALLATION_LABEL: "true"}, runtime="docker://28.1")
    removed = OtherJobsConfig("removed", Templates(by_runtime={"cri-o": template("clean-crio")}))
    result = dispatch(api, replace(BY_RUNTIME, selector="pool=kata", removed=removed))
    assert outcomes(result) == {"a": "done", "b": "done", "c": "failed"}
    assert api.jobs["removed-b"]["spec"]["template"]["spec"]["containers"][0]["image"] == "clean-crio"


# --- nodes that serve, and waiting for nodes --------------------------------------------------------


def test_with_skip_serving_nodes_that_serve_get_no_job(api: FakeApiServer) -> None:
    api.node("new")
    api.node("half", labels={INSTALLATION_LABEL: "false"})
    api.node("old")
    serve(api, "old")
    api.node("taken", labels={INSTALLATION_LABEL: "true"})  # another program removed the shared label
    result = dispatch(api, replace(CONFIG, skip_serving=True))
    assert outcomes(result) == {"new": "done", "half": "done", "old": "unchanged", "taken": "done"}
    assert api.made == ["half", "new", "taken"]


def test_with_skip_serving_a_node_without_the_installation_label_gets_a_new_job_each_time(
    api: FakeApiServer,
) -> None:
    api.node("n")
    config = replace(CONFIG, skip_serving=True)
    assert [outcomes(dispatch(api, config)) for _ in range(2)] == [{"n": "done"}] * 2
    assert api.made == ["n", "n"]


def test_it_waits_until_the_set_of_eligible_nodes_is_stable(api: FakeApiServer, time: FakeClock) -> None:
    for second, name in ((4, "a"), (12, "b"), (22, "c")):
        time.after(second, lambda name=name: api.node(name))  # type: ignore[misc]
    result = dispatch(api, replace(CONFIG, wait_for_nodes=120))
    assert outcomes(result) == {"a": "done", "b": "done", "c": "done"}
    assert 37 <= time.passed < 60


def test_it_waits_for_all_configured_node_names(api: FakeApiServer, time: FakeClock) -> None:
    api.node("a")
    time.after(40, lambda: api.node("b"))
    result = dispatch(api, replace(CONFIG, nodes=("a", "b"), wait_for_nodes=120))
    assert outcomes(result) == {"a": "done", "b": "done"}


def test_a_set_of_nodes_that_never_becomes_stable_is_used_at_the_end_of_the_wait(
    api: FakeApiServer, time: FakeClock
) -> None:
    for second in range(1, 60, 4):
        time.after(second, lambda second=second: api.node(f"n{second}"))  # type: ignore[misc]
    result = dispatch(api, replace(CONFIG, wait_for_nodes=30))
    assert result.outcome == "ok"
    assert 5 < len(result.tasks) < 15


def test_no_eligible_node_after_the_wait_is_an_error_that_names_the_taints(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("a", taints=("dedicated:NoSchedule",))
    with pytest.raises(
        KubeError, match=r"no node is eligible after 30 s.*a has the taint dedicated:NoSchedule"
    ):
        dispatch(api, replace(CONFIG, wait_for_nodes=30))
    assert time.passed == 30


SELECTOR = "pool=kata,!node-role.kubernetes.io/control-plane"
ALL_CONTROL = "set job.nodeSelectorExpressions to []; all nodes of this cluster are control-plane nodes"


@pytest.mark.parametrize(
    ("config", "what"),
    [
        pytest.param(
            replace(CONFIG, selector=SELECTOR),
            f"0 of 300 Nodes match the label selector {SELECTOR}",
            id="labels",
        ),
        pytest.param(
            replace(CONFIG, nodes=("x", "y", "z", "more")),
            "0 of 300 Nodes match the names x, y, z, …",
            id="names",
        ),
    ],
)
def test_the_error_for_an_empty_selection_has_the_selection_and_the_number_of_nodes(
    api: FakeApiServer, config: Config, what: str
) -> None:
    workers(api, 300)
    with pytest.raises(KubeError) as caught:
        dispatch(api, replace(config, wait_for_nodes=5))
    assert caught.value.what == f"no node is eligible after 5 s: {what}"
    assert ALL_CONTROL not in str(caught.value)


def test_the_error_without_eligible_nodes_names_their_taints_and_how_many_nodes_match(
    api: FakeApiServer,
) -> None:
    for name in "abcd":
        api.node(name, labels={"pool": "kata"}, taints=("dedicated:NoSchedule",))
    api.node("e")
    with pytest.raises(KubeError) as caught:
        dispatch(api, replace(CONFIG, selector="pool=kata", wait_for_nodes=5))
    each = ", ".join(f"{name} has the taint dedicated:NoSchedule" for name in "abc")
    assert "4 of 5 Nodes match the label selector pool=kata, but none can get a Job: " in str(caught.value)
    assert f"{each}, …" in str(caught.value)
    assert "add them to tolerations in the values" in str(caught.value)


def test_the_hint_for_a_cluster_with_only_control_plane_nodes_says_how_to_select_them(
    api: FakeApiServer,
) -> None:
    control_plane = {"node-role.kubernetes.io/control-plane": ""}
    api.node("a", labels=control_plane)
    alone = replace(CONFIG, selector="!node-role.kubernetes.io/control-plane", wait_for_nodes=5)
    with pytest.raises(KubeError) as caught:
        dispatch(api, alone)
    assert caught.value.hint == ALL_CONTROL
    api.node("b", labels={"pool": "other"})
    with pytest.raises(KubeError) as caught:
        dispatch(api, replace(alone, selector=SELECTOR))
    assert caught.value.hint != ALL_CONTROL, "not all nodes are control-plane nodes"


def test_a_wait_shorter_than_the_stable_period_gives_no_warning(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kata_node")
    workers(api, 2)
    dispatch(api, replace(CONFIG, wait_for_nodes=5))
    assert time.passed < 10
    assert "eligible nodes: 2, unchanged for 5 s; continuing" in caplog.text
    assert "still changes" not in caplog.text


def test_a_change_just_before_the_end_of_the_wait_gives_a_warning(
    api: FakeApiServer, time: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    api.node("a")
    for second, name in ((4, "b"), (14, "c"), (24, "d")):
        time.after(second, lambda name=name: api.node(name))  # type: ignore[misc]
    dispatch(api, replace(CONFIG, wait_for_nodes=30))
    (warned,) = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert warned == (
        "the set of eligible nodes still changes after 30 s, the last change was 5 s ago; "
        "continuing with 4 nodes"
    )


def test_an_empty_selection_without_a_wait_succeeds(
    api: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert dispatch(api).exit_code == 0
    assert "no node is selected" in caplog.text


# --- nodes that are no longer selected --------------------------------------------------------------

REMOVING = replace(
    CONFIG,
    selector="pool=kata",
    removed=OtherJobsConfig(
        "removed", for_all_runtimes(template("cleanup", tolerations=[{"operator": "Exists"}]))
    ),
)


def test_a_node_that_is_no_longer_selected_is_cleaned_up_after_the_other_nodes(api: FakeApiServer) -> None:
    api.node("in", labels={"pool": "kata"})
    api.node("out", labels={INSTALLATION_LABEL: "true"}, taints=("any:NoExecute",))
    api.node("half", labels={INSTALLATION_LABEL: "false"})
    api.node("other", labels={"kata-deploy.katacontainers.io/blue": "true"})
    result = dispatch(api, REMOVING)
    assert outcomes(result) == {"in": "done", "half": "done", "out": "done"}
    assert list(api.jobs) == ["install-in", "removed-half", "removed-out"]


def test_a_selected_node_with_a_taint_is_not_cleaned_up(api: FakeApiServer) -> None:
    api.node("in", labels={"pool": "kata"})
    api.node(
        "cordoned", labels={"pool": "kata", INSTALLATION_LABEL: "true"}, taints=("unschedulable:NoSchedule",)
    )
    assert outcomes(dispatch(api, REMOVING)) == {"in": "done", "cordoned": "skipped"}


def test_an_empty_selection_removes_nothing(api: FakeApiServer, caplog: pytest.LogCaptureFixture) -> None:
    api.node("a", labels={INSTALLATION_LABEL: "true"})
    assert outcomes(dispatch(api, REMOVING)) == {}
    assert "nothing is removed" in caplog.text


def test_a_node_that_is_selected_again_before_its_cleanup_starts_is_skipped(
    api: FakeApiServer, time: FakeClock
) -> None:
    api.node("in", labels={"pool": "kata"})
    api.node("out", labels={INSTALLATION_LABEL: "true"})

    def created(job: Object) -> None:
        api.nodes["out"]["metadata"]["labels"]["pool"] = "kata"
        api.finish(job["metadata"]["name"])

    api.on_create = created
    assert outcomes(dispatch(api, REMOVING)) == {"in": "done", "out": "skipped"}


def test_nothing_is_removed_after_the_rollout_has_stopped(api: FakeApiServer) -> None:
    api.node("in", labels={"pool": "kata"})
    api.node("out", labels={INSTALLATION_LABEL: "true"})
    api.on_create = lambda job: api.fail(job["metadata"]["name"])
    result = dispatch(api, replace(REMOVING, max_failures=IntOrPercent(0)))
    assert outcomes(result) == {"in": "failed", "out": "not started"}


WITH_IMAGE_VOLUME = replace(
    CONFIG,
    templates=for_all_runtimes(template(volumes=[{"name": "payload", "image": {"reference": "r/kata"}}])),
)


@pytest.mark.parametrize(
    "runtime", ["containerd://2.1.0", "containerd://v2.4.2-k3s1", "cri-o://1.33.0", "containerd://unknown"]
)
def test_a_node_whose_runtime_can_mount_the_payload_gets_a_job(api: FakeApiServer, runtime: str) -> None:
    api.node("a", runtime=runtime)
    assert outcomes(dispatch(api, WITH_IMAGE_VOLUME)) == {"a": "done"}


@pytest.mark.parametrize("runtime", ["containerd://1.7.24", "containerd://2.0.14-k3s1", "cri-o://1.32.9"])
def test_a_node_whose_runtime_is_too_old_to_mount_the_payload_gets_no_job_that_would_hang(
    api: FakeApiServer, runtime: str
) -> None:
    api.node("a", runtime=runtime)
    api.node("b")
    result = dispatch(api, WITH_IMAGE_VOLUME)
    assert outcomes(result) == {"a": "failed", "b": "done"}
    assert api.made == ["b"]
    (problem,) = [task.problem for task in result.tasks if task.problem]
    assert f'its container runtime "{runtime}" cannot mount the payload' in problem.what
    assert "use containerd 2.1 or cri-o 1.33, or a later one" in problem.hint
    # A Job that mounts no image runs there.
    assert outcomes(dispatch(api)) == {"a": "done", "b": "done"}
