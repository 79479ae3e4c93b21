"""Small payloads for tests, correct and hostile ones, as unpacked trees and as archives."""

from __future__ import annotations

import io
import json
import os
import posixpath
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from kata_node.payload.manifest import Entry
from kata_node.plan import last_run
from kata_node.settings.shims import Shim, table

T = TypeVar("T")

if sys.version_info >= (3, 14):
    import tarfile

    from compression.zstd import open as zstd_open
else:
    from backports.zstd import open as zstd_open
    from backports.zstd import tarfile

__all__ = ["tarfile", "zstd_open"]

MTIME = 1_700_000_000
HOLE = 1024 * 1024
"""Long enough for every file system to leave a hole."""
QEMU: Shim = table()["qemu"]
QEMU_RS: Shim = table()["qemu-runtime-rs"]

CONFIG = """\
[hypervisor.qemu]
path = "/opt/kata/bin/qemu-system-x86_64"
kernel = "/opt/kata/share/kata-containers/vmlinux.container"
image = "/opt/kata/share/kata-containers/kata-containers.img"
initrd = ""
shared_fs = "virtio-fs"
virtio_fs_daemon = "/opt/kata/libexec/virtiofsd"
valid_hypervisor_paths = ["/opt/kata/bin/qemu-system-x86_64", "/opt/kata/bin/never-shipped"]
entropy_source = "/dev/urandom"
"""

# Samples of Kata's configurations: some of the keys and sections of its releases, with our own values.
GO_QEMU_CONFIG = """\
[hypervisor.qemu]
path = "/opt/kata/bin/qemu-system-x86_64"
kernel = "/opt/kata/share/kata-containers/vmlinux.container"
image = "/opt/kata/share/kata-containers/kata-containers.img"
rootless = false
enable_annotations = ["enable_iommu", "kernel_params"]
valid_hypervisor_paths = ["/opt/kata/bin/qemu-system-x86_64", "/usr/bin/qemu"]
kernel_params = "cgroup_no_v1=all"
firmware = ""
machine_type = "q35"
default_vcpus = 1
enable_debug = false

[agent.kata]
enable_debug = false
kernel_modules = []
debug_console_enabled = false

[runtime]
enable_debug = false
sandbox_bind_mounts = ["/opt/katalog"]
experimental = []
kubelet_root_dir = "/var/lib/kubelet"
"""
GO_TDX_GPU_CONFIG = (
    GO_QEMU_CONFIG.replace("vmlinux.container", "vmlinuz-gpu.container")
    .replace("kata-containers.img", "kata-containers-gpu.img")
    .replace('firmware = ""', 'firmware = "/opt/kata/share/ovmf/TDX.fd"\nconfidential_guest = true')
    + """\
experimental_force_guest_pull = false
pod_resource_api_sock = "/var/lib/kubelet/pod-resources/kubelet.sock"
"""
)
GO_FC_CONFIG = """\
[hypervisor.firecracker]
path = "/opt/kata/bin/firecracker"
kernel = "/opt/kata/share/kata-containers/vmlinux.container"
image = ""
initrd = "/opt/kata/share/kata-containers/kata-containers-initrd.img"
enable_annotations = []
jailer_path = "/opt/kata/bin/jailer"
valid_jailer_paths = ["/opt/kata/bin/jailer"]
kernel_params = ""
enable_debug = false

[agent.kata]
enable_debug = false
debug_console_enabled = false

[runtime]
enable_debug = false
experimental = []
kubelet_root_dir = "/var/lib/kubelet"
"""
RS_SNP_CONFIG = (
    GO_QEMU_CONFIG.replace('kubelet_root_dir = "/var/lib/kubelet"\n', "")
    .replace("experimental = []", 'experimental = ["else"]')
    .replace("default_vcpus = 1", "default_vcpus = 1.0\nconfidential_guest = true")
    + """\
hypervisor_name = "qemu"

[[hypervisor.qemu.guest_extension_images]]
name = "gpu"
path = "/opt/kata/share/kata-containers/gpu.img"
verity_params = ""

[[hypervisor.qemu.guest_extension_images]]
name = "mine"
path = "/srv/mine.img"
verity_params = "root=1"
"""
)
RS_DRAGONBALL_CONFIG = """\
[hypervisor.dragonball]
kernel = "/opt/kata/share/kata-containers/vmlinux.container"
image = "/opt/kata/share/kata-containers/kata-containers.img"
enable_annotations = ["enable_iommu"]
kernel_params = "console=ttyS1 agent.log_vport=1025"
enable_debug = false
log_level = "info"

[agent.kata]
enable_debug = false
log_level = "info"
debug_console_enabled = false

[runtime]
enable_debug = false
log_level = "info"
experimental = []
"""
REMOTE_CONFIG = """\
[hypervisor.remote]
remote_hypervisor_socket = "/run/peerpod/hypervisor.sock"
enable_annotations = ["machine_type"]

[agent.kata]
enable_debug = false

[runtime]
enable_debug = false
experimental = []
kubelet_root_dir = "/var/lib/kubelet"
"""
CONFIGS: Mapping[str, str] = {
    "qemu": GO_QEMU_CONFIG,
    "qemu-nvidia-gpu-tdx": GO_TDX_GPU_CONFIG,
    "fc": GO_FC_CONFIG,
    "qemu-snp-runtime-rs": RS_SNP_CONFIG,
    "dragonball": RS_DRAGONBALL_CONFIG,
    "remote": REMOTE_CONFIG,
}
"""Configurations by shim."""

