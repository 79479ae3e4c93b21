"""The rights of the containers that label a Node, on a real API server with tokens of pods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import Cluster
from cluster.helm_chart import APPLY, JSON_PATCH, MERGE, STRATEGIC, ApiCaller, admin, unbound
from cluster.labeller import (
    ANY_EFFECT,
    EVENTS,
    FOREIGN,
    INSTALLATION_LABEL_PREFIX,
    ONE_EFFECT,
    OTHER_EFFECT,
    SHARED_LABEL,
    STARTUP,
    TAINTS,
    LabellerRelease,
    event,
    labels,
    refusal,
    taints,
    worker,
)
from cluster.stage_runner import without_records
from kata_node.cluster.labels import SETTER_ANNOTATION
from kata_node.kube import node_status
from kata_node.kube.node_status import NodeStatus
from node.cache import CHECKOUT
from node.commands import describe_result, wait_until


@pytest.fixture(scope="module")
def installation(cluster: Cluster) -> LabellerRelease:
    return LabellerRelease(cluster, "kata-deploy", "least").apply()


@pytest.fixture(scope="module")
def second_installation(cluster: Cluster, installation: LabellerRelease) -> LabellerRelease:
    """A second installation in the same namespace."""
    return LabellerRelease(cluster, "kata-second", "least", "second").apply()


@pytest.fixture
def node(cluster: Cluster) -> str:
    return worker(cluster)


@pytest.fixture
def labeller(installation: LabellerRelease, node: str) -> ApiCaller:
    return installation.on(node)


# --- allowed changes -------------------------------------------------------------------------------


def test_the_labels_can_be_claimed_set_withdrawn_and_removed(labeller: ApiCaller, node: str) -> None:
    for shared, own in (
        ("false", "false"),
        ("true", "true"),
        ("true", "false"),
        ("false", None),
        (None, None),
    ):
        version = labeller.node(node)["metadata"]["resourceVersion"]
        patch = labels(shared=shared, own=own)
        setter = shared and ("kata-node" if own else "other")
        patch["metadata"] |= {"resourceVersion": version, "annotations": {SETTER_ANNOTATION: setter}}
        answer = labeller.patch(node, patch)
        assert answer.status == 200, answer.message
        now = answer.body["metadata"]["labels"]
        assert (now.get(SHARED_LABEL), now.get(f"{INSTALLATION_LABEL_PREFIX}default")) == (shared, own)
        assert answer.body["metadata"]["annotations"].get(SETTER_ANNOTATION) == setter


def record(instance: str = "default", *, size: int = 0, outcome: str = "installed") -> dict[str, Any]:
    """Return a patch of a record as kata-node sends it; ``size`` is the length of a forged annotation."""
    status = NodeStatus("installed", "4.1.0+test", "0.1.0", reason="x" * 400)
    changes = node_status.changes({}, {}, instance, status)
    annotations = {key: "x" * size if size else each for key, each in changes.annotations.items()}
    labels = {**changes.labels, node_status.outcome_label(instance): outcome}
    return {"metadata": {"labels": labels, "annotations": annotations}}


def test_the_record_of_the_installation_can_be_written_and_removed(labeller: ApiCaller, node: str) -> None:
    answer = labeller.patch(node, record())
    assert answer.status == 200, answer.message
    metadata = answer.body["metadata"]
    assert node_status.read(metadata["annotations"], "default") is not None
    removal = node_status.removal(metadata["labels"], metadata["annotations"], "default").patch()
    answer = labeller.patch(node, {"metadata": removal})
    assert answer.status == 200, answer.message
    assert not node_status.installations(answer.body["metadata"]["annotations"])


OUTCOME = "outcome.kata-deploy.katacontainers.io/default"


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        pytest.param(record("second"), "change only the labels", id="another installation"),
        pytest.param(
            {"metadata": {"annotations": record("second")["metadata"]["annotations"]}},
            "change only the annotation",
            id="the annotation of another installation",
        ),
        pytest.param(record(size=4097), "at most 4096 characters", id="oversized"),
        pytest.param(record(outcome="great"), f"set the label {OUTCOME}", id="an outcome of its own"),
        pytest.param(
            {"metadata": {"annotations": {"status.kata-deploy.katacontainers.io/default.x": "1"}}},
            "change only the annotation",
            id="a forged key",
        ),
        pytest.param(
            {"metadata": {"labels": {"version.kata-deploy.katacontainers.io/x": "1"}}},
            "change only the labels",
            id="a forged label",
        ),
    ],
)
def test_no_other_record_can_be_written(
    labeller: ApiCaller, node: str, patch: dict[str, Any], reason: str
) -> None:
    assert reason in refusal(labeller.patch(node, patch))


def test_the_limit_of_the_record_is_that_of_the_policy(labeller: ApiCaller, node: str) -> None:
    assert labeller.patch(node, record(size=node_status.SIZE_LIMIT)).status == 200
    refusal(labeller.patch(node, record(size=node_status.SIZE_LIMIT + 1)))


@pytest.mark.parametrize(
    ("kind", "patch"),
    [
        pytest.param(STRATEGIC, labels(shared="true"), id="strategic merge patch"),
        pytest.param(
            JSON_PATCH,
            [{"op": "add", "path": "/metadata/labels/katacontainers.io~1kata-runtime", "value": "true"}],
            id="JSON patch",
        ),
        pytest.param(
            f"{APPLY}?fieldManager=kata-node",
            {"apiVersion": "v1", "kind": "Node", **labels(shared="true")},
            id="server-side apply",
        ),
    ],
)
def test_every_patch_type_is_accepted(labeller: ApiCaller, node: str, kind: str, patch: object) -> None:
    kind, _, query = kind.partition("?")
    answer = labeller.call("PATCH", f"/api/v1/nodes/{node}?{query}", patch, kind=kind)
    assert answer.status == 200, answer.message
    assert answer.body["metadata"]["labels"][SHARED_LABEL] == "true"


def test_startup_taints_can_be_removed_and_other_taints_stay(labeller: ApiCaller, node: str) -> None:
    for left in ([ONE_EFFECT, OTHER_EFFECT, FOREIGN], [OTHER_EFFECT, FOREIGN]):
        read = labeller.node(node)
        names = [(each["key"], each["effect"]) for each in left]
        # kata-node sends the whole list as it was read, including fields of other writers.
        kept = [each for each in read["spec"]["taints"] if (each["key"], each["effect"]) in names]
        patch = {"metadata": {"resourceVersion": read["metadata"]["resourceVersion"]}, **taints(*kept)}
        answer = labeller.patch(node, patch)
        assert answer.status == 200, answer.message
        assert answer.body["spec"]["taints"] == kept
        assert len(kept) == len(left)


def test_events_about_its_node_can_be_recorded(labeller: ApiCaller, node: str) -> None:
    answer = labeller.call("POST", EVENTS, event(node))
    assert answer.status == 201, answer.message


def test_the_policies_handle_a_node_with_hundreds_of_labels_and_dozens_of_taints(
    cluster: Cluster, labeller: ApiCaller, node: str
) -> None:
    # Names and values of nearly the maximum length, and as many annotations as fit.
    crowd = {f"{'n' * 60}.{'n' * 60}.{'n' * 60}/{'k' * 59}{i:04}": "v" * 63 for i in range(300)}
    many = [
        {"key": f"{'n' * 60}.{'n' * 60}.{'n' * 60}/{'k' * 59}{i:04}", "value": "v" * 63, "effect": effect}
        for i in range(25)
        for effect in ("NoSchedule", "PreferNoSchedule")
    ]
    patch = {
        "metadata": {"labels": crowd, "annotations": {"example.org/note": "n" * 250_000}},
        **taints(*many, ANY_EFFECT),
    }
    assert admin(cluster).patch(node, patch).status == 200
    for change in (labels(shared="true", own="true"), taints(*many), labels(shared=None, own=None)):
        answer = labeller.patch(node, change)
        assert answer.status == 200, answer.message
    assert "unschedulable" in refusal(labeller.patch(node, {"spec": {"unschedulable": True}}))


def test_a_node_without_labels_and_taints_is_labeled(cluster: Cluster, installation: LabellerRelease) -> None:
    cluster.node("least-bare")
    labeller = installation.on("least-bare")
    assert admin(cluster).patch("least-bare", {"spec": {"taints": None}}).body["spec"] == {}
    assert labeller.patch("least-bare", labels(shared="false", own="false")).status == 200
    assert "may not add or change taints" in refusal(labeller.patch("least-bare", taints(ANY_EFFECT)))


def test_fields_of_other_managers_keep_their_manager_and_kata_labels_and_taints_change_it(
    cluster: Cluster, labeller: ApiCaller, node: str
) -> None:
    for manager, fields in (
        ("labels", labels(shared="false", **{"example.org/zone": "a"})),
        ("taints", taints(*TAINTS)),
    ):
        applied = {"apiVersion": "v1", "kind": "Node", **fields}
        how = f"/api/v1/nodes/{node}?fieldManager={manager}&force=true"
        assert admin(cluster).call("PATCH", how, applied, kind=APPLY).status == 200
    for change in (labels(shared="true"), labels(shared=None), taints(*TAINTS[1:])):
        assert labeller.patch(node, change).status == 200
    reset: dict[str, Any] = {"metadata": {"managedFields": [{}]}}
    assert "fields of a Node that other managers have applied" in refusal(labeller.patch(node, reset))


@pytest.mark.parametrize("kept", ["nothing", "another field"])
def test_a_manager_of_kata_labels_and_other_fields_does_not_lose_the_other_fields(
    cluster: Cluster, labeller: ApiCaller, node: str, kept: str
) -> None:
    applied = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"labels": {SHARED_LABEL: "false", "example.org/zone": "a", "example.org/rack": "b"}},
    }
    how = f"/api/v1/nodes/{node}?fieldManager=gitops&force=true"
    assert admin(cluster).call("PATCH", how, applied, kind=APPLY).status == 200
    entries = admin(cluster).node(node)["metadata"]["managedFields"]
    stolen = [entry for entry in entries if entry["manager"] != "gitops"]
    if kept == "another field":
        (own,) = [entry for entry in entries if entry["manager"] == "gitops"]
        del own["fieldsV1"]["f:metadata"]["f:labels"]["f:example.org/zone"]
        stolen.append(own)
    refused = refusal(labeller.patch(node, {"metadata": {"managedFields": stolen}}))
    assert refused.endswith("that other managers have applied: gitops")
    # The shared label itself may change its manager.
    assert labeller.patch(node, labels(shared="true")).status == 200
    assert labeller.patch(node, labels(shared=None)).status == 200


def test_existing_unusual_labels_and_taints_do_not_block_a_change(
    cluster: Cluster, labeller: ApiCaller, node: str
) -> None:
    strange = {
        SHARED_LABEL: "perhaps",
        f"{INSTALLATION_LABEL_PREFIX}default": "",
        f"{INSTALLATION_LABEL_PREFIX}other": "yes",
    }
    assert admin(cluster).patch(node, {"metadata": {"labels": strange}}).status == 200
    assert labeller.patch(node, labels(own="false")).status == 200
    assert labeller.patch(node, labels(shared="true")).status == 200


def test_the_shared_label_can_be_withdrawn_and_set_while_other_installations_have_labels(
    cluster: Cluster, labeller: ApiCaller, node: str
) -> None:
    others = {f"{INSTALLATION_LABEL_PREFIX}second": "true", f"{INSTALLATION_LABEL_PREFIX}third": "false"}
    assert admin(cluster).patch(node, {"metadata": {"labels": others}}).status == 200
    for value in ("true", "false"):
        assert labeller.patch(node, labels(shared=value)).status == 200


def test_the_installation_label_can_be_unfit_and_the_shared_label_cannot(
    labeller: ApiCaller, node: str
) -> None:
    assert labeller.patch(node, labels(own="unfit", shared="false")).status == 200
    assert ONLY_VALUES in labeller.patch(node, labels(shared="unfit")).message


# --- refused changes -------------------------------------------------------------------------------

ONLY_LABELS = f"this account may change only the labels {SHARED_LABEL} and {INSTALLATION_LABEL_PREFIX}"
ONLY_VALUES = " to true or false, or remove them"
ONLY_METADATA = "this account may change only labels and annotations in a Node's metadata, not "
ONLY_ANNOTATION = (
    f"this account may change only the annotation {SETTER_ANNOTATION} of a Node, and its record, not "
)
ONLY_AS_KATA_NODE = "only as the component kata-node"
TEXTS = "other texts of up to 256 characters"
NO_NEW_TAINTS = "this account may not add or change taints of a Node"
ONLY_STARTUP = "this account may remove only the taints of a Node that startupTaints lists"
ONLY_TAINTS = "this account may change only the taints in a Node's spec, not "

BUSY = {
    "labels": {
        SHARED_LABEL: "true",
        f"{INSTALLATION_LABEL_PREFIX}default": "false",
        f"{INSTALLATION_LABEL_PREFIX}second": "true",
        "example.org/zone": "a",
        "node-role.kubernetes.io/worker": "",
    },
    "annotations": {"example.org/note": "1"},
    "finalizers": ["example.org/guard"],
}
OWNER = {"apiVersion": "v1", "kind": "Node", "name": "x", "uid": "0c1e8f0a-0000-4000-8000-000000000000"}


@pytest.fixture(scope="module")
def busy(cluster: Cluster, installation: LabellerRelease) -> tuple[str, ApiCaller]:
    """A Node with labels, annotations, taints and Events, and a labeller on it."""
    name = worker(cluster, **BUSY)
    return name, installation.on(name)


@pytest.mark.parametrize(
    ("patch", "reason"),
    [
        pytest.param(labels(**{"example.org/new": "1"}), f"{ONLY_LABELS}default", id="another label added"),
        pytest.param(labels(**{"example.org/zone": "b"}), "not example.org/zone", id="another label changed"),
        pytest.param(
            labels(**{"example.org/zone": None}), "not example.org/zone", id="another label removed"
        ),
        pytest.param(
            labels(shared="true", **{"example.org/zone": "b", "example.org/new": "1"}),
            "example.org/zone",
            id="two others beside ours",
        ),
        pytest.param({"metadata": {"labels": None}}, ONLY_LABELS, id="all labels removed"),
        pytest.param(
            labels(**{"node-role.kubernetes.io/control-plane": ""}), "not node-role", id="a role given"
        ),
        pytest.param(
            labels(**{"node-role.kubernetes.io/worker": None}), "not node-role", id="a role taken away"
        ),
        pytest.param(labels(**{"kubernetes.io/hostname": "x"}), "not kubernetes.io/", id="the host's name"),
        pytest.param(
            labels(**{f"{INSTALLATION_LABEL_PREFIX}second": "false"}),
            f"not {INSTALLATION_LABEL_PREFIX}second",
            id="another's mark changed",
        ),
        pytest.param(
            labels(**{f"{INSTALLATION_LABEL_PREFIX}second": None}),
            f"not {INSTALLATION_LABEL_PREFIX}second",
            id="another's mark removed",
        ),
        pytest.param(
            labels(**{f"{INSTALLATION_LABEL_PREFIX}third": "true"}),
            f"not {INSTALLATION_LABEL_PREFIX}third",
            id="another's mark added",
        ),
        pytest.param(labels(shared="yes"), ONLY_VALUES, id="the shared label set to yes"),
        pytest.param(labels(own="True"), ONLY_VALUES, id="its mark set to True"),
        pytest.param(labels(own=""), ONLY_VALUES, id="its mark set to nothing"),
        pytest.param(
            {"metadata": {"annotations": {"a": "b"}}}, f"{ONLY_ANNOTATION}a", id="an annotation added"
        ),
        pytest.param({"metadata": {"annotations": None}}, ONLY_ANNOTATION, id="annotations removed"),
        pytest.param(
            {"metadata": {"annotations": {SETTER_ANNOTATION: "somebody"}}},
            f"may set the annotation {SETTER_ANNOTATION} only to kata-node or other",
            id="another value of the annotation",
        ),
        pytest.param(
            {"metadata": {"finalizers": ["example.org/guard", "example.org/more"]}},
            f"{ONLY_METADATA}finalizers",
            id="a finalizer added",
        ),
        pytest.param(
            {"metadata": {"finalizers": None}}, f"{ONLY_METADATA}finalizers", id="a finalizer removed"
        ),
        pytest.param(
            {"metadata": {"ownerReferences": [OWNER]}}, f"{ONLY_METADATA}ownerReferences", id="an owner"
        ),
        pytest.param(
            {"metadata": {"managedFields": [{}]}},
            "that other managers have applied: ",
            id="owners of fields",
        ),
        pytest.param({"spec": {"unschedulable": True}}, f"{ONLY_TAINTS}unschedulable", id="a cordon"),
        pytest.param({"spec": {"providerID": "a://b"}}, f"{ONLY_TAINTS}providerID", id="the provider's id"),
        pytest.param(
            {"spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24"]}},
            "podCIDRs",
            id="the addresses of pods",
        ),
        pytest.param(
            taints(*TAINTS, {"key": "example.org/new", "effect": "NoSchedule"}),
            NO_NEW_TAINTS,
            id="a taint added",
        ),
        pytest.param(
            taints(*TAINTS, {"key": "example.org/kata", "effect": "NoSchedule"}),
            NO_NEW_TAINTS,
            id="a startup taint added",
        ),
        pytest.param(
            taints({**ANY_EFFECT, "value": "other"}, *TAINTS[1:]), NO_NEW_TAINTS, id="a taint's value changed"
        ),
        pytest.param(
            taints({**ANY_EFFECT, "effect": "NoSchedule"}, *TAINTS[1:]),
            NO_NEW_TAINTS,
            id="a taint's effect changed",
        ),
        pytest.param(taints(*TAINTS[:3]), ONLY_STARTUP, id="another's taint removed"),
        pytest.param(
            taints(ANY_EFFECT, ONE_EFFECT, FOREIGN),
            ONLY_STARTUP,
            id="a startup taint of another effect removed",
        ),
        pytest.param({"spec": {"taints": None}}, ONLY_STARTUP, id="all taints removed"),
        pytest.param({"spec": None}, ONLY_STARTUP, id="all of the spec removed"),
    ],
)
def test_every_other_change_of_the_node_is_refused_with_the_reason(
    busy: tuple[str, ApiCaller], patch: dict[str, Any], reason: str
) -> None:
    node, labeller = busy
    before = labeller.node(node)
    assert reason in refusal(labeller.patch(node, patch))
    assert labeller.node(node) == before


def test_a_foreign_cordon_cannot_be_removed(cluster: Cluster, labeller: ApiCaller, node: str) -> None:
    assert admin(cluster).patch(node, {"spec": {"unschedulable": True}}).status == 200
    for value in (False, None):
        refused = refusal(labeller.patch(node, {"spec": {"unschedulable": value}}))
        assert refused == f"{ONLY_TAINTS}unschedulable"
    assert labeller.patch(node, {**labels(shared="false"), **taints(*TAINTS[1:])}).status == 200


def test_an_allowed_change_together_with_a_forbidden_one_is_refused(busy: tuple[str, ApiCaller]) -> None:
    node, labeller = busy
    patch = {**labels(shared="false", own=None), "spec": {"unschedulable": True}}
    assert "not unschedulable" in refusal(labeller.patch(node, patch))
    assert labeller.node(node)["metadata"]["labels"][SHARED_LABEL] == "true"


def test_a_token_of_another_node_changes_nothing_here(
    cluster: Cluster, installation: LabellerRelease, labeller: ApiCaller, node: str
) -> None:
    elsewhere = worker(cluster)
    stranger = installation.on(elsewhere)
    for caller, other, own in ((labeller, elsewhere, node), (stranger, node, elsewhere)):
        refused = refusal(caller.patch(other, labels(shared="true")))
        assert refused == f"this token may change only Node {own}"
        assert refusal(caller.patch(other, taints(*TAINTS[1:])))
        reason = refusal(caller.call("POST", EVENTS, event(other)))
        assert reason == f"this token may record Events only about Node {own}"
    assert stranger.patch(elsewhere, labels(shared="true")).status == 200


def test_a_token_that_is_bound_to_no_node_changes_nothing(
    cluster: Cluster, installation: LabellerRelease, node: str
) -> None:
    loose = unbound(cluster, installation.namespace, installation.account)
    for patch in (labels(shared="true"), labels(shared=None), taints(*TAINTS[1:])):
        assert "not bound to a pod on a node, so it may not change" in refusal(loose.patch(node, patch))
    reason = refusal(loose.call("POST", EVENTS, event(node)))
    assert reason == "this token is not bound to a pod on a node, so it may not record an Event"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        pytest.param(
            {"involvedObject": {"apiVersion": "v1", "kind": "Node", "name": "another"}},
            "only about Node {node}",
            id="about another Node",
        ),
        pytest.param(
            {"involvedObject": {"apiVersion": "v1", "kind": "Pod", "name": "{node}", "namespace": "default"}},
            "only about Node {node}",
            id="about a Pod",
        ),
        pytest.param({"involvedObject": {}}, "only about Node {node}", id="about nothing"),
        pytest.param({"source": {"component": "kubelet"}}, ONLY_AS_KATA_NODE, id="in the kubelet's name"),
        pytest.param({"source": {}, "reportingComponent": ""}, ONLY_AS_KATA_NODE, id="in nobody's name"),
        pytest.param({"reportingComponent": "kubelet"}, ONLY_AS_KATA_NODE, id="reported by the kubelet"),
        pytest.param(
            {"involvedObject": {"apiVersion": "v1", "kind": "Node", "name": "{node}", "uid": "another"}},
            "only about its own Node",
            id="about a Node of the same name",
        ),
        pytest.param(
            {"related": {"apiVersion": "v1", "kind": "Node", "name": "another"}},
            "without related or owning objects",
            id="related to another Node",
        ),
        pytest.param({"message": "m" * 1025}, "messages of up to 1024 characters", id="a long message"),
        pytest.param({"action": "a" * 100_000}, TEXTS, id="a long action"),
        pytest.param({"reportingInstance": "a" * 100_000}, TEXTS, id="a long reporter"),
        pytest.param({"source": {"component": "kata-node", "host": "a" * 100_000}}, TEXTS, id="a long host"),
        pytest.param({"type": "a" * 100_000}, TEXTS, id="a long type"),
        pytest.param(
            {"metadata": {"generateName": "e.", "namespace": "default", "finalizers": ["example.org/stays"]}},
            "without labels, annotations and finalizers",
            id="a finalizer",
        ),
        pytest.param(
            {"metadata": {"generateName": "a.", "namespace": "default", "annotations": {"a": "n" * 9000}}},
            "without labels, annotations and finalizers",
            id="annotations",
        ),
    ],
)
def test_every_other_event_is_refused(
    labeller: ApiCaller, node: str, fields: dict[str, Any], reason: str
) -> None:
    filled = json.loads(json.dumps(fields).replace("{node}", node))
    refused = refusal(labeller.call("POST", EVENTS, event(node, **filled)))
    assert reason.format(node=node) in refused


@pytest.mark.parametrize(
    ("method", "path", "may_not"),
    [
        pytest.param("GET", "/api/v1/nodes", 'list resource "nodes"', id="list Nodes"),
        pytest.param("GET", "/api/v1/nodes?watch=true", 'watch resource "nodes"', id="watch Nodes"),
        pytest.param("POST", "/api/v1/nodes", 'create resource "nodes"', id="create a Node"),
        pytest.param("PUT", "/api/v1/nodes/{node}", 'update resource "nodes"', id="replace its Node"),
        pytest.param("DELETE", "/api/v1/nodes/{node}", 'delete resource "nodes"', id="delete its Node"),
        pytest.param("DELETE", "/api/v1/nodes", 'deletecollection resource "nodes"', id="delete all Nodes"),
        pytest.param(
            "PATCH", "/api/v1/nodes/{node}/status", 'patch resource "nodes/status"', id="its Node's status"
        ),
        pytest.param(
            "GET", "/api/v1/nodes/{node}/proxy/pods", 'get resource "nodes/proxy"', id="reach its kubelet"
        ),
        pytest.param("GET", EVENTS, 'list resource "events"', id="list Events"),
        pytest.param("PATCH", f"{EVENTS}/e", 'patch resource "events"', id="change an Event"),
        pytest.param("DELETE", f"{EVENTS}/e", 'delete resource "events"', id="delete an Event"),
        pytest.param(
            "POST", "/api/v1/namespaces/least/events", 'create resource "events"', id="Events elsewhere"
        ),
        pytest.param(
            "POST",
            "/apis/events.k8s.io/v1/namespaces/default/events",
            'create resource "events" in API group "events.k8s.io"',
            id="Events of the newer API",
        ),
        pytest.param("GET", "/api/v1/secrets", 'list resource "secrets"', id="read all secrets"),
        pytest.param(
            "GET",
            "/api/v1/namespaces/least/secrets/s",
            'get resource "secrets"',
            id="read a secret beside it",
        ),
        pytest.param(
            "GET", "/api/v1/namespaces/least/pods", 'list resource "pods"', id="list pods beside it"
        ),
        pytest.param("POST", "/api/v1/namespaces/least/pods", 'create resource "pods"', id="create a pod"),
        pytest.param(
            "POST",
            "/api/v1/namespaces/least/serviceaccounts/kata-deploy-labeller/token",
            'create resource "serviceaccounts/token"',
            id="give itself a token for another node",
        ),
    ],
)
def test_a_verb_or_resource_beyond_its_roles_is_refused(
    busy: tuple[str, ApiCaller], method: str, path: str, may_not: str
) -> None:
    node, labeller = busy
    writes = method != "GET"
    where = path.format(node=node)
    answer = labeller.call(method, where, {} if writes else None, kind=kind(method), dry=writes)
    assert answer.status == 403, answer
    assert f"cannot {may_not}" in answer.message


def kind(method: str) -> str:
    return MERGE if method == "PATCH" else "application/json"


def rights(caller: ApiCaller, namespace: str) -> set[tuple[tuple[str, ...], ...]]:
    """Return the rights of the account in a namespace and in the cluster, from the API server."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    answer = caller.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", review)
    fields = ("apiGroups", "resources", "resourceNames", "verbs")
    rules = answer.body["status"]["resourceRules"]
    return {tuple(tuple(sorted(rule.get(field, []))) for field in fields) for rule in rules}


