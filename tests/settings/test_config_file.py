"""Configuration files whose content a pod knows by its digest."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from kata_node.errors import SettingsError, UsageError
from kata_node.settings import load
from kata_node.settings.config_file import read_config_file

VALUES = b"shims:\n  qemu:\n    enabled: true\n"
DIGEST = hashlib.sha256(VALUES).hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "values.yaml"
    path.write_bytes(VALUES)
    return path


def test_the_expected_content_is_read(path: Path) -> None:
    assert read_config_file(path, DIGEST, timeout=0) == VALUES


def test_without_a_digest_any_content_is_read(path: Path) -> None:
    path.write_bytes(b"other")
    assert read_config_file(path, timeout=0) == b"other"


def test_other_content_is_refused_with_the_file_and_both_digests(path: Path) -> None:
    path.write_bytes(VALUES + b"      dropIn: evil\n")
    with pytest.raises(SettingsError) as refused:
        read_config_file(path, DIGEST, timeout=0)
    assert refused.value.where == str(path)
    assert DIGEST in refused.value.what
    assert hashlib.sha256(path.read_bytes()).hexdigest() in refused.value.what
    assert refused.value.exit_code == 2


def test_the_content_that_the_kubelet_mounts_late_is_waited_for(path: Path) -> None:
    path.write_bytes(b"previous release")
    threading.Timer(0.2, path.write_bytes, [VALUES]).start()
    assert read_config_file(path, DIGEST, timeout=60, interval=0.05) == VALUES


@pytest.mark.parametrize("digest", ["abc", DIGEST.upper(), f"sha256:{DIGEST}", f"{DIGEST}\n"])
def test_a_digest_of_another_form_is_a_usage_error(path: Path, digest: str) -> None:
    with pytest.raises(UsageError, match="is not a sha256 digest"):
        read_config_file(path, digest, timeout=0)


def test_the_settings_are_those_of_the_expected_file(path: Path) -> None:
    settings = load.load(str(path), overrides={}, arch="x86_64", digest=DIGEST)
    assert [shim.name for shim in settings.shims] == ["qemu"]
