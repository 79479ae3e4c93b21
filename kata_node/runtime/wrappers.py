"""Find the command that programs like ``env`` and ``nice`` run. Pure.

Sources: the manual pages of coreutils, util-linux, numactl, systemd, tini and dumb-init. Their options end at
the first word that is none, or at ``--``.
"""

from __future__ import annotations

import itertools
import posixpath
import re
from collections.abc import Mapping

from msgspec import Struct, field
from msgspec.structs import replace


class Command(Struct, frozen=True):
    """A command line that begins with its program."""

    argv: tuple[str, ...]
    working_directory: str
    """Empty if it is not known."""
    environment: Mapping[str, str] = field(default_factory=dict)


class _Wrapper(Struct, frozen=True):
    short: str = ""
    """Short options that have a value, which can be in the same word: ``-n5``."""
    long: str = ""
    """Long options that have a value, in the same word or in the next; with blanks between them."""
    has_operand: bool = False
    """Whether a word like the mask of ``taskset`` comes before the command."""


_ENV = "env"
_WRAPPERS = {
    _ENV: _Wrapper("uCaS", "unset chdir argv0 split-string"),
    "cgexec": _Wrapper("g"),
    "choom": _Wrapper("np", "adjust pid"),
    "chrt": _Wrapper("TPD", "sched-runtime sched-period sched-deadline", has_operand=True),
    "dumb-init": _Wrapper("r", "rewrite"),
    "ionice": _Wrapper("cn", "class classdata"),
    "linux64": _Wrapper(),
    "nice": _Wrapper("n", "adjustment"),
    "nohup": _Wrapper(),
    "numactl": _Wrapper(
        "iNCmpPw",
        "interleave cpunodebind physcpubind membind preferred preferred-many weighted-interleave",
    ),
    "prlimit": _Wrapper("o", "output"),
    "setarch": _Wrapper(has_operand=True),
    "setpriv": _Wrapper(
        long="ambient-caps apparmor-profile bounding-set egid euid groups inh-caps landlock-access "
        "landlock-rule pdeathsig ptracer regid reuid rgid ruid seccomp-filter securebits selinux-label"
    ),
    "setsid": _Wrapper(),
    "stdbuf": _Wrapper("ioe", "input output error"),
    "systemd-cat": _Wrapper("tp", "identifier priority stderr-priority level-prefix namespace"),
    "systemd-inhibit": _Wrapper(long="what who why mode"),
    "taskset": _Wrapper(has_operand=True),
    "time": _Wrapper("fo", "format output"),
    "tini": _Wrapper("pe"),
}
"""Programs that run the command behind their own options, and do not change its arguments."""


def wrapped_command(command: Command, program: re.Pattern[str]) -> Command | None:
    """Return the command with a program whose name matches, which ``command`` is or runs through wrappers.

    Its directory and variables are those that ``env`` gives it. ``None`` if another program gets the
    arguments, for example a shell, whose arguments only the shell understands.
    """
    while command.argv:
        name = posixpath.basename(command.argv[0])
        if program.fullmatch(name):
            return command
        wrapper = _WRAPPERS.get(name)
        if wrapper is None:
            return None
        options, words = _options(wrapper, command.argv[1:])
        if name == _ENV:
            if any(option in ("S", "split-string") for option, _ in options):
                return None
            command = _with_options_of_env(command, options, words)
            words = tuple(itertools.dropwhile(lambda word: "=" in word, words))
        elif wrapper.has_operand and words and not _is_known(words[0], program):
            _, words = _options(wrapper, words[1:])
        command = replace(command, argv=words)
    return None


def _is_known(word: str, program: re.Pattern[str]) -> bool:
    name = posixpath.basename(word)
    return name in _WRAPPERS or program.fullmatch(name) is not None


def _options(wrapper: _Wrapper, words: tuple[str, ...]) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """Return the options at the start of ``words`` with their values, and the other words."""
    found: list[tuple[str, str]] = []
    while words and words[0].startswith("-"):
        word, words = words[0], words[1:]
        if word == "--":
            break
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if not equals and name in wrapper.long.split() and words:
                value, words = words[0], words[1:]
            found.append((name, value))
            continue
        for at, letter in enumerate(word[1:] or "i", 2):  # for env, - is the same as -i
            value = word[at:]
            if letter not in wrapper.short:
                found.append((letter, ""))
                continue
            if not value and words:
                value, words = words[0], words[1:]
            found.append((letter, value))
            break
    return found, words


def _with_options_of_env(command: Command, options: list[tuple[str, str]], words: tuple[str, ...]) -> Command:
    """Return the command with the directory and the variables that ``env`` sets."""
    directory, environment = command.working_directory, dict(command.environment)
    for name, value in options:
        if name in ("C", "chdir"):
            is_known = value.startswith("/") or directory
            directory = posixpath.join(directory, value) if is_known else ""
        elif name in ("i", "ignore-environment"):
            environment.clear()
        elif name in ("u", "unset"):
            environment.pop(value, None)
    for word in itertools.takewhile(lambda word: "=" in word, words):
        name, _, environment[name] = word.partition("=")
    return replace(command, working_directory=directory, environment=environment)
