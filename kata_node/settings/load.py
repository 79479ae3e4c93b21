"""What this node is to get: the values file, and what flags and variables change of it.

The file is the one the Helm chart takes, with the keys of the public kata-deploy chart as of mid-2026.
Keys that only the cluster side uses are known and passed over; every other key is known by name and
type, and all that is wrong is reported in one error.

Which shims are on:

- A shim named under ``shims`` is on when its ``enabled`` is true, off when it is false, and otherwise
  on unless ``shims.disableAll``. A shim the file does not name is off: Helm has merged the chart's
  own list in before a node sees the file.
- A file that names no shim, or no file, means a run by hand: one shim is on, the ``defaultShim`` of
  this architecture or else ``qemu``. ``disableAll: true`` alone switches that off too.
- The override ``shims`` replaces this choice by the shims it names.
- One file serves nodes of every architecture, so a shim that does not run on this one is skipped, not
  refused. It is an error only when none is left, or when the override named it for this very node.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Mapping

from kata_node.errors import SettingsError
from kata_node.settings.handlers import handlers
from kata_node.settings.model import DEFAULT_INSTALL_DIR, DEFAULT_INSTANCE, DISTRIBUTIONS, Settings
from kata_node.settings.runtime import read_containerd, read_snapshotter, read_user_drop_in
from kata_node.settings.selection import read_custom_runtimes, select
from kata_node.settings.values import ValuesReader, describe_value, read_yaml

OVERRIDE_KEYS = ("installation_prefix", "k8s_distribution", "multi_install_suffix", "debug", "shims")
"""What flags and ``KATA_NODE_…`` variables can set; all values are strings."""


CHART_ONLY_KEYS = (
    "affinity",
    "appArmor",
    "containerRuntime",
    "deploymentMode",
    "fullnameOverride",
    "global",
    "health",
    "image",
    "imagePullPolicy",
    "imagePullSecrets",
    "job",
    "kubectlImage",
    "logLevel",
    "monitor",
    "nameOverride",
    "node-feature-discovery",
    "nodeBinaries",
    "nodeFeatureRules",
    "nodeSelector",
    "podAnnotations",
    "podLabels",
    "priorityClassName",
    "rbac",
    "resources",
    "runningPods",
    "runtimeClasses",
    "selinux",
    "serviceAccount",
    "tolerations",
    "updateStrategy",
    "verification",
)
"""Top-level keys whose work the chart's templates do; their values are not looked at."""

DISTRIBUTION_ALIASES = {"kubeadm": "k8s", "vanilla": "k8s"}
"""Other names of distributions, which the public chart's documentation has."""

RENAMED_KEYS = {
    "allowedHypervisorAnnotations": "shims.<shim>.allowedHypervisorAnnotations",
    "agentHttpsProxy": "shims.<shim>.agent.httpsProxy",
    "agentNoProxy": "shims.<shim>.agent.noProxy",
    "createDefaultRuntimeClass": "runtimeClasses.createDefault",
    "createRuntimeClasses": "runtimeClasses.enabled",
    "debug": "debug",
    "defaultShim": "defaultShim.<arch>",
    "pullTypeMapping": "shims.<shim>.crio.guestPull",
    "shims": "shims.<shim>.enabled",
    "snapshotterHandlerMapping": "shims.<shim>.containerd.snapshotter",
    "_experimentalForceGuestPull": "shims.<shim>.containerd.forceGuestPull",
    "_experimentalSetupSnapshotter": "snapshotter.setup",
}
"""Keys of ``env`` that older charts had, and what says the same now."""

RESERVED_HANDLERS = ("crun", "runc")
"""The handlers that runtimes have built in: to take one would be to run every pod of the node in Kata."""

TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
NAME_LIMIT = 63
"""The longest RuntimeClass handler, and the longest name of a label behind its slash."""

_SUFFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
# What needs no quoting in TOML, in a shell, in a systemd unit or in containerd's globs.
_PREFIX = re.compile(r"/[A-Za-z0-9._+@=/-]*")
# The syntax of a label's key, which Kubernetes has taints follow.
_TAINT_KEY = re.compile(
    r"((?=.{1,253}/)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)

log = logging.getLogger(__name__)


def load(path: str | None, *, overrides: Mapping[str, str], arch: str) -> Settings:
    """The settings for a node of machine ``arch``, from the YAML file at ``path`` and ``overrides``.

    ``overrides`` has keys of :data:`OVERRIDES`; an empty value counts as not given. Without a
    ``path`` all values have their defaults. Raises :class:`~kata_node.errors.SettingsError` that
    names everything wrong with the file and the overrides, each by its key.
    """
    if unknown := overrides.keys() - set(OVERRIDE_KEYS):
        raise ValueError(f"unknown overrides: {unknown}")
    problems: list[str] = []
    with ValuesReader(read_yaml(path) if path else {}, "", problems) as values:
        settings = _read(values, overrides, arch)
    if problems:
        raise SettingsError(
            problems[0] if len(problems) == 1 else "\n  ".join([f"{len(problems)} problems", *problems]),
            where=path or "settings",
            hint="correct the settings and run again; nothing was changed on this node",
        )
    for name, reason in settings.skipped:
        log.debug("no %s on this %s node: it %s", name, arch, reason)
    return settings


def _read(values: ValuesReader, overrides: Mapping[str, str], arch: str) -> Settings:
    values.skip(*CHART_ONLY_KEYS)
    with values.section("env") as env:
        host_os = env.text("hostOS")
        _report_renamed_keys(env)
        prefix, prefix_key = env.text("installationPrefix"), "env.installationPrefix"
        suffix, suffix_key = env.text("multiInstallSuffix"), "env.multiInstallSuffix"
    if given := overrides.get("installation_prefix"):
        prefix, prefix_key = given, "--installation-prefix"
    if given := overrides.get("multi_install_suffix"):
        suffix, suffix_key = given, "--multi-install-suffix"
    prefix = _prefix(values, prefix_key, prefix)
    suffix = _suffix(values, suffix_key, suffix)
    with values.section("containerd") as containerd:
        user_drop_in = read_user_drop_in(containerd)
        containerd_settings = read_containerd(containerd)
    with values.section("snapshotter") as snapshotter:
        snapshotter_settings = read_snapshotter(snapshotter)
    custom, skipped_custom = read_custom_runtimes(values, arch)
    selection = select(
        values, arch, shims_override=overrides.get("shims", ""), custom=custom, skipped_custom=skipped_custom
    )
    settings = Settings(
        shims=selection.shims,
        arch=arch,
        install_dir=prefix + DEFAULT_INSTALL_DIR + (f"-{suffix}" if suffix else ""),
        instance=suffix or DEFAULT_INSTANCE,
        suffix=suffix,
        user_drop_in=user_drop_in,
        skipped=selection.skipped,
        shim_settings=selection.shim_settings,
        default_shim=selection.default_shim,
        custom_runtimes=custom,
        distribution=_distribution(values, overrides.get("k8s_distribution", "")),
        containerd=containerd_settings,
        snapshotter=snapshotter_settings,
        host_os=host_os,
        debug=_debug(values, overrides.get("debug", "")),
        devkit=values.flag("devkit"),
        startup_taints=_taints(values),
    )
    _check_handlers(values, suffix_key, settings)
    return settings


def _report_renamed_keys(env: ValuesReader) -> None:
    for old, new in RENAMED_KEYS.items():
        if env.has(old):
            env.add_problem(old, f"is the key of an older chart; write {new}")
            env.skip(old)


def _prefix(values: ValuesReader, key: str, prefix: str) -> str:
    """The prefix, normalised; the empty string for the root."""
    if prefix and (not _PREFIX.fullmatch(prefix) or ".." in prefix.split("/")):
        values.add_problem(
            key,
            f"{describe_value(prefix)} is not an absolute path of letters, digits and . _ - + @ = "
            "without `..`",
        )
        return ""
    return posixpath.normpath(f"/{prefix.strip('/')}").rstrip("/")


def _suffix(values: ValuesReader, key: str, suffix: str) -> str:
    if suffix == DEFAULT_INSTANCE:
        values.add_problem(
            key, f"{suffix} is what an installation without a suffix is called; choose another"
        )
    elif suffix and not _SUFFIX.fullmatch(suffix):
        values.add_problem(
            key,
            f"{describe_value(suffix)} cannot end a path and a label: use small letters, digits and inner "
            "dashes",
        )
    else:
        return suffix
    return ""


def _check_handlers(values: ValuesReader, key: str, settings: Settings) -> None:
    """Handlers must differ. They and the instance's label have the suffix, and Kubernetes limits both."""
    seen: dict[str, str] = {}
    for handler in handlers(settings):
        if handler.name in RESERVED_HANDLERS:
            values.add_problem(
                f"{handler.key}.runtimeClass",
                f"its handler {handler.name} is the one that runs ordinary containers; choose another",
            )
        elif handler.name in seen:
            values.add_problem(
                f"{handler.key}.runtimeClass",
                f"its handler {handler.name} is that of {seen[handler.name]} too",
            )
        seen[handler.name] = handler.key
    longest = max((*seen, settings.suffix), key=len)
    if len(longest) > NAME_LIMIT:
        values.add_problem(
            key if settings.suffix else seen[longest],
            f"the name {longest} has {len(longest)} characters; Kubernetes allows {NAME_LIMIT}",
        )


def _distribution(values: ValuesReader, override: str) -> str:
    distribution = values.choice("k8sDistribution", (*DISTRIBUTIONS, *DISTRIBUTION_ALIASES))
    distribution = DISTRIBUTION_ALIASES.get(distribution, distribution)
    if override and override not in DISTRIBUTIONS:
        values.add_problem("--k8s-distribution", f"expected one of {', '.join(DISTRIBUTIONS)}")
    return override or distribution


def _debug(values: ValuesReader, override: str) -> bool:
    debug = values.flag("debug")
    if override not in ("", "true", "false"):
        values.add_problem("--debug", f"expected true or false, got {describe_value(override)}")
    return override == "true" if override else debug


def _taints(values: ValuesReader) -> tuple[str, ...]:
    taints = values.text_list("startupTaints") or ()
    for taint in taints:
        key, colon, effect = taint.partition(":")
        if not key or (colon and effect not in TAINT_EFFECTS):
            what = f"is neither `key` nor `key:effect` with an effect of {', '.join(TAINT_EFFECTS)}"
        elif "=" in key[1:]:
            bare = key.partition("=")[0] + colon + effect
            what = f"has a value, as kubectl writes taints, but it is meant whatever that is: write {bare}"
        elif not _TAINT_KEY.fullmatch(key):
            what = (
                "has no key that a taint can have: write it as `kubectl describe node` shows it, such as "
                "example.com/not-yet:NoSchedule"
            )
        else:
            continue
        values.add_problem("startupTaints", f"{describe_value(taint)} {what}")
    return taints
