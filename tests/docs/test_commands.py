"""The commands in the documents work: what a reader types is run here, or at least understood.

```sh               run line by line, in the order of the page, in a scratch copy of the checkout
```sh {.cluster}    needs a cluster: its commands are parsed
```sh {.node}       needs a real node: its commands are parsed
```yaml             with `# values.yaml` in its first line: loaded as settings, and rendered with helm where
                    there is one; the commands behind it find it as values.yaml
```console          a sample of output
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import programs
from docs.pages import CHECKOUT, PAGES, Block, Page
from kata_node.settings import load as settings

CHART = CHECKOUT / "assets/chart/kata-deploy"
VALUES = "# values.yaml\n"
SECONDS = 60
"""That the commands of one page may take."""

TOO_MUCH = {
    "scripts/test": "it would run this test",
    "scripts/check": "it would run this test",
    ".ci/run": "it would run this test",
    "scripts/lock": "it asks a package index",
    "scripts/image": "it builds an image",
    "scripts/bench": "it measures for minutes",
    "scripts/bench-dispatcher": "it measures for minutes",
    "scripts/testnode": "it boots nodes",
    "scripts/testcluster": "it builds Kubernetes",
    "scripts/demo": "it needs root",
    "scripts/test-all": "it would run this test",
    "scripts/docs": "the gate runs it",
    "sudo": "it needs root",
}
"""Programs that are not run here, and why."""

ANYTHING = {
    *("ls", "cat", "mkdir", "find", "diff", "rm", ".", "cp", "kubectl", "buildah", "git", "echo", "cd"),
    *("awk", "grep", "sort", "tr"),
    *("curl", "ctr", "pip", "python3"),
}
"""Programs of the machine or of a cluster, with options of their own."""

NOT_NOTHING = 10
"""The exit code of a plan that would change something, and of a status offline, which are no failures."""


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A directory that looks like the checkout. What a script writes into its checkout lands here."""
    for path in CHECKOUT.iterdir():
        if path.name not in ("node", "node-payload", "image", ".git", ".cache", "dist"):
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def environment(home: Path) -> dict[str, str]:
    """That of a person who has just opened a shell."""
    programs = Path(sys.executable).parent
    path = os.pathsep.join([str(programs), os.environ.get("PATH", os.defpath)])
    return {"PATH": path, "HOME": str(home), "LC_ALL": "C.UTF-8"}


def has_scripts_environment() -> str:
    """Why ``scripts/_venv.sh`` would download something, or nothing."""
    stamp = CHECKOUT / ".venv/installed-from"
    text = b"".join((CHECKOUT / name).read_bytes() for name in ("requirements/dev.txt", "pyproject.toml"))
    done = subprocess.run(["cksum"], input=text, capture_output=True, check=True)
    if not stamp.exists() or stamp.read_text().split() != done.stdout.decode().split():
        return ".venv is not there or out of date, and scripts/try would fill it: run scripts/test"
    return ""


def is_run(block: Block) -> bool:
    return block.language == "sh" and not block.classes & {"cluster", "node"}


def program_of(words: Sequence[str]) -> str:
    return words[0].removeprefix("./") if words else ""


def runnable(page: Page) -> Iterator[tuple[str, str]]:
    """The lines of a shell script with all that is run of a page, each with where it comes from."""
    for block in page.blocks:
        where = f"{page.name}:{block.line}"
        if block.language == "yaml" and block.body.startswith(VALUES):
            yield where, f"cat >values.yaml <<'END OF VALUES'\n{block.body}END OF VALUES"
        elif is_run(block):
            for command in block.commands:
                words = shlex.split(command, comments=True)
                if program_of(words) in TOO_MUCH:
                    continue
                tells = words[:1] == ["kata-node"] and words[1] in ("plan", "status")
                yield where, f"{command} || [ $? = {NOT_NOTHING} ]" if tells else command


PAGES_WITH_COMMANDS = [page.name for page in PAGES if any(map(is_run, page.blocks))]


@pytest.mark.commands
@pytest.mark.parametrize("name", PAGES_WITH_COMMANDS)
def test_the_commands_of_a_page_work_in_their_order(name: str, scratch: Path) -> None:
    lines = list(runnable(Page(name)))
    if any("scripts/try" in line for _, line in lines) and (reason := has_scripts_environment()):
        pytest.skip(reason)
    script = ["set -euo pipefail"]
    for where, line in lines:
        command = line.partition("\n")[0]
        script += [f"echo {shlex.quote(f'+ {where}: {command}')} >&2", line]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=scratch,
        env=environment(scratch),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, f"the last of these failed:\n{done.stderr}\n{done.stdout[-2000:]}"


def commands() -> Iterator[Any]:
    """Every command of every page, run here or not."""
    for page in PAGES:
        for block in page.blocks:
            if block.language == "sh":
                for command in block.commands:
                    yield pytest.param(command, id=f"{page.name}:{block.line}: {command[:60]}")


