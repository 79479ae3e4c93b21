"""The main file of containerd 1.x with an installation, and the problems found in a main file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from kata_node.errors import HostError, KataNodeError
from kata_node.runtime.containerd import main as containerd_main
from kata_node.runtime.containerd.config import ContainerdConfig
from kata_node.runtime.containerd.template import INITIAL_MAIN_FILES
from kata_node.runtime.model.distributions import distribution_runtime
from kata_node.settings import shims
from kata_node.settings.handlers import handler_names
from kata_node.settings.model import Settings
from kata_node.settings.selection import CustomRuntime, ShimSettings
from kata_node.toml import tables as toml_tables
from kata_node.versions import parse_version

MAIN = "/etc/containerd/config.toml"
DROP_IN = "/etc/containerd/conf.d/site.toml"
SETTINGS = Settings(shims=(shims.table()["qemu"], shims.table()["clh-runtime-rs"]), arch="x86_64")
MAPPED = replace(SETTINGS, shim_settings={"qemu": ShimSettings(snapshotter="nydus")})
NAMES = ("kata-qemu", "kata-clh-runtime-rs")
CRI = "io.containerd.grpc.v1.cri"
RUNC = {"runtime_type": "io.containerd.runc.v2"}

# The file of Debian bookworm (1.6) and trixie (1.7).
DEBIAN = f"""\
version = 2

