"""Decide how an existing Job affects the Job that a node is to get. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

from msgspec import Struct

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
    """What the dispatcher does with an existing Job."""

    IGNORE = auto()
    """Leave the Job alone; it does not affect the node's Job."""
    ADOPT = auto()
    """Use the Job as the node's Job; it runs and does the desired work."""
    DONE = auto()
    """Report the node as unchanged; the Job has done the desired work."""
    FAILED = auto()
    """Report the node as failed; the Job has tried the desired work in this run, before its Pod was lost."""
    REPLACE = auto()
    """Delete the Job, which has ended, and create a new one."""
    AWAIT = auto()
    """Wait for the end of the Job; it runs and does other work."""
    STOP = auto()
    """Delete the Job and wait for its end; it does the work that a cleanup reverts."""
    FOREIGN = auto()
    """Report the node as failed; a Job of another owner has the name."""


class DesiredJob(Struct, frozen=True):
    """The Job that a node is to get."""

    name: str
    action: Action
    digest: str
    generation: str
    node: str
    node_uid: str
    labels: Mapping[str, str]
    owner_uid: str = ""
    """The uid of the dispatcher's Job if a failure of an earlier Pod of it counts; else empty."""


def decide(job: Job, desired: DesiredJob) -> JobDecision:
    """Return what to do with ``job`` so that the node can get the Job ``desired``."""
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
        # A finished Job of the opposite action is deleted too. Its work is about to be reverted, so a later
        # run must not take it for done.
        kept = desired.action == "check" or metadata.labels.get(ACTION_LABEL) in (desired.action, "check")
        return JobDecision.IGNORE if kept else JobDecision.REPLACE
    undone = desired.action != "install" and metadata.labels.get(ACTION_LABEL) == "install"
    return JobDecision.STOP if undone else JobDecision.AWAIT


def _same_name(job: Job, desired: DesiredJob) -> JobDecision:
    metadata = job.metadata
    same_work = (
        metadata.labels.get(TEMPLATE_DIGEST_LABEL) == desired.digest
        and metadata.annotations.get(NODE_UID_ANNOTATION) == desired.node_uid
    )
    if not job.finished:
        return JobDecision.ADOPT if same_work and job.state is JobState.RUNNING else JobDecision.AWAIT
    if not same_work or metadata.annotations.get(GENERATION_ANNOTATION, "") != desired.generation:
        return JobDecision.REPLACE
    if job.state is JobState.SUCCEEDED:
        return JobDecision.DONE
    is_own = any(owner.uid == desired.owner_uid for owner in metadata.owner_references)
    return JobDecision.FAILED if desired.owner_uid and is_own else JobDecision.REPLACE
