"""Find the selected Nodes, and which of them are eligible for a Job."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass

from kata_node.dispatcher.api import ApiClient, ExpiredError
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.kubernetes_objects import Node, NodePage, Taint, Toleration
from kata_node.dispatcher.template import Target, Templates
from kata_node.errors import KubeError

SINGLE_GET_LIMIT = 20
"""Up to this many named nodes are read one by one; for more names, all Nodes are listed."""

POLL_INTERVAL = 5.0
"""Seconds between two reads of the Nodes while the dispatcher waits for them."""

STABLE_PERIOD = 15.0
"""Seconds for which the set of eligible nodes must not change. Labels arrive node by node."""

UNREACHABLE = "node.kubernetes.io/unreachable"
"""The taint of a Node with a dead kubelet. No Pod starts or ends there, even if it tolerates the taint."""

CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
"""The label of control-plane nodes. By default the chart does not select them."""

SERVING = "true"
BLOCKING_EFFECTS = ("NoSchedule", "NoExecute")

CONDITION_TAINTS = frozenset(
    {
        *(f"node.kubernetes.io/{each}" for each in ("not-ready", "unreachable", "network-unavailable")),
        *(f"node.kubernetes.io/{each}-pressure" for each in ("disk", "memory", "pid")),
        "node.cloudprovider.kubernetes.io/uninitialized",
    }
)
"""Temporary taints that controllers set and remove by the condition of the Node. An administrator or another
program has set all other taints on purpose."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """The selected nodes, sorted into groups. Each group is ordered by node name."""

    eligible: tuple[Target, ...] = ()
    tainted: tuple[tuple[Target, str], ...] = ()
    """Selected nodes, each with a taint that the Job does not tolerate."""
    unready: tuple[tuple[Target, str], ...] = ()
    """Selected nodes, each with the taint of :data:`CONDITION_TAINTS` that alone blocks them for now."""
    without_template: tuple[tuple[Target, str], ...] = ()
    """Selected nodes without a template for their runtime, each with ``containerRuntimeVersion``."""
    serving: tuple[Target, ...] = ()
    """Selected nodes that are skipped because their installation label is ``true``."""
    missing: tuple[str, ...] = ()
    """Configured names without a Node."""

    @property
    def selected(self) -> frozenset[str]:
        """The names of all selected nodes, eligible or not."""
        return frozenset(
            each.name
            for each in (
                *(*self.eligible, *self.serving),
                *(node for node, _ in (*self.tainted, *self.unready, *self.without_template)),
            )
        )


def blocking_taint(taints: Iterable[Taint], tolerations: Collection[Toleration]) -> Taint | None:
    """Return the taint that blocks a Pod with these tolerations; ``None`` when no taint does.

    :data:`UNREACHABLE` always blocks. A permanent taint comes before those of :data:`CONDITION_TAINTS`.
    """
    found = [
        taint
        for taint in taints
        if taint.effect in BLOCKING_EFFECTS
        and (taint.key == UNREACHABLE or not any(each.tolerates(taint) for each in tolerations))
    ]
    return min(found, key=lambda taint: taint.key in CONDITION_TAINTS, default=None)


def select(
    nodes: Iterable[Node],
    templates: Templates,
    *,
    named: Collection[str] = (),
    serving_label: str = "",
) -> Selection:
    """Sort ``nodes`` into the groups of a :class:`Selection`.

    If ``named`` is not empty, ignore other nodes. With a ``serving_label``, nodes with its value ``true`` go
    to ``serving``.
    """
    eligible: list[Target] = []
    serving: list[Target] = []
    tainted: list[tuple[Target, str]] = []
    unready: list[tuple[Target, str]] = []
    without_template: list[tuple[Target, str]] = []
    names = frozenset(named)
    missing = set(names)
    for node in nodes:
        name = node.metadata.name
        if names and name not in names:
            continue
        missing.discard(name)
        info = node.status.node_info
        target = Target(name, node.metadata.uid, info.machine_id, info.runtime)
        if serving_label and node.metadata.labels.get(serving_label) == SERVING:
            serving.append(target)
        elif not (template := templates.find(target)):
            without_template.append((target, info.container_runtime_version))
        elif taint := blocking_taint(node.spec.taints, template.tolerations):
            (unready if taint.key in CONDITION_TAINTS else tainted).append((target, str(taint)))
        else:
            eligible.append(target)
    return Selection(
        eligible=tuple(sorted(eligible, key=lambda target: target.name)),
        tainted=_by_name(tainted),
        unready=_by_name(unready),
        without_template=_by_name(without_template),
        serving=tuple(sorted(serving, key=lambda target: target.name)),
        missing=tuple(sorted(missing)),
    )


def _by_name(found: Iterable[tuple[Target, str]]) -> tuple[tuple[Target, str], ...]:
    return tuple(sorted(found, key=lambda each: each[0].name))


class Nodes:
    """Reads the Nodes of the cluster. Nothing is cached."""

    def __init__(self, api: ApiClient, config: Config) -> None:
        self._api = api
        self._config = config

    def selection(self) -> Selection:
        """Return the configured selection; with ``waitForNodesSeconds``, wait until it is stable.

        Raises :class:`KubeError` when no node is eligible after that wait.
        """
        if not self._config.wait_for_nodes:
            return self._select()
        found = wait_until_stable(self._select, self._config.wait_for_nodes, self._api)
        if not (found.eligible or found.serving):
            raise self._no_node_error(found)
        return found

    def deselected(self, selected: Collection[str], templates: Templates) -> Selection:
        """Return the nodes that have the installation label, with any value, and are not ``selected``."""
        found = self._list(self._config.installation_label)
        return select((node for node in found if node.metadata.name not in selected), templates)

    def reselect(self, name: str, templates: Templates) -> Selection:
        """Read one Node again and return the selection of it; empty when it does not exist."""
        return select(self._list(name=name), templates)

    def exists(self, name: str) -> bool:
        """Return whether the Node exists."""
        return any(True for _ in self._list(name=name))

    def serves(self, name: str) -> bool:
        """Return whether the installation label of the Node is ``true`` now."""
        return any(
            node.metadata.labels.get(self._config.installation_label) == SERVING
            for node in self._list(name=name)
        )

    def selects(self, name: str) -> bool:
        """Return whether the configuration selects the Node now."""
        if self._config.nodes:
            return name in self._config.nodes
        return any(True for _ in self._list(self._config.selector, name))

    def _no_node_error(self, found: Selection) -> KubeError:
        """Return the error for a selection without an eligible node."""
        config, selected = self._config, len(found.selected)
        first = next(self._api.pages("/api/v1/nodes", "list nodes", NodePage, {}))
        nodes, more = first.items or [], first.metadata.remaining_item_count or 0
        wanted = f"the label selector {config.selector or '(all nodes)'}"
        if config.nodes:
            wanted = f"the names {', '.join(config.nodes[:3])}{', …' if len(config.nodes) > 3 else ''}"
        what = (
            f"no node is eligible after {config.wait_for_nodes:g} s: "
            f"{selected} of {len(nodes) + more} Nodes match {wanted}"
        )
        if held := _blocked_nodes(found):
            what += f", but none can get a Job: {', '.join(held[:3])}{', …' if len(held) > 3 else ''}"
        hint = "run `kubectl get nodes --show-labels`, and correct the selection in the values"
        control_plane = nodes and not more and all(CONTROL_PLANE in node.metadata.labels for node in nodes)
        if found.tainted or found.unready:
            hint = (
                "run `kubectl describe node`; remove these taints, or add them to tolerations in the values"
            )
        elif found.without_template:
            hint = "correct k8sDistribution or containerRuntime in the values"
        elif control_plane and f"!{CONTROL_PLANE}" in config.selector:
            hint = "set job.nodeSelectorExpressions to []; all nodes of this cluster are control-plane nodes"
        return KubeError(what, where="selection", hint=hint)

    def _select(self) -> Selection:
        config = self._config
        found = self._list(config.selector)
        if config.nodes and len(config.nodes) <= SINGLE_GET_LIMIT:
            found = itertools.chain.from_iterable(self._list(name=name) for name in config.nodes)
        installation_label = config.installation_label if config.skip_serving else ""
        return select(found, config.templates, named=config.nodes, serving_label=installation_label)

    def _list(self, selector: str = "", name: str = "") -> Iterator[Node]:
        query = {"labelSelector": selector} if selector else {}
        if name:
            query["fieldSelector"] = f"metadata.name={name}"
        seen: set[str] = set()
        while True:
            try:
                for page in self._api.pages("/api/v1/nodes", "list nodes", NodePage, query):
                    for node in page.items or ():
                        if node.metadata.name not in seen:
                            seen.add(node.metadata.name)
                            yield node
                return
            except ExpiredError:
                continue  # list again from the start; nodes that were yielded are not yielded again


def wait_until_stable(look: Callable[[], Selection], wait: float, api: ApiClient) -> Selection:
    """Call ``look`` until its eligible nodes have not changed for :data:`STABLE_PERIOD` seconds.

    Return the last selection. After ``wait`` seconds, return it even if no node is eligible or the set still
    changes.
    """
    began = since = api.clock.now()
    last: frozenset[str] | None = None
    changed = False
    while True:
        selection = look()
        now = api.clock.now()
        names = frozenset(target.name for target in (*selection.eligible, *selection.serving))
        if names != last:
            log.info("eligible nodes: %d; waiting until the set does not change", len(names))
            changed = last is not None
            since, last = now, names
        left = began + wait - now
        stayed = bool(names) and not selection.missing and now - since >= STABLE_PERIOD
        if stayed or left <= 0:
            break
        api.sleep(min(POLL_INTERVAL, left))
    if names and changed and now - since < min(STABLE_PERIOD, wait):
        log.warning(
            "the set of eligible nodes still changes after %g s, the last change was %.0f s ago; "
            "continuing with %d nodes",
            *(wait, now - since, len(names)),
        )
    elif names:
        log.info("eligible nodes: %d, unchanged for %.0f s; continuing", len(names), now - since)
    return selection


def _blocked_nodes(found: Selection) -> list[str]:
    """Return a phrase per selected node that says why it can get no Job."""
    held = [f"{target.name} has the taint {taint}" for target, taint in (*found.tainted, *found.unready)]
    return held + [
        f"{target.name} has {f'the runtime {runtime}' if runtime else 'not named its runtime'}"
        for target, runtime in found.without_template
    ]
