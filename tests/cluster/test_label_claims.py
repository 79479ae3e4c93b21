"""Claims and marks on a real API server: what a node is called, from the first byte to the last."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

import pytest
from node.cache import CHECKOUT
from node.commands import Running, told

from cluster.control_plane import Cluster
from cluster.faulty_proxy import FOR_EVER, Fault
from cluster.node_writers import History
from cluster.stage_runner import CLAIMED, MARK, OURS, SHARED, Scene

AT_ONCE = "--label-stable-for=0"
DEFAULT, BLUE, GREEN = (f"{MARK}{instance}" for instance in ("default", "blue", "green"))


def found(scene: Scene, selector: str) -> bool:
    """Whether ``kubectl get nodes -l`` shows the Node."""
    names = scene.cluster.kubectl("get", "nodes", f"--selector={selector}", "--output=name").stdout
    return f"node/{scene.name}" in names.split()


# --- there and back ---------------------------------------------------------------------------------


def test_a_node_can_be_found_from_before_the_first_byte_to_after_the_last(scene: Scene) -> None:
    scene.register({"example.org/own": "stays"})
    assert not found(scene, SHARED)
    scene.run("claim").succeeded()
    assert scene.labels == CLAIMED
    assert found(scene, SHARED)
    assert found(scene, DEFAULT)
    assert not found(scene, f"{SHARED}=true")
    scene.run("label").succeeded()
    assert scene.labels == OURS
    assert found(scene, f"{SHARED}=true")
    scene.run("unlabel").succeeded()
    assert scene.labels == CLAIMED
    assert found(scene, SHARED)
    assert not found(scene, f"{SHARED}=true")
    scene.run("unclaim").succeeded()
    assert not found(scene, SHARED)
    labels = scene.hand.node(scene.name)["metadata"]["labels"]
    assert labels == {"kubernetes.io/hostname": scene.name, "example.org/own": "stays"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({}, CLAIMED, id="fresh"),
        pytest.param({SHARED: "false"}, CLAIMED, id="mark lost"),
        pytest.param({DEFAULT: "false"}, CLAIMED, id="shared label lost"),
        pytest.param({SHARED: "", DEFAULT: ""}, CLAIMED, id="labels of no meaning"),
        pytest.param(
            {SHARED: "true", BLUE: "true"},
            {SHARED: "true", BLUE: "true", DEFAULT: "false"},
            id="another serves",
        ),
        pytest.param(
            {SHARED: "false", BLUE: "false"},
            {SHARED: "false", BLUE: "false", DEFAULT: "false"},
            id="another claims",
        ),
    ],
)
def test_a_claim_says_that_something_may_be_there_and_takes_nothing_back(
    scene: Scene, before: Mapping[str, str], after: Mapping[str, str]
) -> None:
    scene.register(before)
    scene.run("claim").succeeded()
    assert scene.labels == after
    assert scene.road.count("PATCH") == 1


OTHERS = [
    pytest.param({}, None, id="alone"),
    pytest.param({BLUE: "false"}, "false", id="another claims"),
    pytest.param({BLUE: "true"}, "true", id="another serves"),
    pytest.param({BLUE: "false", GREEN: "true"}, "true", id="one claims and one serves"),
    pytest.param({BLUE: "false", GREEN: "false"}, "false", id="two claim"),
]


@pytest.mark.parametrize(("others", "shared"), OTHERS)
def test_the_shared_label_says_after_an_instance_what_the_others_marks_say(
    scene: Scene, others: Mapping[str, str], shared: str | None
) -> None:
    scene.register({**OURS, **others})
    scene.run("unlabel", AT_ONCE).succeeded()
    assert scene.labels == {SHARED: shared or "false", DEFAULT: "false", **others}
    scene.run("unclaim", AT_ONCE).succeeded()
    assert scene.labels == ({SHARED: shared, **others} if shared else {})


def test_a_shared_label_that_no_instance_answers_for_goes_with_the_claim(scene: Scene) -> None:
    scene.register({SHARED: "true"})
    scene.run("unclaim", AT_ONCE).succeeded()
    assert scene.labels == {}


def test_labels_put_back_after_a_removal_are_removed_again(scene: Scene) -> None:
    scene.register(CLAIMED)
    scene.road.meet(Fault(then=lambda: scene.hand.label(scene.name, OURS)), method="PATCH")
    done = scene.run("unclaim").succeeded()
    assert scene.labels == {}
    assert "was undone; changing it again" in done.log


# --- little is asked --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "before"),
    [
        pytest.param("claim", CLAIMED, id="claim what is claimed"),
        pytest.param("claim", OURS, id="claim what serves"),
        pytest.param("label", OURS, id="label what serves"),
        pytest.param("unlabel", CLAIMED, id="unlabel what is claimed"),
        pytest.param("unlabel", {}, id="unlabel a bare node"),
        pytest.param("unclaim", {}, id="unclaim a bare node"),
        pytest.param("unclaim", {SHARED: "true", BLUE: "true"}, id="unclaim a node of others"),
    ],
)
def test_where_there_is_nothing_to_do_one_look_is_all(
    scene: Scene, stage: str, before: Mapping[str, str]
) -> None:
    scene.register(before)
    version = scene.version
    assert scene.run(stage).succeeded().outcome == "skipped"
    assert scene.version == version
    assert (scene.road.count("GET"), scene.road.count("PATCH")) == (1, 0)


@pytest.mark.parametrize(
    ("stage", "before", "looks"),
    [
        # To see what is there, to change exactly that, to see it hold, and to see that nothing is left.
        pytest.param("claim", {}, 3, id="claim"),  # needs not hold
        pytest.param("label", CLAIMED, 5, id="label"),  # waits for the Node first
        pytest.param("unlabel", OURS, 4, id="unlabel"),
        pytest.param("unclaim", CLAIMED, 4, id="unclaim"),
    ],
)
def test_what_there_is_to_do_takes_few_requests(
    scene: Scene, stage: str, before: Mapping[str, str], looks: int
) -> None:
    scene.register(before)
    assert scene.run(stage).succeeded().outcome == "done"
    assert scene.road.count("PATCH") == 1
    assert scene.road.count("POST") == 1  # the Event
    assert scene.road.count("GET") <= looks


# --- several at once --------------------------------------------------------------------------------

# The program's stages over and over, as a process of its own has them but for its start.
AT_RANDOM = """
import random, sys, time
from kata_node.cli.commands import run

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


