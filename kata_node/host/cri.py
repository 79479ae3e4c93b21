"""A client of the CRI: the runtime's version, the handlers it serves, and the pods it runs.

The field numbers come from ``runtime.v1`` in Kubernetes' ``cri-api`` (``api.proto``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from kata_node.errors import CriError
from kata_node.host import cri_sandboxes
from kata_node.host.files import Root
from kata_node.host.protobuf import DecodeError, Message
from kata_node.host.sockets import Stream, describe_os_error
from kata_node.log import timed
from kata_node.text import foreign_words

T = TypeVar("T")

log = logging.getLogger(__name__)

_VERBOSE = b"\x08\x01"
"""A serialized ``StatusRequest`` with ``verbose`` (field 1) set."""

NAME_LIMIT = 253
"""Characters of a name or version that the runtime reports; the limit of Kubernetes for most names."""

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"


class Reason(StrEnum):
    """Why a CRI call failed.

    MISSING, REFUSED and BROKEN occur during a restart and then disappear; TIMEOUT and ERROR may
    disappear too. NO_CRI and DENIED persist until the node is changed, because a runtime loads its plugins
    before it listens.
    """

    MISSING = "missing"
    """There is no socket: the runtime is down, starting, or listens on another path."""
    REFUSED = "refused"
    """There is a socket but nothing listens: the runtime ended, or is restarting."""
    DENIED = "denied"
    """This user may not use the socket."""
    NO_CRI = "no-cri"
    """The runtime answers, but without the CRI: its CRI plugin is disabled or did not load."""
    TIMEOUT = "timeout"
    """There was no answer within the timeout."""
    BROKEN = "broken"
    """The connection broke, or the server does not speak the CRI's protocol."""
    ERROR = "error"
    """The CRI answered with an error."""


class CriCallError(CriError):
    """A call on the CRI socket failed; ``reason`` says why."""

    def __init__(self, what: str, *, reason: Reason, where: str) -> None:
        super().__init__(what, where=where, hint=_HINTS[reason])
        self.reason = reason


_HINTS = {
    Reason.MISSING: "start the container runtime; in a container, mount the directory of its socket",
    Reason.REFUSED: "start the container runtime; if it does not stay up, see its log",
    Reason.DENIED: "run as root",
    Reason.NO_CRI: "remove the CRI plugin from disabled_plugins if it is there; otherwise see the runtime's "
    "log for why the plugin did not load",
    Reason.TIMEOUT: "see the runtime's log; the runtime accepts connections but does not answer in time",
    Reason.BROKEN: "run again if the runtime restarted just now; otherwise see its log",
    Reason.ERROR: "see the runtime's log",
}


class Version(Struct, frozen=True):
    """The runtime's answer to ``Version``."""

    runtime_name: str
    """``containerd`` or ``cri-o``."""
    runtime_version: str
    """``2.1.9``, ``v2.1.9``, ``2.2.2-bd1.34``, …"""
    api_version: str
    """The version of the CRI: ``v1``."""


class Condition(Struct, frozen=True):
    """One of the runtime's conditions: ``RuntimeReady``, ``NetworkReady``, …"""

    type: str
    met: bool
    reason: str
    message: str


class Status(Struct, frozen=True):
    """The runtime's conditions, and the handlers it serves."""

    runtime_ready: bool
    network_ready: bool
    """Whether pods can get a network; false before a CNI plugin is installed, while handlers are served."""
    handlers: tuple[str, ...]
    """The names of the handlers, sorted, without the default handler, which has no name. Empty for CRI-O
    before 1.30, which does not report them."""
    conditions: tuple[Condition, ...] = ()


