"""Adding a string to an array in the runtime's main file, and removing it without a trace."""

from __future__ import annotations

import random
import tomllib

import pytest

from kata_node.errors import HostError
from kata_node.toml import edit as toml_edit

ENTRY = "/opt/kata/containerd/config.d/*.toml"
QUOTED = f'"{ENTRY}"'
LINE = f"imports = [{QUOTED}] # added by kata-node"
WHERE = "/etc/containerd/config.toml"


def add(text: str, entry: str = ENTRY) -> str:
    return toml_edit.add(text.encode(), "imports", entry, after="version", where=WHERE).decode()


def remove(text: str, entry: str = ENTRY) -> str:
    return toml_edit.remove(text.encode(), "imports", entry, where=WHERE).decode()


DEBIAN = """\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
"""

# Each file before and after one string is added.
FILES = [
    pytest.param(DEBIAN, DEBIAN.replace("2\n", f"2\n{LINE}\n", 1), id="as Debian ships it"),
    pytest.param("", f"{LINE}\n", id="empty"),
    pytest.param("\n\n", f"{LINE}\n\n\n", id="only blank lines"),
    pytest.param("# nothing here", f"{LINE}\n# nothing here", id="only a comment, no line end"),
    pytest.param("# a\n# b\n", f"{LINE}\n# a\n# b\n", id="only comments"),
    pytest.param("version = 3", f"version = 3\n{LINE}", id="version alone, no line end"),
    pytest.param("version = 3 # why\n", f"version = 3 # why\n{LINE}\n", id="version with a comment"),
    pytest.param(
        "root = '/x'\nversion = 3\nstate = '/y'\n",
        f"root = '/x'\nversion = 3\n{LINE}\nstate = '/y'\n",
        id="version in the middle",
    ),
    pytest.param("Version = 3\n[debug]\n", f"Version = 3\n{LINE}\n[debug]\n", id="Version in another case"),
    pytest.param("[debug]\nlevel = 'x'\n", f"{LINE}\n[debug]\nlevel = 'x'\n", id="begins with a table"),
    pytest.param("[[a]]\n[[a]]\n", f"{LINE}\n[[a]]\n[[a]]\n", id="begins with an array of tables"),
    pytest.param(
        "version = 2\r\n[debug]\r\n", f"version = 2\r\n{LINE}\r\n[debug]\r\n", id="carriage returns, no key"
    ),
    pytest.param(
        "root = '/x'\r\nversion = 2", f"root = '/x'\r\nversion = 2\r\n{LINE}", id="carriage returns, no end"
    ),
    pytest.param("imports = []\n", f"imports = [{QUOTED}]\n", id="empty array"),
    pytest.param("imports = [ ]", f"imports = [{QUOTED} ]", id="empty array with a blank"),
    pytest.param("imports=[\n]\n", f"imports=[{QUOTED}\n]\n", id="empty array on two lines"),
    pytest.param(
        "imports = [ # none yet\n  # really\n]\n",
        f"imports = [{QUOTED} # none yet\n  # really\n]\n",
        id="empty array with comments",
    ),
    pytest.param('imports = ["/a"]\n', f'imports = ["/a", {QUOTED}]\n', id="one line"),
    pytest.param('imports = ["/a",]\n', f'imports = ["/a", {QUOTED},]\n', id="one line, trailing comma"),
    pytest.param('imports = [ "/a" , ]', f'imports = [ "/a" , {QUOTED}, ]', id="one line, many blanks"),
    pytest.param("imports = ['/a', '''/b''']", f"imports = ['/a', '''/b''', {QUOTED}]", id="single quotes"),
    pytest.param('imports = ["/a#b]", "/c\\"]"]', f'imports = ["/a#b]", "/c\\"]", {QUOTED}]', id="odd names"),
    pytest.param(
        'imports = [\n  "/a",\n  "/b",\n]\n', f'imports = [\n  "/a",\n  "/b",\n  {QUOTED},\n]\n', id="lines"
    ),
    pytest.param(
        'imports = [\n\t"/a",\n\t"/b"\n]\n',
        f'imports = [\n\t"/a",\n\t"/b",\n\t{QUOTED}\n]\n',
        id="lines, no trailing comma, tabs",
    ),
    pytest.param(
        'imports = [\n  "/a", # the first\n  "/b", # the second\n  # the end\n]\n',
        f'imports = [\n  "/a", # the first\n  "/b", # the second\n  {QUOTED},\n  # the end\n]\n',
        id="lines with comments",
    ),
    pytest.param(
        'imports = [\n  "/a",\n  "/b" # the second\n]\n',
        f'imports = [\n  "/a",\n  {QUOTED},\n  "/b" # the second\n]\n',
        id="lines with comments, no trailing comma",
    ),
    pytest.param(
        'imports = [\n  "/a" # only\n]\n',
        f'imports = [\n  {QUOTED},\n  "/a" # only\n]\n',
        id="one, commented",
    ),
    pytest.param(
        'imports = [ "/a",  "/b" # last\n]\n',
        f'imports = [ "/a",  {QUOTED},  "/b" # last\n]\n',
        id="one line, comment before the bracket",
    ),
    pytest.param(
        'imports = [  "/a" # only\n]\n',
        f'imports = [  {QUOTED},  "/a" # only\n]\n',
        id="one entry, comment before the bracket",
    ),
    pytest.param(
        'imports = ["/a",\n  "/b", "/c",\n]\n',
        f'imports = ["/a",\n  "/b", "/c",\n  {QUOTED},\n]\n',
        id="several on a line",
    ),
    pytest.param(
        'imports = ["/a",\n]\n', f'imports = ["/a",\n  {QUOTED},\n]\n', id="the bracket on the next line"
    ),
    pytest.param(
        'imports = ["/a"\n  , "/b"\n  , ]\n',
        f'imports = ["/a"\n  , "/b"\n  , {QUOTED}, ]\n',
        id="commas first",
    ),
    pytest.param(
        'version = 2\r\nimports = [\r\n  "/a",\r\n]\r\n',
        f'version = 2\r\nimports = [\r\n  "/a",\r\n  {QUOTED},\r\n]\r\n',
        id="carriage returns",
    ),
    pytest.param(
        '# unix\nimports = [\r\n  "/a" # x\r\n]\r\n',
        f'# unix\nimports = [\r\n  {QUOTED},\r\n  "/a" # x\r\n]\r\n',
        id="line ends of both kinds",
    ),
    pytest.param('"imports" = ["/a"]', f'"imports" = ["/a", {QUOTED}]', id="quoted key"),
    pytest.param("Imports = ['/a']\n", f"Imports = ['/a', {QUOTED}]\n", id="Imports in another case"),
    pytest.param(
        'a = """\nimports = ["no"]\n[t]\n"""\nimports = ["/a"]\n',
        f'a = """\nimports = ["no"]\n[t]\n"""\nimports = ["/a", {QUOTED}]\n',
        id="a look-alike in a multi-line string",
    ),
    pytest.param(
        'a = \'\'\'\n\\\'\'\'\nb = """x\\""""""\nimports = []\n',
        f'a = \'\'\'\n\\\'\'\'\nb = """x\\""""""\nimports = [{QUOTED}]\n',
        id="quotes at the end of multi-line strings",
    ),
    pytest.param(
        'a = ["""x"""", "]["]\nb = [\'\'\'y\'\'\'\', \'][\']\nimports = ["/a"]\n',
        f'a = ["""x"""", "]["]\nb = [\'\'\'y\'\'\'\', \'][\']\nimports = ["/a", {QUOTED}]\n',
        id="one quote more at the end of a multi-line string",
    ),
    pytest.param(
        "# imports = ['no']\nversion = 2 # imports = []\n",
        f"# imports = ['no']\nversion = 2 # imports = []\n{LINE}\n",
        id="look-alikes in comments",
    ),
    pytest.param(
        "version = 2\n[other]\nimports = ['no']\n",
        f"version = 2\n{LINE}\n[other]\nimports = ['no']\n",
        id="imports of another table",
    ),
    pytest.param(
        "a = {version = 1, imports = ['no']}\nb.imports = []\nb.version = 9\n",
        f"{LINE}\na = {{version = 1, imports = ['no']}}\nb.imports = []\nb.version = 9\n",
        id="imports in an inline table and behind a dot",
    ),
    pytest.param(
        "a = [[1, 2], [\n[3]\n]]\nimports = ['/a']\nd = 1979-05-27 07:32:00\n",
        f"a = [[1, 2], [\n[3]\n]]\nimports = ['/a', {QUOTED}]\nd = 1979-05-27 07:32:00\n",
        id="arrays of arrays before it",
    ),
    pytest.param(
        "root = '/ü'\nimports = ['/ö']\n", f"root = '/ü'\nimports = ['/ö', {QUOTED}]\n", id="letters"
    ),
]


