"""Pods that run on handlers which are to be taken away: who they are, and how long they are waited for.

A runtime that starts finds the sandboxes that run by their shims. Of one whose shim or handler is gone it
knows nothing any more: its pod stays Terminating for ever, or counts as ended while its VM runs on, as
seen on containerd 2.1.9. So a stage that takes handlers away does nothing at all while pods run on them,
unless it was told to.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kata_node.errors import CriError, KataNodeError

if TYPE_CHECKING:
    from kata_node.actions import Plan
    from kata_node.facts import Options
    from kata_node.host.sandboxes import Pod

NAMED = 10
"""How many pods are told by name; a person needs some to find the rest."""
POLL = 1.0  # seconds between two looks at what still runs
REMINDER = 30.0  # seconds after which a wait says again what it waits for

FATE = "once the runtime restarts again nothing can end such a pod: it stays Terminating, or runs on unseen"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class InTheWay:
    """Pods on handlers that are to be taken away; there is at least one."""

    pods: tuple[Pod, ...]

    def __str__(self) -> str:
        one = len(self.pods) == 1
        run = "1 pod runs on a handler" if one else f"{len(self.pods)} pods run on handlers"
        return f"{run} to be taken away: {self.names}"

    @property
    def names(self) -> str:
        """The first of them, each as ``namespace/name (handler)``, and how many more there are."""
        more = len(self.pods) - NAMED
        return ", ".join(map(str, self.pods[:NAMED])) + (f" and {more} more" if more > 0 else "")

    def refusal(self, waited: float) -> KataNodeError:
        """Why nothing is done, and what can be, after ``waited`` seconds."""
        longer = "waited for longer" if waited else "waited for"
        return KataNodeError(
            f"after {waited:g} s still {self}" if waited else str(self),
            hint=f"end them (kubectl delete pod, or kubectl drain for all of the node), have them {longer} "
            f"with --wait-for-pods SECONDS, or go on with --ignore-pods (in the values of the chart: "
            f"runningPods.waitSeconds and runningPods.ignore): {FATE}",
        )

    def note(self) -> str:
        """What there is to say when it was done all the same."""
        return f"handlers were taken away from pods that run on them, {self.names}: {FATE}"


def in_the_way(pods: Iterable[Pod] | None, going: Collection[str]) -> InTheWay | None:
    """Those of ``pods`` that run on handlers that are ``going``, if any."""
    found = tuple(pod for pod in pods or () if pod.handler in going)
    return InTheWay(found) if found else None


def unknown(pods: Iterable[Pod] | None, going: Collection[str]) -> tuple[str, ...]:
    """A note where nobody could tell which pods run on what is ``going``."""
    if pods is not None or not going:
        return ()
    return (f"the runtime could not be asked which pods run on {', '.join(sorted(going))}",)


def plan_when_free(plan: Callable[[], Plan], let_go: Callable[[], None], options: Options) -> Plan:
    """What ``plan()`` says once nothing is in its way, or it is to be carried out all the same.

    ``plan`` takes the node's lock where it is not held, and is asked anew at every look. ``let_go`` gives
    the lock back: a wait writes nothing and can be long, and others may work on the node meanwhile.
    Raises the refusal when ``options.wait_for_pods`` seconds were not enough.
    """
    found = plan()
    deadline = time.monotonic() + options.wait_for_pods
    # From here on a runtime that does not answer for a moment has not lost the pods it had.
    said: InTheWay | None = None
    said_at = 0.0
    while found.in_the_way is not None:
        now = time.monotonic()
        if now >= deadline:
            if not options.ignore_pods:
                raise found.in_the_way.refusal(options.wait_for_pods)
            log.warning("%s; going on all the same", found.in_the_way)
            return replace(found, in_the_way=None, notes=(*found.notes, found.in_the_way.note()))
        if found.in_the_way != said or now - said_at >= REMINDER:
            said, said_at = found.in_the_way, now
            log.info("%s; waiting for at most %.0f s", said, deadline - now)
        let_go()
        time.sleep(min(POLL, deadline - now))
        found = _again(plan, found)
    return found


def _again(plan: Callable[[], Plan], before: Plan) -> Plan:
    """What ``plan()`` says by now; the pods are those of ``before`` where it cannot tell."""
    try:
        found = plan()
    except CriError as error:
        log.debug("the runtime cannot be asked just now: %s", error)
        return before
    return replace(found, in_the_way=before.in_the_way) if found.cannot_tell else found
