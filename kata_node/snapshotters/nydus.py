"""The nydus-snapshotter of an installation: its unit file, its configuration, and the actions on them. Pure.

It runs in proxy mode: Kata's guests pull the images themselves, and it unpacks nothing. It has no daemons
and no mounts, so a restart does not affect containers.

- The runtime's unit wants the nydus unit and starts after it. There is no other dependency, so a restart
  of one unit does not restart the other.
- Its programs are part of the payload. The unit file contains the digests of the program and of the
  configuration, so a change of either changes the unit file.
- It is stopped before its files change, and started after all files are written. So if it is active and
  its files are as wanted, it runs with these files, also after an interrupted run. It needs no record in
  the receipt.
- It is enabled by the symlinks that ``systemctl enable`` makes. This also works while an image is baked.
- Its data directory is never removed: containerd's metadata refers to it, and without it every later pull
  for this snapshotter fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from kata_node.errors import IneligibleNodeError, PayloadError
from kata_node.plan.actions import Action, MakeDirs, MakeLinks, RemoveDirs, RemoveFile, WriteFile
from kata_node.plan.remove_files import RemoveFiles
from kata_node.snapshotters import mapping
from kata_node.snapshotters.mapping import NYDUS, NYDUS_COMPONENT, UNIT_DIR, NydusInstance
from kata_node.snapshotters.unit_actions import DaemonReload, StartUnit, StopUnit

if TYPE_CHECKING:
    from kata_node.settings.model import Settings

PROGRAM_PATH = f"{NYDUS_COMPONENT}/containerd-nydus-grpc"
"""The path of the snapshotter's program in the payload."""


class NydusFacts(Struct, frozen=True):
    """The state of the unit with this installation's name, whoever made it, and of its other files."""

    unit: bytes | None
    """The content of the unit file."""
    config: bytes | None
    """The content of the snapshotter's configuration file."""
    wants_links: Mapping[str, str]
    """The existing symlinks that start it with other units: path to target."""
    directories: frozenset[str]
    """The existing directories, out of those that its files belong in."""
    program: str
    """The sha256 of the snapshotter that the artifacts stage placed; empty if there is none."""
    cri_units: tuple[str, ...]
    """The units that can run containerd, which it has to start before."""
    loaded: bool = False
    """Whether systemd has loaded the unit; False if offline."""
    active: bool = False
    needs_daemon_reload: bool = False
    """Whether the unit file changed after systemd read it."""
    offline: bool = False


def wants_links(nydus: NydusInstance, units: Iterable[str]) -> dict[str, str]:
    """Return the symlinks that start it with ``units``: path to target."""
    return {f"{UNIT_DIR}/{unit}.wants/{nydus.unit}": f"../{nydus.unit}" for unit in units}


def config(nydus: NydusInstance) -> bytes:
    """Return the content of its configuration file."""
    return f"""\
# Managed by kata-node. Changes here are lost.
version = 1
root = "{nydus.data_dir}"
address = "{nydus.socket}"
# The guest pulls and mounts the image: no daemon on the node does.
daemon_mode = "none"

[daemon]
fs_driver = "proxy"

[snapshot]
# Tells Kata, among the options of a mount, which image the guest is to pull.
enable_kata_volume = true
nydus_overlayfs_path = "{nydus.overlayfs}"

[log]
log_to_stdout = true
""".encode()


