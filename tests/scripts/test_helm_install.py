"""The helm helper of a CI: what it tells helm, what it waits for, and what it shows when that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.commands

CHECKOUT = Path(__file__).resolve().parents[2]
DIGEST = f"sha256:{'0' * 64}"
NODES = {"items": [{"metadata": {"name": "worker"}}]}
GONE = "The connection to the server was refused"


@dataclass(frozen=True)
class CommandResult:
    """How it ended, with all that was printed."""

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
        """The only command that changes something."""
        [command] = self.commands("helm", "upgrade")
        return command

    @property
    def own(self) -> Any:
        """The values that it adds to those of the file."""
        [values] = [each["values"] for each in self.asked if "upgrade" in each["command"]]
        return json.loads(values[1])


@dataclass(frozen=True)
class FakeHelm:
    """A directory with the values, and programs that stand in for helm and kubectl."""

    directory: Path

    def programs(self, *names: str) -> None:
        for name in names:
            path = self.directory / "bin" / name
            stand_in = CHECKOUT / "tests/scripts/fake_helm.py"
            path.write_text(
                f'#!/bin/sh\nexec "{sys.executable}" "{stand_in}" "{self.directory}" {name} "$@"\n'
            )
            path.chmod(0o755)

    def run(
        self, values: str | None, *options: str, env: Mapping[str, str] | None = None, **answers: Any
    ) -> CommandResult:
        """Run it with that values file, and two looks at most."""
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


def test_a_node_of_the_control_plane_is_as_good_as_any_when_jobs_install(fake_helm: FakeHelm) -> None:
    values = "deploymentMode: job\njob: {nodeSelectorExpressions: [{key: a, operator: Exists}]}\n"
    done = fake_helm.run(values, get_nodes=[NODES])
    assert done.code == 0, done.text
    assert done.own == {"job": {"nodeSelectorExpressions": []}}
    assert done.helm[:5] == ["helm", "upgrade", "--install", "kata-deploy", "chart"]
    assert "--namespace=kube-system" in done.helm
    [look] = done.commands("kubectl", "nodes")
    assert "--selector=katacontainers.io/kata-runtime=true,kata-deploy.katacontainers.io/default=true" in look


def test_with_a_daemonset_all_its_pods_are_waited_for(fake_helm: FakeHelm) -> None:
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
        pytest.param(GONE, id="the API server is away"),
    ],
)
def test_a_daemonset_that_is_not_there_yet_is_looked_at_again(fake_helm: FakeHelm, look: Any) -> None:
    late = fake_helm.run("", get_daemonset=[look])
    assert late.code == 1
    assert "not there after" in late.text
    (fake_helm.directory / "looks-daemonset").unlink()
    done = fake_helm.run("", "--wait-timeout=60", get_daemonset=[look, daemonset(2, 2)])
    assert done.code == 0, done.text


def test_pods_that_are_replaced_by_hand_are_not_waited_for(fake_helm: FakeHelm) -> None:
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
def test_the_mode_is_the_one_that_helm_will_see(
    fake_helm: FakeHelm, values: str, options: list[str], looked: str
) -> None:
    more = fake_helm.directory / "more.yaml"
    more.write_text("deploymentMode: job\n")
    given = [str(more) if option == "MORE" else option for option in options]
    done = fake_helm.run(values, *given, get_nodes=[NODES], get_daemonset=[daemonset(1, 1)])
    assert done.code == 0, done.text
    assert done.commands("kubectl", looked)
    # What comes last wins with helm, too.
    assert not given or done.helm[-1] in (f"--values={more}", "--set=deploymentMode=job")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        pytest.param(
            "deploymentMode: jobs\n", 'deploymentMode: "jobs" is neither daemonset nor job', id="mode"
        ),
        pytest.param("deploymentMode: [job]\n", "is neither daemonset nor job", id="a list of modes"),
        pytest.param("job: [a]\n", 'job: ["a"] is not a section', id="a list of jobs"),
        pytest.param("env: prod\n", 'env: "prod" is not a section', id="a word in place of a section"),
        pytest.param("- a\n", "helm cannot read the values", id="a list"),
        pytest.param("a: b: c\n", "helm cannot read the values", id="no YAML"),
        pytest.param(None, "helm cannot read the values", id="no file"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_before_anything_changes(
    fake_helm: FakeHelm, values: str | None, said: str
) -> None:
    done = fake_helm.run(values, get_nodes=[NODES])
    assert done.code == 2
    assert said in done.text
    assert not done.commands("helm", "upgrade")


def test_an_installation_with_a_suffix_is_waited_for_under_its_own_name(fake_helm: FakeHelm) -> None:
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
def test_images_come_from_the_environment(fake_helm: FakeHelm, reference: str, tag: str, image: Any) -> None:
    places: Mapping[str, Callable[[Any], Any]] = {
        "HELM_IMAGE": lambda own: own["image"],
        "HELM_JOB_DISPATCHER_IMAGE": lambda own: own["job"]["dispatcherImage"],
        "HELM_KUBECTL_IMAGE": lambda own: own["kubectlImage"],
        "HELM_MONITOR_IMAGE": lambda own: own["monitor"]["image"],
    }
    env = {
        f"{name}_{part}": value for name in places for part, value in (("REFERENCE", reference), ("TAG", tag))
    }
    done = fake_helm.run("deploymentMode: job\n", env=env, get_nodes=[NODES])
    assert done.code == 0, done.text
    assert [place(done.own) for place in places.values()] == [image] * 4
    assert done.own["job"]["nodeSelectorExpressions"] == []


@pytest.mark.parametrize("reference", ["r/kata:7", f"r/kata@{DIGEST}"])
def test_an_image_with_two_tags_is_refused(fake_helm: FakeHelm, reference: str) -> None:
    done = fake_helm.run("", env={"HELM_IMAGE_REFERENCE": reference, "HELM_IMAGE_TAG": "8"})
    assert done.code == 2
    assert "unset HELM_IMAGE_TAG" in done.text


def test_what_is_helms_goes_to_helm_and_the_cluster_is_the_same_for_kubectl(fake_helm: FakeHelm) -> None:
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


def test_helms_own_variables_count_for_both(fake_helm: FakeHelm) -> None:
    env = {"HELM_NAMESPACE": "kata", "HELM_KUBECONTEXT": "there", "KATA_DEPLOY_WAIT_TIMEOUT": "2m"}
    done = fake_helm.run("", env=env, get_daemonset=[daemonset(1, 1)])
    assert {"--namespace=kata", "--kube-context=there"} <= {*done.helm}
    assert {"--namespace=kata", "--context=there"} <= {*done.commands("kubectl", "daemonset")[0]}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--kube-token=secret"], "use KUBECONFIG", id="a cluster only helm knows"),
        pytest.param(["--values=-"], "write them to a file", id="values that can be read once"),
        pytest.param(["--wait-timeout=soon"], "soon is no time", id="a word for a time"),
        pytest.param(["--wait-timeout=0"], "0 is no time", id="no time"),
    ],
)
def test_options_that_cannot_work_are_refused(fake_helm: FakeHelm, options: list[str], said: str) -> None:
    done = fake_helm.run("", *options)
    assert done.code == 2
    assert said in done.text
    assert not done.commands("helm", "upgrade")


def test_the_values_file_comes_first() -> None:
    command = [sys.executable, str(CHECKOUT / "scripts/helm-install"), "--release=mine", "base.yaml"]
    done = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the values file comes first, and not --release=mine" in done.stderr


@pytest.mark.parametrize("there", [["helm"], ["kubectl"], []])
def test_programs_that_are_missing_are_named_together(tmp_path: Path, there: list[str]) -> None:
    (tmp_path / "bin").mkdir()
    fake_helm = FakeHelm(tmp_path)
    fake_helm.programs(*there)
    done = fake_helm.run("")
    assert done.code == 2
    missing = " and ".join(name for name in ("helm", "kubectl") if name not in there)
    assert f"not found: {missing}\n" in done.text


def test_a_dry_run_is_not_waited_for(fake_helm: FakeHelm) -> None:
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
WELL = pod("dispatcher", "Succeeded", {"name": "dispatcher", "state": {"terminated": {"exitCode": 0}}})


def shows_everything(done: CommandResult) -> None:
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


def test_when_helm_fails_all_that_may_tell_why_is_shown(fake_helm: FakeHelm) -> None:
    done = fake_helm.run("deploymentMode: job\n", helm=3, get_pods=[{"items": [WELL, FAILED]}])
    assert done.code == 1
    assert "Error: what helm says" in done.text
    assert "helm ended with 3" in done.text
    shows_everything(done)


def test_when_no_node_is_labelled_in_time_all_that_may_tell_why_is_shown(fake_helm: FakeHelm) -> None:
    looks: list[Any] = [{"items": []}]
    done = fake_helm.run("deploymentMode: job\n", get_nodes=looks, get_pods=[{"items": [WELL, FAILED]}])
    assert done.code == 1
    assert done.text.rstrip().endswith("kata-deploy.katacontainers.io/default=true: none")
    shows_everything(done)


def test_what_cannot_be_shown_is_said_and_the_rest_is_shown(fake_helm: FakeHelm) -> None:
    done = fake_helm.run("deploymentMode: job\n", helm=1, get_pods=[GONE])
    assert done.code == 1
    assert f"pods\n{GONE}" in done.text
    assert "events of nodes\ntable of events" in done.text


def test_of_many_pods_those_in_trouble_are_shown(fake_helm: FakeHelm) -> None:
    pods = [pod(f"well-{number}", "Succeeded") for number in range(40)] + [FAILED]
    done = fake_helm.run("", helm=1, get_pods=[{"items": pods}])
    assert "pod kube-system/kata-deploy-install-worker" in done.text
    assert "11 more are not shown" in done.text


def test_sections_fold_where_a_ci_can_fold_them(fake_helm: FakeHelm) -> None:
    done = fake_helm.run("", helm=1, env={"GITHUB_ACTIONS": "true"})
    assert done.text.count("::group::") == done.text.count("::endgroup::") > 5


def test_nothing_is_left_behind(fake_helm: FakeHelm, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    fake_helm.run("", get_daemonset=[daemonset(1, 1)], env={"TMPDIR": str(scratch)})
    assert os.listdir(scratch) == []
