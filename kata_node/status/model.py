"""The status of a node and of its installations, as data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field

from kata_node.host.lock import Holder
from kata_node.plan.last_run import LastRun

Verdict = Literal["healthy", "absent", "unknown", "drifted", "degraded", "broken"]

VERDICTS: tuple[Verdict, ...] = ("healthy", "absent", "unknown", "drifted", "degraded", "broken")
"""From the best to the worst. The verdict of a node is the worst of its installations.

============  ========================================================================================
``healthy``   the files are as recorded, and the runtime serves every handler
``absent``    there is no installation
``unknown``   offline, or the CRI cannot be asked; nothing wrong is seen
``drifted``   a file is not as recorded
``degraded``  the runtime does not serve every handler, a restart is owed, or a run did not finish
``broken``    the runtime is down, or the record is gone or cannot be read
============  ========================================================================================
"""


class RuntimeStatus(Struct, frozen=True):
    """What systemd and the CRI say of the node's container runtime now. Offline, all is empty."""

    unit: str = ""
    """The name of its unit; empty if there is none, or systemd cannot be asked."""
    state: str = ""
    """The ActiveState of the unit in the words of systemd."""
    runtime: str = ""
    """As ``containerd://2.1.9``, from the CRI; empty if it did not answer."""
    served: tuple[str, ...] | None = None
    """All handlers that the CRI lists; ``None`` if it was not asked or did not answer."""
    offline: bool = False
    is_down: bool = False
    """Whether the runtime does not run, or runs without the CRI."""
    error: str = ""
    """Why the CRI could not be asked."""
    remedy: str = ""
    """What to do about ``error``."""
    config_error: str = ""
    """What is wrong in the runtime's configuration, and what to do about it."""


class RecordedState(Struct, frozen=True):
    """What the receipt says of an installation. The words are those of the receipt; empty: not recorded."""

    artifacts: str = ""
    cri: str = ""
    runtime: str = ""
    unit: str = ""


class InstallationStatus(Struct, frozen=True):
    """The status of one installation. All is what is seen now, except ``recorded`` and ``last_run``."""

    instance: str
    install_dir: str
    program: str = ""
    """The version of kata-node that wrote the receipt."""
    release: str = ""
    """The release of the payload."""
    artifacts: str = "absent"
    """``placed``: every file is as recorded. ``changed``, ``missing``: some are not, or none is there."""
    files: int = 0
    """The number of recorded files."""
    intact: int = 0
    """How many of them are as recorded."""
    cri: str = "absent"
    """``serving``, ``partly serving``, ``not serving``: what the CRI lists of ``handlers``. ``down``,
    ``unknown``: it cannot tell. ``absent``: no handler is recorded."""
    handlers: tuple[str, ...] = ()
    """The handlers of the receipt."""
    restart_owed: bool = False
    drift: tuple[str, ...] = ()
    """Paths that differ from the receipt, each with ``: changed`` or ``: missing``."""
    missing_dirs: Mapping[str, int] = field(default_factory=dict)
    """Recorded directories that are missing, with the number of recorded files below each."""
    error: str = ""
    """Why the receipt is not used."""
    remedy: str = ""
    """What to do about ``error``; empty: the next install or revert repairs it."""
    notes: tuple[str, ...] = ()
    """What to do before an upgrade of the distribution."""
    recorded: RecordedState = RecordedState()
    last_run: LastRun | None = None
    interrupted: str = ""
    """When a run that did not finish last wrote the receipt, in UTC; empty if every run finished."""
    verdict: Verdict = "unknown"
    reasons: tuple[str, ...] = ()
    """Why the verdict is not ``healthy``."""
    advice: str = ""
    """What to do; a command if one is enough. Empty if there is nothing to do."""


class NodeLabels(Struct, frozen=True):
    """The Kata labels of the Node ``name``. ``error`` says why they are not known."""

    name: str
    labels: Mapping[str, str]
    error: str = ""


class NodeStatus(Struct, frozen=True):
    """The status of a node."""

    installations: tuple[InstallationStatus, ...]
    runtime: RuntimeStatus
    run_in_progress: Holder | None = None
    foreign: tuple[str, ...] = ()
    """Install dirs of other programs, which the runtime's configuration names."""
    labels: NodeLabels | None = None

    @property
    def outcome(self) -> Verdict:
        """The worst verdict."""
        verdicts = [each.verdict for each in self.installations] or ["absent"]
        return max(verdicts, key=VERDICTS.index)
