"""The chart's RuntimeClasses: one for each served handler, scheduled to the nodes that serve it."""

from __future__ import annotations

import contextlib
import copy
import json
import secrets
from pathlib import Path
from typing import Any

import pytest

from cluster.chart_objects import CUSTOM, EXAMPLES, GATE, Document, documents, kind, one, prepare
from cluster.control_plane import Cluster
from cluster.helm_chart import apply
from kata_node.errors import SettingsError
from kata_node.settings import handlers
from kata_node.settings import load as settings
from kata_node.settings.shims import MACHINES, table
from node.commands import CommandFailed

SETTINGS = {
    "the defaults": {},
    **EXAMPLES,
    "debug": {"debug": True},
    "suffix and debug": {"env": {"multiInstallSuffix": "blue"}, "debug": True},
    "disabled but one": {"shims": {"disableAll": True, "clh": {"enabled": True}}},
    "one switched off": {"shims": {"qemu": {"enabled": False}, "remote": {"enabled": True}}},
    "one taken out": {"shims": {"qemu": None}},
    "nowhere": {"shims": {"qemu": {"supportedArches": []}}},
    "custom": {"customRuntimes": CUSTOM, "debug": True},
    "custom alone": {"shims": {"disableAll": True}, "customRuntimes": CUSTOM},
    "custom, switched off": {"customRuntimes": CUSTOM | {"enabled": False}},
}


@pytest.mark.parametrize("values", SETTINGS.values(), ids=SETTINGS.keys())
def test_there_is_a_runtime_class_for_each_served_handler_and_no_other(
    cluster: Cluster, values: Document, tmp_path: Path
) -> None:
    rendered = documents(cluster, values)
    given = tmp_path / "values.yaml"
    given.write_text(one(rendered, "ConfigMap", "-node")["data"]["values.yaml"])
    served = set()
    for arch in MACHINES.values():
        with contextlib.suppress(SettingsError):  # none of these shims supports the architecture
            served |= set(handlers.handler_names(settings.load(str(given), overrides={}, arch=arch)))
    classes = kind(rendered, "RuntimeClass")
    assert {each["handler"] for each in classes} == served
    assert {each["metadata"]["name"] for each in classes} == served


def test_every_character_of_a_value_reaches_the_node(cluster: Cluster) -> None:
    text = "".join(map(chr, (*range(1, 0x100), 0x2028, 0xFEFF, 0xFFFE, 0xFFFF)))
    config = one(documents(cluster, {"containerd": {"userDropIn": text}}), "ConfigMap", "-node")
    assert json.loads(config["data"]["values.yaml"])["containerd"]["userDropIn"] == text


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({}, GATE, id="by default"),
        pytest.param({"a": "b"}, {**GATE, "a": "b"}, id="more"),
        pytest.param(dict.fromkeys(GATE, "false"), GATE, id="less"),
    ],
)
def test_no_node_selector_overrides_the_kata_labels(
    cluster: Cluster, values: dict[str, str], expected: dict[str, str]
) -> None:
    given = {"shims": {"qemu": {"runtimeClass": {"nodeSelector": values}}}}
    classes = documents(cluster, given)
    [qemu] = [each for each in kind(classes, "RuntimeClass") if each["metadata"]["name"] == "kata-qemu"]
    assert qemu["scheduling"]["nodeSelector"] == expected


def test_a_custom_runtime_adds_its_selector_to_the_kata_labels_and_inherits_the_overhead(
    cluster: Cluster,
) -> None:
    mine = one(documents(cluster, {"customRuntimes": CUSTOM}), "RuntimeClass", "kata-mine")
    assert mine["scheduling"]["nodeSelector"] == {**GATE, "a": "b"}
    assert mine["overhead"]["podFixed"]["memory"] == table()["qemu"].overhead.memory
    without = copy.deepcopy(CUSTOM)
    without["runtimes"]["mine"]["inheritBaseOverhead"] = False  # type: ignore[index]
    assert "overhead" not in one(documents(cluster, {"customRuntimes": without}), "RuntimeClass", "kata-mine")


def test_confidential_guests_select_nodes_by_node_feature_discovery_if_it_is_installed(
    cluster: Cluster,
) -> None:
    prepare(cluster)
    values = {"shims": {"qemu-tdx": {"runtimeClass": {"nodeSelector": {"by": "hand"}}}}}

    def selectors(*more: Document) -> dict[str, Any]:
        classes = kind(documents(cluster, values, *more, online=True), "RuntimeClass")
        return {each["metadata"]["name"]: each["scheduling"]["nodeSelector"] for each in classes}

    labels = {
        "kata-qemu-snp": "amd.feature.node.kubernetes.io/snp",
        "kata-qemu-se": "feature.node.kubernetes.io/cpu-security.se.enabled",
        "kata-qemu-snp-runtime-rs": "amd.feature.node.kubernetes.io/snp",
        "kata-qemu-tdx-runtime-rs": "intel.feature.node.kubernetes.io/tdx",
    }
    assert all(selectors()[name] == GATE for name in labels)
    part_of_it = selectors({"node-feature-discovery": {"enabled": True}})
    name = f"node-feature-discovery-{secrets.token_hex(3)}"
    cluster.kubectl("create", "namespace", name)
    pod = {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a", "image": "a"}]}}
    worker = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "node-feature-discovery-worker", "namespace": name},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": pod},
    }
    apply(cluster, json.dumps(worker))
    found = selectors()
    for shims in ({}, {"shims": {"disableAll": True}}):
        with pytest.raises(CommandFailed, match=f"in the namespace {name}, and two would"):
            selectors(shims, {"node-feature-discovery": {"enabled": True}})
    cluster.kubectl("delete", "namespace", name, "--wait=false")
    cluster.kubectl("delete", "daemonset", "node-feature-discovery-worker", f"--namespace={name}")
    for those in (part_of_it, found):
        assert {name: those[name] for name in labels} == {
            name: {**GATE, label: "true"} for name, label in labels.items()
        }
        assert those["kata-qemu-tdx"] == {**GATE, "by": "hand"}
        assert those["kata-qemu"] == GATE


def test_the_default_class_is_for_the_default_shim_and_only_without_a_suffix(cluster: Cluster) -> None:
    asked = {"runtimeClasses": {"createDefault": True}}
    [default] = [
        each for each in kind(documents(cluster, asked), "RuntimeClass") if each["metadata"]["name"] == "kata"
    ]
    assert default["handler"] == "kata-qemu-runtime-rs"
    suffixed = documents(cluster, asked, {"env": {"multiInstallSuffix": "blue"}})
    assert all(each["metadata"]["name"].endswith("-blue") for each in kind(suffixed, "RuntimeClass"))
