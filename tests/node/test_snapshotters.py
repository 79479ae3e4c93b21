"""Snapshotters on real nodes: nydus-snapshotter as a systemd unit, and erofs, with a real containerd."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from node.commands import CommandResult
from node.conftest import BootNode
from node.containerd_build import NEWEST
from node.debian_node import POD_MOUNTS, Node
from node.gomodule import Program, built
from node.installation import (
    PAYLOAD,
    UNIT,
    WATCHED,
    configure,
    fake_kvm,
    index,
    kata_handlers,
    make_payload,
    outcomes,
)
from node.rootfs import PACKAGES
from node.snapshot import changes
from node.whole_values import EXAMPLES, node_values

SNAPSHOTTER = tuple(
    Program("github.com/containerd/nydus-snapshotter", "v0.16.1", f"./cmd/{name}", ldflags="-s -w")
    for name in ("containerd-nydus-grpc", "nydus-overlayfs")
)
OURS, DATA = "nydus-snapshotter.service", "var/lib/nydus-snapshotter"
VALUES: Mapping[str, Any] = {
    "shims": {
        "qemu": {"enabled": True, "containerd": {"snapshotter": "nydus"}},
        "clh": {"enabled": True},
    },
    "snapshotter": {"setup": ["nydus"]},
}
PLAIN: Mapping[str, Any] = {"shims": {"qemu": {"enabled": True}, "clh": {"enabled": True}}}
EROFS: Mapping[str, Any] = {
    "shims": {"qemu-runtime-rs": {"enabled": True, "containerd": {"snapshotter": "erofs"}}},
    "snapshotter": {"setup": ["erofs"]},
}


@pytest.fixture(scope="session")
def with_nydus(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sample payload with a nydus-snapshotter that runs."""
    directory = make_payload(tmp_path_factory.mktemp("payload"), "--no-index")
    home = directory / "opt/kata/nydus-snapshotter"
    home.mkdir()
    for program in SNAPSHOTTER:
        shutil.copy(built(program), home)
    return index(directory)


@pytest.fixture
def boot_ready(boot_node: BootNode, with_nydus: Path) -> BootNode:
    """Return a function that boots nodes with the payload and a fake ``/dev/kvm``."""

    def boot(suite: str = "forky", **options: Any) -> Node:
        node = fake_kvm(boot_node(suite, **options))
        node.mount(with_nydus, PAYLOAD)
        return node

    return boot


@pytest.fixture
def ready(boot_ready: BootNode) -> Node:
    return boot_ready()


def install(
    node: Node, values: Mapping[str, Any] = VALUES, *, check: bool = True, **more: Any
) -> CommandResult:
    return node.kata_node("install", config={**values, **more}, payload=PAYLOAD, check=check)


def snapshotters(node: Node) -> dict[str, str]:
    """Return containerd's snapshotter -> load status."""
    lines = [line.split() for line in node.run(["ctr", "plugins", "ls"]).stdout.splitlines()]
    return {line[1]: line[-1] for line in lines if line and line[0] == "io.containerd.snapshotter.v1"}


def of_handlers(node: Node) -> dict[str, str]:
    """Return Kata handler -> snapshotter, from the CRI."""
    runtimes = node.cri().config["containerd"]["runtimes"]
    return {name: runtime["snapshotter"] for name, runtime in runtimes.items() if name.startswith("kata-")}


def of_images(node: Node) -> dict[str, str]:
    """Return handler -> snapshotter of its images."""
    import tomllib

    dump = tomllib.loads(node.run(["containerd", "config", "dump"]).stdout)
    found = dump["plugins"]["io.containerd.cri.v1.images"]["runtime_platforms"]
    return {name: platform["snapshotter"] for name, platform in found.items()}


def ctr(node: Node, *args: str, snapshotter: str = "nydus", check: bool = True) -> CommandResult:
    return node.run(["ctr", "snapshots", "--snapshotter", snapshotter, *args], check=check)


