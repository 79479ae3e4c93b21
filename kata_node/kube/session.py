"""Send single requests to the API server, with the credentials of a pod or of a kubeconfig."""

from __future__ import annotations

import http.client
import select
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kata_node import __version__
from kata_node.kube.failures import HttpError, NoAnswerError

if TYPE_CHECKING:
    import httpx2

USER_AGENT = f"kata-node/{__version__}"

MAX_IDLE = 5.0
"""Seconds after which a connection is not used again: a machine in between may have forgotten it."""

_PERMANENT = (ssl.SSLCertVerificationError, http.client.InvalidURL, UnicodeError)
"""Errors of a connection that the next attempt has, too. The last two are of an invalid address."""


class Session(Protocol):
    """A connection to the API server that sends requests with credentials. Threads may share it."""

    server: str
    """The address, for messages: ``https://10.0.0.1:6443``."""

    def request(self, method: str, path: str, body: bytes | None = None, content_type: str = "") -> bytes:
        """Return the body of a successful answer.

        Raises an error that :func:`kata_node.kube.failures.classify_error` knows.
        """

    def close(self) -> None:
        """Close the connections."""


class PodSession:
    """A session with the credentials of a ServiceAccount, over the HTTP client of the standard library.

    lightkube and httpx2 are not used: loading them takes twice the CPU time of the rest of a stage, and each
    node starts two such stages. A pod needs little of what they can do: one server, one token file, and no
    proxy.
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        token_file: str,
        context: ssl.SSLContext,
        timeout: float,
        connect_timeout: float,
    ) -> None:
        self.server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self._host, self._port = host, port
        self._token_file = Path(token_file)
        self._context = context
        self._timeout, self._connect_timeout = timeout, connect_timeout
        # A request that timed out may go on in its thread. So a connection is here only while it is not used.
        self._idle: list[tuple[http.client.HTTPSConnection, float]] = []
        self._read_token()

    def request(self, method: str, path: str, body: bytes | None = None, content_type: str = "") -> bytes:
        """See :class:`Session`."""
        headers = {
            "Authorization": f"Bearer {self._read_token()}",
            "Accept": "application/json",
            "User-Agent": USER_AGENT,
        }
        if content_type:
            headers["Content-Type"] = content_type
        connection = None
        try:
            connection = self._idle_connection() or self._connect()
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            if connection:
                connection.close()
            raise NoAnswerError(error, is_permanent=isinstance(error, _PERMANENT)) from error
        self._idle.append((connection, time.monotonic()))
        if answer.status >= http.HTTPStatus.MULTIPLE_CHOICES:
            wait = answer.getheader("Retry-After", "")
            raise HttpError(answer.status, answer.reason, wait, content)
        return content

    def close(self) -> None:
        """See :class:`Session`."""
        while self._idle:
            self._idle.pop()[0].close()

    def _connect(self) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=self._connect_timeout, context=self._context
        )
        connection.connect()
        connection.sock.settimeout(self._timeout)
        return connection

    def _idle_connection(self) -> http.client.HTTPSConnection | None:
        try:
            connection, since = self._idle.pop()
        except IndexError:
            return None
        if connection.sock is None:  # the last answer closed it
            return None
        # Nothing is to be read between two requests, unless the server has closed the connection.
        poll = select.poll()
        poll.register(connection.sock, select.POLLIN)
        if time.monotonic() - since > MAX_IDLE or poll.poll(0):
            connection.close()
            return None
        return connection

    def _read_token(self) -> str:
        """Return the token. The kubelet replaces the file long before the token expires."""
        token = self._token_file.read_text(errors="replace").strip()
        if not (token.isascii() and token.isprintable()):
            # The error of the HTTP client would quote it.
            raise OSError("the token has a character that is not allowed in a header")
        return token


class KubeconfigSession:
    """A session with the credentials of a kubeconfig, which can also be those of a plugin."""

    def __init__(self, client: httpx2.Client) -> None:
        client.headers["User-Agent"] = USER_AGENT
        self.server = str(client.base_url).rstrip("/")
        self._client = client

    def request(self, method: str, path: str, body: bytes | None = None, content_type: str = "") -> bytes:
        """See :class:`Session`."""
        headers = {"Content-Type": content_type} if content_type else {}
        return self._client.request(method, path, content=body, headers=headers).raise_for_status().content

    def close(self) -> None:
        """See :class:`Session`."""
        self._client.close()
