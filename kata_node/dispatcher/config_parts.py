"""Read the parts of the dispatcher's configuration that have a format of their own."""

from __future__ import annotations

import re

from msgspec import Struct

from kata_node.dispatcher.affinity import LABEL_KEY
from kata_node.dispatcher.kubernetes_objects import JOB_PREFIX
from kata_node.dispatcher.template import Template, Templates
from kata_node.kube.node import STABLE_FOR
from kata_node.settings.values import ValuesReader, describe_value, first_json_problem

PREFIX_LIMIT = 40

RUNTIMES = ("containerd", "cri-o")

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


class IntOrPercent(Struct, frozen=True):
    """A number of nodes, or a percentage of all nodes."""

    number: int
    percent: bool = False

    def scaled(self, total: int) -> int:
        """Return the number of nodes out of ``total``; a percentage is rounded down."""
        return total * self.number // 100 if self.percent else self.number


class LabelConfig(Struct, frozen=True):
    """The key ``labelNodes``: how the dispatcher labels the Nodes."""

    settings: str = ""
    """What the record on a Node says about the settings."""
    timeout: int = 300
    """Seconds after the Job within which a Node must be Ready, report its handlers and keep its labels."""
    startup_taints: tuple[str, ...] = ()
    """The taints to remove from a Node that serves: ``key`` or ``key:effect``."""


def read_label_config(values: ValuesReader) -> LabelConfig | None:
    """Return what the key ``labelNodes`` has; ``None`` if it is not set."""
    given = values.has("labelNodes")
    with values.section("labelNodes") as section:
        config = LabelConfig(
            section.text("settings"),
            section.number("timeoutSeconds", LabelConfig().timeout, least=int(STABLE_FOR) + 1),
            tuple(section.text_list("startupTaints") or ()),
        )
    return config if given else None


def read_name(values: ValuesReader, key: str, limit: int) -> str:
    """Return the name of at most ``limit`` characters at ``key``."""
    name = values.text(key)
    if not _NAME.fullmatch(name) or len(name) > limit:
        values.add_problem(
            key,
            f"{describe_value(name)} is not a valid name; use at most {limit} lower-case letters, digits and "
            "inner dashes",
        )
    return name


def read_labels(values: ValuesReader) -> dict[str, str]:
    """Return the labels of the release."""
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


def read_templates(values: ValuesReader) -> Templates:
    """Return what the key ``template`` or ``templates`` has."""
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


def read_int_or_percent(values: ValuesReader, key: str, *, least: int) -> IntOrPercent | None:
    """Return the number or percentage at ``key``, ``least`` or more; ``None`` if it is not set."""
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
