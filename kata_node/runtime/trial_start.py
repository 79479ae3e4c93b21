"""Start the runtime's program with its configuration beside the running one, to see whether it starts.

The trial runs on the node, with the paths that the runtime really uses, so that every import means the
same. But it sees only the node's programs and configuration, read-only. All other directories are empty
and its own: the data, the state and the sockets of the running daemon, CNI's state, and the plugins that
containerd would start. It has no network, no devices and no right to change control groups, and it ends
after a moment.

What the trial shows, measured on containerd 1.6.20, 1.7.24, 2.1.9 and newer:

- ``containerd config dump`` proves nothing: it accepts a wrong type in a plugin's table, and a missing
  import.
- containerd writes ``containerd: <reason>`` and ends if it cannot decode a file or the table of a plugin,
  if an import is missing, and if a required plugin does not load. Otherwise it says that it has booted,
  even without its CRI plugin. It then has logged why that did not load.
- A reason can come from the trial itself, for example a device or a control group that it does not have.
  Then nothing is known.

``crio config`` reads all files like the daemon, checks them, and ends with an error if the daemon would
refuse them. The daemon checks more: what it finds on the node.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from kata_node.errors import KataNodeError
from kata_node.host.host_program import HostProgram, ProgramOutput
from kata_node.runtime.unit_log import LIMIT, error_lines
from kata_node.text import quote_foreign

if TYPE_CHECKING:
    from kata_node.host.systemd import Systemd, Unit

Verdict = Literal["starts", "fails", "unclear"]

TIMEOUT = 10.0  # seconds; containerd boots in less than one

SYSTEM_PATHS = (
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc", "/proc", "/sys"),
    *("/nix/store", "/gnu/store"),
)
"""What any program needs of a node."""

BOOTED = "containerd successfully booted"
_CRI_NOT_LOADED = re.compile(
    r"failed to load plugin.*?io\.containerd\.(?:grpc\.v1\.cri|cri\.v1\.(?:runtime|images))\b"
)
_ERROR = re.compile(r'error="((?:[^"\\]|\\.)*)"|"error":"((?:[^"\\]|\\.)*)"')
_OF_THE_CONFIGURATION = re.compile(
    r"toml|decode|can't convert|unmarshal|unable to parse|config version|required plugin|panic: "
    r"|invalid (plugin|cri image|cri) config|validating",
    re.IGNORECASE,
)
_OF_THE_TRIAL = re.compile(
    r"read-only file system|not permitted|permission denied|no such (device|file|host)|/sys/|/dev/"
    r"|not supported|cannot assign|bind:|\b(listen|dial|lookup) ",
    re.IGNORECASE,
)
"""What can happen only because the trial sees no data, no network and no devices."""


class Trial(Struct, frozen=True):
    """What a trial start showed."""

    verdict: Verdict
    reason: str = ""
    """Why it failed or is unclear, as part of a sentence. It may quote the runtime."""


def try_containerd(
    systemd: Systemd, unit: Unit, program: str, config: str, directories: Collection[str]
) -> Trial:
    """Return whether the containerd ``program`` of ``unit`` starts with the main file ``config``.

    ``directories`` have the files that it reads.
    """
    # With a higher level in the configuration it would not say that it has booted.
    arguments = ("--config", config, "--log-level", "info")
    output = _run(systemd, unit, (program, *arguments), directories, until=BOOTED)
    return output if isinstance(output, Trial) else judge_containerd(output)


def try_crio(
    systemd: Systemd, unit: Unit, program: str, options: Sequence[str], directories: Collection[str]
) -> Trial:
    """Return whether the CRI-O ``program`` of ``unit`` accepts its configuration.

    ``options`` name its files, and ``directories`` have them.
    """
    output = _run(systemd, unit, (program, *options, "config"), directories)
    return output if isinstance(output, Trial) else judge_crio(output)


def _run(
    systemd: Systemd, unit: Unit, argv: tuple[str, ...], directories: Collection[str], until: str = ""
) -> ProgramOutput | Trial:
    given = unit.exec_environment
    if given is not None and given.root:
        return Trial("unclear", f"its unit has another root directory, {given.root}")
    environment = given.assignments if given is not None else ()
    visible = _visible((argv[0], *sorted(directories)))
    try:
        return systemd.run_program(HostProgram(argv, TIMEOUT, visible, environment, until))
    except KataNodeError as error:
        return Trial("unclear", f"systemd did not run it: {error.what}")


def _visible(paths: Iterable[str]) -> tuple[str, ...]:
    more = (
        path
        for path in paths
        if path != "/" and not any(f"{path}/".startswith(f"{each}/") for each in SYSTEM_PATHS)
    )
    return (*SYSTEM_PATHS, *dict.fromkeys(more))


def judge_containerd(output: ProgramOutput) -> Trial:
    """Return what the output of a containerd that was stopped as soon as it had booted shows."""
    lines = output.text.splitlines()
    if BOOTED not in output.text:
        if not output.ended:
            return Trial("unclear", f"it did not boot within {TIMEOUT:.0f} s")
        if not lines:
            return Trial("unclear", "systemd could not start it")
        return _judge_reason(error_lines(lines))
    for line in lines:
        if _CRI_NOT_LOADED.search(line):
            found = _ERROR.search(line)
            reason = (found[1] or found[2] or "") if found else line
            return _judge_reason(f"the CRI plugin does not load: {reason}")
    return Trial("starts")


def judge_crio(output: ProgramOutput) -> Trial:
    """Return what the output of ``crio config`` shows."""
    if output.ended and output.result == "done":
        return Trial("starts")
    if not output.ended:
        return Trial("unclear", f"`crio config` did not end within {TIMEOUT:.0f} s")
    words = error_lines([line for line in output.text.splitlines() if "level=fatal" in line])
    return _judge_reason(words) if words else Trial("unclear", "`crio config` gave no reason")


def _judge_reason(words: str) -> Trial:
    """Return that the start fails if ``words`` are about the configuration; else that it is unclear."""
    if not words:
        return Trial("unclear", "it ended without a reason")
    certain = _OF_THE_CONFIGURATION.search(words) and not _OF_THE_TRIAL.search(words)
    return Trial("fails" if certain else "unclear", f"it wrote {quote_foreign(words, LIMIT)}")
