"""The kubelet's timeout for guest pull and EROFS: where it is found, and the warning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kata_node.checks import kubelet
from kata_node.checks.kubelet_facts import RequestTimeout, request_timeout
from kata_node.errors import SystemdError
from kata_node.host.files import Root
from kata_node.host.systemd import UnitProcess
from kata_node.plan.context import Options, StageContext
from kata_node.plan.receipt import Receipt
from kata_node.plan.report import Finding
from kata_node.runtime.model.distributions import distribution_runtime
from kata_node.settings import load as settings
from kata_node.settings.model import Settings

CONFIG = "var/lib/kubelet/config.yaml"


def loaded(values: str = "", tmp_path: Path | None = None) -> Settings:
    if tmp_path is None:
        return settings.load(None, overrides={"shims": "qemu"}, arch="x86_64")
    (tmp_path / "values.yaml").write_text(values)
    return settings.load(str(tmp_path / "values.yaml"), overrides={}, arch="x86_64")


def look(
    base: Path, command_line: str = "", distribution: str = "k8s", **files: str
) -> RequestTimeout | None:
    class Systemd:
        def processes(self, name: str) -> tuple[UnitProcess, ...]:
            if command_line == "gone":
                raise SystemdError("it does not answer")
            running = command_line and name != "containerd.service"
            return (UnitProcess(7, "/pause"), UnitProcess(8, command_line)) if running else ()

    for path, content in files.items():
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_text(content)
    clients: Any = type("Clients", (), {"root": Root(base), "systemd": lambda self: Systemd()})()
    context = StageContext(loaded(), Receipt("default", "/opt/kata", "0"), clients, Options(Path("/p")))
    return request_timeout(context, distribution_runtime(distribution, "containerd"))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m0s", 600), ("1h", 3600), ("90s", 90), ("1.5h", 5400), ("500ms", 0.5), ("0s", 120), ("x", 120)],
)
def test_a_duration_is_read_as_go_writes_it(tmp_path: Path, text: str, seconds: float) -> None:
    found = look(tmp_path, **{CONFIG: f"runtimeRequestTimeout: {text}\n"})
    assert found == RequestTimeout(seconds, f"/{CONFIG}")


def test_without_a_setting_it_is_two_minutes(tmp_path: Path) -> None:
    assert look(tmp_path, **{CONFIG: "kind: KubeletConfiguration\n"}) == RequestTimeout(120, f"/{CONFIG}")


@pytest.mark.parametrize("command_line", ["", "gone"])
def test_a_configuration_that_is_not_visible_is_not_known(tmp_path: Path, command_line: str) -> None:
    assert look(tmp_path, command_line) is None


def test_the_process_says_which_file_it_reads(tmp_path: Path) -> None:
    """The one of EKS is JSON."""
    files = {CONFIG: "runtimeRequestTimeout: 1m\n", "etc/k/kubelet.json": '{"runtimeRequestTimeout": "15m"}'}
    found = look(tmp_path, "/usr/bin/kubelet --config /etc/k/kubelet.json --v=2", **files)
    assert found == RequestTimeout(900, "/etc/k/kubelet.json")


def test_the_last_drop_in_wins_and_the_flag_wins_over_all(tmp_path: Path) -> None:
    files = {
        CONFIG: "runtimeRequestTimeout: 1m\n",
        "etc/d/10-a.conf": "runtimeRequestTimeout: 20m\n",
        "etc/d/20-b.conf": "runtimeRequestTimeout: 30m\n",
        "etc/d/30-c.yaml": "runtimeRequestTimeout: 40m\n",
    }
    command_line = f"kubelet --config=/{CONFIG} --config-dir=/etc/d"
    assert look(tmp_path, command_line, **files) == RequestTimeout(1800, "/etc/d/20-b.conf")
    found = look(tmp_path, f"{command_line} --runtime-request-timeout=5m", **files)
    assert found == RequestTimeout(300, "--runtime-request-timeout")


@pytest.mark.parametrize(
    ("distribution", "path", "text"),
    [
        ("k3s", "etc/rancher/k3s/config.yaml", "kubelet-arg:\n- v=2\n- runtime-request-timeout=11m\n"),
        ("rke2", "etc/rancher/rke2/config.yaml", "kubelet-arg: runtime-request-timeout=11m\n"),
        (
            "k3s",
            "var/lib/rancher/k3s/agent/etc/kubelet.conf.d/00.conf",
            "runtimeRequestTimeout: 11m\n",
        ),
        ("k0s", "var/lib/k0s/kubelet-config.yaml", "runtimeRequestTimeout: 11m\n"),
        ("microk8s", "var/snap/microk8s/current/args/kubelet", "--v=2\n# x\n--runtime-request-timeout=11m\n"),
    ],
)
def test_every_distribution_has_its_place(tmp_path: Path, distribution: str, path: str, text: str) -> None:
    found = look(tmp_path, distribution=distribution, **{path: text})
    assert found
    assert found.seconds == 660


@pytest.mark.parametrize("text", ["[unclosed", "- a list\n", ""])
def test_a_broken_configuration_is_not_an_error(tmp_path: Path, text: str) -> None:
    found = look(tmp_path, **{CONFIG: text})
    assert found is None or found.seconds == 120


GUEST_PULL = "shims: {disableAll: true, qemu-coco-dev: {enabled: true, containerd: {forceGuestPull: true}}}"
EROFS = "shims: {disableAll: true, qemu: {enabled: true, containerd: {snapshotter: erofs}}}"
NYDUS = "shims: {disableAll: true, qemu: {enabled: true, containerd: {snapshotter: nydus}}}"
DROP_IN = """
shims:
  disableAll: true
  qemu: {enabled: true, dropIn: "[runtime]\\nexperimental_force_guest_pull = true"}
"""
PLAIN = "shims: {disableAll: true, qemu: {enabled: true}}"


def finding(tmp_path: Path, values: str, found: RequestTimeout | None) -> Finding | None:
    return next(kubelet.checks(loaded(values, tmp_path), found), None)


@pytest.mark.parametrize("values", [GUEST_PULL, EROFS, NYDUS, DROP_IN])
def test_a_short_timeout_is_a_warning_with_the_setting(tmp_path: Path, values: str) -> None:
    check = finding(tmp_path, values, RequestTimeout(120, "/var/lib/kubelet/config.yaml"))
    assert check
    assert check.status == "warn"
    assert "runtimeRequestTimeout: 10m in /var/lib/kubelet/config.yaml" in check.remedy
    assert "kata-qemu" in check.reason


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("--runtime-request-timeout", "set --runtime-request-timeout=10m,"),
        ("kubelet-arg in /etc/rancher/k3s/config.yaml", "runtime-request-timeout=10m as kubelet-arg in /etc"),
    ],
)
def test_the_remedy_fits_the_place(tmp_path: Path, place: str, says: str) -> None:
    check = finding(tmp_path, EROFS, RequestTimeout(120, place))
    assert check
    assert says in check.remedy


def test_a_long_timeout_passes_and_an_unknown_one_is_skipped(tmp_path: Path) -> None:
    passed, skipped = (finding(tmp_path, EROFS, each) for each in (RequestTimeout(600, "x"), None))
    assert passed
    assert skipped
    assert (passed.status, skipped.status) == ("pass", "skip")


def test_without_guest_pull_and_erofs_the_timeout_does_not_matter(tmp_path: Path) -> None:
    assert finding(tmp_path, PLAIN, RequestTimeout(1, "x")) is None
