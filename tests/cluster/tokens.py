"""Make ServiceAccount tokens with any lifetime, also expired ones, which the API server does not issue."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key


def with_lifetime(token: str, seconds: int, key: Path) -> str:
    """Return ``token`` with an expiry ``seconds`` from now, signed again; negative seconds: it has expired.

    ``key`` is the file of the cluster's signing key, see :func:`cluster.flags.signing_key`.
    """
    header, claims, _ = token.split(".")
    now = int(time.time())
    times = {"iat": now - 3600, "nbf": now - 3600, "exp": now + seconds}
    text = f"{header}.{_encoded(json.dumps({**json.loads(_decoded(claims)), **times}).encode())}"
    signer = load_pem_private_key(key.read_bytes(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    # A token contains the two numbers of the signature one after the other, 32 bytes each on this curve.
    numbers = decode_dss_signature(signer.sign(text.encode(), ec.ECDSA(SHA256())))
    return f"{text}.{_encoded(b''.join(number.to_bytes(32, 'big') for number in numbers))}"


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
