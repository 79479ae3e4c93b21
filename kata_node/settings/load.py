"""Load the settings of a node from the values file, the command-line options and ``KATA_NODE_`` variables.

The values file is that of the Helm chart. It has the keys of the public kata-deploy chart as of mid-2026.
kata-node ignores the keys that only the chart's templates use. It checks the name and type of every other
key, and reports all problems in one error.

Which shims are enabled:

- A shim below ``shims`` is enabled if its ``enabled`` is true, and disabled if it is false. Without
  ``enabled`` it is enabled unless ``shims.disableAll`` is true or the table of shims says that the shim is
  off. A shim that the file does not name is disabled: Helm merges the chart's list of shims into the file
  before a node reads it.
- If the file names no shim, or there is no file, kata-node is run by hand. Then one shim is enabled: the
  ``defaultShim`` of this architecture, or ``qemu``. ``disableAll: true`` disables this shim too.
- The override ``shims`` replaces these rules: exactly the shims it names are enabled.
- One file is used for nodes of every architecture. An enabled shim that does not run on this architecture is
  skipped. It is an error if the override names such a shim. If no shim and no custom runtime is left, the
  node is unfit.
"""

from __future__ import annotations

import logging
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from kata_node.errors import SettingsError, UnfitNodeError
from kata_node.settings.handlers import handlers
from kata_node.settings.model import (
    DEFAULT_INSTALL_DIR,
    DEFAULT_INSTANCE,
    DISTRIBUTIONS,
    RESERVED_HANDLERS,
    Settings,
)
from kata_node.settings.runtime import read_containerd, read_snapshotter, read_user_drop_in
from kata_node.settings.selection import read_custom_runtimes, select
from kata_node.settings.shims import MACHINES
from kata_node.settings.values import ValuesReader, describe_value, join_problems, path_problem, read_yaml

OVERRIDE_KEYS = ("installation_prefix", "k8s_distribution", "multi_install_suffix", "debug", "shims")
"""The settings that options and ``KATA_NODE_`` variables can override. All values are strings."""


