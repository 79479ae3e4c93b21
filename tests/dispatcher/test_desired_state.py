"""Whether a dispatcher may change nodes: the decision, and runs that change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from dispatcher.fake_api_server import FakeApiServer, Object
from dispatcher.harness import CLEANUP, CONFIG, INSTALLATION_LABEL, LABELS, dispatch, outcomes
from kata_node.dispatcher import progress
from kata_node.dispatcher.config import load
from kata_node.dispatcher.desired_state import JobOrigin, StateObject, reason_to_do_nothing
from kata_node.dispatcher.kubernetes_objects import Action, ObjectMeta
from kata_node.dispatcher.template import Owner
from kata_node.errors import SettingsError

STATE = "kata-deploy-state.mine"
HOOK = {"helm.sh/hook": "pre-delete"}
APPLIED = {**HOOK, "kubectl.kubernetes.io/last-applied-configuration": "{}"}
BY_HELM = JobOrigin(HOOK, ["helm", "kube-controller-manager"])


def state(wanted: str | None, *, helm: bool = True, deleting: bool = False) -> StateObject:
    metadata = ObjectMeta(
        annotations={"meta.helm.sh/release-name": "mine"} if helm else {},
        deletion_timestamp="2026-01-01T00:00:00Z" if deleting else None,
    )
    return StateObject(metadata, {} if wanted is None else {"desiredState": wanted})


@pytest.mark.parametrize(
    ("action", "found", "origin", "works"),
    [
        pytest.param("cleanup", state("absent"), None, True, id="absent"),
        pytest.param(
            "cleanup", state("absent", helm=False), JobOrigin(APPLIED, ["kubectl"]), True, id="GitOps"
        ),
        pytest.param("cleanup", state("present", deleting=True), None, True, id="the state is being deleted"),
        pytest.param("cleanup", None, None, True, id="the state is gone"),
        pytest.param("cleanup", state("present"), BY_HELM, True, id="helm uninstall"),
        pytest.param("cleanup", state(None), BY_HELM, True, id="helm uninstall of an older release"),
        pytest.param("cleanup", state("present"), JobOrigin(HOOK, ["helm-controller"]), True, id="Flux"),
        pytest.param(
            "cleanup", state("present"), JobOrigin(HOOK, ["helm"], ["helm"]), True, id="helm applies it"
        ),
        pytest.param(
            "cleanup",
            state("present"),
            JobOrigin(HOOK, ["ci"], ["ci"]),
            False,
            id="another program applies it",
        ),
        pytest.param("cleanup", state("present"), None, False, id="no Job of its own"),
        pytest.param("cleanup", state("present", helm=False), BY_HELM, False, id="helm does not manage it"),
        pytest.param("cleanup", state("present"), JobOrigin({}, ["helm"]), False, id="not a hook"),
        pytest.param("cleanup", state("present"), JobOrigin(APPLIED, ["helm"]), False, id="kubectl apply"),
        *(
            pytest.param("cleanup", state("present"), JobOrigin(HOOK, [manager]), False, id=manager)
            for manager in ("kubectl", "kubectl-client-side-apply", "kubectl-create", "argocd-controller")
        ),
        pytest.param(
            "cleanup", state("present"), JobOrigin(HOOK, ["kustomize-controller"]), False, id="Flux'"
        ),
        pytest.param("cleanup", state(None), None, False, id="an older state object"),
        pytest.param("install", state("present"), None, True, id="install"),
        pytest.param("install", state(None), None, True, id="install, older state object"),
        pytest.param("install", None, None, True, id="install, the state was deleted by hand"),
        pytest.param("install", state("absent"), BY_HELM, False, id="install, absent"),
        pytest.param("install", state("present", deleting=True), None, False, id="install, being deleted"),
    ],
)
def test_only_a_release_that_is_to_go_is_cleaned(
    action: Action, found: StateObject | None, origin: JobOrigin | None, *, works: bool
) -> None:
    reason = reason_to_do_nothing(action, STATE, found, origin)
    assert (reason == "") is works
    if not works:
        assert f"nothing was changed, because the ConfigMap {STATE}" in reason
        assert f"desiredState: {'absent' if action == 'cleanup' else 'present'} in the values" in reason


def put_state(api: FakeApiServer, wanted: str) -> None:
    annotations = {"meta.helm.sh/release-name": "mine"}
    data = {"desiredState": wanted}
    api.config_maps[STATE] = {"metadata": {"annotations": annotations}, "data": data}


def own_job(api: FakeApiServer, **metadata: Any) -> Owner:
    """Add the Job of this dispatcher."""
    job: Object = {"metadata": {"name": "own", "labels": dict(LABELS), **metadata}, "spec": {}}
    api.add(job)
    return Owner("own", job["metadata"]["uid"])


def test_an_applied_cleanup_leaves_the_nodes_and_other_dispatchers_alone(api: FakeApiServer) -> None:
    api.node("n")
    put_state(api, "present")
    api.dispatcher("install-dispatcher", LABELS)
    owner = own_job(api, annotations=APPLIED, managedFields=[{"manager": "kubectl-client-side-apply"}])
    result = dispatch(api, replace(CLEANUP, state_config_map=STATE), owner=owner)
    assert (result.exit_code, api.made, sorted(api.jobs)) == (0, [], ["install-dispatcher", "own"])
    assert "says that Kata is wanted on the nodes; to remove Kata, set" in progress.summary(result)


def test_a_cleanup_that_another_program_applies_on_the_servers_side_changes_nothing(
    api: FakeApiServer,
) -> None:
    api.node("n")
    put_state(api, "present")
    owner = own_job(api, annotations=HOOK, managedFields=[{"manager": "ci", "operation": "Apply"}])
    assert outcomes(dispatch(api, replace(CLEANUP, state_config_map=STATE), owner=owner)) == {}


@pytest.mark.parametrize("operation", ["Update", "Apply"])
def test_the_cleanup_of_helm_uninstall_works(api: FakeApiServer, operation: str) -> None:
    api.node("n")
    put_state(api, "present")
    status = {"manager": "kube-controller-manager", "operation": "Apply", "subresource": "status"}
    owner = own_job(
        api, annotations=HOOK, managedFields=[{"manager": "helm", "operation": operation}, status]
    )
    assert outcomes(dispatch(api, replace(CLEANUP, state_config_map=STATE), owner=owner)) == {"n": "done"}


def test_a_cleanup_whose_job_was_replaced_does_nothing(api: FakeApiServer) -> None:
    api.node("n")
    put_state(api, "present")
    own_job(api, annotations=HOOK)
    result = dispatch(api, replace(CLEANUP, state_config_map=STATE), owner=Owner("own", "another"))
    assert (result.exit_code, api.made) == (0, [])


def test_a_reconciling_run_installs_nothing_while_the_release_is_to_be_absent(api: FakeApiServer) -> None:
    api.node("n")
    put_state(api, "absent")
    result = dispatch(api, replace(CONFIG, skip_serving=True, state_config_map=STATE))
    assert (result.exit_code, api.made) == (0, [])


# --- what is installed ------------------------------------------------------------------------------

INSTALLATION = {"deploymentMode": "job", "multiInstallSuffix": "", "installationPrefix": "/"}
WITH_STATE: dict[str, Any] = {"state_config_map": STATE, "installation_keys": INSTALLATION}


def test_the_state_names_the_installation_from_the_first_job_to_the_end_of_a_cleanup(
    api: FakeApiServer,
) -> None:
    put_state(api, "present")
    dispatch(api, replace(CONFIG, **WITH_STATE))
    assert "installed" not in api.config_maps[STATE]["data"], "there is no node"
    api.node("n", labels={INSTALLATION_LABEL: "true"})
    dispatch(api, replace(CONFIG, **WITH_STATE))
    assert json.loads(api.config_maps[STATE]["data"]["installed"]) == INSTALLATION
    api.requests.clear()
    dispatch(api, replace(CONFIG, **WITH_STATE))
    assert api.requests.count(f"PATCH {STATE}") == 2, "only the begin and the end of the rollout"
    api.config_maps[STATE]["data"]["desiredState"] = "absent"
    api.on_create = lambda job: api.fail(job["metadata"]["name"])
    assert dispatch(api, replace(CLEANUP, **WITH_STATE)).exit_code == 1
    assert "installed" in api.config_maps[STATE]["data"]
    api.on_create = None
    assert dispatch(api, replace(CLEANUP, **WITH_STATE)).exit_code == 0
    assert set(api.config_maps[STATE]["data"]) == {"desiredState", "lastRollout"}


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("deploymentMode", "daemonset", "deploymentMode"),
        ("multiInstallSuffix", "two", "env.multiInstallSuffix"),
        ("installationPrefix", "/srv", "env.installationPrefix"),
    ],
)
@pytest.mark.parametrize(("action", "wanted"), [("install", "present"), ("cleanup", "absent")])
def test_another_installation_than_the_one_on_the_nodes_is_refused(
    api: FakeApiServer, action: Action, wanted: str, key: str, value: str, named: str
) -> None:
    api.node("n")
    put_state(api, wanted)
    api.config_maps[STATE]["data"]["installed"] = json.dumps({**INSTALLATION, key: value})
    with pytest.raises(SettingsError, match="the release was installed with ") as error:
        dispatch(api, replace(CONFIG, action=action, **WITH_STATE))
    assert (error.value.exit_code, api.made) == (2, [])
    assert error.value.where.startswith(f"{named}, ConfigMap")
    assert f'set it to "{value}"' in error.value.hint


def test_the_keys_of_the_installation_are_read_from_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    job: Object = {"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": {"spec": {"x": "y"}}}}
    keys = {"action": "install", "namespace": "x", "namePrefix": "x", "labels": {"a": "b"}, "template": job}
    path.write_text(json.dumps({**keys, "state": {"configMap": STATE, "installation": INSTALLATION}}))
    loaded = load(path)
    assert (loaded.state_config_map, loaded.installation_keys) == (STATE, INSTALLATION)


# --- manifests without a generation -----------------------------------------------------------------


def test_a_new_dispatcher_job_works_again_and_deletes_those_of_other_manifests(api: FakeApiServer) -> None:
    api.node("n")
    config = replace(CONFIG, generation="")
    for name in ("install-a", "install-b"):
        owner = Owner(name, api.dispatcher(name, LABELS))
        api.jobs[name]["metadata"]["labels"]["app.kubernetes.io/component"] = "dispatcher"
        assert outcomes(dispatch(api, config, owner=owner)) == {"n": "done"}
        # Another pod of the same Job goes on with its work.
        assert outcomes(dispatch(api, config, owner=owner)) == {"n": "unchanged"}
    assert sorted(api.jobs) == ["install-b", "install-n"]


def test_a_reconciling_run_deletes_no_dispatcher_job(api: FakeApiServer) -> None:
    api.node("n")
    api.dispatcher("install-a", LABELS)
    api.jobs["install-a"]["metadata"]["labels"]["app.kubernetes.io/component"] = "dispatcher"
    config = replace(CONFIG, generation="", skip_serving=True)
    dispatch(api, config, owner=Owner("reconcile", api.dispatcher("reconcile", LABELS)))
    assert "install-a" in api.jobs


def test_a_cleanup_changes_nothing_when_kata_is_wanted_again_while_it_waits(api: FakeApiServer) -> None:
    """The apply finds the Job of the last install, which has ended, and so makes no new one."""
    api.node("n")
    put_state(api, "absent")
    api.dispatcher("reconcile-dispatcher", LABELS)
    api.time.after(0.5, lambda: put_state(api, "present"))
    config = replace(CLEANUP, generation="", state_config_map=STATE)
    result = dispatch(api, config, owner=own_job(api))
    assert (result.exit_code, api.made) == (0, [])
    assert "says that Kata is wanted on the nodes" in progress.summary(result)
    assert "lastRollout" not in api.config_maps[STATE]["data"]
