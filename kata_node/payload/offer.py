"""Which of the enabled shims a payload has, and the settings without the others. Pure.

A release of Kata does not have every shim on every architecture, and a payload can be made from one of the
two archives of a release. A shim that nobody asked for by name is left out if the payload does not have it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from kata_node.errors import UnusablePayloadError
from kata_node.kata import devkit
from kata_node.payload.forms import RELEASE_PREFIXES
from kata_node.payload.manifest import KATA_CTL, Manifest, has_component, symlinks_of
from kata_node.settings.handlers import handlers, is_asked_for
from kata_node.settings.model import Settings
from kata_node.settings.selection import FALLBACK_SHIMS
from kata_node.settings.shims import Shim, table
from kata_node.snapshotters import mapping
from kata_node.snapshotters.mapping import NYDUS


def needed_archives(settings: Settings, outline: Manifest) -> tuple[str, ...]:
    """Return the archives that the settings need, of those that ``outline`` has.

    ``outline`` is the manifest of a payload whose archives were not read. Raises
    :class:`UnusablePayloadError` if no archive is for the architecture of the node.
    """
    if outline.form == "release":
        from kata_node.payload.selection import release_archives

        shims = [handler.shim for handler in handlers(settings)]
        if settings.is_fallback:
            shims = [table()[name] for name in FALLBACK_SHIMS]
        return release_archives(outline.archives, shims, settings.arch)
    served = with_payload(settings, outline)
    components = [
        name
        for handler in handlers(served)
        for name in outline.shim_components.get(handler.shim.name, {}).get(settings.arch, ())
    ]
    wanted = dict.fromkeys((*components, *required_components(served, outline)))
    return tuple(name for name in wanted if name in outline.archives)


def with_payload(settings: Settings, manifest: Manifest) -> Settings:
    """Return the settings with the shims that the payload has, see :func:`_serve`."""
    paths = {entry.path for entry in manifest.entries if entry.kind != "dir"}
    links = symlinks_of(manifest.entries)

    def missing(shim: Shim) -> str:
        if manifest.form == "tarballs":
            return _missing_component(manifest, shim, settings.arch)
        needed = (shim.shim_binary, shim.base_config)
        return next((path for path in needed if links.resolve(path) not in paths), "")

    return _serve(settings, missing)


def with_placed_files(settings: Settings, paths: Collection[str]) -> Settings:
    """Return the settings with the shims that the artifacts stage has placed, or will place, as ``paths``.

    The artifacts stage makes a configuration for each handler of the settings that it works with.
    """
    return _serve(settings, lambda shim: "" if shim.own_config in paths else shim.base_config)


def required_components(settings: Settings, manifest: Manifest) -> tuple[str, ...]:
    """Return the components that the settings need in addition to those of the shims.

    The component of nydus is left out if the payload does not have it and no handler that is asked for by
    name uses it: the stage cri then leaves nydus out, or the node runs CRI-O, which needs no nydus. kata-ctl
    is left out if the payload does not have it. Raises :class:`UnusablePayloadError` if the payload lacks
    the devkit.
    """
    required = mapping.required_components(settings)
    if manifest.form == "tarballs" and NYDUS not in named_snapshotters(settings):
        required = tuple(component for component in required if has_component(manifest, component))
    if settings.debug and KATA_CTL in manifest.archives:
        required += (KATA_CTL,)
    if devkit.is_wanted(settings):
        if not _has_devkit(manifest):
            raise UnusablePayloadError(
                "the payload does not have the image of the devkit",
                where=devkit.IMAGE,
                hint=f"use an image with the component {devkit.COMPONENT}, or remove devkit from the values",
            )
        if manifest.form == "tarballs":
            required += (devkit.COMPONENT,)
    return required


def _has_devkit(manifest: Manifest) -> bool:
    archive = manifest.archives.get(devkit.COMPONENT)
    if archive is not None and not archive.sha256:  # its entries were not read
        return True
    return any(entry.path == devkit.IMAGE for entry in manifest.entries)


def named_snapshotters(settings: Settings) -> frozenset[str]:
    """Return the snapshotters of the custom runtimes and of the shims that are asked for by name."""
    return frozenset(handler.snapshotter for handler in handlers(settings) if is_asked_for(settings, handler))


def missing_shim_reason(shim: Shim, path: str) -> str:
    """Return why the payload has no ``shim``, as the end of a sentence. ``path`` is what it does not have."""
    if shim.withdrawn:
        return f"is not in the payload: Kata {shim.withdrawn} and later do not have it"
    return (
        f"is not in the payload, which has no {path}; a release of Kata has its {shim.runtime} shims in the "
        f"archive {RELEASE_PREFIXES[shim.runtime]}"
    )


def _serve(settings: Settings, missing: Callable[[Shim], str]) -> Settings:
    """Return the settings without the shims for which ``missing`` names a path that the payload lacks.

    Shims that are asked for by name stay, except if no newer payload can have them. If nobody asked for a
    shim at all, it is the first of :data:`FALLBACK_SHIMS` that the payload has. If nothing would be left,
    the settings stay as they are, and the stage fails with the missing files.
    """
    absent = {shim.name: path for shim in settings.shims if (path := missing(shim))}
    if settings.is_fallback and absent:
        candidates = (table()[name] for name in FALLBACK_SHIMS)
        found = next(
            (each for each in candidates if settings.arch in each.arches and not missing(each)), None
        )
        return settings.with_fallback(found) if found else settings
    left_out = {
        shim.name: missing_shim_reason(shim, absent[shim.name])
        for shim in settings.shims
        if shim.name in absent and (shim.name not in settings.named or shim.withdrawn)
    }
    served = settings.without(left_out)
    return served if handlers(served) else settings


def _missing_component(manifest: Manifest, shim: Shim, arch: str) -> str:
    """Return a component of ``shim`` that the payload does not have; empty if it has all."""
    components = manifest.shim_components.get(shim.name, {}).get(arch)
    if components is None:
        return f"list of components for {shim.name} on {arch}"
    absent = (name for name in components if name not in manifest.archives)
    return next((f"component {name}" for name in absent), "")
