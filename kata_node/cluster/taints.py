"""Startup taints: those that keep pods off a Node until Kata is there, told apart from all others. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from kata_node.kube.node import Taint


def is_startup_taint(taint: Taint, startup: Collection[str]) -> bool:
    """Whether one of ``startup``, each ``key`` or ``key:effect``, means this taint, whatever its value."""
    return taint["key"] in startup or name(taint) in startup


def without_startup_taints(taints: Sequence[Taint], startup: Collection[str]) -> list[Taint]:
    """All but the startup taints, in their order."""
    return [taint for taint in taints if not is_startup_taint(taint, startup)]


def mismatched_taints(taints: Sequence[Taint], startup: Collection[str]) -> tuple[str, ...]:
    """The taints that have the key of a startup taint, and an effect that none with that key has."""
    keys = {each.partition(":")[0] for each in startup}
    return tuple(name(each) for each in taints if each["key"] in keys and not is_startup_taint(each, startup))


def name(taint: Taint) -> str:
    """``key:effect``, which is what sets a taint of a Node apart from its others."""
    return f"{taint['key']}:{taint['effect']}"