def unit(nydus: NydusInstance, units: Iterable[str], program: str) -> bytes:
    """Return the content of its unit file.

    ``program`` is the sha256 of the snapshotter; ``units`` are the units that can run containerd.
    """
    before = " ".join(units)
    name = nydus.data_dir.rpartition("/")[2]
    settings = hashlib.sha256(config(nydus)).hexdigest()
    return f"""\
{_unit_header(nydus)}
# What runs: program sha256:{program}, configuration sha256:{settings}
[Unit]
Description=nydus-snapshotter of Kata Containers in {nydus.install_dir}
Documentation=https://github.com/containerd/nydus-snapshotter
RequiresMountsFor={nydus.directory}
ConditionFileIsExecutable={nydus.program}
Before={before}
# Never give up: while it is down, containerd answers every pull for it with an error.
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart={nydus.program} --config {nydus.config}
# It counts as started, and the CRI runtime may start, when its socket is there.
ExecStartPost=/bin/sh -c 'until test -S {nydus.socket}; do sleep 0.1; done'
TimeoutStartSec=60
Restart=always
RestartSec=1
OOMScoreAdjust=-999
StateDirectory={name}
StateDirectoryMode=0700
RuntimeDirectory={name}
RuntimeDirectoryMode=0700
CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID CAP_SYS_ADMIN
LockPersonality=yes
NoNewPrivileges=yes
PrivateTmp=yes
ProtectClock=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectSystem=strict
RestrictAddressFamilies=AF_UNIX
RestrictRealtime=yes
SystemCallArchitectures=native

[Install]
WantedBy={before}
""".encode()


def is_own_unit(nydus: NydusInstance, unit_file: bytes) -> bool:
    """Return whether any release of kata-node wrote ``unit_file`` for this installation."""
    return unit_file.startswith(_unit_header(nydus).encode())


def _unit_header(nydus: NydusInstance) -> str:
    return f"# Managed by kata-node (installation in {nydus.install_dir}). Changes here are lost."


def install_actions(settings: Settings, facts: NydusFacts) -> tuple[Action, ...]:
    """Return the actions that install and start it, before the runtime restarts.

    There are none if it runs with the wanted files. Raises
    :class:`~kata_node.errors.IneligibleNodeError` if there is a foreign unit with its name, and
    :class:`~kata_node.errors.PayloadError` if its program is not placed.
    """
    if not mapping.is_managed(settings, NYDUS):
        return ()
    nydus = NydusInstance.for_settings(settings)
    if facts.unit is not None and not is_own_unit(nydus, facts.unit):
        raise foreign_unit_error(nydus)
    if not facts.program:
        raise PayloadError(
            "the program of nydus-snapshotter is not on this node",
            where=nydus.program,
            hint=f"use an image with the component {NYDUS_COMPONENT}, or remove {NYDUS} from "
            "snapshotter.setup, and run `kata-node install` again",
        )
    wanted = wants_links(nydus, facts.cri_units)
    writes = tuple(_write_actions(nydus, facts, unit(nydus, facts.cri_units, facts.program)))
    stale = tuple(path for path in facts.wants_links if path not in wanted)
    missing_links = {path: target for path, target in wanted.items() if facts.wants_links.get(path) != target}
    changes = (*writes, *_unlink_actions(stale), *_link_actions(missing_links, facts))
    if facts.offline:
        return changes
    if changes or facts.needs_daemon_reload:
        # It must not run while its files change, see the module docstring.
        stop = (StopUnit(nydus.unit),) if facts.loaded else ()
        return (*stop, *changes, DaemonReload(), StartUnit(nydus.unit))
    return () if facts.active else (StartUnit(nydus.unit),)


def rollback_actions(settings: Settings, facts: NydusFacts) -> tuple[Action, ...]:
    """Return the actions that restore the state in ``facts``, after the rollback of the runtime."""
    if not mapping.is_managed(settings, NYDUS) or not install_actions(settings, facts):
        return ()
    nydus = NydusInstance.for_settings(settings)
    wanted = wants_links(nydus, facts.cri_units)
    if facts.unit is None:
        return _removal_actions(nydus, (*facts.wants_links, *wanted), facts)
    restored: list[Action] = []
    if facts.config is not None:
        restored.append(WriteFile(nydus.config, facts.config))
    restored.append(WriteFile(nydus.unit_path, facts.unit))
    restored += _unlink_actions(tuple(path for path in wanted if path not in facts.wants_links))
    if facts.wants_links:
        restored += [MakeDirs(path) for path in _directories(facts.wants_links)]
        restored.append(MakeLinks(tuple(facts.wants_links.items())))
    if facts.offline:
        return tuple(restored)
    start = (StartUnit(nydus.unit),) if facts.active else ()
    return (StopUnit(nydus.unit), *restored, DaemonReload(), *start)


