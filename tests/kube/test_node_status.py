import json
import random
import re

import pytest
from msgspec.structs import replace

from kata_node.kube import node_status
from kata_node.kube.node_status import NodeStatus

SERVED = NodeStatus(
    outcome="installed",
    kata_version="4.1.0",
    program_version="0.3.0",
    settings="0123456789ab",
    since="2026-11-30T04:40:00Z",
    machine_id="ab" * 16,
    handlers=("kata-clh", "kata-qemu"),
)
ANNOTATION = "status.kata-deploy.katacontainers.io/blue"
VERSION = "version.kata-deploy.katacontainers.io/blue"
OUTCOME = "outcome.kata-deploy.katacontainers.io/blue"
LABELS = {VERSION: "4.1.0", OUTCOME: "installed"}


def test_a_record_is_read_as_it_was_written_and_has_no_empty_fields() -> None:
    text = node_status.encode(SERVED)
    assert node_status.parse(text) == SERVED
    assert "reason" not in json.loads(text)
    assert " " not in text


def test_a_record_has_one_annotation_and_two_labels_of_its_installation() -> None:
    changes = node_status.changes({}, {}, "blue", SERVED)
    assert changes.labels == LABELS
    assert changes.annotations == {ANNOTATION: node_status.encode(SERVED)}


def test_nothing_is_written_when_only_the_time_is_another() -> None:
    annotations = {ANNOTATION: node_status.encode(SERVED)}
    later = replace(SERVED, since="2026-12-24T00:00:00Z")
    assert not node_status.changes(LABELS, annotations, "blue", later)


@pytest.mark.parametrize(
    "new",
    [
        pytest.param({"kata_version": "4.2.0"}, id="version of Kata"),
        pytest.param({"program_version": "0.4.0"}, id="version of the program"),
        pytest.param({"settings": "ba9876543210"}, id="settings"),
        pytest.param({"outcome": "failed"}, id="outcome"),
        pytest.param({"reason": "the disk is full"}, id="reason"),
        pytest.param({"machine_id": "cd" * 16}, id="machine"),
    ],
)
def test_a_change_of_anything_else_is_written_with_its_time(new: dict[str, str]) -> None:
    annotations = {ANNOTATION: node_status.encode(SERVED)}
    wanted = replace(SERVED, since="2026-12-24T00:00:00Z", **new)
    changes = node_status.changes(LABELS, annotations, "blue", wanted)
    assert node_status.parse(changes.annotations[ANNOTATION] or "") == wanted


def test_a_label_that_somebody_changed_is_set_again_without_a_new_time() -> None:
    annotations = {ANNOTATION: node_status.encode(SERVED)}
    changes = node_status.changes({**LABELS, OUTCOME: "failed"}, annotations, "blue", SERVED)
    assert changes.labels == {OUTCOME: "installed"}
    assert changes.annotations == {}


def test_installations_side_by_side_keep_their_records() -> None:
    other = node_status.changes({}, {}, "green", replace(SERVED, kata_version="3.0.0"))
    labels, annotations = (
        {key: value or "" for key, value in each.items()} for each in (other.labels, other.annotations)
    )
    added = node_status.changes(labels, annotations, "blue", SERVED)
    assert set(added.labels) == set(LABELS)
    removed = node_status.removal({**labels, **LABELS}, {**annotations, ANNOTATION: "{}"}, "blue")
    assert removed.labels == dict.fromkeys(LABELS)
    assert removed.annotations == {ANNOTATION: None}
    assert node_status.installations({**annotations, ANNOTATION: "{}", "x/y": ""}) == ["blue", "green"]
    assert not node_status.removal(labels, annotations, "blue")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("true", id="no object"),
        pytest.param("{", id="no JSON"),
        pytest.param("[" * 4000, id="deep"),
        pytest.param("{}", id="no outcome"),
        pytest.param('{"outcome":"great"}', id="unknown outcome"),
        pytest.param('{"outcome":["installed"]}', id="outcome of another type"),
        pytest.param('{"outcome":"installed","since":"yesterday"}', id="no time"),
        pytest.param('{"outcome":"installed","kata_version":4}', id="number"),
        pytest.param('{"outcome":"installed","reason":null}', id="null"),
        pytest.param('{"outcome":"installed","handlers":"kata-qemu"}', id="handlers as text"),
        pytest.param('{"outcome":"installed","handlers":[1]}', id="handlers as numbers"),
        pytest.param('{"outcome":"installed","reason":"%s"}' % ("x" * 5000), id="too long"),
    ],
)
def test_an_annotation_that_is_no_record_is_none(text: str) -> None:
    assert node_status.parse(text) is None


def test_a_forged_record_has_only_printable_and_bounded_texts() -> None:
    found = node_status.parse(
        json.dumps(
            {"outcome": "failed", "reason": "\x1b[2J\nok\u202e" + "x" * 900, "kata_version": "v\x07" * 99}
        )
    )
    assert found is not None
    assert found.reason.isprintable()
    assert len(found.reason) <= 256
    assert found.kata_version.isprintable()
    assert len(found.kata_version) <= 64


def test_a_record_is_never_longer_than_the_policy_allows() -> None:
    longest = replace(
        SERVED, reason='"\\' * 400, handlers=tuple('"' * 60 + f"{number:02}" for number in range(40))
    )
    text = node_status.encode(longest)
    assert len(text) <= node_status.SIZE_LIMIT
    assert node_status.parse(text) is not None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4.1.0", "4.1.0"),
        ("4.1.0+abc", "4.1.0-abc"),
        ("  4.1.0-rc1\n", "4.1.0-rc1"),
        ("", "unknown"),
        ("…", "unknown"),
        ("x" * 62 + "-tail", "x" * 62),
    ],
)
def test_the_version_is_always_a_valid_value_of_a_label(text: str, value: str) -> None:
    assert node_status.label_value(text) == value


def test_any_text_makes_a_valid_label() -> None:
    choose = random.Random(7)
    for _ in range(500):
        text = "".join(choose.choice("aZ0.-_+ /\u00e9\u202e") for _ in range(choose.randrange(90)))
        assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", node_status.label_value(text))