class Cri:
    """A client of the CRI socket of the node at ``root``.

    Each call opens a new connection, so the runtime may restart between two calls. Timeouts are in
    seconds, for the whole call. Calls raise :class:`CriCallError`.
    """

    def __init__(self, root: Root, socket: str = CONTAINERD_SOCKET) -> None:
        self.root = root
        self.socket = socket

    def version(self, timeout: float) -> Version:
        """Return the runtime's name and version."""
        return self._call("Version", b"", _parse_version, timeout)

    def status(self, timeout: float) -> Status:
        """Return whether the runtime is ready, and which handlers it serves.

        containerd 1.x does not report its handlers. Then a second, verbose request gets the configuration
        that its CRI plugin has loaded, which contains them.
        """
        deadline = time.monotonic() + timeout
        status = self._call("Status", b"", _parse_status, timeout)
        if status.handlers:
            return status
        remaining = round(max(deadline - time.monotonic(), 0), 1)
        return replace(status, handlers=self._call("Status", _VERBOSE, _parse_config_handlers, remaining))

    def handler_tables(self, timeout: float) -> dict[str, dict[str, Any]]:
        """Return the handlers that containerd serves, each with its table as containerd has loaded it.

        The result is empty for a runtime that does not report its configuration, as CRI-O.
        """
        return self._call("Status", _VERBOSE, _parse_config_tables, timeout)

    def pods(self, runtime: str, timeout: float) -> tuple[cri_sandboxes.Pod, ...]:
        """Return the running pods, sorted by namespace and name.

        ``runtime`` is the runtime's name. CRI-O lists pods without their handlers, so each pod takes one
        more request, which takes some milliseconds.
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
        """Return the handler of a sandbox; ``None`` when the sandbox has ended."""
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
        """Call a method of the RuntimeService with a serialized request; ``read`` parses the answer."""
        from kata_node.host import grpc

        deadline = time.monotonic() + timeout
        timeout_message = f"no answer to {method} within {timeout:g} s"
        try:
            with (
                timed(log, f"{method} on {self.socket}"),
                Stream.connect(self.root, self.socket, deadline) as stream,
            ):
                answer = grpc.unary_call(stream, f"/runtime.v1.RuntimeService/{method}", request, deadline)
            return read(Message(answer))
        except grpc.StatusError as error:
            if error.code == grpc.UNIMPLEMENTED:
                raise self._error(Reason.NO_CRI, "the runtime runs but does not serve the CRI") from error
            if error.code == grpc.DEADLINE_EXCEEDED:
                raise self._error(Reason.TIMEOUT, timeout_message) from error
            raise self._error(Reason.ERROR, f"{method} failed: {error}") from error
        except (grpc.ProtocolError, DecodeError) as error:
            raise self._error(Reason.BROKEN, f"{method} got an invalid answer: {error}") from error
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._error(Reason.MISSING, "there is no CRI socket") from error
        except ConnectionRefusedError as error:
            raise self._error(Reason.REFUSED, "nothing listens on the CRI socket") from error
        except PermissionError as error:
            raise self._error(Reason.DENIED, "this user may not use the CRI socket") from error
        except TimeoutError as error:
            raise self._error(Reason.TIMEOUT, timeout_message) from error
        except OSError as error:
            raise self._error(Reason.BROKEN, f"{method} got no answer: {describe_os_error(error)}") from error

    def _error(self, reason: Reason, what: str) -> CriCallError:
        return CriCallError(what, reason=reason, where=self.socket)


def _parse_version(answer: Message) -> Version:
    name, version, api_version = (foreign_words(answer.text(number), NAME_LIMIT) for number in (2, 3, 4))
    return Version(runtime_name=name, runtime_version=version, api_version=api_version)


def _parse_status(answer: Message) -> Status:
    conditions = tuple(
        Condition(type=entry.text(1), met=entry.flag(2), reason=entry.text(3), message=entry.text(4))
        for status in answer.messages(1)
        for entry in status.messages(1)
    )
    met = {condition.type for condition in conditions if condition.met}
    handlers = {foreign_words(handler.text(1), NAME_LIMIT) for handler in answer.messages(3)}
    return Status(
        runtime_ready="RuntimeReady" in met,
        network_ready="NetworkReady" in met,
        handlers=tuple(sorted(handlers - {""})),
        conditions=conditions,
    )


def _parse_config_handlers(answer: Message) -> tuple[str, ...]:
    """Return the handlers in containerd's ``info["config"]``; none when it is missing."""
    return tuple(sorted(_parse_config_tables(answer)))


def _parse_config_tables(answer: Message) -> dict[str, dict[str, Any]]:
    """Return the handlers with their tables in containerd's ``info["config"]``, which is JSON."""
    import json

    config = next((entry.text(2) for entry in answer.messages(2) if entry.text(1) == "config"), "")
    try:
        runtimes = json.loads(config)["containerd"]["runtimes"]
    except (ValueError, LookupError, TypeError, RecursionError):  # another runtime or structure
        return {}
    return runtimes if isinstance(runtimes, dict) else {}
