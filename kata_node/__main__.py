"""The entry point of the ``kata-node`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; ``--version`` alone does so without loading it."""
    if sys.argv[1:] == ["--version"]:
        from kata_node import __version__

        sys.stdout.write(f"kata-node {__version__}\n")
        return
    if sys.argv[1:2] == ["daemon"]:
        # At once: the first process of a container would never learn of a signal that came before.
        from kata_node.daemon.daemon import block_signals

        block_signals()
    try:
        from kata_node.cli.commands import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # before it got as far as to handle this itself
        sys.exit("error: interrupted")
    sys.exit(code)


if __name__ == "__main__":
    main()
