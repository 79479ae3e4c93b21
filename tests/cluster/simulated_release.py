"""A release of the chart in a control plane whose Nodes have no machines.

The pods of the dispatcher really run, as processes with the rights of their account. A pod that is deleted
gets SIGTERM. The node Jobs succeed at once, with the labels that their stages would leave on the Node. Jobs
without these stages leave the termination messages for the dispatcher, which labels the Nodes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from cluster.chart_objects import merge
from cluster.control_plane import ADMIN, Cluster
from cluster.fake_kubelet import Server
from cluster.helm_chart import CHART, load_manifests
from kata_node.plan.report import StageReport, termination_message
from node.cache import CHECKOUT, NodeError
from node.commands import CommandFailed, wait_until

SHARED_LABEL = "katacontainers.io/kata-runtime"
INSTALLATION_LABEL = "kata-deploy.katacontainers.io/default"
DISPATCHERS = "app.kubernetes.io/component=dispatcher"
HANDLERS = ("kata-qemu",)
"""What the stage `cri` of a simulated node Job reports."""
NODES = {"worker-1", "worker-2"}
"""The Nodes of the fixture `workers`."""

Document = dict[str, Any]


@dataclass
class SimulatedRelease:
    """A namespace with a release of the chart; as a context manager it runs the pods of the namespace."""

    cluster: Cluster
    namespace: str
    directory: Path
    values: Mapping[str, Any]
    history: list[tuple[str, str]] = field(default_factory=list)
    """The action and the Node of every node Job that ran."""
    logs: dict[str, str] = field(default_factory=dict)
    """Name of a dispatcher Job -> what its pods wrote."""
    held: set[str] = field(default_factory=set)
    """Nodes on which the pods of node Jobs do not start yet."""
    helm_path: Path | None = None
    """Another helm than that of the clusters."""
    answers: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)
    """Node -> the statuses with which the next pods of its Jobs end, before one succeeds."""

    def __post_init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run_pods, daemon=True)

    def __enter__(self) -> Self:
        self.kubectl("create", "namespace", self.namespace)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    # --- what a user does ---------------------------------------------------------------------------

    def kubectl(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        """Run kubectl in the namespace as the administrator, and return its output."""
        where = f"--namespace={self.namespace}"
        return self.cluster.kubectl(where, *arguments, text=text, check=check).stdout

    def helm(self, command: str, *options: str, check: bool = True, **values: Any) -> str:
        """Run a command of helm for the release ``kata``, and return its output."""
        chart = [] if command in ("uninstall", "status") else [str(CHART), "--values=-"]
        text = json.dumps(merge(self.values, values)) if chart else None
        where = f"--namespace={self.namespace}"
        arguments = (command, "kata", *chart, where, *options)
        try:
            done = self.cluster.helm(*arguments, text=text, check=check, path=self.helm_path)
        except CommandFailed as error:
            error.add_note(json.dumps(self.logs, indent=2))
            raise
        return done.stdout if check else done.stdout + done.stderr

    def render(self, **values: Any) -> str:
        """Return the manifests that tools without helm's hooks apply."""
        return self.helm("template", f"--kube-version={self.cluster.kubernetes}", **values)

    def apply(self, manifests: str, *options: str) -> None:
        """Apply manifests as ordinary objects, and wait until all dispatchers have ended."""
        self.cluster.kubectl("apply", *options, "--filename=-", text=manifests)
        try:
            wait_until(self._is_settled, "all dispatchers have ended")
        except NodeError as error:
            error.add_note(self.kubectl("get", "jobs,pods", "--output=wide"))
            error.add_note(json.dumps(self.logs, indent=2))
            raise

    def delete(self, manifests: str) -> None:
        """Delete the objects of manifests without hooks."""
        self.cluster.kubectl("delete", "--ignore-not-found", "--filename=-", text=manifests)

    # --- what there is ------------------------------------------------------------------------------

    def items(self, kind: str, *which: str) -> list[Document]:
        """Return the objects of a kind in the namespace."""
        return list(json.loads(self.kubectl("get", kind, *which, "--output=json"))["items"])

    def uids(self, *kinds: str) -> dict[str, str]:
        """Return uid -> name of all objects of these kinds, without node Jobs."""
        found = [each["metadata"] for kind in kinds for each in self.items(kind)]
        node = "job.katacontainers.io/node"
        return {each["uid"]: each["name"] for each in found if node not in each.get("labels", {})}

    @property
    def state(self) -> Mapping[str, str]:
        """The data of the state of the release."""
        return dict(
            json.loads(self.kubectl("get", "configmap", "kata-deploy-state.kata", "--output=json"))["data"]
        )

    @property
    def labeled(self) -> set[str]:
        """The Nodes with the installation label."""
        read = self.cluster.kubectl("get", "nodes", f"--selector={INSTALLATION_LABEL}", "--output=name")
        return {name.removeprefix("node/") for name in read.stdout.split()}

    def forget(self) -> None:
        """Forget which node Jobs ran."""
        self.history.clear()

    # --- the pods -----------------------------------------------------------------------------------

    def _is_settled(self) -> bool:
        finished = {"Complete", "Failed"}
        jobs = [
            {each["type"] for each in job.get("status", {}).get("conditions", []) if each["status"] == "True"}
            for job in self.items("jobs")
        ]
        return all(conditions & finished for conditions in jobs)

    def _run_pods(self) -> None:
        server = Server(self.cluster.url, str(self.cluster.ca), self.cluster.token(ADMIN))
        while not self._ended.wait(0.2):
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                self._run_other_pods(server)
                for pod in self._dispatcher_pods(server):
                    self._run_pod(server, pod)
                    break  # what the others are may have changed meanwhile
        server.close()

    def _run_pod(self, server: Server, pod: Document) -> None:
        metadata = pod["metadata"]
        path = f"/api/v1/namespaces/{self.namespace}/pods/{metadata['name']}"
        if "deletionTimestamp" in metadata:
            server.call("DELETE", f"{path}?gracePeriodSeconds=0")
            return
        if metadata["labels"].get("app.kubernetes.io/component") == "check":
            return  # an apply with the hook of `helm test`
        if "batch.kubernetes.io/job-name" not in metadata["labels"]:
            self._bind_daemon(server, pod, path)
            return
        run = self._dispatcher if _is_dispatcher(pod) else self._node_job
        if pod["status"]["phase"] != "Pending":
            return
        if (status := run(server, pod, path)) is not None:
            self._report(server, path, status)

    def _report(self, server: Server, path: str, status: Mapping[str, Any]) -> None:
        """Patch the status of a pod until the API server takes it, as a kubelet does."""
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                code, answer = server.call("PATCH", f"{path}/status", {"status": status})
                if code in (200, 404):
                    return
                self.logs[path] = json.dumps(answer)
            if self._ended.wait(0.2):
                return

    def _bind_daemon(self, server: Server, pod: Document, path: str) -> None:
        """Bind the pod of a DaemonSet to its Node, as a scheduler does; its container never starts."""
        if pod["spec"].get("nodeName"):
            return
        affinity = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        [node] = affinity["nodeSelectorTerms"][0]["matchFields"][0]["values"]
        self._bind(server, pod, path, node)

    def _bind(self, server: Server, pod: Document, path: str, node: str) -> None:
        target = {"apiVersion": "v1", "kind": "Node", "name": node}
        name = pod["metadata"]["name"]
        body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}, "target": target}
        server.call("POST", f"{path}/binding", body)

    def _node_job(self, server: Server, pod: Document, path: str) -> Mapping[str, Any] | None:
        node = pod["spec"].get("nodeName")
        if not node or node in self.held:
            return None
        if self.answers.get(node):
            return self.answers[node].pop(0)
        stages = [each["name"] for each in pod["spec"]["containers"]]
        actions = {"label": "install", "cri": "install", "check-pods": "check"}
        action = actions.get(stages[-1], "cleanup")
        if stages[-1] in ("cri", "remove-artifacts", "check-pods"):
            self.history.append((action, node))
            return _succeeded(pod)
        label = "true" if action == "install" else None
        labels = {SHARED_LABEL: label, INSTALLATION_LABEL: label}
        code, _ = server.call("PATCH", f"/api/v1/nodes/{node}", {"metadata": {"labels": labels}})
        self.history.append((action, node))
        return {"phase": "Succeeded" if code == 200 else "Failed"}

    def _dispatcher(self, server: Server, pod: Document, path: str) -> Mapping[str, Any] | None:
        metadata, spec = pod["metadata"], pod["spec"]
        job = metadata["labels"]["batch.kubernetes.io/job-name"]
        [container] = spec["containers"]
        variables = {each["name"]: each.get("value", "") for each in container["env"]}
        file = self.directory / f"{metadata['uid']}.yaml"
        for volume in (each for each in spec.get("volumes", []) if each["name"] == "config"):
            name = volume["configMap"]["name"]
            code, config = server.call("GET", f"/api/v1/namespaces/{self.namespace}/configmaps/{name}")
            if code != 200:
                return None  # a kubelet tries again to mount it
            file.write_text(config["data"][variables["KATA_DISPATCHER_CONFIG"].rpartition("/")[2]])
        account = f"system:serviceaccount:{self.namespace}:{spec['serviceAccountName']}"
        own = {
            "KATA_DISPATCHER_CONFIG": str(file),
            "KATA_DISPATCHER_OWNER_NAME": job,
            "KATA_DISPATCHER_OWNER_UID": metadata["labels"]["batch.kubernetes.io/controller-uid"],
            "PYTHONPATH": str(CHECKOUT),
        }
        environment = {**self.cluster.environment(account), **variables, **own}
        # A pod on a Node is deleted when its containers have ended, and not before.
        self._bind(server, pod, path, next(iter(sorted(self._nodes(server)))))
        server.call("PATCH", f"{path}/status", {"status": {"phase": "Running"}})

        def meanwhile(process: subprocess.Popen[str]) -> None:
            self._run_other_pods(server)
            if "deletionTimestamp" in server.call("GET", path)[1]["metadata"]:
                process.terminate()

        command = [sys.executable, "-m", "kata_node.dispatcher", *container.get("args", [])]
        done = _run_while(command, environment, meanwhile)
        self.logs[job] = self.logs.get(job, "") + done.stdout + done.stderr
        ended = {"terminated": {"exitCode": done.returncode}}
        status = {"name": container["name"], "state": ended, "image": "", "imageID": "", "ready": False}
        return {
            "phase": "Failed" if done.returncode else "Succeeded",
            "containerStatuses": [{**status, "restartCount": 0}],
        }

    def _nodes(self, server: Server) -> list[str]:
        return [node["metadata"]["name"] for node in server.call("GET", "/api/v1/nodes")[1]["items"]]

    def _dispatcher_pods(self, server: Server) -> list[Document]:
        found = server.call("GET", f"/api/v1/namespaces/{self.namespace}/pods")[1]["items"]
        return [pod for pod in found if _is_dispatcher(pod) and pod["status"]["phase"] == "Pending"]

    def _run_other_pods(self, server: Server) -> None:
        """Run the pods of node Jobs and DaemonSets, and remove the deleted pods that do not run."""
        for pod in server.call("GET", f"/api/v1/namespaces/{self.namespace}/pods")[1]["items"]:
            if not _is_dispatcher(pod) or pod["status"]["phase"] in ("Succeeded", "Failed"):
                self._run_pod(server, pod)


