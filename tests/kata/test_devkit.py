"""The devkit variant of a shim's handler: which shims have it, and what Kata reads for it."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from msgspec.structs import replace

from kata_node.kata.drop_ins import drop_ins
from kata_node.kata.merge import merge
from kata_node.settings.handlers import handlers
from kata_node.settings.model import Settings
from kata_node.settings.shims import table
from payloads import CONFIGS

IMAGE = "share/kata-containers/kata-containers-devkit-extension.img"
COCO = "share/kata-containers/kata-containers-coco-extension.img"
WITH_COCO = f"""
[[hypervisor.qemu.guest_extension_images]]
name = "coco"
path = "/opt/kata/{COCO}"
"""


def settings(shim: str, **fields: Any) -> Settings:
    return Settings(shims=(table()[shim],), arch="x86_64", debug=True, devkit=True, **fields)


def merged(wanted: Settings, variant: str, verity: str = "", more: str = "") -> dict[str, Any]:
    """Return the configuration that Kata reads for the only handler of a variant.

    ``more`` is the end of the payload's configuration.
    """
    [handler] = [each for each in handlers(wanted) if each.variant == variant]
    base = tomllib.loads(CONFIGS[handler.shim.name] + more)
    return merge(base, drop_ins(handler, wanted, base, devkit_verity=verity))


@pytest.mark.parametrize(
    ("shim", "has"),
    [
        ("qemu", True),
        ("qemu-runtime-rs", True),
        ("dragonball", True),
        ("qemu-coco-dev", True),
        pytest.param("clh", False, id="the Go runtime attaches images with QEMU only"),
        pytest.param("qemu-snp", False, id="confidential"),
        pytest.param("remote", False, id="no guest on this node"),
    ],
)
def test_a_shim_whose_guests_can_have_the_devkit_has_a_third_handler(shim: str, *, has: bool) -> None:
    names = [handler.name for handler in handlers(settings(shim, suffix="blue"))]
    assert names[:2] == [f"kata-{shim}-blue", f"kata-{shim}-debug-blue"]
    assert names[2:] == ([f"kata-{shim}-devkit-blue"] if has else [])


@pytest.mark.parametrize("fields", [{"debug": False}, {"devkit": False}, {"arch": "s390x"}])
def test_there_is_no_devkit_without_debug_or_where_kata_does_not_build_it(fields: dict[str, Any]) -> None:
    wanted = replace(settings("qemu"), **fields)
    assert [each.variant for each in handlers(wanted) if each.variant == "devkit"] == []


def test_the_devkit_is_attached_behind_the_images_of_the_configuration_in_every_install_dir() -> None:
    wanted = settings("qemu", install_dir="/srv/opt/kata")
    params = "root_hash=5a,salt=,data_blocks=1"
    config = merged(wanted, "devkit", f"\n{params}\nother\n", WITH_COCO)
    images = config["hypervisor"]["qemu"]["guest_extension_images"]
    assert [(each["name"], each["path"]) for each in images] == [
        ("coco", f"/srv/opt/kata/{COCO}"),
        ("devkit", f"/srv/opt/kata/{IMAGE}"),
    ]
    assert images[1]["verity_params"] == params


def test_the_guest_attaches_the_devkit_unverified_if_kata_has_no_parameters_for_it() -> None:
    [image] = merged(settings("qemu"), "devkit")["hypervisor"]["qemu"]["guest_extension_images"]
    assert image == {"name": "devkit", "path": f"/opt/kata/{IMAGE}"}


def test_the_devkit_variant_is_the_debug_variant_with_the_image() -> None:
    debug, devkit = (merged(settings("qemu"), variant) for variant in ("debug", "devkit"))
    assert devkit["agent"]["kata"]["debug_console_enabled"] is True
    del devkit["hypervisor"]["qemu"]["guest_extension_images"]
    assert devkit == debug
