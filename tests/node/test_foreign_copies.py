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

from node import cri
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
    install,
    kata_handlers,
    main_file,
)
from node.running_pods import MAIN_3, RUNTIMES_3, allow_pods, payload_with_shim, values
from node.snapshot import changes_by_a_refused_run

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
    assert changes_by_a_refused_run(before, node.snapshot(*WATCHED)) == []

    cri.end_pod(node.root / SOCKET, web)
    node.kata_node("revert", check=True)
    assert node.cri_handlers() == (*TOOLKIT, "runc")
    assert not (node.root / "opt/kata").exists()


RELEASES = [
    pytest.param("bookworm", b"version = 2\n", id="1.6"),
    pytest.param("trixie", b"version = 2\n", id="1.7"),
    pytest.param("forky", b"version = 2\n", id="2.1-schema-2"),
    pytest.param("forky", b"version = 3\n", id="2.1-schema-3"),
]


@pytest.fixture
def boot_ready(boot_node: BootNode, payload: Path) -> BootNode:
    """Return a function that boots nodes with the payload and a fake ``/dev/kvm``."""

    def boot(suite: str = "forky", **options: Any) -> Node:
        node = fake_kvm(boot_node(suite, **options))
        node.mount(payload, PAYLOAD)
        return node

    return boot


def without_kata(table: Any) -> Any:
    """Return TOML values without handlers of Kata."""
    if not isinstance(table, dict):
        return table
    return {key: without_kata(value) for key, value in table.items() if not key.startswith("kata-")}


@pytest.mark.parametrize(("suite", "main"), RELEASES)
def test_a_copy_made_after_the_install_hinders_neither_an_install_nor_a_revert(
    boot_ready: BootNode, suite: str, main: bytes
) -> None:
    node = boot_ready(suite)
    configure(node, main)
    install(node)
    run_toolkit(node, default=True)
    assert node.cri_handlers() == (*HANDLERS, *TOOLKIT, "runc")

    again = install(node)
    assert f"/{COPY} has a copy of kata-clh, kata-qemu, kata-qemu-runtime-rs" in again.stdout
    assert node.cri_handlers() == (*HANDLERS, *TOOLKIT, "runc")
    invocation = node.unit(UNIT).invocation
    install(node)
    assert node.unit(UNIT).invocation == invocation

    copied = tomllib.loads((node.root / COPY).read_text())
    done = node.kata_node("revert", check=True)
    assert f"kata-node removed {', '.join(HANDLERS)} from /{COPY}" in done.stdout
    assert node.cri_handlers() == (*TOOLKIT, "runc")
    assert tomllib.loads((node.root / COPY).read_text()) == without_kata(copied)
    assert "kata-" not in main_file(node).read_text()
    assert not (node.root / "opt/kata").exists()
    assert "serves nvidia, " in node.kata_node("revert", check=True).stdout


@pytest.mark.parametrize(("suite", "main"), RELEASES[1:])
def test_after_the_remedy_an_install_serves_beside_a_copy_that_was_there_before(
    boot_ready: BootNode, suite: str, main: bytes
) -> None:
    node = boot_ready(suite)
    configure(node, main)
    run_toolkit(node)
    done = node.kata_node("install", config=VALUES, payload=PAYLOAD)
    if main == b"version = 3\n":
        assert done.returncode == 0
    else:
        assert done.returncode == 3
        assert f"/{COPY}" in done.stdout
        assert "the NVIDIA container toolkit again" in done.stdout
        assert not (node.root / "opt/kata").exists()
        (node.root / COPY).unlink()
        install(node)
        run_toolkit(node)
        install(node)
    assert node.cri_handlers() == (*HANDLERS, *TOOLKIT, "runc")
    node.kata_node("revert", check=True)
    assert node.cri_handlers() == (*TOOLKIT, "runc")


@pytest.mark.parametrize(("suite", "main"), RELEASES[1::2])
def test_a_revert_after_the_copy_was_removed_again_leaves_nothing(
    boot_ready: BootNode, suite: str, main: bytes
) -> None:
    node = boot_ready(suite)
    configure(node, main)
    install(node)
    run_toolkit(node)
    (node.root / COPY).unlink()
    node.kata_node("revert", check=True)
    assert node.cri_handlers() == ("runc",)
    assert "kata" not in main_file(node).read_text()