@pytest.mark.parametrize("command", [*commands()])
def test_a_command_names_programs_and_options_that_exist(command: str) -> None:
    for part in re.split(r"\s(?:\|\|?|&&|;)\s", command):
        words = shlex.split(part, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        words = words[1:] if words[:1] == ["sudo"] else words
        if not words:
            continue
        program = program_of(words)
        if program == "kata-node":
            check_kata_node(words[1:])
        elif program == "kata-deploy-job-dispatcher":
            check_options(words[1:], dispatcher_options())
        elif program.startswith("scripts/") or program == ".ci/run":
            check_script(program, words[1:])
        elif program == "helm":
            check_helm(words[1:])
        else:
            assert program in ANYTHING, (
                f"{program}: is this a program of a reader's machine? Then add it here"
            )


def check_kata_node(words: Sequence[str]) -> None:
    from typer.main import get_command

    from kata_node.cli.commands import app

    command: Any = get_command(app)
    names: list[str] = []
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        names.append(rest.pop(0))
        command = command.commands.get(names[-1])
        assert command is not None, f"kata-node has no command {' '.join(names)}"
    if hasattr(command, "commands"):
        assert rest in (["--version"], ["--help"]), f"kata-node {' '.join(words)} is no whole command"
        return
    check_options(rest, {name for each in command.params for name in each.opts} | {"-h", "--help"})
    for parameter in command.params:
        known = getattr(parameter.type, "choices", None)
        if parameter.param_type_name == "argument" and known:
            given = [word for word in rest[:1] if not word.startswith("-")]
            known = {str(getattr(each, "value", each)) for each in known}
            assert {*given} <= known, f"{given[0]} is none of {', '.join(known)}"


def dispatcher_options() -> set[str]:
    from kata_node.dispatcher import __main__ as dispatcher

    parser: argparse.ArgumentParser = dispatcher._parser()
    return {name for action in parser._actions for name in action.option_strings}


def check_options(words: Sequence[str], known: set[str]) -> None:
    options = [word.partition("=")[0] for word in words if word.startswith("-")]
    assert set(options) <= known, f"no such option: {', '.join(sorted(set(options) - known))}"


def check_script(program: str, words: Sequence[str]) -> None:
    path = CHECKOUT / program
    assert path.is_file(), f"there is no {program}"
    if program in ("scripts/test", "scripts/helm-install"):
        return  # what they do not know themselves, they give to pytest and to helm
    text = path.read_text()
    for word in words:
        if word.startswith("--"):
            option = word.partition("=")[0]
            # Some read it as --word, some as the value of a variable; each names it somewhere.
            assert option in text or option.removeprefix("--") in text, f"{program} has no {option}"


def check_helm(words: Sequence[str]) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for at, word in enumerate(words):
        option, equals, text = word.partition("=")
        if option not in ("--set", "--set-string", "--set-json", "--set-file"):
            continue
        for pair in (text if equals else words[at + 1]).split(","):
            check_key(pair.partition("=")[0], values)


def check_key(key: str, values: Any) -> None:
    """A key below an empty mapping is the reader's own."""
    found = values
    for part in key.split("."):
        if not found and isinstance(found, dict | None):
            return
        name = part.partition("[")[0]
        assert isinstance(found, dict), f"{key} is no key of the chart's values"
        assert name in found, f"{key} is no key of the chart's values"
        found = found[name]


def helm() -> str:
    """Return the path of a helm; skip the test where there is none."""
    kept = programs.BUILT_PROGRAMS["helm"].path
    found = shutil.which("helm") or (str(kept) if kept.exists() else None)
    if found is None:
        pytest.skip("there is no helm here; tests/cluster builds one")
    return found


def values_blocks() -> Iterator[Any]:
    for page in PAGES:
        for block in page.blocks:
            if block.language == "yaml" and block.body.startswith(VALUES):
                yield pytest.param(block.body, id=f"{page.name}:{block.line}")


@pytest.mark.parametrize("text", [*values_blocks()])
def test_a_values_file_is_understood(text: str, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(text)
    settings.load(str(path), overrides={}, arch="x86_64")
    known = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(yaml.safe_load(text) or {}) <= set(known)


@pytest.mark.commands
@pytest.mark.parametrize("text", [*values_blocks()])
def test_the_chart_renders_with_a_values_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "values.yaml"
    path.write_text(text)
    images = CHECKOUT / "tests/chart/images.yaml"
    command = [helm(), "template", "kata-deploy", str(CHART), "-f", str(images), "-f", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.commands
def test_the_command_for_a_mirror_lists_the_images_of_a_values_file(scratch: Path) -> None:
    blocks = list(Page("docs/install-in-a-cluster.md").blocks)
    [at] = [number for number, block in enumerate(blocks) if "helm template" in block.body]
    (scratch / "values.yaml").write_text(blocks[at - 1].body)
    environ = environment(scratch)
    environ["PATH"] = f"{Path(helm()).parent}{os.pathsep}{environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", blocks[at].body],
        cwd=scratch,
        env=environ,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "mirror.example.org/kata-containers/kata-deploy:4.1.0",
        "mirror.example.org/kata-deploy-job-dispatcher:0.1.0",
        "mirror.example.org/kata-node:0.1.0",
    ]
