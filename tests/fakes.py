"""A containerd and a systemd in memory that read the real files of a scratch root.

Only what the code under test relies on, as measured on the real parts: a restart is a new
invocation and reads the configuration anew; broken TOML or a plain import of a missing file ends the
daemon; a default runtime or a snapshotter that does not exist leaves it up without the CRI. The proof
on the real parts is in ``tests/node``.
"""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kata_node.errors import KubeError, SystemdError
from kata_node.host.cri import CriCallError, Reason, Status, Version
from kata_node.host.cri_sandboxes import Pod
from kata_node.host.files import Root
from kata_node.host.systemd import Unit
from kata_node.kube.failures import NoSuchNodeError
from kata_node.kube.node import NodeFacts
from kata_node.plan.actions import Clients
from kata_node.runtime.containerd.command_line import config_path

MAIN = "/etc/containerd/config.toml"
UNIT = "containerd.service"


@dataclass
class FakeNode:
    """A node with containerd 2.1.9 running on the files below ``root``."""

    root: Root
    version: str = "2.1.9"
    handlers: tuple[str, ...] | None = ()
    """What the running invocation serves; ``None``: up, but without the CRI."""
    unit_name: str = UNIT
    main: str = MAIN
    runtime_name: str = "containerd"
    state: str = "active"
    invocation: int = 1
    restarts: int = 0
    on_restart: Callable[[], None] = lambda: None
    exists: bool = True
    argv: tuple[str, ...] = ("/usr/bin/containerd",)
    others: tuple[str, ...] = ()
    """Units of other runtimes that are active."""
    systemd_gone: bool = False
    cri_hangs: bool = False
    refusals: int = 0
    """How many of the next restarts fail, whatever the configuration."""
    pods: tuple[Pod, ...] = ()
    """All that runs on it, whatever on."""
    list_fails: bool = False
    lists: int = 0
    """How often it was asked what runs."""
    on_list: Callable[[], None] = lambda: None
    kube: object = None
    asked: list[str] = field(default_factory=list)

    def clients(self) -> Clients:
        """The doors to this node."""
        return Clients(
            self.root, self._systemd, lambda socket: FakeCri(self), lambda: self.kube, _no_progress
        )  # type: ignore[arg-type, return-value]

    # systemd

    def _systemd(self) -> FakeNode:
        if self.systemd_gone:
            raise SystemdError("it does not answer", where="systemd")
        return self

    def unit(self, name: str) -> Unit | None:
        """The one unit there is."""
        if (name != self.unit_name or not self.exists) and name not in self.others:
            return None
        if name in self.others:
            return Unit(name, "loaded", "active", "running", "success", "f" * 32, 43, (), False, 1)
        return Unit(
            name,
            "loaded",
            self.state,
            "running" if self.state == "active" else "dead",
            "success",
            f"{self.invocation:032x}",
            42,
            self.argv,
            False,
            self.invocation,
        )

    def restart(self, name: str, timeout: float) -> None:
        """Read the configuration anew."""
        self.asked.append(f"restart {name}")
        self.restarts += 1
        self.invocation += 1
        try:
            if self.refusals:
                self.refusals -= 1
                raise OSError("no space left for a pid file")
            self.handlers = self.load()
            self.state = "active"
        except (OSError, ValueError) as error:
            self.handlers, self.state = (), "failed"
            raise SystemdError(f"the job ended as failed: {error}", where=name) from error
        self.on_restart()

    def stop(self) -> None:
        """Somebody stops it."""
        self.state, self.handlers = "inactive", ()

    def load(self) -> tuple[str, ...] | None:
        """What it would serve if it was started now: ``None`` without the CRI; raises when it would end."""
        merged: dict[str, object] = {}
        main = self.root.read(config_path(self.argv, self.main))
        todo = [main] if main is not None else []
        while todo:
            data = tomllib.loads(todo.pop(0).decode())
            for pattern in data.pop("imports", []):
                paths = self.root.glob(pattern)
                if not paths and "*" not in pattern:
                    raise FileNotFoundError(pattern)
                todo += [content for path in paths if (content := self.root.read(path)) is not None]
            _merge(merged, data)
        plugins: dict[str, dict[str, dict[str, str]]] = merged.get("plugins", {})  # type: ignore[assignment]
        if plugins.get("io.containerd.cri.v1.images", {}).get("snapshotter", "overlayfs") != "overlayfs":
            return None
        plugin = "io.containerd.grpc.v1.cri" if merged.get("version") == 2 else "io.containerd.cri.v1.runtime"
        containerd = plugins.get(plugin, {}).get("containerd", {})
        handlers = tuple(sorted({"runc", *containerd.get("runtimes", {})}))
        return handlers if containerd.get("default_runtime_name", "runc") in handlers else None

    # CRI

    def _answers(self) -> tuple[str, ...]:
        if self.state != "active":
            raise CriCallError("nobody listens", reason=Reason.REFUSED, where="the socket")
        if self.cri_hangs:
            raise CriCallError("no answer", reason=Reason.TIMEOUT, where="the socket")
        if self.handlers is None:
            raise CriCallError("no CRI", reason=Reason.NO_CRI, where="the socket")
        return self.handlers

    def status(self, timeout: float) -> Status:
        """The handlers of the running invocation."""
        return Status(runtime_ready=True, network_ready=True, handlers=self._answers(), conditions=())

    def pods_of(self) -> tuple[Pod, ...]:
        """What runs; whoever looks may be told that it ended since."""
        self._answers()
        self.lists += 1
        self.on_list()
        if self.list_fails:
            raise CriCallError("no answer to ListPodSandbox", reason=Reason.TIMEOUT, where="the socket")
        return self.pods

    def version_of(self) -> Version:
        """What the running invocation says it is."""
        self._answers()
        return Version(self.runtime_name, self.version, "v1")


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

    def pods(self, runtime: str, timeout: float) -> tuple[Pod, ...]:
        """What runs."""
        return self.node.pods_of()


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


