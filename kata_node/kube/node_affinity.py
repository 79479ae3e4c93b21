"""Decide whether the terms of a node affinity match a Node, like the scheduler."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

Labels = Mapping[str, str]
Term = Mapping[str, Any]
"""A ``nodeSelectorTerm`` of the API: ``matchExpressions`` and ``matchFields``, each a list or ``None``."""

NAME_FIELD = "metadata.name"
"""The only field that Kubernetes supports in ``matchFields``."""

FEATURE_LABELS = "feature.node.kubernetes.io/"
"""The prefix of the labels that node-feature-discovery sets. Every Node that it has seen has some of them."""

# Go reads a number in this form. int() also takes blanks and underscores, which a label value can have.
_INTEGER = re.compile(r"[-+]?[0-9]+")


def any_term_matches(terms: Iterable[Term] | None, node: str, labels: Labels) -> bool:
    """Return whether one of the ``terms`` matches the Node ``node``. No term matches no node."""
    return any(_term_matches(term, node, labels) for term in terms or ())


def features_are_missing(terms: Iterable[Term] | None, node: str, labels: Labels) -> bool:
    """Return whether one of the ``terms`` may match when node-feature-discovery has labeled the Node.

    That is so when the Node has none of its labels, and meets all other requirements of the term. A Node
    without these labels is new, or an upgrade has just added node-feature-discovery.
    """
    if any(label.startswith(FEATURE_LABELS) for label in labels):
        return False
    for term in terms or ():
        by_label, by_field = term.get("matchExpressions") or (), term.get("matchFields") or ()
        others = [each for each in by_label if not each["key"].startswith(FEATURE_LABELS)]
        if (
            len(others) < len(by_label)
            and _requirements_match(others, labels)
            and _requirements_match(by_field, {NAME_FIELD: node})
        ):
            return True
    return False


def _term_matches(term: Term, node: str, labels: Labels) -> bool:
    """Return whether the node meets all requirements of a term. An empty term matches no node."""
    by_label, by_field = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not by_label and not by_field:
        return False
    return _requirements_match(by_label, labels) and _requirements_match(by_field, {NAME_FIELD: node})


def _requirements_match(requirements: Sequence[Mapping[str, Any]], labels: Labels) -> bool:
    return all(
        # An unknown operator of a newer Kubernetes counts as met.
        OPERATORS.get(each["operator"], _always_matches)(labels.get(each["key"]), each.get("values") or ())
        for each in requirements
    )


def _always_matches(_value: str | None, _values: Sequence[str]) -> bool:
    return True


def _compares(value: str | None, values: Sequence[str], *, sign: int) -> bool:
    """Return whether ``value`` is above (``sign`` 1) or below (-1) the single integer in ``values``.

    It is false when either of them is not an integer.
    """
    if value is None or len(values) != 1 or not all(map(_INTEGER.fullmatch, (value, *values))):
        return False
    return (int(value) - int(values[0])) * sign > 0


OPERATORS: Mapping[str, Callable[[str | None, Sequence[str]], bool]] = {
    "In": lambda value, values: value is not None and value in values,
    "NotIn": lambda value, values: value is None or value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
    "Gt": lambda value, values: _compares(value, values, sign=1),
    "Lt": lambda value, values: _compares(value, values, sign=-1),
}
"""Each operator of the API as a function of a label's value (``None`` if it is missing) and the values."""
