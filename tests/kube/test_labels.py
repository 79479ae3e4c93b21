from collections.abc import Mapping
from typing import get_args

import pytest

from kata_node.cluster import labels
from kata_node.cluster.labels import Goal

SHARED_LABEL = "katacontainers.io/kata-runtime"
DEFAULT = "kata-deploy.katacontainers.io/default"
BLUE = "kata-deploy.katacontainers.io/blue"
FOREIGN = {"kubernetes.io/hostname": "n1", "katacontainers.io/other": "x"}


def after(node: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    merged = {**node, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def reach(node: Mapping[str, str], goal: Goal, instance: str = "default") -> dict[str, str]:
    return after(node, labels.CHANGES[goal](node, instance))


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
    assert labels.claimed(node | FOREIGN, "blue") == changes


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
    assert labels.served(node | FOREIGN, "blue") == changes


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
        pytest.param({SHARED_LABEL: "true"}, {SHARED_LABEL: "false"}, id="shared label without any mark"),
        pytest.param({SHARED_LABEL: "true", DEFAULT: "true"}, {}, id="never was here"),
        pytest.param({}, {}, id="already gone"),
    ],
)
def test_withdrawn_labels_are_false_and_keep_their_keys(
    node: dict[str, str], changes: dict[str, str]
) -> None:
    assert labels.withdrawn(node | FOREIGN, "blue") == changes


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
        pytest.param({SHARED_LABEL: "true"}, {SHARED_LABEL: None}, id="shared label without any mark"),
        pytest.param({SHARED_LABEL: "true", DEFAULT: "true"}, {}, id="never was here"),
        pytest.param({}, {}, id="already gone"),
    ],
)
def test_the_shared_label_is_removed_with_the_last_installation(
    node: dict[str, str], changes: dict[str, str | None]
) -> None:
    assert labels.released(node | FOREIGN, "blue") == changes


@pytest.mark.parametrize("goal", get_args(Goal))
@pytest.mark.parametrize("shared", [None, "true", "false"])
@pytest.mark.parametrize("own", [None, "true", "false"])
@pytest.mark.parametrize("other", [None, "true", "false"])
def test_a_change_that_was_made_is_not_made_again(
    goal: Goal, shared: str | None, own: str | None, other: str | None
) -> None:
    node = after(FOREIGN, {SHARED_LABEL: shared, DEFAULT: own, BLUE: other})
    changed = reach(node, goal)
    assert labels.CHANGES[goal](changed, "default") == {}
    assert changed.get(BLUE) == other
    assert FOREIGN.items() <= changed.items()


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
