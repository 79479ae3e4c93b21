"""Snapshotters: containerd's configuration, the nydus-snapshotter of an installation, and the checks."""

from __future__ import annotations

import configparser
import contextlib
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kata_node.checks.snapshotters import checks
from kata_node.errors import HostError, IneligibleNodeError, PayloadError, SystemdError
from kata_node.host import kernel
from kata_node.host.files import FileState, Root
from kata_node.host.systemd import Unit
from kata_node.payload.manifest import SCHEMA, Archive, Entry, Manifest
from kata_node.payload.selection import select
from kata_node.plan.actions import Action, Clients
from kata_node.plan.context import Options, StageContext
from kata_node.plan.effects import PathEffect
from kata_node.plan.receipt import ArtifactsRecord, PlacedFile, Receipt
from kata_node.plan.report import Finding
from kata_node.runtime.containerd.config import ContainerdConfig
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.model.distributions import distribution_runtime
from kata_node.settings.handlers import handlers
from kata_node.settings.model import Settings
from kata_node.settings.runtime import SnapshotterSettings
from kata_node.settings.selection import ShimSettings
from kata_node.settings.shims import table
from kata_node.snapshotters import facts as facts_module
from kata_node.snapshotters import mapping, nydus
from kata_node.snapshotters.facts import MkfsErofs, SnapshotterFacts, gather_nydus_facts
from kata_node.snapshotters.mapping import NydusInstance
from kata_node.snapshotters.nydus import NydusFacts
from kata_node.versions import parse_version, runtime_version

IMAGES, CRI = "io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"
CONTAINERD = ("containerd.service",)
DIGEST = "1f" * 32


def settings(
    suffix: str = "", setup: Sequence[str] = (), user_drop_in: str = "", erofs: Any = None, **shims: str
) -> Settings:
    """Return settings with these shims (``_`` for ``-``), each with its snapshotter."""
    named = {name.replace("_", "-"): snapshotter for name, snapshotter in (shims or {"qemu": ""}).items()}
    return Settings(
        shims=tuple(table()[name] for name in named),
        arch="x86_64",
        install_dir=f"/opt/kata-{suffix}" if suffix else "/opt/kata",
        instance=suffix or "default",
        suffix=suffix,
        user_drop_in=user_drop_in,
        shim_settings={name: ShimSettings(snapshotter=snapshotter) for name, snapshotter in named.items()},
        snapshotter=SnapshotterSettings(tuple(setup), **(erofs or {})),
    )


NYDUS = settings(setup=["nydus"], qemu="nydus")
NYDUS_B = settings("b", setup=["nydus"], qemu="nydus")


def config_tables(wanted: Settings, version: str = "2.1.9", schema: int = 3) -> dict[str, Any]:
    return mapping.config_tables(wanted, handlers(wanted), schema, parse_version(version))


@pytest.mark.parametrize(
    ("wanted", "given", "name"),
    [
        pytest.param(NYDUS, "nydus", "nydus", id="ours"),
        pytest.param(NYDUS_B, "nydus", "nydus-b", id="ours-of-an-instance-with-a-suffix"),
        pytest.param(settings("b"), "nydus", "nydus", id="the-admins-for-we-set-up-none"),
        pytest.param(NYDUS_B, "devmapper", "devmapper", id="another"),
        pytest.param(settings("b", setup=["erofs"]), "erofs", "erofs", id="erofs-is-containerds"),
        pytest.param(NYDUS_B, "", "", id="the-default-one"),
    ],
)
def test_a_snapshotter_has_the_name_that_containerd_uses(wanted: Settings, given: str, name: str) -> None:
    assert mapping.effective_name(wanted, given) == name


def test_settings_without_a_snapshotter_need_no_tables_and_no_components() -> None:
    assert config_tables(settings()) == {}
    assert mapping.required_components(settings()) == ()


def platforms(**names: str) -> dict[str, Any]:
    return {
        "discard_unpacked_layers": False,
        "runtime_platforms": {f"kata-{name}": {"snapshotter": value} for name, value in names.items()},
    }


@pytest.mark.parametrize(
    ("version", "schema", "plugins"),
    [
        pytest.param("1.7.34", 2, {}, id="1.7-takes-it-from-the-handler"),
        pytest.param("2.1.9", 3, {IMAGES: platforms(qemu="devmapper")}, id="2.1"),
        pytest.param("2.3.4", 4, {IMAGES: platforms(qemu="devmapper")}, id="2.3-schema-4"),
        pytest.param(
            "2.1.9",
            2,
            {
                CRI: {"containerd": {"discard_unpacked_layers": False}},
                IMAGES: {"runtime_platforms": {"kata-qemu": {"snapshotter": "devmapper"}}},
            },
            id="2.1-schema-2-whose-migration-forgets-it",
        ),
    ],
)
def test_images_are_pulled_for_the_snapshotter_of_the_handler(
    version: str, schema: int, plugins: dict[str, Any]
) -> None:
    found = config_tables(settings(qemu="devmapper", clh=""), version, schema)
    assert found == ({"plugins": plugins} if plugins else {})


