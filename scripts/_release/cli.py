"""The options of scripts/release, and the order of its steps."""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _release import chart, checksums, images, provenance, publish, python_packages, sbom, signatures, source
from _release.commands import output, program, require
from _release.errors import ReleaseError
from _release.oci import Layout, encoded
from _release.signatures import Key
from _release.source import Source

CHECKOUT = Path(__file__).resolve().parents[2]
PROVENANCE = "provenance.intoto.json"
SIGNED_PROVENANCE = "provenance.intoto.jsonl"
PUBLIC_KEY = "cosign.pub"


@dataclass(frozen=True)
class Request:
    """What to release: the commit, where its images will be (or ``""``), how to build them, and the key."""

    source: Source
    registry: str
    options: images.BuildOptions
    key: Key | None

    @property
    def parameters(self) -> dict[str, Any]:
        """What the maintainer chose."""
        return {"registry": self.registry, "architectures": list(self.options.architectures)}


def main(arguments: Sequence[str] | None = None, *, description: str = "") -> int:
    """Make a release, push it, or both. Return the exit code."""
    options = parser(description).parse_args(arguments)
    try:
        directory = options.output or CHECKOUT / "dist" / f"kata-node-{options.version}"
        require_place(options.push or options.registry)
        require(["git", *(["skopeo"] if options.push else [])])
        released = source.released(CHECKOUT, options.version)
        key = Key.read(options.key) if options.key else None
        if key and not (options.push or options.registry):
            raise ReleaseError(
                "a signature names the place of the image, which is not known", "give --registry or --push"
            )
        build = images.BuildOptions(
            options.architecture or images.ARCHITECTURES,
            options.base,
            options.apt_sources,
            options.check,
            options.no_cache,
        )
        request = Request(released, options.push or options.registry, build, key)
        if not directory.exists():
            make(request, directory)
        elif options.push:
            require_same(request, directory)
        else:
            raise ReleaseError(
                f"{directory} exists", "remove it, push it with --push, or name another with --output"
            )
        if options.push:
            publish.push(directory, options.push, plain_http=options.plain_http)
            print(f"\n{options.version} is in {options.push}")
    except ReleaseError as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    return 0


