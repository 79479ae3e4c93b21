"""The chart, as far as it can be told without helm: its values, their schema, what is made of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from kata_node.errors import SettingsError
from kata_node.settings import load as settings
from kata_node.settings.shims import MACHINES, table

CHECKOUT = Path(__file__).resolve().parents[2]
CHART = CHECKOUT / "assets/chart/kata-deploy"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
GONE: dict[str, str] = json.loads((CHART / "files/gone.json").read_text())
PUBLIC: dict[str, Any] = yaml.safe_load((CHECKOUT / "tests/chart/public_chart.yaml").read_text())
"""What the public chart's values are by default, without those of its shims."""
OTHER_DEFAULTS = {
    "defaultShim": "the shims of runtime-rs have become the default since",
    "kubectlImage.tag": "the same without one, and a reference with a digest needs no more",
    "monitor.logLevel": "that of the chart",
    "monitor.runtimeEndpoint": "that of the distribution",
    "resources.requests.memory": "what kata-node takes",
}
"""Defaults that are others here, and why."""
EXAMPLES = sorted(CHART.glob("*.values.yaml"))


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    """The script scripts/chart-docs, as a module."""
    loader = SourceFileLoader("chart_docs", str(CHECKOUT / "scripts/chart-docs"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def resolve(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A schema, or the one it refers to."""
    reference = schema.get("$ref")
    return SCHEMA["$defs"][reference.removeprefix("#/$defs/")] if reference else schema


def unknown(value: object, schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The paths in ``value`` that the schema has no place for."""
    schema = resolve(schema)
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from unknown(item, schema.get("items", {}), f"{path}[{index}]")
    if not isinstance(value, dict) or "properties" not in schema:
        return
    for key, below in value.items():
        where = f"{path}.{key}".lstrip(".")
        if key in schema["properties"]:
            yield from unknown(below, schema["properties"][key], where)
        elif schema.get("additionalProperties") is False:
            yield where


def objects(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping that the schema describes key by key."""
    if "properties" in schema:
        yield path, schema
    for key, below in [*schema.get("properties", {}).items(), *schema.get("$defs", {}).items()]:
        yield from objects(below, f"{path}.{key}".lstrip("."))


def leaves(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The path of every key of the schema that has none below it."""
    schema = resolve(schema)
    if "properties" not in schema:
        yield path
    for key, below in schema.get("properties", {}).items():
        yield from leaves(below, f"{path}.{key}".lstrip("."))


def has(values: object, path: str) -> bool:
    for key in path.split("."):
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def test_what_is_made_of_the_values_and_of_the_shim_table_is_up_to_date(docs: ModuleType) -> None:
    assert docs.main(["--check"]) == 0


def test_a_changed_comment_or_default_makes_the_readme_out_of_date(
    docs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (CHART / "values.yaml").read_text()
    for changed in (
        text.replace("parallelism: 100", "parallelism: 7"),
        text.replace("at once.", "together."),
    ):
        assert changed != text
        (tmp_path / "values.yaml").write_text(changed)
        monkeypatch.setattr(docs, "VALUES", tmp_path / "values.yaml")
        assert docs.main(["--check"]) == 1
        assert "README.md is out of date" in capsys.readouterr().err


def test_every_key_of_the_values_is_explained(docs: ModuleType) -> None:
    text = docs.readme()
    sections = re.findall(r"^### (.*)\n\n(.*)$", text, re.MULTILINE)
    assert [name for name, _ in sections] == list(VALUES)
    assert not [name for name, first in sections if not first or first.startswith(("|", "Default"))]
    silent = re.findall(r"^\| `([^`]+)` \|.*\|  \|$", text, re.MULTILINE)
    # Explained by what the section begins with.
    told = ("shims.", "defaultShim.", "updateStrategy", "resources", "health.")
    assert not [path for path in silent if not path.startswith(told)]


def test_the_schema_has_a_place_for_every_default_and_every_example() -> None:
    assert EXAMPLES
    for path in (CHART / "values.yaml", *EXAMPLES):
        assert not list(unknown(yaml.safe_load(path.read_text()), SCHEMA)), path.name


def test_the_schema_is_closed() -> None:
    assert not [path for path, schema in objects(SCHEMA) if schema.get("additionalProperties") is not False]


def test_whatever_the_schema_knows_is_in_the_values_or_told_of_there() -> None:
    text = (CHART / "values.yaml").read_text()
    for path in set(leaves(SCHEMA)) - set(GONE):
        if path.startswith("shims.") and path != "shims.disableAll":
            key = path.split(".", 2)[2]
            told = key in text or all(part in text for part in key.split("."))
        elif path.startswith(("health.", "node-feature-discovery.global", "global")):
            continue
        else:
            told = has(VALUES, path) or path.startswith(
                ("resources.", "monitor.resources.", "job.dispatcherRes")
            )
        assert told, path


def test_keys_of_older_charts_are_known_for_their_remedy_as_on_a_node() -> None:
    assert set(GONE) < set(leaves(SCHEMA))
    for key, new in settings.RENAMED_KEYS.items():
        assert GONE[f"env.{key}"].endswith(f"write {new}")


def pairs(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, object]]:
    """Every key with its value, as the path of the key."""
    for key, value in values.items():
        where = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict) and value:
            yield from pairs(value, where)
        else:
            yield where, value


def test_a_values_file_of_the_public_chart_carries_over() -> None:
    assert not list(unknown(PUBLIC, SCHEMA))
    ours = dict(pairs(VALUES))
    others = {path for path, value in pairs(PUBLIC) if ours.get(path) != value}
    assert {path for path in others if not path.startswith("defaultShim.")} == {
        path for path in OTHER_DEFAULTS if path != "defaultShim"
    }


def test_the_shims_are_those_of_the_table_everywhere() -> None:
    assert set(VALUES["shims"]) - {"disableAll"} == set(table())
    assert set(SCHEMA["properties"]["shims"]["properties"]) - {"disableAll"} == set(table())
    assert set(SCHEMA["$defs"]["customRuntime"]["properties"]["baseConfig"]["enum"]) == set(table())
    assert set(SCHEMA["$defs"]["shimName"]["enum"]) - {"", None} == set(table())


def test_runtime_classes_are_made_of_what_the_nodes_go_by() -> None:
    made = yaml.safe_load((CHART / "files/shims.yaml").read_text())
    assert made == {
        shim.name: {"tee": shim.tee, "overhead": {"memory": shim.overhead.memory, "cpu": shim.overhead.cpu}}
        for shim in table().values()
    }


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """What helm makes of the chart's values and a file of somebody's."""
    return {
        **below,
        **{
            key: merged(below[key], value) if isinstance(value, dict) and key in below else value
            for key, value in above.items()
        },
    }


@pytest.mark.parametrize("path", [CHART / "values.yaml", *EXAMPLES], ids=lambda path: path.name)
@pytest.mark.parametrize("arch", MACHINES.values())
def test_a_node_takes_the_values_file_as_the_chart_does(path: Path, arch: str, tmp_path: Path) -> None:
    values = merged(VALUES, yaml.safe_load(path.read_text()))
    shims = {name: shim for name, shim in values["shims"].items() if name != "disableAll"}
    on = {
        name
        for name, shim in shims.items()
        if (not values["shims"]["disableAll"] if shim["enabled"] is None else shim["enabled"])
        and arch in (MACHINES[each] for each in shim["supportedArches"])
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    if on:
        loaded = settings.load(str(tmp_path / "values.yaml"), overrides={}, arch=arch)
        assert {shim.name for shim in loaded.shims} == on
    else:
        with pytest.raises(SettingsError, match="no enabled shim runs on"):
            settings.load(str(tmp_path / "values.yaml"), overrides={}, arch=arch)
