"""Keys of older charts become present ones, and everything else in the file stays."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from kata_node.errors import SettingsError
from kata_node.settings.shims import MACHINES, table
from kata_node.values.check import check
from kata_node.values.convert import Converted, convert

OLD = """\
# Our clusters.
image:
  reference: registry.example.org/kata  # mirrored
  tag: "3.8.0"

k8sDistribution: 'rke2'
env:
  debug: "true"
  # Only these two.
  # Asked for by team A.
  shims: "qemu cloud-hypervisor"  # no fc
  # The default of the team.
  defaultShim: "qemu"
  agentNoProxy: ""
  # Stays.
  multiInstallSuffix: "a"
# The end.
"""
NEW = """\
# Our clusters.
image:
  reference: registry.example.org/kata  # mirrored
  tag: "3.8.0"

k8sDistribution: 'rke2'
env:
  # Stays.
  multiInstallSuffix: "a"

debug: true

# Only these two.
# Asked for by team A.
# no fc
shims:
  disableAll: true
  clh-runtime-rs:
    enabled: true
  qemu:
    enabled: true

# The default of the team.
defaultShim:
  amd64: qemu
  arm64: qemu
  s390x: qemu
  ppc64le: qemu
# The end.
"""
EVERY = (
    "clh cloud-hypervisor dragonball fc qemu qemu-coco-dev qemu-runtime-rs qemu-sev qemu-snp qemu-tdx "
    "stratovirt qemu-nvidia-gpu qemu-nvidia-gpu-snp qemu-nvidia-gpu-tdx"
)


def converted(text: str) -> Converted:
    return convert(text, "values.yaml")


def values(**env: object) -> Any:
    """Return the content of a file that has only ``env``, converted."""
    return yaml.safe_load(converted(yaml.safe_dump({"env": env})).text)


def test_a_file_of_2024_is_converted_and_keeps_its_comments() -> None:
    result = converted(OLD)
    assert result.text == NEW
    assert result.notes == ()
    assert check(yaml.safe_load(result.text)).ok
    assert converted(result.text).text == result.text, "a second conversion changes nothing"


def test_lines_that_end_as_on_windows_stay_so() -> None:
    assert converted(OLD.replace("\n", "\r\n")).text == NEW.replace("\n", "\r\n")


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        pytest.param({"debug": "false"}, {"debug": False}, id="a switch that is off"),
        pytest.param({"debug": True}, {"debug": True}, id="a switch that is no string"),
        pytest.param(
            {"createRuntimeClasses": "true", "createDefaultRuntimeClass": "true"},
            {"runtimeClasses": {"enabled": True, "createDefault": True}},
            id="RuntimeClasses",
        ),
        pytest.param(
            {"defaultShim": "clh"},
            {"defaultShim": {"amd64": "clh", "arm64": "clh"}},
            id="a default that not every architecture has",
        ),
        pytest.param(
            {"defaultShim_s390x": "qemu", "defaultShim": ""},
            {"defaultShim": {"s390x": "qemu"}},
            id="a default of one architecture",
        ),
        pytest.param(
            {"snapshotterHandlerMapping": "qemu-tdx:nydus,clh:erofs"},
            {
                "shims": {
                    "qemu-tdx": {"containerd": {"snapshotter": "nydus"}},
                    "clh": {"containerd": {"snapshotter": "erofs"}},
                }
            },
            id="snapshotters",
        ),
        pytest.param(
            {"pullTypeMapping": "qemu-tdx:guest-pull"},
            {"shims": {"qemu-tdx": {"crio": {"guestPull": True}}}},
            id="guest pull of CRI-O",
        ),
        pytest.param(
            {"_experimentalForceGuestPull_x86_64": "qemu-tdx"},
            {"shims": {"qemu-tdx": {"containerd": {"forceGuestPull": True}}}},
            id="guest pull of containerd",
        ),
        pytest.param(
            {"_experimentalSetupSnapshotter": "nydus,erofs"},
            {"snapshotter": {"setup": ["nydus", "erofs"]}},
            id="snapshotters to set up",
        ),
        pytest.param(
            {"agentHttpsProxy": "qemu-tdx=http://a;qemu-snp=http://b"},
            {
                "shims": {
                    "qemu-tdx": {"agent": {"httpsProxy": "http://a"}},
                    "qemu-snp": {"agent": {"httpsProxy": "http://b"}},
                }
            },
            id="a proxy for each shim",
        ),
        pytest.param(
            {"allowedHypervisorAnnotations": "qemu:kernel_params,image"},
            {"shims": {"qemu": {"allowedHypervisorAnnotations": ["kernel_params", "image"]}}},
            id="annotations of a shim",
        ),
        pytest.param(
            {"shims": "clh", "hostOS": "cbl-mariner"},
            {"shims": {"disableAll": True, "clh-azure": {"enabled": True}}},
            id="Mariner",
        ),
        pytest.param(
            {"hostOS": "cbl-mariner"}, {"shims": {"clh-azure": {"enabled": True}}}, id="Mariner alone"
        ),
        pytest.param({"shims": "", "debug": "", "hostOS": ""}, {"env": {"hostOS": ""}}, id="nothing set"),
    ],
)
def test_each_old_key_has_its_present_key(env: dict[str, object], expected: object) -> None:
    assert (values(**env) or {}) == expected


def test_a_key_for_all_shims_applies_to_the_shims_of_the_file() -> None:
    found = values(shims="qemu qemu-tdx", agentHttpsProxy="http://proxy", allowedHypervisorAnnotations="a b")[
        "shims"
    ]
    for name in ("qemu", "qemu-tdx"):
        assert found[name] == {
            "enabled": True,
            "agent": {"httpsProxy": "http://proxy"},
            "allowedHypervisorAnnotations": ["a", "b"],
        }
    assert set(values(agentNoProxy="localhost")["shims"]) == set(table()) - {"remote"}


def test_lists_for_single_architectures_become_supported_arches() -> None:
    found = values(shims="qemu", shims_x86_64="qemu clh")["shims"]
    assert found == {
        "disableAll": True,
        "clh": {"enabled": True, "supportedArches": ["amd64"]},
        "qemu": {"enabled": True, "supportedArches": list(MACHINES)},
    }


def test_the_list_of_every_shim_chooses_none() -> None:
    result = converted(yaml.safe_dump({"env": {"shims": EVERY, "defaultShim": "qemu"}}))
    assert set(yaml.safe_load(result.text)) == {"defaultShim"}
    assert [note for note in result.notes if "all shims stay enabled" in note]


def test_shims_that_kata_does_not_have_are_named() -> None:
    result = converted("env: {shims: 'qemu qemu-sev qemo'}\n")
    assert yaml.safe_load(result.text)["shims"] == {"disableAll": True, "qemu": {"enabled": True}}
    assert result.notes == (
        "env.shims: Kata does not have the shim qemu-sev any more",
        "env.shims: Kata has no shim qemo, so it is left out; did you mean qemu?",
    )


@pytest.mark.parametrize(
    ("env", "stays"),
    [
        ({"shims": "qemu-sev acrn", "debug": "true"}, {"shims": "qemu-sev acrn"}),
        ({"shims_x86_64": "acrn"}, {"shims_x86_64": "acrn"}),
        ({"shims": "acrn", "hostOS": "cbl-mariner"}, {"shims": "acrn", "hostOS": "cbl-mariner"}),
    ],
)
def test_a_list_of_shims_that_kata_does_not_have_stays_instead_of_becoming_all_shims(
    env: dict[str, object], stays: object
) -> None:
    result = converted(yaml.safe_dump({"env": env}))
    assert yaml.safe_load(result.text)["env"] == stays
    assert "shims" not in yaml.safe_load(result.text)
    assert "env.shims stays, because Kata has none of its shims; choose others below shims" in result.notes


def test_a_present_section_gets_the_keys_in_its_place() -> None:
    own = "shims:\n  # ours\n  qemu:\n    dropIn: |\n      a = 1\n"
    text = f"{own}\ndebug: false  # quiet\nenv:\n  debug: 'true'\n  shims: qemu\n"
    assert converted(text).text == (f"{own}    enabled: true\n  disableAll: true\n\ndebug: true  # quiet\n")


def test_a_block_of_text_at_the_end_of_the_file_stays_as_it_is() -> None:
    text = "env:\n  shims: qemu\nshims:\n  qemu:\n    dropIn: |\n      # ours\n      a = 1"
    shims = yaml.safe_load(converted(text).text)["shims"]
    assert shims == {"disableAll": True, "qemu": {"enabled": True, "dropIn": "# ours\na = 1\n"}}


def test_a_mapping_in_braces_is_written_as_a_block() -> None:
    assert yaml.safe_load(
        converted("env: {shims: qemu, hostOS: ''}\nshims: {qemu: {dropIn: 'a = 1'}}\n").text
    ) == {
        "env": {"hostOS": ""},
        "shims": {"disableAll": True, "qemu": {"dropIn": "a = 1", "enabled": True}},
    }


def test_a_renamed_shim_keeps_its_lines_and_a_withdrawn_one_goes() -> None:
    text = (
        "shims:\n  cloud-hypervisor:  # rust\n    enabled: true\n"
        "  # no more\n  qemu-cca:\n    enabled: true\n  qemu:\n    enabled: true\n"
    )
    result = converted(text)
    assert result.text == (
        "shims:\n  clh-runtime-rs:  # rust\n    enabled: true\n  # no more\n  qemu:\n    enabled: true\n"
    )
    assert result.notes == ("shims.qemu-cca: Kata does not have this shim any more",)


def test_a_file_that_enables_every_shim_does_not_ask_for_those_that_need_prepared_nodes() -> None:
    names = EVERY.replace("cloud-hypervisor", "clh-runtime-rs").replace("qemu-sev ", "").split()
    old = {"shims": {name.replace("clh-runtime-rs", "cloud-hypervisor"): {"enabled": True} for name in names}}
    shims = yaml.safe_load(converted(yaml.safe_dump(old)).text)["shims"]
    assert {name for name, shim in shims.items() if shim["enabled"] is None} == {"fc", "stratovirt"}


def test_a_mode_of_erofs_that_became_a_switch() -> None:
    text = "snapshotter:\n  erofsSnapshotterMode: integrity\n"
    assert yaml.safe_load(converted(text).text) == {"snapshotter": {"erofsDmverity": True}}


def test_a_present_file_stays_byte_for_byte() -> None:
    text = "# a\nshims:\n    qemu: {enabled: true}   # b\n\n\nenv:   \n  multiInstallSuffix: 'a'\n"
    assert converted(text).text == text
    assert converted("").text == ""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("env:\n  shims: &shims qemu\n  hostOS: ''\nimage:\n  tag: *shims\n", "cannot be converted"),
        ("common: &common\n  shims: qemu\nenv:\n  <<: *common\n  hostOS: ''\n", "cannot be converted"),
        ("env: [", "not valid YAML"),
        ("- a\n", "expected a mapping"),
    ],
)
def test_a_file_that_cannot_be_converted_says_why(text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        converted(text)


@pytest.mark.parametrize("key", ["shims", "defaultShim_x86_64", "agentHttpsProxy", "debug"])
@pytest.mark.parametrize("value", ["[qemu]", "{qemu: true}"])
def test_an_old_key_with_a_value_that_is_no_text_stays(key: str, value: str) -> None:
    text = f"env:\n  {key}: {value}\n"
    converted = convert(text, "values.yaml")
    assert converted.text == text
    assert any(note.startswith(f"env.{key}: expected text, got a ") for note in converted.notes)