def test_a_revert_leaves_the_handlers_of_another_installation_in_the_copy(boot_ready: BootNode) -> None:
    node = boot_ready()
    install(node)
    install(node, env={"multiInstallSuffix": "dev"})
    run_toolkit(node)
    node.kata_node("revert", check=True)
    others = tuple(f"{name}-dev" for name in HANDLERS)
    assert node.cri_handlers() == (*sorted((*others, *TOOLKIT)), "runc")
    done = node.kata_node("revert", "--multi-install-suffix", "dev", check=True)
    assert f"kata-node removed {', '.join(others)} from /{COPY}" in done.stdout
    assert node.cri_handlers() == (*TOOLKIT, "runc")


def test_an_update_replaces_the_outdated_copy_of_its_own_handlers(boot_ready: BootNode) -> None:
    node = boot_ready()
    configure(node, b"version = 3\n")
    install(node)
    run_toolkit(node)
    shims = {"qemu": {"enabled": True, "containerd": {"snapshotter": "native"}}, "clh": {"enabled": True}}
    done = install(node, shims=shims)
    assert f"from /{COPY}, which had an outdated copy" in done.stdout
    assert kata_handlers(node) == ("kata-clh", "kata-qemu")
    assert node.cri().config["containerd"]["runtimes"]["kata-qemu"]["snapshotter"] == "native"


def test_a_foreign_setting_of_our_handler_is_refused_with_its_file(boot_ready: BootNode) -> None:
    node = boot_ready()
    configure(node, b"version = 3\n")
    install(node)
    run_toolkit(node)
    copy = node.root / COPY
    copy.write_text(
        copy.read_text().replace(
            "privileged_without_host_devices = true", "privileged_without_host_devices = false"
        )
    )
    before = node.snapshot(*WATCHED)
    for command in (("stage", "host-check"), ("install",), ("stage", "cri")):
        done = node.kata_node(*command, config=VALUES, payload=PAYLOAD)
        assert done.returncode == 3
        assert "this file has settings of kata-clh, kata-qemu" in done.stdout
        assert f"/{COPY}" in done.stdout
        assert "the NVIDIA container toolkit again" in done.stdout
    assert changes_by_a_refused_run(before, node.snapshot(*WATCHED)) == []


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_a_revert_is_not_held_up_by_a_drop_in_that_replaces_the_cri_settings(
    boot_ready: BootNode, suite: str
) -> None:
    node = boot_ready(suite)
    main = b'version = 2\nimports = ["/etc/containerd/config.d/*.toml"]\n'
    configure(node, main)
    install(node)
    registries = node.root / "etc/containerd/config.d/registries.toml"
    registries.parent.mkdir()
    registries.write_text(f'version = 2\n[plugins."{PLUGINS[2]}".registry]\nconfig_path = "/etc/certs.d"\n')
    restart(node)
    assert node.cri_handlers() == ("runc",)
    node.kata_node("revert", check=True)
    assert (node.cri_handlers(), main_file(node).read_bytes()) == (("runc",), main)
    assert not (node.root / "opt/kata").exists()


def test_a_revert_does_not_restart_a_runtime_that_would_not_start_again(boot_ready: BootNode) -> None:
    node = boot_ready()
    configure(node, b'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n')
    install(node)
    (node.root / "etc/containerd/conf.d").mkdir()
    broken = node.root / "etc/containerd/conf.d/broken.toml"
    broken.write_text("[")
    before, invocation = node.snapshot(*WATCHED), node.unit(UNIT).invocation
    done = node.kata_node("revert")
    assert done.returncode == 3
    assert "containerd would not start again, with this installation or without it" in done.stdout
    assert "/etc/containerd/conf.d/broken.toml" in done.stdout
    assert changes_by_a_refused_run(before, node.snapshot(*WATCHED)) == []
    assert node.unit(UNIT).invocation == invocation
    broken.unlink()
    node.kata_node("revert", check=True)
    assert node.cri_handlers() == ("runc",)
