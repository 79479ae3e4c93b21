"""Register functions as commands: with the common options of each, and with options in groups in the help."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand

from kata_node import log as logs
from kata_node import signals
from kata_node.cli.options import COMMAND_OPTIONS, EPILOG, LOGGING, Common
from kata_node.cli.output import has_color
from kata_node.cli.usage import check_usage, without_overruled_variables

COMMON_PARAMETERS = [
    each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
    for each in inspect.signature(Common, eval_str=True).parameters.values()
]
"""The common options as function parameters; typer makes command line options of them."""


class _GroupedCommand(TyperCommand):
    """A command whose help has a section for each group of options."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for each in self.get_params(ctx):
            if record := each.get_help_record(ctx):
                is_option = each.param_type_name == "option"
                group = getattr(each, "rich_help_panel", None) or "Output"  # --help has no group
                sections.setdefault(group if is_option else "Arguments", []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def command(
    target: typer.Typer, name: str, *, group: str = "", hidden: bool = False
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Return a decorator that registers ``function(common, **own)`` as the command ``name``.

    The function returns the exit code. The command takes the options of the function, and the common
    options that :data:`COMMAND_OPTIONS` has for it, or for its ``group``.
    """
    options = COMMAND_OPTIONS.get(group or name, LOGGING)
    shared = [each for each in COMMON_PARAMETERS if each.name in options]

    def register(function: Callable[..., int]) -> Callable[..., int]:
        signature = inspect.signature(function, eval_str=True)
        own = list(signature.parameters.values())[1:]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

        def call(context: typer.Context, **values: Any) -> int:
            given = Common(**{each.name: values.pop(each.name) for each in shared})
            common = without_overruled_variables(context, given)
            logs.configure_logging(common.effective_log_level, color=has_color(sys.stderr))
            check_usage(context, common)
            try:
                return function(common, **values)
            except KeyboardInterrupt as error:
                raise signals.stopped_error(error) from None

        call.__doc__ = function.__doc__
        parameters = [*own, *shared, context]
        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {each.name: each.annotation for each in parameters}
        target.command(name, cls=_GroupedCommand, epilog=EPILOG if shared else None, hidden=hidden)(call)
        return function

    return register
