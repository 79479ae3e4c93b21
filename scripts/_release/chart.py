"""The chart: an archive as helm makes it, and the same archive as an OCI artifact."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import yaml

from _release.commands import output, program, run
from _release.errors import ReleaseError
from _release.oci import Layout
from _release.source import Source

NAME = "kata-deploy"
KEYS: Mapping[str, tuple[str, ...]] = {
    "kata-node": ("nodeImage",),
    "kata-deploy-job-dispatcher": ("job", "dispatcherImage"),
}
"""The images -> the key of each in the chart's values."""

_CONFIG = "application/vnd.cncf.helm.config.v1+json"
_CONTENT = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"


def require_helm() -> None:
    """Raise :class:`ReleaseError` if helm is too old to write the same archive twice."""
    version = output(program("helm"), "version", "--template={{.Version}}")
    if not version.startswith("v4."):
        raise ReleaseError(
            f"helm {version} writes the time of the day into the archive of the chart",
            "install helm 4, or name it in the variable HELM",
        )


def package(export: Path, source: Source, registry: str, digests: Mapping[str, str], directory: Path) -> Path:
    """Write the archive of the chart to ``directory``, with the images by their digests, and return its path.

    ``registry`` is empty for a chart whose users say where the images are.
    """
    chart = export.parent / "chart" / NAME
    shutil.copytree(export / "assets/chart" / NAME, chart)
    values = chart / "values.yaml"
    values.write_text(pinned(values.read_text(), registry, digests))
    for path in (*chart.rglob("*"), chart):  # helm keeps the times of the files
        os.utime(path, (source.epoch, source.epoch))
    version = (f"--version={source.version}", f"--app-version={source.version}")
    run(program("helm"), "package", chart, f"--destination={directory}", *version)
    return directory / f"{NAME}-{source.version}.tgz"


def pinned(values: str, registry: str, digests: Mapping[str, str]) -> str:
    """Return the chart's values with the images by their digests (image -> digest), and all comments."""
    for name, digest in digests.items():
        reference = f"{registry}/{name}" if registry else ""
        values = _with_image(values, KEYS[name], reference, digest)
    found = yaml.safe_load(values)
    assert found["nodeImage"]["tag"] == digests["kata-node"]
    assert found["job"]["dispatcherImage"]["tag"] == digests["kata-deploy-job-dispatcher"]
    return values


def _with_image(values: str, key: tuple[str, ...], reference: str, digest: str) -> str:
    """Replace the empty ``reference`` and ``tag`` of the block ``key``."""
    indent = "  " * len(key)
    block = re.compile(rf"^{indent[2:]}{key[-1]}:\n(?:{indent}.*\n)+", re.MULTILINE)
    if not (found := block.search(values)):
        raise ReleaseError(f"the chart's values.yaml has no block {'.'.join(key)}", "name its key in KEYS")
    text = found[0]
    for name, value in (("reference", reference), ("tag", digest)):
        text, count = re.subn(rf'^({indent}{name}:) ""$', rf'\1 "{value}"', text, flags=re.MULTILINE)
        if count != 1:
            raise ReleaseError(
                f"the chart's values.yaml has no empty {'.'.join(key)}.{name}",
                "let it be empty in the checkout",
            )
    return values[: found.start()] + text + values[found.end() :]


def artifact(archive: Path, source: Source, layout: Layout) -> str:
    """Write the OCI artifact that `helm push` would push, and return its digest."""
    metadata = yaml.safe_load(output(program("helm"), "show", "chart", archive))
    created = datetime.fromtimestamp(source.epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = layout.write(_CONFIG, json.dumps(metadata, sort_keys=True).encode())
    annotations = {
        **metadata.get("annotations", {}),
        "org.opencontainers.image.created": created,
        "org.opencontainers.image.description": metadata["description"],
        "org.opencontainers.image.title": metadata["name"],
        "org.opencontainers.image.url": metadata["home"],
        "org.opencontainers.image.version": metadata["version"],
    }
    manifest = layout.write_manifest(config, [layout.write(_CONTENT, archive.read_bytes())], annotations)
    layout.name({source.version: manifest})
    return str(manifest["digest"])
