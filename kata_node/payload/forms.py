"""The forms of a payload, and where its archives and files are.

The payload is part of the image, or the user has downloaded it, so its path is not relative to the host
root. It has one of three forms:

- ``tree``: a directory with ``opt/kata/**``;
- ``tarballs``: a directory with ``tarballs/kata-static-<component>.tar.zst``, and Kata's
  ``shim-components.json`` beside them or in the directory. Of the archives that this file does not list,
  only the :data:`EXTRA_COMPONENTS` are used. The :data:`FILES_BESIDE` can be at the same two places. The
  image of the public kata-deploy has this form;
- ``release``: archives of a Kata release as they are published, ``kata-static-<version>-<arch>.tar.zst``
  and ``kata-go-static-<version>-<arch>.tar.zst``. The payload is one such file, or a directory with them.

If the root directory of an image is mounted, the payload is in a directory of it, see :func:`find_payload`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from msgspec import Struct

from kata_node.errors import UsageError
from kata_node.kata import devkit
from kata_node.payload.manifest import KATA_CTL, Form
from kata_node.payload.validation import wrap_read_errors
from kata_node.settings.shims import BUILTIN_PREFIX, MACHINES
from kata_node.snapshotters.mapping import NYDUS_COMPONENT

SHIM_COMPONENTS_FILE = "shim-components.json"
TREE_DIR = BUILTIN_PREFIX.removeprefix("/")
TARBALLS_DIR = "tarballs"
EXTRA_COMPONENTS = (KATA_CTL, devkit.COMPONENT, NYDUS_COMPONENT)
"""The components that no shim needs, but some settings do."""

FILES_BESIDE = {
    "versions.yaml": "",
    f"{NYDUS_COMPONENT}/containerd-nydus-grpc": NYDUS_COMPONENT,
    f"{NYDUS_COMPONENT}/nydus-overlayfs": NYDUS_COMPONENT,
}
"""Files that the public image has beside the archives: path in the install dir, and component."""

RELEASE_PREFIXES = {"go": "kata-go-static", "runtime-rs": "kata-static"}
"""The archive of a Kata release, from 4.1 on, with the shims of each runtime."""

IMAGE_DIRS = ("opt/kata-artifacts", "opt/kata-payload")
"""Where images have the payload: that of the public project, and those of our Containerfile."""

PLACE_IN_PODS = Path("/") / IMAGE_DIRS[1]
"""Where the pods of the chart have the payload: in their image, or as a volume."""

_RELEASE_NAME = re.compile(
    rf"(?P<prefix>{'|'.join(RELEASE_PREFIXES.values())})-(?P<version>[0-9][\w.+~-]*)-(?P<arch>{'|'.join(MACHINES)})"
)
_RELEASE_SUFFIX = ".tar.zst"
_NAMES = " or ".join(f"{prefix}-<version>-<arch>.tar.zst" for prefix in RELEASE_PREFIXES.values())
_OLD_SUFFIX = ".tar.xz"
"""How older releases are compressed."""


class ReleaseArchive(Struct, frozen=True):
    """What the name of a release's archive says."""

    name: str
    """The name of the file without ``.tar.zst``."""
    prefix: str
    """One of the :data:`RELEASE_PREFIXES`."""
    version: str
    machine: str
    """The machine type of ``uname -m``."""


def parse_release_name(name: str) -> ReleaseArchive | None:
    """Return what ``name``, without ``.tar.zst``, says; ``None`` if it is not of a release's archive."""
    found = _RELEASE_NAME.fullmatch(name)
    if found is None:
        return None
    return ReleaseArchive(name, found["prefix"], found["version"], MACHINES[found["arch"]])


def find_payload(path: Path) -> Path:
    """Return the payload at ``path``: a directory of :data:`IMAGE_DIRS` below it, or ``path`` itself."""
    return next((found for name in IMAGE_DIRS if (found := path / name).is_dir()), path)


