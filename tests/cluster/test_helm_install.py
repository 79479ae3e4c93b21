"""scripts/helm-install on real nodes: helm's hooks, the dispatcher and the DaemonSet, with real images."""

from __future__ import annotations

import json

from node.commands import wait_until
from node.installation import HANDLERS, UNIT
from node.snapshot import changes

from cluster.chart_objects import merge
from cluster.helm_releases import COMMON, CONTROL_PLANE, JOBS, LIMIT, MARK, NAMESPACE, Machine, Place, ended
from cluster.jobs import Job, container, job
from cluster.test_stages import AS_RUNC, SHARED, SHIM, events


def guest(machine: Machine) -> Job:
    """A pod in Kata, which nobody but the scheduler gives a node."""
    joined = machine.joined
    spec = {
        "runtimeClassName": "kata-qemu",
        "terminationGracePeriodSeconds": 0,
        "containers": [container("guest", "sleep", "infinity")],
    }
    joined.cluster.kubectl("create", "--filename=-", text=json.dumps(job("guest", spec)))
    return Job(joined.cluster, "guest", nodes=[joined]).running()


def test_jobs_install_for_a_ci_an_upgrade_works_on_a_new_node_alone_and_helm_takes_all_away(
    place: Place,
) -> None:
    machine, node = place.machine, place.joined.node
    kubectl = place.joined.cluster.kubectl
    values = merge(JOBS, {"containerd": {"userDropIn": AS_RUNC}})
    before, invocation = machine.snapshot(), machine.invocation

    done = place.releases.installed(values)
    assert f"nodes with {SHARED}=true,{MARK}default=true: {node.name}" in done.stderr
    assert machine.handlers == HANDLERS
    assert machine.labels == {SHARED: "true", f"{MARK}default": "true"}
    assert events(place.joined) == ["KataInstalling", "KataInstalled"]
    assert machine.invocation != invocation
    # Nothing stays.
    running = ("--field-selector=status.phase=Running", f"--namespace={NAMESPACE}", "--output=name")
    assert kubectl("get", "pods", *running).stdout == ""
    guest(machine)

    # An upgrade with nothing changed: here not a byte, no restart, and the pod runs on. Only a node that has
    # joined since is worked on.
    installed, invocation = machine.snapshot(), machine.invocation
    with place.another() as late:
        before_late = late.snapshot()
        place.releases.installed(values)
        assert changes(installed, machine.snapshot(), times=True) == []
        assert machine.invocation == invocation
        assert Job(place.joined.cluster, "guest", nodes=[place.joined]).read()["status"]["ready"] == 1
        assert late.handlers == HANDLERS
        assert late.labels == {SHARED: "true", f"{MARK}default": "true"}
        assert late.node.activations(UNIT) == 2

        # An uninstall that a pod on Kata is in the way of, and the way back from that.
        assert place.releases.uninstall(check=False).returncode
        assert machine.labels == {SHARED: "false", f"{MARK}default": "false"}
        assert (machine.handlers, machine.invocation) == (HANDLERS, invocation)
        place.releases.rollback()
        assert machine.labels == late.labels == {SHARED: "true", f"{MARK}default": "true"}
        assert (machine.handlers, machine.invocation) == (HANDLERS, invocation)
        assert late.handlers == HANDLERS

        kubectl("delete", "job", "guest", "--wait", "--cascade=foreground")
        wait_until(lambda: not node.run(["pgrep", "--full", SHIM], check=False).stdout, "the shim has ended")
        place.releases.uninstall()
        assert changes(before_late, late.snapshot()) == []
        assert late.untouched
    assert changes(before, machine.snapshot()) == []
    assert machine.untouched
    assert events(place.joined)[-1] == "KataRemoved"


def test_a_daemonset_installs_for_a_ci_and_outlives_a_rolling_restart(place: Place) -> None:
    machine, kubectl = place.machine, place.joined.cluster.kubectl
    values = merge(COMMON, {"containerd": {"userDropIn": AS_RUNC}})
    before = machine.snapshot()
    where = f"--namespace={NAMESPACE}"

    done = place.releases.installed(values)
    assert "daemonset/kata-deploy: 1 of 1 pods ready, 1 of this revision" in done.stderr
    assert machine.handlers == HANDLERS
    assert machine.labels == {SHARED: "true", f"{MARK}default": "true"}
    installed, invocation = machine.snapshot(), machine.invocation

    kubectl("rollout", "restart", "daemonset/kata-deploy", where)
    kubectl("rollout", "status", "daemonset/kata-deploy", where, f"--timeout={LIMIT}s")
    assert changes(installed, machine.snapshot()) == []
    assert machine.invocation == invocation
    assert machine.labels == {SHARED: "true", f"{MARK}default": "true"}

    place.releases.uninstall()
    assert changes(before, machine.snapshot()) == []
    assert machine.untouched


def test_two_releases_share_a_node_and_go_one_after_the_other(place: Place) -> None:
    machine = place.machine
    before = machine.snapshot()
    served: dict[str, set[str]] = {}
    for name in ("one", "two"):
        place.releases.installed(merge(JOBS, {"env": {"multiInstallSuffix": name}}), release=f"kata-{name}")
        served[name] = {f"{handler}-{name}" for handler in HANDLERS}
    assert {*machine.handlers} == served["one"] | served["two"]
    assert machine.labels == {SHARED: "true", f"{MARK}one": "true", f"{MARK}two": "true"}

    place.releases.uninstall("kata-one")
    assert {*machine.handlers} == served["two"]
    assert machine.labels == {SHARED: "true", f"{MARK}two": "true"}

    place.releases.uninstall("kata-two")
    assert changes(before, machine.snapshot()) == []
    assert machine.untouched


def test_what_a_killed_dispatcher_left_undone_is_done_by_the_next_upgrade(place: Place) -> None:
    values = merge(JOBS, {"job": {"parallelism": 1}})
    with place.another() as second:
        machines = (place.machine, second)
        process = place.releases.start(values)
        wait_until(lambda: any(machine.labels for machine in machines), "a node is claimed")
        for machine in machines:
            machine.node.run(["pkill", "--signal=KILL", "--full", "kata-deploy-job-dispatcher"], check=False)
        failed = ended(process)
        assert failed.returncode == 1, failed.stderr
        assert "helm ended with 1" in failed.stderr
        assert not all(machine.handlers for machine in machines)

        place.releases.installed(JOBS)
        for machine in machines:
            assert machine.handlers == HANDLERS
            assert machine.labels == {SHARED: "true", f"{MARK}default": "true"}
            # One restart each: what was begun under the first dispatcher is not begun again.
            assert machine.node.activations(UNIT) == 2

        place.releases.uninstall()
        assert all(machine.untouched for machine in machines)


def test_a_node_that_cannot_run_kata_is_told_with_the_reason(place: Place) -> None:
    machine, node = place.machine, place.joined.node
    node.run(["rm", "/dev/kvm"])
    before = machine.snapshot()
    done = place.releases.install(JOBS)
    assert done.returncode == 1, done.stderr
    assert "host-check: now terminated Error exit code 3" in done.stderr
    assert "/dev/kvm" in done.stderr
    assert f"pod {NAMESPACE}/kata-deploy-install-" in done.stderr
    assert CONTROL_PLANE in done.stderr
    assert changes(before, machine.snapshot()) == []
    assert machine.untouched
