"""The dispatcher against a real API server and its Job controller, with fake kubelets."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import ADMIN, Cluster
from cluster.fake_kubelet import FakeKubelet, PodStatus, Server, failed, running
from node.cache import CHECKOUT
from node.commands import WAIT_TIMEOUT, wait_until

INSTALLATION_LABEL = "kata-deploy.katacontainers.io/default"
LABELS = {"app.kubernetes.io/instance": "mine"}
NOT_READY = {"key": "node.kubernetes.io/not-ready", "operator": "Exists"}

# The rights of the dispatcher.
NODES_ROLE = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}]
EVENTS_ROLE = [{"apiGroups": [""], "resources": ["events"], "verbs": ["create"]}]
JOBS_ROLE = [
    {
        "apiGroups": ["batch"],
        "resources": ["jobs"],
        "verbs": ["create", "get", "list", "watch", "delete", "patch"],
    },
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
]


def template(*stages: str, tolerations: tuple[Mapping[str, str], ...] = (NOT_READY,), **spec: Any) -> Any:
    containers = [{"name": stage, "image": "kata"} for stage in (*stages, "label")]
    pod = {
        "restartPolicy": "Never",
        "tolerations": list(tolerations),
        "initContainers": containers[:-1],
        "containers": containers[-1:],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "spec": {"backoffLimit": 0, **spec, "template": {"spec": pod}},
    }


@dataclass
class Site:
    """A namespace with a ServiceAccount for the dispatcher, and Nodes that only this site selects."""

    cluster: Cluster
    name: str
    directory: Path
    config: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config = {
            "action": "install",
            "namespace": self.name,
            "namePrefix": "install",
            "labels": LABELS,
            "generation": "1",
            "events": True,
            "selection": {"labelSelector": f"pool={self.name}"},
            "template": template("host-check", "cri"),
        }
        rules = json.dumps(
            {
                "apiVersion": "v1",
                "kind": "List",
                "items": [
                    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name}},
                    self._object("v1", "ServiceAccount"),
                    self._object("rbac.authorization.k8s.io/v1", "ClusterRole", rules=NODES_ROLE),
                    self._object("rbac.authorization.k8s.io/v1", "Role", rules=JOBS_ROLE),
                    self._object("rbac.authorization.k8s.io/v1", "Role", "default", rules=EVENTS_ROLE),
                    self._binding("ClusterRole"),
                    self._binding("Role"),
                    self._binding("Role", "default"),
                ],
            }
        )
        self.cluster.kubectl("apply", "--filename=-", text=rules)
        made = ("serviceaccount/default", "--for=create", f"--namespace={self.name}", "--timeout=300s")
        self.cluster.kubectl("wait", *made)

    def _object(self, version: str, kind: str, namespace: str = "", **more: Any) -> dict[str, Any]:
        metadata = {"name": self.name, "namespace": namespace or self.name}
        return {"apiVersion": version, "kind": kind, "metadata": metadata, **more}

    def _binding(self, role: str, namespace: str = "") -> dict[str, Any]:
        group = "rbac.authorization.k8s.io"
        subject = {"kind": "ServiceAccount", "name": self.name, "namespace": self.name}
        reference = {"apiGroup": group, "kind": role, "name": self.name}
        return self._object(f"{group}/v1", f"{role}Binding", namespace, roleRef=reference, subjects=[subject])

    @property
    def account(self) -> str:
        """The user name of the dispatcher's ServiceAccount."""
        return f"system:serviceaccount:{self.name}:{self.name}"

    def events(self, node: str) -> list[str]:
        """Return the reasons of the dispatcher's Events on a Node."""
        what = f"involvedObject.kind=Node,involvedObject.name={node},source=kata-deploy-job-dispatcher"
        about = f"--field-selector={what}"
        read = self.cluster.kubectl("get", "events", "--namespace=default", about, "--output=json")
        return [each["reason"] for each in json.loads(read.stdout)["items"]]

    def nodes(self, count: int, **labels: str) -> list[str]:
        """Create ``count`` Nodes of this site and return their names."""
        names = [f"{self.name}-{number}" for number in range(count)]
        for name in names:
            self.cluster.node(name, labels={"pool": self.name, **labels})
        return names

    def kubelets(
        self, answers: Mapping[str, PodStatus | None] | None = None, *, idle: bool = False
    ) -> FakeKubelet:
        """Return the fake kubelets of the site. With ``idle`` they set only the statuses in ``answers``."""
        cluster = self.cluster
        token = cluster.token(ADMIN)
        standing = FakeKubelet(lambda: Server(cluster.url, str(cluster.ca), token), self.name, answers)
        if idle:
            standing.default_status = None
        return standing

    def start(self, *options: str, **change: Any) -> subprocess.Popen[str]:
        """Start the dispatcher with ``change`` applied to the configuration."""
        path = self.directory / "config.json"
        path.write_text(json.dumps({**self.config, **change}))
        command = [
            sys.executable,
            "-m",
            "kata_node.dispatcher",
            f"--config={path}",
            "--output=json",
            *options,
        ]
        env = {**self.cluster.environment(self.account), "PYTHONPATH": str(CHECKOUT)}
        with (self.directory / "log").open("a") as log:
            return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True)

    def run(self, *options: str, **change: Any) -> Run:
        """Run the dispatcher and return its result."""
        return ended(self.start(*options, **change))

    def jobs(self, *which: str) -> list[dict[str, Any]]:
        """Return the Jobs of the site."""
        got = self.cluster.kubectl("get", "jobs", f"--namespace={self.name}", "--output=json", *which)
        items: list[dict[str, Any]] = json.loads(got.stdout)["items"]
        return items

    def logged(self) -> str:
        """Return the log of the dispatcher up to now."""
        return (self.directory / "log").read_text()


