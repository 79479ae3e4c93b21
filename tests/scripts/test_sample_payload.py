"""scripts/sample-payload makes a complete, recognizably synthetic payload with reproducible bytes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from kata_node.kata.documented_keys import documented_keys
from kata_node.payload import index
from kata_node.payload.selection import missing_paths
from kata_node.settings.shims import MACHINES, table

if sys.version_info >= (3, 14):
    import tarfile
else:
    from backports.zstd import tarfile

pytestmark = pytest.mark.commands  # runs the script and the sample programs that it makes

SCRIPT = Path(__file__).parents[2] / "scripts" / "sample-payload"


def run(directory: Path, *arguments: str, umask: int = -1) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(directory), "--no-index", *arguments]
    return subprocess.run(command, capture_output=True, text=True, umask=umask, check=False)


def make(directory: Path, *arguments: str, umask: int = -1) -> Path:
    done = run(directory, *arguments, umask=umask)
    assert done.returncode == 0, done.stderr
    return directory


def snapshot(base: Path) -> dict[str, tuple[object, ...]]:
    """Return kind and mode of every path below ``base``, with a link's target, or time and digest."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(base.rglob("*")):
        info = path.lstat()
        content: tuple[object, ...] = (info.st_mtime,)
        if path.is_symlink():
            content = (path.readlink(),)
        elif path.is_file():
            content += (hashlib.sha256(path.read_bytes()).hexdigest(),)
        found[str(path.relative_to(base))] = (stat.filemode(info.st_mode), *content)
    return found


def configs(install_dir: Path) -> list[Path]:
    return [path for path in install_dir.rglob("configuration-*.toml") if not path.is_symlink()]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("sample") / "both", "--form", "both", "--arch", "x86_64")


