"""What the chart and the nodes say of a values file, without helm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from kata_node.values import schema
from kata_node.values.chart import defaults, merged
from kata_node.values.chart import schema as chart_schema
from kata_node.values.check import CheckResult, check, to_text

CHART = Path(__file__).resolve().parents[2] / "assets/chart/kata-deploy"
JOB = {"deploymentMode": "job"}


def said(result: CheckResult, level: str = "error", source: str = "") -> list[str]:
    return [each.what for each in result.findings if each.level == level and source in ("", each.source)]


def affinity(*terms: Mapping[str, Any]) -> dict[str, Any]:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}
    return {"affinity": {"nodeAffinity": required}}


@pytest.mark.parametrize(
    "path", [CHART / "values.yaml", *sorted(CHART.glob("*.values.yaml"))], ids=lambda each: each.name
)
@pytest.mark.parametrize("mode", ["job", "daemonset"])
def test_the_chart_and_its_examples_have_no_error(path: Path, mode: str) -> None:
    result = check({**yaml.safe_load(path.read_text()), "deploymentMode": mode})
    assert said(result) == []
    assert result.shims["amd64"]


def test_an_empty_file_means_the_defaults_of_the_chart() -> None:
    result = check({})
    assert result.ok
    assert "qemu" in result.shims["s390x"]
    assert "qemu-snp" in result.skipped["s390x"]


@pytest.mark.parametrize(
    ("values", "source", "what"),
    [
        pytest.param({"shimz": {}}, "chart", "shimz: is not a known key; did you mean shims?", id="a key"),
        pytest.param(
            {"job": {"parallelism": "3"}},
            "chart",
            'job.parallelism: expected a whole number, got the string "3"',
            id="a type",
        ),
        pytest.param({"job": {"parallelism": 0}}, "chart", "job.parallelism: 0 is too small", id="a number"),
        pytest.param(
            {"deploymentMode": "jobs"},
            "chart",
            "is not one of daemonset, job; did you mean job?",
            id="a choice",
        ),
        pytest.param(
            {"job": {"maxNotReady": "110%"}},
            "chart",
            'job.maxNotReady: the string "110%" does not match',
            id="a share",
        ),
        pytest.param(
            {"resources": {"limits": {"memory": "1Gb"}}},
            "chart",
            "resources.limits.memory: ",
            id="a quantity",
        ),
        pytest.param(
            {"job": {"nodes": ["a", 1]}}, "chart", "job.nodes[1]: expected a string", id="an item of a list"
        ),
        pytest.param(
            {"customRuntimes": {"enabled": True, "runtimes": {"a": {"baseConfig": "qemo"}}}},
            "chart",
            "did you mean qemu?",
            id="a shim",
        ),
        pytest.param(
            {"env": {"shims_x86_64": "qemu"}},
            "chart",
            "env.shims_x86_64: is a key of an older chart",
            id="an old key",
        ),
        pytest.param(
            {"env": {"shims": "qemu"}},
            "node",
            "env.shims: is a key of an older chart",
            id="an old key, on a node",
        ),
        pytest.param({"containerd": {"userDropIn": "a ="}}, "node", "containerd.userDropIn: ", id="TOML"),
        pytest.param(
            {"env": {"hostOS": "cbl-mariner"}}, "node", "env.hostOS is not supported", id="an unsupported key"
        ),
        pytest.param(
            {"shims": {"disableAll": True}}, "node", "no enabled shim runs on any architecture", id="no shim"
        ),
        pytest.param(
            {
                "nodeSelector": {"a": "c"},
                **affinity({"matchExpressions": [{"key": "a", "operator": "In", "values": ["b"]}]}),
            },
            "chart",
            "no node can have a In (c) and a In (b)",
            id="a selection of nothing",
        ),
        pytest.param(
            {**JOB, "job": {"dispatcherImage": {"reference": "r.example.org/k8s-job-dispatcher"}}},
            "chart",
            "is the dispatcher of the public chart",
            id="another dispatcher",
        ),
    ],
)
def test_an_error_names_the_key_and_who_finds_it(values: Mapping[str, Any], source: str, what: str) -> None:
    result = check(values)
    assert not result.ok
    assert [each for each in said(result, source=source) if what in each], said(result)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"devkit": True}, "devkit: has no effect without debug: true"),
        (
            {"shims": {"stratovirt": {"enabled": True}}},
            "shims.stratovirt: Kata 4.1 and later do not have it; nodes leave it out",
        ),
    ],
)
def test_a_key_without_effect_is_a_note(values: Mapping[str, Any], what: str) -> None:
    result = check(values)
    assert result.ok
    assert [each.what for each in result.findings if each.level == "note"] == [what]
    assert f"note: node: {what}" in to_text("values.yaml", result)


def test_all_errors_are_found_in_one_run() -> None:
    values = {
        **JOB,
        "image": {"reference": ""},
        "nodeSelector": {"kubernetes.io/os": "windows"},
        "startupTaints": ["a:Never"],
    }
    found = said(check(values))
    assert [each.partition(":")[0] for each in found] == [
        "image.reference",
        "nodeSelector, affinity, job.nodeSelector or job.nodeSelectorExpressions",
        "startupTaints",
    ]


def test_an_architecture_without_a_shim_is_a_note_unless_there_is_no_other() -> None:
    only = {"shims": {"disableAll": True, "qemu-se": {"enabled": True}}}
    result = check(only)
    assert result.ok
    [note] = [each for each in result.findings if each.level == "note"]
    assert note.what == "no enabled shim runs on these nodes"
    assert note.arches == ("amd64", "arm64", "ppc64le")
    assert result.shims == {"amd64": (), "arm64": (), "s390x": ("qemu-se",), "ppc64le": ()}
    nowhere = {"shims": {"disableAll": True, "qemu-se": {"enabled": True, "supportedArches": []}}}
    assert not check(nowhere).ok


def test_an_error_of_some_architectures_names_them() -> None:
    result = check(
        {"shims": {"disableAll": True, "qemu-tdx": {"enabled": True, "hypervisor": {"rootless": True}}}}
    )
    text = to_text("values.yaml", result)
    assert text.startswith("values.yaml: ")
    assert "hypervisor.rootless" in text


def test_null_removes_a_default_as_in_helm() -> None:
    assert merged({"job": {"nodeSelectorExpressions": None}})["job"].get("nodeSelectorExpressions") is None
    assert merged({"shims": {"fc": None}})["shims"].get("fc") is None
    assert merged({"nodeSelector": {"a": None}})["nodeSelector"] == {"a": None}
    assert defaults()["job"]["nodeSelectorExpressions"]


def test_a_null_does_not_hide_a_key_that_the_chart_does_not_have() -> None:
    assert said(check({"shimz": None, "env": {"hostos": None}}), source="chart") == [
        "env.hostos: is not a known key; did you mean hostOS?",
        "shimz: is not a known key; did you mean shims?",
    ]


@pytest.mark.parametrize("value", [True, "true"])
@pytest.mark.parametrize("mode", ["job", "daemonset"])
def test_a_boolean_label_is_the_text_true(value: object, mode: str) -> None:
    term = {"matchExpressions": [{"key": "a", "operator": "In", "values": [value]}]}
    values = {"deploymentMode": mode, "nodeSelector": {"a": True}, "job": {"nodeSelector": {"a": "true"}}}
    assert said(check({**values, **affinity(term)})) == []


def test_a_null_key_is_an_error() -> None:
    assert said(check({"nodeSelector": {None: "a"}})) == [
        "nodeSelector: a key is null; write a name, or remove the entry"
    ]


def keywords(node: object, *, names: bool = False) -> Iterator[str]:
    """Yield the keywords of a schema; the keys of a mapping of names are not keywords."""
    if isinstance(node, list):
        for each in node:
            yield from keywords(each)
    elif isinstance(node, dict):
        for key, below in node.items():
            if not names:
                yield key
            yield from keywords(
                below, names=not names and key in ("properties", "patternProperties", "$defs")
            )


def test_every_keyword_of_the_charts_schema_is_known() -> None:
    assert set(keywords(chart_schema())) <= schema.KEYWORDS