@dataclass(frozen=True)
class Run:
    """The exit code and the JSON document of a run of the dispatcher."""

    code: int
    result: dict[str, Any]

    @property
    def outcomes(self) -> dict[str, str]:
        return {node["node"]: node["outcome"] for node in self.result["nodes"]}


def ended(process: subprocess.Popen[str]) -> Run:
    out, _ = process.communicate(timeout=WAIT_TIMEOUT)
    return Run(process.returncode, json.loads(out))


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Site:
    return Site(cluster, f"site-{next(_numbers)}", tmp_path)


_numbers = itertools.count()


def test_every_node_gets_its_job_with_only_these_rights(site: Site) -> None:
    names = site.nodes(5)
    with site.kubelets() as kubelets:
        run = site.run(parallelism=2)
    assert (run.code, run.result["outcome"]) == (0, "ok")
    assert run.outcomes == dict.fromkeys(names, "done")
    assert kubelets.max_running <= 2
    assert {job["spec"]["template"]["spec"]["nodeName"] for job in site.jobs()} == set(names)
    assert run.result["requests"] <= 10
    assert site.run(parallelism=2).outcomes == dict.fromkeys(names, "unchanged")


MESSAGE = json.dumps(
    {
        "stage": "cri",
        "outcome": "failed",
        "summary": "x",
        "error": {"what": "containerd did not serve", "where": "containerd.service", "hint": "see its log"},
    }
)


def test_the_error_of_a_failed_stage_is_reported_and_the_other_nodes_continue(site: Site) -> None:
    first, second, third = site.nodes(3)
    rules = [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [3]}}]
    work = template("host-check", "cri", backoffLimit=6, podFailurePolicy={"rules": rules})
    answers = {first: failed("host-check", 3, "no KVM here"), third: failed("cri", 4, MESSAGE)}
    with site.kubelets(answers):
        run = site.run(
            parallelism=1,
            selection={"nodes": [first, second]},
            template=work,
        )
        assert run.outcomes == {first: "failed", second: "done"}
        assert run.code == 1
        error = run.result["nodes"][0]["error"]
        said = error["node_words"]["what"]
        assert (error["stage"], error["exit_code"], said) == ("host-check", 3, "no KVM here")
        run = site.run(selection={"nodes": [third]}, mark=INSTALLATION_LABEL)
    reasons = {node: site.events(node) for node in (first, second, third)}
    assert reasons == {first: ["KataInstallFailed"], second: [], third: ["KataRolledBack"]}
    error = run.result["nodes"][0]["error"]
    assert error["stage"] == "cri"
    assert error["node_words"] == {
        "what": "containerd did not serve",
        "where": "containerd.service",
        "hint": "see its log",
    }


def test_a_job_that_exceeds_its_deadline_is_reported_with_the_running_stage(site: Site) -> None:
    (name,) = site.nodes(1)
    with site.kubelets({name: running("cri")}) as kubelets:
        # The dispatcher asks while the Pod is terminating.
        kubelets.keep_pods()
        process = site.start(template=template("host-check", "cri", activeDeadlineSeconds=10))
        wait_until(
            lambda: "waiting for its Pod to end: cri: its Job exceeded" in site.logged(), "it is asked"
        )
        kubelets.release_pods()
        run = ended(process)
    error = run.result["nodes"][0]["error"]
    assert (run.code, error["stage"]) == (1, "cri")
    assert "its Job exceeded its deadline" in error["what"]


