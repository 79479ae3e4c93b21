"""Render the chart to Kubernetes objects, select among them, and validate them with a real API server."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from cluster.control_plane import Cluster
from cluster.helm_chart import CHART, apply, load_manifests, render

NAMESPACE = "kata-chart"
GATE = {"katacontainers.io/kata-runtime": "true", "kata-deploy.katacontainers.io/default": "true"}
JOB = {"deploymentMode": "job"}
EXAMPLES = {path.name: yaml.safe_load(path.read_text()) for path in sorted(CHART.glob("*.values.yaml"))}

CUSTOM = {
    "enabled": True,
    "runtimes": {
        "mine": {
            "baseConfig": "qemu",
            "runtimeClass": "{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: kata-mine}, "
            "handler: kata-mine, scheduling: {nodeSelector: {a: b, katacontainers.io/kata-runtime: no}}}",
        }
    },
}
POD = """\
apiVersion: v1
kind: Pod
metadata:
  name: verify
spec:
  runtimeClassName: kata-tried
  restartPolicy: Never
  containers: [{name: verify, image: example.org/verify}]
"""
DIGEST = f"sha256:{'0' * 64}"

Document = dict[str, Any]


_prepared: set[str] = set()


def prepare(cluster: Cluster) -> None:
    """Create what the rendered objects need, once for a cluster: namespace, RuntimeClass and CRDs."""
    if cluster.name in _prepared:
        return
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    runtime = {
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": {"name": "kata-tried"},
        "handler": "kata-tried",
    }
    apply(cluster, "---\n".join(map(yaml.safe_dump, (namespace, runtime))))
    for path in (CHART / "charts/node-feature-discovery/crds").iterdir():
        apply(cluster, path.read_text())
    _prepared.add(cluster.name)


def documents(cluster: Cluster, *values: Mapping[str, Any], online: bool = False) -> list[Document]:
    """Return the objects of a release with these values; a later mapping overrides an earlier one."""
    if online:
        prepare(cluster)  # helm asks the API server about the kinds of node-feature-discovery
    merged: dict[str, Any] = {}
    for each in values:
        merged = merge(merged, each)
    text = render(cluster, "kata", NAMESPACE, values=merged, online=online)
    return load_manifests(text)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings of values as helm does."""
    both = dict(below)
    for key, value in above.items():
        old = both.get(key)
        both[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def kind(documents: list[Document], kind: str, part: str = "") -> list[Document]:
    """Return the objects of a kind with ``part`` in their names."""
    return [each for each in documents if each["kind"] == kind and part in each["metadata"]["name"]]


def one(documents: list[Document], which: str, part: str = "") -> Document:
    """Return the only object of kind ``which`` with ``part`` in its name."""
    [found] = kind(documents, which, part)
    return found


def dispatcher_configs(documents: list[Document]) -> dict[str, Document]:
    """Return file name -> configuration of the dispatcher."""
    data = one(documents, "ConfigMap", "-dispatcher")["data"]
    return {name: yaml.load(text, yaml.CSafeLoader) for name, text in data.items()}


def job_for(config: Document, runtime: str = "containerd") -> Document:
    """Return the only Job template of a dispatcher configuration for this container runtime."""
    [template] = [each["template"] for each in config["templates"] if each["runtime"] == runtime]
    return dict(template)


def node_jobs(documents: list[Document]) -> Iterator[Document]:
    """Return the node Jobs that the dispatcher makes from its templates, for a node ``worker``."""
    if not kind(documents, "ConfigMap", "-dispatcher"):
        return
    for name, config in dispatcher_configs(documents).items():
        parts = (config, config.get("removed", {}), config.get("check", {}))
        for template in (each["template"] for part in parts for each in part.get("templates", [])):
            job = json.loads(json.dumps(template).replace("@MACHINE_ID@", "0" * 32))
            assert "@" not in json.dumps(job["spec"]["template"]["spec"]).replace(f"@{DIGEST}", "")
            job["metadata"].update(
                name=f"{name.partition('.')[0]}-{secrets.token_hex(3)}", namespace=NAMESPACE
            )
            job["spec"]["template"]["spec"]["nodeName"] = "worker"
            yield job


def dry_run(cluster: Cluster, objects: Sequence[Document]) -> None:
    """Validate the objects with a dry run of the API server; fails on a warning."""
    prepare(cluster)
    items = [_without_account(each) for each in objects]
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    done = cluster.kubectl("apply", "--dry-run=server", "--validate=strict", "--filename=-", text=text)
    assert "Warning" not in done.stderr, done.stderr


def _without_account(each: Document) -> Document:
    """Return a Pod with an account as a Job: a dry run refuses a Pod whose account does not exist."""
    if each["kind"] != "Pod" or "serviceAccountName" not in each["spec"]:
        return each
    metadata = {key: each["metadata"][key] for key in ("name", "namespace")}
    spec = {"template": {"spec": each["spec"]}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def pods(documents: list[Document]) -> dict[str, Document]:
    """Return name -> pod template of all objects, including the dispatcher's Job templates."""
    found = {}
    for each in [*documents, *node_jobs(documents)]:
        spec = each.get("spec", {})
        spec = spec.get("jobTemplate", {}).get("spec", spec)
        if "template" in spec:
            found[each["metadata"]["name"]] = spec["template"]
    return found
