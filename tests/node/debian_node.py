"""A Debian node with its own systemd and containerd, booted in about a second and thrown away after use.

It is a systemd-nspawn container on a fresh copy of a cached tree. Everything is mounted in a mount
namespace of its own and every process is in a pid namespace below systemd-nspawn, so when that one
process ends, for whatever reason, nothing is left mounted or running.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypedDict, Unpack

from node import boot, containerd_build, installed_program, node_records
from node.cache import CHECKOUT, NodeError
from node.commands import WAIT_TIMEOUT, CommandResult, RunningCommand, checked, describe_result, wait_until
from node.cri import CriStatus
from node.cri import status as cri_status
from node.mounts import CONTAINER_CAPABILITIES, HostPath
from node.node_records import Record
from node.rootfs import PACKAGES, SUITE, build_rootfs
from node.snapshot import Snapshot, take

SOCKET = "run/containerd/containerd.sock"

POD_MOUNTS = (
    "/etc/containerd",
    "/etc/machine-id",
    "/opt",
    "/run/containerd",
    "/run/dbus",
    "/run/kata-node",
)
"""Of the node, what a container that installs Kata gets below its host root."""

_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
_SHARED_BY_PODS = ("--pid", "--net", "--ipc", "--uts")
_OWN_OF_A_CONTAINER = ("--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc")
_MOUNTER = (sys.executable, "-P", str(Path(__file__).with_name("mounts.py")))
_UNIT_STARTED = "39f53479d3a045ac8e11786248231fbf"  # systemd's catalogue id of "unit started"
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Unit:
    """A unit as the node's systemctl shows it."""

    active: str  # active, activating, failed, inactive, …
    sub: str
    invocation: str  # changes at every activation; empty when it never was
    main_pid: int  # as the node numbers it; 0 without one
    restarts: int  # those systemd did by itself, after a failure


class RunOptions(TypedDict, total=False):
    """How kata-node is run, where that differs from a plain call."""

    config: Mapping[str, Any] | str
    """The values file: a mapping, or its text."""
    payload: str
    """The payload, a directory of the node; :meth:`Node.mount` brings one in."""
    env: Mapping[str, str]
    prefix: Sequence[str]
    """A command of the node that runs it, such as strace."""


