"""The objects that helm renders from the chart's values, validated by a real API server."""

from __future__ import annotations

import hashlib
import json
import secrets
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.chart_objects import (
    CUSTOM,
    EXAMPLES,
    JOB,
    NAMESPACE,
    POD,
    Document,
    dispatcher_configs,
    documents,
    dry_run,
    job_for,
    kind,
    node_jobs,
    one,
    pods,
)
from cluster.control_plane import Cluster
from cluster.helm_chart import CHART, apply
from kata_node.dispatcher.check import parse
from kata_node.runtime.model.distributions import DISTRIBUTION_RUNTIMES

WORKERS = "!node-role.kubernetes.io/control-plane,!node-role.kubernetes.io/master"
LINUX = "kubernetes.io/os notin (windows)"
BASES = {
    "daemonset": {},
    "job": JOB,
    **EXAMPLES,
    "crio": {**JOB, "containerRuntime": "crio"},
    "k3s": {**JOB, "k8sDistribution": "k3s"},
    "suffix": {**JOB, "env": {"multiInstallSuffix": "blue"}, "debug": True},
    "everything": {
        **JOB,
        "debug": True,
        "customRuntimes": CUSTOM,
        "monitor": {"enabled": True},
        "job": {"reconcileSchedule": "*/15 * * * *", "rollout": {"canary": 1, "waveSize": "10%"}},
        "verification": {"pod": POD},
        "runtimeClasses": {"createDefault": True},
        "node-feature-discovery": {"enabled": True},
    },
}


def variables(document: Any, name: str) -> set[str]:
    """Return all values of an environment variable, at any depth of the document."""
    if isinstance(document, dict):
        found = {document["value"]} if document.get("name") == name and "value" in document else set()
        return found.union(*(variables(each, name) for each in document.values()))
    if isinstance(document, list):
        return set().union(*(variables(each, name) for each in document))
    return set()


BLANK_LINES = {"shims": {"qemu": {"enabled": True, "dropIn": "# end\n\n\n"}}}


@pytest.mark.parametrize(
    "base",
    [*BASES.values(), {**JOB, **BLANK_LINES}, BLANK_LINES],
    ids=[*BASES, "blank job", "blank daemonset"],
)
def test_every_pod_knows_the_digest_of_the_configuration_that_it_reads(
    cluster: Cluster, base: Document
) -> None:
    rendered = documents(cluster, base, online=True)
    files = {
        name: hashlib.sha256(text.encode()).hexdigest()
        for each in rendered
        if each["kind"] == "ConfigMap" and each["metadata"]["name"].endswith(("-dispatcher", "-node"))
        for name, text in each["data"].items()
    }
    pods_and_jobs = [*rendered, *(node_jobs(rendered) if kind(rendered, "ConfigMap", "-dispatcher") else ())]
    assert variables(pods_and_jobs, "KATA_NODE_CONFIG_DIGEST") == {files.pop("values.yaml")}
    assert variables(rendered, "KATA_DISPATCHER_CONFIG_DIGEST") == set(files.values())


@pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())
def test_the_api_server_accepts_every_object_and_every_node_job(cluster: Cluster, base: Document) -> None:
    rendered = documents(cluster, base, online=True)
    dry_run(cluster, [*rendered, *node_jobs(rendered)])


@pytest.mark.parametrize("example", [{}, *EXAMPLES.values()], ids=["values.yaml", *EXAMPLES])
def test_helm_lint_finds_nothing(cluster: Cluster, example: Document) -> None:
    for mode in (JOB, {"deploymentMode": "daemonset"}):
        cluster.helm("lint", "--strict", str(CHART), "--values=-", text=json.dumps({**example, **mode}))


@pytest.mark.parametrize(
    ("values", "selection"),
    [
        pytest.param(
            {},
            {"labelSelector": f"{WORKERS},{LINUX}"},
            id="the default",
        ),
        pytest.param({"nodes": ["a", "b"], "nodeSelector": {"c": "d"}}, {"nodes": ["a", "b"]}, id="names"),
        pytest.param({"nodeSelectorExpressions": []}, {"labelSelector": LINUX}, id="all"),
        pytest.param(
            {
                "nodeSelector": {"a": "b"},
                "nodeSelectorExpressions": [
                    {"key": "c", "operator": "In", "values": ["d", "e"]},
                    {"key": "f", "operator": "NotIn", "values": ["g"]},
                    {"key": "h", "operator": "Exists"},
                    {"key": "i", "operator": "DoesNotExist"},
                ],
            },
            {"labelSelector": f"a=b,c in (d,e),f notin (g),h,!i,{LINUX}"},
            id="everything",
        ),
    ],
)
def test_the_nodes_are_chosen_by_name_or_by_one_label_selector(
    cluster: Cluster, values: Document, selection: Document
) -> None:
    assert (
        dispatcher_configs(documents(cluster, JOB, {"job": values}))["install.yaml"]["selection"] == selection
    )
    cleanup = dispatcher_configs(documents(cluster, JOB, {"job": {"cleanup": values}}))["cleanup.yaml"][
        "selection"
    ]
    expected = {"labelSelector": f"katacontainers.io/kata-runtime,{LINUX}"} if not values else selection
    if values and "nodeSelectorExpressions" not in values and "nodes" not in values:
        expected = selection
    assert cleanup == expected


