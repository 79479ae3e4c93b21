"""The checks of host-check about the paths that the stages write. Pure.

All failures are permanent: a path becomes writable only if somebody changes the node or the settings.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from kata_node.checks.facts import HostCheckFacts
from kata_node.errors import KataNodeError
from kata_node.host.write_access import WriteAccess
from kata_node.plan import receipt as receipts
from kata_node.plan.report import Finding
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.file_records import pending_changes
from kata_node.snapshotters.mapping import UNIT_DIR

if TYPE_CHECKING:
    from kata_node.settings.model import Settings

Purpose = Literal["install dir", "main file", "drop-in", "unit"]


def checks(settings: Settings, facts: HostCheckFacts) -> Iterator[Finding]:
    """Yield a finding for each path that cannot be written, and one for all others."""
    written = dict(_written_paths(settings, facts))
    accesses = {path: facts.access[path] for path in written if path in facts.access}
    is_container = any(isinstance(access, WriteAccess) and access.visible for access in accesses.values())
    failed: dict[str, Finding] = {}
    for path, access in accesses.items():
        if isinstance(access, KataNodeError):
            reason = f"{access.where}: {access.what}" if access.where else access.what
            failed.setdefault(reason, Finding("writable", "fail", reason, access.hint))
            continue
        found = _problem(access, written[path], facts, is_container=is_container)
        if found is not None:
            failed.setdefault(found.reason, found)
    yield from failed.values()
    if not failed:
        directories = (access.directory for access in accesses.values() if isinstance(access, WriteAccess))
        yield Finding("writable", "pass", ", ".join(dict.fromkeys(directories)))
    access_to_programs = facts.access.get(settings.install_dir)
    if facts.offline or not isinstance(access_to_programs, WriteAccess):
        return
    if access_to_programs.executable:
        yield Finding("executable", "pass", f"programs below {settings.install_dir} can be run")
        return
    yield Finding(
        "executable",
        "fail",
        f"the file system of {access_to_programs.directory} is mounted noexec, so no program below "
        f"{settings.install_dir} can be run",
        "remove noexec from its entry in /etc/fstab or from its mount unit and run `mount -o remount,exec` "
        "for it, or set env.installationPrefix to a directory on another file system",
    )


def _written_paths(settings: Settings, facts: HostCheckFacts) -> Iterator[tuple[str, Purpose]]:
    """Yield the paths that an installation writes, as far as they differ from what is there."""
    inside = f"{settings.install_dir}/"
    record_dirs = (receipts.directory(settings.install_dir), receipts.backups(settings.install_dir))
    runtime = facts.runtime
    for path in facts.access:
        if path in (settings.install_dir, *record_dirs):
            yield path, "install dir"
        elif path.startswith(f"{UNIT_DIR}/") and _is_unit_directory_there(facts):
            yield path, "unit"
    if isinstance(runtime, KataNodeError):
        return
    try:
        changes = runtime.config.desired_config(settings, runtime.contents).changes
    except KataNodeError:
        return  # another check reports it
    shared = runtime.config.shared_paths()
    for change in pending_changes(runtime, changes):
        purpose: Purpose = "main file" if change.path in shared else "drop-in"
        yield change.path, "install dir" if change.path.startswith(inside) else purpose


def _is_unit_directory_there(facts: HostCheckFacts) -> bool:
    """Return whether the directory of units exists. The check of nydus reports a missing one."""
    nydus = facts.runtime.nydus if isinstance(facts.runtime, RuntimeFacts) else None
    return nydus is not None and UNIT_DIR in nydus.directories


def _problem(
    access: WriteAccess, purpose: Purpose, facts: HostCheckFacts, *, is_container: bool
) -> Finding | None:
    """Return the first reason why a path cannot be written, with the remedy for this kind of path."""
    path, directory = access.path, access.directory
    named = path if access.real_path == path else f"{path}, which is {access.real_path},"
    is_link = access.real_path != path and purpose == "main file"
    reason, remedy = "", ""
    if access.special:
        reason = f"{named} is {access.special}, which cannot be replaced by a file"
        remedy = f"replace {path if access.real_path == path else f'the symlink {path}'} by a plain file"
    elif is_container and not access.visible:
        above = path if purpose == "install dir" else posixpath.dirname(path)
        reason = f"the node's {above} is not mounted below the host root"
        remedy = f"mount the node's {above} below the host root"
        if purpose == "main file" and _is_containerd(facts):
            remedy += (
                "; in a cluster, set containerd.configDir and containerd.configFileName to the directory and "
                f"the name of {path}"
            )
    elif access.obstacle:
        reason = f"{access.obstacle} is not a directory, and {path} must be below it"
        remedy = f"move {access.obstacle} away"
    elif access.missing_directory:
        reason = (
            f"{path} is a symlink to {access.real_path}, and the directory {access.missing_directory} does "
            "not exist"
        )
        remedy = f"create the directory {access.missing_directory}, or remove the symlink"
    elif access.mount_point:
        reason = f"{named} is a mount of its own, so no program can replace it"
        remedy = f"unmount {access.real_path} and put a plain file in its place"
    elif access.read_only:
        reason = f"{named if is_link else directory} is on a read-only file system"
        remedy = f"replace the symlink {path} by a plain file" if is_link else f"make {directory} writable"
    elif access.unchangeable:
        reason = f"{access.unchangeable} has the attribute immutable or append only"
        remedy = f"run `chattr -i -a {access.unchangeable}`"
    elif not access.writable:
        reason = f"{directory} is not writable for this user"
        remedy = f"run as root, or make {directory} writable"
    else:
        return None
    return Finding("writable", "fail", reason, remedy + _other_way(access, purpose, facts))


def _other_way(access: WriteAccess, purpose: Purpose, facts: HostCheckFacts) -> str:
    """Return what else a person can do about a path that cannot be written; ``""`` if nothing."""
    if purpose == "install dir":
        return ", or set env.installationPrefix to a writable directory"
    if purpose == "unit":
        return ", or remove nydus from snapshotter.setup"
    runtime = facts.runtime
    if purpose != "main file" or not isinstance(runtime, RuntimeFacts) or not access.visible:
        return ""
    paths = runtime.distribution_runtime
    if runtime.runtime.name == "containerd" and runtime.runtime.version.at_least(2, 2) and not paths.template:
        conf_d = f"{posixpath.dirname(runtime.config_path)}/conf.d"
        return (
            f', or let the program that manages it write imports = ["{conf_d}/*.toml"] into it; kata-node '
            "then does not change this file"
        )
    return ""


def _is_containerd(facts: HostCheckFacts) -> bool:
    return isinstance(facts.runtime, RuntimeFacts) and facts.runtime.runtime.name == "containerd"
