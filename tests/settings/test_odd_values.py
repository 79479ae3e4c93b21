"""Values of odd types, sizes and depths: each is a value or an error with the place, never a crash."""

from __future__ import annotations

import datetime
import itertools
import math
import random
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kata_node.errors import KataNodeError, SettingsError
from kata_node.runtime.containerd import render
from kata_node.settings import load as settings
from kata_node.settings import yaml_parse
from kata_node.settings.handlers import handlers
from kata_node.settings.model import Settings
from kata_node.settings.unsupported import unsupported
from kata_node.settings.values import first_json_problem
from kata_node.versions import parse_version

BRACKETS = 100_000


def load(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "values.yaml"
    path.write_text(text)
    return settings.load(str(path), overrides={}, arch="x86_64")


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value.what


# --- JSON, which the chart writes for the node -----------------------------------------------------------


def outcome(text: str) -> tuple[str, object]:
    """Return the value of a text and its type, or the refusal without the place."""
    try:
        value = yaml_parse.parse(text, unique_keys=True, as_helm=True)
    except ValueError as error:
        return "refused", str(error).partition(": ")[2]
    return "value", (value, repr(value))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param('{"a": 1, "b": [true, false, null, "x"], "c": {}}', id="each-type"),
        pytest.param('{"a": -0, "b": 2.5, "c": 1e+06, "d": 1E6, "e": 1e-7}', id="numbers"),
        pytest.param('{"a": 1e400}', id="infinite"),
        pytest.param('{"a": NaN, "b": -Infinity}', id="no-JSON-numbers"),
        pytest.param('{"a": 18446744073709551615}', id="64-bits"),
        pytest.param('{"a": 18446744073709551616}', id="65-bits"),
        pytest.param('{"a": "yes", "b": "2025-01-01", "c": "1e6", "d": "~"}', id="strings-like-other-types"),
        pytest.param(r'{"a": "\u003c\n\t\"\\ \u00e9 ü"}', id="escapes"),
        pytest.param(r'{"a": "\ud800"}', id="half-a-character"),
        pytest.param(r'{"a": "\uD83D\uDE00"}', id="two-halves"),
        pytest.param('{"a": 1, "a": 2}', id="twice"),
        pytest.param('{"a": {"b": 1, "b": 2}}', id="twice-below"),
        pytest.param("{}", id="empty"),
        pytest.param("{a: b}", id="YAML"),
        pytest.param('{"a": 1} # end', id="comment"),
        pytest.param('{"a": 1}\n---\n{"b": 1}', id="two-documents"),
        pytest.param('{"a": ' * 99 + "1" + "}" * 99, id="deep"),
        pytest.param('{"a": ' * 101 + "1" + "}" * 101, id="too-deep"),
        pytest.param('{"a": ' * BRACKETS + "1" + "}" * BRACKETS, id="far-too-deep"),
        pytest.param('{"a": [' + "[" * 200 + "]" * 200 + "]}", id="lists-too-deep"),
        pytest.param('{"a": 1', id="cut"),
        pytest.param('{"a": "\x01"}', id="control-character"),
    ],
)
def test_json_is_read_as_yaml_would_be(text: str) -> None:
    assert outcome(text) == outcome(f"\n{text}")


# --- YAML -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * BRACKETS, id="open-brackets"),
        pytest.param("[" * BRACKETS + "]" * BRACKETS, id="brackets"),
        pytest.param("shims: " + "{a: " * BRACKETS + "}" * BRACKETS, id="braces"),
        pytest.param("- " * BRACKETS, id="dashes"),
        pytest.param("? " * BRACKETS, id="question-marks"),
        pytest.param("\n".join(" " * depth + "a:" for depth in range(500)), id="indentation"),
        pytest.param(
            "a: &a {x: " + "[" * 60 + "]" * 60 + "}\nb: {x: " + "[" * 60 + "*a" + "]" * 60 + "}",
            id="through-an-alias",
        ),
    ],
)
def test_a_file_that_is_nested_too_deeply_is_refused(tmp_path: Path, text: str) -> None:
    assert "nested more than 100 levels deep" in refusal(tmp_path, text)


