"""Which credentials for an API server there are, and a lightkube client that uses them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kata_node.errors import KubeError
from kata_node.kube.failures import one_line

if TYPE_CHECKING:
    import ssl

    import httpx2
    from lightkube import Client
    from lightkube.config.kubeconfig import SingleConfig

CONNECT_TIMEOUT = 10.0
"""Seconds for a connection; an answer may take longer, and so is waited for longer."""

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where the kubelet puts the credentials of a pod."""


def find_credentials() -> str | None:
    """:data:`SERVICE_ACCOUNT`, or the path of a kubeconfig; one named by ``KUBECONFIG`` need not exist."""
    if os.environ.get("KUBERNETES_SERVICE_HOST") and Path(SERVICE_ACCOUNT, "token").is_file():
        return SERVICE_ACCOUNT
    named = [path for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    if named:
        return next((path for path in named if Path(path).expanduser().is_file()), named[0])
    default = Path("~/.kube/config").expanduser()
    return str(default) if default.is_file() else None


def open_client(request_timeout: float) -> Client:
    """A client for the credentials found; nothing is sent yet.

    ``request_timeout`` is in seconds, for every step of a request; see :mod:`kata_node.kube.retry`
    for what it does not cover. A refused token that came from a file is read from it again by
    lightkube. Raises :class:`KubeError` when there are no credentials, or they cannot be used.
    """
    from lightkube import Client

    with _credentials() as (config, transport):
        return Client(
            config, timeout=_timeout(request_timeout), transport=transport, field_manager="kata-node"
        )


def open_http_client(request_timeout: float) -> httpx2.Client:
    """The same as plain HTTP, for what lightkube's client has no words for.

    Paths are those of the API, such as ``/api/v1/nodes``. Raises what :func:`open_client` does.
    """
    from lightkube.config import client_adapter

    with _credentials() as (config, transport):
        parameters = client_adapter.ConnectionParams(timeout=_timeout(request_timeout), transport=transport)
        return client_adapter.Client(config, parameters)


def _timeout(request_timeout: float) -> httpx2.Timeout:
    import httpx2

    return httpx2.Timeout(request_timeout, connect=min(request_timeout, CONNECT_TIMEOUT))


@contextlib.contextmanager
def _credentials() -> Iterator[tuple[SingleConfig, httpx2.BaseTransport | None]]:
    """The credentials found, and in a pod the way to its cluster; what fails with them is told as such."""
    source = find_credentials()
    if source is None:
        raise KubeError(
            "there are no credentials for an API server",
            hint="run in a pod with a ServiceAccount, set KUBECONFIG, or use --offline",
        )
    import httpx2
    from lightkube import KubeConfig

    try:
        transport = None
        if source == SERVICE_ACCOUNT:
            config = KubeConfig.from_service_account(source).get()
            transport = httpx2.HTTPTransport(verify=_ssl_context(f"{source}/ca.crt"))
        else:
            config = KubeConfig.from_file(source).get()
        assert config is not None  # it would only be for lack of a context, which raises
        yield config, transport
    except Exception as error:  # what is wrong with such a file surfaces as almost any class
        raise KubeError(
            f"these credentials cannot be used ({one_line(error)})",
            where=source,
            hint="try `kubectl get nodes` with the same file",
        ) from error


def _ssl_context(ca_file: str) -> ssl.SSLContext:
    """Trust the cluster's own CA, the way kubectl does.

    From Python 3.13 on certificates must follow RFC 5280 to the letter by default; those of older
    EKS and MicroK8s clusters, made without key identifiers or key usage, do not.
    """
    import ssl

    context = ssl.create_default_context(cafile=ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
