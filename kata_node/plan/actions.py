"""Plans and their actions. An action is data that can describe, apply and check itself.

An action contains everything it needs; ``apply`` makes no decisions.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct
from msgspec.structs import replace

from kata_node.errors import HostError, NoSpaceError
from kata_node.host import files, reserve
from kata_node.plan import last_run, refusal
from kata_node.plan import receipt as receipts
from kata_node.plan.effects import Effect, PathEffect, removed_file, written_file
from kata_node.plan.receipt import Receipt
from kata_node.plan.report import Finding
from kata_node.text import human_size as human_size
from kata_node.text import pluralize as pluralize

if TYPE_CHECKING:
    from kata_node.host.cri import Cri
    from kata_node.host.systemd import Systemd
    from kata_node.kube.client import KubeClient
    from kata_node.plan.blocking_pods import BlockingPods
    from kata_node.plan.refusal import TriedConfig


log = logging.getLogger(__name__)

CHANGED_BY_OTHERS_HINT = "find the program that changes this path at the same time, then run kata-node again"
DEFAULT_MODE = 0o644


class Clients(Struct, frozen=True):
    """Everything that an action can access. systemd, CRI and API server are connected on first use.

    ``cri`` takes the path of the CRI socket. ``progress(total, title)`` yields a function that is called
    with the number of bytes done since the last call.
    """

    root: files.Root
    systemd: Callable[[], Systemd]
    cri: Callable[[str], Cri]
    kube: Callable[[], KubeClient]
    progress: Callable[[int, str], AbstractContextManager[Callable[[int], None]]]


class Action(Protocol):
    """One change of the node."""

    def describe(self) -> str:
        """Return the change as one line for the report; empty for bookkeeping."""

    def effects(self) -> tuple[Effect, ...]:
        """Return everything that changes; empty for bookkeeping. Only a plan that is shown asks for it."""

    def apply(self, clients: Clients) -> None:
        """Make the change. Raises :class:`~kata_node.errors.KataNodeError`."""

    def check(self, clients: Clients) -> None:
        """Raise :class:`~kata_node.errors.KataNodeError` unless the change is on the node after ``apply``."""


class Plan(Struct, frozen=True):
    """The actions of a stage. Without actions, ``summary`` says why there is nothing to do."""

    summary: str
    """What the report says; with ``is_forecast`` only until the actions are applied."""
    actions: tuple[Action, ...] = ()
    rollback: tuple[Action, ...] = ()
    """Actions that restore the node after an action failed. If empty, the next run continues from there."""
    best_effort: tuple[Action, ...] = ()
    """Actions to try after all others. A failure of one is only a note in the report."""
    checks: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    blocking_pods: BlockingPods | None = None
    """Pods on handlers that the plan removes. As long as there are any, no action is applied."""
    left_out: tuple[str, ...] = ()
    """The shims that the settings enable and this node does not get."""
    pods_unknown: bool = False
    """Whether the runtime did not answer which pods run, so there can be blocking pods."""
    added_handlers: tuple[str, ...] = ()
    """The handlers that the runtime's configuration defines only after the plan."""
    removed_handlers: tuple[str, ...] = ()
    """The handlers that the runtime can serve before the plan, and not after it."""
    drifted: tuple[str, ...] = ()
    """The host paths that changed on the node since kata-node placed them, and that the plan repairs."""
    tried_config: TriedConfig | None = None
    """The configuration that the runtime gets, if the node records a refusal of it."""
    other_install_dirs: tuple[str, ...] = ()
    """The install dirs of other programs that the runtime's configuration names after the plan."""
    kata_version: str = ""
    """The version of Kata in the payload, if the stage has read it."""
    is_forecast: bool = False
    """Whether the summary of the next plan replaces that of this one, because it knows what is served."""
    not_served: str = ""
    """Why the runtime does not serve the installation, before the plan; empty if it does or nobody knows."""
    handlers: tuple[str, ...] = ()
    """The handlers of the installation that the runtime serves after the plan, if the stage makes it."""
    is_new: bool = False
    """Whether nothing of the installation is on the node before the plan, if the stage looks for it."""

    @property
    def changes(self) -> tuple[str, ...]:
        """The actions that the report shows, one line each; bookkeeping is left out."""
        return tuple(line for action in (*self.actions, *self.best_effort) if (line := action.describe()))


