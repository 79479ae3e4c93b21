"""Register functions as commands: with the common options of each, and with options in groups in the help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_type_hints

import typer
from msgspec.structs import fields
from typer.core import TyperCommand

from kata_node.cli.options import COMMAND_OPTIONS, EPILOG, LOGGING, Common, Option, env_variable
from kata_node.cli.usage import call_checked


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    """Return a keyword parameter for typer, which has no use for an :class:`Option`."""
    kind, *metadata = get_args(annotation) if hasattr(annotation, "__metadata__") else (annotation,)
    if metadata and isinstance(metadata[0], Option):
        annotation = Annotated[kind, _for_typer(metadata[0])]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _for_typer(option: Option) -> Any:
    parse = option.parser

    def parser(text: str) -> Any:
        assert parse is not None
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return typer.Option(
        f"--{option.name}",
        rich_help_panel=option.group,
        metavar=option.metavar,
        help=option.text,
        envvar=[env_variable(option.name), *option.variables],
        show_envvar=False,
        parser=parser if parse else None,
        autocompletion=option.complete,
        show_default=option.show_default,
    )


_COMMON_PARAMETERS = [
    _parameter(each.name, annotation, each.default)
    for each, annotation in zip(
        fields(Common), get_type_hints(Common, include_extras=True).values(), strict=True
    )
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


def _is_typed(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def command(
    target: typer.Typer, name: str, *, group: str = "", hidden: bool = False
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Return a decorator that registers ``function(common, **own)`` as the command ``name``.

    The function returns the exit code. The command takes the options of the function, and the common
    options that :data:`COMMAND_OPTIONS` has for it, or for its ``group``.
    """
    options = COMMAND_OPTIONS.get(group or name, LOGGING)
    shared = [each for each in _COMMON_PARAMETERS if each.name in options]

    def register(function: Callable[..., int]) -> Callable[..., int]:
        signature = inspect.signature(function, eval_str=True)
        own = [
            _parameter(each.name, each.annotation, each.default)
            for each in list(signature.parameters.values())[1:]
        ]
        context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)

        def call(context: typer.Context, **values: Any) -> int:
            common = Common(**{each.name: values.pop(each.name) for each in shared})
            typed = [name for name in context.params if _is_typed(context, name)]
            return call_checked(lambda common: function(common, **values), common, typed)

        call.__doc__ = function.__doc__
        parameters = [*own, *shared, context]
        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {each.name: each.annotation for each in parameters}
        target.command(name, cls=_GroupedCommand, epilog=EPILOG if shared else None, hidden=hidden)(call)
        return function

    return register
