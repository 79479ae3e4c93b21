"""Every option of the chart's values: what it changes, and which values are refused."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from cluster import programs
from cluster.chart_objects import (
    CUSTOM,
    DIGEST,
    JOB,
    NAMESPACE,
    POD,
    Document,
    documents,
    dry_run,
    merge,
    node_jobs,
    one,
)
from cluster.control_plane import Cluster
from cluster.helm_chart import CHART
from node.commands import CommandFailed

SECRET = {"name": "mine", "digest": "0" * 64}
NAME_IS_WORKER = {"key": "metadata.name", "operator": "In", "values": ["worker-1"]}

FLIPS: dict[str, tuple[Mapping[str, Any], Any]] = {
    # Path -> the values with which it has an effect, and the value to set.
    "deploymentMode": ({}, "job"),
    "desiredState": (JOB, "absent"),
    "gitops": ({}, "argocd"),
    "job.dispatcherImage.reference": (JOB, "registry.example.org:5000/dispatcher"),
    "job.dispatcherImage.tag": (JOB, DIGEST),
    "job.nodes": (JOB, ["worker-1"]),
    "job.nodeSelector": (JOB, {"a": "b"}),
    "job.nodeSelectorExpressions": (JOB, []),
    "job.parallelism": (JOB, 3),
    "job.waitForNodesSeconds": (JOB, 0),
    "job.nodeSettleSeconds": (JOB, 0),
    "job.waitNodeReadySeconds": (JOB, 60),
    "job.backoffLimit": (JOB, 0),
    "job.activeDeadlineSeconds": (JOB, 60),
    "job.deadlineSeconds": (JOB, 270),
    "job.ttlSecondsAfterFinished": (JOB, 60),
    "job.rollout.canary": (JOB, 2),
    "job.rollout.waveSize": (JOB, "25%"),
    "job.rollout.maxFailures": (JOB, 0),
    "job.waitForReadySeconds": (JOB, 0),
    "job.maxNotReady": (JOB, 0),
    "job.unfitNodes": ({}, "fail"),
    "job.events": (JOB, False),
    "job.reconcileSchedule": (JOB, "@hourly"),
    "job.dispatcherNodeSelector": (JOB, {"node-role.kubernetes.io/control-plane": ""}),
    "job.dispatcherTolerations": (JOB, [{"operator": "Exists"}]),
    "job.dispatcherResources": (JOB, {"limits": {"memory": "1Gi"}}),
    "job.cleanup.force": (JOB, True),
    "job.cleanup.nodes": (JOB, ["worker-1"]),
    "job.cleanup.nodeSelector": (JOB, {"a": "b"}),
    "job.cleanup.nodeSelectorExpressions": (JOB, []),
    "job.cleanup.nodeAffinity": (
        JOB,
        {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchFields": [NAME_IS_WORKER]}]
            }
        },
    ),
    "imagePullPolicy": ({}, "IfNotPresent"),
    "imagePullSecrets": (JOB, [{"name": "secret"}]),
    "image.reference": ({}, f"example.org/kata@{DIGEST}"),
    "image.tag": ({}, "4.2.0"),
    "image.kataVersion": ({}, "4.2.0"),
    "image.volume": (JOB, "never"),
    "image.registry": ({}, "mirror.example.org"),
    "nodeImage.reference": (JOB, f"example.org/kata-node@{DIGEST}"),
    "nodeImage.tag": ({}, "0.2.0"),
    "devkit": ({"debug": True}, True),
    "monitor.enabled": ({}, True),
    "monitor.image.reference": ({"monitor": {"enabled": True}}, "example.org/monitor"),
    "monitor.image.tag": ({"monitor": {"enabled": True}}, "4.2.0"),
    "monitor.listenAddress": ({"monitor": {"enabled": True}}, "127.0.0.1:8090"),
    "networkPolicy.enabled": ({"monitor": {"enabled": True}}, True),
    "networkPolicy.scrapers": (
        {"monitor": {"enabled": True}, "networkPolicy": {"enabled": True}},
        [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
    ),
    "monitor.runtimeEndpoint": ({"monitor": {"enabled": True}}, "unix:///run/crio/crio.sock"),
    "monitor.logLevel": ({"monitor": {"enabled": True}}, "debug"),
    "monitor.port": ({"monitor": {"enabled": True}}, 8091),
    "monitor.securityContext": ({"monitor": {"enabled": True}}, {"readOnlyRootFilesystem": False}),
    "monitor.resources": ({"monitor": {"enabled": True}}, {"limits": {"cpu": "1"}}),
    "kubectlImage.reference": ({}, "example.org/kubectl"),
    "kubectlImage.tag": ({}, "1.37"),
    "k8sDistribution": ({}, "rke2"),
    "containerRuntime": ({}, "crio"),
    "containerd.configDir": ({}, "/etc/my-containerd/"),
    "containerd.configFileName": ({}, "mine.toml"),
    "containerd.runtimeSocket": ({}, "unix:///run/mine/containerd.sock"),
    "containerd.userDropIn": ({}, "a = 1"),
    "containerd.userDropInSecret.name": ({"containerd": {"userDropInSecret": {"digest": "0" * 64}}}, "mine"),
    "containerd.userDropInSecret.key": ({"containerd": {"userDropInSecret": SECRET}}, "other.toml"),
    "containerd.userDropInSecret.digest": ({"containerd": {"userDropInSecret": SECRET}}, "1" * 64),
    "containerd.extraPodAnnotations": ({}, ["example.org/*"]),
    "nodeSelector": (JOB, {"a": "b"}),
    "tolerations": (JOB, [{"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"}]),
    "startupTaints": ({}, ["example.org/a:NoSchedule", "example.org/b"]),
    "podLabels": (JOB, {"a": "b"}),
    "podAnnotations": (JOB, {"a": "b"}),
    "affinity": ({}, {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}),
    "priorityClassName": ({}, ""),
    "updateStrategy": ({}, {"type": "OnDelete", "rollingUpdate": None}),
    "resources": (JOB, {"limits": {"memory": "1Gi"}}),
    "runningPods.waitSeconds": ({}, 60),
    "runningPods.ignore": (JOB, True),
    "debug": ({}, True),
    "logLevel": ({}, "warn"),
    "health.port": ({}, 9000),
    "health.startupProbe.enabled": ({}, False),
    "health.livenessProbe.enabled": ({}, False),
    "health.readinessProbe.enabled": ({}, False),
    "snapshotter.setup": (JOB, []),
    "snapshotter.erofsMergeMode": ({}, "unmerged"),
    "snapshotter.erofsSnapshotterMode": ({}, "memory"),
    "snapshotter.erofsDmverity": ({}, True),
    "shims.disableAll": ({}, True),
    "shims.qemu.enabled": ({}, False),
    "shims.qemu.supportedArches": ({}, ["arm64"]),
    "shims.qemu.dropIn": ({}, "[agent.kata]\ndial_timeout = 999\n"),
    "shims.qemu.allowedHypervisorAnnotations": ({}, ["default_vcpus"]),
    "shims.qemu.containerd.snapshotter": ({}, "nydus"),
    "shims.qemu.containerd.forceGuestPull": ({}, True),
    "shims.qemu.containerd.extraPodAnnotations": ({}, ["example.org/*"]),
    "shims.qemu.crio.guestPull": ({}, True),
    "shims.qemu.agent.httpsProxy": ({}, "http://proxy"),
    "shims.qemu.agent.noProxy": ({}, "example.org"),
    "shims.qemu-nvidia-gpu.nvrc.enableDCGM": ({}, True),
    "shims.qemu.runtimeClass.nodeSelector": ({}, {"a": "b"}),
    "shims.qemu.runtimeClass.overhead": ({}, {"memory": "1Gi", "example.org/keys": "1"}),
    "shims.qemu.runtimeClass.overheadEnabled": ({}, False),
    "defaultShim": ({}, {"amd64": "clh"}),
    "runtimeClasses.enabled": ({}, False),
    "runtimeClasses.createDefault": ({}, True),
    "runtimeClasses.defaultName": ({"runtimeClasses": {"createDefault": True}}, "kata-default"),
    "runtimeClasses.overheadEnabled": ({}, False),
    "env.installationPrefix": (JOB, "/mnt/data"),
    "env.multiInstallSuffix": ({}, "blue"),
    "node-feature-discovery.enabled": ({}, True),
    "nodeFeatureRules.create": ({}, True),
    "verification.namespace": ({"verification": {"pod": POD}}, NAMESPACE),
    "verification.timeout": ({"verification": {"pod": POD}}, 7),
    "verification.daemonsetTimeout": ({}, 7),
    "verification.pod": ({}, POD),
    "customRuntimes.enabled": ({"customRuntimes": CUSTOM | {"enabled": False}}, True),
    "customRuntimes.runtimes": ({"customRuntimes": {"enabled": True}}, CUSTOM["runtimes"]),
    "selinux.type": (JOB, "spc_t"),
    "appArmor.type": (JOB, "Unconfined"),
    "rbac.admissionPolicy": ({}, "never"),
    "rbac.labelsBy": (JOB, "dispatcher"),
}

REFUSED = {"env.hostOS": "cbl-mariner"}
"""Values that the schema allows and this release refuses."""


def at(path: str, value: object) -> Document:
    """Return values with only the key ``path``."""
    nested: Any = value
    for key in reversed(path.split(".")):
        nested = {key: nested}
    return dict(nested)


def options(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Return the keys of the chart's values that the table must contain."""
    for key, value in values.items():
        where = f"{path}.{key}".lstrip(".")
        if where in FLIPS or not (isinstance(value, dict) and value):
            yield where
        elif path == "shims":
            yield "shims.qemu"  # stands for all shims
        elif where.endswith("Probe"):
            yield f"{where}.enabled"
        else:
            yield from options(value, where)


