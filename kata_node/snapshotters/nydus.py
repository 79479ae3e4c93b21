"""The nydus-snapshotter of an instance: its unit and configuration as bytes, and the acts on them. Pure.

It runs in proxy mode: it unpacks nothing, but has Kata's guests pull the images themselves. So it holds
no daemon and no mount, and containers do not notice when it restarts.

- The CRI runtime's unit wants it and starts after it, so it is up before the runtime is. Nothing binds
  the other way: restarting either leaves the other alone.
- Its programs come with the payload. Their digest and that of the configuration are in the unit's text,
  so what is to be is in one file.
- It is stopped before any file of it changes, and started when all are written. So a run that finds it
  active, with the files as they should be, knows that they are what it runs with, whatever was killed
  before; no record is needed.
- It is enabled by the symlinks that ``systemctl enable`` would make, which also serves an image that is
  being baked.
- Its data directory is nobody's to remove: containerd's metadata refers to what is in it, and without it
  every later pull for this snapshotter fails.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kata_node.errors import IneligibleNodeError, PayloadError
from kata_node.plan.actions import Action, MakeDirs, MakeLinks, RemoveDirs, RemoveFile, RemoveFiles, WriteFile
from kata_node.snapshotters import mapping
from kata_node.snapshotters.mapping import NYDUS, NYDUS_COMPONENT, UNIT_DIR, NydusInstance
from kata_node.snapshotters.unit_actions import DaemonReload, StartUnit, StopUnit

if TYPE_CHECKING:
    from kata_node.settings.model import Settings

PROGRAM_PATH = f"{NYDUS_COMPONENT}/containerd-nydus-grpc"
"""The snapshotter's path in the payload."""


@dataclass(frozen=True)
class NydusFacts:
    """For the stages that change the CRI runtime: the unit by this instance's name, whoever made it."""

    unit: bytes | None
    """Its file."""
    config: bytes | None
    """The configuration it is to have."""
    wants_links: Mapping[str, str]
    """The symlinks that have it started with other units: path to target."""
    directories: frozenset[str]
    """Of the directories with files of it, those that are there."""
    program: str
    """The sha256 of the snapshotter that the artifacts stage placed; empty when there is none."""
    cri_units: tuple[str, ...]
    """The units it is to be started before."""
    loaded: bool = False
    """Whether systemd knows it; offline nothing does."""
    active: bool = False
    needs_daemon_reload: bool = False
    """Whether its file has changed since systemd read it."""
    offline: bool = False


def wants_links(nydus: NydusInstance, units: Iterable[str]) -> dict[str, str]:
    """The symlinks that have it started before ``units``: path to target."""
    return {f"{UNIT_DIR}/{unit}.wants/{nydus.unit}": f"../{nydus.unit}" for unit in units}


def config(nydus: NydusInstance) -> bytes:
    """Its configuration."""
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
    """Its unit file; ``program`` is the sha256 of the snapshotter, ``units`` run the CRI."""
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
    """Whether a unit file is one that this instance wrote, of whatever release."""
    return unit_file.startswith(_unit_header(nydus).encode())


def _unit_header(nydus: NydusInstance) -> str:
    return f"# Managed by kata-node (installation in {nydus.install_dir}). Changes here are lost."


def install_actions(settings: Settings, facts: NydusFacts) -> tuple[Action, ...]:
    """Have it run, as it should be: for before the CRI runtime's restart. None when it does.

    Raises :class:`~kata_node.errors.UnfitNodeError` when its unit is somebody else's, and
    :class:`~kata_node.errors.PayloadError` when its program is not in place.
    """
    if not mapping.is_managed(settings, NYDUS):
        return ()
    nydus = NydusInstance.for_settings(settings)
    if facts.unit is not None and not is_own_unit(nydus, facts.unit):
        raise foreign_unit_error(nydus)
    if not facts.program:
        raise PayloadError(
            "nydus-snapshotter is not among the Kata files on this node",
            where=nydus.program,
            hint=f"use an image whose payload has the component {NYDUS_COMPONENT}, or take {NYDUS} out of "
            "snapshotter.setup; then run the stage artifacts again",
        )
    wanted = wants_links(nydus, facts.cri_units)
    writes = tuple(_write_actions(nydus, facts, unit(nydus, facts.cri_units, facts.program)))
    stale = tuple(path for path in facts.wants_links if path not in wanted)
    missing_links = {path: target for path, target in wanted.items() if facts.wants_links.get(path) != target}
    changes = (*writes, *_unlink_actions(stale), *_link_actions(missing_links, facts))
    if facts.offline:
        return changes
    if changes or facts.needs_daemon_reload:
        # Down while its files change: see above.
        stop = (StopUnit(nydus.unit),) if facts.loaded else ()
        return (*stop, *changes, DaemonReload(), StartUnit(nydus.unit))
    return () if facts.active else (StartUnit(nydus.unit),)


def rollback_actions(settings: Settings, facts: NydusFacts) -> tuple[Action, ...]:
    """Have it as it was when ``facts`` were gathered: for after the way back of the CRI runtime."""
    if not mapping.is_managed(settings, NYDUS) or not install_actions(settings, facts):
        return ()
    nydus = NydusInstance.for_settings(settings)
    wanted = wants_links(nydus, facts.cri_units)
    if facts.unit is None:
        return _removal_actions(nydus, (*facts.wants_links, *wanted), offline=facts.offline)
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
    """Stop and remove what this instance has of it: for after the CRI runtime has restarted without it.

    Also when it is no longer among what the settings set up. None when nothing of it is there. The data
    directory stays, see :func:`notes`.
    """
    nydus = NydusInstance.for_settings(settings)
    if facts.unit is not None and not is_own_unit(nydus, facts.unit):
        # The link, too, is theirs.
        return (RemoveFile(nydus.config, facts.config),) if facts.config is not None else ()
    if facts.unit is None and facts.config is None and not facts.wants_links:
        return ()
    return _removal_actions(
        nydus, (*facts.wants_links, *wants_links(nydus, facts.cri_units)), offline=facts.offline
    )


def notes(settings: Settings, facts: NydusFacts) -> tuple[str, ...]:
    """What a report says beside :func:`revert_actions`."""
    if not revert_actions(settings, facts):
        return ()
    data = NydusInstance.for_settings(settings).data_dir
    return (f"{data} stays: containerd's metadata refers to the snapshots in it",)


def foreign_unit_error(nydus: NydusInstance) -> IneligibleNodeError:
    """The error about a unit of somebody else that has the name ours would get."""
    return IneligibleNodeError(
        "there is such a unit already, and this installation did not make it",
        where=nydus.unit_path,
        hint=f"use the nydus-snapshotter that is there by taking {NYDUS} out of snapshotter.setup, "
        "or remove it, or set env.multiInstallSuffix, which makes ours one of another name",
    )


def _write_actions(nydus: NydusInstance, facts: NydusFacts, unit_file: bytes) -> Iterator[Action]:
    """The unit comes last: it tells what the other file should be."""
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


def _removal_actions(nydus: NydusInstance, paths: Iterable[str], *, offline: bool) -> tuple[Action, ...]:
    unlink = _unlink_actions(tuple(dict.fromkeys(paths)))
    # The unit comes last: as long as it is there, a run that takes over knows what else may be.
    files = (RemoveFile(nydus.config), RemoveFile(nydus.unit_path))
    if offline:
        return (*unlink, *files)
    # A unit without a file is forgotten when nothing wants it any more; else it could be started again.
    return (*unlink, DaemonReload(), StopUnit(nydus.unit), *files, DaemonReload())


def _directories(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(path.rpartition("/")[0] for path in paths))
