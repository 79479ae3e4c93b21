"""Why a Job failed: its Pods say which stage ended how, and in what words. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from kata_node.dispatcher.kubernetes_objects import ContainerStatus, Job, Pod, Terminated

LONGEST = 600
"""Characters of a message that is not one of ours."""

KILLED = (137, 143)
"""Exit codes of a container that was ended from outside: by SIGKILL, by SIGTERM."""


MOUNTS = (
    "a FailedMount there means that k8sDistribution, containerRuntime or containerd.* of the values are not "
    "what the node runs"
)


@dataclass(frozen=True, slots=True)
class Trouble:
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


def diagnose(job: Job, pods: Sequence[Pod]) -> Trouble:
    """What went wrong in ``job``, which has failed, by its newest Pod that tells."""
    newest_first = _newest_first(pods)
    condition = job.condition
    late = condition is not None and condition.reason == "DeadlineExceeded"
    for pod in newest_first:
        trouble = _of_pod(pod)
        # At its deadline a Job has its Pods killed: that they were is not why.
        if trouble and not (late and trouble.exit_code in KILLED):
            return trouble
    if condition is None:
        return Trouble("its Job has failed", hint=_logs(job))
    reason = f"{condition.reason}: {condition.message}" if condition.message else condition.reason
    if late:
        held = held_up(job, pods) if pods else None
        return Trouble(
            f"its Job took longer than it may ({reason})" + (f"; {held}" if held else ""),
            stage=next((stage for pod in newest_first if (stage := _stage(pod))), ""),
            hint=(held.hint if held else "")
            or "see what holds it up there, or raise job.activeDeadlineSeconds for slow nodes",
        )
    return Trouble(f"its Job has failed ({reason}), and no Pod is left that tells why", hint=_logs(job))


def held_up(job: Job, pods: Sequence[Pod]) -> Trouble | None:
    """Why nothing of a Job runs that is to run, or not for the first time; none while it goes well."""
    if not pods:
        # A quota, a Pod Security level, a webhook: only the Events of the Job tell.
        return Trouble(f"its Job has no Pod; `{_describe('job', job.metadata.name, job)}` tells why")
    newest, *before = _newest_first(pods)
    if trouble := _waiting(newest):
        return trouble
    if not newest.begun:
        # A host path that is not there, a volume, a network: only the Events of the Pod tell.
        describe = _describe("pod", newest.metadata.name, job)
        return Trouble(f"nothing of its Pod has begun; `{describe}` tells why", hint=MOUNTS)
    failed = next((trouble for pod in before if (trouble := _of_pod(pod))), None)
    return Trouble(f"tried again after {failed}", hint=failed.hint) if failed else None


def tried_again(job: Job, pods: Sequence[Pod]) -> Trouble | None:
    """Which try of a Job is next, and why the one before failed as far as its Pods tell."""
    following, most = job.status.failed + 1, job.spec.backoff_limit + 1
    if not 1 < following <= most:
        return None
    failed = next((trouble for pod in _newest_first(pods) if (trouble := _of_pod(pod))), None)
    what = f"try {following} of {most}" + (f", after {failed}" if failed else "")
    return Trouble(what, hint=failed.hint if failed else "")


def _describe(kind: str, name: str, job: Job) -> str:
    return f"kubectl describe {kind} {name} -n {job.metadata.namespace}"


def _newest_first(pods: Sequence[Pod]) -> list[Pod]:
    return sorted(pods, key=lambda pod: pod.metadata.creation_timestamp or "", reverse=True)


def _stage(pod: Pod) -> str:
    """The container that runs, or was killed."""
    for container in pod.containers:
        if container.state.running is not None or (
            container.state.terminated and container.state.terminated.exit_code
        ):
            return container.name
    return ""


def _of_pod(pod: Pod) -> Trouble | None:
    for container in pod.containers:
        ended = container.state.terminated or container.last_state.terminated
        if ended and (ended.exit_code or ended.signal):
            return _of_container(container.name, ended)
    if trouble := _waiting(pod):
        return trouble
    if pod.status.reason or pod.status.message:
        # Evicted, NodeLost, an admission of the kubelet that was refused.
        what = ": ".join(text for text in (pod.status.reason, pod.status.message) if text)
        return Trouble(f"its Pod has failed ({_cut(what)})", hint="look at the node: kubectl describe node")
    return None


def _waiting(pod: Pod) -> Trouble | None:
    for container in pod.containers:
        waiting = container.state.waiting
        if waiting and waiting.reason not in ("", "PodInitializing", "ContainerCreating"):
            return _not_started(container, waiting.reason, waiting.message)
    return None


def _not_started(container: ContainerStatus, reason: str, message: str) -> Trouble:
    what = f"it could not be started ({': '.join(text for text in (reason, message) if text)})"
    image = "Image" in reason or "Pull" in reason
    hint = "see that the node can pull this image, and look at imagePullSecrets" if image else ""
    return Trouble(_cut(what), stage=container.name, hint=hint)


def _of_container(name: str, ended: Terminated) -> Trouble:
    code = ended.exit_code or 128 + ended.signal
    try:
        message = msgspec.json.decode(ended.message, type=_Message)
    except msgspec.DecodeError:
        message = _Message()
    if message.error and message.error.what:
        return Trouble(
            message.error.what, stage=name, exit_code=code, where=message.error.where, hint=message.error.hint
        )
    if message.summary:
        return Trouble(message.summary, stage=name, exit_code=code)
    if ended.message.strip():
        return Trouble(_cut(" ".join(ended.message.split())), stage=name, exit_code=code)
    reason = f" ({ended.reason})" if ended.reason not in ("", "Error") else ""
    return Trouble(f"it ended without a word{reason}", stage=name, exit_code=code, hint="look at its log")


def _logs(job: Job) -> str:
    return f"try `{_describe('job', job.metadata.name, job)}` and the node's own log"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
