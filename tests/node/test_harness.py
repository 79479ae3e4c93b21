"""The nodes of these tests are real and isolated, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from node import boot, node_records
from node.cache import CHECKOUT, NodeError, cache_dir
from node.commands import CommandFailed, wait_until
from node.conftest import BootNode
from node.debian_node import Node
from node.snapshot import changes

HANDLER = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata-qemu]
runtime_type = "io.containerd.kata-qemu.v2"
"""

CONTAINER_CAPABILITIES = "CapEff:\t00000000a80425fb"  # from /proc in an unprivileged pod


def test_a_fresh_node_serves_the_cri_through_its_own_containerd(node: Node) -> None:
    assert node.cri().version.startswith("containerd://")
    assert node.cri_handlers() == ("runc",)
    assert node.unit("containerd.service").active == "active"
    assert node.run(["hostname"]).stdout.strip() == node.name


def test_a_restart_changes_the_invocation_and_the_number_of_activations(node: Node) -> None:
    before = node.unit("containerd.service")
    assert node.activations("containerd.service") == 1
    node.run(["systemctl", "restart", "containerd"])
    assert node.unit("containerd.service").invocation != before.invocation
    assert node.activations("containerd.service") == 2
    assert node.wait_for_containerd().serving


def test_a_handler_written_by_hand_is_served_after_a_restart(node: Node) -> None:
    config = node.root / "etc/containerd/config.toml"
    config.write_text(config.read_text() + HANDLER)
    node.run(["systemctl", "restart", "containerd"])
    assert node.wait_for_containerd().handlers == ("kata-qemu", "runc")


def test_a_runtime_without_cri_has_another_error_than_a_stopped_runtime(node: Node) -> None:
    config = node.root / "etc/containerd/config.toml"
    config.write_text(
        'version = 2\n[plugins."io.containerd.grpc.v1.cri".containerd]\ndefault_runtime_name = "none"\n'
    )
    node.run(["systemctl", "restart", "containerd"])
    assert node.unit("containerd.service").active == "active"
    assert node.cri().error == "UNIMPLEMENTED"
    node.run(["systemctl", "stop", "containerd"])
    assert node.cri().error == "UNAVAILABLE"
    with pytest.raises(NodeError, match="does not serve: UNAVAILABLE"):
        node.cri_handlers()


def test_a_command_returns_its_output_exit_code_and_signal(node: Node) -> None:
    script = 'cat; echo "$WORD" >&2; exit 37'
    done = node.run(["sh", "-c", script], check=False, env={"WORD": "no"}, text="out")
    assert (done.returncode, done.stdout, done.stderr) == (37, "out", "no\n")
    assert node.run(["sh", "-c", "kill -TERM $$"], check=False).returncode == -signal.SIGTERM
    with pytest.raises(CommandFailed, match="exit code 1"):
        node.run(["false"])


def test_a_command_that_takes_too_long_is_killed_in_the_node(node: Node) -> None:
    with pytest.raises(NodeError, match="killed"):
        node.run(["sleep", "1234"], timeout=0.2)
    assert node.run(["pgrep", "-f", "sleep 1234"], check=False).returncode == 1


def test_a_killed_command_leaves_no_process(node: Node) -> None:
    running = node.start(["sh", "-c", "echo ready; exec sleep 1234"])
    wait_until(lambda: running.stdout == "ready\n", "it is ready")
    assert running.kill().returncode == -signal.SIGKILL
    assert node.run(["pgrep", "-f", "sleep 1234"], check=False).returncode == 1
    with pytest.raises(NodeError, match="ended before"):
        running.kill()


def test_a_run_can_be_killed_at_a_chosen_system_call(node: Node) -> None:
    inject = [
        "strace",
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "inject=rename,renameat,renameat2:signal=KILL:when=1",
    ]
    node.run(["touch", "/root/a"])
    assert node.run([*inject, "mv", "/root/a", "/root/b"], check=False).returncode == -signal.SIGKILL
    assert node.run(["ls", "/root"]).stdout == "a\n"


