"""A DaemonSet of the API: all it takes is ``get`` on this one of the ``daemonsets`` in its namespace."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kata_node.errors import KubeError
from kata_node.kube.failures import NOT_KUBERNETES_HINT, RequestFailure

if TYPE_CHECKING:
    from lightkube.generic_resource import GenericNamespacedResource

    from kata_node.kube.client import KubeClient


class _NoSuchDaemonSetError(KubeError):
    """There is none of this name."""


def find_daemonset(kube: KubeClient, namespace: str, name: str, deadline: float) -> Mapping[str, Any] | None:
    """The DaemonSet ``name`` as it is now; ``None`` when the API server has said that there is none.

    Raises :class:`KubeError` for every other answer, and when there is none until ``deadline``, a
    point of the clock of ``kube``. Whoever may not see it does not learn that it is gone.
    """
    where = f"daemonset/{name} in {namespace} at {kube.server}"

    def refused(failure: RequestFailure, tries: int) -> KubeError:
        what = f"the API server {failure.what}" + (f" (asked {tries} times)" if tries > 1 else "")
        # Neither a server that is none of Kubernetes' says this, nor one that lacks the API group.
        if failure.status == 404 and f'daemonsets.apps "{name}" not found' in failure.what:
            return _NoSuchDaemonSetError(what, where=where)
        return KubeError(what, where=where, hint=_HINTS.get(failure.status, _HINTS[0]))

    try:
        found = kube.send(
            lambda client: client.get(_resource(), name, namespace=namespace), deadline, refused
        )
    except _NoSuchDaemonSetError:
        return None
    if found.get("kind") != "DaemonSet":
        raise KubeError("the answer is no DaemonSet", where=where, hint=NOT_KUBERNETES_HINT)
    return found


_HINTS = {
    0: "see that the API server is reachable from here",
    401: "the token is good no more: its ServiceAccount has to be there for as long as the pods that use it",
    403: 'give the account "get" on the resource "daemonsets" (API group "apps") in this namespace, for as '
    "long as the pods that use it are there",
    404: NOT_KUBERNETES_HINT,
}


@functools.cache  # see kata_node.kube.client
def _resource() -> type[GenericNamespacedResource]:
    from lightkube.generic_resource import create_namespaced_resource

    return create_namespaced_resource("apps", "v1", "DaemonSet", "daemonsets")
