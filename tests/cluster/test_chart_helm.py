"""helm rollback, failed installs and uninstalls without hooks, with real images on a real node."""

from __future__ import annotations

import pytest

from cluster.chart_objects import merge
from cluster.helm_releases import COMMON, INSTALLATION_LABEL_PREFIX, JOBS, CiCluster
from cluster.test_stages import AS_RUNC, SHARED_LABEL
from node.snapshot import changes

UNUSABLE = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
max_container_log_line_size = "no number"
"""
"""Valid TOML with which containerd does not serve the CRI."""


def test_a_helm_rollback_restores_the_previous_state_of_the_nodes(ci_cluster: CiCluster) -> None:
    prepared_node = ci_cluster.prepared_node
    values = merge(JOBS, {"containerd": {"userDropIn": AS_RUNC}})
    ci_cluster.releases.install_checked(values)
    before = prepared_node.handlers
    ci_cluster.releases.install_checked(merge(values, {"debug": True}))
    assert "kata-qemu-debug" in prepared_node.handlers
    ci_cluster.releases.rollback("1")
    assert prepared_node.handlers == before
    invocation = prepared_node.invocation
    ci_cluster.releases.rollback()
    assert "kata-qemu-debug" in prepared_node.handlers
    assert prepared_node.invocation != invocation
    ci_cluster.releases.uninstall()
    assert prepared_node.is_clean


@pytest.mark.extended
def test_a_failed_install_can_be_repaired_by_an_upgrade_or_uninstalled(ci_cluster: CiCluster) -> None:
    prepared_node = ci_cluster.prepared_node
    before = prepared_node.snapshot()
    broken = merge(JOBS, {"containerd": {"userDropIn": UNUSABLE}})
    assert ci_cluster.releases.install(broken).returncode == 1
    # Kata's files are placed, and containerd serves with its previous configuration.
    assert prepared_node.node.cri_handlers() == ("runc",)
    assert prepared_node.labels == {SHARED_LABEL: "false", f"{INSTALLATION_LABEL_PREFIX}default": "false"}
    assert changes(before, prepared_node.snapshot())

    ci_cluster.releases.uninstall()
    assert changes(before, prepared_node.snapshot()) == []
    assert prepared_node.is_clean

    assert ci_cluster.releases.install(broken).returncode == 1
    ci_cluster.releases.install_checked(merge(JOBS, {"containerd": {"userDropIn": AS_RUNC}}))
    assert prepared_node.labels == {SHARED_LABEL: "true", f"{INSTALLATION_LABEL_PREFIX}default": "true"}
    ci_cluster.releases.uninstall()
    assert changes(before, prepared_node.snapshot()) == []
    assert prepared_node.is_clean


@pytest.mark.parametrize(
    "values", [pytest.param(JOBS, id="job", marks=pytest.mark.extended), pytest.param(COMMON, id="daemonset")]
)
def test_leftovers_of_an_uninstall_without_hooks_are_found_by_the_next_release(
    ci_cluster: CiCluster, values: object
) -> None:
    prepared_node = ci_cluster.prepared_node
    before = prepared_node.snapshot()
    given = merge(dict(values), {"containerd": {"userDropIn": AS_RUNC}})  # type: ignore[call-overload]
    ci_cluster.releases.install_checked(given)
    served, invocation = prepared_node.handlers, prepared_node.invocation
    ci_cluster.releases.uninstall("kata-deploy", "--no-hooks", "--wait", "--cascade=foreground")
    assert prepared_node.handlers == served
    ci_cluster.releases.install_checked(given, release="another")
    assert prepared_node.invocation == invocation
    ci_cluster.releases.uninstall("another")
    assert changes(before, prepared_node.snapshot()) == []
    assert prepared_node.is_clean
