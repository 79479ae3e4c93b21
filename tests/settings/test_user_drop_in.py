"""``--user-drop-in``: the file of a Secret, of which only the content that the values name is obeyed."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import pytest

from kata_node.errors import SettingsError
from kata_node.settings import config_file, load, user_drop_in

TEXT = '[plugins."io.containerd.cri.v1.images".registry]\nconfig_path = "/etc/certs"\n'
DIGEST = hashlib.sha256(TEXT.encode()).hexdigest()


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = functools.partial(config_file.read_config_file, timeout=0)
    monkeypatch.setattr(user_drop_in, "read_config_file", at_once)


def loaded(tmp_path: Path, values: str, content: bytes | None = TEXT.encode()) -> str:
    config, drop_in = tmp_path / "values.yaml", tmp_path / "userDropIn.toml"
    config.write_text(values)
    if content is not None:
        drop_in.write_bytes(content)
    return load.load(str(config), overrides={}, arch="x86_64", user_drop_in=str(drop_in)).user_drop_in


@pytest.mark.parametrize(
    "values",
    [
        "{}",
        "containerd:",
        f"containerd: {{configFileName: a.toml, userDropInSecret: {{digest: {DIGEST}}}}}",
        f"containerd: {{userDropIn: '', userDropInSecret: {{name: mine, key: a, digest: {DIGEST}}}}}",
    ],
)
def test_the_file_is_the_drop_in(tmp_path: Path, values: str) -> None:
    assert loaded(tmp_path, values) == TEXT


@pytest.mark.parametrize(
    ("values", "content", "says"),
    [
        pytest.param(
            f"containerd: {{userDropInSecret: {{digest: {DIGEST}}}}}",
            b"a = 'hunter2'\n",
            "sha256",
            id="edited",
        ),
        pytest.param(
            "containerd: {userDropIn: 'a = 1'}", TEXT.encode(), "only one of both", id="two drop-ins"
        ),
        pytest.param("{}", None, "cannot be read", id="no Secret"),
        pytest.param("{}", b"\xffhunter2", "not UTF-8", id="no text"),
        pytest.param("{}", b"password = hunter2", "is not valid TOML", id="no TOML"),
    ],
)
def test_another_file_is_refused_without_its_words(
    tmp_path: Path, values: str, content: bytes | None, says: str
) -> None:
    with pytest.raises(SettingsError, match=says) as refused:
        loaded(tmp_path, values, content)
    assert "hunter2" not in f"{refused.value} {refused.value.hint}"
    assert refused.value.hint


def test_without_the_file_a_secret_of_the_values_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "values.yaml"
    config.write_text("containerd: {userDropInSecret: {name: mine}}")
    with pytest.raises(SettingsError, match="--user-drop-in"):
        load.load(str(config), overrides={}, arch="x86_64")
