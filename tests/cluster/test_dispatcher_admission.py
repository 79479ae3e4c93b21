"""The rights of the dispatcher's account, on a real API server with its token."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.control_plane import Cluster
from cluster.helm_chart import MERGE, ApiCaller, ApiResponse, admin, apply, load_manifests, render, unbound
from cluster.labeller import EVENTS
from kata_node.dispatcher import config
from kata_node.dispatcher.events import COMPONENT
from kata_node.dispatcher.template import JobIdentity, Owner, Target, owner_reference
from kata_node.kube.events import failure_event
from node.commands import wait_until

NAMESPACE, RELEASE = "dispatching", "kata"
ACCOUNT = "kata-deploy-dispatcher"
JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"
TEMPLATES = ("dispatcher-rbac.yaml", "dispatcher-admission.yaml", "dispatcher-config.yaml")
# Values that change the pods of the node Jobs.
VALUES = {
    "deploymentMode": "job",
    "podLabels": {"team": "nodes"},
    "podAnnotations": {"example.org/note": "kata"},
    "imagePullSecrets": [{"name": "registry"}],
    "priorityClassName": "system-node-critical",
    "selinux": {"type": "spc_t"},
    "appArmor": {"type": "Unconfined"},
    "resources": {"limits": {"memory": "1024Mi"}, "requests": {"cpu": "1000m"}},
    "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
    "snapshotter": {"setup": ["nydus"]},
}
_names = itertools.count()


@dataclass(frozen=True)
class DispatcherRelease:
    """The dispatcher's objects of one release, and the Jobs that its configuration makes."""

    cluster: Cluster
    values: dict[str, Any]
    directory: Path

    def apply(self) -> DispatcherRelease:
        """Apply the objects, and wait until the API server enforces the policy."""
        if self.cluster.kubectl("get", "namespace", NAMESPACE, check=False).returncode:
            self.cluster.kubectl("create", "namespace", NAMESPACE)
        apply(self.cluster, self.render(TEMPLATES))
        foreign = self.job()
        foreign["metadata"]["labels"]["app.kubernetes.io/instance"] = "foreign"
        allowed = self.job()
        wait_until(
            lambda: (
                "denied request" in self.token.call("POST", JOBS, foreign, dry=True).message
                and self.token.call("POST", JOBS, allowed, dry=True).status == 201
            ),
            "the rules for the dispatcher are in force",
        )
        return self

    def render(self, templates: Sequence[str]) -> str:
        """Return the manifests of these templates."""
        # Offline: helm refuses objects of the test that belong to no release.
        values = {**self.values, "rbac": {"admissionPolicy": "always"}}
        return render(self.cluster, RELEASE, NAMESPACE, values=values, only=templates, online=False)

    @property
    def token(self) -> ApiCaller:
        """A client with the dispatcher's rights."""
        return unbound(self.cluster, NAMESPACE, ACCOUNT)

    def job(self, file: str = "install.yaml", runtime: str = "containerd", machine: str = "a" * 32) -> Any:
        """Return a Job as the dispatcher makes it from ``file``, with a new name.

        ``check`` is the part of ``cleanup.yaml`` for the check before a cleanup.
        """
        path = self.directory / ("cleanup.yaml" if file == "check" else file)
        if not path.exists():
            (made,) = load_manifests(self.render(TEMPLATES[2:]))
            for name, text in made["data"].items():
                (self.directory / name).write_text(text)
        loaded = config.load(path)
        target = Target("worker-1", "uid-of-the-node", machine, runtime)
        templates = loaded.check.templates if file == "check" and loaded.check else loaded.templates
        template = templates.find(target)
        assert template is not None
        # Without an owner: the garbage collector deletes Jobs whose owner does not exist.
        identity = JobIdentity(NAMESPACE, loaded.labels, "1")
        text = template.render(f"job-{next(_names)}", loaded.action, target, identity)
        return json.loads(text)