def test_the_table_covers_every_key_of_the_values() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert not [
        path
        for path in options(values)
        if path not in {**FLIPS, **REFUSED} and not any(each.startswith(f"{path}.") for each in FLIPS)
    ]


NEW_CLUSTER, OLD_CLUSTER = "--kube-version=1.35.0", "--kube-version=1.34.0"
"""Clusters that mount images as volumes, and that do not."""

WITHOUT_EFFECT = ["verification.daemonsetTimeout", "kubectlImage.reference", "kubectlImage.tag"]
if programs.kubernetes_release() < (1, 35):
    WITHOUT_EFFECT.append("image.volume")  # the harness sets it to `never` there


@pytest.mark.parametrize("path", FLIPS)
def test_each_option_changes_the_rendered_objects_and_the_api_server_accepts_them(
    cluster: Cluster, path: str
) -> None:
    base, value = FLIPS[path]
    policies = {"rbac": {"admissionPolicy": "always"}}
    before = documents(cluster, base, policies)
    after = documents(cluster, base, policies, at(path, value))
    assert (before != after) == (path not in WITHOUT_EFFECT)
    changed = [each for each in after if each not in before]
    had = [copy.deepcopy(each["spec"]) for each in node_jobs(before)]
    dry_run(cluster, [*changed, *(job for job in node_jobs(after) if job["spec"] not in had)] or after[:1])