def test_the_next_run_adopts_the_running_jobs_of_a_killed_dispatcher(site: Site) -> None:
    names = site.nodes(4)
    with site.kubelets(idle=True) as kubelets:
        first = site.start(parallelism=2)
        wait_until(lambda: len(site.jobs()) == 2, "two Jobs run")
        first.kill()
        first.communicate()
        before = {job["metadata"]["uid"] for job in site.jobs()}
        second = site.start(parallelism=2)
        wait_until(lambda: site.logged().count("adopted running Job") == 2, "both are taken over")
        kubelets.default_status = {"phase": "Succeeded"}
        for name in names:
            kubelets.answer(name, {"phase": "Succeeded"})
        run = ended(second)
    assert run.outcomes == dict.fromkeys(names, "done")
    assert before <= {job["metadata"]["uid"] for job in site.jobs()}


def test_nodes_that_change_while_they_wait_for_their_job_are_seen_in_one_list(site: Site) -> None:
    first, second, tainted, moved = site.nodes(4)
    with site.kubelets(idle=True) as kubelets:
        process = site.start(parallelism=1)
        wait_until(lambda: len(site.jobs()) == 1, "a Job runs")
        site.cluster.kubectl("taint", "node", tainted, "dedicated=x:NoSchedule")
        site.cluster.kubectl("label", "node", moved, "pool-")
        kubelets.default_status = {"phase": "Succeeded"}
        kubelets.answer(first, {"phase": "Succeeded"})
        run = ended(process)
    assert run.outcomes == {first: "done", second: "done", tainted: "skipped", moved: "skipped"}


def test_a_stopped_dispatcher_leaves_running_jobs_and_starts_no_other(site: Site) -> None:
    names = site.nodes(3)
    with site.kubelets(idle=True):
        process = site.start(parallelism=1)
        wait_until(lambda: len(site.jobs()) == 1, "a Job runs")
        process.send_signal(signal.SIGTERM)
        run = ended(process)
    assert (run.code, run.result["outcome"]) == (143, "interrupted")
    assert run.outcomes == dict(zip(names, ("running", "not started", "not started"), strict=True))
    (job,) = site.jobs()
    assert "deletionTimestamp" not in job["metadata"]


def test_a_dispatcher_ends_at_its_deadline_and_says_what_is_left(site: Site) -> None:
    done, runs, waits = site.nodes(3)
    with site.kubelets({runs: running("cri")}):
        # The time counts from the creation of its Job.
        run = site.run(*owner(site, "own"), parallelism=1, deadlineSeconds=8)
    assert run.code == 1
    assert run.outcomes == {done: "done", runs: "running", waits: "not started"}
    assert run.result["outcome"] == "interrupted"
    reason = "the deadline of 8 s has passed; running Jobs that continue by themselves: 1"
    assert run.result["reason"] == reason
    assert (
        "deletionTimestamp" not in site.jobs(f"--selector=job.katacontainers.io/node={runs}")[0]["metadata"]
    )


def test_a_node_that_becomes_not_ready_while_its_job_runs_is_told_as_that(site: Site) -> None:
    (name,) = site.nodes(1)

    def set_ready(status: str) -> None:
        condition = {"type": "Ready", "status": status, "reason": "Test"}
        patch = json.dumps({"status": {"conditions": [condition]}})
        which = ("node", name, "--subresource=status", f"--patch={patch}")
        site.cluster.kubectl("patch", *which)

    set_ready("True")
    with site.kubelets({name: None}) as kubelets:
        process = site.start()
        wait_until(lambda: len(site.jobs()) == 1, "the Job is there")
        set_ready("Unknown")
        told = f"{name}: its Node has become NotReady since its Job was created"
        wait_until(lambda: told in site.logged(), "it is told")
        set_ready("True")
        wait_until(lambda: f"{name}: its Node is Ready again" in site.logged(), "it is told")
        kubelets.answer(name, {"phase": "Succeeded"})
        run = ended(process)
    assert run.outcomes == {name: "done"}


def test_a_deleted_job_is_created_again(site: Site) -> None:
    (name,) = site.nodes(1)
    with site.kubelets(idle=True) as kubelets:
        process = site.start()
        wait_until(lambda: len(site.jobs()) == 1, "the Job runs")
        site.cluster.kubectl("delete", "job", "--all", f"--namespace={site.name}", "--wait=false")
        wait_until(lambda: "creating it again" in site.logged(), "the loss is noticed")
        kubelets.answer(name, {"phase": "Succeeded"})
        run = ended(process)
    assert run.outcomes == {name: "done"}


