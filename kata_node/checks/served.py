"""The settings that a node can serve: without shims that nobody asked for by name and that it lacks. Pure.

A values file enables all shims that its author did not disable. One of them must not keep the node from
serving the others. A shim is left out if the payload does not have it, or if the node does not have its
snapshotter. Shims with ``enabled: true``, shims of ``--shims`` and custom runtimes are never left out:
host-check fails for them.
"""

from __future__ import annotations

from collections.abc import Collection

from kata_node.checks import snapshotters
from kata_node.payload import offer
from kata_node.runtime.facts import RuntimeFacts
from kata_node.settings.handlers import handlers, is_asked_for
from kata_node.settings.model import Settings
from kata_node.snapshotters.facts import SnapshotterFacts
from kata_node.snapshotters.mapping import NYDUS


def served_settings(
    settings: Settings,
    runtime: RuntimeFacts,
    facts: SnapshotterFacts | None,
    placed: Collection[str] | None,
) -> Settings:
    """Return the settings without the shims that this node cannot serve.

    ``placed`` has the paths below the install dir that the artifacts stage has placed, or will place, if
    they are known. ``facts`` are needed if a handler uses erofs. If no handler would be left, no shim is
    left out because of its snapshotter.
    """
    if placed is not None:
        settings = offer.with_placed_files(settings, placed)
    missing = snapshotters.unavailable(settings, runtime, facts, placed)
    shims = {
        handler.shim.name: f"needs another snapshotter: {missing[handler.name].reason}"
        for handler in handlers(settings)
        if handler.name in missing and not is_asked_for(settings, handler)
    }
    left_out = {handler.snapshotter for handler in handlers(settings) if handler.shim.name in shims}
    served = settings.without(shims)
    if not handlers(served):
        return settings
    used = {handler.snapshotter for handler in handlers(served)}
    # Without the program of nydus there is nothing to set up, whether or not a shim uses it.
    if snapshotters.lacks_nydus(placed) and NYDUS not in used:
        left_out.add(NYDUS)
    return served.without({}, left_out - used)
