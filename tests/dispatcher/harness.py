"""Run the dispatcher against the fake API server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from dispatcher.fake_api_server import FakeApiServer
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.progress import Result
from kata_node.dispatcher.run import run
from kata_node.dispatcher.template import Owner, Template, Templates
from kata_node.kube import node_status

LABELS = {"app.kubernetes.io/instance": "mine"}
INSTALLATION_LABEL = "kata-deploy.katacontainers.io/default"
SERVING = {INSTALLATION_LABEL: "true", "katacontainers.io/kata-runtime": "true"}
"""The labels of a node on which the installation serves."""
HANDLERS = ("kata-clh", "kata-qemu")


def template(image: str = "kata", **spec: Any) -> Template:
    pod = {"restartPolicy": "Never", "containers": [{"name": "label", "image": image}], **spec}
    return Template({"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": {"spec": pod}}})


def for_all_runtimes(template: Template) -> Templates:
    return Templates(template)


CONFIG = Config(
    action="install",
    namespace="kata",
    name_prefix="install",
    labels=LABELS,
    templates=for_all_runtimes(template()),
    generation="1",
    installation_label=INSTALLATION_LABEL,
    events=True,
)
CLEANUP = replace(
    CONFIG, action="cleanup", name_prefix="cleanup", templates=for_all_runtimes(template("cleanup"))
)


def dispatch(api: FakeApiServer, config: Config = CONFIG, *, owner: Owner | None = None) -> Result:
    with api.client() as connection:
        return run(config, connection, owner=owner)


def serve(
    api: FakeApiServer,
    name: str,
    *,
    reports: Sequence[str] | None = HANDLERS,
    machine_id: str = "",
    handlers: tuple[str, ...] = HANDLERS,
) -> None:
    """Make a Node one that serves: with labels, the record of the install, and what its kubelet reports.

    ``machine_id`` is that of the record, by default that of the Node. ``reports`` without handlers is what
    an old kubelet reports.
    """
    node = api.nodes[name]
    status = node_status.NodeStatus(
        "installed", machine_id=machine_id or f"machine-{name}", handlers=handlers
    )
    node["metadata"].setdefault("labels", {}).update(SERVING)
    node["metadata"]["annotations"] = {node_status.annotation("default"): node_status.encode(status)}
    reported = None if reports is None else [{"name": each} for each in ("", "runc", *reports)]
    node["status"]["runtimeHandlers"] = reported


def outcomes(result: Result) -> dict[str, str]:
    return {task.target.name: str(task.outcome) for task in result.tasks}


def workers(api: FakeApiServer, count: int) -> list[str]:
    names = [f"n{number}" for number in range(count)]
    for name in names:
        api.node(name)
    return names


def leave_unfinished_run(api: FakeApiServer, config: Config = CONFIG, *, state: str = "") -> None:
    """Run the dispatcher until it has created its Jobs, then interrupt it.

    The Jobs keep running, or end with the condition ``state`` if it is given.
    """
    before = api.on_create
    with api.client() as connection:
        api.on_create = lambda job: api.time.after(0.5, lambda: setattr(connection.stop, "requested", True))
        assert run(config, connection).outcome == "interrupted"
    api.on_create = before
    for name in list(api.jobs) if state else ():
        api.finish(name, state)
    api.made.clear()
    api.requests.clear()