Content = bytes | str
"""The bytes of a file, or the target of a symlink."""

FILES: Mapping[str, Content] = {
    "VERSION": b"4.1.0-test\n",
    "bin/containerd-shim-kata-v2": b"#!shim",
    "bin/qemu-system-x86_64": b"#!qemu" + bytes(HOLE) + b"end",
    "libexec/virtiofsd": b"#!virtiofsd",
    "share/defaults/kata-containers/configuration-qemu.toml": CONFIG.encode(),
    "share/defaults/kata-containers/configuration.toml": "configuration-qemu.toml",
    "share/kata-containers/kata-containers.img": b"head" * 1024
    + bytes(2 * HOLE)
    + b"tail" * 1024
    + bytes(HOLE),
    "share/kata-containers/vmlinux-6.18": b"kernel",
    "share/kata-containers/vmlinux.container": "vmlinux-6.18",
}
COMPONENTS: Mapping[str, Sequence[str]] = {
    "shim-v2-go": [path for path in FILES if "shim" in path or "defaults" in path or path == "VERSION"],
    "qemu": ["bin/qemu-system-x86_64"],
    "virtiofsd": ["libexec/virtiofsd"],
    "rootfs-image": ["share/kata-containers/kata-containers.img"],
    "kernel": ["share/kata-containers/vmlinux-6.18", "share/kata-containers/vmlinux.container"],
}
SHIMS = {"qemu": {"x86_64": list(COMPONENTS)}}


def mode_of(path: str) -> int:
    """Return the mode of a file; programs are executable."""
    return 0o755 if path.startswith(("bin/", "libexec/")) else 0o644


def tree(directory: Path, files: Mapping[str, Content] = FILES) -> Path:
    """Create a payload as an unpacked tree."""
    for path, content in files.items():
        real = directory / "opt/kata" / path
        real.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            real.symlink_to(content)
            continue
        write_sparse(real, content)
        real.chmod(mode_of(path))
        os.utime(real, (MTIME, MTIME))
    return directory


def write_sparse(path: Path, content: bytes) -> None:
    """Write ``content`` with holes instead of blocks of zeros."""
    with path.open("wb") as file:
        for start in range(0, len(content), 4096):
            block = content[start : start + 4096]
            if block.strip(b"\0"):
                file.seek(start)
                file.write(block)
        file.truncate(len(content))


def tarballs(
    directory: Path,
    components: Mapping[str, Iterable[Member]] | None = None,
    shims: Mapping[str, Mapping[str, Sequence[str]]] = SHIMS,
) -> Path:
    """Create a payload as archives, one for each component."""
    correct = {name: members({path: FILES[path] for path in paths}) for name, paths in COMPONENTS.items()}
    (directory / "tarballs").mkdir(parents=True)
    for name, packed in (correct if components is None else components).items():
        archive(archive_path(directory, name), packed)
    text = json.dumps({"_comment": ["for tests"], "shims": shims})
    (directory / "shim-components.json").write_text(text)
    return directory