@dataclass
class FakeKube:
    """An API server with one Node, whose kubelet reports what ``host`` serves."""

    host: FakeNode
    labels: dict[str, str] = field(default_factory=dict)
    ready: bool = True
    away: int = 0
    """How often the Node is not there when it is looked for."""
    error: KubeError | None = None
    taints: list[Mapping[str, str]] = field(default_factory=list)
    keeps_taints: bool = False
    stuck: Mapping[str, str] | None = None
    """The one taint that may not be lifted."""
    machine_id: str = ""
    events: list[Mapping[str, Any]] = field(default_factory=list)

    def deadline_after(self, seconds: float) -> float:
        """The deadline that lies so far ahead."""
        return seconds

    def node(self, name: str, deadline: float) -> NodeFacts:
        """The Node as it is."""
        if self.error:
            raise self.error
        if self.away:
            self.away -= 1
            raise NoSuchNodeError("there is no such Node", where=f"node/{name}")
        handlers = self.host.handlers
        return NodeFacts(
            name, dict(self.labels), self.ready, handlers, self.machine_id, "1", taints=tuple(self.taints)
        )

    def wait_ready(self, name: str, handlers: Collection[str], *, timeout: float, **_: object) -> None:
        """Time passes until the Node is back, and then it must be good."""
        self.away = 0
        facts = self.node(name, timeout)
        if not facts.ready or facts.missing(handlers):
            raise KubeError("the Node is not as it should be", where=f"node/{name}")

    def ensure_labels(
        self, name: str, change: Callable[[NodeFacts], Mapping[str, str | None]], **_: object
    ) -> None:
        """Set and remove labels."""
        self.away = 0
        for key, value in change(self.node(name, 0)).items():
            if value is None:
                del self.labels[key]
            else:
                self.labels[key] = value
        self.on_settled(self)

    on_settled: Callable[[FakeKube], None] = lambda _: None

    def remove_taints(
        self,
        name: str,
        remaining: Callable[[Sequence[Mapping[str, str]]], Sequence[Mapping[str, str]]],
        **_: object,
    ) -> None:
        """Take off all but what remains."""
        left = list(remaining(self.taints))
        if self.keeps_taints or (self.stuck and self.stuck not in left):
            raise KubeError("the taints stay", where=f"node/{name}")
        self.taints = left

    def record_event(self, event: Mapping[str, Any]) -> None:
        """Keep the Event."""
        self.events.append(event)