def test_what_the_labels_say_is_true_at_every_moment_while_several_instances_come_and_go(
    scene: Scene, cluster: Cluster
) -> None:
    scene.register()
    environment = {
        **cluster.environment(),
        "KUBECONFIG": str(scene.kubeconfig),
        "NODE_NAME": scene.name,
        "PYTHONPATH": str(CHECKOUT),
    }
    options = [f"--host-root={scene.host}", "--shims=qemu", "--label-timeout=30", AT_ONCE]
    # What is read is old when it is known: the more changes meet another one.
    scene.road.meet(Fault(delay=0.02), method="GET", times=FOR_EVER)
    with History(cluster, scene.name) as history:
        workers = {
            instance: Running(
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
        there = [value for key, value in state["labels"].items() if key.startswith(MARK)]
        says = None if not there else "true" if "true" in there else "false"
        assert state["labels"].get(SHARED) == says, json.dumps(state, indent=2)
    marks = {}
    for instance, each in done.items():
        assert not each.returncode, told(each)
        mark = each.stdout.splitlines()[-1]
        if mark != "None":
            marks[f"{MARK}{instance}"] = mark
    assert {key: value for key, value in scene.labels.items() if key != SHARED} == marks
    assert scene.road.count("PATCH", 409) > 0  # they did meet
