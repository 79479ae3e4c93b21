"""The acts on the CRI runtime itself: check what it will read, restart it, prove what it serves."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from kata_node.errors import CriError, HostError, SystemdError
from kata_node.host import go_glob, kernel
from kata_node.host.journal import journal_command
from kata_node.plan import receipt as receipts
from kata_node.plan.actions import Clients
from kata_node.plan.receipt import Receipt
from kata_node.runtime.model.config import CriConfig

if TYPE_CHECKING:
    from kata_node.host.files import Root
    from kata_node.host.systemd import Unit
    from kata_node.runtime.model.distributions import LoadMethod

log = logging.getLogger(__name__)

RestartPolicy = Literal["always", "never", "if-read"]

DOWN_STATES = ("inactive", "failed", "deactivating")
"""The states of a unit that will not come up by itself; systemd is still at it in the others."""

CALL_TIMEOUT = 10.0  # seconds for one question to a runtime that is up

POLL = 0.05  # seconds between two looks at a runtime that is starting
PATIENCE = 5.0
"""Seconds a freshly started runtime may give a wrong answer (no CRI, a handler missing) before it
counts as final. containerd loads its plugins before it opens the socket, so a wrong answer stays
wrong; waiting the whole timeout for it would only lengthen the time the node runs no pods."""
SETTLE_TIME = 0.2  # seconds after which what is served on a reload is what stays
WATCH_TIMEOUT = 30.0
"""Seconds for a distribution that watches its files: k0s waits three after the last change, ends its
containerd, and starts it anew."""


@dataclass(frozen=True)
class CheckConfig:
    """Check what the runtime will read, before it is restarted.

    ``labels`` names where a file's content comes from, for the error (``containerd.userDropIn``).
    ``ahead`` has content that is yet to be written, ``None`` where a file is to go: what is refused then
    is on the disk at no time, so a node that loses its power meanwhile comes up with its runtime.
    """

    config: CriConfig
    own_paths: tuple[str, ...]
    handlers: tuple[str, ...]
    labels: Mapping[str, str]
    planned: Mapping[str, bytes | None] = field(default_factory=dict, repr=False)

    def describe(self) -> str:
        """One line."""
        return "" if self.planned else f"check what the runtime will read from {self.config.main_path}"

    def diff(self) -> str:
        """Nothing changes."""
        return ""

    def apply(self, clients: Clients) -> None:
        """Raises :class:`HostError` with every problem found."""
        problems = self.config.check(
            self.config.read_files(partial(self._read, clients.root), partial(self._glob, clients.root)),
            own_paths=self.own_paths,
            handlers=self.handlers,
            labels=self.labels,
            exists=partial(self._exists, clients.root),
        )
        if problems:
            raise HostError("; ".join(problems), where=self.config.main_path, hint="correct it and run again")

    def check(self, clients: Clients) -> None:
        """Applying it is the check."""

    def _read(self, root: Root, path: str) -> bytes | None:
        return self.planned[path] if path in self.planned else root.read(path)

    def _exists(self, root: Root, path: str) -> bool:
        return self.planned[path] is not None if path in self.planned else root.exists(path)

    def _glob(self, root: Root, pattern: str) -> list[str]:
        planned_paths = (path for path in self.planned if go_glob.matches(pattern, path))
        return sorted({*root.glob(pattern), *planned_paths})


@dataclass(frozen=True)
class RestartRuntime:
    """Restart the CRI runtime's unit and prove that it serves ``serve`` and none of ``gone``.

    Where ``applies`` says that the runtime takes a change up while it runs, a change of its handlers is
    given the time for that, and only then the unit is restarted.

    ``restart``: ``always``; ``never``, when the running invocation is known to have read the files;
    ``if-read``, for putting files back: only when the unit is no longer the invocation ``since`` that
    ran before the first of them was written, for while it is, it serves what it did; one that takes
    changes up by itself is asked. A unit that is down is started in any case, but for ``may_be_down``,
    which leaves alone one that somebody stopped: it has nothing loaded. One that serves is not restarted
    when ``unless`` fails.

    ``pending`` is recorded right before the restart and ``proven`` once the proof is there, each if there
    is one and with the invocation and boot id of that moment. ``timeout`` is in seconds, for all of it.
    """

    unit: str
    socket: str
    load_method: LoadMethod
    expected_handlers: tuple[str, ...]
    removed_handlers: tuple[str, ...]
    timeout: float
    receipt_after_proof: Receipt | None
    receipt_before_restart: Receipt | None = None
    restart: RestartPolicy = "always"
    invocation_before: str = ""
    may_be_down: bool = False
    check_before_restart: CheckConfig | None = None
    may_fail: bool = False
    """Whether a runtime that does not come to serve is none of this run's doing."""
    served_before: tuple[str, ...] | None = None
    """What the runtime served before the first of the files was written, as far as known."""

    def describe(self) -> str:
        """One line."""
        if self.restart == "never":
            return f"see {self.unit} serve {_joined_names(self.expected_handlers)}"
        condition = ", if it runs," if self.may_be_down else ""
        return f"{self._verb} {self.unit}{condition} and see it serve {_joined_names(self.expected_handlers)}"

    def diff(self) -> str:
        """A line in its place."""
        return "" if self.restart == "never" else f"{self._verb} {self.unit}\n"

    def apply(self, clients: Clients) -> None:
        """Raises :class:`SystemdError` or :class:`CriError` when the proof fails."""
        try:
            self._restart_and_prove(clients)
        except (CriError, SystemdError) as error:
            if not self.may_fail:
                raise
            log.warning("%s did not serve before, and does not now: %s", self.unit, error.what)
            _save_receipt(clients, self.receipt_after_proof, "")

    def _restart_and_prove(self, clients: Clients) -> None:
        deadline = time.monotonic() + self.timeout
        before = self._unit(clients)
        if self.may_be_down and before.active_state == "inactive":
            if self.receipt_after_proof is not None:
                receipts.save(clients.root, self.receipt_after_proof)
            return
        proof, previous_invocation = self, ""
        if self._is_restart_due(clients, before):
            self._refuse_broken_config(clients)
            _save_receipt(clients, self.receipt_before_restart, before.invocation_id)
            if invocation := self._reload(clients, before, deadline):
                _save_receipt(clients, self.receipt_after_proof, invocation)
                return
            clients.systemd().restart(self.unit, self.timeout)
            previous_invocation = before.invocation_id
        elif self.restart == "if-read":
            proof = dataclasses.replace(self, expected_handlers=(), removed_handlers=())
        after = proof._wait_for_proof(clients, deadline, PATIENCE, previous_invocation=previous_invocation)
        _save_receipt(clients, self.receipt_after_proof, after)

    @property
    def _verb(self) -> str:
        return {"restart": "restart", "signal": "reload", "watch": "wait for"}[self._effective_load_method]

    @property
    def _effective_load_method(self) -> LoadMethod:
        """How the change is taken up.

        Without a restart only where the set of handlers is not yet what it shall be, which proves that all
        of the files were read: a change of anything else shows nowhere.
        """
        if (
            self.served_before is None
            or _handler_error(self.unit, self.served_before, self.expected_handlers, self.removed_handlers)
            is None
        ):
            return "restart"
        return self.load_method

    def _reload(self, clients: Clients, unit: Unit, deadline: float) -> str:
        """Have the change taken up without a restart: the invocation when that is proven, or nothing."""
        if self._effective_load_method == "restart" or unit.active_state != "active":
            return ""
        try:
            if self._effective_load_method == "signal":
                clients.systemd().reload(self.unit, self.timeout)
            patience = PATIENCE if self._effective_load_method == "signal" else WATCH_TIMEOUT
            reload_deadline = min(deadline, time.monotonic() + patience)
            self._wait_for_proof(clients, reload_deadline, patience, previous_invocation="")
            # CRI-O lists a handler for an instant that it then finds wanting, and leaves out.
            time.sleep(SETTLE_TIME)
            return self._wait_for_proof(clients, reload_deadline, 0, previous_invocation="")
        except (CriError, SystemdError) as error:
            log.info("%s: not taken up without a restart: %s", self.unit, error.what)
            return ""

    def _served_handlers(self, clients: Clients, timeout: float) -> tuple[str, ...]:
        return clients.cri(self.socket).status(timeout).handlers

    def check(self, clients: Clients) -> None:
        """The proof is part of applying it."""

    def _unit(self, clients: Clients) -> Unit:
        unit = clients.systemd().unit(self.unit)
        if unit is None:
            raise SystemdError("systemd does not know this unit", where=self.unit)
        return unit

    def _is_restart_due(self, clients: Clients, unit: Unit) -> bool:
        if self.restart == "always" or unit.active_state in DOWN_STATES:
            return True
        if self.restart == "never":
            return False
        is_new = (unit.active_state, unit.invocation_id) != ("active", self.invocation_before)
        return is_new or (self.load_method != "restart" and self._has_loaded_change(clients))

    def _has_loaded_change(self, clients: Clients) -> bool:
        """Whether a runtime that needs no restart for that serves anything else than it did, or shall."""
        try:
            handlers = self._served_handlers(clients, CALL_TIMEOUT)
        except CriError:
            return True
        is_wrong = (
            _handler_error(self.unit, handlers, self.expected_handlers, self.removed_handlers) is not None
        )
        return is_wrong or set(handlers) != set(self.served_before or ())

    def _refuse_broken_config(self, clients: Clients) -> None:
        """Files put back are those that were there before, which can be broken by others' hands."""
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
        self, clients: Clients, deadline: float, patience: float, *, previous_invocation: str
    ) -> str:
        """Wait for the proof; return the invocation that gave it."""
        from kata_node.host.cri import Reason

        wrong_since = 0.0
        while True:
            unit = clients.systemd().unit(self.unit)
            if unit is None or unit.active_state == "failed":
                raise SystemdError(
                    "the runtime did not start",
                    where=self.unit,
                    hint=f"run `{journal_command(self.unit)}` on the node to see why",
                )
            error: CriError | None
            try:
                handlers = self._served_handlers(clients, max(0.1, deadline - time.monotonic()))
            except CriError as answer:
                hint = f"{answer.hint}; run `{journal_command(self.unit)}` on the node"
                error = CriError(answer.what, where=answer.where, hint=hint.removeprefix("; "))
                # Only an answer can be wrong; a socket nobody listens on yet is a runtime starting.
                answered = getattr(answer, "reason", None) in (Reason.NO_CRI, Reason.ERROR)
            else:
                error, answered = (
                    _handler_error(self.unit, handlers, self.expected_handlers, self.removed_handlers),
                    True,
                )
                if (
                    error is None
                    and unit.active_state == "active"
                    and unit.invocation_id != previous_invocation
                ):
                    return unit.invocation_id
            now = time.monotonic()
            wrong_since = (wrong_since or now) if answered and error is not None else 0.0
            if now >= deadline or (wrong_since and now - wrong_since >= patience):
                raise error or CriError("the runtime was not seen restarting", where=self.unit)
            time.sleep(POLL)


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
            f"the runtime serves, but without {_joined_names(missing)}",
            where=unit,
            hint=f"run `{journal_command(unit)}` on the node to see why it left that out",
        )
    if still_served:
        return CriError(f"the runtime still serves {_joined_names(still_served)}", where=unit)
    return None


def _save_receipt(clients: Clients, receipt: Receipt | None, invocation: str) -> None:
    """Record ``receipt``, if any, as of ``invocation``."""
    if receipt is not None and receipt.cri is not None:
        cri = dataclasses.replace(receipt.cri, invocation=invocation, boot=kernel.boot_id())
        receipt = dataclasses.replace(receipt, cri=cri)
    if receipt is not None:
        receipts.save(clients.root, receipt)


def _joined_names(handlers: tuple[str, ...] | list[str]) -> str:
    return ", ".join(handlers) if handlers else "the CRI"