def test_the_account_has_exactly_these_rights(
    cluster: Cluster, installation: LabellerRelease, labeller: ApiCaller
) -> None:
    everybodys = unbound(cluster, installation.namespace, "default")
    nodes = (("",), ("nodes",), (), ("get", "patch"))
    events = (("",), ("events",), (), ("create",))
    for namespace, expected in (("default", {nodes, events}), (installation.namespace, {nodes})):
        assert rights(labeller, namespace) - rights(everybodys, namespace) == expected


# --- a wider role ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def widened(cluster: Cluster) -> Iterator[LabellerRelease]:
    """An installation with an account that has all rights on the resources of the policies."""
    wide = LabellerRelease(cluster, "kata-wide", "least-wide", "wide").apply()
    resources = "nodes,nodes/status,nodes/proxy,events,events.events.k8s.io"
    cluster.kubectl("create", "clusterrole", "wide", "--verb=*", f"--resource={resources}")
    cluster.kubectl(
        "create",
        "clusterrolebinding",
        "wide",
        "--clusterrole=wide",
        f"--serviceaccount=least-wide:{wide.account}",
    )
    name = worker(cluster)
    labeller = wide.on(name)
    wait_until(
        lambda: "denied request" in labeller.call("DELETE", f"/api/v1/nodes/{name}", dry=True).message,
        "the account has more rights, and the policy holds",
    )
    yield wide
    cluster.kubectl("delete", "clusterrolebinding", "wide")


