"""Jobs that run on joined nodes: create them, wait for them, and describe everything when one fails."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from typing import Any, Self
from urllib.parse import urlencode

from cluster.control_plane import ADMIN, Cluster
from cluster.joined_node import JoinedNode
from node.cache import NodeError
from node.commands import WAIT_TIMEOUT
from node.images import BUSYBOX

Manifest = Mapping[str, Any]

_POLL = 0.2  # seconds between two checks of a Job


def container(name: str, *command: str) -> dict[str, Any]:
    """Return a busybox container for a pod spec."""
    return {"name": name, "image": BUSYBOX, "imagePullPolicy": "Never", "command": [*command]}


def job(name: str, spec: Manifest, **more: Any) -> dict[str, Any]:
    """Return a Job with one pod of this ``spec`` and no retry; ``more`` is added to the Job's spec."""
    pod = {"metadata": {"labels": {"app": name}}, "spec": {"restartPolicy": "Never", **spec}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"backoffLimit": 0, "template": pod, **more},
    }


class Job:
    """A Job of a cluster; ``nodes`` are the nodes that its pods may run on."""

    def __init__(
        self, cluster: Cluster, name: str, *, nodes: Sequence[JoinedNode], namespace: str = "default"
    ) -> None:
        self.name = name
        self.namespace = namespace
        self._cluster = cluster
        self._nodes = {joined.node.name: joined for joined in nodes}

    @classmethod
    def create(cls, joined: JoinedNode, manifest: Manifest, *, namespace: str = "default") -> Self:
        """Create a Job that runs on the node ``joined``."""
        template = manifest["spec"]["template"]
        pinned = {**template, "spec": {"nodeName": joined.node.name, **template["spec"]}}
        content = {**manifest, "spec": {**manifest["spec"], "template": pinned}}
        joined.cluster.kubectl("create", "--filename=-", f"--namespace={namespace}", text=json.dumps(content))
        return cls(joined.cluster, manifest["metadata"]["name"], nodes=[joined], namespace=namespace)

    def wait(self, timeout: float = WAIT_TIMEOUT) -> Self:
        """Wait until the Job is complete; raises :class:`NodeError` with :meth:`describe` if it fails."""
        if (ended := self.ended(timeout)) != "Complete":
            raise NodeError(f"the Job {self.name} ended as {ended}:\n{self.describe()}")
        return self

    def running(self, timeout: float = WAIT_TIMEOUT) -> Self:
        """Wait until its pod is Ready; raises :class:`NodeError` with :meth:`describe` on timeout."""
        how = (
            "--for=jsonpath={.status.ready}=1",
            f"--timeout={timeout:.0f}s",
            f"--namespace={self.namespace}",
        )
        if self._cluster.kubectl("wait", f"job/{self.name}", *how, check=False).returncode:
            raise NodeError(f"the Job {self.name} does not run after {timeout:.0f} s:\n{self.describe()}")
        return self

    def ended(self, timeout: float = WAIT_TIMEOUT) -> str:
        """Wait for the end of the Job, and return ``Complete`` or ``Failed``.

        Raises :class:`NodeError` with :meth:`describe` after ``timeout`` seconds, and with the logs as soon
        as a program of the cluster ends.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, HTTPException):  # the API server may be down for a while
                for condition in self.read().get("status", {}).get("conditions", ()):
                    if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
                        return str(condition["type"])
            self._cluster.check_programs(before=f"the Job {self.name} has ended")
            time.sleep(_POLL)
        raise NodeError(f"the Job {self.name} has not ended after {timeout:.0f} s:\n{self.describe()}")

    def read(self) -> Any:
        """Return the Job object."""
        return self._get("/apis/batch/v1", f"jobs/{self.name}")

    def pods(self) -> list[Any]:
        """Return its pods, oldest first."""
        found = self._get("/api/v1", "pods", labelSelector=f"job-name={self.name}")["items"]
        return sorted(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]))

    def states(self) -> dict[str, Any]:
        """Return container name -> terminated state (exitCode, reason, message) of its newest pod."""
        pods = self.pods()
        return {name: state.get("terminated", {}) for name, state in _states(pods[-1])} if pods else {}

    def logs(self) -> dict[str, str]:
        """Return container name -> log of its pods."""
        found: dict[str, str] = {}
        for pod in self.pods():
            joined = self._nodes[pod["spec"]["nodeName"]]
            for name, text in joined.logs(self.namespace, pod["metadata"]["name"]).items():
                found[name] = found.get(name, "") + text
        return found

    def describe(self) -> str:
        """Return its pods, container states, events and logs as text."""
        lines = []
        for pod in self.pods():
            name, about = pod["metadata"]["name"], pod["status"]
            lines.append(f"--- pod {name}: {about.get('phase')} {about.get('message', '')}".rstrip())
            lines += [f"{each}: {json.dumps(state)}" for each, state in _states(pod)]
            events = self._get("/api/v1", "events", fieldSelector=f"involvedObject.name={name}")["items"]
            lines += [f"event {event['reason']}: {event['message']}" for event in events]
        lines += [f"--- log of {name}\n{text.rstrip()}" for name, text in self.logs().items()]
        return "\n".join(lines) or "it has no pod"

    def _get(self, api: str, what: str, **selector: str) -> Any:
        # Without kubectl, which takes ten times as long, because this is called often.
        place = f"{api}/namespaces/{self.namespace}/{what}?{urlencode(selector)}"
        status, body = self._cluster.get(place, token=self._cluster.token(ADMIN))
        if status != 200:
            raise NodeError(f"the API server answers {place} with status {status}: {body}")
        return json.loads(body)


def _states(pod: Any) -> list[tuple[str, Any]]:
    found = [pod["status"].get(kind, ()) for kind in ("initContainerStatuses", "containerStatuses")]
    return [(each["name"], each["state"]) for kind in found for each in kind]
