"""Find the Nodes that are not Ready while their Jobs run.

A Node changes some times per minute, and as an object it has 12 KB. So the Nodes are read as a table, and
their changes by a watch that continues where the last one ended and takes one second.
"""

from __future__ import annotations

import logging

import msgspec

from kata_node.dispatcher.api import AS_TABLE, ApiClient, ExpiredError
from kata_node.dispatcher.kubernetes_objects import NODES, TablePage
from kata_node.errors import KubeError
from kata_node.kube.failures import classify_error

WITHOUT_OBJECTS = {"includeObject": "None"}
NOT_READY = "NotReady"
"""A word in the column STATUS. Beside it there can be ``SchedulingDisabled``."""

FIRST_CHECK, CHECK_INTERVAL = 15.0, 30.0
"""Seconds from the start of a Job to the first look at its Node, and between two looks."""

log = logging.getLogger(__name__)


class NodeReadiness:
    """Which Nodes are not Ready, as the API server said at the last update. A Node that it never named counts
    as Ready."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self._resource_version = ""
        self._columns: dict[str, int] = {}
        self._not_ready: set[str] = set()

    def is_ready(self, name: str) -> bool:
        """Return whether the Node is not known to be NotReady."""
        return name not in self._not_ready

    def update(self) -> None:
        """Read what has changed since the last call; the next call reads what a failed one did not."""
        try:
            if self._resource_version:
                self._read_changes()
            else:
                self._read_all()
        except (ExpiredError, KubeError) as error:
            log.debug("the readiness of the Nodes is not known: %s", error)
            self._resource_version = ""
        except Exception as error:
            if classify_error(error) is None:
                raise
            # The watch of Jobs reports an API server that is away for long.
            log.debug("the watch of the Nodes has ended", exc_info=error)
            if getattr(getattr(error, "response", None), "status_code", 0) == 410:
                self._resource_version = ""

    def _read_all(self) -> None:
        self._not_ready.clear()
        version = ""
        for page in self._api.pages(
            NODES, "list nodes as a table", TablePage, WITHOUT_OBJECTS, accept=AS_TABLE
        ):
            version = page.metadata.resource_version
            self._note(page)
        self._resource_version = version

    def _read_changes(self) -> None:
        query = {**WITHOUT_OBJECTS, "resourceVersion": self._resource_version}
        decode = msgspec.json.Decoder(TablePage).decode
        for event in self._api.watch(NODES, "watch nodes", query, 1, accept=AS_TABLE):
            if event.type == "ERROR":
                raise ExpiredError("the watch of the Nodes has expired")
            table = decode(event.object)
            self._resource_version = table.metadata.resource_version or self._resource_version
            if event.type != "BOOKMARK":
                self._note(table, deleted=event.type == "DELETED")

    def _note(self, table: TablePage, *, deleted: bool = False) -> None:
        if table.column_definitions:
            self._columns = {column.name: at for at, column in enumerate(table.column_definitions)}
        name_at, status_at = self._columns["Name"], self._columns["Status"]
        for row in table.rows or ():
            name, status = str(row.cells[name_at]), str(row.cells[status_at])
            if NOT_READY in status.split(",") and not deleted:
                self._not_ready.add(name)
            else:
                self._not_ready.discard(name)
