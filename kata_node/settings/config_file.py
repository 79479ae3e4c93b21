"""Read a configuration file, and only the content that the pod was made for.

In a cluster the file comes from a ConfigMap. A user who may edit ConfigMaps must not control programs that
run as root on nodes. So the chart writes the digest of the content into the pod template, which such a user
cannot change, and the programs refuse any other content.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from pathlib import Path

from kata_node.bounded_read import read_bounded
from kata_node.errors import SettingsError, UsageError

PROPAGATION_TIMEOUT = 120.0
"""Seconds. After an upgrade the kubelet can mount the previous content for that long."""

POLL_INTERVAL = 2.0

MAX_CONFIG_SIZE = 16 << 20  # bytes; a ConfigMap has at most 1 MiB

log = logging.getLogger(__name__)


def read_config_file(
    path: Path,
    digest: str = "",
    *,
    timeout: float = PROPAGATION_TIMEOUT,
    interval: float = POLL_INTERVAL,
    source: str = "ConfigMap",
) -> bytes:
    """Return the content of a file.

    ``digest`` is the sha256 of the expected content as 64 hex digits; empty: any content. With a digest, wait
    up to ``timeout`` seconds until the file has this content. ``source`` is the kind of object that has it in
    a cluster. Raises :class:`OSError`, :class:`UsageError` for an invalid digest, and :class:`SettingsError`
    for other content.
    """
    if digest and not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise UsageError(
            f"{digest!r} is not a sha256 digest",
            where="--config-digest",
            hint="give the sha256 digest of the file: 64 lower-case hexadecimal digits",
        )
    deadline = time.monotonic() + timeout
    waited = False
    while True:
        content, _ = read_bounded(path, MAX_CONFIG_SIZE)
        if not digest or (found := hashlib.sha256(content).hexdigest()) == digest:
            return content
        if time.monotonic() >= deadline:
            break
        if not waited:
            log.warning(
                "%s has not the content that this pod was made for; waiting %g s for it", path, timeout
            )
            waited = True
        time.sleep(min(interval, timeout))
    raise SettingsError(
        "the content is not the one that this pod was made for: "
        f"its sha256 is {found}, the expected one is {digest}",
        where=str(path),
        hint="do not edit the ConfigMap; change the Helm values and run `helm upgrade`, which restores it"
        if source == "ConfigMap"
        else f"run `helm upgrade` after a change of the {source}, with its new digest in the values if they "
        "have one",
    )
