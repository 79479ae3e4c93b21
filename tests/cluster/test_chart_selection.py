"""Which nodes a release selects: label selector, node affinity and tolerations, in both modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.chart_objects import JOB, Document, dispatcher_configs, documents, dry_run, one
from cluster.control_plane import Cluster
from cluster.helm_chart import CHART
from kata_node.dispatcher import config as dispatcher_config
from node.commands import CommandFailed

WORKERS = "!node-role.kubernetes.io/control-plane,!node-role.kubernetes.io/master"
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
LINUX = "kubernetes.io/os notin (windows)"
DISCOVERY = {"node-feature-discovery": {"enabled": True}}


def needs(key: str, operator: str, *values: object) -> Document:
    return {"key": key, "operator": operator, **({"values": list(values)} if values else {})}


def term(*expressions: Document, **more: object) -> Document:
    return {"matchExpressions": list(expressions), **more}


def required(*terms: Document) -> Document:
    return {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}


def affinity(*terms: Document) -> Document:
    return {"affinity": {"nodeAffinity": required(*terms)}}


ZONE = term(needs("topology.kubernetes.io/zone", "In", "a"))
NAMED = {"matchFields": [needs("metadata.name", "In", "worker-1")]}


def job_selection(cluster: Cluster, *values: Document, file: str = "install.yaml") -> Document:
    return dict(dispatcher_configs(documents(cluster, JOB, *values))[file]["selection"])


def pod_of_daemonset(cluster: Cluster, *values: Document) -> Document:
    rendered = documents(cluster, *values)
    [daemonset] = [
        each for each in rendered if each["kind"] == "DaemonSet" and each["metadata"]["name"] == "kata-deploy"
    ]
    dry_run(cluster, [daemonset])
    return dict(daemonset["spec"]["template"]["spec"])


def test_both_modes_select_by_the_same_affinity(cluster: Cluster, tmp_path: Path) -> None:
    memory = term(needs("memory", "Gt", "32"))
    values = {"nodeSelector": {"pool": "kata"}, **affinity(ZONE, memory, NAMED)}
    assert job_selection(cluster, values) == {
        "labelSelector": f"pool=kata,{WORKERS},{LINUX}",
        "nodeSelectorTerms": [ZONE, memory, NAMED],
    }
    pod = pod_of_daemonset(cluster, values)
    assert pod["affinity"] == values["affinity"]
    assert pod["nodeSelector"] == {"pool": "kata", "kubernetes.io/os": "linux"}
    for name, config in dispatcher_configs(documents(cluster, JOB, values)).items():
        (tmp_path / name).write_text(yaml.safe_dump(config))
        assert len(dispatcher_config.load(tmp_path / name).terms) == (0 if name == "cleanup.yaml" else 3)


def test_all_keys_that_select_nodes_apply_together(cluster: Cluster) -> None:
    job = {"nodeSelector": {"a": "b"}, "nodeSelectorExpressions": [needs("c", "Exists")]}
    assert job_selection(cluster, {"nodeSelector": {"pool": "kata"}, "job": job, **affinity(ZONE)}) == {
        "labelSelector": f"a=b,pool=kata,c,{LINUX}",
        "nodeSelectorTerms": [ZONE],
    }


def test_named_nodes_go_before_every_other_selection(cluster: Cluster) -> None:
    values = {"nodeSelector": {"kubernetes.io/os": "windows"}, **affinity(ZONE), "job": {"nodes": ["w1"]}}
    assert job_selection(cluster, values) == {"nodes": ["w1"]}


def test_an_affinity_that_selects_no_nodes_stays_as_it_is(cluster: Cluster) -> None:
    spread: Document = {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}
    assert job_selection(cluster, {"affinity": spread}) == {"labelSelector": f"{WORKERS},{LINUX}"}
    assert pod_of_daemonset(cluster, {"affinity": spread})["affinity"] == spread


TOLERATION = {"tolerations": [{"key": CONTROL_PLANE, "operator": "Exists", "effect": "NoSchedule"}]}


@pytest.mark.parametrize(
    ("values", "selector"),
    [
        pytest.param(
            {"nodeSelector": {CONTROL_PLANE: ""}, **TOLERATION}, f"{CONTROL_PLANE}=,", id="selector"
        ),
        pytest.param({"job": {"nodeSelector": {CONTROL_PLANE: ""}}}, f"{CONTROL_PLANE}=,", id="job selector"),
        pytest.param(TOLERATION, "", id="toleration"),
        pytest.param(affinity(term(needs(CONTROL_PLANE, "DoesNotExist"))), "", id="affinity"),
        pytest.param(
            {"nodeSelector": {"node-role.kubernetes.io/master": ""}},
            "node-role.kubernetes.io/master=,",
            id="the older name",
        ),
        pytest.param(
            {"tolerations": [{"operator": "Exists"}]}, f"{WORKERS},", id="a toleration without a key"
        ),
        pytest.param(
            {"tolerations": [{"key": "a", "operator": "Exists"}]}, f"{WORKERS},", id="another toleration"
        ),
    ],
)
def test_workers_are_the_default_only_while_nothing_names_the_control_plane(
    cluster: Cluster, values: Document, selector: str
) -> None:
    assert job_selection(cluster, values)["labelSelector"] == f"{selector}{LINUX}"


def test_the_expressions_that_the_chart_takes_for_defaults_are_those_of_the_values(cluster: Cluster) -> None:
    """A default that only one of the two places has would always apply."""
    job: Any = yaml.safe_load((CHART / "values.yaml").read_text())["job"]
    assert [each["key"] for each in job["nodeSelectorExpressions"]] == [
        CONTROL_PLANE,
        "node-role.kubernetes.io/master",
    ]
    own = {"job": {"nodeSelectorExpressions": job["nodeSelectorExpressions"][:1]}}
    with pytest.raises(CommandFailed, match="no node can have"):
        job_selection(cluster, {"nodeSelector": {CONTROL_PLANE: ""}}, own)


def test_an_uninstall_selects_by_the_affinity_instead_of_the_default_label(cluster: Cluster) -> None:
    def cleanup(**keys: object) -> Document:
        return job_selection(cluster, {"job": {"cleanup": keys}}, file="cleanup.yaml")

    mark = term(needs("katacontainers.io/kata-runtime", "Exists"))
    assert cleanup(nodeAffinity=required(mark)) == {"labelSelector": LINUX, "nodeSelectorTerms": [mark]}
    assert cleanup(nodeAffinity=required(NAMED), nodeSelector={"a": "b"}) == {
        "labelSelector": f"a=b,{LINUX}",
        "nodeSelectorTerms": [NAMED],
    }
    both = cleanup(nodeAffinity=required(NAMED), nodeSelectorExpressions=[needs("a", "Exists")])
    assert both["labelSelector"] == f"a,{LINUX}"
    assert cleanup(nodeAffinity={}) == {"labelSelector": f"katacontainers.io/kata-runtime,{LINUX}"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param(affinity(), "nodeSelectorTerms: has no requirement", id="no term"),
        pytest.param(affinity({}), "nodeSelectorTerms: has no requirement", id="an empty term"),
        pytest.param(
            affinity({"matchExpression": []}),
            "additional properties 'matchExpression' not allowed",
            id="a typing error",
        ),
        pytest.param(
            affinity(term(needs("a", "In"))),
            r"nodeSelectorTerms\[0\].matchExpressions\[0\].values: In needs",
            id="In nothing",
        ),
        pytest.param(
            affinity(term(needs("a", "Is", "b"))), "Is is none of In, NotIn, .*, Gt, Lt", id="an operator"
        ),
        pytest.param(affinity(term(needs("a", "Gt", "many"))), "Gt needs one whole number", id="Gt a word"),
        pytest.param(
            affinity({"matchFields": [needs("spec.name", "In", "a")]}),
            "the field metadata.name only",
            id="a field",
        ),
        pytest.param(
            affinity(term(needs("a", "In", "b"), needs("a", "DoesNotExist"))),
            r"no node can have a In \(b\) and a DoesNotExist",
            id="a label that is there and not there",
        ),
        pytest.param(
            {"nodeSelector": {"a": "c"}, **affinity(term(needs("a", "In", "b")))},
            "no node can have a In",
            id="selector and affinity",
        ),
        pytest.param(
            {"nodeSelector": {"a": "b"}, **affinity(term(needs("a", "NotIn", "b")))},
            "a NotIn",
            id="NotIn the only value",
        ),
        pytest.param(
            affinity(term(needs("n", "Gt", "3"), needs("n", "Lt", "4"))),
            "n Gt .3. and n Lt .4.",
            id="no number between",
        ),
        pytest.param(
            affinity(term(needs("n", "Gt", 3), needs("n", "In", "3"))),
            "n Gt .3. and n In .3.",
            id="a number that is too small",
        ),
        pytest.param(
            {"nodeSelector": {"kubernetes.io/os": "windows"}}, "kubernetes.io/os", id="Windows nodes"
        ),
        pytest.param(
            {"nodeSelector": {"kubernetes.io/arch": "riscv64"}, **DISCOVERY},
            "riscv64",
            id="an architecture without Kata",
        ),
    ],
)
@pytest.mark.parametrize("mode", ["job", "daemonset"])
def test_a_selection_that_can_match_no_node_is_refused_in_both_modes(
    cluster: Cluster, values: Document, says: str, mode: str
) -> None:
    with pytest.raises(CommandFailed, match=says):
        documents(cluster, {"deploymentMode": mode}, values)


def test_a_cleanup_that_can_match_no_node_is_refused(cluster: Cluster) -> None:
    cleanup = {"nodeSelector": {"a": "b"}, "nodeAffinity": required(term(needs("a", "DoesNotExist")))}
    with pytest.raises(CommandFailed, match=r"job.cleanup: no node can have"):
        documents(cluster, JOB, {"job": {"cleanup": cleanup}})


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(
            {"nodeSelector": {"a": "c"}, **affinity(term(needs("a", "In", "b")), ZONE)}, id="another term"
        ),
        pytest.param(affinity(term(needs("n", "Gt", "3"), needs("n", "Lt", "5"))), id="a number between"),
        pytest.param(affinity(term(needs("a", "In", "b", "c"), needs("a", "NotIn", "b"))), id="a value left"),
        pytest.param(affinity({}, ZONE), id="an empty term beside another"),
    ],
)
def test_a_selection_that_can_match_a_node_is_rendered(cluster: Cluster, values: Document) -> None:
    assert job_selection(cluster, values)["nodeSelectorTerms"]
    assert documents(cluster, values)


def test_with_node_feature_discovery_only_nodes_with_virtualization_are_selected(cluster: Cluster) -> None:
    amd64 = needs("kubernetes.io/arch", "In", "amd64")
    features = [
        needs(f"feature.node.kubernetes.io/cpu-cpuid.{name}", "In", "true") for name in ("VMX", "SVM")
    ]
    others = needs("kubernetes.io/arch", "In", "arm64", "ppc64le", "s390x")
    able = [*(term(each, amd64) for each in features), term(others)]
    assert job_selection(cluster, DISCOVERY)["nodeSelectorTerms"] == able
    assert "nodeSelectorTerms" not in job_selection(cluster, DISCOVERY, file="cleanup.yaml")
    assert pod_of_daemonset(cluster, DISCOVERY)["affinity"]["nodeAffinity"] == required(*able)

    both = affinity(ZONE, NAMED)
    crossed = [
        {"matchExpressions": [*one["matchExpressions"], *other.get("matchExpressions", [])], **fields}
        for one in able
        for other, fields in ((ZONE, {}), (NAMED, NAMED))
    ]
    assert job_selection(cluster, DISCOVERY, both)["nodeSelectorTerms"] == crossed
    assert pod_of_daemonset(cluster, DISCOVERY, both)["affinity"]["nodeAffinity"] == required(*crossed)


@pytest.mark.parametrize(("seconds", "timeout"), [(None, "300"), (90, "90"), (0, "30")])
def test_the_time_for_a_node_to_be_ready_again_is_that_of_the_stage_label(
    cluster: Cluster, seconds: int | None, timeout: str
) -> None:
    config = dispatcher_configs(documents(cluster, JOB, {"job": {"waitNodeReadySeconds": seconds}}))
    [label] = config["install.yaml"]["templates"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "KATA_NODE_LABEL_TIMEOUT", "value": timeout} in label["env"]


def test_the_settle_time_is_passed_to_the_dispatcher(cluster: Cluster) -> None:
    for seconds, expected in ((None, 15), (0, 0), (40, 40)):
        rendered = documents(cluster, JOB, {"job": {"nodeSettleSeconds": seconds}})
        assert dispatcher_configs(rendered)["install.yaml"]["nodeSettleSeconds"] == expected
    assert one(rendered, "ConfigMap", "-dispatcher")
