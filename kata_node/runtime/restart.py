"""The action that restarts the container runtime and proves what it serves."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from msgspec.structs import replace

from kata_node.errors import CriError, HostError, SystemdError
from kata_node.host import kernel
from kata_node.host.journal import journal_command
from kata_node.plan import receipt as receipts
from kata_node.plan.actions import Action, Clients, continued_on_a_full_disk
from kata_node.plan.effects import Effect, UnitEffect, UnitOperation
from kata_node.plan.receipt import Receipt
from kata_node.runtime.served_programs import SEARCH_PATH, handlers_below

if TYPE_CHECKING:
    from kata_node.host.systemd import Unit
    from kata_node.runtime.check_config import CheckConfig
    from kata_node.runtime.model.distributions import LoadMethod

log = logging.getLogger(__name__)

RestartPolicy = Literal["always", "never", "if-read"]

DOWN_STATES = ("inactive", "failed", "deactivating")
"""States of a unit that systemd does not start by itself. In other states the unit runs or starts."""

CALL_TIMEOUT = 10.0  # seconds for one call of a running runtime

_VERBS: Mapping[LoadMethod, UnitOperation] = {"restart": "restart", "signal": "reload", "watch": "wait for"}

POLL = 0.05  # seconds between two queries of a starting runtime
PATIENCE = 5.0
"""Seconds of wrong answers (no CRI, a missing handler) after which a started runtime counts as failed.

