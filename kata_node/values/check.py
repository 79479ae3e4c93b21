"""What the chart and the nodes say of a values file, without a cluster and without helm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from msgspec import Struct

from kata_node.settings.load import read_settings
from kata_node.settings.shims import MACHINES, table
from kata_node.settings.unsupported import unsupported
from kata_node.text import pluralize
from kata_node.values import rules, schema, selection
from kata_node.values.chart import Values, at, merged, node_values
from kata_node.values.chart import schema as chart_schema

NO_SHIM = ("shims: no enabled shim runs on ", "shims: no shim is enabled")
"""The beginnings of the problem of an architecture without a shim. A cluster may have no such node."""

OLDER_KEY = "is a key of an older chart"
"""What the chart and the nodes say of a key that ``values convert`` replaces."""


class ValuesFinding(Struct, frozen=True):
    """A sentence about the values. Only an error stops ``helm`` or a node."""

    level: Literal["error", "note"]
    source: Literal["chart", "node"]
    what: str
    arches: tuple[str, ...] = ()
    """The architectures of the nodes that say so, as Kubernetes names them; empty for the chart."""


class CheckResult(Struct, frozen=True):
    """All findings, and for each architecture the shims that its nodes install and skip."""

    findings: tuple[ValuesFinding, ...]
    shims: Mapping[str, tuple[str, ...]]
    skipped: Mapping[str, Mapping[str, str]]
    """For each architecture the reason by the name of the shim."""

    @property
    def ok(self) -> bool:
        """Whether helm and the nodes accept the values."""
        return not any(each.level == "error" for each in self.findings)


def check(given: Mapping[Any, Any]) -> CheckResult:
    """Return the findings about the content of a values file, which helm merges with the chart's defaults."""
    values = merged(given)
    chart = list(schema.problems(values, chart_schema(), chart_schema()))
    # The rules expect values of the right types.
    if not chart:
        chart = [*rules.problems(values), *selection.problems(values)]
    findings = [ValuesFinding("error", "chart", what) for what in dict.fromkeys(chart)]
    problems: dict[str, list[str]] = {}
    empty: list[str] = []
    shims: dict[str, tuple[str, ...]] = {}
    skipped: dict[str, dict[str, str]] = {}
    for arch, machine in MACHINES.items():
        settings, found = read_settings(node_values(values), overrides={}, arch=machine)
        found = [*found, *(what for _, what in unsupported(settings))]
        others = [what for what in found if not what.startswith(NO_SHIM)]
        for what in others:
            problems.setdefault(what, []).append(arch)
        if not others and (found or not (settings.shims or settings.custom_runtimes)):
            empty.append(arch)
        skipped[arch] = dict(settings.skipped)
        shims[arch] = () if found else tuple(shim.name for shim in settings.shims)
    for what, arches in problems.items():
        findings.append(ValuesFinding("error", "node", what, tuple(arches)))
    if len(empty) == len(MACHINES):
        what = "shims: no enabled shim runs on any architecture; enable a shim"
        findings.append(ValuesFinding("error", "node", what, tuple(empty)))
    elif empty:
        findings.append(ValuesFinding("note", "node", "no enabled shim runs on these nodes", tuple(empty)))
    findings += [ValuesFinding("note", "node", what) for what in _without_effect(values)]
    findings.sort(key=lambda each: each.level)
    return CheckResult(tuple(findings), shims, skipped)


def _without_effect(values: Values) -> Iterator[str]:
    """Yield a sentence for each key that asks for something that no node does."""
    if at(values, "devkit") and not at(values, "debug"):
        yield "devkit: has no effect without debug: true"
    for shim in table().values():
        if shim.withdrawn and at(values, f"shims.{shim.name}.enabled"):
            yield f"shims.{shim.name}: Kata {shim.withdrawn} and later do not have it; nodes leave it out"


def to_text(name: str, result: CheckResult) -> str:
    """Return the result for people: the findings, and a line per architecture."""
    errors = len({each.what for each in result.findings if each.level == "error"})
    lines = [f"{name}: {pluralize(errors, 'error') if errors else 'no errors'}"]
    said: dict[tuple[str, str], list[str]] = {}
    for each in result.findings:
        arches = f" ({', '.join(each.arches)})" if 0 < len(each.arches) < len(MACHINES) else ""
        said.setdefault((each.level, each.what), []).append(each.source + arches)
    lines += [f"{level}: {', '.join(sources)}: {what}" for (level, what), sources in said.items()]
    for arch, names in result.shims.items():
        if names:
            others = f", skips {len(result.skipped[arch])}" if result.skipped[arch] else ""
            lines.append(f"{arch}: installs {pluralize(len(names), 'shim')}{others}: {', '.join(names)}")
    if any(OLDER_KEY in each.what for each in result.findings):
        lines.append("hint: run `kata-node values convert` to replace the keys of older charts")
    return "\n".join(lines)


def to_json(result: CheckResult) -> dict[str, Any]:
    """Return the result as one document."""
    return {
        "outcome": "ok" if result.ok else "failed",
        "findings": [
            {"level": each.level, "source": each.source, "what": each.what, "arches": list(each.arches)}
            for each in result.findings
        ],
        "shims": {arch: list(names) for arch, names in result.shims.items()},
        "skipped": {arch: dict(reasons) for arch, reasons in result.skipped.items()},
    }
