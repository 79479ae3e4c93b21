"""A Kubernetes control plane: real etcd, API server and controller manager, up in seconds, without root.

    with Cluster.start() as cluster:
        cluster.node("worker-1", labels={"katacontainers.io/kata-runtime": "false"})
        cluster.kubectl("get", "nodes")

There is no kubelet, and a scheduler only when asked for: a Node is an object, and a Pod is one as well.
joining.py adds nodes that are real.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from http.client import HTTPException, HTTPSConnection
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

from node.boot import program_path
from node.cache import NodeError
from node.commands import WAIT_TIMEOUT, CommandResult, checked
from node.node_records import Process

from cluster import cluster_records, flags, programs
from cluster.cluster_records import Record

ADMIN = "admin"
NOBODY = "nobody"

_USERS: Mapping[str, Sequence[str]] = {
    ADMIN: ("system:masters",),
    NOBODY: (),
    flags.CONTROLLER_MANAGER: (),
    flags.SCHEDULER: (),
}

_SERVICE_ACCOUNT = "system:serviceaccount:"
_POLL = 0.02  # seconds between two looks at a server that starts
_LOG_LINES = 40

_ENDED = "Read the last lines of its log below, then start the cluster again"
_LATE = "Start the cluster again when the machine is less busy; the last lines of every log are below"


class Cluster:
    """A control plane that runs, made by :meth:`start` or :meth:`attach`; a context manager that stops it.

    Belongs to the thread that started it: without ``detached`` its programs end when that thread does.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._children: list[subprocess.Popen[bytes]] = []

    @classmethod
    def start(
        cls,
        *,
        name: str = "",
        users: Mapping[str, Sequence[str]] | None = None,
        scheduler: bool = False,
        detached: bool = False,
        timeout: float = WAIT_TIMEOUT,
    ) -> Cluster:
        """Start a cluster and wait until it can be used: ready, and with the ServiceAccounts of its own.

        ``users`` are there beside :data:`ADMIN`, who may do everything, and :data:`NOBODY`, who may do
        nothing; each with the groups it is in, as ``{"system:node:a": ["system:nodes"]}``. With a
        ``scheduler`` pods are bound to nodes that are Ready. Programs that are not kept yet are built
        first, which takes minutes. Raises :class:`NodeError`, with
        what the programs logged, as soon as one of them ends, and when the cluster does not start within
        ``timeout`` seconds.
        """
        for each in (*programs.CONTROL_PLANE, *([programs.SCHEDULER] if scheduler else [])):
            programs.program(each)
        release = programs.version_of(programs.KUBERNETES)
        name = name or f"test-{os.getpid()}-{secrets.token_hex(3)}"
        cluster = cls(Record(name, Process.of(os.getpid()), detached, cluster_records.free_port(), release))
        cluster_records.reserve(cluster._record)
        try:
            cluster._write_files({**_USERS, **(users or {})})
            cluster._start_all(time.monotonic() + timeout)
            if scheduler:
                cluster._spawn(programs.SCHEDULER, flags.scheduler(cluster.kubeconfig_of(flags.SCHEDULER)))
        except BaseException:
            cluster.stop()
            raise
        return cluster

    @classmethod
    def attach(cls, name: str) -> Cluster:
        """The running cluster ``name``; raises :class:`NodeError` when there is none."""
        for record in cluster_records.running():
            if record.name == name:
                return cls(record)
        raise NodeError(f"no cluster named {name} runs")

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def name(self) -> str:
        """What it is called on this machine."""
        return self._record.name

    @property
    def kubernetes(self) -> str:
        """The release of Kubernetes, such as v1.37.2."""
        return self._record.kubernetes

    @property
    def directory(self) -> Path:
        """Where its files are: keys, tokens, logs, data; removed when it stops."""
        return self._record.directory

    @property
    def url(self) -> str:
        """Where the API server answers, also after a restart."""
        return f"https://127.0.0.1:{self._record.port}"

    @property
    def ca(self) -> Path:
        """The certificate authority of the API server."""
        return self.directory / flags.CA

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig of :data:`ADMIN`."""
        return self.kubeconfig_of(ADMIN)

    @property
    def processes(self) -> Mapping[str, Process]:
        """Its programs by name, as they run now."""
        return dict(self._record.processes)

    def token(self, who: str) -> str:
        """A bearer token for ``who``: a user given at the start, or ``system:serviceaccount:NAMESPACE:NAME``.

        A ServiceAccount's is new each time, by way of TokenRequest, and good for an hour; the account
        has to be there. Raises :class:`NodeError` for anybody else.
        """
        if who.startswith(_SERVICE_ACCOUNT):
            namespace, _, account = who.removeprefix(_SERVICE_ACCOUNT).partition(":")
            return self.kubectl("create", "token", account, f"--namespace={namespace}").stdout.strip()
        for line in (self.directory / flags.USERS).read_text().splitlines():
            token, name, _ = line.split(",", 2)
            if name == who:
                return token
        raise NodeError(f"the cluster {self.name} has no user {who}: name it in Cluster.start(users=...)")

    def kubeconfig_of(self, who: str, *, namespace: str = "default") -> Path:
        """A kubeconfig for ``who``, see :meth:`token`, with ``namespace`` as the one that is meant."""
        # KUBECONFIG is a list with colons in between, and the names of accounts have them.
        path = self.directory / "kubeconfigs" / quote(f"{who}@{namespace}", safe="@")
        content = flags.kubeconfig(self.url, self.ca.read_text(), self.token(who), namespace)
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
        return path

    def kubectl(
        self, *args: str, text: str | None = None, check: bool = True, who: str = ADMIN
    ) -> CommandResult:
        """Run kubectl as ``who``, with ``text`` to read; raises when ``check`` and its exit code is not 0."""
        return self._run("kubectl", args, text=text, check=check, who=who)

    def helm(
        self, *args: str, text: str | None = None, check: bool = True, who: str = ADMIN
    ) -> CommandResult:
        """Run helm as ``who``, with nothing of the person's own; built when it is not kept yet."""
        return self._run("helm", args, text=text, check=check, who=who)

    def _run(
        self, name: str, args: Sequence[str], *, text: str | None, check: bool, who: str
    ) -> CommandResult:
        done = subprocess.run(
            [str(programs.program(name)), *args],
            env=self.environment(who),
            input=text or "",
            capture_output=True,
            text=True,
            check=False,
        )
        done.args = [name, *args]
        return checked(done, check=check)

    def environment(self, who: str = ADMIN) -> dict[str, str]:
        """The environment in which kubectl, helm and kata-node talk to this cluster as ``who``."""
        # Never a proxy, and never the caches or plugins of the person who runs the tests.
        own = {name: os.environ[name] for name in ("PATH", "TERM", "LANG") if name in os.environ}
        return {**own, "HOME": str(self.directory / "home"), "KUBECONFIG": str(self.kubeconfig_of(who))}

    def get(self, path: str, *, token: str = "") -> tuple[int, str]:
        """The status and body the API server answers to a GET of ``path``.

        Raises :class:`OSError` or :class:`http.client.HTTPException` when it gives no answer.
        """
        context = ssl.create_default_context(cafile=self.ca)
        connection = HTTPSConnection("127.0.0.1", self._record.port, timeout=10, context=context)
        with contextlib.closing(connection):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    def node(
        self, name: str, *, labels: Mapping[str, str] | None = None, status: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Register a Node without a kubelet, Ready unless ``status`` has other conditions; return it.

        ``status`` is what a kubelet would report, such as ``{"nodeInfo": {"machineID": …}}`` or
        ``{"runtimeHandlers": [{"name": "kata-qemu"}]}``. A Node that is there already is brought up to
        date: these labels take the place of those given here before, and everybody else's stay.
        """
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, **(labels or {})}},
        }
        self.kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", text=json.dumps(node))
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        patch = json.dumps({"status": {"conditions": [ready], **(status or {})}})
        how = ("--subresource=status", "--type=merge", f"--patch={patch}", "--output=json")
        patched: dict[str, Any] = json.loads(self.kubectl("patch", "node", name, *how).stdout)
        return patched

    def relay(self, name: str, *arguments: str, timeout: float = WAIT_TIMEOUT) -> None:
        """Run relay.py with these ``arguments``, and return when it serves, unless ``name`` runs already."""
        if name not in self._record.processes:
            program = [sys.executable, "-P", str(Path(__file__).with_name("relay.py"))]
            self._spawn(name, arguments, program)
            log = self.directory / f"{name}.log"
            served = time.monotonic() + timeout
            self._wait(f"{name} serves", lambda: "\nlistening\n" in log.read_text(), served)

    def end_relay(self, name: str) -> None:
        """End it at once."""
        if name in self._record.processes:
            cluster_records.end(self._record.processes[name], signal.SIGKILL)
            self._record = self._record.without(name)

    def stop_apiserver(self, *, kill: bool = False) -> None:
        """End the API server in its own time, seconds, or with ``kill`` as a pulled plug would."""
        cluster_records.end(
            self._record.processes["kube-apiserver"], signal.SIGKILL if kill else signal.SIGTERM
        )
        for child in self._children:
            child.poll()  # take note of its end, if it is of this process
        self._record = self._record.without("kube-apiserver")

    def start_apiserver(self, *, timeout: float = WAIT_TIMEOUT) -> None:
        """Start the API server again, where it was, and wait until it is ready."""
        deadline = time.monotonic() + timeout
        self._spawn("kube-apiserver", flags.apiserver(self._record.port))
        self._wait("the API server is ready", self._ready, deadline)

    def restart_apiserver(self, *, kill: bool = False) -> None:
        """Stop and start the API server; tokens, certificates and objects stay."""
        self.stop_apiserver(kill=kill)
        self.start_apiserver()

    def logs(self, lines: int = _LOG_LINES) -> list[tuple[str, str]]:
        """The last lines each program logged, under its name."""
        files = sorted(self.directory.glob("*.log"))
        return [
            (file.stem, "\n".join(file.read_text(errors="replace").splitlines()[-lines:])) for file in files
        ]

    def check_programs(self, before: str) -> None:
        """Raise :class:`NodeError` with the logs if a program has ended ``before`` what is awaited."""
        for name, process in self._record.processes.items():
            if not process.alive:
                raise self._failed(
                    f"{name} ended{self._exit_code(process)} before {before}", _ENDED, first=name
                )

    def report(self) -> list[tuple[str, str]]:
        """Title and text of what one wants to see when a test of this cluster failed."""
        return [(f"{self.name}: log of {program}", text) for program, text in self.logs()]

    def stop(self) -> None:
        """End the cluster at once, and remove all that was its own. Stopping it again does nothing."""
        for child in self._children:
            child.kill()
            child.wait()
        cluster_records.clear(self._record)

    def _write_files(self, users: Mapping[str, Sequence[str]]) -> None:
        for name in ("home", "kubeconfigs", flags.NODES):
            (self.directory / name).mkdir()
        (self.directory / flags.EGRESS).write_text(flags.egress())
        (self.directory / flags.USERS).write_text(flags.user_lines(users))
        (self.directory / flags.KEY).write_text(flags.signing_key())

    def _start_all(self, deadline: float) -> None:
        # The API server waits for etcd by itself. The controller manager gives up after ten seconds without
        # a ready API server, which needs longer than that on a busy machine.
        self._spawn("etcd", flags.etcd())
        self._spawn("kube-apiserver", flags.apiserver(self._record.port))
        self._wait("the API server has made its certificate", self._take_authority, deadline)
        self._wait("the API server is ready", self._ready, deadline)
        kubeconfig = self.kubeconfig_of(flags.CONTROLLER_MANAGER)
        self._spawn("kube-controller-manager", flags.controller_manager(kubeconfig))
        self._wait("the default ServiceAccount is there", self._has_accounts, deadline)

    def _spawn(self, name: str, options: Sequence[str], program: Sequence[str] = ()) -> None:
        tied = "clear" if self._record.detached else "KILL"
        command = [program_path("setpriv"), f"--pdeathsig={tied}"]
        command += [*(program or [str(programs.program(name))]), *options]
        with (self.directory / f"{name}.log").open("ab") as log:
            log.write(f"$ {shlex.join([name, *options])}\n".encode())
            log.flush()
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env={"PATH": os.defpath, "HOME": str(self.directory / "home")},
                start_new_session=True,  # Ctrl-C is for the tests, which then stop the cluster themselves
            )
        self._children.append(child)
        try:
            self._record = self._record.noted(name, Process.of(child.pid))
        except ProcessLookupError:
            raise self._failed(f"{name} ended with {child.wait()} at once", _ENDED, first=name) from None

    def _failed(self, what: str, hint: str, *, first: str = "") -> NodeError:
        """``what`` went wrong, the hint, and all logs, that of the program ``first`` before the others."""
        logs = sorted(self.logs(), key=lambda log: log[0] != first)
        text = "\n".join(f"--- {name}\n{lines}" for name, lines in logs)
        return NodeError(f"the cluster {self.name}: {what}\n  hint: {hint}\n{text}")

    def _exit_code(self, process: Process) -> str:
        """`` with 1``; empty when another process started this one and knows."""
        codes = [child.wait() for child in self._children if child.pid == process.pid]
        return f" with {codes[0]}" if codes else ""

    def _wait(self, what: str, condition: Callable[[], object], deadline: float) -> None:
        began = time.monotonic()
        while not condition():
            self.check_programs(before=what)
            if time.monotonic() > deadline:
                waited = f"after {time.monotonic() - began:.0f} s"
                raise self._failed(f"{waited} it is still not true that {what}", _LATE)
            time.sleep(_POLL)

    def _take_authority(self) -> bool:
        certificates = self.directory / flags.CERTIFICATES
        # The key is the last that is written.
        if not certificates.with_suffix(".key").exists():
            return False
        self.ca.write_text(flags.authority(certificates.read_text()))
        return True

    def _ready(self) -> bool:
        with contextlib.suppress(OSError, HTTPException):
            return self.get("/readyz")[0] == 200
        return False

    def _has_accounts(self) -> bool:
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        with contextlib.suppress(OSError, HTTPException):  # a busy machine may be too slow for one request
            return self.get(account, token=self.token(ADMIN))[0] == 200
        return False
