"""Pods that run on handlers which are to be taken away: who they are, and how long they are waited for.

A runtime that starts finds the sandboxes that run by their shims. Of one whose shim or handler is gone it
knows nothing any more: its pod stays Terminating for ever, or counts as ended while its VM runs on, as
seen on containerd 2.1.9. So a stage that takes handlers away does nothing at all while pods run on them,
unless it was told to.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kata_node.errors import KataNodeError

if TYPE_CHECKING:
    from kata_node.host.cri_sandboxes import Pod

MAX_NAMED_PODS = 10
"""How many pods are told by name; a person needs some to find the rest."""

ORPHANED_POD_WARNING = (
    "once the runtime restarts again nothing can end such a pod: it stays Terminating, or runs on unseen"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BlockingPods:
    """Pods on handlers that are to be taken away; there is at least one."""

    pods: tuple[Pod, ...]

    def __str__(self) -> str:
        one = len(self.pods) == 1
        run = "1 pod runs on a handler" if one else f"{len(self.pods)} pods run on handlers"
        return f"{run} to be taken away: {self.names}"

    @property
    def names(self) -> str:
        """The first of them, each as ``namespace/name (handler)``, and how many more there are."""
        more = len(self.pods) - MAX_NAMED_PODS
        return ", ".join(map(str, self.pods[:MAX_NAMED_PODS])) + (f" and {more} more" if more > 0 else "")

    def refusal(self, waited: float) -> KataNodeError:
        """Why nothing is done, and what can be, after ``waited`` seconds."""
        longer = "waited for longer" if waited else "waited for"
        return KataNodeError(
            f"after {waited:g} s still {self}" if waited else str(self),
            hint=f"end them (kubectl delete pod, or kubectl drain for all of the node), have them {longer} "
            f"with --wait-for-pods SECONDS, or go on with --ignore-pods (in the values of the chart: "
            f"runningPods.waitSeconds and runningPods.ignore): {ORPHANED_POD_WARNING}",
        )

    def note(self) -> str:
        """What there is to say when it was done all the same."""
        return f"handlers were taken away from pods that run on them, {self.names}: {ORPHANED_POD_WARNING}"


def blocking_pods(pods: Iterable[Pod] | None, handlers_to_remove: Collection[str]) -> BlockingPods | None:
    """Those of ``pods`` that run on handlers that are ``going``, if any."""
    found = tuple(pod for pod in pods or () if pod.handler in handlers_to_remove)
    return BlockingPods(found) if found else None


def unknown_pods_notes(pods: Iterable[Pod] | None, handlers_to_remove: Collection[str]) -> tuple[str, ...]:
    """A note where nobody could tell which pods run on what is ``going``."""
    if pods is not None or not handlers_to_remove:
        return ()
    return (f"the runtime could not be asked which pods run on {', '.join(sorted(handlers_to_remove))}",)
