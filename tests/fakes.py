"""A fake containerd and a fake systemd, which read the real files of a temporary root.

They have only the behavior that the code under test relies on, as measured with the real programs: a
restart is a new invocation and reads the configuration again. Invalid TOML, or an import without
wildcards of a missing file, ends containerd. With a default runtime or a snapshotter that does not
exist, containerd runs without the CRI. ``tests/node`` tests the real programs.
"""

from __future__ import annotations

import contextlib
import time
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kata_node.errors import KubeError, SystemdError
from kata_node.host.cri import CriCallError, Reason, Status, Version
from kata_node.host.cri_sandboxes import Pod
from kata_node.host.files import Root
from kata_node.host.host_program import HostProgram, ProgramOutput
from kata_node.host.systemd import ExecEnvironment, Unit, UnitProcess
from kata_node.kube.failures import NoSuchNodeError
from kata_node.kube.node import MetadataChanges, NodeFacts
from kata_node.plan.actions import Clients
from kata_node.runtime.containerd.command_line import config_path

MAIN = "/etc/containerd/config.toml"
DEVICES = ("dev/null", "dev/kvm", "dev/vhost-net", "dev/vhost-vsock")
"""The devices of a node that can run Kata, as ordinary files: only root can make devices. See conftest.py."""
UNIT = "containerd.service"


