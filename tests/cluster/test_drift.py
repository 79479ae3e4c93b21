"""What the API server hands out of a Node is enough to see that it does not serve."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.lost_handlers import REPORTS_HANDLERS
from cluster.test_dispatcher import Site, site
from kata_node.kube.node import SHARED_LABEL
from kata_node.kube.node_status import NodeStatus, annotation, encode

__all__ = ["site"]

HANDLERS = ("kata-clh", "kata-qemu")
MACHINE, OTHER_MACHINE = "1" * 32, "2" * 32


def serving(site: Site, name: str, machine: str, handlers: Sequence[str]) -> str:
    """Register a Node that an install on :data:`MACHINE` labeled, and return its name."""
    name, mark = f"{site.name}-{name}", f"kata-deploy.katacontainers.io/{site.name}"
    status = {
        "nodeInfo": {"machineID": machine, "containerRuntimeVersion": "containerd://2.3.4"},
        "runtimeHandlers": [{"name": each, "features": {}} for each in handlers] or None,
    }
    labels = {"pool": site.name, SHARED_LABEL: "true", mark: "true"}
    site.cluster.node(name, labels=labels, status=status)
    record = encode(NodeStatus("installed", machine_id=MACHINE, handlers=HANDLERS))
    site.cluster.kubectl("annotate", "node", name, f"{annotation(site.name)}={record}")
    return name


def test_a_reconciling_run_repairs_a_rebuilt_machine_and_lost_handlers(site: Site) -> None:
    served = serving(site, "served", MACHINE, ("", *HANDLERS))
    rebuilt = serving(site, "rebuilt", OTHER_MACHINE, ("", *HANDLERS))
    lost = serving(site, "lost", MACHINE, ("", "kata-clh"))
    old = serving(site, "old", MACHINE, ())
    config: dict[str, Any] = {"skipServing": True, "mark": f"kata-deploy.katacontainers.io/{site.name}"}
    with site.kubelets():
        run = site.run(**config)
    # Kubernetes before 1.31 does not keep the handlers, so each node gets a Job that looks at it.
    unproven = "its kubelet reports no handlers"
    outcome = "unchanged" if REPORTS_HANDLERS else "done"
    assert run.outcomes == {served: outcome, rebuilt: "done", lost: "done", old: "done"}
    notes = {each["node"]: each["note"] for each in run.result["nodes"]}
    assert notes[rebuilt] == f"its machine has the id {OTHER_MACHINE}, and Kata was installed on {MACHINE}"
    assert notes[lost] == ("its Node does not report kata-qemu" if REPORTS_HANDLERS else unproven)
    assert notes[old] == unproven
    jobs = {each["spec"]["template"]["spec"]["nodeName"] for each in site.jobs()}
    assert jobs == {rebuilt, lost, old} | (set() if REPORTS_HANDLERS else {served})
