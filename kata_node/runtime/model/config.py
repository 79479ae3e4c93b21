"""The interface through which one installation configures any container runtime. Pure.

An installation has its own drop-ins, and may have to edit shared files (a main file or a template).
:mod:`kata_node.runtime.containerd` and :mod:`kata_node.runtime.crio` decide which files and how.
The transaction that writes or reverts the files knows only this interface.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Literal, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from kata_node.settings.model import Settings

ReadFile = Callable[[str], bytes | None]
"""Return the content of a file, or ``None`` when it does not exist."""
Glob = Callable[[str], list[str]]
"""Return the sorted paths that match a pattern of :mod:`kata_node.host.go_glob`."""

DROP_IN_NAME, USER_DROP_IN_NAME = "99-kata-deploy", "zz-kata-deploy-user"
"""Prefixes of the file names of our drop-ins: with the handlers, and from ``containerd.userDropIn``.

``99-`` sorts after most foreign drop-ins, and ``zz-`` sorts after ``99-``."""


class StartProblem(str):
    """A problem of the configuration with which the runtime does not start."""

    __slots__ = ()


class FileChange(Struct, frozen=True):
    """The content that one configuration file is to have."""

    path: str
    content: bytes | None
    """``None`` when the file must not exist."""
    content_without_entry: bytes | None = None
    """The current content without the entry of this installation; ``None`` when the whole file is ours."""


CopyState = Literal["same", "outdated", "different", "incomplete"]


class HandlerCopy(Struct, frozen=True):
    """Handlers of an installation that a file of another program defines as well."""

    path: str
    handlers: tuple[str, ...]
    state: CopyState
    """``same``: the runtime serves what the settings ask for. ``outdated``: a copy of what this installation
    wrote before. ``different``: anything else. ``incomplete``: the file hides handlers that it lacks."""
    writer: str
    """The program that wrote the file, as messages name it."""


class DesiredConfig(Struct, frozen=True):
    """The configuration that one installation needs."""

    mode: str
    """How the runtime finds the handlers, for example ``import`` or ``conf.d``."""
    changes: tuple[FileChange, ...]
    """In an order that is safe to interrupt at any point: our drop-ins, then the shared files that import
    them or stop importing them, then the files to remove. A rollback uses the opposite order."""
    handlers: tuple[str, ...]
    labels: Mapping[str, str]
    """Path of a file -> the setting that its content comes from."""
    copies: tuple[HandlerCopy, ...] = ()
    """Copies of our handlers in files of other programs. ``changes`` removes the outdated ones."""


class DropInLocation(Struct, frozen=True):
    """The drop-ins of an installation in one directory."""

    drop_in: str
    """The drop-in with the handlers. The programs in it are below the install dir of its installation."""
    extra_drop_ins: tuple[str, ...]
    """Drop-ins that exist only together with ``drop_in``."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all drop-ins."""
        return (self.drop_in, *self.extra_drop_ins)

    @property
    def directory(self) -> str:
        """The directory of the drop-ins."""
        return posixpath.dirname(self.drop_in)


