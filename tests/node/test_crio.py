"""Install, update and revert on a real node with a real CRI-O."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from node import crio
from node.conftest import BootNode
from node.crio import UNIT, handlers
from node.debian_node import Node
from node.installation import HANDLERS, PAYLOAD, VALUES, WATCHED, fake_kvm, install, kill_at_syscall, outcomes
from node.snapshot import changes

DEBUG = "etc/crio/crio.conf.d/99-kata-deploy.debug"
OPTION = "overlay.skip_mount_home=true"
HAS_OPTION = f'[crio]\nstorage_option = ["{OPTION}"]\n'


def prepared(node: Node, payload: Path) -> Node:
    node.mount(payload, PAYLOAD)
    return fake_kvm(node)


@pytest.fixture
def ready(boot_node: BootNode, payload: Path) -> Node:
    """Return a fresh node with a serving CRI-O, the payload and a fake ``/dev/kvm``."""
    return prepared(crio.boot(boot_node), payload)


def test_an_install_on_a_fresh_node_restarts_once_and_the_handlers_are_served(ready: Node) -> None:
    install(ready)
    assert handlers(ready) == HANDLERS
    assert ready.activations(UNIT) == 2
    (only,) = json.loads(ready.kata_node("status", "--output", "json").stdout)["installations"]
    assert (only["cri"], only["artifacts"], only["drift"]) == ("serving", "placed", [])


def test_crio_runs_with_the_settings_of_the_drop_in(ready: Node) -> None:
    crio.write(ready, "20-admin.conf", '[crio]\nstorage_option = ["overlay.mountopt=nodev"]\n')
    install(ready)
    config = crio.running(ready)
    assert config["storage_option"] == ["overlay.mountopt=nodev", OPTION]
    qemu = config["runtime"]["runtimes"]["kata-qemu"]
    assert (qemu["runtime_type"], qemu["privileged_without_host_devices"]) == ("vm", True)
    assert (ready.root / qemu["runtime_path"].lstrip("/")).exists()
    assert (ready.root / qemu["runtime_config_path"].lstrip("/")).exists()


def test_a_second_install_skips_every_stage_and_writes_nothing(ready: Node) -> None:
    install(ready)
    invocation, before = ready.unit(UNIT).invocation, ready.snapshot(*WATCHED)
    done = ready.kata_node("install", "--output", "json", config=VALUES, payload=PAYLOAD, check=True)
    found = outcomes(done)
    assert (found["artifacts"], found["cri"], found["label"]) == ("skipped", "skipped", "skipped")
    assert changes(before, ready.snapshot(*WATCHED), times=True) == []
    assert ready.unit(UNIT).invocation == invocation


def test_a_revert_restores_everything(ready: Node) -> None:
    before = ready.snapshot(*WATCHED)
    install(ready, debug=True)
    ready.kata_node("revert", check=True)
    assert handlers(ready) == ()
    assert crio.running(ready).get("storage_option", []) == []
    assert changes(before, ready.snapshot(*WATCHED)) == []
    assert not (ready.root / "run/kata-node").exists()


@pytest.mark.parametrize(
    "main",
    [
        pytest.param(HAS_OPTION, id="the-option-is-there"),
        pytest.param('[crio]\nstorage_driver = "vfs"\n', id="a-driver-that-refuses-it"),
    ],
)
def test_a_change_of_the_handlers_needs_no_restart_if_the_storage_options_do_not_change(
    boot_node: BootNode, payload: Path, main: str
) -> None:
    node = prepared(crio.boot(boot_node, main=main), payload)
    invocation, activations = node.unit(UNIT).invocation, node.activations(UNIT)
    install(node)
    assert handlers(node) == HANDLERS
    one_less = {"shims": {"qemu": {"enabled": True}, "clh": {"enabled": True}}}
    node.kata_node("install", config=one_less, payload=PAYLOAD, check=True)
    assert handlers(node) == ("kata-clh", "kata-qemu")
    node.kata_node("revert", check=True)
    assert handlers(node) == ()
    assert (node.unit(UNIT).invocation, node.activations(UNIT)) == (invocation, activations)


def test_debug_applies_without_a_restart_and_leaves_nothing_when_it_is_disabled(ready: Node) -> None:
    install(ready)
    invocation, before = ready.unit(UNIT).invocation, ready.snapshot("/etc")
    install(ready, debug=True)
    debug = tuple(f"{name}-debug" for name in HANDLERS)
    assert handlers(ready) == tuple(sorted((*HANDLERS, *debug)))
    assert crio.running(ready)["runtime"]["log_level"] == "debug"
    assert (ready.root / DEBUG).exists()
    install(ready)
    assert handlers(ready) == HANDLERS
    assert crio.running(ready)["runtime"]["log_level"] == "info"
    assert changes(before, ready.snapshot("/etc")) == []
    assert ready.unit(UNIT).invocation == invocation


def test_guest_pull_can_be_enabled_and_disabled_on_an_installed_node(ready: Node) -> None:
    def pulls() -> dict[str, bool]:
        runtimes = crio.running(ready)["runtime"]["runtimes"]
        return {name: runtimes[name].get("runtime_pull_image", False) for name in handlers(ready)}

    install(ready)
    assert pulls() == dict.fromkeys(HANDLERS, False)
    guest = {"enabled": True, "crio": {"guestPull": True}}
    install(ready, shims={**VALUES["shims"], "qemu": guest})
    assert pulls() == {**dict.fromkeys(HANDLERS, False), "kata-qemu": True}
    install(ready)
    assert pulls() == dict.fromkeys(HANDLERS, False)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        pytest.param("zz.bak", "this is [not TOML\n", "not valid TOML", id="broken-backup"),
        pytest.param("sub/dir/x", "[crio.runtime]\nruntimes = 1\n", "is not a table", id="wrong-type"),
        pytest.param(
            "50-x", '[crio.runtime]\ndefault_runtime = "gone"\n', "its default_runtime is gone", id="default"
        ),
        pytest.param(
            "zz-other",
            '[crio.runtime.runtimes.kata-qemu]\nruntime_path = "/usr/bin/crun"\n',
            "the handler kata-qemu",
            id="our-handler",
        ),
    ],
)
def test_a_foreign_drop_in_that_breaks_the_configuration_is_named_and_crio_is_not_restarted(
    ready: Node, name: str, content: str, reason: str
) -> None:
    ready.kata_node("stage", "artifacts", config=VALUES, payload=PAYLOAD, check=True)
    crio.write(ready, name, content)
    before, invocation = ready.snapshot("/etc"), ready.unit(UNIT).invocation
    done = ready.kata_node("stage", "cri", config=VALUES, payload=PAYLOAD)
    assert done.returncode in (1, 4), done.stdout + done.stderr
    assert reason in done.stdout
    assert name in done.stdout
    assert changes(before, ready.snapshot("/etc")) == []
    assert ready.unit(UNIT).invocation == invocation
    assert crio.status(ready).serving


@pytest.mark.parametrize("has_option", [pytest.param(True, id="reload"), pytest.param(False, id="restart")])
def test_an_install_rolls_back_when_crio_drops_a_handler_with_only_a_warning(
    ready: Node, has_option: bool
) -> None:
    """CRI-O drops the handlers because its unit hides /opt/kata from it."""
    directory = ready.root / "run/systemd/system/crio.service.d"
    directory.mkdir(parents=True)
    (ready.root / "opt/kata").mkdir()
    (directory / "blind.conf").write_text("[Service]\nTemporaryFileSystem=/opt/kata\n")
    if has_option:
        crio.write(ready, "20-admin.conf", HAS_OPTION)
    ready.run(["systemctl", "daemon-reload"])
    crio.restart(ready)
    before = ready.snapshot("/etc")
    done = ready.kata_node("install", config=VALUES, payload=PAYLOAD)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "kata-qemu" in done.stdout
    assert changes(before, ready.snapshot("/etc")) == []
    assert (handlers(ready), crio.status(ready).serving) == ((), True)
    assert "is being ignored due to" in ready.journal(UNIT)


def test_a_crio_that_started_without_a_drop_in_directory_is_restarted(
    boot_node: BootNode, payload: Path
) -> None:
    node = prepared(crio.boot(boot_node, drop_ins=False, main=HAS_OPTION), payload)
    before = node.snapshot(*WATCHED)
    install(node)
    assert handlers(node) == HANDLERS
    assert node.activations(UNIT) == 2
    node.kata_node("revert", check=True)
    assert handlers(node) == ()
    assert changes(before, node.snapshot(*WATCHED)) == []


@pytest.mark.parametrize(
    ("call", "has_option"),
    [
        pytest.param("rename", False, id="at-every-file-it-replaces-with-a-restart"),
        pytest.param("rename", True, id="at-every-file-it-replaces-with-a-reload"),
        pytest.param("sendto", True, id="at-every-message-it-sends-with-a-reload"),
    ],
)
def test_a_run_killed_anywhere_leaves_a_crio_that_starts_and_the_next_run_completes(
    ready: Node, call: str, has_option: bool
) -> None:
    if has_option:
        crio.write(ready, "20-admin.conf", HAS_OPTION)
        crio.restart(ready)
    before = ready.snapshot(*WATCHED)
    ready.kata_node("stage", "artifacts", config=VALUES, payload=PAYLOAD, check=True)
    for stage, other, served in (("cri", "revert-cri", HANDLERS), ("revert-cri", "cri", ())):
        cuts = 0
        while kill_at_syscall(ready, stage, call, cuts + 1):
            cuts += 1
            crio.restart(ready)
            ready.kata_node("stage", stage, config=VALUES, payload=PAYLOAD, check=True)
            assert handlers(ready) == served
            ready.kata_node("stage", other, config=VALUES, payload=PAYLOAD, check=True)
        assert cuts >= 3, f"{stage} was cut only {cuts} times"
    ready.kata_node("revert", check=True)
    assert handlers(ready) == ()
    assert changes(before, ready.snapshot(*WATCHED)) == []


def test_a_container_with_only_a_few_mounts_of_the_node_installs_and_reverts(
    ready: Node, payload: Path
) -> None:
    before = ready.snapshot(*WATCHED)
    mounts = ("/etc/crio", "/etc/machine-id", "/opt", "/run/crio", "/run/dbus", "/run/kata-node")
    ready.kata_node_outside("install", config=VALUES, payload=payload, mounts=mounts, check=True)
    assert handlers(ready) == HANDLERS
    ready.kata_node_outside("revert", config=VALUES, mounts=mounts, check=True)
    assert handlers(ready) == ()
    assert changes(before, ready.snapshot(*WATCHED)) == []


def test_a_baked_image_serves_at_its_next_start(ready: Node) -> None:
    version = crio.status(ready).version
    assert version == f"cri-o://{crio.NEWEST}"
    offline = ("--offline", "--runtime", version)
    ready.kata_node("install", *offline, config=VALUES, payload=PAYLOAD, check=True)
    assert handlers(ready) == ()
    crio.restart(ready)
    assert handlers(ready) == HANDLERS


def test_two_installations_are_installed_and_reverted_independently(ready: Node) -> None:
    before = ready.snapshot(*WATCHED)
    install(ready, debug=True)
    second = {"env": {"multiInstallSuffix": "two"}, "shims": {"qemu": {"enabled": True}}, "debug": True}
    with_first = ready.snapshot("/etc")
    ready.kata_node("install", config=second, payload=PAYLOAD, check=True)
    assert {"kata-qemu", "kata-qemu-debug", "kata-qemu-two", "kata-qemu-debug-two"} <= set(handlers(ready))
    ready.kata_node("revert", config=second, check=True)
    assert changes(with_first, ready.snapshot("/etc")) == []
    ready.kata_node("revert", config=VALUES, check=True)
    assert changes(before, ready.snapshot(*WATCHED)) == []


@pytest.mark.parametrize("name", ["09-copy.conf", "99-nvidia.conf"])
def test_a_copy_of_the_whole_configuration_hinders_neither_an_install_nor_a_revert(
    ready: Node, name: str
) -> None:
    install(ready)
    printed = ready.run(["crio", "config"]).stdout
    assert "[crio.runtime.runtimes.kata-qemu]" in printed
    crio.write(ready, name, printed)
    crio.restart(ready)
    assert handlers(ready) == HANDLERS
    invocation = ready.unit(UNIT).invocation
    again = install(ready)
    assert f"/etc/crio/crio.conf.d/{name} has a copy of {', '.join(HANDLERS)}" in again.stdout
    assert ready.unit(UNIT).invocation == invocation
    done = ready.kata_node("revert", check=True)
    assert f"kata-node removed {', '.join(HANDLERS)} from /etc/crio/crio.conf.d/{name}" in done.stdout
    assert handlers(ready) == ()
    assert "kata-" not in (ready.root / "etc/crio/crio.conf.d" / name).read_text()
    crio.restart(ready)
