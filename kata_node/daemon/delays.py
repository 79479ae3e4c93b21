"""When the daemon tries again, and when it repairs what another program may undo."""

from __future__ import annotations

from kata_node.errors import RolledBackError


class RetryDelays:
    """The delays between tries, in seconds. A delay doubles with each try, up to a limit.

    After a rollback the delay is longer, because each try restarts the runtime twice. A revert has a lower
    limit: the kubelet waits for the pod, and the usual cause, pods on Kata, can end at any moment.
    """

    def __init__(
        self,
        *,
        first: float = 10,
        longest: float = 300,
        longest_of_revert: float = 60,
        first_after_rollback: float = 60,
        longest_after_rollback: float = 1800,
        settle: float = 2,
    ) -> None:
        self._usual = first, longest
        self._revert = first, longest_of_revert
        self._rollback = first_after_rollback, longest_after_rollback
        self.settle = settle
        """Seconds from a change on the node until it is looked at. A restart of a runtime takes about one."""

    def after(self, code: int, tries: int, *, reverting: bool = False) -> float:
        """Return the delay after try number ``tries``, which ended with the exit code ``code``."""
        first, longest = self._revert if reverting else self._usual
        if code == RolledBackError.exit_code:
            first, longest = self._rollback
        return min(longest, first * 2.0 ** min(tries - 1, 20))


class RepairLimit:
    """Limits repairs. The first is at once; each further one has the delay of a try after a rollback.

    Another program may undo each repair, and each repair restarts the runtime. After ``quiet`` seconds
    without a repair, the next one is a first one again.
    """

    def __init__(self, pauses: RetryDelays, quiet: float = 3600) -> None:
        self._pauses = pauses
        self._quiet = quiet
        self._last = 0.0
        self.repairs = 0

    def delay(self, now: float) -> float:
        """Return the seconds from ``now`` until a repair may begin."""
        if self.repairs and now - self._last > self._quiet:
            self.repairs = 0
        if not self.repairs:
            return 0
        return max(0.0, self._last + self._pauses.after(RolledBackError.exit_code, self.repairs) - now)

    def repaired(self, now: float) -> None:
        """Count a repair that began ``now``."""
        self._last = now
        self.repairs += 1