CHART_ONLY_KEYS = (
    "affinity",
    "appArmor",
    "containerRuntime",
    "deploymentMode",
    "desiredState",
    "fullnameOverride",
    "gitops",
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
    "networkPolicy",
    "node-feature-discovery",
    "nodeBinaries",
    "nodeFeatureRules",
    "nodeImage",
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
"""Top-level keys that only the chart's templates use. Their values are not checked."""

DISTRIBUTION_ALIASES = {"kubeadm": "k8s", "vanilla": "k8s"}
"""Other names of distributions, from the documentation of the public chart."""

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
"""Keys below ``env`` of older charts, with the keys that replace them. ``kata_node.values`` converts them."""

RENAMED_KEYS |= {
    f"{key}_{machine}": RENAMED_KEYS[key]
    for key in (
        *("shims", "defaultShim", "snapshotterHandlerMapping", "pullTypeMapping"),
        "_experimentalForceGuestPull",
    )
    for machine in MACHINES.values()
}

TAINT_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
NAME_LIMIT = 63
"""The maximum length of a RuntimeClass handler, and of the part of a label key after the slash."""

_SUFFIX = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
# Only characters that need no quoting in TOML, in a shell, in a systemd unit and in containerd's globs.
_PREFIX = re.compile(r"/[A-Za-z0-9._+@=/-]*")
# Kubernetes requires the syntax of a label key for taint keys.
_TAINT_KEY = re.compile(
    r"((?=.{1,253}/)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
)

log = logging.getLogger(__name__)


def load(
    path: str | None, *, overrides: Mapping[str, str], arch: str, digest: str = "", user_drop_in: str = ""
) -> Settings:
    """Return the settings for a node of the machine type ``arch`` (as ``uname -m`` prints it).

    ``path`` is the values file; without it, all values have their defaults. ``digest`` is the expected
    sha256 of the file, see :func:`kata_node.settings.config_file.read_config_file`. The keys of
    ``overrides`` are those of :data:`OVERRIDE_KEYS`; an empty value counts as not given. ``user_drop_in`` is
    the path of a file with the content of ``containerd.userDropIn``. Raises
    :class:`~kata_node.errors.SettingsError` with all problems of the file and the overrides, each with its
    key.
    """
    if unknown := overrides.keys() - set(OVERRIDE_KEYS):
        raise ValueError(f"unknown overrides: {unknown}")
    values = read_yaml(path, digest) if path else {}
    if user_drop_in:
        from kata_node.settings.user_drop_in import with_user_drop_in

        values = with_user_drop_in(values, user_drop_in)
    settings, problems = read_settings(values, overrides=overrides, arch=arch)
    if problems:
        raise SettingsError(
            join_problems(problems),
            where=path or "settings",
            hint="correct the settings, then run again; nothing was changed on this node",
        )
    log.debug(
        "the settings of %s, for %s: %s",
        *(
            path or "no values file",
            settings.install_dir,
            ", ".join(shim.name for shim in settings.shims) or "no shims",
        ),
    )
    for name, reason in settings.skipped:
        log.debug("skipping %s on this %s node: it %s", name, arch, reason)
    return settings


def require_handlers(settings: Settings) -> None:
    """Raise :class:`~kata_node.errors.UnfitNodeError` if no handler is left on this architecture."""
    if settings.nothing_runs:
        raise UnfitNodeError(
            settings.nothing_runs,
            where="shims",
            hint="enable a shim that runs on this architecture, or do not select nodes of this architecture",
        )


def read_settings(
    values: Mapping[Any, object], *, overrides: Mapping[str, str], arch: str
) -> tuple[Settings, list[str]]:
    """Return the settings in the content of a values file, and all problems, each with its key.

    With problems, the settings must not be used to change a node.
    """
    problems: list[str] = []
    with ValuesReader(values, "", problems) as reader:
        settings = _read(reader, overrides, arch)
    return settings, problems


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
        named=selection.named,
        is_fallback=selection.is_fallback,
        nothing_runs=selection.nothing_runs,
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
        # Whole files of older charts list these keys with an empty string, which means not set.
        if env.has(old) and env.value(old):
            env.add_problem(old, f"is a key of an older chart; write {new}")


def _prefix(values: ValuesReader, key: str, prefix: str) -> str:
    """Return the normalized prefix; the empty string for the root directory."""
    if prefix and (not _PREFIX.fullmatch(prefix) or ".." in prefix.split("/")):
        values.add_problem(
            key,
            f"{describe_value(prefix)} is not an absolute path of letters, digits and . _ - + @ = without ..",
        )
        return ""
    if problem := path_problem(prefix):
        values.add_problem(key, f"{describe_value(prefix)} {problem}")
        return ""
    if prefix:
        from kata_node.settings.system_dirs import prefix_problem

        if problem := prefix_problem(prefix):
            values.add_problem(key, f"{prefix} {problem}")
            return ""
    return posixpath.normpath(f"/{prefix.strip('/')}").rstrip("/")


def _suffix(values: ValuesReader, key: str, suffix: str) -> str:
    if suffix == DEFAULT_INSTANCE:
        values.add_problem(
            key, f"`{suffix}` is the name of the installation without a suffix; choose another suffix"
        )
    elif suffix and not _SUFFIX.fullmatch(suffix):
        values.add_problem(
            key,
            f"{describe_value(suffix)} cannot be part of a name; use lower-case letters, digits and inner "
            "hyphens",
        )
    else:
        return suffix
    return ""


def _check_handlers(values: ValuesReader, key: str, settings: Settings) -> None:
    """Report handlers that are reserved, not unique or too long, and a suffix that is too long.

    ``key`` is the key of the suffix. The suffix is part of handlers and of the installation label, and
    Kubernetes limits the length of both.
    """
    seen: dict[str, str] = {}
    for handler in handlers(settings):
        if handler.name in RESERVED_HANDLERS:
            values.add_problem(
                f"{handler.key}.runtimeClass",
                f"the handler {handler.name} runs ordinary containers; choose another handler",
            )
        elif handler.name in seen:
            values.add_problem(
                f"{handler.key}.runtimeClass",
                f"{handler.name} is also the handler of {seen[handler.name]}; choose another handler",
            )
        seen[handler.name] = handler.key
    longest = max((*seen, settings.suffix), key=len)
    if len(longest) > NAME_LIMIT:
        values.add_problem(
            key if settings.suffix else seen[longest],
            f"the name {longest} has {len(longest)} characters and Kubernetes allows {NAME_LIMIT}; choose a "
            f"shorter {'suffix' if settings.suffix else 'name'}",
        )


def _distribution(values: ValuesReader, override: str) -> str:
    distribution = values.choice("k8sDistribution", (*DISTRIBUTIONS, *DISTRIBUTION_ALIASES))
    distribution = DISTRIBUTION_ALIASES.get(distribution, distribution)
    if override and override not in DISTRIBUTIONS:
        values.add_problem(
            "--k8s-distribution", f"{describe_value(override)} is not one of {', '.join(DISTRIBUTIONS)}"
        )
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
            what = f"has a value, but startupTaints match a taint with any value; write {bare}"
        elif not _TAINT_KEY.fullmatch(key):
            what = (
                "has no valid taint key; write it as `kubectl describe node` shows it, for example "
                "example.com/not-yet:NoSchedule"
            )
        else:
            continue
        values.add_problem("startupTaints", f"{describe_value(taint)} {what}")
    return taints