@pytest.mark.parametrize(("before", "after"), FILES)
def test_adding_a_string_changes_nothing_else(before: str, after: str) -> None:
    assert add(before) == after
    expected = tomllib.loads(before)
    name = next((key for key in expected if key.lower() == "imports"), "imports")
    found = tomllib.loads(after)
    assert sorted(found.pop(name)) == sorted([*expected.pop(name, []), ENTRY])
    assert found == expected


@pytest.mark.parametrize(("before", "after"), FILES)
def test_removing_the_string_gives_back_the_same_bytes(before: str, after: str) -> None:
    assert remove(after) == before


@pytest.mark.parametrize(("before", "after"), FILES)
def test_adding_twice_or_removing_a_missing_string_changes_nothing(before: str, after: str) -> None:
    assert add(after) == after
    assert remove(before) == before


@pytest.mark.parametrize(("before", "after"), FILES)
@pytest.mark.parametrize("first_out", [0, 1])
def test_two_installations_can_be_removed_in_any_order(before: str, after: str, first_out: int) -> None:
    entries = [ENTRY, "/opt/kata-two/containerd/config.d/*.toml"]
    both = add(after, entries[1])
    assert remove(both, entries[1]) == after
    left = remove(both, entries[first_out])
    assert remove(left, entries[1 - first_out]) == before


