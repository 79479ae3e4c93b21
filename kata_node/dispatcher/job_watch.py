"""List the Jobs of a release and watch their changes."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import msgspec
from msgspec import Struct

from kata_node.dispatcher.api import ApiClient, ExpiredError, RetryPolicy
from kata_node.dispatcher.kubernetes_objects import Job, JobPage, Status
from kata_node.text import foreign_words

MIN_WATCH_INTERVAL = 1.0
"""Minimum seconds between the starts of two watches when the first one reports nothing."""

log = logging.getLogger(__name__)


class JobChange(Struct, frozen=True):
    """The current state of a Job, or its last known state when it was deleted."""

    job: Job
    deleted: bool = False


class JobWatch:
    """Reports the changes of all Jobs with a label selector in a namespace, without gaps.

    A watch that breaks is resumed at the last resource version. When the server no longer has that version,
    the Jobs are listed again, and Jobs that no longer exist are reported as deleted.
    """

    def __init__(self, api: ApiClient, namespace: str, selector: str) -> None:
        self._api = api
        self._path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self._query = {"labelSelector": selector}
        self._resource_version = ""
        self._unfinished_jobs: dict[str, Job] = {}  # the end of these has not been reported yet
        self._retry = RetryPolicy(api, "watch jobs")

    def list(self) -> list[Job]:
        """Return all Jobs; the watch continues from this list."""
        while True:
            jobs: dict[str, Job] = {}
            try:
                for page in self._api.pages(self._path, "list jobs", JobPage, self._query):
                    jobs.update((job.metadata.uid, job) for job in page.items or ())
                    self._resource_version = page.metadata.resource_version
            except ExpiredError:
                continue
            self._unfinished_jobs = {uid: job for uid, job in jobs.items() if not job.finished}
            return list(jobs.values())

    def changes(self, seconds: float) -> Iterator[JobChange]:
        """Yield the changes of about ``seconds``; fewer when the connection ends.

        Raises :class:`KubeError` when the API server is unreachable for too long.
        """
        began, quiet = self._api.clock.now(), True
        try:
            for change in self._watch_changes(max(1, int(seconds))):
                quiet = False
                self._retry.succeeded()
                yield change
            self._retry.succeeded()
        except ExpiredError as error:
            log.info("the watch of Jobs has expired (%s), listing the Jobs again", error.what)
            yield from self._relist()
        except Exception as error:
            self._retry.wait_or_raise(error)
            return
        # This also limits how often an expired watch leads to a new list.
        if quiet and (left := began + MIN_WATCH_INTERVAL - self._api.clock.now()) > 0:
            self._api.sleep(left)

    def _watch_changes(self, seconds: int) -> Iterator[JobChange]:
        query = {**self._query, "resourceVersion": self._resource_version}
        decode = msgspec.json.Decoder(Job).decode
        try:
            for event in self._api.watch(self._path, "watch jobs", query, seconds):
                if event.type == "ERROR":
                    status = msgspec.json.decode(event.object, type=Status)
                    # Usually 410. Any other error would end the same watch again, for example a version that
                    # an API server does not know yet because it was restored from a backup.
                    raise ExpiredError(foreign_words(status.message or status.reason))
                job = decode(event.object)
                self._resource_version = job.metadata.resource_version
                if event.type == "BOOKMARK":
                    continue
                deleted = event.type == "DELETED"
                if deleted or job.finished:
                    self._unfinished_jobs.pop(job.metadata.uid, None)
                else:
                    self._unfinished_jobs[job.metadata.uid] = job
                yield JobChange(job, deleted)
        except Exception as error:
            response = getattr(error, "response", None)
            if getattr(response, "status_code", 0) == 410:
                raise ExpiredError("its resource version is too old") from error
            raise

    def _relist(self) -> Iterator[JobChange]:
        before = self._unfinished_jobs
        now = {job.metadata.uid: job for job in self.list()}
        # Deleted Jobs come first, because a new Job may have the same name.
        yield from (JobChange(job, deleted=True) for uid, job in before.items() if uid not in now)
        yield from (JobChange(job) for job in now.values())
