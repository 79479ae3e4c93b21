import json
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from kata_node.kube import node_status
from kata_node.kube.node import NodeFacts
from kata_node.kube.node_status import NodeStatus
from kata_node.release import text
from kata_node.release.model import ClusterStatus, Release, release_of, status_of

SHARED = "katacontainers.io/kata-runtime"
MACHINE = "ab" * 16
SERVED = NodeStatus(
    outcome="installed",
    kata_version="4.1.0",
    program_version="0.1.0",
    settings="0123456789ab",
    since="2026-11-30T04:40:00Z",
    machine_id=MACHINE,
    handlers=("kata-qemu",),
)


def node(
    name: str,
    status: NodeStatus | None = SERVED,
    *,
    serving: str | None = "true",
    installation: str = "default",
    labels: Mapping[str, str] | None = None,
    handlers: tuple[str, ...] | None = ("kata-qemu", "runc"),
    machine_id: str = MACHINE,
) -> NodeFacts:
    changes = node_status.changes({}, {}, installation, status) if status else None
    marks = {f"kata-deploy.katacontainers.io/{installation}": serving, SHARED: serving} if serving else {}
    return NodeFacts(
        name,
        {**marks, **(changes.labels if changes else {}), **(labels or {})},  # type: ignore[dict-item]
        True,
        handlers,
        machine_id,
        "1",
        annotations=dict(changes.annotations) if changes else {},  # type: ignore[arg-type]
    )


def release(name: str = "kata", *, suffix: str = "", **rollout: Any) -> Release:
    data = {"multiInstallSuffix": suffix, "desiredState": "present"}
    if rollout:
        data["lastRollout"] = json.dumps(rollout)
    found = release_of(
        {"metadata": {"name": f"kata-deploy-state.{name}", "namespace": "kube-system"}, "data": data}
    )
    assert found is not None
    return found


def test_nodes_that_serve_what_their_records_say_are_healthy() -> None:
    found = status_of([node("b"), node("a"), node("c", None, serving=None)], [release()])
    assert found.is_healthy
    assert [row.node for row in found.rows] == ["a", "b"]
    assert found.nodes_without_kata == 1


@pytest.mark.parametrize(
    ("facts", "drift"),
    [
        pytest.param(node("a", handlers=("runc",)), "the Node does not report kata-qemu", id="handlers"),
        pytest.param(
            node("a", machine_id="cd" * 16), "another machine has the name of the Node now", id="machine"
        ),
        pytest.param(node("a", labels={SHARED: "false"}), f"the label {SHARED} is not true", id="shared"),
        pytest.param(node("a", serving="false"), "the installation label is not true", id="mark"),
    ],
)
def test_what_contradicts_a_record_is_drift(facts: NodeFacts, drift: str) -> None:
    found = status_of([facts], [])
    assert found.rows[0].drift == (drift,)
    assert not found.is_healthy
    assert f"drift: {drift}" in text.to_text(found)


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param(node("a", handlers=None), id="a kubelet that reports no handlers"),
        pytest.param(node("a", machine_id=""), id="a kubelet that reports no machine id"),
        pytest.param(node("a", None), id="labeled by an earlier version, without a record"),
        pytest.param(node("a", NodeStatus("unfit", reason="no KVM"), serving="unfit"), id="unfit"),
    ],
)
def test_what_is_not_reported_is_no_drift(facts: NodeFacts) -> None:
    assert status_of([facts], []).is_healthy


@pytest.mark.parametrize("outcome", ["failed", "rolled-back", "installing", "removing"])
def test_a_node_that_serves_but_whose_last_run_did_not_succeed_is_not_healthy(outcome: Any) -> None:
    found = status_of([node("a", replace(SERVED, outcome=outcome, reason="cri: why"))], [])
    assert not found.is_healthy
    assert "cri: why" in text.to_text(found)


ENDED: dict[str, Any] = {
    "action": "install",
    "begun": "2026-11-30T04:30:00Z",
    "ended": "2026-11-30T05:00:00Z",
}


