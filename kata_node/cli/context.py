"""Make the settings, the options and the clients of the stages from the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kata_node.cli.options import DEFAULT_PAYLOAD, Common

if TYPE_CHECKING:
    from kata_node.plan.actions import Clients
    from kata_node.plan.context import Options
    from kata_node.plan.last_run import Invocation
    from kata_node.settings.model import Settings


def settings_of(common: Common) -> Settings:
    """Return the settings: those of the values file, overridden by options."""
    from kata_node.host import kernel
    from kata_node.settings import load as settings

    return settings.load(
        str(common.config) if common.config else None,
        overrides={
            name: getattr(common, name)
            for name in ("installation_prefix", "k8s_distribution", "multi_install_suffix", "shims")
        },
        arch=kernel.arch(),
        digest=common.config_digest,
        user_drop_in=str(common.user_drop_in or ""),
    )


def options_of(common: Common) -> Options:
    """Return the options of the stages."""
    from kata_node.plan.context import Options

    return Options(
        payload=common.payload,
        payload_release=common.payload_release,
        payload_is_optional=common.dry_run and common.payload == DEFAULT_PAYLOAD,
        offline=common.offline,
        runtime=common.runtime,
        cri_socket=common.cri_socket.removeprefix("unix://"),
        restart_timeout=common.restart_timeout,
        wait_for_pods=common.wait_for_pods,
        ignore_pods=common.ignore_pods,
        ignore_unread_config=common.ignore_unread_config,
        retry_refused=common.retry_refused,
        label_timeout=common.label_timeout,
        stable_for=common.label_stable_for,
        node_name=common.node_name,
        expected_machine_id=common.expected_machine_id,
        helm_release=common.helm_release,
        reports=common.reports,
    )


def _progress(total: int, title: str) -> contextlib.AbstractContextManager[Callable[[int], None]]:
    # Only a run that copies files needs it.
    from kata_node.cli.progress import progress

    return progress(total, title)


_REPEATED_OPTIONS = (
    *("config", "user_drop_in", "host_root", "payload", "offline", "runtime", "shims", "installation_prefix"),
    *("multi_install_suffix", "k8s_distribution", "cri_socket", "node_name"),
)
"""The options that decide what is installed where, and the Node. A command that is repeated needs them."""


def invocation_of(common: Common, command: str) -> Invocation:
    """Return ``command`` with the options that decide what it does, as they can be typed in any directory.

    Options with their default are left out. It does not matter whether they come from the command line or
    from variables.
    """
    from kata_node.plan.last_run import Invocation

    options: list[str] = []
    defaults = Common()
    for name in _REPEATED_OPTIONS:
        value = getattr(common, name)
        if value == getattr(defaults, name):
            continue
        text = str(value.absolute()) if isinstance(value, Path) else str(value)
        options += [f"--{name.replace('_', '-')}", *(() if value is True else (text,))]
    return Invocation(command, tuple(options))


@contextlib.contextmanager
def open_tools(common: Common) -> Iterator[Clients]:
    """Yield the clients of the node and of the API server.

    Each client connects when it is first used. All are closed at the end.
    """
    from functools import cache

    from kata_node.host.files import Root
    from kata_node.plan.actions import Clients

    root = Root(common.host_root)
    with contextlib.ExitStack() as opened:

        @cache
        def systemd() -> Any:
            from kata_node.host.systemd import Systemd

            return opened.enter_context(Systemd.connect(root))

        def cri(socket: str) -> Any:
            from kata_node.host.cri import Cri

            return Cri(root, socket)

        @cache
        def kube() -> Any:
            from kata_node.kube.client import KubeClient

            return opened.enter_context(KubeClient.connect())

        yield Clients(root, systemd, cri, kube, _progress)