def parser(description: str) -> argparse.ArgumentParser:
    """Return the parser of the options."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="release", description=description, formatter_class=form)
    parser.add_argument(
        "version", metavar="VERSION", help="the version in kata_node/__init__.py, for example 1.2.3"
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--registry",
        default="",
        help="where the images will be, for example registry.example.org/kata; push nothing",
    )
    place.add_argument(
        "--push", default="", metavar="REGISTRY", help="push the release; make it first if needed"
    )
    parser.add_argument("--plain-http", action="store_true", help="push to a registry without TLS")
    parser.add_argument(
        "--key",
        type=Path,
        help="private key in PEM (ECDSA P-256) for signatures that cosign verifies; "
        f"{signatures.PASSWORD} has its password",
    )
    parser.add_argument(
        "--output", type=Path, help="directory of the release (default: dist/kata-node-VERSION)"
    )
    parser.add_argument(
        "--architecture",
        action="append",
        choices=images.ARCHITECTURES,
        help=f"architecture of the images; repeatable (default: {', '.join(images.ARCHITECTURES)})",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="run the images, those of other architectures with qemu; needs root",
    )
    parser.add_argument("--no-cache", action="store_true", help="build all layers again")
    parser.add_argument("--base", default="", help="base image of the build, best by its digest")
    parser.add_argument(
        "--apt-sources", type=Path, help="more sources of Debian packages, for example a snapshot"
    )
    return parser


def require_place(registry: str) -> None:
    """Raise :class:`ReleaseError` if ``registry`` is not a registry with an optional path."""
    if registry and not re.fullmatch(r"[\w.-]+(:\d+)?(/[a-z0-9._-]+)*", registry):
        raise ReleaseError(
            f"{registry} is not a registry",
            "write its host and a path, for example registry.example.org/kata",
        )


def require_same(request: Request, directory: Path) -> None:
    """Raise :class:`ReleaseError` unless ``directory`` is the release that ``request`` would make."""
    checksums.verify(directory)
    remedy = f"remove {directory}, and this command makes it again"
    predicate = json.loads((directory / PROVENANCE).read_bytes())["predicate"]["buildDefinition"]
    if provenance.commit(request.source) not in predicate["resolvedDependencies"]:
        raise ReleaseError(f"{directory} was made from another commit", remedy)
    if predicate["externalParameters"]["registry"] != request.registry:
        raise ReleaseError(
            f"the images in {directory} are for another registry than {request.registry}", remedy
        )
    public = directory / PUBLIC_KEY
    if request.key and (not public.exists() or public.read_bytes() != request.key.public()):
        raise ReleaseError(f"{directory} is not signed with this key", remedy)


def make(request: Request, directory: Path) -> None:
    """Make the release in a directory beside ``directory``, and rename it when it is complete."""
    require(["buildah", "helm"])
    chart.require_helm()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as name:
        scratch, target = Path(name), Path(name, "release")
        target.mkdir()
        export = source.export(CHECKOUT, request.source, scratch / "source")
        fill(request, export, target, scratch)
        target.rename(directory)
    print(f"\n{directory}:")
    for path in sorted(directory.iterdir()):
        print(f"  {path.name}")


def fill(request: Request, export: Path, target: Path, scratch: Path) -> None:
    """Write all files of the release to ``target``."""
    released, registry = request.source, request.registry
    python_packages.build(export, released, target)
    built = images.build(export, released, request.options, target / "images")
    digests = {name: layout.names()[released.version] for name, layout in built.items()}
    archive = chart.package(export, released, registry, digests, target)
    layouts = {**built, chart.NAME: Layout(target / "charts" / chart.NAME)}
    digests[chart.NAME] = chart.artifact(archive, released, layouts[chart.NAME])
    compilers: set[str] = set()
    for name, layout in built.items():
        for architecture, digest in layout.images(digests[name]).items():
            image = sbom.Image(name, released.version, architecture, digest, released.epoch)
            bill = target / f"{name}-{released.version}-{architecture}.cdx.json"
            sbom.write(layout, image, scratch / "roots" / digest, bill)
            compilers |= sbom.compilers(scratch / "roots" / digest)
    subjects = {path.name: checksums.sha256(path) for path in target.iterdir() if path.is_file()}
    subjects |= {
        f"{registry}/{name}".lstrip("/"): digest.partition(":")[2] for name, digest in digests.items()
    }
    materials = [*provenance.locks(export), *images.bases(request.options.base)]
    statement = provenance.statement(released, subjects, request.parameters, materials, tools(compilers))
    (target / PROVENANCE).write_bytes(encoded(statement) + b"\n")
    if request.key:
        signed = signatures.envelope(encoded(statement), request.key)
        (target / SIGNED_PROVENANCE).write_bytes(signed + b"\n")
        for name, layout in layouts.items():
            place = Layout(target / "signatures" / name)
            signatures.write(place, layout, f"{registry}/{name}", digests[name], request.key)
        (target / PUBLIC_KEY).write_bytes(request.key.public())
    sums = checksums.write(target)
    if request.key:
        (target / checksums.SIGNATURE).write_text(request.key.sign(sums.read_bytes()) + "\n")


def tools(compilers: Iterable[str]) -> dict[str, str]:
    """Return the versions of the programs whose output is in the release, those of gcc as ``compilers``."""
    return {
        "buildah": output("buildah", "--version"),
        **({"gcc": found} if (found := ", ".join(sorted(compilers))) else {}),
        "helm": output(program("helm"), "version", "--template={{.Version}}"),
        "python": sys.version.split()[0],
    }
