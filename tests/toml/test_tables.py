"""Adding our tables to a foreign file as one managed block, and removing them without a trace."""

from __future__ import annotations

import random
import tomllib
from typing import Any

import pytest

from kata_node.errors import HostError
from kata_node.toml import tables as toml_tables
from kata_node.toml.cut import KeyPath

WHERE = "/etc/containerd/config.toml"
CRI = 'plugins."io.containerd.grpc.v1.cri"'
KATA = ("plugins", "io.containerd.grpc.v1.cri", "containerd", "runtimes", "kata-qemu")
RUNC = (*KATA[:-1], "runc")

BLOCK = f"""\
[{CRI}.containerd.runtimes.kata-qemu]
runtime_type = "io.containerd.kata-qemu.v2"
pod_annotations = ["io.katacontainers.*"]

[{CRI}.containerd.runtimes.kata-qemu.options]
ConfigPath = "/opt/kata/qemu.toml"
"""
HANDLER = {
    "runtime_type": "io.containerd.kata-qemu.v2",
    "pod_annotations": ["io.katacontainers.*"],
    "options": {"ConfigPath": "/opt/kata/qemu.toml"},
}
BEGIN = "# >>> kata-node default: managed, changes down to <<< are lost"
END = "# <<< kata-node default"
MARKED = f"{BEGIN}\n{BLOCK}{END}\n"

DEBIAN = """\
version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
"""


def add(text: str, block: str = BLOCK, name: str = "default", *, template: bool = False) -> str:
    return toml_tables.add(text.encode(), block.encode(), name, where=WHERE, template=template).decode()


def remove(
    text: str, *tables: KeyPath, name: str = "default", template: bool = False, where: str = WHERE
) -> str:
    return toml_tables.remove(text.encode(), name, where=where, template=template, tables=tables).decode()


def runtimes(text: str) -> Any:
    found: Any = tomllib.loads(text)
    for key in KATA[:-1]:
        found = found[key]
    return found


# --- files that get a block at their end ------------------------------------------------------------

APPENDABLE = [
    pytest.param(DEBIAN, id="as Debian ships it"),
    pytest.param("", id="empty"),
    pytest.param("\n", id="a blank line"),
    pytest.param("# only a comment", id="a comment without a line end"),
    pytest.param("version = 2", id="no line end"),
    pytest.param("version = 2\n\n\n", id="blank lines at the end"),
    pytest.param("version = 2\n[debug]\nlevel = 'x'\n   ", id="blanks at the end"),
    pytest.param(DEBIAN.replace("\n", "\r\n"), id="carriage returns"),
    pytest.param(DEBIAN.replace("\n", "\r\n").rstrip(), id="carriage returns, no line end"),
    pytest.param("version = 2\r\n[debug]\nlevel = 'x'\n", id="line ends of both kinds"),
    pytest.param(f"[{CRI}.containerd.runtimes]\nrunc = {{ runtime_type = 'x' }}\n", id="an inline sibling"),
    pytest.param(f"[{CRI}]\ncontainerd.snapshotter = 'native'\n", id="dotted below the plugin"),
    pytest.param(f"[{CRI}]\ncontainerd.runtimes.runc.runtime_type = 'x'\n", id="dotted down to a sibling"),
    pytest.param(f"{CRI}.containerd.snapshotter = 'native'\n", id="dotted from the top"),
    pytest.param(f"[ plugins . {CRI.partition('.')[2]} . containerd ]\nx = 1\n", id="blanks in a header"),
    pytest.param("[plugins.'io.containerd.grpc.v1.cri']\nx = 1\n", id="single quotes"),
    pytest.param(f"[{CRI}.containerd.runtimes.runc]\n[debug]\n[plugins]\n", id="out of order"),
    pytest.param("[[plugins_too]]\n[[plugins_too]]\n", id="an array of tables last"),
    pytest.param(f"x = '''\n{BEGIN.replace('default', 'd')}\n{END}x\n'''\n", id="almost markers in a string"),
    pytest.param("# >>> kata-node other: x\n[a]\n# <<< kata-node other\n", id="the block of another"),
    pytest.param("x = '\N{SNOWMAN}\N{LINE SEPARATOR}'\n", id="separators that end no line"),
]


@pytest.mark.parametrize("text", APPENDABLE)
def test_a_block_is_added_at_the_end_and_removed_byte_for_byte(text: str) -> None:
    edited = add(text)
    assert edited.startswith(text)
    assert runtimes(edited)["kata-qemu"] == HANDLER
    assert remove(edited) == text


@pytest.mark.parametrize("text", APPENDABLE)
def test_adding_again_changes_nothing(text: str) -> None:
    assert add(add(text)) == add(text)


