"""The commands of a DaemonSet's pod: ``daemon``, and ``wanted``, which the daemon runs before it ends."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from msgspec.structs import asdict

from kata_node.cli.options import Common, Output, env_variable
from kata_node.cli.output import print_json_result, print_result
from kata_node.daemon import daemon, health
from kata_node.errors import SettingsError, UsageError

if TYPE_CHECKING:
    from kata_node.daemon.daemonset import WantedResult

RECHECK_DELAY = 10.0
"""Seconds until a Node that is not selected is read again. Its labels can be missing for a moment: the
program that sets them may be restarting, and a kubelet that registers again restores old labels."""

_IDENTIFYING_KEYS = {
    "installation_prefix": ("env", "installationPrefix"),
    "multi_install_suffix": ("env", "multiInstallSuffix"),
    "k8s_distribution": ("k8sDistribution",),
    "cri_socket": ("containerd", "runtimeSocket"),
}
"""The values that identify an installation or its runtime: the option, and the path of the key."""

log = logging.getLogger(__name__)

_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[a-z0-9]([a-z0-9.-]*[a-z0-9])?")


def check(common: Common, name: str) -> None:
    """Raise :class:`UsageError` unless the options name the DaemonSet ``name`` and the Node to ask for."""
    if name and not _NAME.fullmatch(name):
        raise UsageError(
            f"expected NAMESPACE/NAME, got {name}",
            where="--daemonset",
            hint="set it to the DaemonSet of the pod, for example --daemonset kube-system/kata-deploy",
        )
    if common.offline:
        return
    for option, value in (("daemonset", name), ("node-name", common.node_name)):
        if not value:
            raise UsageError(
                "it is not set, so kata-node cannot ask whether Kata is still wanted on this node",
                where=f"--{option}",
                hint=f"set {env_variable(option)} in the pod, or add --offline",
            )


def exec_daemon(
    common: Common, listen: str, daemon_options: Mapping[str, Any], *, unfit_is_ready: bool, absent: bool
) -> NoReturn:
    """Replace this process with the daemon. ``daemon_options`` are those that only its commands have."""
    listener = health.listen(listen)
    daemon.block_signals()
    termination_log_path = str(common.termination_log)
    command = daemon.daemon_command(
        listener,
        common.log_level,
        termination_log_path,
        fallback_env(common),
        unfit_is_ready=unfit_is_ready,
        absent=absent,
    )
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os.execve(command[0], command, environment(common, daemon_options))  # noqa: S606 - itself  # nosec B606


def environment(common: Common, daemon_options: Mapping[str, Any]) -> dict[str, str]:
    """Return this process's environment with every option in its variable, for the daemon's children.

    A variable is left out when its option is empty or off.
    """
    values = {**asdict(common), **daemon_options}
    variables = {env_variable(name) for name in values}
    result = {name: text for name, text in os.environ.items() if name not in variables}
    for name, value in values.items():
        if isinstance(value, bool):
            value = "1" if value else ""
        if value not in (None, ""):
            result[env_variable(name)] = str(value)
    return result


def fallback_env(common: Common) -> dict[str, str]:
    """Return the variables for a revert without the values file; none when it cannot be identified.

    A revert works from the receipt. Of the values it needs only those that say where the receipt and the
    runtime are, and it can read these from a file that is invalid elsewhere.
    """
    from kata_node.settings.values import read_yaml

    if common.config is None:
        return {}
    result = {env_variable(name): "" for name in ("config", "config-digest", "shims")}
    try:
        values = read_yaml(str(common.config), common.config_digest, timeout=0)
    except SettingsError:
        return {}
    for option, keys in _IDENTIFYING_KEYS.items():
        found: object = values
        for key in keys:
            found = found.get(key) if isinstance(found, Mapping) else None
        if not isinstance(found, str | None):
            return {}
        result[env_variable(option)] = getattr(common, option) or found or ""
    return result


def wanted(common: Common, name: str, timeout: float) -> int:
    """Print whether the DaemonSet still selects this node, and return the exit code."""
    from kata_node.daemon import daemonset

    check(common, name)
    if common.offline:
        answer = daemonset.WantedResult(True, "--offline asks no cluster, so Kata stays")
    else:
        answer = _ask_api_server(name, common.node_name, timeout)
    if common.output is Output.JSON:
        print_json_result({"outcome": "ok", "wanted": answer.wanted, "reason": answer.reason})
    else:
        print_result(
            f"Kata is {'still' if answer.wanted else 'no longer'} wanted on this node: {answer.reason}"
        )
    return daemon.DONE if answer.wanted else daemon.NOT_WANTED


def _ask_api_server(name: str, node: str, timeout: float) -> WantedResult:
    from kata_node.daemon import daemonset
    from kata_node.kube import daemonset as kube_daemonset
    from kata_node.kube.client import KubeClient

    namespace, _, name = name.partition("/")
    with KubeClient.connect() as kube:

        def ask() -> WantedResult:
            deadline = kube.deadline_after(timeout)
            found = kube_daemonset.find_daemonset(kube, namespace, name, deadline)
            return daemonset.still_wanted(found, node, lambda: kube.node(node, deadline).labels)

        answer = ask()
        if answer.wanted or answer.permanent:
            return answer
        log.info(
            "%s; reading the Node again in %.0f s, because labels can change", answer.reason, RECHECK_DELAY
        )
        kube.clock.sleep(RECHECK_DELAY)
        return ask()
