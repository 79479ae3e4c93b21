"""What the scripts say when another user, often root, has made the files of an earlier run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.commands  # the scripts

SCRIPTS = Path(__file__).parent.parent / "scripts"
ROOT = os.geteuid() == 0
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


class Checkout:
    """A checkout with an environment that is up to date, run by a user who is not root."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in ("scripts", "requirements", ".venv/bin"):
            (directory / name).mkdir(parents=True)
        for name in ("_venv.sh", "check", "try", "test"):
            shutil.copy(SCRIPTS / name, directory / "scripts")
        for name in ("requirements/dev.txt", "pyproject.toml"):
            (directory / name).write_text("")
        for name in ("scripts/sample-payload", ".venv/bin/kata-node", ".venv/bin/pytest", ".venv/bin/python"):
            (directory / name).write_text('#!/bin/sh\necho "ran $0"\n')
            (directory / name).chmod(0o755)
        self.stamp = directory / ".venv" / "installed-from"
        self.stamp.write_text(
            subprocess.run(["cksum"], input=b"", capture_output=True, check=True).stdout.decode()
        )
        if ROOT:
            for path in (directory, *directory.rglob("*")):
                os.chown(path, 65534, 65534)

    def made_by_another(self, name: str) -> Path:
        """A directory that the user may not change: root's, or one without any permission."""
        path = self.directory / name
        path.mkdir(parents=True, exist_ok=True)
        if ROOT:
            os.chown(path, 0, 0)
            if path.parent != self.directory:
                os.chown(path.parent, 65534, 65534)
        else:
            path.chmod(0)
        return path

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script of the checkout."""
        command = [*(NOBODY if ROOT else ()), str(self.directory / "scripts" / script)]
        env = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    # The scratch directories of pytest are for its own user alone.
    with tempfile.TemporaryDirectory(prefix="kata-node-checkout-") as directory:
        Path(directory).chmod(0o755)
        checkout = Checkout(Path(directory) / "checkout")
        yield checkout
        for path in (checkout.directory, *checkout.directory.iterdir()):
            path.chmod(0o755)


def refused(done: subprocess.CompletedProcess[str], entry: str) -> str:
    """The hint of a script that has refused because of ``entry``."""
    assert done.returncode == 1
    what, hint = done.stderr.splitlines()
    assert what.startswith("error: the user ")
    assert f" may not change {entry}: owner " in what
    assert hint.startswith("  hint: ")
    return hint


@pytest.mark.parametrize("name", ["node", "node/opt", "node-payload", "node-payload/opt"])
def test_a_trial_over_files_of_another_user_names_them_and_the_remedy(checkout: Checkout, name: str) -> None:
    checkout.made_by_another(name)
    done = checkout.run("try")
    top = name.partition("/")[0]
    remedy = f"sudo rm -r {top}" if ROOT else f"chmod -R u+rwX {top}"
    assert refused(done, name).endswith(remedy)
    assert "ran" not in done.stdout


def test_a_trial_begins_where_nothing_is_left(checkout: Checkout) -> None:
    assert "sample-payload" in checkout.run("try").stdout


def test_an_environment_of_another_user_that_is_out_of_date_is_named(checkout: Checkout) -> None:
    checkout.stamp.write_text("of an older file\n")
    checkout.made_by_another(".venv")
    assert ".venv" in refused(checkout.run("test"), ".venv")


def test_an_environment_with_an_interpreter_out_of_reach_is_named(checkout: Checkout) -> None:
    (checkout.directory / ".venv/bin/python").chmod(0)
    checkout.made_by_another(".venv/lib")
    assert ".venv" in refused(checkout.run("test"), ".venv/lib")


def test_an_environment_of_another_user_that_is_up_to_date_is_used(checkout: Checkout) -> None:
    if ROOT:
        checkout.made_by_another(".venv")
    else:
        (checkout.directory / ".venv").chmod(0o555)
    done = checkout.run("test")
    assert done.returncode == 0, done.stderr
    assert "pytest" in done.stdout


@pytest.mark.parametrize("name", [".mypy_cache", ".ruff_cache"])
def test_a_cache_that_the_gate_cannot_write_is_named(checkout: Checkout, name: str) -> None:
    checkout.made_by_another(name)
    refused(checkout.run("check"), name)


def test_the_cache_of_pytest_that_another_user_made_is_not_used(checkout: Checkout) -> None:
    pytest_program = checkout.directory / ".venv/bin/pytest"
    pytest_program.write_text('#!/bin/sh\necho "options: ${PYTEST_ADDOPTS:-none}"\n')
    assert checkout.run("test").stdout == "options: none\n"
    checkout.made_by_another(".pytest_cache/v")
    assert checkout.run("test").stdout == "options:  -p no:cacheprovider\n"


def test_a_checkout_of_another_user_is_named(checkout: Checkout) -> None:
    if ROOT:
        os.chown(checkout.directory, 0, 0)
    else:
        checkout.directory.chmod(0o555)
    refused(checkout.run("try"), str(checkout.directory))


@pytest.mark.skipif(ROOT, reason="root may write everything; run the tests as an ordinary user")
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda payload: payload.chmod(0), id="not to be read"),
        pytest.param(lambda payload: payload.chmod(0o555), id="not to be written"),
        pytest.param(lambda payload: (payload / "opt").chmod(0o555), id="a directory in it"),
    ],
)
def test_a_sample_payload_over_files_of_another_user_is_refused_in_a_sentence(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    payload = tmp_path / "payload"
    (payload / "opt" / "kata").mkdir(parents=True)
    (payload / "SAMPLE-PAYLOAD.txt").touch()
    spoil(payload)
    command = [sys.executable, str(SCRIPTS / "sample-payload"), str(payload), "--shims=fc", "--arch=x86_64"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    payload.chmod(0o755)
    (payload / "opt").chmod(0o755)
    assert done.returncode == 1
    what, hint = done.stderr.splitlines()
    assert what.startswith("sample-payload: cannot write the payload: ")
    assert what.endswith(": Permission denied")
    assert hint.startswith("  hint: Remove ")
