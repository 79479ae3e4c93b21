"""Whole values files of the public chart, through helm and this chart, and then through an install."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import values_table
from cluster.chart_objects import JOB, dry_run, kind, node_jobs, one
from cluster.control_plane import Cluster
from cluster.helm_chart import CHART, load_manifests
from kata_node.settings.load import read_settings
from node.cache import CHECKOUT
from node.commands import CommandResult
from node.installation import make_payload
from node.whole_values import FILES, LEFT_OUT, SERVED, node_values

MODES = {"daemonset": {"deploymentMode": "daemonset"}, "job": JOB}
RUNTIMES = ("containerd://1.6.20", "containerd://1.7.24", "containerd://2.1.9", "cri-o://1.36.3")


@pytest.fixture(scope="session")
def payload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A payload with all shims of amd64."""
    directory = tmp_path_factory.mktemp("payload") / "all"
    return make_payload(directory, "--form=tarballs", "--arch=x86_64", "--size=3MiB")


def template(cluster: Cluster, path: Path, *more: str) -> list[dict[str, Any]]:
    """Return the objects that helm renders from the file as it is, with its nulls."""
    text = cluster.helm("template", "kata", str(CHART), f"--values={path}", *more).stdout
    return load_manifests(text)


def run_node(root: Path, payload: Path, values: Path, runtime: str, command: str) -> dict[str, Any]:
    """Run ``kata-node`` on the files of a scratch root, and return its document with the exit code."""
    arguments = [sys.executable, "-P", "-m", "kata_node", *command.split(), "--offline", "--output=json"]
    arguments += [f"--host-root={root}", f"--payload={payload}", f"--runtime={runtime}", f"--config={values}"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment)
    return {**json.loads(done.stdout), "code": done.returncode}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_renders_and_its_nodes_install(
    cluster: Cluster, payload: Path, tmp_path: Path, name: str, mode: str
) -> None:
    rendered = template(cluster, FILES[name], f"--set=deploymentMode={mode}")
    dry_run(cluster, [*rendered, *node_jobs(rendered)])
    classes = {each["metadata"]["name"] for each in kind(rendered, "RuntimeClass")}
    assert {"kata-qemu", "kata-clh", "kata-qemu-snp", "kata-qemu-se"} < classes
    assert not {"kata-fc", "kata-remote", "kata-stratovirt"} & classes
    values = tmp_path / "values.yaml"
    values.write_text(one(rendered, "ConfigMap", "-node")["data"]["values.yaml"])
    # helm keeps some nulls, which mean the same as no key.
    by_helm, by_tests = (
        read_settings(each, overrides={}, arch="x86_64")
        for each in (yaml.safe_load(values.read_text()), node_values(FILES[name]))
    )
    assert by_helm == by_tests
    for runtime in RUNTIMES if mode == "job" else RUNTIMES[2:3]:
        root = tmp_path / runtime.replace("/", "-")
        (root / "opt").mkdir(parents=True)
        kind_of_runtime = runtime.partition(":")[0]
        directory = root / ("etc/containerd" if kind_of_runtime == "containerd" else "etc/crio")
        directory.mkdir(parents=True)
        if kind_of_runtime == "containerd":
            schema = 2 if "//1." in runtime else 3
            (directory / "config.toml").write_text(f"version = {schema}\n")
        checked = run_node(root, payload, values, runtime, "stage host-check")
        done = run_node(root, payload, values, runtime, "install")
        print(f"{name} | {mode} | {runtime} | host-check {checked['code']}, install {done['code']}")
        assert (checked["code"], done["code"]) == (0, 0), (checked, done)
        receipt = json.loads((root / "opt/kata/.kata-node/receipt.json").read_text())
        assert len(receipt["cri"]["handlers"]) == SERVED[kind_of_runtime]
        left_out = next(stage.get("left_out", ()) for stage in done["stages"] if stage["stage"] == "cri")
        assert (set(left_out) > LEFT_OUT) == (kind_of_runtime == "containerd")
        assert run_node(root, payload, values, runtime, "plan")["code"] == 0


