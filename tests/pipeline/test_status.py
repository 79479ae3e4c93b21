"""The command ``status``: drift in shared files, and the labels of the Node."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fakes import MAIN, FakeKube, FakeNode
from kata_node.errors import KubeError
from kata_node.kube import credentials
from kata_node.plan.context import Options
from kata_node.status.gather import read_node_labels
from kata_node.status.model import NodeStatus, RuntimeStatus
from kata_node.status.text import to_json, to_text
from pipeline.harness import INSTALL, REVERT, errors, make_node, node_status, run, small_payload
from pipeline.node_variants import NODE_VARIANTS
from pipeline.node_variants import make_node as make_kind


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    return small_payload(tmp_path / "payload")


def drift(node: FakeNode, payload: Path, distribution: str = "k8s") -> dict[str, tuple[str, ...]]:
    """Return the drift of each installation, by its name."""
    return {
        each.instance: each.drift
        for each in node_status(node, payload, deep=True, k8s_distribution=distribution).installations
    }


def test_a_change_by_another_installation_is_not_drift(tmp_path: Path, payload: Path) -> None:
    node = make_node(tmp_path / "host")
    assert errors(run(node, INSTALL, payload)) == []
    assert errors(run(node, INSTALL, payload, multi_install_suffix="blue")) == []
    assert drift(node, payload) == {"default": (), "blue": ()}
    assert errors(run(node, REVERT, payload)) == []
    assert drift(node, payload) == {"blue": ()}


def test_a_removed_entry_in_the_main_file_is_drift(tmp_path: Path, payload: Path) -> None:
    node = make_node(tmp_path / "host")
    assert errors(run(node, INSTALL, payload)) == []
    node.root.write(MAIN, b"version = 3\n")
    assert drift(node, payload) == {"default": (f"{MAIN}: changed",)}
    node.root.write(MAIN, b"not [TOML")
    assert drift(node, payload) == {"default": (f"{MAIN}: changed",)}


@pytest.mark.parametrize("name", ["containerd 1.7", "k3s with an admin's template", "microk8s"])
def test_an_edit_outside_of_the_entry_is_not_drift(name: str, tmp_path: Path, payload: Path) -> None:
    kind = NODE_VARIANTS[name]
    node = make_kind(kind, tmp_path / "host")
    (path,) = kind.kata_files
    assert errors(run(node, INSTALL, payload, k8s_distribution=kind.distribution)) == []
    content = node.root.read(path) or b""
    node.root.write(path, b"# more\n" + content)
    assert drift(node, payload, kind.distribution) == {"default": ()}
    node.root.write(path, kind.files[path].encode())
    assert drift(node, payload, kind.distribution) == {"default": (f"{path}: changed",)}


def test_an_installation_with_a_prefix_is_found_by_the_runtimes_configuration(
    tmp_path: Path, payload: Path
) -> None:
    node = make_node(tmp_path / "host")
    (node.root.base / "srv").mkdir()
    assert errors(run(node, INSTALL, payload, installation_prefix="/srv")) == []
    assert errors(run(node, INSTALL, payload, multi_install_suffix="blue")) == []
    assert drift(node, payload) == {"default": (), "blue": ()}


def test_an_entry_of_an_installation_that_was_deleted_by_hand_is_shown(tmp_path: Path, payload: Path) -> None:
    node = make_node(tmp_path / "host")
    assert errors(run(node, INSTALL, payload)) == []
    shutil.rmtree(node.root.base / "opt/kata")
    (found,) = node_status(node, payload).installations
    assert found.install_dir == "/opt/kata"
    assert "the receipt is gone" in found.error


LABELS = {"katacontainers.io/kata-runtime": "true", "kata-deploy.katacontainers.io/blue": "false"}
AWAY = KubeError("the API server gave no answer", where="node/n1 at https://api", hint="see the log")


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeKube:
    node = make_node(tmp_path / "host")
    kube = FakeKube(node, {"kubernetes.io/hostname": "n1", **LABELS})
    node.kube = kube
    monkeypatch.setenv("KUBECONFIG", "/etc/kubernetes/admin.conf")
    return kube


def test_the_labels_of_the_node_are_shown_if_there_are_credentials(
    cluster: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    clients = cluster.host.clients()
    labels = read_node_labels(Options(Path("/payload"), node_name="n1"), clients)
    node = NodeStatus((), RuntimeStatus(), labels=labels)
    assert to_text(node).splitlines() == [
        "no installation on this node",
        "",
        "Node n1",
        "  label      kata-deploy.katacontainers.io/blue=false",
        "  label      katacontainers.io/kata-runtime=true",
    ]
    assert to_json(node)["node"] == {"name": "n1", "labels": LABELS, "error": ""}
    for options in (Options(Path("/payload")), Options(Path("/payload"), node_name="n1", offline=True)):
        assert read_node_labels(options, clients) is None
    monkeypatch.setattr(credentials, "find_credentials", lambda: None)
    assert read_node_labels(Options(Path("/payload"), node_name="n1"), clients) is None
    assert "node" not in to_json(NodeStatus((), RuntimeStatus()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param({"labels": {"a": "b"}}, "labels     no Kata labels", id="none"),
        pytest.param(
            {"error": AWAY},
            "labels     not known: the API server gave no answer (node/n1 at https://api)",
            id="server-away",
        ),
        pytest.param({"away": 1}, "labels     not known: there is no such Node (node/n1)", id="no-node"),
    ],
)
def test_a_status_without_labels_says_why(cluster: FakeKube, change: dict[str, Any], says: str) -> None:
    for name, value in change.items():
        setattr(cluster, name, value)
    labels = read_node_labels(Options(Path("/payload"), node_name="n1"), cluster.host.clients())
    assert to_text(NodeStatus((), RuntimeStatus(), labels=labels)).splitlines()[-1].strip() == says
