"""The entry points of the commands ``kata-node`` and ``kubectl kata``."""

from __future__ import annotations

import gc
import os
import sys


def main() -> None:
    """Run the command line and exit with its code. ``--version`` alone does not load the command line."""
    # What is loaded stays. To look for garbage meanwhile takes a tenth of the CPU of a short stage.
    gc.disable()
    # With it, a new directory has its mode from the start, whatever the shell that calls allows.
    os.umask(0o022)
    if sys.argv[1:] == ["--version"]:
        from kata_node import __version__

        sys.stdout.write(f"kata-node {__version__}\n")
        return
    if sys.argv[1:2] == ["daemon"]:
        # First of all: the kernel discards a signal that the first process of a container does not handle.
        from kata_node.daemon.daemon import block_signals

        block_signals()
    else:
        from kata_node.signals import handle_signals

        handle_signals()
        _load_msgspec()
    try:
        from kata_node.cli.main import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt as error:  # it came before the command line could report it
        from kata_node.signals import stopped_error

        sys.exit(f"error: {stopped_error(error)}")
    sys.exit(code)


def _load_msgspec() -> None:
    """Load msgspec without typing_extensions.

    msgspec takes three names from it if it is there, and from typing if not: since Python 3.11 they are the
    same. To load typing_extensions, and inspect and ast with it, takes a seventh of a short stage.
    """
    if "typing_extensions" not in sys.modules:
        sys.modules["typing_extensions"] = None  # type: ignore[assignment]
        import msgspec  # noqa: F401

        del sys.modules["typing_extensions"]


def kubectl_kata() -> None:
    """Run the plugin ``kubectl kata``: the commands below ``cluster``."""
    sys.argv[1:1] = ["cluster"]
    main()


if __name__ == "__main__":
    main()
