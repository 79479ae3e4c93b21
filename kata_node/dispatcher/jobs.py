"""Jobs and their Pods in one namespace, as requests."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from kata_node.dispatcher.api import ApiClient, ExpiredError, RefusedError
from kata_node.dispatcher.kubernetes_objects import JOB_UID_LABEL, Job, Pod, PodPage
from kata_node.dispatcher.template import Owner, owner_reference

LIVE_PODS_SELECTOR = "status.phase!=Succeeded,status.phase!=Failed"

log = logging.getLogger(__name__)


class Jobs:
    """What can be done about a Job. All raise :class:`RefusedError` and :class:`KubeError`."""

    def __init__(self, api: ApiClient, namespace: str) -> None:
        self._api = api
        self._path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self._pods = f"/api/v1/namespaces/{namespace}/pods"

    def create(self, manifest: bytes) -> Job | None:
        """The new Job; ``None`` when there is one of that name already."""
        try:
            answer = self._api.call("POST", self._path, "create a job", body=manifest)
        except RefusedError as error:
            # A quota that many write to is a conflict as well, and no Job.
            if error.failure.status == 409 and error.failure.reason in ("AlreadyExists", ""):
                return None
            raise
        return msgspec.json.decode(answer, type=Job)

    def get(self, name: str) -> Job | None:
        """The Job of this name, if there is one."""
        try:
            answer = self._api.call("GET", f"{self._path}/{name}", "get a job")
        except RefusedError as error:
            if error.failure.status == 404:
                return None
            raise
        return msgspec.json.decode(answer, type=Job)

    def delete(self, job: Job, *, wait: bool = False) -> None:
        """Delete exactly this Job; with ``wait`` it stays visible until its Pods have ended."""
        self.delete_by_name(job.metadata.name, job.metadata.uid, wait=wait)

    def delete_by_name(self, name: str, uid: str, *, wait: bool = False) -> None:
        """The same, of a Job that was not read."""
        body: Mapping[str, object] = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Foreground" if wait else "Background",
        }
        try:
            path = f"{self._path}/{name}"
            self._api.call("DELETE", path, "delete a job", body=msgspec.json.encode(body))
        except RefusedError as error:
            if error.failure.status not in (404, 409):  # it is gone, or another has its name
                raise

    def set_owner(self, job: Job, owner: Owner) -> None:
        """Make a Job go with ``owner`` and no longer with whose it was; one that is gone is nobody's."""
        patch = {"metadata": {"uid": job.metadata.uid, "ownerReferences": [owner_reference(owner)]}}
        try:
            path = f"{self._path}/{job.metadata.name}"
            self._api.call("PATCH", path, "patch a job", body=msgspec.json.encode(patch))
        except RefusedError as error:
            if error.failure.status not in (404, 409, 422):
                raise
            log.debug("%s is no longer there to be adopted", job.metadata.name)

    def pods(self, job: Job) -> list[Pod]:
        """The Pods it has had that are still there."""
        return self._list({"labelSelector": f"{JOB_UID_LABEL}={job.metadata.uid}"})

    def live_pods(self, selector: str) -> list[Pod]:
        """The Pods of a label selector that have not ended, whether or not their Jobs are still there."""
        return self._list({"labelSelector": selector, "fieldSelector": LIVE_PODS_SELECTOR})

    def _list(self, query: Mapping[str, str]) -> list[Pod]:
        while True:
            try:
                pages = self._api.pages(self._pods, "list pods", PodPage, query)
                return [pod for page in pages for pod in page.items or ()]
            except ExpiredError:
                continue