class _Bookkeeping(Struct, frozen=True):
    """An action that the report does not show and that has no check; the next run reads its result."""

    def describe(self) -> str:
        return ""

    def effects(self) -> tuple[Effect, ...]:
        return ()

    def check(self, clients: Clients) -> None:
        pass


class WriteReceipt(_Bookkeeping, frozen=True):
    """Write the receipt and the backups that it refers to."""

    receipt: Receipt
    backups: tuple[bytes, ...] = ()
    optional: bool = False
    """Whether the run continues on a full disk without this record, because the next run can do without."""
    expendable: tuple[str, ...] = ()
    """Files that nothing needs any more. They are removed, in this order, to make room for the receipt."""

    def apply(self, clients: Clients) -> None:
        """Write the missing backups, then the receipt. A backup is named by its digest and never changes."""
        with continued_on_a_full_disk(self.optional):
            self._write_backups(clients)
        with continued_on_a_full_disk(self.optional):
            self._save(clients)
        if not self.backups:
            receipts.remove_old_backups(clients.root, self.receipt)

    def _save(self, clients: Clients) -> None:
        for path in self.expendable:
            try:
                receipts.save(clients.root, self.receipt)
            except NoSpaceError as error:
                log.info("%s: %s; removing %s first", error.where, error.what, path)
                clients.root.remove(path)
            else:
                return
        receipts.save(clients.root, self.receipt)

    def _write_backups(self, clients: Clients) -> None:
        install_dir = self.receipt.install_dir
        if self.backups:
            clients.root.make_dirs(receipts.directory(install_dir), mode=0o700)
            clients.root.make_dirs(receipts.backups(install_dir), mode=0o700)
        for content in self.backups:
            path = receipts.backup_path(install_dir, hashlib.sha256(content).hexdigest())
            if clients.root.read(path) != content:
                clients.root.write(path, content, mode=0o600)


@contextlib.contextmanager
def continued_on_a_full_disk(condition: bool) -> Iterator[None]:
    """Log a :class:`NoSpaceError` and continue, if ``condition`` is true."""
    try:
        yield
    except NoSpaceError as error:
        if not condition:
            raise
        log.warning("%s: %s; continuing without this record", error.where, error.what)


class ForgetObsoleteFiles(_Bookkeeping, frozen=True):
    """Remove the obsolete files from the receipt, after they were removed from the node."""

    install_dir: str

    def apply(self, clients: Clients) -> None:
        """Read the current receipt and write it without obsolete files."""
        receipt = receipts.load(clients.root, self.install_dir)
        if receipt is None or receipt.artifacts is None:
            return
        files = {path: placed for path, placed in receipt.artifacts.files.items() if not placed.obsolete}
        receipts.save(clients.root, replace(receipt, artifacts=replace(receipt.artifacts, files=files)))


class RemoveLeftovers(_Bookkeeping, frozen=True):
    """Remove the temporary files that an interrupted run left beside ``paths``.

    A write of the same file would also remove them, but this run need not write it.
    """

    paths: tuple[str, ...]

    def apply(self, clients: Clients) -> None:
        """Remove the temporary files."""
        for path in self.paths:
            clients.root.sweep(path)


class RemoveReceipt(_Bookkeeping, frozen=True):
    """Remove the records of the last run and of a refusal, the backups, and the receipt with its reserve."""

    install_dir: str

    def apply(self, clients: Clients) -> None:
        """Remove the files, and their directories if they have no foreign files."""
        last_run.remove(clients.root, self.install_dir)
        refusal.remove(clients.root, self.install_dir)
        receipts.remove_backups(clients.root, self.install_dir)
        clients.root.remove_dir(receipts.backups(self.install_dir))
        reserve.forget(clients.root, receipts.path(self.install_dir))
        clients.root.remove(receipts.path(self.install_dir))
        clients.root.remove_dir(receipts.directory(self.install_dir))


