"""What is to be done on which nodes: the file the Helm chart renders for the dispatcher.

YAML or JSON, mounted from a ConfigMap. A key that is not listed here is refused::

    action: install                  # or cleanup; what the Jobs of `template` do
    namespace: kata-system           # where the Jobs are
    namePrefix: kata-deploy-install  # a Job is called <namePrefix>-<node>; at most 40 characters
    labels:                          # the identity of the release, on every Job and Pod: Jobs that have
      app.kubernetes.io/name: kata-deploy          # them all are its own, all others are foreign
      app.kubernetes.io/instance: my-release
    generation: "7"                  # .Release.Revision: a Job that has succeeded is not run again in the
                                     # same generation, with the same template, for the same Node
    selection:
      nodes: [worker-1, worker-2]    # these; if there are none,
      labelSelector: "a=b,!c"        # the nodes of this label selector; if it is empty, all nodes
    parallelism: 100                 # how many Jobs run at once at most
    waitForNodesSeconds: 0           # wait that long for a set of eligible nodes that stays the same; one
                                     # that is empty at the end is then an error
    mark: kata-deploy.katacontainers.io/default    # the label of nodes this installation is on
    skipServing: false               # pass over nodes whose mark is "true", and run the Job on all others,
                                     # also where it has succeeded before: for a reconciling CronJob
    rollout:                         # without it, all nodes are one wave that nothing stops
      canary: 1                      # so many nodes go first, alone; if more of them fail than maxFailures
                                     # (0 when it is not given; a share is one of these) or if all do, no
                                     # other node is begun
      waveSize: 25%                  # then waves of so many, a number or a share of all nodes
      maxFailures: 10%               # with more failures than this, no other node is begun
    waitForReadySeconds: 120         # how long nodes with a taint that passes by itself, such as
                                     # node.kubernetes.io/not-ready, are waited for, while others are done
    maxNotReady: 10%                 # the run has failed when more nodes than this number, or share, were
                                     # still not ready then. By default a tenth, for of many nodes some
                                     # are always down; none for a cleanup, after which nobody comes back
                                     # to them; any number with skipServing, which comes back to them all
    events: false                    # also tell of a failure in an Event on the Node, which takes the right
                                     # to create events in the namespace default
    templates:                       # one for each CRI runtime, which a Node says in its
      - runtime: containerd          # status.nodeInfo.containerRuntimeVersion: containerd or cri-o
        template: {...}              # a whole batch/v1 Job
    removed:                         # only to install: what is done on nodes that carry the mark and are
      namePrefix: kata-deploy-removed    # no longer selected, once the others are through
      templates: [...]

In the place of ``templates`` there may be ``template: {...}``, one Job for all nodes, whatever runs there.

The dispatcher puts a Job's name, namespace, ``spec.template.spec.nodeName`` and owner, and the labels, into
the template. Besides, in every string of it, ``@NODE_NAME@``, ``@NODE_UID@``, ``@MACHINE_ID@`` (of the Node's
``status.nodeInfo``) and ``@JOB_NAME@`` become what they say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from kata_node.dispatcher.kubernetes_objects import JOB_PREFIX, NODE_KEY, Action
from kata_node.dispatcher.template import Template, Templates
from kata_node.errors import SettingsError
from kata_node.settings.values import ValuesReader, describe_value, parse_yaml

__all__ = ["Config", "DeselectedNodesConfig", "IntOrPercent", "load"]

PREFIX_LIMIT = 40
DEFAULT_PARALLELISM = 100
DEFAULT_WAIT_FOR_READY = 120
"""Seconds: a node that boots, or whose runtime is restarted, takes less."""

RUNTIMES = ("containerd", "cri-o")

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_NODE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_LABEL = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


@dataclass(frozen=True)
class IntOrPercent:
    """So many nodes, or a share of them in per cent."""

    number: int
    percent: bool = False

    def scaled(self, total: int) -> int:
        """The number of nodes; a share is rounded down."""
        return total * self.number // 100 if self.percent else self.number


@dataclass(frozen=True)
class DeselectedNodesConfig:
    """What is done on nodes that are no longer selected."""

    name_prefix: str
    templates: Templates


@dataclass(frozen=True)
class Config:
    """The file, checked. See the head of this module for what each key means."""

    action: Action
    namespace: str
    name_prefix: str
    labels: Mapping[str, str]
    templates: Templates
    generation: str = ""
    nodes: tuple[str, ...] = ()
    selector: str = ""
    parallelism: int = DEFAULT_PARALLELISM
    wait_for_nodes: int = 0
    wait_for_ready: int = DEFAULT_WAIT_FOR_READY
    max_not_ready: IntOrPercent | None = None
    installation_label: str = ""
    skip_serving: bool = False
    events: bool = False
    canary: int = 0
    wave_size: IntOrPercent | None = None
    max_failures: IntOrPercent | None = None
    removed: DeselectedNodesConfig | None = None

    @property
    def installation(self) -> str:
        """The name of what is installed, for people: ``default``, or its suffix, as the mark has it."""
        return self.installation_label.rpartition("/")[2] or "kata"

    def max_not_ready_nodes(self, total: int) -> int:
        """How many of ``total`` nodes may be left out as not ready without that being a failure."""
        default = IntOrPercent(
            100 if self.skip_serving else 0 if self.action == "cleanup" else 10, percent=True
        )
        return (self.max_not_ready or default).scaled(total)

    def job_selector(self) -> str:
        """The label selector of all Jobs that were made for the release here, whatever they do."""
        return ",".join([*(f"{key}={value}" for key, value in sorted(self.labels.items())), NODE_KEY])


def load(path: Path) -> Config:
    """The configuration in the file at ``path``; one :class:`SettingsError` names all that is wrong in it."""
    hint = "the Helm chart renders this file; nothing was changed in the cluster"
    try:
        data = parse_yaml(path.read_bytes().decode())
    except OSError as error:
        raise SettingsError(
            f"the configuration cannot be read: {error.strerror}", where=str(path), hint=hint
        ) from error
    except ValueError as error:  # of its encoding, too
        raise SettingsError(str(error), where=str(path), hint=hint) from error
    if not isinstance(data, dict):
        raise SettingsError(
            f"expected a mapping of keys to values, got {describe_value(data)}", where=str(path), hint=hint
        )
    problems: list[str] = []
    with ValuesReader(data, "", problems) as values:
        config = _read(values)
    if problems:
        what = problems[0] if len(problems) == 1 else "\n  ".join([f"{len(problems)} problems", *problems])
        raise SettingsError(what, where=str(path), hint=hint)
    return config


def _read(values: ValuesReader) -> Config:
    action = cast("Action", values.choice("action", ("install", "cleanup")))
    if not values.has("action"):
        values.add_problem("action", "is missing: install or cleanup")
    namespace = _name(values, "namespace", 63)
    prefix = _name(values, "namePrefix", PREFIX_LIMIT)
    labels = _labels(values)
    templates = _templates(values)
    with values.section("selection") as selection:
        nodes = selection.text_list("nodes") or ()
        selector = selection.text("labelSelector").strip()
    for name in nodes:
        if not _NODE_NAME.fullmatch(name):
            values.add_problem("selection.nodes", f"{describe_value(name)} cannot be the name of a Node")
    installation_label = values.text("mark")
    if installation_label and not _LABEL.fullmatch(installation_label):
        values.add_problem("mark", f"{describe_value(installation_label)} cannot be a label")
    skip_serving = values.flag("skipServing")
    if skip_serving and not installation_label:
        values.add_problem("skipServing", "needs the mark that tells which nodes serve")
    with values.section("rollout") as rollout:
        canary = rollout.number("canary")
        wave_size = _int_or_percent(rollout, "waveSize", least=1)
        max_failures = _int_or_percent(rollout, "maxFailures", least=0)
    removed = _removed(values, action, prefix, installation_label)
    parallelism = values.number("parallelism", DEFAULT_PARALLELISM, least=1)
    wait_for_nodes = values.number("waitForNodesSeconds")
    wait_for_ready = values.number("waitForReadySeconds", DEFAULT_WAIT_FOR_READY)
    max_not_ready = _int_or_percent(values, "maxNotReady", least=0)
    generation = values.text("generation")
    return Config(
        action=action,
        namespace=namespace,
        name_prefix=prefix,
        labels=labels,
        templates=templates,
        generation=generation,
        nodes=tuple(dict.fromkeys(nodes)),
        selector="" if nodes else selector,
        parallelism=parallelism,
        wait_for_nodes=wait_for_nodes,
        wait_for_ready=wait_for_ready,
        max_not_ready=max_not_ready,
        installation_label=installation_label,
        skip_serving=skip_serving,
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
            f"{describe_value(name)} is not a name of at most {limit} small letters, digits and inner dashes",
        )
    return name


def _labels(values: ValuesReader) -> dict[str, str]:
    with values.section("labels") as section:
        labels = {name: section.text(name) for name in section.names()}
        for name, value in labels.items():
            if not _LABEL.fullmatch(name) or not _LABEL_VALUE.fullmatch(value):
                section.add_problem(name, f"{describe_value(value)} cannot be the value of such a label")
            elif name.startswith(JOB_PREFIX):
                section.add_problem(name, f"labels below {JOB_PREFIX} are the dispatcher's")
    if not labels:
        values.add_problem(
            "labels", "is empty: without labels the Jobs of a release cannot be told from others"
        )
    return labels


def _templates(values: ValuesReader) -> Templates:
    has_template, has_templates = values.has("template"), values.has("templates")
    if has_template == has_templates:
        what = (
            "is there beside templates: give one of them"
            if has_template
            else "is missing, and so is templates"
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
            values.add_problem(where, f"expected a runtime and its template, got {describe_value(item)}")
            continue
        with ValuesReader(item, values.path(where), values.problems) as entry:
            runtime = entry.choice("runtime", ("", *RUNTIMES))
            template = _template(entry)
        if not entry.has("runtime"):
            entry.add_problem("runtime", f"is missing: {' or '.join(RUNTIMES)}")
        elif runtime in by_runtime:
            entry.add_problem("runtime", f"{runtime} has a template already")
        elif runtime and template:
            by_runtime[runtime] = template
    if has_templates and not items:
        values.add_problem("templates", "is empty: no node could get a Job")
    return Templates(by_runtime=by_runtime)


def _template(values: ValuesReader) -> Template | None:
    data = values.value("template")
    if not isinstance(data, dict):
        values.add_problem("template", f"expected a whole Job, got {describe_value(data)}")
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
        values.add_problem("removed", "belongs to the action install alone")
    if not installation_label:
        values.add_problem("removed", "needs the mark that tells which nodes the installation is on")
    if removed_prefix == prefix:
        values.add_problem("removed.namePrefix", "is that of the other Jobs: they would have the same names")
    return DeselectedNodesConfig(removed_prefix, templates)


def _int_or_percent(values: ValuesReader, key: str, *, least: int) -> IntOrPercent | None:
    value = values.value(key)
    if value is None:
        return None
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{1,3})%", value)):
        percent = int(match[1])
        if least <= percent <= 100:
            return IntOrPercent(percent, percent=True)
    elif isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return IntOrPercent(value)
    values.add_problem(
        key,
        f"expected a number of nodes, {least} or more, or a share such as 10%, got {describe_value(value)}",
    )
    return None
