"""The commands that help a person: ``explain`` and ``completion``.

typer makes the completion scripts of the shells. They run this program for each completion.
"""

from __future__ import annotations

import os
from enum import StrEnum
from typing import Annotated

import typer

from kata_node.cli.options import Common
from kata_node.cli.output import PROGRAM_NAME, print_result
from kata_node.cli.registration import command
from kata_node.cli.variables import COMPLETION_VARIABLE


class Shell(StrEnum):
    """The shells that ``completion`` knows."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def enable_completion() -> None:
    """Let typer answer if a completion script runs this program."""
    if COMPLETION_VARIABLE in os.environ:
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()


def _complete_names() -> list[str]:
    from kata_node.cli.explain import read_guide

    return list(read_guide().names)


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""

    @command(app, "explain")
    def explain(
        common: Common,
        name: Annotated[
            str,
            typer.Argument(
                metavar="[CHECK|CODE|TOPIC]",
                show_default=False,
                help="A check of host-check, an exit code, or a topic. Without it, list them.",
                autocompletion=_complete_names,
            ),
        ] = "",
    ) -> int:
        """Explain a check, an exit code or a topic. Prints its part of the troubleshooting guide."""
        from kata_node.cli import explain as explanations

        return explanations.explain(name, common.output)

    @command(app, "completion")
    def completion(
        common: Common, shell: Annotated[Shell, typer.Argument(help="The shell that gets the completion.")]
    ) -> int:
        """Print the completion script of a shell.

        It completes commands, options, the names of stages and shims, and what explain explains.

        \b
        bash: source <(kata-node completion bash)
        zsh:  source <(kata-node completion zsh)
        fish: kata-node completion fish | source
        """
        from typer.completion import get_completion_script  # type: ignore[attr-defined]

        print_result(
            get_completion_script(
                prog_name=PROGRAM_NAME,
                complete_var=COMPLETION_VARIABLE,
                shell=shell,  # the name of a shell, nothing is run  # nosec B604
            )
        )
        return 0
