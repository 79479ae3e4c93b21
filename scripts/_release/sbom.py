"""The software bill of materials of an image, in CycloneDX, from the files that the image has."""

from __future__ import annotations

import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.parser import HeaderParser
from importlib.metadata import distributions
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
    """Unpack what tells the packages of an image: the control data of dpkg, and the metadata of Python's."""
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
    return path.parent == STATUS or path == OS_RELEASE or _is_metadata(path)


def _is_metadata(path: PurePosixPath) -> bool:
    return path.name == "METADATA" and path.parent.suffix == ".dist-info"


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
        yield Component(
            name=name,
            version=found.version,
            purl=purl,
            bom_ref=purl.to_string(),
            licenses=[factory.make_from_string(expression)] if expression else [],
        )
