"""Stop the other dispatchers of a release before a cleanup.

When helm reaches its ``--timeout``, the dispatcher of the install keeps running. During an uninstall it would
install Kata on nodes that are already clean, and on nodes that did not have Kata yet.
"""

from __future__ import annotations

import logging

from kata_node.dispatcher.api import ApiClient
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.jobs import Jobs
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
    deleted_jobs: set[str] = set()
    deadline = api.clock.now() + SHUTDOWN_TIMEOUT
    while competing_pods := [
        pod
        for pod in jobs.live_pods(f"{release},{DISPATCHER_SELECTOR}")
        if pod.job_uid and pod.job_uid != own_uid and pod.metadata.name != reporter
    ]:
        for pod in competing_pods:
            if pod.job_uid not in deleted_jobs:
                deleted_jobs.add(pod.job_uid)
                log.warning(
                    "another dispatcher still runs in the Pod %s; deleting its Job %s",
                    pod.metadata.name,
                    pod.job_name,
                )
                jobs.delete_by_name(pod.job_name, pod.job_uid, wait=True)
        if api.clock.now() >= deadline:
            names = ", ".join(pod.metadata.name for pod in competing_pods)
            log.warning(
                "these dispatcher Pods did not end within %g s: %s; continuing", SHUTDOWN_TIMEOUT, names
            )
            return
        api.sleep(POLL_INTERVAL)
