"""Which annotations of a pod a Kata configuration allows to change its hypervisor. Pure."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence

from kata_node.kata.documented_keys import annotation_names
from kata_node.kata.merge import Table, all_strings, section
from kata_node.settings.values import closest_name


def pattern_problems(name: str, patterns: Sequence[str], base: Table) -> Iterator[str]:
    """Yield a sentence for each of ``patterns`` that allows no annotation. ``name`` is the key of the list.

    Kata searches the names of annotations for each pattern, a regular expression. runtime-rs allows no
    annotation at all if one pattern is not valid. The names in the base configuration ``base`` are known.
    """
    if not patterns:
        return
    known = set(annotation_names())
    for hypervisor in section(base, "hypervisor"):
        known.update(all_strings(section(base, "hypervisor", hypervisor).get("enable_annotations")))
    for pattern in patterns:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expression = re.compile(pattern)
        except (re.error, RecursionError, OverflowError):
            yield f'{name} has "{pattern}", which is not a valid regular expression'
            continue
        if not any(map(expression.search, known)):
            close = closest_name(pattern, known)
            hint = f"; did you mean {close}?" if close else ""
            yield f'{name} has "{pattern}", which allows no annotation that Kata has{hint}'
