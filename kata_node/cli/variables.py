"""Read options from their environment variables, and from a command line that may be invalid."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import get_args, get_type_hints

from kata_node.cli.options import COMMAND_OPTIONS, PREFIX, Common, env_variable

COMPLETION_VARIABLE = "_KATA_NODE_COMPLETE"
"""The variable of the completion scripts."""

_FLAGS = {"1": True, "true": True, "0": False, "false": False}


def common_of_variables(command: str) -> Common | None:
    """Return the options of a command line that has none, from the variables.

    ``None`` if a variable has a value that typer must judge: a wrong one, or a rare word for yes or no.
    """
    annotations = get_type_hints(Common, include_extras=True)
    values = {}
    for name in COMMAND_OPTIONS[command]:
        kind, option = get_args(annotations[name])
        variables = (env_variable(option.name), *option.variables)
        text = next((found for each in variables if (found := os.environ.get(each))), "")
        try:
            if option.parser and text:
                values[name] = option.parser(text)
            elif kind is bool and text:
                values[name] = _FLAGS[text]
            elif text:
                values[name] = kind(text)
        except (LookupError, ValueError):
            return None
    return Common(**values)


def raw_option_value(arguments: Sequence[str], option: str) -> str:
    """Return the value of an option from a command line that may be invalid; empty when it has none."""
    value = os.environ.get(env_variable(option), "")
    for at, argument in enumerate(arguments):
        name, equals, text = argument.partition("=")
        if name == f"--{option}":
            value = text if equals else "".join(arguments[at + 1 : at + 2])
    return value


def misspelled_variables() -> dict[str, str]:
    """Return the set variables that belong to no option, each with the similar variable of an option."""
    known = {env_variable(name) for name in Common.__struct_fields__}
    # Kubernetes sets KATA_NODE_PORT and others in pods when there is a Service named kata-node.
    set_variables = (name for name in os.environ if name.startswith(PREFIX) and not name.endswith("_PORT"))
    unknown = [name for name in set_variables if name not in known]
    if not unknown:
        return {}
    import difflib

    # Ignore names that resemble no option: they may be variables of such a Service too.
    close = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.9) for name in unknown}
    return {name: found[0] for name, found in close.items() if found}