@pytest.fixture(scope="module")
def unpacked(both: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tarballs of ``both``, unpacked into one directory."""
    base = tmp_path_factory.mktemp("unpacked")
    for archive in sorted(both.glob("tarballs/tarballs/*.tar.zst")):
        with tarfile.open(archive) as tar:
            tar.extractall(base, filter="fully_trusted")
    return base


@pytest.mark.parametrize("arch", MACHINES.values())
def test_every_file_that_the_configuration_of_a_shim_names_exists(arch: str, tmp_path: Path) -> None:
    install_dir = make(tmp_path / "payload", "--arch", arch) / "opt/kata"
    shims = [shim for shim in table().values() if arch in shim.arches]
    assert {path.relative_to(install_dir) for path in configs(install_dir)} == {
        Path(shim.base_config) for shim in shims
    }
    for shim in shims:
        text = (install_dir / shim.base_config).read_text()
        (hypervisor,) = tomllib.loads(text)["hypervisor"].items()
        assert hypervisor[0] == shim.hypervisor
        assert not {"image", "initrd"} <= hypervisor[1].keys()  # Kata refuses a configuration with both
        assert os.access(install_dir / shim.shim_binary, os.X_OK)
        paths = re.findall(r'"/opt/kata/([^"]*)"', text)
        assert bool(paths) == shim.local_hypervisor
        assert [path for path in paths if not (install_dir / path).exists()] == []


def test_the_configurations_document_keys_in_comments_as_those_of_kata_do(both: Path) -> None:
    for shim in (shim for shim in table().values() if "x86_64" in shim.arches):
        text = (both / "tree/opt/kata" / shim.base_config).read_text()
        set_keys, documented = tomllib.loads(text), documented_keys(text)
        for section in ("hypervisor", "agent"):
            ((name, keys),) = set_keys[section].items()
            assert keys.keys() < documented[section][name].keys() or not shim.local_hypervisor
        assert set_keys["runtime"].keys() < documented["runtime"].keys()


def test_no_link_dangles(both: Path) -> None:
    links = [path for path in both.rglob("*") if path.is_symlink()]
    assert both / "tree/opt/kata/share/kata-containers/vmlinux.container" in links
    assert both / "tree/opt/kata/share/defaults/kata-containers/configuration.toml" in links
    assert all(link.exists() for link in links)


def test_tree_and_tarballs_hold_the_same_files(both: Path, unpacked: Path) -> None:
    tree, tarballs = snapshot(both / "tree/opt/kata"), snapshot(unpacked / "opt/kata")
    assert tree.keys() - tarballs.keys() == {"VERSION", "versions.yaml"}
    assert {path: tree[path] for path in tarballs} == tarballs
    for name in ("VERSION", "versions.yaml"):
        assert (both / "tarballs" / name).read_bytes() == (both / "tree/opt/kata" / name).read_bytes()


def test_the_tarballs_of_every_shim_have_its_files(both: Path) -> None:
    needs = json.loads((both / "tarballs/shim-components.json").read_text())["shims"]
    assert list(needs) == [name for name, shim in table().items() if "x86_64" in shim.arches]
    for name, components in needs.items():
        held: set[str] = set()
        for component in components["x86_64"]:
            with tarfile.open(both / f"tarballs/tarballs/kata-static-{component}.tar.zst") as tar:
                held |= {member.removeprefix("./opt/kata/") for member in tar.getnames()}
        assert {table()[name].shim_binary, table()[name].base_config} <= held
        text = (both / "tree/opt/kata" / table()[name].base_config).read_text()
        named = set(re.findall(r'"/opt/kata/([^"]*)"', text))
        if 'shared_fs = "none"' in text:
            named.remove("libexec/virtiofsd")  # every QEMU configuration names it, even if it is not used
        assert named <= held


@pytest.mark.parametrize("form", ["tree", "tarballs"])
def test_the_payload_is_complete_for_every_shim(form: str, tmp_path: Path) -> None:
    done = run(tmp_path / "p", "--form", form, "--arch", "x86_64", "--release", "sample-3", "--index")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p/manifest.json").exists()
    payload = index.load(tmp_path / "p")
    assert payload.manifest.release == "4.1.0-sample-3"
    shims = [shim for shim in table().values() if "x86_64" in shim.arches]
    lacking = {shim.name: missing_paths(payload.select([shim], "x86_64"), shim) for shim in shims}
    assert lacking == {shim.name: [] for shim in shims}


def test_guest_images_have_zeros_and_no_holes_in_both_forms(both: Path, unpacked: Path) -> None:
    name = "opt/kata/share/kata-containers/kata-containers.img"
    for path in (both / "tree" / name, unpacked / name):
        info, content = path.stat(), path.read_bytes()
        assert info.st_blocks * 512 >= info.st_size
        assert content.count(0) > len(content) / 4
        assert bytes(info.st_size // 17) in content
    with tarfile.open(both / "tarballs/tarballs/kata-static-rootfs-image.tar.zst") as tar:
        assert tar.getmember(f"./{name}").sparse is None


def test_the_tarballs_compress_like_real_ones_and_the_ratio_is_shown(tmp_path: Path) -> None:
    done = run(tmp_path / "p", "--form", "tarballs", "--size", "20MiB", "--arch", "x86_64")
    shown = re.search(r"compressed ([0-9.]+):1$", done.stdout.strip())
    assert shown, done.stdout + done.stderr
    packed = sum(path.stat().st_size for path in (tmp_path / "p/tarballs").glob("*.zst"))
    assert float(shown[1]) == pytest.approx(20 * 1024**2 / packed, abs=0.1)
    assert 2.5 < float(shown[1]) < 5  # depends on the programs of this machine


@pytest.mark.parametrize("form", ["tree", "tarballs"])
def test_small_files_are_added_and_selected_for_every_shim(form: str, tmp_path: Path) -> None:
    options = ("--form", form, "--files", "250", "--shims", "fc", "--arch", "x86_64", "--index")
    done = run(tmp_path / "p", *options)
    assert done.returncode == 0, done.stderr
    entries = index.load(tmp_path / "p").select([table()["fc"]], "x86_64")
    small = [entry for entry in entries if entry.kind == "file" and entry.path.startswith("share/sample/")]
    assert len(small) == 250
    assert len({entry.sha256 for entry in small}) == 250
    assert all(200 <= entry.size <= 8000 for entry in small)


def test_every_file_says_that_it_is_a_sample(both: Path) -> None:
    install_dir = both / "tree/opt/kata"
    assert "sample" in (install_dir / "VERSION").read_text()
    assert "Synthetic" in (both / "SAMPLE-PAYLOAD.txt").read_text()
    for path in install_dir.rglob("*"):
        if path.is_file():
            assert "sample" in path.read_bytes()[:200].decode(errors="replace").lower(), path
    programs = [path for path in install_dir.rglob("*") if path.is_file() and os.access(path, os.X_OK)]
    assert install_dir / "bin/qemu-system-x86_64" in programs
    for program in programs:
        done = subprocess.run([program], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert f"{program.name}: synthetic sample, not a real program" in done.stderr


def test_the_same_arguments_give_the_same_bytes_whatever_the_umask(both: Path, tmp_path: Path) -> None:
    again = make(tmp_path / "again", "--form", "both", "--arch", "x86_64", umask=0o077)
    assert snapshot(again / "tree/opt") == snapshot(both / "tree/opt")
    assert snapshot(again / "tarballs/tarballs").keys() == snapshot(both / "tarballs/tarballs").keys()
    for archive in (again / "tarballs/tarballs").iterdir():
        assert archive.read_bytes() == (both / "tarballs/tarballs" / archive.name).read_bytes()


def test_another_seed_changes_the_content_but_not_the_names(both: Path, tmp_path: Path) -> None:
    other = snapshot(make(tmp_path / "other", "--seed", "2", "--arch", "x86_64") / "opt")
    first = snapshot(both / "tree/opt")
    assert other.keys() == first.keys()
    changed = {path for path in first if first[path] != other[path]}
    assert "kata/bin/qemu-system-x86_64" in changed
    assert "kata/share/defaults/kata-containers/configuration-qemu.toml" not in changed


def test_another_release_renames_the_kernels_and_changes_the_version(both: Path, tmp_path: Path) -> None:
    base = make(tmp_path / "next", "--release", "sample-2", "--arch", "x86_64") / "opt"
    first, second = snapshot(both / "tree/opt"), snapshot(base)
    assert (base / "kata/VERSION").read_text() == "4.1.0-sample-2\n"
    assert {Path(path).name.split("-")[0] for path in first.keys() - second.keys()} == {"vmlinux", "vmlinuz"}
    assert first["kata/bin/firecracker"] == second["kata/bin/firecracker"]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        pytest.param("2MiB", 2 * 1024**2, id="small"),
        pytest.param("0.03GiB", 0.03 * 1024**3, id="fraction"),
        pytest.param("9000000", 9e6, id="bytes"),
    ],
)
def test_all_files_together_have_the_requested_size(text: str, size: float, tmp_path: Path) -> None:
    base = make(tmp_path / "payload", "--size", text, "--shims", "qemu,clh-runtime-rs", "--arch", "x86_64")
    found = sum(path.stat().st_size for path in base.rglob("*") if path.is_file() and not path.is_symlink())
    assert 0.95 < found / size < 1.05


def test_only_files_for_the_named_shims_are_made(tmp_path: Path) -> None:
    base = make(tmp_path / "p", "--form", "both", "--shims", "qemu-snp", "--arch", "x86_64")
    components = {
        path.name.removeprefix("kata-static-").removesuffix(".tar.zst")
        for path in (base / "tarballs/tarballs").iterdir()
    }
    needed = {"shim-v2-go", "qemu", "kernel", "rootfs-image-confidential", "ovmf-sev"}
    assert components == needed | {"virtiofsd"}
    assert json.loads((base / "tarballs/shim-components.json").read_text())["shims"] == {
        "qemu-snp": {"x86_64": ["shim-v2-go", "qemu", "kernel", "rootfs-image-confidential", "ovmf-sev"]}
    }
    assert [path.name for path in configs(base / "tree")] == ["configuration-qemu-snp.toml"]


def test_an_earlier_sample_is_replaced_completely(tmp_path: Path) -> None:
    make(tmp_path / "p", "--shims", "qemu,fc", "--arch", "x86_64")
    make(tmp_path / "p", "--shims", "qemu", "--arch", "x86_64")
    assert not (tmp_path / "p/opt/kata/bin/firecracker").exists()


def test_a_directory_with_other_files_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    done = run(tmp_path)
    assert done.returncode == 2
    assert "holds something else" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--size", "12 parsecs"], "is not a size such as", id="size"),
        pytest.param(["--arch", "x86_64", "--shims", "qemu,qemu-se"], "no shim qemu-se on x86_64", id="shim"),
        pytest.param(["--release", "4.1.0"], "has to start with `sample`", id="release-that-looks-real"),
        pytest.param(["--arch", "riscv64"], "invalid choice", id="arch"),
    ],
)
def test_invalid_arguments_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = run(tmp_path / "p", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "p").exists()
