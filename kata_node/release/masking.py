"""Take secrets out of objects and texts. Pure."""

from __future__ import annotations

import re
from typing import Any

from kata_node.errors import SettingsError
from kata_node.settings.values import parse_yaml

MASK = "*** masked by kata-node ***"

MASKED_KEYS = frozenset({"userdropin", "dropin", "httpsproxy", "httpproxy", "password", "token", "auths"})
"""Keys whose texts are masked whole, in lower case and without ``_`` and ``-``. Configuration that users
write can have credentials of registries, and a proxy those of a user."""

SECRET_WORDS = ("password", "passwd", "secret", "token", "credential", "proxy", "userdropin", "dropin")
"""Words in the name of an environment variable whose value is masked."""

DROPPED_ANNOTATIONS = ("kubectl.kubernetes.io/last-applied-configuration",)
"""They repeat the object, with what is masked in it."""

_URL_USER = re.compile(r"(?<=://)[^/\s\"'@]+@")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")


def mask_text(text: str) -> str:
    """Return a text without the users and passwords of URLs, and without tokens of HTTP headers."""
    return _BEARER.sub(rf"\1 {MASK}", _URL_USER.sub(f"{MASK}@", text))


def mask(value: Any) -> Any:
    """Return a copy of JSON data without secrets."""
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, list):
        return [mask(each) for each in value]
    if isinstance(value, dict):
        if isinstance(value.get("name"), str) and "value" in value and _is_secret(value["name"]):
            value = {**value, "value": MASK}
        return {key: MASK if each and _is_masked(key, each) else mask(each) for key, each in value.items()}
    return value


def mask_object(found: dict[str, Any]) -> dict[str, Any]:
    """Return an object of the API without secrets and without what only the API server needs."""
    metadata = {key: each for key, each in found.get("metadata", {}).items() if key != "managedFields"}
    if "annotations" in metadata:
        metadata["annotations"] = {
            key: each for key, each in metadata["annotations"].items() if key not in DROPPED_ANNOTATIONS
        }
    masked: dict[str, Any] = mask({**found, "metadata": metadata})
    if isinstance(found.get("data"), dict):
        masked["data"] = {key: _mask_document(str(each)) for key, each in found["data"].items()}
    masked.pop("binaryData", None)
    return masked


def _mask_document(text: str) -> Any:
    """Return a document in a ConfigMap as data without secrets. What is not YAML is masked whole."""
    if "\n" not in text and ":" not in text:
        return mask_text(text)
    try:
        return mask(parse_yaml(text))
    except (ValueError, SettingsError, RecursionError):
        return MASK


def _is_masked(key: str, value: Any) -> bool:
    return isinstance(value, str) and key.lower().replace("_", "").replace("-", "") in MASKED_KEYS


def _is_secret(name: str) -> bool:
    plain = name.lower().replace("_", "").replace("-", "")
    return any(word in plain for word in SECRET_WORDS)
