"""``kata-node values check`` finds what helm refuses, in the same words, and accepts what helm renders."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cluster import test_chart_options, test_chart_selection
from cluster.chart_objects import JOB, POD, Document, documents, dry_run, merge
from cluster.control_plane import Cluster
from cluster.helm_chart import CHART
from cluster.test_chart import BASES
from cluster.test_chart_selection import affinity, needs, term
from kata_node.settings.values import parse_values
from kata_node.values.check import check
from node.commands import CommandFailed

MODES = ("job", "daemonset")

CLASS = "{kind: RuntimeClass, apiVersion: node.k8s.io/v1, metadata: {name: NAME}, handler: x}"


def custom(**runtimes: Document | None) -> Document:
    return {"customRuntimes": {"enabled": True, "runtimes": runtimes}}


def own(name: str) -> Document:
    return {"baseConfig": "qemu", "runtimeClass": CLASS.replace("NAME", name)}


MORE: dict[str, Document] = {
    "kernel modules": {"shims": {"qemu": {"kernelModulesImages": [{"path": "/a"}]}}},
    "another dispatcher": {**JOB, "job": {"dispatcherImage": {"reference": "r/k8s-job-dispatcher:1"}}},
    "no policy of this name": {"rbac": {"admissionPolicy": "sometimes"}},
    "nobody who labels": {**JOB, "rbac": {"labelsBy": "kubelet"}},
    "a DaemonSet without a dispatcher that labels": {"rbac": {"labelsBy": "dispatcher"}},
    "the name of an installation without a suffix": {"env": {"multiInstallSuffix": "default"}},
    "a suffix with a dot": {"env": {"multiInstallSuffix": "a.b"}},
    "a suffix that is too long for a label": {"env": {"multiInstallSuffix": "a" * 64}},
    "a runtime without a base": custom(x={"runtimeClass": CLASS.replace("NAME", "x")}),
    "a manifest that is no YAML": custom(x={"baseConfig": "qemu", "runtimeClass": "{"}),
    "a class without a handler": custom(x={**own("x"), "runtimeClass": CLASS.replace("handler: x", "a: b")}),
    "two classes of one name": custom(x=own("same"), y=own("same")),
    "the class of a shim": custom(x=own("kata-qemu")),
    "the default class of a shim that comes later": {
        "runtimeClasses": {"createDefault": True, "defaultName": "kata-qemu-snp"},
        "defaultShim": {"amd64": "clh"},
    },
    "the default class of a shim that came before": {
        "runtimeClasses": {"createDefault": True, "defaultName": "kata-clh"}
    },
    "a pod that is no YAML": {"verification": {"pod": "{"}},
    "a pod that is a list": {"verification": {"pod": "- a"}},
    "a pod with a word as its spec": {
        "verification": {"pod": "{kind: Pod, metadata: {name: a}, spec: b}"},
    },
    "a pod with a word as its name": {"verification": {"pod": "{kind: 1, metadata: a, spec: {}}"}},
    "a pod without annotations": {"verification": {"pod": POD.replace("name:", "annotations: a, name:")}},
    "a class that is a list": custom(x={"baseConfig": "qemu", "runtimeClass": "- a"}),
    "a class with a number as its name": custom(x=own("5")),
    "a class with a word as its overhead": custom(
        x={"baseConfig": "qemu", "runtimeClass": CLASS.replace("handler:", "overhead: a, handler:")}
    ),
    "a class with a word as its node selector": custom(
        x={
            "baseConfig": "qemu",
            "runtimeClass": CLASS.replace("handler:", "scheduling: {nodeSelector: a}, handler:"),
        }
    ),
    "a socket whose directory is the root": {"containerd": {"runtimeSocket": "/run/../a.sock"}},
    "null for an unknown key": {"shimz": None, "env": {"shimz": None}},
    "another key of an affinity": {"affinity": {"nodeAffinities": {}}},
    "terms that are a word": {
        "affinity": {
            "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": "a"}}
        }
    },
    "requirements that are a word": affinity({"matchExpressions": "a"}),
    "values that are a word": affinity(term({"key": "a", "operator": "In", "values": "b"})),
    "a pod without an end": {"verification": {"pod": POD.replace("restartPolicy: Never", "")}},
    "an affinity that is a list": {"affinity": {"nodeAffinity": ["a"]}},
    "required terms that are a list": {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": ["a"]}}
    },
    "a term that is a word": affinity("a"),  # type: ignore[arg-type]  # the word is what is wrong
    "a requirement that is a word": affinity({"matchExpressions": ["a"]}),
    "a requirement without a key": affinity({"matchExpressions": [{"operator": "Exists"}]}),
    "Exists with a value": affinity(term(needs("a", "Exists", "b"))),
}
"""Values for the refusals that no other test has."""

ACCEPTED: dict[str, Document] = {
    "the dispatcher of the public chart, and a registry with ours": {
        **JOB,
        "image": {"registry": "r.example.org"},
        "job": {"dispatcherImage": {"reference": "q.example.org/k8s-job-dispatcher", "tag": "sha256:1"}},
    },
    "null for labels": {
        **{key: {"a": None} for key in ("nodeSelector", "podLabels", "podAnnotations")},
        "job": {"nodeSelector": {"a": None}, "cleanup": {"nodeSelector": {"a": None}}},
        "shims": {"qemu": {"runtimeClass": {"nodeSelector": {"a": None}}}},
    },
    "null for a runtime": custom(other=None, mine=own("mine")),
    "true for a label, twice": {"nodeSelector": {"a": True}, "job": {"nodeSelector": {"a": "true"}}},
    "true for a label and in a term": {"nodeSelector": {"a": True}, **affinity(term(needs("a", "In", True)))},
    "a large number for a label": {
        "nodeSelector": {"a": 12345678},
        "job": {"nodeSelector": {"a": "12345678"}},
    },
    "numbers in a term": affinity(term(needs("a", "Gt", 1), needs("b", "In", 1.5, 2))),
    "nulls for an affinity": {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": None}}
    },
}
"""Values that look wrong, and have a meaning."""

NEEDS_A_CLUSTER = (
    "was installed with",
    "was installed below",
    "was installed by another chart",
    "already has the installation",
    "the cluster already has a worker",
    "does not mount images as volumes by default",
    "helm finds no key",
)
"""Parts of the refusals that ask the cluster. Tests of releases and of options have them."""

FROM_THE_COMMAND_LINE = ("has the Kata files but not kata-node", "job.dispatcherImage.reference: is empty")
"""Parts of the refusals of images that have no default. Their names often come from the command line of helm,
so the check does not ask a file for them."""


def cases(test: Any) -> list[Any]:
    """Return the parameters of a test as pairs of values and a part of helm's message."""
    [found] = [mark.args[1] for mark in test.pytestmark if mark.args[0] == ("values", "says")]
    return [
        pytest.param(*each.values[:1], id=each.id)
        for each in found
        if each.id not in ("the public image alone", "no dispatcher")
    ]


