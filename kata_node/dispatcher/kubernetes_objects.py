"""The few fields of Nodes, Jobs and Pods that are read here.

Everything else of an object is passed over while its JSON is read: a Node of 12 KB costs a tenth of
what it costs whole, and a field of a type that no release has had yet does no harm.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

import msgspec

Action = Literal["install", "cleanup"]

JOB_PREFIX = "job.katacontainers.io/"
ACTION_LABEL, TEMPLATE_DIGEST_LABEL, NODE_KEY = (
    f"{JOB_PREFIX}action",
    f"{JOB_PREFIX}template",
    f"{JOB_PREFIX}node",
)
"""Labels of a Job: what it does, of which template it was made, and for which Node. A Node's name may be
longer than a label: the label then has the Job's own, and the annotation :data:`NODE` the whole of it."""
NODE_UID_ANNOTATION, GENERATION_ANNOTATION = f"{JOB_PREFIX}node-uid", f"{JOB_PREFIX}generation"
"""Annotations of a Job: which Node of that name is meant, and in which generation it was made."""

JOB_UID_LABEL, JOB_NAME_LABEL = "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"
"""The labels with which the Job controller says whose a Pod is."""


class _ApiObject(msgspec.Struct, rename="camel"):
    pass


class OwnerReference(_ApiObject):
    """Whom the garbage collector keeps an object for."""

    uid: str = ""


class ObjectMeta(_ApiObject):
    """``metadata``."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: list[OwnerReference] = []


class ListMeta(_ApiObject):
    """``metadata`` of a page."""

    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")
    remaining_item_count: int | None = None
    """How many more there are; not said of a list with a selector."""


class Taint(_ApiObject):
    """What keeps Pods off a Node."""

    key: str
    effect: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"


class Toleration(_ApiObject):
    """What a Pod does not mind."""

    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def tolerates(self, taint: Taint) -> bool:
        """Whether the taint is tolerated; an operator of a later Kubernetes covers nothing."""
        if self.effect not in ("", taint.effect) or (self.key and self.key != taint.key):
            return False
        if self.operator == "Exists":
            return True
        return self.operator in ("Equal", "") and bool(self.key) and self.value == taint.value


class _NodeSpec(_ApiObject):
    taints: list[Taint] = []


class NodeInfo(_ApiObject):
    """What the kubelet says of its machine."""

    machine_id: str = msgspec.field(default="", name="machineID")
    container_runtime_version: str = ""

    @property
    def runtime(self) -> str:
        """The name of its CRI runtime, as ``cri-o`` of ``cri-o://1.36.1``; empty while none is reported."""
        name, separator, _ = self.container_runtime_version.partition("://")
        return name if separator else ""


class _NodeStatus(_ApiObject):
    node_info: NodeInfo = msgspec.field(default_factory=NodeInfo)


class Node(_ApiObject):
    """A Node."""

    metadata: ObjectMeta
    spec: _NodeSpec = msgspec.field(default_factory=_NodeSpec)
    status: _NodeStatus = msgspec.field(default_factory=_NodeStatus)


class Condition(_ApiObject):
    """One of a Job's conditions."""

    type: str
    status: str
    reason: str = ""
    message: str = ""


class JobState(StrEnum):
    """How far a Job is. ``FAILING`` will fail, as soon as its Pods have ended."""

    RUNNING = "running"
    FAILING = "failing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"


class _JobSpec(_ApiObject):
    backoff_limit: int = 6


class _JobStatus(_ApiObject):
    conditions: list[Condition] = []
    failed: int = 0


_STATES = {"Complete": JobState.SUCCEEDED, "Failed": JobState.FAILED, "FailureTarget": JobState.FAILING}


class Job(_ApiObject):
    """A Job."""

    metadata: ObjectMeta
    spec: _JobSpec = msgspec.field(default_factory=_JobSpec)
    status: _JobStatus = msgspec.field(default_factory=_JobStatus)

    @property
    def state(self) -> JobState:
        """What its conditions say."""
        return self._deciding_condition()[0]

    @property
    def condition(self) -> Condition | None:
        """The condition that says so; none while it runs."""
        return self._deciding_condition()[1]

    @property
    def finished(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.state in (JobState.SUCCEEDED, JobState.FAILED)

    @property
    def node(self) -> str:
        """The name of the Node it was made for, if it was made here."""
        return self.metadata.annotations.get(NODE_KEY, "")

    def _deciding_condition(self) -> tuple[JobState, Condition | None]:
        held = {each.type: each for each in self.status.conditions if each.status == "True"}
        for kind, state in _STATES.items():
            if kind in held:
                return state, held[kind]
        return JobState.RUNNING, None


class Terminated(_ApiObject):
    """How a container ended."""

    exit_code: int = 0
    signal: int = 0
    reason: str = ""
    message: str = ""


class Waiting(_ApiObject):
    """Why a container does not run yet."""

    reason: str = ""
    message: str = ""


class ContainerState(_ApiObject):
    """One of these is there; none while nothing is known."""

    terminated: Terminated | None = None
    waiting: Waiting | None = None
    running: dict[str, object] | None = None


class ContainerStatus(_ApiObject):
    """What became of a container."""

    name: str
    state: ContainerState = msgspec.field(default_factory=ContainerState)
    last_state: ContainerState = msgspec.field(default_factory=ContainerState)


class _PodStatus(_ApiObject):
    phase: str = ""
    reason: str = ""
    message: str = ""
    init_container_statuses: list[ContainerStatus] = []
    container_statuses: list[ContainerStatus] = []


class _PodSpec(_ApiObject):
    node_name: str = ""


class Pod(_ApiObject):
    """A Pod."""

    metadata: ObjectMeta
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)

    @property
    def containers(self) -> list[ContainerStatus]:
        """In the order they run."""
        return [*self.status.init_container_statuses, *self.status.container_statuses]

    @property
    def job_uid(self) -> str:
        """Of the Job it belongs, or belonged, to."""
        return self.metadata.labels.get(JOB_UID_LABEL, "")

    @property
    def job_name(self) -> str:
        """The name of that Job."""
        return self.metadata.labels.get(JOB_NAME_LABEL, "")

    @property
    def live(self) -> bool:
        """Whether it has not ended."""
        return self.status.phase not in ("Succeeded", "Failed")

    @property
    def started(self) -> bool:
        """Whether a container of it runs or has run."""
        return any(
            state.running is not None or state.terminated is not None
            for each in self.containers
            for state in (each.state, each.last_state)
        )


class _Page(_ApiObject):
    """What Go has no items for is null."""

    metadata: ListMeta = msgspec.field(default_factory=ListMeta)


class NodePage(_Page):
    """A page of Nodes."""

    items: list[Node] | None = None


class JobPage(_Page):
    """A page of Jobs."""

    items: list[Job] | None = None


class PodPage(_Page):
    """A page of Pods."""

    items: list[Pod] | None = None


class WatchEvent(_ApiObject):
    """A line of a watch; what it is about is read by its kind."""

    type: str
    object: msgspec.Raw


class Status(_ApiObject):
    """The API server's word on a request."""

    code: int = 0
    reason: str = ""
    message: str = ""
