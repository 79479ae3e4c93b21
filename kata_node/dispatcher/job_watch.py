"""The Jobs of a release as they change: a list, and a watch that goes on from it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from kata_node.dispatcher.api import ApiClient, ExpiredError, RetryPolicy
from kata_node.dispatcher.kubernetes_objects import Job, JobPage, Status

MIN_WATCH_INTERVAL = 1.0
"""A watch that ends sooner than after these seconds, without a word, is not opened again at once."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobChange:
    """A Job as it is now, or as it was last when it has been deleted."""

    job: Job
    deleted: bool = False


class JobWatch:
    """What happens to all Jobs of a label selector in a namespace, with nothing left out at the end.

    A watch that breaks is taken up where it was; where the server no longer knows that point, the Jobs
    are listed again, and those that are gone are told as deleted.
    """

    def __init__(self, api: ApiClient, namespace: str, selector: str) -> None:
        self._api = api
        self._path = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self._query = {"labelSelector": selector}
        self._resource_version = ""
        self._unfinished_jobs: dict[str, Job] = {}  # those whose end has not been told yet
        self._retry = RetryPolicy(api, "watch jobs")

    def list(self) -> list[Job]:
        """All Jobs as they are; the watch goes on from there."""
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
        """What happens within about ``seconds``; ends when a connection does.

        Raises :class:`KubeError` when the API server is away for too long.
        """
        began, quiet = self._api.clock.now(), True
        try:
            for change in self._watch_changes(max(1, int(seconds))):
                quiet = False
                self._retry.succeeded()
                yield change
            self._retry.succeeded()
        except ExpiredError as error:
            log.info("the watch cannot go on (%s); listing the Jobs again", error.what)
            yield from self._relist()
        except Exception as error:
            self._retry.wait_or_raise(error)
            return
        # Also after a list: one that is of no use at once is not made again and again.
        if quiet and (left := began + MIN_WATCH_INTERVAL - self._api.clock.now()) > 0:
            self._api.sleep(left)

    def _watch_changes(self, seconds: int) -> Iterator[JobChange]:
        query = {**self._query, "resourceVersion": self._resource_version}
        decode = msgspec.json.Decoder(Job).decode
        try:
            for event in self._api.watch(self._path, "watch jobs", query, seconds):
                if event.type == "ERROR":
                    status = msgspec.json.decode(event.object, type=Status)
                    # Mostly 410. Whatever else it is, such as a version that an API server restored from
                    # a backup does not know yet, the same watch would be ended again.
                    raise ExpiredError(status.message or status.reason)
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
                raise ExpiredError("the watch cannot go on from there") from error
            raise

    def _relist(self) -> Iterator[JobChange]:
        before = self._unfinished_jobs
        now = {job.metadata.uid: job for job in self.list()}
        # Those that are gone come first: another may have taken the name of one of them.
        yield from (JobChange(job, deleted=True) for uid, job in before.items() if uid not in now)
        yield from (JobChange(job) for job in now.values())
