"""`helm rollback` of a release with Jobs: the nodes have to go back, and not its record alone."""

from __future__ import annotations

from cluster.charts import merge
from cluster.test_helm_install import JOBS, LIMIT, NAMESPACE, Machine, machine_of_a_ci
from cluster.test_stages import AS_RUNC

__all__ = ["machine_of_a_ci"]


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
