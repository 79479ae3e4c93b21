"""The receipt: written, read back, and refused if it cannot be trusted."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from kata_node.errors import HostError, ReceiptError
from kata_node.host.files import Root
from kata_node.plan import receipt as receipts
from kata_node.plan.receipt import (
    SCHEMA,
    ArtifactsRecord,
    Backup,
    CriFile,
    CriRecord,
    PlacedFile,
    PreviousFile,
    Receipt,
)

INSTALL_DIR = "/opt/kata"
WHERE = "/opt/kata/.kata-node/receipt.json"
MAIN = "/etc/containerd/config.toml"
BACKUP = Backup("b" * 64, 0o640, 12, 34)

SERVING = CriRecord(
    state="serving",
    runtime="containerd",
    version="2.1.9",
    unit="containerd.service",
    invocation="1" * 32,
    boot="boot",
    handlers=("kata-qemu", "kata-clh"),
    files=(
        CriFile(MAIN, BACKUP, "c" * 64),
        CriFile("/opt/kata/containerd/config.d/ours.toml", None, "d" * 64),
    ),
    made_dirs=("/opt/kata/containerd", "/opt/kata/containerd/config.d"),
)
FULL = Receipt(
    instance="blue",
    install_dir=INSTALL_DIR,
    program="1.2.3",
    settings="e" * 64,
    artifacts=ArtifactsRecord(
        state="placing",
        release="3.20.0",
        inputs="f" * 64,
        files={
            "bin": PlacedFile("dir", 0o755),
            "bin/qemu": PlacedFile("file", 0o755, 1 << 40, 1_700_000_000, "a" * 64, pending=True),
            "share/größe 雪\n": PlacedFile("link", 0o777, link="../bin/qemu"),
        },
        made_dirs=("/opt", "/opt/kata"),
    ),
    cri=replace(
        SERVING,
        state="restarting",
        previous=(PreviousFile(MAIN, BACKUP), PreviousFile("/etc/containerd/conf.d/x.toml", None)),
        fallback=SERVING,
    ),
)


def as_json() -> Any:
    return json.loads(receipts.render(FULL))


@pytest.mark.parametrize(
    "receipt",
    [
        pytest.param(FULL, id="in the middle of a transaction over an earlier one"),
        pytest.param(replace(FULL, cri=SERVING), id="installed"),
        pytest.param(replace(FULL, cri=None, artifacts=None), id="reverted"),
        pytest.param(Receipt("default", INSTALL_DIR, "1.2.3"), id="blank"),
    ],
)
def test_a_receipt_reads_back_as_it_was_written(root: Root, receipt: Receipt) -> None:
    receipts.save(root, receipt)
    assert receipts.load(root, INSTALL_DIR) == receipt


def test_a_missing_receipt_is_none(root: Root) -> None:
    assert receipts.load(root, INSTALL_DIR) is None


def test_a_receipt_that_is_a_symlink_without_a_target_is_not_a_missing_receipt(root: Root) -> None:
    root.make_dirs(f"{INSTALL_DIR}/.kata-node")
    root.symlink(WHERE, "/backup/receipt.json")
    with pytest.raises(ReceiptError, match="its target is missing") as error:
        receipts.load(root, INSTALL_DIR)
    assert error.value.exit_code == 3
    assert WHERE in str(error.value)


def test_only_root_can_read_the_receipt_but_everyone_can_read_the_install_dir(root: Root) -> None:
    receipts.save(root, FULL)

    def mode(path: str) -> int:
        return stat.S_IMODE((root.base / path).stat().st_mode)

    assert [mode(path) for path in ("opt", "opt/kata", "opt/kata/.kata-node", WHERE.strip("/"))] == [
        *(0o755, 0o755, 0o700, 0o600)
    ]


def test_a_failed_write_keeps_the_previous_receipt(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    receipts.save(root, FULL)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(HostError, match="No space left"):
            receipts.save(root, replace(FULL, cri=None))
    assert receipts.load(root, INSTALL_DIR) == FULL


def test_receipt_and_backups_are_in_one_directory() -> None:
    assert receipts.directory(INSTALL_DIR) == "/opt/kata/.kata-node"
    assert receipts.path(INSTALL_DIR) == WHERE
    assert receipts.backup_path(INSTALL_DIR, "abc") == "/opt/kata/.kata-node/backups/abc"
    assert receipts.backup_path(INSTALL_DIR, "abc").startswith(receipts.backups(INSTALL_DIR))


# --- receipts that are refused ----------------------------------------------------------------------


def refusal(raw: bytes) -> ReceiptError:
    with pytest.raises(ReceiptError) as caught:
        receipts.parse(raw, WHERE)
    assert caught.value.where == WHERE
    assert caught.value.hint
    return caught.value


def test_a_receipt_cut_short_at_any_byte_is_refused() -> None:
    raw = receipts.render(FULL)
    assert receipts.parse(raw.rstrip(b"\n"), WHERE) == FULL
    for length in range(len(raw) - 1):
        assert "is damaged" in refusal(raw[:length]).what, f"cut to {length} bytes"


def is_read(raw: bytes) -> bool:
    try:
        receipts.parse(raw, WHERE)
    except ReceiptError:
        return False
    return True


def test_a_damaged_byte_causes_no_other_error_than_a_receipt_error() -> None:
    raw = receipts.render(FULL)
    for at in range(len(raw) - 1):
        for byte in b'"}[7':
            is_read(raw[:at] + bytes([byte]) + raw[at + 1 :])
        for byte in b"\x00\xff":
            assert not is_read(raw[:at] + bytes([byte]) + raw[at + 1 :]), f"byte {at}"


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\0" * 4096, id="zeros"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"{}", id="nothing in it"),
        pytest.param(b'{"schema": 1}', id="schema alone"),
        pytest.param(b'{"schema": "1"}', id="schema as a text"),
        pytest.param(b'{"schema": true}', id="schema as a truth"),
        pytest.param(b'{"schema": 1, "x": ' + b"[" * 100_000, id="nested without end"),
        pytest.param(b'{"schema": 1, "cri": ' + b'{"fallback": ' * 100_000, id="fallback without end"),
    ],
)
def test_a_file_that_is_not_a_receipt_is_refused(raw: bytes) -> None:
    error = refusal(raw)
    assert "is damaged" in error.what
    assert "restore the receipt from a copy" in error.hint


@pytest.mark.parametrize("schema", [0, SCHEMA + 1, 99])
def test_another_schema_is_refused_with_its_number(schema: int) -> None:
    raw = json.dumps({"schema": schema, "artifacts": "of another shape"}).encode()
    error = refusal(raw)
    assert error.what.endswith(f"has schema {schema}, but this kata-node reads schema {SCHEMA}")
    assert "newer" in error.hint


def put(value: object, *place: str | int) -> Callable[[Any], None]:
    """Return a function that sets the value at ``place`` in parsed JSON."""

    def change(data: Any) -> None:
        for key in place[:-1]:
            data = data[key]
        data[place[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "place"),
    [
        pytest.param(put(1, "install_dir"), "$.install_dir", id="text"),
        pytest.param(
            put("big", "artifacts", "files", "bin/qemu", "size"), "$.artifacts.files[...].size", id="number"
        ),
        pytest.param(put(1, "artifacts", "files", "bin/qemu", "pending"), "pending", id="truth"),
        pytest.param(put("fifo", "artifacts", "files", "bin/qemu", "kind"), "kind", id="kind"),
        pytest.param(put("done", "artifacts", "state"), "$.artifacts.state", id="state of the artifacts"),
        pytest.param(put("placed", "cri", "state"), "$.cri.state", id="state of the CRI"),
        pytest.param(put("kata", "cri", "handlers"), "$.cri.handlers", id="list"),
        pytest.param(put([7], "cri", "handlers"), "$.cri.handlers[0]", id="item of a list"),
        pytest.param(put({}, "cri", "files", 0, "before"), "$.cri.files[0].before", id="missing key"),
        pytest.param(put(None, "cri", "fallback", "unit"), "$.cri.fallback.unit", id="nothing"),
    ],
)
def test_the_error_names_the_place_of_a_wrong_type(change: Callable[[Any], None], place: str) -> None:
    data = as_json()
    change(data)
    error = refusal(json.dumps(data).encode())
    assert "is damaged" in error.what
    assert place in error.what


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(put("Blue", "instance"), "'Blue' is not the name of", id="installation"),
        pytest.param(put("run/c.sock", "socket"), "'run/c.sock' is not the path of a socket", id="socket"),
        pytest.param(put("docker", "cri", "runtime"), "'docker' '2.1.9' is not a container", id="runtime"),
        pytest.param(put("new", "cri", "version"), "'containerd' 'new' is not a container", id="version"),
        pytest.param(put("x.mount", "cri", "unit"), "'x.mount'", id="unit"),
        pytest.param(put("1", "cri", "invocation"), "is not a service and its invocation", id="invocation"),
        pytest.param(put(["runc"], "cri", "handlers"), "'runc' is not a handler", id="built-in-handler"),
        pytest.param(put(["a/b"], "cri", "fallback", "handlers"), "'a/b' is not a handler", id="handler"),
        pytest.param(put("a", "cri", "files", 0, "after"), f"{MAIN!r} has the digest 'a'", id="digest"),
        pytest.param(put("etc", "cri", "config"), "'etc' is not a normal absolute path", id="main-file"),
        pytest.param(put("/a/../b", "cri", "drop_in_dir"), "'/a/../b' is not a normal", id="drop-ins"),
    ],
)
def test_a_value_that_no_release_writes_is_refused(
    change: Callable[[Any], None], says: str, root: Root
) -> None:
    data = as_json()
    change(data)
    receipts.save(root, FULL)
    Path(root.base, WHERE[1:]).write_text(json.dumps(data))
    with pytest.raises(ReceiptError, match="cannot be trusted") as caught:
        receipts.load(root, INSTALL_DIR)
    assert says in caught.value.what
    assert (caught.value.where, caught.value.exit_code) == (WHERE, 3)
    assert "restore it from a copy" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "place"),
    [
        pytest.param(put(1, "color"), "$.color", id="top"),
        pytest.param(put(None, "artifacts", "color"), "$.artifacts.color", id="artifacts"),
        pytest.param(
            put(1, "artifacts", "files", "bin", "xattrs"), "$.artifacts.files.bin.xattrs", id="file"
        ),
        pytest.param(put([], "cri", "files", 1, "color"), "$.cri.files[1].color", id="item of a list"),
        pytest.param(put({}, "cri", "fallback", "files", 0, "before", "acl"), "before.acl", id="deep"),
    ],
)
def test_an_unknown_key_of_a_newer_release_is_refused(change: Callable[[Any], None], place: str) -> None:
    data = as_json()
    change(data)
    error = refusal(json.dumps(data).encode())
    assert error.what.startswith("the receipt of this installation has the key $.")
    assert f"{place}, which this kata-node does not know" in error.what
    assert "newer" in error.hint


def test_a_reformatted_receipt_is_read() -> None:
    assert receipts.parse(json.dumps(as_json(), indent=4, sort_keys=True).encode(), WHERE) == FULL


def test_missing_keys_of_an_older_release_have_their_defaults() -> None:
    data = as_json()
    for key in ("settings", "cri"):
        del data[key]
    del data["artifacts"]["made_dirs"]
    del data["artifacts"]["files"]["bin/qemu"]["pending"]
    read = receipts.parse(json.dumps(data).encode(), WHERE)
    assert read.artifacts is not None
    assert (read.settings, read.cri, read.artifacts.made_dirs) == ("", None, ())
    assert read.artifacts.files["bin/qemu"].pending is False


def test_the_receipt_in_a_copied_install_dir_is_refused(root: Root) -> None:
    receipts.save(root, FULL)
    (root.base / "opt/kata-copy/.kata-node").mkdir(parents=True)
    (root.base / "opt/kata-copy/.kata-node/receipt.json").write_bytes(receipts.render(FULL))
    with pytest.raises(ReceiptError, match="the receipt of the installation in /opt/kata\n") as caught:
        receipts.load(root, "/opt/kata-copy")
    assert caught.value.where == "/opt/kata-copy/.kata-node/receipt.json"
    assert "remove the copy" in caught.value.hint


def test_an_install_dir_that_is_a_file_is_an_error(root: Root) -> None:
    Path(root.base, "opt").mkdir()
    Path(root.base, "opt/kata").touch()
    with pytest.raises(HostError) as caught:
        receipts.load(root, INSTALL_DIR)
    assert "move the file away" in caught.value.hint