def test_a_changed_template_replaces_finished_jobs_and_jobs_that_never_started(site: Site) -> None:
    done, hangs = site.nodes(2)
    with site.kubelets({hangs: None}) as kubelets:
        process = site.start()
        wait_until(lambda: "nodes ended, 1 running" in site.logged(), "one node is done")
        process.send_signal(signal.SIGTERM)
        ended(process)
        kubelets.answers.clear()
        run = site.run(template=template("host-check", "artifacts", "cri"))
    assert run.outcomes == {done: "done", hangs: "done"}
    stages = [len(job["spec"]["template"]["spec"]["initContainers"]) for job in site.jobs()]
    assert stages == [3, 3]


def test_a_foreign_job_of_the_same_name_is_not_changed(site: Site) -> None:
    first, second = site.nodes(2)
    job = {**template("x", suspend=True), "metadata": {"name": f"install-{first}", "namespace": site.name}}
    site.cluster.kubectl("create", "--filename=-", text=json.dumps(job))
    with site.kubelets():
        run = site.run()
    assert run.outcomes == {first: "failed", second: "done"}
    (foreign,) = [job for job in site.jobs() if job["metadata"]["name"] == f"install-{first}"]
    assert foreign["spec"]["suspend"] is True


def test_the_node_jobs_are_deleted_with_the_dispatchers_job(site: Site) -> None:
    names = site.nodes(2)
    own = {**template("x", suspend=True), "metadata": {"name": "dispatcher", "namespace": site.name}}
    made = site.cluster.kubectl("create", "--filename=-", "--output=json", text=json.dumps(own))
    uid = json.loads(made.stdout)["metadata"]["uid"]
    with site.kubelets():
        run = site.run("--owner-name=dispatcher", f"--owner-uid={uid}")
        assert run.outcomes == dict.fromkeys(names, "done")
        assert len(site.jobs()) == 3
        site.cluster.kubectl("delete", "job", "dispatcher", f"--namespace={site.name}")
        wait_until(lambda: not site.jobs(), "the garbage collector has taken them all")


def owner(site: Site, name: str) -> tuple[str, ...]:
    """Create a suspended Job and return the options that make it the owner of a dispatcher."""
    own = {**template("x", suspend=True), "metadata": {"name": name, "namespace": site.name}}
    made = site.cluster.kubectl("create", "--filename=-", "--output=json", text=json.dumps(own))
    return f"--owner-name={name}", f"--owner-uid={json.loads(made.stdout)['metadata']['uid']}"


def pods(site: Site) -> list[str]:
    """Return the uids of all Pods of the site."""
    got = site.cluster.kubectl("get", "pods", f"--namespace={site.name}", "--output=json")
    return [pod["metadata"]["uid"] for pod in json.loads(got.stdout)["items"]]


def test_the_next_dispatcher_waits_for_pods_of_a_deleted_dispatcher_to_end(
    site: Site,
) -> None:
    (name,) = site.nodes(1)
    with site.kubelets({name: running("cri")}) as kubelets:
        kubelets.keep_pods()
        first = site.start(*owner(site, "first"))
        wait_until(lambda: len(pods(site)) == 1, "a Pod runs")
        first.kill()
        first.communicate()
        before = pods(site)
        # helm does this before the hook of the next upgrade.
        site.cluster.kubectl("delete", "job", "first", f"--namespace={site.name}", "--wait=false")
        wait_until(lambda: not site.jobs(), "the garbage collector has taken the Job")
        kubelets.answers.clear()
        second = site.start(*owner(site, "second"), generation="2")
        wait_until(lambda: "of a deleted Job" in site.logged(), "the Pod is noticed")
        assert pods(site) == before
        kubelets.release_pods()
        run = ended(second)
    assert run.outcomes == {name: "done"}
    assert kubelets.max_running == 1, "never two at once"


def test_an_uninstall_ends_the_dispatcher_of_an_install_that_timed_out_in_helm(site: Site) -> None:
    (name,) = site.nodes(1)
    host = f"{site.name}-host"
    site.cluster.node(host, labels={})
    job = {**template(), "metadata": {"name": "install-dispatcher", "namespace": site.name}}
    job["spec"]["template"]["metadata"] = {"labels": {**LABELS, "app.kubernetes.io/component": "dispatcher"}}
    job["spec"]["template"]["spec"]["nodeName"] = host
    with site.kubelets({host: None}):
        site.cluster.kubectl("create", "--filename=-", text=json.dumps(job))
        wait_until(lambda: len(pods(site)) == 1, "its Pod is there")
        run = site.run(action="cleanup", namePrefix="cleanup", template=template("revert-cri"))
    assert run.outcomes == {name: "done"}
    assert [job["metadata"]["name"] for job in site.jobs()] == [f"cleanup-{name}"]


