"""Read the small JSON records beside the receipt. They never fail a run: what is no record counts as none."""

from __future__ import annotations

import logging
import stat
from typing import TypeVar

from kata_node.errors import KataNodeError
from kata_node.host.files import Root
from kata_node.host.ownership import first_untrusted

SIZE_LIMIT = 256 << 10  # bytes; more than any record within its limits

Record = TypeVar("Record")

log = logging.getLogger(__name__)


def load_record(root: Root, where: str, record: type[Record]) -> Record | None:
    """Return the record in the file ``where``; ``None`` if there is none, or kata-node did not write it.

    kata-node writes regular files of at most :data:`SIZE_LIMIT` bytes, which no other user can write. The
    texts in the record are as in the file.
    """
    try:
        raw = _read(root, where)
    except KataNodeError as error:
        log.debug("%s cannot be read: %s", where, error)
        return None
    if raw is None:
        return None
    import msgspec.json

    try:
        return msgspec.json.decode(raw, type=record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        log.debug("%s is damaged: %s", where, error)
        return None


def _read(root: Root, where: str) -> bytes | None:
    info = root.lstat(where)
    if info is None:
        return None
    if not stat.S_ISREG(info.st_mode) or info.st_size > SIZE_LIMIT or first_untrusted(root, [where]):
        log.debug("%s is no record of kata-node", where)
        return None
    return root.read(where)