def test_no_pod_is_scheduled_on_a_windows_node(cluster: Cluster) -> None:
    rendered = [*documents(cluster, JOB, {"job": {"nodeSelectorExpressions": []}}), *documents(cluster, {})]
    for name, pod in pods(rendered).items():
        spec = pod["spec"]
        # The scheduler checks the selector; where the dispatcher sets nodeName, the kubelet does.
        system = spec["os"]["name"] if "nodeName" in spec else spec["nodeSelector"]["kubernetes.io/os"]
        assert system == "linux", name
    mark = f"os-{secrets.token_hex(3)}"
    for system in ("linux", "windows", ""):
        labels = {mark: "", **({"kubernetes.io/os": system} if system else {})}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": mark + system, "labels": labels}}
        apply(cluster, json.dumps(node))
    selector = dispatcher_configs(rendered)["install.yaml"]["selection"]["labelSelector"]
    found = cluster.kubectl("get", "nodes", f"--selector={mark},{selector}", "--output=name").stdout.split()
    cluster.kubectl("delete", "nodes", f"--selector={mark}")
    assert found == [f"node/{mark}", f"node/{mark}linux"]


@pytest.mark.parametrize("runtime", ["containerd", "cri-o"])
@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("install.yaml", ["host-check", "claim", "artifacts", "cri", "label"]),
        ("cleanup.yaml", ["unlabel", "revert-cri", "remove-artifacts", "unclaim"]),
    ],
)
def test_a_job_has_its_stages_in_order_each_with_its_mounts_and_rights(
    cluster: Cluster, file: str, stages: list[str], runtime: str
) -> None:
    job = job_for(dispatcher_configs(documents(cluster, JOB))[file], runtime)
    pod = job["spec"]["template"]["spec"]
    containers = [*pod["initContainers"], *pod["containers"]]
    assert [each["args"] for each in containers] == [["stage", name] for name in stages]
    assert len(pod["containers"]) == 1
    assert pod["automountServiceAccountToken"] is False
    host = {each["name"] for each in pod["volumes"] if "hostPath" in each}
    for each in containers:
        mounts = {mount["name"] for mount in each["volumeMounts"]}
        labels = each["name"] in ("claim", "label", "unlabel", "unclaim")
        assert bool(mounts & host) != labels
        assert ("credentials" in mounts) == labels
        context = each["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context.get("privileged", False) is False
        assert context["capabilities"]["drop"] == ["ALL"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not labels or (context["runAsNonRoot"] and "add" not in context["capabilities"])
    [first, lost, _] = job["spec"]["podFailurePolicy"]["rules"]
    assert (first["action"], first["onExitCodes"]["values"]) == ("FailJob", [2, 3, 4])
    assert (lost["action"], lost["onExitCodes"]["values"]) == ("Ignore", [255])


@pytest.mark.parametrize("runtime", ["containerd", "cri-o"])
def test_the_job_that_looks_for_running_pods_cannot_write_on_the_node(cluster: Cluster, runtime: str) -> None:
    check = dispatcher_configs(documents(cluster, JOB))["cleanup.yaml"]["check"]
    job = job_for(check, runtime)
    pod = job["spec"]["template"]["spec"]
    assert not pod.get("initContainers")
    [container] = pod["containers"]
    assert container["args"] == ["stage", "check-pods"]
    host = {each["name"] for each in pod["volumes"] if "hostPath" in each}
    mounts = [each for each in container["volumeMounts"] if each["name"] in host]
    assert mounts
    assert all(each["readOnly"] for each in mounts)
    assert "credentials" not in {each["name"] for each in container["volumeMounts"]}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]}
    assert job["spec"]["backoffLimit"] == 0
    for skipped in ({"runningPods": {"ignore": True}}, {"job": {"cleanup": {"force": True}}}):
        assert "check" not in dispatcher_configs(documents(cluster, JOB, skipped))["cleanup.yaml"]


