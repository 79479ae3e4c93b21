"""Send requests to the API server, count them, and retry temporary failures.

This module uses the credentials and connections of lightkube, but not its client. That client cannot request
watch bookmarks, cannot delete with a uid precondition, and does not accept a label selector as text.
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
from kata_node.dispatcher.kubernetes_objects import (
    JobPage,
    ListMeta,
    NodePage,
    PodPage,
    TablePage,
    WatchEvent,
)
from kata_node.dispatcher.shutdown import Shutdown
from kata_node.errors import KataNodeError, KubeError
from kata_node.kube.credentials import CONNECT_TIMEOUT, open_http_client
from kata_node.kube.failures import RequestFailure, classify_error
from kata_node.kube.retry import MAX_AUTH_TRIES, REAL_CLOCK, REQUEST_TIMEOUT, Clock
from kata_node.log import timed
from kata_node.text import foreign_words

if TYPE_CHECKING:
    import httpx2

RETRY_TIMEOUT = 300.0
"""Seconds for which a request is retried before it is an error."""

PAGE_SIZE = 250
"""Objects per list request. 250 Nodes or Jobs are about 5 MB; a list of a whole cluster can be 100 MB."""

WATCH_GRACE = 15.0
"""Seconds that a watch may outlast its timeout before the connection is considered dead."""

INITIAL_BACKOFF, MAX_BACKOFF = 0.5, 15.0

ANY_FORMAT = "*/*"
AS_TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
"""The format of an answer: objects, or the columns that ``kubectl get`` prints. A Node as a row has 3% of the
size of the object."""

log = logging.getLogger(__name__)


class _Page(Protocol):
    @property
    def metadata(self) -> ListMeta: ...


P = TypeVar("P", NodePage, JobPage, PodPage, TablePage)


class RefusedError(KubeError):
    """The API server refused a request, and a retry does not help."""

    def __init__(self, failure: RequestFailure, request: str, server: str) -> None:
        super().__init__(
            f"the API server {failure.what}", where=f"{request} at {server}", hint=_hint(failure)
        )
        self.failure = failure


class ExpiredError(KataNodeError):
    """The API server no longer has the resource version or the continue token of a watch or list."""


class ApiClient:
    """A connection to the API server. As a context manager it closes the connection."""

    def __init__(
        self, session: httpx2.Client, *, clock: Clock = REAL_CLOCK, stop: Shutdown | None = None
    ) -> None:
        self.clock = clock
        self.stop = stop or Shutdown()
        self.requests: Counter[str] = Counter()
        """Number of requests, retries included, by description (``list nodes``)."""
        self._session = session
        self._server = str(session.base_url).rstrip("/")

    @classmethod
    def connect(cls, *, clock: Clock = REAL_CLOCK, stop: Shutdown | None = None) -> ApiClient:
        """Return a client with the pod's ServiceAccount or else a kubeconfig; send no request yet.

        Raises :class:`KubeError` when there are no usable credentials.
        """
        session = open_http_client(REQUEST_TIMEOUT)
        # The API server uses the part before the slash as the field manager.
        session.headers["User-Agent"] = f"kata-deploy-job-dispatcher/{__version__}"
        return cls(session, clock=clock, stop=stop)

    def __enter__(self) -> ApiClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def sleep(self, seconds: float) -> None:
        """Sleep; raises :class:`ShutdownRequested` when a shutdown is requested."""
        self.stop.wait(lambda: self.clock.sleep(seconds))

    def call(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        accept: str = ANY_FORMAT,
    ) -> bytes:
        """Return the body of the answer; ``what`` describes the request, for example ``list nodes``.

        Raises :class:`RefusedError` at once when a retry cannot help, :class:`KubeError` when the request
        still fails after :data:`RETRY_TIMEOUT`, and :class:`ShutdownRequested` when a shutdown is requested
        during the pause before a retry.
        """
        return self._send_with_retries(
            what,
            lambda: self._session.request(
                method, _url(path, query), content=body or None, headers=_headers(method, body, accept)
            ).raise_for_status(),
        ).content

    def call_once(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout: float,
    ) -> bytes:
        """Send one request without retries, also during a shutdown, and return the body of the answer.

        Raises :class:`RefusedError` on any failure.
        """
        self.requests[what] += 1
        try:
            with timed(log, what):
                answer = self._session.request(
                    method,
                    _url(path, query),
                    content=body or None,
                    headers=_headers(method, body),
                    timeout=timeout,
                )
                return answer.raise_for_status().content
        except Exception as error:
            failure = classify_error(error)
            if failure is None:
                raise
            raise RefusedError(failure, what, self._server) from error

    def pages(
        self, path: str, what: str, page_type: type[P], query: Mapping[str, str], *, accept: str = ANY_FORMAT
    ) -> Iterator[P]:
        """Yield the pages of a list, with up to :data:`PAGE_SIZE` objects each.

        Raises :class:`ExpiredError` when the continue token expires before the last page.
        """
        decoder = msgspec.json.Decoder(page_type)
        continue_token = ""  # the place in a list, no password  # nosec B105
        while True:
            more = {"continue": continue_token} if continue_token else {}
            try:
                full = {**query, "limit": str(PAGE_SIZE), **more}
                page = decoder.decode(self.call("GET", path, what, query=full, accept=accept))
            except RefusedError as error:
                if error.failure.status == 410:
                    raise ExpiredError(
                        "the list expired before its last page was read", where=what
                    ) from error
                raise
            except msgspec.DecodeError as error:
                what = f"gave an answer that is not a Kubernetes list ({foreign_words(str(error))})"
                raise KubeError(f"the API server {what}", where=self._server) from error
            yield page
            continue_token = page.metadata.continue_
            if not continue_token:
                return

    def watch(
        self, path: str, what: str, query: Mapping[str, str], seconds: int, *, accept: str = ANY_FORMAT
    ) -> Iterator[WatchEvent]:
        """Yield watch events until the server ends the watch after about ``seconds``.

        Raises the errors of the connection and of the server, see
        :func:`kata_node.kube.failures.classify_error`. There is no retry.
        """
        import httpx2

        full = {**query, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        timeout = httpx2.Timeout(REQUEST_TIMEOUT, connect=CONNECT_TIMEOUT, read=seconds + WATCH_GRACE)
        self.requests[what] += 1
        headers = {"Accept": accept}
        with self._session.stream("GET", _url(path, full), headers=headers, timeout=timeout) as answer:
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
                with timed(log, what):
                    return send()
            except Exception as error:
                retry.wait_or_raise(error)


class RetryPolicy:
    """The pauses between the tries of one operation, and the time limit for all of them."""

    def __init__(self, api: ApiClient, what: str) -> None:
        self._api = api
        self._what = what
        self._tries = self._refused = 0
        self._deadline = 0.0

    def succeeded(self) -> None:
        """Reset the count of tries and the time limit."""
        self._tries = self._refused = 0

    def wait_or_raise(self, error: Exception) -> None:
        """Sleep before the next try after ``error``.

        Raises :class:`RefusedError` when a retry cannot help, :class:`KubeError` when the time limit has
        passed, and ``error`` itself when it does not come from the request.
        """
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
                f"the API server {failure.what} (retried for {RETRY_TIMEOUT:g} s)",
                where=f"{self._what} at {api._server}",
                hint="check the API server, then run the helm command again; running Jobs continue meanwhile",
            ) from error
        log.warning("%s: the API server %s; retrying in %.1f s", self._what, failure.what, pause)
        api.sleep(pause)


def _headers(method: str, body: bytes, accept: str = ANY_FORMAT) -> dict[str, str]:
    content_type = "application/merge-patch+json" if method == "PATCH" else "application/json"
    return {"Accept": accept, **({"Content-Type": content_type} if body else {})}


def _url(path: str, query: Mapping[str, str] | None) -> str:
    pairs = "&".join(f"{key}={quote(value, safe='')}" for key, value in (query or {}).items())
    return f"{path}?{pairs}" if pairs else path


def _hint(failure: RequestFailure) -> str:
    match failure.status:
        case 401:
            return "check that the ServiceAccount of the dispatcher still exists"
        case 403 if is_rbac_denial(failure):
            return (
                "give the dispatcher's ServiceAccount these rights: list and patch on nodes; in its own "
                "namespace list on pods, create, get, list, watch, patch and delete on jobs (API group "
                "batch), get and patch on the ConfigMap of the release's state; for Events, create on "
                "events in the namespace default"
            )
        case 403:
            return "change the quota or the admission rule that forbids this request"
        case 422:
            return "correct the Helm values; the chart renders the Job template from them"
    return ""


def is_rbac_denial(failure: RequestFailure) -> bool:
    """Return whether the account lacks the right, rather than a quota or an admission rule refusing it."""
    return failure.status == 403 and " cannot " in failure.message and " resource " in failure.message
