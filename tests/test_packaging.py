"""The pins, the wheel and the image agree with each other, and no file names a local path."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CHECKOUT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
MACHINES = ("x86_64", "aarch64", "s390x", "ppc64le")


def group(name: str) -> list[str]:
    """Return the requirements of a dependency group, including those of its included groups."""
    lines: list[str] = []
    for each in PROJECT["dependency-groups"][name]:
        lines += [each] if isinstance(each, str) else group(each["include-group"])
    return lines


REQUIREMENTS = {
    "runtime": PROJECT["project"]["dependencies"],
    "build": [*PROJECT["build-system"]["requires"], *group("build")],
    "compile": group("compile"),
    "dev": [*PROJECT["project"]["dependencies"], *group("dev")],
}
"""The requirements that each lock file must satisfy."""


def pins(name: str) -> dict[str, Requirement]:
    """Return the packages of a lock file by their canonical names."""
    text = re.sub(
        r"\\\n|^ *#.*$", "", (CHECKOUT / f"requirements/{name}.txt").read_text(), flags=re.MULTILINE
    )
    found = [Requirement(line.partition(" --hash=")[0]) for line in text.splitlines() if "==" in line]
    return {canonicalize_name(each.name): each for each in found}


def environments() -> Iterator[dict[str, str]]:
    for python in PYTHONS:
        for machine in MACHINES:
            yield {
                "python_version": python,
                "python_full_version": f"{python}.9",
                "platform_machine": machine,
                "sys_platform": "linux",
                "platform_python_implementation": "CPython",
            }


def applies(requirement: Requirement, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment)


@pytest.mark.parametrize(
    ("name", "requirement"),
    [
        pytest.param(name, line, id=f"{name}: {line}")
        for name, lines in REQUIREMENTS.items()
        for line in lines
    ],
)
def test_a_dependency_is_pinned_to_a_version_within_its_range(name: str, requirement: str) -> None:
    wanted = Requirement(requirement)
    pinned = pins(name).get(canonicalize_name(wanted.name))
    assert pinned is not None, f"{wanted.name} is not pinned: run scripts/lock"
    (version,) = [each.version for each in pinned.specifier if each.operator == "=="]
    assert wanted.specifier.contains(version, prereleases=True), (
        f"{version} is out of range: run scripts/lock"
    )
    for environment in environments():
        if applies(wanted, environment):
            assert applies(pinned, environment), f"not pinned for {environment}"


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_a_lock_file_has_only_pins_with_hashes_and_no_urls(name: str) -> None:
    entries = re.sub(r"\\\n", "", (CHECKOUT / f"requirements/{name}.txt").read_text()).splitlines()
    pinned = re.compile(r"[a-z0-9-]+==[\w.]+(?: ; [^@/]+?)?(?: +--hash=sha256:[0-9a-f]{64})+")
    strange = [line for line in entries if not pinned.fullmatch(line) and not line.lstrip().startswith("#")]
    assert not strange
    assert "://" not in "".join(entries)


@pytest.mark.parametrize("name", ["runtime", "build"])
def test_the_tests_use_the_versions_of_the_image_and_its_build(name: str) -> None:
    tested = pins("dev")
    assert {each: str(tested[each].specifier) for each in pins(name)} == {
        each: str(pinned.specifier) for each, pinned in pins(name).items()
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    directory = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(CHECKOUT)).build(directory=str(directory), versions=["standard"])
    return zipfile.ZipFile(path)


def test_the_wheel_has_only_the_programs_and_their_data(wheel: zipfile.ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        str(path.relative_to(CHECKOUT))
        for package in ("kata_node", "stages")
        for path in (CHECKOUT / package).rglob("*")
        if path.suffix in {".py", ".typed"}
    }
    chart = ("files/gone.json", "files/system-dirs.json", "values.schema.json", "values.yaml")
    data = ("kata-keys.toml", "shims.toml", *(f"chart/kata-deploy/{name}" for name in chart))
    pages = ("reference/exit-codes.md", "troubleshooting.md")
    expected |= {f"kata_node/docs/{name}" for name in pages}
    assert names == expected | {f"kata_node/assets/{name}" for name in data}


def test_the_wheel_has_the_commands(wheel: zipfile.ZipFile) -> None:
    (entry,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert wheel.read(entry).decode().splitlines() == [
        "[console_scripts]",
        "kata-deploy-job-dispatcher = kata_node.dispatcher.__main__:main",
        "kata-node = kata_node.__main__:main",
        "kubectl-kata = kata_node.__main__:kubectl_kata",
    ]


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Containerfile with their arguments on one line, without comments."""
    text = re.sub(r"^\s*#.*\n", "", (CHECKOUT / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines) if word]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Return the instructions of each build stage by its name; the last stage has the name ``""``."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            found[rest.partition(" AS ")[2]] = []
        if found:
            list(found.values())[-1].append((word, rest))
    return found