containerd loads its plugins before it opens the socket, so a wrong answer does not become right. Waiting for
the whole timeout would only extend the time without pods."""
SETTLE_TIME = 0.2  # seconds after a reload until the list of served handlers is final
WATCH_TIMEOUT = 30.0
"""Seconds for a distribution that watches its files. k0s waits 3 s after the last change, then ends
containerd and starts it again."""


class RestartRuntime(Struct, frozen=True):
    """Restart the runtime's unit. Prove that it serves all expected and no removed handlers.

    If the runtime can load a change without a restart, it gets time to do so. Only if that fails is the unit
    restarted. A stopped unit is started, except with ``may_be_down``.
    """

    unit: str
    socket: str
    load_method: LoadMethod
    expected_handlers: tuple[str, ...]
    removed_handlers: tuple[str, ...]
    timeout: float
    """Seconds for the restart and the proof together."""
    receipt_after_proof: Receipt | None
    """Saved once the proof succeeds, with the invocation and boot id of that moment."""
    receipt_before_restart: Receipt | None = None
    """Saved right before the restart, with the invocation and boot id of that moment."""
    restart: RestartPolicy = "always"
    """``always``; ``never``, when the running invocation has read the files; or ``if-read``, for a rollback.

    ``if-read`` restarts unless the unit is still ``invocation_before``, which has not read the new files.
    A runtime that loads changes by itself is asked what it serves."""
    invocation_before: str = ""
    """The invocation that ran before the first file was written."""
    record_is_optional: bool = False
    """Whether the restart needs no ``receipt_before_restart`` on a full disk, as a revert does not."""
    cleanup: tuple[Action, ...] = ()
    """Actions between the proof and ``receipt_after_proof``, which no longer tells that they are due."""
    may_be_down: bool = False
    """Whether a stopped unit stays stopped. It has nothing loaded."""
    check_before_restart: CheckConfig | None = None
    """A check that must pass before a runtime that answers is restarted."""
    may_fail: bool = False
    """Whether this run succeeds even if the runtime does not serve, because it was broken before."""
    served_before: tuple[str, ...] | None = None
    """The handlers that the runtime served before the first file was written; ``None`` when not known."""
    search_path: tuple[str, ...] = SEARCH_PATH
    """Where the runtime looks for programs."""
    unused_dir: str = ""
    """A directory. The proof fails while containerd serves a handler with programs below it."""

    def describe(self) -> str:
        """Return one line for the plan."""
        if self.restart == "never":
            return f"check that {self.unit} serves {_joined_names(self.expected_handlers)}"
        condition = " if it runs," if self.may_be_down else ""
        handlers = _joined_names(self.expected_handlers)
        return f"{self._verb} {self.unit}{condition} and check that it serves {handlers}"

    def effects(self) -> tuple[Effect, ...]:
        """Return the restart, or how the runtime loads the change without one."""
        if self.restart == "never":
            return ()
        verb, unit = self._verb, self.unit
        return (UnitEffect(f"{verb} {unit}", unit, verb, True, self.may_be_down),)

    def apply(self, clients: Clients) -> None:
        """Restart and prove. Raise :class:`SystemdError` or :class:`CriError` when the proof fails."""
        try:
            self._restart_and_prove(clients)
        except (CriError, SystemdError) as error:
            if not self.may_fail:
                raise
            log.warning("%s was broken before this run and still is: %s", self.unit, error.what)
            self._record_proof(clients, "")

    def _restart_and_prove(self, clients: Clients) -> None:
        deadline = time.monotonic() + self.timeout
        before = self._unit(clients)
        if self.may_be_down and before.active_state == "inactive":
            self._record_proof(clients, None)
            return
        proof, previous_invocation, started = self, "", time.monotonic()
        if self._is_restart_due(clients, before):
            self._refuse_broken_config(clients)
            with continued_on_a_full_disk(self.record_is_optional):
                _save_receipt(clients, self.receipt_before_restart, before.invocation_id)
            if invocation := self._reload(clients, before, deadline):
                self._record_proof(clients, invocation)
                return
            started = time.monotonic()
            try:
                clients.systemd().restart(self.unit, self.timeout)
            except SystemdError as error:
                error.is_refusal = self._is_refused(clients, error, started)
                raise
            previous_invocation = before.invocation_id
        elif self.restart == "if-read":
            proof = replace(self, expected_handlers=(), removed_handlers=())
        after = proof._wait_for_proof(
            clients, deadline, PATIENCE, previous_invocation=previous_invocation, started=started
        )
        self._record_proof(clients, after)

    def _is_refused(self, clients: Clients, error: SystemdError, started: float) -> bool:
        """Return whether a failed restart shows that the runtime ended by itself, see :func:`_has_exited`."""
        if getattr(error, "result", "failed") != "failed":
            return False
        try:
            unit = clients.systemd().unit(self.unit)
        except SystemdError:
            return False
        return _has_exited(unit, started)

    def _record_proof(self, clients: Clients, invocation: str | None) -> None:
        """Save the receipt after the proof with ``invocation``; with ``None``, without it and the boot id."""
        for action in self.cleanup:
            action.apply(clients)
        if self.receipt_after_proof is None:
            return
        if invocation is None:
            receipts.save(clients.root, self.receipt_after_proof)
        else:
            _save_receipt(clients, self.receipt_after_proof, invocation)
        receipts.remove_old_backups(clients.root, self.receipt_after_proof)

    @property
    def _verb(self) -> UnitOperation:
        return _VERBS[self._effective_load_method]

    @property
    def _effective_load_method(self) -> LoadMethod:
        """How the runtime loads this change.

        Loading without a restart can be proven only by a change of the served handlers. So a change of
        anything else needs a restart.
        """
        if (
            self.served_before is None
            or _handler_error(self.unit, self.served_before, self.expected_handlers, self.removed_handlers)
            is None
        ):
            return "restart"
        return self.load_method

    def _reload(self, clients: Clients, unit: Unit, deadline: float) -> str:
        """Load the change without a restart. Return the invocation when that is proven, else ``""``."""
        if self._effective_load_method == "restart" or unit.active_state != "active":
            return ""
        try:
            if self._effective_load_method == "signal":
                clients.systemd().reload(self.unit, self.timeout)
            patience = PATIENCE if self._effective_load_method == "signal" else WATCH_TIMEOUT
            reload_deadline = min(deadline, time.monotonic() + patience)
            self._wait_for_proof(clients, reload_deadline, patience, previous_invocation="")
            # CRI-O lists a handler for an instant before it checks it and drops it.
            time.sleep(SETTLE_TIME)
            return self._wait_for_proof(clients, reload_deadline, 0, previous_invocation="")
        except (CriError, SystemdError) as error:
            log.info("%s does not load the change without a restart: %s", self.unit, error.what)
            return ""

    def _served_handlers(self, clients: Clients, timeout: float) -> tuple[str, ...]:
        return clients.cri(self.socket).status(timeout).handlers

    def _use_error(self, clients: Clients, timeout: float) -> CriError | None:
        """Return the error of served handlers with programs below ``unused_dir``, if there are any."""
        if not self.unused_dir:
            return None
        try:
            tables = clients.cri(self.socket).handler_tables(timeout)
        except CriError as error:
            return error
        names = sorted(handlers_below(clients.root, tables, self.unused_dir, self.search_path))
        if not names:
            return None
        return CriError(
            f"the container runtime still serves {_joined_names(tuple(names))} with programs below "
            f"{self.unused_dir}",
            where=self.unit,
            hint="remove these handlers from the file that defines them; `containerd config dump` shows them",
        )

    def check(self, clients: Clients) -> None:
        """Do nothing: :meth:`apply` includes the proof."""

    def _unit(self, clients: Clients) -> Unit:
        unit = clients.systemd().unit(self.unit)
        if unit is None:
            raise SystemdError("systemd has no unit of this name", where=self.unit)
        return unit

    def _is_restart_due(self, clients: Clients, unit: Unit) -> bool:
        if self.restart == "always" or unit.active_state in DOWN_STATES:
            return True
        if self.restart == "never":
            return False
        is_new = (unit.active_state, unit.invocation_id) != ("active", self.invocation_before)
        return is_new or (self.load_method != "restart" and self._has_loaded_change(clients))

    def _has_loaded_change(self, clients: Clients) -> bool:
        """Return whether the runtime does not answer, or serves other handlers than before or expected."""
        try:
            handlers = self._served_handlers(clients, CALL_TIMEOUT)
        except CriError:
            return True
        is_wrong = (
            _handler_error(self.unit, handlers, self.expected_handlers, self.removed_handlers) is not None
        )
        return is_wrong or set(handlers) != set(self.served_before or ())

    def _refuse_broken_config(self, clients: Clients) -> None:
        """Raise the error of ``check_before_restart`` if the runtime answers.

        The previous files can be broken by foreign changes. A runtime that runs must not be restarted with
        them.
        """
        if self.check_before_restart is None:
            return
        try:
            self.check_before_restart.apply(clients)
        except HostError:
            if self._is_answering(clients):
                raise

    def _is_answering(self, clients: Clients) -> bool:
        try:
            self._served_handlers(clients, CALL_TIMEOUT)
        except CriError:
            return False
        return True

    def _wait_for_proof(
        self,
        clients: Clients,
        deadline: float,
        patience: float,
        *,
        previous_invocation: str,
        started: float = 0.0,
    ) -> str:
        """Wait until the runtime serves as expected; return its invocation.

        ``deadline`` and ``started``, the time of the restart, are times of :func:`time.monotonic`.
        ``patience`` is for how many seconds wrong answers may last. Raises :class:`SystemdError` or
        :class:`CriError` when the proof fails.
        """
        from kata_node.host.cri import Reason

        wrong_since = 0.0
        while True:
            unit = clients.systemd().unit(self.unit)
            if unit is None or unit.active_state == "failed":
                stopped = SystemdError(
                    "the container runtime did not start",
                    where=self.unit,
                    hint=f"run `{journal_command(self.unit)}` on the node to see why",
                )
                stopped.is_refusal = _has_exited(unit, started)
                raise stopped
            error: CriError | None
            try:
                handlers = self._served_handlers(clients, max(0.1, deadline - time.monotonic()))
            except CriError as answer:
                hint = f"{answer.hint}; run `{journal_command(self.unit)}` on the node"
                error = CriError(answer.what, where=answer.where, hint=hint.removeprefix("; "))
                # A socket without a listener is not a wrong answer: the runtime is still starting.
                reason = getattr(answer, "reason", None)
                answered = reason in (Reason.NO_CRI, Reason.ERROR)
                error.is_refusal = reason is Reason.NO_CRI and _is_new(unit, previous_invocation)
            else:
                error, answered = (
                    _handler_error(self.unit, handlers, self.expected_handlers, self.removed_handlers)
                    or self._use_error(clients, max(0.1, deadline - time.monotonic())),
                    True,
                )
                if error is not None:
                    error.is_refusal = _is_new(unit, previous_invocation)
                elif _is_new(unit, previous_invocation):
                    return unit.invocation_id
            now = time.monotonic()
            wrong_since = (wrong_since or now) if answered and error is not None else 0.0
            if now >= deadline or (wrong_since and now - wrong_since >= patience):
                raise error or CriError("the container runtime did not restart in time", where=self.unit)
            time.sleep(POLL)


def _is_new(unit: Unit, previous_invocation: str) -> bool:
    return unit.active_state == "active" and unit.invocation_id != previous_invocation


def _has_exited(unit: Unit | None, started: float) -> bool:
    """Return whether the runtime's own process started after ``started`` and ended with an error code.

    A signal, a timeout, a full memory and another command of the unit say nothing about the configuration.
    """
    if unit is None or unit.result != "exit-code":
        return False
    return unit.main_start_monotonic_usec >= started * 1e6


def _handler_error(
    unit: str,
    handlers: tuple[str, ...],
    expected_handlers: tuple[str, ...],
    removed_handlers: tuple[str, ...],
) -> CriError | None:
    missing = [name for name in expected_handlers if name not in handlers]
    still_served = [name for name in removed_handlers if name in handlers]
    if missing:
        return CriError(
            f"the container runtime does not serve {_joined_names(missing)}",
            where=unit,
            hint=f"run `{journal_command(unit)}` on the node to see why",
        )
    if still_served:
        return CriError(f"the container runtime still serves {_joined_names(still_served)}", where=unit)
    return None


def _save_receipt(clients: Clients, receipt: Receipt | None, invocation: str) -> None:
    """Save ``receipt``, if any, with ``invocation`` and the current boot id."""
    if receipt is not None and receipt.cri is not None:
        cri = replace(receipt.cri, invocation=invocation, boot=kernel.boot_id())
        receipt = replace(receipt, cri=cri)
    if receipt is not None:
        receipts.save(clients.root, receipt)


def _joined_names(handlers: tuple[str, ...] | list[str]) -> str:
    return ", ".join(handlers) if handlers else "the CRI"
