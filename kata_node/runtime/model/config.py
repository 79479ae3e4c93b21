"""What every CRI runtime's configuration has in common, seen by one instance. Pure.

An instance has drop-ins of its own, and may have to edit files that others own. Which, and how, is
the business of :mod:`kata_node.runtime.containerd` and :mod:`kata_node.runtime.crio`; the transaction that
writes them, and the way back, know only what is here.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from kata_node.settings.model import Settings

ReadFile = Callable[[str], bytes | None]
"""The content of a file, ``None`` where there is none."""
Glob = Callable[[str], list[str]]
"""The paths that a pattern of :mod:`kata_node.host.go_glob` matches, sorted."""

DROP_IN_NAME, USER_DROP_IN_NAME = "99-kata-deploy", "zz-kata-deploy-user"
"""How the names of our files begin. They sort behind those of others, and the user's behind ours."""


@dataclass(frozen=True)
class FileChange:
    """A file as it should be; ``content`` is ``None`` where there must be none.

    ``without`` is what it would be, as it is now, without this instance: ``None`` when all of it is ours.
    """

    path: str
    content: bytes | None = field(repr=False)
    content_without_entry: bytes | None = field(repr=False, default=None)


@dataclass(frozen=True)
class DesiredConfig:
    """What one instance wants of a runtime's configuration.

    ``files`` are in the order that can be interrupted anywhere: the drop-ins, then the files of others
    that have to name or no longer to name them, then what must be gone. Backwards, it is the order of
    the way back. ``labels`` names the settings that some of them come from.
    """

    mode: str
    changes: tuple[FileChange, ...]
    handlers: tuple[str, ...]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class DropInLocation:
    """The drop-ins of an instance in one directory."""

    drop_in: str
    """The handlers; it names programs of the install dir, which tells whose it is."""
    extra_drop_ins: tuple[str, ...]
    """Others that are only there with it."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All of them."""
        return (self.drop_in, *self.extra_drop_ins)

    @property
    def directory(self) -> str:
        """Where they lie."""
        return posixpath.dirname(self.drop_in)


class CriConfig(Protocol):
    """How one instance configures one runtime."""

    @property
    def main_path(self) -> str:
        """The runtime's own configuration file: what an error about the whole is about."""

    def drop_in_locations(self) -> tuple[DropInLocation, ...]:
        """Where drop-ins of this instance can lie, whatever the runtime's version."""

    def shared_paths(self) -> tuple[str, ...]:
        """The files of others that may have to be edited."""

    def read_files(self, read: ReadFile, glob: Glob) -> dict[str, bytes]:
        """Every file the runtime reads, and every shared one, by path; those it reads in its order."""

    def desired_config(self, settings: Settings, files: Mapping[str, bytes]) -> DesiredConfig:
        """What should be, given those files. Raises :class:`~kata_node.errors.KataNodeError`."""

    def without_entry(self, path: str, content: bytes) -> bytes | None:
        """A shared file without this instance; ``None`` when nothing of others is left in it."""

    def check(
        self,
        files: Mapping[str, bytes],
        *,
        own_paths: Collection[str],
        handlers: Collection[str],
        labels: Mapping[str, str],
        exists: Callable[[str], bool],
    ) -> list[str]:
        """All that would keep the runtime from serving ``handlers``, a sentence each with its file.

        An empty list is no proof that it serves: only the CRI can give that.
        """

    def loads_without_restart(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bool:
        """Whether a runtime that serves the files ``before`` can come to those ``after`` without a restart.

        Of use only where the home says that it takes up changes at all.
        """

    def defined_handlers(self, files: Mapping[str, bytes]) -> frozenset[str]:
        """Every handler the files define, as far as the runtime reads them."""


def own_paths(config: CriConfig) -> tuple[str, ...]:
    """Every file an instance can have to itself."""
    return tuple(path for location in config.drop_in_locations() for path in location.paths)


def is_drop_in(path: str) -> bool:
    """Whether a file is all of one instance, by its name."""
    return posixpath.basename(path).startswith((DROP_IN_NAME, USER_DROP_IN_NAME))


def is_drop_in_of(install_dir: str, drop_in: bytes) -> bool:
    """Whether a drop-in with handlers is of the instance in ``install_dir``: by the programs it names.

    Instances of one suffix in several install dirs share its path outside of those.
    """
    return f'"{install_dir}/'.encode() in drop_in


def handler_conflict(where: str, handler: str) -> str:
    """The sentence about a file of others that defines a handler of ours."""
    return (
        f"{where}: it defines the handler {handler}, which this installation brings; remove it there, or "
        "have another name here: an env.multiInstallSuffix, or for a custom runtime another handler"
    )


def suffixed_name(name: str, suffix: str, ending: str = "") -> str:
    """The name of a file of ours, which the instance's suffix tells from those of others."""
    return f"{name}-{suffix}{ending}" if suffix else f"{name}{ending}"
