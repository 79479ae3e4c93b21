"""The configuration of containerd for an installation, and the problems found in a configuration."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Mapping, Sequence

import pytest
from msgspec.structs import replace

from kata_node.errors import HostError
from kata_node.runtime.containerd import read as containerd_read
from kata_node.runtime.containerd.command_line import config_path
from kata_node.runtime.containerd.config import ContainerdConfig
from kata_node.runtime.containerd.read import in_read_order
from kata_node.runtime.containerd.render import render
from kata_node.runtime.containerd.template import INITIAL_MAIN_FILES
from kata_node.runtime.model.config import DesiredConfig, FileChange, is_drop_in, own_paths
from kata_node.runtime.model.distributions import distribution_runtime
from kata_node.settings import shims
from kata_node.settings.model import Settings
from kata_node.settings.runtime import ContainerdSettings
from kata_node.settings.selection import ShimSettings
from kata_node.toml import edit as toml_edit
from kata_node.versions import parse_version

MAIN = "/etc/containerd/config.toml"
GLOB = "/opt/kata/containerd/config.d/*.toml"
DROP_IN = "/opt/kata/containerd/config.d/99-kata-deploy.toml"
USER = "/opt/kata/containerd/config.d/zz-kata-deploy-user.toml"
CONF_D = "/etc/containerd/conf.d/99-kata-deploy.toml"
CONF_D_USER = "/etc/containerd/conf.d/zz-kata-deploy-user.toml"
IMPORTS_CONF_D = b'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'

SETTINGS = Settings(shims=(shims.table()["qemu"], shims.table()["clh-runtime-rs"]), arch="x86_64")
SECOND = replace(SETTINGS, install_dir="/opt/kata-two", instance="two", suffix="two")
V21 = parse_version("2.1.9")


def config(settings: Settings = SETTINGS, version: str = "2.1.9", main: str = MAIN) -> ContainerdConfig:
    """Plain containerd with the main file ``main``."""
    plain = replace(distribution_runtime("k8s", "containerd"), config=main)
    return ContainerdConfig(settings.install_dir, settings.suffix, parse_version(version), plain)


class Node:
    """The files of a node, by path."""

    def __init__(self, files: Mapping[str, bytes | str]) -> None:
        self.files = {path: c.encode() if isinstance(c, str) else c for path, c in files.items()}

    def glob(self, pattern: str) -> list[str]:
        deep = pattern.count("/")  # a wildcard stays within one directory
        return sorted(p for p in self.files if p.count("/") == deep and fnmatch.fnmatchcase(p, pattern))

    def read_files(self, main: str = MAIN) -> dict[str, bytes]:
        return containerd_read.import_closure(main, self.files.get, self.glob)

    def apply(self, changes: Sequence[FileChange]) -> None:
        for change in changes:
            if change.content is None:
                self.files.pop(change.path, None)
            else:
                self.files[change.path] = change.content

    def install(self, settings: Settings = SETTINGS, version: str = "2.1.9") -> DesiredConfig:
        desired_config = config(settings, version).desired_config(settings, self.read_files())
        self.apply(desired_config.changes)
        return desired_config

    def revert(self, settings: Settings = SETTINGS) -> None:
        if main := self.files.get(MAIN):
            self.apply([FileChange(MAIN, config(settings).without_entry(MAIN, main))])
        self.apply([FileChange(path, None) for path in own_paths(config(settings))])

    def handlers(self) -> set[str]:
        """The handlers of schema 3 in the files that containerd reads."""
        found: set[str] = set()
        for content in self.read_files().values():
            plugins = tomllib.loads(content.decode()).get("plugins", {})
            found |= set(plugins.get(RUNTIME, {}).get("containerd", {}).get("runtimes", {}))
        return found

    def problems(self, settings: Settings = SETTINGS, version: str | None = None) -> list[str]:
        return containerd_read.check(
            MAIN,
            self.files,
            own_paths=own_paths(config(settings)),
            handlers=tuple(shim.handler(settings.suffix) for shim in settings.shims),
            labels={USER: "containerd.userDropIn"},
            version=parse_version(version) if version else None,
        )


RUNTIME = "io.containerd.cri.v1.runtime"


def runtimes(name: str, *, plugin: str = RUNTIME) -> str:
    return f'[plugins."{plugin}".containerd.runtimes.{name}]\nruntime_type = "io.containerd.runc.v2"\n'


# --- the drop-in ------------------------------------------------------------------------------------


def test_each_shim_becomes_a_handler_with_its_own_program_and_configuration() -> None:
    data = tomllib.loads(render(SETTINGS, 3, V21).decode())
    kata = "/opt/kata/share/defaults/kata-containers"
    assert data == {
        "version": 3,
        "plugins": {
            RUNTIME: {
                "containerd": {
                    "runtimes": {
                        "kata-qemu": {
                            "runtime_type": "io.containerd.kata-qemu.v2",
                            "runtime_path": "/opt/kata/bin/containerd-shim-kata-v2",
                            "privileged_without_host_devices": True,
                            "pod_annotations": ["io.katacontainers.*"],
                            "options": {"ConfigPath": f"{kata}/runtimes/qemu/configuration-qemu.toml"},
                        },
                        "kata-clh-runtime-rs": {
                            "runtime_type": "io.containerd.kata-clh-runtime-rs.v2",
                            "runtime_path": "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2",
                            "privileged_without_host_devices": True,
                            "pod_annotations": ["io.katacontainers.*"],
                            "options": {
                                "ConfigPath": f"{kata}/runtime-rs/runtimes/clh-runtime-rs/"
                                "configuration-clh-runtime-rs.toml"
                            },
                        },
                    }
                }
            }
        },
    }


def test_a_suffix_is_in_the_names_of_handlers_and_files_but_not_in_the_type() -> None:
    node = Node({})
    desired_config = node.install(SECOND)
    assert desired_config.handlers == ("kata-qemu-two", "kata-clh-runtime-rs-two")
    drop_in = node.files["/opt/kata-two/containerd/config.d/99-kata-deploy-two.toml"].decode()
    assert 'runtimes.kata-qemu-two]\nruntime_type = "io.containerd.kata-qemu.v2"' in drop_in
    assert "/opt/kata/" not in drop_in


def test_the_drop_in_names_its_installation_and_is_the_same_on_every_run() -> None:
    first, second = (render(SECOND, 3, V21) for _ in range(2))
    assert first == second
    assert first.startswith(b"# Managed by kata-node (instance two). Changes here are lost:\n")
    assert first.endswith(b"\n")
    assert b"\n\n\n" not in first


def test_annotations_of_the_settings_are_in_the_handler_once_each() -> None:
    settings = replace(
        SETTINGS,
        containerd=ContainerdSettings(extra_pod_annotations=("a.example/*", "io.katacontainers.*")),
        shim_settings={"qemu": ShimSettings(extra_pod_annotations=("b.example/*", "a.example/*"))},
    )
    table = tomllib.loads(render(settings, 3, V21).decode())["plugins"][RUNTIME]["containerd"]["runtimes"]
    assert table["kata-qemu"]["pod_annotations"] == ["io.katacontainers.*", "a.example/*", "b.example/*"]
    assert table["kata-clh-runtime-rs"]["pod_annotations"] == ["io.katacontainers.*", "a.example/*"]


@pytest.mark.parametrize(
    ("main", "others", "version", "plugin"),
    [
        pytest.param(None, {}, 3, RUNTIME, id="no main file"),
        pytest.param("", {}, 3, RUNTIME, id="no version"),
        pytest.param("version = 0\n", {}, 3, RUNTIME, id="version 0"),
        pytest.param("version = true\n", {}, 3, RUNTIME, id="a version that is none"),
        pytest.param("version = 1\n", {}, 1, RUNTIME, id="version 1"),
        pytest.param("version = 2\n", {}, 2, "io.containerd.grpc.v1.cri", id="version 2"),
        pytest.param("Version = 2\n", {}, 2, "io.containerd.grpc.v1.cri", id="version 2, in another case"),
        pytest.param("version = 3\n", {}, 3, RUNTIME, id="version 3"),
        pytest.param("version = 4\n", {}, 3, RUNTIME, id="version 4"),
        pytest.param(
            "imports = ['a/*.toml']\n",
            {"/etc/containerd/a/b.toml": "version = 2\n"},
            2,
            "io.containerd.grpc.v1.cri",
            id="the first imported file that gives one decides",
        ),
        pytest.param(
            "version = 3\nimports = ['a/*.toml']\n",
            {"/etc/containerd/a/b.toml": "version = 2\n"},
            3,
            RUNTIME,
            id="the main file decides before any other",
        ),
        pytest.param(
            f"imports = ['{GLOB}']\n",
            {DROP_IN: "version = 2\n"},
            3,
            RUNTIME,
            id="what an earlier run wrote itself does not decide",
        ),
    ],
)
def test_the_drop_in_has_the_schema_of_the_first_version(
    main: str | None, others: dict[str, str], version: int, plugin: str
) -> None:
    node = Node(others if main is None else {MAIN: main, **others})
    node.install()
    data = tomllib.loads(node.files[DROP_IN].decode())
    assert data["version"] == version
    assert list(data["plugins"]) == [plugin]


# --- the modes --------------------------------------------------------------------------------------


def test_install_creates_a_missing_main_file_and_revert_removes_it() -> None:
    node = Node({})
    assert node.install().mode == "import"
    assert tomllib.loads(node.files[MAIN].decode()) == {"version": 3, "imports": [GLOB]}
    assert b"kata-node" in node.files[MAIN].splitlines()[0]
    node.revert()
    assert node.files == {}


@pytest.mark.parametrize("order", [(SETTINGS, SECOND), (SECOND, SETTINGS)])
def test_a_created_main_file_is_removed_with_the_last_installation(order: Sequence[Settings]) -> None:
    node = Node({})
    node.install(SETTINGS)
    node.install(SECOND)
    assert node.handlers() == {
        "kata-qemu",
        "kata-qemu-two",
        "kata-clh-runtime-rs",
        "kata-clh-runtime-rs-two",
    }
    node.revert(order[0])
    assert MAIN in node.files
    node.revert(order[1])
    assert node.files == {}


def test_a_created_main_file_stays_if_it_has_foreign_content() -> None:
    node = Node({})
    node.install()
    node.files[MAIN] += b"[debug]\nlevel = 'debug'\n"
    node.revert()
    assert node.files == {MAIN: INITIAL_MAIN_FILES[2] + b"[debug]\nlevel = 'debug'\n"}


@pytest.mark.parametrize(
    ("version", "main", "others", "mode"),
    [
        pytest.param("2.2.0", IMPORTS_CONF_D, {}, "conf.d", id="imported"),
        pytest.param("2.3.4", IMPORTS_CONF_D, {}, "conf.d", id="imported, later release"),
        pytest.param("2.1.9", IMPORTS_CONF_D, {}, "import", id="imported, but before 2.2"),
        pytest.param("2.3.4", None, {}, "import", id="no main file"),
        pytest.param("2.3.4", b"version = 2\n", {}, "import", id="as Debian ships it"),
        pytest.param(
            "2.3.4", b"# imports = ['/etc/containerd/conf.d/*.toml']\n", {}, "import", id="in a comment"
        ),
        pytest.param("2.3.4", b"imports = ['conf.d/*.toml']\n", {}, "conf.d", id="relative"),
        pytest.param("2.3.4", b"Imports = ['/etc/containerd/*/*.toml']\n", {}, "conf.d", id="wider"),
        pytest.param(
            "2.3.4",
            b"imports = ['/etc/containerd/conf.d/9*.toml']\n",
            {},
            "import",
            id="ours, not the user's",
        ),
        pytest.param(
            "2.3.4",
            b"imports = ['/etc/containerd/conf.d/[!a]*.toml']\n",
            {},
            "import",
            id="not a name of ours",
        ),
        pytest.param(
            "2.3.4", b"imports = ['/etc/containerd/conf.d/*']\n", {}, "import", id="finds half-written files"
        ),
        pytest.param(
            "2.3.4", b"imports = ['/etc/containerd/conf.d/?.toml']\n", {}, "import", id="not a glob"
        ),
        pytest.param(
            "2.3.4",
            b"imports = ['/etc/extra.toml']\n",
            {"/etc/extra.toml": IMPORTS_CONF_D},
            "conf.d",
            id="imported by an imported file",
        ),
        pytest.param(
            "2.3.4",
            b"version = 3\n",
            {"/etc/containerd/conf.d/a.toml": IMPORTS_CONF_D},
            "import",
            id="only by a file nobody reads",
        ),
    ],
)
def test_conf_d_is_used_only_where_a_file_on_disk_imports_it(
    version: str, main: bytes | None, others: dict[str, bytes], mode: str
) -> None:
    node = Node(others if main is None else {MAIN: main, **others})
    before = dict(node.files)
    assert node.install(version=version).mode == mode
    assert (CONF_D in node.files, DROP_IN in node.files) == (mode == "conf.d", mode == "import")
    assert (node.files.get(MAIN) == main) == (mode == "conf.d")
    assert {CONF_D, DROP_IN} & set(node.read_files()), "containerd does not read the drop-in"
    node.revert()
    assert node.files == before


def test_drop_ins_are_written_before_their_import_and_removals_come_last() -> None:
    node = Node({MAIN: "version = 2\n"})
    settings = replace(SETTINGS, user_drop_in="[debug]\n")
    install = config(settings).desired_config(settings, node.read_files()).changes
    assert [(file.path, file.content is not None) for file in install] == [
        (DROP_IN, True),
        (USER, True),
        (MAIN, True),
        (CONF_D, False),
        (CONF_D_USER, False),
    ]


def test_a_runtime_upgrade_moves_the_drop_ins_and_leaves_no_stale_import() -> None:
    node = Node({MAIN: IMPORTS_CONF_D})
    settings = replace(SETTINGS, user_drop_in="[debug]\nlevel = 'debug'")
    node.install(settings, "2.1.9")
    assert set(node.files) == {MAIN, DROP_IN, USER}
    old = node.read_files()
    moved = node.install(settings, "2.2.0")
    assert moved.mode == "conf.d"
    assert node.files[MAIN] == IMPORTS_CONF_D
    assert set(node.files) == {MAIN, CONF_D, CONF_D_USER}
    assert [file.path for file in moved.changes] == [CONF_D, CONF_D_USER, MAIN, DROP_IN, USER]
    node.install(settings, "2.1.9")  # a downgrade moves them back
    assert node.read_files() == old
    node.revert(settings)
    assert node.files == {MAIN: IMPORTS_CONF_D}


@pytest.mark.parametrize(("main", "version"), [(b"version = 2\n", "2.1.9"), (IMPORTS_CONF_D, "2.2.0")])
def test_a_second_install_changes_no_file(main: bytes, version: str) -> None:
    node = Node({MAIN: main})
    settings = replace(SETTINGS, user_drop_in="[debug]\n")
    node.install(settings, version)
    after = dict(node.files)
    node.install(settings, version)
    assert node.files == after


@pytest.mark.parametrize(("main", "version"), [(b"version = 2\n", "2.1.9"), (IMPORTS_CONF_D, "2.2.0")])
def test_a_user_drop_in_is_written_verbatim_and_removed_with_its_setting(main: bytes, version: str) -> None:
    node = Node({MAIN: main})
    node.install(replace(SETTINGS, user_drop_in="[debug]\n  level = 'debug'\n\n"), version)
    user = next(path for path in node.files if "user" in path)
    assert node.files[user] == b"[debug]\n  level = 'debug'\n"
    assert list(node.read_files())[-1] == user, "it must be read last to override the others"
    node.install(replace(SETTINGS, user_drop_in=" \n"), version)
    assert user not in node.files


def test_revert_restores_every_byte_of_the_main_file() -> None:
    main = (
        b"# mine\r\nversion = 2 # two\r\nimports = [\r\n  '/etc/containerd/own/*.toml', # own\r\n]\r\n[debug]"
    )
    node = Node({MAIN: main, "/etc/containerd/own/x.toml": ""})
    node.install()
    assert GLOB.encode() in node.files[MAIN]
    node.revert()
    assert node.files[MAIN] == main


@pytest.mark.parametrize("path", [DROP_IN, "../../opt/kata/containerd/config.d/99-kata-deploy.toml"])
def test_revert_removes_an_import_of_our_drop_in_by_its_plain_path(path: str) -> None:
    others = ["/etc/other/*.toml", "/etc/containerd/conf.d/99-kata-deploy-two.toml"]
    node = Node({MAIN: f"version = 2\nimports = {[path, *others]}\n"})
    node.install()
    node.revert()
    assert node.files == {MAIN: f"version = 2\nimports = {others}\n".encode()}


@pytest.mark.parametrize(
    "main", [IMPORTS_CONF_D, INITIAL_MAIN_FILES[2], b"", b"imports = ['/opt/kata-two/*.toml']"]
)
def test_revert_does_not_change_a_main_file_without_our_entry(main: bytes) -> None:
    assert config().without_entry(MAIN, main) == main


def test_the_main_file_without_our_entry_is_known_before_and_after_an_install() -> None:
    node = Node({MAIN: "version = 2\n"})
    for _ in range(2):
        main = next(file for file in node.install().changes if file.path == MAIN)
        assert (main.content, main.content_without_entry) == (node.files[MAIN], b"version = 2\n")
    node = Node({})
    for _ in range(2):
        assert (
            next(file for file in node.install().changes if file.path == MAIN).content_without_entry is None
        )


def test_our_import_may_be_at_any_place_among_the_imports() -> None:
    main = f"version = 2\nimports = ['{GLOB}', '/etc/own/*.toml']\n".encode()
    node = Node({MAIN: main})
    node.install()
    assert node.files[MAIN] == main


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        (DROP_IN, True),
        (CONF_D_USER, True),
        ("/etc/containerd/conf.d/99-kata-deploy-two.toml", True),
        (MAIN, False),
        ("/etc/crio/crio.conf.d/99-kata-deploy.debug-two", True),
        ("/opt/kata/containerd/config.d/kata-deploy.toml", False),
        ("/etc/containerd/conf.d/registry.toml", False),
    ],
)
def test_a_drop_in_is_recognized_by_its_path(path: str, ours: bool) -> None:
    assert is_drop_in(path) == ours


def test_conf_d_is_beside_the_main_file() -> None:
    main = "/srv/containerd/main.toml"
    files = {main: b"version = 3\nimports = ['conf.d/*.toml']\n"}
    desired_config = config(SETTINGS, "2.3.4", main).desired_config(SETTINGS, files)
    assert desired_config.mode == "conf.d"
    assert desired_config.changes[0].path == "/srv/containerd/conf.d/99-kata-deploy.toml"
    assert "/srv/containerd/conf.d/99-kata-deploy.toml" in own_paths(config(main=main))


@pytest.mark.parametrize("version", ["2.1.9", "2.3.4"])
def test_the_error_of_a_broken_main_file_has_file_and_line(version: str) -> None:
    node = Node({MAIN: "version = 2\n[plugins\n"})
    with pytest.raises(HostError, match="line 2") as caught:
        node.install(version=version)
    assert caught.value.where == MAIN
    with pytest.raises(HostError, match="line 2"):
        node.revert()


@pytest.mark.parametrize(
    ("argv", "path"),
    [
        pytest.param(["/usr/bin/containerd"], MAIN, id="nothing said"),
        pytest.param(["containerd", "--config", "/a.toml"], "/a.toml", id="long"),
        pytest.param(["containerd", "--config=/a.toml"], "/a.toml", id="long with equals"),
        pytest.param(["containerd", "-c", "/a.toml"], "/a.toml", id="short"),
        pytest.param(["containerd", "-c=/a.toml"], "/a.toml", id="short with equals"),
        pytest.param(["containerd", "-config", "/a.toml"], "/a.toml", id="one dash"),
        pytest.param(["containerd", "-l", "debug", "-c", "/a.toml"], "/a.toml", id="after another option"),
        pytest.param(["containerd", "--log-level", "-c", "--root", "/x"], MAIN, id="another option's value"),
        pytest.param(["containerd", "-c", "/a.toml", "-c", "/b.toml"], "/b.toml", id="the last one counts"),
        pytest.param(["containerd", "config", "dump"], MAIN, id="a word that is no option"),
        pytest.param(["containerd", "-c", "conf/a.toml"], "/conf/a.toml", id="relative"),
    ],
)
def test_the_main_file_is_the_one_of_the_command_line(argv: list[str], path: str) -> None:
    assert config_path(argv, MAIN) == path


# --- what containerd reads --------------------------------------------------------------------------


def test_imports_are_read_in_the_order_of_containerd() -> None:
    node = Node(
        {
            MAIN: f"imports = ['sub/*.toml', '{MAIN}', '//etc/./b.toml', '/nowhere', '/etc/b.toml']\n",
            "/etc/containerd/sub/1.toml": "imports = ['deep/x.toml', '*.toml']\n",
            "/etc/containerd/sub/2.toml": "",
            "/etc/containerd/sub/deep/x.toml": "imports = ['../../config.toml']\n",
            "/etc/b.toml": "broken =",
            "/etc/containerd/unread.toml": "",
        }
    )
    assert list(node.read_files()) == [
        MAIN,
        "/etc/containerd/sub/1.toml",
        "/etc/containerd/sub/2.toml",
        "/etc/b.toml",
        "/etc/containerd/sub/deep/x.toml",
    ]
    assert Node({}).read_files() == {}


def test_the_imports_of_a_file_are_returned_as_written() -> None:
    assert containerd_read.imports(b"imports = ['a', '/b/*']") == ("a", "/b/*")
    assert containerd_read.imports(b"") == ()
    with pytest.raises(HostError, match="line 1"):
        containerd_read.imports(b"imports =", MAIN)


# --- problems ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2.0.0", "2.1.9", "2.2.1", "2.3.4", None])
@pytest.mark.parametrize(
    "main",
    [
        pytest.param(None, id="no main file"),
        pytest.param("", id="no version"),
        pytest.param(f"version = 2\n{runtimes('other', plugin='io.containerd.grpc.v1.cri')}", id="version 2"),
        pytest.param(f"version = 3\n{runtimes('other')}", id="version 3"),
        pytest.param(f"version = 3\n{runtimes('x', plugin='io.containerd.grpc.v1.cri')}", id="a stale table"),
        pytest.param(
            "version = 3\ndisabled_plugins = ['io.containerd.internal.v1.opt']\n", id="other plugin off"
        ),
    ],
)
def test_a_valid_configuration_has_no_problems_before_and_after_an_install(
    main: str | None, version: str | None
) -> None:
    node = Node({} if main is None else {MAIN: main})
    assert node.problems(version=version) == []
    node.install(version=version or "2.1.9")
    node.install(SECOND, version=version or "2.1.9")
    assert node.problems(version=version) == []
    assert node.problems(SECOND, version=version) == []


# Files, the release of containerd, and a part of the expected problem.
PROBLEMS = [
    pytest.param(
        {USER: "\n["},
        None,
        "user.toml (from containerd.userDropIn): the file is not valid TOML",
        id="user broken",
    ),
    pytest.param(
        {"/x/a.toml": "["}, None, "/x/a.toml: the file is not valid TOML", id="imported file broken"
    ),
    pytest.param(
        {USER: "imports = ['/gone.toml']"},
        None,
        "imports /gone.toml, which does not exist",
        id="missing import",
    ),
    pytest.param(
        {USER: "imports = ['/x/?.toml']"}, None, "imports /x/?.toml, which does not exist", id="no glob"
    ),
    pytest.param({USER: "imports = 'x'"}, None, "imports is not an array of strings", id="imports a string"),
    pytest.param({USER: "version = '3'"}, None, "version is not a whole number", id="version a string"),
    pytest.param({USER: "version = true"}, None, "version is not a whole number", id="version a boolean"),
    pytest.param(
        {USER: "version = 4"},
        None,
        "version = 4 is above version = 3 of /etc/containerd/config.toml",
        id="above",
    ),
    pytest.param(
        {"/x/a.toml": "version = 4"}, "2.3.4", "/x/a.toml: its version = 4 is above", id="above, elsewhere"
    ),
    pytest.param({MAIN: "version = 4\n"}, "2.2.1", "containerd 2.2.1 cannot read version = 4", id="too new"),
    pytest.param({MAIN: "disabled_plugins = ['cri']\n"}, None, "disabled_plugins has cri,", id="cri off"),
    pytest.param(
        {MAIN: "disabled_plugins = ['io.containerd.grpc.v1.cri']\n"},
        None,
        "has io.containerd.grpc.v1.cri",
        id="cri service off",
    ),
    pytest.param(
        {USER: "disabled_plugins = ['io.containerd.cri.v1.images']\n"},
        None,
        "v1.images, without which",
        id="cri images off",
    ),
    pytest.param({MAIN: runtimes("kata-qemu")}, None, "it defines the handler kata-qemu,", id="name taken"),
    pytest.param(
        {"/x/a.toml": runtimes("kata-qemu", plugin="io.containerd.grpc.v1.cri")},
        None,
        "/x/a.toml: it defines the handler kata-qemu,",
        id="name taken in the other table",
    ),
    pytest.param({USER: "plugins = 3"}, None, "plugins is not a table", id="plugins a number"),
    pytest.param(
        {USER: f"[plugins]\n'{RUNTIME}' = 3"}, None, f"plugins.{RUNTIME} is not a table", id="plugin a number"
    ),
    pytest.param(
        {USER: f"[plugins.'{RUNTIME}'.containerd]\nruntimes = 3"},
        None,
        "containerd.runtimes is not a table",
        id="runtimes a number",
    ),
    pytest.param(
        {USER: f"[plugins.'{RUNTIME}'.containerd.runtimes]\nx = 3"},
        None,
        "runtimes.x is not a table",
        id="a handler a number",
    ),
    pytest.param(
        {USER: runtimes("x", plugin="io.containerd.grpc.v1.cri")},
        "2.1.9",
        "io.containerd.grpc.v1.cri beside version = 3",
        id="older table",
    ),
    pytest.param(
        {MAIN: "version = 2\n", USER: runtimes("x")},
        "2.1.9",
        "user.toml (from containerd.userDropIn): its runtimes",
        id="newer table",
    ),
    pytest.param(
        {MAIN: f"version = 2\n{runtimes('x')}"},
        None,
        "would hide those under",
        id="newer table in the main file",
    ),
    pytest.param(
        {USER: "version = 3\nVersion = 3"},
        None,
        "the keys version and Version are the same key",
        id="two spellings",
    ),
]


@pytest.mark.parametrize(("files", "version", "problem"), PROBLEMS)
def test_a_problem_names_its_file_and_what_is_wrong(
    files: dict[str, str], version: str | None, problem: str
) -> None:
    node = Node({MAIN: "version = 3\n", **files})
    for entry in (GLOB, "/x/*.toml"):
        node.files[MAIN] = toml_edit.add(node.files[MAIN], "imports", entry, where=MAIN)
    problems = node.problems(version=version)
    assert len(problems) == 1
    assert problem in problems[0]
    assert problems[0].startswith(tuple(files))


def test_the_problem_of_a_broken_main_file_has_its_line() -> None:
    problems = Node({MAIN: "version = 3\n[debug]\nlevel = = 1\n"}).problems()
    assert problems == [f"{MAIN}: the file is not valid TOML: Invalid value (at line 3, column 9)"]


def test_all_problems_are_reported_together() -> None:
    node = Node({MAIN: f"imports = ['{GLOB}', '/gone']\ndisabled_plugins = ['cri']\n", USER: "="})
    assert len(node.problems()) == 3


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({USER: runtimes("kata-qemu")}, id="the user's drop-in refines our handler"),
        pytest.param({MAIN: runtimes("kata-qemu-three")}, id="a longer name"),
        pytest.param({"/x/unread.toml": "["}, id="broken, but nobody reads it"),
    ],
)
def test_a_harmless_file_is_no_problem(files: dict[str, str]) -> None:
    node = Node({path: text for path, text in files.items() if path == MAIN})
    node.install()
    node.files |= Node({path: text for path, text in files.items() if path != MAIN}).files
    assert node.problems() == []


@pytest.mark.parametrize(
    ("main", "user"),
    [("version = 3\n", runtimes("x", plugin="io.containerd.grpc.v1.cri")), ("version = 2\n", runtimes("x"))],
)
def test_from_2_3_on_each_file_may_have_the_table_of_its_own_schema(main: str, user: str) -> None:
    node = Node({MAIN: main})
    node.install(replace(SETTINGS, user_drop_in=user), "2.3.4")
    assert node.problems(version="2.3.4") == []
    assert len(node.problems(version="2.2.1")) == 1


def test_a_broken_user_drop_in_is_found_before_a_file_is_written() -> None:
    node = Node({MAIN: "version = 2\n"})
    desired_config = config().desired_config(replace(SETTINGS, user_drop_in="nonsense"), node.files)
    problems = containerd_read.check(
        MAIN,
        node.files | {file.path: file.content for file in desired_config.changes if file.content is not None},
        own_paths=own_paths(config()),
        handlers=desired_config.handlers,
        labels=desired_config.labels,
    )
    assert [problem.split(": ")[0] for problem in problems] == [f"{USER} (from containerd.userDropIn)"]


def test_an_import_that_exists_but_was_not_read_is_no_problem() -> None:
    node = Node({MAIN: "imports = ['/etc/secret.toml']\n"})
    problems = containerd_read.check(
        MAIN, node.files, own_paths=(), handlers=(), exists="/etc/secret.toml".__eq__
    )
    assert problems == []


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("/etc/containerd/*/*.toml", {"/etc/containerd/a/x1.toml", "/etc/containerd/a/.y.toml"}),
        ("/etc/containerd/*.toml", set()),
        ("/etc/containerd/*", set()),
        ("/etc/containerd/a/?1*", {"/etc/containerd/a/x1.toml"}),
        ("/etc/containerd/a/[^x]*", {"/etc/containerd/a/.y.toml"}),
        ("/etc/containerd/a/[!x]*", {"/etc/containerd/a/x1.toml"}),  # no negation in Go
        ("/etc/containerd/a/[a-z][0-9]*", {"/etc/containerd/a/x1.toml"}),
        ("/etc/containerd/a/\\x1*", {"/etc/containerd/a/x1.toml"}),
        ("/etc/containerd/a/[z-a]*", set()),
        ("/etc/containerd/a/x1.toml*", {"/etc/containerd/a/x1.toml"}),
    ],
)
def test_globs_match_like_go(pattern: str, found: set[str]) -> None:
    node = Node(
        {"/etc/containerd/a/x1.toml": "", "/etc/containerd/a/.y.toml": "", MAIN: f"imports = ['{pattern}']"}
    )
    assert set(in_read_order(MAIN, node.files)) - {MAIN} == found
