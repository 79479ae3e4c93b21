"""The configuration file, the Job manifests and the command line of the dispatcher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kata_node.dispatcher import __main__ as command
from kata_node.dispatcher.config import IntOrPercent, load
from kata_node.dispatcher.kubernetes_objects import Toleration
from kata_node.dispatcher.template import JobIdentity, Target, Template, job_name
from kata_node.errors import SettingsError
from kata_node.kube.node_affinity import any_term_matches

POD = {"restartPolicy": "Never", "containers": [{"name": "label", "image": "kata"}]}
JOB = {"apiVersion": "batch/v1", "kind": "Job", "spec": {"backoffLimit": 0, "template": {"spec": POD}}}
MINIMAL: dict[str, Any] = {
    "action": "install",
    "namespace": "kata",
    "namePrefix": "install",
    "labels": {"app.kubernetes.io/instance": "mine"},
    "template": JOB,
}
INSTALLATION_LABEL = "kata-deploy.katacontainers.io/default"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


def loaded(file: Path, **change: Any) -> Any:
    file.write_text(yaml.safe_dump({**MINIMAL, **change}))
    return load(file)


def job(**spec: Any) -> dict[str, Any]:
    return {**JOB, "spec": {**JOB["spec"], **spec}}  # type: ignore[dict-item]


def pod(**more: Any) -> dict[str, Any]:
    return job(template={"spec": {**POD, **more}})


def test_a_minimal_configuration_has_the_defaults(file: Path) -> None:
    config = loaded(file)
    assert (config.nodes, config.selector, config.parallelism, config.wait_for_nodes) == ((), "", 100, 0)
    assert (config.canary, config.wave_size, config.max_failures, config.removed) == (0, None, None, None)
    assert config.wait_for_ready == 120
    assert config.templates.find(Target("n", runtime="docker")), "one template for every runtime"


def test_each_runtime_has_its_template_and_an_unknown_runtime_has_none(file: Path) -> None:
    removed = {"namePrefix": "removed", "templates": BOTH[:1]}
    config = loaded(file, template=None, templates=BOTH, removed=removed, mark=INSTALLATION_LABEL)
    nodes = {name: Target("n", runtime=name) for name in ("containerd", "cri-o", "docker", "")}
    found = {name: config.templates.find(node) for name, node in nodes.items()}
    assert [name for name, template in found.items() if template] == ["containerd", "cri-o"]
    assert len({template.digest for template in found.values() if template}) == 2
    assert [name for name, node in nodes.items() if config.removed.templates.find(node)] == ["containerd"]


@pytest.mark.parametrize(
    ("changes", "canaries", "stops"),
    [
        pytest.param({}, (0, 0), False, id="nothing set"),
        pytest.param({"rollout": {"canary": "auto"}}, (0, 1), True, id="auto"),
        pytest.param({"rollout": {"canary": "auto", "maxFailures": 1}}, (0, 1), False, id="auto and a limit"),
        pytest.param({"rollout": {"canary": 0}}, (0, 0), False, id="no canary"),
        pytest.param({"rollout": {"canary": 3}}, (3, 3), False, id="canaries"),
        pytest.param({"rollout": {"maxFailures": 1}}, (0, 0), False, id="a limit"),
        pytest.param({"rollout": {"canary": "auto", "waveSize": 4}}, (0, 1), True, id="waves"),
        pytest.param({"rollout": {"canary": "auto"}, "action": "cleanup"}, (0, 0), False, id="a cleanup"),
        pytest.param(
            {"rollout": {"canary": "auto"}, "skipServing": True, "mark": INSTALLATION_LABEL},
            (0, 0),
            False,
            id="the CronJob",
        ),
    ],
)
def test_a_larger_install_has_a_canary_node_unless_the_rollout_says_otherwise(
    file: Path, changes: dict[str, Any], canaries: tuple[int, int], stops: bool
) -> None:
    config = loaded(file, **changes)
    assert (config.canary_nodes(5), config.canary_nodes(6)) == canaries
    assert config.stops_on_rollbacks == stops


def test_every_key_is_read(file: Path) -> None:
    config = loaded(
        file,
        generation="7",
        selection={"labelSelector": " a=b,!c "},
        parallelism=3,
        waitForNodesSeconds=60,
        waitForReadySeconds=0,
        maxNotReady="5%",
        mark=INSTALLATION_LABEL,
        skipServing=True,
        events=True,
        rollout={"canary": 2, "waveSize": "25%", "maxFailures": 0},
        removed={"namePrefix": "removed", "template": JOB},
    )
    assert (config.generation, config.selector, config.parallelism) == ("7", "a=b,!c", 3)
    assert (config.wait_for_nodes, config.wait_for_ready) == (60, 0)
    assert config.max_not_ready_nodes(100) == 5
    assert (config.installation_label, config.skip_serving, config.events) == (INSTALLATION_LABEL, True, True)
    assert (config.canary, config.wave_size, config.max_failures) == (
        2,
        IntOrPercent(25, percent=True),
        IntOrPercent(0),
    )
    assert config.removed.name_prefix == "removed"
    assert config.job_selector() == "app.kubernetes.io/instance=mine,job.katacontainers.io/node"


def test_node_names_override_the_label_selector(file: Path) -> None:
    config = loaded(file, selection={"nodes": ["b", "a", "b"], "labelSelector": "x=y"})
    assert (config.nodes, config.selector) == (("b", "a"), "")


def test_the_terms_of_a_node_affinity_are_read(file: Path) -> None:
    expression = {"key": "memory", "operator": "Gt", "values": ["32"]}
    name = {"key": "metadata.name", "operator": "In", "values": ["a"]}
    terms = [{"matchExpressions": [expression]}, {"matchFields": [name]}]
    config = loaded(file, selection={"labelSelector": "a", "nodeSelectorTerms": terms}, nodeSettleSeconds=3)
    assert (config.selector, config.node_settle) == ("a", 3)
    assert [
        any_term_matches(config.terms, *node) for node in (("b", {"memory": "64"}), ("a", {}), ("b", {}))
    ] == [
        True,
        True,
        False,
    ]


def test_a_json_file_is_read(file: Path) -> None:
    file.write_text(json.dumps(MINIMAL))
    assert load(file).action == "install"


REMOVED = {"namePrefix": "removed", "template": JOB}
BOTH = [{"runtime": "containerd", "template": JOB}, {"runtime": "cri-o", "template": pod(hostname="n")}]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"action": None}, "action: is missing", id="no action"),
        pytest.param({"action": "instal"}, 'action: the string "instal" is not one of', id="another action"),
        pytest.param({"namespace": ""}, "namespace: ", id="no namespace"),
        pytest.param({"namePrefix": "x" * 41}, "at most 40 lower-case letters", id="a long prefix"),
        pytest.param({"namePrefix": "a.b"}, "namePrefix: ", id="a prefix with a dot"),
        pytest.param({"labels": {}}, "labels: is empty", id="no labels"),
        pytest.param({"labels": {"a": "b c"}}, "labels.a: ", id="a value that is none"),
        pytest.param({"labels": {"a": 1}}, "put it in quotes", id="a label that is a number"),
        pytest.param(
            {"labels": {"job.katacontainers.io/x": "y"}}, "are reserved for the dispatcher", id="own labels"
        ),
        pytest.param(
            {"parallelism": 0}, "parallelism: expected a whole number, 1 or more", id="none at once"
        ),
        pytest.param({"parallelism": True}, "parallelism: expected a whole number", id="true is no number"),
        pytest.param({"paralelism": 5}, "did you mean parallelism?", id="a typing error"),
        pytest.param({"generation": 7}, "generation: expected a string", id="a generation that is a number"),
        pytest.param({"selection": {"nodes": ["A_b"]}}, "is not a valid Node name", id="no name"),
        pytest.param({"selection": {"nodeSelectorTerms": []}}, "no node matches", id="no terms"),
        pytest.param(
            {"selection": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a"}]}]}},
            "selection.nodeSelectorTerms[0].matchExpressions[0].operator: is missing",
            id="no operator",
        ),
        pytest.param(
            {"selection": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "is"}]}]}},
            'the string "is" is not one of In, NotIn',
            id="an unknown operator",
        ),
        pytest.param(
            {"selection": {"nodeSelectorTerms": [{"matchFields": [{"key": "a", "operator": "Exists"}]}]}},
            "is not metadata.name",
            id="an unknown field",
        ),
        pytest.param({"mark": "a b"}, "mark: ", id="no label"),
        pytest.param({"skipServing": True}, "skipServing: needs the key mark", id="serving without a mark"),
        pytest.param({"labelNodes": {}}, "labelNodes: needs the key mark", id="labels without a mark"),
        pytest.param(
            {"labelNodes": {"timeoutSeconds": 10}, "mark": INSTALLATION_LABEL},
            "labelNodes.timeoutSeconds: ",
            id="no time to watch the labels",
        ),
        pytest.param({"rollout": {"waveSize": 0}}, "rollout.waveSize: expected a number", id="an empty wave"),
        pytest.param({"rollout": {"maxFailures": "200%"}}, "rollout.maxFailures: ", id="more than all"),
        pytest.param({"maxNotReady": "150%"}, "maxNotReady: ", id="more than all that are not ready"),
        pytest.param({"rollout": {"maxFailures": "some"}}, "or a percentage like 10%", id="no share"),
        pytest.param({"template": None}, "template: is missing; set template or templates", id="no template"),
        pytest.param(
            {"template": "job.yaml"}, "template: expected a complete Job", id="a template that is a file"
        ),
        pytest.param(
            {"templates": BOTH}, "template: is set together with templates", id="both ways to say it"
        ),
        pytest.param({"template": None, "templates": []}, "templates: is empty", id="no runtime"),
        pytest.param(
            {"template": None, "templates": [JOB["spec"]]},
            "templates[0].backoffLimit: is not a known key",
            id="odd keys",
        ),
        pytest.param(
            {"template": None, "templates": ["x"]},
            "templates[0]: expected a mapping with runtime",
            id="a word",
        ),
        pytest.param(
            {"template": None, "templates": [{"template": JOB}]},
            "templates[0].runtime: is missing; set containerd or cri-o",
            id="no name of a runtime",
        ),
        pytest.param(
            {"template": None, "templates": [{"runtime": "crio", "template": JOB}]},
            'templates[0].runtime: the string "crio" is not one of containerd, cri-o',
            id="another runtime",
        ),
        pytest.param(
            {"template": None, "templates": [*BOTH, BOTH[0]]},
            "templates[2].runtime: containerd already has a template",
            id="a runtime twice",
        ),
        pytest.param(
            {"template": None, "templates": [{"runtime": "cri-o"}]},
            "templates[0].template: expected a complete Job, got nothing",
            id="a runtime without a template",
        ),
        pytest.param(
            {"template": None, "templates": [{"runtime": "cri-o", "template": pod(nodeName="n")}]},
            "templates[0].template.spec.template.spec.nodeName: must not be set",
            id="a node in one of them",
        ),
        pytest.param(
            {"waitForReadySeconds": -1}, "waitForReadySeconds: expected a whole", id="less than none"
        ),
        pytest.param(
            {"removed": {**REMOVED, "templates": BOTH}, "mark": INSTALLATION_LABEL},
            "removed.template: is set together with templates",
            id="both ways in removed",
        ),
        pytest.param(
            {"template": {**JOB, "kind": "Pod"}},
            "template.kind: is not Job, or apiVersion is not batch/v1",
            id="a Pod",
        ),
        pytest.param({"template": job(template={})}, "spec.template.spec: is missing", id="no Pod"),
        pytest.param({"template": job(completions=2)}, "spec.completions: must be 1", id="two Pods"),
        pytest.param({"template": job(suspend=True)}, "spec.suspend: must not be true", id="suspended"),
        pytest.param({"template": pod(nodeName="n")}, "nodeName: must not be set", id="a node"),
        pytest.param({"template": pod(tolerations="all")}, "tolerations: Expected", id="odd tolerations"),
        pytest.param(
            {"template": pod(hostname="@NODENAME@")}, "@NODENAME@ is not a placeholder", id="no placeholder"
        ),
        pytest.param({"removed": REMOVED}, "removed: needs the key mark", id="removal without a mark"),
        pytest.param(
            {"check": REMOVED}, "check: is valid only with the action cleanup", id="a check before an install"
        ),
        pytest.param({"deadlineSeconds": -1}, "deadlineSeconds: expected a whole", id="a time in the past"),
        pytest.param(
            {"removed": REMOVED, "mark": INSTALLATION_LABEL, "action": "cleanup"},
            "valid only with the action install",
            id="removal twice",
        ),
        pytest.param(
            {"removed": {**REMOVED, "namePrefix": "install"}, "mark": INSTALLATION_LABEL},
            "the same names",
            id="one prefix",
        ),
    ],
)
def test_an_invalid_value_is_refused_with_its_key(file: Path, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError) as error:
        loaded(file, **change)
    assert expected in error.value.what
    assert error.value.where == str(file)


def test_all_problems_of_a_file_are_reported_together(file: Path) -> None:
    with pytest.raises(SettingsError) as error:
        loaded(file, parallelism=-1, labels={}, rollout={"canary": "one"})
    assert error.value.what.startswith("3 problems")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"a: [", "not valid YAML", id="no YAML"),
        pytest.param(b"\xff", "utf-8", id="no text"),
        pytest.param(b"- 1", "expected a mapping", id="a list"),
        pytest.param(b"", "expected a mapping", id="empty"),
    ],
)
def test_a_file_without_a_mapping_is_refused(file: Path, content: bytes, expected: str) -> None:
    file.write_bytes(content)
    with pytest.raises(SettingsError, match=expected):
        load(file)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("[" * 100_000, "nested more than 100 levels deep", id="brackets"),
        pytest.param("template: " + "{a: " * 100_000, "nested more than 100 levels deep", id="braces"),
        pytest.param("template: &a {spec: *a}", "contains it", id="an alias that contains itself"),
        pytest.param("action: 2025-99-99", "not a valid timestamp", id="no date"),
        pytest.param("parallelism: 0x" + "f" * 5000, "does not fit into 64 bits", id="huge"),
        pytest.param("rollout: {waveSize: 99999999999}", "rollout.waveSize: expected", id="too many nodes"),
        pytest.param("template: {a: 18446744073709551615}", "template.a: expected", id="large in it"),
        pytest.param("template: {a: [1, .nan]}", "template.a[1]: expected", id="no number"),
        pytest.param("template: {d: 2025-01-01}", "template.d: expected", id="date"),
        pytest.param("template: {1: 2}", "template: expected a string as the key", id="key"),
        pytest.param('namespace: "a\\0"', "namespace: has a NUL character", id="NUL"),
    ],
)
def test_odd_values_are_refused_with_their_key(file: Path, text: str, expected: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file)
    assert expected in caught.value.what
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"metadata": "x"}, "template.metadata"),
        ({"metadata": {"labels": ["x"]}}, "template.metadata.labels"),
        (
            {"spec": {"template": {"spec": POD, "metadata": {"annotations": 1}}}},
            "template.spec.template.metadata.annotations",
        ),
    ],
    ids=["metadata", "labels", "annotations"],
)
def test_metadata_that_the_dispatcher_cannot_extend_is_refused(file: Path, change: Any, key: str) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(file, template={**JOB, **change})
    assert caught.value.what == f"{key}: is not a mapping"


# --- names and manifests ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("node", "name"),
    [
        pytest.param("worker-1", "install-worker-1", id="plain"),
        pytest.param("a" * 55, "install-" + "a" * 55, id="just short enough"),
        pytest.param("a.b", "install-a-b-", id="a dot"),
        pytest.param("a" * 56, "install-" + "a" * 44 + "-", id="too long"),
        pytest.param(("b" * 43 + "." + "c" * 60), "install-" + "b" * 43 + "-", id="cut at a dot"),
    ],
)
def test_a_job_name_is_valid_as_a_label_and_as_a_host_name(node: str, name: str) -> None:
    made = job_name("install", node)
    assert made.startswith(name)
    assert len(made) <= 63
    assert "." not in made
    assert not made.endswith("-")
    assert "--" not in made.removeprefix("install-")


def test_two_nodes_never_get_the_same_job_name() -> None:
    nodes = ["a.b", "a-b", "a.b.c", "x" * 80 + "1", "x" * 80 + "2"]
    assert len({job_name("install", node) for node in nodes}) == len(nodes)


def test_a_manifest_keeps_the_labels_and_annotations_of_its_template() -> None:
    template = Template(
        {
            **JOB,
            "metadata": {"generateName": "x-", "labels": {"own": "1"}, "annotations": {"own": "2"}},
            "spec": {"template": {"metadata": {"labels": {"own": "3"}}, "spec": POD}},
        }
    )
    made = json.loads(template.render("job", "install", Target("n"), JobIdentity("kata", {"a": "b"})))
    metadata = made["metadata"]
    assert "generateName" not in metadata
    assert (metadata["labels"]["own"], metadata["annotations"]["own"]) == ("1", "2")
    assert made["spec"]["template"]["metadata"]["labels"]["own"] == "3"
    assert "ownerReferences" not in metadata


def test_quotes_in_a_machine_id_cannot_change_the_manifest() -> None:
    template = Template(job(template={"spec": {**POD, "hostname": "@MACHINE_ID@"}}))
    odd = 'x", "nodeName": "other\n'
    made = json.loads(template.render("job", "install", Target("n", "u", odd), JobIdentity("kata", {})))
    assert made["spec"]["template"]["spec"]["hostname"] == odd
    assert made["spec"]["template"]["spec"]["nodeName"] == "n"


def test_the_digest_depends_on_the_content_of_a_template_and_not_on_its_key_order() -> None:
    again = {"spec": JOB["spec"], "kind": "Job", "apiVersion": "batch/v1"}
    assert Template(JOB).digest == Template(again).digest
    assert Template(JOB).digest != Template(job(backoffLimit=1)).digest


def test_the_tolerations_come_from_the_pod_template() -> None:
    (toleration,) = Template(pod(tolerations=[{"operator": "Exists"}])).tolerations
    assert toleration == Toleration(operator="Exists")


# --- the command line -------------------------------------------------------------------------------


@pytest.fixture
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory without Kubernetes credentials."""
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KATA_DISPATCHER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_missing_configuration_option_is_an_error(
    no_credentials: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.run([]) == 2
    assert "--config: no configuration file is given" in capsys.readouterr().err


def test_an_environment_variable_can_name_the_configuration(
    no_credentials: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KATA_DISPATCHER_CONFIG", str(no_credentials / "absent"))
    assert command.run(["--output", "json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["where"] == str(no_credentials / "absent")


def test_an_owner_needs_a_name_and_a_uid(
    no_credentials: Path, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded(file)
    kubeconfig = {
        "current-context": "a",
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        "clusters": [{"name": "a", "cluster": {"server": "http://127.0.0.1:1"}}],
        "users": [{"name": "a", "user": {"token": "t"}}],
    }
    (no_credentials / "kubeconfig").write_text(json.dumps(kubeconfig))
    monkeypatch.setenv("KUBECONFIG", str(no_credentials / "kubeconfig"))
    assert command.run(["--config", str(file), "--owner-name", "job"]) == 2
    assert "only one of the two options is set" in capsys.readouterr().err


def test_missing_credentials_are_reported_in_the_log_and_in_the_termination_message(
    no_credentials: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded(file)
    message = no_credentials / "message"
    message.touch()
    assert command.run(["--config", str(file), "--termination-log", str(message)]) == 1
    assert "no credentials" in json.loads(message.read_text())["error"]["what"]
    assert "no credentials" in capsys.readouterr().err


def test_an_invalid_value_of_a_variable_is_refused_with_its_name(
    no_credentials: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KATA_DISPATCHER_OUTPUT", "xml")
    with pytest.raises(SystemExit) as ended:
        command.run([])
    assert ended.value.code == 2
    assert "KATA_DISPATCHER_OUTPUT: expected one of text, json" in capsys.readouterr().err


@pytest.mark.commands
def test_the_dispatcher_imports_no_node_side_module() -> None:
    code = (
        "import sys, kata_node.dispatcher.run, kata_node.dispatcher.__main__\nprint(*sys.modules, sep='\\n')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(run.stdout.splitlines())
    assert not loaded & {"typer", "psutil", "tomlkit", "jeepney", "h2", "stages", "kata_node.pipeline"}
    assert not [name for name in loaded if name.startswith("kata_node.host")]