def test_every_handler_with_a_snapshotter_has_a_runtime_platform() -> None:
    wanted = replace(settings("b", setup=["nydus"], qemu="nydus", clh="blockfile"), debug=True)
    assert config_tables(wanted)["plugins"][IMAGES]["runtime_platforms"] == {
        "kata-qemu-b": {"snapshotter": "nydus-b"},
        "kata-qemu-debug-b": {"snapshotter": "nydus-b"},
        "kata-clh-b": {"snapshotter": "blockfile"},
        "kata-clh-debug-b": {"snapshotter": "blockfile"},
    }


@pytest.mark.parametrize(
    ("version", "schema", "path"),
    [
        pytest.param("1.7.34", 1, ("cri", "containerd"), id="1.7-schema-1"),
        pytest.param("1.7.34", 2, (CRI, "containerd"), id="1.7"),
        pytest.param("2.0.0", 2, (CRI, "containerd"), id="2.0-schema-2"),
        pytest.param("2.1.9", 3, (IMAGES,), id="schema-3"),
        pytest.param("2.3.4", 4, (IMAGES,), id="schema-4"),
    ],
)
def test_a_managed_nydus_is_a_proxy_plugin_that_gets_the_names_of_images(
    version: str, schema: int, path: tuple[str, ...]
) -> None:
    found = config_tables(NYDUS_B, version, schema)
    assert found["proxy_plugins"] == {
        "nydus-b": {
            "type": "snapshot",
            "address": "/run/nydus-snapshotter-b/containerd-nydus-grpc.sock",
            "exports": {"root": "/var/lib/nydus-snapshotter-b"},
        }
    }
    at = found["plugins"]
    for key in path:
        at = at[key]
    assert at["disable_snapshot_annotations"] is False


def test_an_administrators_nydus_is_only_named() -> None:
    assert config_tables(settings(qemu="nydus")) == {"plugins": {IMAGES: platforms(qemu="nydus")}}


def erofs(**options: Any) -> Settings:
    return settings(setup=["erofs"], erofs=options, qemu_runtime_rs="erofs")


@pytest.mark.parametrize(
    ("wanted", "version", "snapshotter", "differ"),
    [
        pytest.param(erofs(), "2.2.0", {"default_size": "10G", "max_unmerged_layers": 0}, {}, id="default"),
        pytest.param(
            erofs(erofs_snapshotter_mode="memory", erofs_merge_mode="unmerged"),
            "2.3.4",
            {"default_size": "0"},
            {},
            id="memory-unmerged",
        ),
        pytest.param(
            erofs(erofs_snapshotter_mode="disk", erofs_merge_mode="merged", erofs_dmverity=True),
            "2.3.4",
            {"default_size": "10G", "max_unmerged_layers": 0, "dmverity_mode": "on"},
            {"enable_dmverity": True},
            id="dm-verity",
        ),
        pytest.param(
            erofs(erofs_merge_mode="unmerged", erofs_dmverity=True),
            "2.2.9",
            {"default_size": "10G"},
            {},
            id="dm-verity-before-it-was-known",
        ),
    ],
)
def test_erofs_is_configured_according_to_the_settings(
    wanted: Settings, version: str, snapshotter: dict[str, Any], differ: dict[str, Any]
) -> None:
    plugins = config_tables(wanted, version)["plugins"]
    assert plugins["io.containerd.snapshotter.v1.erofs"] == snapshotter
    assert plugins["io.containerd.differ.v1.erofs"] == {
        "mkfs_options": ["-T0", "--mkfs-time", "--sort=none"],
        **differ,
    }
    assert plugins["io.containerd.service.v1.diff-service"] == {"default": ["erofs", "walking"]}


@pytest.mark.parametrize(
    "wanted",
    [
        pytest.param((erofs(), "2.1.9"), id="too-old"),
        pytest.param((settings(qemu_runtime_rs="erofs"), "2.3.4"), id="set-up-by-the-admin"),
    ],
)
def test_erofs_that_is_not_managed_or_not_supported_is_only_named(wanted: tuple[Settings, str]) -> None:
    assert set(config_tables(*wanted)["plugins"]) == {IMAGES}


# The unit of nydus-snapshotter