def test_the_last_rollout_tells_what_the_nodes_cannot() -> None:
    """Without policies a failed node keeps `installing`; a node that was not claimed has no record."""
    rollout = {**ENDED, "outcome": "failed", "nodes": {"failed": {"a": "cri: broke", "b": "host-check: no"}}}
    begun = replace(SERVED, outcome="installing", handlers=())
    nodes = [node("a", begun, serving="false"), node("b", None, serving=None), node("c")]
    found = status_of(nodes, [release(**rollout)])
    assert [(row.node, row.outcome, row.reason) for row in found.rows] == [
        ("a", "failed", "cri: broke"),
        ("b", "failed", "host-check: no"),
        ("c", "installed", ""),
    ]


def test_a_node_that_was_mended_since_the_last_rollout_is_as_its_record_says() -> None:
    rollout = {**ENDED, "outcome": "failed", "nodes": {"failed": {"a": "cri: broke"}}}
    found = status_of([node("a", replace(SERVED, since="2026-11-30T05:00:01Z"))], [release(**rollout)])
    assert found.rows[0].outcome == "installed"
    assert found.is_healthy


def test_an_older_installation_that_the_last_rollout_did_not_replace_is_not_healthy() -> None:
    rollout = {**ENDED, "outcome": "interrupted", "nodes": {"not started": {"a": "the deadline has passed"}}}
    found = status_of([node("a"), node("b")], [release(**rollout)])
    assert [(row.outcome, row.left, row.is_healthy) for row in found.rows] == [
        ("installed", "install not started: the deadline has passed", False),
        ("installed", "", True),
    ]
    assert "install not started: the deadline has passed" in text.to_text(found)


LATER = {**ENDED, "begun": "2026-11-30T06:00:00Z", "ended": "2026-11-30T06:10:00Z"}


@pytest.mark.parametrize(
    ("reconcile", "shown"),
    [
        pytest.param({**LATER, "outcome": "ok"}, "installed", id="mended"),
        pytest.param({**LATER, "outcome": "interrupted"}, "failed", id="not finished"),
        pytest.param({**LATER, "outcome": "failed", "omitted": 2}, "failed", id="some left out"),
        pytest.param({"action": "install", "begun": LATER["begun"]}, "failed", id="under way"),
        pytest.param(
            {**LATER, "outcome": "failed", "nodes": {"not ready": {"a": "it has a taint"}}},
            "not ready",
            id="newer",
        ),
    ],
)
def test_the_newest_run_that_knows_a_node_tells_what_became_of_it(
    reconcile: dict[str, Any], shown: str
) -> None:
    rollout = {**ENDED, "outcome": "failed", "nodes": {"failed": {"a": "cri: broke"}}}
    data = {"lastRollout": json.dumps(rollout), "lastReconcile": json.dumps(reconcile)}
    metadata = {"name": "kata-deploy-state.kata", "namespace": "kube-system"}
    one = release_of({"metadata": metadata, "data": data})
    assert one is not None
    [row] = status_of([node("a")], [one]).rows
    assert (row.left.split(":")[0] or f"install {row.outcome}") == f"install {shown}"


def test_nodes_that_the_cluster_does_not_have_are_told() -> None:
    rollout = {**ENDED, "outcome": "failed", "nodes": {"failed": {"x": "no Node has this name", "y": ""}}}
    found = status_of([node("a")], [release(**rollout)])
    note = "the cluster has no Node x (the last run: install failed: no Node has this name), and 1 more"
    assert f"note: {note}" in text.to_text(found)


def absent(**rollout: Any) -> Release:
    return replace(release(**rollout), desired_state="absent")


def test_a_node_with_kata_is_not_healthy_when_its_release_wants_it_absent() -> None:
    blocked = {**ENDED, "action": "cleanup", "outcome": "stopped", "nodes": {"failed": {"a": "pods run"}}}
    found = status_of([node("a"), node("b", None, serving=None)], [absent(**blocked)])
    assert not found.is_healthy
    assert [row.node for row in found.rows] == ["a"]
    assert "drift: Kata is not wanted here, because desiredState is absent; cleanup failed: pods run" in (
        text.to_text(found)
    )


def test_a_release_that_wants_kata_absent_is_healthy_without_it() -> None:
    done = {**ENDED, "action": "cleanup", "outcome": "ok", "nodes": {"not ours": {"b": "not ours"}}}
    found = status_of([node("a", None, serving=None), node("b", None, serving=None)], [absent(**done)])
    assert found.is_healthy
    assert found.nodes_without_kata == 2


