"""Find the selected Nodes, and which of them are eligible for a Job."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from msgspec import Struct, field

from kata_node.cluster.ownership import belongs_to, find_other_installation, find_other_release
from kata_node.dispatcher.api import ApiClient, ExpiredError
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.drift import Serving, serving_state
from kata_node.dispatcher.kubernetes_objects import NODES, Node, NodePage, Taint, Toleration
from kata_node.dispatcher.template import Target, Templates
from kata_node.kube.node_affinity import Term, any_term_matches, features_are_missing

SINGLE_GET_LIMIT = 20
"""Up to this many named nodes are read one by one; for more names, all Nodes are listed."""

UNREACHABLE = "node.kubernetes.io/unreachable"
"""The taint of a Node with a dead kubelet. No Pod starts or ends there, even if it tolerates the taint."""

HOSTNAME = "kubernetes.io/hostname"

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


class Selection(Struct, frozen=True):
    """The selected nodes, sorted into groups. Each group is ordered by node name."""

    eligible: tuple[Target, ...] = ()
    tainted: tuple[tuple[Target, str], ...] = ()
    """Selected nodes, each with a taint that the Job does not tolerate."""
    unready: tuple[tuple[Target, str], ...] = ()
    """Selected nodes, each with the taint of :data:`CONDITION_TAINTS` that alone blocks them for now."""
    without_template: tuple[tuple[Target, str], ...] = ()
    """Selected nodes whose runtime has no template, or cannot run its Pods. Each has the
    ``containerRuntimeVersion``."""
    serving: tuple[Target, ...] = ()
    """Selected nodes that are skipped because they are proven to serve, see :mod:`drift`."""
    not_proven: Mapping[str, Serving] = field(default_factory=dict)
    """By name, with ``serving``: the other nodes, with what is known of each."""
    unlabeled: tuple[Target, ...] = ()
    """Nodes without a label of node-feature-discovery, which may be selected when they have its labels."""
    missing: tuple[str, ...] = ()
    """Configured names without a Node."""
    other_installations: tuple[tuple[Target, str], ...] = ()
    """For an install: selected nodes, each with another installation that the release has there."""
    other_releases: tuple[tuple[Target, str], ...] = ()
    """For a cleanup: selected nodes, each with the other release that has the installation there."""
    is_installed: bool = False
    """Whether a selected node has this installation of this release."""

    def only(self, name: str) -> Selection:
        """Return the selection of one node; empty when this one does not have the node."""
        return Selection(
            eligible=tuple(each for each in self.eligible if each.name == name),
            tainted=tuple(each for each in self.tainted if each[0].name == name),
            unready=tuple(each for each in self.unready if each[0].name == name),
            without_template=tuple(each for each in self.without_template if each[0].name == name),
            unlabeled=tuple(each for each in self.unlabeled if each.name == name),
        )

    def cause(self, name: str) -> str:
        """Return why a reconciling run gives this node a Job; empty in other runs."""
        return self.not_proven[name].reason if name in self.not_proven else ""

    @property
    def selected(self) -> frozenset[str]:
        """The names of all nodes that are or may be selected, eligible or not."""
        return frozenset(
            each.name
            for each in (
                *(*self.eligible, *self.serving, *self.unlabeled),
                *(node for node, _ in (*self.tainted, *self.unready, *self.without_template)),
                *(node for node, _ in (*self.other_installations, *self.other_releases)),
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
    terms: Collection[Term] = (),
    serving_label: str = "",
    installation_label: str = "",
    release: str = "",
    installs: bool = False,
) -> Selection:
    """Sort ``nodes`` into the groups of a :class:`Selection`.

    If ``named`` or ``terms`` are not empty, ignore nodes with other names, or that no term matches. With a
    ``serving_label``, the installation label, nodes that are proven to serve go to ``serving``. With a
    ``release``, nodes go to ``other_installations`` if it ``installs``, or else to ``other_releases``.
    """
    eligible: list[Target] = []
    unlabeled: list[Target] = []
    serving: list[Target] = []
    not_proven: dict[str, Serving] = {}
    tainted: list[tuple[Target, str]] = []
    unready: list[tuple[Target, str]] = []
    without_template: list[tuple[Target, str]] = []
    other_installations: list[tuple[Target, str]] = []
    other_releases: list[tuple[Target, str]] = []
    is_installed = False
    installation = installation_label.rpartition("/")[2]
    names = frozenset(named)
    missing = set(names)
    for node in nodes:
        name = node.metadata.name
        if names and name not in names:
            continue
        missing.discard(name)
        labels = node.metadata.labels
        matches = not terms or any_term_matches(terms, name, labels)
        if not matches and not features_are_missing(terms, name, labels):
            continue
        info = node.status.node_info
        marked = not installation_label or installation_label in labels
        hostname = labels.get(HOSTNAME, "")
        # Usually both are the same. Keep one copy then: there can be many nodes.
        hostname = name if hostname == name else hostname
        target = Target(name, node.metadata.uid, info.machine_id, info.runtime, marked, hostname)
        annotations = node.metadata.annotations
        if installs and (other := find_other_installation(labels, annotations, installation, release)):
            other_installations.append((target, other))
            continue
        if not installs and (other := find_other_release(annotations, installation, release)):
            other_releases.append((target, other))
            continue
        is_installed = is_installed or belongs_to(annotations, installation, release)
        if serving_label:
            found = serving_state(node, serving_label)
            if found.state == "served":
                serving.append(target)
                continue
            not_proven[name] = found
        template = templates.find(target)
        taint = blocking_taint(node.spec.taints, template.tolerations) if template else None
        temporary = taint is not None and taint.key in CONDITION_TAINTS
        if taint and not temporary:
            tainted.append((target, str(taint)))
        elif not matches:
            unlabeled.append(target)
        elif not template or (template.mounts_images and not info.mounts_images):
            without_template.append((target, info.container_runtime_version))
        elif taint:
            unready.append((target, str(taint)))
        else:
            eligible.append(target)
    return Selection(
        eligible=_sorted(eligible),
        tainted=_by_name(tainted),
        unready=_by_name(unready),
        without_template=_by_name(without_template),
        serving=_sorted(serving),
        not_proven=not_proven,
        unlabeled=_sorted(unlabeled),
        missing=tuple(sorted(missing)),
        other_installations=_by_name(other_installations),
        other_releases=_by_name(other_releases),
        is_installed=is_installed,
    )


def _sorted(targets: Iterable[Target]) -> tuple[Target, ...]:
    return tuple(sorted(targets, key=lambda target: target.name))


def _by_name(found: Iterable[tuple[Target, str]]) -> tuple[tuple[Target, str], ...]:
    return tuple(sorted(found, key=lambda each: each[0].name))


class Nodes:
    """Reads the Nodes of the cluster, each time anew."""

    def __init__(self, api: ApiClient, config: Config) -> None:
        self._api = api
        self._config = config

    def selection(self) -> Selection:
        """Return the configured selection, as it is now."""
        config = self._config
        found = self._list(config.selector)
        if config.nodes and len(config.nodes) <= SINGLE_GET_LIMIT:
            found = itertools.chain.from_iterable(self._list(name=name) for name in config.nodes)
        label = config.installation_label if config.skip_serving else ""
        return select(
            found,
            config.templates,
            named=config.nodes,
            terms=config.terms,
            serving_label=label,
            installation_label=config.installation_label,
            release=config.release,
            installs=config.action == "install",
        )

    def deselected(self, selected: Collection[str], templates: Templates) -> Selection:
        """Return the nodes that have the installation label, with any value, and are not ``selected``."""
        label = self._config.installation_label
        found = (node for node in self._list(label) if node.metadata.name not in selected)
        return select(found, templates, installation_label=label, release=self._config.release)

    def reselect(self, name: str, templates: Templates, *, selected: bool = False) -> Selection:
        """Read one Node again and return the selection of it; empty when it does not exist.

        With ``selected``, it is empty also when the configuration does not select the Node any more.
        """
        config, label = self._config, self._config.installation_label
        if not selected or config.nodes:
            return select(self._list(name=name), templates, installation_label=label)
        found = self._list(config.selector, name)
        return select(found, templates, terms=config.terms, installation_label=label)

    def select_again(self, targets: Sequence[Target]) -> Selection:
        """Return the configured selection of these nodes from one list; it lacks those without ``hostname``.

        The API server answers from its cache. Otherwise the selector could make it read all Nodes from etcd.
        """
        config = self._config
        hostnames = ",".join(each.hostname for each in targets if each.hostname)
        selector = f"{config.selector}," if config.selector else ""
        found = self._list(f"{selector}{HOSTNAME} in ({hostnames})", cached=True)
        label = config.installation_label
        return select(found, config.templates, terms=config.terms, installation_label=label)

    def with_label(self, key: str) -> list[str]:
        """Return the names of the Nodes that have a label, with any value."""
        return sorted(node.metadata.name for node in self._list(key))

    def exists(self, name: str) -> bool:
        """Return whether the Node exists."""
        return any(True for _ in self._list(name=name))

    def serves(self, name: str) -> bool:
        """Return whether the Node is proven to serve now."""
        label = self._config.installation_label
        return any(serving_state(node, label).state == "served" for node in self._list(name=name))

    def selects(self, name: str) -> bool:
        """Return whether the configuration selects the Node now."""
        if self._config.nodes:
            return name in self._config.nodes
        found = self._list(self._config.selector, name)
        return bool(select(found, self._config.templates, terms=self._config.terms).selected)

    def first_page(self) -> tuple[list[Node], int]:
        """Return the Nodes of the first page of all Nodes, and the number of Nodes in the cluster."""
        page = next(self._api.pages(NODES, "list nodes", NodePage, {}))
        nodes = page.items or []
        return nodes, len(nodes) + (page.metadata.remaining_item_count or 0)

    def _list(self, selector: str = "", name: str = "", *, cached: bool = False) -> Iterator[Node]:
        query = {"labelSelector": selector} if selector else {}
        if cached:
            query["resourceVersion"] = "0"
        if name:
            query["fieldSelector"] = f"metadata.name={name}"
        what = "read a node" if name else "list nodes"
        seen: set[str] = set()
        while True:
            try:
                for page in self._api.pages(NODES, what, NodePage, query):
                    for node in page.items or ():
                        if node.metadata.name not in seen:
                            seen.add(node.metadata.name)
                            yield node
                return
            except ExpiredError:
                continue  # list again from the start; nodes that were yielded are not yielded again
