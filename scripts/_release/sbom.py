"""The software bill of materials of an image, in CycloneDX, from the files that the image has."""

from __future__ import annotations

import re
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import HeaderParser
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePosixPath

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import Property
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.dependency import Dependency
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from _release.errors import ReleaseError
from _release.oci import Layout

STATUS = PurePosixPath("var/lib/dpkg/status.d")
OS_RELEASE = PurePosixPath("usr/lib/os-release")
LIBRARIES = "usr/lib/kata-node/lib/python3*/site-packages"
COMPILER = "kata-node:compiler"
"""The property of a distribution that was compiled for the image."""
_COMPILED = re.compile(r"^Tag: .*-linux_", re.MULTILINE)
"""In the metadata of a wheel that was made here; those of an index have manylinux or musllinux."""
_COMMENT = re.compile(rb"GCC: \(([^)]+)\)")
"""What the compiler says about itself in a library: ``GCC: (Debian 14.2.0-19) 14.2.0``."""


@dataclass(frozen=True)
class Image:
    """An image: its name, version, architecture and the digest of its manifest; ``epoch`` is its time."""

    name: str
    version: str
    architecture: str
    digest: str
    epoch: int


def write(layout: Layout, image: Image, scratch: Path, target: Path) -> None:
    """Write the bill of materials of an image in ``layout`` to ``target``."""
    unpack(layout, image.digest, scratch)
    target.write_text(bill(scratch, image))


def unpack(layout: Layout, digest: str, root: Path) -> None:
    """Unpack what tells the packages of an image: dpkg's control data, metadata and libraries of Python."""
    for layer in layout.read(digest)["layers"]:
        with tarfile.open(layout.blob(layer["digest"])) as tar:
            for entry in tar:
                path = PurePosixPath(entry.name)
                if path.name.startswith(".wh."):
                    raise ReleaseError(
                        f"a layer of {digest} removes {path}", "let the image be one layer: COPY into scratch"
                    )
                content = tar.extractfile(entry) if entry.isfile() and _tells_packages(path) else None
                if content is not None:
                    (root / path).parent.mkdir(parents=True, exist_ok=True)
                    (root / path).write_bytes(content.read())


def _tells_packages(path: PurePosixPath) -> bool:
    if ".." in path.parts or path.is_absolute():
        return False
    return path.parent == STATUS or path == OS_RELEASE or _is_of_a_distribution(path)


def _is_of_a_distribution(path: PurePosixPath) -> bool:
    if "site-packages" not in path.parts:
        return False
    return path.suffix == ".so" or (path.parent.suffix == ".dist-info" and path.name.isupper())


def bill(root: Path, image: Image) -> str:
    """Return the bill of materials of the image with the root directory ``root``, as JSON."""
    components = [*debian_packages(root), *python_packages(root)]
    subject = Component(
        name=image.name,
        type=ComponentType.CONTAINER,
        version=image.version,
        bom_ref=image.name,
        purl=PackageURL("oci", None, image.name, image.digest, {"arch": image.architecture}),
        properties=[Property(name="oci:architecture", value=image.architecture)],
    )
    references = [Dependency(component.bom_ref) for component in components]
    bom = Bom(
        components=components,
        serial_number=uuid.uuid5(uuid.NAMESPACE_URL, f"pkg:oci/{image.name}@{image.digest}"),
        metadata=BomMetaData(component=subject, timestamp=datetime.fromtimestamp(image.epoch, UTC)),
        dependencies=[Dependency(subject.bom_ref, references), *references],
    )
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def debian_packages(root: Path) -> Iterator[Component]:
    """Return the packages of ``var/lib/dpkg/status.d``."""
    for path in sorted((root / STATUS).iterdir()):
        fields = HeaderParser().parsestr(path.read_text())
        name, version = fields["Package"], fields["Version"]
        purl = PackageURL(
            "deb", "debian", name, version, {"arch": fields["Architecture"]} | _release_of(root)
        )
        yield Component(name=name, version=version, purl=purl, bom_ref=purl.to_string())


def _release_of(root: Path) -> dict[str, str]:
    path = root / OS_RELEASE
    lines = path.read_text().splitlines() if path.exists() else []
    found = [line.partition("=")[2].strip('"') for line in lines if line.startswith("VERSION_ID=")]
    return {"distro": f"debian-{found[0]}"} if found else {}


def python_packages(root: Path) -> Iterator[Component]:
    """Return the distributions that Python finds in the image."""
    paths = [str(path) for path in sorted(root.glob(LIBRARIES))]
    factory = LicenseFactory()
    for found in sorted(distributions(path=paths), key=lambda each: each.name.lower()):
        name = found.metadata["Name"]
        expression = (found.metadata.get_all("License-Expression") or [""])[0]
        purl = PackageURL("pypi", None, name.lower().replace("_", "-"), found.version)
        compiler = compiler_of(found)
        yield Component(
            name=name,
            version=found.version,
            purl=purl,
            bom_ref=purl.to_string(),
            licenses=[factory.make_from_string(expression)] if expression else [],
            properties=[Property(name=COMPILER, value=compiler)] if compiler else [],
        )


def compiler_of(found: Distribution) -> str:
    """Return the version of the gcc that compiled a distribution for the image, or ``""`` if it has none."""
    if not _COMPILED.search(found.read_text("WHEEL") or ""):
        return ""
    libraries = [Path(str(file.locate())) for file in found.files or () if file.suffix == ".so"]
    comments = {match[1].decode() for path in libraries for match in _COMMENT.finditer(path.read_bytes())}
    if not comments:
        raise ReleaseError(
            f"no library of {found.name} says which compiler made it", "let its strip keep .comment"
        )
    return ", ".join(sorted(comments))


def compilers(root: Path) -> set[str]:
    """Return the versions of gcc that compiled distributions for the image."""
    paths = [str(path) for path in root.glob(LIBRARIES)]
    return {compiler for found in distributions(path=paths) if (compiler := compiler_of(found))}
