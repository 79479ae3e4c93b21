"""What the daemon learns about the node after something on it has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kata_node.cli.verify import state_of, watched_paths
from kata_node.host.files import Root
from kata_node.host.lock import Holder
from kata_node.plan.receipt import ArtifactsRecord, CriFile, CriRecord, PlacedFile, Receipt
from kata_node.status.model import InstallationStatus, NodeStatus, RuntimeStatus

SHIM = "/opt/kata/bin/containerd-shim-kata-v2"
HEALTHY = InstallationStatus("default", "/opt/kata", handlers=("kata-qemu",), verdict="healthy")
SERVING = RuntimeStatus(served=("runc", "kata-qemu"))


@pytest.mark.parametrize(
    ("own", "runtime", "state"),
    [
        pytest.param({}, {}, "served", id="healthy"),
        pytest.param({"verdict": "drifted", "drift": ("/opt/kata/x: missing",)}, {}, "changed", id="a file"),
        pytest.param({"verdict": "drifted", "drift": (f"{SHIM}: missing",)}, {}, "not served", id="a shim"),
        pytest.param({"verdict": "degraded"}, {"served": ("runc",)}, "not served", id="a handler"),
        pytest.param({"verdict": "degraded", "restart_owed": True}, {}, "changed", id="a restart is owed"),
        pytest.param({"verdict": "broken"}, {"served": None, "is_down": True}, "not served", id="down"),
        pytest.param(
            {"verdict": "broken", "error": "the receipt is gone"}, {}, "not served", id="no receipt"
        ),
        pytest.param({"verdict": "unknown"}, {"served": None}, "unknown", id="the CRI does not answer"),
        pytest.param({"verdict": "unknown"}, {"served": None, "offline": True}, "served", id="offline"),
        pytest.param({"verdict": "absent", "handlers": ()}, {}, "not served", id="removed"),
    ],
)
def test_a_node_serves_if_the_runtime_lists_its_handlers_and_their_programs_are_there(
    own: dict[str, Any], runtime: dict[str, Any], state: str
) -> None:
    node = NodeStatus((), replace(SERVING, **runtime))
    assert state_of(replace(HEALTHY, **own), node)[0] == state


def test_what_is_wrong_while_another_run_works_says_nothing() -> None:
    node = NodeStatus((), replace(SERVING, served=("runc",)), Holder("kata-node install", 7, "n"))
    assert state_of(replace(HEALTHY, verdict="degraded"), node)[0] == "unknown"
    assert state_of(HEALTHY, node)[0] == "served"


def test_without_an_installation_nothing_is_served() -> None:
    assert state_of(None, NodeStatus((), SERVING)) == ("not served", "it is not installed")


def test_the_watched_files_are_those_that_a_change_of_the_installation_changes(tmp_path: Path) -> None:
    root = Root(tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/containerd").symlink_to("/srv/containerd")
    file = CriFile("/etc/containerd/conf.d/99-kata-deploy.toml", None, "")
    cri = CriRecord("serving", "containerd", "2.3.4", "", "", "", ("kata-qemu",), (file,))
    placed = {
        "bin/containerd-shim-kata-v2": PlacedFile("file", 0o644),
        "share/kata.img": PlacedFile("file", 0o644),
    }
    receipt = Receipt(
        "default",
        "/opt/kata",
        "1",
        artifacts=ArtifactsRecord("placed", "3.30.0", "", placed),
        cri=replace(cri, config="/etc/containerd/config.toml"),
        socket="/run/containerd/containerd.sock",
    )
    assert watched_paths(root, "/opt/kata", receipt) == [
        f"{tmp_path}{path}"
        for path in (
            "/opt/kata/.kata-node/receipt.json",
            "/run/containerd/containerd.sock",
            "/srv/containerd/conf.d/99-kata-deploy.toml",
            "/srv/containerd/config.toml",
            SHIM,
        )
    ]
    assert watched_paths(root, "/opt/kata", None) == [f"{tmp_path}/opt/kata/.kata-node/receipt.json"]
