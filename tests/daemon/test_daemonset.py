"""Whether a DaemonSet still wants its pod on a node: a table of objects and decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from kata_node.daemon.daemonset import WantedResult, still_wanted

LABELS = {"kubernetes.io/hostname": "worker-1", "zone": "a", "generation": "7"}


def daemonset(**pod: Any) -> dict[str, Any]:
    return {"metadata": {"name": "kata-deploy"}, "spec": {"template": {"spec": {"containers": [], **pod}}}}


def term(*requirements: tuple[str, str, Sequence[str]], fields: Sequence[Any] = ()) -> dict[str, Any]:
    made = [{"key": key, "operator": operator, "values": values} for key, operator, values in requirements]
    return {"matchExpressions": made, "matchFields": list(fields)}


def affinity(*terms: Mapping[str, Any]) -> dict[str, Any]:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}
    return daemonset(affinity={"nodeAffinity": required})


def name_is(operator: str, name: str) -> dict[str, Any]:
    return {"key": "metadata.name", "operator": operator, "values": [name]}


def decide(daemonset: Mapping[str, Any] | None) -> WantedResult:
    return still_wanted(daemonset, "worker-1", lambda: LABELS)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        pytest.param(daemonset(), True, id="no selector at all"),
        pytest.param(daemonset(nodeSelector=None, affinity=None), True, id="written out as null"),
        pytest.param(daemonset(nodeSelector={"zone": "a"}), True, id="selector"),
        pytest.param(daemonset(nodeSelector={"zone": "b"}), False, id="another value"),
        pytest.param(daemonset(nodeSelector={"zone": "a", "gpu": ""}), False, id="a label that is not there"),
        pytest.param(daemonset(nodeName="worker-1"), True, id="this node by name"),
        pytest.param(daemonset(nodeName="worker-2"), False, id="another node by name"),
        pytest.param(affinity(), False, id="an affinity of no terms"),
        pytest.param(affinity({}), False, id="an empty term"),
        pytest.param(affinity({}, term(("zone", "In", "a"))), True, id="an empty term beside one that fits"),
        pytest.param(affinity(term(("zone", "In", ("b", "a")))), True, id="In"),
        pytest.param(affinity(term(("zone", "In", "b"))), False, id="In another"),
        pytest.param(affinity(term(("gpu", "In", "a"))), False, id="In without the label"),
        pytest.param(affinity(term(("zone", "NotIn", "b"))), True, id="NotIn"),
        pytest.param(affinity(term(("zone", "NotIn", "a"))), False, id="NotIn the same"),
        pytest.param(affinity(term(("gpu", "NotIn", "a"))), True, id="NotIn without the label"),
        pytest.param(affinity(term(("zone", "Exists", ()))), True, id="Exists"),
        pytest.param(affinity(term(("gpu", "Exists", ()))), False, id="Exists not"),
        pytest.param(affinity(term(("gpu", "DoesNotExist", ()))), True, id="DoesNotExist"),
        pytest.param(affinity(term(("zone", "DoesNotExist", ()))), False, id="DoesNotExist but does"),
        pytest.param(affinity(term(("generation", "Gt", ["6"]))), True, id="Gt"),
        pytest.param(affinity(term(("generation", "Gt", ["7"]))), False, id="Gt the same"),
        pytest.param(affinity(term(("generation", "Lt", ["10"]))), True, id="Lt as numbers"),
        pytest.param(affinity(term(("generation", "Lt", ["7"]))), False, id="Lt the same"),
        pytest.param(affinity(term(("zone", "Lt", ["10"]))), False, id="Lt of what is no number"),
        pytest.param(affinity(term(("gpu", "Gt", ["0"]))), False, id="Gt without the label"),
        pytest.param(affinity(term(("zone", "In", "a"), ("gpu", "Exists", ()))), False, id="half a term"),
        pytest.param(
            affinity(term(("zone", "In", "b")), term(("generation", "Exists", ()))), True, id="one of two"
        ),
        pytest.param(affinity(term(fields=[name_is("In", "worker-1")])), True, id="this name"),
        pytest.param(affinity(term(fields=[name_is("In", "worker-2")])), False, id="another name"),
        pytest.param(affinity(term(fields=[name_is("NotIn", "worker-1")])), False, id="any name but this"),
        pytest.param(
            affinity(term(("zone", "In", "a"), fields=[name_is("In", "worker-2")])), False, id="both needed"
        ),
        pytest.param(affinity(term(("zone", "Resembles", ["b"]))), True, id="an operator of times to come"),
        pytest.param(
            daemonset(
                affinity={
                    "nodeAffinity": {
                        "preferredDuringSchedulingIgnoredDuringExecution": [
                            {"weight": 1, "preference": term(("zone", "In", "b"))}
                        ]
                    }
                }
            ),
            True,
            id="only preferred",
        ),
        pytest.param(daemonset(affinity={"podAntiAffinity": {}}), True, id="affinity to pods"),
        pytest.param(daemonset(tolerations=[]), True, id="taints are no reason"),
    ],
)
def test_it_is_wanted_where_the_daemonset_selects_the_node(found: Mapping[str, Any], wanted: bool) -> None:
    assert decide(found).wanted is wanted


FEATURES = "feature.node.kubernetes.io/"


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        pytest.param({"zone": "a"}, True, id="no label of node-feature-discovery yet"),
        pytest.param({"zone": "a", f"{FEATURES}cpu-model.id": "1"}, False, id="labeled, without the feature"),
        pytest.param({"zone": "b"}, False, id="not selected, whatever the features are"),
    ],
)
def test_a_node_without_any_feature_label_is_not_reverted_because_of_them(
    labels: Mapping[str, str], wanted: bool
) -> None:
    found = affinity(term(("zone", "In", ["a"]), (f"{FEATURES}cpu-cpuid.VMX", "In", ["true"])))
    assert still_wanted(found, "worker-1", lambda: labels).wanted is wanted


def test_a_number_is_compared_as_the_scheduler_does() -> None:
    found = affinity(term(("memory", "Gt", ["9"])))
    assert still_wanted(found, "worker-1", lambda: {"memory": "10"}).wanted
    assert not still_wanted(found, "worker-1", lambda: {"memory": "1_0"}).wanted


def test_both_the_selector_and_the_affinity_must_match() -> None:
    both = affinity(term(("zone", "In", "a")))
    both["spec"]["template"]["spec"]["nodeSelector"] = {"zone": "b"}
    assert not decide(both).wanted


@pytest.mark.parametrize(
    ("found", "says"),
    [
        pytest.param(None, "is gone", id="gone"),
        pytest.param(
            {**daemonset(), "metadata": {"deletionTimestamp": "2026-11-23T00:00:00Z"}},
            "is being deleted",
            id="going",
        ),
    ],
)
def test_without_a_daemonset_it_is_not_wanted_on_any_node(found: Mapping[str, Any] | None, says: str) -> None:
    def labels() -> Mapping[str, str]:
        raise AssertionError("the Node was read")

    answer = still_wanted(found, "worker-1", labels)
    assert not answer.wanted
    assert says in answer.reason


@pytest.mark.parametrize(
    ("selector", "says"),
    [
        pytest.param({"zone": "b"}, "nodes with zone=b, and this one has zone=a", id="another value"),
        pytest.param({"gpu": "yes"}, "nodes with gpu=yes, and this one has no label gpu", id="no label"),
    ],
)
def test_the_reason_names_the_label_that_does_not_match(selector: Mapping[str, str], says: str) -> None:
    assert says in decide(daemonset(nodeSelector=selector)).reason


def test_a_decision_that_depends_on_labels_is_not_permanent() -> None:
    assert decide(None).permanent
    assert decide({"metadata": {"deletionTimestamp": "2026-11-01T00:00:00Z"}}).permanent
    assert not decide(daemonset(nodeSelector={"zone": "elsewhere"})).permanent