def test_the_markers_name_the_installation() -> None:
    assert add(DEBIAN) == DEBIAN + MARKED


def test_the_block_uses_the_line_breaks_of_the_file() -> None:
    edited = add(DEBIAN.replace("\n", "\r\n"))
    assert edited == (DEBIAN + MARKED).replace("\n", "\r\n")


def test_a_missing_line_break_is_restored_when_the_block_is_removed() -> None:
    edited = add("version = 2")
    assert "(the line above had no end)" in edited
    assert remove(edited) == "version = 2"
    assert remove(add(edited, BLOCK.replace("qemu", "clh"))) == "version = 2"


@pytest.mark.parametrize("first", ["default", "blue"])
@pytest.mark.parametrize("template", [False, True])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_missing_line_break_is_restored_when_the_last_of_two_blocks_is_removed(
    first: str, template: bool, line_end: str
) -> None:
    text = f"a = 1{line_end}b = 2"
    both = add(text, template=template)
    both = add(both, BLOCK.replace("kata-qemu", "kata-qemu-blue"), "blue", template=template)
    left = remove(both, name=first, template=template)
    other = "blue" if first == "default" else "default"
    assert toml_tables.has_marker(left.encode(), other)
    assert remove(left, name=other, template=template) == text


def test_the_line_break_stays_when_text_was_added_below() -> None:
    assert remove(add("version = 2") + "[debug]\n") == "version = 2\n[debug]\n"


# --- edits by other programs and people -------------------------------------------------------------


def test_only_the_block_is_removed_from_a_file_that_was_edited() -> None:
    edited = "# on top\n" + add(DEBIAN).replace("/usr/lib/cni", "/opt/cni") + "[debug]\nlevel = 'debug'\n"
    expected = "# on top\n" + DEBIAN.replace("/usr/lib/cni", "/opt/cni") + "[debug]\nlevel = 'debug'\n"
    assert remove(edited) == expected


def test_a_changed_block_is_replaced_in_its_place() -> None:
    edited = add(DEBIAN) + "[debug]\nlevel = 'debug'\n"
    other = BLOCK.replace("qemu", "clh")
    assert add(edited, other) == DEBIAN + f"{BEGIN}\n{other}{END}\n" + "[debug]\nlevel = 'debug'\n"


def test_a_key_below_the_block_does_not_move_to_another_table() -> None:
    edited = add(DEBIAN) + 'stray = "belongs to our last table"\n'
    with pytest.raises(HostError, match="cannot be added or removed safely"):
        remove(edited)
    with pytest.raises(HostError, match="cannot be added or removed safely"):
        add(edited)


def test_changes_inside_the_block_are_removed_with_it() -> None:
    assert remove(add(DEBIAN).replace("runtime_type", "extra = 1\nruntime_type")) == DEBIAN


def test_shortened_marker_lines_are_recognized() -> None:
    edited = add(DEBIAN).replace(BEGIN, "# >>> kata-node default").removesuffix("\n")
    assert remove(edited) == DEBIAN


def test_two_installations_do_not_affect_each_others_block() -> None:
    one, two = BLOCK, BLOCK.replace("kata-qemu", "kata-qemu-two")
    both = add(add(DEBIAN, one, "two"), two, "two-b")
    assert remove(both, name="two") == add(DEBIAN, two, "two-b")
    assert remove(both, name="two-b") == add(DEBIAN, one, "two")


def test_a_file_without_our_entry_does_not_change_even_if_it_is_not_toml() -> None:
    assert remove("[broken") == "[broken"
    assert remove(DEBIAN, KATA) == DEBIAN


REWRITTEN = f"""\
version = 2

[plugins]

  [{CRI}]
    sandbox_image = "x"

    [{CRI}.containerd]
      default_runtime_name = "nvidia"

      [{CRI}.containerd.runtimes]

        [{CRI}.containerd.runtimes.kata-qemu]
          runtime_type = "io.containerd.kata-qemu.v2"

          [{CRI}.containerd.runtimes.kata-qemu.options]
            ConfigPath = "/opt/kata/qemu.toml"

        [{CRI}.containerd.runtimes.nvidia]
          runtime_type = "io.containerd.runc.v2"

  [plugins."io.containerd.internal.v1.opt"]
    path = "/x"
"""


def test_tables_without_markers_are_removed() -> None:
    left = remove(REWRITTEN, KATA, RUNC)
    start = REWRITTEN.index(f"        [{CRI}.containerd.runtimes.kata-qemu]")
    end = REWRITTEN.index(f"        [{CRI}.containerd.runtimes.nvidia]")
    assert left == REWRITTEN[:start] + REWRITTEN[end:]


