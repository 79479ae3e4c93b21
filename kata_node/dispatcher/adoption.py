"""What a Job that is there already means for the Job that a node is to have. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

from kata_node.dispatcher.kubernetes_objects import (
    ACTION_LABEL,
    GENERATION_ANNOTATION,
    NODE_UID_ANNOTATION,
    TEMPLATE_DIGEST_LABEL,
    Action,
    Job,
    JobState,
)


class JobDecision(Enum):
    """What is to be done about a Job."""

    IGNORE = auto()
    """It is in nobody's way."""
    ADOPT = auto()
    """It runs and does what is wanted: it is the node's Job from now on."""
    DONE = auto()
    """It has done what is wanted."""
    REPLACE = auto()
    """It has ended, and makes room for a new one."""
    AWAIT = auto()
    """It runs and does something else: the node is worked on when it has ended."""
    STOP = auto()
    """It runs and does what is to be undone: it is deleted, and its end awaited."""
    FOREIGN = auto()
    """It is somebody else's, and has the name: nothing is done on the node."""


@dataclass(frozen=True, slots=True)
class DesiredJob:
    """The Job that a node is to have."""

    name: str
    action: Action
    digest: str
    generation: str
    node: str
    node_uid: str
    labels: Mapping[str, str]


def decide(job: Job, desired: DesiredJob) -> JobDecision:
    """What is to be done about ``job``, so that the node can have the one that is ``wanted``."""
    metadata = job.metadata
    own = desired.labels.items() <= metadata.labels.items() and bool(job.node)
    if metadata.name == desired.name:
        if not own or job.node != desired.node or metadata.labels.get(ACTION_LABEL) != desired.action:
            return JobDecision.FOREIGN
    elif not own or job.node != desired.node:
        return JobDecision.IGNORE
    if metadata.deletion_timestamp:
        return JobDecision.AWAIT
    if metadata.name == desired.name:
        return _same_name(job, desired)
    if job.finished:
        # Deleted as well: what it has done is undone now, and nobody shall take it for done again.
        return (
            JobDecision.IGNORE if metadata.labels.get(ACTION_LABEL) == desired.action else JobDecision.REPLACE
        )
    undone = desired.action == "cleanup" and metadata.labels.get(ACTION_LABEL) == "install"
    return JobDecision.STOP if undone else JobDecision.AWAIT


def _same_name(job: Job, desired: DesiredJob) -> JobDecision:
    metadata = job.metadata
    same_work = (
        metadata.labels.get(TEMPLATE_DIGEST_LABEL) == desired.digest
        and metadata.annotations.get(NODE_UID_ANNOTATION) == desired.node_uid
    )
    if not job.finished:
        return JobDecision.ADOPT if same_work and job.state is JobState.RUNNING else JobDecision.AWAIT
    succeeded = job.state is JobState.SUCCEEDED
    return (
        JobDecision.DONE
        if same_work
        and succeeded
        and metadata.annotations.get(GENERATION_ANNOTATION, "") == desired.generation
        else JobDecision.REPLACE
    )
