"""The findings of host-check for nodes with various facts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kata_node.checks.facts import HostCheckFacts
from kata_node.checks.hardware import DiskSpace, HardwareFacts
from kata_node.checks.table import all_findings
from kata_node.errors import CriError, HostError, PayloadError, SystemdError
from kata_node.host.files import FileState
from kata_node.payload.facts import ArtifactFacts
from kata_node.plan.receipt import CriRecord, Receipt
from kata_node.plan.report import Finding
from kata_node.runtime.containerd.config import ContainerdConfig
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.model.distributions import distribution_runtime
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
    kvm=True,
    virtualization=True,
    modules=frozenset({"vhost", "vhost_net", "vhost_vsock"}),
    vsock=True,
    supported_tees=frozenset(),
    memory=8 * GIB,
    selinux="disabled",
    spaces=(DiskSpace("/opt", 10 * GIB, False, True), DiskSpace("/etc/containerd", GIB, False, True)),
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
GOOD = HostCheckFacts(False, "", MACHINE, None, RUNTIME, ArtifactFacts("inputs", {}), {}, GIB, ())
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


def machine(**changes: Any) -> HostCheckFacts:
    return replace(GOOD, machine=replace(MACHINE, **changes))


def runtime(**changes: Any) -> HostCheckFacts:
    return replace(GOOD, runtime=replace(RUNTIME, **changes))


def test_a_good_node_passes_every_check() -> None:
    assert {name for name, check in checks(GOOD).items() if check.status != "skip"} == set()


@pytest.mark.parametrize(
    ("facts", "name", "status", "permanent", "says"),
    [
        pytest.param(machine(kvm=False), "kvm", "fail", True, "/dev/kvm", id="no-kvm"),
        pytest.param(
            machine(dev_visible=False, kvm=False), "kvm", "skip", True, "not mounted", id="dev-not-mounted"
        ),
        pytest.param(machine(virtualization=False), "cpu", "warn", True, "virtualization", id="no-vmx"),
        pytest.param(
            machine(modules=frozenset(), vsock=False), "modules", "warn", True, "vhost_vsock", id="no-vhost"
        ),
        pytest.param(machine(memory=GIB), "memory", "warn", True, "1.0 GiB", id="little-memory"),
        pytest.param(machine(selinux="enforcing"), "selinux", "warn", True, "SELinux may deny", id="selinux"),
        pytest.param(
            machine(spaces=(DiskSpace("/opt", GIB // 2, False, True),)),
            "space",
            "fail",
            False,
            "512.0 MiB free",
            id="full",
        ),
        pytest.param(
            machine(spaces=(DiskSpace("/opt", 10 * GIB, True, True),)),
            "writable",
            "fail",
            True,
            "read-only",
            id="read-only",
        ),
        pytest.param(
            machine(spaces=(DiskSpace("/opt", 10 * GIB, False, False),)),
            "writable",
            "fail",
            True,
            "not writable",
            id="denied",
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
    facts = replace(machine(kvm=False), systemd=SystemdError("no socket"), conflicts=("bin/qemu",))
    assert {name for name, check in checks(facts).items() if check.status == "fail"} >= {
        "kvm",
        "systemd",
        "foreign",
    }


def test_a_missing_tee_is_only_a_warning() -> None:
    found = checks(GOOD, shims="qemu-snp")["tee-snp"]
    assert (found.status, "snp" in found.reason) == ("warn", True)
    assert "tee-snp" not in checks(machine(supported_tees=frozenset({"snp"})), shims="qemu-snp")


def test_a_remote_shim_needs_no_kvm() -> None:
    assert checks(machine(kvm=False), shims="remote")["kvm"].status == "skip"


def test_a_runtime_that_a_killed_run_left_down_is_only_a_warning() -> None:
    facts = runtime(state="failed", handlers=None)
    found = checks(facts, UNFINISHED)
    assert (found["unit"].status, found["cri"].status) == ("warn", "warn")


def test_offline_the_hardware_is_not_checked() -> None:
    facts = replace(machine(kvm=False), offline=True)
    found = checks(facts)
    assert found["hardware"].status == "skip"
    assert "kvm" not in found


def test_unsupported_settings_fail_and_are_named() -> None:
    devkit = replace(settings.load(None, overrides={}, arch="x86_64"), devkit=True)
    found = {check.name: check for check in all_findings(devkit, GOOD, RECEIPT)}["settings"]
    assert found.status == "fail"
    assert "devkit" in found.remedy


DEFAULT = "[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'nobody'\n"


@pytest.mark.parametrize(
    ("drop_in", "says"),
    [
        pytest.param(f"version = 3\n{DEFAULT}", "default_runtime_name is nobody", id="a-default-of-none"),
        pytest.param("version = 4\n", "is above version = 3", id="a-schema-above-the-main-files"),
        pytest.param('imports = ["/etc/mine.toml"]\n', "", id="what-it-imports-is-looked-for-later"),
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
