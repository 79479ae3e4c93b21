"""The errors that kata-node raises on purpose: what is wrong, where, and what to do about it.

The Job that runs the stages relies on the exit codes:

====  =======================================================
code  meaning
====  =======================================================
0     done, or nothing to do
1     failed; a retry may help
2     wrong usage or settings
3     this node cannot run it; a retry does not help
4     failed and rolled back; the node is as it was before
5     another run holds the node's lock
====  =======================================================
"""

from __future__ import annotations

PULL_IMAGE_HINT = "pull the image, or download the archive, again; if you built the image, build it again"
"""The hint for a damaged payload."""


class KataNodeError(Exception):
    """The base class of all errors that kata-node raises on purpose.

    ``what`` is one sentence without a full stop. ``where`` names the file, key or unit. ``hint`` says
    what to do next. ``unit_log`` is what the unit of the container runtime wrote about it: the words of
    another program, as one line of printable characters, with the name of the unit.
    """

    exit_code = 1
    is_refusal = False
    """Whether the container runtime itself refused to start or to serve with a changed configuration."""

    def __init__(self, what: str, *, where: str = "", hint: str = "", unit_log: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint
        self.unit_log = unit_log

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        hint = f"hint: {self.hint}" if self.hint else ""
        return "\n  ".join(line for line in (text, self.unit_log, hint) if line)


class UsageError(KataNodeError):
    """The command line is wrong: an option is missing, or two options contradict each other."""

    exit_code = 2


class SettingsError(UsageError):
    """The values file, a ``KATA_NODE_…`` variable or an option has an invalid value."""


class IneligibleNodeError(KataNodeError):
    """This node cannot run what the settings ask for; a retry does not help."""

    exit_code = 3


class UnfitNodeError(IneligibleNodeError):
    """This node cannot run Kata because of what it is: its hardware, its architecture, its runtime.

    Unlike a mistake in the settings or on the node, this is normal in a cluster with different nodes.
    """


class PodsRunError(KataNodeError):
    """Pods run on handlers that a change would remove. Nothing was changed."""


class RolledBackError(KataNodeError):
    """A change failed and was rolled back; the runtime serves the same handlers as before."""

    exit_code = 4


class OutdatedPlanError(KataNodeError):
    """The node is not as it was taken to be when the plan was made. Nothing was changed; plan again."""


class LockedError(KataNodeError):
    """Another run holds the node's lock and did not finish within the lock timeout."""

    exit_code = 5


class HostError(KataNodeError):
    """The node's operating system refused an operation: a full disk, no permission, a missing directory."""


class UnusableFileError(HostError):
    """A file of the node has content that kata-node cannot use. A retry helps only when it is corrected."""

    exit_code = 3


class UnusablePathError(HostError):
    """A file is in the place of a directory, or the reverse, symlinks lead back to themselves, or no file can
    have the path."""

    exit_code = 3


class NoSpaceError(HostError):
    """A file system of the node has no free block or inode, or a quota is used up."""


class PayloadError(KataNodeError):
    """The payload is missing, damaged, or does not match its manifest."""


class UnusablePayloadError(PayloadError):
    """The payload cannot be trusted, or lacks what the settings need. Only another payload helps."""

    exit_code = 3


class ReceiptError(KataNodeError):
    """The receipt of an installation cannot be used, or has a newer schema. A retry does not help."""

    exit_code = 3


class UntrustedReceiptError(ReceiptError):
    """The receipt has content that kata-node never writes."""

    exit_code = 3


class SystemdError(KataNodeError):
    """systemd cannot be reached, or refused a request."""


class CriError(KataNodeError):
    """The CRI socket cannot be reached, or does not serve the CRI."""


class KubeError(KataNodeError):
    """The API server cannot be reached, or refused a request."""