NOTHING_ELSE = "this account may only patch its own Node and record Events about it"
NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "least-made"}}


@pytest.mark.parametrize(
    ("method", "path", "body", "reason"),
    [
        pytest.param("PATCH", "/nodes/{node}/status", {"status": {"phase": "x"}}, NOTHING_ELSE, id="status"),
        pytest.param("DELETE", "/nodes/{node}", {}, NOTHING_ELSE, id="delete"),
        pytest.param("DELETE", "/nodes", {}, NOTHING_ELSE, id="delete many"),
        pytest.param("POST", "/nodes", NODE, NOTHING_ELSE, id="create"),
        pytest.param("GET", "/nodes/{node}/proxy/pods", None, NOTHING_ELSE, id="the kubelet by proxy"),
        pytest.param("DELETE", "/namespaces/default/events/e", {}, NOTHING_ELSE, id="delete an Event"),
        pytest.param(
            "PATCH", "/namespaces/default/events/e", {"count": 2}, NOTHING_ELSE, id="change an Event"
        ),
        pytest.param(
            "POST",
            "/namespaces/kube-system/events",
            {
                "metadata": {"generateName": "e", "namespace": "kube-system"},
                "involvedObject": {"kind": "Node", "name": "{node}", "namespace": "kube-system"},
            },
            "this account may record Events only in the namespace default",
            id="an Event elsewhere",
        ),
    ],
)
def test_a_wider_role_does_not_bypass_the_policies(
    cluster: Cluster,
    widened: LabellerRelease,
    node: str,
    method: str,
    path: str,
    body: Mapping[str, Any] | None,
    reason: str,
) -> None:
    labeller = widened.on(node)
    if path.endswith("/events/e"):
        made = admin(cluster).call("POST", EVENTS, event(node))
        path = path.removesuffix("e") + made.body["metadata"]["name"]
    if path.endswith("/events"):
        body = {**event(node), **json.loads(json.dumps(body).replace("{node}", node))}
    where = f"/api/v1{path.format(node=node)}"
    answer = labeller.call(method, where, body, kind=kind(method), dry=method != "GET")
    assert refusal(answer) == reason


