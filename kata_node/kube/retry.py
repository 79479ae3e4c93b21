"""Retry requests to the API server with pauses, until a deadline."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from msgspec import Struct

from kata_node import signals
from kata_node.errors import KataNodeError
from kata_node.kube.failures import RequestFailure, classify_error

REQUEST_TIMEOUT = 35.0
"""Seconds for a whole request, from the name lookup to the last byte of the answer. An admission webhook
may take 30 of them."""

MIN_REQUEST_TIMEOUT = 1.0
"""The minimum of seconds for a request, even if the deadline is nearer."""

MAX_AUTH_TRIES = 6
"""The number of attempts with refused credentials. A rotated token, a new role, or an API server that has
not loaded its ServiceAccounts and roles yet is refused for only some seconds."""

INITIAL_BACKOFF, MAX_BACKOFF = 0.5, 10.0
CONFLICT_BACKOFF = 0.1

FIRST_READ_PAUSE, MAX_READ_PAUSE = 2.0, 5.0
"""Seconds between the first two reads of a Node that is waited for; they double up to the maximum. A kubelet
looks for changes every ten seconds, so more reads would find nothing new."""

T = TypeVar("T")

log = logging.getLogger(__name__)


def _random() -> float:
    import random  # imported late: lightkube loads it anyway, other commands do not need it

    return random.random()  # noqa: S311 - spreads the retries of many nodes  # nosec B311


class Clock(Struct, frozen=True):
    """Time for retries: a monotonic clock and a sleep, both in seconds, and a random number in [0, 1)."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = signals.sleep
    jitter: Callable[[], float] = _random


REAL_CLOCK = Clock()


def retry_until(
    request: Callable[[], T],
    deadline: float,
    clock: Clock,
    request_timeout: float,
    make_error: Callable[[RequestFailure, int], KataNodeError],
) -> T:
    """Return the result of ``request()``; repeat it until ``deadline`` while its failure is retryable.

    ``make_error`` returns the error to raise at the end, from the last failure and the number of attempts.
    """
    tries = refused = 0
    while True:
        try:
            left = max(deadline - clock.now(), MIN_REQUEST_TIMEOUT)
            return within(min(request_timeout, left), request)
        except Exception as error:
            failure = classify_error(error)
            if failure is None:
                raise
            tries += 1
            refused += failure.status in (401, 403)
            pause = max(failure.retry_after, _backoff(tries, clock))
            late = clock.now() + pause >= deadline
            if late or not failure.retryable or refused >= MAX_AUTH_TRIES:
                raise make_error(failure, tries) from error
        log.warning("the API server %s; trying again in %.1f s", failure.what, pause)
        clock.sleep(pause)


def read_pauses() -> Iterator[float]:
    """Yield the seconds between the reads of a Node that is waited for."""
    pause = FIRST_READ_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, MAX_READ_PAUSE)


def conflict_backoff(conflicts: int, clock: Clock) -> float:
    """Return the seconds to wait after so many conflicts in a row, almost none after the first."""
    return CONFLICT_BACKOFF * conflicts * (1 + clock.jitter()) / 2


def _backoff(tries: int, clock: Clock) -> float:
    """Return the seconds to wait after so many failures: they double, with jitter to spread the nodes."""
    return min(MAX_BACKOFF, INITIAL_BACKOFF * 2.0 ** min(tries - 1, 10)) * (1 + clock.jitter()) / 2


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return the result of ``call()``; raise :class:`TimeoutError` when it takes longer than ``seconds``.

    The call runs in a thread, because the timeout of a socket starts again with every received byte, and a
    name lookup or a credential plugin has no timeout at all. After a timeout the thread continues in the
    background, until the process ends at the latest.
    """
    import queue
    import threading

    ended: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((call(), None))
        except BaseException as error:
            ended.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = ended.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"none within {seconds:.3g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