def context() -> list[str]:
    """Return the files of the checkout that the image build copies."""
    return [
        source
        for word, rest in instructions()
        if word == "COPY" and not rest.startswith(("--from", "${"))
        for source in rest.split()[:-1]
    ]


def test_the_image_starts_empty_and_runs_the_command() -> None:
    program = dict(stages()["program"])
    assert program["FROM"] == "scratch AS program"
    assert json.loads(program["ENTRYPOINT"]) == ["/usr/bin/kata-node"]
    assert "RUN" not in program


def test_the_image_of_the_dispatcher_starts_empty_and_does_not_run_as_root() -> None:
    dispatcher = dict(stages()["dispatcher"])
    assert dispatcher["FROM"] == "scratch AS dispatcher"
    assert json.loads(dispatcher["ENTRYPOINT"]) == ["/usr/bin/kata-deploy-job-dispatcher"]
    assert dispatcher["USER"].partition(":")[0] not in ("", "0", "root")
    assert "RUN" not in dispatcher


def test_the_image_of_the_dispatcher_has_only_the_modules_that_it_needs(wheel: zipfile.ZipFile) -> None:
    [(_, command)] = [each for each in stages()["build-dispatcher"] if each[0] == "RUN"]
    removed = set(re.findall(r"kata_node/([\w.]+)", command.partition("rm -r ")[2].partition(";")[0]))
    there = {PurePosixPath(name).parts[1] for name in wheel.namelist() if name.startswith("kata_node/")}
    assert removed - there == set()
    assert there - removed == {
        *("__init__.py", "__main__.py", "py.typed"),
        *("bounded_read.py", "errors.py", "log.py", "signals.py", "text.py", "versions.py"),
        "assets.py",
        *("dispatcher", "kube", "plan", "settings"),
    }


def test_the_image_with_a_payload_adds_only_the_payload_and_its_manifest() -> None:
    assert [word for word, _ in stages()["program-with-payload"]] == ["FROM", "ARG", "COPY", "RUN"]
    assert [word for word, _ in stages()["program-with-payload-image"]] == ["FROM", "COPY", "RUN"]
    chosen = "program${PAYLOAD:+-with-payload}${PAYLOAD_IMAGE:+-with-payload-image}"
    assert stages()[""] == [("FROM", chosen)]


def test_a_compiler_is_installed_only_for_architectures_without_wheels_in_the_stage_of_the_packages() -> None:
    installing = {name for name, lines in stages().items() for _, rest in lines if "apt-get install" in rest}
    assert installing == {"packages"}
    [installed] = re.findall(r"python3-venv (.*)", (CHECKOUT / "Containerfile").read_text())
    assert installed == "$compiler"
    chosen = dict(
        re.findall(r"^ +([\w |]+)\) compiler=(.*) ;;", (CHECKOUT / "Containerfile").read_text(), re.M)
    )
    assert chosen == {
        "amd64 | arm64": "",
        "ppc64el": '"gcc-powerpc64le-linux-gnu libc6-dev-ppc64el-cross"',
        "s390x": '"gcc-s390x-linux-gnu libc6-dev-s390x-cross"',
    }


