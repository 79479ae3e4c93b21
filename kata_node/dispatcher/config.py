"""The configuration file of the dispatcher.

The Helm chart renders it into a ConfigMap. It is YAML or JSON. The dispatcher refuses unknown keys::

    action: install                  # or cleanup; what the Jobs of `template` do
    namespace: kata-system           # namespace of the Jobs
    namePrefix: kata-deploy-install  # a Job is named <namePrefix>-<node>; at most 40 characters
    labels:                          # the labels of the release, set on every Job and Pod; a Job that does
      app.kubernetes.io/name: kata-deploy          # not have all of them is foreign
      app.kubernetes.io/instance: my-release
    generation: "7"                  # .Release.Revision; a succeeded Job is not run again for the same
                                     # generation, template and Node. Without it, each dispatcher Job is a
                                     # generation, and deletes the dispatcher Jobs of other manifests
    state:
      configMap: kata-deploy-state.x # what is wanted of the release, see `desired_state`
      installation:                  # what must not change while Kata is on a node, see `installed`
        deploymentMode: job
        multiInstallSuffix: ""
        installationPrefix: /
    selection:
      nodes: [worker-1, worker-2]    # names of Nodes; if empty, labelSelector applies
      labelSelector: "a=b,!c"        # if empty as well, all Nodes are selected
      nodeSelectorTerms: [...]       # terms of a node affinity; one of them must match, too
    parallelism: 100                 # maximum number of running Jobs
    waitForNodesSeconds: 0           # maximum wait until the set of eligible nodes is stable; an empty set
                                     # at the end is an error
    nodeSettleSeconds: 15            # how long the set must stay unchanged. For named nodes there is no such
                                     # wait; the run begins when all of them exist
    mark: kata-deploy.katacontainers.io/default    # the installation label
    skipServing: false               # skip nodes that are proven to serve, see `drift`, and run the Job on
                                     # all others even if it succeeded before; for the reconciling CronJob
    rollout:                         # without it, all nodes are one wave and failures do not stop it
      canary: 1                      # number of canary nodes; they run first. The rollout stops if all of
                                     # them fail, or if more fail than maxFailures allows (0 if not set; a
                                     # percentage counts the canary nodes). `auto`: an install of more than 5
                                     # nodes has one. Without maxFailures, it stops only when that one rolls
                                     # back, or when more than 2 nodes and more than 1% of all nodes do
      waveSize: 25%                  # nodes per wave after the canary nodes: a number, or a percentage of all
      maxFailures: 10%               # the rollout stops when more nodes fail: a number or a percentage
    waitForReadySeconds: 120         # how long to wait for nodes with a temporary taint, for example
                                     # node.kubernetes.io/not-ready; the other nodes run meanwhile
    maxNotReady: 10%                 # the run fails if more nodes are still not ready after that wait.
                                     # Default: 10%, because a large cluster always has some nodes that are
                                     # down; 0 for a cleanup, because no later run cleans them; 100% with
                                     # skipServing, because the CronJob runs again
    unfitNodes: report               # `fail`: a node that cannot run Kata counts as failed. A named node
                                     # always does
    events: false                    # also record failures as Events on the Node; needs the right to create
                                     # events in the namespace default
    templates:                       # one per container runtime; a Node names its runtime in
      - runtime: containerd          # status.nodeInfo.containerRuntimeVersion: containerd or cri-o
        template: {...}              # a complete batch/v1 Job
    removed:                         # only with action install: the Job for nodes that have the installation
      namePrefix: kata-deploy-removed    # label but are no longer selected; they run after all other nodes
      templates: [...]

Instead of ``templates``, ``template: {...}`` gives one Job for all nodes, whatever their runtime is. The Jobs
of named nodes tolerate every taint, in addition to the tolerations of the template.

The dispatcher sets the name, namespace, labels and owner of a Job and its ``spec.template.spec.nodeName``. In
every string of the template it replaces ``@NODE_NAME@``, ``@NODE_UID@``, ``@MACHINE_ID@`` (the ``machineID``
in the Node's ``status.nodeInfo``) and ``@JOB_NAME@``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from kata_node.dispatcher.affinity import LABEL_KEY, read_terms
from kata_node.dispatcher.kubernetes_objects import JOB_PREFIX, NODE_KEY, Action
from kata_node.dispatcher.template import Template, Templates
from kata_node.errors import SettingsError
from kata_node.kube.node_affinity import Term
from kata_node.settings.config_file import read_config_file
from kata_node.settings.values import (
    ValuesReader,
    describe_value,
    first_json_problem,
    join_problems,
    parse_yaml,
)

__all__ = ["Config", "DeselectedNodesConfig", "IntOrPercent", "load"]

PREFIX_LIMIT = 40
DEFAULT_PARALLELISM = 100
MAX_NODES_WITHOUT_CANARY = 5
DEFAULT_NODE_SETTLE = 15
"""Seconds. Labels arrive node by node."""
DEFAULT_WAIT_FOR_READY = 120
"""Seconds. A node needs less to boot or to restart its runtime."""

RUNTIMES = ("containerd", "cri-o")

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


@dataclass(frozen=True)
class IntOrPercent:
    """A number of nodes, or a percentage of all nodes."""

    number: int
    percent: bool = False

    def scaled(self, total: int) -> int:
        """Return the number of nodes out of ``total``; a percentage is rounded down."""
        return total * self.number // 100 if self.percent else self.number


@dataclass(frozen=True)
class DeselectedNodesConfig:
    """The key ``removed``: the Jobs for nodes that are no longer selected."""

    name_prefix: str
    templates: Templates


@dataclass(frozen=True)
class Config:
    """The validated configuration. The docstring of this module explains the keys."""

    action: Action
    namespace: str
    name_prefix: str
    labels: Mapping[str, str]
    templates: Templates
    generation: str = ""
    state_config_map: str = ""
    installation_keys: Mapping[str, str] = field(default_factory=dict)
    """Values that locate the installation on the nodes, by their keys in the state of the release."""
    nodes: tuple[str, ...] = ()
    selector: str = ""
    terms: tuple[Term, ...] = ()
    """The terms of a node affinity, one of which must match; without any, there is no node affinity."""
    parallelism: int = DEFAULT_PARALLELISM
    wait_for_nodes: int = 0
    node_settle: int = DEFAULT_NODE_SETTLE
    wait_for_ready: int = DEFAULT_WAIT_FOR_READY
    max_not_ready: IntOrPercent | None = None
    installation_label: str = ""
    skip_serving: bool = False
    fail_unfit_nodes: bool = False
    events: bool = False
    canary: int | None = 0
    """``None`` is ``auto``: one canary node in a larger install, see :meth:`canary_nodes`."""
    wave_size: IntOrPercent | None = None
    max_failures: IntOrPercent | None = None
    removed: DeselectedNodesConfig | None = None

    @property
    def installation(self) -> str:
        """The name of the installation, from the installation label: its suffix or ``default``."""
        return self.installation_label.rpartition("/")[2] or "kata"

    @property
    def unfit_fails(self) -> bool:
        """Whether a node that cannot run Kata counts as failed."""
        return self.fail_unfit_nodes or bool(self.nodes)

    @property
    def stops_on_rollbacks(self) -> bool:
        """Whether nodes that roll back stop the rollout, because the configuration sets no other limit."""
        return self._is_auto and self.max_failures is None

    @property
    def _is_auto(self) -> bool:
        return self.action == "install" and not self.skip_serving and self.canary is None

    def canary_nodes(self, total: int) -> int:
        """Return how many of ``total`` nodes are canary nodes."""
        if self.canary is not None:
            return self.canary
        return 1 if self._is_auto and total > MAX_NODES_WITHOUT_CANARY else 0

    def max_not_ready_nodes(self, total: int) -> int:
        """Return how many of ``total`` nodes may stay not ready before the run fails."""
        default = IntOrPercent(
            100 if self.skip_serving else 0 if self.action == "cleanup" else 10, percent=True
        )
        return (self.max_not_ready or default).scaled(total)

    def job_selector(self) -> str:
        """Return the label selector of all node Jobs of the release, of any action."""
        return ",".join([*(f"{key}={value}" for key, value in sorted(self.labels.items())), NODE_KEY])


def load(path: Path, digest: str = "") -> Config:
    """Return the configuration in the file at ``path``.

    ``digest`` is the expected sha256 of the file, see
    :func:`kata_node.settings.config_file.read_config_file`. Raises one :class:`SettingsError` that lists all
    problems of the file.
    """
    hint = (
        "correct the Helm values; the chart renders this file from them. Nothing was changed in the cluster"
    )
    try:
        data = parse_yaml(read_config_file(path, digest).decode())
    except OSError as error:
        raise SettingsError(
            f"the configuration file cannot be read: {error.strerror}", where=str(path), hint=hint
        ) from error
    except ValueError as error:  # includes UnicodeDecodeError
        raise SettingsError(str(error), where=str(path), hint=hint) from error
    if not isinstance(data, dict):
        raise SettingsError(
            f"expected a mapping of keys to values, got {describe_value(data)}", where=str(path), hint=hint
        )
    problems: list[str] = []
    with ValuesReader(data, "", problems) as values:
        config = _read(values)
    if problems:
        raise SettingsError(join_problems(problems), where=str(path), hint=hint)
    return config


def _read(values: ValuesReader) -> Config:
    action = cast("Action", values.choice("action", ("install", "cleanup")))
    if not values.has("action"):
        values.add_problem("action", "is missing; set install or cleanup")
    namespace = _name(values, "namespace", 63)
    prefix = _name(values, "namePrefix", PREFIX_LIMIT)
    labels = _labels(values)
    templates = _templates(values)
    with values.section("selection") as selection:
        nodes = selection.text_list("nodes") or ()
        selector = selection.text("labelSelector").strip()
        terms = read_terms(selection)
    for name in nodes:
        if not _NODE_NAME.fullmatch(name):
            values.add_problem("selection.nodes", f"{describe_value(name)} is not a valid Node name")
    installation_label = values.text("mark")
    if installation_label and not LABEL_KEY.fullmatch(installation_label):
        values.add_problem("mark", f"{describe_value(installation_label)} is not a valid label key")
    skip_serving = values.flag("skipServing")
    if skip_serving and not installation_label:
        values.add_problem("skipServing", "needs the key mark, the installation label")
    with values.section("rollout") as rollout:
        canary = None if rollout.value("canary") == "auto" else rollout.number("canary")
        wave_size = _int_or_percent(rollout, "waveSize", least=1)
        max_failures = _int_or_percent(rollout, "maxFailures", least=0)
    removed = _removed(values, action, prefix, installation_label)
    parallelism = values.number("parallelism", DEFAULT_PARALLELISM, least=1)
    wait_for_nodes = values.number("waitForNodesSeconds")
    node_settle = values.number("nodeSettleSeconds", DEFAULT_NODE_SETTLE)
    wait_for_ready = values.number("waitForReadySeconds", DEFAULT_WAIT_FOR_READY)
    max_not_ready = _int_or_percent(values, "maxNotReady", least=0)
    generation = values.text("generation")
    with values.section("state") as state:
        state_config_map = state.text("configMap")
        with state.section("installation") as installation:
            installation_keys = {name: installation.text(name) for name in installation.names()}
    return Config(
        action=action,
        namespace=namespace,
        name_prefix=prefix,
        labels=labels,
        templates=templates,
        generation=generation,
        state_config_map=state_config_map,
        installation_keys=installation_keys,
        nodes=tuple(dict.fromkeys(nodes)),
        selector="" if nodes else selector,
        terms=() if nodes else terms,
        parallelism=parallelism,
        wait_for_nodes=wait_for_nodes,
        node_settle=node_settle,
        wait_for_ready=wait_for_ready,
        max_not_ready=max_not_ready,
        installation_label=installation_label,
        skip_serving=skip_serving,
        fail_unfit_nodes=values.choice("unfitNodes", ("report", "fail")) == "fail",
        events=values.flag("events"),
        canary=canary,
        wave_size=wave_size,
        max_failures=max_failures,
        removed=removed,
    )


def _name(values: ValuesReader, key: str, limit: int) -> str:
    name = values.text(key)
    if not _NAME.fullmatch(name) or len(name) > limit:
        values.add_problem(
            key,
            f"{describe_value(name)} is not a valid name; use at most {limit} lower-case letters, digits and "
            "inner dashes",
        )
    return name


def _labels(values: ValuesReader) -> dict[str, str]:
    with values.section("labels") as section:
        labels = {name: section.text(name) for name in section.names()}
        for name, value in labels.items():
            if not LABEL_KEY.fullmatch(name) or not _LABEL_VALUE.fullmatch(value):
                section.add_problem(
                    name, f"{describe_value(value)} is not a valid value, or the key is not a valid label key"
                )
            elif name.startswith(JOB_PREFIX):
                section.add_problem(name, f"labels below {JOB_PREFIX} are reserved for the dispatcher")
    if not labels:
        values.add_problem(
            "labels", "is empty; the dispatcher recognizes the Jobs of the release by these labels"
        )
    return labels


def _templates(values: ValuesReader) -> Templates:
    has_template, has_templates = values.has("template"), values.has("templates")
    if has_template == has_templates:
        what = (
            "is set together with templates; set only one of them"
            if has_template
            else "is missing; set template or templates"
        )
        values.add_problem("template", what)
    if has_template:
        values.skip("templates")
        return Templates(_template(values))
    values.skip("template")
    by_runtime: dict[str, Template] = {}
    for index, item in enumerate(items := values.unchecked_list("templates")):
        where = f"templates[{index}]"
        if not isinstance(item, dict):
            values.add_problem(
                where, f"expected a mapping with runtime and template, got {describe_value(item)}"
            )
            continue
        with ValuesReader(item, values.path(where), values.problems) as entry:
            runtime = entry.choice("runtime", ("", *RUNTIMES))
            template = _template(entry)
        if not entry.has("runtime"):
            entry.add_problem("runtime", f"is missing; set {' or '.join(RUNTIMES)}")
        elif runtime in by_runtime:
            entry.add_problem("runtime", f"{runtime} already has a template")
        elif runtime and template:
            by_runtime[runtime] = template
    if has_templates and not items:
        values.add_problem("templates", "is empty; set at least one template")
    return Templates(by_runtime=by_runtime)


def _template(values: ValuesReader) -> Template | None:
    data = values.value("template")
    if not isinstance(data, dict):
        values.add_problem("template", f"expected a complete Job, got {describe_value(data)}")
        return None
    if problem := first_json_problem(data):
        key, what = problem
        values.add_problem(f"template{key}", what)
        return None
    template = Template(data)
    for key, what in template.problems():
        values.add_problem(f"template.{key}" if key else "template", what)
    return template


def _removed(
    values: ValuesReader, action: Action, prefix: str, installation_label: str
) -> DeselectedNodesConfig | None:
    given = values.has("removed")
    with values.section("removed") as section:
        if not given:
            return None
        removed_prefix = _name(section, "namePrefix", PREFIX_LIMIT)
        templates = _templates(section)
    if action != "install":
        values.add_problem("removed", "is valid only with the action install")
    if not installation_label:
        values.add_problem("removed", "needs the key mark, the installation label")
    if removed_prefix == prefix:
        values.add_problem(
            "removed.namePrefix", "is the same as namePrefix; the Jobs would have the same names"
        )
    return DeselectedNodesConfig(removed_prefix, templates)


def _int_or_percent(values: ValuesReader, key: str, *, least: int) -> IntOrPercent | None:
    value = values.value(key)
    if value is None:
        return None
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,3})%", value)):
        percent = int(match[1])
        if least <= percent <= 100:
            return IntOrPercent(percent, percent=True)
    elif isinstance(value, int) and not isinstance(value, bool) and least <= value < 2**31:
        return IntOrPercent(value)
    values.add_problem(
        key,
        f"expected a number of nodes, {least} or more, or a percentage like 10%, got {describe_value(value)}",
    )
    return None