@pytest.fixture(scope="session")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> values_table.Nodes:
    scratch = tmp_path_factory.mktemp("nodes")
    return values_table.Nodes(make_payload(scratch / "payload", *values_table.PAYLOAD), scratch)


@pytest.mark.parametrize("name", values_table.examples())
def test_the_table_of_the_documents_is_what_helm_and_nodes_do(
    cluster: Cluster, nodes: values_table.Nodes, name: str
) -> None:
    def helm(arguments: Sequence[str]) -> CommandResult:
        return cluster.helm(*arguments, check=False)

    text = values_table.examples()[name]
    found = list(values_table.rows(name, text, helm=helm, nodes=nodes))
    assert found == values_table.documented(name), "run scripts/values-table"


def test_all_refusals_of_a_render_are_in_one_message(cluster: Cluster, tmp_path: Path) -> None:
    wrong = {
        **JOB,
        "image": {"reference": ""},
        "env": {"multiInstallSuffix": "default", "hostOS": "cbl-mariner"},
        "job": {
            "ttlSecondsAfterFinished": 5,
            "dispatcherImage": {"reference": "ghcr.io/example/k8s-job-dispatcher"},
            "nodeSelectorExpressions": [{"key": "a", "operator": "In"}],
        },
        "containerd": {"configDir": "relative"},
        "customRuntimes": {
            "enabled": True,
            "runtimes": {"x": {"baseConfig": "qemu", "runtimeClass": "a: b"}},
        },
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": []}]}
            }
        },
    }
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(wrong))
    done = cluster.helm("template", "kata", str(CHART), f"--values={path}", check=False)
    assert done.returncode != 0
    for key in (
        "env.hostOS:",
        "image.reference:",
        "env.multiInstallSuffix:",
        "job.ttlSecondsAfterFinished:",
        "job.dispatcherImage.reference:",
        "job.nodeSelectorExpressions[0].values:",
        "containerd.configDir:",
        "customRuntimes.runtimes.x.runtimeClass:",
        "affinity.nodeAffinity.",
    ):
        assert f"\n  {key}" in done.stderr, key


@pytest.mark.parametrize("mode", MODES)
def test_a_null_is_the_same_as_an_absent_key(cluster: Cluster, tmp_path: Path, mode: str) -> None:
    shims = yaml.safe_load((CHART / "values.yaml").read_text())["shims"]
    nulls = {name: {"enabled": None} for name in shims if name != "disableAll"}
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({**MODES[mode], "shims": nulls}))
    default = template(cluster, tmp_path / "values.yaml")
    path.write_text(yaml.safe_dump(MODES[mode]))
    names = [
        [each["metadata"]["name"] for each in kind(these, "RuntimeClass")]
        for these in (default, template(cluster, path))
    ]
    assert names[0] == names[1]


@pytest.mark.parametrize(("create", "books"), [("auto", False), (True, True), (False, False)])
def test_keys_of_confidential_guests_are_advertised_and_booked_together(
    cluster: Cluster, create: object, *, books: bool, tmp_path: Path
) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump({"nodeFeatureRules": {"create": create}}))
    rendered = template(cluster, path)
    [snp] = [each for each in kind(rendered, "RuntimeClass") if each["handler"] == "kata-qemu-snp"]
    assert ("sev-snp.amd.com/esids" in snp["overhead"]["podFixed"]) == books
    rules = kind(rendered, "NodeFeatureRule")
    assert bool(rules) == books
    if rules:
        resources = [each["extendedResources"] for each in rules[0]["spec"]["rules"]]
        assert [list(each) for each in resources] == [["sev-snp.amd.com/esids"], ["tdx.intel.com/keys"]]
    dry_run(cluster, rendered)


