"""SHA256SUMS: the digests of all files of a release."""

from __future__ import annotations

import hashlib
from pathlib import Path

from _release.errors import ReleaseError

FILE = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files(directory: Path) -> list[Path]:
    """Return all files of a release but the checksums and their signature, sorted."""
    found = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path for path in found if path.relative_to(directory).as_posix() not in (FILE, SIGNATURE))


def write(directory: Path) -> Path:
    """Write the checksums in the form of sha256sum, and return their path."""
    lines = [f"{sha256(path)}  {path.relative_to(directory).as_posix()}\n" for path in files(directory)]
    (directory / FILE).write_text("".join(lines))
    return directory / FILE


def verify(directory: Path) -> None:
    """Raise :class:`ReleaseError` if a file is missing, changed or not listed."""
    remedy = f"remove {directory} and make the release again"
    if not (directory / FILE).exists():
        raise ReleaseError(f"{directory} has no {FILE}", remedy)
    listed = {
        name: digest
        for digest, _, name in (line.partition("  ") for line in (directory / FILE).read_text().splitlines())
    }
    there = {path.relative_to(directory).as_posix(): sha256(path) for path in files(directory)}
    if different := sorted(name for name in {*listed, *there} if listed.get(name) != there.get(name)):
        raise ReleaseError(f"{directory} is not as it was made: {', '.join(different[:5])}", remedy)
