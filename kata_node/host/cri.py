"""What the container runtime says over the CRI: its version, the handlers it serves, the pods it runs.

Field numbers are those of ``runtime.v1`` in Kubernetes' ``cri-api`` (``api.proto``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from kata_node.errors import CriError
from kata_node.host import cri_sandboxes
from kata_node.host.files import Root
from kata_node.host.protobuf import DecodeError, Message
from kata_node.host.sockets import Stream, describe_os_error

T = TypeVar("T")

_VERBOSE = b"\x08\x01"
"""A ``StatusRequest`` with field 1, ``verbose``, set."""

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"


class Reason(StrEnum):
    """Why the CRI did not answer.

    MISSING, REFUSED and BROKEN are what a restart looks like from here, and pass; so can TIMEOUT and ERROR.
    NO_CRI and DENIED stay until somebody does something: a runtime has loaded its plugins before it listens.
    """

    MISSING = "missing"
    """No socket is there: the runtime is down, starting, or listens elsewhere."""
    REFUSED = "refused"
    """The socket is there, and nobody listens: the runtime ended, or is restarting."""
    DENIED = "denied"
    """This user may not use the socket."""
    NO_CRI = "no-cri"
    """The daemon serves, but without the CRI: its CRI plugin is disabled or did not load."""
    TIMEOUT = "timeout"
    """No answer within the time given."""
    BROKEN = "broken"
    """The connection broke, or what answers does not speak the CRI's protocol."""
    ERROR = "error"
    """The CRI answered with an error of its own."""


class CriCallError(CriError):
    """A call on the CRI socket failed; ``reason`` tells in which way."""

    def __init__(self, what: str, *, reason: Reason, where: str) -> None:
        super().__init__(what, where=where, hint=_HINTS[reason])
        self.reason = reason


_HINTS = {
    Reason.MISSING: "start the container runtime; in a container, mount the directory of its socket",
    Reason.REFUSED: "start the container runtime, and see its log if it does not stay up",
    Reason.DENIED: "run as root",
    Reason.NO_CRI: "see the runtime's log for why its CRI plugin did not load; is it in disabled_plugins?",
    Reason.TIMEOUT: "see the runtime's log; it accepts connections but does not answer in time",
    Reason.BROKEN: "see the runtime's log; if it restarted just now, run again",
    Reason.ERROR: "see the runtime's log",
}


@dataclass(frozen=True)
class Version:
    """Which runtime answers, in its own words."""

    runtime_name: str
    """``containerd`` or ``cri-o``."""
    runtime_version: str
    """``2.1.9``, ``v2.1.9``, ``2.2.2-bd1.34``, …"""
    api_version: str
    """Of the CRI: ``v1``."""


@dataclass(frozen=True)
class Condition:
    """One of the runtime's conditions: ``RuntimeReady``, ``NetworkReady``, …"""

    type: str
    met: bool
    reason: str
    message: str


@dataclass(frozen=True)
class Status:
    """How the runtime is, and what it serves."""

    runtime_ready: bool
    network_ready: bool
    """Whether pods can get a network; a node without a CNI plugin yet says no, and serves all the same."""
    handlers: tuple[str, ...]
    """The names of the runtime handlers, sorted, without the unnamed default one. Empty before CRI-O 1.30,
    which does not report them."""
    conditions: tuple[Condition, ...] = ()