def release_archive(
    directory: Path, name: str = "kata-go-static-4.1.0-amd64", files: Mapping[str, Content] = FILES
) -> Path:
    """Create an archive of a Kata release, and return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    return archive(directory / f"{name}.tar.zst", members(files))


def archive_path(directory: Path, component: str) -> Path:
    return directory / f"tarballs/kata-static-{component}.tar.zst"


@dataclass(frozen=True)
class Member:
    """One member of an archive, written without any check."""

    name: str
    content: bytes = b""
    type: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    mtime: int = MTIME
    pax: Mapping[str, str] = field(default_factory=dict)


def file(path: str, content: bytes = b"content", mode: int | None = None) -> Member:
    return Member(f"./opt/kata/{path}", content, mode=mode_of(path) if mode is None else mode)


def sparse_file(path: str, regions: Sequence[tuple[int, bytes]], size: int) -> Member:
    """Return a file in GNU tar's sparse format 1.0 (``-S``), which tarfile can read but not write."""
    numbers = [len(regions), *(number for offset, data in regions for number in (offset, len(data)))]
    head = "".join(f"{number}\n" for number in numbers).encode()
    head += bytes(-len(head) % tarfile.BLOCKSIZE)
    pax = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": f"./opt/kata/{path}",
        "GNU.sparse.realsize": str(size),
    }
    return Member("./GNUSparseFile.0/x", head + b"".join(data for _, data in regions), pax=pax)


def link(path: str, target: str) -> Member:
    return Member(f"./opt/kata/{path}", type=tarfile.SYMTYPE, link=target, mode=0o777)


def hard_link(path: str, target: str) -> Member:
    return Member(f"./opt/kata/{path}", type=tarfile.LNKTYPE, link=target)


def directory(path: str, mode: int = 0o755) -> Member:
    return Member(f"./opt/kata/{path}", type=tarfile.DIRTYPE, mode=mode)


def members(files: Mapping[str, Content]) -> list[Member]:
    """Return archive members for files and symlinks, in the layout of Kata's builds."""
    above = [Member(name, type=tarfile.DIRTYPE, mode=0o755) for name in ("./", "./opt/", "./opt/kata/")]
    return above + [
        link(path, content) if isinstance(content, str) else file(path, content)
        for path, content in files.items()
    ]


def archive(path: Path, packed: Iterable[Member]) -> Path:
    """Write an archive (``tar.zst``)."""
    with tarfile.open(path, "w:zst", format=tarfile.PAX_FORMAT) as tar:
        for member in packed:
            info = tarfile.TarInfo(member.name)
            info.type, info.linkname = member.type, member.link
            info.mode, info.mtime = member.mode, member.mtime
            info.size, info.pax_headers = len(member.content), dict(member.pax)
            tar.addfile(info, io.BytesIO(member.content))
    return path


def entry(path: str, **fields: object) -> Entry:
    """Return a manifest entry, by default for a regular file."""
    return Entry(**{"path": path, "kind": "file", "mode": 0o644, **fields})  # type: ignore[arg-type]


def without_last_runs(found: Mapping[str, T]) -> dict[str, T]:
    """Leave out the records of last runs, and the directory in ``/run`` that a failed run makes for one."""
    ignored = {path for path in found if last_run.NAME in path}
    ignored |= {posixpath.dirname(path) for path in ignored if path.startswith("run/")}
    return {path: what for path, what in found.items() if path not in ignored}


def snapshot(base: Path) -> dict[str, tuple[object, ...]]:
    """Return everything below ``base``: kind, mode, and content and mtime, or the target of a symlink."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(base.rglob("*")):
        info = path.lstat()
        if path.is_symlink():
            found[str(path.relative_to(base))] = ("link", str(path.readlink()))
        elif path.is_dir():
            found[str(path.relative_to(base))] = ("dir", oct(info.st_mode))
        else:
            found[str(path.relative_to(base))] = ("file", oct(info.st_mode), path.read_bytes(), info.st_mtime)
    return found
