"""Every error a user can meet: what happened, where, and what to do about it.

The exit codes are a contract with the Job that runs the stages:

====  =======================================================
code  meaning
====  =======================================================
0     done, or already done
1     failed; a retry may help
2     wrong usage or settings
3     this node cannot run it; never retry
4     failed and put back: the node is as it was before
5     another run holds the node's lock
====  =======================================================
"""

from __future__ import annotations

PULL_IMAGE_HINT = "pull the image again; if it is built by you, build it again"
"""The hint for a payload that came to harm on its way."""


class KataNodeError(Exception):
    """The root of all errors this project raises on purpose.

    ``what`` is a sentence without a full stop, ``where`` names the file, key or unit,
    ``hint`` tells the reader the next thing to do.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class UsageError(KataNodeError):
    """The command line does not fit: an option is missing, or two contradict each other."""

    exit_code = 2


class SettingsError(UsageError):
    """The values file, a ``KATA_NODE_…`` variable or a flag holds something that cannot work."""


class IneligibleNodeError(KataNodeError):
    """This node cannot run what the settings ask for; trying again changes nothing."""

    exit_code = 3


class RolledBackError(KataNodeError):
    """A change was made, failed its proof, and was taken back; the runtime serves as before."""

    exit_code = 4


class LockedError(KataNodeError):
    """Another run works on this node and did not finish within the lock timeout."""

    exit_code = 5


class HostError(KataNodeError):
    """The host refused something: a read-only or full disk, a missing directory, no permission."""


class PayloadError(KataNodeError):
    """The Kata files to install are missing, damaged, or not to be trusted."""


class ReceiptError(KataNodeError):
    """The node's record of an installation cannot be read or is of a newer schema."""


class SystemdError(KataNodeError):
    """systemd cannot be reached or refused a request."""


class CriError(KataNodeError):
    """The CRI socket cannot be reached, or does not serve the CRI."""


class KubeError(KataNodeError):
    """The API server cannot be reached or refused a request."""
