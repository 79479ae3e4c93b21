"""Find out from its Pods why a Job failed or is stuck. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from kata_node.dispatcher.kubernetes_objects import ContainerStatus, Job, Pod, Terminated

MESSAGE_LIMIT = 600
"""Maximum characters of a message that does not come from kata-node."""

KILLED_EXIT_CODES = (137, 143)
"""Exit codes of a container that was killed by SIGKILL or SIGTERM."""

FAILED_MOUNT_HINT = (
    "correct k8sDistribution, containerRuntime or containerd.* in the values if the Events show FailedMount; "
    "these settings do not match the node then"
)


@dataclass(frozen=True, slots=True)
class NodeProblem:
    """A problem on a node. ``stage`` is the container, ``exit_code`` its exit code if it has ended."""

    what: str
    stage: str = ""
    exit_code: int | None = None
    where: str = ""
    hint: str = ""
    unfit: bool = False
    """Whether the node cannot run Kata because of what it is."""

    def __str__(self) -> str:
        place = f"{self.stage}: " if self.stage else ""
        code = f" (exit code {self.exit_code})" if self.exit_code is not None else ""
        return f"{place}{f'{self.where}: ' if self.where else ''}{self.what}{code}"


class _Error(msgspec.Struct, frozen=True):
    what: str = ""
    where: str = ""
    hint: str = ""
    unfit: bool = False
    unit_log: str = ""


class _Message(msgspec.Struct, frozen=True):
    """The termination message of a stage, see :func:`kata_node.plan.report.termination_message`."""

    summary: str = ""
    stage: str = ""
    """The stage that failed. It can be host-check in the container of claim, which has credentials."""
    error: _Error | None = None


def diagnose(job: Job, pods: Sequence[Pod]) -> NodeProblem:
    """Return the problem of the failed ``job``, taken from the newest Pod that shows one."""
    newest_first = _newest_first(pods)
    condition = job.condition
    deadline_exceeded = condition is not None and condition.reason == "DeadlineExceeded"
    for pod in newest_first:
        problem = _pod_problem(pod)
        # A Job kills its Pods at its deadline, so these exit codes are not the cause.
        if problem and not (deadline_exceeded and problem.exit_code in KILLED_EXIT_CODES):
            return problem
    if condition is None:
        return NodeProblem("its Job failed", hint=_inspect_hint(job))
    reason = f"{condition.reason}: {condition.message}" if condition.message else condition.reason
    if deadline_exceeded:
        stuck = stuck_reason(job, pods) if pods else None
        return NodeProblem(
            f"its Job exceeded its deadline ({reason})" + (f"; {stuck}" if stuck else ""),
            stage=next((stage for pod in newest_first if (stage := _current_stage(pod))), ""),
            hint=(stuck.hint if stuck else "")
            or "find out what delays this stage on the node, or raise job.activeDeadlineSeconds",
        )
    return NodeProblem(
        f"its Job failed ({reason}), and none of its Pods shows the cause", hint=_inspect_hint(job)
    )


def stuck_reason(job: Job, pods: Sequence[Pod]) -> NodeProblem | None:
    """Return why a running Job makes no progress or retries; ``None`` when it has no problem."""
    if not pods:
        # The cause can be a quota, a Pod Security level or a webhook. Only the Events of the Job show it.
        return NodeProblem(f"its Job has no Pod; run `{_describe('job', job.metadata.name, job)}` to see why")
    newest, *before = _newest_first(pods)
    if problem := _waiting_problem(newest):
        return problem
    if not newest.started:
        # The cause can be a missing host path, a volume or the network. Only the Events of the Pod show it.
        describe = _describe("pod", newest.metadata.name, job)
        return NodeProblem(
            f"no container of its Pod has started; run `{describe}` to see why", hint=FAILED_MOUNT_HINT
        )
    failed = next((problem for pod in before if (problem := _pod_problem(pod))), None)
    return NodeProblem(f"retrying after a failure: {failed}", hint=failed.hint) if failed else None


def retry_reason(job: Job, pods: Sequence[Pod]) -> NodeProblem | None:
    """Return the number of the next try of a Job and the cause of the last failure, if its Pods show it.

    ``None`` when no try has failed or no try is left.
    """
    next_try, max_tries = job.status.failed + 1, job.spec.backoff_limit + 1
    if not 1 < next_try <= max_tries:
        return None
    failed = next((problem for pod in _newest_first(pods) if (problem := _pod_problem(pod))), None)
    what = f"try {next_try} of {max_tries}" + (f" after a failure: {failed}" if failed else "")
    return NodeProblem(what, hint=failed.hint if failed else "")


def _describe(kind: str, name: str, job: Job) -> str:
    return f"kubectl describe {kind} {name} -n {job.metadata.namespace}"


def _newest_first(pods: Sequence[Pod]) -> list[Pod]:
    return sorted(pods, key=lambda pod: pod.metadata.creation_timestamp or "", reverse=True)


def _current_stage(pod: Pod) -> str:
    """Return the name of the container that runs or has failed; empty when there is none."""
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
            return _container_problem(pod, container.name, ended)
    if problem := _waiting_problem(pod):
        return problem
    if pod.status.reason or pod.status.message:
        # For example Evicted, NodeLost, or a Pod that the kubelet did not admit.
        what = ": ".join(text for text in (pod.status.reason, pod.status.message) if text)
        return NodeProblem(
            f"its Pod failed ({_truncate(what)})", hint=f"run `kubectl describe node {pod.spec.node_name}`"
        )
    return None


def _waiting_problem(pod: Pod) -> NodeProblem | None:
    for container in pod.containers:
        waiting = container.state.waiting
        if waiting and waiting.reason not in ("", "PodInitializing", "ContainerCreating"):
            return _not_started(container, waiting.reason, waiting.message)
    return None


def _not_started(container: ContainerStatus, reason: str, message: str) -> NodeProblem:
    what = f"the container cannot start ({': '.join(text for text in (reason, message) if text)})"
    image = "Image" in reason or "Pull" in reason
    hint = (
        "check that the node can pull this image, and check imagePullSecrets in the values" if image else ""
    )
    return NodeProblem(_truncate(what), stage=container.name, hint=hint)


def _container_problem(pod: Pod, name: str, ended: Terminated) -> NodeProblem:
    code = ended.exit_code or 128 + ended.signal
    try:
        message = msgspec.json.decode(ended.message, type=_Message)
    except msgspec.DecodeError:
        message = _Message()
    if message.error and message.error.what:
        return NodeProblem(
            "; ".join(text for text in (message.error.what, message.error.unit_log) if text),
            stage=message.stage or name,
            exit_code=code,
            where=message.error.where,
            hint=message.error.hint,
            unfit=message.error.unfit,
        )
    if message.summary:
        return NodeProblem(message.summary, stage=name, exit_code=code)
    if ended.message.strip():
        return NodeProblem(_truncate(" ".join(ended.message.split())), stage=name, exit_code=code)
    reason = f" ({ended.reason})" if ended.reason not in ("", "Error") else ""
    hint = f"run `kubectl logs {pod.metadata.name} -c {name} -n {pod.metadata.namespace}`"
    return NodeProblem(
        f"the container ended without a message{reason}", stage=name, exit_code=code, hint=hint
    )


def _inspect_hint(job: Job) -> str:
    return f"run `{_describe('job', job.metadata.name, job)}`, and read the log of the node"


def _truncate(text: str) -> str:
    return text if len(text) <= MESSAGE_LIMIT else text[: MESSAGE_LIMIT - 1] + "…"