def test_an_empty_table_of_runtimes_is_removed_because_it_would_hide_runc() -> None:
    start = REWRITTEN.index(f"        [{CRI}.containerd.runtimes.nvidia]")
    left = tomllib.loads(remove(REWRITTEN[:start], KATA))
    assert left["plugins"]["io.containerd.grpc.v1.cri"] == {
        "sandbox_image": "x",
        "containerd": {"default_runtime_name": "nvidia"},
    }


@pytest.mark.parametrize("lost", [BEGIN, END])
def test_tables_with_one_marker_are_removed_with_it(lost: str) -> None:
    edited = add(DEBIAN).replace(lost + "\n", "")
    assert remove(edited, KATA) == DEBIAN
    assert toml_tables.has_marker(edited.encode(), "default")
    with pytest.raises(HostError, match="cannot be added or removed safely"):
        remove(edited)
    with pytest.raises(HostError, match="cannot be added or removed safely"):
        add(edited)


def test_tables_that_became_inline_are_removed() -> None:
    ours = "kata-qemu = { runtime_type = 'a' }"
    left = remove(f"[{CRI}.containerd]\nruntimes = {{ runc = {{ x = 1 }}, {ours} }} # c\n", KATA)
    assert runtimes(left) == {"runc": {"x": 1}}
    assert left.endswith("} # c\n")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(MARKED * 2, id="two blocks"),
        pytest.param(f"{END}\n{BEGIN}\n", id="upside down"),
        pytest.param(f"{BEGIN}\n{BEGIN}\n{END}\n", id="opened twice"),
    ],
)
def test_duplicated_or_swapped_markers_are_an_error(text: str) -> None:
    for act in (add, remove):
        with pytest.raises(HostError, match="duplicated or in the wrong order") as caught:
            act(text)
        assert caught.value.where == WHERE
        assert BEGIN in caught.value.hint


# --- inline tables, which TOML does not allow to extend ---------------------------------------------

INLINE = [
    pytest.param("version = 2\nplugins = {} # none\n", id="plugins"),
    pytest.param("plugins = { }\n", id="plugins, with a blank"),
    pytest.param("plugins = {}", id="plugins, no line end"),
    pytest.param(
        "[plugins]\n'io.containerd.grpc.v1.cri' = { sandbox_image = 'x' } # why\n# end\n[debug]\n", id="CRI"
    ),
    pytest.param(f"[{CRI}]\ncontainerd = {{ snapshotter = 'native' }}\n", id="containerd"),
    pytest.param(
        f"# c\r\n[{CRI}.containerd]\r\nruntimes = {{ runc = {{ runtime_type = 'x' }} }}\r\n\r\n",
        id="runtimes",
    ),
    pytest.param(f"[{CRI}.containerd]\nruntimes = {{ }}\n", id="no runtimes"),
]


@pytest.mark.parametrize("text", INLINE)
def test_tables_are_added_to_an_inline_table_and_removed_again(text: str) -> None:
    edited = add(text)
    assert runtimes(edited)["kata-qemu"] == HANDLER
    assert remove(edited) == text
    assert toml_tables.has_marker(edited.encode(), "default")


@pytest.mark.parametrize("text", INLINE)
def test_adding_again_to_an_inline_table_changes_nothing(text: str) -> None:
    assert add(add(text)) == add(text)
    other = add(add(text), BLOCK.replace("qemu", "clh"))
    assert set(runtimes(other)) == {"kata-clh", *runtimes(other)} - {"kata-qemu"}
    assert remove(other) == text


def test_comments_stay_when_tables_are_added_to_an_inline_table() -> None:
    assert "# why\n# end\n[debug]\n" in add("[plugins]\nx = {}\n[a]\ny=1 # why\n# end\n[debug]\n")


def test_foreign_keys_in_an_inline_table_stay() -> None:
    edited = add("plugins = {}\n").replace("runtimes = {", "runtimes = {runc = {runtime_type = 'x'}, ")
    assert runtimes(remove(edited)) == {"runc": {"runtime_type": "x"}}


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "what"),
    [
        pytest.param("[broken", "not valid TOML", id="broken"),
        pytest.param("plugins = 3\n", "cannot be added or removed safely", id="not a table"),
        pytest.param("[[plugins]]\n", "cannot be added or removed safely", id="an array of tables"),
        pytest.param("\ufeffversion = 2\n", "byte order mark", id="a byte order mark"),
        pytest.param(
            f"[{'.'.join(CRI.split('.', 1))}.containerd.runtimes.kata-qemu]\n",
            "the file already has a table",
            id="own",
        ),
        pytest.param(
            f"[{CRI}.containerd.runtimes.kata-qemu.options]\nx = 1\n",
            "the file already has a table",
            id="own options",
        ),
    ],
)
def test_a_file_that_cannot_be_edited_is_an_error_with_a_hint(text: str, what: str) -> None:
    with pytest.raises(HostError, match=what) as caught:
        add(text)
    assert caught.value.where == WHERE
    assert caught.value.hint