def test_a_replace_of_a_node_follows_the_same_rules_as_a_patch(widened: LabellerRelease, node: str) -> None:
    labeller = widened.on(node)
    read = labeller.node(node)
    read["metadata"]["labels"][widened.installation_label] = "true"
    assert labeller.call("PUT", f"/api/v1/nodes/{node}", read).status == 200
    read = labeller.node(node)
    read["metadata"]["labels"]["example.org/new"] = "1"
    assert "not example.org/new" in refusal(labeller.call("PUT", f"/api/v1/nodes/{node}", read))


def test_an_event_of_the_newer_api_follows_the_same_rules(widened: LabellerRelease, node: str) -> None:
    labeller = widened.on(node)
    path = "/apis/events.k8s.io/v1/namespaces/default/events"
    new = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"generateName": "e", "namespace": "default"},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "type": "Normal",
        "reason": "KataInstalled",
        "action": "Install",
        "regarding": {"apiVersion": "v1", "kind": "Node", "name": "another"},
        "reportingController": "kata-node",
        "reportingInstance": "pod",
    }
    assert f"only about Node {node}" in refusal(labeller.call("POST", path, new))
    new["regarding"] = {"apiVersion": "v1", "kind": "Node", "name": node}
    assert labeller.call("POST", path, new).status == 201
    new["reportingController"] = "kubelet"
    assert ONLY_AS_KATA_NODE in refusal(labeller.call("POST", path, new))


