"""Classify failed requests to the API server, and create the errors for them."""

from __future__ import annotations

import json
from typing import Any

from msgspec import Struct

from kata_node.errors import KubeError
from kata_node.text import foreign_words, quote_foreign

NOT_KUBERNETES_HINT = "check that this is the address of a Kubernetes API server"


class ConflictError(KubeError):
    """The Node changed after it was read, so the API server refused the change."""


class InvalidChangeError(KubeError):
    """The change cannot be applied to the Node: a test in it failed, or the result would be invalid."""


class NoSuchNodeError(KubeError):
    """The cluster has no Node of this name. Its kubelet may still register it."""


class NoAnswerError(Exception):
    """A connection failed before there was a whole answer. The cause is the error of the connection.

    ``is_permanent`` says that the next attempt would fail, too.
    """

    def __init__(self, cause: Exception, *, is_permanent: bool) -> None:
        super().__init__(one_line(cause))
        self.is_permanent = is_permanent


class HttpError(Exception):
    """The answer to a request has an HTTP status that is no success."""

    def __init__(self, status: int, reason: str, retry_after: str, body: bytes) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason = reason
        """The phrase in the status line."""
        self.retry_after = retry_after
        """The header ``Retry-After``, or empty."""
        self.body = body


class NotJsonError(Exception):
    """The answer to a request is not JSON."""


def decode(answer: bytes) -> dict[str, Any]:
    """Return the object in an answer, empty if it is another value. Raises :class:`NotJsonError`."""
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise NotJsonError(one_line(error)) from error
    return found if isinstance(found, dict) else {}


class RequestFailure(Struct, frozen=True):
    """Why a request failed.

    ``what`` continues a sentence that begins with "the API server". ``retryable`` says whether the
    failure may be temporary. ``status`` is the HTTP status, 0 without an answer.
    """

    what: str
    retryable: bool
    status: int = 0
    reason: str = ""
    retry_after: float = 0.0  # seconds
    message: str = ""
    """The words of the server as they are: to compare, not to show."""


def classify_error(error: Exception) -> RequestFailure | None:
    """Return the failure that ``error`` stands for; ``None`` when it is a bug in this program."""
    if isinstance(error, HttpError):
        return _refusal(error.status, error.reason, error.retry_after, error.body)
    if isinstance(error, NoAnswerError):
        return RequestFailure(f"gave no answer ({error})", retryable=not error.is_permanent)
    if isinstance(error, TimeoutError):
        return RequestFailure(f"gave no answer ({foreign_words(str(error))})", retryable=True)
    if isinstance(error, NotJsonError):
        return RequestFailure(f"gave an answer that is not JSON ({error})", retryable=False)
    return _failure_of_httpx(error)


def _failure_of_httpx(error: Exception) -> RequestFailure | None:
    import ssl

    import httpx2
    import msgspec
    from lightkube import ConfigError

    # If an error answer is not a Status object or has no content type, as from a load balancer, lightkube
    # raises another error while it handles the first. The answer is then further down in the chain.
    chain = _error_chain(error)
    for each in chain:
        if isinstance(each, httpx2.HTTPStatusError):
            answer = each.response
            wait = answer.headers.get("Retry-After", "")
            return _refusal(answer.status_code, answer.reason_phrase, wait, answer.content)
    if isinstance(error, httpx2.TransportError):
        permanent = isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError) or any(
            isinstance(each, ssl.SSLCertVerificationError) for each in chain
        )
        return RequestFailure(f"gave no answer ({one_line(error)})", retryable=not permanent)
    if isinstance(error, ConfigError | OSError | httpx2.InvalidURL):
        return RequestFailure(f"cannot be reached ({one_line(error)})", retryable=False)
    if isinstance(error, msgspec.DecodeError):
        return RequestFailure(f"gave an answer that is not JSON ({one_line(error)})", retryable=False)
    return None


def _refusal(status: int, phrase: str, wait: str, body: bytes) -> RequestFailure:
    try:
        answer = decode(body)
    except NotJsonError:
        answer = {}
    message, reason = phrase, ""
    if "message" in answer:
        message, reason = str(answer["message"]), str(answer.get("reason", ""))
    return RequestFailure(
        f"answered {status}: {quote_foreign(message)}" if message else f"answered {status}",
        retryable=status in (401, 408, 429)
        or status >= 500
        or (status == 403 and _may_be_unsynced_rbac(message)),
        status=status,
        reason=reason,
        message=message,
        retry_after=float(wait) if wait.isdecimal() else 0.0,
    )


def _may_be_unsynced_rbac(refused: str) -> bool:
    """Return whether a 403 may come from an API server that has not loaded its roles or policies yet."""
    return " cannot " in refused or "not yet ready" in refused


def _error_chain(error: BaseException) -> list[BaseException]:
    """Return the error and its causes. The loop must end even if an error is its own cause (lightkube)."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def request_error(failure: RequestFailure, verb: str, name: str, server: str, tries: int) -> KubeError:
    """Return the error for a request about the Node ``name`` that failed ``tries`` times.

    ``failure`` is the last failure, ``verb`` the permission that the request needs.
    """
    what = f"the API server {failure.what}" + (f" (asked {tries} times)" if tries > 1 else "")
    match failure.status, failure.reason:
        case 404, "NotFound":
            return NoSuchNodeError(
                f"the cluster has no Node named {name}",
                where=server,
                hint="set NODE_NAME to a name that `kubectl get nodes` shows; in a pod, take it from "
                "spec.nodeName. If the name is right, wait until the kubelet has registered the node, or "
                "restart the kubelet if the Node was deleted; then run again",
            )
        case 409, _:
            return ConflictError(what, where=f"node/{name}", hint="run again")
        case 422, _:
            return InvalidChangeError(what, where=f"node/{name} at {server}")
        case 401, _:
            hint = "use a token that is valid; in a pod, check that its ServiceAccount still exists"
        case 403, _ if f"cannot {verb} " in failure.message:
            hint = (
                f'give the account the verb "{verb}" on the resource "nodes" (API group ""): bind it to a '
                f'ClusterRole with "get" and "patch" on "nodes"'
            )
        case 403, _:
            hint = (
                "change the admission policy of the cluster that forbids this change; the account may make it"
            )
        case 404, _:
            hint = NOT_KUBERNETES_HINT
        case 0, _:
            hint = "check that the address is right and reachable, and that its certificate is the cluster's"
        case _:
            hint = "look at the log of the API server" if failure.retryable else ""
    return KubeError(what, where=f"node/{name} at {server}", hint=hint)


def event_not_recorded(failure: RequestFailure, server: str) -> KubeError:
    """Return the error for an Event that was not recorded."""
    lacks_right = failure.status == 403 and "cannot create " in failure.message
    hint = (
        'give the account the verb "create" on the resource "events" in the namespace "default"'
        if lacks_right
        else ""
    )
    return KubeError(f"the API server {failure.what}", where=server, hint=hint)


def one_line(error: BaseException) -> str:
    """Return an error of another library as one line, without text that may contain a token."""
    name = type(error).__name__
    for each in _error_chain(error):
        if type(each).__name__ == "LocalProtocolError":  # its text quotes the header
            return f"{name}: the credentials have a character that is not allowed in a header"
        if mark := getattr(each, "problem_mark", None):  # a YAML error: its text quotes lines of the file
            problem, line, column = getattr(each, "problem", ""), mark.line + 1, mark.column + 1
            return f"{name}: {problem} in line {line}, column {column}"
    return foreign_words(f"{name}: {error}")
