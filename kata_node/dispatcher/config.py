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
    labelNodes:                      # the dispatcher labels the Nodes, and its Jobs have no token.
                                     # Without it, stages of the Jobs label them
      settings: 0123456789ab         # the beginning of the digest of the settings, for the record on the Node
      timeoutSeconds: 300            # how long to wait until a Node is Ready and keeps its labels
      startupTaints: [a.b/c]         # taints to remove from a Node that serves: `key` or `key:effect`
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
    deadlineSeconds: 0               # the run ends with a failure this long after its Job was created, and
                                     # running Jobs continue by themselves. 0: no deadline
    retryFailedNodes: false          # whether a Pod that replaces another one of the same Job tries failed
                                     # nodes again. By default it takes their failures over
    templates:                       # one per container runtime; a Node names its runtime in
      - runtime: containerd          # status.nodeInfo.containerRuntimeVersion: containerd or cri-o
        template: {...}              # a complete batch/v1 Job
    removed:                         # only with action install: the Job for nodes that have the installation
      namePrefix: kata-deploy-removed    # label but are no longer selected; they run after all other nodes
      templates: [...]
    check:                           # only with action cleanup: the Jobs that look for running pods, see
      namePrefix: kata-deploy-check      # `running_pods`; they run before the first node is cleaned
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
from pathlib import Path
from typing import cast

from msgspec import Struct, field

from kata_node.dispatcher.affinity import LABEL_KEY, read_terms
from kata_node.dispatcher.config_parts import (
    PREFIX_LIMIT,
    IntOrPercent,
    LabelConfig,
    read_int_or_percent,
    read_label_config,
    read_labels,
    read_name,
    read_templates,
)
from kata_node.dispatcher.kubernetes_objects import NODE_KEY, Action
from kata_node.dispatcher.template import Templates
from kata_node.errors import SettingsError
from kata_node.kube.node_affinity import Term
from kata_node.settings.config_file import read_config_file
from kata_node.settings.values import ValuesReader, describe_value, join_problems, parse_yaml

__all__ = ["Config", "IntOrPercent", "OtherJobsConfig", "load"]

DEFAULT_PARALLELISM = 100
MAX_NODES_WITHOUT_CANARY = 5
DEFAULT_NODE_SETTLE = 15
"""Seconds. Labels arrive node by node."""
DEFAULT_WAIT_FOR_READY = 120
"""Seconds. A node needs less to boot or to restart its runtime."""

_NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")


class OtherJobsConfig(Struct, frozen=True):
    """The keys ``removed`` and ``check``: Jobs of another kind than those of ``templates``."""

    name_prefix: str
    templates: Templates


class Config(Struct, frozen=True):
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
    deadline: int = 0
    retries_failed_nodes: bool = False
    label_nodes: LabelConfig | None = None
    """How to label the Nodes; ``None`` if stages of the Jobs do it."""
    removed: OtherJobsConfig | None = None
    check: OtherJobsConfig | None = None

    @property
    def installation(self) -> str:
        """The name of the installation, from the installation label: its suffix or ``default``."""
        return self.installation_label.rpartition("/")[2] or "kata"

    @property
    def release(self) -> str:
        """The release, as ``NAMESPACE/NAME``; empty if its labels do not name it."""
        name = self.labels.get("app.kubernetes.io/instance", "")
        return f"{self.namespace}/{name}" if name else ""

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
    namespace = read_name(values, "namespace", 63)
    prefix = read_name(values, "namePrefix", PREFIX_LIMIT)
    labels = read_labels(values)
    templates = read_templates(values)
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
        wave_size = read_int_or_percent(rollout, "waveSize", least=1)
        max_failures = read_int_or_percent(rollout, "maxFailures", least=0)
    label_nodes = read_label_config(values)
    if label_nodes and not installation_label:
        values.add_problem("labelNodes", "needs the key mark, the installation label")
    removed = _other_jobs(values, "removed", action, "install", prefix)
    if removed and not installation_label:
        values.add_problem("removed", "needs the key mark, the installation label")
    check = _other_jobs(values, "check", action, "cleanup", prefix)
    parallelism = values.number("parallelism", DEFAULT_PARALLELISM, least=1)
    wait_for_nodes = values.number("waitForNodesSeconds")
    node_settle = values.number("nodeSettleSeconds", DEFAULT_NODE_SETTLE)
    wait_for_ready = values.number("waitForReadySeconds", DEFAULT_WAIT_FOR_READY)
    max_not_ready = read_int_or_percent(values, "maxNotReady", least=0)
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
        deadline=values.number("deadlineSeconds"),
        retries_failed_nodes=values.flag("retryFailedNodes"),
        label_nodes=label_nodes,
        removed=removed,
        check=check,
    )


def _other_jobs(
    values: ValuesReader, key: str, action: Action, only_with: Action, prefix: str
) -> OtherJobsConfig | None:
    given = values.has(key)
    with values.section(key) as section:
        if not given:
            return None
        other_prefix = read_name(section, "namePrefix", PREFIX_LIMIT)
        templates = read_templates(section)
    if action != only_with:
        values.add_problem(key, f"is valid only with the action {only_with}")
    if other_prefix == prefix:
        values.add_problem(
            f"{key}.namePrefix", "is the same as namePrefix; the Jobs would have the same names"
        )
    return OtherJobsConfig(other_prefix, templates)