class Node:
    """A booted node. Ends with the ``with`` statement, with :meth:`stop`, or with the process that booted it.

    ``root`` is its file system as seen from the machine. Links in it that are absolute are followed by
    the machine's kernel from the machine's root: use paths without such links.
    ``history`` holds every kata-node command that has ended, oldest first.
    """

    def __init__(self, record: Record) -> None:
        if record.leader is None:
            raise NodeError(f"the node {record.name} has not come up yet")
        self.name = record.name
        self.suite = record.suite
        self.leader = record.leader
        self.root = Path(f"/proc/{self.leader.pid}/root")
        self.history: list[CommandResult] = []
        self._entering = (boot.program_path("nsenter"), "--all", f"--target={self.leader.pid}")
        self._record = record
        self._supervisor: subprocess.Popen[bytes] | None = None
        self._commands: list[RunningCommand] = []

    @classmethod
    def boot(
        cls,
        suite: str = SUITE,
        *,
        packages: Sequence[str] = PACKAGES,
        containerd: str = "",
        tree: Path | None = None,
        name: str = "",
        detached: bool = False,
        timeout: float = WAIT_TIMEOUT,
    ) -> Node:
        """Boot a fresh node and return when its containerd serves the CRI.

        ``containerd`` is a release, such as ``2.4.2``, to run in place of the suite's own. ``tree`` is
        what the node is a copy of, if not the tree of ``packages``, which is built when it is not kept
        yet. A ``detached`` node lives on after this process; any other dies with it, even when it is
        killed. Raises :class:`NodeError`, and leaves nothing behind, when the node does not come up
        within ``timeout`` seconds.
        """
        tree = tree or build_rootfs(suite, packages)
        built = containerd_build.binds(containerd) if containerd else []
        record = node_records.reserve(name or f"{suite}-{os.getpid()}-{next(_numbers)}", suite)
        supervisor = None
        try:
            options = [f"--machine={record.name}", *installed_program.binds(tree, record.directory), *built]
            supervisor = boot.start(record, tree, options, detached=detached)
            record = node_records.started(record, supervisor.pid)
            record = boot.wait_for_leader(record, supervisor, timeout)
            node = cls(record)
            node._supervisor = supervisor
            if "containerd" in packages:
                node.wait_for_containerd(timeout)
        except BaseException:
            boot.end(record, supervisor)
            raise
        return node

    @classmethod
    def attach(cls, name: str) -> Node:
        """The running node of that name, whoever booted it."""
        for record in node_records.running():
            if record.name == name:
                return cls(record)
        raise NodeError(f"no node named {name} runs")

    def __enter__(self) -> Node:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the node at once, as a pulled plug would, and remove all that was its own."""
        for command in self._commands:
            command.close()
        boot.end(self._record, self._supervisor)

    # Commands in the node

    def start(
        self, args: Sequence[str], *, env: Mapping[str, str] | None = None, text: str | None = None
    ) -> RunningCommand:
        """Start a command in the node, as root, with ``text`` on its standard input; do not wait for it."""
        running = RunningCommand(self._entering, args, env={**_ENVIRONMENT, **(env or {})}, text=text)
        self._commands.append(running)
        return running

    def run(
        self,
        args: Sequence[str],
        *,
        check: bool = True,
        timeout: float = WAIT_TIMEOUT,
        env: Mapping[str, str] | None = None,
        text: str | None = None,
    ) -> CommandResult:
        """Run a command in the node, as root.

        The exit code is the command's own, negative for the signal that ended it. Raises
        :class:`CommandFailed` when ``check`` and it is not 0, :class:`NodeError` after ``timeout`` seconds.
        """
        return checked(self.start(args, env=env, text=text).wait(timeout), check=check)

    def become(self, args: Sequence[str]) -> NoReturn:
        """Turn this process into a command in the node, on the terminal as it is; does not return."""
        environment = {"TERM": os.environ.get("TERM", "dumb"), **_ENVIRONMENT}
        os.execve(self._entering[0], [*self._entering, *args], environment)

    def start_kata_node(self, *args: str, **how: Unpack[RunOptions]) -> RunningCommand:
        """Start the checkout's ``kata-node`` in the node, with the node's own Python; do not wait for it."""
        env = dict(how.get("env", {}))
        if "payload" in how:
            env["KATA_NODE_PAYLOAD"] = how["payload"]
        if "config" in how:
            values = f"/tmp/kata-node-values-{next(_numbers)}.yaml"  # of this run alone
            _write_values(Path(f"{self.root}{values}"), how["config"])
            env["KATA_NODE_CONFIG"] = values
        running = self.start([*how.get("prefix", ()), installed_program.COMMAND, *args], env=env)
        running.when_done(self.history.append)
        return running

    def kata_node(
        self, *args: str, check: bool = False, timeout: float = WAIT_TIMEOUT, **how: Unpack[RunOptions]
    ) -> CommandResult:
        """Run ``kata-node`` in the node to its end; see :meth:`start_kata_node` and :meth:`run`."""
        return checked(self.start_kata_node(*args, **how).wait(timeout), check=check)

    def kata_node_outside(
        self,
        *args: str,
        config: Mapping[str, Any] | str | None = None,
        payload: Path | None = None,
        env: Mapping[str, str] | None = None,
        mounts: Sequence[str | HostPath] = POD_MOUNTS,
        capabilities: Collection[str] = tuple(CONTAINER_CAPABILITIES),
        check: bool = False,
        timeout: float = WAIT_TIMEOUT,
    ) -> CommandResult:
        """Run this Python's ``kata-node`` as a container on the node would.

        It has the machine's file system as its image, the node's network, a pid namespace below the
        node's, a container's few ``capabilities``, and below its host root, which is read-only, the node's
        ``mounts`` alone. Where the kubelet would not mount one, nothing runs and the exit code is 1.
        ``payload`` is a directory of the machine.
        """
        host = self._record.directory / "host"
        host.mkdir(exist_ok=True)
        environment = {
            **_ENVIRONMENT,
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "KATA_NODE_HOST_ROOT": str(host),
            **(env or {}),
        }
        if payload is not None:
            environment["KATA_NODE_PAYLOAD"] = str(payload)
        if config is not None:
            values = self._record.directory / "values.yaml"
            _write_values(values, config)
            environment["KATA_NODE_CONFIG"] = str(values)
        with self._mount_namespace() as namespace:
            entering = [
                *(boot.program_path("nsenter"), f"--target={self.leader.pid}", *_SHARED_BY_PODS),
                *("unshare", *_OWN_OF_A_CONTAINER),
                *(*_MOUNTER, "pod", str(namespace), str(host), ",".join(capabilities)),
                *(*map(str, (HostPath(each) if isinstance(each, str) else each for each in mounts)), "--"),
            ]
            command = [sys.executable, "-P", "-m", "kata_node", *args]
            running = RunningCommand(entering, command, env=environment, depth=2, pass_fds=[namespace])
        self._commands.append(running)
        running.when_done(self.history.append)
        return checked(running.wait(timeout), check=check)

    def mount(self, source: Path, target: str, *, read_only: bool = False) -> None:
        """Mount a file or directory of the machine in the node, for as long as the node runs."""
        act = "attach-read-only" if read_only else "attach"
        with self._mount_namespace() as namespace:
            command = [*_MOUNTER, act, str(namespace), str(source), target]
            done = subprocess.run(command, pass_fds=[namespace], capture_output=True, text=True, check=False)
        checked(done, check=True)

    def go_over_to(self, containerd: str = "", *, serving: bool = True) -> CriStatus:
        """Replace containerd by that release, or by the suite's own, and restart it: as an upgrade does.

        Unless it is to be found ``serving`` the CRI, what is returned is what it answers when it is up.
        """
        self.run(["umount", "--lazy", containerd_build.PROGRAM], check=False)  # it runs, and may be no mount
        if containerd:
            self.mount(containerd_build.built(containerd), containerd_build.PROGRAM, read_only=True)
        self.run(["systemctl", "restart", "containerd.service"])
        return self.wait_for_containerd() if serving else self.cri()

    @contextmanager
    def _mount_namespace(self) -> Iterator[int]:
        namespace = os.open(f"/proc/{self.leader.pid}/ns/mnt", os.O_RDONLY)
        try:
            yield namespace
        finally:
            os.close(namespace)

    # What the node is like now

    def unit(self, name: str) -> Unit:
        """The unit ``name`` as systemctl shows it."""
        keys = ("ActiveState", "SubState", "InvocationID", "MainPID", "NRestarts")
        shown = self.run(["systemctl", "show", f"--property={','.join(keys)}", name]).stdout
        values = dict(line.split("=", 1) for line in shown.splitlines())
        pid, restarts = int(values["MainPID"]), int(values.get("NRestarts") or 0)
        return Unit(values["ActiveState"], values["SubState"], values["InvocationID"], pid, restarts)

    def activations(self, unit: str) -> int:
        """How many times ``unit`` was started since the node booted, by the journal's word."""
        match = [f"UNIT={unit}", f"MESSAGE_ID={_UNIT_STARTED}"]
        self.run(["journalctl", "--sync"])
        return len(self.run(["journalctl", "--quiet", "--output=cat", *match]).stdout.splitlines())

    def journal(self, unit: str, *, lines: int = 500) -> str:
        """The last ``lines`` lines the node's journal has of ``unit`` and of what systemd says of it."""
        options = ["--no-pager", "--output=short-precise", f"--lines={lines}", f"--unit={unit}"]
        return self.run(["journalctl", *options], check=False).stdout

    def snapshot(self, *directories: str) -> Snapshot:
        """All below these directories of the node; :func:`node.snapshot.changes` compares two."""
        return take(self.root, directories)

    def cri(self, *, timeout: float = 30) -> CriStatus:
        """What the CRI answers, asked without any code of kata-node."""
        return cri_status(self.root / SOCKET, timeout=timeout)

    def cri_handlers(self) -> tuple[str, ...]:
        """The handlers the CRI serves, sorted; raises :class:`NodeError` when it does not serve at all."""
        answer = self.cri()
        if not answer.serving:
            raise NodeError(f"the CRI of {self.name} does not serve: {answer.error}")
        return answer.handlers

    def wait_for_containerd(self, timeout: float = WAIT_TIMEOUT) -> CriStatus:
        """Wait until the CRI serves; raises :class:`NodeError` with containerd's journal when it does not."""
        answers: list[CriStatus] = []

        def serving() -> bool:
            if not self.leader.alive:
                raise NodeError(f"the node {self.name} has ended:\n{boot.console(self._record)}")
            answers[:] = [self.cri()]
            return answers[0].serving

        try:
            wait_until(serving, "containerd serves the CRI", timeout=timeout)
        except NodeError as error:
            if not self.leader.alive:
                raise
            journal = self.journal("containerd.service", lines=40)
            raise NodeError(f"{error}; it answers {answers[0].error}\n{journal}") from error
        return answers[0]

    def report(self) -> list[tuple[str, str]]:
        """Title and text of what one wants to see when a test of this node failed."""
        sections = [(f"{self.name}: kata-node", "\n\n".join(describe_result(done) for done in self.history))]
        if self.leader.alive:
            lines = self.journal("containerd.service").splitlines(keepends=True)
            # A hundred lines at every start that say nothing went wrong.
            relevant = "".join(line for line in lines if "loading plugin" not in line)
            sections.append((f"{self.name}: journal of containerd", relevant))
        else:
            sections.append((f"{self.name}: console", boot.console(self._record)))
        return [(title, text) for title, text in sections if text.strip()]


def _write_values(path: Path, config: Mapping[str, Any] | str) -> None:
    path.write_text(config if isinstance(config, str) else json.dumps(config))  # JSON is YAML
