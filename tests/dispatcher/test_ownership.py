"""Nodes on which the release has another installation, or another release has this one."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from dispatcher.fake_api_server import FakeApiServer
from dispatcher.harness import (
    CLEANUP,
    CONFIG,
    INSTALLATION_LABEL,
    LABELS,
    dispatch,
    outcomes,
    template,
    workers,
)
from kata_node.dispatcher.config import Config, OtherJobsConfig
from kata_node.dispatcher.config_parts import LabelConfig
from kata_node.dispatcher.template import Templates
from kata_node.errors import SettingsError
from kata_node.kube import node_status

MINE = f"{CONFIG.namespace}/{LABELS['app.kubernetes.io/instance']}"
OTHER = "tenants/kata"


def install(api: FakeApiServer, node: str, installation: str, release: str) -> None:
    """Give a Node the label and the record of an installation."""
    metadata = api.nodes[node]["metadata"]
    metadata["labels"]["kata-deploy.katacontainers.io/" + installation] = "true"
    record = node_status.encode(node_status.NodeStatus("installed", release=release))
    metadata.setdefault("annotations", {})[node_status.annotation(installation)] = record


@pytest.mark.parametrize(
    "config", [CONFIG, replace(CONFIG, wait_for_nodes=60), replace(CONFIG, skip_serving=True)]
)
def test_another_suffix_of_the_same_release_is_refused_before_the_first_job(
    api: FakeApiServer, config: Config
) -> None:
    workers(api, 3)
    install(api, "n1", "blue", MINE)
    with pytest.raises(SettingsError, match="has the installation blue on the Node n1") as caught:
        dispatch(api, config)
    assert 'set it to "blue"' in caught.value.hint
    assert (api.made, api.jobs) == ([], {})


def test_nodes_of_another_release_with_the_same_suffix_are_taken_over(api: FakeApiServer) -> None:
    """The other release may be gone: nothing else could revert these nodes."""
    workers(api, 2)
    install(api, "n0", "default", OTHER)
    assert set(outcomes(dispatch(api)).values()) == {"done"}


def test_a_compromised_node_keeps_the_release_only_from_itself(api: FakeApiServer) -> None:
    workers(api, 3)
    for node in ("n0", "n1", "n2"):
        install(api, node, "default", MINE)
    install(api, "n1", "blue", MINE)
    removed = OtherJobsConfig("removed", Templates(template("cleanup")))
    result = dispatch(api, replace(CONFIG, removed=removed))
    assert sorted(api.made) == ["n0", "n2"]
    assert outcomes(result) == {"n0": "done", "n1": "failed", "n2": "done"}
    [failed] = [task for task in result.tasks if task.problem]
    assert "the Node n1" in str(failed.problem)


def test_installations_beside_this_one_are_no_hindrance(api: FakeApiServer) -> None:
    workers(api, 3)
    install(api, "n0", "blue", OTHER)
    install(api, "n1", "blue", "")
    install(api, "n2", "default", MINE)
    assert set(outcomes(dispatch(api)).values()) == {"done"}


def test_a_cleanup_leaves_the_nodes_of_another_release(api: FakeApiServer) -> None:
    workers(api, 2)
    install(api, "n0", "default", OTHER)
    install(api, "n1", "default", MINE)
    result = dispatch(api, CLEANUP)
    assert outcomes(result) == {"n0": "not ours", "n1": "done"}
    assert [task.note for task in result.tasks if task.target.name == "n0"] == [
        f"its installation belongs to the release {OTHER}"
    ]
    assert (api.made, result.outcome) == (["n1"], "ok")


def test_a_node_of_another_release_is_not_cleaned_as_one_that_is_no_longer_selected(
    api: FakeApiServer,
) -> None:
    for name, labels in (("n0", {"pool": "mine"}), ("n1", {}), ("n2", {})):
        api.node(name, labels=labels)
    install(api, "n1", "default", OTHER)
    install(api, "n2", "default", MINE)
    removed = OtherJobsConfig("removed", Templates(template("cleanup")))
    dispatch(api, replace(CONFIG, selector="pool=mine", removed=removed))
    assert INSTALLATION_LABEL in api.nodes["n1"]["metadata"]["labels"]
    assert api.made == ["n0", "n2"]


@pytest.mark.parametrize(
    ("config", "installation", "release"), [(CONFIG, "blue", MINE), (CLEANUP, "default", OTHER)]
)
def test_a_dispatcher_that_labels_sees_who_took_a_node_after_the_selection(
    api: FakeApiServer, config: Config, installation: str, release: str
) -> None:
    workers(api, 2)

    def take(job: dict[str, Any]) -> None:
        if len(api.made) == 1:
            other = ({"n0", "n1"} - set(api.made)).pop()
            install(api, other, installation, release)
        api.time.after(1, lambda: api.finish(job["metadata"]["name"]))

    api.on_create = take
    how = LabelConfig("0123456789ab", 60, ())
    result = dispatch(api, replace(config, label_nodes=how, parallelism=1))
    assert "failed" in outcomes(result).values()
    assert len(api.made) == 1
    taken = ({"n0", "n1"} - set(api.made)).pop()
    found = node_status.read(api.nodes[taken]["metadata"]["annotations"], installation)
    assert found is not None
    assert (found.release, found.outcome) == (release, "installed")