@pytest.mark.parametrize(
    "home", DISTRIBUTION_RUNTIMES, ids=lambda home: f"{home.distribution}, {home.runtime}"
)
def test_each_stage_mounts_the_directories_that_it_works_in(cluster: Cluster, home: Any) -> None:
    values = {"k8sDistribution": home.distribution}
    config = dispatcher_configs(documents(cluster, JOB, values))["install.yaml"]
    pod = job_for(config, home.runtime)["spec"]["template"]["spec"]
    [cri] = [each for each in pod["initContainers"] if each["name"] == "cri"]
    seen = [each["mountPath"].removeprefix("/host") for each in cri["volumeMounts"]]
    for path in (home.config, home.socket, *home.template.values(), *home.drop_in_dirs.values(), "/opt/kata"):
        assert any(f"{path}/".startswith(f"{each}/") for each in seen), path
    assert {"/run/kata-node", "/etc/machine-id", "/run/dbus"} <= set(seen)
    others = {other.config.rpartition("/")[0] for other in DISTRIBUTION_RUNTIMES} - {
        home.config.rpartition("/")[0]
    }
    assert not others & set(seen)


def test_the_unit_directory_is_mounted_only_for_stages_that_set_up_nydus(cluster: Cluster) -> None:
    def seen(runtime: str, setup: list[str]) -> bool:
        values = {"snapshotter": {"setup": setup}}
        config = dispatcher_configs(documents(cluster, JOB, values))["install.yaml"]
        return "/etc/systemd/system" in json.dumps(job_for(config, runtime))

    assert seen("containerd", ["nydus"])
    assert not seen("containerd", [])
    assert not seen("cri-o", ["nydus"])


@pytest.mark.parametrize(
    ("values", "runtimes"),
    [
        pytest.param({}, ["containerd", "cri-o"], id="auto"),
        pytest.param({"containerRuntime": None}, ["containerd", "cri-o"], id="nothing"),
        pytest.param({"containerRuntime": "containerd"}, ["containerd"], id="containerd"),
        pytest.param({"containerRuntime": "crio"}, ["cri-o"], id="crio"),
        pytest.param({"k8sDistribution": "rke2"}, ["containerd"], id="a distribution that brings its own"),
    ],
)
def test_there_is_a_job_template_for_each_container_runtime(
    cluster: Cluster, values: Any, runtimes: list[str]
) -> None:
    for config in dispatcher_configs(documents(cluster, JOB, values)).values():
        for part in filter(None, (config, config.get("removed"), config.get("check"))):
            assert [each["runtime"] for each in part["templates"]] == runtimes


def test_a_daemonset_is_for_containerd_by_default(cluster: Cluster) -> None:
    explicit = documents(cluster, {"containerRuntime": "containerd"})
    assert documents(cluster, {"containerRuntime": "auto"}) == explicit
    assert documents(cluster, {"containerRuntime": "crio"}) != explicit


def test_the_dispatcher_accepts_the_rendered_configurations(cluster: Cluster, tmp_path: Path) -> None:
    module = pytest.importorskip("kata_node.dispatcher.config")
    careful = {"rollout": {"canary": 2, "waveSize": "25%", "maxFailures": 3}, "reconcileSchedule": "@daily"}
    rendered = documents(cluster, JOB, {"job": careful})
    read = {}
    for name, config in dispatcher_configs(rendered).items():
        (tmp_path / name).write_text(yaml.safe_dump(config))
        read[name] = module.load(tmp_path / name)
    assert [(name, read[name].action, read[name].skip_serving) for name in sorted(read)] == [
        ("cleanup.yaml", "cleanup", False),
        ("install.yaml", "install", False),
        ("reconcile.yaml", "install", True),
    ]
    assert read["install.yaml"].canary == 2
    assert read["install.yaml"].removed
    assert not read["reconcile.yaml"].removed
    # The dispatchers adopt each other's Jobs.
    assert read["install.yaml"].name_prefix == read["reconcile.yaml"].name_prefix
    assert read["install.yaml"].job_selector() == read["cleanup.yaml"].job_selector()


def test_job_mode_has_no_daemonset_and_daemonset_mode_has_no_job_objects(cluster: Cluster) -> None:
    jobs, daemonset = documents(cluster, JOB, online=True), documents(cluster, {}, online=True)
    assert not kind(jobs, "DaemonSet")
    assert not kind(jobs, "CronJob")
    assert not kind(daemonset, "ConfigMap", "-dispatcher")
    assert [each["metadata"]["name"] for each in kind(daemonset, "Job")] == ["kata-deploy-stop"]