def _succeeded(pod: Document) -> Document:
    """Return the status of a pod whose stages have succeeded, with their termination messages."""
    statuses: dict[str, list[Document]] = {}
    for kind in ("initContainers", "containers"):
        for container in pod["spec"].get(kind, ()):
            name = container["name"]
            handlers = HANDLERS if name == "cri" else ()
            report = StageReport(name, "done", f"{name} was done", kata_version="4.1.0", handlers=handlers)
            ended = {"exitCode": 0, "message": termination_message(report).decode()}
            status = {"name": name, "state": {"terminated": ended}, "image": "", "imageID": ""}
            key = f"{kind.removesuffix('s')}Statuses"
            statuses.setdefault(key, []).append({**status, "ready": False, "restartCount": 0})
    return {"phase": "Succeeded", **statuses}


def _is_dispatcher(pod: Document) -> bool:
    """Return whether a pod runs a command of the dispatcher's image."""
    return pod["spec"]["containers"][0]["name"] in ("dispatcher", "stop")


def _run_while(
    command: list[str],
    environment: Mapping[str, str],
    meanwhile: Callable[[subprocess.Popen[str]], None],
) -> subprocess.CompletedProcess[str]:
    """Run a command, and call ``meanwhile`` again and again until it ends."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while True:
        try:
            out, error = process.communicate(timeout=0.2)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                meanwhile(process)
        else:
            return subprocess.CompletedProcess(command, process.returncode, out, error)


def with_annotation(manifests: str, key: str, value: str) -> tuple[str, str]:
    """Return the manifests without and with an annotation."""
    parts: tuple[list[Document], list[Document]] = ([], [])
    for each in load_manifests(manifests):
        parts[(each["metadata"].get("annotations") or {}).get(key) == value].append(each)
    without, having = ("---\n".join(yaml.safe_dump(each) for each in part) for part in parts)
    return without, having
