"""Take secrets out of objects and texts. Pure."""

from __future__ import annotations

import re
from typing import Any

from kata_node.errors import SettingsError
from kata_node.settings.values import parse_yaml

MASK = "*** masked by kata-node ***"

MASKED_KEYS = frozenset({"userdropin", "dropin", "httpsproxy", "httpproxy"})
"""More keys whose texts are masked whole, in lower case and without ``_`` and ``-``. Configuration that users
write can have credentials of registries, and a proxy those of a user."""

SECRET_WORDS = ("proxy", "userdropin", "dropin")
"""More words in the name of an environment variable whose value is masked."""

DROPPED_ANNOTATIONS = ("kubectl.kubernetes.io/last-applied-configuration",)
"""They repeat the object, with what is masked in it. Other annotations that look like that are masked."""

ANNOTATION_LIMIT = 1024
"""Characters of an annotation that is shown."""

_NAMES_A_SECRET = re.compile(
    r"(?i)pass(?:word|wd|phrase)|secret|token|auth|credential|(?:private|api|access)[-_]?key"
)
_NAMES_ANOTHER_THING = re.compile(r"(?i)(?:file|path|dir|name|digest|seconds)$")
"""The ends of keys whose value is not the secret itself, such as ``secretName``."""

_URL_USER = re.compile(r"(?<=://)[^/\s\"'@]+@")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_KEY = re.compile(r"(?<![\w-])(?P<name>[\w-]++)[\\\"']*+\s*+[=:]\s*+")
_VALUE = re.compile(
    r"""(?:dyn\()?(?:"(?:[^"\\]|\\.)*+"|'[^']*+'|\\"[^"]*+")|(?!dyn\(|true\b|false\b|null\b)[^\s"'\\,;(){}\[\]]++"""
)


def mask_text(text: str) -> str:
    """Return a text without secrets: in URLs, in HTTP headers, and behind keys with a name of a secret."""
    return _mask_assigned(_BEARER.sub(rf"\1 {MASK}", _URL_USER.sub(f"{MASK}@", text)))


def _mask_assigned(text: str) -> str:
    """Return the text without the values of ``password = …``, ``"token": "…"`` and the like."""
    done: list[str] = []
    at = 0
    while found := _KEY.search(text, at):
        done.append(text[at : found.end()])
        at = found.end()
        if _is_name_of_secret(found["name"]) and (value := _VALUE.match(text, at)):
            done.append(MASK)
            at = value.end()
    return "".join([*done, text[at:]])


def mask(value: Any) -> Any:
    """Return a copy of JSON data without secrets."""
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, list):
        return [mask(each) for each in value]
    if isinstance(value, dict):
        if isinstance(value.get("name"), str) and "value" in value and _is_secret(value["name"]):
            value = {**value, "value": MASK}
        return {key: _mask_entry(key, each) for key, each in value.items()}
    return value


def _mask_entry(key: str, value: Any) -> Any:
    if key == "annotations" and isinstance(value, dict):
        return {
            name: MASK if isinstance(each, str) and _repeats_an_object(each) else _mask_entry(name, each)
            for name, each in value.items()
            if name not in DROPPED_ANNOTATIONS
        }
    return MASK if value and _is_masked(str(key), value) else mask(value)


def _repeats_an_object(annotation: str) -> bool:
    """Return whether an annotation can be an object that a program applied, in whatever form."""
    return len(annotation) > ANNOTATION_LIMIT or "\n" in annotation or annotation.lstrip()[:1] in ("{", "[")


def mask_object(found: dict[str, Any]) -> dict[str, Any]:
    """Return an object of the API without secrets and without what only the API server needs."""
    metadata = {key: each for key, each in found.get("metadata", {}).items() if key != "managedFields"}
    masked: dict[str, Any] = mask({**found, "metadata": metadata})
    if isinstance(found.get("data"), dict):
        masked["data"] = {key: _mask_document(key, str(each)) for key, each in found["data"].items()}
    masked.pop("binaryData", None)
    return masked


def _mask_document(key: str, text: str) -> Any:
    """Return a document in a ConfigMap as data without secrets. What is not YAML is masked whole."""
    if "\n" not in text and ":" not in text:
        return MASK if text and _is_masked(key, text) else mask_text(text)
    try:
        found = parse_yaml(text)
    except (ValueError, SettingsError, RecursionError):
        return MASK
    # A text of several lines can be a document of another kind, such as TOML.
    return mask(found) if isinstance(found, dict | list) else MASK


def _is_masked(key: str, value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return _is_name_of_secret(key) or _plain(key) in MASKED_KEYS


def _is_secret(name: str) -> bool:
    """Return whether the environment variable ``name`` can have a secret."""
    return _is_name_of_secret(name) or any(word in _plain(name) for word in SECRET_WORDS)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _is_name_of_secret(name: str) -> bool:
    return bool(_NAMES_A_SECRET.search(name)) and not _NAMES_ANOTHER_THING.search(name)
