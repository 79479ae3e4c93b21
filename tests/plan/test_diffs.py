"""Diffs of configuration files: what they show, what they mask, and what they refuse to compare."""

from __future__ import annotations

import pytest

from kata_node.plan.diffs import MASK, MAX_LINES, file_diff

PATH = "/etc/containerd/config.toml"


def body(before: bytes | None, after: bytes | None) -> list[str]:
    """Return the lines of a diff without its head and its hunks."""
    return [line for line in file_diff(PATH, before, after).splitlines()[2:] if not line.startswith("@@")]


def shown(line: str) -> str:
    """Return a line of a new file as a diff shows it."""
    (only,) = body(None, f"{line}\n".encode())
    return only.removeprefix("+")


def test_a_changed_line_is_shown_between_its_neighbors() -> None:
    lines = [f"line_{number} = {number}\n" for number in range(84)]
    changed = [*lines[:40], "line_40 = 'other'\n", *lines[41:]]
    diff = file_diff(PATH, "".join(lines).encode(), "".join(changed).encode())
    assert diff.startswith(f"--- {PATH}\n+++ {PATH}\n@@ -38,7 +38,7 @@\n line_37 = 37\n")
    assert "-line_40 = 40\n+line_40 = 'other'\n" in diff
    assert len(diff.splitlines()) == 2 + 1 + 8


@pytest.mark.parametrize(
    ("before", "after", "head"),
    [
        pytest.param(None, b"a\n", f"--- /dev/null\n+++ {PATH}\n", id="new"),
        pytest.param(b"a\n", None, f"--- {PATH}\n+++ /dev/null\n", id="removed"),
    ],
)
def test_a_missing_file_is_dev_null(before: bytes | None, after: bytes | None, head: str) -> None:
    assert file_diff(PATH, before, after).startswith(head)


def test_content_without_a_difference_has_no_diff() -> None:
    assert file_diff(PATH, b'password = "a"\n', b'password = "a"\n') == ""


def test_a_missing_line_end_is_told() -> None:
    assert body(b"a", b"a\n") == ["-a", "\\ No newline at end of file", "+a"]


@pytest.mark.parametrize(
    "line",
    [
        'password = "{}"',
        "  password = '{}' # mine",
        'PASSWORD="{}"',
        'identitytoken = "{}"',
        'auth = "{}"',
        '"auth" = "{}"',
        "Authorization = ['Basic {}']",
        'registry.configs."example.org".auth.password = "{}"',
        'x = {{ auth = {{ username = "u", password = "{}" }} }}',
        'client_secret = "a\\"{}"',
        'api-key = "{}"',
        "accessKey = '{}'",
        'jaeger_password = "{}"',
        'Environment="HTTP_PASSWORD={}"',
        'endpoint = ["https://user:{}@example.org/v2"]',
        '{{"auth": "{}"}}',
        "password = {}",
    ],
)
def test_a_secret_is_masked(line: str) -> None:
    line = line.replace("{}", "hunter2").replace("{{", "{").replace("}}", "}")
    assert "masked" in shown(line)
    assert "hunter2" not in file_diff(PATH, None, f"{line}\n".encode())


@pytest.mark.parametrize(
    "line",
    [
        'username = "admin"',
        "enable_auth = true",
        "token_lifetime = 30",
        'jaeger_password = ""',
        "password = ''",
        'global_auth_file = "/etc/crio/auth.json"',
        'ca = "/etc/ca.pem"',
        'endpoint = ["https://example.org/v2"]',
        'runtime_type = "io.containerd.kata-qemu.v2"',
        'ConfigPath = "/opt/kata/share/defaults/kata-containers/configuration-qemu.toml"',
        'pod_annotations = ["io.katacontainers.*"]',
    ],
)
def test_what_is_no_secret_is_shown(line: str) -> None:
    assert shown(line) == line


def test_only_the_secret_of_a_line_is_masked() -> None:
    line = 'y = { password = "p", user = "open", token = "q" } # why'
    assert shown(line) == f'y = {{ password = {MASK}, user = "open", token = {MASK} }} # why'


def test_a_changed_secret_is_a_changed_line() -> None:
    before, after = (f'user = "u"\npassword = "{each}"\n'.encode() for each in ("old", "new"))
    assert body(before, after) == [' user = "u"', f"-password = {MASK}", f"+password = {MASK}"]


@pytest.mark.parametrize(
    "value",
    [
        pytest.param('[\n  "Basic hunter2", # ]\n  "Basic hunter3",\n]', id="array"),
        pytest.param("{\n  a = ['hunter2'],\n  b = 'hunter3' }", id="inline table"),
        pytest.param('"""\nhunter2\nhunter3"""', id="multi-line string"),
        pytest.param("'''hunter2\nhunter3\n'''", id="multi-line literal string"),
    ],
)
def test_a_secret_of_several_lines_is_masked_up_to_its_end(value: str) -> None:
    lines = body(None, f"Authorization = {value}\nnext = 'shown'\n".encode())
    assert lines[0] == f"+Authorization = {MASK}"
    assert set(lines[1:-1]) == {"+(masked)"}
    assert lines[-1] == "+next = 'shown'"
    changed = body(*(f"token = {value}\n".replace("hunter3", each).encode() for each in ("a", "b")))
    assert [line for line in changed if line[0] in "+-"] == ["-(masked)", "+(masked)"]


@pytest.mark.parametrize("line", ["auth" * 1000, "password = '" + "x" * 3000 + "'", '\\"' * 2000])
def test_a_very_long_line_is_not_shown(line: str) -> None:
    assert shown(line) == f"({len(line) + 1} characters, too long for a diff)"


def test_control_characters_are_shown_as_escapes() -> None:
    """A file on the node can have sequences that clear a terminal."""
    assert shown("a\x1b[2Jb\x07\x9b\r") == r"a\x1b[2Jb\x07\x9b\r"
    assert body(None, b"\xff\n") == [r"+\xff"]


def test_content_that_is_not_text_is_not_shown() -> None:
    assert "not text" in file_diff(PATH, b"\x7fELF\0\x01password\n", b"a\n")
    assert "ELF" not in file_diff(PATH, b"\x7fELF\0\x01\n", b"a\n")


def test_a_huge_file_is_not_compared_line_by_line() -> None:
    diff = file_diff(PATH, b"a\n" * MAX_LINES, b"b\n")
    assert f"{MAX_LINES} lines become 1" in diff
    assert len(diff.splitlines()) == 3