def errors(values: Document) -> list[str]:
    return [each.what for each in check(values).findings if each.level == "error"]


def helm_refuses(cluster: Cluster, values: Document) -> bool:
    try:
        documents(cluster, values)
    except CommandFailed:
        return True
    return False


@functools.cache
def refusals(cluster: Cluster, values: str) -> tuple[str, ...] | None:
    """Return the sentences with which the templates refuse values, in JSON; ``None`` if the schema does."""
    done = cluster.helm("template", "kata", str(CHART), "--values=-", text=values, check=False)
    if done.returncode == 0:
        return ()
    found = re.search(r"execution error at \([^)]*\): (.*)", done.stderr, re.DOTALL)
    if found is None:
        assert "specifications of the schema" in done.stderr
        return None
    said = found[1].partition("\n\n")[0]  # helm's own advice follows
    return tuple(line.strip() for line in said.splitlines() if " problems with the" not in line)


def key(sentence: str) -> str:
    """Return the key at the beginning of a sentence."""
    return sentence.partition(": ")[0]


def without_parser_text(sentence: str) -> str:
    """Return a sentence without what a parser of YAML says, which differs between helm and Python."""
    return re.sub(r"is not valid YAML \(.*\);", "is not valid YAML;", sentence)


def refused_values() -> list[Any]:
    options = test_chart_options.test_values_that_cannot_work_are_refused_with_the_key_and_the_remedy
    selections = test_chart_selection.test_a_selection_that_can_match_no_node_is_refused_in_both_modes
    return [
        *cases(options),
        *(pytest.param(values, id=name) for name, values in MORE.items()),
        *(
            pytest.param({"deploymentMode": mode, **case.values[0]}, id=f"{case.id}, {mode}")
            for case in cases(selections)
            for mode in MODES
        ),
    ]


