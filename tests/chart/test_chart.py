"""The values of the chart, their schema, and the files generated from them; without helm."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from kata_node.settings import load as settings
from kata_node.settings.shims import MACHINES, table

CHECKOUT = Path(__file__).resolve().parents[2]
CHART = CHECKOUT / "assets/chart/kata-deploy"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
GONE: dict[str, str] = json.loads((CHART / "files/gone.json").read_text())
PUBLIC_FILES = ("public_chart.yaml", "public_chart_newest.yaml")
"""Whole values files with the keys, types and defaults of the public chart, of two dates."""
OTHER_DEFAULTS = {
    "job.dispatcherImage": "the dispatcher is a program of this project",
    "job.nodeSelectorExpressions": "the newest public chart has no such key",
    "job.cleanup.nodeSelectorExpressions": "the newest public chart has no such key",
    "job.cleanup.nodeAffinity": "the default is in job.cleanup.nodeSelectorExpressions",
    "defaultShim": "the runtime-rs shims are the default now",
    "shims.remote.enabled": "the shim is off without a value, too",
    "shims.qemu-runtime-rs.supportedArches": "older releases had no ppc64le",
    "nodeFeatureRules.create": "keys are booked only if somebody asks for it",
    "kubectlImage.tag": "the image is the same without a tag, and a digest needs none",
    "monitor.listenAddress": "the IP of the pod",
    "monitor.logLevel": "the log level of the chart applies",
    "monitor.runtimeEndpoint": "the CRI socket of the distribution applies",
    "resources.requests.memory": "the memory that kata-node needs",
}
"""Defaults that differ from the public chart, and why."""
EXAMPLES = sorted(CHART.glob("*.values.yaml"))


@pytest.fixture
def docs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script scripts/chart-docs, as a module."""
    loader = SourceFileLoader("chart_docs", str(CHECKOUT / "scripts/chart-docs"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, loader.name, module)  # its dataclasses look their module up
    loader.exec_module(module)
    return module


def resolve(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the schema that ``$ref`` names; ``schema`` itself without one."""
    reference = schema.get("$ref")
    return SCHEMA["$defs"][reference.removeprefix("#/$defs/")] if reference else schema


def unknown_keys(value: object, schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield the paths of the keys in ``value`` that the schema does not allow."""
    schema = resolve(schema)
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from unknown_keys(item, schema.get("items", {}), f"{path}[{index}]")
    if not isinstance(value, dict) or "properties" not in schema:
        return
    for key, below in value.items():
        where = f"{path}.{key}".lstrip(".")
        if key in schema["properties"]:
            yield from unknown_keys(below, schema["properties"][key], where)
        elif schema.get("additionalProperties") is False:
            yield where


def mappings(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the path and the schema of every mapping with ``properties``."""
    if "properties" in schema:
        yield path, schema
    for key, below in [*schema.get("properties", {}).items(), *schema.get("$defs", {}).items()]:
        yield from mappings(below, f"{path}.{key}".lstrip("."))


def leaves(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield the path of every key of the schema without keys below it."""
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


def test_the_generated_files_are_up_to_date(docs: ModuleType) -> None:
    assert docs.main(["--check"]) == 0


def test_a_changed_comment_or_default_makes_the_readme_and_the_reference_out_of_date(
    docs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (CHART / "values.yaml").read_text()
    for changed in (
        text.replace("parallelism: 100", "parallelism: 7"),
        text.replace("run at the same time.", "run together."),
    ):
        assert changed != text
        (tmp_path / "values.yaml").write_text(changed)
        monkeypatch.setattr(docs, "VALUES", tmp_path / "values.yaml")
        assert docs.main(["--check"]) == 1
        told = capsys.readouterr().err
        assert "README.md is out of date" in told
        assert "docs/reference/values.md is out of date" in told


def rows(text: str) -> dict[str, str]:
    """The keys in the tables of the README or the reference, each with its description."""
    found = re.findall(r"^\| \[?`([^`|]+)`[^|\n]* \| [^|\n]* \| ([^|\n]*) \|$", text, re.MULTILINE)
    return dict(found)


def test_every_key_of_the_values_is_described_in_the_readme_and_in_the_reference(docs: ModuleType) -> None:
    readme, reference = docs.readme(), docs.reference()
    sections = re.findall(r"^## (.*)\n\n(.*)$", reference, re.MULTILINE)
    assert [name for name, _ in sections] == list(VALUES)
    assert not [name for name, first in sections if not first or first.startswith(("|", "Default"))]
    for text in (readme, reference):
        assert not [path for path, description in rows(text).items() if not description]
    assert rows(reference).items() < rows(readme).items()
    assert set(rows(readme)) - set(rows(reference)) == set(VALUES)
    assert "health.startupProbe.enabled" in rows(reference)


def test_rows_are_short_and_details_are_below_the_table_and_linked(docs: ModuleType) -> None:
    reference = docs.reference()
    assert max(map(len, rows(reference).values())) <= docs.LONGEST_SUMMARY
    assert "On a cluster with a single node" not in rows(reference)["job.nodeSelectorExpressions"]
    details = reference.partition("### `job.nodeSelectorExpressions`")[2].partition("###")[0]
    assert "On a cluster with a single node" in details
    assert "- key: node-role.kubernetes.io/control-plane" in details
    anchors = {
        re.sub(r"[^\w-]", "", name.lower()) for name in re.findall(r"^###? `?([^`\n]+)", reference, re.M)
    }
    links = set(re.findall(r"\]\(#([\w-]+)\)", reference))
    assert links
    assert links <= anchors


def test_a_list_in_a_comment_stays_a_list(docs: ModuleType) -> None:
    details = docs.reference().partition("### `rbac.admissionPolicy`")[2]
    assert re.findall(r"^- `(\w+)`: ", details, re.MULTILINE) == ["auto", "always", "never"]


COMMENTED = """\
# Things of the test.
#
# `things.<thing>` has these keys:
#
# - `active`: Enables the thing.
# - `deep.list`: Numbers of the thing
#   in two lines.
# - `extra`: A key that no thing has by default.
#
# A last word.
things:
  # A switch.
  all: false

  a:
    active: ~
    deep:
      list: [1]
  b:
    active: ~
    deep:
      list: [1]
  c:
    active: true
  d:
    active: ~
    deep:
      list: [1]
"""


def test_keys_of_many_entries_are_described_once_with_a_table_of_other_defaults(docs: ModuleType) -> None:
    [group] = docs.groups(COMMENTED)
    assert [(row.path, row.default, row.summary) for row in group.rows] == [
        ("things.all", "false", "A switch."),
        ("things.<thing>.active", "~", "Enables the thing."),
        ("things.<thing>.deep.list", "[1]", "Numbers of the thing in two lines."),
        ("things.<thing>.extra", "", "A key that no thing has by default."),
    ]
    assert (group.head.summary, group.head.details[-1]) == ("Things of the test.", "A last word.")
    assert group.differences[2:] == [
        "| thing | `active` | `deep.list` |",
        "|---|---|---|",
        "| `c` | `true` | `[]` |",
        "",
        "All defaults of the table above apply to `a`, `b`, `d`.",
    ]


def test_no_shim_has_a_row_of_its_own(docs: ModuleType) -> None:
    paths = rows(docs.readme())
    assert "shims.<shim>.containerd.snapshotter" in paths
    assert not [path for path in paths if path.startswith("shims.") and path.split(".")[1] in table()]
    differences = docs.reference().partition("Some shims have other defaults.")[2].partition("\n##")[0]
    assert not [name for name in table() if f"`{name}`" not in differences]


@pytest.mark.parametrize(
    ("comment", "says"),
    [
        pytest.param(f"# {'long ' * 40}", "a: shorten the first paragraph", id="a long first paragraph"),
        pytest.param(
            "# A.\n#\n# `a.<b>` has these keys:\n#\n# - nothing",
            "write `key`: and a description",
            id="no key",
        ),
    ],
)
def test_a_comment_that_cannot_be_a_row_is_refused(docs: ModuleType, comment: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        list(docs.groups(f"{comment}\na: 1\n"))


def test_the_schema_allows_every_default_and_every_example() -> None:
    assert EXAMPLES
    for path in (CHART / "values.yaml", *EXAMPLES):
        assert not list(unknown_keys(yaml.safe_load(path.read_text()), SCHEMA)), path.name


def test_the_schema_refuses_unknown_keys() -> None:
    assert not [path for path, schema in mappings(SCHEMA) if schema.get("additionalProperties") is not False]


def test_every_key_of_the_schema_is_in_the_values_or_in_their_comments() -> None:
    text = (CHART / "values.yaml").read_text()
    for path in set(leaves(SCHEMA)) - set(GONE):
        if path.startswith("shims.") and path != "shims.disableAll":
            key = path.split(".", 2)[2]
            explained = key in text or all(part in text for part in key.split("."))
        elif path.startswith(("health.", "node-feature-discovery.global", "global")):
            continue
        else:
            # Kubernetes explains its own fields.
            explained = has(VALUES, path) or path.startswith(
                (
                    *("affinity.", "job.cleanup.nodeAffinity.", "job.dispatcherRes", "monitor.resources."),
                    "resources.",
                )
            )
        assert explained, path


def test_renamed_keys_have_the_same_hint_in_the_chart_and_on_a_node() -> None:
    assert set(GONE) < set(leaves(SCHEMA))
    for key, new in settings.RENAMED_KEYS.items():
        assert GONE[f"env.{key}"].endswith(f"write {new}")


def leaf_values(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, object]]:
    """Yield the path and the value of every key without keys below it."""
    for key, value in values.items():
        where = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict) and value:
            yield from leaf_values(value, where)
        else:
            yield where, value


@pytest.mark.parametrize("name", PUBLIC_FILES)
def test_a_whole_values_file_of_the_public_chart_has_only_known_keys_and_the_same_defaults(name: str) -> None:
    public = yaml.safe_load((Path(__file__).parent / name).read_text())
    assert not list(unknown_keys(public, SCHEMA))
    own_values = dict(leaf_values(VALUES))
    changed_paths = {path for path, value in leaf_values(public) if own_values.get(path) != value}
    assert not [path for path in changed_paths if not path.startswith(tuple(OTHER_DEFAULTS))]


@pytest.mark.parametrize("name", PUBLIC_FILES)
@pytest.mark.parametrize("arch", MACHINES.values())
def test_a_whole_values_file_of_the_public_chart_is_read_on_a_node(
    name: str, arch: str, tmp_path: Path
) -> None:
    public = yaml.safe_load((Path(__file__).parent / name).read_text())
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(merged(VALUES, public)))
    loaded = settings.load(str(tmp_path / "values.yaml"), overrides={}, arch=arch)
    expected = {
        shim
        for shim, value in public["shims"].items()
        if shim != "disableAll" and value["enabled"] is None and not table()[shim].off
    }
    assert {shim.name for shim in loaded.shims} | {shim for shim, _ in loaded.skipped} >= expected
    assert not {"fc", "remote"} & {shim.name for shim in loaded.shims}
    assert not loaded.named


def test_values_and_schema_have_the_shims_of_the_shim_table() -> None:
    assert set(VALUES["shims"]) - {"disableAll"} == set(table())
    assert set(SCHEMA["properties"]["shims"]["properties"]) - {"disableAll"} == set(table())
    assert set(SCHEMA["$defs"]["customRuntime"]["properties"]["baseConfig"]["enum"]) == set(table())
    assert set(SCHEMA["$defs"]["shimName"]["enum"]) - {"", None} == set(table())


def test_the_runtime_classes_use_the_shim_table_of_the_nodes() -> None:
    made = yaml.safe_load((CHART / "files/shims.yaml").read_text())
    assert made == {
        shim.name: {
            "tee": shim.tee,
            "off": shim.off,
            "arches": [name for name, machine in MACHINES.items() if machine in shim.arches],
            "devkit": [name for name, machine in MACHINES.items() if machine in shim.devkit_arches],
            "overhead": {"memory": shim.overhead.memory, "cpu": shim.overhead.cpu},
        }
        for shim in table().values()
    }


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a values file into the values of the chart, as helm does: a null removes the key."""
    both = dict(below)
    for key, value in above.items():
        if value is None:
            both.pop(key, None)
        else:
            both[key] = merged(below.get(key) or {}, value) if isinstance(value, dict) else value
    return both


@pytest.mark.parametrize("path", [CHART / "values.yaml", *EXAMPLES], ids=lambda path: path.name)
@pytest.mark.parametrize("arch", MACHINES.values())
def test_a_node_enables_the_same_shims_as_the_chart(path: Path, arch: str, tmp_path: Path) -> None:
    values = merged(VALUES, yaml.safe_load(path.read_text()))
    shims = {name: shim for name, shim in values["shims"].items() if name != "disableAll"}
    on = {
        name
        for name, shim in shims.items()
        if (
            not (values["shims"]["disableAll"] or table()[name].off)
            if shim.get("enabled") is None
            else shim["enabled"]
        )
        and arch in (MACHINES[each] for each in shim["supportedArches"])
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    loaded = settings.load(str(tmp_path / "values.yaml"), overrides={}, arch=arch)
    assert {shim.name for shim in loaded.shims} == on
    assert bool(on) != bool(loaded.nothing_runs)
