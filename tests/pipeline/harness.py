"""Helpers that run the pipeline on a fake node, and show the result as a user sees it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fakes import DEVICES, FakeNode
from kata_node import pipeline
from kata_node.host.files import Root
from kata_node.payload import index
from kata_node.plan.context import Options
from kata_node.plan.last_run import Invocation
from kata_node.plan.report import StageReport
from kata_node.settings import load as settings
from kata_node.status.gather import gather
from kata_node.status.model import NodeStatus
from kata_node.status.verdict import Caller
from payloads import CONFIG as KATA_CONFIG
from payloads import FILES, Content, tree, without_last_runs
from stages import artifacts, claim, cri, host_check, label, remove_artifacts, revert_cri, unclaim, unlabel

INSTALL = (host_check, claim, artifacts, cri, label)
REVERT = (unlabel, revert_cri, remove_artifacts, unclaim)
CONFIG = b"# the admin's\nversion = 3\n\n[debug]\n  level = 'info' # keep\n"

NOT_TYPED = Invocation()

SMALL: dict[str, Content] = {
    **{
        path: content[:64] if isinstance(content, bytes) and len(content) > 4096 else content
        for path, content in FILES.items()
    },
    "bin/cloud-hypervisor": b"#!clh",
    "share/defaults/kata-containers/configuration-clh.toml": KATA_CONFIG.replace(
        "qemu-system-x86_64", "cloud-hypervisor"
    ).encode(),
}
"""The files of a payload for the shims qemu and clh. They are small, so that tests place them quickly."""


def small_payload(directory: Path) -> Path:
    index.write_manifest(tree(directory, SMALL))
    return directory


class Killed(BaseException):
    """Stands for SIGKILL: kata-node does not catch it. Unlike SIGKILL, it releases locks."""


def make_node(base: Path) -> FakeNode:
    (base / "etc/containerd").mkdir(parents=True)
    (base / "etc/containerd/config.toml").write_bytes(CONFIG)
    (base / "dev").mkdir()
    for path in DEVICES:
        (base / path).touch()
    (base / "run").mkdir()
    (base / "opt").mkdir()
    return FakeNode(Root(base), handlers=("runc",))


def run(
    node: FakeNode,
    stages: Any,
    payload: Path,
    *,
    user_drop_in: str = "",
    dry_run: bool = False,
    restart_timeout: float = 5,
    offline: bool = False,
    node_name: str = "",
    runtime: str = "",
    machine_id: str = "",
    cri_socket: str = "",
    lock_timeout: float = 1,
    wait_for_pods: float = 0,
    ignore_pods: bool = False,
    startup_taints: str = "",
    has_host_root: bool = False,
    retry_refused: bool = False,
    report: Callable[[StageReport], None] = lambda _: None,
    invocation: Invocation = NOT_TYPED,
    **values: str,
) -> list[StageReport]:
    """Run ``stages`` with the shim qemu, and return the reports. ``values`` are overrides of the settings."""
    loaded = settings.load(None, overrides={"shims": "qemu", **values}, arch="x86_64")
    loaded = replace(loaded, user_drop_in=user_drop_in, startup_taints=tuple(startup_taints.split()))
    options = Options(
        payload,
        offline=offline,
        runtime=runtime,
        cri_socket=cri_socket,
        restart_timeout=restart_timeout,
        wait_for_pods=wait_for_pods,
        ignore_pods=ignore_pods,
        node_name=node_name,
        stable_for=0,
        expected_machine_id=machine_id,
        has_host_root=has_host_root,
        retry_refused=retry_refused,
        settings_digest=loaded.digest(),
    )
    clients = node.clients()
    parameters = pipeline.Run(loaded, options, clients, lock_timeout, dry_run, report, invocation)
    return pipeline.run(stages, parameters)


def node_status(
    node: FakeNode,
    payload: Path,
    *,
    deep: bool = False,
    offline: bool = False,
    caller: Caller | None = None,
    **values: str,
) -> NodeStatus:
    loaded = settings.load(None, overrides={"shims": "qemu", **values}, arch="x86_64")
    return gather(loaded, Options(payload, offline=offline), node.clients(), deep=deep, caller=caller)


def snapshot(node: FakeNode, below: str = "") -> dict[str, tuple[object, ...]]:
    """Return mode, digest and link target of every path of the node, or of the paths in ``below``.

    The record of the last run is left out: a failed run changes it, and nothing else.
    """
    found: dict[str, tuple[object, ...]] = {}
    for directory, dirs, names in os.walk(node.root.base / below):
        for name in (*dirs, *names):
            path = Path(directory, name)
            info = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            target = os.readlink(path) if path.is_symlink() else ""
            found[str(path.relative_to(node.root.base))] = (oct(info.st_mode), content, target)
    return without_last_runs(found)


def outcomes(reports: list[StageReport]) -> list[str]:
    return [f"{report.stage} {report.outcome} {report.error or ''}".strip() for report in reports]


def errors(reports: list[StageReport]) -> list[object]:
    return [report.error for report in reports if report.error]


def exit_code(reports: list[StageReport]) -> int:
    return next((report.exit_code for report in reports if report.error), 0)


@contextmanager
def killed_after(changes: int) -> Iterator[None]:
    """Allow this number of changes of files and restarts, and raise :class:`Killed` at the next one."""
    left = iter(range(changes))

    def guard(change: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if next(left, None) is None:
                raise Killed
            return change(*args, **kwargs)

        return guarded

    with pytest.MonkeyPatch.context() as patched:
        for name in ("rename", "unlink", "symlink_to", "mkdir", "rmdir"):
            patched.setattr(Path, name, guard(getattr(Path, name)))
        for name in ("rename", "replace", "unlink", "symlink", "link", "mkdir", "rmdir"):
            patched.setattr(os, name, guard(getattr(os, name)))
        patched.setattr(FakeNode, "restart", guard(FakeNode.restart))
        yield
