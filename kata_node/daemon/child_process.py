"""The child processes of the daemon."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping

from kata_node.errors import KataNodeError

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ChildProcess:
    """A child process. ``code`` is its exit code, -N if signal N ended it, ``None`` while it runs."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.code: int | None = None


def start_child(command: list[str], variables: Mapping[str, str], output: int | None = None) -> ChildProcess:
    """Start a child with additional ``variables``. ``output`` is the descriptor of its stdout.

    Without ``output``, its stdout is that of this process. Raises :class:`KataNodeError` if the program
    cannot be started.
    """
    # A child inherits ignored signals: a shell's `&` ignores SIGINT, and Python ignores SIGPIPE.
    reset = (*STOP_SIGNALS, signal.SIGPIPE)
    try:
        pid = os.posix_spawn(
            command[0],
            command,
            {**os.environ, **variables},
            file_actions=() if output is None else ((os.POSIX_SPAWN_DUP2, output, 1),),
            setsid=True,
            setsigmask=(),
            setsigdef=reset,
        )
    except OSError as error:
        raise KataNodeError(
            f"cannot start the program: {error.strerror}", where=command[0], hint="restart the pod"
        ) from error
    return ChildProcess(pid)
