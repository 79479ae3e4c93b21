"""Running pods on handlers that a change would remove, on a real containerd and CRI-O.

No VM can start here, see :mod:`node.running_pods`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kata_node.host.cri import Cri
from kata_node.host.cri_sandboxes import Pod
from kata_node.host.files import Root
from node import cri, crio, images
from node.commands import wait_until
from node.conftest import BootNode
from node.containerd_build import NEWEST
from node.debian_node import SOCKET, Node
from node.installation import (
    AS_PROCESS_1,
    PAYLOAD,
    UNIT,
    VALUES,
    WATCHED,
    configure,
    fake_kvm,
    kata_handlers,
    terminate,
)
from node.rootfs import build_rootfs
from node.running_pods import MAIN_2, PAUSE, RUNTIMES, allow_pods, payload_with_shim, values
from node.snapshot import changes, changes_by_a_refused_run


@pytest.fixture(scope="session")
def with_shim(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a sample payload with a shim that runs containers."""
    return payload_with_shim(tmp_path_factory.mktemp("payload"))


@pytest.fixture
def boot_ready(boot_node: BootNode, with_shim: Path) -> BootNode:
    """Return a function that boots nodes which can run pods, with the payload and a fake ``/dev/kvm``."""

    def boot(suite: str = "", **options: Any) -> Node:
        return allow_pods(boot_node(suite, **options), with_shim)

    return boot


def install(node: Node, *shims: str) -> Callable[[], list[str]]:
    """Install these shims, and return a function that lists later file changes and restarts."""
    node.kata_node("install", config=values(*shims), payload=PAYLOAD, check=True)
    before, invocation = node.snapshot(*WATCHED), node.unit(UNIT).invocation

    def changed() -> list[str]:
        restarted = [] if node.unit(UNIT).invocation == invocation else [f"{UNIT} was restarted"]
        return [*changes_by_a_refused_run(before, node.snapshot(*WATCHED)), *restarted]

    return changed


def run(node: Node, name: str, handler: str) -> str:
    return cri.run_pod(node.root / SOCKET, name, handler)


def end(node: Node, sandbox: str) -> None:
    cri.end_pod(node.root / SOCKET, sandbox)


def running(node: Node) -> tuple[Pod, ...]:
    return Cri(Root(node.root), f"/{SOCKET}").pods("containerd", 10)


def table(handler: str) -> str:
    """Return a CRI-O runtime table that runs crun under the name ``handler``."""
    return (
        f'[crio.runtime.runtimes.{handler}]\nruntime_path = "{crio.CRUN}"\nmonitor_path = "/usr/bin/conmon"\n'
    )


@pytest.mark.parametrize("release", [pytest.param("", id="2.1.9"), pytest.param(NEWEST, id=NEWEST)])
def test_a_revert_is_refused_while_a_pod_runs_and_succeeds_after_it_ended(
    boot_ready: BootNode, release: str
) -> None:
    node = boot_ready(containerd=release)
    changed = install(node, "qemu")
    run(node, "db", "runc")
    web = run(node, "web", "kata-qemu")
    assert running(node) == (Pod("default", "db", "runc"), Pod("default", "web", "kata-qemu"))

    planned = node.kata_node("plan", "revert")
    assert planned.returncode == 10
    assert (
        "note: would be blocked: 1 pod runs on a handler that would be removed: default/web (kata-qemu)"
        in planned.stdout
    )

    refused = node.kata_node("revert", "--output", "json")
    assert refused.returncode == 1
    error = json.loads(refused.stdout)["error"]
    assert error["what"] == "1 pod runs on a handler that would be removed: default/web (kata-qemu)"
    assert changed() == []

    end(node, web)
    node.kata_node("revert", check=True)
    assert kata_handlers(node) == ()
    assert running(node) == (Pod("default", "db", "runc"),)


def test_remove_artifacts_is_refused_while_a_pod_runs_even_with_ignore_pods(boot_ready: BootNode) -> None:
    node = boot_ready()
    changed = install(node, "qemu")
    run(node, "web", "kata-qemu")
    done = node.kata_node("stage", "remove-artifacts", "--ignore-pods")
    assert (done.returncode, changed()) == (1, [])


def test_a_revert_that_waits_for_a_pod_does_not_block_other_runs(
    boot_ready: BootNode,
) -> None:
    node = boot_ready()
    changed = install(node, "qemu")
    web = run(node, "web", "kata-qemu")
    revert = node.start_kata_node("revert", "--wait-for-pods", "300")
    wait_until(lambda: "default/web (kata-qemu); waiting at most" in revert.stderr, "it waits")
    other = node.kata_node("install", "--lock-timeout", "60", config=values("qemu"), payload=PAYLOAD)
    assert (other.returncode, changed()) == (0, [])
    end(node, web)
    assert revert.wait().returncode == 0
    assert kata_handlers(node) == ()
    assert not (node.root / "opt/kata").exists()


