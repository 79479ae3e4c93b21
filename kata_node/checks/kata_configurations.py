"""The effective Kata configuration of each handler: its base, our drop-ins, and those that somebody added."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kata_node.errors import KataNodeError
from kata_node.kata.merge import Table, merge
from kata_node.payload.facts import ArtifactFacts
from kata_node.settings.handlers import handlers

if TYPE_CHECKING:
    from kata_node.plan.context import StageContext
    from kata_node.settings.handlers import Handler

log = logging.getLogger(__name__)


def kata_configurations(context: StageContext, artifacts: ArtifactFacts | KataNodeError) -> dict[str, Table]:
    """Return by handler name the configuration that Kata reads after the install.

    Handlers whose configuration is not known or is broken are left out: other checks report that.
    """
    from kata_node.toml.parse import parse

    known = artifacts if isinstance(artifacts, ArtifactFacts) else None
    found: dict[str, Table] = {}
    for handler in handlers((known.settings if known else None) or context.settings):
        try:
            files = dict(_files(context, known, handler))
            base = files.pop("", None)
            if base is not None:
                found[handler.name] = merge(parse(base.decode()), files)
        except (KataNodeError, ValueError) as error:
            log.debug("the Kata configuration of %s is not known: %s", handler.name, error)
    return found


def _files(
    context: StageContext, artifacts: ArtifactFacts | None, handler: Handler
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of each drop-in, and the configuration itself under the name ``""``."""
    root, install_dir = context.clients.root, context.settings.install_dir
    desired = artifacts.desired_files if artifacts else None
    own = context.receipt.artifacts.files if context.receipt.artifacts else {}
    names = root.list_dir(f"{install_dir}/{handler.drop_in_dir}")
    on_node = {handler.own_config: ""} | {f"{handler.drop_in_dir}/{name}": name for name in names}
    for path, name in on_node.items():
        # Our own files are those that the install will place, not those that are there.
        if desired is not None and path in own:
            continue
        if (content := root.read(f"{install_dir}/{path}")) is not None:
            yield name, content
    for path, file in (desired or {}).items():
        directory, _, name = path.rpartition("/")
        if file.content is not None and (path == handler.own_config or directory == handler.drop_in_dir):
            yield "" if path == handler.own_config else name, file.content
