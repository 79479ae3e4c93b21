"""What is installed on the nodes of a release, and the refusal of values that would leave it there.

An apply overwrites the keys of the state object that the chart renders, and leaves alone the key that only
this program writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgspec

from kata_node.dispatcher.api import ApiClient, RefusedError
from kata_node.dispatcher.config import Config
from kata_node.dispatcher.desired_state import StateObject, state_path
from kata_node.errors import SettingsError

INSTALLED_KEY = "installed"
"""The key of the ConfigMap's data: the values of the installation as JSON."""

VALUES_KEYS = {"multiInstallSuffix": "env.multiInstallSuffix", "installationPrefix": "env.installationPrefix"}
"""Keys of the installation whose key in the values is another."""


def read_installed(state: StateObject | None) -> Mapping[str, str]:
    """Return the values of the installation on the nodes; none if nothing is installed or it is not known."""
    try:
        return msgspec.json.decode(
            (state.data if state else {}).get(INSTALLED_KEY, "{}"), type=dict[str, str]
        )
    except msgspec.DecodeError:
        return {}


def check_installed(config: Config, state: StateObject | None) -> None:
    """Raise :class:`SettingsError` if the nodes have another installation than ``config`` is for."""
    for key, old in read_installed(state).items():
        new = config.installation_keys.get(key, old)
        if new != old:
            before, now = json.dumps(old), json.dumps(new)
            raise SettingsError(
                f"the release was installed with {before} and cannot change to {now}, because nothing would "
                "revert its nodes",
                where=f"{VALUES_KEYS.get(key, key)}, ConfigMap {config.state_config_map}",
                hint=f"set it to {before}; to change it, remove Kata first (desiredState: absent, or "
                "`helm uninstall`), or install a second release",
            )


def record_installed(api: ApiClient, config: Config, state: StateObject | None) -> None:
    """Write the values of the installation into the state of the release, before its first Job."""
    if state is not None and read_installed(state) != config.installation_keys:
        _write(api, config, json.dumps(config.installation_keys, sort_keys=True))


def forget_installed(api: ApiClient, config: Config, state: StateObject | None) -> None:
    """Remove these values after all nodes were reverted."""
    if state is not None and INSTALLED_KEY in state.data:
        _write(api, config, None)


def _write(api: ApiClient, config: Config, value: str | None) -> None:
    body = msgspec.json.encode({"data": {INSTALLED_KEY: value}})
    try:
        api.call("PATCH", state_path(config), "patch the state of the release", body=body)
    except RefusedError as error:
        if error.failure.status != 404:  # deleted in the meantime
            raise