def test_the_debian_packages_of_the_image_are_pinned_for_each_architecture_of_a_release() -> None:
    names, _ = re.findall(r'packages="([^"]+)"', (CHECKOUT / "Containerfile").read_text())
    pinned = (CHECKOUT / "requirements/debian.txt").read_text()
    python = re.findall(r" (python3\.\d+)-minimal_", pinned)[0]
    wanted = set(re.sub(r"\\\n", " ", names).replace("$python", python).split())
    for architecture, headers in (("amd64", 0), ("arm64", 0), ("ppc64el", 1), ("s390x", 1)):
        found = re.findall(rf"^[0-9a-f]{{64}}  ([^_]+)_[^_]+_{architecture}\.deb$", pinned, re.MULTILINE)
        assert set(found) == wanted | ({f"lib{python}-dev"} if headers else set()), (
            "run scripts/lock --debian"
        )


def test_the_files_of_the_image_build_exist_and_are_not_ignored() -> None:
    patterns = [
        line.removeprefix("/")
        for line in (CHECKOUT / ".containerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert context()
    for source in context():
        assert (CHECKOUT / source).exists()
        ignored = [pattern for pattern in patterns if fnmatch.fnmatch(source.partition("/")[0], pattern)]
        assert not ignored, f".containerignore ignores {source}"


def test_the_image_build_copies_all_sources_of_the_wheel() -> None:
    hatch = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {
        *hatch["packages"],
        *hatch["force-include"],
        PROJECT["project"]["readme"],
        *PROJECT["project"]["license-files"],
        "pyproject.toml",
    }
    assert needed <= set(context())


def test_the_image_installs_only_pinned_packages() -> None:
    text = " ".join(rest for word, rest in instructions() if word == "RUN")
    installs = re.findall(r"pip(?: --python \S+)? install ([^;]*)", text)
    assert installs
    for options in installs:
        assert "--require-hashes" in options or "--no-deps" in options
    for lock in re.findall(r"-r /([\w./-]+)", text):
        assert (CHECKOUT / lock).is_file()


def test_the_programs_in_scripts_are_executable_and_linted() -> None:
    programs = [path for path in (CHECKOUT / "scripts").iterdir() if not path.name.startswith(("_", "."))]
    first_lines = {path: path.read_text().partition("\n")[0] for path in programs if path.is_file()}
    assert set(first_lines.values()) == {"#!/usr/bin/env python3", "#!/usr/bin/env bash"}
    assert all(os.access(path, os.X_OK) for path in first_lines)
    python = {f"scripts/{path.name}" for path, line in first_lines.items() if line.endswith("python3")}
    assert set(PROJECT["tool"]["ruff"]["extend-include"]) == python


def tracked() -> Iterator[Path]:
    """Return all files of the checkout except those that .gitignore names."""
    ignored = {".git", *(line.strip("/") for line in (CHECKOUT / ".gitignore").read_text().splitlines())}
    for directory, names, files in os.walk(CHECKOUT):
        names[:] = [name for name in names if name not in ignored]
        yield from (Path(directory, name) for name in files if name not in ignored)


@pytest.mark.parametrize(
    "word",
    # Joined here, so that this file does not contain them.
    [
        ".".join(("pypi", "org")),
        ".".join(("pythonhosted", "org")),
        ".".join(("deb", "debian", "org")),
        ".".join(("proxy", "golang", "org")),
        ".".join(("registry", "npmjs", "org")),
        "/".join(("", "work", "")),
        "/".join(("", "root", ".")),
    ],
)
def test_no_file_names_a_package_registry_or_a_local_path(word: str) -> None:
    found = [str(path.relative_to(CHECKOUT)) for path in tracked() if word.encode() in path.read_bytes()]
    assert not found
