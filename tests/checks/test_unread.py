"""Configuration files that the running runtime has not read: what counts as one, what the trial shows."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from checks.test_table import RECEIPT, RUNTIME
from kata_node.checks import unread
from kata_node.checks.unread_facts import UnreadConfig, unread_config
from kata_node.errors import SystemdError
from kata_node.host.files import FileState, Root
from kata_node.host.host_program import HostProgram, ProgramOutput
from kata_node.host.systemd import ExecEnvironment, Unit
from kata_node.plan.context import Options, StageContext
from kata_node.plan.receipt import CriFile, CriRecord, Receipt
from kata_node.plan.report import Finding
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.model.distributions import distribution_runtime
from kata_node.runtime.trial_start import Trial, judge_containerd, judge_crio
from kata_node.settings import load as settings

MAIN = "/etc/containerd/config.toml"
BOOTED = 'time="x" level=info msg="containerd successfully booted in 0.1s"'
STARTS = ProgramOutput(BOOTED, ended=False)
FAILS = ProgramOutput("containerd: failed to decode: toml: expected a number", ended=True)


class Systemd:
    """A systemd whose unit started at ``started``, and which runs programs with the output ``output``."""

    def __init__(self, started: float, output: ProgramOutput | Exception = STARTS, **unit: Any) -> None:
        self.output, self.programs = output, list[HostProgram]()
        argv = unit.pop("argv", ("/usr/bin/containerd",))
        age = time.time() - started
        self._unit = Unit(
            *("containerd.service", "loaded", "active", "running", "success", "1" * 32, 42, argv, False, 1),
            main_start_usec=int(started * 1e6),
            main_start_monotonic_usec=unit.pop("monotonic", int((time.monotonic() - age) * 1e6)),
            **unit,
        )

    def unit(self, name: str) -> Unit:
        return self._unit

    def run_program(self, program: HostProgram) -> ProgramOutput:
        self.programs.append(program)
        if isinstance(self.output, Exception):
            raise self.output
        return self.output


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "etc/containerd").mkdir(parents=True)
    (tmp_path / MAIN[1:]).write_bytes(b"version = 3\n")
    return tmp_path


def look(
    base: Path, systemd: Systemd, runtime: RuntimeFacts = RUNTIME, receipt: Receipt = RECEIPT, **options: Any
) -> UnreadConfig | None:
    clients: Any = type("Clients", (), {"root": Root(base), "systemd": lambda self: systemd})()
    loaded = settings.load(None, overrides={"shims": "qemu"}, arch="x86_64")
    return unread_config(StageContext(loaded, receipt, clients, Options(Path("/p"), **options)), runtime)


def test_an_older_file_is_read_and_nothing_is_tried(base: Path) -> None:
    systemd = Systemd(time.time() + 100)
    found = look(base, systemd)
    assert found
    assert (found.changed, found.trial, systemd.programs) == ({}, None, [])


def test_a_newer_file_is_tried_with_the_same_program_and_paths(base: Path) -> None:
    systemd = Systemd(time.time() - 100, exec_environment=ExecEnvironment(assignments=("A=b",)))
    found = look(base, systemd)
    assert found
    assert set(found.changed) == {MAIN}
    assert found.trial == Trial("starts")
    (program,) = systemd.programs
    assert program.argv == ("/usr/bin/containerd", "--config", MAIN, "--log-level", "info")
    assert program.environment == ("A=b",)
    assert program.visible
    assert not {"/", "/run", "/var", "/opt"}.intersection(program.visible)


def test_a_trial_during_the_restart_of_another_run_says_nothing(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd = Systemd(time.time() - 100, FAILS)
    found = look(base, systemd)
    assert found
    assert found.trial
    assert found.trial.verdict == "fails"
    before = systemd.unit("containerd.service")
    units = iter((before, replace(before, invocation_id="2" * 32)))
    monkeypatch.setattr(systemd, "unit", lambda name: next(units))
    assert look(base, systemd) is None


@pytest.mark.parametrize("command", ["sh -c /usr/bin/containerd", "/opt/run.sh /usr/bin/containerd"])
def test_the_program_in_a_command_of_another_program_is_not_tried(base: Path, command: str) -> None:
    found = look(base, Systemd(time.time() - 100, argv=tuple(command.split())))
    assert found
    assert found.trial is None


def test_the_program_behind_a_wrapper_is_tried(base: Path) -> None:
    systemd = Systemd(time.time() - 100, argv=("/usr/bin/nice", "-n", "5", "/usr/bin/containerd"))
    assert look(base, systemd)
    assert systemd.programs[0].argv[0] == "/usr/bin/containerd"


def test_the_trial_sees_every_directory_with_imports(base: Path) -> None:
    """A pod may not see them."""
    content = b'imports = ["/srv/a/*.toml", "conf.d/x.toml", "/data/*/y.toml"]\n'
    systemd = Systemd(time.time() - 100)
    look(base, systemd, replace(RUNTIME, files={MAIN: FileState(content, 0o644, 0, 0)}))
    (program,) = systemd.programs
    assert program.visible
    assert {"/srv/a", "/data"} <= set(program.visible)


def test_a_copied_time_does_not_hide_a_change(base: Path) -> None:
    os.utime(base / MAIN[1:], (1, 1))
    found = look(base, Systemd(time.time() - 100))
    assert found
    assert set(found.changed) == {MAIN}


def test_a_time_in_the_future_is_no_change(base: Path) -> None:
    os.utime(base / MAIN[1:], (time.time() + 10**6, time.time() + 10**6))
    found = look(base, Systemd(time.time() + 100))
    assert found
    assert found.changed == {}


def test_a_symlink_to_another_file_is_a_change(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = base / "etc/containerd/old.toml"
    (base / MAIN[1:]).rename(old)
    (base / MAIN[1:]).symlink_to("old.toml")
    times = {str(old): time.time() - 1000.0}
    real = Root.lstat

    def lstat(self: Root, path: str) -> Any:
        info = real(self, path)
        when = times.get(str(self.base / path[1:]))
        return info if when is None else type("Info", (), {"st_ctime": when})()

    monkeypatch.setattr(Root, "lstat", lstat)
    found = look(base, Systemd(time.time() - 100))
    assert found
    assert set(found.changed) == {MAIN}


def test_a_clock_that_was_set_back_after_the_start_does_not_hide_a_change(base: Path) -> None:
    """By the clock at the start, the process is younger than the file. Its age shows that it is older."""
    systemd = Systemd(time.time() + 5000, monotonic=int((time.monotonic() - 100) * 1e6))
    found = look(base, systemd)
    assert found
    assert set(found.changed) == {MAIN}


@pytest.mark.parametrize("owner", ["this installation", "another installation"])
def test_what_an_installation_wrote_is_no_change_of_others(base: Path, owner: str) -> None:
    content = b"version = 3\n"
    digest = hashlib.sha256(content).hexdigest()
    runtime, receipt = RUNTIME, RECEIPT
    if owner == "this installation":
        record = CriFile(MAIN, None, digest)
        receipt = replace(
            RECEIPT, cri=CriRecord("serving", "containerd", "2.1.9", "u", "i", "b", (), (record,))
        )
    else:
        runtime = replace(RUNTIME, other_writers={(MAIN, digest): "blue"})
    found = look(base, Systemd(time.time() - 100), runtime, receipt)
    assert found
    assert found.changed == {}
    edited = {MAIN: FileState(content + b"# edited\n", 0o644, 0, 0)}
    found = look(base, Systemd(time.time() - 100), replace(runtime, files=edited), receipt)
    assert found
    assert set(found.changed) == {MAIN}


def test_a_drop_in_of_the_unit_counts_if_it_can_name_another_file(base: Path) -> None:
    directory = base / "etc/systemd/system/containerd.service.d"
    directory.mkdir(parents=True)
    (directory / "a.conf").write_text("[Service]\nEnvironment=CONTAINERD_CONFIG=/etc/x.toml\n")
    (directory / "b.conf").write_text("[Service]\nLimitNOFILE=1\n")
    names = tuple(f"/etc/systemd/system/containerd.service.d/{name}.conf" for name in "abc")
    found = look(base, Systemd(time.time() - 100, files=names))
    assert found
    assert set(found.changed) == {MAIN, names[0]}


def test_a_rendered_file_is_not_compared_but_its_template_is(base: Path) -> None:
    k3s = distribution_runtime("k3s", "containerd")
    template = k3s.template[3]
    files = {path: FileState(b"", 0o644, 0, 0) for path in (k3s.config, template)}
    for path in files:
        (base / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (base / path[1:]).touch()
    config = replace(RUNTIME.config, distribution_runtime=k3s)  # type: ignore[type-var]
    runtime = replace(RUNTIME, distribution_runtime=k3s, config=config, files=files)
    systemd = Systemd(time.time() - 100, argv=("/usr/local/bin/k3s", "server"))
    found = look(base, systemd, runtime)
    assert found
    assert (set(found.changed), found.trial, systemd.programs) == ({template}, None, [])
    assert unread.check(found, runtime).status == "warn"


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda runtime: replace(runtime, state="failed"), {}),
        (lambda runtime: runtime, {"offline": True}),
        (
            lambda runtime: replace(runtime, distribution_runtime=distribution_runtime("k0s", "containerd")),
            {},
        ),
    ],
    ids=["down", "offline", "reloads-by-itself"],
)
def test_where_nothing_can_be_told_nothing_is_said(
    base: Path, change: Callable[[RuntimeFacts], RuntimeFacts], options: dict[str, Any]
) -> None:
    systemd = Systemd(time.time() - 100)
    assert look(base, systemd, change(RUNTIME), **options) is None
    assert systemd.programs == []


def test_a_systemd_that_does_not_run_programs_makes_it_unclear(base: Path) -> None:
    found = look(base, Systemd(time.time() - 100, SystemdError("Unknown property TemporaryFileSystem")))
    assert found
    assert found.trial
    assert found.trial.verdict == "unclear"
    assert "TemporaryFileSystem" in found.trial.reason


# What containerd's output means


NOT_LOADED = 'time="x" level=warning msg="failed to load plugin{}" error="{}" id=io.containerd.{}'


@pytest.mark.parametrize(
    ("text", "ended", "verdict", "says"),
    [
        (BOOTED, False, "starts", ""),
        ('{"level":"info","msg":"containerd successfully booted in 0.1s"}', False, "starts", ""),
        # The last line of a containerd that stops at once.
        (f"{BOOTED}\ncontainerd: stopped", True, "starts", ""),
        ("containerd: failed to unmarshal TOML: (3, 1): x", True, "fails", "failed to unmarshal TOML"),
        ("containerd: required plugin [x] not included", True, "fails", "required plugin"),
        ("panic: interface conversion\n\ngoroutine 1 [running]:", True, "fails", "panic: interface"),
        ("containerd: expected containerd config version ≤ `3`, got `9`", True, "fails", "config version"),
        ("containerd: unable to parse 5 parsecs into a time duration", True, "fails", "parsecs"),
        ("containerd: mkdir /data: read-only file system", True, "unclear", "read-only"),
        ("containerd: listen tcp 10.1.1.1:1: bind: cannot assign requested address", True, "unclear", "bind"),
        ("containerd: something new", True, "unclear", "something new"),
        ("containerd: open /sys/fs/cgroup/foo/cgroup.procs: no such file", True, "unclear", "cgroup"),
        ("", True, "unclear", "could not start"),
        ('time="x" level=info msg="starting containerd"', False, "unclear", "did not boot"),
        (
            f"{NOT_LOADED.format('', 'invalid plugin config: no runtime', 'cri.v1.runtime')}\n{BOOTED}",
            *(False, "fails", "invalid plugin config"),
        ),
        (
            f"{NOT_LOADED.format(' io.containerd.grpc.v1.cri', 'invalid plugin config: x', 'x')}\n{BOOTED}",
            *(False, "fails", "invalid plugin config"),
        ),
        (
            f"{NOT_LOADED.format('', 'failed to find snapshotter devmapper', 'cri.v1.images')}\n{BOOTED}",
            *(False, "unclear", "failed to find snapshotter"),
        ),
        (
            f"{NOT_LOADED.format('', 'devmapper not configured', 'snapshotter.v1.devmapper')}\n{BOOTED}",
            *(False, "starts", ""),
        ),
    ],
)
def test_the_output_of_containerd_says_whether_it_starts(
    text: str, *, ended: bool, verdict: str, says: str
) -> None:
    found = judge_containerd(ProgramOutput(text, ended))
    assert (found.verdict, says in found.reason) == (verdict, True), found


def test_the_last_reason_of_containerd_is_quoted_to_its_end() -> None:
    lines = [f"containerd: toml {number} {'x' * 200}" for number in range(3)]
    assert f'{lines[-1]}"' in judge_containerd(ProgramOutput("\n".join(lines), ended=True)).reason


@pytest.mark.parametrize(
    ("output", "verdict"),
    [
        (ProgramOutput("[crio]\n", ended=True, result="done"), "starts"),
        (
            ProgramOutput(
                'time="x" level=fatal msg="validating root config: bad"', ended=True, result="failed"
            ),
            "fails",
        ),
        (ProgramOutput("", ended=True, result="failed"), "unclear"),
        (ProgramOutput("", ended=False), "unclear"),
    ],
)
def test_the_output_of_crio_config_says_whether_crio_starts(output: ProgramOutput, verdict: str) -> None:
    assert judge_crio(output).verdict == verdict


# The finding


def finding(trial: Trial | None, *, ignored: bool = False) -> Finding:
    return unread.check(UnreadConfig(time.time() - 100, {MAIN: time.time()}, trial, ignored), RUNTIME)


def test_only_a_start_that_fails_for_sure_ends_the_install_and_can_be_ignored() -> None:
    assert finding(Trial("starts")).status == "warn"
    assert finding(Trial("unclear", "x")).status == "warn"
    assert finding(None).status == "warn"
    failed = finding(Trial("fails", 'it wrote "containerd: x"'))
    assert (failed.status, failed.permanent, failed.unfit) == ("fail", True, False)
    assert "--ignore-unread-config" in failed.remedy
    assert finding(Trial("fails", "x"), ignored=True).status == "warn"


def test_the_finding_names_the_files_and_the_times() -> None:
    found = finding(Trial("unclear", "x"))
    assert MAIN in found.reason
    assert found.reason.count(" UTC") == 2