def expression(operator: str, *values: str) -> Document:
    return {
        **JOB,
        "job": {"nodeSelectorExpressions": [{"key": "a", "operator": operator, "values": [*values]}]},
    }


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param({"shimz": {}}, "shimz", id="an unknown key"),
        pytest.param({"env": {"shims": "qemu"}}, "env.shims: is a key of an older chart", id="an old key"),
        pytest.param(
            {"nodeBinaries": {"a": {}}}, "nodeBinaries: is a key of another chart", id="a key of others"
        ),
        pytest.param({"shims": {"qemo": {"enabled": True}}}, "qemo", id="an unknown shim"),
        pytest.param({"deploymentMode": "jobs"}, "deploymentMode", id="an unknown mode"),
        pytest.param(
            expression("In"), "job.nodeSelectorExpressions.0..values: In needs", id="In without values"
        ),
        pytest.param(expression("Exists", "b"), "takes no values", id="Exists with values"),
        pytest.param(expression("Gt", "1"), "is none of In, NotIn, Exists, DoesNotExist", id="an operator"),
        pytest.param({**JOB, "job": {"ttlSecondsAfterFinished": 5}}, "set 60 or more", id="a short life"),
        pytest.param({**JOB, "job": {"rollout": {"waveSize": 0}}}, "at least one node", id="an empty wave"),
        pytest.param(
            {**JOB, "nodeSelector": {"a": "b"}, "job": {"nodeSelector": {"a": "c"}}},
            "no node has both",
            id="selectors",
        ),
        pytest.param({"image": {"reference": ""}}, "image.reference: is empty", id="no image"),
        pytest.param(
            {"nodeImage": {"reference": ""}},
            r"nodeImage\.reference: is empty, and quay\.io/kata-containers/kata-deploy has the Kata files "
            r"but not kata-node; build and push the images with `scripts/image --push REGISTRY`, and set "
            r"nodeImage.reference to REGISTRY/kata-node",
            id="the public image alone",
        ),
        pytest.param(
            {**JOB, "job": {"dispatcherImage": {"reference": ""}}},
            r"job\.dispatcherImage\.reference: is empty; build and push the images with "
            r"`scripts/image --push REGISTRY`, and set job\.dispatcherImage\.reference to REGISTRY/",
            id="no dispatcher",
        ),
        pytest.param({"image": {"registry": "https://r.example.org"}}, "/image/registry", id="a URL"),
        pytest.param({"image": {"volume": "yes"}}, "image/volume|image.volume", id="a wrong volume"),
        pytest.param({"image": {"reference": "a:b", "tag": "c"}}, "remove the tag c", id="two tags"),
        pytest.param({"image": {"reference": f"a@{DIGEST}", "tag": "b"}}, "remove the tag b", id="both"),
        pytest.param({"image": {"tag": "sha256:12"}}, "is not a complete digest", id="half a digest"),
        pytest.param(
            {"k8sDistribution": "k3s", "containerRuntime": "crio"},
            "k3s always runs containerd",
            id="k3s, crio",
        ),
        pytest.param({"containerd": {"configDir": "etc"}}, "not an absolute path", id="a relative path"),
        pytest.param({"containerd": {"configDir": "/a/.."}}, "a directory of the system", id="the root"),
        pytest.param(
            {"containerd": {"runtimeSocket": "unix:///c.sock"}},
            "a directory of the system",
            id="a socket there",
        ),
        *(
            pytest.param(at(key, value), f"{key}: ", id=f"{key}={value}")
            for key, value in (
                *(("env.installationPrefix", each) for each in ("/", "//etc/", "/var", "/run/x", "/home/x")),
                *(("containerd.configDir", each) for each in ("/etc/", "/opt", "/usr/lib/x", "/var/run")),
                ("containerd.runtimeSocket", "unix:///var/run/c.sock"),
            )
        ),
        pytest.param(
            {"monitor": {"enabled": True, "runtimeEndpoint": "unix:///run/c.sock"}},
            "monitor.runtimeEndpoint: unix:///run/c.sock would give the pods /run",
            id="the socket of the monitor",
        ),
        pytest.param({"env": {"installationPrefix": "mnt"}}, "not an absolute path", id="a relative prefix"),
        pytest.param(
            {"containerd": {"userDropIn": "a = 1", "userDropInSecret": SECRET}},
            "containerd.userDropInSecret.name: containerd.userDropIn is set too",
            id="two drop-ins",
        ),
        pytest.param({"startupTaints": ["a:Never"]}, "neither `key` nor `key:effect`", id="an effect"),
        pytest.param(
            {"resources": {"limits": {"memory": "1Gb"}}}, "resources/limits/memory", id="a quantity"
        ),
        pytest.param({"runtimeClasses": {"defaultName": "Kata_1"}}, "defaultName", id="a name"),
        pytest.param(
            {"snapshotter": {"erofsSnapshotterMode": "integrity"}}, "erofsDmverity: true", id="another word"
        ),
        pytest.param(
            {"shims": {"qemu-runtime-rs": {"hypervisor": {"rootless": True}}}},
            "shims.qemu-runtime-rs.hypervisor.rootless: is not supported in this release",
            id="rootless",
        ),
        *(
            pytest.param(at(key, value), f"{key}: is not supported in this", id=key)
            for key, value in REFUSED.items()
        ),
        pytest.param(
            {"runtimeClasses": {"createDefault": True}, "shims": {"disableAll": True}},
            "is enabled",
            id="no default",
        ),
        pytest.param(
            {"runtimeClasses": {"createDefault": True, "defaultName": "kata-qemu"}},
            "kata-qemu is the RuntimeClass of shims.qemu",
            id="a taken name",
        ),
        pytest.param(
            {
                "customRuntimes": {
                    "enabled": True,
                    "runtimes": {"a": {"baseConfig": "qemu", "runtimeClass": "a: b"}},
                }
            },
            "is not a RuntimeClass",
            id="no manifest",
        ),
        pytest.param({"verification": {"pod": "kind: Pod"}}, "metadata.name and a spec", id="no pod"),
        pytest.param(
            {"verification": {"pod": POD.replace("kata-tried", "''")}}, "would not run in Kata", id="no Kata"
        ),
        pytest.param(
            {"env": {"multiInstallSuffix": "a" * 40}}, "choose a shorter suffix", id="a long suffix"
        ),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_key_and_the_remedy(
    cluster: Cluster, values: Document, says: str
) -> None:
    with pytest.raises(CommandFailed, match=says):
        documents(cluster, values)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        pytest.param({}, "registry.example.org/kata-deploy-job-dispatcher:0.1.0", id="by default"),
        pytest.param({"tag": "1.37"}, "registry.example.org/kata-deploy-job-dispatcher:1.37", id="a tag"),
        pytest.param(
            {"reference": "r.example.org:5000/kubectl"}, "r.example.org:5000/kubectl:0.1.0", id="a port"
        ),
        pytest.param({"reference": "example.org/kubectl:1.37"}, "example.org/kubectl:1.37", id="all in one"),
        pytest.param({"reference": f"k@{DIGEST}"}, f"k@{DIGEST}", id="a digest"),
        pytest.param({"reference": "k", "tag": DIGEST}, f"k@{DIGEST}", id="a digest for a tag"),
    ],
)
def test_an_image_can_be_given_in_one_key_or_two(cluster: Cluster, image: Document, expected: str) -> None:
    stop = one(documents(cluster, {"job": {"dispatcherImage": image}}, online=True), "Job", "stop")
    assert stop["spec"]["template"]["spec"]["containers"][0]["image"] == expected


