"""One D-Bus connection to systemd: method calls, and the signals that come between their replies.

Two sockets lead to systemd, and they differ in little: on the *system bus* a daemon stands between,
so a client says Hello and asks for the signals it wants; on systemd's *private* socket it does neither.
"""

from __future__ import annotations

import errno
from typing import Any, Self

# It ships no type information; what comes out of it is given types here.
from jeepney import DBusAddress, HeaderFields, Message, MessageType, Parser, new_method_call  # type: ignore[import-untyped]
from jeepney.auth import BEGIN, make_auth_external  # type: ignore[import-untyped]

from kata_node.host.files import Root
from kata_node.host.sockets import Stream

BUS = "org.freedesktop.DBus"
SYSTEMD = "org.freedesktop.systemd1"
MANAGER = "org.freedesktop.systemd1.Manager"
MANAGER_PATH = "/org/freedesktop/systemd1"
PROPERTIES = "org.freedesktop.DBus.Properties"

_DISCONNECTED_ERRORS = ("org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.Disconnected")
"""How the bus says that systemd, re-executing itself, left a call unanswered."""

_MATCH_RULES = (
    f"type='signal',sender='{SYSTEMD}',interface='{MANAGER}',member='JobRemoved'",
    f"type='signal',sender='{BUS}',interface='{BUS}',member='NameOwnerChanged',arg0='{SYSTEMD}'",
)
"""What a client of the bus asks to be told while it waits for a job."""


class DBusError(Exception):
    """The peer answered a call with a D-Bus error: its ``name`` and its ``text``."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{text} ({name})" if text else name)
        self.name = name
        self.text = text


class Connection:
    """An authenticated connection to systemd.

    Every method takes a deadline and raises what :class:`Stream` raises; calls also raise
    :class:`RefusedError`. After an :class:`OSError` the connection is of no more use.
    """

    def __init__(self, stream: Stream, *, is_bus: bool) -> None:
        self.is_bus = is_bus
        self._stream = stream
        self._parser = Parser()
        self._serial = 0
        self._systemd: str | None = None  # its unique name on the bus, from its last reply
        self._listening = False
        self._jobs: dict[str, str] = {}  # object path of a job that is gone -> its result

    @classmethod
    def open(cls, root: Root, path: str, deadline: float, *, is_bus: bool) -> Self:
        """Connect to the socket at the host's ``path``, and see systemd answer there."""
        stream = Stream.connect(root, path, deadline)
        connection = cls(stream, is_bus=is_bus)
        try:
            connection._authenticate(deadline)
            if is_bus:
                connection.call("/org/freedesktop/DBus", BUS, "Hello", deadline=deadline, destination=BUS)
            # systemd accepts a client it cannot identify, and only then drops it: one in another branch of
            # the pid namespaces, for example. So a first call belongs to connecting.
            connection.call(MANAGER_PATH, PROPERTIES, "Get", "ss", (MANAGER, "Version"), deadline=deadline)
        except BaseException:
            stream.close()
            raise
        return connection

    def close(self) -> None:
        """Hang up; more than once does no harm."""
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
        """Call a method and wait for its reply: the values it returns, as jeepney maps D-Bus types."""
        self._serial += 1
        request = new_method_call(DBusAddress(path, destination, interface), member, signature, args)
        self._stream.send(request.serialise(self._serial), deadline)
        while True:
            message = self._receive(deadline)
            fields = message.header.fields
            # Any other reply is late: its caller gave up on it.
            if fields.get(HeaderFields.reply_serial) == self._serial:
                break
        if message.header.message_type is MessageType.error:
            text = message.body[0] if message.body and isinstance(message.body[0], str) else ""
            name = fields.get(HeaderFields.error_name, "")
            if name in _DISCONNECTED_ERRORS:
                raise ConnectionResetError(text)
            raise DBusError(name, text)
        if destination == SYSTEMD:
            self._systemd = fields.get(HeaderFields.sender)
        return tuple(message.body)

    def call_manager(
        self, member: str, signature: str | None, args: tuple[object, ...], *, deadline: float
    ) -> tuple[Any, ...]:
        """Call a method of systemd's manager object."""
        return self.call(MANAGER_PATH, MANAGER, member, signature, args, deadline=deadline)

    def properties(self, path: str, interface: str, deadline: float) -> dict[str, Any]:
        """Every property of one interface of the object at ``path``."""
        (found,) = self.call(path, PROPERTIES, "GetAll", "s", (interface,), deadline=deadline)
        return {name: value for name, (_, value) in found.items()}

    def subscribe(self, deadline: float) -> None:
        """Have systemd tell when a job is gone; to be called before that job is made."""
        if self._listening:
            return
        for rule in _MATCH_RULES if self.is_bus else ():
            self.call(
                "/org/freedesktop/DBus", BUS, "AddMatch", "s", (rule,), deadline=deadline, destination=BUS
            )
        self.call_manager("Subscribe", None, (), deadline=deadline)
        self._listening = True

    def job_result(self, job: str, deadline: float) -> str:
        """Wait until the job at the object path ``job`` is gone: systemd's word for how it ended."""
        while job not in self._jobs:
            self._receive(deadline)
        return self._jobs.pop(job)

    def _authenticate(self, deadline: float) -> None:
        # In one write, and nothing more until OK: a message that systemd reads together with BEGIN is
        # never answered.
        self._stream.send(b"\0" + make_auth_external() + BEGIN, deadline)
        answer = b""
        while b"\r\n" not in answer:
            answer += self._stream.receive(deadline)
        line, _, rest = answer.partition(b"\r\n")
        if not line.startswith(b"OK "):
            raise PermissionError(errno.EACCES, f"this user is not let in ({line.decode(errors='replace')})")
        self._parser.add_data(rest)  # the private socket sends signals without being asked

    def _receive(self, deadline: float) -> Message:
        """The next message; the end of a job is noted on the way, whoever waits for what."""
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
        # Anyone on the bus may send a signal that looks like another's.
        if signal == (MANAGER, "JobRemoved") and (not self.is_bus or sender == self._systemd):
            _id, job, _unit, result = body
            self._jobs[job] = result
        elif self.is_bus and sender == BUS and signal == (BUS, "NameOwnerChanged"):
            # This connection lives on, but the systemd that comes back is one that was not asked for signals.
            raise ConnectionResetError("systemd left the bus")
