"""Run the dispatcher against the fake API server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dispatcher.fake_api_server import FakeApiServer
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.progress import Result
from kata_node.dispatcher.run import run
from kata_node.dispatcher.template import Owner, Template, Templates

LABELS = {"app.kubernetes.io/instance": "mine"}
INSTALLATION_LABEL = "kata-deploy.katacontainers.io/default"
SERVING = {INSTALLATION_LABEL: "true", "katacontainers.io/kata-runtime": "true"}
"""The labels of a node on which the installation serves."""


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
