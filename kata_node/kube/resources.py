"""The resources of lightkube's client, as plain mappings."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightkube.generic_resource import GenericGlobalResource, GenericNamespacedResource


@functools.cache  # lightkube allows a process to register a resource of the core group only once
def node_resource() -> type[GenericGlobalResource]:
    """Return a resource class that gives a Node as a plain mapping.

    lightkube's typed class refuses the whole Node when any field, even an unused one, differs from its
    model.
    """
    from lightkube.generic_resource import create_global_resource

    return create_global_resource("", "v1", "Node", "nodes")


@functools.cache
def event_resource() -> type[GenericNamespacedResource]:
    """Return a resource class that takes an Event of the core group as a plain mapping."""
    from lightkube.generic_resource import create_namespaced_resource

    return create_namespaced_resource("", "v1", "Event", "events")
