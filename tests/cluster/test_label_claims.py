"""The label stages on a real API server: claims, the shared label and the installation labels."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from cluster.control_plane import Cluster
from cluster.faulty_proxy import UNLIMITED, Fault
from cluster.node_writers import NodeHistory
from cluster.stage_runner import CLAIMED, INSTALLATION_LABEL_PREFIX, LABELED, SHARED_LABEL, StageRunner
from kata_node.cluster.labels import SETTER_ANNOTATION
from kata_node.plan import report
from kata_node.plan.report import StageReport
from node.cache import CHECKOUT
from node.commands import RunningCommand, describe_result

AT_ONCE = "--label-stable-for=0"
DEFAULT, BLUE, GREEN = (f"{INSTALLATION_LABEL_PREFIX}{instance}" for instance in ("default", "blue", "green"))


def found(stage_runner: StageRunner, selector: str) -> bool:
    """Return whether ``kubectl get nodes -l`` shows the Node."""
    names = stage_runner.cluster.kubectl("get", "nodes", f"--selector={selector}", "--output=name").stdout
    return f"node/{stage_runner.name}" in names.split()


# --- the stages -------------------------------------------------------------------------------------


def test_the_labels_show_the_node_through_the_whole_life_of_an_installation(
    stage_runner: StageRunner,
) -> None:
    stage_runner.register({"example.org/own": "stays"})
    assert not found(stage_runner, SHARED_LABEL)
    stage_runner.run("claim").succeeded()
    assert stage_runner.labels == CLAIMED
    assert found(stage_runner, SHARED_LABEL)
    assert found(stage_runner, DEFAULT)
    assert not found(stage_runner, f"{SHARED_LABEL}=true")
    stage_runner.run("label").succeeded()
    assert stage_runner.labels == LABELED
    assert found(stage_runner, f"{SHARED_LABEL}=true")
    stage_runner.run("unlabel").succeeded()
    assert stage_runner.labels == CLAIMED
    assert found(stage_runner, SHARED_LABEL)
    assert not found(stage_runner, f"{SHARED_LABEL}=true")
    stage_runner.run("unclaim").succeeded()
    assert not found(stage_runner, SHARED_LABEL)
    labels = stage_runner.node_writer.node(stage_runner.name)["metadata"]["labels"]
    assert labels == {"kubernetes.io/hostname": stage_runner.name, "example.org/own": "stays"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({}, CLAIMED, id="fresh"),
        pytest.param({SHARED_LABEL: "false"}, CLAIMED, id="mark lost"),
        pytest.param(
            {SHARED_LABEL: "true"}, {SHARED_LABEL: "true", DEFAULT: "false"}, id="another program serves"
        ),
        pytest.param({DEFAULT: "false"}, CLAIMED, id="shared label lost"),
        pytest.param({SHARED_LABEL: "", DEFAULT: ""}, CLAIMED, id="labels of no meaning"),
        pytest.param(
            {SHARED_LABEL: "true", BLUE: "true"},
            {SHARED_LABEL: "true", BLUE: "true", DEFAULT: "false"},
            id="another serves",
        ),
        pytest.param(
            {SHARED_LABEL: "false", BLUE: "false"},
            {SHARED_LABEL: "false", BLUE: "false", DEFAULT: "false"},
            id="another claims",
        ),
    ],
)
def test_a_claim_adds_its_labels_and_does_not_withdraw_other_installations(
    stage_runner: StageRunner, before: Mapping[str, str], after: Mapping[str, str]
) -> None:
    stage_runner.register(before)
    stage_runner.run("claim").succeeded()
    assert stage_runner.labels == after
    assert stage_runner.proxy.count("PATCH") == 1


OTHERS = [
    pytest.param({}, None, id="alone"),
    pytest.param({BLUE: "false"}, "false", id="another claims"),
    pytest.param({BLUE: "true"}, "true", id="another serves"),
    pytest.param({BLUE: "false", GREEN: "true"}, "true", id="one claims and one serves"),
    pytest.param({BLUE: "false", GREEN: "false"}, "false", id="two claim"),
]


@pytest.mark.parametrize(("others", "shared"), OTHERS)
def test_the_shared_label_follows_the_remaining_installation_labels(
    stage_runner: StageRunner, others: Mapping[str, str], shared: str | None
) -> None:
    stage_runner.register({**LABELED, **others})
    stage_runner.run("unlabel", AT_ONCE).succeeded()
    assert stage_runner.labels == {SHARED_LABEL: shared or "false", DEFAULT: "false", **others}
    stage_runner.run("unclaim", AT_ONCE).succeeded()
    assert stage_runner.labels == ({SHARED_LABEL: shared, **others} if shared else {})


def test_a_node_that_only_another_program_labeled_is_left_alone(stage_runner: StageRunner) -> None:
    stage_runner.register({SHARED_LABEL: "true"})
    version = stage_runner.version
    for stage in ("unlabel", "unclaim"):
        assert "not ours" in stage_runner.run(stage, AT_ONCE).succeeded().summary
    assert (stage_runner.labels, stage_runner.version) == ({SHARED_LABEL: "true"}, version)


def test_a_shared_label_of_another_program_stays_after_a_whole_life_beside_it(
    stage_runner: StageRunner,
) -> None:
    stage_runner.register({SHARED_LABEL: "true"})
    stage_runner.run("claim").succeeded()
    assert stage_runner.annotations == {SETTER_ANNOTATION: "other"}
    for stage in ("label", "unlabel"):
        stage_runner.run(stage, AT_ONCE).succeeded()
        assert stage_runner.labels[SHARED_LABEL] == "true"
    stage_runner.run("unclaim", AT_ONCE).succeeded()
    assert (stage_runner.labels, stage_runner.annotations) == ({SHARED_LABEL: "true"}, {})


@pytest.mark.parametrize("others", [["/opt/kata"], []], ids=["another program", "alone"])
def test_unclaim_goes_by_what_the_stages_on_the_node_found(
    stage_runner: StageRunner, tmp_path: Path, others: list[str]
) -> None:
    stage_runner.register({SHARED_LABEL: "false"})  # somebody removed the installation label
    report = {"stage": "revert-cri", "outcome": "done", "summary": "", "other_install_dirs": others}
    (tmp_path / "revert-cri.json").write_text(json.dumps(report))
    stage_runner.run("unclaim", AT_ONCE, f"--reports={tmp_path}").succeeded()
    assert stage_runner.labels == ({SHARED_LABEL: "true"} if others else {})


def test_a_node_of_another_release_is_not_reverted_and_can_be_taken_over(stage_runner: StageRunner) -> None:
    stage_runner.register({})
    for stage in ("claim", "label"):
        stage_runner.run(stage, AT_ONCE, "--helm-release=kata-system/kata").succeeded()
    version = stage_runner.version
    failed = stage_runner.run("unlabel", AT_ONCE, "--helm-release=tenants/kata").failed(2)
    assert "belongs to the release kata-system/kata, not to tenants/kata" in failed.text
    assert (stage_runner.labels, stage_runner.version) == (LABELED, version)
    stage_runner.run("claim", AT_ONCE, "--helm-release=tenants/kata").succeeded()
    stage_runner.run("unlabel", AT_ONCE, "--helm-release=kata-system/kata").failed(2)
    assert stage_runner.labels == LABELED


def test_another_suffix_of_the_release_is_refused_until_the_first_one_is_reverted(
    stage_runner: StageRunner,
) -> None:
    stage_runner.register({})
    own = (AT_ONCE, "--helm-release=kata-system/kata")
    stage_runner.run("claim", *own).succeeded()
    failed = stage_runner.run("claim", *own, "--multi-install-suffix=blue").failed(2)
    assert "has the installation default" in failed.text
    assert stage_runner.labels == CLAIMED
    for stage in ("unlabel", "unclaim"):
        stage_runner.run(stage, *own).succeeded()
    stage_runner.run("claim", *own, "--multi-install-suffix=blue").succeeded()


def test_labels_that_are_restored_after_their_removal_are_removed_again(stage_runner: StageRunner) -> None:
    stage_runner.register(CLAIMED)
    stage_runner.proxy.inject(
        Fault(then=lambda: stage_runner.node_writer.label(stage_runner.name, LABELED)), method="PATCH"
    )
    done = stage_runner.run("unclaim").succeeded()
    assert stage_runner.labels == {}
    assert "another writer undid the changes of Node" in done.log


# --- few requests -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "before"),
    [
        pytest.param("claim", CLAIMED, id="claim what is claimed"),
        pytest.param("claim", LABELED, id="claim what serves"),
        pytest.param("label", LABELED, id="label what serves"),
        pytest.param("unlabel", CLAIMED, id="unlabel what is claimed"),
        pytest.param("unlabel", {}, id="unlabel a bare node"),
        pytest.param("unclaim", {}, id="unclaim a bare node"),
        pytest.param("unclaim", {SHARED_LABEL: "true", BLUE: "true"}, id="unclaim a node of others"),
    ],
)
def test_a_stage_without_work_sends_one_request(
    stage_runner: StageRunner, stage: str, before: Mapping[str, str]
) -> None:
    stage_runner.register(before)
    stage_runner.run(stage, AT_ONCE).succeeded()  # an earlier version of kata-node left no record
    version, asked = stage_runner.version, [stage_runner.proxy.count(each) for each in ("GET", "PATCH")]
    assert stage_runner.run(stage).succeeded().outcome == "skipped"
    assert stage_runner.version == version
    assert [stage_runner.proxy.count(each) for each in ("GET", "PATCH")] == [asked[0] + 1, asked[1]]


@pytest.mark.parametrize(
    ("stage", "before", "looks", "events"),
    [
        # One read, one write, and one read that checks that the labels have stayed.
        pytest.param("claim", {}, 1, 0, id="claim"),  # does not wait until the labels are stable
        pytest.param("label", CLAIMED, 2, 1, id="label"),
        pytest.param("unlabel", LABELED, 2, 0, id="unlabel"),
        pytest.param("unclaim", CLAIMED, 2, 1, id="unclaim"),
    ],
)
def test_a_stage_with_work_sends_few_requests(
    stage_runner: StageRunner, stage: str, before: Mapping[str, str], looks: int, events: int
) -> None:
    stage_runner.register(before)
    assert stage_runner.run(stage).succeeded().outcome == "done"
    assert stage_runner.proxy.count("PATCH") == 1
    assert stage_runner.proxy.count("POST") == events
    assert stage_runner.proxy.count("GET") == looks


def test_a_new_node_is_claimed_with_one_request_and_a_claimed_one_as_before(
    stage_runner: StageRunner, tmp_path: Path
) -> None:
    new = StageReport("host-check", "done", "3 passed", is_new=True)
    report.write_shared_report(tmp_path, new)
    machine = "0123456789abcdef" * 2
    options = (f"--reports={tmp_path}", f"--expected-machine-id={machine}")
    stage_runner.register(nodeInfo={"machineID": machine})
    stage_runner.run("claim", *options).succeeded()
    assert stage_runner.labels == CLAIMED
    begun = stage_runner.record()
    assert begun is not None
    assert (begun.outcome, begun.machine_id) == ("installing", machine)
    assert stage_runner.proxy.count() == 1
    stage_runner.node_writer.label(stage_runner.name, LABELED)
    stage_runner.run("claim", *options).succeeded()
    assert stage_runner.labels == LABELED, "the claim withdraws nothing"
    assert (stage_runner.proxy.count("PATCH", 422), stage_runner.proxy.count("GET")) == (1, 1)


def test_a_claim_that_finds_the_node_not_new_refuses_another_suffix_of_the_release(
    stage_runner: StageRunner, tmp_path: Path
) -> None:
    machine = "0123456789abcdef" * 2
    stage_runner.register(nodeInfo={"machineID": machine})
    stage_runner.run("claim", "--helm-release=kata-system/kata").succeeded()
    report.write_shared_report(tmp_path, StageReport("host-check", "done", "3 passed", is_new=True))
    new = (f"--reports={tmp_path}", f"--expected-machine-id={machine}", "--multi-install-suffix=blue")
    failed = stage_runner.run("claim", *new, "--helm-release=kata-system/kata").failed(2)
    assert "has the installation default" in failed.text
    assert stage_runner.labels == CLAIMED


# --- concurrent installations -----------------------------------------------------------------------

# Run random stages repeatedly in one process, which avoids the start of a process for each stage.
AT_RANDOM = """
import random, sys, time
from kata_node.cli.main import run

seed, seconds, *options = sys.argv[1:]
chance, end, mark = random.Random(seed), time.monotonic() + float(seconds), None
while time.monotonic() < end:
    stage = chance.choice(("claim", "label", "unlabel", "unclaim"))
    if run(["stage", stage, "--output=json", "--log-level=warning", *options]):
        sys.exit(f"{stage} failed")
    if stage == "claim":
        mark = mark or "false"
    elif stage == "label":
        mark = "true"
    elif stage == "unlabel":
        mark = mark and "false"
    else:
        mark = None
print(f"\\n{mark}")
"""


@pytest.mark.parametrize("by_another_program", [False, True], ids=["alone", "beside another program"])
def test_the_labels_are_correct_at_every_moment_while_installations_change_concurrently(
    stage_runner: StageRunner, cluster: Cluster, *, by_another_program: bool
) -> None:
    stage_runner.register({SHARED_LABEL: "true"} if by_another_program else None)
    environment = {
        **cluster.environment(),
        "KUBECONFIG": str(stage_runner.kubeconfig),
        "NODE_NAME": stage_runner.name,
        "PYTHONPATH": str(CHECKOUT),
    }
    options = [f"--host-root={stage_runner.host}", "--shims=qemu", "--label-timeout=120", AT_ONCE]
    # Delayed reads cause more write conflicts.
    stage_runner.proxy.inject(Fault(delay=0.1), method="GET", times=UNLIMITED)
    with NodeHistory(cluster, stage_runner.name) as history:
        workers = {
            instance: RunningCommand(
                [],
                [
                    sys.executable,
                    "-c",
                    AT_RANDOM,
                    instance,
                    "10",
                    f"--multi-install-suffix={instance}",
                    *options,
                ],
                env=environment,
                depth=0,
            )
            for instance in ("blue", "green", "red")
        }
        done = {instance: worker.wait() for instance, worker in workers.items()}
    for state in history.states:
        there = [value for key, value in state["labels"].items() if key.startswith(INSTALLATION_LABEL_PREFIX)]
        says = None if not there else "true" if "true" in there else "false"
        says = "true" if by_another_program else says
        assert state["labels"].get(SHARED_LABEL) == says, json.dumps(state, indent=2)
    marks = {}
    for instance, each in done.items():
        assert not each.returncode, describe_result(each)
        mark = each.stdout.splitlines()[-1]
        if mark != "None":
            marks[f"{INSTALLATION_LABEL_PREFIX}{instance}"] = mark
    assert {key: value for key, value in stage_runner.labels.items() if key != SHARED_LABEL} == marks
    setter = {SETTER_ANNOTATION: "other" if by_another_program else "kata-node"} if marks else {}
    assert stage_runner.annotations == setter
    assert stage_runner.proxy.count("PATCH", 409) > 0  # there were conflicts
