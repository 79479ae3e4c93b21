"""The chart's objects for the containers that label a Node: names, values, and admission policies."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from cluster.control_plane import Cluster
from cluster.helm_chart import CHART, load_manifests, render
from cluster.labeller import TEMPLATES, LabellerRelease
from node.commands import CommandFailed, wait_until


@pytest.fixture(scope="module")
def installation(cluster: Cluster) -> LabellerRelease:
    return LabellerRelease(cluster, "kata-checked", "least-checked").apply()


def test_releases_share_no_object_unless_they_have_the_same_namespace_and_suffix(cluster: Cluster) -> None:
    def objects(release: str, namespace: str, suffix: str = "") -> set[tuple[str, ...]]:
        values = {"env": {"multiInstallSuffix": suffix}}
        documents = load_manifests(render(cluster, release, namespace, values=values, only=TEMPLATES))
        return {
            (each["kind"], each["metadata"].get("namespace", ""), each["metadata"]["name"])
            for each in documents
            if each
        }

    several = [
        objects("kata-deploy", "kube-system"),
        objects("kata-deploy", "other"),
        objects("second", "kube-system", "second"),
        objects("kata-deploy", "kube-system", "third"),
        objects("b.c", "a"),
        objects("c", "a-b"),
    ]
    assert len(set().union(*several)) == sum(len(each) for each in several) == 6 * 11


def test_the_api_server_reports_no_type_error_in_the_policies(
    cluster: Cluster, installation: LabellerRelease
) -> None:
    def policies() -> list[Any]:
        read = json.loads(cluster.kubectl("get", "validatingadmissionpolicies", "--output=json").stdout)
        return [
            each
            for each in read["items"]
            if each["metadata"]["name"].endswith(f".{installation.namespace}.{installation.release}")
        ]

    def checked() -> bool:
        return all(
            each.get("status", {}).get("observedGeneration") == each["metadata"]["generation"]
            for each in policies()
        )

    wait_until(checked, "the types were checked")
    assert len(policies()) == 3
    for policy in policies():
        assert not policy["status"]["typeChecking"].get("expressionWarnings"), policy["status"]


@pytest.mark.parametrize(
    ("setting", "online", "there"),
    [
        pytest.param("auto", True, True, id="auto, known to the cluster"),
        pytest.param("auto", False, True, id="auto, without a cluster"),
        pytest.param("always", False, True, id="always"),
        pytest.param("never", True, False, id="never"),
    ],
)
def test_the_policies_are_rendered_unless_disabled(
    cluster: Cluster, setting: str, online: bool, there: bool
) -> None:
    rendered = render(cluster, "kata", "kata", values={"rbac": {"admissionPolicy": setting}}, online=online)
    made = load_manifests(rendered)
    kinds = [each["kind"] for each in made if each["metadata"]["name"].startswith("kata-deploy-labeller")]
    assert kinds.count("ValidatingAdmissionPolicy") == (3 if there else 0)
    assert kinds.count("ValidatingAdmissionPolicyBinding") == (3 if there else 0)
    assert kinds.count("ClusterRole") == 1


@pytest.mark.parametrize(
    "values",
    [
        pytest.param("deploymentMode=daemonset", id="daemonset"),
        pytest.param("deploymentMode=job,rbac.labelsBy=node", id="job, with a token on each node"),
    ],
)
def test_an_old_cluster_is_refused_unless_the_policies_are_disabled(cluster: Cluster, values: str) -> None:
    old = ("--kube-version=1.29.0", f"--set={values}", "--set=image.volume=never")
    refused = cluster.helm("template", "kata", str(CHART), *old, check=False)
    assert refused.returncode != 0
    assert "rbac.admissionPolicy: Kubernetes v1.29.0 has no ValidatingAdmissionPolicy" in refused.stderr
    rendered = cluster.helm("template", "kata", str(CHART), *old, "--set=rbac.admissionPolicy=never").stdout
    assert "kind: ValidatingAdmissionPolicy" not in rendered


@pytest.mark.parametrize(
    ("version", "values", "by_dispatcher"),
    [
        pytest.param("1.29.0", {}, True, id="before 1.30"),
        pytest.param("1.30.0", {}, False, id="1.30"),
        pytest.param("1.37.0", {"admissionPolicy": "never"}, True, id="never"),
        pytest.param("1.29.0", {"admissionPolicy": "always"}, False, id="always"),
        pytest.param("1.37.0", {"labelsBy": "dispatcher"}, True, id="asked for"),
        pytest.param("1.29.0", {"labelsBy": "node", "admissionPolicy": "never"}, False, id="risk accepted"),
    ],
)
def test_where_no_policy_limits_a_token_no_pod_on_a_node_has_one(
    cluster: Cluster, version: str, values: dict[str, str], by_dispatcher: bool
) -> None:
    given = {"deploymentMode": "job", "image": {"volume": "never"}, "rbac": values}
    how = (f"--kube-version={version}", "--values=-", "--namespace=kata")
    rendered = cluster.helm("template", "kata", str(CHART), *how, text=json.dumps(given)).stdout
    made = load_manifests(rendered)
    [files] = [
        each["data"]
        for each in made
        if each["kind"] == "ConfigMap" and each["metadata"]["name"] == "kata-deploy-dispatcher"
    ]
    for text in files.values():
        assert ("labelNodes" in yaml.safe_load(text)) is by_dispatcher
        assert ("serviceAccountToken" in text) is not by_dispatcher
    rights = {
        each["metadata"]["name"].split(".")[0]: {
            verb
            for rule in each["rules"]
            if rule["resources"] == ["nodes"] and rule["apiGroups"] == [""]
            for verb in rule["verbs"]
        }
        for each in made
        if each["kind"] == "ClusterRole"
    }
    assert rights["kata-deploy-labeller"] == (set() if by_dispatcher else {"get", "patch"})
    has_policies = "kind: ValidatingAdmissionPolicy" in rendered
    assert ("patch" in rights["kata-deploy-dispatcher"]) is (by_dispatcher or has_policies)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param({"rbac": {"admissionPolicy": "yes"}}, "none of auto, always, never", id="the setting"),
        pytest.param({"startupTaints": ["a:Never"]}, "neither `key` nor `key:effect`", id="a taint"),
        pytest.param({"env": {"multiInstallSuffix": "A_b"}}, "cannot be part of a name", id="the suffix"),
        pytest.param({"env": {"multiInstallSuffix": "default"}}, "choose another", id="a taken suffix"),
        pytest.param({"env": {"multiInstallSuffix": "a" * 64}}, "has 64 characters", id="a long suffix"),
    ],
)
def test_helm_refuses_invalid_values_with_the_key(
    cluster: Cluster, values: dict[str, Any], says: str
) -> None:
    with pytest.raises(CommandFailed, match=says) as failed:
        render(cluster, "kata", "kata", values=values)
    [key] = values
    assert key in str(failed.value)


def test_keys_without_a_value_are_ignored(cluster: Cluster) -> None:
    empty = {"env": None, "startupTaints": None, "rbac": None}
    with_them = render(cluster, "kata", "kata", only=TEMPLATES)
    assert render(cluster, "kata", "kata", values=empty, only=TEMPLATES) == with_them


def test_without_startup_taints_no_taint_can_be_removed(cluster: Cluster) -> None:
    rendered = render(cluster, "kata", "kata", only=("labeller-admission.yaml",))
    assert "expression: '[]'" in rendered
    cluster.kubectl("apply", "--dry-run=server", "--filename=-", text=rendered)


def test_helm_lint_finds_nothing(cluster: Cluster) -> None:
    cluster.helm("lint", "--strict", str(CHART))
