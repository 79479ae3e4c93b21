"""Which Nodes are meant, and which of them can be worked on now."""

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
"""So many nodes given by name are asked for one by one; of more, all Nodes are listed."""

POLL_INTERVAL = 5.0
"""Seconds between two looks at Nodes that are waited for."""

STABLE_PERIOD = 15.0
"""Seconds for which the set of eligible nodes has to stay the same: labels arrive node by node."""

UNREACHABLE = "node.kubernetes.io/unreachable"
"""The taint of a Node whose kubelet is not heard of: no Pod begins, or ends, there, whatever it tolerates."""

CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
"""The label of the nodes that the chart leaves out unless it is told otherwise."""

SERVING = "true"
BLOCKING_EFFECTS = ("NoSchedule", "NoExecute")

CONDITION_TAINTS = frozenset(
    {
        *(f"node.kubernetes.io/{each}" for each in ("not-ready", "unreachable", "network-unavailable")),
        *(f"node.kubernetes.io/{each}-pressure" for each in ("disk", "memory", "pid")),
        "node.cloudprovider.kubernetes.io/uninitialized",
    }
)
"""Taints that controllers set and lift by the Node's condition. All others are somebody's will."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """What became of the selection. All lists are in the order of the nodes' names."""

    eligible: tuple[Target, ...] = ()
    tainted: tuple[tuple[Target, str], ...] = ()
    """Selected nodes with the taint that no toleration of the Job covers."""
    unready: tuple[tuple[Target, str], ...] = ()
    """Selected nodes that only a taint of :data:`PASSING`, or :data:`UNREACHABLE`, keeps Pods from, with
    that."""
    without_template: tuple[tuple[Target, str], ...] = ()
    """Selected nodes whose runtime, as the Node names it, has no template."""
    serving: tuple[Target, ...] = ()
    """Selected nodes that are passed over, for their mark says that they serve."""
    missing: tuple[str, ...] = ()
    """Names given of which there is no Node."""

    @property
    def selected(self) -> frozenset[str]:
        """The names of all nodes that are meant, whatever keeps them from being worked on."""
        return frozenset(
            each.name
            for each in (
                *(*self.eligible, *self.serving),
                *(node for node, _ in (*self.tainted, *self.unready, *self.without_template)),
            )
        )


def blocking_taint(taints: Iterable[Taint], tolerations: Collection[Toleration]) -> Taint | None:
    """The first taint that keeps a Pod with these tolerations away, as it would keep a DaemonSet's,
    or from being begun at all.

    One that does not pass by itself goes before those that do.
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
    """Sort out ``nodes``; where names are given, all others are passed over."""
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
    """The Nodes of the cluster, read anew every time."""

    def __init__(self, api: ApiClient, config: Config) -> None:
        self._api = api
        self._config = config

    def selection(self) -> Selection:
        """What the configuration selects, waited for if it says so.

        Raises :class:`KubeError` when it says to wait, and no node is eligible at the end.
        """
        if not self._config.wait_for_nodes:
            return self._select()
        found = wait_until_stable(self._select, self._config.wait_for_nodes, self._api)
        if not (found.eligible or found.serving):
            raise self._no_node_error(found)
        return found

    def deselected(self, selected: Collection[str], templates: Templates) -> Selection:
        """The nodes that carry the mark, whatever its value, and are not among those ``selected``."""
        found = self._list(self._config.installation_label)
        return select((node for node in found if node.metadata.name not in selected), templates)

    def reselect(self, name: str, templates: Templates) -> Selection:
        """What is to be thought of the Node of this name by now, if there is one."""
        return select(self._list(name=name), templates)

    def exists(self, name: str) -> bool:
        """Whether there is a Node of this name."""
        return any(True for _ in self._list(name=name))

    def serves(self, name: str) -> bool:
        """Whether the mark of the Node of this name says so by now."""
        return any(
            node.metadata.labels.get(self._config.installation_label) == SERVING
            for node in self._list(name=name)
        )

    def selects(self, name: str) -> bool:
        """Whether the configuration selects the Node of this name by now, if there is one."""
        if self._config.nodes:
            return name in self._config.nodes
        return any(True for _ in self._list(self._config.selector, name))

    def _no_node_error(self, found: Selection) -> KubeError:
        """What there is to be said of a selection of which no node can be worked on."""
        config, selected = self._config, len(found.selected)
        first = next(self._api.pages("/api/v1/nodes", "list nodes", NodePage, {}))
        nodes, more = first.items or [], first.metadata.remaining_item_count or 0
        wanted = f"the label selector {config.selector or '(all nodes)'}"
        if config.nodes:
            wanted = f"the names {', '.join(config.nodes[:3])}{', …' if len(config.nodes) > 3 else ''}"
        what = (
            f"after {config.wait_for_nodes:g} s there is no eligible node: "
            f"{selected} of {len(nodes) + more} Nodes match {wanted}"
        )
        if held := _blocked_nodes(found):
            what += f", and none can be worked on: {', '.join(held[:3])}{', …' if len(held) > 3 else ''}"
        hint = "compare with `kubectl get nodes --show-labels`, and correct the selection in the values"
        control_plane = nodes and not more and all(CONTROL_PLANE in node.metadata.labels for node in nodes)
        if found.tainted or found.unready:
            hint = "see `kubectl describe node`; lift the taints, or tolerate them in the values"
        elif found.without_template:
            hint = "correct k8sDistribution or containerRuntime in the values"
        elif control_plane and f"!{CONTROL_PLANE}" in config.selector:
            hint = "set job.nodeSelectorExpressions: [] on a cluster whose nodes are all of the control plane"
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
                continue  # from the beginning; what was told stays told


def wait_until_stable(look: Callable[[], Selection], wait: float, api: ApiClient) -> Selection:
    """What ``look`` finds once its eligible nodes have stayed the same for :data:`SETTLE` seconds.

    After ``wait`` seconds what there is has to do, and may be nothing.
    """
    began = since = api.clock.now()
    last: frozenset[str] | None = None
    changed = False
    while True:
        selection = look()
        now = api.clock.now()
        names = frozenset(target.name for target in (*selection.eligible, *selection.serving))
        if names != last:
            log.info("%d nodes are eligible; waiting for that to stay", len(names))
            changed = last is not None
            since, last = now, names
        left = began + wait - now
        stayed = bool(names) and not selection.missing and now - since >= STABLE_PERIOD
        if stayed or left <= 0:
            break
        api.sleep(min(POLL_INTERVAL, left))
    if names and changed and now - since < min(STABLE_PERIOD, wait):
        log.warning(
            "after %g s the set of eligible nodes still changes, the last time %.0f s ago; "
            "going on with %d nodes",
            *(wait, now - since, len(names)),
        )
    elif names:
        log.info("%d nodes are eligible for %.0f s; going on", len(names), now - since)
    return selection


def _blocked_nodes(found: Selection) -> list[str]:
    """Why nodes that are selected cannot be worked on."""
    held = [f"{target.name} has {taint}" for target, taint in (*found.tainted, *found.unready)]
    return held + [
        f"{target.name} runs {runtime or 'no runtime that it names'}"
        for target, runtime in found.without_template
    ]
