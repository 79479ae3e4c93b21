"""host-check on the files of a node: which paths it looks at, before anything is written."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from fakes import MAIN, FakeNode
from kata_node.checks.facts import gather_facts
from kata_node.checks.table import all_findings
from kata_node.host.files import Root
from kata_node.plan.context import Options, StageContext
from kata_node.plan.receipt import Receipt
from kata_node.plan.report import Finding
from kata_node.settings import load as settings


def findings(root: Path, **node: Any) -> list[Finding]:
    """Return the findings about files and directories."""
    loaded = settings.load(None, overrides={"shims": "qemu"}, arch="x86_64")
    receipt = Receipt("default", "/opt/kata", "1")
    clients = FakeNode(Root(root), **node).clients()
    facts = gather_facts(StageContext(loaded, receipt, clients, Options(root / "no-payload")))
    return [
        finding
        for finding in all_findings(loaded, facts, receipt)
        if finding.name in ("runtime", "writable", "executable")
    ]


CRIO = {"unit_name": "crio.service", "runtime_name": "cri-o", "version": "1.36.3", "argv": ("crio",)}


@pytest.mark.parametrize(
    ("file", "node", "names"),
    [
        pytest.param("opt", {}, "/opt is not a directory", id="above-the-install-dir"),
        pytest.param("opt/kata", {}, "/opt/kata", id="install-dir"),
        pytest.param("opt/kata/containerd", {}, "/opt/kata/containerd/", id="drop-ins"),
        pytest.param("opt/kata/.kata-node", {}, "/opt/kata/.kata-node is not a directory", id="receipt"),
        pytest.param("etc/containerd", {}, "/etc/containerd/", id="main-file"),
        pytest.param("etc/crio/crio.conf.d", CRIO, "/etc/crio/crio.conf.d/", id="crio"),
        pytest.param("etc/crio", CRIO, "/etc/crio/", id="crio-itself"),
    ],
)
def test_a_file_in_the_place_of_a_directory_is_found_before_anything_is_written(
    file: str, node: dict[str, Any], names: str, tmp_path: Path
) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    found = [finding for finding in findings(tmp_path, **node) if finding.status == "fail"]
    assert any(names in finding.reason for finding in found)
    assert all(finding.permanent and "move" in finding.remedy for finding in found)


@pytest.mark.parametrize("node", [{}, CRIO])
def test_a_fresh_node_can_be_written(node: dict[str, Any], tmp_path: Path) -> None:
    assert {finding.status for finding in findings(tmp_path, **node)} == {"pass"}


def test_a_dangling_symlink_of_the_main_file_is_found(tmp_path: Path) -> None:
    main = tmp_path / MAIN.lstrip("/")
    main.parent.mkdir(parents=True)
    main.symlink_to("/gone/config.toml")
    (found,) = [finding for finding in findings(tmp_path) if finding.status == "fail"]
    assert "the directory /gone does not exist" in found.reason
    (tmp_path / "gone").mkdir()
    assert {finding.status for finding in findings(tmp_path)} == {"pass"}


MASKED = [MAIN, "/opt/kata/containerd/config.d/99-kata-deploy.toml"]


def mask(root: Path, path: str) -> list[Finding]:
    """Make ``path`` a link to the null device, and return the findings of failed checks."""
    link = root / path.strip("/")
    link.parent.mkdir(parents=True)
    link.symlink_to("/dev/null")
    return [finding for finding in findings(root) if finding.status == "fail"]


@pytest.mark.parametrize("path", MASKED)
def test_a_file_masked_with_the_null_device_is_found_before_anything_is_written(
    path: str, tmp_path: Path
) -> None:
    (tmp_path / "dev").mkdir()
    try:
        os.mknod(tmp_path / "dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root can make a device")
    (finding,) = mask(tmp_path, path)
    assert f"{path}, which is /dev/null, is a character device" in finding.reason
    assert finding.remedy.startswith(f"replace the symlink {path} by a plain file")
    assert (finding.name, finding.permanent) == ("writable", True)


@pytest.mark.parametrize("path", MASKED)
def test_a_masked_file_is_found_in_a_container_that_does_not_see_the_devices_of_the_node(
    path: str, tmp_path: Path
) -> None:
    (finding,) = mask(tmp_path, path)
    assert f"{path}, which is /dev/null, is a device" in finding.reason


def test_a_directory_in_the_place_of_our_drop_in_is_found(tmp_path: Path) -> None:
    path = "/opt/kata/containerd/config.d/99-kata-deploy.toml"
    (tmp_path / path.strip("/")).mkdir(parents=True)
    found = [finding for finding in findings(tmp_path) if finding.status == "fail"]
    assert any(path in finding.reason and finding.permanent for finding in found)
