"""Wrong command lines, and what an operator does who follows the hint. Data for the tests and the docs."""

from __future__ import annotations

import hashlib

from checks.scratch_node import Case, Scene, Step, expect

LIVE = ("status", "--host-root", "HOST")
OFFLINE = (*LIVE, "--offline")
VALUES = "HOST/root/values.yaml"
ORIGINAL = "shims: {qemu: {enabled: true}}\n"
ALIASES = "env:\n  shims: &shims qemu\n  hostOS: ''\nimage:\n  tag: *shims\n"
NO_ALIASES = "env:\n  shims: qemu\n  hostOS: ''\nimage:\n  tag: qemu\n"


def typed(*words: str, values: str | bytes = ORIGINAL) -> Step:
    """Return a step that types a command line, with a file :data:`VALUES`."""

    def step(scene: Scene) -> None:
        scene.write("/root/values.yaml", values)
        scene.command = list(words)

    return step


def to_full_disk(scene: Scene) -> None:
    typed(*LIVE)(scene)
    scene.stdout = "/dev/full"


def as_user(scene: Scene) -> None:
    typed("install", "--host-root", "HOST", "--payload", str(scene.payload), "--shims", "qemu")(scene)
    scene.uid = 1000


def edited_config(scene: Scene) -> None:
    digest = hashlib.sha256(ORIGINAL.encode()).hexdigest()
    typed(*OFFLINE, "--config", VALUES, "--config-digest", digest, values="shims: {}\n")(scene)


def remove_option(scene: Scene, option: str, *, values: int = 0) -> None:
    at = scene.command.index(option)
    del scene.command[at : at + 1 + values]


