"""What a plan is made of: actions as data, each able to describe, apply and check itself.

An action is complete when it is made; applying it decides nothing. ``describe`` is one line for a
person (empty for bookkeeping), ``diff`` what ``plan`` shows, ``check`` raises
:class:`~kata_node.errors.HostError` when the effect is not on the host after ``apply``.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from kata_node.errors import HostError
from kata_node.host import files
from kata_node.plan import receipt as receipts
from kata_node.plan.receipt import Receipt
from kata_node.plan.report import Finding
from kata_node.text import human_size as human_size
from kata_node.text import pluralize as pluralize
from kata_node.text import unified_diff

if TYPE_CHECKING:
    from kata_node.host.cri import Cri
    from kata_node.host.systemd import Systemd
    from kata_node.kube.client import KubeClient
    from kata_node.plan.blocking_pods import BlockingPods


@dataclass(frozen=True)
class Clients:
    """All an action may touch. systemd, CRI and API server are reached when first asked for.

    ``cri`` takes the path of the socket.
    ``progress(total, title)`` shows how many of ``total`` bytes are done.
    """

    root: files.Root
    systemd: Callable[[], Systemd]
    cri: Callable[[str], Cri]
    kube: Callable[[], KubeClient]
    progress: Callable[[int, str], AbstractContextManager[Callable[[int], None]]]


class Action(Protocol):
    """One step of a plan."""

    def describe(self) -> str:
        """One line for a person; empty for bookkeeping."""

    def diff(self) -> str:
        """The change as a unified diff, or a line in its place; empty for bookkeeping."""

    def apply(self, clients: Clients) -> None:
        """Do it. Raises :class:`~kata_node.errors.KataNodeError`."""

    def check(self, clients: Clients) -> None:
        """Raise :class:`~kata_node.errors.HostError` unless the effect is there."""


@dataclass(frozen=True)
class Plan:
    """What a stage wants done. No actions: nothing is to be done, and ``summary`` says why.

    ``undo`` puts the node back when an action fails; without it, what was done so far stays and the
    next run goes on from there. ``afterwards`` is tried when all of it is done; that one of these
    failed is only noted. While pods are ``in_the_way``, none of it is to be done; with ``cannot_tell``
    the runtime does not answer, and there may be such pods or not.
    """

    summary: str
    actions: tuple[Action, ...] = ()
    rollback: tuple[Action, ...] = ()
    best_effort: tuple[Action, ...] = ()
    checks: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    blocking_pods: BlockingPods | None = None
    pods_unknown: bool = False

    @property
    def changes(self) -> tuple[str, ...]:
        """The actions a person cares for, a line each."""
        return tuple(line for action in (*self.actions, *self.best_effort) if (line := action.describe()))


class _Bookkeeping:
    """Bookkeeping: of no interest to a person, and proven by the reading of it on the next run."""

    def describe(self) -> str:
        return ""

    def diff(self) -> str:
        return ""

    def check(self, clients: Clients) -> None:
        pass


@dataclass(frozen=True)
class WriteReceipt(_Bookkeeping):
    """Write the receipt, after the backups it refers to."""

    receipt: Receipt
    backups: tuple[bytes, ...] = ()

    def apply(self, clients: Clients) -> None:
        """Write what is not there yet; a backup is named by its digest and never changes."""
        install_dir = self.receipt.install_dir
        if self.backups:
            clients.root.make_dirs(receipts.directory(install_dir), mode=0o700)
            clients.root.make_dirs(receipts.backups(install_dir), mode=0o700)
        for content in self.backups:
            path = receipts.backup_path(install_dir, hashlib.sha256(content).hexdigest())
            if clients.root.read(path) != content:
                clients.root.write(path, content, mode=0o600)
        receipts.save(clients.root, self.receipt)


@dataclass(frozen=True)
class ForgetObsoleteFiles(_Bookkeeping):
    """Take what is obsolete out of the receipt as it is by then."""

    install_dir: str

    def apply(self, clients: Clients) -> None:
        """Write the receipt without it."""
        receipt = receipts.load(clients.root, self.install_dir)
        if receipt is None or receipt.artifacts is None:
            return
        files = {path: placed for path, placed in receipt.artifacts.files.items() if not placed.obsolete}
        receipts.save(clients.root, replace(receipt, artifacts=replace(receipt.artifacts, files=files)))


_BACKUP = re.compile(r"\.?([0-9a-f]{64})(?:\..*)?")
"""The name of a backup, or of what an interrupted writing of it left."""


@dataclass(frozen=True)
class RemoveLeftovers(_Bookkeeping):
    """Remove what an interrupted run left beside these files, for a run that may not write them again."""

    paths: tuple[str, ...]

    def apply(self, clients: Clients) -> None:
        """Remove it."""
        for path in self.paths:
            clients.root.sweep(path)


@dataclass(frozen=True)
class RemoveReceipt(_Bookkeeping):
    """Remove the receipt and its backups, the receipt last."""

    install_dir: str

    def apply(self, clients: Clients) -> None:
        """Remove them; foreign files beside them stay."""
        for name in clients.root.list_dir(receipts.backups(self.install_dir)):
            if digest := _BACKUP.fullmatch(name):
                clients.root.remove(receipts.backup_path(self.install_dir, digest[1]))
        clients.root.remove_dir(receipts.backups(self.install_dir))
        clients.root.remove(receipts.path(self.install_dir))
        clients.root.remove_dir(receipts.directory(self.install_dir))


@dataclass(frozen=True)
class MakeDirs:
    """Make a directory and what is missing above it."""

    path: str
    mode: int = 0o755

    def describe(self) -> str:
        """One line."""
        return f"make directory {self.path}"

    def diff(self) -> str:
        """A line in its place."""
        return f"new directory {self.path}\n"

    def apply(self, clients: Clients) -> None:
        """Make it."""
        clients.root.make_dirs(self.path, self.mode)

    def check(self, clients: Clients) -> None:
        """It must be there."""
        if not clients.root.is_dir(self.path):
            raise HostError("the directory just made is not there", where=self.path)


@dataclass(frozen=True)
class RemoveDirs:
    """Remove directories that are empty, in the order given; others are left."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        """One line."""
        return f"remove {pluralize(len(self.paths), 'empty directory', 'empty directories')}"

    def diff(self) -> str:
        """A line each."""
        return "".join(f"remove directory {path} if empty\n" for path in self.paths)

    def apply(self, clients: Clients) -> None:
        """Remove those that are empty."""
        for path in self.paths:
            clients.root.remove_dir(path)

    def check(self, clients: Clients) -> None:
        """Nothing to prove: a directory in use stays on purpose."""


@dataclass(frozen=True)
class WriteFile:
    """Create or replace a small file. ``before`` is what it replaces, for the diff."""

    path: str
    content: bytes
    mode: int = 0o644
    owner: tuple[int, int] | None = None
    mtime: int | None = None
    before: bytes | None = field(default=None, repr=False)

    def describe(self) -> str:
        """One line."""
        return f"{'write' if self.before is None else 'change'} {self.path}"

    def diff(self) -> str:
        """A unified diff."""
        return unified_diff(self.path, self.before, self.content)

    def apply(self, clients: Clients) -> None:
        """Write it."""
        clients.root.write(self.path, self.content, mode=self.mode, owner=self.owner, mtime=self.mtime)

    def check(self, clients: Clients) -> None:
        """It must read back as written."""
        if clients.root.read(self.path) != self.content:
            raise HostError("the file reads back differently from what was written", where=self.path)


@dataclass(frozen=True)
class RemoveFile:
    """Remove one small file, the one a symlink leads to included (the link stays)."""

    path: str
    before: bytes = field(default=b"", repr=False)

    def describe(self) -> str:
        """One line."""
        return f"remove {self.path}"

    def diff(self) -> str:
        """A unified diff."""
        return unified_diff(self.path, self.before, None)

    def apply(self, clients: Clients) -> None:
        """Remove it."""
        clients.root.remove(self.path, follow_last=True)

    def check(self, clients: Clients) -> None:
        """It must be gone."""
        if clients.root.exists(self.path):
            raise HostError("the file just removed is still there", where=self.path)


@dataclass(frozen=True)
class MakeLinks:
    """Make symlinks; ``links`` are pairs of path and target."""

    links: tuple[tuple[str, str], ...]

    def describe(self) -> str:
        """One line."""
        return f"link {pluralize(len(self.links), 'file')}"

    def diff(self) -> str:
        """A line each."""
        return "".join(f"new link {path} -> {target}\n" for path, target in self.links)

    def apply(self, clients: Clients) -> None:
        """Make them."""
        for path, target in self.links:
            clients.root.symlink(path, target)

    def check(self, clients: Clients) -> None:
        """Each must lead where it should."""
        for path, target in self.links:
            if clients.root.read_link(path) != target:
                raise HostError(f"the symlink just made does not lead to {target}", where=path)


@dataclass(frozen=True)
class RemoveFiles:
    """Remove files and links below the install dir."""

    install_dir: str
    paths: tuple[str, ...]

    def describe(self) -> str:
        """One line."""
        return f"remove {pluralize(len(self.paths), 'file')} below {self.install_dir}"

    def diff(self) -> str:
        """A line each."""
        return "".join(f"remove {self.install_dir}/{path}\n" for path in self.paths)

    def apply(self, clients: Clients) -> None:
        """Remove those that are there; a directory that took a file's place is left."""
        for path in self.paths:
            info = clients.root.lstat(f"{self.install_dir}/{path}")
            if info is None or not stat.S_ISDIR(info.st_mode):
                clients.root.remove(f"{self.install_dir}/{path}")

    def check(self, clients: Clients) -> None:
        """None may be left."""
        for path in self.paths:
            info = clients.root.lstat(f"{self.install_dir}/{path}")
            if info is not None and not stat.S_ISDIR(info.st_mode):
                raise HostError("the file just removed is still there", where=f"{self.install_dir}/{path}")
