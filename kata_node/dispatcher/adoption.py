"""What a Job that is there already means for the Job that a node is to have. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from kata_node.dispatcher.kubernetes_objects import (
    ACTION,
    DIGEST,
    GENERATION,
    NODE_UID,
    Action,
    Job,
    JobState,
)


class Fate(Enum):
    """What is to be done about a Job."""

    NOTHING = auto()
    """It is in nobody's way."""
    ADOPT = auto()
    """It runs and does what is wanted: it is the node's Job from now on."""
    DONE = auto()
    """It has done what is wanted."""
    RENEW = auto()
    """It has ended, and makes room for a new one."""
    AWAIT = auto()
    """It runs and does something else: the node is worked on when it has ended."""
    STOP = auto()
    """It runs and does what is to be undone: it is deleted, and its end awaited."""
    FOREIGN = auto()
    """It is somebody else's, and has the name: nothing is done on the node."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The Job that a node is to have."""

    name: str
    action: Action
    digest: str
    generation: str
    node: str
    node_uid: str
    labels: Mapping[str, str]


def fate(job: Job, wanted: Wanted) -> Fate:
    """What is to be done about ``job``, so that the node can have the one that is ``wanted``."""
    metadata = job.metadata
    own = wanted.labels.items() <= metadata.labels.items() and bool(job.node)
    if metadata.name == wanted.name:
        if not own or job.node != wanted.node or metadata.labels.get(ACTION) != wanted.action:
            return Fate.FOREIGN
    elif not own or job.node != wanted.node:
        return Fate.NOTHING
    if metadata.deletion_timestamp:
        return Fate.AWAIT
    if metadata.name == wanted.name:
        return _same_name(job, wanted)
    if job.finished:
        # Deleted as well: what it has done is undone now, and nobody shall take it for done again.
        return Fate.NOTHING if metadata.labels.get(ACTION) == wanted.action else Fate.RENEW
    undone = wanted.action == "cleanup" and metadata.labels.get(ACTION) == "install"
    return Fate.STOP if undone else Fate.AWAIT


def _same_name(job: Job, wanted: Wanted) -> Fate:
    metadata = job.metadata
    same_work = (
        metadata.labels.get(DIGEST) == wanted.digest and metadata.annotations.get(NODE_UID) == wanted.node_uid
    )
    if not job.finished:
        return Fate.ADOPT if same_work and job.state is JobState.RUNNING else Fate.AWAIT
    succeeded = job.state is JobState.SUCCEEDED
    return (
        Fate.DONE
        if same_work and succeeded and metadata.annotations.get(GENERATION, "") == wanted.generation
        else Fate.RENEW
    )