@pytest.fixture(scope="module")
def release(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> DispatcherRelease:
    return DispatcherRelease(cluster, VALUES, tmp_path_factory.mktemp("config")).apply()


@pytest.mark.parametrize("file", ["install.yaml", "cleanup.yaml", "check"])
@pytest.mark.parametrize("runtime", ["containerd", "cri-o"])
@pytest.mark.parametrize("machine_id", ["a" * 32, ""], ids=["machine id", "no machine id"])
def test_the_jobs_of_the_chart_are_created_adopted_and_deleted(
    release: DispatcherRelease, file: str, runtime: str, machine_id: str
) -> None:
    made = release.token.call("POST", JOBS, release.job(file, runtime, machine_id))
    assert made.status == 201, made.message
    path = f"{JOBS}/{made.body['metadata']['name']}"
    other = admin(release.cluster).call("GET", foreign_job(release)).body["metadata"]
    owners = [owner_reference(Owner(other["name"], other["uid"]))]
    adopted = release.token.call("PATCH", path, {"metadata": {"ownerReferences": owners}}, kind=MERGE)
    assert adopted.status == 200, adopted.message
    deleted = release.token.call("DELETE", path, {"propagationPolicy": "Background"})
    assert deleted.status == 200, deleted.message


def test_default_values_make_jobs_that_the_policy_allows(
    cluster: Cluster, release: DispatcherRelease, tmp_path: Path
) -> None:
    try:
        plain = DispatcherRelease(cluster, {"deploymentMode": "job"}, tmp_path).apply()
        for file in ("install.yaml", "cleanup.yaml"):
            made = plain.token.call("POST", JOBS, plain.job(file), dry=True)
            assert made.status == 201, made.message
    finally:
        release.apply()


def spec(job: Any) -> Any:
    return job["spec"]["template"]["spec"]


def first(job: Any) -> Any:
    return spec(job)["initContainers"][0]


def on_host(job: Any) -> Any:
    """Return the container of the stage cri, which has the most host paths."""
    return next(each for each in spec(job)["initContainers"] if each["name"] == "cri")


def add_volume(job: Any, path: str) -> None:
    spec(job)["volumes"].append({"name": "extra", "hostPath": {"path": path}})


def add_container(job: Any) -> None:
    spec(job)["initContainers"].append({"name": "extra", "image": "example.org/evil"})


def change_path(job: Any, path: str) -> None:
    next(each for each in spec(job)["volumes"] if "hostPath" in each)["hostPath"]["path"] = path


def read_token_in(job: Any) -> None:
    mount = {"name": "credentials", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
    on_host(job)["volumeMounts"].append(mount)


def unmask_proc(job: Any) -> None:
    spec(job)["hostUsers"] = False
    on_host(job)["securityContext"]["procMount"] = "Unmasked"


CONTAINERS = "only Jobs with the containers that the chart renders"
FIELDS = "only Jobs with the pod fields that the chart renders"
VOLUMES = "only Jobs with the volumes that the chart renders"
ONE_POD = "only Jobs with one pod on a named node"
LABELS = "only Jobs with the labels of the release"
JOB_FIELDS = "only Jobs with the fields that the chart renders"
METADATA = "neither a Job nor its pods finalizers or other metadata"


def add_source(job: Any, **source: Any) -> None:
    spec(job)["volumes"].append({"name": "extra", **source})


def claim_device(job: Any) -> None:
    spec(job)["resourceClaims"] = [{"name": "gpu", "resourceClaimName": "gpu"}]
    on_host(job)["resources"] = {"claims": [{"name": "gpu"}]}


FORBIDDEN: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another image": (lambda job: first(job).update(image="example.org/evil"), CONTAINERS),
    "another command": (lambda job: first(job).update(command=["sh"]), CONTAINERS),
    "other arguments": (lambda job: first(job).update(args=["revert"]), CONTAINERS),
    "the arguments of another stage": (lambda job: first(job).update(args=["stage", "cri"]), CONTAINERS),
    "privileged": (
        lambda job: on_host(job)["securityContext"].update(privileged=True, allowPrivilegeEscalation=True),
        CONTAINERS,
    ),
    "no security context": (lambda job: on_host(job).pop("securityContext"), CONTAINERS),
    "a seccomp profile less": (lambda job: on_host(job)["securityContext"].pop("seccompProfile"), CONTAINERS),
    "more privileges later": (
        lambda job: on_host(job)["securityContext"].update(allowPrivilegeEscalation=True),
        CONTAINERS,
    ),
    "another capability": (
        lambda job: on_host(job)["securityContext"]["capabilities"]["add"].append("SYS_ADMIN"),
        CONTAINERS,
    ),
    "all of /proc": (unmask_proc, CONTAINERS),
    "another variable": (
        lambda job: on_host(job)["env"].append({"name": "LD_PRELOAD", "value": "/host/opt/evil.so"}),
        CONTAINERS,
    ),
    "another value of a variable": (
        lambda job: on_host(job)["env"][0].update(value="/host/tmp/values.yaml"),
        CONTAINERS,
    ),
    "a path as the machine id": (
        lambda job: next(
            each for each in on_host(job)["env"] if each["name"] == "KATA_NODE_EXPECTED_MACHINE_ID"
        ).update(value="/etc/shadow"),
        CONTAINERS,
    ),
    "variables of a Secret": (
        lambda job: first(job).update(envFrom=[{"secretRef": {"name": "other"}}]),
        CONTAINERS,
    ),
    "another mount": (
        lambda job: first(job)["volumeMounts"].append({"name": "dev", "mountPath": "/host/proc"}),
        CONTAINERS,
    ),
    "the token beside host paths": (read_token_in, CONTAINERS),
    "a probe": (
        lambda job: spec(job)["containers"][0].update(livenessProbe={"exec": {"command": ["sh"]}}),
        CONTAINERS,
    ),
    "a hook": (
        lambda job: spec(job)["containers"][0].update(lifecycle={"preStop": {"exec": {"command": ["sh"]}}}),
        CONTAINERS,
    ),
    "another container": (add_container, CONTAINERS),
    "a container less": (lambda job: spec(job)["initContainers"].pop(), CONTAINERS),
    "a second main container": (
        lambda job: spec(job)["containers"].append(spec(job)["initContainers"].pop()),
        CONTAINERS,
    ),
    "another host path": (lambda job: add_volume(job, "/"), VOLUMES),
    "a changed host path": (lambda job: change_path(job, "/etc"), VOLUMES),
    "a Secret": (
        lambda job: spec(job)["volumes"].append({"name": "extra", "secret": {"secretName": "other"}}),
        VOLUMES,
    ),
    "another ConfigMap": (
        lambda job: next(each for each in spec(job)["volumes"] if "configMap" in each)["configMap"].update(
            name="other"
        ),
        VOLUMES,
    ),
    "a token for another audience": (
        lambda job: next(each for each in spec(job)["volumes"] if "projected" in each)["projected"][
            "sources"
        ][0]["serviceAccountToken"].update(audience="vault"),
        VOLUMES,
    ),
    "another ServiceAccount": (lambda job: spec(job).update(serviceAccountName="default"), FIELDS),
    "a token in all containers": (lambda job: spec(job).update(automountServiceAccountToken=True), FIELDS),
    "a token by default": (lambda job: spec(job).pop("automountServiceAccountToken"), FIELDS),
    "the host's processes": (lambda job: spec(job).update(hostPID=True), FIELDS),
    "the host's network": (lambda job: spec(job).update(hostNetwork=True), FIELDS),
    "the host's IPC": (lambda job: spec(job).update(hostIPC=True), FIELDS),
    "shared processes": (lambda job: spec(job).update(shareProcessNamespace=True), FIELDS),
    "another runtime": (lambda job: spec(job).update(runtimeClassName="other"), FIELDS),
    "other groups": (lambda job: spec(job).update(securityContext={"supplementalGroups": [0]}), FIELDS),
    "a selector of nodes": (lambda job: spec(job).update(nodeSelector={"a": "b"}), FIELDS),
    "a device by name": (
        lambda job: on_host(job)["resources"].update(limits={"example.org/kvm": "1"}),
        CONTAINERS,
    ),
    "too little memory": (
        lambda job: on_host(job)["resources"].update(limits={"memory": "1Ki"}, requests={}),
        CONTAINERS,
    ),
    "a device by a claim": (claim_device, CONTAINERS),
    "resources of the pod": (lambda job: spec(job).update(resources={"limits": {"cpu": "1"}}), FIELDS),
    "a sidecar": (lambda job: first(job).update(restartPolicy="Always"), CONTAINERS),
    "a terminal": (lambda job: first(job).update(stdin=True, tty=True), CONTAINERS),
    "a host port": (
        lambda job: first(job).update(ports=[{"containerPort": 80, "hostPort": 80}]),
        CONTAINERS,
    ),
    "another message path": (
        lambda job: on_host(job).update(terminationMessagePath="/host/etc/containerd/config.toml"),
        CONTAINERS,
    ),
    "a user namespace": (lambda job: spec(job).update(hostUsers=False), FIELDS),
    "another scheduler": (lambda job: spec(job).update(schedulerName="mine"), FIELDS),
    "a priority": (lambda job: spec(job).update(priorityClassName="system-cluster-critical"), FIELDS),
    "names of hosts": (
        lambda job: spec(job).update(hostAliases=[{"ip": "203.0.113.1", "hostnames": ["registry"]}]),
        FIELDS,
    ),
    "a name server": (
        lambda job: spec(job).update(dnsPolicy="None", dnsConfig={"nameservers": ["203.0.113.1"]}),
        FIELDS,
    ),
    "a scheduling gate": (
        lambda job: (spec(job).pop("nodeName"), spec(job).update(schedulingGates=[{"name": "a.b/c"}])),
        ONE_POD,
    ),
    "an image as a volume": (
        lambda job: add_source(job, image={"reference": "example.org/evil", "pullPolicy": "Always"}),
        VOLUMES,
    ),
    "a driver's volume": (lambda job: add_source(job, csi={"driver": "example.org"}), VOLUMES),
    "a claimed volume": (
        lambda job: add_source(job, persistentVolumeClaim={"claimName": "other"}),
        VOLUMES,
    ),
    "a server's volume": (lambda job: add_source(job, nfs={"server": "203.0.113.1", "path": "/"}), VOLUMES),
    "a Secret in a projected volume": (
        lambda job: add_source(job, projected={"sources": [{"secret": {"name": "other"}}]}),
        VOLUMES,
    ),
    "a host path of another type": (
        lambda job: next(each for each in spec(job)["volumes"] if "hostPath" in each)["hostPath"].update(
            type="Socket"
        ),
        VOLUMES,
    ),
    "another controller": (lambda job: job["spec"].update(managedBy="example.org/evil"), JOB_FIELDS),
    "suspended": (lambda job: job["spec"].update(suspend=True), JOB_FIELDS),
    "an index": (lambda job: job["spec"].update(completionMode="Indexed", completions=1), JOB_FIELDS),
    "a finalizer": (lambda job: job["metadata"].update(finalizers=["example.org/stays"]), METADATA),
    "a finalizer of the pod": (
        lambda job: job["spec"]["template"]["metadata"].update(finalizers=["example.org/stays"]),
        METADATA,
    ),
    "no node": (lambda job: spec(job).pop("nodeName"), ONE_POD),
    "several pods": (lambda job: job["spec"].update(parallelism=5, completions=5), ONE_POD),
    "no label of the release": (
        lambda job: job["metadata"]["labels"].pop("app.kubernetes.io/instance"),
        LABELS,
    ),
    "the label of another release": (
        lambda job: job["metadata"]["labels"].update({"app.kubernetes.io/instance": "other"}),
        LABELS,
    ),
    "another label of the pod": (
        lambda job: job["spec"]["template"]["metadata"]["labels"].update(app="web"),
        "only the labels that the chart renders",
    ),
    "a profile of AppArmor": (
        lambda job: job["spec"]["template"]["metadata"]["annotations"].update(
            {"container.apparmor.security.beta.kubernetes.io/cri": "unconfined"}
        ),
        "only the annotations that the chart renders",
    ),
}


DROPPED = {
    "all of /proc": "Unmasked",
    "a device by a claim": "resourceClaims",
    "resources of the pod": '"resources": {"limits": {"cpu": "1"}}',
    "a user namespace": "hostUsers",
    "another controller": "managedBy",
}
"""What an API server drops from a Job if it lacks the field, or if the feature gate of the field is off."""


def refusal(answer: ApiResponse) -> str:
    """Return the reason of a refusal by an admission policy."""
    assert answer.status == 403, answer
    return answer.message.partition(" denied request: ")[2]


@pytest.mark.parametrize("name", FORBIDDEN)
@pytest.mark.parametrize("file", ["install.yaml"])
def test_no_other_job_is_created(release: DispatcherRelease, name: str, file: str) -> None:
    change, says = FORBIDDEN[name]
    job = copy.deepcopy(release.job(file))
    change(job)
    answer = release.token.call("POST", JOBS, job)
    if name in DROPPED and answer.status == 201:
        assert DROPPED[name] not in json.dumps(answer.body["spec"])
        return
    assert says in refusal(answer)
    # The API server itself accepts the Job: only the policy refuses it.
    made = admin(release.cluster).call("POST", JOBS, job, dry=True)
    assert made.status == 201, made.message


def foreign_job(release: DispatcherRelease) -> str:
    """Create a Job of another program, and return its path."""
    job = release.job()
    job["metadata"]["labels"] = {"app.kubernetes.io/name": "other"}
    made = admin(release.cluster).call("POST", JOBS, job)
    assert made.status == 201, made.message
    return f"{JOBS}/{job['metadata']['name']}"


@pytest.mark.parametrize("method", ["DELETE", "PATCH"])
def test_a_job_of_another_program_is_neither_deleted_nor_changed(
    release: DispatcherRelease, method: str
) -> None:
    path = foreign_job(release)
    labels = {"app.kubernetes.io/name": "kata-deploy", "app.kubernetes.io/instance": RELEASE}
    body = {"metadata": {"labels": labels}} if method == "PATCH" else None
    answer = release.token.call(method, path, body, kind=MERGE)
    assert "change and delete only Jobs with the labels of the release" in refusal(answer)
    assert admin(release.cluster).call("GET", path).status == 200


@pytest.mark.parametrize(
    ("patch", "says"),
    [
        pytest.param(
            {"metadata": {"labels": {"app.kubernetes.io/instance": None}}}, "may not remove", id="labels"
        ),
        pytest.param({"spec": {"suspend": True}}, "only the metadata of a Job", id="suspend"),
        pytest.param({"spec": {"parallelism": 3}}, "only the metadata of a Job", id="parallelism"),
        pytest.param(
            {"spec": {"ttlSecondsAfterFinished": 1}}, "only the metadata of a Job", id="time to live"
        ),
        pytest.param(
            {"metadata": {"finalizers": ["example.org/stays"]}},
            "neither a Job nor its pods",
            id="a finalizer",
        ),
    ],
)
def test_only_the_metadata_of_a_node_job_is_changed(
    release: DispatcherRelease, patch: dict[str, Any], says: str
) -> None:
    made = release.token.call("POST", JOBS, release.job())
    assert made.status == 201, made.message
    path = f"{JOBS}/{made.body['metadata']['name']}"
    assert says in refusal(release.token.call("PATCH", path, patch, kind=MERGE))


@pytest.mark.parametrize("policy", ["jobs", "node", "event"])
def test_the_api_server_reports_no_type_error_in_the_policy(release: DispatcherRelease, policy: str) -> None:
    name = f"kata-deploy-dispatcher-{policy}.{NAMESPACE}.{RELEASE}"

    def read() -> Any:
        found = release.cluster.kubectl("get", "validatingadmissionpolicy", name, "--output=json")
        return json.loads(found.stdout)

    wait_until(
        lambda: read().get("status", {}).get("observedGeneration") == read()["metadata"]["generation"],
        "the types were checked",
    )
    assert not read()["status"]["typeChecking"].get("expressionWarnings"), read()["status"]


# --- Events -----------------------------------------------------------------------------------------


def about_node(node: str = "worker-1", **fields: Any) -> dict[str, Any]:
    """Return an Event as the dispatcher records it; ``fields`` replace its fields."""
    made = failure_event("default: cri: no", removing=False, exit_code=1)
    return {**made.as_object(node, component=COMPONENT, reporter="pod", on_node=False), **fields}


def test_the_dispatcher_records_a_failure_as_an_event(release: DispatcherRelease) -> None:
    answer = release.token.call("POST", EVENTS, about_node())
    assert answer.status == 201, answer.message


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        pytest.param(
            {"involvedObject": {"kind": "Pod", "name": "a", "namespace": "default"}},
            "only about Nodes",
            id="about a pod",
        ),
        pytest.param({"reportingComponent": "kubelet"}, "only as the component", id="as the kubelet"),
        pytest.param({"source": {"component": "kata-node"}}, "only as the component", id="as a stage"),
        pytest.param({"message": "m" * 1025}, "up to 1024 characters", id="a long message"),
        pytest.param({"action": "a" * 100_000}, "up to 256 characters", id="a long action"),
        pytest.param({"related": {"kind": "Pod", "name": "a"}}, "without related", id="a related object"),
    ],
)
def test_the_dispatcher_records_no_other_event(
    release: DispatcherRelease, fields: dict[str, Any], says: str
) -> None:
    answer = release.token.call("POST", EVENTS, about_node(**fields))
    assert says in refusal(answer)


