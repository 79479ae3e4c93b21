"""The check of host-check about files that the running runtime has never read. Pure.

A restart loads them for the first time. An error in them would end the runtime, and a rollback would not
help, because it does not change these files.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kata_node.plan.report import Finding

if TYPE_CHECKING:
    from kata_node.checks.unread_facts import UnreadConfig
    from kata_node.runtime.facts import RuntimeFacts

NAME = "unread-config"


def check(facts: UnreadConfig, runtime: RuntimeFacts) -> Finding:
    """Return the finding."""
    unit, name = runtime.unit, runtime.runtime.name
    if not facts.changed:
        return Finding(NAME, "pass", f"no configuration file changed after {unit} started")
    files = ", ".join(f"{path} ({_utc(when)})" for path, when in facts.changed.items())
    started = f"{unit} started ({_utc(facts.started)})"
    # A signal loads a change too, and leaves no trace.
    has_not = "may not have" if runtime.distribution_runtime.load_method == "signal" else "has not"
    reason = f"changed after {started}, so the running {name} {has_not} read it: {files}"
    if facts.trial is None:
        return Finding(
            NAME,
            "warn",
            f"{reason}; kata-node cannot try a start with it on this distribution",
            f"restart {unit} at a time that suits you, and see that it serves; then install",
        )
    if facts.trial.verdict == "starts":
        return Finding(
            NAME,
            "warn",
            f"{reason}; a trial start with it succeeded",
            "see whether you want this change: the restart by the install makes it effective",
        )
    if facts.trial.verdict == "unclear":
        return Finding(
            NAME,
            "warn",
            f"{reason}; a trial start did not show whether {name} starts with it: {facts.trial.reason}",
            f"restart {unit} at a time that suits you, and see that it serves; then install",
        )
    remedy = "correct these files, or restore their previous content"
    return Finding(
        NAME,
        "warn" if facts.ignored else "fail",
        f"{reason}; a trial start with it failed: {facts.trial.reason}",
        f"{remedy}; to install in spite of this, run with --ignore-unread-config",
        depends_on_other_runs=True,  # it writes a file, and then restarts the runtime
    )


def _utc(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(when))