class CriConfig(Protocol):
    """How one installation configures one runtime."""

    @property
    def main_path(self) -> str:
        """The runtime's main file. Errors about the whole configuration name it."""

    def drop_in_locations(self) -> tuple[DropInLocation, ...]:
        """Return every place for drop-ins of this installation, for all versions of the runtime."""

    def shared_paths(self) -> tuple[str, ...]:
        """Return the files with foreign content that this installation may have to edit."""

    def read_files(self, read: ReadFile, glob: Glob) -> dict[str, bytes]:
        """Return by path every file that the runtime reads, in its order, and then the other shared files."""

    def desired_config(self, settings: Settings, files: Mapping[str, bytes]) -> DesiredConfig:
        """Return the configuration that ``settings`` ask for, given the current ``files``.

        Raises :class:`~kata_node.errors.KataNodeError`.
        """

    def without_entry(self, path: str, content: bytes) -> bytes | None:
        """Return a shared file without our entry; ``None`` when nothing else is in a file that we made."""

    def own_handlers(self, path: str, content: bytes) -> frozenset[str]:
        """Return the handlers in a file whose programs are below the install dir, whoever wrote it.

        Raises :class:`~kata_node.errors.HostError` when the file is broken.
        """

    def without_own_handlers(self, path: str, content: bytes) -> bytes:
        """Return a file of another program without :meth:`own_handlers`.

        Raises :class:`~kata_node.errors.HostError` when the file is broken or not safe to edit.
        """

    def without_default_handler(self, path: str, content: bytes, names: Collection[str]) -> bytes:
        """Return a file without the setting of the default handler, if that is one of ``names``.

        A file that the distribution renders stays. Raises :class:`~kata_node.errors.HostError` when the file
        is broken or not safe to edit.
        """

    def check(
        self,
        files: Mapping[str, bytes],
        *,
        own_paths: Collection[str],
        handlers: Collection[str],
        labels: Mapping[str, str],
        exists: Callable[[str], bool],
    ) -> list[str]:
        """Return every problem that would keep the runtime from serving ``handlers``.

        Each is one sentence that begins with the file; a :class:`StartProblem` keeps the runtime from
        starting. Only those of ``files``, by path, count that the runtime reads. ``own_paths`` are the files
        of this installation. ``labels`` names the settings that some files come from. ``exists`` returns
        whether a path outside ``files`` exists. An empty list does not prove that the runtime serves the
        handlers; only the CRI can prove that.
        """

    def default_handler(self, files: Mapping[str, bytes]) -> str:
        """Return the handler of pods that name none, as far as ``files`` set it; otherwise ``""``."""

    def loads_without_restart(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bool:
        """Return whether a runtime that has loaded the files ``before`` can load ``after`` without a restart.

        This matters only where ``load_method`` of the distribution is not ``restart``.
        """

    def defined_handlers(self, files: Mapping[str, bytes]) -> frozenset[str]:
        """Return every handler that ``files`` define, as far as the runtime reads them."""


def own_paths(config: CriConfig) -> tuple[str, ...]:
    """Return the path of every drop-in that an installation can have."""
    return tuple(path for location in config.drop_in_locations() for path in location.paths)


def files_after(files: Mapping[str, bytes], changes: Iterable[FileChange]) -> dict[str, bytes]:
    """Return the files, by path, after ``changes``."""
    planned: dict[str, bytes | None] = {**files, **{change.path: change.content for change in changes}}
    return {path: content for path, content in planned.items() if content is not None}


def without_outdated(
    copies: Iterable[HandlerCopy],
    files: Mapping[str, bytes],
    without_own_handlers: Callable[[str, bytes], bytes],
) -> tuple[FileChange, ...]:
    """Return the changes that remove our handlers from the files with outdated copies."""
    edited = {
        copy.path: without_own_handlers(copy.path, files[copy.path])
        for copy in copies
        if copy.state == "outdated"
    }
    return tuple(FileChange(path, content, content) for path, content in edited.items())


def is_drop_in(path: str) -> bool:
    """Return whether a file is a drop-in of an installation, judged by its name."""
    return posixpath.basename(path).startswith((DROP_IN_NAME, USER_DROP_IN_NAME))


def is_user_drop_in(path: str) -> bool:
    """Return whether a file has ``containerd.userDropIn``, judged by its name. It can have passwords."""
    return posixpath.basename(path).startswith(USER_DROP_IN_NAME)


def is_drop_in_of(install_dir: str, drop_in: bytes) -> bool:
    """Return whether a drop-in with handlers belongs to the installation in ``install_dir``.

    The programs that it names decide. Its path does not: outside the install dir, installations with the
    same suffix but different prefixes use the same path.
    """
    return f'"{install_dir}/'.encode() in drop_in


def is_written_by_us(drop_in: bytes) -> bool:
    """Return whether kata-node wrote a drop-in with handlers, in any release."""
    return b"Managed by kata-node" in drop_in.partition(b"\n")[0]


def writer_of(path: str, content: bytes) -> str:
    """Return the program that wrote a configuration file, as messages name it."""
    if "nvidia" in posixpath.basename(path) or b"nvidia-container-runtime" in content:
        return "the NVIDIA container toolkit"
    return "the program that writes it"


def handler_conflict(where: str, handler: str) -> str:
    """Return the problem of a foreign file that defines one of our handlers."""
    return (
        f"{where}: it defines the handler {handler}, which this installation also defines; remove it from "
        "this file, set env.multiInstallSuffix, or choose another handler for the custom runtime"
    )


def suffixed_name(name: str, suffix: str, ending: str = "") -> str:
    """Return the file name of an installation: ``name``, its suffix if it has one, and ``ending``."""
    return f"{name}-{suffix}{ending}" if suffix else f"{name}{ending}"
