"""scripts/image --push, with a buildah that only records its commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kata_node import __version__
from node.cache import CHECKOUT

BUILDAH = """\
#!/bin/sh
echo "$*" >>"$COMMANDS"
[ "$1" != push ] || exit "$PUSH"
case $1 in
    build)
        if [ "$(grep -c '^build' "$COMMANDS")" -le "$BUSY" ]; then
            echo "Close_Fd sealing memfd copy: Device or resource busy" >&2
            exit 1
        fi ;;
esac
"""
pytestmark = pytest.mark.commands


def image(
    directory: Path, *options: str, push: int = 0, busy: int = 0
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run scripts/image, and return the result and the commands of buildah that it ran."""
    program, commands = directory / "buildah", directory / "commands"
    program.write_text(BUILDAH)
    program.chmod(0o755)
    own = {
        "PATH": f"{directory}:{os.environ['PATH']}",
        "COMMANDS": str(commands),
        "PUSH": str(push),
        "BUSY": str(busy),
    }
    command = [sys.executable, str(CHECKOUT / "scripts/image"), *options]
    done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    return done, commands.read_text().splitlines() if commands.exists() else []


def test_both_images_are_built_and_pushed_with_the_version_as_their_tag(tmp_path: Path) -> None:
    done, commands = image(tmp_path, "--push", "r.example.org/team/", "--base=base")
    assert done.returncode == 0, done.stderr
    names = [
        f"r.example.org/team/{name}:{__version__}" for name in ("kata-node", "kata-deploy-job-dispatcher")
    ]
    assert [line for line in commands if line.startswith("push")] == [f"push {name}" for name in names]
    built = [line for line in commands if line.startswith("build ")]
    assert [f"--tag={name}" in line for name, line in zip(names, built, strict=True)] == [True, True]
    assert ["--target=dispatcher" in line for line in built] == [False, True]
    assert "--set nodeImage.reference=r.example.org/team/kata-node " in done.stdout
    assert done.stdout.endswith(
        "--set job.dispatcherImage.reference=r.example.org/team/kata-deploy-job-dispatcher\n"
    )


def test_only_the_image_of_kata_node_gets_the_payload(tmp_path: Path) -> None:
    _, commands = image(
        tmp_path, "--push=r.example.org", "--base=base", "--payload-image=q.example.org/kata:1"
    )
    built = [line for line in commands if line.startswith("build ")]
    assert ["PAYLOAD_IMAGE=q.example.org/kata:1" in line for line in built] == [True, False]


def test_a_refused_push_says_how_to_log_in(tmp_path: Path) -> None:
    done, _ = image(tmp_path, "--push=r.example.org:5000/team", "--base=base", push=125)
    assert done.returncode == 1
    assert f"r.example.org:5000/team/kata-node:{__version__} could not be pushed" in done.stderr
    assert "buildah login r.example.org:5000`" in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--push=https://r.example.org"], "a registry has no scheme"),
        (["--push=r.example.org", "--tag=a"], "leave out --tag"),
        (["--push=r.example.org", "--target=dispatcher"], "leave out --tag, --target"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_anything_is_built(
    tmp_path: Path, options: list[str], says: str
) -> None:
    done, commands = image(tmp_path, *options)
    assert (done.returncode, commands) == (2, [])
    assert says in done.stderr


def test_a_buildah_that_the_kernel_keeps_from_starting_is_run_again(tmp_path: Path) -> None:
    done, commands = image(tmp_path, "--base=base", busy=2)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in commands] == ["build", "build", "build"]
    assert done.stderr.count("sealing memfd copy") == 2


def test_any_other_failure_of_buildah_ends_the_script_at_once(tmp_path: Path) -> None:
    done, commands = image(tmp_path, "--push=r.example.org", "--base=base", push=1)
    assert done.returncode == 1
    assert [line.split()[0] for line in commands] == ["build", "push"]
