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
from kata_node.plan.report import Check
from kata_node.text import counted as counted
from kata_node.text import human as human
from kata_node.text import unified_diff

if TYPE_CHECKING:
    from kata_node.host.cri import Cri
    from kata_node.host.systemd import Systemd
    from kata_node.kube.client import Kube
    from kata_node.plan.blocking_pods import InTheWay


@dataclass(frozen=True)
class Tools:
    """All an action may touch. systemd, CRI and API server are reached when first asked for.

    ``cri`` takes the path of the socket.
    ``progress(total, title)`` shows how many of ``total`` bytes are done.
    """

    root: files.Root
    systemd: Callable[[], Systemd]
    cri: Callable[[str], Cri]
    kube: Callable[[], Kube]
    progress: Callable[[int, str], AbstractContextManager[Callable[[int], None]]]


class Action(Protocol):
    """One step of a plan."""

    def describe(self) -> str:
        """One line for a person; empty for bookkeeping."""

    def diff(self) -> str:
        """The change as a unified diff, or a line in its place; empty for bookkeeping."""

    def apply(self, tools: Tools) -> None:
        """Do it. Raises :class:`~kata_node.errors.KataNodeError`."""

    def check(self, tools: Tools) -> None:
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
    undo: tuple[Action, ...] = ()
    afterwards: tuple[Action, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    in_the_way: InTheWay | None = None
    cannot_tell: bool = False

    @property
    def changes(self) -> tuple[str, ...]:
        """The actions a person cares for, a line each."""
        return tuple(line for action in (*self.actions, *self.afterwards) if (line := action.describe()))


class _Quiet:
    """Bookkeeping: of no interest to a person, and proven by the reading of it on the next run."""

    def describe(self) -> str:
        return ""

    def diff(self) -> str:
        return ""

    def check(self, tools: Tools) -> None:
        pass


@dataclass(frozen=True)
class Record(_Quiet):
    """Write the receipt, after the backups it refers to."""

    receipt: Receipt
    backups: tuple[bytes, ...] = ()

    def apply(self, tools: Tools) -> None:
        """Write what is not there yet; a backup is named by its digest and never changes."""
        install_dir = self.receipt.install_dir
        if self.backups:
            tools.root.make_dirs(receipts.directory(install_dir), mode=0o700)
            tools.root.make_dirs(receipts.backups(install_dir), mode=0o700)
        for content in self.backups:
            path = receipts.backup_path(install_dir, hashlib.sha256(content).hexdigest())
            if tools.root.read(path) != content:
                tools.root.write(path, content, mode=0o600)
        receipts.save(tools.root, self.receipt)


@dataclass(frozen=True)
class ForgetObsolete(_Quiet):
    """Take what is obsolete out of the receipt as it is by then."""

    install_dir: str

    def apply(self, tools: Tools) -> None:
        """Write the receipt without it."""
        receipt = receipts.load(tools.root, self.install_dir)
        if receipt is None or receipt.artifacts is None:
            return
        files = {path: placed for path, placed in receipt.artifacts.files.items() if not placed.obsolete}
        receipts.save(tools.root, replace(receipt, artifacts=replace(receipt.artifacts, files=files)))


_BACKUP = re.compile(r"\.?([0-9a-f]{64})(?:\..*)?")
"""The name of a backup, or of what an interrupted writing of it left."""


@dataclass(frozen=True)
class Sweep(_Quiet):
    """Remove what an interrupted run left beside these files, for a run that may not write them again."""

    paths: tuple[str, ...]

    def apply(self, tools: Tools) -> None:
        """Remove it."""
        for path in self.paths:
            tools.root.sweep(path)


@dataclass(frozen=True)
class Forget(_Quiet):
    """Remove the receipt and its backups, the receipt last."""

    install_dir: str

    def apply(self, tools: Tools) -> None:
        """Remove them; foreign files beside them stay."""
        for name in tools.root.list_dir(receipts.backups(self.install_dir)):
            if digest := _BACKUP.fullmatch(name):
                tools.root.remove(receipts.backup_path(self.install_dir, digest[1]))
        tools.root.remove_dir(receipts.backups(self.install_dir))
        tools.root.remove(receipts.path(self.install_dir))
        tools.root.remove_dir(receipts.directory(self.install_dir))


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

    def apply(self, tools: Tools) -> None:
        """Make it."""
        tools.root.make_dirs(self.path, self.mode)

    def check(self, tools: Tools) -> None:
        """It must be there."""
        if not tools.root.is_dir(self.path):
            raise HostError("the directory just made is not there", where=self.path)


@dataclass(frozen=True)
class RemoveDirs:
    """Remove directories that are empty, in the order given; others are left."""

    paths: tuple[str, ...]

    def describe(self) -> str:
        """One line."""
        return f"remove {counted(len(self.paths), 'empty directory', 'empty directories')}"

    def diff(self) -> str:
        """A line each."""
        return "".join(f"remove directory {path} if empty\n" for path in self.paths)

    def apply(self, tools: Tools) -> None:
        """Remove those that are empty."""
        for path in self.paths:
            tools.root.remove_dir(path)

    def check(self, tools: Tools) -> None:
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

    def apply(self, tools: Tools) -> None:
        """Write it."""
        tools.root.write(self.path, self.content, mode=self.mode, owner=self.owner, mtime=self.mtime)

    def check(self, tools: Tools) -> None:
        """It must read back as written."""
        if tools.root.read(self.path) != self.content:
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

    def apply(self, tools: Tools) -> None:
        """Remove it."""
        tools.root.remove(self.path, follow_last=True)

    def check(self, tools: Tools) -> None:
        """It must be gone."""
        if tools.root.exists(self.path):
            raise HostError("the file just removed is still there", where=self.path)


@dataclass(frozen=True)
class MakeLinks:
    """Make symlinks; ``links`` are pairs of path and target."""

    links: tuple[tuple[str, str], ...]

    def describe(self) -> str:
        """One line."""
        return f"link {counted(len(self.links), 'file')}"

    def diff(self) -> str:
        """A line each."""
        return "".join(f"new link {path} -> {target}\n" for path, target in self.links)

    def apply(self, tools: Tools) -> None:
        """Make them."""
        for path, target in self.links:
            tools.root.symlink(path, target)

    def check(self, tools: Tools) -> None:
        """Each must lead where it should."""
        for path, target in self.links:
            if tools.root.read_link(path) != target:
                raise HostError(f"the symlink just made does not lead to {target}", where=path)


@dataclass(frozen=True)
class RemoveFiles:
    """Remove files and links below the install dir."""

    install_dir: str
    paths: tuple[str, ...]

    def describe(self) -> str:
        """One line."""
        return f"remove {counted(len(self.paths), 'file')} below {self.install_dir}"

    def diff(self) -> str:
        """A line each."""
        return "".join(f"remove {self.install_dir}/{path}\n" for path in self.paths)

    def apply(self, tools: Tools) -> None:
        """Remove those that are there; a directory that took a file's place is left."""
        for path in self.paths:
            info = tools.root.lstat(f"{self.install_dir}/{path}")
            if info is None or not stat.S_ISDIR(info.st_mode):
                tools.root.remove(f"{self.install_dir}/{path}")

    def check(self, tools: Tools) -> None:
        """None may be left."""
        for path in self.paths:
            info = tools.root.lstat(f"{self.install_dir}/{path}")
            if info is not None and not stat.S_ISDIR(info.st_mode):
                raise HostError("the file just removed is still there", where=f"{self.install_dir}/{path}")
