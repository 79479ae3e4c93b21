"""scripts/scan: what is found, and what could not be checked, decide its exit code."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
SAFE = {"name": "a", "version": "1", "vulns": []}
SKIPPED = {"name": "b", "skip_reason": "not found on PyPI"}
WEAK = {"name": "c", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}


@pytest.fixture
def scan() -> Any:
    loader = SourceFileLoader("scan", str(CHECKOUT / "scripts/scan"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("packages", "code", "says"),
    [
        pytest.param([SAFE], 0, "1 packages checked", id="nothing"),
        pytest.param([SAFE, WEAK], 1, "c 1: PYSEC-1, fixed in 2", id="a vulnerability"),
        pytest.param([WEAK, SKIPPED], 1, "no advisories for the other packages", id="both"),
        pytest.param([SAFE, SKIPPED], 3, "no advisories for the other packages", id="a gap"),
        pytest.param(None, 3, "no advisories for the other packages: no route", id="out of reach"),
    ],
)
def test_the_requirements_are_safe_weak_or_not_checked(
    scan: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    packages: list[Any] | None,
    code: int,
    says: str,
) -> None:
    def run(command: Sequence[object]) -> subprocess.CompletedProcess[str]:
        answer = "" if packages is None else json.dumps({"dependencies": packages})
        return subprocess.CompletedProcess([], 1, answer, "warning\nno route\n")

    monkeypatch.setattr(scan, "run", run)
    assert scan.scan_requirements() == code
    assert says in capsys.readouterr().out


def test_without_helm_the_chart_counts_as_not_checked(scan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("HELM", raising=False)
    assert scan.scan_chart() == 3


def test_advisories_name_the_source_package(scan: Any, tmp_path: Path) -> None:
    plain, from_source = tmp_path / "zlib1g", tmp_path / "libc6"
    plain.write_text("Package: libffi8\nVersion: 3.4\nDescription: a\n b: c\n")
    from_source.write_text("Package: libc6\nSource: glibc (2.41-1)\nVersion: 2.41-1+b2\n")
    assert scan.source_of(plain) == ("libffi8", "3.4")
    assert scan.source_of(from_source) == ("glibc", "2.41-1")
