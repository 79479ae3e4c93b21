"""Find the configuration files that the node's runtime reads: by its process, and by its unit.

The unit says what the runtime reads after its next restart, the process what it has read. Both say the same,
unless the unit runs a script or was changed since the start. A shell in between hides the command line of the
runtime from the unit, but not from systemd, which lists the processes of a unit.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from kata_node.errors import HostError, IneligibleNodeError, SystemdError
from kata_node.host.processes import is_script, process_of_unit
from kata_node.plan.context import StageContext
from kata_node.runtime import unit_command
from kata_node.runtime.containerd import command_line
from kata_node.runtime.model.go_flags import flag_values
from kata_node.runtime.served_programs import SEARCH_PATH
from kata_node.runtime.wrappers import Command, wrapped_command

if TYPE_CHECKING:
    from kata_node.host.systemd import ExecEnvironment, Unit
    from kata_node.runtime.model.distributions import DistributionRuntime

_PROGRAMS = {
    "containerd": re.compile(r"\.?(.+[-_.])?containerd([-_.]?(wrapped|real|bin|v?\d[\w.]*))*"),
    "cri-o": re.compile(r"\.?crio([-_.]?(wrapped|real|bin|v?\d[\w.]*))*"),
}
_CRIO_OPTIONS = {"config": "CONTAINER_CONFIG", "config-dir": "CONTAINER_CONFIG_DIR"}
"""Options of CRI-O -> the variables that it uses without them."""
_CRIO_SHORT_OPTIONS = {"c": "config", "d": "config-dir"}
_SET_BY_SYSTEMD = frozenset(("HOME", "INVOCATION_ID", "LOGNAME", "MAINPID", "SHELL", "USER"))
_SPECIAL_DIRECTORY = re.compile(r"(RUNTIME|STATE|CACHE|LOGS|CONFIGURATION|CREDENTIALS)_DIRECTORY\Z")


class ConfiguredPaths(Struct, frozen=True):
    """The configuration files that a runtime reads."""

    main: str = ""
    """Empty if it is not known."""
    drop_in_dir: str = ""
    """Only of a runtime whose command line can name it."""
    unknown: str = ""
    """Why ``main`` is not known, if a command line decides it."""


def configured_paths(
    context: StageContext, unit: Unit, distribution_runtime: DistributionRuntime
) -> ConfiguredPaths:
    """Return the files that the runtime of ``unit`` reads.

    They are those of the distribution, without a look at the node, where no command line decides.
    """
    source = distribution_runtime.paths_from
    if not source or not unit.argv:
        return ConfiguredPaths()
    if unit.exec_environment is not None and unit.exec_environment.root:
        return ConfiguredPaths(unknown=f"its unit has another root directory, {unit.exec_environment.root}")
    running = _of_process(context, unit, distribution_runtime)
    if source == "process":
        return running if running.main else ConfiguredPaths()
    expected = _of_unit(context, unit, distribution_runtime)
    if not expected.main and not running.main:
        return ConfiguredPaths(unknown=f"{expected.unknown}, and {running.unknown}")
    if not expected.main or not running.main or expected == running:
        return expected if expected.main else running
    script = is_script(context.clients.root, unit.argv[0]) if unit.argv[0].startswith("/") else None
    if script is None:
        return ConfiguredPaths(
            unknown=f"its unit names {expected.main}, but the running process reads {running.main}"
        )
    return running if script else expected


def program_of(context: StageContext, unit: Unit, runtime: str) -> str:
    """Return the path of the program of ``runtime`` that a unit runs; empty if its command does not tell."""
    environment = _visible_environment(context, unit.exec_environment)
    argv = unit_command.expand(unit.argv, environment)
    command = wrapped_command(Command(argv, "", environment), _PROGRAMS[runtime])
    return command.argv[0] if command and command.argv[0].startswith("/") else ""


def unknown_error(unit: Unit, distribution_runtime: DistributionRuntime, reason: str) -> IneligibleNodeError:
    """Return the error for a runtime whose main file cannot be found."""
    return IneligibleNodeError(
        f"kata-node cannot tell which configuration file the runtime reads: {reason}",
        where=unit.name,
        hint="set containerd.configDir and containerd.configFileName to the directory and the name of this "
        "file"
        if distribution_runtime.runtime == "containerd"
        else "run crio itself in the ExecStart of this unit, with the paths in --config and --config-dir",
    )


def _of_unit(context: StageContext, unit: Unit, distribution_runtime: DistributionRuntime) -> ConfiguredPaths:
    """Return the paths in the unit's ``ExecStart``, with its variables replaced."""
    given = unit.exec_environment
    argv, environment = unit.argv, _visible_environment(context, given)
    if given is not None and given.expands and unit_command.uses_variables(argv):
        names = unit_command.variables(argv)
        environment, doubt = _environment(context, given, names)
        if doubt:
            return ConfiguredPaths(unknown=doubt)
        argv = unit_command.expand(argv, environment)
    directory = given.working_directory if given else ""
    program = _PROGRAMS[distribution_runtime.runtime]
    command = wrapped_command(Command(argv, directory or "/", environment), program)
    if command is None:
        return ConfiguredPaths(unknown=f"its unit runs {argv[0]}")
    return _paths(command, distribution_runtime)


