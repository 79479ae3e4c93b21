"""The selection of the payload entries that the enabled shims need. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from kata_node.errors import PULL_IMAGE_HINT, UnusablePayloadError
from kata_node.payload.forms import RELEASE_PREFIXES, parse_release_name
from kata_node.payload.manifest import Entry, Manifest, has_component, parents, symlinks_of, validate
from kata_node.payload.validation import PayloadSymlinks
from kata_node.settings.shims import BUILTIN_PREFIX, table

_VIRTIO_FS_PREFIX = "virtio-fs"
"""Kata uses the ``virtio_fs_daemon`` if the value of ``shared_fs`` starts with this."""


class ShimFiles(Protocol):
    """The properties of a shim that this module needs; :class:`kata_node.settings.shims.Shim` has them."""

    @property
    def name(self) -> str:
        """The name of the shim, as ``qemu-snp``."""

    @property
    def runtime(self) -> str:
        """``go`` or ``runtime-rs``."""

    @property
    def shim_binary(self) -> str:
        """The path of the program that the runtime starts."""

    @property
    def base_config(self) -> str:
        """The path of the payload's configuration for this shim."""


def select(
    manifest: Manifest, shims: Iterable[ShimFiles], arch: str, components: Iterable[str] = ()
) -> tuple[Entry, ...]:
    """Return the validated entries that ``shims`` need on the architecture ``arch``.

    The entries of ``components``, and those of no component, are added. For a tree, all entries are
    returned, and for the archives of a release, those that no other shim needs alone. Raises
    :class:`PayloadError` if the payload does not have a component or does not list a shim.
    """
    if manifest.form == "tree":
        return validate(manifest.entries)
    if manifest.form == "release":
        return _select_of_release(manifest, tuple(shims), arch)
    needed = {"", *(component for shim in shims for component in _components(manifest, shim, arch))}
    for component in components:
        if not has_component(manifest, component):
            raise UnusablePayloadError(
                f"the payload does not have the component {component}, which the settings need",
                where=f"kata-static-{component}.tar.zst",
                hint="use an image that has this component, or remove the snapshotter that needs it from "
                "snapshotter.setup",
            )
        needed.add(component)
    return validate(entry for entry in manifest.entries if entry.component in needed)


def release_archives(names: Iterable[str], shims: Iterable[ShimFiles], arch: str) -> tuple[str, ...]:
    """Return which archives of a release, by their names, have the files of ``shims``, sorted.

    Raises :class:`UnusablePayloadError` if none is for the architecture ``arch``.
    """
    archives = [found for name in sorted(names) if (found := parse_release_name(name))]
    usable = [each for each in archives if each.machine == arch]
    if not usable:
        raise UnusablePayloadError(
            f"the payload has no archive for {arch}, only {', '.join(each.name for each in archives)}",
            where="--payload",
            hint="download the archives of the release for the architecture of this node",
        )
    wanted = {RELEASE_PREFIXES[shim.runtime] for shim in shims}
    # Up to Kata 4.0 one archive has all shims.
    has_each = wanted <= {each.prefix for each in usable}
    return tuple(each.name for each in usable if not has_each or each.prefix in wanted)


def _select_of_release(manifest: Manifest, shims: Sequence[ShimFiles], arch: str) -> tuple[Entry, ...]:
    archives = release_archives(manifest.archives, shims, arch)
    entries = validate(entry for entry in manifest.entries if entry.component in archives)
    return without_other_shims(entries, shims)


def without_other_shims(entries: Sequence[Entry], shims: Iterable[ShimFiles]) -> tuple[Entry, ...]:
    """Return validated ``entries`` without the files that only shims other than ``shims`` need.

    Files that no shim names stay, for example the firmware in QEMU's own directory.
    """
    found = {entry.path: entry for entry in entries}
    links = symlinks_of(found.values())
    wanted = tuple(shims)
    kept = {path for shim in wanted for path in _needed_paths(found, links, shim)}
    names = {shim.name for shim in wanted}
    others = (shim for shim in table().values() if shim.name not in names)
    dropped = {path for shim in others for path in _needed_paths(found, links, shim)} - kept
    dropped |= {path for path in links.targets if path not in kept and links.resolve(path) in dropped}
    left = [path for path, entry in found.items() if entry.kind != "dir" and path not in dropped]
    dirs = {parent for path in left for parent in parents(path)}
    emptied = {parent for path in dropped for parent in parents(path)} - dirs
    return tuple(entry for path, entry in found.items() if path not in dropped and path not in emptied)


def _needed_paths(found: Mapping[str, Entry], links: PayloadSymlinks, shim: ShimFiles) -> Iterator[str]:
    """Yield the paths of the files and links that ``shim`` needs, with the files behind the links."""
    for path in _named_paths(found, links, shim):
        yield path
        yield links.resolve(path)


def _named_paths(found: Mapping[str, Entry], links: PayloadSymlinks, shim: ShimFiles) -> list[str]:
    """Return the paths of the program of ``shim``, of its configuration and of what that names."""
    config = found.get(links.resolve(shim.base_config))
    named = _payload_paths_in(config) if config is not None else ()
    return list(dict.fromkeys((shim.shim_binary, shim.base_config, *named)))


def _components(manifest: Manifest, shim: ShimFiles, arch: str) -> tuple[str, ...]:
    arches = manifest.shim_components.get(shim.name, {})
    if arch not in arches:
        raise UnusablePayloadError(
            f"the payload does not say which components the shim {shim.name} needs on {arch}",
            where="shim-components.json",
            hint=f"disable the shim {shim.name}, or use an image with its components",
        )
    for component in arches[arch]:
        if component not in manifest.archives:
            raise UnusablePayloadError(
                f"the payload does not have the component {component}, which the shim {shim.name} needs",
                where=f"kata-static-{component}.tar.zst",
                hint=f"disable the shim {shim.name}, or use an image that has this component",
            )
    return arches[arch]


def missing_paths(entries: Iterable[Entry], shim: ShimFiles) -> list[str]:
    """Return the paths that ``shim`` needs and ``entries`` do not have.

    A shim needs its program, its configuration, and every payload file that the configuration names.
    Raises :class:`PayloadError` if the configuration is not valid TOML.
    """
    found = {entry.path: entry for entry in entries}
    links = symlinks_of(found.values())
    needed = _named_paths(found, links, shim)
    return [path for path in needed if links.resolve(path) not in found]


def _payload_paths_in(config: Entry) -> Iterator[str]:
    """Yield the payload paths that a Kata configuration names, relative to the install dir."""
    import tomllib

    from kata_node.toml.parse import parse

    try:
        data = parse(config.content)
    except tomllib.TOMLDecodeError as error:
        raise UnusablePayloadError(
            f"the Kata configuration is not valid TOML: {error}", where=config.path, hint=PULL_IMAGE_HINT
        ) from error
    for value in _strings(data):
        if value.startswith(f"{BUILTIN_PREFIX}/"):
            yield posixpath.normpath(value).removeprefix(f"{BUILTIN_PREFIX}/")


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings in a parsed configuration that can be the path of a needed file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
    elif isinstance(value, dict):
        # Confidential guests share no file system. Their configurations still name virtiofsd, but
        # their components do not have it.
        needs_virtiofsd = str(value.get("shared_fs", _VIRTIO_FS_PREFIX)).startswith(_VIRTIO_FS_PREFIX)
        for key, item in value.items():
            # `valid_…` keys list paths that pods can choose by annotation; they need not exist.
            if not key.startswith("valid_") and (needs_virtiofsd or key != "virtio_fs_daemon"):
                yield from _strings(item)