def test_a_stage_that_waits_for_a_pod_ends_on_sigterm_and_changes_nothing(boot_ready: BootNode) -> None:
    node = boot_ready()
    changed = install(node, "qemu")
    run(node, "web", "kata-qemu")
    stage = node.start_kata_node("stage", "revert-cri", "--wait-for-pods", "300", prefix=AS_PROCESS_1)
    wait_until(lambda: "default/web (kata-qemu); waiting at most" in stage.stderr, "it waits")
    terminate(stage)
    done = stage.wait()
    assert (done.returncode, changed()) == (1, [])
    assert "stopped by SIGTERM" in done.stdout


def test_an_ignored_pod_keeps_running_and_is_named(boot_ready: BootNode) -> None:
    node = boot_ready()
    install(node, "qemu")
    web = run(node, "web", "kata-qemu")
    done = node.kata_node("revert", "--ignore-pods", check=True)
    assert "note: handlers were removed while pods run on them: default/web (kata-qemu)" in done.stdout
    assert (kata_handlers(node), running(node)) == ((), (Pod("default", "web", "kata-qemu"),))
    # The note warns of this: containerd forgets the sandbox, and its processes keep running.
    node.run(["systemctl", "restart", UNIT])
    node.wait_for_containerd()
    end(node, web)
    assert running(node) == ()
    assert node.run(["pgrep", "--full", f"containerd-shim-kata-v2.*{web}"]).stdout != ""


def test_an_update_that_drops_a_shim_waits_only_for_pods_of_that_shim(boot_ready: BootNode) -> None:
    node = boot_ready()
    install(node, "clh", "qemu")
    cache = run(node, "cache", "kata-clh")
    run(node, "web", "kata-qemu")
    config, invocation = node.snapshot("/etc", "/opt/kata/containerd"), node.unit(UNIT).invocation

    refused = node.kata_node("install", config=values("qemu"), payload=PAYLOAD)
    assert refused.returncode == 1
    assert "1 pod runs on a handler that would be removed: default/cache (kata-clh)" in refused.stdout
    assert changes(config, node.snapshot("/etc", "/opt/kata/containerd"), times=True) == []
    assert node.unit(UNIT).invocation == invocation
    assert kata_handlers(node) == ("kata-clh", "kata-qemu")

    end(node, cache)
    node.kata_node("install", config=values("qemu"), payload=PAYLOAD, check=True)
    assert kata_handlers(node) == ("kata-qemu",)
    assert running(node) == (Pod("default", "web", "kata-qemu"),)


@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_containerd_1_reports_the_handler_of_its_pods(boot_ready: BootNode, suite: str) -> None:
    node = boot_ready(suite)
    tables = f'{RUNTIMES}.{{}}.runtime_type = "io.containerd.runc.v2"\n'
    configure(node, "".join((MAIN_2, tables.format("runc"), tables.format("kata-mine"))).encode())
    run(node, "db", "runc")
    run(node, "plain", "")
    web = run(node, "web", "kata-mine")
    pods = (Pod("default", "db", "runc"), Pod("default", "plain", ""), Pod("default", "web", "kata-mine"))
    assert running(node) == pods
    end(node, web)
    assert running(node) == pods[:2]


def test_a_revert_is_refused_on_crio_although_it_reports_no_handlers_of_pods(
    boot_node: BootNode, payload: Path
) -> None:
    node = fake_kvm(crio.boot(boot_node))
    node.mount(payload, PAYLOAD)
    crio.allow_pods(node, images.busybox(build_rootfs(packages=images.PACKAGES), pause=PAUSE))
    # The pod starts on the administrator's handler of the name that kata-node later installs.
    crio.write(node, "30-mine.conf", table("kata-qemu"))
    crio.restart(node)
    socket = node.root / crio.SOCKET
    cri.run_pod(socket, "web", "kata-qemu")
    cri.run_pod(socket, "db", "crun")
    (node.root / crio.CONF_D / "30-mine.conf").unlink()
    node.run(["systemctl", "reload", crio.UNIT])
    wait_until(lambda: crio.handlers(node) == (), "it is gone")
    node.kata_node("install", config=VALUES, payload=PAYLOAD, check=True)
    before, invocation = node.snapshot(*WATCHED), node.unit(crio.UNIT).invocation

    found = Cri(Root(node.root), f"/{crio.SOCKET}").pods("cri-o", 10)
    assert found == (Pod("default", "db", "crun"), Pod("default", "web", "kata-qemu"))
    refused = node.kata_node("revert")
    assert refused.returncode == 1
    assert "1 pod runs on a handler that would be removed: default/web (kata-qemu)" in refused.stdout
    assert changes_by_a_refused_run(before, node.snapshot(*WATCHED)) == []
    assert node.unit(crio.UNIT).invocation == invocation

    done = node.kata_node("revert", "--ignore-pods", check=True)
    assert "default/web (kata-qemu); after the next restart of the runtime" in done.stdout
    assert "default/db" not in done.stdout
    assert crio.handlers(node) == ()
