"""Run the commands below ``cluster``."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from kata_node.cli.options import Common, Output
from kata_node.cli.output import print_json_result, print_text_result
from kata_node.errors import HostError, UsageError
from kata_node.kube.reader import Reader
from kata_node.release.read import Wanted, read_status

EXIT_NOT_HEALTHY = 10

log = logging.getLogger(__name__)


def status(common: Common, release: str, namespace: str, kubeconfig: str, context: str) -> int:
    """Print the status of all nodes; return 0 if all is healthy, else 10."""
    from kata_node.release import text

    with Reader.connect(kubeconfig, context) as reader:
        found = read_status(reader, Wanted(release, namespace))
    if common.output is Output.TEXT:
        print_text_result(common, text.to_text(found))
    else:
        print_json_result(text.to_json(found))
    return 0 if found.is_healthy else EXIT_NOT_HEALTHY


def bundle(
    common: Common, release: str, namespace: str, kubeconfig: str, context: str, file: Path | None
) -> int:
    """Write the archive, and print its path; return 0."""
    from kata_node.release.archive import archive
    from kata_node.release.bundle import collect

    target = file or Path(time.strftime("kata-bundle-%Y%m%dT%H%M%SZ.tar.gz", time.gmtime()))
    # Before the work: nobody wants to wait for an archive that cannot be written.
    if target.exists():
        raise UsageError(
            "the file exists", where=str(target), hint="remove it, or name another one with --file"
        )
    with Reader.connect(kubeconfig, context) as reader:
        contents, missing = collect(reader, Wanted(release, namespace))
    _write(target, archive(contents))
    for each in missing:
        log.warning("not in the archive: %s", each)
    if common.output is Output.TEXT:
        print_text_result(common, f"{target}: {len(contents)} files")
    else:
        print_json_result(
            {"outcome": "ok", "file": str(target), "files": sorted(contents), "missing": list(missing)}
        )
    return 0


def _write(target: Path, content: bytes) -> None:
    """Write a new file that only its owner can read."""
    try:
        with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
    except OSError as error:
        raise HostError(
            f"cannot write the file: {error.strerror}",
            where=str(target),
            hint="name a new file in a directory that you can write to with --file",
        ) from error
