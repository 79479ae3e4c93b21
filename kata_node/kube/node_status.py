"""The record of an installation on its Node: an annotation with all of it, and two labels for ``kubectl``.

Whoever may label the Node writes the three keys in the same request as the other labels. They say what
became of the last install or revert. Whether the node serves is said by the labels of
:mod:`kata_node.cluster.labels` alone. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Literal, cast, get_args

from msgspec import Struct, to_builtins
from msgspec.structs import replace

from kata_node.kube.node import MetadataChanges, is_same_machine
from kata_node.text import RELEASE, foreign_words

STATUS_ANNOTATION_PREFIX = "status.kata-deploy.katacontainers.io/"
"""The prefix of the annotations with the records. The name of the installation follows, as in the labels."""

VERSION_LABEL_PREFIX = "version.kata-deploy.katacontainers.io/"
OUTCOME_LABEL_PREFIX = "outcome.kata-deploy.katacontainers.io/"

SIZE_LIMIT = 4096
"""Characters of an annotation; the admission policies of the chart refuse a longer one."""

REASON_LIMIT = 256
"""Characters of :attr:`NodeStatus.reason`."""

TEXT_LIMIT = 64
"""Characters of each other text."""

RELEASE_LIMIT = 128
"""Characters of :attr:`NodeStatus.release`. The name of a namespace has at most 63, that of a release 53."""

HANDLERS_LIMIT = 40
"""Handlers in a record. With more than these it has none, because a part of them would mislead."""

UNKNOWN = "unknown"
"""The value of the label of the version when the version is not known."""

Outcome = Literal["installing", "installed", "failed", "rolled-back", "unfit", "removing"]

_SINCE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class NodeStatus(Struct, frozen=True):
    """What became of the last install or revert of one installation on one Node.

    ``kata_version`` is that of Kata's files, empty if it is not known. ``program_version`` is that of
    kata-node. ``settings`` is the beginning of the sha256 of the settings. ``since`` is the time in UTC at
    which any other field changed, as ``2026-10-03T08:12:44Z``. ``machine_id`` is what the Node reported.
    ``release`` is the one that installs, as ``NAMESPACE/NAME``; empty for an install by hand.
    """

    outcome: Outcome
    kata_version: str = ""
    program_version: str = ""
    settings: str = ""
    since: str = ""
    reason: str = ""
    """Why the outcome is not ``installed``, in one line; empty if there is nothing to explain."""
    machine_id: str = ""
    handlers: tuple[str, ...] = ()
    """The handlers that this installation serves on the Node; empty unless it is ``installed``."""
    release: str = ""


def is_of_other_machine(record: NodeStatus, machine_id: str) -> bool:
    """Return whether the record is of another machine than ``machine_id``. An unknown id matches any."""
    return bool(record.machine_id and machine_id) and not is_same_machine(record.machine_id, machine_id)


def annotation(installation: str) -> str:
    """Return the key of the annotation of ``installation``, which is its suffix or ``default``."""
    return STATUS_ANNOTATION_PREFIX + installation


def version_label(installation: str) -> str:
    """Return the key of the label with Kata's version."""
    return VERSION_LABEL_PREFIX + installation


def outcome_label(installation: str) -> str:
    """Return the key of the label with the outcome."""
    return OUTCOME_LABEL_PREFIX + installation


def encode(status: NodeStatus) -> str:
    """Return the record as compact JSON of at most :data:`SIZE_LIMIT` characters, without empty fields."""
    fields = {key: value for key, value in to_builtins(_bounded(status)).items() if value not in ("", ())}
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
    return text if len(text) <= SIZE_LIMIT else encode(replace(status, handlers=()))


def parse(text: str) -> NodeStatus | None:
    """Return the record in an annotation; ``None`` if it is not one. Never raises an exception.

    Its texts are printable and within the limits, whatever the annotation has.
    """
    if len(text) > SIZE_LIMIT:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("outcome") not in get_args(Outcome):
        return None
    texts = {
        key: found.get(key, "")
        for key in ("kata_version", "program_version", "settings", "since", "reason", "machine_id", "release")
    }
    handlers = found.get("handlers", [])
    if not isinstance(handlers, list) or not all(
        isinstance(each, str) for each in (*texts.values(), *handlers)
    ):
        return None
    if texts["since"] and not _SINCE.fullmatch(texts["since"]):
        return None
    if not RELEASE.fullmatch(texts["release"]):
        texts["release"] = ""  # a hint may name it, and whoever can change the Node can write it
    return _bounded(NodeStatus(cast("Outcome", found["outcome"]), **texts, handlers=tuple(handlers)))


def read(annotations: Mapping[str, str], installation: str) -> NodeStatus | None:
    """Return the record of ``installation``; ``None`` if the Node has none, or none that can be read."""
    return parse(annotations.get(annotation(installation), ""))


def installations(annotations: Mapping[str, str]) -> list[str]:
    """Return the names of all installations that have a record on the Node, sorted."""
    return sorted(
        key.removeprefix(STATUS_ANNOTATION_PREFIX)
        for key in annotations
        if key.startswith(STATUS_ANNOTATION_PREFIX)
    )


def changes(
    labels: Mapping[str, str], annotations: Mapping[str, str], installation: str, wanted: NodeStatus
) -> MetadataChanges:
    """Return the changes that record ``wanted`` on a Node; none if only ``since`` would change."""
    wanted = _bounded(wanted)
    before = read(annotations, installation)
    is_recorded = before is not None and replace(before, since="") == replace(wanted, since="")
    new_labels = {
        version_label(installation): label_value(wanted.kata_version),
        outcome_label(installation): wanted.outcome,
    }
    return MetadataChanges(
        {key: value for key, value in new_labels.items() if labels.get(key) != value},
        {} if is_recorded else {annotation(installation): encode(wanted)},
    )


def removal(labels: Mapping[str, str], annotations: Mapping[str, str], installation: str) -> MetadataChanges:
    """Return the changes that remove all three keys of ``installation`` from a Node."""
    return MetadataChanges(
        {key: None for key in (version_label(installation), outcome_label(installation)) if key in labels},
        {annotation(installation): None} if annotation(installation) in annotations else {},
    )


def label_value(text: str) -> str:
    """Return ``text`` as a valid value of a label; :data:`UNKNOWN` if nothing of it is left."""
    cleaned = re.sub(r"[^A-Za-z0-9_.-]", "-", text.strip())
    return re.sub(r"^[^A-Za-z0-9]+|[^A-Za-z0-9]+$", "", cleaned[:63]) or UNKNOWN


def _bounded(status: NodeStatus) -> NodeStatus:
    """Return the record with printable texts within the limits."""
    handlers = tuple(foreign_words(each, TEXT_LIMIT) for each in status.handlers)
    return NodeStatus(
        status.outcome,
        kata_version=foreign_words(status.kata_version, TEXT_LIMIT),
        program_version=foreign_words(status.program_version, TEXT_LIMIT),
        settings=foreign_words(status.settings, TEXT_LIMIT),
        since=foreign_words(status.since, TEXT_LIMIT),
        reason=foreign_words(status.reason, REASON_LIMIT),
        machine_id=foreign_words(status.machine_id, TEXT_LIMIT),
        handlers=handlers if len(handlers) <= HANDLERS_LIMIT else (),
        release=foreign_words(status.release, RELEASE_LIMIT),
    )
