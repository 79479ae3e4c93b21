"""Tokens of ServiceAccounts that the API server would not give out: such as have expired."""

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
    """``token`` as one that is good for so many seconds from now; less than none: it has expired.

    ``key`` is the file that the cluster signs with, see :func:`cluster.flags.signing_key`.
    """
    header, claims, _ = token.split(".")
    now = int(time.time())
    times = {"iat": now - 3600, "nbf": now - 3600, "exp": now + seconds}
    text = f"{header}.{_encoded(json.dumps({**json.loads(_decoded(claims)), **times}).encode())}"
    signer = load_pem_private_key(key.read_bytes(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    # A token has the two numbers one behind the other, each 32 bytes long on this curve.
    numbers = decode_dss_signature(signer.sign(text.encode(), ec.ECDSA(SHA256())))
    return f"{text}.{_encoded(b''.join(number.to_bytes(32, 'big') for number in numbers))}"


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
