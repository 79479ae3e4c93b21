"""A D-Bus connection to systemd: method calls, and signals that arrive between replies.

systemd can be reached through two sockets. On the *system bus* a bus daemon is in between, so the client
must call Hello and subscribe to the signals it needs. On systemd's *private* socket it does neither.
"""

from __future__ import annotations

import array
import errno
import logging
from typing import Any, Self

# jeepney has no type hints.
from jeepney import DBusAddress, HeaderFields, Message, MessageType, Parser, new_method_call  # type: ignore[import-untyped]
from jeepney.auth import BEGIN, NEGOTIATE_UNIX_FD, make_auth_external  # type: ignore[import-untyped]

from kata_node.host.files import Root
from kata_node.host.sockets import Stream
from kata_node.log import timed
from kata_node.text import foreign_words, quote_foreign

log = logging.getLogger(__name__)

MAX_AUTH_LINE = 16384
"""Bytes of the answer to the authentication, as in the reference implementation."""

BUS = "org.freedesktop.DBus"
SYSTEMD = "org.freedesktop.systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
MANAGER_PATH = "/org/freedesktop/systemd1"
PROPERTIES = "org.freedesktop.DBus.Properties"

_DISCONNECTED_ERRORS = ("org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Disconnected")
"""The errors of the bus when systemd re-executed itself and did not answer a call."""

_MATCH_RULES = (
    f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'",
    f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{SYSTEMD}'",
)
"""The signals that a client of the bus needs to wait for a job."""


