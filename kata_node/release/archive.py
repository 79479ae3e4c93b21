"""Make an archive in memory that is the same for the same content. Pure."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping

DIRECTORY = "kata-bundle"
"""The directory of all files in the archive."""


def archive(contents: Mapping[str, bytes]) -> bytes:
    """Return a tar.gz with ``contents``, by path, in the order of the paths."""
    raw = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=raw, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for path, content in sorted(contents.items()):
            info = tarfile.TarInfo(f"{DIRECTORY}/{path}")
            info.size, info.mode = len(content), 0o600
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()