def revert_actions(settings: Settings, facts: NydusFacts) -> tuple[Action, ...]:
    """Return the actions that stop and remove it, after the runtime restarted without it.

    They do not depend on ``snapshotter.setup``. There are none if none of its files exist. A foreign unit
    is kept, and so is the data directory, see :func:`notes`.
    """
    nydus = NydusInstance.for_settings(settings)
    if facts.unit is not None and not is_own_unit(nydus, facts.unit):
        # The symlinks belong to the foreign unit.
        return (RemoveFile(nydus.config, facts.config),) if facts.config is not None else ()
    if facts.unit is None and facts.config is None and not facts.wants_links:
        return ()
    return _removal_actions(nydus, (*facts.wants_links, *wants_links(nydus, facts.cri_units)), facts)


def notes(settings: Settings, facts: NydusFacts) -> tuple[str, ...]:
    """Return the notes for the report about :func:`revert_actions`."""
    if not revert_actions(settings, facts):
        return ()
    data = NydusInstance.for_settings(settings).data_dir
    return (f"{data} stays: containerd's metadata refers to the snapshots in it",)


def foreign_unit_error(nydus: NydusInstance) -> IneligibleNodeError:
    """Return the error about a foreign unit with the name of this installation's unit."""
    return IneligibleNodeError(
        "the unit already exists, and this installation did not create it",
        where=nydus.unit_path,
        hint=f"remove {NYDUS} from snapshotter.setup to use the existing nydus-snapshotter, or remove the "
        "existing unit, or set env.multiInstallSuffix to install under another name",
    )


def _write_actions(nydus: NydusInstance, facts: NydusFacts, unit_file: bytes) -> Iterator[Action]:
    """Yield the writes of changed files. The unit file is last, because it has the digest of the other."""
    for path, content, before in (
        (nydus.config, config(nydus), facts.config),
        (nydus.unit_path, unit_file, facts.unit),
    ):
        if before != content:
            directory = path.rpartition("/")[0]
            if directory not in facts.directories:
                yield MakeDirs(directory)
            yield WriteFile(path, content, before=before)


def _link_actions(missing_links: Mapping[str, str], facts: NydusFacts) -> Iterator[Action]:
    for directory in _directories(missing_links):
        if directory not in facts.directories:
            yield MakeDirs(directory)
    if missing_links:
        yield MakeLinks(tuple(missing_links.items()))


def _unlink_actions(paths: tuple[str, ...]) -> tuple[Action, ...]:
    if not paths:
        return ()
    below = tuple(path.removeprefix(f"{UNIT_DIR}/") for path in paths)
    return (RemoveFiles(UNIT_DIR, below), RemoveDirs(_directories(paths)))


def _removal_actions(nydus: NydusInstance, paths: Iterable[str], facts: NydusFacts) -> tuple[Action, ...]:
    unlink = _unlink_actions(tuple(dict.fromkeys(paths)))
    # The unit file is last: as long as it exists, a run after an interruption removes the other files too.
    files = (
        RemoveFile(nydus.config, facts.config or b""),
        RemoveFile(nydus.unit_path, facts.unit or b""),
    )
    if facts.offline:
        return (*unlink, *files)
    # The first reload removes the `Wants` of other units, so that none of them starts the unit again. After
    # the second reload systemd forgets the unit, because it has no file and no other unit wants it.
    return (*unlink, DaemonReload(), StopUnit(nydus.unit), *files, DaemonReload())


def _directories(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path.rpartition("/")[0] for path in paths))
