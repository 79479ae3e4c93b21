"""The check of host-check about the kubelet's timeout for slow requests. Pure.

With guest pull the guest pulls the image while the container is created. With EROFS the layers are converted
while the image is pulled. Both can take longer than the kubelet's default of two minutes. The kubelet then
gives up and starts again, without end for a large image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kata_node.kata.user_drop_in import GUEST_PULL_FEATURE
from kata_node.plan.report import Finding
from kata_node.settings.handlers import handlers
from kata_node.snapshotters.mapping import EROFS, NYDUS

if TYPE_CHECKING:
    from kata_node.checks.kubelet_facts import RequestTimeout
    from kata_node.settings.handlers import Handler
    from kata_node.settings.model import Settings

NAME = "kubelet-timeout"
WANTED = 600.0  # seconds


def slow_handlers(settings: Settings) -> list[Handler]:
    """Return the handlers whose images are pulled in the guest or converted to EROFS."""
    return [handler for handler in handlers(settings) if _is_slow(settings, handler)]


def _is_slow(settings: Settings, handler: Handler) -> bool:
    forced = settings.for_shim(handler.shim).force_guest_pull and not handler.is_custom
    # Go's key in a drop-in of the user ends with the name of the feature of runtime-rs.
    return (
        handler.snapshotter in (EROFS, NYDUS)
        or handler.guest_pull
        or forced
        or GUEST_PULL_FEATURE in handler.drop_in
    )


def checks(settings: Settings, found: RequestTimeout | None) -> Iterator[Finding]:
    """Yield the finding if a handler is slow. ``found`` is ``None`` if the timeout is not known."""
    slow = slow_handlers(settings)
    if not slow:
        return
    names = ", ".join(handler.name for handler in slow)
    if found is None:
        yield Finding(
            NAME,
            "skip",
            "the kubelet's configuration is not visible here; its runtimeRequestTimeout should be 10m or "
            f"longer, because of guest pull or EROFS: {names}",
        )
    elif found.seconds >= WANTED:
        yield Finding(NAME, "pass", f"the kubelet waits {found.seconds:g} s for the runtime")
    else:
        yield Finding(
            NAME,
            "warn",
            f"the kubelet waits only {found.seconds:g} s for the runtime ({found.place}), and large images "
            f"take longer with guest pull or EROFS: {names}",
            f"set {_setting(found.place)}, and restart the kubelet",
        )


def _setting(place: str) -> str:
    if place.startswith("kubelet-arg"):
        return f"runtime-request-timeout=10m as {place}"
    return f"{place}=10m" if place.startswith("--") else f"runtimeRequestTimeout: 10m in {place}"