class Cri:
    """The CRI socket of the host at ``root``. Each call connects anew, so a restart between two is no matter.

    Timeouts are in seconds and hold for a call as a whole. Calls raise :class:`CriCallError`.
    """

    def __init__(self, root: Root, socket: str = CONTAINERD_SOCKET) -> None:
        self.root = root
        self.socket = socket

    def version(self, timeout: float) -> Version:
        """Which runtime serves."""
        return self._call("Version", b"", _parse_version, timeout)

    def status(self, timeout: float) -> Status:
        """Whether it is ready, and which handlers it serves.

        containerd 1.x leaves the handlers out; then a second, verbose question gets its configuration,
        as the CRI plugin has it loaded, and the handlers are in that.
        """
        deadline = time.monotonic() + timeout
        status = self._call("Status", b"", _parse_status, timeout)
        if status.handlers:
            return status
        remaining = round(max(deadline - time.monotonic(), 0), 1)
        return replace(status, handlers=self._call("Status", _VERBOSE, _parse_config_handlers, remaining))

    def pods(self, runtime: str, timeout: float) -> tuple[cri_sandboxes.Pod, ...]:
        """The pods that run on ``runtime``, by namespace and name.

        CRI-O leaves their handlers out, and is asked for each: some milliseconds a pod.
        """
        deadline = time.monotonic() + timeout
        pods = self._call(
            "ListPodSandbox", cri_sandboxes.LIST_READY_REQUEST, cri_sandboxes.parse_pods, timeout
        )
        if runtime == "cri-o":
            handlers_by_sandbox = {sandbox: self._sandbox_handler(sandbox, deadline) for sandbox in pods}
            pods = {
                sandbox: replace(pods[sandbox], handler=handler)
                for sandbox, handler in handlers_by_sandbox.items()
                if handler is not None
            }
        return tuple(sorted(set(pods.values())))

    def _sandbox_handler(self, sandbox: str, deadline: float) -> str | None:
        """What runs a sandbox; ``None`` when it has ended meanwhile."""
        from kata_node.host import grpc

        remaining = round(max(deadline - time.monotonic(), 0), 1)
        try:
            return self._call(
                "PodSandboxStatus", cri_sandboxes.status_request(sandbox), cri_sandboxes.handler, remaining
            )
        except CriCallError as error:
            if isinstance(error.__cause__, grpc.StatusError) and error.__cause__.code == grpc.NOT_FOUND:
                return None
            raise

    def _call(self, method: str, request: bytes, read: Callable[[Message], T], timeout: float) -> T:
        """Call a method of the RuntimeService with a serialized request, and ``read`` its answer."""
        from kata_node.host import grpc

        deadline = time.monotonic() + timeout
        timeout_message = f"no answer to {method} within {timeout:g} s"
        try:
            with Stream.connect(self.root, self.socket, deadline) as stream:
                answer = grpc.unary_call(stream, f"/runtime.v1.RuntimeService/{method}", request, deadline)
            return read(Message(answer))
        except grpc.StatusError as error:
            if error.code == grpc.UNIMPLEMENTED:
                raise self._error(Reason.NO_CRI, "the runtime runs, but does not serve the CRI") from error
            if error.code == grpc.DEADLINE_EXCEEDED:
                raise self._error(Reason.TIMEOUT, timeout_message) from error
            raise self._error(Reason.ERROR, f"{method} failed: {error}") from error
        except (grpc.ProtocolError, DecodeError) as error:
            raise self._error(Reason.BROKEN, f"{method} got no proper answer: {error}") from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._error(Reason.MISSING, "there is no CRI socket") from error
        except ConnectionRefusedError as error:
            raise self._error(Reason.REFUSED, "nobody listens on the CRI socket") from error
        except PermissionError as error:
            raise self._error(Reason.DENIED, "this user may not use the CRI socket") from error
        except TimeoutError as error:
            raise self._error(Reason.TIMEOUT, timeout_message) from error
        except OSError as error:
            raise self._error(Reason.BROKEN, f"{method} got no answer: {describe_os_error(error)}") from error

    def _error(self, reason: Reason, what: str) -> CriCallError:
        return CriCallError(what, reason=reason, where=self.socket)


def _parse_version(answer: Message) -> Version:
    return Version(
        runtime_name=answer.text(2),
        runtime_version=answer.text(3),
        api_version=answer.text(4),
    )


def _parse_status(answer: Message) -> Status:
    conditions = tuple(
        Condition(type=entry.text(1), met=entry.flag(2), reason=entry.text(3), message=entry.text(4))
        for status in answer.messages(1)
        for entry in status.messages(1)
    )
    met = {condition.type for condition in conditions if condition.met}
    handlers = {handler.text(1) for handler in answer.messages(3)}
    return Status(
        runtime_ready="RuntimeReady" in met,
        network_ready="NetworkReady" in met,
        handlers=tuple(sorted(handlers - {""})),
        conditions=conditions,
    )


def _parse_config_handlers(answer: Message) -> tuple[str, ...]:
    """The handlers in containerd's ``info["config"]``, which is JSON; none when there is no such thing."""
    import json

    config = next((entry.text(2) for entry in answer.messages(2) if entry.text(1) == "config"), "")
    try:
        runtimes = json.loads(config)["containerd"]["runtimes"]
    except (ValueError, LookupError, TypeError):  # another runtime's, or another version's
        return ()
    return tuple(sorted(runtimes)) if isinstance(runtimes, dict) else ()
