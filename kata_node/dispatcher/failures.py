"""Find out from its Pods why a Job failed or is stuck. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from kata_node.dispatcher.kubernetes_objects import DEADLINE_EXCEEDED, ContainerStatus, Job, Pod, Terminated
from kata_node.plan.report import NOT_OURS, StageReport, parse_termination_message
from kata_node.text import TERMINATION_MESSAGE_LIMIT, foreign_words, quote_foreign

KILLED_EXIT_CODES = (137, 143)
"""Exit codes of a container that was killed by SIGKILL or SIGTERM."""

FAILED_MOUNT_HINT = (
    "correct k8sDistribution, containerRuntime or containerd.* in the values if the Events show FailedMount; "
    "these settings do not match the node then"
)


class NodeWords(Struct, frozen=True):
    """The error in a termination message. Each text is one safe line, but the node can say what it likes."""

    what: str
    where: str = ""
    hint: str = ""


class NodeProblem(Struct, frozen=True):
    """A problem on a node. ``stage`` is the container, ``exit_code`` its exit code if it has ended.

    In ``what``, the words of the node are in quotes. ``where`` and ``hint`` are never the node's.
    """

    what: str
    stage: str = ""
    exit_code: int | None = None
    where: str = ""
    hint: str = ""
    unfit: bool = False
    """Whether the node cannot run Kata because of what it is."""
    pods_run: bool = False
    """Whether pods run on handlers that a cleanup would remove."""
    node_words: NodeWords | None = None

    @property
    def hints(self) -> tuple[str, ...]:
        """The hints as texts with their origin: ours, and that of the node."""
        ours = (f"hint: {self.hint}",) if self.hint else ()
        if self.node_words is None or not self.node_words.hint:
            return ours
        return (*ours, f"the node's hint: {quote_foreign(self.node_words.hint)}")

    def __str__(self) -> str:
        place = f"{self.stage}: " if self.stage else ""
        code = f" (exit code {self.exit_code})" if self.exit_code is not None else ""
        return f"{place}{f'{self.where}: ' if self.where else ''}{self.what}{code}"


class _Error(msgspec.Struct, frozen=True):
    what: str = ""
    where: str = ""
    hint: str = ""
    unfit: bool = False
    pods_run: bool = False
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
    deadline_exceeded = condition is not None and condition.reason == DEADLINE_EXCEEDED
    for pod in newest_first:
        problem = _pod_problem(pod)
        # A Job kills its Pods at its deadline, so these exit codes are not the cause.
        if problem and not (deadline_exceeded and problem.exit_code in KILLED_EXIT_CODES):
            return problem
    if condition is None:
        return NodeProblem("its Job failed", hint=_inspect_hint(job))
    reason = foreign_words(": ".join(text for text in (condition.reason, condition.message) if text))
    if deadline_exceeded:
        stuck = stuck_reason(job, pods) if pods else None
        return NodeProblem(
            f"its Job exceeded its deadline ({reason})" + (f"; {stuck}" if stuck else ""),
            stage=next((stage for pod in newest_first if (stage := _current_stage(pod))), ""),
            hint=(stuck.hint if stuck else "")
            or "find out what delays this stage on the node, or raise job.activeDeadlineSeconds",
            node_words=stuck.node_words if stuck else None,
        )
    return NodeProblem(
        f"its Job failed ({reason}), and none of its Pods shows the cause", hint=_inspect_hint(job)
    )


def stage_reports(pods: Sequence[Pod]) -> tuple[StageReport, ...]:
    """Return what the ended containers of the newest Pod have reported, in their order."""
    found = (
        parse_termination_message(container.state.terminated.message, container.name)
        for pod in _newest_first(pods)[:1]
        for container in pod.containers
        if container.state.terminated
    )
    return tuple(report for report in found if report is not None)


def found_nothing(pods: Sequence[Pod]) -> bool:
    """Return whether the newest Pod of a cleanup says that nothing of this installation is on its node."""
    newest = _newest_first(pods)[:1]
    ended = (each.state.terminated for pod in newest for each in pod.containers if each.name == "revert-cri")
    return any(end and _read_message(end.message).summary.startswith(NOT_OURS) for end in ended)


def not_ready_problem(node: str) -> NodeProblem:
    """Return why the Job of a Node that is not Ready makes no progress."""
    return NodeProblem(
        "its Node has become NotReady since its Job was created", hint=check_kubelet_hint(node)
    )


def check_kubelet_hint(node: str) -> str:
    """Return the hint for a Node whose kubelet seems to be dead."""
    return f"run `kubectl describe node {node}` and check whether its kubelet works"


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
    if failed is None:
        return None
    what = f"retrying after a failure: {failed}"
    return NodeProblem(what, hint=failed.hint, node_words=failed.node_words)


def retry_reason(job: Job, pods: Sequence[Pod]) -> NodeProblem | None:
    """Return the number of the next try of a Job and the cause of the last failure, if its Pods show it.

    ``None`` when no try has failed or no try is left.
    """
    next_try, max_tries = job.status.failed + 1, job.spec.backoff_limit + 1
    if not 1 < next_try <= max_tries:
        return None
    failed = next((problem for pod in _newest_first(pods) if (problem := _pod_problem(pod))), None)
    what = f"try {next_try} of {max_tries}"
    if failed is None:
        return NodeProblem(what)
    what += f" after a failure: {failed}"
    return NodeProblem(what, hint=failed.hint, node_words=failed.node_words)


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
            return _stage_name(container.name)
    return ""


def _pod_problem(pod: Pod) -> NodeProblem | None:
    for container in pod.containers:
        ended = container.state.terminated or container.last_state.terminated
        if ended and (ended.exit_code or ended.signal):
            return _container_problem(pod, _stage_name(container.name), ended)
    if problem := _waiting_problem(pod):
        return problem
    if pod.status.reason or pod.status.message:
        # For example Evicted, NodeLost, or a Pod that the kubelet did not admit.
        what = _node_says(pod.status.reason, pod.status.message)
        return NodeProblem(
            f"its Pod failed ({what})", hint=f"run `kubectl describe node {pod.spec.node_name}`"
        )
    return None


def _waiting_problem(pod: Pod) -> NodeProblem | None:
    for container in pod.containers:
        waiting = container.state.waiting
        if waiting and waiting.reason not in ("", "PodInitializing", "ContainerCreating"):
            return _not_started(container, waiting.reason, waiting.message)
    return None


def _not_started(container: ContainerStatus, reason: str, message: str) -> NodeProblem:
    what = f"the container cannot start ({_node_says(reason, message)})"
    image = "Image" in reason or "Pull" in reason
    hint = (
        "check that the node can pull this image, and check imagePullSecrets in the values" if image else ""
    )
    return NodeProblem(what, stage=_stage_name(container.name), hint=hint)


def _container_problem(pod: Pod, name: str, ended: Terminated) -> NodeProblem:
    code = ended.exit_code or 128 + ended.signal
    message = _read_message(ended.message)
    if message.error and message.error.what:
        error = message.error
        return NodeProblem(
            _node_says(error.where, "; ".join(filter(None, (error.what, error.unit_log)))),
            stage=_stage_name(message.stage) if message.stage else name,
            exit_code=code,
            unfit=error.unfit,
            pods_run=error.pods_run,
            node_words=NodeWords(*map(foreign_words, (error.what, error.where, error.hint))),
        )
    if words := foreign_words(message.summary or ended.message):
        return NodeProblem(_node_says(words), stage=name, exit_code=code, node_words=NodeWords(words))
    reason = f" ({_node_says(ended.reason)})" if ended.reason not in ("", "Error") else ""
    hint = f"run `kubectl logs {pod.metadata.name} -c {name} -n {pod.metadata.namespace}`"
    return NodeProblem(
        f"the container ended without a message{reason}", stage=name, exit_code=code, hint=hint
    )


def _inspect_hint(job: Job) -> str:
    return f"run `{_describe('job', job.metadata.name, job)}`, and read the log of the node"


def _read_message(text: str) -> _Message:
    """Return the termination message of a stage; an empty one if the text is of something else."""
    if len(text) > TERMINATION_MESSAGE_LIMIT:  # no kubelet passes on so much, and no stage writes it
        return _Message()
    try:
        return msgspec.json.decode(text, type=_Message)
    except (msgspec.DecodeError, RecursionError):
        return _Message()


def _node_says(*texts: str) -> str:
    """Return what the kubelet or a container reported, in quotes, as a part of a sentence of ours."""
    return f"the node says {quote_foreign(': '.join(text for text in texts if text))}"


def _stage_name(name: str) -> str:
    """Return the name of a container or stage, which the kubelet reports, if it can be one."""
    return name if re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name) else "unknown"
