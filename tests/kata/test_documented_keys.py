"""Which keys a configuration file of Kata documents, and what is known about keys beyond these files."""

from __future__ import annotations

import pytest

from kata_node.kata.documented_keys import annotation_names, documented_keys, is_mentioned, known_keys

TEXT = """\
# This file is read by = nobody, see docs = "x.md".
[hypervisor.qemu]
path = "/opt/kata/bin/qemu"
# The memory. Default = 2048
#default_memory = 4096
# firmware = ""    # none
## debug_level = 1
# path = 1
# root_hash=...,salt=...
# VISIBLE = "yes"
# modes:
#   - one
#   - two-three (default)
# extra_args = [
#   "--one",
#   "--two",
# ]
# broken = [
#   "--one",

# not_part_of_it = "x" ]

# [[hypervisor.qemu.images]]
# name = "x"

[agent.kata]
# timeout = 1.5
#[agent.kata.memory]
# swap = true
log = "info"
# server_port = 1
"""


def test_a_key_is_documented_if_it_is_set_or_commented_with_a_value() -> None:
    assert documented_keys(TEXT) == {
        "hypervisor": {
            "qemu": {
                "path": "/opt/kata/bin/qemu",
                "default_memory": 4096,
                "firmware": "",
                "debug_level": 1,
                "extra_args": ["--one", "--two"],
                "images": [{"name": "x"}],
            }
        },
        "agent": {"kata": {"timeout": 1.5, "memory": {"swap": True}, "log": "info", "server_port": 1}},
    }


@pytest.mark.parametrize(
    "text",
    ["[a", "", "# nothing\n", "# deep = " + "[" * 100_000, "# huge = " + "9" * 5000],
    ids=["broken", "empty", "prose", "deep", "huge"],
)
def test_a_file_without_settings_documents_nothing(text: str) -> None:
    assert documented_keys(text) == {}


def test_known_keys_are_those_of_all_hypervisors_and_the_types_are_those_of_the_base_configuration() -> None:
    base = {"hypervisor": {"qemu": {"own": 1}}, "agent": {"kata": {"timeout": 45}}}
    known = known_keys("go", "qemu", base, ["[hypervisor.clh]\n# other = 'x'\nown = 'x'", TEXT])
    assert known["hypervisor"]["qemu"]["other"] == "x"
    assert known["hypervisor"]["qemu"]["own"] == 1
    assert known["hypervisor"]["qemu"]["default_memory"] == 4096
    assert known["hypervisor"]["qemu"]["initrd"], "no file documents it"
    assert known["agent"]["kata"] == {
        "timeout": 45,
        "memory": {"swap": True},
        "log": "info",
        "server_port": 1,
    }
    assert known.keys() == {"hypervisor", "agent", "runtime", "factory"}


def test_a_value_is_mentioned_if_a_file_quotes_it_or_lists_it() -> None:
    assert is_mentioned("one", TEXT)
    assert is_mentioned("two-three", TEXT)
    assert is_mentioned("/opt/kata/bin/qemu", TEXT)
    assert not is_mentioned("two", TEXT)
    assert not is_mentioned("file", TEXT), "a word of prose"
    assert not is_mentioned("", TEXT)


def test_the_names_of_annotations_are_not_always_those_of_the_keys() -> None:
    assert "default_max_vcpus" in annotation_names()
    assert "default_maxvcpus" not in annotation_names()
