"""Record in the state of the release what became of a rollout, because Jobs and their Pods are deleted.

The value of the key is a JSON document of at most :data:`SIZE_LIMITS` bytes::

    {"action": "install" or "cleanup", "job": "the dispatcher's Job", "generation": "of the chart's values",
     "program": "0.3.0", "begun": "2026-10-03T08:12:44Z", "ended": "…, missing while it runs",
     "outcome": "ok", "failed", "stopped" or "interrupted", "reason": "why it stopped or failed",
     "counts": {"done": 3, …}, "nodes": {"failed": {"worker-1": "the reason"}, …}, "omitted": 0}

``nodes`` has the nodes that are not as wanted, by outcome. If the document is too long, all reasons are cut
to the same length, and then nodes at the end are left out: ``omitted`` is their number, ``counts`` has all.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import msgspec

from kata_node import __version__
from kata_node.dispatcher.api import ApiClient
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.desired_state import state_path
from kata_node.dispatcher.progress import WORST_FIRST, Result
from kata_node.dispatcher.rollout import Outcome, Task
from kata_node.dispatcher.shutdown import ShutdownRequested
from kata_node.dispatcher.template import Owner
from kata_node.errors import KataNodeError, KubeError
from kata_node.kube.release_state import RECONCILE_KEY, ROLLOUT_KEY
from kata_node.text import foreign_words, utc

SIZE_LIMITS: Mapping[str, int] = {ROLLOUT_KEY: 416 << 10, RECONCILE_KEY: 92 << 10}
"""Bytes of each document, 508 KiB together; a ConfigMap has at most 1 MiB."""

REASON_LIMITS = (600, 256, 128, 64, 32, 0)
"""Characters of each reason; the first limit with which the document is short enough is used."""

AS_WANTED = frozenset({Outcome.DONE, Outcome.UNCHANGED, Outcome.SKIPPED, Outcome.GONE})

TIMEOUT = 10.0
"""Seconds for a request. The Pod may be stopped, and then has only its grace period."""

log = logging.getLogger(__name__)


def end_of(result: Result) -> dict[str, Any]:
    """Return the part of the document that is known at the end of a run."""
    counts = Counter(task.outcome for task in result.tasks)
    return {
        "outcome": result.outcome,
        "reason": foreign_words(result.reason),
        "counts": {str(each): counts[each] for each in Outcome if counts[each]},
    }


def encode(document: Mapping[str, Any], tasks: Sequence[Task], limit: int) -> str:
    """Return ``document`` with the nodes of ``tasks`` that are not as wanted, in at most ``limit`` bytes."""
    left = [task for task in tasks if task.outcome not in AS_WANTED]
    left.sort(key=lambda task: (WORST_FIRST.index(task.outcome), task.target.name))
    for reason_limit in REASON_LIMITS:
        entries = [(str(task.outcome), task.target.name, _reason(task, reason_limit)) for task in left]
        text = _json({**document, "nodes": _nodes(entries), "omitted": 0})
        if len(text) <= limit:
            return text.decode()
    room = limit - len(
        _json({**document, "nodes": {str(each): {} for each in Outcome}, "omitted": len(left)})
    )
    kept = 0
    for _, name, _ in entries:
        room -= len(_json({name: ""}))
        if room < 0:
            break
        kept += 1
    return _json({**document, "nodes": _nodes(entries[:kept]), "omitted": len(left) - kept}).decode()


def _nodes(entries: Sequence[tuple[str, str, str]]) -> dict[str, dict[str, str]]:
    nodes: dict[str, dict[str, str]] = {}
    for outcome, name, reason in entries:
        nodes.setdefault(outcome, {})[name] = reason
    return nodes


def _reason(task: Task, limit: int) -> str:
    return foreign_words(str(task.problem or task.note), limit) if limit else ""


def _json(document: Mapping[str, Any]) -> bytes:
    return msgspec.json.encode(document)


class RolloutRecorder:
    """Records one run. A failed request is only logged.

    As a context manager it records the begin, and the end if an exception ends the run.
    """

    def __init__(self, api: ApiClient, config: Config, owner: Owner | None) -> None:
        self._api = api
        self._path = state_path(config)
        self._key = RECONCILE_KEY if config.skip_serving else ROLLOUT_KEY
        self._document: dict[str, Any] = {
            "action": config.action,
            "job": owner.name if owner else "",
            "generation": config.generation,
            "program": __version__,
            "begun": utc(time.time()),
        }

    def __enter__(self) -> RolloutRecorder:
        self._write(_json(self._document).decode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            reason = f"unexpected error: {error}"
            if isinstance(error, KataNodeError):
                reason = error.what
            elif isinstance(error, ShutdownRequested):
                reason = "the dispatcher was asked to stop"
            self._end({"outcome": "interrupted", "reason": foreign_words(reason), "counts": {}}, ())

    def record_end(self, result: Result) -> None:
        """Record the result of the run."""
        self._end(end_of(result), result.tasks)

    def _end(self, end: Mapping[str, Any], tasks: Sequence[Task]) -> None:
        document = {**self._document, "ended": utc(time.time()), **end}
        self._write(encode(document, tasks, SIZE_LIMITS[self._key]))

    def _write(self, value: str) -> None:
        body = msgspec.json.encode({"data": {self._key: value}})
        try:
            self._api.call_once(
                "PATCH", self._path, "patch the state of the release", body=body, timeout=TIMEOUT
            )
        except KubeError as error:
            log.warning("the rollout could not be recorded in the state of the release: %s", error)
