"""The configuration of CRI-O for an installation, and the problems found in a configuration."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from msgspec.structs import replace

from kata_node.host.atomic_replace import temp_sibling
from kata_node.host.files import Root
from kata_node.runtime.crio import CrioConfig
from kata_node.runtime.model import config as cri_config
from kata_node.runtime.model.config import DesiredConfig
from kata_node.settings import shims
from kata_node.settings.model import Settings
from kata_node.settings.selection import CustomRuntime, ShimSettings

MAIN = "/etc/crio/crio.conf"
CONF_D = "/etc/crio/crio.conf.d"
DROP_IN = f"{CONF_D}/99-kata-deploy"
DEBUG = f"{CONF_D}/99-kata-deploy.debug"
OTHERS = f"{CONF_D}/10-crio.conf"
PROGRAM = "/opt/kata/bin/containerd-shim-kata-v2"
CONFIG = "/opt/kata/share/defaults/kata-containers/runtimes/qemu/configuration-qemu.toml"
CRUN = (
    '[crio.runtime]\ndefault_runtime = "crun"\n[crio.runtime.runtimes.crun]\nruntime_path = "/usr/bin/crun"\n'
)

SETTINGS = Settings(shims=(shims.table()["qemu"], shims.table()["clh-runtime-rs"]), arch="x86_64")
SECOND = replace(SETTINGS, install_dir="/opt/kata-two", instance="two", suffix="two")


class Node:
    """The files of a node, by path. A path that ends in a slash is an empty directory."""

    def __init__(self, files: Mapping[str, str] | None = None) -> None:
        self.files = {path: content.encode() for path, content in (files or {}).items()}

    def read(self, path: str) -> bytes | None:
        return self.files.get(path)

    def glob(self, pattern: str) -> list[str]:
        """Return matching files and directories. A wildcard matches within one directory."""
        ancestors = {
            "/".join(parts[:depth])
            for parts in (path.split("/") for path in self.files)
            for depth in range(2, len(parts) + 1)
        }
        depth = pattern.count("/")
        found = {path for path in ancestors if not path.endswith("/") and path.count("/") == depth}
        return sorted(fnmatch.filter(found, pattern))

    def read_files(self) -> dict[str, bytes]:
        return CrioConfig("/opt/kata", "").read_files(self.read, self.glob)

    def install(self, settings: Settings = SETTINGS) -> DesiredConfig:
        desired_config = crio(settings).desired_config(settings, self.read_files())
        for file in desired_config.changes:
            if file.content is None:
                self.files.pop(file.path, None)
            else:
                self.files[file.path] = file.content
        return desired_config

    def served(self) -> dict[str, object]:
        """The tables of all handlers, merged as in CRI-O."""
        tables: dict[str, object] = {}
        for content in self.read_files().values():
            tables |= tomllib.loads(content.decode()).get("crio", {}).get("runtime", {}).get("runtimes", {})
        return tables

    def problems(self, settings: Settings = SETTINGS, *, missing: str = "") -> list[str]:
        """Install, and return the problems. The path ``missing`` does not exist."""
        desired_config = self.install(settings)
        return self.check(settings, desired_config.handlers, missing=missing)

    def check(self, settings: Settings, handlers: tuple[str, ...], *, missing: str = "") -> list[str]:
        config = crio(settings)
        return config.check(
            self.read_files(),
            own_paths=cri_config.own_paths(config),
            handlers=handlers,
            labels={},
            exists=lambda path: path != missing,
        )


def crio(settings: Settings = SETTINGS) -> CrioConfig:
    return CrioConfig(settings.install_dir, settings.suffix)


def test_every_handler_has_a_table_with_its_program_and_its_own_configuration() -> None:
    node = Node()
    assert node.install().handlers == ("kata-qemu", "kata-clh-runtime-rs")
    assert node.served() == {
        "kata-qemu": {
            "runtime_path": PROGRAM,
            "runtime_type": "vm",
            "runtime_root": "/run/vc",
            "runtime_config_path": CONFIG,
            "privileged_without_host_devices": True,
        },
        "kata-clh-runtime-rs": {
            "runtime_path": "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2",
            "runtime_type": "vm",
            "runtime_root": "/run/vc",
            "runtime_config_path": "/opt/kata/share/defaults/kata-containers/runtime-rs/runtimes/"
            "clh-runtime-rs/configuration-clh-runtime-rs.toml",
            "privileged_without_host_devices": True,
        },
    }
    assert b"Managed by kata-node (instance default)" in node.files[DROP_IN]


def test_only_handlers_with_guest_pull_pull_images_in_the_guest() -> None:
    settings = replace(
        SETTINGS,
        shim_settings={"qemu": ShimSettings(crio_guest_pull=True)},
        custom_runtimes=(
            CustomRuntime("mine", base_config="qemu", handler="my-kata", crio_pull_type="guest-pull"),
        ),
    )
    node = Node()
    node.install(settings)
    pulls = {
        name: table.get("runtime_pull_image")
        for name, table in node.served().items()
        if isinstance(table, dict)
    }
    assert pulls == {"kata-qemu": True, "kata-clh-runtime-rs": None, "my-kata": True}


def test_the_debug_drop_in_is_removed_when_debug_is_switched_off() -> None:
    node = Node()
    handlers = node.install(replace(SETTINGS, debug=True)).handlers
    assert "kata-qemu-debug" in handlers
    assert tomllib.loads(node.files[DEBUG].decode()) == {"crio": {"runtime": {"log_level": "debug"}}}
    node.install()
    assert set(node.files) == {DROP_IN}


@pytest.mark.parametrize("suffix", ["two", "debug", "debug-two"])
def test_installations_with_different_suffixes_share_no_file(suffix: str) -> None:
    node = Node()
    node.install(replace(SETTINGS, debug=True))
    before = dict(node.files)
    node.install(replace(SECOND, suffix=suffix, instance=suffix, debug=True))
    assert {path: node.files[path] for path in before} == before
    assert len(node.files) == 4
    assert all(cri_config.is_drop_in(path) for path in node.files)


def test_the_programs_in_a_drop_in_show_its_installation() -> None:
    node = Node()
    node.install()
    assert cri_config.is_drop_in_of("/opt/kata", node.files[DROP_IN])
    assert not cri_config.is_drop_in_of("/opt/kata-two", node.files[DROP_IN])


def test_foreign_files_are_not_changed() -> None:
    node = Node({MAIN: CRUN, OTHERS: CRUN})
    node.install(replace(SETTINGS, debug=True))
    assert (node.files[MAIN], node.files[OTHERS]) == (CRUN.encode(), CRUN.encode())
    assert crio().shared_paths() == ()


@pytest.mark.parametrize(
    ("driver", "has_option"),
    [
        pytest.param("", True, id="the-default"),
        pytest.param('[crio]\nstorage_driver = "overlay"\n', True, id="overlay"),
        pytest.param('[crio]\nstorage_driver = "overlay2"\n', True, id="its-old-name"),
        pytest.param('[crio]\nstorage_driver = "btrfs"\n', False, id="another-refuses-it"),
    ],
)
def test_only_the_overlay_driver_gets_the_storage_option(driver: str, has_option: bool) -> None:
    node = Node({OTHERS: driver})
    for _ in range(2):  # our own drop-in does not change the result
        node.install()
        crio_table = tomllib.loads(node.files[DROP_IN].decode())["crio"]
        assert crio_table.get("storage_option") == (["overlay.skip_mount_home=true"] if has_option else None)


def test_every_file_below_the_drop_in_directory_is_read_in_the_order_of_crio() -> None:
    paths = [
        MAIN,
        f"{CONF_D}/.hidden",
        f"{CONF_D}/10/deep/er.toml",
        f"{CONF_D}/10/z",
        f"{CONF_D}/10-crio.conf",
        f"{CONF_D}/10.conf.bak",
        f"{CONF_D}/99-kata-deploy",
        f"{CONF_D}/b",
    ]
    existing = dict.fromkeys(sorted(paths, reverse=True), "")
    node = Node({**existing, f"{CONF_D}/empty/": "", "/etc/crio/crio.conf.bak": "", "/etc/crio/other/x": ""})
    assert list(node.read_files()) == paths


def test_an_empty_directory_is_not_taken_for_a_file(tmp_path: Path) -> None:
    root = Root(tmp_path)
    root.make_dirs(f"{CONF_D}/empty/too")
    root.make_dirs(f"{CONF_D}/sub")
    root.write(f"{CONF_D}/sub/x", b"")
    assert list(crio().read_files(root.read, root.glob)) == [f"{CONF_D}/sub/x"]


def test_the_leftover_of_an_interrupted_write_is_not_read(tmp_path: Path) -> None:
    root = Root(tmp_path)
    desired_config = crio().desired_config(SETTINGS, {})
    root.make_dirs(CONF_D)
    root.write(DROP_IN, desired_config.changes[0].content or b"")
    for path in (DROP_IN, DEBUG):
        temp_sibling(root.resolve(path)).write_bytes(desired_config.changes[0].content or b"")
    files = crio().read_files(root.read, root.glob)
    assert list(files) == [DROP_IN]
    config = crio()
    assert (
        config.check(
            files,
            own_paths=cri_config.own_paths(config),
            handlers=desired_config.handlers,
            labels={},
            exists=lambda path: True,
        )
        == []
    )


def test_a_node_without_files_has_no_files_to_read() -> None:
    assert Node().read_files() == {}


@pytest.mark.parametrize(
    ("path", "content", "expected"),
    [
        pytest.param(OTHERS, "this is [not TOML\n", "not valid TOML", id="broken"),
        pytest.param(f"{CONF_D}/sub/x.bak", "this is [not TOML\n", "not valid TOML", id="broken-backup"),
        pytest.param(MAIN, "crio = 1\n", "crio is not a table", id="crio-no-table"),
        pytest.param(MAIN, "[crio]\nruntime = []\n", "crio.runtime is not a table", id="runtime-no-table"),
        pytest.param(MAIN, "[crio.runtime]\nruntimes = 1\n", "crio.runtime.runtimes is not", id="runtimes"),
        pytest.param(
            OTHERS, "[crio.runtime.runtimes]\nx = 1\n", "crio.runtime.runtimes.x is not a table", id="handler"
        ),
        pytest.param(
            OTHERS,
            "[crio.runtime.runtimes.x]\nRuntime_Path = 1\n",
            "crio.runtime.runtimes.x.runtime_path is not a string",
            id="field-in-any-case",
        ),
        pytest.param(
            OTHERS,
            '[crio.runtime.runtimes.x]\nprivileged_without_host_devices = "no"\n',
            "is not a boolean",
            id="flag",
        ),
        pytest.param(
            OTHERS,
            '[crio]\nstorage_option = "x"\n',
            "crio.storage_option is not an array of strings",
            id="array",
        ),
        pytest.param(OTHERS, "[crio.runtime]\nlog_level = 1\n", "log_level is not a string", id="log-level"),
        pytest.param(
            OTHERS, '[crio.runtime]\ndefault_runtime = "gone"\n', "its default_runtime is gone", id="default"
        ),
        pytest.param(
            OTHERS,
            "[crio.runtime.runtimes.kata-qemu]\n",
            "it defines the handler kata-qemu",
            id="our-handler-before-ours",
        ),
        pytest.param(
            f"{CONF_D}/zz",
            '[CRIO.runtime.runtimes.kata-qemu]\nruntime_path = "/bin/containerd-shim-x-v2"\n',
            "it defines the handler kata-qemu",
            id="our-handler-behind-ours",
        ),
    ],
)
def test_a_problem_names_its_file_and_what_is_wrong(path: str, content: str, expected: str) -> None:
    problems = Node({path: content}).problems()
    assert any(problem.startswith(f"{path}: ") and expected in problem for problem in problems), problems


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(CRUN, id="crun"),
        pytest.param("\ufeff" + CRUN, id="byte-order-mark"),
        pytest.param('[crio.runtime]\ndefault_runtime = "kata-qemu"\n', id="ours-as-the-default"),
        pytest.param('[crio.runtime]\nunknown = 1\n[other]\nx = "y"\n', id="unknown-keys"),
        pytest.param('[crio.runtime.runtimes.Kata-Qemu]\nruntime_path = "/x"\n', id="another-name"),
        pytest.param('[crio.runtime.runtimes.other]\nruntime_path = "/gone"\n', id="dropped-but-not-ours"),
    ],
)
def test_a_valid_configuration_has_no_problems(content: str) -> None:
    assert Node({OTHERS: content}).problems() == []


@pytest.mark.parametrize("missing", [PROGRAM, CONFIG])
def test_a_handler_without_its_program_or_configuration_is_a_problem(missing: str) -> None:
    (problem,) = Node().problems(missing=missing)
    assert "the handler kata-qemu: " in problem
    assert f"{missing} does not exist" in problem


def test_a_program_that_crio_does_not_accept_as_a_shim_is_a_problem() -> None:
    node = Node()
    handlers = node.install().handlers
    node.files[DROP_IN] = node.files[DROP_IN].replace(
        b"/opt/kata/bin/containerd-shim-kata-v2", b"/opt/kata/bin/kata"
    )
    assert node.check(SETTINGS, handlers) == [
        "the handler kata-qemu: /opt/kata/bin/kata is not named containerd-shim-*-v2; CRI-O drops the handler"
    ]


def test_a_handler_that_no_file_defines_is_a_problem() -> None:
    assert Node().check(SETTINGS, ("kata-qemu",)) == [
        "the handler kata-qemu: no file that CRI-O reads defines it"
    ]


def test_a_default_handler_that_a_revert_would_remove_is_a_problem() -> None:
    node = Node({OTHERS: '[crio.runtime]\ndefault_runtime = "kata-qemu"\n'})
    node.install()
    del node.files[DROP_IN]
    (problem,) = node.check(SETTINGS, ())
    assert "its default_runtime is kata-qemu" in problem


def test_the_defined_handlers_are_those_of_all_valid_files_that_are_read() -> None:
    files = {
        MAIN: b"[crio.runtime.runtimes.a]\n",
        f"{CONF_D}/sub/x": b"[crio.runtime.runtimes.b]\n",
        f"{CONF_D}/broken": b"[crio.runtime.runtimes.c]\nruntime_path = 1\n",
        "/etc/crio/elsewhere": b"[crio.runtime.runtimes.d]\n",
    }
    assert crio().defined_handlers(files) == {"a", "b"}


OPTION = '[crio]\nstorage_option = ["overlay.skip_mount_home=true"]\n'


@pytest.mark.parametrize(
    ("others", "first_reloads"),
    [
        pytest.param("", False, id="the-option-is-new"),
        pytest.param(OPTION, True, id="the-option-is-there-already"),
        pytest.param('[crio]\nstorage_driver = "btrfs"\n', True, id="no-option-needed"),
    ],
)
def test_a_change_of_the_storage_option_needs_a_restart(others: str, first_reloads: bool) -> None:
    node = Node({OTHERS: others})
    fresh = node.read_files()
    node.install()
    first = node.read_files()
    node.install(replace(SETTINGS, debug=True, shims=SETTINGS.shims[:1]))
    node.install(SECOND)
    later = node.read_files()
    assert crio().loads_without_restart(fresh, first) is first_reloads
    assert crio().loads_without_restart(first, fresh) is first_reloads
    assert crio().loads_without_restart(first, later)
    assert crio().loads_without_restart(later, first)
