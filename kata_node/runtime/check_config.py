"""The action that checks the configuration of the container runtime before a restart."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct, field

from kata_node.errors import HostError
from kata_node.host import go_glob
from kata_node.plan.actions import Clients
from kata_node.plan.effects import Effect
from kata_node.runtime.correction import correction
from kata_node.runtime.model.config import CriConfig, StartProblem

if TYPE_CHECKING:
    from kata_node.host.files import Root


class CheckConfig(Struct, frozen=True):
    """Check the configuration that the runtime will read, before it is restarted."""

    config: CriConfig
    own_paths: tuple[str, ...]
    handlers: tuple[str, ...]
    labels: Mapping[str, str]
    """Path of a file -> the setting that its content comes from (``containerd.userDropIn``)."""
    planned: Mapping[str, bytes | None] = field(default_factory=dict)
    """Content that is not yet written; ``None`` for a file to remove.

    Content that fails this check never reaches the disk, so the runtime starts even after a power cut."""
    before: Mapping[str, bytes | None] | None = None
    """The content of the changed files before the change. Problems that were there before do not count."""
    is_old: bool = False
    """Whether the files served before. Then only what keeps the runtime from starting is a problem."""

    def describe(self) -> str:
        """Return one line for the plan; empty for a check of planned content."""
        return "" if self.planned else f"check the configuration of {self.config.main_path}"

    def effects(self) -> tuple[Effect, ...]:
        """Return nothing: a check changes no file."""
        return ()

    def apply(self, clients: Clients) -> None:
        """Raise :class:`HostError` with every problem found."""
        problems = self._problems(clients.root, self.planned)
        if self.before is not None and problems:
            known = self._problems(clients.root, self.before)
            problems = [problem for problem in problems if problem not in known]
        if self.is_old:
            problems = [problem for problem in problems if isinstance(problem, StartProblem)]
        if problems:
            raise HostError(
                "; ".join(problems),
                where=self.config.main_path,
                hint=f"{self._correction(clients.root, problems)}, then run the command again",
            )

    def _correction(self, root: Root, problems: list[str]) -> str:
        named = (self.config.main_path, *self.config.shared_paths(), *self.own_paths)
        files = [path for path in named if _exists(root, self.planned, path)]
        return correction(self.config, problems, self.labels, files)

    def check(self, clients: Clients) -> None:
        """Do nothing: :meth:`apply` is the check."""

    def _problems(self, root: Root, planned: Mapping[str, bytes | None]) -> list[str]:
        """Return the problems of the files on the node, with ``planned`` instead of some of them."""
        return self.config.check(
            self.config.read_files(partial(_read, root, planned), partial(_glob, root, planned)),
            own_paths=self.own_paths,
            handlers=self.handlers,
            labels=self.labels,
            exists=partial(_exists, root, planned),
        )


def _read(root: Root, planned: Mapping[str, bytes | None], path: str) -> bytes | None:
    return planned[path] if path in planned else root.read(path)


def _exists(root: Root, planned: Mapping[str, bytes | None], path: str) -> bool:
    return planned[path] is not None if path in planned else root.exists(path)


def _glob(root: Root, planned: Mapping[str, bytes | None], pattern: str) -> list[str]:
    planned_paths = (path for path in planned if go_glob.matches(pattern, path))
    # The check of the file that has a malformed pattern reports it.
    found = () if go_glob.is_malformed(pattern) else root.glob(pattern)
    return sorted({*found, *planned_paths})
