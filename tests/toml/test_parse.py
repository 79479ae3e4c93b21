"""TOML of others: deep, long and random texts are parsed or refused, and an edit is exact or refused."""

from __future__ import annotations

import random
import time
import tomllib
from collections.abc import Callable

import pytest

from kata_node.errors import HostError
from kata_node.toml import edit, tables
from kata_node.toml.parse import parse

NUMBER = 100_000
OURS = "/our/*.toml"
BLOCK = b'[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata-qemu]\nruntime_type = "x"\n'
HANDLER = ("plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes", "kata-qemu")
CHANGES: tuple[Callable[[bytes], bytes], ...] = (
    lambda content: tables.add(content, BLOCK, "default", where="w", template=True),
    lambda content: tables.remove(content, "default", where="w", tables=(HANDLER,)),
    lambda content: tables.remove(content, "default", where="w", template=True),
    lambda content: tables.remove_tables(content, (HANDLER,), where="w"),
    lambda content: tables.remove_tables(content, (HANDLER,), where="w", template=True),
)

UNUSABLE = [
    pytest.param("a = " + "[" * NUMBER, "100 levels", id="open-brackets"),
    pytest.param("a = " + "[" * NUMBER + "]" * NUMBER, "100 levels", id="brackets"),
    pytest.param("a = " + "{a = " * NUMBER, "100 levels", id="braces"),
    pytest.param("[" + ".".join(["a"] * 900) + "]", "100 levels", id="header"),
    pytest.param(".".join(["a"] * NUMBER) + " = 1", "1000 parts", id="dotted-key"),
    pytest.param("[" + ".".join(["a"] * NUMBER) + "]", "1000 parts", id="dotted-header"),
    pytest.param('"a" . ' * NUMBER + "a = 1", "1000 parts", id="quoted-key"),
    pytest.param("a = " + "9" * NUMBER, "64 bits", id="digits"),
    pytest.param("a = 0x" + "f" * NUMBER, "64 bits", id="hexadecimal-digits"),
    pytest.param(f"a = [{{b = [{2**63}]}}]", "64 bits", id="inner-number"),
]


@pytest.mark.parametrize(("text", "problem"), UNUSABLE)
def test_a_text_that_no_runtime_can_read_is_refused_quickly(text: str, problem: str) -> None:
    began = time.process_time()
    with pytest.raises(tomllib.TOMLDecodeError, match=problem):
        parse(text)
    assert time.process_time() - began < 10  # without the limit a dotted key takes minutes


@pytest.mark.parametrize(("text", "problem"), UNUSABLE)
def test_a_file_that_no_runtime_can_read_ends_with_exit_code_3(text: str, problem: str) -> None:
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: edit.add(text.encode(), "imports", OURS, where="/main"),
        lambda: tables.add(text.encode(), BLOCK, "default", where="/main"),
    )
    for change in changes:
        with pytest.raises(HostError, match=problem) as caught:
            change()
        assert (caught.value.exit_code, caught.value.where) == (3, "/main")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a = " + "[" * 99 + "]" * 99, id="deep"),
        pytest.param(f"a = [{2**63 - 1}, {-(2**63)}]", id="large"),
        pytest.param('a = "' + "x." * 900 + '"', id="dots-in-a-string"),
        pytest.param("\n".join(f"a{number}.b = 'c.d.e'" for number in range(2000)), id="many-dots"),
        pytest.param("\n".join(["[[a]]"] * 5000), id="many-tables"),
    ],
)
def test_a_text_within_the_limits_is_parsed(text: str) -> None:
    assert parse(text) == tomllib.loads(text)


LINES = (
    *("version = 3\n", 'imports = ["/a"]\n', 'imports = [\n  "/a", # c\n  "/b"\n]\n', "imports = []\n"),
    *("imports = 3\n", "imports.x = 1\n", "imports = {}\n", 'Imports = ["/c"]\n', "[imports]\n", "\r\n"),
    *("[plugins]\n", "plugins = {}\n", "plugins = []\n", "plugins = 3\n", "plugins = {a = {b = 1}}\n"),
    *('[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]\na = 1\n', "d = 1979-05-27\n"),
    *(
        '[plugins."io.containerd.cri.v1.runtime".containerd]\nruntimes = []\n',
        "[[x]]\ny = [{a = 1}, {b = []}]\n",
    ),
    *('a = """\nimports = ["x"]\n"""\n', "f = inf\n", "n = nan\n", "# c\n", "x.'y.z'.w = {q = {}}\n"),
    *("# >>> kata-node default: managed, changes down to <<< are lost\n", "# <<< kata-node default\n"),
    *(
        '# in inline tables above: [["plugins"]]\n',
        "# in inline tables above: [1\n",
        '{{ template "base" . }}\n',
    ),
)
PIECES = ("\0", "\udcff", "é", "\ufeff", '"', "'", '"""', "[", "]", "{", "}", "=", ",", "#", "\\", "\n", "\r")


def random_file(chance: random.Random) -> bytes:
    text = "".join(chance.choice(LINES) for _ in range(chance.randrange(10)))
    if chance.random() < 0.3:
        at = chance.randrange(len(text) + 1)
        text = text[:at] + chance.choice(PIECES) + text[at:]
    return text.encode(errors="surrogateescape")


def test_any_file_is_edited_and_restored_exactly_or_refused() -> None:
    chance = random.Random(12)
    edited = refused = 0
    for _ in range(1500):
        content = random_file(chance)
        try:
            added = edit.add(content, "imports", OURS, after="version", where="w")
            assert edit.remove(added, "imports", OURS, where="w") == content
            edited += 1
        except HostError:
            refused += 1
        try:
            added = tables.add(content, BLOCK, "default", where="w")
            assert tables.has_both_markers(content, "default", where="w") or (
                tables.remove(added, "default", where="w") == content
            )
            edited += 1
        except HostError:
            refused += 1
        for change in CHANGES:
            try:
                assert isinstance(change(content), bytes)
            except HostError:
                refused += 1
    assert edited > 100
    assert refused > 100


@pytest.mark.parametrize("note", ["[1", "[1]", "[" * 5000], ids=["open", "no-path", "deep"])
def test_a_comment_about_inline_tables_that_was_edited_by_hand_removes_no_key(note: str) -> None:
    text = (
        "# >>> kata-node default: managed, changes down to <<< are lost\n"
        f"# in inline tables above: {note}\n# <<< kata-node default\n"
    )
    assert tables.remove(f"plugins = {{}}\n{text}".encode(), "default", where="w") == b"plugins = {}\n"
