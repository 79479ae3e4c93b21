"""The findings of host-check for nodes with various facts."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from kata_node.checks.facts import HostCheckFacts
from kata_node.checks.hardware import HardwareFacts
from kata_node.checks.table import all_findings
from kata_node.checks.unread_facts import UnreadConfig
from kata_node.errors import CriError, HostError, KataNodeError, PayloadError, SystemdError
from kata_node.host.devices import KVM, NUMBERS, VHOST_VSOCK
from kata_node.host.files import FileState, host_error
from kata_node.host.write_access import WriteAccess
from kata_node.payload.facts import ArtifactFacts
from kata_node.plan.receipt import CriRecord, Receipt
from kata_node.plan.report import Finding
from kata_node.runtime.containerd.config import ContainerdConfig
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.model.distributions import distribution_runtime
from kata_node.runtime.trial_start import Trial
from kata_node.settings import load as settings
from kata_node.versions import parse_version, runtime_version

GIB = 1 << 30
MAIN = "/etc/containerd/config.toml"
CONF_D = "/etc/containerd/conf.d/99-kata-deploy.toml"
CLASH = b"[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata-qemu]\n"
MACHINE = HardwareFacts(
    root_user=True,
    machine_id="0123",
    dev_visible=True,
    devices=dict.fromkeys(NUMBERS, "there"),
    virtualization=True,
    modules=frozenset(),
    supported_tees=frozenset(),
    memory=8 * GIB,
    selinux="disabled",
)
RUNTIME = RuntimeFacts(
    runtime_version("containerd://2.1.9"),
    "the CRI socket",
    distribution_runtime("k8s", "containerd"),
    ContainerdConfig("/opt/kata", "", parse_version("2.1.9"), distribution_runtime("k8s", "containerd")),
    {MAIN: FileState(b"version = 3\n", 0o644, 0, 0)},
    {},
    (),
    frozenset(),
    "containerd.service",
    "run-1",
    "active",
    "boot",
    ("runc",),
)
INSTALL_DIR, DROP_INS = "/opt/kata", "/opt/kata/containerd/config.d/99-kata-deploy.toml"
OPT = WriteAccess(INSTALL_DIR, INSTALL_DIR, "/opt", free=10 * GIB)
ACCESS: dict[str, WriteAccess | KataNodeError] = {
    INSTALL_DIR: OPT,
    DROP_INS: WriteAccess(DROP_INS, DROP_INS, "/opt"),
    MAIN: WriteAccess(MAIN, MAIN, "/etc/containerd"),
}
GOOD = HostCheckFacts(
    False, "", MACHINE, None, RUNTIME, ArtifactFacts("inputs", {}), {}, GIB, (), access=ACCESS
)
RECEIPT = Receipt("default", "/opt/kata", "0")
UNFINISHED = replace(
    RECEIPT, cri=CriRecord("restarting", "containerd", "2.1.9", "containerd.service", "run-1", "boot", (), ())
)


def checks(
    facts: HostCheckFacts, receipt: Receipt = RECEIPT, shims: str = "qemu", **values: str
) -> dict[str, Finding]:
    """Return the findings that do not pass, by their name."""
    loaded = settings.load(None, overrides={"shims": shims, **values}, arch="x86_64")
    return {check.name: check for check in all_findings(loaded, facts, receipt) if check.status != "pass"}


def machine(devices: Mapping[str, str] | None = None, **changes: Any) -> HostCheckFacts:
    changes["devices"] = {**MACHINE.devices, **(devices or {})}
    return replace(GOOD, machine=replace(MACHINE, **changes))


def runtime(**changes: Any) -> HostCheckFacts:
    return replace(GOOD, runtime=replace(RUNTIME, **changes))


def access(path: str, **changes: Any) -> HostCheckFacts:
    found = ACCESS[path]
    assert isinstance(found, WriteAccess)
    return replace(GOOD, access={**ACCESS, path: replace(found, **changes)})


def test_a_good_node_passes_every_check() -> None:
    assert {name for name, check in checks(GOOD).items() if check.status != "skip"} == set()


@pytest.mark.parametrize(
    ("facts", "name", "status", "permanent", "says"),
    [
        pytest.param(machine(devices={KVM: "missing"}), "kvm", "fail", True, "does not exist", id="no-kvm"),
        pytest.param(
            machine(devices={KVM: "other"}), "kvm", "fail", True, "not the device", id="file-as-kvm"
        ),
        pytest.param(
            machine(dev_visible=False, devices={KVM: "missing"}),
            *("kvm", "skip", True, "not mounted"),
            id="dev-not-mounted",
        ),
        pytest.param(machine(virtualization=False), "cpu", "warn", True, "virtualization", id="no-vmx"),
        pytest.param(
            machine(devices={VHOST_VSOCK: "missing"}), "vhost", "fail", True, VHOST_VSOCK, id="no-vsock"
        ),
        pytest.param(machine(memory=GIB), "memory", "warn", True, "1.0 GiB", id="little-memory"),
        pytest.param(machine(selinux="enforcing"), "selinux", "warn", True, "SELinux may deny", id="selinux"),
        pytest.param(
            access(INSTALL_DIR, free=GIB // 2),
            "space",
            "fail",
            False,
            "512.0 MiB free",
            id="full",
        ),
        pytest.param(
            replace(GOOD, expected_machine_id="9999"),
            "machine-id",
            "fail",
            True,
            "9999",
            id="another-machine",
        ),
        pytest.param(
            replace(GOOD, artifacts=PayloadError("no payload", where="/p", hint="mount it")),
            "payload",
            "fail",
            False,
            "/p: no payload",
            id="no-payload",
        ),
        pytest.param(
            replace(GOOD, artifacts=ArtifactFacts("inputs", {}, drop_in_warnings=("shims.qemu.dropIn: x",))),
            "kata-config",
            "warn",
            True,
            "shims.qemu.dropIn: x",
            id="setting that Kata ignores",
        ),
        pytest.param(
            replace(GOOD, missing_files={"qemu": ("bin/qemu-system-x86_64",)}),
            "payload",
            "fail",
            True,
            "qemu needs bin/qemu-system-x86_64",
            id="payload-lacks-a-file",
        ),
        pytest.param(
            replace(GOOD, conflicts=("bin/qemu",)), "foreign", "fail", True, "bin/qemu", id="foreign-files"
        ),
        pytest.param(
            replace(GOOD, systemd=SystemdError("no socket", hint="mount it")),
            "systemd",
            "fail",
            False,
            "no socket",
            id="no-systemd",
        ),
        pytest.param(
            replace(GOOD, runtime=CriError("nobody listens", where="/run/x.sock", hint="start it")),
            "runtime",
            "fail",
            False,
            "/run/x.sock: nobody listens",
            id="no-cri-socket",
        ),
        pytest.param(
            runtime(runtime=runtime_version("containerd://1.5.18")),
            "runtime",
            "fail",
            True,
            "1.5.18 is too old",
            id="containerd-1.5",
        ),
        pytest.param(
            runtime(distribution_runtime=distribution_runtime("k3s", "containerd"), unit="k3s.service"),
            "runtime",
            "fail",
            True,
            "this node runs k3s.service",
            id="another-distribution",
        ),
        pytest.param(runtime(unit=""), "unit", "fail", True, "unit of containerd", id="no-such-unit"),
        pytest.param(runtime(state="inactive"), "unit", "fail", False, "inactive", id="unit-down"),
        pytest.param(
            runtime(files={MAIN: FileState(b"a = [\n", 0o644, 0, 0)}),
            "config",
            "fail",
            True,
            "TOML",
            id="broken-toml",
        ),
        pytest.param(
            runtime(files={MAIN: FileState(CLASH, 0o644, 0, 0)}),
            "config",
            "fail",
            True,
            "kata-qemu",
            id="a-handler-of-that-name-is-there",
        ),
        pytest.param(
            runtime(files={CONF_D: FileState(b'runtime_path = "/srv/opt/kata/bin/x"\n', 0o644, 0, 0)}),
            "config",
            "fail",
            True,
            CONF_D,
            id="a-drop-in-of-an-installation-elsewhere",
        ),
        pytest.param(
            replace(GOOD, runtime=HostError("input/output error", where=MAIN, hint="look at the disk")),
            "runtime",
            "fail",
            False,
            MAIN,
            id="a-disk-that-may-recover",
        ),
    ],
)
def test_each_problem_has_a_finding_with_reason_and_remedy(
    facts: HostCheckFacts, name: str, status: str, permanent: bool, says: str
) -> None:
    found = checks(facts)[name]
    assert (found.status, found.permanent) == (status, permanent)
    assert says in found.reason
    assert found.remedy or status == "skip"


def test_all_failures_are_reported_at_once() -> None:
    facts = replace(
        machine(devices={KVM: "missing"}), systemd=SystemdError("no socket"), conflicts=("bin/qemu",)
    )
    assert {name for name, check in checks(facts).items() if check.status == "fail"} >= {
        "kvm",
        "systemd",
        "foreign",
    }


def test_a_broken_file_that_was_not_read_either_has_one_remedy() -> None:
    broken = replace(RUNTIME, files={MAIN: FileState(b"= broken", 0o644, 0, 0)})
    unread = UnreadConfig(1.0, {MAIN: 2.0}, Trial("fails", "it wrote x"))
    found = checks(replace(GOOD, runtime=broken, unread=unread))
    assert [found[name].status for name in ("config", "unread-config")] == ["fail", "fail"]
    assert [bool(found[name].remedy) for name in ("config", "unread-config")] == [True, False]


def test_a_missing_tee_is_only_a_warning() -> None:
    found = checks(GOOD, shims="qemu-snp")["tee-snp"]
    assert (found.status, "snp" in found.reason) == ("warn", True)
    assert "tee-snp" not in checks(machine(supported_tees=frozenset({"snp"})), shims="qemu-snp")


def test_a_remote_shim_needs_no_kvm() -> None:
    assert checks(machine(devices={KVM: "missing"}), shims="remote")["kvm"].status == "skip"


def test_a_runtime_that_a_killed_run_left_down_is_only_a_warning() -> None:
    facts = runtime(state="failed", handlers=None)
    found = checks(facts, UNFINISHED)
    assert (found["unit"].status, found["cri"].status) == ("warn", "warn")


def test_offline_the_hardware_is_not_checked() -> None:
    facts = replace(machine(devices={KVM: "missing"}), offline=True)
    found = checks(facts)
    assert found["hardware"].status == "skip"
    assert "kvm" not in found


def test_unsupported_settings_fail_and_are_named() -> None:
    mariner = replace(settings.load(None, overrides={}, arch="x86_64"), host_os="cbl-mariner")
    found = {check.name: check for check in all_findings(mariner, GOOD, RECEIPT)}["settings"]
    assert found.status == "fail"
    assert "env.hostOS" in found.remedy


DEFAULT = "[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'nobody'\n"


@pytest.mark.parametrize(
    ("drop_in", "says"),
    [
        pytest.param(f"version = 3\n{DEFAULT}", "default_runtime_name is nobody", id="a-default-of-none"),
        pytest.param("version = 4\n", "is above version = 3", id="a-schema-above-the-main-files"),
        pytest.param('imports = ["/etc/mine.toml"]\n', "", id="an-import-that-exists"),
    ],
)
def test_problems_of_the_users_drop_in_are_reported_before_it_is_written(drop_in: str, says: str) -> None:
    loaded = settings.load(None, overrides={"shims": "qemu"}, arch="x86_64")
    checks = all_findings(replace(loaded, user_drop_in=drop_in), GOOD, RECEIPT)
    (config,) = [check for check in checks if check.name == "config"]
    assert config.status == ("fail" if says else "pass")
    assert says in config.reason
    assert not says or "containerd.userDropIn" in config.reason


def test_a_suffix_is_refused_if_all_installations_would_share_one_configuration_file() -> None:
    old = runtime(runtime=runtime_version("containerd://1.7.24"))
    found = checks(old, multi_install_suffix="blue")["runtime"]
    assert (found.status, found.permanent) == ("fail", True)
    assert "env.multiInstallSuffix: containerd 1.7.24 cannot serve several installations" in found.reason
    assert "runtime" not in checks(old)


def test_a_missing_import_of_the_users_drop_in_is_reported_before_it_is_written() -> None:
    loaded = settings.load(None, overrides={"shims": "qemu"}, arch="x86_64")
    loaded = replace(loaded, user_drop_in='imports = ["/etc/mine.toml"]\n')
    facts = replace(GOOD, missing_imports=frozenset({"/etc/mine.toml"}))
    (config,) = [check for check in all_findings(loaded, facts, RECEIPT) if check.name == "config"]
    assert (config.status, config.permanent) == ("fail", True)
    assert "it imports /etc/mine.toml, which does not exist" in config.reason


@pytest.mark.parametrize("entry", ["/opt/kata/none.toml", "/etc/none.toml"])
def test_a_missing_import_is_reported_also_below_the_install_dir(entry: str) -> None:
    facts = runtime(files={MAIN: FileState(f'imports = ["{entry}"]\n'.encode(), 0o644, 0, 0)})
    assert f"it imports {entry}, which does not exist" in checks(facts)["config"].reason


# Paths that cannot be written

STORE = "/nix/store/config.toml"
NEWER: dict[str, Any] = {
    "runtime": runtime_version("containerd://2.3.0"),
    "config": ContainerdConfig(
        INSTALL_DIR, "", parse_version("2.3.0"), distribution_runtime("k8s", "containerd")
    ),
}


@pytest.mark.parametrize(
    ("path", "changes", "reason", "remedy"),
    [
        pytest.param(
            INSTALL_DIR, {"read_only": True}, "/opt is on a read-only", "env.installationPrefix", id="opt"
        ),
        pytest.param(
            INSTALL_DIR, {"writable": False}, "/opt is not writable", "run as root", id="another-user"
        ),
        pytest.param(
            INSTALL_DIR, {"obstacle": "/opt"}, "/opt is not a directory", "move /opt away", id="file-above"
        ),
        pytest.param(
            MAIN,
            {"real_path": STORE, "directory": "/nix/store", "read_only": True},
            f"{MAIN}, which is {STORE}, is on a read-only",
            f"replace the symlink {MAIN} by a plain file",
            id="symlink-into-a-read-only-store",
        ),
        pytest.param(MAIN, {"mount_point": True}, "is a mount of its own", f"unmount {MAIN}", id="mount"),
        pytest.param(
            MAIN,
            {"real_path": "/gone/c.toml", "directory": "/", "missing_directory": "/gone"},
            f"{MAIN} is a symlink to /gone/c.toml, and the directory /gone does not exist",
            "create the directory /gone",
            id="dangling-symlink",
        ),
        pytest.param(MAIN, {"read_only": True}, "/etc/containerd is on a read-only", "make /etc", id="etc"),
        pytest.param(MAIN, {"unchangeable": MAIN}, "immutable", f"chattr -i -a {MAIN}", id="immutable"),
        pytest.param(
            MAIN,
            {"visible": False},
            "/etc/containerd is not mounted below the host root",
            "containerd.configDir and containerd.configFileName",
            id="not-mounted",
        ),
        pytest.param(
            DROP_INS, {"obstacle": "/opt/kata/containerd"}, "/opt/kata/containerd is not", "move", id="inside"
        ),
    ],
)
def test_a_path_that_cannot_be_written_fails_for_good_with_the_remedy_that_fits(
    path: str, changes: dict[str, Any], reason: str, remedy: str
) -> None:
    facts = access(path, **changes)
    found = checks(facts)["writable"]
    assert (found.status, found.permanent) == ("fail", True)
    assert reason in found.reason
    assert remedy in found.remedy
    assert ("env.installationPrefix" in found.remedy) == (path != MAIN)
    newer = checks(replace(facts, runtime=replace(RUNTIME, **NEWER)))["writable"]
    assert ("conf.d/*.toml" in newer.remedy) == (path == MAIN and "visible" not in changes)


def test_a_path_that_is_as_wanted_need_not_be_writable() -> None:
    loaded = settings.load(None, overrides={"shims": "qemu"}, arch="x86_64")
    changes = RUNTIME.config.desired_config(loaded, RUNTIME.contents).changes
    files = {
        change.path: FileState(change.content, 0o644, 0, 0)
        for change in changes
        if change.content is not None
    }
    facts = replace(access(MAIN, read_only=True), runtime=replace(RUNTIME, files=files))
    assert "writable" not in checks(facts)


def test_a_file_system_without_programs_fails_for_good() -> None:
    found = checks(access(INSTALL_DIR, executable=False))["executable"]
    assert (found.status, found.permanent) == ("fail", True)
    assert "noexec" in found.reason
    assert "env.installationPrefix" in found.remedy
    offline = replace(access(INSTALL_DIR, executable=False), offline=True)
    assert "executable" not in checks(offline)


def test_a_file_where_the_runtime_needs_a_directory_fails_for_good() -> None:
    error = host_error("/etc/containerd/config.toml", NotADirectoryError(errno.ENOTDIR, "Not a directory"))
    found = checks(replace(GOOD, runtime=error))["runtime"]
    assert (found.status, found.permanent) == ("fail", True)
