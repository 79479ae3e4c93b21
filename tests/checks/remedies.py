"""Ways to break a node, and what an operator does who follows the hint. Data for the tests and the docs.

A case breaks the scratch node. kata-node says what is wrong, with a hint. The case does what the hint says:
it runs the command in it, or applies the value that it names. Nothing else is changed. Then the check passes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from typing import Any

import pytest

from checks.command_remedies import COMMAND_CASES
from checks.scratch_node import (
    MKFS,
    MKFS_HELP,
    Case,
    Scene,
    Step,
    both,
    erofs,
    expect,
    foreign,
    on,
    option,
    payload_without,
    remove_keys,
    restore,
    run_commands,
    set_values,
    version,
    with_file,
    with_value,
    without,
)
from kata_node.host.cri_sandboxes import Pod
from kata_node.host.lock import LOCK_PATH
from kata_node.payload import index
from kata_node.settings.shims import table
from kata_node.snapshotters.nydus import PROGRAM_PATH
from payloads import CONFIG as KATA_CONFIG
from payloads import Content, tree
from pipeline.harness import CONFIG, INSTALL, REVERT, SMALL, Killed
from pipeline.node_variants import CRI_2
from stages import artifacts, cri

MAIN = "/etc/containerd/config.toml"
NVIDIA = "/etc/containerd/conf.d/99-nvidia.toml"
KUBELET = "/var/lib/kubelet/config.yaml"
RECEIPT = "/opt/kata/.kata-node/receipt.json"
DISCARDS = f"version = 2\n[{CRI_2}.containerd]\ndiscard_unpacked_layers = true\n"
NO_DEFAULT = f'version = 2\n[{CRI_2}.containerd]\ndefault_runtime_name = "no"\n'
CONF_D = 'version = 3\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
SHIM = "/opt/kata/bin/containerd-shim-kata-v2"


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


def set_drop_in(text: str) -> Step:
    return lambda scene: scene.set("shims.qemu.dropIn", f"[hypervisor.qemu]\n{text}\n")


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


def revert_elsewhere(scene: Scene, prefix: str = "/elsewhere") -> None:
    assert [each.error for each in scene.run(REVERT, installation_prefix=prefix) if each.error] == []


def remove_and_reboot(scene: Scene, device: str) -> None:
    scene.shell(f"rm {device}")
    scene.load_module("kvm_intel")


def remove_nydus(scene: Scene, setup: str) -> None:
    scene.unset(setup)
    scene.unset("shims.qemu.containerd.snapshotter")


def broken_template(scene: Scene, text: str = NO_DEFAULT) -> None:
    on("k3s with drop-ins")(scene)
    scene.overrides["k8s_distribution"] = "k3s"
    template = scene.node.templates[-1]  # type: ignore[attr-defined]
    scene.write(template, text)
    with contextlib.suppress(ValueError):
        scene.node.load()


def correct_template(scene: Scene, path: str) -> None:
    scene.write(path, '{{ template "base" . }}\n')
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


def payload_with(scene: Scene, files: Mapping[str, Content]) -> None:
    """Make another payload, which has these files too, or instead."""
    scene.payload = scene.base / "another-payload"
    index.write_manifest(tree(scene.payload, {**SMALL, **files}))


def with_nydus(**values: Any) -> Step:
    def step(scene: Scene) -> None:
        payload_with(scene, {PROGRAM_PATH: b"#!nydus"})
        scene.path("/etc/systemd/system").mkdir(parents=True)
        scene.set("snapshotter.setup", ["nydus"])
        scene.set("shims.qemu.containerd.snapshotter", "nydus")
        with_value(**values)(scene)

    return step


def config_without_guest_pull(scene: Scene) -> None:
    config = "".join(line for line in KATA_CONFIG.splitlines(True) if "guest_pull" not in line)
    payload_with(scene, {"share/defaults/kata-containers/configuration-qemu.toml": config.encode()})
    scene.set("shims.qemu.containerd.forceGuestPull", True)


def custom_runtime(handler: str) -> Step:
    manifest = (
        "{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: mine}, handler: " + handler + "}"
    )
    runtimes = {"mine": {"baseConfig": "qemu", "runtimeClass": manifest}}
    return with_value(customRuntimes__enabled=True, customRuntimes__runtimes=runtimes)


def incomplete_copy(scene: Scene) -> None:
    on("containerd 1.7")(scene)
    scene.write(MAIN, 'version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n')
    scene.write(NVIDIA, f'[{CRI_2}.containerd.runtimes.nvidia]\nruntime_type = "io.containerd.runc.v2"\n')


def follow_incomplete_copy(scene: Scene, hint: str, what: str) -> None:
    assert re.match(r"remove this file, or uninstall .*; run `kata-node install`; then run", hint)
    scene.path(NVIDIA).unlink()
    scene.shell("kata-node install")


def name_main_file(scene: Scene, directory: str, name: str) -> None:
    scene.set(directory, "/etc/containerd")
    scene.set(name, "config.toml")


def pods_unknown(scene: Scene) -> None:
    scene.shell("kata-node install")
    scene.stages = REVERT
    scene.node.list_fails = True


def nydus_lost(scene: Scene) -> None:
    scene.set("snapshotter.setup", ["nydus"])
    scene.set("shims.qemu.containerd.snapshotter", "nydus")
    scene.stages = (artifacts, cri)


CASES: tuple[Case, ...] = (
    *COMMAND_CASES,
    Case(
        "nydus",
        "containerd's configuration has another snapshotter of that name",
        both(
            with_nydus(),
            with_file(
                MAIN, 'version = 3\n[proxy_plugins.nydus]\ntype = "snapshot"\naddress = "/run/x.sock"\n'
            ),
        ),
        expect(
            r"remove nydus from (snapshotter.setup) to use the existing one,",
            lambda scene, found: scene.unset(found[1]),
        ),
    ),
    Case(
        "nydus",
        "the path of the data directory is too long",
        with_nydus(env__multiInstallSuffix="a" * 50),
        expect(r"set a shorter (env.multiInstallSuffix)$", lambda scene, found: scene.set(found[1], "blue")),
    ),
    Case(
        "error: PayloadError",
        "the payload has no nydus-snapshotter, and only the `cri` stage sees it",
        nydus_lost,
        expect(
            r"or remove nydus from (snapshotter.setup), and run `kata-node install` again",
            lambda scene, found: scene.unset(found[1]),
        ),
    ),
    Case(
        "erofs",
        "containerd's configuration has other layers",
        both(
            erofs(erofsDmverity=True),
            with_file(
                MAIN, 'version = 3\n[plugins."io.containerd.differ.v1.erofs"]\nenable_dmverity = false\n'
            ),
        ),
        expect(
            r"set the same .* (snapshotter.erofsDmverity) as the configuration",
            lambda scene, found: scene.set(found[1], False),
        ),
    ),
    Case(
        "payload",
        "the Kata configuration of a shim has no guest pull",
        config_without_guest_pull,
        expect(
            r"remove (shims.qemu.containerd.forceGuestPull); if Kata supports",
            lambda scene, found: scene.unset(found[1]),
        ),
    ),
    Case(
        "runtime",
        "the runtime has the handler of a custom runtime built in",
        both(custom_runtime("mine"), lambda scene: setattr(scene.node, "handlers", ("mine", "runc"))),
        expect(
            r"set another (handler) for this custom runtime",
            lambda scene, found: custom_runtime("kata-mine")(scene),
        ),
    ),
    Case(
        "runtime",
        "the unit runs a script, and its process is not visible",
        lambda scene: setattr(scene.node, "argv", ("/opt/run.sh",)),
        expect(
            r"set (containerd.configDir) and (containerd.configFileName) to the directory and the name",
            lambda scene, found: name_main_file(scene, found[1], found[2]),
        ),
    ),
    Case(
        "config",
        "containerd 1.7 has the block of kata-node of another prefix",
        both(on("containerd 1.7"), installed_elsewhere),
        expect(
            r"run `kata-node revert` for that installation first, with its env.installationPrefix",
            lambda scene, found: revert_elsewhere(scene),
        ),
    ),
    Case(
        "error: CriError",
        "the runtime cannot list its pods",
        pods_unknown,
        expect(
            r"or run with --ignore-pods to continue",
            lambda scene, found: scene.options.update(ignore_pods=True),
        ),
    ),
    Case(
        "copies",
        "a file of another program replaces the handlers of all other files",
        incomplete_copy,
        lambda scene, hint, what: follow_incomplete_copy(scene, hint, what),
    ),
    Case(
        "runtime",
        "an empty root is prepared for CRI-O, and the values are for k3s",
        both(option(offline=True, runtime="cri-o://1.31.0"), with_value(k8sDistribution="k3s")),
        expect(
            r"set (k8sDistribution): (k8s) if cri-o runs as its own systemd unit",
            lambda scene, found: scene.set(found[1], found[2]),
        ),
    ),
    Case(
        "runtime",
        "containerd has a version that nobody knows",
        version("mine"),
        expect(
            r"set --runtime to the node's runtime and its version, for example (\S+)$",
            lambda scene, found: scene.options.update(runtime=found[1]),
        ),
    ),
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
            lambda scene, found: remove_and_reboot(scene, found[1]),
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
            lambda scene, found: set_drop_in(found[1])(scene),
        ),
    ),
    Case(
        "memory",
        "the node has 1 GiB",
        lambda scene: setattr(scene, "memory", 1 << 30),
        expect(
            r"set a lower (default_memory) \(MiB\) in the dropIn",
            lambda scene, found: set_drop_in(f"{found[1]} = 512")(scene),
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
            lambda scene, found: revert_elsewhere(scene),
        ),
    ),
    Case(
        "config",
        "kata-node of another prefix has handlers of the same names",
        installed_elsewhere,
        expect(
            r"run `kata-node revert` for the installation of (/elsewhere)/opt/kata/",
            lambda scene, found: revert_elsewhere(scene, found[1]),
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
        "machine-id",
        "the Node of another machine was read",
        both(with_file("/etc/machine-id", "1" * 32), option(expected_machine_id="2" * 32)),
        expect(
            r"start the installation again, so that the (Node) is read again",
            lambda scene, found: scene.options.update(expected_machine_id="1" * 32),
        ),
    ),
    Case(
        "config",
        "the template of k3s is not valid TOML",
        lambda scene: broken_template(scene, "version = [\n"),
        expect(
            r"correct (\S+\.tmpl), from which this file",
            lambda scene, found: correct_template(scene, found[1]),
        ),
    ),
    Case(
        "error: SettingsError",
        "the values file is not YAML",
        lambda scene: setattr(scene, "text", "shims: [\n"),
        expect(r"correct the YAML", lambda scene, found: setattr(scene, "text", "")),
    ),
    Case(
        "error: SettingsError",
        "the values file is a list",
        lambda scene: setattr(scene, "text", "- qemu\n"),
        expect(
            r"write the values of the Helm chart, for example `(shims:)` at the top level",
            lambda scene, found: setattr(scene, "text", f"{found[1]}\n  qemu: {{}}\n"),
        ),
    ),
    Case(
        "error: UsageError",
        "`--runtime` has no version",
        option(runtime="containerd"),
        expect(
            r"set it to NAME://VERSION, for example (\S+?)[;,]",
            lambda scene, found: scene.options.update(runtime=found[1]),
        ),
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
        set_drop_in("no_such_key = 1"),
        expect(r"correct the drop-in", lambda scene, found: scene.unset("shims.qemu.dropIn")),
    ),
    Case(
        "payload",
        "the `dropIn` of a shim sets an initrd beside the image",
        set_drop_in('initrd = "/opt/kata/x"'),
        expect(
            r'set (image = "") or initrd = "" in the drop-in',
            lambda scene, found: set_drop_in(f'initrd = "/opt/kata/x"\n{found[1]}')(scene),
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
            r'set (\w+) in \[(plugins\."[\w.]+")\] of .* or of (containerd.userDropIn)',
            lambda scene, found: scene.set(found[3], f'[{found[2]}]\n{found[1]} = "pool"\n'),
        ),
    ),
    Case(
        "nydus",
        "the payload has no nydus-snapshotter",
        with_value(snapshotter__setup=["nydus"], shims__qemu__containerd__snapshotter="nydus"),
        expect(
            r"remove nydus from (snapshotter.setup) and from the shims that use it",
            lambda scene, found: remove_nydus(scene, found[1]),
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
