"""Ways to break a node, and what an operator does who follows the hint. Data for the tests and the docs.

A case breaks the scratch node. kata-node says what is wrong, with a hint. The case does what the hint says: it
runs the command in it, or applies the value that it names. Nothing else is changed. Then the check passes.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fakes import FakeNode
from kata_node import pipeline
from kata_node.checks import facts, hardware
from kata_node.errors import KataNodeError
from kata_node.host import kernel
from kata_node.host.cri import CriCallError, Reason
from kata_node.host.cri_sandboxes import Pod
from kata_node.host.lock import LOCK_PATH
from kata_node.payload import index
from kata_node.plan.context import Options
from kata_node.plan.report import Finding, StageReport
from kata_node.settings import load as settings
from kata_node.settings.shims import table
from payloads import CONFIG as KATA_CONFIG
from payloads import tree
from pipeline.harness import CONFIG, INSTALL, REVERT, SMALL, Killed, make_node
from pipeline.node_variants import CRI_2, NODE_VARIANTS
from pipeline.node_variants import make_node as make_variant
from stages import artifacts, cri, host_check

MAIN = "/etc/containerd/config.toml"
KUBELET = "/var/lib/kubelet/config.yaml"
RECEIPT = "/opt/kata/.kata-node/receipt.json"
DISCARDS = f"version = 2\n[{CRI_2}.containerd]\ndiscard_unpacked_layers = true\n"
CONF_D = 'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
SHIM = "/opt/kata/bin/containerd-shim-kata-v2"
MKFS = "/usr/bin/mkfs.erofs"
MKFS_HELP = b"--tar=X --mkfs-time --sort=path"
MODULES = {"kvm_intel": "/dev/kvm", "vhost_net": "/dev/vhost-net", "vhost_vsock": "/dev/vhost-vsock"}
UNPRIVILEGED = "/opt/kata/share"


@dataclass
class Scene:
    """A scratch node, and what the operator has typed and written."""

    base: Path
    node: FakeNode
    payload: Path
    values: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, str] = field(default_factory=lambda: {"shims": "qemu"})
    options: dict[str, Any] = field(default_factory=dict)
    stages: tuple[Any, ...] = (host_check,)
    modules: set[str] = field(default_factory=lambda: {"kvm_intel", "vhost_net", "vhost_vsock", "dm_verity"})
    memory: int = 8 << 30
    foreign_devices: set[str] = field(default_factory=set)
    socket: str = ""
    """The socket on which the runtime listens, if it is not the usual one."""

    # what kata-node sees

    def run(self, stages: tuple[Any, ...] | None = None, **overrides: str) -> list[StageReport]:
        file = self.base / "values.yaml"
        file.write_text(json.dumps(self.values))  # JSON is YAML
        loaded = settings.load(str(file), overrides={**self.overrides, **overrides}, arch="x86_64")
        options = Options(self.payload, restart_timeout=5, stable_for=0, **self.options)
        run = pipeline.Run(loaded, options, self.clients(), lock_timeout=1)
        return pipeline.run(self.stages if stages is None else stages, run)

    def clients(self) -> Any:
        from dataclasses import replace

        clients = self.node.clients()
        usual = clients.cri

        def cri(socket: str) -> Any:
            if self.socket and socket != self.socket:
                raise CriCallError("there is no socket", reason=Reason.MISSING, where=socket)
            return usual(socket)

        return replace(clients, cri=cri)

    def problem(self, check: str) -> tuple[str, str]:
        """Return what is wrong and the hint, of a check or of an error; empty if nothing is wrong."""
        try:
            reports = self.run()
        except KataNodeError as error:
            return error.what, error.hint
        if not check.startswith("error: "):
            found = [
                each for each in reports[0].checks if each.name == check and each.status in ("warn", "fail")
            ]
            return (found[0].reason, found[0].remedy) if found else ("", "")
        error = next((each.error for each in reports if each.error), None)
        return (error.what, error.hint) if error else ("", "")

    # what the operator does

    def path(self, path: str) -> Path:
        assert path.startswith("/"), path
        return self.node.root.base / path.lstrip("/")

    def write(self, path: str, content: bytes | str) -> None:
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).write_bytes(content.encode() if isinstance(content, str) else content)

    def read(self, path: str) -> str:
        return self.path(path).read_text()

    def set(self, key: str, value: Any) -> None:
        """Set a dotted key of the values."""
        *parents, last = key.split(".")
        place = self.values
        for each in parents:
            place = place.setdefault(each, {})
        place[last] = value

    def unset(self, key: str) -> None:
        *parents, last = key.split(".")
        place = self.values
        for each in parents:
            place = place[each]
        del place[last]

    def shell(self, command: str) -> None:
        """Run a command of a hint on the scratch node."""
        program, *arguments = shlex.split(command)
        match program:
            case "rm" | "chmod":
                mapped = [str(self.path(each)) if each.startswith("/") else each for each in arguments]
                subprocess.run([program, *mapped], check=True)
                self.foreign_devices.difference_update(arguments)
            case "mknod":  # only root can make a device
                self.path(arguments[0]).touch()
            case "modprobe":
                # As the real one: without -a, the names after the first are options of the module.
                for module in arguments[1:] if arguments[0] == "-a" else arguments[:1]:
                    self.load_module(module)
            case "echo":
                text, redirect, target = arguments
                assert redirect == ">"
                self.write(target, text + "\n")
            case "systemctl":
                assert arguments[0] == "start"
                assert arguments[1] == self.node.unit_name
                self.node.state, self.node.handlers = "active", self.node.load()
            case "kata-node":
                stages = {"install": INSTALL, "revert": REVERT}[arguments[0]]
                assert [each.error for each in self.run(stages) if each.error] == []
            case _:
                raise AssertionError(f"no test knows this command: {command}")

    def load_module(self, module: str) -> None:
        self.modules.add(module)
        if module in MODULES:
            self.path(MODULES[module]).touch()


def payload_without(directory: Path, *missing: str) -> Path:
    """Make a payload, whose configuration has the keys that hints name."""
    config = (KATA_CONFIG + "default_memory = 2048\ndisable_vhost_net = false\n").encode()
    files = {**SMALL, "share/defaults/kata-containers/configuration-qemu.toml": config}
    index.write_manifest(tree(directory, {path: files[path] for path in files if path not in missing}))
    return directory


@contextmanager
def scene(base: Path) -> Iterator[Scene]:
    """Yield a healthy node, with a kernel that is as the scene says."""
    made = Scene(base, make_node(base / "host"), payload_without(base / "payload"))

    def state(root: Any, path: str) -> str:
        return "other" if path in made.foreign_devices else "there" if root.exists(path) else "missing"

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(facts, "RESTART_GRACE_PERIOD", 0)
        patched.setattr(hardware, "device_state", state)
        patched.setattr(hardware, "_memory", lambda: made.memory)
        patched.setattr(kernel, "has_module", lambda name: name in made.modules)
        patched.setattr(kernel, "cpu_flags", lambda: {"vmx"})
        patched.setattr(kernel, "selinux", lambda: "disabled")
        patched.setattr(kernel, "read", lambda path: "nodev\terofs\n" if "erofs" in made.modules else "")
        yield made


Step = Callable[[Scene], None]
Follow = Callable[[Scene, str, str], None]
"""Do what a hint says. The arguments are the scene, the hint, and what is wrong."""


@dataclass(frozen=True)
class Case:
    """One way to break a node."""

    name: str
    """The check of host-check, or ``error: `` and the class of an error."""
    broken: str
    """How the test breaks the node, for the docs."""
    break_node: Step
    follow: Follow


# --- how a hint is followed -------------------------------------------------------------------------


def run_commands(scene: Scene, hint: str, what: str) -> None:
    """Run every command in the hint."""
    commands = re.findall(r"`([^`]+)`", hint)
    assert commands, hint
    for command in commands:
        scene.shell(command)


def set_values(scene: Scene, hint: str, what: str) -> None:
    """Set the first value that the hint names, as ``KEY: VALUE``."""
    found = re.search(r"set ([\w.]+): ([\w./]+)", hint)
    assert found, hint
    scene.set(found[1], {"false": False, "true": True}.get(found[2], found[2]))


def remove_keys(scene: Scene, hint: str, what: str) -> None:
    """Remove the keys that the hint names from the values."""
    found = re.search(r"remove ((?:[\w.]+(?:, | and )?)+)(?: from the values|$)", hint)
    assert found, hint
    for key in re.split(r", | and ", found[1]):
        scene.unset(key)


def expect(pattern: str, do: Callable[[Scene, re.Match[str]], None]) -> Follow:
    """Return how to follow a hint with ``pattern``, whose groups are the values to use."""

    def follow(scene: Scene, hint: str, what: str) -> None:
        found = re.search(pattern, hint)
        assert found, f"the hint does not say {pattern!r}: {hint}"
        do(scene, found)

    return follow


def restore(path: str, content: bytes | str) -> Follow:
    """Return how to correct a file that the hint, or the finding, names."""

    def follow(scene: Scene, hint: str, what: str) -> None:
        assert path in hint or path in what, (hint, what)
        scene.write(path, content)
        scene.node.load()

    return follow


# --- how a node is broken ---------------------------------------------------------------------------


def without(*paths: str, modules: tuple[str, ...] = ()) -> Step:
    def step(scene: Scene) -> None:
        for path in paths:
            scene.path(path).unlink()
        scene.modules.difference_update(modules)

    return step


def with_file(path: str, content: bytes | str) -> Step:
    return lambda scene: scene.write(path, content)


def with_value(**values: Any) -> Step:
    """Return a step that sets values. ``__`` in a name stands for the dot."""

    def step(scene: Scene) -> None:
        for key, value in values.items():
            scene.set(key.replace("__", "."), value)

    return step


def foreign(*devices: str) -> Step:
    return lambda scene: scene.foreign_devices.update(devices)


def both(*steps: Step) -> Step:
    def step(scene: Scene) -> None:
        for each in steps:
            each(scene)

    return step


def on(variant: str, **attributes: Any) -> Step:
    """Return a step that replaces the node by one of another distribution or runtime."""

    def step(scene: Scene) -> None:
        scene.node = make_variant(NODE_VARIANTS[variant], scene.base / "variant")
        for name, value in attributes.items():
            setattr(scene.node, name, value)
        for module in ("kvm_intel", "vhost_net", "vhost_vsock"):
            scene.load_module(module)

    return step


def version(text: str) -> Step:
    return lambda scene: setattr(scene.node, "version", text)


def option(**options: Any) -> Step:
    return lambda scene: scene.options.update(options)


def erofs(**more: Any) -> Step:
    """Return a step that has a node and values for erofs, without what ``more`` takes away."""

    def step(scene: Scene) -> None:
        scene.node.version = "2.3.1"
        scene.modules.add("erofs")
        scene.write(MKFS, MKFS_HELP)
        scene.set("snapshotter.setup", ["erofs"])
        scene.set("shims.qemu.containerd.snapshotter", "erofs")
        scene.set("snapshotter.erofsMergeMode", "unmerged")
        for key, value in more.items():
            scene.set(f"snapshotter.{key}", value)

    return step


def foreign_kata(scene: Scene) -> None:
    scene.write(SHIM, b"another program placed this")
    scene.write(
        MAIN,
        CONFIG.decode()
        + '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata-qemu]\n'
        + f'runtime_type = "io.containerd.kata.v2"\nruntime_path = "{SHIM}"\n',
    )


def interrupted(scene: Scene) -> None:
    def kill() -> None:
        raise Killed

    scene.node.on_restart = kill
    with pytest.raises(Killed):
        scene.run(INSTALL)
    scene.node.on_restart = lambda: None
    scene.node.stop()


def set_drop_in(text: str) -> Callable[[Scene, re.Match[str]], None]:
    return lambda scene, found: scene.set("shims.qemu.dropIn", f"[hypervisor.qemu]\n{text}\n")


def disable_named_shims(scene: Scene, hint: str, what: str) -> None:
    assert "set shims.<shim>.enabled: false for these shims" in hint
    for name in table():
        if re.search(rf"(?<![\w-]){name}(?![\w-])", what):
            scene.set(f"shims.{name}.enabled", False)


def shim_without_snapshotter(scene: Scene) -> None:
    scene.overrides = {}
    scene.values = {"shims": {"qemu": {}, "clh": {"containerd": {"snapshotter": "devmapper"}}}}


def second_runtime(scene: Scene) -> None:
    scene.node.others = ("crio.service",)
    scene.socket = "/run/containerd/containerd.sock"


def moved_socket(scene: Scene) -> None:
    scene.socket = "/run/moved.sock"


def lost_payload_file(scene: Scene) -> None:
    shutil.rmtree(scene.payload)
    payload_without(scene.payload, "bin/cloud-hypervisor")
    scene.overrides = {}
    scene.values = {"shims": {"disableAll": True, "qemu": {"enabled": True}, "clh": {"enabled": True}}}


def installed_elsewhere(scene: Scene) -> None:
    scene.run(INSTALL, installation_prefix="/elsewhere")


HOST_CHECK: tuple[Case, ...] = (
    Case(
        "kvm",
        "there is no `/dev/kvm`",
        without("/dev/kvm", modules=("kvm_intel",)),
        expect(r"load the kernel module (\w+)", lambda scene, found: scene.load_module(found[1])),
    ),
    Case(
        "kvm",
        "there is no `/dev/kvm`, on a node by hand",
        without("/dev/kvm", modules=("kvm_intel",)),
        expect(r"enable only the shim (\w+)", lambda scene, found: scene.overrides.update(shims=found[1])),
    ),
    Case(
        "kvm",
        "`/dev/kvm` is a plain file",
        foreign("/dev/kvm"),
        expect(
            r"remove (\S+) and restart the node",
            lambda scene, found: scene.shell(f"rm {found[1]}") or scene.load_module("kvm_intel"),
        ),
    ),
    Case(
        "vhost",
        "the modules `vhost_net` and `vhost_vsock` are not loaded",
        without("/dev/vhost-net", "/dev/vhost-vsock", modules=("vhost_net", "vhost_vsock")),
        run_commands,
    ),
    Case("vhost", "the module is loaded, but the device is gone", without("/dev/vhost-vsock"), run_commands),
    Case("vhost", "`/dev/vhost-vsock` is a plain file", foreign("/dev/vhost-vsock"), run_commands),
    Case(
        "vhost",
        "there is no `/dev/vhost-net`",
        without("/dev/vhost-net", modules=("vhost_net",)),
        expect(
            r"set (disable_vhost_net = true) in the dropIn",
            lambda scene, found: set_drop_in(found[1])(scene, found),
        ),
    ),
    Case(
        "memory",
        "the node has 1 GiB",
        lambda scene: setattr(scene, "memory", 1 << 30),
        expect(
            r"set a lower (default_memory) \(MiB\) in the dropIn",
            lambda scene, found: set_drop_in(f"{found[1]} = 512")(scene, found),
        ),
    ),
    Case("settings", "`env.hostOS` is set", with_value(env__hostOS="cbl-mariner"), remove_keys),
    Case("left-out", "the snapshotter of a shim has no pool", shim_without_snapshotter, disable_named_shims),
    Case("payload", "the payload lacks a program of a shim", lost_payload_file, disable_named_shims),
    Case(
        "runtime",
        "the values are for `k8s`, and k3s runs",
        on("k3s with drop-ins"),
        set_values,
    ),
    Case(
        "runtime",
        "containerd listens on another socket",
        moved_socket,
        expect(
            r"containerd.service runs: name the socket .* with --(cri-socket)",
            lambda scene, found: scene.options.update(cri_socket=scene.socket),
        ),
    ),
    Case(
        "runtime",
        "`--cri-socket` has a typing error",
        both(moved_socket, option(cri_socket="/run/moved.sok")),
        expect(
            r"name the socket .* with --(cri-socket)",
            lambda scene, found: scene.options.update(cri_socket=scene.socket),
        ),
    ),
    Case(
        "runtime",
        "containerd and CRI-O run",
        second_runtime,
        expect(
            r"name the socket that the kubelet uses with --(cri-socket)",
            lambda scene, found: scene.options.update(cri_socket=scene.socket),
        ),
    ),
    Case(
        "runtime",
        "containerd is stopped",
        lambda scene: scene.node.stop(),
        expect(
            r"start the container runtime",
            lambda scene, found: scene.shell(f"systemctl start {scene.node.unit_name}"),
        ),
    ),
    Case(
        "runtime",
        "an empty root is prepared without `--runtime`",
        both(without(MAIN), option(offline=True)),
        expect(r"--runtime (\S+)", lambda scene, found: scene.options.update(runtime=found[1])),
    ),
    Case(
        "runtime",
        "containerd 1.7 and `env.multiInstallSuffix`",
        both(on("containerd 1.7"), with_value(env__multiInstallSuffix="blue")),
        expect(r"remove (env.multiInstallSuffix) for this node", lambda scene, found: scene.unset(found[1])),
    ),
    Case(
        "unit",
        "the unit of the runtime has a name that nobody knows",
        lambda scene: setattr(scene.node, "unit_name", "mine.service"),
        expect(
            r"run containerd as one of these units: (\S+?)(?:,|$)",
            lambda scene, found: setattr(scene.node, "unit_name", found[1]),
        ),
    ),
    Case(
        "cri",
        "an install was killed during the restart",
        interrupted,
        expect(
            r"do nothing: `(install)` and `revert` complete",
            lambda scene, found: scene.shell(f"kata-node {found[1]}"),
        ),
    ),
    Case(
        "config",
        "the main file is not valid TOML",
        with_file(MAIN, "version = [\n"),
        restore(MAIN, CONFIG),
    ),
    Case(
        "config",
        "`containerd.userDropIn` has an import with a malformed pattern",
        with_value(containerd__userDropIn='imports = ["/etc/[*"]\n'),
        expect(r"correct (containerd.userDropIn)$", lambda scene, found: scene.set(found[1], "[debug]\n")),
    ),
    Case(
        "config",
        "the default handler of the main file does not exist",
        with_file(
            MAIN,
            'version = 3\n[plugins."io.containerd.cri.v1.runtime".containerd]\ndefault_runtime_name = "no"\n',
        ),
        expect(rf"correct ({MAIN})$", lambda scene, found: scene.write(found[1], CONFIG)),
    ),
    Case(
        "config",
        "the template of k3s is broken",
        lambda scene: broken_template(scene),
        expect(r"correct (\S+\.tmpl), from which", lambda scene, found: correct_template(scene, found[1])),
    ),
    Case(
        "config",
        "kata-node of another prefix has the drop-in",
        both(version("2.2.0"), with_file(MAIN, CONF_D), installed_elsewhere),
        expect(
            r"`kata-node revert` for that installation, with its (env.installationPrefix)",
            lambda scene, found: scene.run(REVERT, installation_prefix="/elsewhere") and None,
        ),
    ),
    Case(
        "config",
        "kata-node of another prefix has handlers of the same names",
        installed_elsewhere,
        expect(
            r"run `kata-node revert` for the installation of (/elsewhere)/opt/kata/",
            lambda scene, found: scene.run(REVERT, installation_prefix=found[1]) and None,
        ),
    ),
    Case(
        "ownership",
        "every user can write the install dir",
        lambda scene: loose_directory(scene),
        run_commands,
    ),
    Case(
        "error: UnusablePathError",
        "a plain file is in the place of the install dir",
        with_file("/opt/kata", "a file"),
        expect(
            r"move the file away that is in the place of a directory",
            lambda scene, found: scene.shell("rm /opt/kata"),
        ),
    ),
    Case(
        "writable",
        "the main file is a symlink that leads nowhere",
        lambda scene: dangling_main(scene),
        expect(r"create the directory (\S+),", lambda scene, found: scene.path(found[1]).mkdir(parents=True)),
    ),
    Case(
        "foreign",
        "another program installed Kata and configured containerd",
        foreign_kata,
        expect(r"set (env.multiInstallSuffix)", lambda scene, found: scene.set(found[1], "blue")),
    ),
    Case(
        "foreign",
        "another program installed Kata on containerd 1.7",
        both(on("containerd 1.7"), with_file(SHIM, "x")),
        expect(
            r"uninstall Kata with the tool that placed these files$",
            lambda scene, found: scene.shell("rm -r /opt/kata"),
        ),
    ),
    Case(
        "copies",
        "a file of another program has other settings of our handler",
        lambda scene: different_copy(scene),
        lambda scene, hint, what: follow_copies(scene, hint, what),
    ),
    Case(
        "kata-config",
        "a pattern of `allowedHypervisorAnnotations` allows no annotation",
        with_value(shims__qemu__allowedHypervisorAnnotations=["no_such_option"]),
        expect(
            r"(take them out)", lambda scene, found: scene.unset("shims.qemu.allowedHypervisorAnnotations")
        ),
    ),
    Case(
        "snapshotter",
        "containerd 1.6 and a snapshotter for one shim",
        both(on("containerd 1.6 without a file"), with_value(shims__qemu__containerd__snapshotter="native")),
        expect(
            r"remove (containerd.snapshotter) from these shims",
            lambda scene, found: scene.unset(f"shims.qemu.{found[1]}"),
        ),
    ),
    Case(
        "snapshotter",
        "containerd 1.7 discards unpacked layers",
        both(
            on("containerd 1.7"),
            with_value(shims__qemu__containerd__snapshotter="native"),
            with_file(MAIN, DISCARDS),
        ),
        expect(
            r"set (discard_unpacked_layers = false) in containerd's configuration",
            lambda scene, found: scene.write(
                MAIN, DISCARDS.replace("discard_unpacked_layers = true", found[1])
            ),
        ),
    ),
    Case(
        "nydus",
        "somebody set up a nydus-snapshotter",
        both(
            with_value(snapshotter__setup=["nydus"], shims__qemu__containerd__snapshotter="nydus"),
            with_file(
                "/etc/systemd/system/nydus-snapshotter.service", "[Service]\nExecStart=/usr/bin/nydus\n"
            ),
        ),
        expect(
            r"remove nydus from (snapshotter.setup) to use the existing",
            lambda scene, found: scene.unset(found[1]),
        ),
    ),
    Case(
        "runtime",
        "`containerd.configDir` is not the directory that containerd reads",
        with_value(containerd__configDir="/etc/elsewhere"),
        expect(
            r"remove both settings for this node", lambda scene, found: scene.unset("containerd.configDir")
        ),
    ),
    Case(
        "config",
        "`containerd.userDropIn` on containerd 1.7",
        both(on("containerd 1.7"), with_value(containerd__userDropIn="[debug]\n")),
        expect(r"remove (containerd.userDropIn) for this node", lambda scene, found: scene.unset(found[1])),
    ),
    Case(
        "config",
        "a drop-in of another program has our name on CRI-O",
        both(
            on("CRI-O"), with_file("/etc/crio/crio.conf.d/99-kata-deploy", "[crio.runtime.runtimes.other]\n")
        ),
        expect(
            r"remove this file with the program that wrote it, or by hand",
            lambda scene, found: scene.path("/etc/crio/crio.conf.d/99-kata-deploy").unlink(),
        ),
    ),
    Case(
        "payload",
        "the `dropIn` of a shim has a key that Kata refuses",
        lambda scene: set_drop_in("no_such_key = 1")(scene, None),
        expect(r"correct the drop-in", lambda scene, found: scene.unset("shims.qemu.dropIn")),
    ),
    Case(
        "payload",
        "the `dropIn` of a shim sets an initrd beside the image",
        lambda scene: set_drop_in('initrd = "/opt/kata/x"')(scene, None),
        expect(
            r'set (image = "") or initrd = "" in the drop-in',
            lambda scene, found: set_drop_in(f'initrd = "/opt/kata/x"\n{found[1]}')(scene, None),
        ),
    ),
    Case(
        "payload",
        "`--payload` names another directory",
        lambda scene: setattr(scene, "payload", scene.base / "nothing"),
        expect(r"set (--payload) to", lambda scene, found: setattr(scene, "payload", scene.base / "payload")),
    ),
    Case(
        "error: UnusablePathError",
        "the install dir is a symlink to itself",
        lambda scene: scene.path("/opt/kata").symlink_to("kata"),
        expect(
            r"remove the symlink that leads back to itself",
            lambda scene, found: scene.path("/opt/kata").unlink(),
        ),
    ),
    Case(
        "error: ReceiptError",
        "the receipt is that of another installation",
        lambda scene: copied_installation(scene),
        expect(
            r"if this directory is a copy, (remove the copy)",
            lambda scene, found: scene.shell("rm -r /opt/kata-copy"),
        ),
    ),
    Case(
        "error: ReceiptError",
        "the receipt is a symlink that leads nowhere",
        lambda scene: dangling_receipt(scene),
        expect(
            r"or (remove the symlink); the next install then adopts",
            lambda scene, found: scene.path(RECEIPT).unlink(),
        ),
    ),
    Case(
        "error: SettingsError",
        "a value is not one of those that are possible",
        with_value(k8sDistribution="k2s"),
        expect(
            r"correct the settings, then run again", lambda scene, found: scene.set("k8sDistribution", "k8s")
        ),
    ),
    Case(
        "error: UnusableFileError",
        "a pipe is in the place of the main file",
        both(without(MAIN), lambda scene: os.mkfifo(scene.path(MAIN))),
        expect(
            r"replace it by a regular file, or (remove) it", lambda scene, found: scene.shell(f"rm {MAIN}")
        ),
    ),
    Case(
        "error: HostError",
        "`containerd.userDropIn` breaks the configuration, and only the `cri` stage sees it",
        both(
            with_value(containerd__userDropIn='imports = ["/no"]\n'),
            lambda scene: setattr(scene, "stages", (artifacts, cri)),
        ),
        expect(
            r"correct (containerd.userDropIn), then run the command again",
            lambda scene, found: scene.set(found[1], "[debug]\n"),
        ),
    ),
    Case(
        "error: UnusablePathError",
        "the lock of the node is a directory",
        both(
            lambda scene: scene.path(LOCK_PATH).mkdir(parents=True),
            lambda scene: setattr(scene, "stages", INSTALL[2:4]),
        ),
        expect(r"move the (directory) away", lambda scene, found: scene.shell(f"rm -r {LOCK_PATH}")),
    ),
    Case(
        "error: IneligibleNodeError",
        "the lock of the node is a pipe",
        both(
            with_file(LOCK_PATH, ""),
            without(LOCK_PATH),
            lambda scene: os.mkfifo(scene.path(LOCK_PATH)),
            lambda scene: setattr(scene, "stages", INSTALL[2:4]),
        ),
        run_commands,
    ),
    Case(
        "error: ReceiptError",
        "the receipt is damaged",
        lambda scene: damaged_receipt(scene),
        expect(
            r"move the whole (\.kata-node) directory away",
            lambda scene, found: scene.shell(f"rm -r /opt/kata/{found[1]}"),
        ),
    ),
    Case(
        "error: IneligibleNodeError",
        "a pod runs on the handlers that a revert removes",
        lambda scene: running_pod(scene),
        expect(r"delete these (pods)", lambda scene, found: setattr(scene.node, "pods", ())),
    ),
    Case(
        "kubelet-timeout",
        "the kubelet of k3s waits two minutes",
        both(
            on("k3s with drop-ins"),
            with_value(shims__qemu__containerd__forceGuestPull=True),
            lambda scene: scene.overrides.update(k8s_distribution="k3s"),
            with_file("/etc/rancher/k3s/config.yaml", "debug: true\n"),
        ),
        expect(
            r"set (runtime-request-timeout=10m) as kubelet-arg in (\S+),",
            lambda scene, found: scene.write(found[2], f"kubelet-arg:\n- {found[1]}\n"),
        ),
    ),
    Case(
        "kubelet-timeout",
        "the kubelet waits two minutes, and images are pulled in the guest",
        both(
            with_value(shims__qemu__containerd__forceGuestPull=True),
            with_file(KUBELET, "runtimeRequestTimeout: 2m\n"),
        ),
        expect(
            r"set (runtimeRequestTimeout: 10m) in (\S+),",
            lambda scene, found: scene.write(found[2], f"{found[1]}\n"),
        ),
    ),
    Case(
        "snapshotter",
        "nobody has a snapshotter of that name",
        with_value(shims__qemu__containerd__snapshotter="mine"),
        expect(
            r"add \[(proxy_plugins\.mine)\] to containerd's configuration or to (containerd.userDropIn)",
            lambda scene, found: scene.set(
                found[2], f'[{found[1]}]\ntype = "snapshot"\naddress = "/run/mine.sock"\n'
            ),
        ),
    ),
    Case(
        "snapshotter",
        "devmapper has no pool",
        with_value(shims__qemu__containerd__snapshotter="devmapper"),
        expect(
            r'set (\w+) in \[(plugins\."[\w.]+")\] of containerd\'s configuration or of (containerd.userDropIn)',
            lambda scene, found: scene.set(found[3], f'[{found[2]}]\n{found[1]} = "pool"\n'),
        ),
    ),
    Case(
        "nydus",
        "the payload has no nydus-snapshotter",
        with_value(snapshotter__setup=["nydus"], shims__qemu__containerd__snapshotter="nydus"),
        expect(
            r"remove nydus from (snapshotter.setup) and from the shims that use it",
            lambda scene, found: scene.unset(found[1]) or scene.unset("shims.qemu.containerd.snapshotter"),
        ),
    ),
    Case(
        "erofs",
        "the module erofs is not loaded",
        both(erofs(), lambda scene: scene.modules.discard("erofs")),
        run_commands,
    ),
    Case(
        "erofs",
        "the Go runtime gets merged layers",
        erofs(erofsMergeMode="merged"),
        set_values,
    ),
    Case(
        "erofs",
        "an erofs setting without `erofs` in `snapshotter.setup`",
        both(erofs(), lambda scene: scene.unset("snapshotter.setup")),
        remove_keys,
    ),
    Case(
        "erofs",
        "containerd 2.1",
        both(erofs(), version("2.1.9")),
        expect(r"upgrade containerd", lambda scene, found: version("2.3.1")(scene)),
    ),
    Case(
        "mkfs.erofs",
        "`mkfs.erofs` is not installed",
        both(erofs(), without(MKFS)),
        expect(
            r"install erofs-utils 1\.8\.2 or later on the node",
            lambda scene, found: scene.write(MKFS, MKFS_HELP),
        ),
    ),
    Case(
        "dm-verity",
        "the module `dm_verity` is not loaded",
        both(erofs(erofsDmverity=True), lambda scene: scene.modules.discard("dm_verity")),
        run_commands,
    ),
    Case(
        "dm-verity",
        "containerd 2.2",
        both(erofs(erofsDmverity=True), version("2.2.0")),
        set_values,
    ),
)


def broken_template(scene: Scene) -> None:
    on("k3s with drop-ins")(scene)
    scene.overrides["k8s_distribution"] = "k3s"
    template = scene.node.templates[-1]  # type: ignore[attr-defined]
    scene.write(template, f'version = 2\n[{CRI_2}.containerd]\ndefault_runtime_name = "no"\n')
    scene.node.load()


def correct_template(scene: Scene, path: str) -> None:
    scene.write(path, 'version = 2\n{{ template "base" . }}\n'.replace("version = 2\n", ""))
    scene.node.load()


def loose_directory(scene: Scene) -> None:
    scene.path("/opt/kata").mkdir()
    scene.path("/opt/kata").chmod(0o777)


def dangling_main(scene: Scene) -> None:
    scene.path(MAIN).unlink()
    scene.path(MAIN).symlink_to("/srv/containerd/config.toml")


def copied_installation(scene: Scene) -> None:
    scene.shell("kata-node install")
    shutil.copytree(scene.path("/opt/kata"), scene.path("/opt/kata-copy"), symlinks=True)
    scene.overrides["multi_install_suffix"] = "copy"


def dangling_receipt(scene: Scene) -> None:
    scene.shell("kata-node install")
    scene.path(RECEIPT).unlink()
    scene.path(RECEIPT).symlink_to("gone.json")


def damaged_receipt(scene: Scene) -> None:
    scene.shell("kata-node install")
    scene.write("/opt/kata/.kata-node/receipt.json", "{")


def running_pod(scene: Scene) -> None:
    scene.shell("kata-node install")
    scene.stages = REVERT
    scene.node.pods = (Pod("shop", "web", "kata-qemu"),)


def different_copy(scene: Scene) -> None:
    on("containerd 1.7")(scene)
    scene.write(MAIN, 'version = 2\nimports = ["/etc/containerd/nvidia.toml"]\n')
    scene.write(
        "/etc/containerd/nvidia.toml",
        f'[{CRI_2}.containerd.runtimes.kata-qemu]\nruntime_type = "io.containerd.kata-qemu.v2"\n'
        'runtime_path = "/opt/kata/bin/other"\n',
    )


def follow_copies(scene: Scene, hint: str, what: str) -> None:
    assert "or remove the file; run `kata-node install`" in hint
    scene.path("/etc/containerd/nvidia.toml").unlink()
    scene.write(MAIN, "version = 2\n")
    run_commands(scene, hint, what)
