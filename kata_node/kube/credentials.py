"""Find the credentials for an API server, and create a client that uses them."""

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
    from lightkube.config.kubeconfig import SingleConfig

    from kata_node.kube.session import Session

CONNECT_TIMEOUT = 10.0
"""Seconds to connect. The timeout for an answer is longer."""

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""The directory where the kubelet puts the credentials of a pod."""


def find_credentials() -> str | None:
    """Return :data:`SERVICE_ACCOUNT` or the path of a kubeconfig; ``None`` when there is neither.

    A kubeconfig that ``KUBECONFIG`` names may be missing.
    """
    if os.environ.get("KUBERNETES_SERVICE_HOST") and Path(SERVICE_ACCOUNT, "token").is_file():
        return SERVICE_ACCOUNT
    named = [path for path in os.environ.get("KUBECONFIG", "").split(os.pathsep) if path]
    if named:
        return next((path for path in named if Path(path).expanduser().is_file()), named[0])
    default = Path("~/.kube/config").expanduser()
    return str(default) if default.is_file() else None


def open_session(request_timeout: float) -> Session:
    """Return a session that uses the credentials of :func:`find_credentials`. It sends no request.

    ``request_timeout`` is in seconds, for every step of a request; see :mod:`kata_node.kube.retry`
    for what it does not cover. Raises :class:`KubeError` when there are no credentials, or none that can be
    used.
    """
    from kata_node.kube import session

    source = _source()
    if source == SERVICE_ACCOUNT:
        with _credentials_of(source):
            return session.PodSession(
                host=os.environ["KUBERNETES_SERVICE_HOST"],
                port=int(os.environ["KUBERNETES_SERVICE_PORT"]),
                token_file=f"{source}/token",
                context=_ssl_context(f"{source}/ca.crt"),
                timeout=request_timeout,
                connect_timeout=min(request_timeout, CONNECT_TIMEOUT),
            )
    return session.KubeconfigSession(open_http_client(request_timeout))


def open_http_client(request_timeout: float, *, kubeconfig: str = "", context: str = "") -> httpx2.Client:
    """Return an HTTP client with the same credentials, for requests that lightkube's client cannot make.

    It takes paths of the API, like ``/api/v1/nodes``. ``kubeconfig`` is used in place of the credentials that
    are found, and ``context`` in place of the current context. When the API server refuses a token from a
    file, lightkube reads the file again. Raises the errors of :func:`open_session`.
    """
    from lightkube.config import client_adapter

    with _config(kubeconfig, context) as (config, transport):
        parameters = client_adapter.ConnectionParams(timeout=_timeout(request_timeout), transport=transport)
        return client_adapter.Client(config, parameters)


def _timeout(request_timeout: float) -> httpx2.Timeout:
    import httpx2

    return httpx2.Timeout(request_timeout, connect=min(request_timeout, CONNECT_TIMEOUT))


def _source() -> str:
    source = find_credentials()
    if source is None:
        raise KubeError(
            "there are no credentials for an API server",
            hint="run in a pod with a ServiceAccount, set KUBECONFIG, or use --offline",
        )
    return source


@contextlib.contextmanager
def _config(
    kubeconfig: str = "", context: str = ""
) -> Iterator[tuple[SingleConfig, httpx2.BaseTransport | None]]:
    """Yield the configuration for the credentials, and in a pod the transport to its cluster."""
    source = kubeconfig or _source()
    import httpx2
    from lightkube import KubeConfig

    with _credentials_of(source):
        transport = None
        if source == SERVICE_ACCOUNT:
            config = KubeConfig.from_service_account(source).get()
            transport = httpx2.HTTPTransport(verify=_ssl_context(f"{source}/ca.crt"))
        else:
            config = KubeConfig.from_file(source).get(context or None)
        assert config is not None  # without a current context, get() raises
        yield config, transport


@contextlib.contextmanager
def _credentials_of(source: str) -> Iterator[None]:
    """Turn an exception in the body into a :class:`KubeError` that names the credentials."""
    try:
        yield
    except Exception as error:  # a broken file can raise almost any class
        raise KubeError(
            f"the credentials cannot be used ({one_line(error)})",
            where=source,
            hint="run `kubectl get nodes` with the same file to check it",
        ) from error


def _ssl_context(ca_file: str) -> ssl.SSLContext:
    """Return a TLS context that trusts the cluster's CA, as strictly as kubectl does.

    Python 3.13 and later require certificates that strictly follow RFC 5280. Certificates of older EKS
    and MicroK8s clusters do not: they have no key identifiers or no key usage.
    """
    import ssl

    context = ssl.create_default_context(cafile=ca_file)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
