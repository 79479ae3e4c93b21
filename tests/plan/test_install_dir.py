"""The install dir is not a directory of the system, also not by a symlink or by a mount."""

from __future__ import annotations

from pathlib import Path

import pytest

from kata_node.errors import IneligibleNodeError
from kata_node.host.files import Root
from kata_node.plan import install_dir
from kata_node.plan.install_dir import require_own_directory

INSTALL_DIR = "/opt/kata"


@pytest.fixture
def root(tmp_path: Path) -> Root:
    for each in ("opt", "etc/containerd", "usr", "srv/kata"):
        (tmp_path / each).mkdir(parents=True)
    return Root(tmp_path)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("opt/kata", "/etc"),
        ("opt/kata", "../usr/./"),
        ("opt/kata", "//usr//lib"),
        ("opt/kata", "/var/lib/kubelet/pods"),
    ],
)
def test_a_symlink_to_a_directory_of_the_system_is_refused_until_it_is_gone(
    root: Root, link: str, target: str
) -> None:
    (root.base / link).symlink_to(target)
    with pytest.raises(IneligibleNodeError, match="a directory of the system") as refused:
        require_own_directory(root, INSTALL_DIR)
    assert f"/{link}" in refused.value.hint
    (root.base / link).unlink()
    require_own_directory(root, INSTALL_DIR)


def test_a_symlink_to_a_directory_of_ones_own_is_allowed(root: Root) -> None:
    (root.base / "opt/kata").symlink_to("/srv/kata")
    require_own_directory(root, INSTALL_DIR)


@pytest.mark.parametrize(
    ("mounted", "is_refused"),
    [
        ("/etc", True),
        ("/root/etc", True),
        ("/root/srv/mine", False),
        ("/root/opt/kata", False),
        ("/var/opt/kata", False),
        ("/", False),
    ],
)
def test_a_container_asks_the_kernel_what_the_kubelet_mounted(
    root: Root, monkeypatch: pytest.MonkeyPatch, mounted: str, *, is_refused: bool
) -> None:
    (root.base / "usr").rmdir()  # now it is the root of a container, not of a node
    (root.base / "opt/kata").mkdir()
    monkeypatch.setattr(install_dir, "mounted_directory", lambda path: mounted)
    if is_refused:
        with pytest.raises(IneligibleNodeError, match="leads to /etc"):
            require_own_directory(root, INSTALL_DIR)
    else:
        require_own_directory(root, INSTALL_DIR)
