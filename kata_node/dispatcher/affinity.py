"""Read the terms of a node affinity from the configuration of the dispatcher."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kata_node.kube.node_affinity import NAME_FIELD, OPERATORS, Term
from kata_node.settings.values import ValuesReader, describe_value

LABEL_KEY = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
"""The syntax of a label key."""


def read_terms(selection: ValuesReader) -> tuple[Term, ...]:
    """Return ``nodeSelectorTerms`` of a section of the configuration; report its problems to the section."""
    terms: list[Term] = []
    for index, item in enumerate(items := selection.unchecked_list("nodeSelectorTerms")):
        where = f"nodeSelectorTerms[{index}]"
        if not isinstance(item, dict):
            selection.add_problem(where, f"expected a mapping, got {describe_value(item)}")
            continue
        with ValuesReader(item, selection.path(where), selection.problems) as reader:
            term = {key: _requirements(reader, key) for key in ("matchExpressions", "matchFields")}
        terms.append(term)
    if selection.has("nodeSelectorTerms") and not items:
        selection.add_problem("nodeSelectorTerms", "is empty, so no node matches; remove the key")
    return tuple(terms)


def _requirements(term: ValuesReader, kind: str) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for index, item in enumerate(term.unchecked_list(kind)):
        where = f"{kind}[{index}]"
        if not isinstance(item, dict):
            term.add_problem(where, f"expected a mapping, got {describe_value(item)}")
            continue
        with ValuesReader(item, term.path(where), term.problems) as requirement:
            key, values = requirement.text("key"), requirement.text_list("values") or ()
            operator = requirement.choice("operator", ("", *OPERATORS))
        if not operator and not requirement.has("operator"):
            requirement.add_problem("operator", f"is missing; set one of {', '.join(OPERATORS)}")
        if kind == "matchFields" and key != NAME_FIELD:
            requirement.add_problem("key", f"{describe_value(key)} is not {NAME_FIELD}")
        elif not LABEL_KEY.fullmatch(key):
            requirement.add_problem("key", f"{describe_value(key)} is not a valid label key")
        found.append({"key": key, "operator": operator, "values": values})
    return found