def test_generated_arrays_of_every_style_survive_the_round_trip() -> None:
    dice = random.Random(7)

    def gap() -> str:
        return dice.choice(["", "", " ", "  ", "\n", "\n  ", " # note, [x] \"y'\n  ", "\n\t# 'a',\n"])

    for _ in range(3000):
        items = [
            dice.choice(['"/a"', "'/b'", "'''/c\n'''", '"/d\\""', '"""/e"""'])
            for _ in range(dice.randrange(4))
        ]
        array = ",".join(gap() + item + gap() for item in items)
        if items and dice.random() < 0.5:
            array += "," + gap()
        end = dice.choice(["", "\n", " # end\n[t]\n"])
        text = f"{gap().lstrip(' ')}imports = [{array or gap()}]{end}"
        if dice.random() < 0.3:
            text = text.replace("\n", "\r\n")
        assert remove(add(text)) == text, text


@pytest.mark.parametrize(
    ("edited", "after"),
    [
        pytest.param(f"imports = [{QUOTED},]\n", "imports = []\n", id="trailing comma"),
        pytest.param(
            f"imports = [\n  '{ENTRY}',\n  '/b',\n]\n", "imports = [\n  '/b',\n]\n", id="requoted, first"
        ),
        pytest.param(f"imports = [{QUOTED}, '/b']\n", "imports = ['/b']\n", id="moved to the front"),
        pytest.param(f"imports = ['/a', {QUOTED}, '/b']\n", "imports = ['/a', '/b']\n", id="in the middle"),
        pytest.param(f"imports = [{QUOTED}, '/b', {QUOTED}]\n", "imports = ['/b']\n", id="there twice"),
        pytest.param(
            f"{LINE}, edited since\n",
            "imports = [] # added by kata-node, edited since\n",
            id="our line edited",
        ),
        pytest.param(
            f"imports = [\n  '/a', # mine\n  {QUOTED}\n]\n",
            "imports = [\n  '/a', # mine\n]\n",
            id="a comment before it stays",
        ),
        pytest.param(
            f"imports = [\n  '/a',\n  {QUOTED}, # kata\n  '/b',\n]\n",
            "imports = [\n  '/a',\n # kata\n  '/b',\n]\n",
            id="a comment behind it stays",
        ),
        pytest.param(
            "imports = [\n  '/a', \"/opt/kata/containerd/config.d/\\u002A.toml\",\n]\n",
            "imports = [\n  '/a',\n]\n",
            id="written with an escape",
        ),
        pytest.param(LINE, "", id="our line alone, its end cut off"),
    ],
)
def test_only_our_string_is_removed_from_a_file_that_was_edited(edited: str, after: str) -> None:
    assert remove(edited) == after


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(b"version = 2\nimports = = 1\n", "line 2", id="broken"),
        pytest.param(b"version = 2\n\xff\n", "line 2 is not UTF-8", id="not UTF-8"),
        pytest.param(b"\xef\xbb\xbfversion = 2\n", "byte order mark", id="byte order mark"),
        pytest.param(b"imports = '/a'\n", "imports is not an array of strings", id="a string"),
        pytest.param(b"imports = [1]\n", "imports is not an array of strings", id="numbers"),
        pytest.param(b"[[imports]]\na = 1\n", "imports is not an array of strings", id="tables"),
        pytest.param(b"imports.a = 1\n", "imports is not an array of strings", id="a table"),
        pytest.param(
            b"imports = []\nImports = []\n", "imports and Imports are the same key", id="two spellings"
        ),
    ],
)
def test_a_file_that_containerd_cannot_read_is_an_error_that_names_it(content: bytes, reason: str) -> None:
    for edit in (toml_edit.add, toml_edit.remove):
        with pytest.raises(HostError, match=reason) as caught:
            edit(content, "imports", ENTRY, where=WHERE)
        assert caught.value.where == WHERE
        assert caught.value.hint


