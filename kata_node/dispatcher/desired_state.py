"""What is wanted of the release: read its state object, and decide whether this run may change nodes.

An apply of rendered manifests can create the Job of a dispatcher at any time, so the existence of the Job
does not mean that somebody wants its work. The ConfigMap ``kata-deploy-state.<release>`` says what is wanted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec
from msgspec import Struct

from kata_node.dispatcher.api import ApiClient, RefusedError
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.kubernetes_objects import Action, ObjectMeta
from kata_node.dispatcher.template import Owner

ABSENT = "absent"

HELM_RELEASE_ANNOTATION = "meta.helm.sh/release-name"
"""Helm sets it on the objects of its releases, but not on hooks."""

HELM_HOOK_ANNOTATION = "helm.sh/hook"
APPLIED_ANNOTATIONS = ("kubectl.kubernetes.io/last-applied-configuration", "argocd.argoproj.io/tracking-id")
APPLYING_MANAGERS = ("kubectl", "argocd", "kustomize-controller")
"""The beginnings of the field managers of programs that apply manifests and run no hooks."""


class _ManagedFields(msgspec.Struct):
    manager: str = ""
    operation: str = ""
    subresource: str = ""


class _JobMetadata(ObjectMeta):
    managed_fields: list[_ManagedFields] = msgspec.field(default_factory=list)


class _Job(msgspec.Struct):
    metadata: _JobMetadata


class StateObject(msgspec.Struct):
    """The ConfigMap with the state of the release."""

    metadata: ObjectMeta
    data: dict[str, str] = msgspec.field(default_factory=dict)


class JobOrigin(Struct, frozen=True):
    """Where the dispatcher's own Job comes from."""

    annotations: Mapping[str, str]
    managers: Collection[str]
    """The field managers of the Job."""
    appliers: Collection[str] = ()
    """Those among them that have applied the Job on the server's side."""

    @property
    def is_helm_hook(self) -> bool:
        """Whether helm has created the Job as a hook. Other programs apply the same manifest."""
        return (
            HELM_HOOK_ANNOTATION in self.annotations
            and not any(key in self.annotations for key in APPLIED_ANNOTATIONS)
            and not any(manager.startswith(APPLYING_MANAGERS) for manager in self.managers)
            # helm, too, can apply on the server's side. Other programs may have any name there.
            and all("helm" in manager.lower() for manager in self.appliers)
        )


def reason_to_do_nothing(
    action: Action, name: str, state: StateObject | None, origin: JobOrigin | None
) -> str:
    """Return why a run must change nothing, as a sentence without a full stop; empty if it may work.

    ``state`` is the ConfigMap ``name``, ``None`` if it does not exist. ``origin`` is ``None`` if this
    dispatcher has no Job.
    """
    if state is None:
        # Only a cleanup runs after the objects of a release were deleted.
        return ""
    being_deleted = state.metadata.deletion_timestamp is not None
    absent = being_deleted or state.data.get("desiredState") == ABSENT
    if action == "install" and absent:
        why = "is being deleted" if being_deleted else "says that Kata is not wanted on the nodes"
        remedy = "to install Kata, set desiredState: present in the values, and apply them"
        return f"nothing was changed, because the ConfigMap {name} {why}; {remedy}"
    helm_uninstalls = (
        HELM_RELEASE_ANNOTATION in state.metadata.annotations and origin is not None and origin.is_helm_hook
    )
    if action == "install" or absent or helm_uninstalls:
        return ""
    return (
        f"nothing was changed, because the ConfigMap {name} says that Kata is wanted on the nodes; to remove "
        "Kata, set desiredState: absent in the values, and apply them; if helm manages the release, run "
        "`helm uninstall`"
    )


def state_path(config: Config) -> str:
    """Return the path of the ConfigMap with the state of the release."""
    return f"/api/v1/namespaces/{config.namespace}/configmaps/{config.state_config_map}"


def read_state(api: ApiClient, config: Config) -> StateObject | None:
    """Return the state of the release; ``None`` if there is none. Raises :class:`KubeError`."""
    if not config.state_config_map:
        return None
    content = get_object(api, state_path(config), "get the state of the release")
    return None if content is None else msgspec.json.decode(content, type=StateObject)


def find_reason_to_do_nothing(
    api: ApiClient, config: Config, state: StateObject | None, owner: Owner | None
) -> str:
    """Return what :func:`reason_to_do_nothing` decides about this run. Raises :class:`KubeError`."""
    origin = None
    if owner and state is not None and config.action == "cleanup":
        origin = _read_origin(api, config, owner)
    return reason_to_do_nothing(config.action, config.state_config_map, state, origin)


def _read_origin(api: ApiClient, config: Config, owner: Owner) -> JobOrigin | None:
    content = get_object(api, f"/apis/batch/v1/namespaces/{config.namespace}/jobs/{owner.name}", "get a job")
    if content is None:
        return None
    metadata = msgspec.json.decode(content, type=_Job).metadata
    if metadata.uid != owner.uid:
        return None
    managed = [each for each in metadata.managed_fields if not each.subresource]
    appliers = [each.manager for each in managed if each.operation == "Apply"]
    return JobOrigin(metadata.annotations, [each.manager for each in managed], appliers)


def get_object(api: ApiClient, path: str, what: str) -> bytes | None:
    """Return an object as JSON; ``None`` if it does not exist. Raises :class:`KubeError`."""
    try:
        return api.call("GET", path, what)
    except RefusedError as error:
        if error.failure.status == 404:
            return None
        raise
