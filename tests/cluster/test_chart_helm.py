"""What helm does beside install, upgrade and uninstall that go well, with real images on a real node."""

from __future__ import annotations

import pytest
from node.snapshot import changes

from cluster.chart_objects import merge
from cluster.helm_releases import COMMON, JOBS, MARK, Place
from cluster.test_stages import AS_RUNC, SHARED

UNUSABLE = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
max_container_log_line_size = "no number"
"""
"""TOML like any other; containerd finds out that it cannot serve with it."""


def test_a_rollback_takes_the_nodes_back_as_well(place: Place) -> None:
    machine = place.machine
    values = merge(JOBS, {"containerd": {"userDropIn": AS_RUNC}})
    place.releases.installed(values)
    before = machine.handlers
    place.releases.installed(merge(values, {"debug": True}))
    assert "kata-qemu-debug" in machine.handlers
    place.releases.rollback("1")
    assert machine.handlers == before
    invocation = machine.invocation
    place.releases.rollback()
    assert "kata-qemu-debug" in machine.handlers
    assert machine.invocation != invocation
    place.releases.uninstall()
    assert machine.untouched


def test_an_install_that_failed_half_way_is_mended_by_an_upgrade_or_taken_away(place: Place) -> None:
    machine = place.machine
    before = machine.snapshot()
    broken = merge(JOBS, {"containerd": {"userDropIn": UNUSABLE}})
    assert place.releases.install(broken).returncode == 1
    # Kata's files are there, and containerd serves with its own configuration.
    assert machine.node.cri_handlers() == ("runc",)
    assert machine.labels == {SHARED: "false", f"{MARK}default": "false"}
    assert changes(before, machine.snapshot())

    place.releases.uninstall()
    assert changes(before, machine.snapshot()) == []
    assert machine.untouched

    assert place.releases.install(broken).returncode == 1
    place.releases.installed(merge(JOBS, {"containerd": {"userDropIn": AS_RUNC}}))
    assert machine.labels == {SHARED: "true", f"{MARK}default": "true"}
    place.releases.uninstall()
    assert changes(before, machine.snapshot()) == []
    assert machine.untouched


@pytest.mark.parametrize("values", [JOBS, COMMON], ids=["job", "daemonset"])
def test_what_is_left_without_hooks_is_found_by_the_next_release(place: Place, values: object) -> None:
    machine = place.machine
    before = machine.snapshot()
    given = merge(dict(values), {"containerd": {"userDropIn": AS_RUNC}})  # type: ignore[call-overload]
    place.releases.installed(given)
    served, invocation = machine.handlers, machine.invocation
    place.releases.uninstall("kata-deploy", "--no-hooks", "--wait", "--cascade=foreground")
    assert machine.handlers == served
    place.releases.installed(given, release="another")
    assert machine.invocation == invocation
    place.releases.uninstall("another")
    assert changes(before, machine.snapshot()) == []
    assert machine.untouched