def detect_form(payload: Path) -> Form:
    """Return the form of ``payload``. Raises :class:`UsageError` if it has none of them."""
    tree, tarballs = (payload / TREE_DIR).is_dir(), (payload / TARBALLS_DIR).is_dir()
    if tree and tarballs:
        raise UsageError(
            f"the payload has both a directory {TREE_DIR} and a directory {TARBALLS_DIR}",
            where=str(payload),
            hint="set --payload to a directory that has exactly one of the two",
        )
    if tree or tarballs:
        return "tree" if tree else "tarballs"
    if find_release_archives(payload):
        return "release"
    old = [path for path in _files_in(payload) if path.name.endswith(_OLD_SUFFIX)]
    if old:
        raise UsageError(
            f"kata-node does not read archives with the suffix {_OLD_SUFFIX}",
            where=str(old[0]),
            hint=f"unpack it with `tar -xf {old[0].name} -C DIR` into an empty directory, and set "
            "--payload to DIR",
        )
    if payload.is_dir():
        what = f"the payload has no directory {TREE_DIR} or {TARBALLS_DIR}, and no archive of a Kata release"
    elif payload.exists():
        what = f"the name of the payload is not that of an archive of a Kata release, {_NAMES}"
    else:
        what = "the payload directory does not exist"
    hint = "set --payload to the directory with the Kata files, or to an archive of a Kata release"
    if payload == PLACE_IN_PODS:
        # The image has no payload, or an API server before 1.31 dropped the source of the volume.
        hint += (
            "; in a pod, name an image of both kata-node and the payload in nodeImage and set image.volume: "
            "never, because Kubernetes before 1.35 does not mount images"
        )
    raise UsageError(what, where=str(payload), hint=hint)


def find_release_archives(payload: Path) -> dict[str, Path]:
    """Return the paths of the archives of a Kata release, by their names without ``.tar.zst``.

    Raises :class:`UsageError` if they are of several releases.
    """
    found = {
        path.name.removesuffix(_RELEASE_SUFFIX): path
        for path in _files_in(payload)
        if path.name.endswith(_RELEASE_SUFFIX)
    }
    archives = {name: each for name in sorted(found) if (each := parse_release_name(name))}
    versions = sorted({each.version for each in archives.values()})
    if len(versions) > 1:
        raise UsageError(
            f"the payload has archives of several Kata releases: {', '.join(versions)}",
            where=str(payload),
            hint="keep the archives of one release in the directory, or set --payload to one archive",
        )
    return {name: found[name] for name in archives}


def find_component_archives(
    payload: Path, shims: Mapping[str, Mapping[str, Iterable[str]]]
) -> dict[str, Path]:
    """Return the existing archives, by component: those that ``shims`` lists for any architecture, and the
    :data:`EXTRA_COMPONENTS`."""
    names = {name for arches in shims.values() for needs in arches.values() for name in needs}
    names.update(EXTRA_COMPONENTS)
    paths = {name: payload / TARBALLS_DIR / f"kata-static-{name}.tar.zst" for name in names}
    return {name: path for name, path in paths.items() if path.is_file()}


def paths_beside_archives(payload: Path, name: str) -> tuple[Path, Path]:
    """Return the paths of the file ``name`` beside the archives. If both exist, the first one counts."""
    return payload / TARBALLS_DIR / name, payload / name


def find_files_beside(payload: Path) -> dict[str, Path]:
    """Return the real paths of the files beside the archives, by their paths in the install dir."""
    found: dict[str, Path] = {}
    for name in FILES_BESIDE:
        for path in paths_beside_archives(payload, name):
            if path.is_file() and not path.is_symlink():
                found.setdefault(name, path)
    return found


def _files_in(payload: Path) -> list[Path]:
    """Return the payload itself if it is a file, or the files in the directory, sorted."""
    if payload.is_file():
        return [payload]
    with wrap_read_errors(payload):
        try:
            return sorted(Path(each.path) for each in os.scandir(payload) if each.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []
