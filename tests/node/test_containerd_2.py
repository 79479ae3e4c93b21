"""containerd 2 releases, which read drop-ins by an import or from conf.d, and upgrades between them."""

from __future__ import annotations

import re

import pytest

from node.conftest import BootNode
from node.containerd_build import NEWEST, OLDEST, WITH_CONF_D
from node.debian_node import Node
from node.installation import (
    HANDLERS,
    PAYLOAD,
    UNIT,
    WATCHED,
    assert_nothing_to_do,
    configure,
    fake_kvm,
    install,
    kata_handlers,
    main_file,
)
from node.snapshot import changes

CONF_D = 'imports = ["/etc/containerd/conf.d/*.toml"]\n'
IMPORT_ENTRY = b"/opt/kata/containerd/config.d/*.toml"
DROP_IN = "etc/containerd/conf.d/99-kata-deploy.toml"
IMPORTED = "opt/kata/containerd/config.d"
PLUGINS = {
    2: "io.containerd.grpc.v1.cri",
    3: "io.containerd.cri.v1.runtime",
    4: "io.containerd.cri.v1.runtime",
}
HANDLER = """\
version = {schema}
[plugins.'{plugin}'.containerd.runtimes.{name}]
runtime_type = 'io.containerd.runc.v2'
"""


@pytest.fixture
def boot_ready(boot_node: BootNode, payload: object) -> BootNode:
    """Return a function that boots nodes with the payload and a fake ``/dev/kvm``."""

    def boot(suite: str = "forky", **options: object) -> Node:
        node = fake_kvm(boot_node(suite, **options))
        node.mount(payload, PAYLOAD)  # type: ignore[arg-type]
        return node

    return boot


@pytest.mark.parametrize("release", [OLDEST, WITH_CONF_D, NEWEST])
@pytest.mark.parametrize(
    "config",
    [
        pytest.param("as-shipped", id="as-debian-ships-it"),
        pytest.param(None, id="no-main-file"),
        pytest.param(b"version = 3\n[debug]\nlevel = 'info'", id="schema-3"),
    ],
)
def test_without_conf_d_the_main_file_gets_one_import_and_is_restored_byte_for_byte(
    boot_ready: BootNode, release: str, config: bytes | str | None
) -> None:
    node = boot_ready(containerd=release)
    if not isinstance(config, str):
        configure(node, config)
    before = node.snapshot(*WATCHED)
    starts = node.activations(UNIT)
    install(node)
    assert node.cri_handlers() == (*HANDLERS, "runc")
    assert node.activations(UNIT) == starts + 1
    assert IMPORT_ENTRY in main_file(node).read_bytes()
    assert_nothing_to_do(node)
    node.kata_node("revert", check=True)
    assert node.cri_handlers() == ("runc",)
    assert changes(before, node.snapshot(*WATCHED)) == []
    assert node.activations(UNIT) == starts + 2


@pytest.mark.parametrize(
    ("release", "schema"),
    [
        pytest.param(WITH_CONF_D, 2, id="2.2-schema-2"),
        pytest.param(WITH_CONF_D, 3, id="2.2-schema-3"),
        pytest.param(NEWEST, 2, id="newest-schema-2"),
        pytest.param(NEWEST, 3, id="newest-schema-3"),
        pytest.param(NEWEST, 4, id="newest-schema-4"),
    ],
)
def test_with_conf_d_the_main_file_and_foreign_drop_ins_are_not_changed(
    boot_ready: BootNode, release: str, schema: int
) -> None:
    node = boot_ready(containerd=release)
    conf_d = node.root / "etc/containerd/conf.d"
    conf_d.mkdir()
    for name, handler in (("00-first", "first"), ("99-z", "middle"), ("zzz-last", "last")):
        text = HANDLER.format(schema=schema, plugin=PLUGINS[schema], name=handler)
        (conf_d / f"{name}.toml").write_text(text)
    configure(node, f"version = {schema}\n{CONF_D}".encode())
    assert node.cri_handlers() == ("first", "last", "middle", "runc")
    before = node.snapshot(*WATCHED)
    main = node.snapshot("/etc/containerd/config.toml")
    install(node)
    assert node.cri_handlers() == ("first", *HANDLERS, "last", "middle", "runc")
    assert node.activations(UNIT) == 3
    assert changes(main, node.snapshot("/etc/containerd/config.toml"), times=True) == []
    assert not (node.root / IMPORTED).exists()
    assert_nothing_to_do(node)
    node.kata_node("revert", check=True)
    assert node.cri_handlers() == ("first", "last", "middle", "runc")
    assert changes(before, node.snapshot(*WATCHED)) == []
    assert node.activations(UNIT) == 4


def test_drop_ins_move_to_conf_d_after_an_upgrade_that_reads_it_and_back_after_a_downgrade(
    boot_ready: BootNode,
) -> None:
    node = boot_ready()
    main = f"version = 2\n{CONF_D}".encode()
    configure(node, main)
    before = node.snapshot(*WATCHED)
    install(node)
    assert IMPORT_ENTRY in main_file(node).read_bytes()
    for _ in range(2):
        assert node.replace_containerd(NEWEST).version == f"containerd://v{NEWEST}"
        assert kata_handlers(node) == HANDLERS
        install(node)
        assert kata_handlers(node) == HANDLERS
        assert main_file(node).read_bytes() == main
        assert (node.root / DROP_IN).exists()
        assert not list((node.root / IMPORTED).glob("*"))
        assert_nothing_to_do(node)

        assert node.replace_containerd().version.startswith("containerd://2.1.")
        assert kata_handlers(node) == HANDLERS
        install(node)
        assert kata_handlers(node) == HANDLERS
        assert IMPORT_ENTRY in main_file(node).read_bytes()
        assert not (node.root / DROP_IN).exists()
        assert_nothing_to_do(node)
    node.kata_node("revert", check=True)
    assert node.cri_handlers() == ("runc",)
    assert changes(before, node.snapshot(*WATCHED)) == []