@dataclass
class FakeSystemd:
    """A systemd that has the unit files below ``root`` as of its last reload.

    ``running`` maps a unit to the unit file and the configuration that it was started with.
    """

    root: Root
    known: dict[str, bytes | None] = field(default_factory=dict)
    wanted: list[str] = field(default_factory=list)
    """The units that containerd's unit wants, as of the last reload."""
    running: dict[str, tuple[bytes | None, bytes | None]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    refuses: str = ""

    def clients(self) -> Clients:
        return Clients(self.root, lambda: self, _nothing, _nothing, _nothing)  # type: ignore[arg-type, return-value]

    def unit(self, name: str) -> Unit | None:
        content = self.root.read(f"/etc/systemd/system/{name}")
        if content is None and name not in self.running and name not in self.wanted:
            self.known.pop(name, None)  # no other unit refers to it
            return None
        known = self.known.setdefault(name, content)
        state = "active" if name in self.running else "inactive"
        return Unit(name, "loaded", state, "", "success", "", 0, (), known != content, 0)

    def start(self, name: str, timeout: float) -> None:
        self._ask("start", name)
        found = self.unit(name)
        if found is None:
            raise SystemdError("no such unit", where=name)
        if name not in self.running:
            self.running[name] = (self.known[name], self.root.read(_config_of(self.known[name] or b"")))

    def stop(self, name: str, timeout: float) -> None:
        self._ask("stop", name)
        self.running.pop(name, None)

    def daemon_reload(self, timeout: float) -> None:
        self._ask("daemon-reload", "")
        for name in self.known:
            self.known[name] = self.root.read(f"/etc/systemd/system/{name}")
        self.wanted = self.root.list_dir("/etc/systemd/system/containerd.service.wants")

    def containerd_starts(self) -> None:
        """Start the units that containerd's unit wants, as a start of containerd does."""
        for name in self.wanted:
            if self.unit(name) is not None and self.known[name] is not None:
                self.start(name, 1)

    def _ask(self, what: str, name: str) -> None:
        if what == self.refuses:
            raise SystemdError("refused", where=name)
        self.asked.append(f"{what} {name}".strip())


def _nothing(*_: object) -> Any:
    raise AssertionError("this client must not be used")


def _config_of(unit: bytes) -> str:
    return _parsed(unit)["Service"]["ExecStart"].split()[-1]


def _parsed(unit: bytes) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(unit.decode())
    return parser


@dataclass
class Node:
    """A node with placed Kata files and its systemd."""

    root: Root
    systemd: FakeSystemd
    program: str = DIGEST
    offline: bool = False

    def facts(self, wanted: Settings = NYDUS, units: tuple[str, ...] = CONTAINERD) -> NydusFacts:
        placed = {nydus.PROGRAM_PATH: PlacedFile("file", 0o755, sha256=self.program)} if self.program else {}
        receipt = Receipt(
            wanted.instance,
            wanted.install_dir,
            "",
            artifacts=ArtifactsRecord("placed", "1", "inputs", placed),
        )
        options = Options(Path("/payload"), offline=self.offline)
        return gather_nydus_facts(StageContext(wanted, receipt, self.systemd.clients(), options), units)

    def install(self, wanted: Settings = NYDUS, **how: Any) -> tuple[Action, ...]:
        return self.run(nydus.install_actions(wanted, self.facts(wanted, **how)))

    def revert(self, wanted: Settings = NYDUS) -> tuple[Action, ...]:
        return self.run(nydus.revert_actions(wanted, self.facts(wanted)))

    def run(self, actions: tuple[Action, ...]) -> tuple[Action, ...]:
        for action in actions:
            action.apply(self.systemd.clients())
            action.check(self.systemd.clients())
        return actions

    def files(self) -> dict[str, bytes | str | None]:
        """Return all files, links and empty directories of the node."""
        base = self.root.resolve("/")
        found: dict[str, bytes | str | None] = {}
        for path in sorted(base.rglob("*")):
            name = f"/{path.relative_to(base)}"
            if path.is_symlink():
                found[name] = str(path.readlink())
            elif not path.is_dir():
                found[name] = path.read_bytes()
            elif not any(path.iterdir()):
                found[name] = None
        return found

    def runs_its_files(self, wanted: Settings = NYDUS) -> bool:
        own_nydus = mapping.NydusInstance.for_settings(wanted)
        running = self.systemd.running.get(own_nydus.unit)
        return running == (self.root.read(own_nydus.unit_path), self.root.read(own_nydus.config))


@pytest.fixture
def node(root: Root) -> Node:
    for path in ("/etc/systemd/system", "/opt/kata/nydus-snapshotter", "/opt/kata-b/nydus-snapshotter"):
        root.make_dirs(path)
    return Node(root, FakeSystemd(root))


def test_install_starts_nydus_and_a_second_install_has_no_actions(node: Node) -> None:
    node.install()
    assert node.systemd.asked == ["daemon-reload", "start nydus-snapshotter.service"]
    assert node.runs_its_files()
    assert (
        node.root.read_link("/etc/systemd/system/containerd.service.wants/nydus-snapshotter.service")
        == "../nydus-snapshotter.service"
    )
    assert node.install() == ()


def test_the_units_of_nydus_and_the_runtime_do_not_restart_each_other() -> None:
    unit = _parsed(
        nydus.unit(mapping.NydusInstance.for_settings(NYDUS), ("k3s.service", "k3s-agent.service"), DIGEST)
    )
    assert unit["Unit"]["Before"] == unit["Install"]["WantedBy"] == "k3s.service k3s-agent.service"
    binding = {"PartOf", "BindsTo", "Requires", "Requisite", "Wants", "Upholds", "PropagatesStopTo"}
    assert binding.isdisjoint(unit["Unit"])


def test_the_configurations_of_nydus_and_containerd_agree() -> None:
    own_nydus = mapping.NydusInstance.for_settings(NYDUS_B)
    config = tomllib.loads(nydus.config(own_nydus).decode())
    proxy = config_tables(NYDUS_B)["proxy_plugins"]["nydus-b"]
    assert (config["address"], config["root"]) == (proxy["address"], proxy["exports"]["root"])
    assert (config["daemon_mode"], config["daemon"]["fs_driver"]) == ("none", "proxy")
    service = _parsed(nydus.unit(own_nydus, CONTAINERD, DIGEST))["Service"]
    assert config["address"].startswith(f"/run/{service['RuntimeDirectory']}/")
    assert config["root"] == f"/var/lib/{service['StateDirectory']}"
    assert config["address"] in service["ExecStartPost"]


def stopped(node: Node) -> None:
    node.systemd.stop("nydus-snapshotter.service", 1)


def edited(node: Node) -> None:
    node.root.write("/opt/kata/nydus-snapshotter/snapshotter.toml", b"version = 1\n")


def edited_unit(node: Node) -> None:
    path = "/etc/systemd/system/nydus-snapshotter.service"
    node.root.write(path, (node.root.read(path) or b"") + b"# mine\n")


def new_program(node: Node) -> None:
    node.program = "2e" * 32


def unit_file_removed(node: Node) -> None:
    node.root.remove("/etc/systemd/system/nydus-snapshotter.service")


def disabled(node: Node) -> None:
    node.root.remove("/etc/systemd/system/containerd.service.wants/nydus-snapshotter.service")


def enabled_elsewhere(node: Node) -> None:
    node.root.make_dirs("/etc/systemd/system/k3s.service.wants")
    node.root.symlink("/etc/systemd/system/k3s.service.wants/nydus-snapshotter.service", "../x")


@pytest.mark.parametrize(
    ("happens", "asked"),
    [
        pytest.param(stopped, ["start"], id="stopped"),
        pytest.param(edited, ["stop", "daemon-reload", "start"], id="configuration-edited"),
        pytest.param(edited_unit, ["stop", "daemon-reload", "start"], id="unit-edited"),
        pytest.param(unit_file_removed, ["stop", "daemon-reload", "start"], id="unit-file-removed"),
        pytest.param(new_program, ["stop", "daemon-reload", "start"], id="new-program"),
        pytest.param(disabled, ["stop", "daemon-reload", "start"], id="disabled"),
        pytest.param(enabled_elsewhere, ["stop", "daemon-reload", "start"], id="enabled-for-another-unit"),
    ],
)
def test_install_repairs_a_changed_nydus(
    node: Node, happens: Callable[[Node], None], asked: list[str]
) -> None:
    node.install()
    happens(node)
    node.systemd.asked.clear()
    node.install()
    assert [what.split()[0] for what in node.systemd.asked] == asked
    assert node.runs_its_files()
    links = node.root.glob("/etc/systemd/system/*.wants/*")
    assert links == ["/etc/systemd/system/containerd.service.wants/nydus-snapshotter.service"]
    assert node.install() == ()


def fresh(node: Node) -> None:
    pass


def older(node: Node) -> None:
    """Install another release."""
    node.program = "0d" * 32
    node.install(units=("k3s.service",))
    edited(node)
    node.program = DIGEST


CUTS = [
    pytest.param(before, at, starts, id=f"{before.__name__}-{at}{'-containerd-starts' if starts else ''}")
    for before in (fresh, older)
    for at in range(9)
    for starts in (False, True)
]


@pytest.mark.parametrize(("before", "at", "containerd_starts"), CUTS)
def test_after_an_interrupted_install_the_next_one_runs_nydus_with_its_files(
    node: Node, before: Callable[[Node], None], at: int, containerd_starts: bool
) -> None:
    before(node)
    node.run(nydus.install_actions(NYDUS, node.facts())[:at])
    if containerd_starts:
        node.systemd.containerd_starts()
    node.install()
    assert node.runs_its_files()
    assert node.install() == ()


@pytest.mark.parametrize(("before", "at", "containerd_starts"), CUTS)
def test_a_failed_install_is_rolled_back(
    node: Node, before: Callable[[Node], None], at: int, containerd_starts: bool
) -> None:
    before(node)
    files, running = node.files(), set(node.systemd.running)
    facts = node.facts()
    node.run(nydus.install_actions(NYDUS, facts)[:at])
    if containerd_starts:
        node.systemd.containerd_starts()
    node.run(nydus.rollback_actions(NYDUS, facts))
    # Empty directories are ignored: the directories of previous links stay or are created again.
    assert {k: v for k, v in node.files().items() if v is not None} == {
        k: v for k, v in files.items() if v is not None
    }
    assert set(node.systemd.running) == running
    assert not running or node.runs_its_files()


@pytest.mark.parametrize("at", range(8))
def test_revert_removes_everything_but_the_data_even_after_an_interruption(node: Node, at: int) -> None:
    before = node.files()
    data = "/var/lib/nydus-snapshotter/metadata.db"
    node.install()
    node.root.make_dirs("/var/lib/nydus-snapshotter")
    node.root.write(data, b"snapshots")
    (note,) = nydus.notes(NYDUS, node.facts())
    assert note.startswith("/var/lib/nydus-snapshotter stays")
    node.run(nydus.revert_actions(NYDUS, node.facts())[:at])
    node.systemd.containerd_starts()
    node.revert()
    assert node.files() == {**before, data: b"snapshots"}
    assert node.systemd.running == {}
    assert node.systemd.unit("nydus-snapshotter.service") is None
    assert node.revert() == ()
    assert nydus.notes(NYDUS, node.facts()) == ()


def test_revert_does_not_need_the_settings_of_the_install(node: Node) -> None:
    node.install(NYDUS_B)
    node.revert(settings("b"))
    assert node.root.glob("/etc/systemd/system/*") == []


def test_two_installations_do_not_affect_each_other(node: Node) -> None:
    node.install()
    alone = node.files()
    node.install(NYDUS_B)
    assert node.install() == ()
    assert set(node.systemd.running) == {"nydus-snapshotter.service", "nydus-snapshotter-b.service"}
    node.revert(NYDUS_B)
    assert node.files() | {"/opt/kata-b/nydus-snapshotter": None} == alone
    assert node.runs_its_files()


def test_a_foreign_unit_is_refused_and_not_changed(node: Node) -> None:
    node.root.write("/etc/systemd/system/nydus-snapshotter.service", b"[Service]\nExecStart=/bin/mine\n")
    before = node.files()
    with pytest.raises(IneligibleNodeError, match="did not create it") as caught:
        node.install()
    assert "snapshotter.setup" in caught.value.hint
    assert node.revert() == ()
    assert node.files() == before


def test_nothing_is_written_if_the_program_of_nydus_is_missing(node: Node) -> None:
    node.program = ""
    with pytest.raises(PayloadError) as caught:
        node.install()
    assert caught.value.where == "/opt/kata/nydus-snapshotter/containerd-nydus-grpc"
    assert "nydus-snapshotter" in caught.value.hint


def test_settings_without_nydus_have_no_actions(node: Node) -> None:
    assert node.install(settings(qemu="nydus")) == ()
    assert nydus.rollback_actions(settings(qemu="nydus"), node.facts()) == ()


def test_a_baked_image_has_the_files_and_its_node_only_starts_nydus(node: Node) -> None:
    node.offline = True
    node.install()
    assert node.systemd.asked == []
    assert node.install() == ()
    node.offline = False
    node.systemd.daemon_reload(1)  # as at boot
    node.systemd.containerd_starts()
    assert node.runs_its_files()
    assert node.install() == ()
    node.offline = True
    node.run(nydus.revert_actions(NYDUS, node.facts()))
    assert node.root.glob("/etc/systemd/system/*") == []


def test_a_unit_that_does_not_come_up_is_an_error(node: Node) -> None:
    node.systemd.refuses = "start"
    with pytest.raises(SystemdError):
        node.install()
    node.systemd.refuses = ""
    action = nydus.install_actions(NYDUS, node.facts())[-1]
    with pytest.raises(SystemdError, match="inactive"):
        action.check(node.systemd.clients())


def test_every_action_has_a_line_and_an_effect(node: Node) -> None:
    actions = nydus.install_actions(NYDUS, node.facts())
    lines = [action.describe() for action in actions]
    assert "write /etc/systemd/system/nydus-snapshotter.service" in lines
    assert lines[-1] == "start nydus-snapshotter.service"
    assert all(action.effects() for action in actions)


def test_a_plan_shows_the_content_of_the_unit_file_that_is_there(node: Node) -> None:
    node.install()
    nydus_unit = NydusInstance.for_settings(NYDUS)
    edited = (node.root.read(nydus_unit.unit_path) or b"") + b"# mine\n"
    node.root.write(nydus_unit.unit_path, edited)

    def unit_effects(actions: Iterable[Action]) -> list[PathEffect]:
        effects = [effect for action in actions for effect in action.effects()]
        return [
            each for each in effects if isinstance(each, PathEffect) and each.path == nydus_unit.unit_path
        ]

    (change,) = unit_effects(nydus.install_actions(NYDUS, node.facts()))
    assert (change.change, change.before) == ("change", edited)
    (removal,) = unit_effects(nydus.revert_actions(NYDUS, node.facts()))
    assert (removal.change, removal.before) == ("remove", edited)


# The findings of host-check

NO_NYDUS = NydusFacts(None, None, {}, frozenset({"/etc/systemd/system"}), "", CONTAINERD)
GOOD = SnapshotterFacts(NO_NYDUS, True, MkfsErofs("/usr/bin/mkfs.erofs", ()), True, True, True)
MAIN = "/etc/containerd/config.toml"
PROXY = b'[proxy_plugins.nydus]\ntype = "snapshot"\naddress = "/run/mine.sock"\n'
DEVMAPPER = b"[plugins.'io.containerd.snapshotter.v1.devmapper']\npool_name = 'pool'\n"
EROFS_TABLE = b"[plugins.'io.containerd.snapshotter.v1.erofs']\n"
DISCARD = b"[plugins.'io.containerd.grpc.v1.cri'.containerd]\ndiscard_unpacked_layers = true\n"


def rows(
    wanted: Settings,
    version: str = "containerd://2.3.4",
    facts: SnapshotterFacts = GOOD,
    main: bytes = b"version = 3\n",
    payload: Mapping[str, object] | None = None,
) -> list[Finding]:
    runtime = runtime_version(version)
    place = distribution_runtime("k8s", runtime.name)
    config = ContainerdConfig(wanted.install_dir, wanted.suffix, runtime.version, place)
    files = {MAIN: FileState(main, 0o644, 0, 0)}
    found = RuntimeFacts(runtime, "", place, config, files, {}, ())
    return list(checks(wanted, found, facts, (payload or {nydus.PROGRAM_PATH: 1}).keys()))


@pytest.mark.parametrize(
    ("wanted", "how", "says"),
    [
        pytest.param(settings(qemu="x"), {"version": "containerd://1.6.20"}, "1.7 or later", id="1.6"),
        pytest.param(
            settings(qemu="overlayfs"),
            {"version": "containerd://1.7.34", "main": DISCARD},
            "discard_unpacked_layers = false",
            id="1.7-that-discards-layers",
        ),
        pytest.param(
            settings(qemu="overlayfs"),
            {
                "version": "containerd://1.7.34",
                "main": b"[plugins.cri.containerd]\ndiscard_unpacked_layers = true\n",
            },
            "discard_unpacked_layers = false",
            id="1.7-that-discards-layers-by-schema-1",
        ),
        pytest.param(settings(qemu="nosuch"), {}, "proxy_plugins", id="unheard-of-snapshotter"),
        pytest.param(settings(qemu="nydus"), {}, "add nydus to snapshotter.setup", id="nobodys-nydus"),
        pytest.param(
            settings(qemu="nydus"),
            {},
            "remove containerd.snapshotter from these shims",
            id="nydus-to-be-done-without",
        ),
        pytest.param(settings(qemu="devmapper"), {}, "pool_name", id="devmapper-not-configured"),
        pytest.param(settings(qemu="blockfile"), {}, "scratch_file", id="blockfile-not-configured"),
        pytest.param(
            NYDUS, {"main": PROXY}, "a snapshotter nydus at /run/mine.sock", id="admins-nydus-is-not-replaced"
        ),
        pytest.param(NYDUS, {"payload": {"VERSION": 1}}, "the payload has no", id="payload-without-nydus"),
        pytest.param(
            settings(setup=["nydus"], qemu="nydus"),
            {"payload": {"VERSION": 1}},
            "or disable them: kata-qemu",
            id="payload-without-nydus-that-a-shim-uses",
        ),
        pytest.param(
            NYDUS,
            {"facts": replace(GOOD, nydus=replace(NO_NYDUS, unit=b"[Service]\n"))},
            "did not create it",
            id="unit-of-somebody-else",
        ),
        pytest.param(
            NYDUS,
            {"facts": replace(GOOD, nydus=replace(NO_NYDUS, directories=frozenset()))},
            "mount the node's /etc/systemd/system",
            id="units-not-mounted",
        ),
        pytest.param(
            settings("s" * 45, setup=["nydus"], qemu="nydus"), {}, "70 characters", id="suffix-too-long"
        ),
        pytest.param(erofs(), {"version": "containerd://2.1.9"}, "2.2", id="erofs-before-2.2"),
        pytest.param(
            settings(setup=["erofs"], qemu="erofs"), {}, "erofsMergeMode: unmerged", id="go-shim-merged"
        ),
        pytest.param(
            settings(setup=["erofs"], erofs={"erofs_merge_mode": "merged"}, qemu="erofs"),
            {},
            "kata-qemu",
            id="go-shim-merged-by-name",
        ),
        pytest.param(erofs(), {"facts": replace(GOOD, mkfs=None)}, "erofs-utils 1.8.2", id="no-mkfs"),
        pytest.param(
            erofs(),
            {"facts": replace(GOOD, mkfs=MkfsErofs("/usr/bin/mkfs.erofs", ("--sort=",)))},
            "does not have the options --sort=",
            id="old-mkfs",
        ),
        pytest.param(erofs(), {"facts": replace(GOOD, erofs=False)}, "modprobe erofs", id="not-loaded"),
        pytest.param(
            erofs(), {"facts": replace(GOOD, erofs=False, erofs_module=False)}, "does not have", id="no-erofs"
        ),
        pytest.param(
            erofs(erofs_dmverity=True),
            {"version": "containerd://2.2.9"},
            "needs containerd 2.3",
            id="dm-verity-before-2.3",
        ),
        pytest.param(
            erofs(erofs_dmverity=True),
            {"facts": replace(GOOD, dm_verity=False)},
            "modprobe dm_verity",
            id="no-dm-verity",
        ),
        pytest.param(
            erofs(),
            {"main": EROFS_TABLE + b"max_unmerged_layers = 4\n"},
            "max_unmerged_layers = 4 (the settings need 0)",
            id="admins-layers",
        ),
        pytest.param(
            erofs(erofs_dmverity=True),
            {"main": EROFS_TABLE + b"dmverity_mode = 'off'\n"},
            "dmverity_mode = off (the settings need on)",
            id="admins-layers-without-dm-verity",
        ),
        pytest.param(
            settings(erofs={"erofs_dmverity": True}, qemu_runtime_rs="erofs"),
            {},
            "snapshotter.erofsDmverity has no effect",
            id="options-nobody-carries-out",
        ),
        pytest.param(
            settings(erofs={"erofs_dmverity": True}, qemu_runtime_rs="overlayfs"),
            {},
            "no shim uses erofs",
            id="dm-verity-nobody-uses",
        ),
    ],
)
def test_a_snapshotter_that_cannot_work_fails_permanently_with_a_remedy(
    wanted: Settings, how: Mapping[str, Any], says: str
) -> None:
    failed = [row for row in rows(wanted, **how) if row.status == "fail"]
    (row,) = failed
    assert says in f"{row.reason} / {row.remedy}"
    assert row.permanent
    assert row.remedy


@pytest.mark.parametrize(
    ("wanted", "how"),
    [
        pytest.param(settings(), {"version": "containerd://1.6.20"}, id="none-asked-for"),
        pytest.param(settings(qemu="overlayfs"), {"version": "containerd://1.7.34"}, id="1.7"),
        pytest.param(settings(qemu="nydus"), {"main": PROXY}, id="admins-nydus"),
        pytest.param(
            settings(qemu="nydus", user_drop_in=PROXY.decode()), {}, id="nydus-of-the-users-drop-in"
        ),
        pytest.param(settings(qemu="devmapper"), {"main": DEVMAPPER}, id="devmapper"),
        pytest.param(NYDUS, {}, id="nydus"),
        pytest.param(NYDUS_B, {"main": PROXY}, id="nydus-beside-the-admins"),
        pytest.param(NYDUS, {"version": "containerd://1.7.34"}, id="nydus-on-1.7"),
        pytest.param(erofs(erofs_dmverity=True), {}, id="erofs-with-dm-verity"),
        pytest.param(
            settings(setup=["erofs"], erofs={"erofs_merge_mode": "unmerged"}, qemu="erofs"), {}, id="go-shim"
        ),
        pytest.param(
            erofs(), {"main": EROFS_TABLE + b"max_unmerged_layers = 0\ndefault_size = '1G'\n"}, id="agreed"
        ),
        pytest.param(
            replace(erofs(), user_drop_in=(EROFS_TABLE + b"max_unmerged_layers = 1\n").decode()),
            {},
            id="the-users-drop-in-has-the-last-word",
        ),
        pytest.param(settings(qemu="erofs"), {"facts": replace(GOOD, mkfs=None)}, id="admins-erofs"),
        pytest.param(
            erofs(), {"facts": replace(GOOD, mkfs=None, programs_visible=False)}, id="programs-not-mounted"
        ),
        pytest.param(erofs(), {"facts": replace(GOOD, erofs=False, offline=True)}, id="offline"),
        pytest.param(settings(qemu="zfs"), {}, id="zfs-is-a-warning"),
        pytest.param(NYDUS, {"version": "cri-o://1.33.13"}, id="cri-o-has-none"),
    ],
)
def test_a_snapshotter_that_can_work_does_not_fail(wanted: Settings, how: Mapping[str, Any]) -> None:
    assert [row for row in rows(wanted, **how) if row.status == "fail"] == []


def test_settings_without_a_snapshotter_have_no_findings() -> None:
    assert rows(settings()) == []


# The facts of the node


@contextlib.contextmanager
def filesystems(monkeypatch: pytest.MonkeyPatch, text: str) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(kernel, "read", lambda path: text if path == "/proc/filesystems" else "")
        yield


def host(root: Root) -> SnapshotterFacts:
    receipt = Receipt("default", "/opt/kata", "")
    options = Options(Path("/payload"), offline=True)
    return facts_module.gather_facts(
        StageContext(NYDUS, receipt, FakeSystemd(root).clients(), options), CONTAINERD
    )


def test_the_mkfs_that_a_unit_would_run_is_found_with_its_missing_options(root: Root) -> None:
    assert (host(root).mkfs, host(root).programs_visible) == (None, False)
    for directory in ("/usr/bin", "/usr/local/bin"):
        root.make_dirs(directory)
    root.write("/usr/bin/mkfs.erofs", b"\x7fELF ... --tar=f --mkfs-time --sort=none ...")
    assert host(root).programs_visible
    assert host(root).mkfs == MkfsErofs("/usr/bin/mkfs.erofs", ())
    root.write("/usr/local/bin/mkfs.erofs", b"\x7fELF ... --tar=f --mkfs-time ...")
    assert host(root).mkfs == MkfsErofs("/usr/local/bin/mkfs.erofs", ("--sort=",))


@pytest.mark.parametrize(
    ("text", "there"),
    [
        pytest.param("nodev\tproc\n\terofs\n\text4\n", True, id="loaded"),
        pytest.param("nodev\tproc\n\terofsx\n", False, id="another"),
        pytest.param("", False, id="not-to-be-seen"),
    ],
)
def test_erofs_is_looked_up_in_the_file_systems_of_the_kernel(
    root: Root, monkeypatch: pytest.MonkeyPatch, text: str, there: bool
) -> None:
    with filesystems(monkeypatch, text):
        assert host(root).erofs is there


def test_a_file_instead_of_a_directory_is_a_host_error(node: Node) -> None:
    node.root.write("/etc/systemd/system/containerd.service.wants", b"in the way")
    with pytest.raises(HostError):
        node.install()


# The payload


def tarballs(*components: str) -> Manifest:
    entries = tuple(
        Entry(f"{name}/file", "file", 0o644, 1, sha256="ab", component=name) for name in sorted(components)
    )
    archives = {name: Archive(f"kata-static-{name}.tar.zst", 1, "cd") for name in components}
    return Manifest(SCHEMA, "tarballs", "1", entries, {"qemu": {"x86_64": ("qemu",)}}, archives)


def selected(manifest: Manifest, wanted: Settings) -> list[str]:
    entries = select(manifest, wanted.shims, wanted.arch, mapping.required_components(wanted))
    return [entry.path for entry in entries if entry.kind == "file"]


def test_the_programs_of_nydus_are_placed_only_if_it_is_managed() -> None:
    payload = tarballs("qemu", "nydus-snapshotter")
    assert selected(payload, settings()) == ["qemu/file"]
    assert selected(payload, NYDUS) == ["nydus-snapshotter/file", "qemu/file"]


def test_a_payload_without_the_programs_of_nydus_is_refused() -> None:
    with pytest.raises(PayloadError) as caught:
        selected(tarballs("qemu"), NYDUS)
    assert caught.value.where == "kata-static-nydus-snapshotter.tar.zst"
