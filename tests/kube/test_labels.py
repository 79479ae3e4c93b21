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
def test_a_claim_marks_the_node_and_withdraws_nothing(node: dict[str, str], changes: dict[str, str]) -> None:
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
def test_an_instance_that_serves_asks_for_the_labels_it_lacks_and_no_more(
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
def test_what_is_about_to_go_is_withdrawn_and_can_still_be_found(
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
def test_the_shared_label_goes_with_the_last_instance(
    node: dict[str, str], changes: dict[str, str | None]
) -> None:
    assert labels.released(node | FOREIGN, "blue") == changes


@pytest.mark.parametrize("goal", get_args(Goal))
@pytest.mark.parametrize("shared", [None, "true", "false"])
@pytest.mark.parametrize("own", [None, "true", "false"])
@pytest.mark.parametrize("other", [None, "true", "false"])
def test_once_changed_there_is_nothing_left_to_change(
    goal: Goal, shared: str | None, own: str | None, other: str | None
) -> None:
    node = after(FOREIGN, {SHARED_LABEL: shared, DEFAULT: own, BLUE: other})
    changed = reach(node, goal)
    assert labels.CHANGES[goal](changed, "default") == {}
    assert changed.get(BLUE) == other
    assert FOREIGN.items() <= changed.items()


def test_of_two_instances_the_first_to_leave_takes_nothing_from_the_other() -> None:
    node = dict(FOREIGN)
    for instance in ("default", "blue"):
        node = reach(reach(node, "claimed", instance), "served", instance)
    node = reach(node, "withdrawn")
    assert node == {**FOREIGN, SHARED_LABEL: "true", DEFAULT: "false", BLUE: "true"}
    node = reach(node, "released")
    assert node == {**FOREIGN, SHARED_LABEL: "true", BLUE: "true"}
    node = reach(reach(node, "withdrawn", "blue"), "released", "blue")
    assert node == FOREIGN
