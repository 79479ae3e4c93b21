"""Actions on a systemd unit that kata-node owns: stop, start, and reload of its unit file."""

from __future__ import annotations

from msgspec import Struct

from kata_node.errors import SystemdError
from kata_node.host.journal import journal_command
from kata_node.plan.actions import Clients
from kata_node.plan.effects import Effect, UnitEffect

TIMEOUT = 120.0  # seconds for one action


class DaemonReload(Struct, frozen=True):
    """Let systemd reload its unit files. No unit stops or starts."""

    timeout: float = TIMEOUT

    def describe(self) -> str:
        """Return the action as one line."""
        return "reload the unit files of systemd"

    def effects(self) -> tuple[Effect, ...]:
        """Return the reload."""
        return (Effect("systemctl daemon-reload"),)

    def apply(self, clients: Clients) -> None:
        """Reload the unit files. Raises :class:`SystemdError`."""
        clients.systemd().daemon_reload(self.timeout)

    def check(self, clients: Clients) -> None:
        """Check nothing: systemd answers after the reload is complete."""


class StartUnit(Struct, frozen=True):
    """Start a unit, unless it runs."""

    unit: str
    timeout: float = TIMEOUT

    def describe(self) -> str:
        """Return the action as one line."""
        return f"start {self.unit}"

    def effects(self) -> tuple[Effect, ...]:
        """Return the start."""
        return (UnitEffect(self.describe(), self.unit, "start"),)

    def apply(self, clients: Clients) -> None:
        """Start the unit. Raises :class:`SystemdError` if it does not start."""
        clients.systemd().start(self.unit, self.timeout)

    def check(self, clients: Clients) -> None:
        """Raise :class:`SystemdError` unless the unit is active."""
        found = clients.systemd().unit(self.unit)
        state = found.active_state if found else "unknown to systemd"
        if state != "active":
            raise SystemdError(
                f"the unit is {state} after it was started",
                where=self.unit,
                hint=f"run `{journal_command(self.unit)}` on the node to see why",
            )


class StopUnit(Struct, frozen=True):
    """Stop a unit, if it exists and runs."""

    unit: str
    timeout: float = TIMEOUT

    def describe(self) -> str:
        """Return the action as one line."""
        return f"stop {self.unit}"

    def effects(self) -> tuple[Effect, ...]:
        """Return the stop."""
        return (UnitEffect(self.describe(), self.unit, "stop"),)

    def apply(self, clients: Clients) -> None:
        """Stop the unit. Raises :class:`SystemdError` if it does not stop."""
        clients.systemd().stop(self.unit, self.timeout)

    def check(self, clients: Clients) -> None:
        """Raise :class:`SystemdError` if the unit runs or starts."""
        found = clients.systemd().unit(self.unit)
        if found is not None and found.active_state in ("active", "activating", "reloading"):
            raise SystemdError(
                f"the unit is {found.active_state} after it was stopped",
                where=self.unit,
                hint="find out what starts this unit, then run kata-node again",
            )