def test_a_hundred_levels_are_read() -> None:
    assert yaml_parse.parse("[" * 100 + "]" * 100) is not None
    assert (
        yaml_parse.parse("a: &a [" + "[" * 40 + "]" * 40 + "]\nb: " + "[" * 40 + "*a" + "]" * 40) is not None
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("debug: 2025-99-99", "line 1, column 8: not valid YAML: '2025-99-99' is not a valid timestamp"),
        ("env:\n  hostOS: 2025-01-01", "env.hostOS: expected a string, got 2025-01-01 (a date)"),
        ("debug: " + "9" * 5000, "is not a valid int"),
        ("debug: 0x" + "f" * 9000, "fff...' does not fit into 64 bits; put it in quotes"),
        ("image: {tag: 20250101120000123456}", "'20250101120000123456' does not fit into 64 bits"),
        ("? 0x" + "f" * 900 + "\n: 1", "does not fit into 64 bits"),
        ("debug: !!bool maybe", "'maybe' is not a valid bool"),
        ("debug: !!int x", "'x' is not a valid int"),
        ("debug: !!timestamp soon", "'soon' is not a valid timestamp"),
        ("debug: !!binary aGVsbG8=", "debug: expected true or false, got binary data"),
        ("debug: !!set {a, b}", "debug: expected true or false, got a value of the type set"),
        ("debug: !!python/object:os.system {}", "could not determine a constructor"),
        (
            "image: &a [*a]",
            "line 1, column 8: not valid YAML: an alias stands for a collection that contains it",
        ),
        ("debug: true\n---\ndebug: true", "but found another document"),
        ("# " + "x" * 5_000_000, "more than 4 MiB"),
    ],
    ids=lambda text: text[:30],
)
def test_yaml_that_has_no_value_is_refused_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "helm", "others"),
    [
        ("2026-08-01", "2026-08-01", datetime.date(2026, 8, 1)),
        ("1:30", "1:30", 90),
        ("1:30.5", "1:30.5", 90.5),
        ("y", True, "y"),
        ("N", False, "N"),
        ("'y'", "y", "y"),
        ("1e3", 1000.0, "1e3"),
        ("12e4567", "12e4567", "12e4567"),
        ("0o17", 15, "0o17"),
        ("017", 15, 15),
        ("[&a 1e3, *a]", [1000.0, 1000.0], ["1e3", "1e3"]),
    ],
)
def test_scalars_have_the_types_that_helm_reads(text: str, helm: object, others: object) -> None:
    assert yaml_parse.parse(text, as_helm=True) == helm
    assert yaml_parse.parse(text) == others


def test_aliases_that_stand_for_billions_of_values_are_refused(tmp_path: Path) -> None:
    names = "abcdefghijklmnopqrstuvwxyz"
    lines = [f"{name}: &{name} [*{below}, *{below}]" for below, name in itertools.pairwise(names)]
    text = "\n".join(["a: &a [x, x]", *lines])
    assert "aliases make it more than 1000000 values" in refusal(tmp_path, text)


# --- paths and other strings ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('env: {installationPrefix: "/a\\0b"}', "env.installationPrefix: has a NUL character"),
        ('containerd: {configDir: "/a\\0b"}', "containerd.configDir: has a NUL character"),
        ('containerd: {configFileName: "a\\0b"}', "containerd.configFileName: has a NUL character"),
        ('containerd: {runtimeSocket: "/a\\0b"}', "containerd.runtimeSocket: has a NUL character"),
        ('containerd: {extraPodAnnotations: ["a\\0b"]}', "containerd.extraPodAnnotations[0]: has a NUL"),
        ('containerd: {configDir: "/a\\nb"}', "has characters that cannot be printed"),
        (f"containerd: {{configDir: /{'a/' * 3000}}}", "is longer than 1024 bytes"),
        (f"containerd: {{configDir: /{'a' * 300}}}", "has a name of more than 255 bytes"),
        (f"containerd: {{configFileName: {'é' * 200}}}", "has a name of more than 255 bytes"),
        (f"containerd: {{runtimeSocket: /{'a' * 300}}}", "has a name of more than 255 bytes"),
        (f"env: {{installationPrefix: /{'a/' * 3000}}}", "is longer than 1024 bytes"),
        (f"env: {{installationPrefix: /{'a' * 300}}}", "has a name of more than 255 bytes"),
    ],
    ids=lambda text: text[:45],
)
def test_a_path_that_no_file_can_have_is_refused_with_its_key(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("shims: {qemu: {enabled: true, dropIn: %s}}", "shims.qemu.dropIn: is not valid TOML: "),
        ("containerd: {userDropIn: %s}", "containerd.userDropIn: is not valid TOML: "),
    ],
    ids=["drop-in-of-a-shim", "drop-in-of-containerd"],
)
@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("a = " + "[" * BRACKETS + "]" * BRACKETS, "nested more than 100 levels deep"),
        ("a." * BRACKETS + "a = 1", "a key has more than 1000 parts"),
        ("a = 0x" + "f" * 5000, "a number does not fit into 64 bits"),
    ],
    ids=["deep", "dotted", "huge"],
)
def test_a_drop_in_that_no_runtime_can_parse_is_refused(
    tmp_path: Path, key: str, expected: str, toml: str, problem: str
) -> None:
    what = refusal(tmp_path, key % f'"{toml}"')
    assert what.startswith(expected)
    assert problem in what


