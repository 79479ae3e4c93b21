"""The layers: imports point one way. Read from the source, lazy imports inside functions included."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeGuard

import pytest

PROJECT = Path(__file__).parent.parent

# The folders of kata_node from top to bottom. Folders of one row do not import each other. A module that is
# in no folder stands for itself. An import, also one for type checking alone, stays in its folder or goes
# down.
ORDER = (
    ("__main__",),
    ("cli", "dispatcher"),
    ("daemon",),
    ("stages",),
    ("pipeline", "status"),
    ("checks", "cluster"),
    ("runtime",),
    ("runtime.containerd",),
    ("runtime.model",),
    ("payload",),
    ("snapshotters",),
    ("kata",),
    ("plan",),
    ("settings", "host", "kube"),
    ("toml", "versions", "assets", "text", "log"),
    ("errors",),
)
LEVEL = {folder: level for level, row in enumerate(ORDER) for folder in row}

# Beyond the order: a program of its own imports no more than this of ours.
CONFINED = {
    # Its image has nothing of the node's side.
    "kata_node.dispatcher.*": (
        *("kata_node", "kata_node.dispatcher.*", "kata_node.kube.*", "kata_node.plan.report"),
        *("kata_node.settings.values", "kata_node.errors", "kata_node.log"),
    ),
    # It stays on the node: the work is its children's.
    "kata_node.daemon.*": ("kata_node.daemon.*", "kata_node.errors", "kata_node.log"),
}
MAX_LINES = 400

# What only some modules may import: each is one way out of this process, or costs start-up time.
RESERVED = {
    "stages": ("kata_node.cli.commands",),
    "typer": ("kata_node.cli.*",),
    "yaml": ("kata_node.settings.values",),
    "psutil": ("kata_node.checks.hardware",),
    "lightkube": ("kata_node.kube.*",),
    "httpx2": ("kata_node.kube.*", "kata_node.dispatcher.api"),
    "jeepney": ("kata_node.host.dbus",),
    "h2": ("kata_node.host.grpc",),
    "backports": ("kata_node.host.*",),
    "compression": ("kata_node.host.*",),
    "socket": ("kata_node.host.*", "kata_node.daemon.*", "kata_node.cli.daemon"),
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
    "kata_node.cli.*": "asks who runs it, reads variables, and names paths on the command line",
    "kata_node.dispatcher.__main__": "its variables, and names paths on the command line",
    "kata_node.dispatcher.config": "its configuration, in this container",
    "kata_node.daemon.daemon": "starts and awaits its children, and reads the termination message they leave",
    "kata_node.plan.context": "names the payload's directory",
    "kata_node.payload.facts": "walks the install dir, by paths that the host layer resolved",
    "kata_node.checks.hardware": "asks for free space, by paths that the host layer resolved",
    "kata_node.kube.credentials": "this pod's own credentials",
    "kata_node.payload.*": "the payload, in this container",
    "kata_node.plan.report": "this container's termination message",
    "kata_node.settings.values": "the values file, in this container",
}

# These decide, and touch nothing: of the host layer they know types and rules, and no module that acts.
PURE = (
    "kata_node.checks.table",
    "kata_node.cluster.labels",
    "kata_node.cluster.taints",
    "kata_node.daemon.daemonset",
    "kata_node.dispatcher.adoption",
    "kata_node.dispatcher.eligibility",
    "kata_node.dispatcher.failures",
    "kata_node.dispatcher.kubernetes_objects",
    "kata_node.dispatcher.progress",
    "kata_node.dispatcher.rollout",
    "kata_node.dispatcher.template",
    "kata_node.errors",
    "kata_node.kata.*",
    "kata_node.payload.layout",
    "kata_node.payload.manifest",
    "kata_node.runtime.compatibility",
    "kata_node.runtime.config_selection",
    "kata_node.runtime.containerd.*",
    "kata_node.runtime.crio",
    "kata_node.runtime.file_records",
    "kata_node.runtime.model.*",
    "kata_node.runtime.removal",
    "kata_node.runtime.transaction",
    "kata_node.settings.handlers",
    "kata_node.settings.load",
    "kata_node.settings.model",
    "kata_node.settings.runtime",
    "kata_node.settings.selection",
    "kata_node.settings.shims",
    "kata_node.settings.unsupported",
    "kata_node.snapshotters.mapping",
    "kata_node.text",
    "kata_node.toml.*",
    "kata_node.versions",
    "stages.*",
)
PURE_MAY_IMPORT_OF_HOST = ("kata_node.host.files", "kata_node.host.go_glob")


def _modules() -> dict[str, Path]:
    found = {}
    for package in ("kata_node", "stages"):
        for path in (PROJECT / package).rglob("*.py"):
            name = ".".join(path.relative_to(PROJECT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return dict(sorted(found.items()))


MODULES = _modules()


def imports_of(source: str, modules: Collection[str], *, at_run_time: bool = True) -> frozenset[str]:
    """The modules that ``source`` can import; without ``at_run_time`` also those for type checking alone."""
    return frozenset(_imports(ast.parse(source), modules, at_run_time=at_run_time))


def _imports(node: ast.AST, modules: Collection[str], *, at_run_time: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield full if full in modules else node.module or ""
    children: Iterator[ast.AST] = ast.iter_child_nodes(node)
    if at_run_time and _is_for_types(node):
        children = iter(node.orelse)
    for child in children:
        yield from _imports(child, modules, at_run_time=at_run_time)


def _is_for_types(node: ast.AST) -> TypeGuard[ast.If]:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


SOURCES = {name: path.read_text(encoding="utf-8") for name, path in MODULES.items()}
IMPORTS = {name: imports_of(source, MODULES) for name, source in SOURCES.items()}
ALL_IMPORTS = {name: imports_of(source, MODULES, at_run_time=False) for name, source in SOURCES.items()}


def folder_of(module: str) -> str:
    """The folder below ``kata_node`` that a module is in; its own name where it is in none."""
    if inside(module, "stages"):
        return "stages"
    path = module.removeprefix("kata_node.")
    is_package = MODULES[module].name == "__init__.py"
    return path if is_package or "." not in path else path.rpartition(".")[0]


def fits(module: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in patterns)


def inside(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("module", [name for name in MODULES if name != "kata_node"])
def test_imports_go_down_the_folders(module: str) -> None:
    folder = folder_of(module)
    upwards = [
        name
        for name in ALL_IMPORTS[module]
        if name in MODULES and name != "kata_node" and folder_of(name) != folder
        if LEVEL[folder_of(name)] <= LEVEL[folder]
    ]
    assert upwards == [], f"{module} is in {folder}"


def test_every_folder_has_its_place_in_the_order() -> None:
    assert {folder_of(name) for name in MODULES if name != "kata_node"} == set(LEVEL)


@pytest.mark.parametrize("program", CONFINED)
def test_a_program_of_its_own_imports_little_of_the_rest(program: str) -> None:
    beyond = {
        (name, each)
        for name in MODULES
        if fits(name, (program,))
        for each in ALL_IMPORTS[name]
        if each in MODULES and not fits(each, CONFINED[program])
    }
    assert beyond == set()


@pytest.mark.parametrize("module", MODULES)
def test_a_module_is_short_enough_to_read(module: str) -> None:
    assert SOURCES[module].count("\n") <= MAX_LINES


@pytest.mark.parametrize("module", MODULES)
def test_no_module_only_forwards(module: str) -> None:
    statements = ast.parse(SOURCES[module]).body
    forwarded = [name for name in ALL_IMPORTS[module] if name in MODULES]
    own = [
        node for node in statements if not isinstance(node, ast.Import | ast.ImportFrom | ast.Expr | ast.If)
    ]
    assert own or not forwarded


def circle(graph: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
    """What is left of a graph when all that leads nowhere is taken away: nothing, where there is no cycle."""
    left = {name: set(names) - {name} for name, names in graph.items()}
    while leaves := [name for name, names in left.items() if not names & set(left)]:
        for name in leaves:
            del left[name]
    return left


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circle({name: names & set(MODULES) for name, names in ALL_IMPORTS.items()}) == {}


def test_no_folders_import_each_other_in_a_circle() -> None:
    folders: dict[str, set[str]] = {}
    for name, names in ALL_IMPORTS.items():
        ours = {folder_of(each) for each in names if each in MODULES}
        folders.setdefault(folder_of(name), set()).update(ours)
    assert circle(folders) == {}


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
        "import kata_node.cli.commands",
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
        "import kata_node.daemon.daemon",
        (
            *("typer", "click", "yaml", "msgspec", "lightkube", "httpx2", "ssl", "http", "asyncio", "email"),
            *(
                "subprocess",
                "tempfile",
                "kata_node.cli.commands",
                "kata_node.pipeline",
                "kata_node.kube.client",
                "stages",
            ),
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
