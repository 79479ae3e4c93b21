"""The commands below ``values``: check and convert values files of the Helm chart."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from kata_node.bounded_read import read_bounded
from kata_node.cli.options import Common, Output
from kata_node.cli.output import print_json_result, print_text_result
from kata_node.errors import HostError, SettingsError, UsageError
from kata_node.settings.values import parse_values
from kata_node.text import unified_diff
from kata_node.values import check as checks
from kata_node.values.convert import convert

log = logging.getLogger(__name__)


def check_file(path: Path, common: Common) -> int:
    """Print what the chart and the nodes say of a values file; return 0, or 2 if there is an error."""
    values = parse_values(read_file(path), str(path), hint="correct the YAML, then run again", as_helm=True)
    result = checks.check(values)
    if common.output is Output.TEXT:
        print_text_result(common, checks.to_text(str(path), result))
    else:
        print_json_result(checks.to_json(result))
    return 0 if result.ok else SettingsError.exit_code


def convert_file(path: Path, target: Path | None, common: Common) -> int:
    """Print how the conversion changes a values file, and write the result to ``target``."""
    text = read_file(path)
    converted = convert(text, str(path))
    if target is not None:
        _write(target, converted.text, replaces=path)
    diff = unified_diff(str(path), text.encode(), converted.text.encode())
    if common.output is Output.JSON:
        result = {"outcome": "ok", "diff": diff, "notes": list(converted.notes), "values": converted.text}
        print_json_result(result)
        return 0
    for note in converted.notes:
        log.warning("%s", note)
    print_text_result(common, diff.rstrip("\n") if diff else f"{path}: no key of an older chart")
    return 0


def read_file(path: Path) -> str:
    """Return the text of a file. Raises :class:`SettingsError` when it cannot be read."""
    hint = "name a readable values file in YAML"
    try:
        # Keeps the ends of the lines.
        return read_bounded(path)[0].decode()
    except OSError as error:
        what = f"the values file cannot be read: {error.strerror}"
        raise SettingsError(what, where=str(path), hint=hint) from error
    except UnicodeDecodeError as error:
        raise SettingsError("the values file is not UTF-8 text", where=str(path), hint=hint) from error


def _write(target: Path, text: str, *, replaces: Path) -> None:
    """Write ``text`` to a new file, or replace the file ``replaces`` as a whole.

    Raises :class:`UsageError` when ``target`` is another file that exists.
    """
    if target.exists() and not target.samefile(replaces):
        raise UsageError(
            "the file exists and is not the file to convert",
            where=str(target),
            hint="name a new file, or the file itself to replace it",
        )
    target = target.resolve()  # a link stays a link
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        part.write_bytes(text.encode())
        if target.exists():
            part.chmod(target.stat().st_mode & 0o777)
        part.replace(target)
    except OSError as error:
        part.unlink(missing_ok=True)
        hint = "name a file in a directory that you can write to"
        raise HostError(f"cannot write the file: {error.strerror}", where=str(target), hint=hint) from error
