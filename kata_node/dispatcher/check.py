"""The command ``check``, for `helm test`: does every selected node serve Kata? It only reads.

Its nodes are those that an install selects. The option ``--nodes`` describes them as JSON::

    {"mark": "kata-deploy.katacontainers.io/default",   the installation label
     "namespace": "kata-system", "stateConfigMap": "kata-deploy-state.kata",
     "selection": {...}, "tolerations": [...]}          as in the configuration and in a pod
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import msgspec
from msgspec import Struct

from kata_node.dispatcher.api import ApiClient
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.desired_state import ABSENT, StateObject, read_state
from kata_node.dispatcher.eligibility import not_labeled
from kata_node.dispatcher.nodes import Nodes, Selection
from kata_node.dispatcher.template import Template, Templates
from kata_node.errors import UsageError

MAX_ROWS = 50
"""Rows of the table. With more nodes, it leaves out those that serve."""

State = Literal["not served", "unfit", "not ready", "skipped", "unproven", "served"]

WORST_FIRST: tuple[State, ...] = ("not served", "unfit", "not ready", "skipped", "unproven", "served")


class _Selection(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    nodes: tuple[str, ...] = ()
    label_selector: str = ""
    node_selector_terms: tuple[dict[str, Any], ...] = ()


class _Nodes(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    mark: str
    namespace: str
    state_config_map: str
    selection: _Selection
    tolerations: list[dict[str, Any]] = []


class CheckedNode(Struct, frozen=True):
    """A row of the table."""

    name: str
    state: State
    detail: str


class CheckResult(Struct, frozen=True):
    """The result of a check. ``problem`` is a sentence without a full stop; empty if it has passed."""

    nodes: tuple[CheckedNode, ...]
    problem: str = ""


def parse(text: str) -> Config:
    """Return the configuration for the nodes in ``text``. Raises :class:`UsageError`."""
    try:
        given = msgspec.json.decode(text, type=_Nodes)
    except msgspec.DecodeError as error:
        raise UsageError(
            str(error), where="--nodes", hint="run `helm test`; the Helm chart renders this option"
        ) from None
    tolerations = [{"operator": "Exists"}] if given.selection.nodes else given.tolerations
    pod = {"spec": {"tolerations": tolerations}}
    return Config(
        action="install",
        namespace=given.namespace,
        name_prefix="check",
        labels={},
        templates=Templates(Template({"spec": {"template": pod}})),
        state_config_map=given.state_config_map,
        nodes=given.selection.nodes,
        selector=given.selection.label_selector,
        terms=given.selection.node_selector_terms,
        installation_label=given.mark,
        skip_serving=True,
    )


def check(config: Config, api: ApiClient) -> CheckResult:
    """Return whether every selected node serves. Raises :class:`KubeError` if the cluster cannot be read."""
    state = read_state(api, config)
    nodes = rows(Nodes(api, config).selection())
    return CheckResult(nodes, _problem(config.state_config_map, state, nodes))


def _problem(name: str, state: StateObject | None, nodes: tuple[CheckedNode, ...]) -> str:
    if state is None:
        return f"the ConfigMap {name} does not exist; run `helm upgrade` to make it again"
    if state.data.get("desiredState") == ABSENT:
        return f"the ConfigMap {name} says that Kata is not wanted on the nodes"
    counts = Counter(each.state for each in nodes)
    if failed := counts["not served"]:
        return f"{failed} of {len(nodes)} nodes do not serve Kata"
    if not counts["served"] + counts["unproven"]:
        return "no node serves Kata"
    return ""


def rows(found: Selection) -> tuple[CheckedNode, ...]:
    """Return a row per node, the worst first."""
    checked = [CheckedNode(each.name, "served", "") for each in found.serving]
    candidates: list[tuple[str, State, str]] = [(each.name, "not served", "") for each in found.eligible]
    candidates += [(each.name, "not ready", f"it has the taint {taint}") for each, taint in found.unready]
    candidates += [
        (each.name, "skipped", f"its taint {taint} is not tolerated") for each, taint in found.tainted
    ]
    for name, state, detail in candidates:
        serving = found.not_proven[name]
        if serving.state == "not served" and state != "not served" and not serving.has_drifted:
            checked.append(CheckedNode(name, state, detail))
        else:
            checked.append(CheckedNode(name, serving.state, serving.reason))
    checked += [CheckedNode(each.name, "skipped", not_labeled().note) for each in found.unlabeled]
    checked += [CheckedNode(name, "not served", "no Node has this name") for name in found.missing]
    return tuple(sorted(checked, key=lambda each: (WORST_FIRST.index(each.state), each.name)))


def text(result: CheckResult) -> str:
    """Return the table, and a line with the result."""
    shown = [each for each in result.nodes if len(result.nodes) <= MAX_ROWS or each.state != "served"]
    table = [
        ("NODE", "STATE", "DETAIL"),
        *((each.name, each.state, each.detail) for each in shown[:MAX_ROWS]),
    ]
    widths = [max(len(row[column]) for row in table) for column in range(2)]
    lines = [f"{name:<{widths[0]}}  {state:<{widths[1]}}  {detail}".rstrip() for name, state, detail in table]
    if len(shown) > MAX_ROWS:
        lines.append(f"… and {len(shown) - MAX_ROWS} more nodes")
    counts = Counter(each.state for each in result.nodes)
    totals = ", ".join(f"{counts[state]} {state}" for state in reversed(WORST_FIRST) if counts[state])
    nodes = "1 node" if len(result.nodes) == 1 else f"{len(result.nodes)} nodes"
    verdict = f"check failed ({result.problem})" if result.problem else "check ok"
    return "\n".join([*lines, f"{verdict}: {nodes}{f': {totals}' if totals else ''}"])


def document(result: CheckResult) -> dict[str, Any]:
    """Return the JSON document."""
    nodes = [{"node": each.name, "state": each.state, "detail": each.detail} for each in result.nodes]
    return {"outcome": "failed" if result.problem else "ok", "reason": result.problem, "nodes": nodes}
