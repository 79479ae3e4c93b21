"""Find startup taints among the taints of a Node. They keep pods away until Kata is installed. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kata_node.kube.node import Taint


def is_startup_taint(taint: Taint, startup: Collection[str]) -> bool:
    """Return whether ``startup`` lists this taint, as ``key`` or ``key:effect``, with any value."""
    return taint["key"] in startup or name(taint) in startup


def without_startup_taints(taints: Sequence[Taint], startup: Collection[str]) -> list[Taint]:
    """Return all taints that are not startup taints, in their order."""
    return [taint for taint in taints if not is_startup_taint(taint, startup)]


def mismatched_taints(taints: Sequence[Taint], startup: Collection[str]) -> tuple[str, ...]:
    """Return the taints with the key of a startup taint but an effect that ``startup`` does not list."""
    keys = {each.partition(":")[0] for each in startup}
    return tuple(name(each) for each in taints if each["key"] in keys and not is_startup_taint(each, startup))


def name(taint: Taint) -> str:
    """Return ``key:effect``, which identifies a taint of a Node."""
    return f"{taint['key']}:{taint['effect']}"