# --- the record on a Node ---------------------------------------------------------------------------

MARK = "kata-deploy.katacontainers.io/default"
STATUS, OUTCOME = (f"{each}.{MARK}" for each in ("status", "outcome"))
FAILURE = {"metadata": {"labels": {OUTCOME: "failed"}, "annotations": {STATUS: '{"outcome":"failed"}'}}}


@pytest.fixture(scope="module")
def claimed(cluster: Cluster, release: DispatcherRelease) -> str:
    """A Node that the installation has claimed."""
    name = "dispatched-claimed"
    cluster.node(name, labels={MARK: "false", OUTCOME: "installing", "example.org/zone": "a"})
    forged = {"metadata": {"labels": {"example.org/zone": "b"}}}
    wait_until(
        lambda: (
            "denied request" in release.token.patch(name, forged, dry=True).message
            and release.token.patch(name, FAILURE, dry=True).status == 200
        ),
        "the rules for Nodes are in force",
    )
    return name


@pytest.mark.parametrize("outcome", ["failed", "rolled-back"])
def test_a_failure_may_be_recorded_on_a_claimed_node(
    release: DispatcherRelease, claimed: str, outcome: str
) -> None:
    change = copy.deepcopy(FAILURE)
    change["metadata"]["labels"][OUTCOME] = outcome
    answer = release.token.patch(claimed, change)
    assert answer.status == 200, answer.message
    assert answer.body["metadata"]["labels"][OUTCOME] == outcome


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"metadata": {"labels": {MARK: "true"}}}, "change only the label", id="the mark"),
        pytest.param(
            {"metadata": {"labels": {OUTCOME: "installed"}}}, "only to one of failed", id="a success"
        ),
        pytest.param({"metadata": {"labels": {OUTCOME: None}}}, "may not remove it", id="removed"),
        pytest.param(
            {"metadata": {"labels": {f"version.{MARK}": "9"}}}, "change only the label", id="the version"
        ),
        pytest.param(
            {"metadata": {"labels": {"outcome.kata-deploy.katacontainers.io/blue": "failed"}}},
            "change only the label",
            id="another installation",
        ),
        pytest.param(
            {"metadata": {"annotations": {STATUS: "x" * 4097}}}, "at most 4096 characters", id="oversized"
        ),
        pytest.param(
            {"metadata": {"annotations": {"example.org/note": "x"}}},
            "change only the annotation",
            id="another annotation",
        ),
        pytest.param({"metadata": {"finalizers": ["a.b/c"]}}, "in a Node's metadata", id="a finalizer"),
        pytest.param({"spec": {"unschedulable": True}}, "change the spec", id="cordoned"),
        pytest.param(
            {"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}}, "change the spec", id="a taint"
        ),
    ],
)
def test_the_dispatcher_may_change_nothing_else_of_a_node(
    release: DispatcherRelease, claimed: str, change: dict[str, Any], reason: str
) -> None:
    release.token.patch(claimed, FAILURE)
    answer = release.token.patch(claimed, change)
    assert answer.status == 403
    assert reason in answer.message


def test_a_node_that_is_not_claimed_stays_as_it_is(
    cluster: Cluster, release: DispatcherRelease, claimed: str
) -> None:
    cluster.node("dispatched-free")
    answer = release.token.patch("dispatched-free", FAILURE)
    assert answer.status == 403
    assert f"only Nodes with the label {MARK}" in answer.message


def test_without_policies_the_dispatcher_may_not_change_nodes(release: DispatcherRelease) -> None:
    values = {**VALUES, "rbac": {"admissionPolicy": "never", "labelsBy": "node"}}
    rendered = render(release.cluster, RELEASE, NAMESPACE, values=values, only=TEMPLATES[:1], online=False)
    (role,) = [each for each in load_manifests(rendered) if each["kind"] == "ClusterRole"]
    assert role["rules"] == [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}]
