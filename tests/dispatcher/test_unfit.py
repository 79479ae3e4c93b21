"""Nodes that cannot run Kata because of what they are: they are told, and by default do not fail the run."""

from __future__ import annotations

import json

import pytest
from msgspec.structs import replace

from dispatcher.fake_api_server import FakeApiServer
from dispatcher.harness import CONFIG, dispatch, outcomes, serve, workers
from kata_node.dispatcher.config import Config, IntOrPercent
from kata_node.dispatcher.progress import document, text

REASON = "kvm: /dev/kvm does not exist, and these shims need it: qemu"
MESSAGE = {
    "stage": "host-check",
    "outcome": "failed",
    "error": {"what": REASON, "where": "", "hint": "load kvm_intel", "exit_code": 3, "unfit": True},
}


@pytest.fixture
def mixed(api: FakeApiServer) -> FakeApiServer:
    """A cluster in which the node n1 has no KVM."""
    workers(api, 3)

    def end(job: dict[str, dict[str, str]]) -> None:
        name = job["metadata"]["name"]
        if name.endswith("-n1"):
            api.fail(name, stage="claim", code=3, message=json.dumps(MESSAGE))
        else:
            api.finish(name)

    api.on_create = lambda job: api.time.after(1, lambda: end(job))
    return api


def test_an_unfit_node_is_told_with_its_reason_and_does_not_fail_the_run(mixed: FakeApiServer) -> None:
    result = dispatch(mixed)
    assert outcomes(result) == {"n0": "done", "n1": "unfit", "n2": "done"}
    assert (result.outcome, result.exit_code) == ("ok", 0)
    shown = text(result)
    assert f'unfit    1 s   host-check: the node says "{REASON}" (exit code 3)' in shown
    assert '  the node\'s hint: "load kvm_intel"' in shown
    assert "1 unfit" in shown.splitlines()[-1]
    written = document(result)
    assert written["counts"] == {"done": 2, "unfit": 1}
    assert next(node for node in written["nodes"] if node["node"] == "n1")["error"]["unfit"] is True


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(replace(CONFIG, fail_unfit_nodes=True), id="unfitNodes: fail"),
        pytest.param(replace(CONFIG, nodes=("n0", "n1", "n2")), id="named nodes"),
    ],
)
def test_an_unfit_node_fails_the_run_if_that_is_configured_or_it_is_named(
    mixed: FakeApiServer, config: Config
) -> None:
    result = dispatch(mixed, config)
    assert outcomes(result)["n1"] == "unfit"
    assert (result.outcome, result.exit_code) == ("failed", 1)
    assert result.reason == "1 of 3 nodes did not succeed"


@pytest.mark.parametrize("fails", [False, True])
def test_unfit_nodes_count_for_the_limit_of_failures_only_if_they_fail(
    mixed: FakeApiServer, *, fails: bool
) -> None:
    config = replace(
        CONFIG, fail_unfit_nodes=fails, parallelism=1, max_failures=IntOrPercent(0), wave_size=IntOrPercent(1)
    )
    result = dispatch(mixed, config)
    assert outcomes(result) == {"n0": "done", "n1": "unfit", "n2": "not started" if fails else "done"}


def test_another_failure_with_exit_code_3_is_a_failure(mixed: FakeApiServer) -> None:
    message = json.dumps({"stage": "host-check", "error": {"what": "foreign files", "exit_code": 3}})
    mixed.on_create = lambda job: mixed.time.after(
        1, lambda: mixed.fail(job["metadata"]["name"], stage="host-check", code=3, message=message)
    )
    result = dispatch(mixed)
    assert set(outcomes(result).values()) == {"failed"}
    assert result.exit_code == 1


def unfit(api: FakeApiServer, *names: str) -> None:
    """Make the Jobs of these nodes report that their node is unfit, and all others succeed."""

    def end(job: dict[str, dict[str, str]]) -> None:
        name = job["metadata"]["name"]
        if name.endswith(tuple(f"-{each}" for each in names)):
            api.fail(name, stage="claim", code=3, message=json.dumps(MESSAGE))
        else:
            api.finish(name)

    api.on_create = lambda job: api.time.after(1, lambda: end(job))


def test_an_install_that_leaves_no_node_with_kata_fails(api: FakeApiServer) -> None:
    workers(api, 3)
    unfit(api, "n0", "n1", "n2")
    result = dispatch(api)
    assert set(outcomes(result).values()) == {"unfit"}
    assert (result.outcome, result.exit_code) == ("failed", 1)
    assert result.reason == "no node has Kata, 3 of 3 cannot run it"


def test_a_skipped_node_is_no_node_with_kata(api: FakeApiServer) -> None:
    workers(api, 2)
    api.nodes["n1"]["spec"]["taints"] = [{"key": "example.com/gpu", "effect": "NoSchedule"}]
    unfit(api, "n0")
    result = dispatch(api)
    assert outcomes(result) == {"n0": "unfit", "n1": "skipped"}
    assert result.reason == "no node has Kata, 1 of 2 cannot run it"


def test_a_node_that_serves_already_is_enough_for_a_run_that_skips_such_nodes(api: FakeApiServer) -> None:
    workers(api, 2)
    serve(api, "n1")
    unfit(api, "n0")
    result = dispatch(api, replace(CONFIG, skip_serving=True))
    assert outcomes(result) == {"n0": "unfit", "n1": "unchanged"}
    assert (result.outcome, result.exit_code) == ("ok", 0)
