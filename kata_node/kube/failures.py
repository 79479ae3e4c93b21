"""Why a request to the API server failed, whether that may pass, and how to say so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kata_node.errors import KubeError

if TYPE_CHECKING:
    import httpx2

NOT_KUBERNETES_HINT = "check that this is the address of a Kubernetes API server"


class ConflictError(KubeError):
    """The Node changed after it was read, so a change meant for what was read was not made."""


class NoSuchNodeError(KubeError):
    """The cluster has no Node of this name, for now: its kubelet may yet register it, or do so again."""


@dataclass(frozen=True)
class RequestFailure:
    """Why a request failed: ``what`` goes on after "the API server"; ``status`` is 0 without an answer."""

    what: str
    retryable: bool
    status: int = 0
    reason: str = ""
    retry_after: float = 0.0  # seconds


def classify_error(error: Exception) -> RequestFailure | None:
    """What ``error`` says about the request; ``None`` when it is a mistake in the program."""
    import ssl

    import httpx2
    import msgspec
    from lightkube import ConfigError

    # lightkube stumbles over error answers that are no Status object or name no content type, as a
    # load balancer in front of the API server may give them: the answer is then further down.
    chain = _error_chain(error)
    for each in chain:
        if isinstance(each, httpx2.HTTPStatusError):
            return _http_failure(each.response)
    if isinstance(error, TimeoutError):
        return RequestFailure(f"gave no answer ({error})", retryable=True)
    if isinstance(error, httpx2.TransportError):
        permanent = isinstance(error, httpx2.UnsupportedProtocol) or any(
            isinstance(each, ssl.SSLCertVerificationError) for each in chain
        )
        return RequestFailure(f"gave no answer ({one_line(error)})", retryable=not permanent)
    if isinstance(error, ConfigError | OSError | httpx2.InvalidURL):
        return RequestFailure(f"cannot be asked ({one_line(error)})", retryable=False)
    if isinstance(error, msgspec.DecodeError):
        return RequestFailure(f"gave an answer that is no JSON ({one_line(error)})", retryable=False)
    return None


def _http_failure(response: httpx2.Response) -> RequestFailure:
    try:
        status = response.json()
        message, reason = str(status["message"]), str(status.get("reason", ""))
    except (ValueError, KeyError, TypeError, AttributeError):
        message, reason = response.reason_phrase, ""
    wait = response.headers.get("Retry-After", "")
    return RequestFailure(
        f"answered {response.status_code}: {message}",
        retryable=response.status_code in (401, 408, 429)
        or response.status_code >= 500
        or (response.status_code == 403 and _may_be_unsynced_rbac(message)),
        status=response.status_code,
        reason=reason,
        retry_after=float(wait) if wait.isdecimal() else 0.0,
    )


def _may_be_unsynced_rbac(refused: str) -> bool:
    """Whether a 403 may be that of an API server that has not read the roles, or the policies, yet."""
    return " cannot " in refused or "not yet ready" in refused


def _error_chain(error: BaseException) -> list[BaseException]:
    """The error, what it came from, and so on; lightkube also raises errors from themselves."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def request_error(failure: RequestFailure, verb: str, name: str, server: str, tries: int) -> KubeError:
    """The error for a request that failed ``tries`` times, the last time so, and is not made again."""
    what = f"the API server {failure.what}" + (f" (asked {tries} times)" if tries > 1 else "")
    match failure.status, failure.reason:
        case 404, "NotFound":
            return NoSuchNodeError(
                f"the cluster has no Node named {name}",
                where=server,
                hint="NODE_NAME has to be a name that `kubectl get nodes` shows; in a pod it comes from "
                "spec.nodeName. If that is right, the kubelet has not registered this node yet, or the Node "
                "was deleted and comes back when the kubelet restarts: then run again",
            )
        case 409, _:
            return ConflictError(what, where=f"node/{name}", hint="run again")
        case 401, _:
            hint = "give it a token that is still valid; in a pod, see that its ServiceAccount still exists"
        case 403, _ if f"cannot {verb} " in failure.what:
            hint = (
                f'the account lacks the verb "{verb}" on the resource "nodes" (API group ""); a ClusterRole '
                f'with "get" and "patch" on "nodes", bound to it, is enough'
            )
        case 403, _:
            hint = "the account may do this, but an admission rule of the cluster forbids this change"
        case 404, _:
            hint = NOT_KUBERNETES_HINT
        case 0, _:
            hint = (
                "see that this address is right and reachable from here, and its certificate is the cluster's"
            )
        case _:
            hint = "look at the log of the API server" if failure.retryable else ""
    return KubeError(what, where=f"node/{name} at {server}", hint=hint)


def event_not_recorded(failure: RequestFailure, server: str) -> KubeError:
    """The error for an Event that was not made."""
    lacks_right = failure.status == 403 and "cannot create " in failure.what
    hint = 'give the account "create" on "events" in the namespace "default"' if lacks_right else ""
    return KubeError(f"the API server {failure.what}", where=server, hint=hint)


def one_line(error: BaseException) -> str:
    """An error of another library, to be quoted in a sentence of ours, but for what may hold a token."""
    name = type(error).__name__
    for each in _error_chain(error):
        if type(each).__name__ == "LocalProtocolError":  # it quotes the header
            return f"{name}: the credentials have a character that no header may have"
        if mark := getattr(each, "problem_mark", None):  # of YAML, with the lines around it
            problem, line, column = getattr(each, "problem", ""), mark.line + 1, mark.column + 1
            return f"{name}: {problem} in line {line}, column {column}"
    return " ".join(f"{name}: {error}".split())