class MakeDirs(Struct, frozen=True):
    """Create a directory and its missing parents."""

    path: str
    mode: int = 0o755

    def describe(self) -> str:
        """Return the action as one line."""
        return f"create directory {self.path}"

    def effects(self) -> tuple[Effect, ...]:
        """Return the directory."""
        return (PathEffect(f"new directory {self.path}", self.path, "add", "dir"),)

    def apply(self, clients: Clients) -> None:
        """Create the directory."""
        clients.root.make_dirs(self.path, self.mode)

    def check(self, clients: Clients) -> None:
        """Raise :class:`HostError` unless the directory exists."""
        if not clients.root.is_dir(self.path):
            raise HostError(
                "the directory does not exist after it was created",
                where=self.path,
                hint=CHANGED_BY_OTHERS_HINT,
            )


class RemoveDirs(Struct, frozen=True):
    """Remove directories if they are empty, in the given order."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        """Return the action as one line."""
        return f"remove {pluralize(len(self.paths), 'empty directory', 'empty directories')}"

    def effects(self) -> tuple[Effect, ...]:
        """Return the directories."""
        return tuple(
            PathEffect(f"remove directory {path} if empty", path, "remove", "dir") for path in self.paths
        )

    def apply(self, clients: Clients) -> None:
        """Remove the empty directories."""
        from kata_node.host import removal

        removal.remove_dirs(clients.root, self.paths)

    def check(self, clients: Clients) -> None:
        """Check nothing: a directory that is not empty stays on purpose."""


class WriteFile(Struct, frozen=True):
    """Create or replace a small file.

    ``before`` is the previous content for the diff, or ``None`` for a new file. ``owner`` is uid and gid.
    ``mtime`` is in whole seconds.
    """

    path: str
    content: bytes
    mode: int = DEFAULT_MODE
    owner: tuple[int, int] | None = None
    mtime: int | None = None
    before: bytes | None = None

    def describe(self) -> str:
        """Return the action as one line."""
        return f"{'write' if self.before is None else 'change'} {self.path}"

    def effects(self) -> tuple[Effect, ...]:
        """Return the file with both contents. What only its owner may read is not shown either."""
        is_secret = not self.mode & 0o077
        return (written_file(self.path, self.before, self.content, is_secret=is_secret),)

    def apply(self, clients: Clients) -> None:
        """Write the file."""
        clients.root.write(self.path, self.content, mode=self.mode, owner=self.owner, mtime=self.mtime)

    def check(self, clients: Clients) -> None:
        """Raise :class:`HostError` unless the file has the written content."""
        if clients.root.read(self.path) != self.content:
            raise HostError(
                "the file does not have the content that was written to it",
                where=self.path,
                hint=CHANGED_BY_OTHERS_HINT,
            )


class RemoveFile(Struct, frozen=True):
    """Remove one small file. If the path is a symlink, its target is removed and the symlink stays."""

    path: str
    before: bytes = b""

    def describe(self) -> str:
        """Return the action as one line."""
        return f"remove {self.path}"

    def effects(self) -> tuple[Effect, ...]:
        """Return the file with its content."""
        return (removed_file(self.path, self.before),)

    def apply(self, clients: Clients) -> None:
        """Remove the file."""
        clients.root.remove(self.path, follow_last=True)

    def check(self, clients: Clients) -> None:
        """Raise :class:`HostError` if the file exists."""
        if clients.root.exists(self.path):
            raise HostError(
                "the file still exists after it was removed", where=self.path, hint=CHANGED_BY_OTHERS_HINT
            )


class MakeLinks(Struct, frozen=True):
    """Create or replace symlinks; ``links`` are pairs of path and target."""

    links: tuple[tuple[str, str], ...]

    def describe(self) -> str:
        """Return the action as one line."""
        return f"create {pluralize(len(self.links), 'symlink')}"

    def effects(self) -> tuple[Effect, ...]:
        """Return the symlinks."""
        return tuple(
            PathEffect(f"new symlink {path} -> {target}", path, "add", "link") for path, target in self.links
        )

    def apply(self, clients: Clients) -> None:
        """Create the symlinks."""
        for path, target in self.links:
            clients.root.symlink(path, target)

    def check(self, clients: Clients) -> None:
        """Raise :class:`HostError` unless each symlink has its target."""
        for path, target in self.links:
            if clients.root.read_link(path) != target:
                raise HostError(
                    f"the symlink does not point to {target} after it was created",
                    where=path,
                    hint=CHANGED_BY_OTHERS_HINT,
                )
