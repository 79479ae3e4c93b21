"""Run scripts/helm-install on real nodes, with helm hooks, the dispatcher, the DaemonSet and real images."""

from __future__ import annotations

import json

import pytest

from cluster.chart_objects import merge
from cluster.helm_releases import (
    COMMON,
    CONTROL_PLANE,
    INSTALLATION_LABEL_PREFIX,
    JOBS,
    LIMIT,
    NAMESPACE,
    CiCluster,
    PreparedNode,
    ended,
    evict,
)
from cluster.jobs import Job, container, job
from cluster.lost_handlers import REPORTS_HANDLERS, lose_handlers, record, reported_handlers
from cluster.test_stages import AS_RUNC, SHARED_LABEL, SHIM, events
from kata_node.kube import node_status
from node.commands import checked, wait_until
from node.installation import HANDLERS, UNIT
from node.snapshot import changes


def guest(prepared_node: PreparedNode) -> Job:
    """Create a Kata pod that the scheduler places, and wait until it runs."""
    joined = prepared_node.joined
    spec = {
        "runtimeClassName": "kata-qemu",
        "terminationGracePeriodSeconds": 0,
        "containers": [container("guest", "sleep", "infinity")],
    }
    joined.cluster.kubectl("create", "--filename=-", text=json.dumps(job("guest", spec)))
    return Job(joined.cluster, "guest", nodes=[joined]).running()


def repair(ci_cluster: CiCluster) -> None:
    """Lose the handlers of the node, and see a reconciling run repair it, with the labels false meanwhile.

    A kubelet before 1.31 reports no handlers: `helm test` cannot see the loss, and the Jobs look at the node.
    """
    prepared_node, joined = ci_cluster.prepared_node, ci_cluster.joined
    kubectl, where = joined.cluster.kubectl, f"--namespace={NAMESPACE}"
    assert bool(reported_handlers(joined)) is REPORTS_HANDLERS
    before = prepared_node.snapshot()
    record(joined)
    lose_handlers(joined)
    wait_until(lambda: not reported_handlers(joined) & {*HANDLERS}, "the Node reports no Kata handler")
    assert prepared_node.labels[SHARED_LABEL] == "true"
    tested = ci_cluster.releases.test(check=False)
    shown = "its kubelet reports no handlers"
    if REPORTS_HANDLERS:
        shown = f"its Node does not report {', '.join(sorted(HANDLERS))}"
        assert tested.returncode
        assert "check failed (1 of 1 nodes do not serve Kata)" in tested.stdout
    else:
        assert "check ok: 1 node: 1 unproven" in tested.stdout
    assert shown in tested.stdout
    activations = prepared_node.node.activations(UNIT)

    kubectl("create", "job", "mend", "--from=cronjob/kata-deploy-reconcile", where)
    kubectl("wait", "--for=condition=Complete", "job/mend", where, f"--timeout={LIMIT}s")
    assert shown in kubectl("logs", "job/mend", where).stdout
    assert prepared_node.handlers == HANDLERS
    changed = changes(before, prepared_node.snapshot())
    assert [each for each in changed if "/opt/kata/.kata-node/" not in each] == []
    assert prepared_node.node.activations(UNIT) == activations + 1
    assert prepared_node.labels == {SHARED_LABEL: "true", f"{INSTALLATION_LABEL_PREFIX}default": "true"}
    assert events(joined)[1:3] == ["KataNotServed", "KataInstalled"]
    # If the Node proves now that it serves, the next run gives it no Job. Else its Job changes nothing.
    record(joined)
    kubectl("create", "job", "mended", "--from=cronjob/kata-deploy-reconcile", where)
    kubectl("wait", "--for=condition=Complete", "job/mended", where, f"--timeout={LIMIT}s")
    outcome = "unchanged" if REPORTS_HANDLERS else "done"
    assert f"install ok: 1 node: 1 {outcome}" in kubectl("logs", "job/mended", where).stdout
    assert prepared_node.node.activations(UNIT) == activations + 1
    kubectl("delete", "job", "mend", "mended", where, "--cascade=foreground", "--ignore-not-found")