def test_an_array_that_cannot_be_found_asks_for_an_edit_by_hand() -> None:
    text = '"\\u0069mports" = ["/a"]\n'
    with pytest.raises(HostError) as caught:
        add(text)
    assert caught.value.hint == f"add {QUOTED} to imports by hand, then run again"


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        pytest.param("_append", (0, "x = 1\n"), id="something else is inserted"),
        pytest.param("_append", (0, "x ="), id="the file is broken"),
        pytest.param("_append", (21, ", '/b'"), id="another entry is inserted"),
        pytest.param("_span_to_cut", (12, 20), id="it could not be taken out again"),
    ],
)
def test_a_wrong_edit_is_detected_and_not_returned(
    monkeypatch: pytest.MonkeyPatch, part: str, wrong: tuple[int, object]
) -> None:
    monkeypatch.setattr(toml_edit, part, lambda *_: wrong)
    with pytest.raises(HostError, match="cannot be edited safely") as caught:
        add("imports = [ '/a' , '/b']\n")
    assert caught.value.hint == f"add {QUOTED} to imports by hand, then run again"
    monkeypatch.setattr(toml_edit, "_span_to_cut", lambda *_: (0, 1))
    with pytest.raises(HostError, match="cannot be edited safely") as caught:
        remove(f"imports = ['/a', {QUOTED}]\n")
    assert caught.value.hint == f"remove {QUOTED} from imports by hand, then run again"


def test_a_file_of_a_megabyte_is_edited() -> None:
    top = "".join(f"# remark {number}\nkey-{number} = ['a', \"b\"]\n" for number in range(17_000))
    text = f"{top}imports = ['/a']\n" + "".join(
        f"[t{number}]\nimports = ['no']\n" for number in range(17_000)
    )
    assert len(text) > 1_000_000
    edited = add(text)
    assert edited == text.replace("imports = ['/a']", f"imports = ['/a', {QUOTED}]")
    assert remove(edited) == text


@pytest.mark.parametrize("text", ["/plain", 'quo"te', "back\\slash", "tab\tnew\nline", "\x7f\x01", "ü€😀"])
def test_a_quoted_string_reads_back_unchanged(text: str) -> None:
    assert tomllib.loads(f"x = {toml_edit.quote(text)}") == {"x": text}