def test_a_job_on_a_node_with_a_dead_kubelet_fails(site: Site) -> None:
    dead, alive = site.nodes(2)
    late = template("host-check", "cri", activeDeadlineSeconds=3)
    late["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 1
    with site.kubelets({dead: running("cri")}) as kubelets:
        kubelets.keep_pods()
        run = site.run(template=late)
    assert run.outcomes == {dead: "failed", alive: "done"}
    error = run.result["nodes"][0]["error"]
    assert error["stage"] == "cri"
    assert "its Pod has still not ended" in error["what"]


def test_a_pod_that_is_not_admitted_is_reported_while_its_job_waits(site: Site) -> None:
    (name,) = site.nodes(1)
    level = "pod-security.kubernetes.io/enforce=restricted"
    site.cluster.kubectl("label", "namespace", site.name, level)
    with site.kubelets():
        process = site.start()
        command = f"kubectl describe job install-{name} -n {site.name}"
        message = f"{name}: its Job has no Pod; run `{command}` to see why"
        wait_until(lambda: message in site.logged(), "the dispatcher logs it")
        process.send_signal(signal.SIGTERM)
        run = ended(process)
    assert run.outcomes == {name: "running"}


def test_a_node_that_left_the_selection_is_reverted_and_an_uninstall_stops_running_jobs(site: Site) -> None:
    first, second = site.nodes(2, **{INSTALLATION_LABEL: "true"})
    everything = ({"operator": "Exists"},)
    removed = {"namePrefix": "removed", "template": template("revert-cri", tolerations=everything)}
    mark = f"{INSTALLATION_LABEL}-{site.name}"  # Nodes of other tests do not have this label
    for name in (first, second):
        site.cluster.kubectl("label", "node", name, f"{mark}=true", "pool-")
    site.cluster.kubectl("label", "node", first, f"pool={site.name}")
    with site.kubelets() as kubelets:
        run = site.run(mark=mark, removed=removed)
        assert run.outcomes == {first: "done", second: "done"}
        assert sorted(job["metadata"]["name"] for job in site.jobs()) == [
            f"install-{first}",
            f"removed-{second}",
        ]
        kubelets.answers[first] = running("cri")
        process = site.start(generation="2")
        wait_until(lambda: site.jobs()[0].get("status", {}).get("active") == 1, "it is installed again")
        process.kill()
        process.communicate()
        kubelets.answers.clear()
        run = site.run(action="cleanup", namePrefix="cleanup", selection={"labelSelector": mark})
    assert run.outcomes == {first: "done", second: "done"}
    assert f"install-{first}" not in [job["metadata"]["name"] for job in site.jobs()]


def test_without_the_right_to_create_jobs_the_dispatcher_fails_at_the_first_node(site: Site) -> None:
    site.nodes(3)
    role = [{"op": "replace", "path": "/rules/0/verbs", "value": ["list", "watch"]}]
    patch = ("role", site.name, f"--namespace={site.name}", "--type=json", f"--patch={json.dumps(role)}")
    site.cluster.kubectl("patch", *patch)
    may = ("auth", "can-i", "create", "jobs", f"--namespace={site.name}")
    wait_until(
        lambda: site.cluster.kubectl(*may, who=site.account, check=False).stdout.strip() == "no",
        "the right is taken away",
    )
    run = site.run()
    assert (run.code, run.result["outcome"]) == (1, "stopped")
    assert sorted(run.outcomes.values()) == ["failed", "not started", "not started"]
    assert "cannot create resource 'jobs'" in run.result["reason"]


@pytest.mark.parametrize("kill", [pytest.param(False, id="drained"), pytest.param(True, id="killed")])
def test_the_dispatcher_survives_an_outage_of_the_api_server(
    own_cluster: Cluster, tmp_path: Path, kill: bool
) -> None:
    site = Site(own_cluster, "site", tmp_path)
    names = site.nodes(6)
    with site.kubelets({names[0]: None}) as kubelets:
        process = site.start(parallelism=2)
        wait_until(
            lambda: " nodes ended, " in site.logged() and "done after" in site.logged(), "a node is done"
        )
        own_cluster.stop_apiserver(kill=kill)
        wait_until(lambda: "retrying in" in site.logged(), "it has noticed")
        own_cluster.start_apiserver()
        kubelets.answer(names[0], {"phase": "Succeeded"})
        run = ended(process)
    assert run.outcomes == dict.fromkeys(names, "done")
