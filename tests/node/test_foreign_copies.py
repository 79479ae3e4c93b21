"""Programs that copy the whole CRI section of containerd, our handlers in it, into a file of their own.

NVIDIA's container toolkit does that since 1.18: its drop-in is made from ``containerd config dump``, and it
writes the main file anew with an import of the directory of its drop-in.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomlkit

from node import cri, images
from node.conftest import BootNode
from node.debian_node import SOCKET, Node
from node.installation import (
    HANDLERS,
    PAYLOAD,
    UNIT,
    VALUES,
    WATCHED,
    configure,
    fake_kvm,
    index,
    install,
    kata_handlers,
    main_file,
    make_payload,
)
from node.running_pods import MAIN_3, RUNTIMES_3, allow_pods, payload_with_shim, values
from node.snapshot import changes

COPY = "etc/containerd/conf.d/99-nvidia.toml"
PLUGINS = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
TOOLKIT = ("nvidia", "nvidia-cdi", "nvidia-legacy")


def run_toolkit(node: Node, *, default: bool = False) -> None:
    """Write the drop-in and the main file as the toolkit does, and restart containerd."""
    dump = tomllib.loads(node.run(["containerd", "config", "dump"]).stdout)
    schema = dump.get("version", 1)
    cri_table = dump["plugins"][PLUGINS[schema]]
    runtimes = cri_table["containerd"].setdefault("runtimes", {})
    base = runtimes.get("runc", {"runtime_type": "io.containerd.runc.v2"})
    for name in TOOLKIT:
        options = {**base.get("options", {}), "BinaryName": f"/usr/bin/{name}-container-runtime"}
        runtimes[name] = {**base, "options": options}
    if default:
        cri_table["containerd"]["default_runtime_name"] = "nvidia"
    copy = node.root / COPY
    copy.parent.mkdir(exist_ok=True)
    copy.write_text(tomlkit.dumps({"version": schema, "plugins": {PLUGINS[schema]: cri_table}}))
    main = main_file(node)
    table = tomllib.loads(main.read_text()) if main.exists() else {"version": schema}
    pattern = "/etc/containerd/conf.d/*.toml"
    table["imports"] = [*(each for each in table.get("imports", []) if each != pattern), pattern]
    main.write_text(tomlkit.dumps(table))
    restart(node)


def restart(node: Node) -> None:
    node.run(["systemctl", "restart", UNIT])
    node.wait_for_containerd()


@pytest.fixture(scope="session")
def with_shim(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sample payload with a shim that runs containers."""
    return payload_with_shim(tmp_path_factory.mktemp("payload"))


def test_a_revert_keeps_the_programs_of_a_pod_although_a_copy_defines_its_handler(
    boot_node: BootNode, with_shim: Path
) -> None:
    node = allow_pods(boot_node(), with_shim, MAIN_3)
    node.kata_node("install", config=values("qemu", runtimes=RUNTIMES_3), payload=PAYLOAD, check=True)
    run_toolkit(node)
    web = cri.run_pod(node.root / SOCKET, "web", "kata-qemu")
    before = node.snapshot(*WATCHED)

    refused = node.kata_node("revert", "--output", "json")
    assert refused.returncode == 1
    error = json.loads(refused.stdout)["error"]
    assert error["what"] == "1 pod runs on a handler that would be removed: default/web (kata-qemu)"
    assert changes(before, node.snapshot(*WATCHED), times=True) == []

    cri.end_pod(node.root / SOCKET, web)
    node.kata_node("revert", check=True)
    assert node.cri_handlers() == (*TOOLKIT, "runc")
    assert not (node.root / "opt/kata").exists()