[plugins]
  [plugins."{CRI}"]
    [plugins."{CRI}".cni]
      bin_dir = "/usr/lib/cni"
      conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"""
WITH_RUNC = f"""{DEBIAN}
[plugins."{CRI}".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."{CRI}".containerd.runtimes.runc.options]
SystemdCgroup = true
"""


def config(settings: Settings) -> ContainerdConfig:
    version, plain = parse_version("1.7.24"), distribution_runtime("k8s", "containerd")
    return ContainerdConfig(settings.install_dir, settings.suffix, version, plain, handler_names(settings))


def install(text: str | None, settings: Settings = SETTINGS, imported: str | None = None) -> str:
    files = {path: content.encode() for path, content in {MAIN: text, DROP_IN: imported}.items() if content}
    if text is not None:
        files[MAIN] = text.encode()
    [content] = [
        file.content
        for file in config(settings).desired_config(settings, files).changes
        if file.content is not None
    ]
    return content.decode()


def revert(text: str, settings: Settings = SETTINGS) -> str | None:
    remaining = config(settings).without_entry(MAIN, text.encode())
    return None if remaining is None else remaining.decode()


def runtimes(text: str, plugin: str = CRI) -> Any:
    return tomllib.loads(text)["plugins"][plugin]["containerd"]["runtimes"]


def problems(
    main: str, others: Mapping[str, str] | None = None, *, version: str = "", existing: tuple[str, ...] = ()
) -> list[str]:
    return containerd_main.check_main(
        MAIN,
        {path: text.encode() for path, text in {MAIN: main, **(others or {})}.items()},
        instance="default",
        handlers=NAMES,
        exists=existing.__contains__,
        version=parse_version(version) if version else None,
    )


# --- the block --------------------------------------------------------------------------------------


def test_each_shim_becomes_a_handler_with_its_own_program_and_configuration() -> None:
    kata = "/opt/kata/share/defaults/kata-containers"
    assert runtimes(install(DEBIAN))["kata-qemu"] == {
        "runtime_type": "io.containerd.kata-qemu.v2",
        "runtime_path": "/opt/kata/bin/containerd-shim-kata-v2",
        "privileged_without_host_devices": True,
        "pod_annotations": ["io.katacontainers.*"],
        "options": {"ConfigPath": f"{kata}/runtimes/qemu/configuration-qemu.toml"},
    }
    assert runtimes(install(DEBIAN))["kata-clh-runtime-rs"]["runtime_path"].startswith(
        "/opt/kata/runtime-rs/"
    )


def test_debug_variants_and_custom_runtimes_are_handlers_too() -> None:
    custom = CustomRuntime(name="mine", handler="kata-mine", base_config="qemu", snapshotter="erofs")
    text = install(DEBIAN, replace(SETTINGS, debug=True, custom_runtimes=(custom,)))
    assert {"kata-qemu-debug", "kata-mine"} < set(runtimes(text))
    assert runtimes(text)["kata-mine"]["snapshotter"] == "erofs"


def test_only_a_handler_with_a_snapshotter_names_one() -> None:
    found = runtimes(install(DEBIAN, MAPPED))
    assert found["kata-qemu"]["snapshotter"] == "nydus"
    assert "snapshotter" not in found["kata-clh-runtime-rs"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(DEBIAN, id="as Debian ships it"),
        pytest.param(DEBIAN + f'[plugins."{CRI}".containerd.runtimes]\n', id="an empty table of runtimes"),
        pytest.param(DEBIAN + f'[plugins."{CRI}".containerd]\nsnapshotter = "native"\n', id="no runtimes"),
        pytest.param(None, id="no file"),
    ],
)
def test_runc_is_added_if_our_handlers_are_the_first_of_the_file(text: str | None) -> None:
    assert runtimes(install(text))["runc"] == RUNC


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(WITH_RUNC, id="runc"),
        pytest.param(
            f'{DEBIAN}[plugins."{CRI}".containerd]\ndefault_runtime_name = "crun"\n'
            f'runtimes.crun.runtime_type = "io.containerd.runc.v2"\n',
            id="another one only",
        ),
        pytest.param(
            f'{DEBIAN}[plugins."{CRI}".containerd]\nruntimes = {{ runc = {{ runtime_type = "x" }} }}\n',
            id="runc in an inline table",
        ),
    ],
)
def test_existing_handlers_stay_and_runc_is_not_added(text: str) -> None:
    found = runtimes(install(text))
    assert {name: found[name] for name in found if name not in NAMES} == runtimes(text)


@pytest.mark.parametrize(
    ("text", "plugin"),
    [
        pytest.param(DEBIAN, CRI, id="version 2"),
        pytest.param("VERSION = 2\n", CRI, id="VERSION 2"),
        pytest.param("version = 1\n", "cri", id="version 1"),
        pytest.param("version = 0\n", "cri", id="version 0"),
        pytest.param("Version = 2\n", "cri", id="Version is none"),
        pytest.param("[plugins.cri]\nsandbox_image = 'x'\n", "cri", id="none"),
        pytest.param("", "cri", id="empty"),
        pytest.param("version = 3\n", CRI, id="too new"),
    ],
)
def test_the_handlers_are_in_the_plugin_of_the_schema_of_the_file(text: str, plugin: str) -> None:
    assert set(runtimes(install(text), plugin)) == {*NAMES, "runc"}


def test_the_last_version_of_all_files_decides_the_schema() -> None:
    imports = f'imports = ["{DROP_IN}"]\n'
    assert "kata-qemu" in runtimes(install(imports, imported="version = 2\n"))
    assert "kata-qemu" in runtimes(install("version = 2\n" + imports, imported="version = 1\n"), "cri")
    assert "kata-qemu" in runtimes(install("version = 2\n" + imports, imported="[debug]\n"))


# --- installing and reverting -----------------------------------------------------------------------

FILES = [
    pytest.param(DEBIAN, id="as Debian ships it"),
    pytest.param(WITH_RUNC, id="with runc"),
    pytest.param(WITH_RUNC.replace("\n", "\r\n"), id="carriage returns"),
    pytest.param(DEBIAN.rstrip(), id="no line end"),
    pytest.param("", id="empty"),
    pytest.param("version = 2\nplugins = {}\n", id="inline"),
    pytest.param("[plugins.cri]\nsandbox_image = 'x'\n", id="schema 1"),
]


@pytest.mark.parametrize("text", FILES)
def test_revert_restores_every_byte(text: str) -> None:
    assert revert(install(text)) == text


@pytest.mark.parametrize("text", FILES)
def test_a_second_install_changes_nothing_and_finds_no_problem(text: str) -> None:
    assert install(install(text)) == install(text)
    assert problems(install(text)) == []


def test_a_created_file_names_kata_node_and_revert_removes_it() -> None:
    made = install(None)
    assert made.startswith("# Made by kata-node")
    assert tomllib.loads(made)["version"] == 2
    assert install(made) == made
    assert revert(made) is None


def test_a_created_file_stays_if_it_has_foreign_content() -> None:
    made = install(None) + "[debug]\nlevel = 'debug'\n"
    assert revert(made) == INITIAL_MAIN_FILES[1].decode() + "[debug]\nlevel = 'debug'\n"


def test_a_handler_that_is_no_longer_selected_is_removed() -> None:
    fewer = replace(SETTINGS, shims=SETTINGS.shims[:1])
    assert install(install(DEBIAN), fewer) == install(DEBIAN, fewer)


@pytest.mark.parametrize("text", [DEBIAN, WITH_RUNC])
def test_our_tables_are_found_after_all_comments_were_removed(text: str) -> None:
    rewritten = "".join(line for line in install(text).splitlines(keepends=True) if not line.startswith("#"))
    again = install(rewritten)
    assert tomllib.loads(again) == tomllib.loads(install(text))
    assert toml_tables.has_both_markers(again.encode(), "default", where=MAIN)
    remaining = revert(rewritten)
    assert remaining is not None
    assert set(runtimes(remaining)) == {"runc"}


def test_a_foreign_handler_with_our_name_is_not_removed() -> None:
    own = f'{DEBIAN}[plugins."{CRI}".containerd.runtimes.kata-qemu]\nruntime_path = "/usr/bin/kata"\n'
    assert revert(own) == own
    with pytest.raises(KataNodeError, match="kata-qemu"):
        install(own)


def test_a_broken_file_is_not_touched() -> None:
    with pytest.raises(HostError, match="not valid TOML") as caught:
        install("[broken")
    assert caught.value.where == MAIN


# --- problems ---------------------------------------------------------------------------------------


def test_the_file_of_debian_has_no_problems() -> None:
    assert problems(DEBIAN) == problems(WITH_RUNC) == problems("") == []


@pytest.mark.parametrize(
    ("main", "what"),
    [
        pytest.param("[broken", "not valid TOML", id="broken"),
        pytest.param("version = '2'\n", "version is not a whole number", id="version as text"),
        pytest.param("version = 2.0\n", "version is not a whole number", id="version as a fraction"),
        pytest.param("version = 3\n", "containerd 1.x cannot read version = 3", id="too new"),
        pytest.param("version = -1\n", "cannot read version = -1", id="negative"),
        pytest.param("plugins = 3\n", "plugins is not a table", id="plugins"),
        pytest.param(f"version = 2\nplugins.'{CRI}' = 3\n", f"{CRI} is not a table", id="CRI"),
        pytest.param(
            f"version = 2\nplugins.'{CRI}'.containerd.runtimes = 3\n",
            "runtimes is not a table",
            id="runtimes",
        ),
        pytest.param(
            f"version = 2\nplugins.'{CRI}'.containerd.runtimes.runc = 3\n", "runc is not a table", id="runc"
        ),
        pytest.param("imports = 'x'\n", "imports is not an array of strings", id="imports"),
        pytest.param("disabled_plugins = ['cri']\n", "disabled_plugins has cri", id="CRI off in schema 1"),
        pytest.param(
            f"version = 2\ndisabled_plugins = ['{CRI}']\n", f"disabled_plugins has {CRI}", id="CRI off"
        ),
        pytest.param(
            "version = 2\ndisabled_plugins = ['cri']\n",
            "disabled_plugins has cri, but version = 2",
            id="short name off",
        ),
        pytest.param(
            "version = 2\nrequired_plugins = ['cri']\n",
            "required_plugins has cri",
            id="short name required",
        ),
        pytest.param("version = 2\n[plugins.cri]\n", "plugins has cri", id="table of schema 1 in schema 2"),
        pytest.param("version = 2\n[plugins.'a.b.c.d']\n", "plugins has a.b.c.d", id="not containerd's"),
        pytest.param(
            f"[plugins.'{CRI}'.containerd.runtimes.runc]\n",
            "containerd does not read its handlers under",
            id="schema 2 in schema 1",
        ),
        pytest.param(
            f"version = 2\n[plugins.'{CRI}'.containerd.runtimes.kata-qemu]\n"
            f"[plugins.'{CRI}'.containerd.runtimes.runc]\n",
            "defines the handler kata-qemu, which this installation also defines",
            id="handler of ours",
        ),
        pytest.param(
            f"version = 2\n[plugins.'{CRI}'.containerd]\ndefault_runtime_name = 'crun'\n",
            'its default_runtime_name is "crun", a handler that it does not define',
            id="unknown default",
        ),
        pytest.param(
            f"version = 2\n[plugins.'{CRI}'.containerd]\ndefault_runtime_name = ''\n",
            'its default_runtime_name is ""',
            id="empty default",
        ),
        pytest.param(
            f"version = 2\n[plugins.'{CRI}'.containerd]\ndefault_runtime_name = 1\n",
            "default_runtime_name is not a string",
            id="default of a wrong type",
        ),
        pytest.param(
            f"version = 2\n[plugins.'{CRI}'.containerd.runtimes]\n",
            'its default_runtime_name is "runc"',
            id="no runc",
        ),
        pytest.param(f"version = 2\n[PLUGINS.'{CRI}']\n", "has PLUGINS in capitals", id="capitals"),
        pytest.param(
            f"version = 2\n[plugins.'{CRI}'.CONTAINERD]\n", "has CONTAINERD in capitals", id="capitals below"
        ),
    ],
)
def test_a_problem_of_the_main_file_names_what_is_wrong(main: str, what: str) -> None:
    [problem] = problems(main)
    assert problem.startswith(f"{MAIN}: ")
    assert what in problem


def test_a_deprecated_default_runtime_is_the_default_handler() -> None:
    table = f"[plugins.'{CRI}'.containerd.default_runtime]\nruntime_type = 'io.containerd.runc.v2'\n"
    only = f"[plugins.'{CRI}'.containerd.runtimes.crun]\nruntime_type = 'io.containerd.runc.v2'\n"
    assert problems(f"version = 2\n{table}{only}") == []
    assert problems(f"version = 2\n{only}") != []


def test_containerd_1_6_is_less_strict() -> None:
    assert problems("version = 3\n", version="1.6.20") == []
    assert problems("version = 2\n[plugins.'a.b.c.d']\n", version="1.6.20") == []
    assert problems("version = 2\n[plugins.'a.b.c']\n", version="1.6.20") != []
    assert problems("version = 3\n", version="1.7.24") != []


IMPORTS = f'version = 2\nimports = ["{DROP_IN}"]\n'


@pytest.mark.parametrize(
    ("content", "what"),
    [
        pytest.param(
            f"[plugins.'{CRI}']\n", f"its table of the plugin {CRI} replaces that of {MAIN}", id="CRI, empty"
        ),
        pytest.param(f"[plugins.'{CRI}'.cni]\nx = 1\n", f"its table of the plugin {CRI}", id="CRI"),
        pytest.param("[plugins.cri]\n", "plugins has cri", id="CRI of schema 1"),
        pytest.param(f"disabled_plugins = ['{CRI}']\n", f"disabled_plugins has {CRI}", id="CRI off"),
        pytest.param("[broken", "not valid TOML", id="broken"),
    ],
)
def test_a_problem_of_an_imported_file_names_what_is_wrong(content: str, what: str) -> None:
    [problem] = problems(IMPORTS, {DROP_IN: content})
    assert problem.startswith(f"{DROP_IN}: ")
    assert what in problem


def test_an_imported_file_without_cri_settings_is_no_problem() -> None:
    assert problems(IMPORTS, {DROP_IN: "[debug]\nlevel = 'info'\n[plugins.'io.containerd.x.v1.y']\n"}) == []


@pytest.mark.parametrize(
    ("entry", "count"),
    [
        pytest.param("/etc/containerd/none.toml", 1, id="missing"),
        pytest.param("none.toml", 1, id="missing, relative"),
        pytest.param("/etc/containerd/?.toml", 1, id="no glob"),
        pytest.param("/etc/containerd/none/*.toml", 0, id="empty glob"),
        pytest.param("there.toml", 0, id="there"),
    ],
)
def test_a_missing_import_is_a_problem(entry: str, count: int) -> None:
    found = problems(f'version = 2\nimports = ["{entry}"]\n', existing=("/etc/containerd/there.toml",))
    assert len(found) == count
    assert all("it imports /etc/containerd/" in problem for problem in found)


def test_a_spelling_of_imports_that_containerd_ignores_is_no_problem() -> None:
    assert problems('version = 2\nImports = ["/none.toml"]\n') == []
