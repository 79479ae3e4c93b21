"""Acts on a systemd unit of our own, which is not the CRI runtime's: stop it, start it, have it read anew."""

from __future__ import annotations

from dataclasses import dataclass

from kata_node.errors import SystemdError
from kata_node.host.journal import journal_command
from kata_node.plan.actions import Clients

TIMEOUT = 120.0  # seconds for one of these acts


@dataclass(frozen=True)
class DaemonReload:
    """Have systemd read its unit files anew. It stops and starts nothing."""

    timeout: float = TIMEOUT

    def describe(self) -> str:
        """One line."""
        return "have systemd read its unit files anew"

    def diff(self) -> str:
        """A line in its place."""
        return "systemctl daemon-reload\n"

    def apply(self, clients: Clients) -> None:
        """Raises :class:`SystemdError`."""
        clients.systemd().daemon_reload(self.timeout)

    def check(self, clients: Clients) -> None:
        """systemd answers when it is done."""


@dataclass(frozen=True)
class StartUnit:
    """Start a unit, unless it runs, and see that it stays up."""

    unit: str
    timeout: float = TIMEOUT

    def describe(self) -> str:
        """One line."""
        return f"start {self.unit}"

    def diff(self) -> str:
        """A line in its place."""
        return f"start {self.unit}\n"

    def apply(self, clients: Clients) -> None:
        """Raises :class:`SystemdError` when it does not come up."""
        clients.systemd().start(self.unit, self.timeout)

    def check(self, clients: Clients) -> None:
        """It must be up."""
        found = clients.systemd().unit(self.unit)
        state = found.active_state if found else "not known to systemd"
        if state != "active":
            raise SystemdError(
                f"the unit just started is {state}",
                where=self.unit,
                hint=f"run `{journal_command(self.unit)}` on the node to see why",
            )


@dataclass(frozen=True)
class StopUnit:
    """Stop a unit. One that does not run, or that there is none of, is left alone."""

    unit: str
    timeout: float = TIMEOUT

    def describe(self) -> str:
        """One line."""
        return f"stop {self.unit}"

    def diff(self) -> str:
        """A line in its place."""
        return f"stop {self.unit}\n"

    def apply(self, clients: Clients) -> None:
        """Raises :class:`SystemdError` when it cannot be stopped."""
        clients.systemd().stop(self.unit, self.timeout)

    def check(self, clients: Clients) -> None:
        """It must be down."""
        found = clients.systemd().unit(self.unit)
        if found is not None and found.active_state in ("active", "activating", "reloading"):
            raise SystemdError(
                f"the unit just stopped is {found.active_state}",
                where=self.unit,
                hint="somebody started it again; find out who, and run again",
            )
