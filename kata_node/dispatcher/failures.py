"""Why a Job failed: its Pods say which stage ended how, and in what words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from kata_node.dispatcher.kubernetes_objects import ContainerStatus, Job, Pod, Terminated

MESSAGE_LIMIT = 600
"""Characters of a message that is not one of ours."""

KILLED_EXIT_CODES = (137, 143)
"""Exit codes of a container that was ended from outside: by SIGKILL, by SIGTERM."""


FAILED_MOUNT_HINT = (
    "a FailedMount there means that k8sDistribution, containerRuntime or containerd.* of the values are not "
    "what the node runs"
)


@dataclass(frozen=True, slots=True)
class NodeProblem:
    """What went wrong on a node. ``stage`` is a container, ``exit_code`` its, if it has ended."""

    what: str
    stage: str = ""
    exit_code: int | None = None
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.stage}: " if self.stage else ""
        code = f" (exit code {self.exit_code})" if self.exit_code is not None else ""
        return f"{place}{f'{self.where}: ' if self.where else ''}{self.what}{code}"


class _Error(msgspec.Struct, frozen=True):
    what: str = ""
    where: str = ""
    hint: str = ""


class _Message(msgspec.Struct, frozen=True):
    """The termination message of a stage: see ``kata_node.plan.report.termination_message``."""

    summary: str = ""
    error: _Error | None = None


def diagnose(job: Job, pods: Sequence[Pod]) -> NodeProblem:
    """What went wrong in ``job``, which has failed, by its newest Pod that tells."""
    newest_first = _newest_first(pods)
    condition = job.condition
    deadline_exceeded = condition is not None and condition.reason == "DeadlineExceeded"
    for pod in newest_first:
        problem = _pod_problem(pod)
        # At its deadline a Job has its Pods killed: that they were is not why.
        if problem and not (deadline_exceeded and problem.exit_code in KILLED_EXIT_CODES):
            return problem
    if condition is None:
        return NodeProblem("its Job has failed", hint=_inspect_hint(job))
    reason = f"{condition.reason}: {condition.message}" if condition.message else condition.reason
    if deadline_exceeded:
        stuck = stuck_reason(job, pods) if pods else None
        return NodeProblem(
            f"its Job took longer than it may ({reason})" + (f"; {stuck}" if stuck else ""),
            stage=next((stage for pod in newest_first if (stage := _current_stage(pod))), ""),
            hint=(stuck.hint if stuck else "")
            or "see what holds it up there, or raise job.activeDeadlineSeconds for slow nodes",
        )
    return NodeProblem(
        f"its Job has failed ({reason}), and no Pod is left that tells why", hint=_inspect_hint(job)
    )


def stuck_reason(job: Job, pods: Sequence[Pod]) -> NodeProblem | None:
    """Why nothing of a Job runs that is to run, or not for the first time; none while it goes well."""
    if not pods:
        # A quota, a Pod Security level, a webhook: only the Events of the Job tell.
        return NodeProblem(f"its Job has no Pod; `{_describe('job', job.metadata.name, job)}` tells why")
    newest, *before = _newest_first(pods)
    if problem := _waiting_problem(newest):
        return problem
    if not newest.started:
        # A host path that is not there, a volume, a network: only the Events of the Pod tell.
        describe = _describe("pod", newest.metadata.name, job)
        return NodeProblem(f"nothing of its Pod has begun; `{describe}` tells why", hint=FAILED_MOUNT_HINT)
    failed = next((problem for pod in before if (problem := _pod_problem(pod))), None)
    return NodeProblem(f"tried again after {failed}", hint=failed.hint) if failed else None


def retry_reason(job: Job, pods: Sequence[Pod]) -> NodeProblem | None:
    """Which try of a Job is next, and why the one before failed as far as its Pods tell."""
    next_try, max_tries = job.status.failed + 1, job.spec.backoff_limit + 1
    if not 1 < next_try <= max_tries:
        return None
    failed = next((problem for pod in _newest_first(pods) if (problem := _pod_problem(pod))), None)
    what = f"try {next_try} of {max_tries}" + (f", after {failed}" if failed else "")
    return NodeProblem(what, hint=failed.hint if failed else "")


def _describe(kind: str, name: str, job: Job) -> str:
    return f"kubectl describe {kind} {name} -n {job.metadata.namespace}"


def _newest_first(pods: Sequence[Pod]) -> list[Pod]:
    return sorted(pods, key=lambda pod: pod.metadata.creation_timestamp or "", reverse=True)


def _current_stage(pod: Pod) -> str:
    """The container that runs, or was killed."""
    for container in pod.containers:
        if container.state.running is not None or (
            container.state.terminated and container.state.terminated.exit_code
        ):
            return container.name
    return ""


def _pod_problem(pod: Pod) -> NodeProblem | None:
    for container in pod.containers:
        ended = container.state.terminated or container.last_state.terminated
        if ended and (ended.exit_code or ended.signal):
            return _container_problem(container.name, ended)
    if problem := _waiting_problem(pod):
        return problem
    if pod.status.reason or pod.status.message:
        # Evicted, NodeLost, an admission of the kubelet that was refused.
        what = ": ".join(text for text in (pod.status.reason, pod.status.message) if text)
        return NodeProblem(
            f"its Pod has failed ({_truncate(what)})", hint="look at the node: kubectl describe node"
        )
    return None


def _waiting_problem(pod: Pod) -> NodeProblem | None:
    for container in pod.containers:
        waiting = container.state.waiting
        if waiting and waiting.reason not in ("", "PodInitializing", "ContainerCreating"):
            return _not_started(container, waiting.reason, waiting.message)
    return None


def _not_started(container: ContainerStatus, reason: str, message: str) -> NodeProblem:
    what = f"it could not be started ({': '.join(text for text in (reason, message) if text)})"
    image = "Image" in reason or "Pull" in reason
    hint = "see that the node can pull this image, and look at imagePullSecrets" if image else ""
    return NodeProblem(_truncate(what), stage=container.name, hint=hint)


def _container_problem(name: str, ended: Terminated) -> NodeProblem:
    code = ended.exit_code or 128 + ended.signal
    try:
        message = msgspec.json.decode(ended.message, type=_Message)
    except msgspec.DecodeError:
        message = _Message()
    if message.error and message.error.what:
        return NodeProblem(
            message.error.what, stage=name, exit_code=code, where=message.error.where, hint=message.error.hint
        )
    if message.summary:
        return NodeProblem(message.summary, stage=name, exit_code=code)
    if ended.message.strip():
        return NodeProblem(_truncate(" ".join(ended.message.split())), stage=name, exit_code=code)
    reason = f" ({ended.reason})" if ended.reason not in ("", "Error") else ""
    return NodeProblem(f"it ended without a word{reason}", stage=name, exit_code=code, hint="look at its log")


def _inspect_hint(job: Job) -> str:
    return f"try `{_describe('job', job.metadata.name, job)}` and the node's own log"


def _truncate(text: str) -> str:
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"