@dataclass
class FakeNode:
    """A node with containerd 2.1.9 running on the files below ``root``."""

    root: Root
    version: str = "2.1.9"
    handlers: tuple[str, ...] | None = ()
    """The handlers that the running invocation serves; ``None``: it runs without the CRI."""
    unit_name: str = UNIT
    main: str = MAIN
    runtime_name: str = "containerd"
    state: str = "active"
    invocation: int = 1
    restarts: int = 0
    on_restart: Callable[[], None] = lambda: None
    exists: bool = True
    argv: tuple[str, ...] = ("/usr/bin/containerd",)
    exec_environment: ExecEnvironment | None = None
    running: tuple[UnitProcess, ...] = ()
    """The processes of the unit that systemd sees."""
    others: tuple[str, ...] = ()
    """Units of other runtimes that are active."""
    systemd_gone: bool = False
    cri_hangs: bool = False
    refusals: int = 0
    """How many of the next restarts fail with any configuration."""
    pods: tuple[Pod, ...] = ()
    """All running pods, on any handler."""
    list_fails: bool = False
    lists: int = 0
    """How many times the pods were listed."""
    on_list: Callable[[], None] = lambda: None
    kube: Any = None
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The tables of the handlers that the last start loaded."""
    asked: list[str] = field(default_factory=list)
    journal: list[str] = field(default_factory=list)
    """The lines that the runtime's unit wrote."""
    refused_as: str = "resources"
    """How the unit ends at one of the ``refusals``."""
    result: str = "success"
    """How the runtime's unit ended, in the state ``failed``."""
    main_start: int = 0
    """When the runtime's process started, in microseconds by :func:`time.monotonic`."""
    keeps_silent: bool = False
    """Whether the runtime's unit writes nothing when it fails."""

    def __post_init__(self) -> None:
        """Let the unit of CRI-O run CRI-O."""
        if self.runtime_name == "cri-o" and self.argv == FakeNode.argv:
            self.argv = ("/usr/bin/crio",)

    def clients(self) -> Clients:
        """Return the clients of this node."""
        return Clients(self.root, self._systemd, self._cri, lambda: self.kube, _no_progress)

    def _cri(self, socket: str) -> Any:
        """Return what stands in for the class ``Cri``."""
        return FakeCri(self)

    # systemd

    def _systemd(self) -> Any:
        """Return what stands in for the class ``Systemd``."""
        if self.systemd_gone:
            raise SystemdError("it does not answer", where="systemd")
        return self

    def unit(self, name: str) -> Unit | None:
        """Return the runtime's unit, or one of ``others``."""
        if (name != self.unit_name or not self.exists) and name not in self.others:
            return None
        if name in self.others:
            return Unit(name, "loaded", "active", "running", "success", "f" * 32, 43, (), False, 1)
        return Unit(
            name,
            "loaded",
            self.state,
            "running" if self.state == "active" else "dead",
            "success" if self.state != "failed" else self.result,
            f"{self.invocation:032x}",
            42,
            self.argv,
            False,
            self.invocation,
            self.exec_environment,
            main_start_monotonic_usec=self.main_start,
        )

    def processes(self, name: str) -> tuple[UnitProcess, ...]:
        """Return the processes of the runtime's unit."""
        return self.running

    def run_program(self, program: HostProgram) -> ProgramOutput:
        """Run a program of the node: only ``journalctl`` exists."""
        assert program.argv[0].endswith("/journalctl"), program
        return ProgramOutput("\n".join(self.journal), ended=True, result="done")

    def environment(self) -> tuple[str, ...]:
        """Return the variables that systemd gives to every unit."""
        return ("PATH=/usr/bin",)

    def restart(self, name: str, timeout: float) -> None:
        """Start a new invocation, which reads the configuration again."""
        self.asked.append(f"restart {name}")
        self.restarts += 1
        self.invocation += 1
        try:
            if self.refusals:
                self.refusals -= 1
                self.result = self.refused_as
                raise OSError("no space left for a pid file")
            self.main_start, self.result = int(time.monotonic() * 1e6) + 1, "exit-code"
            self.handlers = self.load()
            self.state = "active"
        except (OSError, ValueError) as error:
            self.handlers, self.state = (), "failed"
            self.journal += [] if self.keeps_silent else [f"containerd: {error}"]
            raise SystemdError(f"the job ended as failed: {error}", where=name) from error
        self.on_restart()

    def stop(self) -> None:
        """Stop the runtime, like an administrator."""
        self.state, self.handlers = "inactive", ()

    def load(self) -> tuple[str, ...] | None:
        """Return the handlers of a runtime that starts now; ``None`` for one without the CRI.

        Raises :class:`OSError` or :class:`ValueError` when the runtime would end.
        """
        merged: dict[str, Any] = {}
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
        plugins: dict[str, dict[str, Any]] = merged.get("plugins", {})
        if plugins.get("io.containerd.cri.v1.images", {}).get("snapshotter", "overlayfs") != "overlayfs":
            return None
        plugin = "io.containerd.grpc.v1.cri" if merged.get("version") == 2 else "io.containerd.cri.v1.runtime"
        containerd = plugins.get(plugin, {}).get("containerd", {})
        self.tables = containerd.get("runtimes", {})
        handlers = tuple(sorted({"runc", *self.tables}))
        return handlers if containerd.get("default_runtime_name", "runc") in handlers else None

    # CRI

    def _answers(self) -> tuple[str, ...]:
        if self.state != "active":
            raise CriCallError("nothing listens", reason=Reason.REFUSED, where="the socket")
        if self.cri_hangs:
            raise CriCallError("no answer", reason=Reason.TIMEOUT, where="the socket")
        if self.handlers is None:
            raise CriCallError("no CRI", reason=Reason.NO_CRI, where="the socket")
        return self.handlers

    def status(self, timeout: float) -> Status:
        """Return the handlers of the running invocation."""
        return Status(runtime_ready=True, network_ready=True, handlers=self._answers(), conditions=())

    def pods_of(self) -> tuple[Pod, ...]:
        """Return the running pods. ``on_list`` may change them first."""
        self._answers()
        self.lists += 1
        self.on_list()
        if self.list_fails:
            raise CriCallError("no answer to ListPodSandbox", reason=Reason.TIMEOUT, where="the socket")
        return self.pods

    def version_of(self) -> Version:
        """Return the version of the running invocation."""
        self._answers()
        return Version(self.runtime_name, self.version, "v1")


