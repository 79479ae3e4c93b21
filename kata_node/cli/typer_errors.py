"""Tell of wrong usage that typer found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import typer

from kata_node.cli.output import PROGRAM_NAME
from kata_node.errors import UsageError

TyperUsageError: Any = typer.BadParameter.__mro__[1]
"""The base class of what typer raises for wrong usage. typer exports only its subclass ``BadParameter``."""


def usage_error(arguments: Sequence[str], error: Any) -> UsageError:
    """Return typer's ``error`` as a :class:`UsageError` that names the wrong option or variable."""
    parameter, context = getattr(error, "param", None), error.ctx
    hint = f"run {context.command_path if context else ' '.join([PROGRAM_NAME, *arguments[:1]])} --help"
    if parameter is None:
        message = error.format_message().rstrip(".")
        if context and hasattr(error, "option_name"):
            hint = _hint_for_option(error.option_name, context, hint)
        return UsageError(message[:1].lower() + message[1:], hint=hint)
    where = next(iter(parameter.opts)) if parameter.param_type_name == "option" else parameter.metavar
    source = context.get_parameter_source(parameter.name)
    if source is not None and source.name == "ENVIRONMENT":
        where = next(name for name in parameter.envvar if os.environ.get(name))
    return UsageError(error.message.rstrip(".") or "it is missing", where=where, hint=hint)


def _hint_for_option(option: str, context: Any, hint: str) -> str:
    """Return a hint about an option that the command does not have. Other commands may have it."""
    if context.parent is None:
        return f"put options after the command: {PROGRAM_NAME} install {option} ..."
    having = [
        name
        for name, command in _commands(context.find_root().command)
        if not command.hidden and any(option in each.opts for each in command.params)
    ]
    if not having:
        return hint
    *others, last = having
    names = f"{', '.join(others)} and {last}" if others else last
    return f"{option} is an option of {names}; {hint}"


def _commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command
