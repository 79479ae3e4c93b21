"""Requests to the API server: counted, and made again while what fails may pass.

lightkube's own client neither asks for bookmarks, nor deletes an object on the condition that it is
still the same, nor takes a label selector as text; its credentials and connections are used.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar
from urllib.parse import quote

import msgspec

from kata_node import __version__
from kata_node.dispatcher.kubernetes_objects import JobPage, ListMeta, NodePage, PodPage, WatchEvent
from kata_node.dispatcher.shutdown import Shutdown
from kata_node.errors import KataNodeError, KubeError
from kata_node.kube.credentials import CONNECT_TIMEOUT, open_http_client
from kata_node.kube.failures import RequestFailure, classify_error
from kata_node.kube.retry import MAX_AUTH_TRIES, REAL_CLOCK, REQUEST_TIMEOUT, Clock

if TYPE_CHECKING:
    import httpx2

RETRY_TIMEOUT = 300.0
"""Seconds an API server may be away, or busy, before that is an error."""

PAGE_SIZE = 250
"""Objects per request: 5 MB of Nodes or Jobs at a time, not 100."""

WATCH_GRACE = 15.0
"""Seconds after which a watch that should have been ended by the server is taken for dead."""

INITIAL_BACKOFF, MAX_BACKOFF = 0.5, 15.0

log = logging.getLogger(__name__)


class _Page(Protocol):
    @property
    def metadata(self) -> ListMeta: ...


P = TypeVar("P", NodePage, JobPage, PodPage)


class RefusedError(KubeError):
    """A request that the API server answered with an error which no retry mends."""

    def __init__(self, failure: RequestFailure, request: str, server: str) -> None:
        super().__init__(
            f"the API server {failure.what}", where=f"{request} at {server}", hint=_hint(failure)
        )
        self.failure = failure


class ExpiredError(KataNodeError):
    """What a watch or a list was to go on from is no longer known to the API server."""


class ApiClient:
    """A connection to the API server; a context manager that closes it."""

    def __init__(
        self, session: httpx2.Client, *, clock: Clock = REAL_CLOCK, stop: Shutdown | None = None
    ) -> None:
        self.clock = clock
        self.stop = stop or Shutdown()
        self.requests: Counter[str] = Counter()
        """How many requests were made, tries included, by what was asked for."""
        self._session = session
        self._server = str(session.base_url).rstrip("/")

    @classmethod
    def connect(cls, *, clock: Clock = REAL_CLOCK, stop: Shutdown | None = None) -> ApiClient:
        """Use the pod's ServiceAccount, else a kubeconfig; nothing is sent yet.

        Raises :class:`KubeError` when there are no credentials, or they cannot be used.
        """
        session = open_http_client(REQUEST_TIMEOUT)
        # The API server also takes its first word for the name of who manages fields.
        session.headers["User-Agent"] = f"kata-deploy-job-dispatcher/{__version__}"
        return cls(session, clock=clock, stop=stop)

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def sleep(self, seconds: float) -> None:
        """Let time pass; raises :class:`Stopped` when an end is asked for."""
        self.stop.wait(lambda: self.clock.sleep(seconds))

    def call(
        self, method: str, path: str, what: str, *, query: Mapping[str, str] | None = None, body: bytes = b""
    ) -> bytes:
        """The answer to one request; ``what`` is asked for, such as ``list nodes``.

        Raises :class:`RefusedError`, at once, for what no retry mends; :class:`KubeError` when
        :data:`PATIENCE` has run out; and :class:`Stopped` when there is a wish to stop while it waits
        for the next try.
        """
        content_type = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers = {"Content-Type": content_type} if body else {}
        return self._send_with_retries(
            what,
            lambda: self._session.request(
                method, _url(path, query), content=body or None, headers=headers
            ).raise_for_status(),
        ).content

    def call_once(self, method: str, path: str, what: str, *, body: bytes, timeout: float) -> None:
        """Make one request, and no second one; raises :class:`RefusedError` when it fails in any way."""
        self.requests[what] += 1
        try:
            self._session.request(
                method,
                path,
                content=body,
                headers={"Content-Type": "application/json"},
                timeout=timeout,
            ).raise_for_status()
        except Exception as error:
            failure = classify_error(error)
            if failure is None:
                raise
            raise RefusedError(failure, what, self._server) from error

    def pages(self, path: str, what: str, page_type: type[P], query: Mapping[str, str]) -> Iterator[P]:
        """The pages of a list, of :data:`PAGE` objects each.

        Raises :class:`ExpiredError` when that took so long that the server does not know how to go on.
        """
        decoder = msgspec.json.Decoder(page_type)
        continue_token = ""
        while True:
            more = {"continue": continue_token} if continue_token else {}
            try:
                page = decoder.decode(
                    self.call("GET", path, what, query={**query, "limit": str(PAGE_SIZE), **more})
                )
            except RefusedError as error:
                if error.failure.status == 410:
                    raise ExpiredError("the list has changed too much meanwhile", where=what) from error
                raise
            except msgspec.DecodeError as error:
                raise KubeError(f"the answer is none of Kubernetes ({error})", where=self._server) from error
            yield page
            continue_token = page.metadata.continue_
            if not continue_token:
                return

    def watch(self, path: str, what: str, query: Mapping[str, str], seconds: int) -> Iterator[WatchEvent]:
        """What happens, until the server ends the watch after about ``seconds``.

        Raises what the connection or the server fail with, see :func:`failure_of`; nothing is retried.
        """
        import httpx2

        full = {**query, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        timeout = httpx2.Timeout(REQUEST_TIMEOUT, connect=CONNECT_TIMEOUT, read=seconds + WATCH_GRACE)
        self.requests[what] += 1
        with self._session.stream("GET", _url(path, full), timeout=timeout) as answer:
            if answer.is_error:
                answer.read()
                answer.raise_for_status()
            yield from self._lines(answer.iter_bytes())

    def _lines(self, chunks: Iterator[bytes]) -> Iterator[WatchEvent]:
        decode = msgspec.json.Decoder(WatchEvent).decode
        partial_line: list[bytes] = []
        while (chunk := self.stop.wait(lambda: next(chunks, None))) is not None:
            first, *more = chunk.split(b"\n")
            partial_line.append(first)
            for rest in more:
                line = b"".join(partial_line)
                partial_line = [rest]
                if line:
                    yield decode(line)

    def _send_with_retries(self, what: str, send: Callable[[], httpx2.Response]) -> httpx2.Response:
        retry = RetryPolicy(self, what)
        while True:
            self.requests[what] += 1
            try:
                return send()
            except Exception as error:
                retry.wait_or_raise(error)


class RetryPolicy:
    """The pauses between tries of one thing, and their end."""

    def __init__(self, api: ApiClient, what: str) -> None:
        self._api = api
        self._what = what
        self._tries = self._refused = 0
        self._deadline = 0.0

    def succeeded(self) -> None:
        """Begin anew: what fails next fails for the first time."""
        self._tries = self._refused = 0

    def wait_or_raise(self, error: Exception) -> None:
        """Wait as long as is right after ``error``; raise what it stands for when it is not to pass."""
        api = self._api
        failure = classify_error(error)
        if failure is None:
            raise error
        now = api.clock.now()
        if not self._tries:
            self._deadline = now + RETRY_TIMEOUT
        self._tries += 1
        self._refused += failure.status in (401, 403)
        if not failure.retryable or self._refused >= MAX_AUTH_TRIES:
            raise RefusedError(failure, self._what, api._server) from error
        backoff = min(MAX_BACKOFF, INITIAL_BACKOFF * 2.0 ** min(self._tries - 1, 10))
        pause = max(failure.retry_after, backoff * (1 + api.clock.jitter()) / 2)
        if now + pause >= self._deadline:
            raise KubeError(
                f"the API server {failure.what} (for {RETRY_TIMEOUT:g} s)",
                where=f"{self._what} at {api._server}",
                hint="look at the API server, then run again: what was begun on nodes goes on by itself",
            ) from error
        log.warning("the API server %s; trying again in %.1f s", failure.what, pause)
        api.sleep(pause)


def _url(path: str, query: Mapping[str, str] | None) -> str:
    pairs = "&".join(f"{key}={quote(value, safe='')}" for key, value in (query or {}).items())
    return f"{path}?{pairs}" if pairs else path


def _hint(failure: RequestFailure) -> str:
    match failure.status:
        case 401:
            return "see that the ServiceAccount of the dispatcher still exists"
        case 403 if is_rbac_denial(failure):
            return (
                "the dispatcher needs list on nodes, and in its own namespace list on pods, and on jobs (API "
                "group batch) create, get, list, watch, patch and delete; for Events, create on events in "
                "the namespace default"
            )
        case 403:
            return "a quota, or an admission rule of the cluster, forbids this"
        case 422:
            return "correct the Job's template, which the Helm values make"
    return ""


def is_rbac_denial(failure: RequestFailure) -> bool:
    """Whether it is the account that may not do this, rather than the object that is not admitted."""
    return failure.status == 403 and " cannot " in failure.what and " resource " in failure.what
