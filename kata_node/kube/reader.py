"""Read objects of any kind, with the rights of the user who runs the command. Changes nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from kata_node.errors import KubeError, UsageError
from kata_node.kube.credentials import find_credentials, open_http_client
from kata_node.kube.failures import NOT_KUBERNETES_HINT, RequestFailure
from kata_node.kube.retry import REAL_CLOCK, retry_until
from kata_node.log import timed

if TYPE_CHECKING:
    import httpx2

PAGE_SIZE = 500
"""Objects of one answer to a list request."""

REQUEST_TIMEOUT = 30.0
RETRY_TIMEOUT = 10.0
"""Seconds. A person waits for the answer, so a request is repeated only for a short time."""

log = logging.getLogger(__name__)


class NotFoundError(KubeError):
    """The cluster has no such object, or no such API."""


class Reader:
    """A connection to the API server. Use it as a context manager, which closes it.

    All methods raise :class:`KubeError` when the API server refuses or does not answer.
    """

    def __init__(self, session: httpx2.Client) -> None:
        self._session = session
        self.server = str(session.base_url).rstrip("/")

    @classmethod
    def connect(cls, kubeconfig: str = "", context: str = "") -> Reader:
        """Return a reader with the credentials of a kubeconfig and one of its contexts.

        Without ``kubeconfig``, use what :func:`kata_node.kube.credentials.find_credentials` returns. Sends no
        request.
        """
        if not kubeconfig and find_credentials() is None:
            raise UsageError(
                "there is no kubeconfig",
                where="--kubeconfig",
                hint="name the file with --kubeconfig, or set KUBECONFIG",
            )
        return cls(open_http_client(REQUEST_TIMEOUT, kubeconfig=kubeconfig, context=context))

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.close()

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return one object. Raises :class:`NotFoundError` when there is none."""
        return _mapping(self._get(path, query or {}).json(), self.server)

    def list(self, path: str, query: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield all objects of a list, page by page: thousands of Nodes have hundreds of megabytes.

        Raises :class:`NotFoundError` when the cluster has no such API.
        """
        more: dict[str, str] = {}
        while True:
            page = self.get(path, {"limit": str(PAGE_SIZE), **(query or {}), **more})
            yield from page.get("items") or ()
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return
            more = {"continue": token}

    def text(self, path: str, query: Mapping[str, str] | None = None) -> str:
        """Return a text, such as the log of a container."""
        return self._get(path, query or {}).text

    def _get(self, path: str, query: Mapping[str, str]) -> httpx2.Response:
        def request() -> httpx2.Response:
            with timed(log, f"GET {path}"):
                return self._session.get(path, params=dict(query)).raise_for_status()

        deadline = REAL_CLOCK.now() + RETRY_TIMEOUT
        return retry_until(
            request, deadline, REAL_CLOCK, REQUEST_TIMEOUT, lambda failure, _: self._error(failure, path)
        )

    def _error(self, failure: RequestFailure, path: str) -> KubeError:
        kind = NotFoundError if failure.status == 404 else KubeError
        return kind(f"the API server {failure.what}", where=f"{path} at {self.server}", hint=_hint(failure))


def _mapping(answer: object, server: str) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise KubeError("the answer is not an object", where=server, hint=NOT_KUBERNETES_HINT)
    return answer


def _hint(failure: RequestFailure) -> str:
    match failure.status:
        case 0:
            return "check that `kubectl get nodes` works with the same kubeconfig and context"
        case 401:
            return "log in to the cluster again, or choose another context with --context"
        case 403:
            return (
                "ask the administrator of the cluster for the right to read this, or choose another context"
            )
        case 404:
            return NOT_KUBERNETES_HINT
    return "look at the log of the API server"