class DBusError(Exception):
    """The peer answered a call with a D-Bus error, which has a ``name`` and a ``text``."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{quote_foreign(text)} ({foreign_words(name)})" if text else foreign_words(name))
        self.name = name


class Connection:
    """An authenticated connection to systemd.

    Every method takes a deadline and raises the errors of :class:`Stream`. Calls also raise
    :class:`DBusError`. After an :class:`OSError` the connection cannot be used any more.
    """

    def __init__(self, stream: Stream, *, is_bus: bool) -> None:
        self.is_bus = is_bus
        self._stream = stream
        self._parser = Parser()
        self._serial = 0
        self._systemd: str | None = None  # systemd's unique name on the bus, from its last reply
        self._listening = False
        self._jobs: dict[str, str] = {}  # object path of a finished job -> its result

    @classmethod
    def open(
        cls, root: Root, path: str, deadline: float, *, is_bus: bool, passes_descriptors: bool = False
    ) -> Self:
        """Connect to the socket at the host path ``path``, and check that systemd answers a call.

        With ``passes_descriptors``, the arguments of a call can have file descriptors.
        """
        stream = Stream.connect(root, path, deadline)
        connection = cls(stream, is_bus=is_bus)
        try:
            connection._authenticate(deadline, passes_descriptors=passes_descriptors)
            if is_bus:
                connection.call("/org/freedesktop/DBus", BUS, "Hello", deadline=deadline, destination=BUS)
            # systemd accepts a client that it cannot identify, for example one in an unrelated pid
            # namespace, and then drops it. Only a call shows whether the connection works.
            connection.call(MANAGER_PATH, PROPERTIES, "Get", "ss", (MANAGER, "Version"), deadline=deadline)
        except BaseException:
            stream.close()
            raise
        return connection

    def close(self) -> None:
        """Close the connection. It may be called more than once."""
        self._stream.close()

    def call(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str | None = None,
        args: tuple[object, ...] = (),
        *,
        deadline: float,
        destination: str = SYSTEMD,
    ) -> tuple[Any, ...]:
        """Call a method and return the values of its reply, as jeepney maps D-Bus types."""
        words = " ".join((member, *(each for each in args if isinstance(each, str))))
        with timed(log, f"D-Bus call {words} of {path}"):
            return self._call(
                new_method_call(DBusAddress(path, destination, interface), member, signature, args), deadline
            )

    def _call(self, request: Message, deadline: float) -> tuple[Any, ...]:
        self._serial += 1
        descriptors = array.array("i")
        self._stream.send(request.serialise(self._serial, fds=descriptors), deadline, descriptors)
        while True:
            message = self._receive(deadline)
            fields = message.header.fields
            # Any other reply is a late one, to a call that timed out.
            if fields.get(HeaderFields.reply_serial) == self._serial:
                break
        if message.header.message_type is MessageType.error:
            text = message.body[0] if message.body and isinstance(message.body[0], str) else ""
            name = fields.get(HeaderFields.error_name, "")
            if name in _DISCONNECTED_ERRORS:
                raise ConnectionResetError(foreign_words(text))
            raise DBusError(name, text)
        if request.header.fields[HeaderFields.destination] == SYSTEMD:
            self._systemd = fields.get(HeaderFields.sender)
        return tuple(message.body)

    def call_manager(
        self, member: str, signature: str | None, args: tuple[object, ...], *, deadline: float
    ) -> tuple[Any, ...]:
        """Call a method of systemd's manager object."""
        return self.call(MANAGER_PATH, MANAGER, member, signature, args, deadline=deadline)

    def properties(self, path: str, interface: str, deadline: float) -> dict[str, Any]:
        """Return every property of one interface of the object at ``path``."""
        (found,) = self.call(path, PROPERTIES, "GetAll", "s", (interface,), deadline=deadline)
        return {name: value for name, (_, value) in found.items()}

    def subscribe(self, deadline: float) -> None:
        """Subscribe to the signals about finished jobs. Call this before the job is created."""
        if self._listening:
            return
        for rule in _MATCH_RULES if self.is_bus else ():
            self.call(
                "/org/freedesktop/DBus", BUS, "AddMatch", "s", (rule,), deadline=deadline, destination=BUS
            )
        self.call_manager("Subscribe", None, (), deadline=deadline)
        self._listening = True

    def job_result(self, job: str, deadline: float) -> str:
        """Wait until the job at the object path ``job`` is finished; return systemd's word for its result."""
        while job not in self._jobs:
            self._receive(deadline)
        return self._jobs.pop(job)

    def _authenticate(self, deadline: float, *, passes_descriptors: bool) -> None:
        # One write, and nothing more until OK: systemd does not answer a message that it reads together
        # with BEGIN.
        negotiation = NEGOTIATE_UNIX_FD if passes_descriptors else b""
        self._stream.send(b"\0" + make_auth_external() + negotiation + BEGIN, deadline)
        line, rest = self._receive_line(b"", deadline)
        if not line.startswith(b"OK "):
            raise PermissionError(
                errno.EACCES,
                f"systemd does not admit this user ({quote_foreign(line.decode(errors='replace'))})",
            )
        if passes_descriptors:
            agreed, rest = self._receive_line(rest, deadline)
            if agreed != b"AGREE_UNIX_FD":
                raise PermissionError(errno.EACCES, "systemd takes no file descriptors")
        self._parser.add_data(rest)  # the private socket sends signals without a subscription

    def _receive_line(self, received: bytes, deadline: float) -> tuple[bytes, bytes]:
        """Return the next line of the authentication, and what came after it."""
        while b"\r\n" not in received:
            if len(received) > MAX_AUTH_LINE:
                raise ConnectionResetError("the server does not speak D-Bus")
            received += self._stream.receive(deadline)
        line, _, rest = received.partition(b"\r\n")
        return line, rest

    def _receive(self, deadline: float) -> Message:
        """Return the next message. If it reports a finished job, also store the result of the job."""
        message = self._parser.get_next_message()
        while message is None:
            self._parser.add_data(self._stream.receive(deadline))
            message = self._parser.get_next_message()
        if self._listening and message.header.message_type is MessageType.signal:
            self._handle_signal(message.header.fields, message.body)
        return message

    def _handle_signal(self, fields: dict[HeaderFields, Any], body: tuple[Any, ...]) -> None:
        sender = fields.get(HeaderFields.sender)
        signal = (fields.get(HeaderFields.interface), fields.get(HeaderFields.member))
        # Any client of the bus can send a signal with this name, so the sender is checked.
        if signal == (MANAGER, "JobRemoved") and (not self.is_bus or sender == self._systemd):
            _id, job, _unit, result = body
            self._jobs[job] = result
        elif self.is_bus and sender == BUS and signal == (BUS, "NameOwnerChanged"):
            # The connection still works, but the systemd that comes back has no subscription of ours.
            raise ConnectionResetError("systemd left the bus")
