"""Read and write OCI image layouts: directories with an index and blobs by their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
NAME = "org.opencontainers.image.ref.name"


def encoded(value: object) -> bytes:
    """Return JSON with sorted keys and no spaces: the same value has the same digest."""
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Layout:
    """An OCI image layout. Digests are strings such as ``sha256:…``."""

    directory: Path

    def write(self, media_type: str, data: bytes) -> dict[str, Any]:
        """Write a blob, and return its descriptor."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.directory / "blobs/sha256" / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def write_manifest(
        self,
        config: Mapping[str, Any],
        layers: Sequence[Mapping[str, Any]],
        annotations: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        """Write a manifest of blobs, given by their descriptors, and return its own descriptor."""
        manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config,
            "layers": layers,
        }
        if annotations:
            manifest["annotations"] = annotations
        return self.write(MANIFEST, encoded(manifest))

    def write_index(self, images: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Write an index of images (architecture -> descriptor), and return its descriptor."""
        manifests = [
            {
                **image,
                "platform": {"os": "linux", "architecture": architecture},
            }
            for architecture, image in sorted(images.items())
        ]
        return self.write(INDEX, encoded({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}))

    def name(self, manifests: Mapping[str, Mapping[str, Any]]) -> None:
        """Give manifests their names (name -> descriptor); no other manifest has a name then."""
        named = [{**each, "annotations": {NAME: name}} for name, each in sorted(manifests.items())]
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": named}
        (self.directory / "index.json").write_bytes(encoded(index))
        (self.directory / "oci-layout").write_bytes(encoded({"imageLayoutVersion": "1.0.0"}))

    def read(self, digest: str) -> Any:
        """Return the JSON value of a blob."""
        return json.loads(self.blob(digest).read_bytes())

    def blob(self, digest: str) -> Path:
        """Return the path of a blob."""
        return self.directory / "blobs" / digest.replace(":", "/")

    def names(self) -> dict[str, str]:
        """Return the named manifests: name -> digest."""
        index = json.loads((self.directory / "index.json").read_bytes())
        return {each["annotations"][NAME]: each["digest"] for each in index["manifests"]}

    def images(self, digest: str) -> dict[str, str]:
        """Return the images of an index: architecture -> digest of the manifest. A manifest has none."""
        return {
            each["platform"]["architecture"]: each["digest"]
            for each in self.read(digest).get("manifests", ())
        }
