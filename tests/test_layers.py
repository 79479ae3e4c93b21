"""The layers: imports point one way. Read from the source, lazy imports inside functions included."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent

# Which modules make up a layer, by pattern; the first layer that fits is the module's.
LAYERS = {
    "command line": ("kata_node.__main__", "kata_node.cli", "kata_node.cli_*"),
    "stages": ("stages", "stages.*"),
    "pipeline": ("kata_node.pipeline",),
    "dispatcher": ("kata_node.dispatcher", "kata_node.dispatcher.*"),
    "host": ("kata_node.host", "kata_node.host.*"),
    "kube": ("kata_node.kube", "kata_node.kube_*"),
    "daemon": ("kata_node.daemon", "kata_node.daemon_*"),
    "errors": ("kata_node.errors",),
    "ground": (
        "kata_node",
        *(f"kata_node.{name}" for name in ("assets", "handlers", "log", "report", "runtime_settings")),
        *(f"kata_node.{name}" for name in ("selection", "settings", "shims", "text", "values")),
    ),
    "libraries": ("kata_node.*",),
}

# Of our own modules, a layer imports those of these layers and no others.
MAY_IMPORT = {
    "command line": tuple(layer for layer in LAYERS if layer != "dispatcher"),
    # A program of its own, in an image that has nothing of the host's side.
    "dispatcher": ("dispatcher", "kube", "ground", "errors"),
    "stages": ("libraries", "ground", "errors"),
    "pipeline": ("libraries", "host", "ground", "errors"),
    "libraries": ("libraries", "host", "kube", "ground", "errors"),
    "host": ("host", "errors"),
    "kube": ("kube", "errors"),
    # It stays on the node: the work is its children's.
    "daemon": ("daemon", "ground", "errors"),
    "ground": ("ground", "errors"),
    "errors": (),
}

# What only some modules may import: each is one way out of this process, or costs start-up time.
RESERVED = {
    "stages": ("kata_node.cli",),
    "typer": ("kata_node.cli", "kata_node.cli_*"),
    "yaml": ("kata_node.values",),
    "psutil": ("kata_node.facts.machine",),
    "lightkube": ("kata_node.kube", "kata_node.kube_*"),
    "httpx2": ("kata_node.kube_*", "kata_node.dispatcher.api"),
    "jeepney": ("kata_node.host.dbus",),
    "h2": ("kata_node.host.grpc",),
    "backports": ("kata_node.host.*",),
    "compression": ("kata_node.host.*",),
    "socket": ("kata_node.host.*", "kata_node.daemon", "kata_node.daemon_*"),
    "fcntl": ("kata_node.host.*",),
    "shutil": (),
    "tempfile": (),
    "subprocess": (),
}

# Files are touched by the host layer alone, but for these, each with what it touches.
FILES = ("os", "pathlib")
TOUCHES_FILES = {
    "kata_node.host.*": "the node",
    "kata_node.assets": "the data in this package",
    "kata_node.cli": "asks who runs it, and names paths on the command line",
    "kata_node.cli_*": "reads variables, and names paths on the command line",
    "kata_node.dispatcher.__main__": "its variables, and names paths on the command line",
    "kata_node.dispatcher.config": "its configuration, in this container",
    "kata_node.daemon": "starts and awaits its children, and reads the termination message they leave",
    "kata_node.facts": "names the payload's directory",
    "kata_node.facts.artifacts": "walks the install dir, by paths that the host layer resolved",
    "kata_node.facts.machine": "asks for free space, by paths that the host layer resolved",
    "kata_node.kube_access": "this pod's own credentials",
    "kata_node.payload_*": "the payload, in this container",
    "kata_node.report": "this container's termination message",
    "kata_node.values": "the values file, in this container",
}

# These decide, and touch nothing: of the host layer they know types and rules, and no module that acts.
PURE = (
    "kata_node.checks",
    "kata_node.containerd",
    "kata_node.containerd_main",
    "kata_node.containerd_part",
    "kata_node.containerd_read",
    "kata_node.containerd_render",
    "kata_node.cri_config",
    "kata_node.cri_configs",
    "kata_node.cri_files",
    "kata_node.crio",
    "kata_node.daemonset",
    "kata_node.distributions",
    "kata_node.dispatcher.adoption",
    "kata_node.dispatcher.failures",
    "kata_node.dispatcher.objects",
    "kata_node.dispatcher.rollout",
    "kata_node.dispatcher.telling",
    "kata_node.dispatcher.template",
    "kata_node.dispatcher.unfit",
    "kata_node.errors",
    "kata_node.handback",
    "kata_node.handlers",
    "kata_node.k0s",
    "kata_node.kata_config",
    "kata_node.kata_merge",
    "kata_node.labels",
    "kata_node.layout",
    "kata_node.payload",
    "kata_node.runtime_settings",
    "kata_node.selection",
    "kata_node.settings",
    "kata_node.shims",
    "kata_node.snapshotters",
    "kata_node.support",
    "kata_node.text",
    "kata_node.toml_edit",
    "kata_node.toml_tables",
    "kata_node.transaction",
    "kata_node.unsupported",
    "kata_node.versions",
    "stages.*",
)
PURE_MAY_IMPORT_OF_HOST = ("kata_node.host.files", "kata_node.host.globs")


def _modules() -> dict[str, Path]:
    found = {}
    for package in ("kata_node", "stages"):
        for path in (PROJECT / package).rglob("*.py"):
            name = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return dict(sorted(found.items()))


MODULES = _modules()


def imports_of(source: str, modules: Collection[str]) -> frozenset[str]:
    """All that running ``source`` can import; ``from a import b`` is ``a.b`` where that is a module."""
    return frozenset(_imports(ast.parse(source), modules))


def _imports(node: ast.AST, modules: Collection[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield full if full in modules else node.module or ""
    children: Iterator[ast.AST] = ast.iter_child_nodes(node)
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        children = iter(node.orelse)
    for child in children:
        yield from _imports(child, modules)


IMPORTS = {name: imports_of(path.read_text(encoding="utf-8"), MODULES) for name, path in MODULES.items()}


def layer_of(module: str) -> str:
    return next(layer for layer, patterns in LAYERS.items() if fits(module, patterns))


def fits(module: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_of_ours_only_what_its_layer_may(module: str) -> None:
    layer = layer_of(module)
    upwards = [
        f"{name} ({layer_of(name)})"
        for name in IMPORTS[module]
        if name in MODULES and layer_of(name) not in MAY_IMPORT[layer]
    ]
    assert upwards == [], f"{module} is in the layer {layer}"


@pytest.mark.parametrize("package", RESERVED)
def test_a_reserved_package_is_imported_by_its_owners_alone(package: str) -> None:
    importers = [name for name, names in IMPORTS.items() if any(inside(each, package) for each in names)]
    # The command line finds its stages by their names.
    assert [name for name in importers if not fits(name, RESERVED[package])] == []


def test_only_the_command_line_imports_by_name() -> None:
    by_name = {name for name, names in IMPORTS.items() if any(inside(each, "importlib") for each in names)}
    assert by_name - {"kata_node.assets"} == {"kata_node.cli"}


def test_only_the_host_layer_and_the_listed_exceptions_touch_files() -> None:
    importers = {name for name, names in IMPORTS.items() if any(inside(n, f) for n in names for f in FILES)}
    assert sorted(name for name in importers if not fits(name, TOUCHES_FILES)) == []
    assert [
        pattern for pattern in TOUCHES_FILES if not any(fits(name, (pattern,)) for name in importers)
    ] == []


@pytest.mark.parametrize("module", [name for name in MODULES if fits(name, PURE)])
def test_a_pure_module_imports_nothing_that_acts(module: str) -> None:
    acting = [
        name
        for name in IMPORTS[module]
        if any(inside(name, package) for package in (*FILES, *RESERVED))
        or (inside(name, "kata_node.host") and name not in PURE_MAY_IMPORT_OF_HOST)
    ]
    assert acting == []


def test_every_pure_module_in_the_list_exists() -> None:
    assert [name for name in PURE if "*" not in name and name not in MODULES] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    left = {name: {each for each in names if each in MODULES} - {name} for name, names in IMPORTS.items()}
    while leaves := [name for name, names in left.items() if not names & set(left)]:
        for name in leaves:
            del left[name]
    assert left == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        pytest.param("import os.path", {"os.path"}, id="plain"),
        pytest.param("from kata_node import errors, x", {"kata_node.errors", "kata_node"}, id="from"),
        pytest.param("def f():\n  from stages import cri", {"stages.cri"}, id="lazy"),
        pytest.param(
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import a\nelse:\n  import b",
            {"typing", "b"},
            id="for types alone",
        ),
    ],
)
def test_every_way_to_import_is_seen(source: str, found: set[str]) -> None:
    assert imports_of(source, MODULES) == found


START_UP = {
    "--version": (
        "import sys; sys.argv = ['kata-node', '--version']; import kata_node.__main__ as m; m.main()",
        ("typer", "yaml", "lightkube", "psutil", "tomlkit", "tomllib", "jeepney", "h2", "msgspec", "logging"),
    ),
    "the command line": (
        "import kata_node.cli",
        (
            *(
                "lightkube",
                "httpx2",
                "psutil",
                "jeepney",
                "h2",
                "tomlkit",
                "backports.zstd",
                "compression.zstd",
            ),
            *("yaml", "msgspec", "kata_node.pipeline", "stages"),
        ),
    ),
    "the daemon": (
        "import kata_node.daemon",
        (
            *("typer", "click", "yaml", "msgspec", "lightkube", "httpx2", "ssl", "http", "asyncio", "email"),
            *("subprocess", "tempfile", "kata_node.cli", "kata_node.pipeline", "kata_node.kube", "stages"),
        ),
    ),
    "the pipeline": (
        "import kata_node.pipeline, stages.artifacts, stages.cri, stages.label",
        ("typer", "lightkube", "httpx2", "psutil", "jeepney", "h2", "backports.zstd", "compression.zstd"),
    ),
}


@pytest.mark.commands
@pytest.mark.parametrize("what", START_UP)
def test_starting_loads_only_what_is_used(what: str) -> None:
    code, unwelcome = START_UP[what]
    report = "import sys; print(*sys.modules, sep='\\n', file=sys.stderr)"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert sorted(set(run.stderr.splitlines()) & set(unwelcome)) == []
