"""The status of a node as text and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import to_builtins

from kata_node.host.lock import Holder
from kata_node.plan.last_run import LastRun
from kata_node.status.model import InstallationStatus, NodeLabels, NodeStatus, RuntimeStatus
from kata_node.status.verdict import STATE_TEXTS
from kata_node.text import pluralize, utc

MAX_DRIFT_LINES = 20


def to_json(node: NodeStatus) -> dict[str, Any]:
    """Return the JSON document of the command ``status``."""
    document: dict[str, Any] = {"outcome": node.outcome, "runtime": to_builtins(node.runtime)}
    if node.run_in_progress:
        holder = node.run_in_progress
        document["run_in_progress"] = to_builtins(holder) | {"since": _time(holder)}
    document["installations"] = [to_builtins(each) for each in node.installations]
    if node.foreign:
        document["foreign"] = list(node.foreign)
    return document | ({"node": to_builtins(node.labels)} if node.labels else {})


def to_text(node: NodeStatus) -> str:
    """Return the text of the command ``status``: a paragraph for each installation and one for the Node."""
    paragraphs = [[_run_text(node.run_in_progress)]] if node.run_in_progress else []
    paragraphs += [list(_installation_lines(each, node.runtime)) for each in node.installations] or [
        ["no installation on this node"]
    ]
    paragraphs += [_foreign_lines(each) for each in node.foreign]
    if node.labels:
        paragraphs.append(_label_lines(node.labels))
    return "\n\n".join("\n".join(lines) for lines in paragraphs)


def _run_text(holder: Holder) -> str:
    if not holder.pid:
        return "a run is in progress"
    return f"a run is in progress: {holder.command}, pid {holder.pid} on {holder.host}, since {_time(holder)}"


def _time(holder: Holder) -> str:
    return utc(holder.since) if holder.since else ""


def _foreign_lines(install_dir: str) -> list[str]:
    return [
        f"{install_dir}: another program installed Kata here; the runtime's configuration names it",
        "  → uninstall it with that program before `kata-node install`",
    ]


def _label_lines(node: NodeLabels) -> list[str]:
    labels = [f"  label      {key}={value}" for key, value in node.labels.items()]
    no_labels = f"not known: {node.error}" if node.error else "no Kata labels"
    return [f"Node {node.name}", *(labels or [f"  labels     {no_labels}"])]


def _installation_lines(status: InstallationStatus, runtime: RuntimeStatus) -> Iterator[str]:
    yield f"{status.instance or status.install_dir}: {status.verdict}"
    yield from (f"  because    {reason}" for reason in status.reasons)
    if status.advice:
        yield f"  → {status.advice}"
    if status.error:
        yield f"  runtime    {_runtime_text(status, runtime)}"
        yield from ([f"  serves     {', '.join(runtime.served)}"] if runtime.served else [])
    elif status.verdict != "absent":
        yield from _seen_lines(status, runtime)
    if status.interrupted:
        yield f"  last run   did not finish; it last wrote the receipt at {status.interrupted}"
    elif status.last_run:
        yield from _last_run_lines(status.last_run)
    yield from (f"  note       {note}" for note in status.notes)


def _seen_lines(status: InstallationStatus, runtime: RuntimeStatus) -> Iterator[str]:
    yield (
        f"  install    {status.install_dir}, release {status.release or 'unknown'}, "
        f"by kata-node {status.program}"
    )
    recorded = status.recorded
    yield f"  artifacts  {_artifacts_text(status)}{_beside(status.artifacts, recorded.artifacts)}"
    yield f"  runtime    {_runtime_text(status, runtime)}"
    yield f"  cri        {status.cri}{_beside(status.cri, recorded.cri)}"
    yield from (f"  handler    {name}: {_serving_text(runtime, name)}" for name in status.handlers)
    if status.restart_owed:
        yield "  restart    owed: the runtime has not read this configuration yet"
    yield from (f"  drift      {line}" for line in _drift_lines(status))


def _beside(seen: str, recorded: str) -> str:
    """Return the word of the record, if it is another one than what is ``seen``."""
    if recorded in ("", seen):
        return ""
    return f"; the record says: {STATE_TEXTS.get(recorded, recorded)}"


def _artifacts_text(status: InstallationStatus) -> str:
    if status.artifacts == "absent":
        return "absent"
    if status.intact == status.files:
        return f"{pluralize(status.files, 'file')} as recorded"
    return f"{status.intact} of {pluralize(status.files, 'file')} as recorded"


def _runtime_text(status: InstallationStatus, runtime: RuntimeStatus) -> str:
    recorded = status.recorded
    before = ", ".join(each for each in (recorded.unit, recorded.runtime) if each)
    if runtime.offline:
        return f"not asked: offline{f'; the record says: {before}' if before else ''}"
    seen = [f"{runtime.unit} {runtime.state}"] if runtime.unit else []
    if runtime.runtime or runtime.state in ("", "active"):
        seen.append(runtime.runtime or runtime.error)
    differs = (recorded.unit and runtime.unit and recorded.unit != runtime.unit) or (
        recorded.runtime and runtime.runtime and recorded.runtime != runtime.runtime
    )
    return ", ".join(seen) + (f"; the record says: {before}" if differs else "")


def _serving_text(runtime: RuntimeStatus, handler: str) -> str:
    if runtime.served is None:
        return "NOT served" if runtime.is_down else "not known whether it is served"
    return "served" if handler in runtime.served else "NOT served"


def _drift_lines(status: InstallationStatus) -> list[str]:
    """Return the drift, with one line for a missing directory and all that was in it."""
    lines: list[str] = []
    for entry in status.drift:
        path = entry.removesuffix(": missing")
        if path in status.missing_dirs:
            lines.append(f"{path}: missing, with {pluralize(status.missing_dirs[path], 'file')}")
        elif path == entry or not _is_below(path, status.missing_dirs):
            lines.append(entry)
    if len(lines) > MAX_DRIFT_LINES:
        more = len(lines) - MAX_DRIFT_LINES
        return [*lines[:MAX_DRIFT_LINES], f"{more} more; `--output json` shows all"]
    return lines or ["none"]


def _is_below(path: str, directories: Mapping[str, int]) -> bool:
    return any(path[:at] in directories for at, char in enumerate(path) if char == "/")


def _last_run_lines(run: LastRun) -> Iterator[str]:
    stages = ", ".join(
        f"{each.stage} {each.outcome}" + (f" (exit code {each.exit_code})" if each.exit_code else "")
        for each in run.stages
    )
    yield f"  last run   {run.ended} {run.command or 'a run'} by kata-node {run.program}: {stages}"
    if failed := run.failed:
        yield f"             {failed.error}"
