"""Find the main file of a containerd in its command line. Pure."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from kata_node.runtime.model.go_flags import flag_values

_FLAGS_WITH_VALUE = ("config", "c", "log-level", "l", "address", "a", "root", "state")

SUBCOMMANDS = frozenset(("config", "oci-hook", "publish"))
"""Commands with which the program ends soon. It serves nothing, and its shims run some of them."""


def config_option(argv: Sequence[str]) -> str | None:
    """Return the value of ``--config`` in a command line; ``None`` without that option."""
    found = flag_values(argv, _FLAGS_WITH_VALUE)
    return found.get("config", found.get("c"))


def config_path(argv: Sequence[str], default: str, working_directory: str = "/") -> str:
    """Return the main file of a containerd with the command line ``argv``; ``argv[0]`` is the program."""
    path = config_option(argv)
    return posixpath.normpath(posixpath.join(working_directory, default if path is None else path))