@pytest.mark.parametrize(
    ("suite", "config"),
    [
        pytest.param("forky", "as-shipped", id="from-2.1"),
        pytest.param("forky", f"version = 2\n{CONF_D}", id="from-2.1-to-conf.d"),
        pytest.param("trixie", "as-shipped", id="from-1.7"),
        pytest.param("trixie", f"version = 2\n{CONF_D}", id="from-1.7-to-conf.d"),
    ],
)
def test_a_revert_after_an_upgrade_removes_the_entries_of_the_old_release(
    boot_ready: BootNode, suite: str, config: str
) -> None:
    node = boot_ready(suite)
    if config != "as-shipped":
        configure(node, config.encode())
    before = node.snapshot(*WATCHED)
    install(node)
    node.replace_containerd(NEWEST)
    assert kata_handlers(node) == HANDLERS
    node.kata_node("revert", check=True)
    assert node.cri_handlers() == ("runc",)
    assert changes(before, node.snapshot(*WATCHED)) == []


def test_an_install_after_an_upgrade_with_the_same_configuration_files_restarts_nothing(
    boot_ready: BootNode,
) -> None:
    node = boot_ready()
    install(node)
    node.replace_containerd(NEWEST)
    assert kata_handlers(node) == HANDLERS
    install(node)
    assert node.activations(UNIT) == 3
    assert_nothing_to_do(node)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param("as-shipped", id="to-an-import"),
        pytest.param(f"version = 2\n{CONF_D}", id="to-conf.d"),
    ],
)
def test_an_install_after_an_upgrade_from_1_7_removes_the_tables_from_the_main_file(
    boot_ready: BootNode, config: str
) -> None:
    node = boot_ready("trixie")
    if config != "as-shipped":
        configure(node, config.encode())
    before, main = node.snapshot(*WATCHED), main_file(node).read_text()
    install(node)
    assert "kata-qemu" in main_file(node).read_text()
    node.replace_containerd(NEWEST)
    assert kata_handlers(node) == HANDLERS
    install(node)
    assert node.cri_handlers() == (*HANDLERS, "runc")
    text = main_file(node).read_text()
    assert "kata-qemu" not in text
    assert (text == main) == (config != "as-shipped")
    assert_nothing_to_do(node)
    node.kata_node("revert", check=True)
    assert node.cri_handlers() == ("runc",)
    assert changes(before, node.snapshot(*WATCHED)) == []


def test_a_revert_repairs_a_downgrade_to_1_7_which_does_not_serve_with_drop_ins(
    boot_ready: BootNode,
) -> None:
    node = boot_ready("trixie", containerd=NEWEST)
    before = node.snapshot(*WATCHED)
    install(node)
    assert node.replace_containerd(serving=False).error == "UNIMPLEMENTED"
    node.kata_node("revert", check=True)
    assert node.cri_handlers() == ("runc",)
    assert changes(before, node.snapshot(*WATCHED)) == []
    install(node)
    assert kata_handlers(node) == HANDLERS


@pytest.mark.parametrize(
    ("release", "config"),
    [
        pytest.param(OLDEST, "as-shipped", id="2.0"),
        pytest.param("", "as-shipped", id="2.1"),
        pytest.param("", "version = 3\n", id="2.1-schema-3"),
        pytest.param(WITH_CONF_D, f"version = 3\n{CONF_D}", id="2.2-conf.d"),
        pytest.param(NEWEST, "as-shipped", id="newest"),
        pytest.param(NEWEST, f"version = 4\n{CONF_D}", id="newest-conf.d-schema-4"),
    ],
)
def test_a_snapshotter_of_a_handler_is_used_for_its_containers_and_its_images(
    boot_ready: BootNode, release: str, config: str
) -> None:
    node = boot_ready(containerd=release)
    if config != "as-shipped":
        configure(node, config.encode())
    shims = {"qemu": {"enabled": True, "containerd": {"snapshotter": "native"}}, "clh": {"enabled": True}}
    install(node, shims=shims)
    runtimes = node.cri().config["containerd"]["runtimes"]
    assert {name: runtime["snapshotter"] for name, runtime in runtimes.items()} == {
        "kata-clh": "",
        "kata-qemu": "native",
        "runc": "",
    }
    assert snapshotters_of_images(node) == {"kata-qemu": "native"}
    install(node, shims={"qemu": {"enabled": True}})
    assert node.cri().config["containerd"]["runtimes"]["kata-qemu"]["snapshotter"] == ""
    assert snapshotters_of_images(node) == {}


def snapshotters_of_images(node: Node) -> dict[str, str]:
    """Return handler -> snapshotter of its images, from ``containerd config dump``."""
    dump = node.run(["containerd", "config", "dump"]).stdout
    table = re.compile(
        r"\[plugins\.'io\.containerd\.cri\.v1\.images'\.runtime_platforms\.(\S+)\]\n(?:\s*\w+ = .*\n)*?"
        r"\s*snapshotter = ['\"](.*)['\"]"
    )
    return dict(table.findall(dump))
