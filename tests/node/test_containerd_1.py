"""Debian's containerd 1.6 and 1.7: an install edits the main file, and a revert restores it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from typing import Any

import pytest

from node.conftest import BootNode
from node.debian_node import Node
from node.installation import (
    HANDLERS,
    MAIN,
    PAYLOAD,
    UNIT,
    VALUES,
    WATCHED,
    assert_converges_when_killed,
    assert_nothing_to_do,
    configure,
    fail_next_start,
    install,
    kata_handlers,
    main_file,
)
from node.snapshot import changes

CRI = 'plugins."io.containerd.grpc.v1.cri"'
CRI_1 = "plugins.cri"

BY_DEFAULT = f"""\
version = 2
imports = []

[grpc]
  address = "/run/containerd/containerd.sock"

[{CRI}]
  sandbox_image = "registry.example/pause:3.9" # the admin's
  [{CRI}.cni]
    bin_dir = "/usr/lib/cni"
  [{CRI}.containerd]
    default_runtime_name = "runc"
    [{CRI}.containerd.runtimes]
      [{CRI}.containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"
        [{CRI}.containerd.runtimes.runc.options]
          SystemdCgroup = true
  [{CRI}.registry]
    config_path = "/etc/containerd/certs.d"
"""
"""A main file like the output of ``containerd config default``, with changes of the administrator."""

DOTTED = f"""\
version = 2
{CRI}.sandbox_image = "registry.example/pause:3.9"
{CRI}.containerd.runtimes.mine.runtime_type = "io.containerd.runc.v2"
{CRI}.containerd.runtimes.runc.runtime_type = "io.containerd.runc.v2"
"""

INLINE = f"""\
version = 2
[{CRI}]
cni = {{ bin_dir = "/usr/lib/cni", conf_dir = "/etc/cni/net.d" }}
[{CRI}.containerd.runtimes]
mine = {{ runtime_type = "io.containerd.runc.v2", options = {{ SystemdCgroup = true }} }}
runc = {{ runtime_type = "io.containerd.runc.v2" }}
"""

SEALED = f"""\
version = 2
[{CRI}]
containerd = {{ runtimes = {{ runc = {{ runtime_type = "io.containerd.runc.v2" }} }} }}
"""

LARGE = BY_DEFAULT + "".join(
    f"""
    [{CRI}.registry.configs."registry-{number}.example".auth] # one of many
      username = "user-{number}"
"""
    for number in range(1000)
)


@pytest.fixture(params=["bookworm", "trixie"])
def node(boot_node: BootNode, request: pytest.FixtureRequest) -> Node:
    return boot_node(request.param)


def rest_of_the_cri(node: Node) -> Mapping[str, Any]:
    """Return the effective configuration of the CRI plugin without the Kata handlers."""
    config = dict(node.cri().config)
    handlers = {}
    for name, handler in config["containerd"]["runtimes"].items():
        if not name.startswith("kata-"):
            # containerd may list options with their default values, or omit them.
            given = {key: value for key, value in (handler["options"] or {}).items() if value}
            handlers[name] = {**handler, "options": given}
    config["containerd"] = {**config["containerd"], "runtimes": handlers}
    return config


def test_containerd_serves_the_handlers_and_runc_after_exactly_one_restart(ready: Node) -> None:
    version = ready.cri().version
    assert version.startswith(("containerd://1.6.", "containerd://1.7."))
    install(ready)
    assert ready.cri_handlers() == (*HANDLERS, "runc")
    assert ready.activations(UNIT) == 2
    (only,) = json.loads(ready.kata_node("status", "--output", "json").stdout)["installations"]
    assert (only["cri"], only["drift"], only["restart_owed"]) == ("serving", [], False)


def test_a_second_install_skips_every_stage_and_writes_nothing(ready: Node) -> None:
    install(ready)
    assert_nothing_to_do(ready)


def test_a_revert_restores_everything_with_one_restart(ready: Node) -> None:
    before = ready.snapshot(*WATCHED)
    install(ready)
    ready.kata_node("revert", check=True)
    assert ready.cri_handlers() == ("runc",)
    assert changes(before, ready.snapshot(*WATCHED)) == []
    assert ready.activations(UNIT) == 3


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(None, id="no-main-file"),
        pytest.param(b"", id="empty"),
        pytest.param(BY_DEFAULT.encode(), id="as-containerd-prints-it"),
        pytest.param(BY_DEFAULT.replace("\n", "\r\n").encode(), id="windows-line-ends"),
        pytest.param(BY_DEFAULT.rstrip().encode(), id="no-line-end-at-the-end"),
        pytest.param(DOTTED.encode(), id="dotted-keys"),
        pytest.param(INLINE.encode(), id="inline-tables"),
        pytest.param(SEALED.encode(), id="the-whole-plugin-an-inline-table"),
        pytest.param(BY_DEFAULT.replace("version = 2", "").replace(CRI, CRI_1).encode(), id="schema-1"),
        pytest.param(LARGE.encode(), id="very-large"),
    ],
)
def test_an_install_keeps_every_other_setting_and_a_revert_restores_the_main_file_byte_for_byte(
    ready: Node, config: bytes | None
) -> None:
    configure(ready, config)
    before, served, rest = ready.snapshot("/etc"), ready.cri_handlers(), rest_of_the_cri(ready)
    install(ready)
    assert ready.cri_handlers() == tuple(sorted((*HANDLERS, *served)))
    assert rest_of_the_cri(ready) == rest
    ready.kata_node("revert", check=True)
    assert changes(before, ready.snapshot("/etc")) == []
    assert ready.cri_handlers() == served


OF_ANOTHER_SCHEMA = """\
version = 2
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes]
  note = "for containerd 2"