def test_the_differences_of_two_snapshots_show_every_kind_of_change(node: Node) -> None:
    node.run(["sh", "-c", "mkdir /etc/d; echo one > /etc/f; ln -s f /etc/l; echo x > /etc/gone"])
    before = node.snapshot("/etc", "/opt", "/nowhere")
    assert changes(before, node.snapshot("/etc", "/opt", "/nowhere"), times=True) == []
    node.run(
        ["sh", "-c", "echo two > /etc/f; chmod 700 /etc/d; ln -sfn g /etc/l; rm /etc/gone; touch /opt/new"]
    )
    found = changes(before, node.snapshot("/etc", "/opt", "/nowhere"))
    assert [line.split(" sha256 ")[0] for line in found] == [
        "~ /etc/d: mode 755 -> 700",
        "~ /etc/f:",
        "- /etc/gone",
        "~ /etc/l: link f -> g",
        "+ /opt/new",
    ]


def test_the_program_runs_in_the_node_and_leaves_no_trace_in_the_checkout(node: Node) -> None:
    done = node.kata_node("--version", check=True)
    assert done.stdout.startswith("kata-node ")
    source = "/usr/local/lib/kata-node-cli/source/kata_node"
    assert node.run(["touch", f"{source}/new"], check=False).returncode == 1
    assert node.history == [done]


def test_kata_node_in_a_container_sees_only_its_mounts(node: Node, tmp_path: Path) -> None:
    assert node.kata_node_outside("--version", check=True).stdout.startswith("kata-node ")
    look = tmp_path / "kata_node"
    look.mkdir()
    (look / "__init__.py").touch()
    (look / "__main__.py").write_text(
        textwrap.dedent("""\
        import os, pathlib
        host = pathlib.Path(os.environ["KATA_NODE_HOST_ROOT"])
        print(sorted(path.name for path in host.iterdir()), os.getpid())
        print((host / "run/containerd/containerd.sock").is_socket())
        print((host / "etc/machine-id").read_text().strip())
        status = pathlib.Path("/proc/self/status").read_text()
        print(next(line for line in status.splitlines() if line.startswith("CapEff")))
        (host / "opt/from-outside").write_text("here")
        """)
    )
    done = node.kata_node_outside(env={"PYTHONPATH": str(tmp_path)}, check=True)
    machine_id = node.run(["cat", "/etc/machine-id"]).stdout.strip()
    assert done.stdout.splitlines() == ["['etc', 'opt', 'run'] 1", "True", machine_id, CONTAINER_CAPABILITIES]
    assert node.run(["cat", "/opt/from-outside"]).stdout == "here"
    assert node.snapshot("/run/kata-node").keys() == {"/run/kata-node"}


