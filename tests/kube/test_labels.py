import random
from collections.abc import Mapping
from typing import Any, get_args

import pytest

from kata_node.cluster import labels
from kata_node.cluster.labels import SETTER_ANNOTATION, Goal, NodeState

SHARED_LABEL = "katacontainers.io/kata-runtime"
DEFAULT = "kata-deploy.katacontainers.io/default"
BLUE = "kata-deploy.katacontainers.io/blue"
FOREIGN = {"kubernetes.io/hostname": "n1", "katacontainers.io/other": "x"}


def after(node: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    merged = {**node, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def changed(
    node: Mapping[str, str], goal: Goal, instance: str = "blue", **known: Any
) -> dict[str, str | None]:
    return dict(labels.changes(goal, NodeState(node, **known), instance).labels)


def reach(node: Mapping[str, str], goal: Goal, instance: str = "default") -> dict[str, str]:
    return after(node, changed(node, goal, instance))


def reach_state(node: NodeState, goal: Goal, instance: str, **known: bool) -> NodeState:
    """Return the Node after all changes, which must be complete at once."""
    changes = labels.changes(goal, NodeState(node.labels, node.annotations, **known), instance)
    labels_after = after(node.labels, changes.labels)
    reached = NodeState(labels_after, after(node.annotations, changes.annotations), **known)
    assert not labels.changes(goal, reached, instance)
    return NodeState(reached.labels, reached.annotations)


@pytest.mark.parametrize(
    ("node", "changes"),
    [
        pytest.param({}, {SHARED_LABEL: "false", BLUE: "false"}, id="bare node"),
        pytest.param({SHARED_LABEL: "false", BLUE: "false"}, {}, id="claimed by a run that failed"),
        pytest.param({SHARED_LABEL: "true", BLUE: "true"}, {}, id="serving, and installed again"),
        pytest.param({SHARED_LABEL: "true", DEFAULT: "true"}, {BLUE: "false"}, id="another instance serves"),
        pytest.param(
            {SHARED_LABEL: "false", DEFAULT: "false"}, {BLUE: "false"}, id="another instance is coming"
        ),
        pytest.param({SHARED_LABEL: "true"}, {BLUE: "false"}, id="labelled by an older installer"),
        pytest.param(
            {SHARED_LABEL: "yes", BLUE: ""},
            {SHARED_LABEL: "false", BLUE: "false"},
            id="values that mean nothing",
        ),
    ],
)
def test_a_claim_sets_missing_labels_to_false_and_withdraws_nothing(
    node: dict[str, str], changes: dict[str, str]
) -> None:
    assert changed(node | FOREIGN, "claimed") == changes


@pytest.mark.parametrize(
    ("node", "goal", "changes"),
    [
        pytest.param(
            {SHARED_LABEL: "true", BLUE: "true"},
            "claimed",
            {SHARED_LABEL: "false", BLUE: "false"},
            id="the only installation",
        ),
        pytest.param(
            {SHARED_LABEL: "true", BLUE: "true", DEFAULT: "true"},
            "claimed",
            {BLUE: "false"},
            id="another installation serves",
        ),
        pytest.param(
            {SHARED_LABEL: "true", DEFAULT: "true"}, "claimed", {BLUE: "false"}, id="a first install"
        ),
        pytest.param({SHARED_LABEL: "true"}, "claimed", {BLUE: "false"}, id="the label of another program"),
        pytest.param({SHARED_LABEL: "false", BLUE: "false"}, "claimed", {}, id="withdrawn before"),
        pytest.param(
            {SHARED_LABEL: "true", BLUE: "true"},
            "unfit",
            {SHARED_LABEL: "false", BLUE: "unfit"},
            id="a machine that cannot run Kata any more",
        ),
    ],
)
def test_a_true_label_is_withdrawn_if_the_node_is_known_not_to_serve(
    node: dict[str, str], goal: Goal, changes: dict[str, str]
) -> None:
    assert changed(node | FOREIGN, goal, is_served=False) == changes


@pytest.mark.parametrize(
    ("node", "annotations"),
    [
        pytest.param({}, {SETTER_ANNOTATION: None}, id="both labels"),
        pytest.param({SHARED_LABEL: "true"}, {}, id="the installation label"),
        pytest.param({DEFAULT: "true"}, {}, id="the shared label, and another installation is there"),
    ],
)
def test_a_revert_removes_a_record_that_says_nothing_after_labels_were_removed_by_hand(
    node: dict[str, str], annotations: dict[str, None]
) -> None:
    before = NodeState(node, {SETTER_ANNOTATION: "kata-node"})
    changes = labels.changes("released", before, "blue")
    assert (changes.labels, changes.annotations) == ({}, annotations)


def test_the_shared_label_of_another_program_is_not_withdrawn_with_ours() -> None:
    node = NodeState({SHARED_LABEL: "true", BLUE: "true"}, {SETTER_ANNOTATION: "other"}, is_served=False)
    assert labels.changes("claimed", node, "blue").labels == {BLUE: "false"}


@pytest.mark.parametrize(
    ("node", "changes"),
    [
        pytest.param({}, {SHARED_LABEL: "true", BLUE: "true"}, id="bare node"),
        pytest.param({SHARED_LABEL: "true", DEFAULT: "true"}, {BLUE: "true"}, id="another instance serves"),
        pytest.param({BLUE: "true"}, {SHARED_LABEL: "true"}, id="shared label lost"),
        pytest.param(
            {SHARED_LABEL: "false", BLUE: "false"},
            {SHARED_LABEL: "true", BLUE: "true"},
            id="claimed, not yet serving",
        ),
        pytest.param({SHARED_LABEL: "true", BLUE: "true"}, {}, id="already there"),
    ],
)
def test_an_installation_that_serves_sets_only_its_missing_labels(
    node: dict[str, str], changes: dict[str, str]
) -> None:
    assert changed(node | FOREIGN, "served") == changes


@pytest.mark.parametrize(
    ("node", "changes"),
    [
        pytest.param(
            {SHARED_LABEL: "true", BLUE: "true"},
            {SHARED_LABEL: "false", BLUE: "false"},
            id="the only instance",
        ),
        pytest.param(
            {SHARED_LABEL: "true", BLUE: "true", DEFAULT: "true"}, {BLUE: "false"}, id="another serves"
        ),
        pytest.param(
            {SHARED_LABEL: "true", BLUE: "true", DEFAULT: "false"},
            {SHARED_LABEL: "false", BLUE: "false"},
            id="another is coming",
        ),
        pytest.param({SHARED_LABEL: "false", BLUE: "false"}, {}, id="half installed"),
        pytest.param({SHARED_LABEL: "true"}, {}, id="labelled by another program"),
        pytest.param({SHARED_LABEL: "true", DEFAULT: "true"}, {}, id="never was here"),
        pytest.param({}, {}, id="already gone"),
    ],
)
def test_withdrawn_labels_are_false_and_keep_their_keys(
    node: dict[str, str], changes: dict[str, str]
) -> None:
    assert changed(node | FOREIGN, "withdrawn") == changes


@pytest.mark.parametrize(
    ("node", "changes"),
    [
        pytest.param(
            {SHARED_LABEL: "true", BLUE: "true"}, {SHARED_LABEL: None, BLUE: None}, id="the only instance"
        ),
        pytest.param(
            {SHARED_LABEL: "true", BLUE: "true", DEFAULT: "true"}, {BLUE: None}, id="another serves"
        ),
        pytest.param(
            {SHARED_LABEL: "true", BLUE: "true", DEFAULT: "false"},
            {SHARED_LABEL: "false", BLUE: None},
            id="another is coming",
        ),
        pytest.param(
            {SHARED_LABEL: "false", BLUE: "false"}, {SHARED_LABEL: None, BLUE: None}, id="half installed"
        ),
        pytest.param({SHARED_LABEL: "true"}, {}, id="labelled by another program"),
        pytest.param({SHARED_LABEL: "true", DEFAULT: "true"}, {}, id="never was here"),
        pytest.param({}, {}, id="already gone"),
    ],
)
def test_the_shared_label_is_removed_with_the_last_installation(
    node: dict[str, str], changes: dict[str, str | None]
) -> None:
    assert changed(node | FOREIGN, "released") == changes


@pytest.mark.parametrize("goal", get_args(Goal))
@pytest.mark.parametrize("shared", [None, "true", "false"])
@pytest.mark.parametrize("own", [None, "true", "false"])
@pytest.mark.parametrize("other", [None, "true", "false"])
def test_a_change_that_was_made_is_not_made_again(
    goal: Goal, shared: str | None, own: str | None, other: str | None
) -> None:
    node = after(FOREIGN, {SHARED_LABEL: shared, DEFAULT: own, BLUE: other})
    reached = reach_state(NodeState(node), goal, "default")
    assert reached.labels.get(BLUE) == other
    assert FOREIGN.items() <= reached.labels.items()


def test_reverting_one_installation_keeps_the_labels_of_another() -> None:
    node = dict(FOREIGN)
    for instance in ("default", "blue"):
        node = reach(reach(node, "claimed", instance), "served", instance)
    node = reach(node, "withdrawn")
    assert node == {**FOREIGN, SHARED_LABEL: "true", DEFAULT: "false", BLUE: "true"}
    node = reach(node, "released")
    assert node == {**FOREIGN, SHARED_LABEL: "true", BLUE: "true"}
    node = reach(reach(node, "withdrawn", "blue"), "released", "blue")
    assert node == FOREIGN


# --- who set the shared label -----------------------------------------------------------------------

BY_US, BY_OTHERS = {SETTER_ANNOTATION: "kata-node"}, {SETTER_ANNOTATION: "other"}


@pytest.mark.parametrize("goal", ["claimed", "served", "unfit"])
@pytest.mark.parametrize(
    ("shared", "recorded"),
    [
        pytest.param(None, BY_US, id="missing"),
        pytest.param("false", BY_US, id="left by an installation that lost its label"),
        pytest.param("true", BY_OTHERS, id="of another program"),
    ],
)
def test_the_first_installation_records_who_set_the_shared_label(
    goal: Goal, shared: str | None, recorded: Mapping[str, str]
) -> None:
    node = reach_state(NodeState(after({}, {SHARED_LABEL: shared})), goal, "blue")
    assert node.annotations == recorded
    later = reach_state(reach_state(node, "served", "default"), "claimed", "default")
    assert later.annotations == (BY_US if node.labels[SHARED_LABEL] != "true" else recorded)


def test_a_shared_label_that_another_program_set_stays_through_our_whole_life() -> None:
    node = NodeState({SHARED_LABEL: "true"})
    for goal in ("claimed", "served", "withdrawn", "released"):
        node = reach_state(node, goal, "blue")
        assert node.labels[SHARED_LABEL] == "true"
    assert node == NodeState({SHARED_LABEL: "true"})


def test_a_node_that_cannot_run_kata_keeps_the_shared_label_of_another_program() -> None:
    node = reach_state(NodeState({SHARED_LABEL: "true"}), "unfit", "blue")
    assert node.labels == {SHARED_LABEL: "true", BLUE: "unfit"}
    for goal in ("withdrawn", "released"):
        node = reach_state(node, goal, "blue")
    assert node == NodeState({SHARED_LABEL: "true"})


def test_a_shared_label_that_we_put_back_is_ours() -> None:
    node = reach_state(NodeState({SHARED_LABEL: "true"}), "served", "blue")
    left = after(node.labels, {SHARED_LABEL: None})  # the other program was uninstalled
    node = reach_state(NodeState(left, node.annotations), "served", "blue")
    assert (node.labels, node.annotations) == ({SHARED_LABEL: "true", BLUE: "true"}, BY_US)
    for goal in ("withdrawn", "released"):
        node = reach_state(node, goal, "blue")
    assert node == NodeState({})


@pytest.mark.parametrize("own", ["true", "false", "unfit"])
def test_an_installation_of_an_earlier_version_has_no_record_and_is_removed_whole(own: str) -> None:
    node = NodeState({SHARED_LABEL: "true" if own == "true" else "false", BLUE: own})
    assert not labels.changes("claimed", node, "blue").annotations
    for goal in ("withdrawn", "released"):
        node = reach_state(node, goal, "blue")
    assert node == NodeState({})


@pytest.mark.parametrize("annotations", [{}, BY_US], ids=["earlier version", "recorded"])
def test_the_shared_label_stays_true_where_the_runtime_has_handlers_of_another_program(
    annotations: Mapping[str, str],
) -> None:
    node = NodeState({SHARED_LABEL: "true", BLUE: "true"}, annotations)
    node = reach_state(node, "withdrawn", "blue")
    node = reach_state(node, "released", "blue", serves_others=True)
    assert node == NodeState({SHARED_LABEL: "true"})


def test_an_installation_that_lost_its_label_is_found_by_its_receipt() -> None:
    node = NodeState({SHARED_LABEL: "true"}, BY_US)
    assert not labels.changes("withdrawn", node, "blue")
    node = reach_state(node, "withdrawn", "blue", has_record=True)
    assert node.labels == {SHARED_LABEL: "false"}
    assert reach_state(node, "released", "blue", has_record=True) == NodeState({})


@pytest.mark.parametrize("seed", range(200))
def test_in_every_order_the_shared_label_of_another_program_stays_and_ours_goes(seed: int) -> None:
    """Three installations and another program come and go. The other one only knows the shared label."""
    chance, node = random.Random(seed), NodeState({})
    other = False
    installed: set[str] = set()
    for _ in range(40):
        what = chance.choice(("default", "blue", "green", "other"))
        if what == "other":
            other = not other
            shared = "true" if other else None
            node = NodeState(after(node.labels, {SHARED_LABEL: shared}), node.annotations)
        elif what in installed and chance.random() < 0.5:
            installed.discard(what)
            node = reach_state(node, "withdrawn", what)
            # revert-cri, which can read the node, has found the other program
            node = reach_state(node, "released", what, serves_others=other)
        else:
            installed.add(what)
            for goal in ("claimed", "served"):
                node = reach_state(node, goal, what)
        own = {key for key in node.labels if key.startswith("kata-deploy.")}
        assert own == {f"kata-deploy.katacontainers.io/{name}" for name in installed}
        if other:
            assert node.labels[SHARED_LABEL] == "true"
        elif not installed:
            assert node == NodeState({})
        assert installed or not node.annotations
