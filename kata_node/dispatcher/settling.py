"""Wait until the selection does not change, and explain a selection without an eligible node."""

from __future__ import annotations

import logging
from collections.abc import Callable

from kata_node.cluster.ownership import suffix_error
from kata_node.dispatcher.api import ApiClient
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.nodes import Nodes, Selection
from kata_node.errors import KubeError

POLL_INTERVAL = 5.0
"""Seconds between two reads of the Nodes while the dispatcher waits for them."""

CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
"""The label of control-plane nodes. By default the chart does not select them."""

log = logging.getLogger(__name__)


def settled_selection(nodes: Nodes, config: Config, api: ApiClient) -> Selection:
    """Return the configured selection; with ``waitForNodesSeconds``, wait until it is stable.

    Nodes that the configuration names are waited for until all exist, and no longer. Raises
    :class:`KubeError` when no node is eligible after the wait. Raises :class:`SettingsError` when the release
    has another installation on nodes, unless a node has this one: then the suffix has not changed, and one
    compromised node must not stop the others.
    """

    def look() -> Selection:
        found = nodes.selection()
        if found.other_installations and not found.is_installed:
            first = found.other_installations[0][1]
            names = [target.name for target, other in found.other_installations if other == first]
            raise suffix_error(first, names, config.installation, config.release)
        return found

    if not config.wait_for_nodes:
        return look()
    found = _wait_until_stable(look, config, api)
    if found.eligible or found.serving or (config.nodes and not found.missing):
        return found
    raise _no_node_error(nodes, config, found)


def _wait_until_stable(look: Callable[[], Selection], config: Config, api: ApiClient) -> Selection:
    """Call ``look`` until its eligible nodes have not changed for ``nodeSettleSeconds``.

    Return the last selection. After ``waitForNodesSeconds``, return it even if no node is eligible, the set
    still changes, or node-feature-discovery has not labeled all nodes.
    """
    wait, settle = config.wait_for_nodes, config.node_settle
    began = since = api.clock.now()
    last: frozenset[str] | None = None
    changed = False
    while True:
        selection = look()
        if config.nodes and _all_named_nodes_are_there(selection):
            return selection
        now = api.clock.now()
        names = frozenset(target.name for target in (*selection.eligible, *selection.serving))
        if names != last:
            log.info("eligible nodes: %d; waiting until the set does not change", len(names))
            changed = last is not None
            since, last = now, names
        left = began + wait - now
        complete = bool(names) and not selection.missing and not selection.unlabeled
        if (complete and now - since >= settle) or left <= 0:
            break
        pause = min(POLL_INTERVAL, left)
        if complete:
            pause = min(pause, since + settle - now)
        api.sleep(pause)
    if names and changed and now - since < min(settle, wait):
        log.warning(
            "the set of eligible nodes still changes after %g s, the last change was %.0f s ago; "
            "continuing with %d nodes",
            *(wait, now - since, len(names)),
        )
    elif names:
        log.info("eligible nodes: %d, unchanged for %.0f s; continuing", len(names), now - since)
    return selection


def _all_named_nodes_are_there(found: Selection) -> bool:
    """Return whether every named node exists and names its runtime; then no later read can add a node."""
    return not found.missing and all(runtime for _, runtime in found.without_template)


def _no_node_error(nodes: Nodes, config: Config, found: Selection) -> KubeError:
    """Return the error for a selection without an eligible node."""
    matching = len(found.selected) - len(found.unlabeled)
    page, total = nodes.first_page()
    wanted = f"the label selector {config.selector or '(all nodes)'}"
    if config.terms:
        wanted += " and the node affinity"
    if config.nodes:
        wanted = f"the names {_first_three(list(config.nodes))}"
    what = (
        f"no node is eligible after {config.wait_for_nodes:g} s: {matching} of {total} Nodes match {wanted}"
    )
    if held := _blocked_nodes(found):
        what += f", but none can get a Job: {_first_three(held)}"
    if found.unlabeled:
        names = [target.name for target in found.unlabeled]
        what += f"; node-feature-discovery has not labeled {_first_three(names)}"
    hint = "run `kubectl get nodes --show-labels`, and correct the selection in the values"
    only_control_plane = (
        page and len(page) == total and all(CONTROL_PLANE in each.metadata.labels for each in page)
    )
    if found.tainted or found.unready:
        hint = "run `kubectl describe node`; remove these taints, or add them to tolerations in the values"
    elif found.without_template:
        hint = "correct k8sDistribution or containerRuntime in the values"
    elif found.unlabeled:
        hint = (
            "check that the pods of node-feature-discovery run, and run the helm command again; "
            "job.waitForNodesSeconds is the time to wait for its labels"
        )
    elif only_control_plane and f"!{CONTROL_PLANE}" in config.selector:
        hint = "set job.nodeSelectorExpressions to []; all nodes of this cluster are control-plane nodes"
    return KubeError(what, where="selection", hint=hint)


def _first_three(texts: list[str]) -> str:
    return f"{', '.join(texts[:3])}{', …' if len(texts) > 3 else ''}"


def _blocked_nodes(found: Selection) -> list[str]:
    """Return a phrase per selected node that says why it can get no Job."""
    held = [f"{target.name} has the taint {taint}" for target, taint in (*found.tainted, *found.unready)]
    return held + [
        f"{target.name} has {f'the runtime {runtime}' if runtime else 'not named its runtime'}"
        for target, runtime in found.without_template
    ]
