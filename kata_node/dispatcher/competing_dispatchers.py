"""Stop the other dispatchers of a release before a cleanup, and delete those of other manifests.

When helm reaches its ``--timeout``, the dispatcher of the install keeps running. During an uninstall it would
install Kata on nodes that are already clean, and on nodes that did not have Kata yet.
"""

from __future__ import annotations

import logging

from kata_node.dispatcher.api import ApiClient
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.job_watch import JobWatch
from kata_node.dispatcher.jobs import Jobs
from kata_node.dispatcher.kubernetes_objects import Pod
from kata_node.dispatcher.template import Owner

DISPATCHER_SELECTOR = "app.kubernetes.io/component=dispatcher"
"""The label that dispatcher Pods, and the dispatcher Jobs that helm did not create, have in addition to the
labels of the release."""

POLL_INTERVAL = 2.0
SHUTDOWN_TIMEOUT = 120.0
"""Seconds to wait for their end. A Pod that does not end is on a node with a dead kubelet."""

log = logging.getLogger(__name__)


def stop_competing_dispatchers(api: ApiClient, config: Config, owner: Owner | None, reporter: str) -> None:
    """Delete the Jobs of all other dispatchers of the release and wait until their Pods have ended.

    This dispatcher is recognized by its Job ``owner`` or by its Pod ``reporter``. The garbage collector
    deletes the node Jobs of the other dispatchers. Raises :class:`KubeError`.
    """
    jobs = Jobs(api, config.namespace)
    own_uid = owner.uid if owner else ""
    known_jobs: dict[str, bool] = {}  # uid of a Job: whether it is a dispatcher of the release
    deadline = api.clock.now() + SHUTDOWN_TIMEOUT
    while True:
        competing_pods = []
        for pod in jobs.live_pods(_selector(config)):
            if pod.job_uid in ("", own_uid) or pod.metadata.name == reporter:
                continue
            if pod.job_uid not in known_jobs:
                known_jobs[pod.job_uid] = _stop_job(jobs, pod, config)
            if known_jobs[pod.job_uid]:
                competing_pods.append(pod)
        if not competing_pods:
            return
        if api.clock.now() >= deadline:
            names = ", ".join(pod.metadata.name for pod in competing_pods)
            log.warning(
                "these dispatcher Pods did not end within %g s: %s; continuing", SHUTDOWN_TIMEOUT, names
            )
            return
        api.sleep(POLL_INTERVAL)


def delete_superseded_dispatchers(api: ApiClient, config: Config, owner: Owner) -> None:
    """Delete the dispatcher Jobs of other manifests of the release, ended ones included.

    Without helm, the Job of a dispatcher stays after its end, and its name depends on its content. If the Job
    of an earlier content stayed, that content could not be applied again. Raises :class:`KubeError`.
    """
    jobs = Jobs(api, config.namespace)
    for job in JobWatch(api, config.namespace, _selector(config)).list():
        if job.metadata.uid != owner.uid and not job.node:
            log.info("deleting the Job %s of other manifests of this release", job.metadata.name)
            jobs.delete(job)


def _selector(config: Config) -> str:
    release = ",".join(f"{key}={value}" for key, value in sorted(config.labels.items()))
    return f"{release},{DISPATCHER_SELECTOR}"


def _stop_job(jobs: Jobs, pod: Pod, config: Config) -> bool:
    """Delete the Job of a dispatcher Pod. Return ``False`` if its Job is no dispatcher of the release.

    The labels of a Pod are no proof: a kubelet can register a mirror Pod with any labels.
    """
    job = jobs.get(pod.job_name)
    if job is None or job.metadata.uid != pod.job_uid:
        return True  # its Job was deleted before
    if job.node or not config.labels.items() <= job.metadata.labels.items():
        log.warning(
            "the Pod %s has the labels of a dispatcher, but its Job %s does not belong to this release; "
            "leaving both alone",
            pod.metadata.name,
            pod.job_name,
        )
        return False
    log.warning(
        "another dispatcher still runs in the Pod %s; deleting its Job %s", pod.metadata.name, pod.job_name
    )
    jobs.delete(job, wait=True)
    return True