# --- other accounts --------------------------------------------------------------------------------


def test_the_policies_do_not_apply_to_other_accounts(
    cluster: Cluster, installation: LabellerRelease, widened: LabellerRelease, node: str
) -> None:
    everything = {
        "metadata": {"labels": {SHARED_LABEL: "yes", "example.org/new": "1"}, "annotations": {"a": "b"}},
        "spec": {"unschedulable": True, "taints": []},
    }
    assert admin(cluster).patch(node, everything).status == 200
    # An account of the same name in another namespace is another account.
    cluster.kubectl("create", "serviceaccount", installation.account, "--namespace=least-wide")
    who = f"--serviceaccount=least-wide:{installation.account}"
    cluster.kubectl("create", "clusterrolebinding", "namesake", "--clusterrole=wide", who)
    namesake = unbound(cluster, "least-wide", installation.account)
    wait_until(
        lambda: namesake.patch(node, {"metadata": {"annotations": {"a": "c"}}}).status == 200,
        "the account of the same name may change the Node",
    )
    assert namesake.call("DELETE", f"/api/v1/nodes/{node}", {}).status == 200


def test_two_installations_may_change_only_their_own_installation_label(
    installation: LabellerRelease, second_installation: LabellerRelease, node: str
) -> None:
    first, second = installation.on(node), second_installation.on(node)
    for caller, own, other in (
        (first, installation.installation_label, second_installation.installation_label),
        (second, second_installation.installation_label, installation.installation_label),
    ):
        assert caller.patch(node, {"metadata": {"labels": {SHARED_LABEL: "true", own: "true"}}}).status == 200
        refused = refusal(caller.patch(node, {"metadata": {"labels": {other: "false"}}}))
        assert (
            refused == f"this account may change only the labels {SHARED_LABEL} and {own} of a Node, "
            f"and those of its record, not {other}"
        )
    marks = {
        key: value
        for key, value in first.node(node)["metadata"]["labels"].items()
        if INSTALLATION_LABEL_PREFIX in key
    }
    assert marks == {
        f"{INSTALLATION_LABEL_PREFIX}default": "true",
        f"{INSTALLATION_LABEL_PREFIX}second": "true",
    }


