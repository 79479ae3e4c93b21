"""What the daemon takes for a change of a file. The tests of the daemon have the signals of the kernel."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from kata_node.daemon import watch
from kata_node.daemon.watch import FileWatch


@pytest.fixture
def no_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask for no signals: they would end this process."""
    monkeypatch.setattr(fcntl, "fcntl", lambda *_: 0)


def rewrite(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_text(path.read_text())
    new.replace(path)


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        pytest.param(lambda path: None, False, id="nothing"),
        pytest.param(lambda path: (path.parent / "other").touch(), False, id="a neighbour"),
        pytest.param(lambda path: path.unlink(), True, id="removed"),
        pytest.param(lambda path: path.write_text("longer than before"), True, id="written"),
        pytest.param(rewrite, True, id="replaced"),
        pytest.param(lambda path: path.chmod(0), True, id="another mode"),
    ],
)
@pytest.mark.usefixtures("no_signals")
def test_only_a_change_of_the_file_itself_counts(
    tmp_path: Path, change: Callable[[Path], None], *, differs: bool
) -> None:
    path = tmp_path / "drop-in.toml"
    path.write_text("content")
    found = FileWatch()
    found.begin((str(path),))
    change(path)
    assert found.has_changed() is differs
    found.begin(found.paths)
    assert not found.has_changed()


@pytest.mark.usefixtures("no_signals")
def test_a_file_in_a_directory_that_does_not_exist_yet_is_watched(tmp_path: Path) -> None:
    path = tmp_path / "conf.d" / "drop-in.toml"
    found = FileWatch()
    found.begin((str(path),))
    path.parent.mkdir()
    assert not found.has_changed()
    path.touch()
    assert found.has_changed()


def test_without_signals_of_the_kernel_it_asks_to_be_called_each_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    found = FileWatch()
    found.begin((str(tmp_path / "file"),))
    assert found.interval == watch.FALLBACK_INTERVAL
