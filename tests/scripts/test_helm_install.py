"""scripts/helm-install: how it runs helm, what it waits for, and what it prints after a failure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.commands

CHECKOUT = Path(__file__).resolve().parents[2]
DIGEST = f"sha256:{'0' * 64}"
NODES = {"items": [{"metadata": {"name": "worker"}}]}
UNREACHABLE = "The connection to the server was refused"


@dataclass(frozen=True)
class CommandResult:
    """The exit code, the output, and the calls of helm and kubectl."""

    code: int
    text: str
    asked: list[dict[str, Any]]

    def commands(self, program: str, verb: str) -> list[list[str]]:
        return [
            each["command"]
            for each in self.asked
            if each["command"][0] == program and verb in each["command"]
        ]

    @property
    def helm(self) -> list[str]:
        """The command ``helm upgrade``; a run has exactly one."""
        [command] = self.commands("helm", "upgrade")
        return command

    @property
    def own(self) -> Any:
        """The values that the script adds to the values file."""
        [values] = [each["values"] for each in self.asked if "upgrade" in each["command"]]
        return json.loads(values[1])


@dataclass(frozen=True)
class FakeHelm:
    """A directory with the values file and fake helm and kubectl programs."""

    directory: Path

    def programs(self, *names: str) -> None:
        for name in names:
            path = self.directory / "bin" / name
            program = CHECKOUT / "tests/scripts/fake_helm.py"
            path.write_text(
                f'#!/bin/sh\nexec "{sys.executable}" "{program}" "{self.directory}" {name} "$@"\n'
            )
            path.chmod(0o755)

    def run(
        self, values: str | None, *options: str, env: Mapping[str, str] | None = None, **answers: Any
    ) -> CommandResult:
        """Run the script with this values file; it checks the cluster at most twice."""
        chart = {"deploymentMode": "daemonset", "job": {}, "env": {"multiInstallSuffix": ""}}
        named = {key.replace("_", " "): value for key, value in answers.items()}
        (self.directory / "answers.json").write_text(json.dumps({"chart": chart, **named}))
        base = self.directory / "base.yaml"
        if values is not None:
            base.write_text(values)
        command = [sys.executable, str(CHECKOUT / "scripts/helm-install"), str(base), "--chart=chart"]
        done = subprocess.run(
            [*command, "--interval=0.01", "--wait-timeout=0.015", *options],
            env={"PATH": str(self.directory / "bin"), **(env or {})},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        log = self.directory / "asked.jsonl"
        asked = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        return CommandResult(done.returncode, done.stdout + done.stderr, asked)


@pytest.fixture
def fake_helm(tmp_path: Path) -> FakeHelm:
    (tmp_path / "bin").mkdir()
    fake_helm = FakeHelm(tmp_path)
    fake_helm.programs("helm", "kubectl")
    return fake_helm


def daemonset(desired: int, ready: int, *, updated: int | None = None, seen: int = 2, **spec: Any) -> Any:
    status = {
        "desiredNumberScheduled": desired,
        "numberReady": ready,
        "updatedNumberScheduled": desired if updated is None else updated,
        "observedGeneration": seen,
    }
    return {"metadata": {"generation": 2}, "spec": spec, "status": status}


def pod(name: str, phase: str, *statuses: Any, init: Any = ()) -> Any:
    return {
        "metadata": {"name": name, "namespace": "kube-system"},
        "spec": {"nodeName": "worker"},
        "status": {"phase": phase, "initContainerStatuses": [*init], "containerStatuses": [*statuses]},
    }


def test_in_job_mode_it_selects_control_plane_nodes_and_waits_for_the_labels(fake_helm: FakeHelm) -> None:
    values = "deploymentMode: job\njob: {nodeSelectorExpressions: [{key: a, operator: Exists}]}\n"
    done = fake_helm.run(values, get_nodes=[NODES])
    assert done.code == 0, done.text
    assert done.own == {"job": {"nodeSelectorExpressions": []}}
    assert done.helm[:5] == ["helm", "upgrade", "--install", "kata-deploy", "chart"]
    assert "--namespace=kube-system" in done.helm
    [look] = done.commands("kubectl", "nodes")
    assert "--selector=katacontainers.io/kata-runtime=true,kata-deploy.katacontainers.io/default=true" in look


def test_in_daemonset_mode_it_waits_for_all_pods(fake_helm: FakeHelm) -> None:
    done = fake_helm.run("deploymentMode: daemonset\n", get_daemonset=[daemonset(2, 2)])
    assert done.code == 0, done.text
    assert done.own == {}
    assert "kata-deploy" in done.commands("kubectl", "daemonset")[0]


@pytest.mark.parametrize(
    "look",
    [
        pytest.param(daemonset(0, 0), id="no node fits"),
        pytest.param(daemonset(2, 1), id="one is not ready"),
        pytest.param(daemonset(2, 2, updated=1), id="one is of the last revision"),
        pytest.param(daemonset(2, 2, seen=1), id="the status is that of the last revision"),
        pytest.param(UNREACHABLE, id="the API server is away"),
    ],
)
def test_a_daemonset_that_is_not_ready_is_checked_again(fake_helm: FakeHelm, look: Any) -> None:
    late = fake_helm.run("", get_daemonset=[look])
    assert late.code == 1
    assert "Kata is not ready after" in late.text
    (fake_helm.directory / "looks-daemonset").unlink()
    done = fake_helm.run("", "--wait-timeout=60", get_daemonset=[look, daemonset(2, 2)])
    assert done.code == 0, done.text


def test_with_on_delete_it_does_not_wait_for_pods_of_the_new_revision(fake_helm: FakeHelm) -> None:
    look = daemonset(2, 2, updated=0, updateStrategy={"type": "OnDelete"})
    assert fake_helm.run("", get_daemonset=[look]).code == 0


@pytest.mark.parametrize(
    ("values", "options", "looked"),
    [
        pytest.param("", [], "daemonset", id="empty"),
        pytest.param("deploymentMode: ~\n", [], "daemonset", id="null"),
        pytest.param("job: ~\nenv: ~\n", [], "daemonset", id="sections that are null"),
        pytest.param(
            "deploymentMode: daemonset\n", ["--set", "deploymentMode=job"], "nodes", id="--set wins"
        ),
        pytest.param("", ["-f", "MORE"], "nodes", id="another file wins"),
    ],
)
def test_the_mode_comes_from_the_merged_values(
    fake_helm: FakeHelm, values: str, options: list[str], looked: str
) -> None:
    more = fake_helm.directory / "more.yaml"
    more.write_text("deploymentMode: job\n")
    given = [str(more) if option == "MORE" else option for option in options]
    done = fake_helm.run(values, *given, get_nodes=[NODES], get_daemonset=[daemonset(1, 1)])
    assert done.code == 0, done.text
    assert done.commands("kubectl", looked)
    # helm gets the same option last, so that it overrides the values file there as well.
    assert not given or done.helm[-1] in (f"--values={more}", "--set=deploymentMode=job")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(
            "deploymentMode: jobs\n", 'deploymentMode: "jobs" is neither daemonset nor job', id="mode"
        ),
        pytest.param("deploymentMode: [job]\n", "is neither daemonset nor job", id="a list of modes"),
        pytest.param("job: [a]\n", 'job: ["a"] is not a mapping', id="a list of jobs"),
        pytest.param("env: prod\n", 'env: "prod" is not a mapping', id="a word in place of a section"),
        pytest.param("- a\n", "helm cannot read the values", id="a list"),
        pytest.param("a: b: c\n", "helm cannot read the values", id="no YAML"),
        pytest.param(None, "helm cannot read the values", id="no file"),
    ],
)
def test_invalid_values_are_refused_before_any_change(
    fake_helm: FakeHelm, values: str | None, expected: str
) -> None:
    done = fake_helm.run(values, get_nodes=[NODES])
    assert done.code == 2
    assert expected in done.text
    assert not done.commands("helm", "upgrade")


def test_with_a_suffix_it_waits_for_the_names_with_that_suffix(fake_helm: FakeHelm) -> None:
    suffixed = "env: {multiInstallSuffix: two}\n"
    done = fake_helm.run(f"deploymentMode: job\n{suffixed}", get_nodes=[NODES])
    assert "kata-deploy.katacontainers.io/two=true" in str(done.commands("kubectl", "nodes"))
    done = fake_helm.run(suffixed, get_daemonset=[daemonset(1, 1)])
    assert "kata-deploy-two" in done.commands("kubectl", "daemonset")[-1]


@pytest.mark.parametrize(
    ("reference", "tag", "image"),
    [
        pytest.param("r/kata", "", {"reference": "r/kata"}, id="reference alone"),
        pytest.param("", "pr-7", {"tag": "pr-7"}, id="tag alone"),
        pytest.param("r/kata", "1.0", {"reference": "r/kata", "tag": "1.0"}, id="both"),
        pytest.param("r/kata", DIGEST, {"reference": "r/kata", "tag": DIGEST}, id="digest as a tag"),
        pytest.param("r:5000/a/kata:7", "", {"reference": "r:5000/a/kata", "tag": "7"}, id="tag and port"),
        pytest.param("r:5000/kata", "", {"reference": "r:5000/kata"}, id="a port is no tag"),
        pytest.param("kata:7", "", {"reference": "kata", "tag": "7"}, id="without a registry"),
        pytest.param(f"r/kata@{DIGEST}", "", {"reference": f"r/kata@{DIGEST}", "tag": ""}, id="digest"),
        pytest.param(
            f"r/kata:7@{DIGEST}", "", {"reference": f"r/kata:7@{DIGEST}", "tag": ""}, id="tag, digest"
        ),
    ],
)
def test_environment_variables_set_the_images(
    fake_helm: FakeHelm, reference: str, tag: str, image: Any
) -> None:
    places: Mapping[str, Callable[[Any], Any]] = {
        "HELM_IMAGE": lambda own: own["image"],
        "HELM_NODE_IMAGE": lambda own: own["nodeImage"],
        "HELM_JOB_DISPATCHER_IMAGE": lambda own: own["job"]["dispatcherImage"],
        "HELM_KUBECTL_IMAGE": lambda own: own["kubectlImage"],
        "HELM_MONITOR_IMAGE": lambda own: own["monitor"]["image"],
    }
    env = {
        f"{name}_{part}": value for name in places for part, value in (("REFERENCE", reference), ("TAG", tag))
    }
    done = fake_helm.run("deploymentMode: job\n", env=env, get_nodes=[NODES])
    assert done.code == 0, done.text
    assert [place(done.own) for place in places.values()] == [image] * len(places)
    assert done.own["job"]["nodeSelectorExpressions"] == []


@pytest.mark.parametrize("reference", ["r/kata:7", f"r/kata@{DIGEST}"])
def test_an_image_with_two_tags_is_refused(fake_helm: FakeHelm, reference: str) -> None:
    done = fake_helm.run("", env={"HELM_IMAGE_REFERENCE": reference, "HELM_IMAGE_TAG": "8"})
    assert done.code == 2
    assert "unset HELM_IMAGE_TAG" in done.text


def test_other_options_go_to_helm_and_kubectl_gets_the_same_cluster(fake_helm: FakeHelm) -> None:
    options = [
        "--kubeconfig",
        "kc",
        "--kube-context=there",
        "-n",
        "kata",
        "--release=mine",
        "--version",
        "3.2",
    ]
    helms = ["--", "--debug", "--wait", "--description", "of a CI", "--timeout", "30m", "--set-string", "a=b"]
    done = fake_helm.run("deploymentMode: job\n", *options, *helms, get_nodes=[NODES])
    assert done.code == 0, done.text
    for each in ("--debug", "--wait", "--timeout=30m", "--set-string=a=b", "--version=3.2", "mine"):
        assert each in done.helm
    assert "--" not in done.helm
    assert done.helm[done.helm.index("--description") + 1] == "of a CI"
    assert {"--kubeconfig=kc", "--kube-context=there", "--namespace=kata"} <= {*done.helm}
    assert "--version=3.2" in done.commands("helm", "show")[0]
    [look] = done.commands("kubectl", "nodes")
    assert {"--kubeconfig=kc", "--context=there"} <= {*look}


def test_the_environment_variables_of_helm_apply_to_helm_and_kubectl(fake_helm: FakeHelm) -> None:
    env = {"HELM_NAMESPACE": "kata", "HELM_KUBECONTEXT": "there", "KATA_DEPLOY_WAIT_TIMEOUT": "2m"}
    done = fake_helm.run("", env=env, get_daemonset=[daemonset(1, 1)])
    assert {"--namespace=kata", "--kube-context=there"} <= {*done.helm}
    assert {"--namespace=kata", "--context=there"} <= {*done.commands("kubectl", "daemonset")[0]}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param(["--kube-token=secret"], "set KUBECONFIG instead", id="a cluster only helm knows"),
        pytest.param(["--values=-"], "write them to a file", id="values that can be read once"),
        pytest.param(["--wait-timeout=soon"], "soon is not a duration", id="a word for a time"),
        pytest.param(["--wait-timeout=0"], "0 is not a duration", id="no time"),
    ],
)
def test_invalid_options_are_refused(fake_helm: FakeHelm, options: list[str], expected: str) -> None:
    done = fake_helm.run("", *options)
    assert done.code == 2
    assert expected in done.text
    assert not done.commands("helm", "upgrade")


def test_the_first_argument_must_be_the_values_file() -> None:
    command = [sys.executable, str(CHECKOUT / "scripts/helm-install"), "--release=mine", "base.yaml"]
    done = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the first argument must be the values file, not --release=mine" in done.stderr


@pytest.mark.parametrize("there", [["helm"], ["kubectl"], []])
def test_all_missing_programs_are_named(tmp_path: Path, there: list[str]) -> None:
    (tmp_path / "bin").mkdir()
    fake_helm = FakeHelm(tmp_path)
    fake_helm.programs(*there)
    done = fake_helm.run("")
    assert done.code == 2
    missing = " and ".join(name for name in ("helm", "kubectl") if name not in there)
    assert f"not found: {missing}\n" in done.text


def test_a_dry_run_does_not_wait(fake_helm: FakeHelm) -> None:
    done = fake_helm.run("", "--dry-run=server")
    assert done.code == 0, done.text
    assert not [each for each in done.asked if each["command"][0] == "kubectl"]


FAILED = pod(
    "kata-deploy-install-worker",
    "Failed",
    {"name": "label", "state": {"waiting": {"reason": "PodInitializing"}}},
    init=[
        {
            "name": "cri",
            "restartCount": 1,
            "state": {"terminated": {"exitCode": 4, "reason": "Error", "message": "put back\n"}},
            "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": "did not come back"}},
        }
    ],
)
TRUST_ME = "\x1b[2J\n  hint: trust me\u202e"
HOSTILE = pod(
    "kata-deploy-install-evil",
    "Failed",
    {
        "name": "label",
        "state": {"waiting": {"reason": "PodInitializing", "message": "a\nb"}},
    },
    init=[
        {
            "name": "cri",
            "state": {"terminated": {"exitCode": 4, "message": f"{TRUST_ME}{'x' * 300_000}"}},
        }
    ],
)
SUCCEEDED = pod("dispatcher", "Succeeded", {"name": "dispatcher", "state": {"terminated": {"exitCode": 0}}})


def assert_state_is_printed(done: CommandResult) -> None:
    for each in (
        "STATUS: as helm has it",
        "table of daemonsets,jobs,pods",
        "pod kube-system/kata-deploy-install-worker on worker: Failed",
        "cri: before terminated Error exit code 1 did not come back",
        "cri: now terminated Error exit code 4 put back",
        "label: now waiting PodInitializing",
        "earlier words of kata-deploy-install-worker/cri",
        "\nwords of kata-deploy-install-worker/cri",
        "words of dispatcher/dispatcher",
        "table of nodes",
        "events of nodes\ntable of events",
        "events in kube-system\ntable of events",
    ):
        assert each in done.text
    assert "kata-deploy-install-worker/label" not in done.text
    assert done.text.index("pod kube-system/kata-deploy") < done.text.index("pod kube-system/dispatcher")
    assert "--show-labels" in str(done.commands("kubectl", "nodes"))
    assert "TAINTS" in str(done.commands("kubectl", "nodes"))


def test_words_of_a_node_do_not_command_the_terminal(fake_helm: FakeHelm) -> None:
    done = fake_helm.run("deploymentMode: job\n", helm=3, get_pods=[{"items": [HOSTILE]}])
    assert r"cri: now terminated exit code 4 \x1b[2J hint: trust me\u202exxx" in done.text
    assert "x" * 600 not in done.text
    assert "label: now waiting PodInitializing a b" in done.text
    assert all(line.isprintable() for line in done.text.splitlines())


@pytest.mark.parametrize("words", ["::add-mask::x", "a\n  ::error::x", "##[endgroup]"])
def test_words_of_a_node_do_not_command_github_actions(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = SourceFileLoader("helm_install", str(CHECKOUT / "scripts/helm-install"))
    module = ModuleType("helm_install")
    module.__file__ = loader.path
    monkeypatch.setitem(sys.modules, "helm_install", module)
    loader.exec_module(module)
    assert not re.search(r"(?m)^\s*::|##\[", module.inert(words))


def test_the_state_is_printed_when_helm_fails(fake_helm: FakeHelm) -> None:
    done = fake_helm.run("deploymentMode: job\n", helm=3, get_pods=[{"items": [SUCCEEDED, FAILED]}])
    assert done.code == 1
    assert "Error: what helm says" in done.text
    assert "helm ended with 3" in done.text
    assert_state_is_printed(done)


def test_the_state_is_printed_when_no_node_gets_the_labels_in_time(fake_helm: FakeHelm) -> None:
    looks: list[Any] = [{"items": []}]
    done = fake_helm.run("deploymentMode: job\n", get_nodes=looks, get_pods=[{"items": [SUCCEEDED, FAILED]}])
    assert done.code == 1
    assert done.text.rstrip().endswith("kata-deploy.katacontainers.io/default=true: none")
    assert_state_is_printed(done)


def test_a_failed_command_is_printed_with_its_error_and_the_rest_follows(fake_helm: FakeHelm) -> None:
    done = fake_helm.run("deploymentMode: job\n", helm=1, get_pods=[UNREACHABLE])
    assert done.code == 1
    assert f"pods\n{UNREACHABLE}" in done.text
    assert "events of nodes\ntable of events" in done.text


def test_failed_pods_are_printed_first(fake_helm: FakeHelm) -> None:
    pods = [pod(f"well-{number}", "Succeeded") for number in range(40)] + [FAILED]
    done = fake_helm.run("", helm=1, get_pods=[{"items": pods}])
    assert "pod kube-system/kata-deploy-install-worker" in done.text
    assert "11 more pods are not printed" in done.text


def test_the_output_has_group_markers_on_github_actions(fake_helm: FakeHelm) -> None:
    done = fake_helm.run("", helm=1, env={"GITHUB_ACTIONS": "true"})
    assert done.text.count("::group::") == done.text.count("::endgroup::") > 5


def test_no_temporary_files_remain(fake_helm: FakeHelm, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    fake_helm.run("", get_daemonset=[daemonset(1, 1)], env={"TMPDIR": str(scratch)})
    assert os.listdir(scratch) == []
