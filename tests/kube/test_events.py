"""The Events that a run records, which `kubectl describe node` shows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fakes import FakeKube, FakeNode
from kata_node import pipeline
from kata_node.cluster.events import EventRecorder, event_of
from kata_node.errors import KubeError
from kata_node.kube import credentials
from kata_node.kube.events import MESSAGE_LIMIT, Event
from kata_node.kube.node_status import outcome_label
from kata_node.plan import report
from kata_node.plan.context import Options
from kata_node.plan.report import Problem, StageReport
from kata_node.settings.load import load
from pipeline.harness import INSTALL, REVERT, Killed, errors, make_node, run, small_payload
from stages import claim

SHARED_LABEL = "katacontainers.io/kata-runtime"
LABEL = "kata-deploy.katacontainers.io/default"
NO_CRI = '[plugins."io.containerd.cri.v1.images"]\nsnapshotter = "nobody"\n'


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    return small_payload(tmp_path / "payload")


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    monkeypatch.setattr(credentials, "find_credentials", lambda: "a kubeconfig")
    node = make_node(tmp_path / "host")
    node.kube = FakeKube(node, {"kubernetes.io/hostname": "n1"})
    return node


def events_of(node: FakeNode) -> list[tuple[str, str]]:
    assert isinstance(node.kube, FakeKube)
    return [(event["type"], event["reason"]) for event in node.kube.events]


def test_a_message_is_one_printable_line_of_limited_length() -> None:
    words = "\x1b[2Jno\n  hint: \u202ex" + "y" * 300_000
    event = Event("Warning", "KataInstallFailed", words)
    shown = event.as_object("n", component="c", reporter="r")["message"]
    assert shown.startswith(r"\x1b[2Jno hint: \u202exyyy")
    assert (len(shown), shown.isprintable()) == (MESSAGE_LIMIT, True)


def test_a_report_of_another_container_has_only_printable_lines(tmp_path: Path) -> None:
    words = "\x1b[2Jno\n  hint: x" + "y" * 3_000
    document = {
        "outcome": "failed",
        "summary": words,
        "notes": [words],
        "error": {"what": words, "unfit": True},
    }
    (tmp_path / "host-check.json").write_text(json.dumps(document))
    (shared,) = report.read_shared_reports(tmp_path, ["host-check"])
    unfit = report.read_failure_for_claim(tmp_path)
    assert unfit is not None
    assert unfit.error is not None
    for shown in (shared.summary, *shared.notes, unfit.error.what):
        assert shown.startswith(r"\x1b[2Jno hint: xyyy")
        assert len(shown) == 600


def message(node: FakeNode) -> str:
    assert isinstance(node.kube, FakeKube)
    return str(node.kube.events[-1]["message"])


def recorder(node: FakeNode, shared: Path | None = None) -> EventRecorder:
    return EventRecorder(node.clients(), "n1", "default", "a-pod", shared)


def carry_out(node: FakeNode, stages: object, payload: Path, **more: str) -> list[StageReport]:
    return run(node, stages, payload, node_name="n1", report=recorder(node).add, **more)  # type: ignore[arg-type]


def test_events_report_an_installation_and_its_removal(node: FakeNode, payload: Path) -> None:
    assert errors(carry_out(node, INSTALL, payload)) == []
    assert events_of(node) == [("Normal", "KataInstalled")]
    assert "containerd.service (containerd 2.1.9) serves kata-qemu" in message(node)
    assert "files placed" in message(node)
    assert errors(carry_out(node, INSTALL, payload)) == []
    assert events_of(node)[1:] == [("Normal", "KataUnchanged")]
    assert errors(carry_out(node, INSTALL, payload, shims="qemu,clh")) == []
    assert events_of(node)[2:] == [("Normal", "KataInstalled")]
    assert errors(carry_out(node, REVERT, payload)) == []
    assert events_of(node)[3:] == [("Normal", "KataRemoved")]
    assert errors(carry_out(node, REVERT, payload)) == []
    assert events_of(node)[4:] == [("Normal", "KataUnchanged")]


def test_labels_are_false_and_an_event_says_why_while_a_node_that_lost_its_handlers_is_repaired(
    node: FakeNode, payload: Path
) -> None:
    """Somebody has removed the drop-ins, and restarted the runtime."""
    assert isinstance(node.kube, FakeKube)
    assert errors(carry_out(node, INSTALL, payload)) == []
    labels = dict(node.kube.labels)
    for path in node.root.glob("/opt/kata/containerd/config.d/*"):
        node.root.resolve(path).unlink()
    node.restart("containerd.service", 1)
    assert "kata-qemu" not in (node.handlers or ())
    seen: list[dict[str, str]] = []
    kube, restart = node.kube, node.restart

    def see_labels(name: str, timeout: float) -> None:
        seen.append(dict(kube.labels))
        restart(name, timeout)

    node.restart = see_labels  # type: ignore[method-assign]
    assert errors(carry_out(node, INSTALL, payload)) == []
    repaired = {SHARED_LABEL: "false", LABEL: "false", outcome_label("default"): "installing"}
    assert seen == [{**labels, **repaired}]
    assert events_of(node)[1:] == [("Warning", "KataNotServed"), ("Normal", "KataInstalled")]
    assert "the container runtime does not serve kata-qemu" in str(node.kube.events[1]["message"])
    assert node.kube.labels == labels
    assert "kata-qemu" in (node.handlers or ())


def test_the_container_of_claim_withdraws_the_labels_by_the_report_of_host_check(
    node: FakeNode, payload: Path, tmp_path: Path
) -> None:
    assert isinstance(node.kube, FakeKube)
    assert errors(carry_out(node, INSTALL, payload)) == []
    report.write_shared_report(tmp_path, StageReport("host-check", "done", "", not_served="it is rebuilt"))
    options = Options(payload, node_name="n1", reports=tmp_path, stable_for=0)
    settings = load(None, overrides={"shims": "qemu"}, arch="x86_64")
    clients = node.clients()
    done = pipeline.run([claim], pipeline.Run(settings, options, clients, 1))
    assert errors(done) == []
    assert done[0].summary.endswith("until it is repaired: it is rebuilt")
    assert (node.kube.labels[SHARED_LABEL], node.kube.labels[LABEL]) == ("false", "false")


def test_rollbacks_and_failures_are_warnings_with_the_cause(node: FakeNode, payload: Path) -> None:
    carry_out(node, INSTALL, payload, user_drop_in=NO_CRI)
    assert events_of(node)[-1] == ("Warning", "KataRolledBack")
    assert message(node).startswith("default: cri: ")
    assert "the changes of this stage were rolled back" in message(node)
    node.systemd_gone = True
    carry_out(node, INSTALL, payload)
    assert events_of(node)[-1] == ("Warning", "KataInstallFailed")
    carry_out(node, REVERT, payload)
    assert events_of(node)[-1] == ("Warning", "KataRemoveFailed")


def test_the_last_container_of_a_job_reports_all_stages(
    node: FakeNode, payload: Path, tmp_path: Path
) -> None:
    shared = tmp_path / "reports"
    shared.mkdir()
    for stage in INSTALL:
        run(node, (stage,), payload, node_name="n1", report=recorder(node, shared).add)
    assert "files placed" in message(node)
    assert "serves kata-qemu" in message(node)
    for stage in INSTALL:  # like a pod that was restarted, with the reports of the first run
        run(node, (stage,), payload, node_name="n1", report=recorder(node, shared).add)
    assert events_of(node)[-1] == ("Normal", "KataUnchanged")


def test_files_that_are_not_reports_are_ignored(tmp_path: Path) -> None:
    bad = {"a": "not JSON", "b": "[]", "c": "[" * 60000, "d": '{"outcome": "glorious", "summary": ""}'}
    for name, text in bad.items():
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.json")
    report.write_shared_report(tmp_path, StageReport("cri", "done", "served", notes=("look at this",)))
    (tmp_path / "link.json").symlink_to("cri.json")
    names = (*bad, "zero", "pipe", "link", "missing", "cri")
    found = [
        (each.stage, each.outcome, each.summary, each.notes)
        for each in report.read_shared_reports(tmp_path, names)
    ]
    assert found == [("cri", "done", "served", ("look at this",))]


def test_symlinks_and_pipes_with_the_name_of_a_report_are_replaced(tmp_path: Path) -> None:
    victim, shared = tmp_path / "shim", tmp_path / "reports"
    victim.write_text("untouched")
    shared.mkdir()
    (shared / "cri.json").symlink_to(victim)
    (shared / f".cri.{os.getpid()}").symlink_to(victim)
    os.mkfifo(shared / "label.json")
    for stage in ("cri", "label"):
        report.write_shared_report(shared, StageReport(stage, "done", "served"))
    assert victim.read_text() == "untouched"
    assert [each.stage for each in report.read_shared_reports(shared, ["cri", "label"])] == ["cri", "label"]
    assert sorted(path.name for path in shared.iterdir()) == ["cri.json", "label.json"]


def test_a_missing_directory_for_reports_does_not_fail_the_run(
    node: FakeNode, payload: Path, tmp_path: Path
) -> None:
    gone = recorder(node, tmp_path / "gone")
    assert errors(run(node, INSTALL, payload, node_name="n1", report=gone.add)) == []
    assert events_of(node)[-1] == ("Normal", "KataInstalled")


def test_an_event_that_cannot_be_recorded_does_not_fail_the_run(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error in (KubeError("it refuses", where="https://api"), AttributeError("a bug in a library")):

        def refuse(_: FakeKube, __: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(FakeKube, "record_event", refuse)
        assert errors(carry_out(node, INSTALL, payload)) == []


def test_without_a_cluster_no_event_is_recorded(
    node: FakeNode, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "find_credentials", lambda: None)
    monkeypatch.setattr(FakeKube, "record_event", lambda *_: pytest.fail("an Event was recorded"))
    assert errors(carry_out(node, INSTALL, payload)) == []


def test_a_long_message_is_cut_to_the_limit_of_the_api_server() -> None:
    problem = Problem("x" * 5000, "here", "", 1)
    event = event_of([StageReport("cri", "failed", "x", error=problem)], "blue")
    assert event
    assert len(event.as_object("n" * 253, component="kata-node", reporter="a-pod")["metadata"]["name"]) <= 253
    made = event.as_object("n1", component="kata-node", reporter="a-pod")
    assert len(made["message"]) == MESSAGE_LIMIT
    assert made["involvedObject"]["name"] == made["source"]["host"] == "n1"
    assert made["metadata"]["namespace"] == "default"
    assert (
        made["metadata"]["name"]
        != event.as_object("n1", component="kata-node", reporter="a-pod")["metadata"]["name"]
    )


def test_a_single_stage_without_changes_records_no_event(node: FakeNode, payload: Path) -> None:
    assert errors(carry_out(node, INSTALL, payload)) == []
    count = len(events_of(node))
    assert errors(carry_out(node, INSTALL[-1:], payload)) == []
    assert len(events_of(node)) == count


def test_a_file_name_that_is_not_utf_8_is_escaped_in_an_event() -> None:
    last = StageReport("unclaim", "done", "gone", notes=("left: a\udcff",))
    event = event_of([last], "default")
    assert event
    assert event.as_object("n1", component="kata-node", reporter="a-pod")["message"].endswith(
        "left: a\\udcff"
    )


def test_a_taint_that_cannot_be_removed_makes_the_event_a_warning(node: FakeNode, payload: Path) -> None:
    assert isinstance(node.kube, FakeKube)
    node.kube.taints, node.kube.keeps_taints = [{"key": "a", "effect": "NoSchedule"}], True
    assert errors(carry_out(node, INSTALL, payload, startup_taints="a")) == []
    assert events_of(node)[-1] == ("Warning", "KataInstalled")


def test_the_label_of_the_record_and_no_event_shows_a_run_that_was_killed(
    node: FakeNode, payload: Path
) -> None:
    assert isinstance(node.kube, FakeKube)
    node.restart = lambda *_: (_ for _ in ()).throw(Killed())  # type: ignore[method-assign]
    with pytest.raises(Killed):
        carry_out(node, INSTALL, payload)
    assert events_of(node) == []
    assert node.kube.labels[outcome_label("default")] == "installing"
