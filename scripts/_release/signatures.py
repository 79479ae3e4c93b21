"""Signatures that cosign verifies: ECDSA P-256, in images beside what they sign."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from _release.errors import ReleaseError
from _release.oci import Layout, encoded

PASSWORD = "RELEASE_KEY_PASSWORD"
"""The variable with the password of the key."""

ANNOTATION = "dev.cosignproject.cosign/signature"
_PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
_STATEMENT = "application/vnd.in-toto+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"


@dataclass(frozen=True)
class Key:
    """A private key."""

    private: ec.EllipticCurvePrivateKey

    @classmethod
    def read(cls, path: Path) -> Key:
        """Read a key in PEM. Raises :class:`ReleaseError` if it is none for ECDSA on the curve P-256."""
        how = "make one with `openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out FILE`"
        password = os.environ.get(PASSWORD, "").encode() or None
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ReleaseError(f"{path}: {error.strerror}", f"name the private key, or {how}") from None
        if b"SIGSTORE PRIVATE KEY" in data or b"COSIGN PRIVATE KEY" in data:
            raise ReleaseError(
                f"{path} is a key in cosign's own form, which only cosign reads",
                f"{how}, and import it into cosign with `cosign import-key-pair` where you need it there",
            )
        try:
            key = serialization.load_pem_private_key(data, password)
        except (ValueError, TypeError) as error:
            raise ReleaseError(
                f"{path} is not a private key in PEM: {error}",
                f"give the password in {PASSWORD} if it is encrypted, or {how}",
            ) from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ReleaseError(f"{path} is not a key for ECDSA on the curve P-256", how)
        return cls(key)

    def public(self) -> bytes:
        """Return the public key in PEM."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.private.public_key().public_bytes(serialization.Encoding.PEM, form)

    def sign(self, data: bytes) -> str:
        """Return the signature in base64. The same key and data give the same signature (RFC 6979)."""
        algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
        return base64.b64encode(self.private.sign(data, algorithm)).decode()


def envelope(statement: bytes, key: Key) -> bytes:
    """Return a signed in-toto statement as a DSSE envelope, which `cosign verify-blob-attestation` takes.

    The DSSE protocol says that the type and the statement are signed together, each with its length.
    """
    signed = b"DSSEv1 %d %s %d %s" % (len(_STATEMENT), _STATEMENT.encode(), len(statement), statement)
    return encoded(
        {
            "payloadType": _STATEMENT,
            "payload": base64.b64encode(statement).decode(),
            "signatures": [{"sig": key.sign(signed)}],
        }
    )


def payload(reference: str, digest: str) -> bytes:
    """Return what is signed for the image ``reference``, a repository without tag, with ``digest``."""
    return encoded(
        {
            "critical": {
                "identity": {"docker-reference": reference},
                "image": {"docker-manifest-digest": digest},
                "type": "cosign container image signature",
            },
            "optional": None,
        }
    )


def tag(digest: str) -> str:
    """Return the tag at which cosign looks for the signature of ``digest``."""
    return digest.replace(":", "-") + ".sig"


def write(layout: Layout, signed: Layout, reference: str, digest: str, key: Key) -> None:
    """Write to ``layout`` the signatures of ``digest`` in ``signed`` and of the images of an index."""
    digests = (digest, *signed.images(digest).values())
    layout.name({tag(each): _image(layout, reference, each, key) for each in digests})


def _image(layout: Layout, reference: str, digest: str, key: Key) -> dict[str, Any]:
    data = payload(reference, digest)
    layer = layout.write(_PAYLOAD, data)
    config = {
        "architecture": "",
        "os": "",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    described = layout.write(_CONFIG, encoded(config))
    return layout.write_manifest(described, [{**layer, "annotations": {ANNOTATION: key.sign(data)}}])
