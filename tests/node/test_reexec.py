"""An upgrade of systemd re-executes it at any time, which closes the connections of its clients."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.debian_node import Node
from node.installation import HANDLERS, PAYLOAD, UNIT, VALUES, WATCHED, kata_handlers
from node.snapshot import changes

SLOW = "run/systemd/system/containerd.service.d/slow.conf"
OVER_AND_OVER = "while :; do systemctl daemon-reexec; sleep 0.1; done"


@pytest.mark.parametrize(
    "is_outside",
    [
        pytest.param(False, id="with-its-private-socket"),
        # The connection to the bus stays open; systemd leaves the bus and returns with another unique name.
        pytest.param(True, id="with-the-bus-alone"),
    ],
)
def test_containerd_is_restarted_once_while_systemd_re_executes_repeatedly(
    ready: Node, payload: Path, is_outside: bool
) -> None:
    def run(command: str) -> None:
        if is_outside:
            ready.kata_node_outside(command, config=VALUES, payload=payload, check=True)
        else:
            ready.kata_node(command, config=VALUES, payload=PAYLOAD, check=True)

    drop_in = ready.root / SLOW
    drop_in.parent.mkdir(parents=True)
    drop_in.write_text(
        "[Service]\nExecStartPre=/bin/sleep 0.5\n"
    )  # a restart takes longer than a re-execution
    ready.run(["systemctl", "daemon-reload"])
    before = ready.snapshot(*WATCHED)
    ready.start(["sh", "-c", OVER_AND_OVER])
    run("install")
    assert kata_handlers(ready) == HANDLERS
    assert ready.activations(UNIT) == 2
    run("revert")
    assert kata_handlers(ready) == ()
    assert ready.activations(UNIT) == 3
    assert changes(before, ready.snapshot(*WATCHED)) == []
