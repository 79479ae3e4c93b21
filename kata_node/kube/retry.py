"""How long a request is tried and waited for: pauses, tries, and an end to it all."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kata_node.errors import KataNodeError
from kata_node.kube.failures import RequestFailure, classify_error

REQUEST_TIMEOUT = 35.0
"""Seconds for a whole request, from the look-up of the name to the last byte of the answer: an
admission webhook may take 30 of them."""

MIN_REQUEST_TIMEOUT = 1.0
"""Seconds that a request is given, however near the deadline is when it is made."""

MAX_AUTH_TRIES = 6
"""How often a refused account is tried: a token is rotated, a role is new, an API server has just
started and has not read the ServiceAccounts or the roles yet; all of that comes right within seconds."""

INITIAL_BACKOFF, MAX_BACKOFF = 0.5, 10.0
CONFLICT_BACKOFF = 0.1

T = TypeVar("T")

log = logging.getLogger(__name__)


def _random() -> float:
    import random  # lightkube loads it anyway; nothing else here needs it

    return random.random()  # noqa: S311 - spreads retries of many nodes, guards nothing


@dataclass(frozen=True)
class Clock:
    """What passes time: seconds of a clock that only goes forward, a way to wait, a number in [0, 1)."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = _random


REAL_CLOCK = Clock()


def retry_until(
    request: Callable[[], T],
    deadline: float,
    clock: Clock,
    request_timeout: float,
    make_error: Callable[[RequestFailure, int], KataNodeError],
) -> T:
    """What ``request()`` returns, made again and again while its failure may pass and the deadline is ahead.

    ``refuse`` gives the error to be raised in the end, of the last failure and the number of tries.
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


def conflict_backoff(conflicts: int, clock: Clock) -> float:
    """Seconds until what another writer has just changed is read again: at first next to none."""
    return CONFLICT_BACKOFF * conflicts * (1 + clock.jitter()) / 2


def _backoff(tries: int, clock: Clock) -> float:
    """Seconds to wait after so many failures: doubling, and spread so that nodes do not march in step."""
    return min(MAX_BACKOFF, INITIAL_BACKOFF * 2.0 ** min(tries - 1, 10)) * (1 + clock.jitter()) / 2


def within(seconds: float, call: Callable[[], T]) -> T:
    """What ``call()`` returns or raises; :class:`TimeoutError` when that takes longer than ``seconds``.

    The timeout of a socket starts anew with every byte, so that a server that sends one now and then
    holds its client for ever; looking up a name, and a program that gives out credentials, have none
    at all. The call is therefore made in a thread. Given up, it is left behind, and ends with the
    process at the latest.
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
