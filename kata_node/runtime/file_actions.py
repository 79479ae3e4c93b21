"""Actions that change a configuration file so that the rollback needs no space on the disk."""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Iterable, Mapping

from msgspec import Struct

from kata_node.errors import HostError, NoSpaceError
from kata_node.host import reserve
from kata_node.host.files import FileState
from kata_node.plan.actions import CHANGED_BY_OTHERS_HINT, Clients, RemoveFile, WriteFile
from kata_node.plan.effects import Effect, PathEffect, removed_file, written_file
from kata_node.runtime.model.config import is_user_drop_in

log = logging.getLogger(__name__)


class WriteConfig(WriteFile, frozen=True):
    """Create or replace a configuration file, and keep the previous one as its reserve."""

    previous: FileState | None = None
    """What a rollback restores; ``None`` if the file did not exist."""
    receipt_path: str = ""
    """For a revert, which needs no space: the receipt, which has a reserve that can be given up."""

    def effects(self) -> tuple[Effect, ...]:
        """Return the file with both contents."""
        is_secret = is_user_drop_in(self.path)
        effect = written_file(
            self.path, self.before, self.content, is_configuration=True, is_secret=is_secret
        )
        return (effect,)

    def apply(self, clients: Clients) -> None:
        """Write the file."""
        try:
            return self._write(clients)
        except NoSpaceError as error:
            if not self.receipt_path:
                raise
            log.info("%s: %s; giving up the reserve of %s", self.path, error.what, self.receipt_path)
        reserve.forget(clients.root, self.receipt_path)
        try:
            self._write(clients)
        except NoSpaceError as error:
            if self.owner is None:
                raise
            log.warning("%s: %s; writing into the existing file", self.path, error.what)
            reserve.overwrite(clients.root, self.path, self.content, mode=self.mode, owner=self.owner)

    def _write(self, clients: Clients) -> None:
        reserve.replace(
            clients.root,
            self.path,
            self.content,
            mode=self.mode,
            owner=self.owner,
            previous=self.previous,
            use_reserve=bool(self.receipt_path),
        )


class RemoveConfig(RemoveFile, frozen=True):
    """Remove a configuration file, and keep it as its reserve."""

    previous: FileState | None = None
    """What a rollback restores; ``None`` if the file did not exist."""

    def effects(self) -> tuple[Effect, ...]:
        """Return the file with its content."""
        is_secret = is_user_drop_in(self.path)
        return (removed_file(self.path, self.before, is_configuration=True, is_secret=is_secret),)

    def apply(self, clients: Clients) -> None:
        """Remove the file."""
        reserve.remove(clients.root, self.path, previous=self.previous)


SECRET_MODE = 0o600
"""The mode of a file that can have passwords. The runtimes run as root."""


class MakePrivate(Struct, frozen=True):
    """Give files that can have passwords their mode. The runtime does not see this change."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        """Return the action as one line."""
        return f"let only root read {', '.join(self.paths)}"

    def effects(self) -> tuple[Effect, ...]:
        """Return the files."""
        return tuple(
            PathEffect(f"set mode {SECRET_MODE:04o} of {path}", path, "change") for path in self.paths
        )

    def apply(self, clients: Clients) -> None:
        """Set the modes."""
        for path in self.paths:
            clients.root.set_file_mode(path, SECRET_MODE)

    def check(self, clients: Clients) -> None:
        """Raise :class:`HostError` unless each file has its mode."""
        for path in self.paths:
            state = clients.root.read_state(path)
            if state is not None and state.mode != SECRET_MODE:
                raise HostError(
                    "other users can read the file after its mode was set",
                    where=path,
                    hint=CHANGED_BY_OTHERS_HINT,
                )


def make_private(files: Mapping[str, FileState], paths: Iterable[str]) -> tuple[MakePrivate, ...]:
    """Return the action for those of ``paths`` that an earlier release let others read."""
    states = ((path, files.get(path)) for path in paths if is_user_drop_in(path))
    found = tuple(path for path, state in states if state is not None and state.mode != SECRET_MODE)
    return (MakePrivate(found),) if found else ()


class RestoreFile(Struct, frozen=True):
    """Restore the previous state of a file."""

    path: str
    state: FileState | None

    @property
    def content(self) -> bytes | None:
        """The previous content; ``None`` when the file did not exist."""
        return self.state.content if self.state else None

    def describe(self) -> str:
        """Return one line for the plan."""
        return f"restore {self.path}"

    def effects(self) -> tuple[Effect, ...]:
        """Return nothing: a rollback is not part of a dry run."""
        return ()

    def apply(self, clients: Clients) -> None:
        """Write or remove the file, unless it is in its previous state."""
        if clients.root.read_state(self.path) == self.state:
            return
        if self.state is None:
            clients.root.remove(self.path, follow_last=True)
        else:
            clients.root.make_dirs(posixpath.dirname(self.path))  # a revert may have removed it
            reserve.restore(clients.root, self.path, self.state)

    def check(self, clients: Clients) -> None:
        """Raise :class:`HostError` unless the file is in its previous state."""
        if clients.root.read_state(self.path) != self.state:
            raise HostError("the file could not be restored", where=self.path)


class RemoveReserves(Struct, frozen=True):
    """Remove the reserves of configuration files."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        """Return nothing: this is bookkeeping."""
        return ""

    def effects(self) -> tuple[Effect, ...]:
        """Return nothing: this is bookkeeping."""
        return ()

    def apply(self, clients: Clients) -> None:
        """Remove the reserves."""
        for path in self.paths:
            reserve.forget(clients.root, path)

    def check(self, clients: Clients) -> None:
        """Check nothing: a reserve changes nothing for the runtime."""
