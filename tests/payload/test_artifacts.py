"""The stages artifacts and remove-artifacts with a payload of component archives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from msgspec.structs import replace

import payloads
from kata_node import pipeline
from kata_node.host.files import Root
from kata_node.payload import index
from kata_node.plan import dry_run
from kata_node.plan.actions import Clients
from kata_node.plan.context import Options
from kata_node.plan.report import StageReport
from kata_node.settings.model import Settings
from kata_node.settings.selection import CustomRuntime, ShimSettings
from kata_node.settings.shims import table
from payloads import CONFIGS, FILES, Content
from stages import artifacts, remove_artifacts

SHARE = "share/defaults/kata-containers"
DRAGONBALL: dict[str, Content] = {
    "runtime-rs/bin/containerd-shim-kata-v2": b"#!shim",
    f"{SHARE}/runtime-rs/configuration-dragonball.toml": CONFIGS["dragonball"].encode(),
}
MINE = CustomRuntime("mine", "dragonball", "kata-mine", drop_in="[runtime]\nenable_debug = true\n")
NOTHING = ShimSettings()
OWN = f"{SHARE}/runtime-rs/custom-runtimes/kata-mine"


@pytest.fixture
def payload(tmp_path: Path) -> Path:
    """A payload with one component for qemu and one for dragonball."""
    qemu = {path: content[:64] for path, content in FILES.items()}
    qemu[f"{SHARE}/configuration-qemu.toml"] = CONFIGS["qemu"].encode()
    components = {"qemu": payloads.members(qemu), "dragonball": payloads.members(DRAGONBALL)}
    return payloads.tarballs(
        tmp_path / "payload", components, {shim: {"x86_64": [shim]} for shim in ("qemu", "dragonball")}
    )


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "node").mkdir()
    return Root(tmp_path / "node")


def settings(*shims: str, values: ShimSettings = NOTHING, **fields: Any) -> Settings:
    return Settings(
        tuple(table()[shim] for shim in shims),
        "x86_64",
        shim_settings=dict.fromkeys(shims, values),
        **fields,
    )


@contextmanager
def no_progress(total: int, title: str) -> Iterator[Callable[[int], None]]:
    yield lambda done: None


def run(
    root: Root, payload: Path, wanted: Settings, stage: Any = artifacts, *, dry: bool = False
) -> StageReport:
    """Run the stage offline; it fails if it connects to systemd, CRI or API server."""

    def unused(*args: object) -> NoReturn:
        raise AssertionError("this stage must only access files")

    clients = Clients(root, unused, unused, unused, no_progress)
    options = Options(payload, offline=True)
    (report,) = pipeline.run([stage], pipeline.Run(wanted, options, clients, lock_timeout=1, dry_run=dry))
    return report


def placed(root: Root, install_dir: str = "/opt/kata") -> set[str]:
    base = root.resolve(install_dir)
    return {
        str(path.relative_to(base))
        for path in base.rglob("*")
        if not path.is_dir() and ".kata-node" not in path.parts
    }


def test_a_custom_runtime_places_the_components_of_its_shim_even_if_the_shim_is_disabled(
    root: Root, payload: Path
) -> None:
    assert run(root, payload, settings(custom_runtimes=(MINE,))).error is None
    assert placed(root) == {
        *DRAGONBALL,
        f"{OWN}/configuration-dragonball.toml",
        f"{OWN}/config.d/50-user-overrides.toml",
    }
    assert run(root, payload, settings(custom_runtimes=(MINE,))).outcome == "skipped"


def test_obsolete_files_are_removed_and_files_of_a_user_stay(root: Root, payload: Path) -> None:
    plain = settings("qemu")
    run(root, payload, plain)
    before = payloads.snapshot(root.resolve("/opt/kata") / "share")
    everything = settings("qemu", values=ShimSettings(no_proxy="a"), custom_runtimes=(MINE,), debug=True)
    assert run(root, payload, everything).outcome == "done"
    assert f"{SHARE}/runtimes/qemu-debug/config.d/20-debug.toml" in placed(root)
    foreign = root.resolve(f"/opt/kata/{SHARE}/runtimes/qemu/config.d/60-mine.toml")
    foreign.write_text("# mine\n")
    assert run(root, payload, plain).error is None
    assert foreign.read_text() == "# mine\n"
    foreign.unlink()
    assert payloads.snapshot(root.resolve("/opt/kata") / "share") == before
    foreign.write_text("# mine\n")
    report = run(root, payload, plain, remove_artifacts)
    assert placed(root) == {str(foreign.relative_to(root.resolve("/opt/kata")))}
    assert any("60-mine.toml" in note for note in report.notes)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"distribution": "k0s"}, id="kubelet directory"),
        pytest.param({"values": ShimSettings(https_proxy="p")}, id="proxy"),
        pytest.param({"debug": True}, id="debug"),
    ],
)
def test_a_changed_setting_is_applied_without_a_change_of_the_payload(
    changed: dict[str, Any], root: Root, payload: Path
) -> None:
    run(root, payload, settings("qemu"))
    assert run(root, payload, settings("qemu", **changed)).outcome == "done"
    assert run(root, payload, settings("qemu", **changed)).outcome == "skipped"


def test_a_setting_for_the_runtime_alone_does_not_read_the_payload(
    root: Root, payload: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(root, payload, settings("qemu"))

    def load(*args: object) -> NoReturn:
        raise AssertionError("the payload was read")

    monkeypatch.setattr(index, "load", load)
    assert run(root, payload, settings("qemu", user_drop_in="a = 1\n")).outcome == "skipped"


def test_only_root_can_read_the_drop_ins_of_the_user_and_a_plan_shows_no_string_of_them(
    root: Root, payload: Path
) -> None:
    values = ShimSettings(drop_in='[hypervisor.qemu]\nkernel_params = "agent.log=hush"\n')
    mine = replace(MINE, drop_in='[runtime]\nprompt = "hush"\n')
    wanted = settings("qemu", values=values, custom_runtimes=(mine,))
    base = root.resolve("/opt/kata")

    def readable_by_others() -> list[Path]:
        found = (path for path in base.rglob("*") if path.is_file() and b"hush" in path.read_bytes())
        return [path for path in found if path.stat().st_mode & 0o077]

    shown = dry_run.to_text([run(root, payload, wanted, dry=True)], None, verbose=True)
    assert shown.count('+kernel_params = "(masked)"') == 1
    assert shown.count('+prompt = "(masked)"') == 1
    assert "hush" not in shown
    assert run(root, payload, wanted).error is None
    drop_in = base / f"{SHARE}/runtimes/qemu/config.d/50-user-overrides.toml"
    assert (readable_by_others(), drop_in.stat().st_mode & 0o777) == ([], 0o600)
    drop_in.chmod(0o644)
    assert run(root, payload, wanted).outcome == "done"
    assert readable_by_others() == []
    assert run(root, payload, wanted).outcome == "skipped"


def test_a_drop_in_that_names_a_missing_file_is_noted_in_the_report(root: Root, payload: Path) -> None:
    values = ShimSettings(drop_in="[hypervisor.qemu]\nfirmware = '/opt/kata/share/none.fd'")
    report = run(root, payload, settings("qemu", values=values))
    assert report.notes == ("shims.qemu.dropIn names /opt/kata/share/none.fd, which is not in the payload",)


def test_a_key_that_kata_ignores_is_noted_in_the_report(root: Root, payload: Path) -> None:
    values = ShimSettings(drop_in="[runtime]\nenable_debg = true")
    (note,) = run(root, payload, settings("qemu", values=values)).notes
    assert note.startswith("shims.qemu.dropIn: runtime.enable_debg is not a key of the shim qemu")


def test_a_drop_in_with_an_unknown_key_is_refused_before_any_file_is_written(
    root: Root, payload: Path
) -> None:
    values = ShimSettings(drop_in="[hypervisor.qemu]\ndefault_vcpu = 2")
    report = run(root, payload, settings("qemu", values=values))
    assert report.exit_code == 2
    assert report.error is not None
    assert report.error.where == "shims.qemu.dropIn"
    assert "hypervisor.qemu.default_vcpu" in report.error.what
    assert list(root.base.rglob("*.toml")) == []


def test_an_impossible_setting_is_refused_before_any_file_is_written(root: Root, payload: Path) -> None:
    report = run(root, payload, settings("qemu", values=ShimSettings(force_guest_pull=True)))
    assert report.exit_code == 2
    assert report.error is not None
    assert report.error.where == "shims.qemu.containerd.forceGuestPull"
    assert list(root.base.rglob("*.toml")) == []


def test_in_another_prefix_the_qemu_bundle_points_to_the_install_dir(root: Root, payload: Path) -> None:
    run(root, payload, settings("qemu", install_dir="/srv/opt/kata"))
    bundle = root.resolve("/srv/opt/kata/bin") / "qemu-bundle/opt/kata"
    assert bundle.resolve() == root.resolve("/srv/opt/kata")
    run(root, payload, settings("qemu", install_dir="/srv/opt/kata"), remove_artifacts)
    assert not root.resolve("/srv/opt").exists()


def test_a_single_file_is_counted_in_the_singular(root: Root, payload: Path) -> None:
    shim = root.resolve("/opt/kata/bin/containerd-shim-kata-v2")
    run(root, payload, settings("qemu"))
    shim.unlink()
    assert run(root, payload, settings("qemu")).summary.startswith("1 file placed (")
    run(root, payload, settings("qemu"), remove_artifacts)
    shim.parent.mkdir(parents=True)
    shim.write_bytes(b"mine")
    report = run(root, payload, settings("qemu"))
    assert report.error is not None
    assert report.error.what.startswith("1 file that kata-node did not place already exists: ")
