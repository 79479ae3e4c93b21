"""A Kubernetes control plane: real etcd, API server and controller manager, up in seconds, without root.

    with Cluster.start() as cluster:
        cluster.node("worker-1", labels={"katacontainers.io/kata-runtime": "false"})
        cluster.kubectl("get", "nodes")

There is no kubelet, and a scheduler only on request: Nodes and Pods are only objects. joined_node.py adds
real nodes.
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

from cluster import cluster_records, flags, programs
from cluster.cluster_records import Record
from node.boot import program_path
from node.cache import CHECKOUT, NodeError
from node.commands import WAIT_TIMEOUT, CommandResult, checked
from node.node_records import Process

ADMIN = "admin"
NOBODY = "nobody"

_USERS: Mapping[str, Sequence[str]] = {
    ADMIN: ("system:masters",),
    NOBODY: (),
    flags.CONTROLLER_MANAGER: (),
    flags.SCHEDULER: (),
}

_SERVICE_ACCOUNT = "system:serviceaccount:"
_POLL = 0.02  # seconds between two checks of a starting server
_LOG_LINES = 40

CHART = CHECKOUT / "assets/chart/kata-deploy"
IMAGES = CHECKOUT / "tests/chart"
"""The directory of the values with the images that the chart has no default for."""

_ENDED = "Read the last lines of its log below, then start the cluster again"
_LATE = "Start the cluster again when the machine is less busy. The last lines of every log are below"


class Cluster:
    """A running control plane from :meth:`start` or :meth:`attach`; as a context manager it stops at the end.

    Without ``detached`` its programs end with the thread that started it.
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
        """Start a cluster and wait until it is ready and has the default ServiceAccount.

        ``users`` maps additional users to their groups, for example ``{"system:node:a": ["system:nodes"]}``.
        :data:`ADMIN`, who may do everything, and :data:`NOBODY`, who may do nothing, always exist. With a
        ``scheduler`` pods are bound to Ready nodes. Programs that are not cached are built first, which takes
        minutes. Raises :class:`NodeError` with the programs' logs as soon as one of them ends, and when the
        cluster does not start within ``timeout`` seconds.
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
        """Return the running cluster ``name``; raises :class:`NodeError` if there is none."""
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
        """The name of the cluster on this machine."""
        return self._record.name

    @property
    def kubernetes(self) -> str:
        """The release of Kubernetes, for example v1.37.2."""
        return self._record.kubernetes

    @property
    def directory(self) -> Path:
        """The directory of its keys, tokens, logs and data; removed when the cluster stops."""
        return self._record.directory

    @property
    def url(self) -> str:
        """The URL of the API server; the same after a restart."""
        return f"https://127.0.0.1:{self._record.port}"

    @property
    def ca(self) -> Path:
        """The file of the API server's certificate authority."""
        return self.directory / flags.CA

    @property
    def kubeconfig(self) -> Path:
        """The path of the kubeconfig of :data:`ADMIN`."""
        return self.kubeconfig_of(ADMIN)

    @property
    def processes(self) -> Mapping[str, Process]:
        """Program name -> running process."""
        return dict(self._record.processes)

    def token(self, who: str) -> str:
        """Return a bearer token for ``who``: a user or ``system:serviceaccount:NAMESPACE:NAME``.

        For a ServiceAccount, which must exist, each call requests a new token, valid for an hour. Raises
        :class:`NodeError` for an unknown user.
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
        """Return the path of a kubeconfig for ``who``, see :meth:`token`, with a default ``namespace``."""
        # KUBECONFIG is a list separated by colons, and the names of accounts contain colons.
        path = self.directory / "kubeconfigs" / quote(f"{who}@{namespace}", safe="@")
        content = flags.kubeconfig(self.url, self.ca.read_text(), self.token(who), namespace)
        if not path.exists() or path.read_text() != content:
            path.write_text(content)
        return path

    def kubectl(
        self, *args: str, text: str | None = None, check: bool = True, who: str = ADMIN
    ) -> CommandResult:
        """Run kubectl as ``who`` with ``text`` as stdin; with ``check``, raise if its exit code is not 0."""
        return self._run("kubectl", args, text=text, check=check, who=who)

    def helm(
        self,
        *args: str,
        text: str | None = None,
        check: bool = True,
        who: str = ADMIN,
        path: Path | None = None,
    ) -> CommandResult:
        """Run helm as ``who``, without the user's own helm settings; build helm if it is not cached.

        ``path`` is another helm than that of ``go.mod``.

        The chart of this checkout gets the names of images, because it has no default for them: those for
        this cluster, unless ``args`` name the version of another one. Values of the caller win.
        """
        if str(CHART) in args:
            at = args.index(str(CHART)) + 1
            mounts = tuple(map(int, self.kubernetes.removeprefix("v").split(".")[:2])) >= (1, 35)
            versions = [each for each in args if each.startswith("--kube-version=")]
            other = versions not in ([], [f"--kube-version={self.kubernetes}"])
            values = IMAGES / ("images.yaml" if mounts or other else "image_of_both.yaml")
            args = (*args[:at], f"--values={values}", *args[at:])
        return self._run("helm", args, text=text, check=check, who=who, path=path)

    def _run(
        self,
        name: str,
        args: Sequence[str],
        *,
        text: str | None,
        check: bool,
        who: str,
        path: Path | None = None,
    ) -> CommandResult:
        done = subprocess.run(
            [str(path or programs.program(name)), *args],
            env=self.environment(who),
            input=text or "",
            capture_output=True,
            text=True,
            check=False,
        )
        done.args = [name, *args]
        return checked(done, check=check)

    def environment(self, who: str = ADMIN) -> dict[str, str]:
        """Return the environment in which kubectl, helm and kata-node use this cluster as ``who``."""
        # Without proxy settings, and with a HOME without the caches and plugins of the user.
        own = {name: os.environ[name] for name in ("PATH", "TERM", "LANG") if name in os.environ}
        return {**own, "HOME": str(self.directory / "home"), "KUBECONFIG": str(self.kubeconfig_of(who))}

    def get(self, path: str, *, token: str = "") -> tuple[int, str]:
        """Send a GET of ``path`` to the API server, and return status and body.

        Raises :class:`OSError` or :class:`http.client.HTTPException` if it does not answer.
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

        ``status`` is what a kubelet would report, for example ``{"nodeInfo": {"machineID": …}}`` or
        ``{"runtimeHandlers": [{"name": "kata-qemu"}]}``. An existing Node is updated: ``labels`` replace
        those of an earlier call, and labels of other writers stay.
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
        """Start relay.py with these ``arguments`` and wait until it listens, unless ``name`` already runs."""
        if name not in self._record.processes:
            program = [sys.executable, "-P", str(Path(__file__).with_name("relay.py"))]
            self._spawn(name, arguments, program)
            log = self.directory / f"{name}.log"
            served = time.monotonic() + timeout
            self._wait(f"{name} listens", lambda: "\nlistening\n" in log.read_text(), served)

    def end_relay(self, name: str) -> None:
        """Kill the relay ``name`` if it runs."""
        if name in self._record.processes:
            cluster_records.end(self._record.processes[name], signal.SIGKILL)
            self._record = self._record.without(name)

    def stop_apiserver(self, *, kill: bool = False) -> None:
        """Stop the API server, which takes seconds; ``kill`` kills it at once."""
        cluster_records.end(
            self._record.processes["kube-apiserver"], signal.SIGKILL if kill else signal.SIGTERM
        )
        for child in self._children:
            child.poll()  # reap it if this process started it
        self._record = self._record.without("kube-apiserver")

    def start_apiserver(self, *, timeout: float = WAIT_TIMEOUT) -> None:
        """Start the API server again on the same port, and wait until it is ready."""
        deadline = time.monotonic() + timeout
        self._spawn("kube-apiserver", flags.apiserver(self._record.port))
        self._wait("the API server is ready", self._ready, deadline)

    def restart_apiserver(self, *, kill: bool = False) -> None:
        """Stop and start the API server; tokens, certificates and objects stay."""
        self.stop_apiserver(kill=kill)
        self.start_apiserver()

    def logs(self, lines: int = _LOG_LINES) -> list[tuple[str, str]]:
        """Return the program names and their last log lines."""
        files = sorted(self.directory.glob("*.log"))
        return [
            (file.stem, "\n".join(file.read_text(errors="replace").splitlines()[-lines:])) for file in files
        ]

    def check_programs(self, before: str) -> None:
        """Raise :class:`NodeError` with the logs if a program ended; ``before`` is the awaited condition."""
        for name, process in self._record.processes.items():
            if not process.alive:
                raise self._failed(
                    f"{name} ended{self._exit_code(process)} before {before}", _ENDED, first=name
                )

    def report(self) -> list[tuple[str, str]]:
        """Return titles and texts for the report of a failed test: the logs of all programs."""
        return [(f"{self.name}: log of {program}", text) for program, text in self.logs()]

    def stop(self) -> None:
        """Kill the programs of the cluster and remove its directory. A second call does nothing."""
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
        # The API server waits for etcd by itself. The controller manager exits after ten seconds without a
        # ready API server, which needs longer on a busy machine.
        self._spawn("etcd", flags.etcd())
        self._spawn("kube-apiserver", flags.apiserver(self._record.port))
        self._wait("the API server has made its certificate", self._take_authority, deadline)
        self._wait("the API server is ready", self._ready, deadline)
        kubeconfig = self.kubeconfig_of(flags.CONTROLLER_MANAGER)
        self._spawn("kube-controller-manager", flags.controller_manager(kubeconfig))
        self._wait("the default ServiceAccount exists", self._has_accounts, deadline)

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
                start_new_session=True,  # Ctrl-C reaches only the tests, which then stop the cluster
            )
        self._children.append(child)
        try:
            self._record = self._record.noted(name, Process.of(child.pid))
        except ProcessLookupError:
            what = f"{name} ended with exit code {child.wait()} before its process was recorded"
            raise self._failed(what, _ENDED, first=name) from None

    def _failed(self, what: str, hint: str, *, first: str = "") -> NodeError:
        """Return an error of ``what``, the hint, and all logs; the log of program ``first`` comes first."""
        logs = sorted(self.logs(), key=lambda log: log[0] != first)
        text = "\n".join(f"--- {name}\n{lines}" for name, lines in logs)
        return NodeError(f"the cluster {self.name}: {what}\n  hint: {hint}\n{text}")

    def _exit_code(self, process: Process) -> str:
        """Return the exit code as text, or nothing if another process started the program and knows it."""
        codes = [child.wait() for child in self._children if child.pid == process.pid]
        return f" with exit code {codes[0]}" if codes else ""

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
        # The API server writes the key last.
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