def test_a_manifest_of_a_custom_runtime_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    manifest = "[" * BRACKETS
    text = f"customRuntimes: {{runtimes: {{x: {{baseConfig: qemu, runtimeClass: '{manifest}'}}}}}}"
    assert "nested more than 100 levels deep" in refusal(tmp_path, text)


def test_thousands_of_problems_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    what = refusal(tmp_path, "\n".join(f"key{number}: 1" for number in range(5000)))
    assert what.startswith("5000 problems\n  key0: is not a known key")
    assert what.endswith("\n  and 4950 more")


# --- any value at any key ---------------------------------------------------------------------------


CHART = Path(__file__).parents[2] / "assets/chart/kata-deploy/values.yaml"
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**70, 1.5, math.nan, math.inf, "", "\0", "a\nb", "é", "\u2028", "x" * 300),
    *("/x", "/x\0", "/" + "x" * 300, "..", "a/../b", "*", "a=b", "key:NoSchedule", "qemu", "nydus", "true"),
    *(
        datetime.date(2025, 1, 1),
        datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC),
        b"x",
        "handler: mine",
        "handler: [x]",
        "{",
        "[",
    ),
    *("a = 1", "a = [", "version = 3", "[hypervisor.qemu]\nkernel = 1", "x = 1979-05-27", "[[a]]\n[a]"),
    *("plugins = 1", "imports = [1]", "x = 0x" + "f" * 40),
)
ODD_KEYS = ("enabled", "runtimes", "handler", "qemu", "", "\0", "x" * 250, 1, None, True, 2.5, 2**80)


def paths(value: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, item in value.items() if isinstance(value, dict) else ():
        yield (*path, key)
        yield from paths(item, (*path, key))


def odd(chance: random.Random, depth: int = 0) -> Any:
    if depth < 3 and chance.random() < 0.35:
        items = [odd(chance, depth + 1) for _ in range(chance.randrange(4))]
        return items if chance.random() < 0.5 else {chance.choice(ODD_KEYS): item for item in items}
    return chance.choice(ODD)


def put(values: dict[str, Any], path: tuple[str, ...], value: object) -> None:
    for key in path[:-1]:
        if not isinstance(values.get(key), dict):
            values[key] = {}
        values = values[key]
    values[path[-1]] = value


def test_any_value_at_any_key_gives_settings_or_an_error(tmp_path: Path) -> None:
    chance = random.Random(12)
    node_keys = [
        path for path in paths(yaml.safe_load(CHART.read_text())) if path[0] not in settings.CHART_ONLY_KEYS
    ]
    custom = ("customRuntimes", "runtimes", "x")
    node_keys += 5 * [("shims", "qemu", key) for key in ("dropIn", "containerd", "crio", "agent", "nvrc")]
    node_keys += 5 * [
        (*custom, key) for key in ("baseConfig", "runtimeClass", "dropIn", "containerd", "crio")
    ]
    loaded = refused = 0
    for _ in range(600):
        values: dict[str, Any] = {"shims": {"qemu": {"enabled": True}}, "customRuntimes": {"enabled": True}}
        put(values, custom, {"baseConfig": "qemu", "runtimeClass": "handler: mine"})
        for path in chance.sample(node_keys, chance.randrange(1, 4)):
            put(values, path, odd(chance))
        try:
            found = load(tmp_path, yaml.safe_dump(values, allow_unicode=True))
            assert handlers(found)
            assert found.digest()
            assert unsupported(found) is not None
            for schema, version in ((2, "1.7.24"), (3, "2.1.9")):
                block = render.render_block(
                    found, schema, parse_version(version), {}, where="x", with_runc=True
                )
                assert tomllib.loads(block.decode())
            loaded += 1
        except KataNodeError:
            refused += 1
    assert loaded > 10
    assert refused > 100


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": ["x", 1, 1.5, None, True, {"b": {}}]}, None),
        ({"a": {3: "x"}}, (".a", "expected a string as the key, got the number 3; put it in quotes")),
        ({"a": ["x", datetime.date(2025, 1, 1)]}, (".a[1]", "2025-01-01 (a date)")),
        ({"a": math.nan}, (".a", "the number nan")),
        ({"a": {"b": 2**64}}, (".a.b", "a number of more than 64 bits")),
        ({"a": b"x"}, (".a", "binary data")),
    ],
)
def test_the_first_value_that_json_does_not_have_is_named(
    value: object, expected: tuple[str, str] | None
) -> None:
    found = first_json_problem(value)
    if expected is None:
        assert found is None
    else:
        assert found is not None
        assert found[0] == expected[0]
        assert expected[1] in found[1]
