"""Where a release comes from: an in-toto statement with a SLSA provenance, version 1 of both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from packageurl import PackageURL

from _release.checksums import sha256
from _release.source import Source

STATEMENT = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:kata-node:scripts-release:v1"
LOCKS = (
    "requirements/build.txt",
    "requirements/compile.txt",
    "requirements/debian.txt",
    "requirements/dev.txt",
    "requirements/runtime.txt",
)

_PINNED = re.compile(r"^([0-9a-f]{64})  ([^_]+)_([^_]+)_([^_]+)\.deb$", re.MULTILINE)


def statement(
    source: Source,
    subjects: Mapping[str, str],
    parameters: Mapping[str, Any],
    materials: Sequence[Mapping[str, Any]],
    tools: Mapping[str, str],
) -> dict[str, Any]:
    """Return the statement. It has no times, so that the same sources give the same statement.

    ``subjects`` are names -> SHA-256 in hexadecimal digits. ``tools`` are programs -> versions.
    """
    return {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": digest}} for name, digest in sorted(subjects.items())
        ],
        "predicateType": PROVENANCE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"version": source.version, **parameters},
                "internalParameters": {"sourceDateEpoch": source.epoch},
                "resolvedDependencies": [commit(source), *materials],
            },
            "runDetails": {"builder": {"id": f"{BUILD_TYPE}:by-hand", "version": dict(tools)}},
        },
    }


def commit(source: Source) -> dict[str, Any]:
    """Return the commit as a material."""
    found: dict[str, Any] = {"name": "source", "digest": {"gitCommit": source.commit}}
    return {**found, "uri": f"git+{source.url}@{source.commit}"} if source.url else found


def locks(export: Path) -> list[dict[str, Any]]:
    """Return the files with the pins, and each pinned Debian package, as materials."""
    files = [{"name": name, "digest": {"sha256": sha256(export / name)}} for name in LOCKS]
    return [*files, *debian((export / "requirements/debian.txt").read_text())]


def debian(pins: str) -> list[dict[str, Any]]:
    """Return the packages of requirements/debian.txt as materials."""
    return [
        {
            "uri": PackageURL("deb", "debian", name, unquote(version), {"arch": architecture}).to_string(),
            "digest": {"sha256": digest},
        }
        for digest, name, version, architecture in _PINNED.findall(pins)
    ]