def test_hooks_run_after_the_objects_that_they_need(cluster: Cluster) -> None:
    more = {"job": {"reconcileSchedule": "@daily"}, "verification": {"pod": POD}}
    rendered = documents(cluster, JOB, more, online=True)
    hooks = {}
    for each in rendered:
        annotations = each["metadata"].get("annotations", {})
        if "helm.sh/hook" in annotations:
            hooks[each["metadata"]["name"]] = (
                each["kind"],
                annotations["helm.sh/hook"],
                int(annotations["helm.sh/hook-weight"]),
            )
    assert hooks == {
        "kata-deploy-install-dispatcher": ("Job", "post-install,post-upgrade,post-rollback", 0),
        "kata-deploy-check": ("Pod", "test", 0),
        "verify": ("Pod", "post-install,post-upgrade,post-rollback", 100),
        "kata-deploy-stop": ("Job", "pre-delete", -10),
        "kata-deploy-cleanup-dispatcher": ("Job", "pre-delete", 0),
    }
    dispatcher = one(rendered, "Job", "install-dispatcher")
    assert [rule["action"] for rule in dispatcher["spec"]["podFailurePolicy"]["rules"]] == [
        "Ignore",
        "FailJob",
    ]
    assert dispatcher["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    assert dispatcher["metadata"]["annotations"]["helm.sh/hook-delete-policy"] == "before-hook-creation"


def test_the_dispatcher_may_only_list_nodes_and_manage_jobs(cluster: Cluster) -> None:
    rendered = documents(cluster, JOB, {"job": {"events": False}})
    assert one(rendered, "ClusterRole", "-dispatcher")["rules"] == [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch", "patch"]}
    ]
    role = one(rendered, "Role", "-dispatcher")
    assert role["metadata"]["namespace"] == NAMESPACE
    assert {resource for rule in role["rules"] for resource in rule["resources"]} == {
        "configmaps",
        "jobs",
        "pods",
    }
    [pods] = [rule for rule in role["rules"] if rule["resources"] == ["pods"]]
    assert not {"create", "delete", "patch", "update"} & set(pods["verbs"])
    [state] = [rule for rule in role["rules"] if rule["resources"] == ["configmaps"]]
    assert (state["resourceNames"], state["verbs"]) == (["kata-deploy-state.kata"], ["get", "patch"])


@pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())
def test_the_pod_of_helm_test_may_only_read(cluster: Cluster, base: Document) -> None:
    rendered = documents(cluster, base, online=True)
    assert one(rendered, "ClusterRole", "-check")["rules"] == [
        {"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}
    ]
    assert one(rendered, "Role", "-check")["rules"] == [
        {
            "apiGroups": [""],
            "resources": ["configmaps"],
            "resourceNames": ["kata-deploy-state.kata"],
            "verbs": ["get"],
        }
    ]
    pod = one(rendered, "Pod", "-check")["spec"]
    assert pod["serviceAccountName"] == one(rendered, "ServiceAccount", "-check")["metadata"]["name"]
    [nodes] = [each["value"] for each in pod["containers"][0]["env"] if each["name"].endswith("_NODES")]
    assert parse(nodes).installation_label.startswith("kata-deploy.katacontainers.io/")
    assert not kind(documents(cluster, base), "Pod", "-check")


def test_the_dispatcher_may_create_events_unless_the_values_say_otherwise(cluster: Cluster) -> None:
    rendered = kind(documents(cluster, JOB), "Role", "-dispatcher")
    [role] = [each for each in rendered if each["metadata"]["namespace"] == "default"]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}]
    without = documents(cluster, JOB, {"job": {"events": False}})
    namespaces = [each["metadata"]["namespace"] for each in kind(without, "Role", "-dispatcher")]
    assert "default" not in namespaces
    assert "default" not in [
        each["metadata"]["namespace"] for each in kind(without, "RoleBinding", "-dispatcher")
    ]


@pytest.mark.parametrize("length", [1, 19, 20, 40, 63])
def test_names_are_valid_with_every_suffix_and_differ_for_suffixes_with_the_same_beginning(
    cluster: Cluster, length: int
) -> None:
    names = []
    shim = {"shims": {"disableAll": True}, "job": {"reconcileSchedule": "@daily"}}
    for last in "ab":
        rendered = documents(cluster, JOB, shim, {"env": {"multiInstallSuffix": "x" * (length - 1) + last}})
        for config in dispatcher_configs(rendered).values():
            assert len(config["namePrefix"]) <= 40
        names.append(
            {
                *(each["metadata"]["name"] for each in kind(rendered, "Job")),
                *(each["metadata"]["name"] for each in kind(rendered, "CronJob")),
                *(config["namePrefix"] for config in dispatcher_configs(rendered).values()),
            }
        )
        assert all(len(each["metadata"]["name"]) <= 63 for each in kind(rendered, "Job"))
        assert len(one(rendered, "CronJob")["metadata"]["name"]) <= 52
    assert not names[0] & names[1]