class FakeCri:
    """The CRI client of a :class:`FakeNode`. It is separate because ``version`` is a method here."""

    def __init__(self, node: FakeNode) -> None:
        self.node = node

    def version(self, timeout: float) -> Version:
        """Return the version of the running invocation."""
        return self.node.version_of()

    def status(self, timeout: float) -> Status:
        """Return the handlers of the running invocation."""
        return self.node.status(timeout)

    def handler_tables(self, timeout: float) -> dict[str, Mapping[str, Any]]:
        """Return the tables of the handlers that the running invocation serves."""
        return {name: self.node.tables.get(name, {}) for name in self.node._answers()}

    def pods(self, runtime: str, timeout: float) -> tuple[Pod, ...]:
        """Return the running pods."""
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
    """A fake API server with one Node. Its kubelet reports the handlers that ``host`` serves."""

    host: FakeNode
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    ready: bool = True
    away: int = 0
    """How many of the next reads do not find the Node."""
    error: KubeError | None = None
    taints: list[Mapping[str, str]] = field(default_factory=list)
    keeps_taints: bool = False
    stuck: Mapping[str, str] | None = None
    """A taint that cannot be removed."""
    machine_id: str = ""
    events: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def marks(self) -> dict[str, str]:
        """The labels without those of the record, see :mod:`kata_node.kube.node_status`."""
        return {
            key: each for key, each in self.labels.items() if not key.startswith(("version.", "outcome."))
        }

    def deadline_after(self, seconds: float) -> float:
        """Return the deadline in ``seconds`` from now; the clock is always at 0."""
        return seconds

    def node(self, name: str, deadline: float) -> NodeFacts:
        """Return the current state of the Node."""
        if self.error:
            raise self.error
        if self.away:
            self.away -= 1
            raise NoSuchNodeError("there is no such Node", where=f"node/{name}")
        handlers = self.host.handlers
        return NodeFacts(
            *(name, dict(self.labels), self.ready, handlers, self.machine_id, "1"),
            taints=tuple(self.taints),
            annotations=dict(self.annotations),
        )

    def last_answer(self, name: str) -> NodeFacts:
        """Return the current state of the Node."""
        return self.node(name, 0)

    def add_metadata(self, name: str, additions: MetadataChanges, *_: object) -> NodeFacts | None:
        """Add labels and annotations if none of their keys is there."""
        if (
            self.labels.keys() & additions.labels.keys()
            or self.annotations.keys() & additions.annotations.keys()
        ):
            return None
        self.ensure_labels(name, lambda _: additions)
        return self.node(name, 0)

    def wait_ready(self, name: str, handlers: Collection[str], *, timeout: float, **_: object) -> None:
        """Wait until the Node is back; raise an error unless it is Ready with all ``handlers``."""
        self.away = 0
        facts = self.node(name, timeout)
        if not facts.ready or facts.missing(handlers):
            raise KubeError("the Node is not Ready, or lacks handlers", where=f"node/{name}")

    def ensure_labels(self, name: str, change: Callable[[NodeFacts], MetadataChanges], **_: object) -> None:
        """Change the labels and annotations once."""
        self.away = 0
        changes = change(self.node(name, 0))
        for there, changed in ((self.labels, changes.labels), (self.annotations, changes.annotations)):
            for key, value in changed.items():
                if value is None:
                    del there[key]
                else:
                    there[key] = value
        self.on_settled(self)

    on_settled: Callable[[FakeKube], None] = lambda _: None

    def remove_taints(
        self,
        name: str,
        remaining: Callable[[Sequence[Mapping[str, str]]], Sequence[Mapping[str, str]]],
        **_: object,
    ) -> None:
        """Replace the taints by those that ``remaining`` returns."""
        left = list(remaining(self.taints))
        if self.keeps_taints or (self.stuck and self.stuck not in left):
            raise KubeError("the taints stay", where=f"node/{name}")
        self.taints = left

    def record_event(self, event: Mapping[str, Any]) -> None:
        """Store the Event in ``events``."""
        self.events.append(event)
