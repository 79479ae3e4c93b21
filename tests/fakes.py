"""A containerd and a systemd in memory that read the real files of a scratch root.

Only what the code under test relies on, as measured on the real parts: a restart is a new
invocation and reads the configuration anew; broken TOML or a plain import of a missing file ends the
daemon; a default runtime that does not exist leaves it up without the CRI. The proof on the real
parts is in ``tests/node``.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from kata_node.actions import Tools
from kata_node.errors import SystemdError
from kata_node.host.cri import CriCallError, Reason, Status, Version
from kata_node.host.files import Root
from kata_node.host.systemd import Unit

MAIN = "/etc/containerd/config.toml"
UNIT = "containerd.service"


@dataclass
class FakeNode:
    """A node with containerd 2.1.9 running on the files below ``root``."""

    root: Root
    version: str = "2.1.9"
    handlers: tuple[str, ...] | None = ()
    """What the running invocation serves; ``None``: up, but without the CRI."""
    state: str = "active"
    invocation: int = 1
    restarts: int = 0
    on_restart: Callable[[], None] = lambda: None
    exists: bool = True
    kube: object = None
    asked: list[str] = field(default_factory=list)

    def tools(self) -> Tools:
        """The doors to this node."""
        return Tools(self.root, lambda: self, lambda: FakeCri(self), lambda: self.kube, _no_progress)  # type: ignore[arg-type, return-value]

    # systemd

    def unit(self, name: str) -> Unit | None:
        """The one unit there is."""
        if name != UNIT or not self.exists:
            return None
        return Unit(
            name,
            "loaded",
            self.state,
            "running" if self.state == "active" else "dead",
            "success",
            f"{self.invocation:032x}",
            42,
            ("/usr/bin/containerd",),
            False,
            self.invocation,
        )

    def restart(self, name: str, timeout: float) -> None:
        """Read the configuration anew."""
        self.asked.append(f"restart {name}")
        self.restarts += 1
        self.invocation += 1
        try:
            self.handlers = self._load()
            self.state = "active"
        except (OSError, ValueError) as error:
            self.handlers, self.state = (), "failed"
            raise SystemdError(f"the job ended as failed: {error}", where=name) from error
        self.on_restart()

    def _load(self) -> tuple[str, ...] | None:
        merged: dict[str, object] = {}
        main = self.root.read(MAIN)
        todo = [main] if main is not None else []
        while todo:
            data = tomllib.loads(todo.pop(0).decode())
            for pattern in data.pop("imports", []):
                paths = self.root.glob(pattern)
                if not paths and "*" not in pattern:
                    raise FileNotFoundError(pattern)
                todo += [content for path in paths if (content := self.root.read(path)) is not None]
            _merge(merged, data)
        runtime = merged.get("plugins", {}).get("io.containerd.cri.v1.runtime", {})  # type: ignore[attr-defined]
        containerd = runtime.get("containerd", {})
        handlers = tuple(sorted({"runc", *containerd.get("runtimes", {})}))
        return handlers if containerd.get("default_runtime_name", "runc") in handlers else None

    # CRI

    def _answers(self) -> tuple[str, ...]:
        if self.state != "active":
            raise CriCallError("nobody listens", reason=Reason.REFUSED, where="the socket")
        if self.handlers is None:
            raise CriCallError("no CRI", reason=Reason.NO_CRI, where="the socket")
        return self.handlers

    def status(self, timeout: float) -> Status:
        """The handlers of the running invocation."""
        return Status(runtime_ready=True, network_ready=True, handlers=self._answers(), conditions=())

    def version_of(self) -> Version:
        """What the running invocation says it is."""
        self._answers()
        return Version("containerd", self.version, "v1")


class FakeCri:
    """The CRI side, for its ``version`` is a call and the node's a field."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node

    def version(self, timeout: float) -> Version:
        """What the running invocation says it is."""
        return self.node.version_of()

    def status(self, timeout: float) -> Status:
        """The handlers of the running invocation."""
        return self.node.status(timeout)


def _merge(into: dict[str, object], more: dict[str, object]) -> None:
    for key, value in more.items():
        there = into.get(key)
        if isinstance(there, dict) and isinstance(value, dict):
            _merge(there, value)
        else:
            into[key] = value


@contextlib.contextmanager
def _no_progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
    yield lambda _: None
