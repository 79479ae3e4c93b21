"""The images of the program and of the dispatcher, each as an OCI layout with one index."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from _release.commands import output, run
from _release.errors import ReleaseError
from _release.oci import Layout
from _release.source import Source

TARGETS: Mapping[str, str] = {"kata-node": "", "kata-deploy-job-dispatcher": "dispatcher"}
"""The images -> the target of the Containerfile."""

DEFAULT_BASES = ("debian:trixie-slim", "localhost/kata-node-base:trixie")
"""The base images that scripts/image uses: pulled, or made where it cannot be pulled."""

ARCHITECTURES = ("amd64", "arm64", "ppc64le", "s390x")
"""The architectures of an index, as images call them."""


@dataclass(frozen=True)
class BuildOptions:
    """What the builder may choose; an empty ``base`` is the one that scripts/image chooses."""

    architectures: Sequence[str] = ARCHITECTURES
    base: str = ""
    apt_sources: Path | None = None
    check: bool = False
    no_cache: bool = False


def build(export: Path, source: Source, options: BuildOptions, directory: Path) -> dict[str, Layout]:
    """Build the images into ``directory``, and return the layout of each."""
    layouts = {}
    for name in TARGETS:
        layouts[name] = _build(export, source, options, name, Layout(directory / name))
        options = replace(options, no_cache=False)  # the images have their first layers in common
    return layouts


def _build(export: Path, source: Source, options: BuildOptions, name: str, layout: Layout) -> Layout:
    layout.directory.mkdir(parents=True)
    for architecture in options.architectures:
        # buildah writes this name into the history of the image, so it is the same in every run.
        tag = f"localhost/{name}:{source.version}-{architecture}"
        run(
            *(sys.executable, export / "scripts/image", f"--tag={tag}", f"--target={TARGETS[name]}"),
            *(f"--architecture={architecture}", f"--timestamp={source.epoch}", "--debian-pins"),
            *(["--check"] if options.check else []),
            *(["--no-cache"] if options.no_cache else []),
            *([f"--base={options.base}"] if options.base else []),
            *([f"--apt-sources={options.apt_sources}"] if options.apt_sources else []),
            hint="If a pinned Debian package is not found, run `scripts/lock --debian` and commit the "
            "result, or name a snapshot of Debian with --apt-sources",
        )
        run("buildah", "push", "--format=oci", tag, f"oci:{layout.directory}:{architecture}")
        run("buildah", "rmi", tag)
    images = {name: _without_annotations(layout, found) for name, found in layout.names().items()}
    layout.name({source.version: layout.write_index(images)})
    return layout


def _without_annotations(layout: Layout, digest: str) -> dict[str, Any]:
    """Write the manifest again without the digest of the image before the last step, which buildah adds."""
    manifest = layout.read(digest)
    layout.blob(digest).unlink()
    return layout.write_manifest(manifest["config"], manifest["layers"])


def bases(base: str) -> list[dict[str, Any]]:
    """Return the base image as a material: ``base``, or the one that scripts/image has chosen."""
    for name in [base] if base else DEFAULT_BASES:
        with contextlib.suppress(ReleaseError):
            digest = output("buildah", "inspect", "--type=image", "--format={{.FromImageDigest}}", name)
            return [{"name": "base image", "uri": f"docker://{name}", "digest": dict([digest.split(":")])}]
    raise ReleaseError(f"buildah has no base image {base}", "name it with --base")
