"""What helm does beside install, upgrade and uninstall that go well, with real images on a real node."""

from __future__ import annotations

import pytest
from node.snapshot import changes

from cluster.charts import merge
from cluster.test_helm_install import COMMON, JOBS, LIMIT, MARK, NAMESPACE, Machine, machine_of_a_ci
from cluster.test_stages import AS_RUNC, SHARED

__all__ = ["machine_of_a_ci"]

UNUSABLE = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
max_container_log_line_size = "no number"
"""
"""TOML like any other; containerd finds out that it cannot serve with it."""


def test_a_rollback_takes_the_nodes_back_as_well(machine_of_a_ci: Machine) -> None:
    machine = machine_of_a_ci
    values = merge(JOBS, {"containerd": {"userDropIn": AS_RUNC}})
    machine.installed(values)
    before = machine.handlers
    machine.installed(merge(values, {"debug": True}))
    assert "kata-qemu-debug" in machine.handlers
    where = (f"--namespace={NAMESPACE}", f"--timeout={LIMIT}s")
    machine.joined.cluster.helm("rollback", "kata-deploy", "1", *where)
    assert machine.handlers == before
    invocation = machine.invocation
    machine.joined.cluster.helm("rollback", "kata-deploy", *where)
    assert "kata-qemu-debug" in machine.handlers
    assert machine.invocation != invocation
    machine.uninstall()
    assert machine.untouched


def test_an_install_that_failed_half_way_is_mended_by_an_upgrade_or_taken_away(
    machine_of_a_ci: Machine,
) -> None:
    machine = machine_of_a_ci
    before = machine.snapshot()
    broken = merge(JOBS, {"containerd": {"userDropIn": UNUSABLE}})
    assert machine.install(broken).returncode == 1
    # Kata's files are there, and containerd serves with its own configuration.
    assert machine.joined.node.cri_handlers() == ("runc",)
    assert machine.labels == {SHARED: "false", f"{MARK}default": "false"}
    assert changes(before, machine.snapshot())

    machine.uninstall()
    assert changes(before, machine.snapshot()) == []
    assert machine.untouched

    assert machine.install(broken).returncode == 1
    machine.installed(merge(JOBS, {"containerd": {"userDropIn": AS_RUNC}}))
    assert machine.labels == {SHARED: "true", f"{MARK}default": "true"}
    machine.uninstall()
    assert changes(before, machine.snapshot()) == []
    assert machine.untouched


@pytest.mark.parametrize("values", [JOBS, COMMON], ids=["job", "daemonset"])
def test_what_is_left_without_hooks_is_found_by_the_next_release(
    machine_of_a_ci: Machine, values: object
) -> None:
    machine = machine_of_a_ci
    before = machine.snapshot()
    given = merge(dict(values), {"containerd": {"userDropIn": AS_RUNC}})  # type: ignore[call-overload]
    machine.installed(given)
    served, invocation = machine.handlers, machine.invocation
    where = (f"--namespace={NAMESPACE}", f"--timeout={LIMIT}s")
    machine.joined.cluster.helm(
        "uninstall", "kata-deploy", "--no-hooks", "--wait", "--cascade=foreground", *where
    )
    assert machine.handlers == served
    machine.installed(given, release="another")
    assert machine.invocation == invocation
    machine.uninstall("another")
    assert changes(before, machine.snapshot()) == []
    assert machine.untouched
