"""`helm test`: the table of all nodes, and whether it fails."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dispatcher.fake_api_server import FakeApiServer
from dispatcher.harness import INSTALLATION_LABEL, SERVING, serve
from kata_node.dispatcher import check
from kata_node.errors import UsageError

STATE = "kata-deploy-state.kata"
NODES: dict[str, Any] = {
    "mark": INSTALLATION_LABEL,
    "namespace": "kata",
    "stateConfigMap": STATE,
    "selection": {"labelSelector": "!control-plane"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
}


def checked(api: FakeApiServer, *, state: dict[str, str] | None = None, **change: Any) -> check.CheckResult:
    api.config_maps[STATE] = {"metadata": {"name": STATE}, "data": state or {"desiredState": "present"}}
    with api.client() as connection:
        return check.check(check.parse(json.dumps({**NODES, **change})), connection)


def states(result: check.CheckResult) -> dict[str, str]:
    return {each.name: each.state for each in result.nodes}


def test_it_passes_if_every_selected_node_serves(api: FakeApiServer) -> None:
    api.node("a")
    api.node("b", taints=("gpu:NoSchedule",))
    api.node("cp", labels={"control-plane": ""})
    serve(api, "a")
    serve(api, "b", reports=None)
    result = checked(api)
    assert states(result) == {"b": "unproven", "a": "served"}
    assert result.problem == ""
    assert check.text(result).splitlines()[-1] == "check ok: 2 nodes: 1 served, 1 unproven"


def test_it_fails_with_the_table_if_a_node_does_not_serve(api: FakeApiServer) -> None:
    for name in ("served", "lost", "rebuilt", "claimed", "unfit", "tainted", "down", "down-and-lost"):
        api.node(name)
    for name in ("served", "lost", "rebuilt", "down-and-lost"):
        serve(api, name)
    serve(api, "lost", reports=())
    serve(api, "rebuilt", machine_id="another")
    serve(api, "down-and-lost", machine_id="another")
    api.nodes["claimed"]["metadata"]["labels"] = {INSTALLATION_LABEL: "false"}
    api.nodes["unfit"]["metadata"]["labels"] = {INSTALLATION_LABEL: "unfit"}
    api.nodes["tainted"]["spec"]["taints"] = [{"key": "x", "effect": "NoSchedule"}]
    for name in ("down", "down-and-lost"):
        taint = {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}
        api.nodes[name]["spec"]["taints"] = [taint]
    result = checked(api)
    assert states(result) == {
        "claimed": "not served",
        "down-and-lost": "not served",
        "lost": "not served",
        "rebuilt": "not served",
        "unfit": "unfit",
        "down": "not ready",
        "tainted": "skipped",
        "served": "served",
    }
    lines = check.text(result).splitlines()
    assert lines[0].split() == ["NODE", "STATE", "DETAIL"]
    assert "lost           not served  its Node does not report kata-clh, kata-qemu" in lines
    assert lines[-1].startswith("check failed (4 of 8 nodes do not serve Kata): 8 nodes: 1 served")
    assert check.document(result)["outcome"] == "failed"


@pytest.mark.parametrize(
    ("state", "problem"),
    [
        pytest.param({"desiredState": "absent"}, "Kata is not wanted", id="absent"),
        pytest.param({"desiredState": "present"}, "no node serves Kata", id="no node"),
    ],
)
def test_it_fails_without_a_node_that_serves_and_when_kata_is_not_wanted(
    api: FakeApiServer, state: dict[str, str], problem: str
) -> None:
    api.node("unfit", labels={INSTALLATION_LABEL: "unfit"})
    assert problem in checked(api, state=state).problem


def test_named_nodes_are_checked_whatever_their_taints_are(api: FakeApiServer) -> None:
    api.node("a", taints=("x:NoSchedule",), labels=SERVING)
    result = checked(api, selection={"nodes": ["a", "typo"]})
    assert states(result) == {"typo": "not served", "a": "unproven"}


def test_a_large_table_leaves_out_nodes_that_serve(api: FakeApiServer) -> None:
    for number in range(120):
        api.node(f"n{number:03}")
        if number >= 60:
            serve(api, f"n{number:03}")
    shown = check.text(checked(api))
    assert "n000" in shown
    assert "n119" not in shown
    assert "… and 10 more nodes" in shown


def test_nodes_that_the_chart_did_not_render_are_refused() -> None:
    with pytest.raises(UsageError, match="nodez"):
        check.parse(json.dumps({**NODES, "nodez": []}))