NO_REFERENCES = {"nodeImage": {"reference": ""}, "job": {"dispatcherImage": {"reference": ""}}}


@pytest.mark.parametrize(
    ("values", "images"),
    [
        pytest.param(
            {**NO_REFERENCES, "monitor": {"enabled": True}},
            [
                "m.example.org:5000/team/kata-containers/kata-deploy:4.1.0",
                "m.example.org:5000/team/kata-containers/kata-monitor:4.1.0",
                "m.example.org:5000/team/kata-deploy-job-dispatcher:0.1.0",
                "m.example.org:5000/team/kata-node:0.1.0",
            ],
            id="the registry alone",
        ),
        pytest.param(
            {
                "nodeImage": {"reference": "kata-node", "tag": DIGEST},
                "image": {"reference": f"localhost/a/kata@{DIGEST}"},
                "job": {"dispatcherImage": {"reference": "r.example.org:5000/a/dispatcher:1"}},
            },
            [
                "m.example.org:5000/team/a/dispatcher:1",
                f"m.example.org:5000/team/a/kata@{DIGEST}",
                f"m.example.org:5000/team/kata-node@{DIGEST}",
            ],
            id="digests and ports",
        ),
        pytest.param(
            {
                "nodeImage": {"reference": ""},
                "image": {"reference": "team/both", "tag": "1"},
                "job": {"dispatcherImage": {"reference": "r.example.org/k8s-job-dispatcher", "tag": "2"}},
            },
            [
                "m.example.org:5000/team/kata-deploy-job-dispatcher:0.1.0",
                "m.example.org:5000/team/team/both:1",
            ],
            id="one image of both, and the dispatcher of the public chart",
        ),
    ],
)
def test_one_registry_moves_all_images(cluster: Cluster, values: Document, images: list[str]) -> None:
    registry = {"image": {"registry": "m.example.org:5000/team/"}}
    text = json.dumps(merge(merge(JOB, registry), values))
    rendered = cluster.helm("template", "kata", str(CHART), NEW_CLUSTER, "--values=-", text=text).stdout
    assert sorted(set(re.findall(r"(?m)^ *(?:image|reference): +(\S+)$", rendered))) == images