def command_search_path(
    context: StageContext, unit: Unit | None, distribution_runtime: DistributionRuntime
) -> tuple[str, ...]:
    """Return the directories in which the runtime of ``unit`` looks for programs, as far as they are known.

    containerd looks beside its own program last.
    """
    if unit is None:
        return SEARCH_PATH
    environment = _visible_environment(context, unit.exec_environment)
    argv = unit_command.expand(unit.argv, environment)
    program = _PROGRAMS[distribution_runtime.runtime]
    command = wrapped_command(Command(argv, "", environment), program) or Command(argv, "", environment)
    variables = command.environment
    directories = variables["PATH"].split(":") if "PATH" in variables else SEARCH_PATH
    beside = posixpath.dirname(command.argv[0]) if command.argv else ""
    return tuple(path for path in dict.fromkeys((*directories, beside)) if path.startswith("/"))


def _visible_environment(context: StageContext, given: ExecEnvironment | None) -> dict[str, str]:
    """Return the variables of a service that can be read without a question to systemd."""
    if given is None:
        return {}
    environment = unit_command.assignments(given.assignments)
    for pattern, _ in given.files:
        for content in _read_all(context, pattern):
            environment |= unit_command.parse_environment_file(content)
    return environment


def _read_all(context: StageContext, pattern: str) -> list[str]:
    """Return the content of the files that match a glob; none for one that cannot be read."""
    root = context.clients.root
    try:
        contents = [root.read(path) for path in root.glob(pattern)]
    except HostError:
        return []
    return [content.decode(errors="replace") for content in contents if content is not None]


def _environment(
    context: StageContext, given: ExecEnvironment, names: Collection[str]
) -> tuple[dict[str, str], str]:
    """Return the variables of a service, and why one of ``names`` is not known; else ``""``."""
    for pattern, optional in given.files:
        # Where the whole root is visible, a missing file is really missing.
        if not _read_all(context, pattern) and not (optional and context.clients.root.is_whole()):
            return {}, f"its unit reads variables from {pattern}, which is not visible"
    environment = _visible_environment(context, given)
    missing = sorted(set(names).difference(environment))
    for name in missing:
        if name in given.passed or name in _SET_BY_SYSTEMD or _SPECIAL_DIRECTORY.match(name):
            return {}, f"its unit uses the variable {name}, which is not visible"
    if missing:
        environment = unit_command.assignments(context.clients.systemd().environment()) | environment
    for unset in given.unset:
        name, equals, value = unset.partition("=")
        if name in environment and (not equals or environment[name] == value):
            del environment[name]
    return environment, ""


def _of_process(
    context: StageContext, unit: Unit, distribution_runtime: DistributionRuntime
) -> ConfiguredPaths:
    """Return the paths in the command line of the running process."""
    if not unit.main_pid or unit.active_state in ("inactive", "failed"):
        return ConfiguredPaths(unknown="the unit does not run")
    found = {
        _paths(command, distribution_runtime) for command in _commands(context, unit, distribution_runtime)
    }
    known = {paths for paths in found if paths.main}
    if len(known) == 1:
        return known.pop()
    if known:
        return ConfiguredPaths(unknown="its unit runs several processes of it, which read different files")
    return found.pop() if found else ConfiguredPaths(unknown="its process is not visible")


def _commands(
    context: StageContext, unit: Unit, distribution_runtime: DistributionRuntime
) -> Iterator[Command]:
    root, program = context.clients.root, _PROGRAMS[distribution_runtime.runtime]
    environment: Mapping[str, str] = _visible_environment(context, unit.exec_environment)
    argv_of_unit = unit_command.expand(unit.argv, environment)
    if command := wrapped_command(Command(argv_of_unit, "", environment), program):
        environment = command.environment
    main = process_of_unit(root, unit.main_pid, unit.name)
    if main is not None and (_runs(main.argv, program) or _runs((main.program,), program)):
        yield Command(main.argv, main.working_directory, environment)
        return
    try:
        processes = context.clients.systemd().processes(unit.name)
    except SystemdError:
        return
    for process in processes:
        argv = _split(process.command_line)
        if not _runs(argv, program) or command_line.SUBCOMMANDS.intersection(argv):
            continue
        visible = process_of_unit(root, process.pid, unit.name)
        if visible is not None:
            yield Command(visible.argv, visible.working_directory, environment)
        else:
            yield Command(argv, "", environment)


def _runs(argv: Sequence[str], program: re.Pattern[str]) -> bool:
    return bool(argv) and program.fullmatch(posixpath.basename(argv[0])) is not None


def _split(text: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError:
        return ()


def _paths(command: Command, distribution_runtime: DistributionRuntime) -> ConfiguredPaths:
    """Return the paths that a command line of the runtime names, or those of the distribution."""
    if distribution_runtime.runtime == "containerd":
        option = command_line.config_option(command.argv)
        given = [distribution_runtime.config if option is None else option]
    else:
        options = _crio_options(command)
        (drop_in_dir,) = distribution_runtime.drop_in_dirs.values()
        given = [options.get("config", distribution_runtime.config), options.get("config-dir", drop_in_dir)]
    for path in given:
        if not path or not (path.startswith("/") or command.working_directory.startswith("/")):
            named = f"{path}, relative to a directory that is not visible" if path else "an empty path"
            return ConfiguredPaths(unknown=f"its command line names {named}")
    return ConfiguredPaths(
        *(posixpath.normpath(posixpath.join(command.working_directory, path)) for path in given)
    )


def _crio_options(command: Command) -> dict[str, str]:
    """Return the options of a CRI-O that name its files, without their dashes; the last one counts."""
    found = {
        option: command.environment[variable]
        for option, variable in _CRIO_OPTIONS.items()
        if command.environment.get(variable)
    }
    flags = flag_values(command.argv, (*_CRIO_OPTIONS, *_CRIO_SHORT_OPTIONS))
    return found | {_CRIO_SHORT_OPTIONS.get(name, name): value for name, value in flags.items()}
