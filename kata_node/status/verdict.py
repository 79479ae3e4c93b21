"""The verdict on an installation, and the command that mends it. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator

from msgspec import Struct, field
from msgspec.structs import replace

from kata_node.host.lock import Holder
from kata_node.plan.last_run import Invocation
from kata_node.status.model import VERDICTS, InstallationStatus, RuntimeStatus, Verdict
from kata_node.text import pluralize

UNFINISHED_ARTIFACTS = {"placing": "partly placed", "removing": "partly removed"}
UNFINISHED_CRI = {
    "writing": "partly written",
    "restarting": "written, not yet proven to serve",
    "reverting": "partly reverted",
    "unloading": "reverted, not yet unloaded",
}
STATE_TEXTS = {**UNFINISHED_ARTIFACTS, **UNFINISHED_CRI}
"""Texts for the states of a receipt that are not clear by themselves."""

OFFLINE_ADVICE = "run `kata-node status` on the node when it runs"


class Caller(Struct, frozen=True):
    """How ``kata-node status`` was called, to name commands that work from there."""

    invocation: Invocation = field(default_factory=Invocation)
    install_dir: str = ""
    """That of the settings."""
    exists: Callable[[str], bool] = lambda _: True
    """Whether a file or directory of this process exists."""


def judge(
    status: InstallationStatus, runtime: RuntimeStatus, running: Holder | None, caller: Caller
) -> InstallationStatus:
    """Return ``status`` with its verdict, the reasons, and the advice."""
    found = tuple(_findings(status, runtime))
    verdicts: list[Verdict] = [verdict for verdict, _ in found] or ["healthy"]
    worst = max(verdicts, key=VERDICTS.index)
    advice = "" if worst == "healthy" else _advice(worst, status, runtime, caller)
    if advice and running:
        who = f" (pid {running.pid} on {running.host})" if running.pid else ""
        advice = f"wait for the run in progress{who}, then run `kata-node status` again"
    return replace(status, verdict=worst, reasons=tuple(reason for _, reason in found), advice=advice)


def _findings(status: InstallationStatus, runtime: RuntimeStatus) -> Iterator[tuple[Verdict, str]]:
    if status.error:
        yield "broken", status.error
        return
    recorded = status.recorded
    if not recorded.artifacts and not recorded.cri:
        yield "absent", "it is not installed"
        return
    if recorded.cri and runtime.is_down:
        yield "broken", f"the container runtime is down: {runtime.error}"
    yield from (("degraded", reason) for reason in _unfinished(status, runtime))
    if recorded.cri and runtime.served is not None:
        missing = [name for name in status.handlers if name not in runtime.served]
        if missing:
            yield "degraded", f"the runtime does not serve {', '.join(missing)}"
    if status.drift:
        paths = pluralize(len(status.drift), "path differs", "paths differ")
        yield "drifted", f"{paths} from the record"
    if runtime.offline:
        yield "unknown", "offline: nobody asked the container runtime"
    elif recorded.cri and runtime.served is None and not runtime.is_down:
        yield "unknown", f"the CRI cannot be asked: {runtime.error}"


def _unfinished(status: InstallationStatus, runtime: RuntimeStatus) -> Iterator[str]:
    recorded = status.recorded
    if text := UNFINISHED_ARTIFACTS.get(recorded.artifacts):
        yield f"the files are {text}"
    elif not recorded.artifacts:
        yield "no file is recorded"
    if not recorded.cri:
        yield "the runtime is not configured: the stage cri did not run, or was rolled back"
    elif recorded.cri in ("writing", "reverting", "unloading"):
        yield f"the runtime's configuration is {UNFINISHED_CRI[recorded.cri]}"
    elif status.restart_owed and runtime.served is not None:
        yield "a restart is owed: the runtime has not read its configuration yet"


def _advice(verdict: Verdict, status: InstallationStatus, runtime: RuntimeStatus, caller: Caller) -> str:
    recorded = status.recorded
    if status.error:
        return status.remedy or (runtime.remedy if runtime.is_down else "") or _repair(status, caller)
    if verdict == "broken" and recorded.cri not in UNFINISHED_CRI:
        return runtime.remedy
    if verdict == "unknown":
        return OFFLINE_ADVICE if runtime.offline else runtime.remedy
    if verdict == "absent" and not status.last_run:
        return command_line(_typed(caller.invocation, "install"))
    if runtime.config_error:
        return runtime.config_error
    repair = _repair(status, caller)
    last = status.last_run
    if last and last.failed and not status.interrupted:
        return f"correct the cause that the last run names, then {repair}"
    return repair


def _repair(status: InstallationStatus, caller: Caller) -> str:
    if _is_being_reverted(status):
        return command_line(_revert(status, caller))
    return _install(status, caller)


def _is_being_reverted(status: InstallationStatus) -> bool:
    recorded, last = status.recorded, status.last_run
    if recorded.artifacts == "removing" or recorded.cri in ("reverting", "unloading"):
        return True
    if status.error and status.artifacts == "missing":
        return True  # somebody deleted the install dir, so only the entry of the configuration is left
    return not recorded.cri and last is not None and last.is_revert


def _install(status: InstallationStatus, caller: Caller) -> str:
    """Return the install with the settings of this installation: those of its last run, or of this call."""
    here, last = caller.invocation, status.last_run
    if last and not last.is_revert and not last.is_cut and _works_here(last.invocation, caller):
        return command_line(_typed(last.invocation, "install"))
    if caller.install_dir == status.install_dir and (here.option("config") or here.option("shims")):
        return command_line(_typed(here, "install"))
    if last and last.invocation.option("host-root") != here.option("host-root"):
        if last.command.startswith("stage "):
            return "repeat its Job from the cluster: `helm upgrade` of its release runs it again"
        return "restart its pod from the cluster: `kubectl rollout restart` of its DaemonSet installs again"
    words = ("kata-node", "install", *_place(here), *_names(status, caller))
    return f"{shlex.join(words)} --config FILE --payload DIR, with the values file of its install"


def _revert(status: InstallationStatus, caller: Caller) -> Invocation:
    """Return the revert. It needs to know the installation, and without a receipt also the runtime."""
    here = caller.invocation
    given = ((f"--{name}", here.option(name)) for name in ("runtime", "cri-socket", "k8s-distribution"))
    runtime = (word for flag, value in given if value for word in (flag, value))
    return Invocation("revert", (*_place(here), *_names(status, caller), *runtime))


def _works_here(invocation: Invocation, caller: Caller) -> bool:
    if not invocation.command or _place(invocation) != _place(caller.invocation):
        return False
    return all(caller.exists(path) for name in ("config", "payload") if (path := invocation.option(name)))


def _place(invocation: Invocation) -> tuple[str, ...]:
    """Return the options that say on which node, and whether it runs."""
    root = invocation.option("host-root")
    return (
        *(("--host-root", root) if root else ()),
        *(("--offline",) if "--offline" in invocation.options else ()),
    )


def _names(status: InstallationStatus, caller: Caller) -> tuple[str, ...]:
    """Return the options that name the installation, and its Node if this call or its last run named one."""
    prefix, _, name = status.install_dir.rpartition("/opt/kata")
    suffix = name.removeprefix("-")
    here, last = caller.invocation, status.last_run
    node = here.option("node-name") or (last.invocation.option("node-name") if last else "")
    if "--offline" in here.options:  # it labels no Node
        node = ""
    return (
        *(("--node-name", node) if node else ()),
        *(("--installation-prefix", prefix) if prefix else ()),
        *(("--multi-install-suffix", suffix) if suffix else ()),
    )


def _typed(invocation: Invocation, command: str) -> Invocation:
    return replace(invocation, command=command)


def command_line(invocation: Invocation) -> str:
    """Return the command as it is typed in a shell."""
    return shlex.join(("kata-node", *invocation.command.split(), *invocation.options))