# --- kata-node's stages ----------------------------------------------------------------------------


@pytest.fixture
def stage(tmp_path: Path, node: str) -> Callable[[ApiCaller, str], subprocess.CompletedProcess[str]]:
    """Run a stage for ``node`` with the token of a caller, as the container of a Job does."""
    (tmp_path / "host").mkdir()
    config = tmp_path / "values.yaml"
    config.write_text(
        json.dumps({"shims": {"disableAll": True, "qemu": {"enabled": True}}, "startupTaints": STARTUP})
    )

    def run(caller: ApiCaller, name: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "kata_node", "stage", name),
                f"--config={config}",
                f"--host-root={tmp_path / 'host'}",
                *("--label-timeout=120", "--label-stable-for=0", "--output=json"),
            ],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "KUBECONFIG": str(caller.kubeconfig(tmp_path / "kubeconfig")),
                "NODE_NAME": node,
                "PYTHONPATH": str(CHECKOUT),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, describe_result(done)
        return done

    return run


def test_all_label_stages_work_with_only_these_rights(
    cluster: Cluster,
    labeller: ApiCaller,
    node: str,
    stage: Callable[[ApiCaller, str], subprocess.CompletedProcess[str]],
) -> None:
    own = f"{INSTALLATION_LABEL_PREFIX}default"
    expected: dict[str, dict[str, str]] = {
        "claim": {SHARED_LABEL: "false", own: "false"},
        "label": {SHARED_LABEL: "true", own: "true"},
        "unlabel": {SHARED_LABEL: "false", own: "false"},
        "unclaim": {},
    }
    outcomes = {"claim": "installing", "label": "installed", "unlabel": "removing", "unclaim": ""}
    for name, wanted in expected.items():
        done = stage(labeller, name)
        assert done.returncode == 0, describe_result(done)
        now = labeller.node(node)
        assert without_records(now["metadata"]["labels"]) == wanted
        record = node_status.read(now["metadata"]["annotations"], "default")
        assert (record.outcome if record else "") == outcomes[name]
    assert [(each["key"], each["effect"]) for each in now["spec"]["taints"]] == [
        (each["key"], each["effect"]) for each in (OTHER_EFFECT, FOREIGN)
    ]
    listed = admin(cluster).call("GET", f"{EVENTS}?fieldSelector=involvedObject.name%3D{node}").body["items"]
    reasons = {each["reason"] for each in listed}
    assert {"KataInstalled", "KataRemoved"} <= reasons


def test_a_refused_stage_reports_the_rule(
    cluster: Cluster,
    installation: LabellerRelease,
    node: str,
    stage: Callable[[ApiCaller, str], subprocess.CompletedProcess[str]],
) -> None:
    elsewhere = worker(cluster)
    done = stage(installation.on(elsewhere), "claim")
    assert done.returncode == 1, describe_result(done)
    [report] = json.loads(done.stdout)["stages"]
    assert f"this token may change only Node {elsewhere}" in report["error"]["what"]
    assert SHARED_LABEL not in admin(cluster).node(node)["metadata"]["labels"]
