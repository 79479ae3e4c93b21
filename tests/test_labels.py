from collections.abc import Callable, Mapping

import pytest

from kata_node import labels

SHARED = "katacontainers.io/kata-runtime"
DEFAULT = "kata-deploy.katacontainers.io/default"
BLUE = "kata-deploy.katacontainers.io/blue"
FOREIGN = {"kubernetes.io/hostname": "n1", "katacontainers.io/other": "x"}


def after(node: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    merged = {**node, **changes}
    return {key: value for key, value in merged.items() if value is not None}


@pytest.mark.parametrize(
    ("node", "changes"),
    [
        pytest.param({}, {SHARED: "true", BLUE: "true"}, id="bare node"),
        pytest.param({SHARED: "true", DEFAULT: "true"}, {BLUE: "true"}, id="another instance serves"),
        pytest.param({BLUE: "true"}, {SHARED: "true"}, id="shared label lost"),
        pytest.param(
            {SHARED: "false", BLUE: "false"}, {SHARED: "true", BLUE: "true"}, id="claimed, not yet serving"
        ),
        pytest.param({SHARED: "true", BLUE: "true"}, {}, id="already there"),
    ],
)
def test_an_instance_asks_for_the_labels_it_lacks_and_no_more(
    node: dict[str, str], changes: dict[str, str]
) -> None:
    assert labels.wanted(node | FOREIGN, "blue") == changes


@pytest.mark.parametrize(
    ("node", "changes"),
    [
        pytest.param({SHARED: "true", BLUE: "true"}, {SHARED: None, BLUE: None}, id="the only instance"),
        pytest.param({SHARED: "true", BLUE: "true", DEFAULT: "true"}, {BLUE: None}, id="another serves"),
        pytest.param({SHARED: "true", BLUE: "true", DEFAULT: "false"}, {BLUE: None}, id="another is coming"),
        pytest.param({SHARED: "false", BLUE: "false"}, {SHARED: None, BLUE: None}, id="half installed"),
        pytest.param({SHARED: "true"}, {SHARED: None}, id="shared label without any mark"),
        pytest.param({SHARED: "true", DEFAULT: "true"}, {}, id="never was here"),
        pytest.param({}, {}, id="already gone"),
    ],
)
def test_the_shared_label_goes_with_the_last_instance(node: dict[str, str], changes: dict[str, None]) -> None:
    assert labels.unwanted(node | FOREIGN, "blue") == changes


@pytest.mark.parametrize("change", [labels.wanted, labels.unwanted])
@pytest.mark.parametrize("shared", [None, "true", "false"])
@pytest.mark.parametrize("own", [None, "true", "false"])
@pytest.mark.parametrize("other", [None, "true", "false"])
def test_once_changed_there_is_nothing_left_to_change(
    change: Callable[[Mapping[str, str], str], dict[str, str | None]],
    shared: str | None,
    own: str | None,
    other: str | None,
) -> None:
    node = after(FOREIGN, {SHARED: shared, DEFAULT: own, BLUE: other})
    changed = after(node, change(node, "default"))
    assert change(changed, "default") == {}
    assert changed.get(BLUE) == other
    assert FOREIGN.items() <= changed.items()


def test_of_two_instances_the_first_to_leave_takes_nothing_from_the_other() -> None:
    node = dict(FOREIGN)
    for instance in ("default", "blue"):
        node = after(node, labels.wanted(node, instance))
    node = after(node, labels.unwanted(node, "default"))
    assert node == {**FOREIGN, SHARED: "true", BLUE: "true"}
    node = after(node, labels.unwanted(node, "blue"))
    assert node == FOREIGN