def units(node: Node) -> list[str]:
    return sorted(path.name for path in (node.root / "etc/systemd/system").rglob("nydus-*"))


@pytest.mark.parametrize(
    ("suite", "release", "config"),
    [
        pytest.param("trixie", "", None, id="1.7"),
        pytest.param("forky", "", b"version = 3\n", id="2.1-schema-3"),
        pytest.param("forky", "", b"version = 2\n", id="2.1-schema-2"),
        pytest.param("forky", NEWEST, b"version = 3\n", id="newest"),
    ],
)
def test_nydus_is_set_up_used_only_by_its_handler_and_removed_by_the_revert(
    boot_ready: BootNode, suite: str, release: str, config: bytes | None
) -> None:
    node = boot_ready(suite, **({"containerd": release} if release else {}))
    if config is not None:
        configure(node, config)
    before = node.snapshot(*WATCHED)
    install(node)
    assert snapshotters(node)["nydus"] == "ok"
    assert of_handlers(node) == {"kata-qemu": "nydus", "kata-clh": ""}
    if suite != "trixie":
        assert of_images(node) == {"kata-qemu": "nydus"}
    ctr(node, "prepare", "mine")
    assert "io.katacontainers.volume=" in ctr(node, "mounts", "/mnt", "mine").stdout
    assert node.run(["systemctl", "is-enabled", OURS]).stdout.strip() == "enabled"
    done = install(node, check=False)
    assert done.returncode == 0, done.stderr
    done = node.kata_node("revert", "--output", "json", check=True)
    assert "/var/lib/nydus-snapshotter stays" in done.stdout
    assert node.unit(OURS).active == "inactive"
    assert units(node) == []
    assert "nydus" not in snapshotters(node)
    assert (node.root / DATA / "metadata.db").exists()
    assert changes(before, node.snapshot(*WATCHED)) == []
    assert kata_handlers(node) == ()


def test_a_second_install_restarts_neither_unit(ready: Node) -> None:
    install(ready)
    running = (ready.unit(OURS), ready.unit(UNIT))
    done = ready.kata_node("install", "--output", "json", config=VALUES, payload=PAYLOAD, check=True)
    assert outcomes(done)["cri"] == "skipped"
    assert (ready.unit(OURS), ready.unit(UNIT)) == running


def test_each_unit_restarts_without_the_other(ready: Node) -> None:
    install(ready)
    ctr(ready, "prepare", "mine")
    nydus = ready.unit(OURS)
    ready.run(["systemctl", "restart", UNIT])
    ready.wait_for_containerd()
    assert ready.unit(OURS) == nydus
    containerd = ready.unit(UNIT)
    ready.run(["systemctl", "restart", OURS])
    assert ready.unit(UNIT) == containerd
    assert "mine" in ctr(ready, "ls").stdout


def test_the_snapshotter_starts_before_the_runtime_at_boot(ready: Node) -> None:
    install(ready)
    ready.run(["systemctl", "stop", UNIT, OURS])
    ready.run(["systemctl", "start", UNIT])
    shown = ready.run(
        ["systemctl", "show", "--property=ActiveEnterTimestampMonotonic", "--value", OURS, UNIT]
    ).stdout.split()
    nydus, containerd = map(int, shown)
    assert 0 < nydus < containerd


def test_an_install_starts_a_stopped_snapshotter_without_a_restart_of_the_runtime(ready: Node) -> None:
    install(ready)
    containerd = ready.unit(UNIT)
    ready.run(["systemctl", "stop", OURS])
    install(ready)
    assert ready.unit(OURS).active == "active"
    assert ready.unit(UNIT) == containerd


def test_disabling_the_snapshotter_removes_it(ready: Node) -> None:
    install(ready)
    install(ready, PLAIN)
    assert units(ready) == []
    assert "nydus" not in snapshotters(ready)
    assert of_handlers(ready) == {"kata-qemu": "", "kata-clh": ""}


