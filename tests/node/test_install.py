"""Install, update and revert on a real node, with real systemd and containerd."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path

import pytest

from node.commands import wait_until
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
    starts_held,
)
from node.snapshot import changes

# The tables of schema 2, which Debian's configuration has.
NO_CRI = '[plugins."io.containerd.grpc.v1.cri".containerd]\nsnapshotter = "nobody"\n'
NO_DEFAULT = '[plugins."io.containerd.grpc.v1.cri".containerd]\ndefault_runtime_name = "nobody"\n'
EXTRA = """\
[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.extra]
runtime_type = 'io.containerd.runc.v2'
"""


def test_an_install_on_a_fresh_node_restarts_once_and_the_handlers_are_served(ready: Node) -> None:
    before = ready.unit(UNIT)
    install(ready)
    assert kata_handlers(ready) == HANDLERS
    assert ready.activations(UNIT) == 2
    assert ready.unit(UNIT).invocation != before.invocation
    done = ready.kata_node("status", "--output", "json")
    status = json.loads(done.stdout)
    (only,) = status["installations"]
    assert (done.returncode, status["outcome"], only["reasons"]) == (0, "healthy", [])
    assert (only["cri"], only["artifacts"], only["drift"]) == ("serving", "placed", [])
    assert status["runtime"]["unit"] == UNIT
    assert [(each["stage"], each["outcome"]) for each in only["last_run"]["stages"]] == [
        ("artifacts", "done"),
        ("cri", "done"),
    ]
    assert tuple(only["handlers"]) != ()
    assert not only["restart_owed"]


def test_a_second_install_skips_every_stage_and_writes_nothing(ready: Node) -> None:
    install(ready)
    assert_nothing_to_do(ready)


def test_a_revert_restores_everything_with_one_restart(ready: Node) -> None:
    before = ready.snapshot(*WATCHED)
    install(ready)
    ready.kata_node("revert", check=True)
    assert kata_handlers(ready) == ()
    assert changes(before, ready.snapshot(*WATCHED)) == []
    assert ready.activations(UNIT) == 3
    assert not (ready.root / "run/kata-node").exists()


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(None, id="no-main-file"),
        pytest.param(b"", id="empty"),
        pytest.param(b"version = 2\n", id="schema-2"),
        pytest.param(b"# no version\n[debug]\n  level = 'debug'\n", id="no-version"),
        pytest.param(
            b"version = 3\r\nimports = [\r\n  '/etc/containerd/own.d/*.toml', # ours\r\n]\r\n\r\n[debug]\r\n",
            id="imports-of-its-own-and-windows-line-ends",
        ),
        pytest.param(b"version = 3\n[debug]\nlevel = 'info'", id="no-line-end-at-the-end"),
    ],
)
def test_every_valid_main_file_is_extended_and_restored_byte_for_byte(
    ready: Node, config: bytes | None
) -> None:
    configure(ready, config)
    before = ready.snapshot("/etc")
    install(ready)
    assert kata_handlers(ready) == HANDLERS
    assert "runc" in ready.cri_handlers()
    ready.kata_node("revert", check=True)
    assert changes(before, ready.snapshot("/etc")) == []
    assert kata_handlers(ready) == ()


def test_an_edit_made_after_the_install_survives_the_revert(ready: Node) -> None:
    install(ready)
    main = main_file(ready)
    main.write_bytes(main.read_bytes() + b"\n[debug] # the admin's\nlevel = 'debug'\n")
    ready.kata_node("revert", check=True)
    text = main.read_text()
    assert "the admin's" in text
    assert "kata" not in text
    assert tomllib.loads(text)["debug"] == {"level": "debug"}
    assert ready.cri().serving


def test_a_main_file_that_is_a_symlink_stays_a_symlink(ready: Node) -> None:
    ready.run(["sh", "-c", f"mv {MAIN} /etc/containerd/real.toml && ln -s real.toml {MAIN}"])
    before = ready.snapshot("/etc")
    install(ready)
    assert (main_file(ready)).is_symlink()
    assert kata_handlers(ready) == HANDLERS
    ready.kata_node("revert", check=True)
    assert changes(before, ready.snapshot("/etc")) == []


def test_a_user_drop_in_that_is_not_toml_is_refused_as_a_settings_error(ready: Node) -> None:
    install(ready)
    before, invocation = ready.snapshot(*WATCHED), ready.unit(UNIT).invocation
    config = {**VALUES, "containerd": {"userDropIn": "this is [not TOML\n"}}
    done = ready.kata_node("install", config=config, payload=PAYLOAD)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "containerd.userDropIn" in done.stderr
    assert changes(before, ready.snapshot(*WATCHED), times=True) == []
    assert ready.unit(UNIT).invocation == invocation


def test_an_undefined_default_runtime_is_refused_before_anything_is_written(ready: Node) -> None:
    before, invocation = ready.snapshot("/etc", "/opt"), ready.unit(UNIT).invocation
    config = {**VALUES, "containerd": {"userDropIn": NO_DEFAULT}}
    done = ready.kata_node("install", config=config, payload=PAYLOAD)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "nobody" in done.stdout
    assert changes(before, ready.snapshot("/etc", "/opt")) == []
    assert ready.unit(UNIT).invocation == invocation


def test_a_broken_user_drop_in_is_rolled_back_and_the_runtime_serves(ready: Node) -> None:
    before = ready.snapshot("/etc")
    done = ready.kata_node(
        "install", config={**VALUES, "containerd": {"userDropIn": NO_CRI}}, payload=PAYLOAD
    )
    assert done.returncode == 4, done.stdout + done.stderr
    assert "hint" in done.stdout
    assert ready.cri().serving
    assert kata_handlers(ready) == ()
    assert changes(before, ready.snapshot("/etc")) == []
    install(ready)
    assert kata_handlers(ready) == HANDLERS


def test_a_refused_configuration_is_not_tried_again_until_its_value_changes(ready: Node) -> None:
    broken = {**VALUES, "containerd": {"userDropIn": NO_CRI}}
    assert ready.kata_node("install", config=broken, payload=PAYLOAD).returncode == 4
    starts, before = ready.activations(UNIT), ready.snapshot("/etc", "/opt")
    again = ready.kata_node("install", config=broken, payload=PAYLOAD)
    assert again.returncode == 4, again.stdout + again.stderr
    assert "refused this configuration at" in again.stdout
    assert "--retry-refused" in again.stdout
    plan = ready.kata_node("plan", config=broken, payload=PAYLOAD)
    assert "refused this configuration at" in plan.stdout
    assert ready.activations(UNIT) == starts
    assert [
        each for each in changes(before, ready.snapshot("/etc", "/opt")) if "last-run" not in str(each)
    ] == []
    by_hand = ready.kata_node("install", "--retry-refused", config=broken, payload=PAYLOAD)
    assert by_hand.returncode == 4, by_hand.stdout + by_hand.stderr
    assert ready.activations(UNIT) == starts + 2
    install(ready)
    assert kata_handlers(ready) == HANDLERS
    assert not (ready.root / "opt/kata/.kata-node/refused.json").exists()


def test_a_broken_update_is_rolled_back_to_the_previous_handlers(ready: Node) -> None:
    install(ready)
    before = ready.snapshot("/etc", "/opt/kata/containerd")
    done = ready.kata_node(
        "stage", "cri", config={**VALUES, "containerd": {"userDropIn": NO_CRI}}, payload=PAYLOAD
    )
    assert done.returncode == 4, done.stdout + done.stderr
    assert kata_handlers(ready) == HANDLERS
    assert changes(before, ready.snapshot("/etc", "/opt/kata/containerd")) == []
    ready.kata_node("revert", check=True)
    assert kata_handlers(ready) == ()


def test_a_user_drop_in_is_loaded_and_removed_with_its_value(ready: Node) -> None:
    install(ready, containerd={"userDropIn": EXTRA})
    assert "extra" in ready.cri_handlers()
    # It can have passwords. An earlier release let every user read it.
    (drop_in,) = (path for path in (ready.root / "opt/kata").rglob("zz-kata-deploy-user.toml"))
    assert drop_in.stat().st_mode & 0o777 == 0o600
    drop_in.chmod(0o644)
    invocation = ready.unit(UNIT).invocation
    install(ready, containerd={"userDropIn": EXTRA})
    assert drop_in.stat().st_mode & 0o777 == 0o600
    assert ready.unit(UNIT).invocation == invocation
    install(ready)
    assert "extra" not in ready.cri_handlers()
    assert kata_handlers(ready) == HANDLERS


def test_disabling_a_shim_removes_its_handler(ready: Node) -> None:
    install(ready)
    config = {"shims": {"qemu": {"enabled": True}, "clh": {"enabled": False}}}
    ready.kata_node("install", config=config, payload=PAYLOAD, check=True)
    assert kata_handlers(ready) == ("kata-qemu",)
    runtimes = ready.root / "opt/kata/share/defaults/kata-containers/runtimes"
    assert sorted(path.name for path in runtimes.iterdir()) == ["qemu"]


def test_a_broken_main_file_is_refused_before_anything_is_written(ready: Node) -> None:
    main = main_file(ready)
    main.write_text("version = 3\n[broken\n")
    before = ready.snapshot(*WATCHED)
    done = ready.kata_node("install", config=VALUES, payload=PAYLOAD)
    assert done.returncode == 3
    assert MAIN in done.stdout
    assert "line 2" in done.stdout
    assert changes(before, ready.snapshot(*WATCHED), times=True) == []


def test_a_container_with_only_the_needed_mounts_installs_and_reverts(ready: Node, payload: Path) -> None:
    before = ready.snapshot(*WATCHED)
    for stage in ("host-check", "artifacts", "cri"):
        done = ready.kata_node_outside("stage", stage, config=VALUES, payload=payload)
        assert done.returncode == 0, done.stdout + done.stderr
    assert kata_handlers(ready) == HANDLERS
    assert ready.activations(UNIT) == 2
    done = ready.kata_node_outside("stage", "cri", "--output", "json", config=VALUES, payload=payload)
    assert json.loads(done.stdout)["stages"][0]["outcome"] == "skipped"
    for stage in ("revert-cri", "remove-artifacts"):
        done = ready.kata_node_outside("stage", stage, config=VALUES, payload=payload)
        assert done.returncode == 0, done.stdout + done.stderr
    assert kata_handlers(ready) == ()
    assert changes(before, ready.snapshot(*WATCHED)) == []


@pytest.mark.parametrize(
    "call",
    [
        pytest.param("rename", id="at-every-file-it-replaces"),
        pytest.param("sendto", id="at-every-message-it-sends"),
    ],
)
def test_a_run_killed_at_any_rename_is_completed_by_the_next_run(ready: Node, call: str) -> None:
    assert_converges_when_killed(ready, call)


def test_a_run_killed_during_the_restart_is_completed_by_the_next_run(ready: Node) -> None:
    ready.kata_node("stage", "artifacts", config=VALUES, payload=PAYLOAD, check=True)
    with starts_held(ready):
        running = ready.start_kata_node("stage", "cri", config=VALUES, payload=PAYLOAD)
        wait_until(lambda: ready.unit(UNIT).active == "activating", "the restart has begun")
        running.kill()
    install(ready)
    assert kata_handlers(ready) == HANDLERS
    with starts_held(ready):
        running = ready.start_kata_node("stage", "revert-cri", config=VALUES)
        wait_until(lambda: ready.unit(UNIT).active == "activating", "the restart has begun")
        running.kill()
    ready.kata_node("revert", check=True)
    assert kata_handlers(ready) == ()
    assert ready.cri().serving


def test_two_concurrent_runs_wait_for_each_other(ready: Node) -> None:
    first = ready.start_kata_node("install", config=VALUES, payload=PAYLOAD)
    second = ready.start_kata_node("install", config=VALUES, payload=PAYLOAD)
    assert [first.wait().returncode, second.wait().returncode] == [0, 0]
    assert kata_handlers(ready) == HANDLERS
    assert ready.activations(UNIT) == 2


def test_a_baked_image_serves_at_its_next_start_without_another_restart(ready: Node) -> None:
    done = ready.kata_node(
        *("install", "--offline", "--runtime", "containerd://2.1.9"), config=VALUES, payload=PAYLOAD
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert kata_handlers(ready) == ()
    status = json.loads(ready.kata_node("status", "--output", "json").stdout)
    assert status["installations"][0]["restart_owed"]
    install(ready)
    assert kata_handlers(ready) == HANDLERS
    assert ready.activations(UNIT) == 2


def test_an_edit_survives_a_later_update_and_the_revert(ready: Node) -> None:
    install(ready)
    main = main_file(ready)
    before = main.read_bytes()
    main.write_bytes(before + b"\n# the admin's\n")
    install(ready, containerd={"userDropIn": EXTRA})
    ready.kata_node("revert", check=True)
    assert main.read_bytes().endswith(b"\n# the admin's\n")
    assert b"kata" not in main.read_bytes()
    assert ready.cri().serving


def test_a_revert_rolls_back_when_the_runtime_does_not_start(ready: Node) -> None:
    before = ready.snapshot(*WATCHED)
    install(ready)
    installed = ready.snapshot("/etc", "/opt/kata/containerd")
    fail_next_start(ready)
    done = ready.kata_node("stage", "revert-cri", config=VALUES)
    assert done.returncode == 4, done.stdout + done.stderr
    assert kata_handlers(ready) == HANDLERS
    assert changes(installed, ready.snapshot("/etc", "/opt/kata/containerd")) == []
    ready.kata_node("revert", check=True)
    assert kata_handlers(ready) == ()
    assert changes(before, ready.snapshot(*WATCHED)) == []


def test_an_install_rolls_back_when_the_runtime_does_not_start_and_the_runtime_serves_again(
    ready: Node,
) -> None:
    before = ready.snapshot("/etc")
    fail_next_start(ready)
    done = ready.kata_node("install", config=VALUES, payload=PAYLOAD)
    assert done.returncode == 4, done.stdout + done.stderr
    assert (kata_handlers(ready), ready.cri().serving) == ((), True)
    assert changes(before, ready.snapshot("/etc")) == []
    status = ready.kata_node("status")
    assert (status.returncode, status.stdout.partition("\n")[0]) == (10, "default: degraded")
    assert "artifacts done, cri failed (exit code 4)\n             containerd.service: " in status.stdout
    install(ready)
    assert kata_handlers(ready) == HANDLERS
    assert ready.kata_node("status").returncode == 0


def test_status_says_what_is_wrong_and_its_command_mends_it(ready: Node) -> None:
    """Break the node in several ways, one after the other, and do what ``status`` says."""

    def mend(verdict: str) -> None:
        done = ready.kata_node("status", "--output", "json")
        status = json.loads(done.stdout)
        assert (done.returncode, status["outcome"]) == (10, verdict), done.stdout
        words = shlex.split(status["installations"][0]["advice"].partition(";")[0])
        if words[0] == "kata-node":
            ready.kata_node(*words[1:], check=True)
        else:
            ready.run(words)
            ready.wait_for_containerd()
        done = ready.kata_node("status")
        assert done.returncode == 0, done.stdout
        assert kata_handlers(ready) == HANDLERS

    install(ready)
    ready.run(["rm", "-r", "/opt/kata/bin"])
    mend("drifted")
    ready.run(["systemctl", "stop", UNIT])
    mend("broken")
    main = main_file(ready)
    main.write_text("\n".join(line for line in main.read_text().split("\n") if "/opt/kata" not in line))
    mend("drifted")
    ready.run(["rm", "/opt/kata/.kata-node/receipt.json"])
    mend("broken")
    ready.run(["rm", "-r", "/opt/kata"])
    status = json.loads(ready.kata_node("status", "--output", "json").stdout)
    assert [each["advice"] for each in status["installations"]] == ["kata-node revert"]
    ready.kata_node("revert", check=True)
    status = json.loads(ready.kata_node("status", "--output", "json").stdout)
    assert (status["outcome"], kata_handlers(ready)) == ("absent", ())


def test_an_install_refuses_to_replace_a_handler_of_another_installer_and_restarts_nothing(
    ready: Node,
) -> None:
    main = main_file(ready)
    other = EXTRA.replace("extra", "kata-qemu").encode()
    main.write_bytes(main.read_bytes() + b"\n" + other)
    ready.run(["systemctl", "restart", UNIT])
    ready.wait_for_containerd()
    ready.kata_node("stage", "artifacts", config=VALUES, payload=PAYLOAD, check=True)
    before, invocation = ready.snapshot("/etc"), ready.unit(UNIT).invocation
    done = ready.kata_node("stage", "cri", config=VALUES, payload=PAYLOAD)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "kata-qemu" in done.stdout
    assert changes(before, ready.snapshot("/etc")) == []
    assert ready.unit(UNIT).invocation == invocation
    ready.kata_node("revert", check=True)


def test_drop_ins_move_to_conf_d_when_the_runtime_starts_to_read_it_and_no_leftover_stays(
    ready: Node,
) -> None:
    """A change of the main file imitates an upgrade to 2.2: 2.1 also reads conf.d if it is imported."""
    install(ready, containerd={"userDropIn": EXTRA})
    main = main_file(ready)
    with_conf_d = b'version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
    main.write_bytes(with_conf_d)
    ready.run(["systemctl", "restart", UNIT])
    ready.wait_for_containerd()
    config = {**VALUES, "containerd": {"userDropIn": EXTRA}}
    upgraded = ("--runtime", "containerd://2.2.1")
    ready.kata_node("install", *upgraded, config=config, payload=PAYLOAD, check=True)
    assert kata_handlers(ready) == HANDLERS
    assert "extra" in ready.cri_handlers()
    assert main.read_bytes() == with_conf_d
    assert not (ready.root / "opt/kata/containerd/config.d/99-kata-deploy.toml").exists()
    ready.kata_node("revert", check=True)
    assert ready.cri_handlers() == ("runc",)
    assert main.read_bytes() == with_conf_d
    assert not (ready.root / "etc/containerd/conf.d").exists()
    assert not (ready.root / "opt/kata").exists()


def test_a_revert_does_not_start_a_stopped_runtime(ready: Node) -> None:
    before = ready.snapshot(*WATCHED)
    install(ready)
    ready.run(["systemctl", "stop", UNIT])
    ready.kata_node("revert", check=True)
    assert ready.unit(UNIT).active == "inactive"
    assert changes(before, ready.snapshot(*WATCHED)) == []
    ready.run(["systemctl", "start", UNIT])
    assert ready.wait_for_containerd().serving
    assert kata_handlers(ready) == ()


def test_a_serving_runtime_is_not_restarted_when_its_configuration_was_broken_meanwhile(ready: Node) -> None:
    """A killed run owes a restart, but the main file changed since."""
    ready.kata_node("stage", "artifacts", config=VALUES, payload=PAYLOAD, check=True)
    with starts_held(ready):
        running = ready.start_kata_node("stage", "cri", config=VALUES, payload=PAYLOAD)
        wait_until(lambda: ready.unit(UNIT).active == "activating", "the restart has begun")
        running.kill()
    ready.wait_for_containerd()
    main, invocation = main_file(ready), ready.unit(UNIT).invocation
    written = main.read_bytes()
    main.write_bytes(written.replace(b"imports = [", b'imports = ["/etc/missing.toml", '))
    for stage in ("cri", "revert-cri"):
        done = ready.kata_node("stage", stage, config=VALUES, payload=PAYLOAD)
        assert done.returncode in (1, 3, 4), done.stdout + done.stderr
        assert "/etc/missing.toml" in done.stdout
        assert ready.unit(UNIT).invocation == invocation
        assert ready.cri().serving
    main.write_bytes(written)
    install(ready)
    assert kata_handlers(ready) == HANDLERS
    ready.kata_node("revert", check=True)