"""


def test_a_table_of_another_schema_stops_neither_an_install_nor_a_revert(ready: Node) -> None:
    configure(ready, OF_ANOTHER_SCHEMA.encode())
    before = ready.snapshot(*WATCHED)
    install(ready)
    assert_nothing_to_do(ready)
    ready.kata_node("revert", check=True)
    assert changes(before, ready.snapshot(*WATCHED)) == []
    assert ready.cri_handlers() == ("runc",)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        pytest.param(BY_DEFAULT.replace("[grpc]", "[grpc"), "line 4", id="broken"),
        pytest.param(BY_DEFAULT.replace("[]", '["/etc/containerd/gone.toml"]'), "gone.toml", id="import"),
        pytest.param(f'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n{BY_DEFAULT}', "CRI", id="no-cri"),
    ],
)
def test_an_install_refuses_a_configuration_that_cannot_serve_before_it_writes_anything(
    ready: Node, config: str, reason: str
) -> None:
    main_file(ready).write_text(config)
    before, invocation = ready.snapshot(*WATCHED), ready.unit(UNIT).invocation
    done = ready.kata_node("install", config=VALUES, payload=PAYLOAD)
    assert done.returncode == 3, done.stdout + done.stderr
    assert MAIN in done.stdout
    assert reason in done.stdout
    assert changes(before, ready.snapshot(*WATCHED), times=True) == []
    assert ready.unit(UNIT).invocation == invocation


def test_an_edit_made_after_the_install_survives_the_revert(ready: Node) -> None:
    configure(ready, BY_DEFAULT.encode())
    install(ready)
    main = main_file(ready)
    edited = main.read_text().replace("pause:3.9", "pause:3.10")
    main.write_text(f"{edited}\n[debug] # the admin's, too\n  level = 'debug'\n")
    ready.kata_node("revert", check=True)
    text = main.read_text()
    wanted = tomllib.loads(BY_DEFAULT.replace("pause:3.9", "pause:3.10")) | {"debug": {"level": "debug"}}
    assert tomllib.loads(text) == wanted
    assert "# the admin's, too" in text
    assert "kata" not in text
    assert ready.cri_handlers() == ("runc",)


def test_a_revert_removes_its_entries_from_a_main_file_that_lost_all_comments(ready: Node) -> None:
    configure(ready, BY_DEFAULT.encode())
    install(ready)
    main = main_file(ready)
    lines = [line for line in main.read_text().splitlines() if not line.lstrip().startswith("#")]
    main.write_text("\n".join(lines))
    ready.kata_node("revert", check=True)
    assert tomllib.loads(main.read_text()) == tomllib.loads(BY_DEFAULT)
    assert ready.cri_handlers() == ("runc",)


def test_an_edit_survives_an_update_and_a_later_revert(ready: Node) -> None:
    install(ready)
    main = main_file(ready)
    before = main.read_bytes()
    main.write_bytes(before.replace(b"version = 2\n", b"version = 2 # the admin's\n"))
    install(ready, shims={"clh": {"enabled": True}})
    assert kata_handlers(ready) == ("kata-clh",)
    ready.kata_node("revert", check=True)
    assert main.read_bytes().startswith(b"version = 2 # the admin's\n")
    assert b"kata" not in main.read_bytes()
    assert ready.cri_handlers() == ("runc",)


def test_disabling_a_shim_removes_its_handler(ready: Node) -> None:
    install(ready)
    install(ready, shims={"qemu": {"enabled": True}})
    assert ready.cri_handlers() == ("kata-qemu", "runc")
    assert ready.activations(UNIT) == 3


WITH_SNAPSHOTTER = {
    "qemu": {"enabled": True, "containerd": {"snapshotter": "native"}},
    "clh": {"enabled": True},
}


@pytest.mark.parametrize("node", ["trixie"], indirect=True)
def test_1_7_uses_the_snapshotter_of_a_handler(ready: Node) -> None:
    install(ready, shims=WITH_SNAPSHOTTER)
    runtimes = ready.cri().config["containerd"]["runtimes"]
    assert {name: runtime["snapshotter"] for name, runtime in runtimes.items()} == {
        "kata-clh": "",
        "kata-qemu": "native",
        "runc": "",
    }


@pytest.mark.parametrize("node", ["bookworm"], indirect=True)
def test_1_6_refuses_a_snapshotter_of_a_handler_with_the_reason(ready: Node) -> None:
    before = ready.snapshot(*WATCHED)
    done = ready.kata_node("install", config={"shims": WITH_SNAPSHOTTER}, payload=PAYLOAD)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "one snapshotter for all handlers, but" in done.stdout
    assert "1.7" in done.stdout
    assert changes(before, ready.snapshot(*WATCHED), times=True) == []


@pytest.mark.parametrize(
    ("arguments", "more", "reason"),
    [
        pytest.param(
            ("--multi-install-suffix", "blue"), {}, "multiInstallSuffix", id="a second installation"
        ),
        pytest.param((), {"containerd": {"userDropIn": "[debug]\n"}}, "userDropIn", id="a drop-in"),
    ],
)
def test_settings_that_need_a_drop_in_are_refused_with_the_reason_and_nothing_is_written(
    ready: Node, arguments: tuple[str, ...], more: Mapping[str, Any], reason: str
) -> None:
    before = ready.snapshot(*WATCHED)
    done = ready.kata_node("install", *arguments, config={**VALUES, **more}, payload=PAYLOAD)
    assert done.returncode == 3, done.stdout + done.stderr
    assert reason in done.stdout
    assert "containerd 1" in done.stdout
    assert changes(before, ready.snapshot(*WATCHED), times=True) == []


def test_an_install_refuses_to_replace_a_handler_of_another_installer_and_restarts_nothing(
    ready: Node,
) -> None:
    foreign = f'[{CRI}.containerd.runtimes.kata-qemu]\n  runtime_type = "io.containerd.runc.v2"\n'
    configure(ready, (BY_DEFAULT + foreign).encode())
    before, invocation = ready.snapshot("/etc"), ready.unit(UNIT).invocation
    done = ready.kata_node("install", config=VALUES, payload=PAYLOAD)
    assert done.returncode in (3, 4), done.stdout + done.stderr
    assert "kata-qemu" in done.stdout
    assert changes(before, ready.snapshot("/etc")) == []
    assert ready.unit(UNIT).invocation == invocation


def test_an_install_rolls_back_when_the_runtime_does_not_start_and_the_runtime_serves_again(
    ready: Node,
) -> None:
    before = ready.snapshot("/etc")
    fail_next_start(ready)
    done = ready.kata_node("install", config=VALUES, payload=PAYLOAD)
    assert done.returncode == 4, done.stdout + done.stderr
    assert ready.cri_handlers() == ("runc",)
    assert changes(before, ready.snapshot("/etc")) == []
    install(ready)
    assert kata_handlers(ready) == HANDLERS


def test_a_run_killed_at_any_rename_is_completed_by_the_next_run(ready: Node) -> None:
    assert_converges_when_killed(ready, "rename")