def test_a_later_failure_rolls_the_snapshotter_back_too(ready: Node) -> None:
    before = ready.snapshot("/etc")
    done = install(ready, check=False, containerd={"userDropIn": "this is [not TOML\n"})
    assert done.returncode != 0
    assert changes(before, ready.snapshot("/etc")) == []
    assert ready.unit(OURS).active == "inactive"
    assert ready.cri().serving


def test_two_installations_have_separate_snapshotters(ready: Node) -> None:
    install(ready)
    install(ready, env={"multiInstallSuffix": "b"})
    assert {"nydus": "ok", "nydus-b": "ok"}.items() <= snapshotters(ready).items()
    assert of_handlers(ready)["kata-qemu-b"] == "nydus-b"
    ctr(ready, "prepare", "mine", snapshotter="nydus-b")
    assert "mine" not in ctr(ready, "ls").stdout
    ready.kata_node("revert", config={**VALUES, "env": {"multiInstallSuffix": "b"}}, check=True)
    assert "nydus-b" not in snapshotters(ready)
    assert snapshotters(ready)["nydus"] == "ok"
    assert ready.unit(OURS).active == "active"


def test_a_run_killed_at_any_file_replacement_is_completed_by_the_next_run(ready: Node) -> None:
    ready.kata_node("stage", "artifacts", config=VALUES, payload=PAYLOAD, check=True)
    before = ready.snapshot("/etc")
    for stage, other in (("cri", "revert-cri"), ("revert-cri", "cri")):
        cuts = 0
        while kill_at_syscall(ready, stage, cuts + 1):
            cuts += 1
            assert ready.wait_for_containerd().serving
            ready.kata_node("stage", stage, config=VALUES, payload=PAYLOAD, check=True)
            assert snapshotters(ready).get("nydus") == ("ok" if stage == "cri" else None)
            assert ready.unit(OURS).active == ("active" if stage == "cri" else "inactive")
            ready.kata_node("stage", other, config=VALUES, payload=PAYLOAD, check=True)
        assert cuts >= 3, f"{stage} was cut only {cuts} times"
    assert changes(before, ready.snapshot("/etc")) == []


def kill_at_syscall(node: Node, stage: str, count: int) -> bool:
    """Run ``stage`` and kill it at its n-th file replacement; return False if it ended before."""
    kill = ("strace", "--quiet=all", "-o", "/dev/null", f"--inject=rename:signal=KILL:when={count}")
    done = node.kata_node("stage", stage, config=VALUES, payload=PAYLOAD, prefix=kill)
    assert done.returncode in (0, -9, 137), done.stdout + done.stderr
    return done.returncode != 0


def test_a_container_with_the_unit_directory_mounted_sets_the_snapshotter_up(
    ready: Node, with_nydus: Path
) -> None:
    mounts = (*POD_MOUNTS, "/etc/systemd/system")
    before = ready.snapshot(*WATCHED)
    ready.kata_node_outside("install", config=VALUES, payload=with_nydus, mounts=mounts, check=True)
    assert snapshotters(ready)["nydus"] == "ok"
    ctr(ready, "prepare", "mine")
    ready.kata_node_outside("revert", config=VALUES, mounts=mounts, check=True)
    assert "nydus" not in snapshotters(ready)
    assert changes(before, ready.snapshot(*WATCHED)) == []


def test_a_container_without_the_unit_directory_is_refused_with_the_path_to_mount(
    ready: Node, with_nydus: Path
) -> None:
    done = ready.kata_node_outside("install", config=VALUES, payload=with_nydus)
    assert done.returncode == 3
    assert "mount the node's /etc/systemd/system" in done.stdout + done.stderr


def test_a_foreign_unit_is_refused_before_anything_is_written(ready: Node) -> None:
    (ready.root / f"etc/systemd/system/{OURS}").write_text("[Service]\nExecStart=/bin/sleep inf\n")
    before = ready.snapshot(*WATCHED)
    done = install(ready, check=False)
    assert done.returncode == 3
    assert "snapshotter.setup" in done.stdout + done.stderr
    assert changes(before, ready.snapshot(*WATCHED)) == []


