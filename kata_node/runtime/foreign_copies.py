"""What an install says about copies of its handlers in files of other programs. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from kata_node.errors import IneligibleNodeError
from kata_node.runtime.model.config import HandlerCopy
from kata_node.text import pluralize


def conflict(copies: Iterable[HandlerCopy]) -> IneligibleNodeError | None:
    """Return why the runtime would not serve what the settings ask for, or ``None``."""
    for copy in copies:
        names = ", ".join(copy.handlers)
        if copy.state == "different":
            return IneligibleNodeError(
                f"this file has settings of {names} that differ from those of this installation, and the "
                "runtime uses them",
                where=copy.path,
                hint=f"remove {names} from this file, or remove the file; run `kata-node install`; then run "
                f"{copy.writer} again, if it makes the file from the runtime's configuration",
            )
        if copy.state == "incomplete":
            return IneligibleNodeError(
                f"this file replaces the handlers of all other files, and lacks {names}",
                where=copy.path,
                hint=f"remove this file, or uninstall {copy.writer}; run `kata-node install`; then run "
                f"{copy.writer} again, which copies the new handlers",
            )
    return None


def notes(copies: Iterable[HandlerCopy]) -> tuple[str, ...]:
    """Return a note for each copy that is no conflict."""
    return tuple(_note(copy) for copy in copies if copy.state in ("same", "outdated"))


def _note(copy: HandlerCopy) -> str:
    names, count = ", ".join(copy.handlers), pluralize(len(copy.handlers), "handler")
    if copy.state == "same":
        return f"{copy.path} has a copy of {names}, which does no harm; a revert removes it"
    return (
        f"kata-node removed {count} from {copy.path}, which had an outdated copy of {names}; run "
        f"{copy.writer} again if it needs the current copy"
    )
