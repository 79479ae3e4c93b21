"""The layers of the code: imports go in one direction. Lazy imports inside functions count too."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TypeGuard

import pytest

PROJECT = Path(__file__).parent.parent

# The folders of kata_node from top to bottom. A module outside a folder has its own entry. An import, even
# one only for type checking, stays in its folder or goes to a lower row. Folders of the same row do not
# import each other.
ORDER = (
    ("__main__",),
    ("cli", "dispatcher"),
    ("daemon",),
    ("stages",),
    ("pipeline", "status", "release"),
    ("stage_lock",),
    ("checks", "cluster"),
    ("runtime",),
    ("runtime.containerd",),
    ("runtime.model",),
    ("payload",),
    ("snapshotters",),
    ("kata",),
    ("plan",),
    ("values",),
    ("settings", "host", "kube"),
    ("versions",),
    ("toml", "assets", "log", "bounded_read", "signals"),
    ("text",),
    ("errors",),
)
LEVEL = {folder: level for level, row in enumerate(ORDER) for folder in row}

# In addition to the order: the only modules of ours that a separate program may import.
CONFINED = {
    # Its image does not contain the code that runs on nodes.
    "kata_node.dispatcher.*": (
        *("kata_node", "kata_node.dispatcher.*", "kata_node.kube.*", "kata_node.plan.report"),
        *("kata_node.settings.values", "kata_node.settings.config_file", "kata_node.bounded_read"),
        *(f"kata_node.cluster.{each}" for each in ("events", "labels", "ownership", "taints")),
        *("kata_node.errors", "kata_node.log", "kata_node.text"),
    ),
    # It keeps running on the node, so it must stay small. Its child processes do the work.
    "kata_node.daemon.*": (
        *("kata_node.daemon.*", "kata_node.kube.node_affinity"),
        *("kata_node.errors", "kata_node.log", "kata_node.text"),
    ),
}
MAX_LINES = 400

# Modules that only some of ours may import, because they leave this process or cost start-up time.
RESERVED = {
    "stages": ("kata_node.cli.run_stages",),
    "typer": ("kata_node.cli.*",),
    "yaml": ("kata_node.settings.yaml_parse", "kata_node.values.yaml_text"),
    "psutil": ("kata_node.checks.hardware",),
    "lightkube": ("kata_node.kube.*",),
    "httpx2": ("kata_node.kube.*", "kata_node.dispatcher.api"),
    "http": ("kata_node.kube.session",),
    "ssl": ("kata_node.kube.*",),
    "jeepney": ("kata_node.host.dbus",),
    "h2": ("kata_node.host.grpc",),
    "backports": ("kata_node.host.*",),
    "compression": ("kata_node.host.*",),
    "socket": ("kata_node.host.*", "kata_node.daemon.*", "kata_node.cli.daemon"),
    "fcntl": ("kata_node.host.*", "kata_node.daemon.watch"),
    "shutil": (),
    "tempfile": (),
    "subprocess": (),
}

# The modules that may access files, and what they access. Other modules use the host layer.
FILES = ("os", "pathlib")
TOUCHES_FILES = {
    "kata_node.host.*": "the node",
    "kata_node.assets": "the data in this package",
    "kata_node.cli.*": "the user id, environment variables, and paths on the command line",
    "kata_node.dispatcher.__main__": "environment variables, and paths on the command line",
    "kata_node.dispatcher.config": "its configuration, in this container",
    "kata_node.daemon.daemon": "its child processes",
    "kata_node.daemon.child_process": "its environment variables",
    "kata_node.daemon.failure": "the termination message of its children",
    "kata_node.daemon.watch": "files of the node, by paths that the host layer resolved",
    "kata_node.cli.verify": "the name of this pod",
    "kata_node.plan.context": "the path of the payload",
    "kata_node.payload.facts": "the install dir, by paths that the host layer resolved",
    "kata_node.checks.hardware": "the free space, by paths that the host layer resolved",
    "kata_node.kube.credentials": "this pod's own credentials",
    "kata_node.payload.*": "the payload, in this container",
    "kata_node.plan.report": "this container's termination message",
    "kata_node.settings.values": "the values file, in this container",
    "kata_node.values.chart": "the chart's files in this package",
}

# Modules without side effects: from the host layer they may import only types and rules.
PURE = (
    "kata_node.checks.table",
    "kata_node.cluster.labels",
    "kata_node.cluster.ownership",
    "kata_node.cluster.taints",
    "kata_node.daemon.daemonset",
    "kata_node.dispatcher.adoption",
    "kata_node.dispatcher.drift",
    "kata_node.dispatcher.eligibility",
    "kata_node.dispatcher.failures",
    "kata_node.dispatcher.kubernetes_objects",
    "kata_node.dispatcher.progress",
    "kata_node.dispatcher.rollout",
    "kata_node.dispatcher.template",
    "kata_node.errors",
    "kata_node.kata.*",
    "kata_node.kube.node_affinity",
    "kata_node.kube.node_status",
    "kata_node.payload.layout",
    "kata_node.payload.manifest",
    "kata_node.runtime.compatibility",
    "kata_node.runtime.config_selection",
    "kata_node.runtime.containerd.*",
    "kata_node.runtime.crio",
    "kata_node.runtime.file_records",
    "kata_node.runtime.model.*",
    "kata_node.runtime.not_served",
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
    "kata_node.release.archive",
    "kata_node.release.masking",
    "kata_node.release.model",
    "kata_node.release.text",
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
    """Return the modules that ``source`` imports, at run time or also for type checking."""
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
    """Return the folder of a module below ``kata_node``, or its own name if it is not in a folder."""
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


def test_every_folder_is_in_the_order() -> None:
    assert {folder_of(name) for name in MODULES if name != "kata_node"} == set(LEVEL)


@pytest.mark.parametrize("program", CONFINED)
def test_a_separate_program_imports_only_its_allowed_modules(program: str) -> None:
    beyond = {
        (name, each)
        for name in MODULES
        if fits(name, (program,))
        for each in ALL_IMPORTS[name]
        if each in MODULES and not fits(each, CONFINED[program])
    }
    assert beyond == set()


@pytest.mark.parametrize("module", MODULES)
def test_a_record_is_a_struct_of_msgspec(module: str) -> None:
    # To define a frozen dataclass takes thirty times as long, and a stage loads a hundred records.
    assert not re.search(r"^ *(import|from) dataclasses\b", SOURCES[module], re.MULTILINE)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_at_most_400_lines(module: str) -> None:
    assert SOURCES[module].count("\n") <= MAX_LINES


@pytest.mark.parametrize("module", MODULES)
def test_no_module_only_reexports_others(module: str) -> None:
    statements = ast.parse(SOURCES[module]).body
    forwarded = [name for name in ALL_IMPORTS[module] if name in MODULES]
    own = [
        node for node in statements if not isinstance(node, ast.Import | ast.ImportFrom | ast.Expr | ast.If)
    ]
    assert own or not forwarded


def cycles(graph: Mapping[str, Collection[str]]) -> dict[str, set[str]]:
    """Remove nodes without outgoing edges again and again; return the rest, which has all cycles."""
    left = {name: set(names) - {name} for name, names in graph.items()}
    while leaves := [name for name, names in left.items() if not names & set(left)]:
        for name in leaves:
            del left[name]
    return left


def test_modules_do_not_import_each_other_in_a_cycle() -> None:
    assert cycles({name: names & set(MODULES) for name, names in ALL_IMPORTS.items()}) == {}


def test_folders_do_not_import_each_other_in_a_cycle() -> None:
    folders: dict[str, set[str]] = {}
    for name, names in ALL_IMPORTS.items():
        ours = {folder_of(each) for each in names if each in MODULES}
        folders.setdefault(folder_of(name), set()).update(ours)
    assert cycles(folders) == {}


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
def test_every_form_of_import_is_found(source: str, found: set[str]) -> None:
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
            *("yaml", "kata_node.pipeline", "stages", "rich"),
            *("kata_node.cli.explain", "kata_node.cli.colors", "kata_node.cli.progress"),
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
def test_a_program_loads_only_the_modules_that_it_uses(what: str) -> None:
    code, forbidden = START_UP[what]
    report = "import sys; print(*sys.modules, sep='\\n', file=sys.stderr)"
    run = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert sorted(set(run.stderr.splitlines()) & set(forbidden)) == []
