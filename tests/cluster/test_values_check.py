"""``kata-node values check`` finds what helm refuses, and accepts what helm renders."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import test_chart_options, test_chart_selection
from cluster.chart_objects import Document, documents, merge
from cluster.control_plane import Cluster
from cluster.test_chart import BASES
from kata_node.values.check import check
from node.commands import CommandFailed

MODES = ("job", "daemonset")


def cases(test: Any) -> list[Any]:
    """Return the parameters of a test as pairs of values and a part of helm's message."""
    [found] = [mark.args[1] for mark in test.pytestmark if mark.args[0] == ("values", "says")]
    return [pytest.param(*each.values[:1], id=each.id) for each in found]


def errors(values: Document) -> list[str]:
    return [each.what for each in check(values).findings if each.level == "error"]


def helm_refuses(cluster: Cluster, values: Document) -> bool:
    try:
        documents(cluster, values)
    except CommandFailed:
        return True
    return False


@pytest.mark.parametrize(
    "values", cases(test_chart_options.test_values_that_cannot_work_are_refused_with_the_key_and_the_remedy)
)
def test_what_helm_refuses_is_an_error(values: Document) -> None:
    """That helm refuses these is a test of the chart."""
    assert errors(values)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "values", cases(test_chart_selection.test_a_selection_that_can_match_no_node_is_refused_in_both_modes)
)
def test_a_selection_that_helm_refuses_is_an_error(values: Document, mode: str) -> None:
    assert errors({"deploymentMode": mode, **values})


@pytest.mark.parametrize("path", test_chart_options.FLIPS)
def test_an_option_that_helm_accepts_is_no_error(path: str) -> None:
    base, value = test_chart_options.FLIPS[path]
    values = merge(base, test_chart_options.at(path, value))
    assert [each for each in errors(values) if "no enabled shim runs" not in each] == []


@pytest.mark.parametrize("values", BASES.values(), ids=BASES.keys())
def test_values_that_helm_renders_have_no_error(cluster: Cluster, values: Document) -> None:
    assert not helm_refuses(cluster, values)
    assert errors(values) == []
