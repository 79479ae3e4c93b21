"""Read one DaemonSet. The account needs only ``get`` on this DaemonSet in its namespace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from kata_node.errors import KubeError
from kata_node.kube.failures import NOT_KUBERNETES_HINT, RequestFailure

if TYPE_CHECKING:
    from kata_node.kube.client import KubeClient


class _NoSuchDaemonSetError(KubeError):
    """The API server has no DaemonSet of this name."""


def find_daemonset(kube: KubeClient, namespace: str, name: str, deadline: float) -> Mapping[str, Any] | None:
    """Return the current DaemonSet ``name``; ``None`` when the API server says that it does not exist.

    Raises :class:`KubeError` for every other answer, and when there is no answer until ``deadline``, a
    time of the clock of ``kube``. A refused permission is an error too: it does not mean that the
    DaemonSet is gone.
    """
    path = f"/apis/apps/v1/namespaces/{quote(namespace, safe='')}/daemonsets/{quote(name, safe='')}"
    where = f"daemonset/{name} in {namespace} at {kube.server}"

    def refused(failure: RequestFailure, tries: int) -> KubeError:
        what = f"the API server {failure.what}" + (f" (asked {tries} times)" if tries > 1 else "")
        # Another kind of server, or an API server without this API group, gives another message.
        if failure.status == 404 and f'daemonsets.apps "{name}" not found' in failure.message:
            return _NoSuchDaemonSetError(what, where=where)
        return KubeError(what, where=where, hint=_HINTS.get(failure.status, _HINTS[0]))

    try:
        found = kube.get(path, deadline, refused)
    except _NoSuchDaemonSetError:
        return None
    if found.get("kind") != "DaemonSet":
        raise KubeError("the answer is not a DaemonSet", where=where, hint=NOT_KUBERNETES_HINT)
    return found


_HINTS = {
    0: "check that the API server is reachable from this node",
    401: "keep the ServiceAccount until the pods that use it are gone; its token is not valid any more",
    403: 'give the account the verb "get" on the resource "daemonsets" (API group "apps") in this namespace, '
    "until the pods that use the account are gone",
    404: NOT_KUBERNETES_HINT,
}
