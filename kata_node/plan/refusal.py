"""The configuration that the container runtime of this node refused last, so that it is not tried again.

The record is in ``<install dir>/.kata-node/refused.json``. There is at most one. It counts only for the same
runtime, the same version, exactly the same files and the same payload. A success and a revert remove it.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from kata_node.errors import KataNodeError, RolledBackError
from kata_node.host.files import Root
from kata_node.plan import receipt as receipts
from kata_node.plan.small_records import load_record
from kata_node.text import foreign_words, utc

NAME = "refused.json"
TEXT_LIMIT = 1000
"""Maximum characters of the reason."""

log = logging.getLogger(__name__)


class TriedConfig(Struct, frozen=True):
    """A configuration that a change gives to a runtime.

    ``digest`` is the sha256 of all its files, and of what the artifacts stage placed for it.
    """

    runtime: str
    version: str
    digest: str

    @classmethod
    def of(cls, runtime: str, version: str, files: Mapping[str, bytes], inputs: str) -> TriedConfig:
        """Return the configuration with ``files``, by path. ``inputs`` is that of the receipt's artifacts."""
        digest = hashlib.sha256(f"{inputs}\n".encode())
        for path, content in sorted(files.items()):
            digest.update(f"{path}\0{hashlib.sha256(content).hexdigest()}\n".encode())
        return cls(runtime, version, digest.hexdigest())


class Refusal(Struct, frozen=True):
    """A configuration with which the runtime did not start or did not serve, while it serves without it."""

    config: TriedConfig
    reason: str
    """The error of that run and the last words of the runtime, as one line."""
    at: str
    """When, as ``2026-10-03T08:12:44Z``."""

    def error(self, unit: str) -> RolledBackError:
        """Return the error of a run that would try the same configuration again."""
        return RolledBackError(
            f"{self.config.runtime} {self.config.version} refused this configuration at {self.at}, and "
            f"kata-node does not try it again: {self.reason}",
            where=unit,
            hint="change the value that the refusal is about, for example containerd.userDropIn; to try the "
            "same configuration again, run with --retry-refused",
        )


def path(install_dir: str) -> str:
    """Return the path of the record."""
    return f"{receipts.directory(install_dir)}/{NAME}"


def load(root: Root, install_dir: str) -> Refusal | None:
    """Return the recorded refusal; ``None`` if there is none, or it cannot be read."""
    found = load_record(root, path(install_dir), Refusal)
    return found and replace(
        found, reason=foreign_words(found.reason, TEXT_LIMIT), at=foreign_words(found.at)
    )


def save(root: Root, install_dir: str, config: TriedConfig, reason: str) -> None:
    """Record that the runtime refused ``config``. A failure is only logged: the next run tries again then."""
    import msgspec.json

    refusal = Refusal(config, foreign_words(reason, TEXT_LIMIT), utc(time.time()))
    try:
        root.make_dirs(receipts.directory(install_dir), mode=0o700)
        root.write(path(install_dir), msgspec.json.encode(refusal) + b"\n", mode=0o600)
    except KataNodeError as error:
        log.warning("cannot record the refused configuration: %s", error)


def remove(root: Root, install_dir: str) -> None:
    """Remove the record and the temporary file of an interrupted write. A failure is only logged."""
    try:
        root.remove(path(install_dir))
    except KataNodeError as error:
        log.warning("cannot remove the record of a refused configuration: %s", error)
