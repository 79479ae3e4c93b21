"""Find the files that the running runtime has never read, and try whether it starts with them."""

from __future__ import annotations

import hashlib
import logging
import posixpath
import time
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from kata_node.errors import HostError, SystemdError
from kata_node.host import go_glob
from kata_node.runtime.configured_paths import program_of
from kata_node.runtime.containerd.read import resolved_imports

if TYPE_CHECKING:
    from kata_node.host.files import Root
    from kata_node.host.systemd import Systemd, Unit
    from kata_node.plan.context import StageContext
    from kata_node.runtime.facts import RuntimeFacts
    from kata_node.runtime.trial_start import Trial

log = logging.getLogger(__name__)

_ABOUT_COMMAND = (b"ExecStart", b"Environment")
"""Settings of a unit that can name another configuration file."""


class UnreadConfig(Struct, frozen=True):
    """The files of a runtime's configuration that changed after it started."""

    started: float
    """When its main process started. Times are seconds since 1970."""
    changed: Mapping[str, float]
    """Path -> when it changed."""
    trial: Trial | None = None
    """Whether the runtime starts with them; ``None`` if nothing changed, or if it cannot be tried."""
    ignored: bool = False
    """Whether the install continues although the runtime does not start with them."""


def unread_config(context: StageContext, runtime: RuntimeFacts) -> UnreadConfig | None:
    """Return what the running runtime has not read; ``None`` if it does not run, or if that cannot be told.

    The last change of the inode counts (ctime). A file that was edited or replaced has one, also if its
    mtime was copied. A change of the mode counts too; the trial shows that it does no harm.
    """
    if context.options.offline or runtime.state != "active":
        return None
    if runtime.distribution_runtime.load_method == "watch":  # it has started again since the last change
        return None
    try:
        systemd = context.clients.systemd()
        unit = systemd.unit(runtime.unit)
        if unit is None or not (started := _started(unit)):
            return None
        files = _files(runtime)
        root = context.clients.root
        foreign = [path for path in files if not _is_ours(path, context, runtime)]
        times = {path: _changed_at(root, path) for path in (*foreign, *_unit_files(root, unit, runtime))}
        changed = {path: when for path, when in times.items() if when > started}
        trial = _try(context, unit, runtime, files) if changed else None
        if trial and trial.verdict == "fails" and _has_restarted(systemd, unit):
            return None  # another run has restarted the runtime meanwhile, so it has read its files
    except (HostError, SystemdError) as error:
        log.debug("cannot tell whether %s has read its configuration: %s", runtime.unit, error)
        return None
    return UnreadConfig(started, changed, trial, context.options.ignore_unread_config)


def _has_restarted(systemd: Systemd, before: Unit) -> bool:
    now = systemd.unit(before.name)
    return now is not None and now.invocation_id != before.invocation_id


def _started(unit: Unit) -> float:
    """Return when the main process of ``unit`` started; 0 if that is not known.

    A correction of the clock since then moves files and process apart. So the earlier one of two times
    counts: what the clock said at the start, and what it says now, minus the age of the process.
    """
    if not unit.main_start_usec or not unit.main_start_monotonic_usec:
        return 0.0
    age = time.monotonic() - unit.main_start_monotonic_usec / 1e6
    return min(unit.main_start_usec / 1e6, time.time() - age)


def _files(runtime: RuntimeFacts) -> list[str]:
    """Return the files that an administrator can change and that the runtime reads when it starts."""
    contents = runtime.contents

    def glob(pattern: str) -> list[str]:
        return sorted(path for path in contents if go_glob.matches(pattern, path))

    # The distribution writes a rendered main file itself whenever it starts.
    rendered = runtime.config_path if runtime.distribution_runtime.is_rendered else ""
    return [path for path in runtime.config.read_files(contents.get, glob) if path != rendered]


def _unit_files(root: Root, unit: Unit, runtime: RuntimeFacts) -> Iterator[str]:
    if runtime.distribution_runtime.paths_from != "unit":
        return
    for path in unit.files:
        content = root.read(path) or b""
        if any(setting in content for setting in _ABOUT_COMMAND):
            yield path


def _is_ours(path: str, context: StageContext, runtime: RuntimeFacts) -> bool:
    """Return whether the content is what an installation wrote, which sees to the restart itself."""
    state = runtime.files.get(path)
    if state is None:
        return False
    digest = hashlib.sha256(state.content).hexdigest()
    recorded = context.receipt.cri.file(path) if context.receipt.cri else None
    return (recorded is not None and recorded.after == digest) or (path, digest) in runtime.other_writers


def _changed_at(root: Root, path: str) -> float:
    """Return when the file, or a symlink at its path, changed last."""
    inodes = [root.lstat(each) for each in {path, root.real_path(path)}]
    return max((info.st_ctime for info in inodes if info is not None), default=0.0)


def _try(context: StageContext, unit: Unit, runtime: RuntimeFacts, files: Collection[str]) -> Trial | None:
    from kata_node.runtime import trial_start

    name, systemd, root = runtime.runtime.name, context.clients.systemd(), context.clients.root
    program = program_of(context, unit, name)
    if not program or runtime.distribution_runtime.paths_from != "unit":
        return None
    directories = {posixpath.dirname(path) for path in (*files, *map(root.real_path, files))}
    if name == "containerd":
        # A pod does not see all directories with imports. The trial does.
        imported = (path for _, path in resolved_imports(runtime.contents))
        directories.update(posixpath.dirname(path.partition("*")[0]) for path in imported)
        return trial_start.try_containerd(systemd, unit, program, runtime.config_path, directories)
    options = ["--config-dir", runtime.drop_in_dir]
    if runtime.config_path in files:
        options += ["--config", runtime.config_path]
    return trial_start.try_crio(systemd, unit, program, options, {*directories, runtime.drop_in_dir})