def test_jobs_install_in_ci_an_upgrade_works_only_on_a_new_node_and_an_uninstall_reverts(
    ci_cluster: CiCluster,
) -> None:
    prepared_node, node = ci_cluster.prepared_node, ci_cluster.joined.node
    kubectl = ci_cluster.joined.cluster.kubectl
    values = merge(JOBS, {"containerd": {"userDropIn": AS_RUNC}, "job": {"reconcileSchedule": "0 0 1 1 *"}})
    before, invocation = prepared_node.snapshot(), prepared_node.invocation

    done = ci_cluster.releases.install_checked(values)
    assert (
        f"nodes with {SHARED_LABEL}=true,{INSTALLATION_LABEL_PREFIX}default=true: {node.name}" in done.stderr
    )
    assert prepared_node.handlers == HANDLERS
    assert prepared_node.labels == {SHARED_LABEL: "true", f"{INSTALLATION_LABEL_PREFIX}default": "true"}
    assert events(ci_cluster.joined) == ["KataInstalled"]
    assert prepared_node.invocation != invocation
    assert "check ok: 1 node" in ci_cluster.releases.test().stdout
    repair(ci_cluster)
    state = "served" if REPORTS_HANDLERS else "unproven"
    assert f"check ok: 1 node: 1 {state}" in ci_cluster.releases.test().stdout
    kubectl("delete", "pod", "kata-deploy-check", f"--namespace={NAMESPACE}")
    # The uninstall leaves nothing.
    running = ("--field-selector=status.phase=Running", f"--namespace={NAMESPACE}", "--output=name")
    assert kubectl("get", "pods", *running).stdout == ""
    guest(prepared_node)

    # An upgrade without changes writes nothing, restarts nothing, and the pod keeps running. It works only on
    # the node that has joined since.
    install_checked, invocation = prepared_node.snapshot(), prepared_node.invocation
    with ci_cluster.join_another() as late:
        before_late = late.snapshot()
        ci_cluster.releases.install_checked(values)
        assert changes(install_checked, prepared_node.snapshot(), times=True) == []
        assert prepared_node.invocation == invocation
        assert (
            Job(ci_cluster.joined.cluster, "guest", nodes=[ci_cluster.joined]).read()["status"]["ready"] == 1
        )
        assert late.handlers == HANDLERS
        assert late.labels == {SHARED_LABEL: "true", f"{INSTALLATION_LABEL_PREFIX}default": "true"}
        assert late.node.activations(UNIT) == 2

        # A blocking pod makes the uninstall fail before it changes a node; the release can be repaired.
        failed = ci_cluster.releases.uninstall(check=False)
        assert failed.returncode
        said = failed.stdout + failed.stderr
        assert "pods run in Kata on 1 of 2 nodes, so no node was changed" in said
        assert "default/guest-" in said
        for each in (prepared_node, late):
            assert each.labels == {SHARED_LABEL: "true", f"{INSTALLATION_LABEL_PREFIX}default": "true"}
            assert each.handlers == HANDLERS
        assert prepared_node.invocation == invocation
        ci_cluster.releases.rollback()
        assert (
            prepared_node.labels
            == late.labels
            == {SHARED_LABEL: "true", f"{INSTALLATION_LABEL_PREFIX}default": "true"}
        )
        assert (prepared_node.handlers, prepared_node.invocation) == (HANDLERS, invocation)
        assert late.handlers == HANDLERS

        kubectl("delete", "job", "guest", "--wait", "--cascade=foreground")
        wait_until(lambda: not node.run(["pgrep", "--full", SHIM], check=False).stdout, "the shim has ended")
        ci_cluster.releases.uninstall()
        assert changes(before_late, late.snapshot()) == []
        assert late.is_clean
    assert changes(before, prepared_node.snapshot()) == []
    assert prepared_node.is_clean
    assert events(ci_cluster.joined)[-1] == "KataRemoved"


def test_a_daemonset_installs_in_ci_and_survives_a_rolling_restart(ci_cluster: CiCluster) -> None:
    prepared_node, kubectl = ci_cluster.prepared_node, ci_cluster.joined.cluster.kubectl
    # helm reads the digest of the Secret in the cluster.
    values = merge(COMMON, {"containerd": {"userDropInSecret": {"name": "drop-in"}}})
    before = prepared_node.snapshot()
    where = f"--namespace={NAMESPACE}"
    kubectl("create", "namespace", NAMESPACE, check=False)
    kubectl("create", "secret", "generic", "drop-in", where, f"--from-literal=userDropIn.toml={AS_RUNC}")

    done = ci_cluster.releases.install_checked(values)
    assert "daemonset/kata-deploy: 1 of 1 pods ready, 1 of this revision" in done.stderr
    assert prepared_node.handlers == HANDLERS
    assert prepared_node.labels == {SHARED_LABEL: "true", f"{INSTALLATION_LABEL_PREFIX}default": "true"}
    assert "check ok: 1 node" in ci_cluster.releases.test().stdout
    install_checked, invocation = prepared_node.snapshot(), prepared_node.invocation
    [drop_in] = (prepared_node.node.root / "opt/kata").rglob("zz-kata-deploy-user.toml")
    assert (drop_in.read_text().strip(), drop_in.stat().st_mode & 0o777) == (AS_RUNC.strip(), 0o600)
    assert AS_RUNC.strip().splitlines()[-1] not in kubectl("get", "configmaps", where, "--output=yaml").stdout

    kubectl("rollout", "restart", "daemonset/kata-deploy", where)
    kubectl("rollout", "status", "daemonset/kata-deploy", where, f"--timeout={LIMIT}s")
    assert changes(install_checked, prepared_node.snapshot()) == []
    assert prepared_node.invocation == invocation
    assert prepared_node.labels == {SHARED_LABEL: "true", f"{INSTALLATION_LABEL_PREFIX}default": "true"}

    ci_cluster.releases.uninstall()
    assert changes(before, prepared_node.snapshot()) == []
    assert prepared_node.is_clean