@pytest.mark.parametrize(
    ("values", "version", "mounts"),
    [
        pytest.param({}, NEW_CLUSTER, True, id="1.35"),
        pytest.param({"image": {"volume": "always"}}, OLD_CLUSTER, True, id="the feature gate is on"),
        pytest.param({"image": {"volume": "never"}}, OLD_CLUSTER, False, id="one image of both"),
        pytest.param(
            {"nodeImage": None, "image": {"reference": "r.example.org/both"}},
            OLD_CLUSTER,
            False,
            id="no nodeImage",
        ),
    ],
)
@pytest.mark.parametrize("mode", [{}, JOB], ids=["daemonset", "job"])
def test_the_pods_mount_the_payload_if_it_is_another_image(
    cluster: Cluster, mode: Document, values: Document, version: str, mounts: bool
) -> None:
    text = json.dumps(merge(mode, values))
    rendered = cluster.helm("template", "kata", str(CHART), version, "--values=-", text=text).stdout
    assert ("mountPath: /opt/kata-payload" in rendered) is mounts
    assert ("reference: quay.io/kata-containers/kata-deploy:4.1.0" in rendered) is mounts


def test_a_cluster_that_mounts_no_images_is_refused_with_both_ways(cluster: Cluster) -> None:
    done = cluster.helm("template", "kata", str(CHART), OLD_CLUSTER, check=False)
    assert done.returncode
    for way in ("scripts/image --payload-image", "image.volume: never", "image.volume: always"):
        assert way in done.stderr


