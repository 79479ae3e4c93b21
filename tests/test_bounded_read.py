"""Reading files in whose place another user may put something that blocks."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from kata_node.bounded_read import NotPlainFileError, file_digest
from kata_node.host import processes
from kata_node.host.files import Root


def test_a_digest_is_never_that_of_what_a_symlink_or_fifo_leads_to(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    assert file_digest(file) == hashlib.sha256(b"content").hexdigest()
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(OSError, match="symbolic links"):
        file_digest(tmp_path / "link")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(NotPlainFileError, match="a FIFO is where"):
        file_digest(tmp_path / "fifo")


def test_a_program_of_a_unit_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "containerd")
    assert processes.is_script(Root(tmp_path), "/containerd") is None