def test_labels_of_the_daemonset_mode_can_be_booleans(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text("{}")
    keys = ("nodeSelector.a", "podAnnotations.d", "podLabels.e", "shims.qemu.runtimeClass.nodeSelector.b")
    sets = ("nodeSelector.c=7", "monitor.enabled=true", *(f"{key}=true" for key in keys))
    rendered = template(cluster, path, *(f"--set={each}" for each in sets))
    dry_run(cluster, rendered)
    pods = [each["spec"]["template"] for each in kind(rendered, "DaemonSet")]
    assert len(pods) == 2
    for pod in pods:
        selector = pod["spec"]["nodeSelector"]
        assert (selector["a"], selector["c"]) == ("true", "7")
    [installing] = [pod for pod in pods if "d" in pod["metadata"].get("annotations", {})]
    assert installing["metadata"]["annotations"]["d"] == installing["metadata"]["labels"]["e"] == "true"
    [qemu] = [each for each in kind(rendered, "RuntimeClass") if each["handler"] == "kata-qemu"]
    assert qemu["scheduling"]["nodeSelector"]["b"] == "true"


def test_labels_of_the_job_mode_can_be_booleans(cluster: Cluster, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(JOB))
    keys = ("job.nodeSelector.a", "job.dispatcherNodeSelector.b", "job.cleanup.nodeSelector.c")
    rendered = template(cluster, path, *(f"--set={key}=true" for key in keys))
    dry_run(cluster, rendered)
    files = one(rendered, "ConfigMap", "-dispatcher")["data"]
    selectors = [
        yaml.safe_load(files[name])["selection"]["labelSelector"].split(",")
        for name in ("install.yaml", "cleanup.yaml")
    ]
    assert "a=true" in selectors[0]
    assert "c=true" in selectors[1]
    pod = one(rendered, "Job", "install-dispatcher")["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["b"] == "true"


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ({"tag": "4.1.0"}, "4.1.0"),
        ({"reference": "r.example.org:5000/kata:4.1.0@sha256:" + "0" * 64}, "4.1.0"),
        ({"tag": "sha256:" + "0" * 64}, None),
        ({"tag": "sha256:" + "0" * 64, "kataVersion": "4.1.0"}, "4.1.0"),
        ({"tag": "2026-08", "kataVersion": "4.1.0"}, "4.1.0"),
    ],
)
def test_runtime_classes_name_the_version_of_kata(
    cluster: Cluster, tmp_path: Path, image: dict[str, str], version: str | None
) -> None:
    manifest = "{kind: RuntimeClass, apiVersion: node.k8s.io/v1, metadata: {name: own}, handler: own}"
    runtimes = {"own": {"baseConfig": "qemu", "runtimeClass": manifest}}
    path = tmp_path / "values.yaml"
    path.write_text(
        yaml.safe_dump({"image": image, "customRuntimes": {"enabled": True, "runtimes": runtimes}})
    )
    classes = kind(template(cluster, path), "RuntimeClass")
    found = [
        each["metadata"].get("annotations", {}).get("katacontainers.io/kata-version")
        for each in classes
        if each["handler"] in ("own", "kata-qemu")
    ]
    assert found == [version, version]


def test_debug_with_the_devkit_has_a_third_runtime_class_where_kata_builds_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    path = tmp_path / "values.yaml"
    names = ("qemu", "qemu-runtime-rs", "qemu-snp", "clh")
    shims: dict[str, Any] = {"disableAll": True, **{name: {"enabled": True} for name in names}}
    shims["qemu-runtime-rs"]["supportedArches"] = ["s390x"]
    for values in ({"debug": True, "devkit": True}, {"devkit": True}):
        path.write_text(yaml.safe_dump({**values, "shims": shims, "env": {"multiInstallSuffix": "blue"}}))
        found = {each["handler"] for each in kind(template(cluster, path), "RuntimeClass")}
        assert {each for each in found if "devkit" in each} == (
            {"kata-qemu-devkit-blue"} if values.get("debug") else set()
        )