def test_helm_asks_the_cluster_whether_it_mounts_images(cluster: Cluster) -> None:
    # On a cluster before 1.35 the harness sets image.volume: never.
    auto = ("--dry-run=server", "--set=image.volume=auto")
    done = cluster.helm("template", "kata", str(CHART), *auto, check=False)
    if programs.kubernetes_release() >= (1, 35):
        assert "reference: quay.io/kata-containers/kata-deploy:4.1.0" in done.stdout
    else:
        assert f"Kubernetes {cluster.kubernetes} does not mount images as volumes by default" in done.stderr
        assert "set image.volume: never" in done.stderr
        done = cluster.helm("template", "kata", str(CHART), "--dry-run=server")
        assert "reference: quay.io" not in done.stdout


def test_settings_of_a_disabled_shim_are_accepted(cluster: Cluster) -> None:
    off = {"enabled": False, "hypervisor": {"rootless": True}}
    assert documents(cluster, {"shims": {"qemu-runtime-rs": off}})


def test_the_monitor_has_only_the_rights_of_its_values(cluster: Cluster) -> None:
    def context(**given: object) -> Document:
        values = {"monitor": {"enabled": True, "securityContext": given}}
        rendered = documents(cluster, values)
        dry_run(cluster, [one(rendered, "DaemonSet", "-monitor")])
        [container] = one(rendered, "DaemonSet", "-monitor")["spec"]["template"]["spec"]["containers"]
        return dict(container["securityContext"])

    tight = context()
    assert tight["capabilities"] == {"drop": ["ALL"]}
    assert tight["allowPrivilegeEscalation"] is False
    assert tight["readOnlyRootFilesystem"] is True
    assert tight["seccompProfile"] == {"type": "RuntimeDefault"}
    assert context(readOnlyRootFilesystem=False)["readOnlyRootFilesystem"] is False
    assert context(privileged=True)["privileged"] is True