def test_containerd_1_6_refuses_a_snapshotter_per_handler(boot_ready: BootNode) -> None:
    node = boot_ready("bookworm")
    before = node.snapshot(*WATCHED)
    done = install(node, check=False)
    assert done.returncode == 3
    assert "1.7" in done.stdout + done.stderr
    assert changes(before, node.snapshot(*WATCHED)) == []


@pytest.mark.parametrize("suite", ["trixie", "forky"])
def test_the_example_for_confidential_guests_is_served_with_nydus(boot_ready: BootNode, suite: str) -> None:
    node = boot_ready(suite)
    before = node.snapshot(*WATCHED)
    values = node_values(EXAMPLES["try-kata-tee.values.yaml"])
    install(node, values)
    names = ("qemu-coco-dev", "qemu-snp", "qemu-tdx")
    assert of_handlers(node) == {
        f"kata-{name}{end}": "nydus" for name in names for end in ("", "-runtime-rs")
    }
    assert snapshotters(node)["nydus"] == "ok"
    node.kata_node("revert", config=values, check=True)
    assert changes(before, node.snapshot(*WATCHED)) == []


@pytest.mark.parametrize(
    ("name", "of_shims"),
    [
        ("try-kata-nvidia-cpu.values.yaml", {"cpu": "", "cpu-runtime-rs": "erofs"}),
        (
            "try-kata-nvidia-gpu.values.yaml",
            {
                "gpu": "",
                "gpu-runtime-rs": "erofs",
                **{f"gpu-{kind}{end}": "nydus" for kind in ("snp", "tdx") for end in ("", "-runtime-rs")},
            },
        ),
    ],
)
def test_the_examples_for_nvidia_are_served_with_erofs(
    boot_ready: BootNode, name: str, of_shims: Mapping[str, str]
) -> None:
    node = boot_ready(containerd=NEWEST, packages=(*PACKAGES, "erofs-utils"))
    if "\terofs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("this machine's kernel has no erofs")
    before = node.snapshot(*WATCHED)
    values = node_values(EXAMPLES[name])
    # Few machines that run tests have dm_verity, which containerd needs for it.
    install(node, {**values, "snapshotter": {**values["snapshotter"], "erofsDmverity": False}})
    assert of_handlers(node) == {
        f"kata-qemu-nvidia-{shim}": snapshotter for shim, snapshotter in of_shims.items()
    }
    node.kata_node("revert", check=True)
    assert changes(before, node.snapshot(*WATCHED)) == []


def test_erofs_serves_with_its_differ(boot_ready: BootNode) -> None:
    node = boot_ready(containerd=NEWEST, packages=(*PACKAGES, "erofs-utils"))
    if "\terofs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("this machine's kernel has no erofs")
    before = node.snapshot(*WATCHED)
    install(node, EROFS)
    assert of_handlers(node) == {"kata-qemu-runtime-rs": "erofs"}
    plugins = node.run(["ctr", "plugins", "ls"]).stdout
    states = {tuple(line.split()[:2]): line.split()[-1] for line in plugins.splitlines() if line.strip()}
    for plugin in (
        ("io.containerd.snapshotter.v1", "erofs"),
        ("io.containerd.differ.v1", "erofs"),
        ("io.containerd.service.v1", "diff-service"),
    ):
        assert states[plugin] == "ok"
    node.kata_node("revert", check=True)
    assert changes(before, node.snapshot(*WATCHED)) == []


def test_erofs_without_mkfs_is_refused_because_containerd_would_not_serve_the_cri(
    boot_ready: BootNode,
) -> None:
    node = boot_ready(containerd=NEWEST)
    done = node.kata_node("install", "--output", "json", config=EROFS, payload=PAYLOAD)
    assert done.returncode == 3
    failed = [
        check["name"]
        for stage in json.loads(done.stdout)["stages"]
        for check in stage.get("checks", ())
        if check["status"] == "fail"
    ]
    assert "mkfs.erofs" in failed
    assert node.cri().serving
