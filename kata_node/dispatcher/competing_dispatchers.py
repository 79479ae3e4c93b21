"""Ends the dispatchers of a release that would undo what an uninstall does.

helm gives up waiting after its ``--timeout``, and the dispatcher of the install goes on: it would give
nodes that are cleaned already their Job again, and put Kata on those that had none yet.
"""

from __future__ import annotations

import logging

from kata_node.dispatcher.api import ApiClient
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.jobs import Jobs
from kata_node.dispatcher.template import Owner

DISPATCHER_SELECTOR = "app.kubernetes.io/component=dispatcher"
"""The label of the Pods of dispatchers, besides those of the release."""

POLL_INTERVAL = 2.0
SHUTDOWN_TIMEOUT = 120.0
"""Seconds for them to end. One that does not is on a node that nobody hears of."""

log = logging.getLogger(__name__)


def stop_competing_dispatchers(api: ApiClient, config: Config, owner: Owner | None, reporter: str) -> None:
    """Delete the Jobs of all dispatchers of the release but of this one, and see their Pods end.

    This one runs in the Job ``owner``, or at least in the Pod ``reporter``. The Jobs that the others have
    made go with them. Raises :class:`KubeError`.
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
                log.warning("the dispatcher in %s still runs; ending it", pod.metadata.name)
                jobs.delete_by_name(pod.job_name, pod.job_uid, wait=True)
        if api.clock.now() >= deadline:
            names = ", ".join(pod.metadata.name for pod in competing_pods)
            log.warning("%s has not ended within %g s; going on all the same", names, SHUTDOWN_TIMEOUT)
            return
        api.sleep(POLL_INTERVAL)