def test_a_wrong_edit_is_detected_and_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(document: Any, *_: object) -> str:
        return "version = 2\n"

    monkeypatch.setattr("tomlkit.TOMLDocument.as_string", careless)
    with pytest.raises(HostError, match="cannot be added or removed safely"):
        add("plugins = {}\n")
    monkeypatch.setattr("kata_node.toml.cut.cut", careless)
    with pytest.raises(HostError, match="cannot be added or removed safely"):
        remove(REWRITTEN, KATA)


def test_a_file_of_a_megabyte_is_edited() -> None:
    text = "version = 2\n" + "".join(
        f"[plugins.'io.containerd.x.v{n}']\n# {'x' * 60}\n" for n in range(11_000)
    )
    assert len(text) > 1 << 20
    assert remove(add(text)) == text


# --- templates --------------------------------------------------------------------------------------

TEMPLATE = """\
{{ template "base" . }}
{{- if .IsRunningInUserNS }}
[broken
{{- end }}
"""


@pytest.mark.parametrize("text", [TEMPLATE, TEMPLATE.rstrip(), TEMPLATE.replace("\n", "\r\n"), ""])
def test_a_template_is_not_parsed(text: str) -> None:
    edited = add(text, template=True)
    assert edited.startswith(text)
    assert remove(edited, template=True) == text
    assert add(edited, template=True) == edited


def test_a_template_with_invalid_utf_8_is_restored() -> None:
    odd = b"# caf\xe9 {{ . }}\n"
    edited = toml_tables.add(odd, BLOCK.encode(), "default", where=WHERE, template=True)
    assert toml_tables.remove(edited, "default", where=WHERE, template=True) == odd


def test_a_template_with_one_marker_is_an_error() -> None:
    edited = add(TEMPLATE, template=True).replace(END, "")
    for tables in ((), (KATA,)):
        with pytest.raises(HostError, match="cannot be added or removed safely"):
            remove(edited, *tables, template=True)
    assert remove(TEMPLATE, KATA, template=True) == TEMPLATE


# --- other functions --------------------------------------------------------------------------------


def test_table_paths_are_those_of_the_handlers() -> None:
    block = f"{BLOCK}[{CRI}.containerd.runtimes.runc]\nruntime_type = 'x'\n[empty.one]\n"
    assert toml_tables.table_paths(block.encode()) == (KATA, RUNC, ("empty", "one"))


def test_has_marker_distinguishes_installations() -> None:
    edited = add(DEBIAN, name="two-b").encode()
    assert toml_tables.has_marker(edited, "two-b")
    assert not toml_tables.has_marker(edited, "two")
    assert not toml_tables.has_marker(DEBIAN.encode(), "two-b")


def test_a_key_path_is_quoted_where_necessary() -> None:
    assert toml_tables.dotted_key(KATA) == f"{CRI}.containerd.runtimes.kata-qemu"
    assert tomllib.loads(f"[{toml_tables.dotted_key(('a b', 'c'))}]") == {"a b": {"c": {}}}


PIECES = (
    "version = 2\n",
    "# a comment\n",
    "   \n",
    f"[{CRI}]\nsandbox_image = 'x'\n",
    "[debug]\nlevel = 'x'\n",
    f"[{CRI}.containerd]\nsnapshotter = 'native'\n",
    f"[{CRI}.containerd.runtimes.runc]\nx = '''\n[a]\n'''\n",
    "[[streams]]\na = [\n  [1], # ]\n]\n",
    f"# {END}\n",
    f"[{CRI}.registry.configs]\n",
)


def test_random_files_get_their_bytes_back() -> None:
    choice = random.Random(20)
    done = 0
    for _ in range(400):
        pieces = choice.sample(PIECES, choice.randrange(len(PIECES)))
        text = choice.choice(["", "\n", "# x\n"]) + "".join(
            sorted(pieces, key=lambda piece: "version" not in piece)
        )
        text = text.replace("\n", choice.choice(["\n", "\r\n"]))
        text = text.rstrip() if choice.random() < 0.3 else text
        try:
            tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            continue
        assert remove(add(text)) == text
        assert runtimes(add(text))["kata-qemu"] == HANDLER
        done += 1
    assert done > 200