REFUSED = refused_values()


@pytest.mark.parametrize("values", REFUSED)
def test_helm_and_the_check_refuse_the_same_with_the_same_words(cluster: Cluster, values: Document) -> None:
    by_helm = refusals(cluster, json.dumps(values))
    assert by_helm != ()
    assert errors(values)
    if by_helm is None:
        return
    findings = [each for each in check(values).findings if each.level == "error"]
    by_chart = {without_parser_text(each.what) for each in findings if each.source == "chart"}
    # What a node checks anyway is not checked twice.
    by_node = {key(each.what) for each in findings if each.source == "node"}
    sentences = {without_parser_text(each) for each in by_helm}
    assert by_chart <= sentences
    assert [each for each in sentences - by_chart if key(each) not in by_node] == []


def test_every_refusal_of_the_templates_is_compared(cluster: Cluster) -> None:
    said = [sentence for case in REFUSED for sentence in refusals(cluster, json.dumps(case.values[0])) or ()]
    written = [
        found
        for path in sorted((CHART / "templates").rglob("*.*"))
        for found in re.findall(
            r'kata-deploy\.refuse" \(list \S+ \(?(?:printf )?"((?:[^"\\]|\\.)*)"', path.read_text()
        )
    ]
    assert len(written) > 30
    never = [
        text
        for text in written
        if not any(part in text for part in (*NEEDS_A_CLUSTER, *FROM_THE_COMMAND_LINE))
        and not any(re.fullmatch(re.sub(r"%[sdvq]", ".*", re.escape(text)), each) for each in said)
    ]
    assert never == [], never


@pytest.mark.parametrize("path", test_chart_options.FLIPS)
def test_an_option_that_helm_accepts_is_no_error(path: str) -> None:
    base, value = test_chart_options.FLIPS[path]
    values = merge(base, test_chart_options.at(path, value))
    assert [each for each in errors(values) if "no enabled shim runs" not in each] == []


@pytest.mark.parametrize("values", BASES.values(), ids=BASES.keys())
def test_values_that_helm_renders_have_no_error(cluster: Cluster, values: Document) -> None:
    assert not helm_refuses(cluster, values)
    assert errors(values) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("values", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_values_that_look_wrong_are_accepted_by_both(cluster: Cluster, values: Document, mode: str) -> None:
    given = {**values, "deploymentMode": mode}
    rendered = documents(cluster, given)
    dry_run(cluster, rendered)
    assert errors(given) == []


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("image: {tag: 2026-08-01}", True),
        ("image: {tag: 1:30}", True),
        ("image: {tag: 12e4567}", True),
        ("image: {tag: 1234e56}", False),
        ("image: {tag: 0o17}", False),
        ("debug: y", True),
        ("debug: 'y'", False),
        ("nodeSelector: {a: n}", True),
        ("nodeSelector: {~: a}", False),
    ],
)
def test_a_value_without_quotes_has_the_type_that_helm_reads(
    cluster: Cluster, tmp_path: Path, text: str, *, accepted: bool
) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(text)
    done = cluster.helm("template", "kata", str(CHART), f"--values={path}", check=False)
    assert (done.returncode == 0) == accepted
    values = parse_values(text, str(path), hint="", as_helm=True)
    assert check(values).ok == accepted
