"""A power cut at every moment of placing and removing: each file is the previous one or the new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import payloads
from kata_node.host import barrier
from kata_node.host.files import Root
from kata_node.host.place import place
from kata_node.payload import index
from kata_node.payload.index import Payload
from payloads import QEMU
from power_cut import SURVIVALS, Disk, PowerCut, Survival

INSTALL_DIR = "/opt/kata"
Content = dict[str, object]


@pytest.fixture(scope="module", params=["tree", "tarballs"])
def payload(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Payload:
    directory = getattr(payloads, request.param)(tmp_path_factory.mktemp("payload") / "p")
    index.write_manifest(directory)
    return index.load(directory)


@pytest.fixture(params=["each file by itself", "all files at once", "at once, but others have much to write"])
def barrier_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(barrier, "is_possible", lambda *_: not request.param.startswith("each"))
    if request.param.endswith("write"):
        monkeypatch.setattr(barrier, "MAX_FOREIGN_DIRTY", -1 << 60)
    else:
        monkeypatch.setattr(barrier, "MAX_FOREIGN_DIRTY", 1 << 60)
    return str(request.param)


def content(base: Path) -> Content:
    """Return what each file and link below ``base`` holds, without temporary files."""
    return {
        str(path.relative_to(base)): path.readlink() if path.is_symlink() else path.read_bytes()
        for path in base.rglob("*")
        if (path.is_symlink() or path.is_file()) and ".kata-node-tmp" not in str(path)
    }


def placing(payload: Payload) -> tuple[Content, Callable[[Path], None]]:
    """Return the small files of ``payload``, and a function that places them."""
    entries = tuple(entry for entry in payload.select([QEMU], "x86_64") if entry.size <= 4096)
    new: Content = {
        entry.path: Path(entry.link) if entry.kind == "link" else payloads.FILES[entry.path]
        for entry in entries
        if entry.kind != "dir"
    }
    return new, lambda base: place(Root(base), payload, entries, INSTALL_DIR)


def put_old_files(base: Path, new: Content) -> Content:
    for path in new:
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_bytes(f"old {path}".encode())
    return content(base)


def each_cut(tmp_path: Path, prepare: Callable[[Path], object], act: Callable[[Path], None]) -> list[Disk]:
    """Return the disks of runs with a power cut after each operation in turn; the last run had none."""
    disks = []
    for operations in range(500):
        base = tmp_path / f"node-{operations}"
        (base / "opt/kata").mkdir(parents=True)
        prepare(base)
        disks.append(Disk(base, tmp_path / f"attic-{operations}"))
        try:
            with disks[-1].power(operations):
                act(base)
        except PowerCut:
            continue
        return disks
    pytest.fail("the run did not end")


@pytest.mark.parametrize("survival", SURVIVALS)
@pytest.mark.usefixtures("barrier_kind")
def test_after_a_power_cut_a_new_directory_is_missing_or_complete(
    tmp_path: Path, payload: Payload, survival: Survival
) -> None:
    new, act = placing(payload)

    disks = each_cut(tmp_path, lambda _: None, act)
    for number, disk in enumerate(disks):
        base = tmp_path / f"node-{number}"
        disk.come_back(survival)
        found = content(base / "opt/kata")
        tops = {path.split("/")[0] for path in found}
        assert found == {path: new[path] for path in new if path.split("/")[0] in tops}, disk.operations
        if disk is disks[-1]:
            assert found == new, "what a finished placement placed survives"
        act(base)
        assert content(base) == {f"opt/kata/{path}": new[path] for path in new}


@pytest.mark.parametrize("survival", SURVIVALS)
@pytest.mark.usefixtures("barrier_kind")
def test_after_a_power_cut_each_file_is_the_previous_or_the_new_one(
    tmp_path: Path, payload: Payload, survival: Survival
) -> None:
    new, act = placing(payload)
    old: Content = {}

    def prepare(base: Path) -> None:
        old.update(put_old_files(base / "opt/kata", new))

    disks = each_cut(tmp_path, prepare, act)
    for number, disk in enumerate(disks):
        base = tmp_path / f"node-{number}"
        disk.come_back(survival)
        found = content(base / "opt/kata")
        assert found.keys() == new.keys()
        wrong = [path for path in new if found[path] not in (old[path], new[path])]
        assert wrong == [], f"after {disk.operations}"
        if disk is disks[-1]:
            assert found == new, "what a finished placement placed survives"
        act(base)
        assert content(base / "opt/kata") == new