COMMAND_CASES: tuple[Case, ...] = (
    Case(
        "error: UsageError",
        "`--cri-socket` is a relative path",
        typed(*LIVE, "--cri-socket", "containerd.sock"),
        expect(
            r"set it to the path of the socket on the node, such as (\S+)$",
            lambda scene, found: scene.replace_word("containerd.sock", found[1]),
        ),
    ),
    Case(
        "error: UsageError",
        "`--host-root` does not exist",
        typed("status", "--offline", "--host-root", "HOST/nothing"),
        expect(
            r"set (--host-root) to the directory with the root file system",
            lambda scene, found: scene.replace_word("HOST/nothing", "HOST"),
        ),
    ),
    Case(
        "error: UsageError",
        "`--quiet` with `--log-level info`",
        typed(*OFFLINE, "--quiet", "--log-level", "info"),
        expect(r"remove one of the two options", lambda scene, found: remove_option(scene, "--quiet")),
    ),
    Case(
        "error: UsageError",
        "`--offline` with `--cri-socket`",
        typed(*OFFLINE, "--cri-socket", "/run/x.sock"),
        expect(
            r"remove either (--cri-socket) or --offline",
            lambda scene, found: remove_option(scene, found[1], values=1),
        ),
    ),
    Case(
        "error: UsageError",
        "`--reports` names a directory that does not exist",
        typed("stage", "label", "--host-root", "HOST", "--offline", "--reports", "HOST/nothing"),
        expect(
            r"mount the same volume there in every container of the node Job, or (remove the option)",
            lambda scene, found: remove_option(scene, "--reports", values=1),
        ),
    ),
    Case(
        "error: UsageError",
        "an ordinary user installs on a live node",
        as_user,
        expect(r"run it as (root), or use", lambda scene, found: setattr(scene, "uid", 0)),
    ),
    Case(
        "error: UsageError",
        "an option is before the command",
        typed("--offline", *LIVE),
        expect(
            r"put options after the command: kata-node install (--offline) \.\.\.",
            lambda scene, found: setattr(scene, "command", [*LIVE, found[1]]),
        ),
    ),
    Case(
        "error: SettingsError",
        "`--config` names a file that does not exist",
        typed(*OFFLINE, "--config", "HOST/nothing.yaml"),
        expect(
            r"set (--config) to a readable YAML file, or omit it",
            lambda scene, found: remove_option(scene, found[1], values=1),
        ),
    ),
    Case(
        "error: SettingsError",
        "the values file is not UTF-8",
        typed(*OFFLINE, "--config", VALUES, values="# caf\xe9\n".encode("latin-1")),
        expect(
            r"save the values file as (UTF-8)",
            lambda scene, found: scene.write("/root/values.yaml", "# caf\xe9\n".encode(found[1])),
        ),
    ),
    Case(
        "error: UsageError",
        "`--config-digest` is no digest",
        typed(*OFFLINE, "--config", VALUES, "--config-digest", "abc"),
        expect(
            r"give the sha256 digest of the file: 64 lower-case hexadecimal digits",
            lambda scene, found: scene.replace_word("abc", hashlib.sha256(ORIGINAL.encode()).hexdigest()),
        ),
    ),
    Case(
        "error: SettingsError",
        "somebody edited the ConfigMap",
        edited_config,
        expect(
            r"do not edit the ConfigMap; .* run `(helm upgrade)`, which restores it",
            lambda scene, found: scene.write("/root/values.yaml", ORIGINAL),
        ),
    ),
    Case(
        "error: SettingsError",
        "the file of `values check` does not exist",
        typed("values", "check", "HOST/nothing.yaml"),
        expect(
            r"name a readable values file in YAML",
            lambda scene, found: scene.replace_word("HOST/nothing.yaml", VALUES),
        ),
    ),
    Case(
        "error: SettingsError",
        "the file of `values check` is not YAML",
        typed("values", "check", VALUES, values="shims: [\n"),
        expect(
            r"correct the YAML, then run again",
            lambda scene, found: scene.write("/root/values.yaml", ORIGINAL),
        ),
    ),
    Case(
        "error: SettingsError",
        "the file of `values convert` is a list",
        typed("values", "convert", VALUES, values="- qemu\n"),
        expect(
            r"write the values of the Helm chart, for example `(shims:)` at the top level",
            lambda scene, found: scene.write("/root/values.yaml", f"{found[1]} {{}}\n"),
        ),
    ),
    Case(
        "error: SettingsError",
        "`values convert` would change an alias",
        typed("values", "convert", VALUES, values=ALIASES),
        expect(
            r"replace anchors, aliases and merged keys of the file by their values",
            lambda scene, found: scene.write("/root/values.yaml", NO_ALIASES),
        ),
    ),
    Case(
        "error: UsageError",
        "`values convert --write` names another file that exists",
        typed("values", "convert", VALUES, "--write", "HOST/etc/containerd/config.toml"),
        expect(
            r"name a new file, or the file itself",
            lambda scene, found: scene.replace_word("HOST/etc/containerd/config.toml", "HOST/root/new.yaml"),
        ),
    ),
    Case(
        "error: HostError",
        "`values convert --write` names a file in a directory that does not exist",
        typed("values", "convert", VALUES, "--write", "HOST/nothing/new.yaml"),
        expect(
            r"name a file in a directory that you can write to",
            lambda scene, found: scene.replace_word("HOST/nothing/new.yaml", "HOST/root/new.yaml"),
        ),
    ),
    Case(
        "error: UsageError",
        "`--daemonset` has no namespace",
        typed("wanted", "--offline", "--daemonset", "kata-deploy"),
        expect(
            r"set it to the DaemonSet of the pod, for example --daemonset (\S+)$",
            lambda scene, found: scene.replace_word("kata-deploy", found[1]),
        ),
    ),
    Case(
        "error: UsageError",
        "`wanted` without `--daemonset`",
        typed("wanted"),
        expect(
            r"set KATA_NODE_DAEMONSET in the pod, or add (--offline)",
            lambda scene, found: scene.command.append(found[1]),
        ),
    ),
    Case(
        "error: HostError",
        "stdout is a file on a full disk",
        to_full_disk,
        expect(
            r"redirect stdout to a file that can be written",
            lambda scene, found: setattr(scene, "stdout", str(scene.base / "out")),
        ),
    ),
)