def test_files_of_the_machine_can_be_mounted_in_a_node(node: Node, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("brought")
    node.mount(tmp_path, "/payload")
    node.mount(tmp_path / "file", "/root/one")
    assert node.run(["cat", "/payload/file", "/root/one"]).stdout == "broughtbrought"


def test_two_nodes_are_isolated_from_each_other(boot_node: BootNode) -> None:
    one, other = boot_node(), boot_node()
    one.run(["touch", "/opt/mine"])
    one.run(["systemctl", "stop", "containerd"])
    assert not other.snapshot("/opt/mine")
    assert other.cri_handlers() == ("runc",)
    # In a common control group each systemd would claim the other's units.
    groups = {Path(f"/proc/{node.leader.pid}/cgroup").read_text() for node in (one, other)}
    assert len(groups) == 2
    assert other.run(["systemctl", "is-system-running"], check=False).stdout in ("running\n", "starting\n")


def test_without_overlay_support_the_node_runs_on_a_copy_of_the_tree(
    boot_node: BootNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = tmp_path / "mount"
    refusing = 'case "$*" in *"-t overlay"*) exit 32;; esac'
    mount.write_text(f'#!/bin/sh\n{refusing}\nPATH=${{PATH#*:}} exec mount "$@"\n')
    mount.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    node = boot_node()
    assert node.run(["stat", "--file-system", "--format=%T", "/"]).stdout.strip() != "overlayfs"
    assert node.cri_handlers() == ("runc",)


def test_a_stopped_node_leaves_nothing_on_the_machine(machine: None) -> None:
    node = Node.boot()
    assert _traces(node.name)
    node.stop()
    assert not _traces(node.name)


def test_a_node_ends_when_its_owner_process_ends_in_any_way(machine: None) -> None:
    name = f"orphan-{os.getpid()}"
    script = f"from node.debian_node import Node; n = Node.boot(name={name!r}); print('up', flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", f"{script}; import time; time.sleep(600)"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        leader = Node.attach(name).leader
        owner.kill()
    wait_until(lambda: not leader.alive, "the node has died with its owner")
    node_records.clear_dead()
    assert not _traces(name)


def test_a_node_that_cannot_boot_says_why_and_leaves_nothing(
    machine: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"stuck-{os.getpid()}"
    monkeypatch.setattr(boot, "_leader", lambda supervisor: None)
    with pytest.raises(NodeError, match=r"did not come up within 1 s"):
        Node.boot(name=name, timeout=1)
    assert not _traces(name)


def _traces(name: str) -> set[str]:
    """Return the leftovers of the node ``name`` on the machine: mounts, processes, control groups, files."""
    found = {str(path) for path in (cache_dir() / "running").glob(name)}
    found |= {line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line}
    found |= {path for path, *_ in os.walk("/sys/fs/cgroup") if name in path}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().decode(errors="replace")
            if f"--machine={name}" in command:
                found.add(f"{process.name} {command}")
    return found


def test_testnode_boots_uses_and_stops_a_node_by_name(machine: None) -> None:
    name = f"person-{os.getpid()}"
    assert "containerd://" in _testnode("boot", "--name", name).stdout
    try:
        again = _testnode("boot", "--name", name)
        assert (again.returncode, again.stderr[:9]) == (1, "testnode:")
        done = _testnode("run", "--name", name, "--", "sh", "-c", "hostname; exit 7")
        assert (done.returncode, done.stdout) == (7, f"{name}\n")
        assert re.search(rf"^{name} +forky +serves runc$", _testnode("list").stdout, re.MULTILINE)
    finally:
        assert _testnode("stop", "--name", name).stdout == f"{name}: stopped\n"
    assert not _traces(name)
    assert "no node named" in _testnode("run", "--name", name, "--", "true").stderr


def _testnode(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CHECKOUT / "scripts/testnode"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("required", "outcome"),
    [pytest.param("", "1 skipped", id="skipped"), pytest.param("1", "1 error", id="failed where required")],
)
def test_missing_prerequisites_are_named_as_the_skip_or_failure_reason(
    tmp_path: Path, required: str, outcome: str
) -> None:
    env = {**os.environ, "PATH": str(tmp_path), "KATA_NODE_REQUIRE_NODES": required}
    this = f"{__file__}::test_a_fresh_node_serves_the_cri_through_its_own_containerd"
    command = [sys.executable, "-m", "pytest", "-m", "node", "-p", "no:cacheprovider", this]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert outcome in done.stdout.splitlines()[-1]
    assert "needs root" in done.stdout or "apt-get install mmdebstrap" in done.stdout


FIRST_THREAD_ENDS = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print("up", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_is_alive_until_its_last_thread_ends() -> None:
    command = [sys.executable, "-c", FIRST_THREAD_ENDS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == b"up\n"
        process = node_records.Process.of(started.pid)
        stat = Path(f"/proc/{started.pid}/stat")
        wait_until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z", "its first thread is gone")
        assert process.alive
        started.kill()
        wait_until(lambda: not process.alive, "the others are gone")
