"""The report of a dry run: a summary, then the stages with their steps, and the diffs of configuration. Pure.

It has a bounded length unless it is verbose. Its JSON has the same facts under stable names.
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from kata_node.plan import report as reports
from kata_node.plan.diffs import file_diff
from kata_node.plan.effects import PathEffect
from kata_node.plan.preview import Preview, Space, Step, combined, size_of
from kata_node.plan.report import StageReport
from kata_node.text import human_size, pluralize

if TYPE_CHECKING:
    from kata_node.plan.actions import Plan
    from kata_node.plan.receipt import Receipt

MAX_DIFF_LINES, MAX_ALL_DIFF_LINES = 60, 400
"""Lines of one diff, and of all diffs together, that are shown without ``--verbose``."""


def preview(plan: Plan, receipt: Receipt) -> Preview:
    """Return what ``plan`` would change; ``receipt`` is the one that it was made with."""
    steps = tuple(
        Step(action.describe(), action.effects())
        for action in (*plan.actions, *plan.best_effort)
        if action.describe()
    )
    found = Preview(
        receipt.install_dir,
        steps,
        plan.added_handlers,
        plan.removed_handlers,
        plan.drifted,
        plan.blocking_pods,
        plan.pods_unknown,
    )
    written = {file.path: file.after for file in receipt.cri.files} if receipt.cri else {}
    changed = (
        each.path
        for each in found.paths
        if each.is_configuration
        and each.change != "remove"
        and each.path in written
        and (each.before is None or hashlib.sha256(each.before).hexdigest() != written[each.path])
    )
    return replace(found, drifted=(*plan.drifted, *changed))


def to_text(done: Sequence[StageReport], free: Space | None, *, verbose: bool) -> str:
    """Return the text of a dry run: the summary, a line per stage with its steps, and the diffs."""
    previews = _previews(done)
    parts = []
    if any(each.steps for each in previews):
        incomplete = next((report.stage for report in done if report.error), "")
        title = (
            f"would change, as far as planned before {incomplete} failed" if incomplete else "would change"
        )
        parts.append(f"{title}:\n{combined(previews).to_text(free, verbose=verbose)}\n")
    elif previews and not any(report.error for report in done):
        parts.append("nothing would change\n")
    for report in done:
        steps = _verbose_steps(report.preview) if verbose else _steps(report.preview)
        checks = report.checks
        if len(done) > 1 and not verbose:
            checks = tuple(each for each in checks if each.status in SHOWN)
        parts.append(reports.to_text(replace(report, changes=tuple(steps), checks=checks)))
    parts += [f"\n{diff}" for diff in _all_diffs(previews, verbose=verbose)]
    # A file name can contain bytes that are not UTF-8, which cannot be printed.
    return "\n".join(parts).rstrip("\n").encode("utf-8", "backslashreplace").decode()


SHOWN = ("warn", "fail")
"""The findings of host-check that the preview of an install shows."""


def to_json(done: Sequence[StageReport], free: Space | None, *, verbose: bool) -> dict[str, Any]:
    """Return the document of a dry run: that of the reports, with the summary and the diffs."""
    document = reports.to_json(done)
    for stage, report in zip(document["stages"], done, strict=True):
        if diff := "\n".join(_all_diffs(_previews((report,)), verbose=verbose)):
            stage["diff"] = diff
        if report.preview is not None and verbose:
            stage["paths"] = [
                {"path": each.path, "change": each.change, "kind": each.kind, "bytes": each.size}
                for each in report.preview.paths
            ]
    if previews := _previews(done):
        complete = {"complete": not any(report.error for report in done)}
        document["plan"] = complete | combined(previews).to_json(free)
    return document


def bytes_to_write(done: Sequence[StageReport]) -> int:
    """Return the bytes of the files that the stages would place."""
    return sum(each.bytes_to_write for each in _previews(done))


def _previews(done: Iterable[StageReport]) -> list[Preview]:
    return [report.preview for report in done if report.preview is not None]


def _steps(preview: Preview | None) -> Iterator[str]:
    """Yield a line for each action; all actions on files in the install dir together have one or two."""
    if preview is None:
        return
    inside: list[PathEffect] = []
    others: list[str] = []
    for step in preview.steps:
        paths = [each for each in step.effects if isinstance(each, PathEffect)]
        is_inside = bool(paths) and not any(preview.is_configuration(each) for each in paths)
        if is_inside and any(each.change != "change" or each.kind != "dir" for each in paths):
            inside += [each for each in paths if each.kind != "dir"]
        else:
            others.append(step.line)
    for verb, found in (
        ("place", [each for each in inside if each.change != "remove"]),
        ("remove", [each for each in inside if each.change == "remove"]),
    ):
        if found:
            count, size = pluralize(len(found), "file"), human_size(size_of(found))
            yield f"{verb} {count} ({size}) below {preview.install_dir}"
    yield from others


def _verbose_steps(preview: Preview | None) -> Iterator[str]:
    """Yield a line for each action, and below it a line for each path that it changes."""
    for step in preview.steps if preview else ():
        paths = [each for each in step.effects if isinstance(each, PathEffect)]
        is_listed = len(paths) > 1 or any(each.line != step.line for each in paths)
        yield "\n      ".join((step.line, *(each.line for each in paths if is_listed)))


def _all_diffs(previews: Sequence[Preview], *, verbose: bool) -> Iterator[str]:
    """Yield the diffs, those of the runtime's configuration first."""
    if not previews:
        return
    shown, left_out, left_out_lines = 0, 0, 0
    whole = combined(previews)
    for change in sorted(whole.paths, key=lambda each: not whole.is_configuration(each)):
        if not _has_diff(change, whole, verbose=verbose):
            continue
        diff = file_diff(change.path, change.before, change.after, is_secret=change.is_secret).rstrip("\n")
        if not diff:  # only the mode or the time of the file changes
            continue
        lines = diff.split("\n")
        cut = lines if verbose else lines[:MAX_DIFF_LINES]
        if not verbose and shown + len(cut) > MAX_ALL_DIFF_LINES:
            left_out, left_out_lines = left_out + 1, left_out_lines + len(lines)
            continue
        shown += len(cut)
        if more := len(lines) - len(cut):
            cut.append(f"... {pluralize(more, 'more line')}; --verbose shows all")
        yield "\n".join(cut)
    if left_out:
        yield (
            f"... the diffs of {pluralize(left_out, 'more file')} with {pluralize(left_out_lines, 'line')}; "
            "--verbose shows all"
        )


def _has_diff(change: PathEffect, preview: Preview, *, verbose: bool) -> bool:
    """Return whether the diff of a file is shown.

    A new file in the install dir is mostly a copy from the payload. A new drop-in comes from the settings.
    """
    if change.before is None and change.after is None:
        return False
    is_drop_in = posixpath.dirname(change.path).endswith(".d")
    return verbose or change.before is not None or is_drop_in or preview.is_configuration(change)
