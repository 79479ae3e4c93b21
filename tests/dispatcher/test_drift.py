"""A reconciling run repairs nodes whose labels say more than what is there."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from msgspec.structs import replace

from dispatcher.fake_api_server import FakeApiServer
from dispatcher.harness import CONFIG, HANDLERS, SERVING, dispatch, outcomes, serve
from kata_node.dispatcher import progress

RECONCILE = replace(CONFIG, skip_serving=True)


def test_only_a_node_that_is_proven_to_serve_gets_no_job(
    api: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name in ("served", "lost", "rebuilt", "old-kubelet", "never-recorded"):
        api.node(name, labels=SERVING)
    serve(api, "served", reports=(*HANDLERS, "kata-of-others"))
    serve(api, "lost", reports=("kata-clh",))
    serve(api, "rebuilt", machine_id="another")
    serve(api, "old-kubelet", reports=None)
    result = dispatch(api, RECONCILE)
    assert outcomes(result) == {
        "served": "unchanged",
        "lost": "done",
        "rebuilt": "done",
        "old-kubelet": "done",
        "never-recorded": "done",
    }
    notes = {task.target.name: task.note for task in result.tasks}
    assert notes["lost"] == "its Node does not report kata-qemu"
    assert notes["rebuilt"] == ("its machine has the id machine-rebuilt, and Kata was installed on another")
    assert notes["old-kubelet"] == "its kubelet reports no handlers"
    assert notes["never-recorded"] == "its Node has no record of the installation"
    assert "lost: its Node does not report kata-qemu" in caplog.text
    assert "its Node does not report kata-qemu" in progress.text(result)
    warned = {each.message.partition(":")[0] for each in caplog.records if each.levelname == "WARNING"}
    assert warned == {"lost", "rebuilt"}


def test_a_node_whose_kubelet_reports_no_handlers_is_looked_at_once_a_run(
    api: FakeApiServer,
) -> None:
    api.node("n")
    serve(api, "n", reports=None)
    for _ in range(2):
        api.made.clear()
        assert outcomes(dispatch(api, RECONCILE)) == {"n": "done"}
        assert api.made == ["n"]


@pytest.mark.parametrize(
    "record",
    [
        pytest.param("{", id="not JSON"),
        pytest.param("[]", id="no record"),
        pytest.param('{"outcome":"installed","handlers":[1]}', id="wrong types"),
        pytest.param("x" * 5000, id="too long"),
    ],
)
def test_a_record_that_cannot_be_read_proves_nothing(api: FakeApiServer, record: str) -> None:
    api.node("n")
    serve(api, "n")
    api.nodes["n"]["metadata"]["annotations"] = {"status.kata-deploy.katacontainers.io/default": record}
    assert outcomes(dispatch(api, RECONCILE)) == {"n": "done"}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"machine_id": "MACHINE-N"}, id="a machine id in the form of a UUID"),
        pytest.param({"handlers": ("kata-qemu",)}, id="more handlers than recorded"),
    ],
)
def test_a_difference_that_means_nothing_is_no_drift(api: FakeApiServer, change: dict[str, Any]) -> None:
    api.node("n")
    serve(api, "n", **change)
    assert outcomes(dispatch(api, RECONCILE)) == {"n": "unchanged"}


def test_an_install_does_not_ask_whether_a_node_serves(api: FakeApiServer) -> None:
    api.node("n")
    serve(api, "n")
    assert outcomes(dispatch(api, CONFIG)) == {"n": "done"}
