"""Check whether the values can select a node, like ``_selection.tpl`` of the chart. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from kata_node.kube.node_affinity import NAME_FIELD, OPERATORS
from kata_node.values.chart import Values, at, defaults

CONTROL_PLANE = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
"""The labels and taints of control-plane nodes."""

LABEL_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")
"""The operators of a label selector."""

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"

_INTEGER = re.compile(r"[-+]?[0-9]+")


class Requirement(Struct, frozen=True):
    """One requirement on a label or field of a node."""

    key: str
    operator: str
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.key} {self.operator}" + (f" ({', '.join(self.values)})" if self.values else "")


Term = tuple[Requirement, ...]


def problems(values: Values) -> Iterator[str]:
    """Yield a sentence for each problem of the keys that select nodes, in merged ``values``."""
    labels = _labels(values, "nodeSelector")
    found: list[str] = []
    terms = _terms(at(values, "affinity.nodeAffinity"), "affinity.nodeAffinity", found)
    tolerations = values.get("tolerations")
    discovery = at(values, "node-feature-discovery.enabled")
    job = values.get("deploymentMode") == "job"
    yield from found
    if found:
        return
    if not job:
        linux = [Requirement("kubernetes.io/os", "In", ("linux",))]
        yield from _unmatchable([*linux, *labels], _cross(terms, discovery), "nodeSelector or affinity")
        return
    own = _labels(values, "job.nodeSelector")
    given = at(values, "job.nodeSelectorExpressions")
    named = {each.key for each in (*labels, *own)} | {each.key for term in terms or () for each in term}
    named |= {each.get("key") for each in tolerations or ()}
    if given == at(defaults(), "job.nodeSelectorExpressions") and named & set(CONTROL_PLANE):
        given = []
    if not at(values, "job.nodes"):
        clashes = [
            f"job.nodeSelector: requires {one.key}={one.values[0]}, but nodeSelector requires "
            f"{other.key}={other.values[0]}, and no node has both; correct one of them"
            for one in own
            for other in labels
            if one.key == other.key and one.values != other.values
        ]
        expressions = _expressions(given, "job.nodeSelectorExpressions", found)
        yield from (*found, *clashes)
        if not found and not clashes:
            keys = "nodeSelector, affinity, job.nodeSelector or job.nodeSelectorExpressions"
            yield from _unmatchable([*expressions, *labels, *own], _cross(terms, discovery), keys)
    yield from _cleanup_problems(values)


def _cleanup_problems(values: Values) -> Iterator[str]:
    if at(values, "job.cleanup.nodes"):
        return
    found: list[str] = []
    key = "job.cleanup.nodeAffinity"
    terms = _terms(at(values, key), key, found)
    given = at(values, "job.cleanup.nodeSelectorExpressions")
    if terms and given == at(defaults(), "job.cleanup.nodeSelectorExpressions"):
        given = []
    expressions = _expressions(given, "job.cleanup.nodeSelectorExpressions", found)
    yield from found
    if not found:
        common = [*expressions, *_labels(values, "job.cleanup.nodeSelector")]
        yield from _unmatchable(common, terms, "one of the keys below job.cleanup")


def _labels(values: Values, path: str) -> list[Requirement]:
    labels: Mapping[object, object] = at(values, path) or {}
    return [
        Requirement(_text(key), "In", (_text(value),)) for key, value in labels.items() if value is not None
    ]


def _expressions(given: Sequence[Values] | None, where: str, found: list[str]) -> list[Requirement]:
    not_windows = Requirement("kubernetes.io/os", "NotIn", ("windows",))
    read = _requirements(given, where, LABEL_OPERATORS, found)
    return [*read, not_windows]


def _terms(affinity: Values | None, where: str, found: list[str]) -> list[Term] | None:
    """Return the required terms; ``None`` without any. Append problems to ``found``."""
    where = f"{where}.{REQUIRED}"
    required = at(affinity, REQUIRED)
    if required is None:
        return None
    terms: list[Term] = []
    for index, term in enumerate(required.get("nodeSelectorTerms") or ()):
        place = f"{where}.nodeSelectorTerms[{index}]"
        labels = _requirements(
            term.get("matchExpressions"), f"{place}.matchExpressions", tuple(OPERATORS), found
        )
        fields = _requirements(term.get("matchFields"), f"{place}.matchFields", ("In", "NotIn"), found)
        terms.append((*labels, *fields))
    if not any(terms) and not found:
        found.append(
            f"{where}.nodeSelectorTerms: has no requirement, so no node matches; add a requirement, or "
            f"remove {REQUIRED} to select every node"
        )
    return terms


def _requirements(
    given: Sequence[Values] | None, where: str, operators: Sequence[str], found: list[str]
) -> list[Requirement]:
    read: list[Requirement] = []
    for index, each in enumerate(given or ()):
        values = tuple(_text(value) for value in each.get("values") or ())
        requirement = Requirement(str(each.get("key") or ""), str(each.get("operator") or ""), values)
        if problem := _problem(requirement, operators):
            found.append(f"{where}[{index}].{problem}")
        else:
            read.append(requirement)
    return read


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _problem(given: Requirement, operators: Sequence[str]) -> str:
    """Return the key and the problem of a requirement; empty if there is none."""
    key, operator, values = given.key, given.operator, given.values
    if not key:
        return "key: is missing; set it to the name of a label"
    if len(operators) == 2 and key != NAME_FIELD:
        what = f"Kubernetes supports the field {NAME_FIELD} only, not {key}"
        return f"key: {what}; write matchExpressions for labels"
    if operator not in operators:
        return f"operator: {operator or 'nothing'} is none of {', '.join(operators)}; set one of these"
    if operator in ("In", "NotIn"):
        what = f"{operator} needs at least one value for {key}; add a value, or use Exists or DoesNotExist"
        return "" if values else f"values: {what}"
    if operator in ("Gt", "Lt"):
        right = len(values) == 1 and _INTEGER.fullmatch(values[0])
        return "" if right else f"values: {operator} needs one whole number for {key}; write it in quotes"
    what = f"{operator} takes no values for {key}; remove the values, or use In or NotIn"
    return f"values: {what}" if values else ""


def _cross(terms: list[Term] | None, discovery: object) -> list[Term] | None:
    """Return the terms, each combined with those of virtualization if the release labels nodes by it."""
    if not discovery:
        return terms
    able: list[Term] = [
        (
            Requirement(f"feature.node.kubernetes.io/cpu-cpuid.{name}", "In", ("true",)),
            Requirement("kubernetes.io/arch", "In", ("amd64",)),
        )
        for name in ("VMX", "SVM")
    ]
    able.append((Requirement("kubernetes.io/arch", "In", ("arm64", "ppc64le", "s390x")),))
    return [(*one, *other) for one in able for other in terms if other] if terms else able


def _unmatchable(common: Sequence[Requirement], terms: list[Term] | None, keys: str) -> Iterator[str]:
    reasons = [contradiction((*common, *term)) for term in ([()] if terms is None else filter(None, terms))]
    if all(reasons):
        yield f"{keys}: no node can have {reasons[0]}; correct one of them"


def contradiction(requirements: Sequence[Requirement]) -> str:
    """Return the requirements on one key that no node can meet together, as text; empty if there are none."""
    for key in sorted({each.key for each in requirements}):
        ours = [each for each in requirements if each.key == key]
        if _impossible(ours):
            return " and ".join(map(str, ours))
    return ""


def _impossible(ours: Sequence[Requirement]) -> bool:
    present = any(each.operator not in ("NotIn", "DoesNotExist") for each in ours)
    if present and any(each.operator == "DoesNotExist" for each in ours):
        return True
    least = max((int(each.values[0]) + 1 for each in ours if each.operator == "Gt"), default=None)
    most = min((int(each.values[0]) - 1 for each in ours if each.operator == "Lt"), default=None)
    limited = [set(each.values) for each in ours if each.operator == "In"]
    if limited:
        return not any(
            all(OPERATORS[each.operator](value, each.values) for each in ours)
            for value in set.intersection(*limited)
        )
    return least is not None and most is not None and least > most