@pytest.mark.extended
def test_two_releases_share_a_node_and_are_uninstalled_one_after_the_other(ci_cluster: CiCluster) -> None:
    prepared_node = ci_cluster.prepared_node
    before = prepared_node.snapshot()
    served: dict[str, set[str]] = {}
    for name in ("one", "two"):
        # One by the stages of its Jobs, the other by its dispatcher: both understand the same labels.
        rbac = {"admissionPolicy": "never" if name == "two" else "auto"}
        ci_cluster.releases.install_checked(
            merge(JOBS, {"env": {"multiInstallSuffix": name}, "rbac": rbac}), release=f"kata-{name}"
        )
        served[name] = {f"{handler}-{name}" for handler in HANDLERS}
    assert {*prepared_node.handlers} == served["one"] | served["two"]
    assert prepared_node.labels == {
        SHARED_LABEL: "true",
        f"{INSTALLATION_LABEL_PREFIX}one": "true",
        f"{INSTALLATION_LABEL_PREFIX}two": "true",
    }

    ci_cluster.releases.uninstall("kata-one")
    assert {*prepared_node.handlers} == served["two"]
    assert prepared_node.labels == {SHARED_LABEL: "true", f"{INSTALLATION_LABEL_PREFIX}two": "true"}

    ci_cluster.releases.uninstall("kata-two")
    assert changes(before, prepared_node.snapshot()) == []
    assert prepared_node.is_clean


def test_a_dispatcher_that_is_evicted_and_killed_completes_the_rollout_and_labels_the_nodes(
    ci_cluster: CiCluster,
) -> None:
    cluster = ci_cluster.joined.cluster
    values = merge(JOBS, {"job": {"parallelism": 1}, "rbac": {"labelsBy": "dispatcher"}})

    def dispatchers() -> list[str]:
        which = ("--selector=app.kubernetes.io/component=dispatcher", "--field-selector=status.phase=Running")
        found = cluster.kubectl("get", "pods", f"--namespace={NAMESPACE}", *which, "--output=json").stdout
        pods = [each["metadata"] for each in json.loads(found)["items"]]
        return [each["name"] for each in pods if "deletionTimestamp" not in each]

    with ci_cluster.join_another() as second:
        machines = (ci_cluster.prepared_node, second)
        process = ci_cluster.releases.start(values)
        wait_until(lambda: any(prepared_node.labels for prepared_node in machines), "a node is claimed")
        [first] = dispatchers()
        evict(cluster, NAMESPACE, first)
        wait_until(lambda: dispatchers() not in ([first], []), "another pod of the dispatcher runs")
        for prepared_node in machines:
            prepared_node.node.run(
                ["pkill", "--signal=KILL", "--full", "kata-deploy-job-dispatcher"], check=False
            )
        checked(ended(process), check=True)
        for prepared_node in machines:
            assert prepared_node.handlers == HANDLERS
            assert prepared_node.labels == {
                SHARED_LABEL: "true",
                f"{INSTALLATION_LABEL_PREFIX}default": "true",
            }
            assert prepared_node.node.activations(UNIT) == 2, "one restart"
            which = ("node", prepared_node.node.name, "--output=json")
            annotations = json.loads(cluster.kubectl("get", *which).stdout)["metadata"]["annotations"]
            seen = node_status.read(annotations, "default")
            assert seen is not None
            assert (seen.outcome, {*seen.handlers}) == ("installed", {*HANDLERS})
        where = ("--selector=app.kubernetes.io/component=node-job", f"--namespace={NAMESPACE}")
        pods = json.loads(cluster.kubectl("get", "pods", *where, "--output=json").stdout)["items"]
        assert {each["spec"]["nodeName"] for each in pods} == {each.node.name for each in machines}
        assert not [each for each in pods if 'serviceAccountToken"' in json.dumps(each["spec"])]

        ci_cluster.releases.uninstall()
        assert all(prepared_node.is_clean for prepared_node in machines)


@pytest.mark.extended
def test_a_node_that_cannot_run_kata_is_reported_with_the_reason(ci_cluster: CiCluster) -> None:
    prepared_node, node = ci_cluster.prepared_node, ci_cluster.joined.node
    node.run(["rm", "/dev/kvm"])
    before = prepared_node.snapshot()
    done = ci_cluster.releases.install(JOBS)
    assert done.returncode == 1, done.stderr
    # host-check leaves its report to claim, which labels the Node as unfit.
    assert "claim: now terminated Error exit code 3" in done.stderr
    assert "host-check: the node says" in done.stderr
    assert "/dev/kvm" in done.stderr
    assert f"pod {NAMESPACE}/kata-deploy-install-" in done.stderr
    assert CONTROL_PLANE in done.stderr
    # The kubelet has made the directory that host-check mounts. The uninstall removes it.
    assert changes(before, prepared_node.snapshot()) == ["+ /opt/kata"]
    assert prepared_node.labels == {
        SHARED_LABEL: "false",
        f"{INSTALLATION_LABEL_PREFIX}default": "unfit",
    }
    ci_cluster.releases.uninstall()
    assert changes(before, prepared_node.snapshot()) == []
    assert prepared_node.is_clean
