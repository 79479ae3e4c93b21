"""Stop the other dispatchers of a release before a cleanup.

When helm reaches its ``--timeout``, the dispatcher of the install keeps running. During an uninstall it would
install Kata on nodes that are already clean, and on nodes that did not have Kata yet.
"""

from __future__ import annotations

import logging

from kata_node.dispatcher.api import ApiClient
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.jobs import Jobs
from kata_node.dispatcher.kubernetes_objects import Pod
from kata_node.dispatcher.template import Owner

DISPATCHER_SELECTOR = "app.kubernetes.io/component=dispatcher"
"""The label that dispatcher Pods have in addition to the labels of the release."""

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
    release = ",".join(f"{key}={value}" for key, value in sorted(config.labels.items()))
    own_uid = owner.uid if owner else ""
    known_jobs: dict[str, bool] = {}  # uid of a Job: whether it is a dispatcher of the release
    deadline = api.clock.now() + SHUTDOWN_TIMEOUT
    while True:
        competing_pods = []
        for pod in jobs.live_pods(f"{release},{DISPATCHER_SELECTOR}"):
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
