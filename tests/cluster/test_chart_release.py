"""Releases of the chart: pod security levels, values that cannot change, conflicts, and the stop hook."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.chart_objects import JOB, Document, documents, kind, merge, one, pods
from cluster.control_plane import Cluster
from cluster.helm_chart import CHART, apply, load_manifests, render
from node.cache import CHECKOUT


def admitted(cluster: Cluster, level: str, spec: Mapping[str, Any]) -> str:
    """Return why a namespace of this pod security level refuses a pod; empty if it admits the pod."""
    name = f"level-{level}"
    if cluster.kubectl("get", "namespace", name, check=False).returncode:
        cluster.kubectl("create", "namespace", name)
        cluster.kubectl("label", "namespace", name, f"pod-security.kubernetes.io/enforce={level}")
        cluster.kubectl("create", "serviceaccount", "any", f"--namespace={name}")
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "tried", "namespace": name},
        "spec": {**spec, "serviceAccountName": "any", "priorityClassName": None},
    }
    done = cluster.kubectl("create", "--dry-run=server", "--filename=-", text=json.dumps(pod), check=False)
    return done.stderr if done.returncode else ""


def test_pods_have_the_pod_security_level_that_the_security_page_documents(cluster: Cluster) -> None:
    rendered = documents(cluster, JOB, {"job": {"reconcileSchedule": "@daily"}}, online=True)
    templates = pods(rendered)
    assert not admitted(cluster, "restricted", one(rendered, "Pod", "-check")["spec"])
    for name in ("install-dispatcher", "cleanup-dispatcher", "reconcile", "stop"):
        assert not admitted(cluster, "restricted", templates[f"kata-deploy-{name}"]["spec"])
    nodes = [spec["spec"] for spec in templates.values() if "hostPath" in json.dumps(spec["spec"])]
    nodes += [
        each["spec"] for each in pods(documents(cluster, {})).values() if "hostPath" in json.dumps(each)
    ]
    # The DaemonSet, and for each container runtime install, its removal, check, cleanup and reconcile.
    assert len(nodes) == 1 + 2 * 5
    for spec in nodes:
        refused = admitted(cluster, "baseline", spec)
        assert "hostPath volumes" in refused
        # hostPath is the only reason: with other volumes the pod is admitted.
        volumes = [
            {"name": each["name"], "emptyDir": {}} if "hostPath" in each else each for each in spec["volumes"]
        ]
        assert not admitted(cluster, "baseline", {**spec, "volumes": volumes})
        labelling = [
            each
            for each in (*spec.get("initContainers", ()), *spec["containers"])
            if each["name"] in ("claim", "label", "unlabel", "unclaim")
        ]
        if labelling:
            alone = {**spec, "volumes": volumes, "containers": labelling, "initContainers": []}
            assert not admitted(cluster, "restricted", alone)


def test_a_release_keeps_its_mode_and_its_suffix_until_it_is_uninstalled(cluster: Cluster) -> None:
    namespace = f"kept-{secrets.token_hex(3)}"
    suffix = secrets.token_hex(3)
    small = {
        "shims": {"disableAll": True, "qemu": {"enabled": True}},
        **JOB,
        "env": {"multiInstallSuffix": suffix},
    }

    def helm(command: str, *values: Document, hooks: bool = False) -> str:
        merged: Document = {}
        for each in values:
            merged = merge(merged, each)
        where = f"--namespace={namespace}"
        flags = [] if hooks else ["--no-hooks"]
        if command == "uninstall":
            return cluster.helm(command, "kept", where, *flags).stdout
        text = json.dumps(merged)
        more = (where, "--create-namespace", "--values=-", *flags)
        done = cluster.helm("upgrade", "--install", "kept", str(CHART), *more, text=text, check=False)
        return done.stderr if done.returncode else ""

    assert not helm("upgrade", small)
    notes = cluster.helm("status", "kept", f"--namespace={namespace}", "--output=table").stdout
    assert "NOTES" in notes
    assert "Kata 4.1.0 is the payload of this release, installed by kata-node 0.1.0 from" in notes
    assert (
        "    quay.io/kata-containers/kata-deploy:4.1.0\n    registry.example.org/kata-node:0.1.0\n" in notes
    )
    assert f"kubectl get nodes -l kata-deploy.katacontainers.io/{suffix}=true" in notes
    assert "kubectl get nodes -L kata-deploy.katacontainers.io/" in notes
    assert ",outcome.kata-deploy.katacontainers.io/" in notes
    assert f"kubectl kata status --release kept --namespace {namespace}" in notes
    assert "deploymentMode: release kept was installed with job" in helm(
        "upgrade", small, {"deploymentMode": "daemonset"}
    )
    assert f'env.multiInstallSuffix: release kept was installed with "{suffix}"' in helm(
        "upgrade", small, {"env": {"multiInstallSuffix": "other"}}
    )
    # If somebody deletes the state object, the other objects of the release tell what is installed.
    cluster.kubectl("delete", "configmap", "kata-deploy-state.kept", f"--namespace={namespace}")
    assert "deploymentMode: release kept was installed with job" in helm(
        "upgrade", small, {"deploymentMode": "daemonset"}
    )
    assert f'env.multiInstallSuffix: release kept was installed with "{suffix}"' in helm(
        "upgrade", small, {"env": {"multiInstallSuffix": "other"}}
    )
    assert "env.installationPrefix: release kept was installed below / and cannot change to /srv" in helm(
        "upgrade", small, {"env": {"installationPrefix": "/srv"}}
    )
    assert not helm("upgrade", small)
    # The Jobs can remove a nydus of an earlier revision even if the values no longer ask for it.
    assert not helm("upgrade", small, {"snapshotter": {"setup": []}, "debug": True})
    kept = cluster.kubectl("get", "configmap", f"--namespace={namespace}", "--output=json")
    [config] = [
        each["data"]["cleanup.yaml"]
        for each in json.loads(kept.stdout)["items"]
        if "cleanup.yaml" in each.get("data", {})
    ]
    assert "/etc/systemd/system" in config
    helm("uninstall")
    assert not helm("upgrade", small, {"deploymentMode": "daemonset", "snapshotter": {"setup": []}})
    cluster.kubectl("delete", "configmap", "kata-deploy-state.kept", f"--namespace={namespace}")
    assert "deploymentMode: release kept was installed with daemonset" in helm("upgrade", small)
    helm("uninstall")
    left = cluster.kubectl(
        "get", "configmaps,jobs,serviceaccounts,roles", f"--namespace={namespace}", "-oname"
    )
    assert set(left.stdout.split()) <= {"configmap/kube-root-ca.crt", "serviceaccount/default"}


def test_two_releases_cannot_be_the_same_installation(cluster: Cluster) -> None:
    first, second = (f"owner-{secrets.token_hex(3)}" for _ in range(2))
    suffix = secrets.token_hex(3)

    def install(namespace: str, suffix: str) -> str:
        # Without RuntimeClasses, because helm detects that conflict by itself.
        values = {**JOB, "runtimeClasses": {"enabled": False}, "env": {"multiInstallSuffix": suffix}}
        more = (f"--namespace={namespace}", "--create-namespace", "--no-hooks", "--values=-")
        done = cluster.helm(
            "upgrade", "--install", "kata", str(CHART), *more, text=json.dumps(values), check=False
        )
        return done.stderr if done.returncode else ""

    assert not install(first, suffix)
    assert not install(first, suffix), "it is its own"
    refused = install(second, suffix)
    assert f'the release {first}/kata (namespace/name) already has the installation "{suffix}"' in refused
    assert not install(second, f"{suffix}-too")
    for namespace in (first, second):
        cluster.helm("uninstall", "kata", "--no-hooks", f"--namespace={namespace}")
    assert not install(second, suffix)
    cluster.helm("uninstall", "kata", "--no-hooks", f"--namespace={second}")


@pytest.mark.parametrize("left", ["DaemonSet", "ConfigMap"])
def test_an_upgrade_of_a_release_of_another_chart_is_refused(
    cluster: Cluster, tmp_path: Path, left: str
) -> None:
    namespace = f"other-{secrets.token_hex(3)}"
    suffix = secrets.token_hex(3)
    daemonset = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": f"kata-deploy-{suffix}"},
        "spec": {
            "selector": {"matchLabels": {"name": "kata-deploy"}},
            "template": {
                "metadata": {"labels": {"name": "kata-deploy"}},
                "spec": {"containers": [{"name": "kube-kata", "image": "example.org/kata-deploy"}]},
            },
        },
    }
    jobs = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"kata-deploy-{suffix}-job-templates"},
    }
    chart = tmp_path / "kata-deploy"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("{apiVersion: v2, name: kata-deploy, version: 3.20.0}\n")
    manifest = daemonset if left == "DaemonSet" else jobs
    (chart / "templates" / "all.yaml").write_text(yaml.safe_dump(manifest))
    where = (f"--namespace={namespace}", "--create-namespace")
    cluster.helm("install", "kata", str(chart), *where)
    values = json.dumps({"env": {"multiInstallSuffix": suffix}, "shims": {"disableAll": True}})
    upgrade = ("upgrade", "kata", str(CHART), "--no-hooks", "--values=-", *where)
    assert "was installed by another chart" in cluster.helm(*upgrade, text=values, check=False).stderr
    cluster.helm("uninstall", "kata", *where[:1])


def test_the_hook_that_stops_the_daemonset_may_delete_only_this_daemonset(
    cluster: Cluster,
) -> None:
    namespace = f"stop-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", namespace)
    suffix = {"env": {"multiInstallSuffix": namespace}}  # no Node of another test has this label
    text = render(cluster, "kata", namespace, values=suffix, only=("stop.yaml",))
    stop = load_manifests(text)
    [job] = kind(stop, "Job")
    apply(cluster, "---\n".join(yaml.safe_dump(each) for each in stop if each is not job))
    pod = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "a"}]}}
    for name in (f"kata-deploy-{namespace}", "another"):
        daemonset = {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": pod},
        }
        apply(cluster, json.dumps(daemonset))
    [container] = job["spec"]["template"]["spec"]["containers"]
    account = f"system:serviceaccount:{namespace}:kata-deploy-{namespace}-stop"
    environment = {**cluster.environment(account), "PYTHONPATH": str(CHECKOUT)}

    def stop_with(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kata_node.dispatcher", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    arguments = container["args"]
    done = stop_with(*arguments)
    assert done.returncode == 0, done.stderr
    left = cluster.kubectl("get", "daemonsets", f"--namespace={namespace}", "--output=name").stdout.split()
    assert left == ["daemonset.apps/another"]
    assert "does not exist" in stop_with(*arguments).stdout  # a second delete succeeds
    others = ["--name=another" if each.startswith("--name=") else each for each in arguments]
    assert "forbidden" in stop_with(*others).stderr

    # It fails if a Node has leftovers of this installation, and names the Node.
    with_another, left_over = f"{namespace}-a", f"{namespace}-b"
    cluster.node(with_another, labels={"kata-deploy.katacontainers.io/other": "true"})
    cluster.node(left_over, labels={f"kata-deploy.katacontainers.io/{namespace}": "false"})
    found = stop_with(*arguments)
    assert found.returncode == 1
    assert left_over in found.stderr
    assert with_another not in found.stderr
    cluster.kubectl("delete", "node", with_another, left_over)
