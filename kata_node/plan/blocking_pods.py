"""Pods that run on handlers which a change would remove, and the messages about them.

When a runtime starts, it finds running sandboxes through their shims. It loses a sandbox whose shim or
handler was removed: the pod stays Terminating forever, or counts as ended while its VM keeps running
(measured on containerd 2.1.9). So a stage that removes handlers changes nothing while pods run on them,
unless the options allow it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from msgspec import Struct

from kata_node.errors import PodsRunError
from kata_node.text import first_of

if TYPE_CHECKING:
    from kata_node.host.cri_sandboxes import Pod

MAX_NAMED_PODS = 10
"""Maximum number of pods that a message names."""

ORPHANED_POD_WARNING = (
    "after the next restart of the runtime nothing can end such a pod: it stays Terminating, or keeps "
    "running unnoticed"
)

log = logging.getLogger(__name__)


class BlockingPods(Struct, frozen=True):
    """Pods on handlers that a change would remove; at least one."""

    pods: tuple[Pod, ...]

    def __str__(self) -> str:
        one = len(self.pods) == 1
        run = "1 pod runs on a handler" if one else f"{len(self.pods)} pods run on handlers"
        return f"{run} that would be removed: {self.names}"

    @property
    def names(self) -> str:
        """The first pods, each as ``namespace/name (handler)``, and the number of further pods."""
        return first_of(self.pods, MAX_NAMED_PODS)

    def refusal(self, waited: float) -> PodsRunError:
        """Return the error of a stage that changed nothing after it waited ``waited`` seconds."""
        return PodsRunError(
            f"after {waited:g} s of waiting, {self}" if waited else str(self),
            hint="delete these pods (kubectl delete pod, or kubectl drain for the whole node); or set "
            "--wait-for-pods SECONDS (chart: runningPods.waitSeconds) to wait "
            f"{'longer' if waited else 'for their end'}; or set --ignore-pods (chart: runningPods.ignore) to "
            f"remove the handlers anyway, but {ORPHANED_POD_WARNING}",
        )

    def note(self) -> str:
        """Return the note of a stage that removed the handlers anyway."""
        return f"handlers were removed while pods run on them: {self.names}; {ORPHANED_POD_WARNING}"


def blocking_pods(pods: Iterable[Pod] | None, handlers_to_remove: Collection[str]) -> BlockingPods | None:
    """Return the pods on ``handlers_to_remove``, or ``None`` if there are none.

    ``pods`` is ``None`` if the runtime did not answer; the result is ``None`` then as well.
    """
    found = tuple(pod for pod in pods or () if pod.handler in handlers_to_remove)
    return BlockingPods(found) if found else None


def unknown_pods_notes(pods: Iterable[Pod] | None, handlers_to_remove: Collection[str]) -> tuple[str, ...]:
    """Return a note if ``pods`` is ``None``, that is if the runtime did not answer which pods run."""
    if pods is not None or not handlers_to_remove:
        return ()
    names = ", ".join(sorted(handlers_to_remove))
    return (f"the runtime did not answer, so it is unknown which pods run on {names}",)
