"""What a rollout leaves in the cluster: the document in the state of the release, the records on Nodes."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from dispatcher.fake_api_server import FakeApiServer, FakeClock, Fault
from dispatcher.harness import CONFIG, INSTALLATION_LABEL, dispatch, workers
from kata_node.dispatcher.failures import NodeProblem
from kata_node.dispatcher.last_rollout import SIZE_LIMITS, encode, end_of
from kata_node.dispatcher.progress import build_result
from kata_node.dispatcher.rollout import Outcome, Task
from kata_node.dispatcher.run import run
from kata_node.dispatcher.template import Owner, Target
from kata_node.kube import node_status
from kata_node.kube.node_status import NodeStatus
from kata_node.kube.release_state import RECONCILE_KEY, ROLLOUT_KEY

STATE = "kata-deploy-state.mine"
WITH_STATE = replace(CONFIG, state_config_map=STATE)
CLAIMED = {INSTALLATION_LABEL: "false"}


@pytest.fixture
def api() -> Iterator[FakeApiServer]:
    with FakeApiServer(FakeClock()) as api:
        api.config_maps[STATE] = {"metadata": {}, "data": {"desiredState": "present"}}
        yield api


def recorded(api: FakeApiServer, key: str = ROLLOUT_KEY) -> dict[str, Any]:
    return dict(json.loads(api.config_maps[STATE]["data"][key]))


def fails_on(api: FakeApiServer, *nodes: str, code: int = 1) -> None:
    def end(job: Any) -> None:
        name = job["metadata"]["name"]
        if job["spec"]["template"]["spec"]["nodeName"] in nodes:
            api.fail(name, code=code, message="the disk is full")
        else:
            api.finish(name)

    api.on_create = end


def test_the_rollout_is_recorded_with_every_node_that_is_not_as_wanted(api: FakeApiServer) -> None:
    workers(api, 3)
    fails_on(api, "n1")
    result = dispatch(api, WITH_STATE, owner=Owner("install-dispatcher", "uid"))
    assert result.exit_code == 1
    found = recorded(api)
    assert {key: found[key] for key in ("action", "job", "generation", "outcome", "counts", "omitted")} == {
        "action": "install",
        "job": "install-dispatcher",
        "generation": "1",
        "outcome": "failed",
        "counts": {"done": 2, "failed": 1},
        "omitted": 0,
    }
    assert found["reason"] == "1 of 3 nodes did not succeed"
    assert found["begun"] <= found["ended"]
    assert list(found["nodes"]) == ["failed"]
    assert found["nodes"]["failed"]["n1"].startswith('cri: the node says "the disk is full"')


def test_a_run_that_looks_for_nodes_without_kata_keeps_the_record_of_the_rollout(api: FakeApiServer) -> None:
    workers(api, 1)
    fails_on(api, "n0")
    dispatch(api, WITH_STATE)
    before = recorded(api)
    api.on_create = None
    dispatch(api, replace(WITH_STATE, skip_serving=True))
    assert recorded(api) == before
    assert recorded(api, RECONCILE_KEY)["outcome"] == "ok"


def test_nodes_that_roll_back_and_stop_the_rollout_are_recorded(api: FakeApiServer) -> None:
    workers(api, 8)
    fails_on(api, *(f"n{each}" for each in range(8)), code=4)
    dispatch(api, replace(WITH_STATE, canary=None, parallelism=1))
    found = recorded(api)
    assert (found["outcome"], found["counts"]) == ("stopped", {"failed": 1, "not started": 7})
    assert found["reason"] == "the canary node n0 rolled back"
    assert len(found["nodes"]["not started"]) == 7


def test_a_rollout_that_is_asked_to_stop_is_recorded(api: FakeApiServer) -> None:
    workers(api, 3)
    with api.client() as connection:
        api.on_create = lambda job: connection.stop.request()
        result = run(replace(WITH_STATE, parallelism=1), connection)
    assert result.outcome == "interrupted"
    found = recorded(api)
    assert (found["outcome"], "ended" in found) == ("interrupted", True)
    assert "the dispatcher was asked to stop" in found["reason"]


def test_an_error_before_the_first_job_is_recorded(api: FakeApiServer) -> None:
    api.faults = [Fault("GET", "/nodes", 422, "no such field", times=9)]
    with pytest.raises(Exception, match="no such field"):
        dispatch(api, WITH_STATE)
    assert recorded(api)["outcome"] == "interrupted"
    assert "no such field" in recorded(api)["reason"]


def test_a_dispatcher_that_is_lost_leaves_the_begin(api: FakeApiServer) -> None:
    workers(api, 1)
    seen: list[dict[str, Any]] = []

    def look(job: Any) -> None:
        seen.append(recorded(api))
        api.finish(job["metadata"]["name"])

    api.on_create = look
    dispatch(api, WITH_STATE)
    assert "begun" in seen[0]
    assert "ended" not in seen[0]


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_record_that_cannot_be_written_is_a_line_in_the_log_and_no_more(
    api: FakeApiServer, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    workers(api, 2)
    api.faults = [Fault("PATCH", STATE, status, times=99)]
    result = dispatch(api, WITH_STATE)
    assert result.exit_code == 0
    assert ROLLOUT_KEY not in api.config_maps[STATE]["data"]
    assert "the rollout could not be recorded in the state of the release" in caplog.text


def test_a_release_without_the_object_works_as_before(api: FakeApiServer) -> None:
    api.config_maps.clear()
    workers(api, 2)
    assert dispatch(api, WITH_STATE).exit_code == 0
    assert not any(each.startswith("PATCH") for each in api.requests)


# --- the size ---------------------------------------------------------------------------------------


def failing(count: int, *, name: str, reason: str) -> list[Task]:
    return [
        Task(
            *(Target(name.format(number)), "install", "job"),
            outcome=Outcome.FAILED,
            problem=NodeProblem(reason.format(number), stage="cri", exit_code=4),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("key", SIZE_LIMITS)
@pytest.mark.parametrize(
    ("name", "reason", "keeps_all"),
    [
        pytest.param("node-{:04}.example.org", "x{} " + "\u00e9" * 900, {ROLLOUT_KEY}, id="long reasons"),
        pytest.param("n" * 58 + "{:05}", '"\\{} ' + '\\"' * 300, {ROLLOUT_KEY}, id="reasons to escape"),
        pytest.param(("n" * 60 + ".") * 4 + "{:05}", "why {}", set(), id="the longest names"),
    ],
)
def test_the_record_of_5000_failing_nodes_is_bounded(
    key: str, name: str, reason: str, keeps_all: set[str]
) -> None:
    tasks = failing(5000, name=name, reason=reason)
    result = build_result("install", tasks, stopped="", interrupted="", seconds=1, requests={})
    text = encode({"action": "install", **end_of(result)}, tasks, SIZE_LIMITS[key])
    assert len(text.encode()) <= SIZE_LIMITS[key]
    found = json.loads(text)
    assert found["counts"] == {"failed": 5000}
    kept = found["nodes"]["failed"]
    assert len(kept) + found["omitted"] == 5000
    assert (found["omitted"] == 0) is (key in keeps_all)
    assert len(text) > SIZE_LIMITS[key] * 0.6, "the room is used"
    assert kept.keys() <= {task.target.name for task in tasks}


def test_both_records_together_are_within_512_kib() -> None:
    assert sum(SIZE_LIMITS.values()) <= 512 << 10


def test_a_short_record_keeps_the_whole_reasons() -> None:
    tasks = failing(20, name="n{}", reason="x" * 500)
    found = json.loads(encode({}, tasks, SIZE_LIMITS[ROLLOUT_KEY]))
    assert "x" * 500 in found["nodes"]["failed"]["n7"]


# --- the records on Nodes ---------------------------------------------------------------------------


def put_record(api: FakeApiServer, name: str, status: NodeStatus) -> None:
    changes = node_status.changes({}, {}, "default", status)
    api.nodes[name]["metadata"]["annotations"] = dict(changes.annotations)
    api.nodes[name]["metadata"]["labels"] |= dict(changes.labels)


@pytest.mark.parametrize(("code", "outcome"), [(1, "failed"), (3, "failed"), (4, "rolled-back")])
def test_a_failure_is_recorded_on_its_node(api: FakeApiServer, code: int, outcome: str) -> None:
    api.node("n0", labels=CLAIMED)
    put_record(api, "n0", NodeStatus("installing", "4.1.0", "0.1.0", "abc", "2026-01-01T00:00:00Z"))
    fails_on(api, "n0", code=code)
    dispatch(api)
    metadata = api.nodes["n0"]["metadata"]
    record = node_status.read(metadata["annotations"], "default")
    assert record is not None
    assert (record.outcome, record.kata_version, record.settings) == (outcome, "4.1.0", "abc")
    assert record.reason.startswith('cri: the node says "the disk is full"')
    assert record.since > "2026-01-01"
    assert metadata["labels"][node_status.outcome_label("default")] == outcome


def test_only_a_claimed_node_gets_a_record(api: FakeApiServer) -> None:
    """Nothing would remove it from another Node."""
    api.node("n0")
    fails_on(api, "n0")
    dispatch(api)
    assert "annotations" not in api.nodes["n0"]["metadata"]


def test_without_the_right_to_patch_nodes_the_first_refusal_is_the_last_try(
    api: FakeApiServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    names = [f"n{number}" for number in range(5)]
    for name in names:
        api.node(name, labels=CLAIMED)
    fails_on(api, *names)
    api.faults = [Fault("PATCH", "/nodes/", 403, 'User "x" cannot patch resource "nodes"', times=99)]
    result = dispatch(api, replace(CONFIG, parallelism=1))
    assert [str(task.outcome) for task in result.tasks] == ["failed"] * 5
    assert sum(each.startswith("PATCH n") for each in api.requests) == 1
    assert "failures are not recorded on Nodes" in caplog.text