def test_the_state_of_a_removed_release_does_not_take_the_nodes_of_another_one() -> None:
    found = status_of([node("a")], [absent(), release("new")])
    assert found.rows[0].release == "kube-system/new"
    assert found.is_healthy


def test_a_node_that_was_registered_again_without_its_labels_is_told() -> None:
    found = status_of(
        [node("a", None, serving=None), node("b"), node("c", None, serving=None, handlers=())], []
    )
    assert [each.partition(";")[0] for each in found.notes] == [
        "1 node without a label of an installation report handlers of Kata: a"
    ]
    assert found.nodes_without_kata == 2


def test_several_releases_of_one_installation_are_told() -> None:
    others = [release("blue", suffix="blue"), absent(), release("a"), release("b")]
    found = status_of([node("a")], others)
    assert [each.partition(";")[0] for each in found.notes] == [
        "several releases have the installation default: kube-system/a, kube-system/b"
    ]


def test_a_record_that_cannot_be_read_is_told() -> None:
    key = "status.kata-deploy.katacontainers.io/default"
    damaged = replace(node("a"), annotations={key: '{"outcome":"of the future"}'})
    found = status_of([damaged, node("b", None)], [])
    assert [(row.drift, row.reason) for row in found.rows] == [
        (("the record on the Node cannot be read",), ""),
        ((), "the Node has no record of the installation"),
    ]


def test_a_rollout_without_an_end_is_told() -> None:
    found = status_of([node("a")], [release(action="install", begun="2026-11-30T04:30:00Z", job="j")])
    assert not found.is_healthy
    assert "install begun at 2026-11-30T04:30:00Z by Job j, and no end is recorded" in text.to_text(found)


def test_installations_side_by_side_have_a_column() -> None:
    labels = {"kata-deploy.katacontainers.io/default": "true"}
    both = [node("a", installation="blue", labels=labels)]
    releases = [release(), release("other", suffix="blue")]
    table = text.to_text(status_of(both, releases)).splitlines()
    assert table[2].split()[:3] == ["NODE", "INSTALLATION", "KATA"]
    only = status_of(both, releases, only={"blue"})
    assert [(row.installation, row.release) for row in only.rows] == [("blue", "kube-system/other")]


def test_no_node_with_kata_is_not_healthy() -> None:
    found = status_of([node("a", None, serving=None, handlers=("runc",))], [])
    assert not found.is_healthy
    assert text.to_text(found) == "not healthy: 0 nodes with Kata; 1 node without Kata"


@pytest.mark.parametrize(
    "damaged", ["", "{", "[]", '{"omitted": Infinity}', '{"nodes": 3}', '{"counts": {"a": "b"}}', "[" * 9999]
)
def test_a_damaged_rollout_counts_as_none(damaged: str) -> None:
    metadata = {"name": "kata-deploy-state.kata", "namespace": "x"}
    found = release_of({"metadata": metadata, "data": {"lastRollout": damaged}})
    assert found is not None
    assert found.rollout is None
    assert release_of({"metadata": {**metadata, "name": "other"}}) is None


def test_the_words_of_the_cluster_are_printable() -> None:
    rollout = {
        **ENDED,
        "outcome": "\x1b[31mok",
        "reason": "a\nb",
        "nodes": {"failed": {"a": "\x1b[2J\u202e"}},
    }
    shown = text.to_text(status_of([node("a", None, serving=None)], [release(**rollout)]))
    assert all(line.isprintable() for line in shown.splitlines())


def test_the_document_has_every_row_with_its_verdict() -> None:
    found = status_of(
        [node("a"), node("b", handlers=())], [release(**ENDED, outcome="ok", counts={"done": 2})]
    )
    document = json.loads(json.dumps(text.to_json(found)))
    assert document["releases"][0]["rollout"]["counts"] == {"done": 2}
    assert [(each["node"], each["healthy"]) for each in document["nodes"]] == [("a", True), ("b", False)]
    assert text.to_json(ClusterStatus((), ()))["outcome"] == "not healthy"
