"""Requests for the Jobs and Pods of one namespace."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import msgspec

from kata_node.dispatcher.api import ApiClient, ExpiredError, RefusedError
from kata_node.dispatcher.kubernetes_objects import JOB_UID_LABEL, Job, Pod, PodPage
from kata_node.dispatcher.template import Owner, owner_reference

LIVE_PODS_SELECTOR = "status.phase!=Succeeded,status.phase!=Failed"

POLICY_TIMEOUT, POLICY_INTERVAL = 20.0, 1.0
"""Seconds. For that long after the first denial by an admission policy, denied requests are sent again. After
an upgrade an API server can still enforce the policy of the previous release."""

log = logging.getLogger(__name__)


class PolicyGrace:
    """Waits after denials by admission policies, for :data:`POLICY_TIMEOUT` after the first one."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._deadline: float | None = None

    def wait(self, error: RefusedError) -> bool:
        """Wait a moment if an admission policy denied a request; return whether a retry makes sense."""
        if error.failure.status != 403 or "ValidatingAdmissionPolicy" not in error.failure.message:
            return False
        now = self._api.clock.now()
        if self._deadline is None:
            what = error.what
            log.info("an admission policy denies a request, trying again for %g s: %s", POLICY_TIMEOUT, what)
            self._deadline = now + POLICY_TIMEOUT
        if now >= self._deadline:
            return False
        self._api.sleep(POLICY_INTERVAL)
        return True


class Jobs:
    """Requests for Jobs and Pods. All methods raise :class:`RefusedError` and :class:`KubeError`."""

    def __init__(self, api: ApiClient, namespace: str) -> None:
        self._api = api
        self._path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self._pods = f"/api/v1/namespaces/{namespace}/pods"
        self._policy_grace = PolicyGrace(api)

    def create(self, manifest: bytes) -> Job | None:
        """Create a Job and return it; ``None`` when a Job with this name already exists."""
        while True:
            try:
                answer = self._api.call("POST", self._path, "create a job", body=manifest)
            except RefusedError as error:
                # Concurrent updates of a quota also give 409, with the reason Conflict.
                if error.failure.status == 409 and error.failure.reason in ("AlreadyExists", ""):
                    return None
                if not self._policy_grace.wait(error):
                    raise
            else:
                return msgspec.json.decode(answer, type=Job)

    def get(self, name: str) -> Job | None:
        """Return the Job with this name; ``None`` when there is none."""
        try:
            answer = self._api.call("GET", f"{self._path}/{name}", "get a job")
        except RefusedError as error:
            if error.failure.status == 404:
                return None
            raise
        return msgspec.json.decode(answer, type=Job)

    def delete(self, job: Job, *, wait: bool = False) -> None:
        """Delete this Job, but no other Job with its name.

        With ``wait`` the Job object stays until its Pods have ended.
        """
        self.delete_by_name(job.metadata.name, job.metadata.uid, wait=wait)

    def delete_by_name(self, name: str, uid: str, *, wait: bool = False) -> None:
        """Delete the Job with this name and uid, see :meth:`delete`."""
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
            if error.failure.status not in (404, 409):  # deleted already, or another Job has its name
                raise

    def set_owner(self, job: Job, owner: Owner) -> None:
        """Replace the owner of a Job, so that it is deleted together with ``owner``; ignore a deleted Job."""
        patch = {"metadata": {"uid": job.metadata.uid, "ownerReferences": [owner_reference(owner)]}}
        try:
            path = f"{self._path}/{job.metadata.name}"
            self._api.call("PATCH", path, "patch a job", body=msgspec.json.encode(patch))
        except RefusedError as error:
            if error.failure.status not in (404, 409, 422):
                raise
            log.debug("the Job %s no longer exists, its owner is not set", job.metadata.name)

    def pods(self, job: Job) -> list[Pod]:
        """Return the existing Pods of a Job, ended ones included."""
        return self._list({"labelSelector": f"{JOB_UID_LABEL}={job.metadata.uid}"})

    def live_pods(self, selector: str) -> list[Pod]:
        """Return the Pods with a label selector that have not ended, even if their Jobs were deleted."""
        return self._list({"labelSelector": selector, "fieldSelector": LIVE_PODS_SELECTOR})

    def _list(self, query: Mapping[str, str]) -> list[Pod]:
        while True:
            try:
                pages = self._api.pages(self._pods, "list pods", PodPage, query)
                return [pod for page in pages for pod in page.items or ()]
            except ExpiredError:
                continue
