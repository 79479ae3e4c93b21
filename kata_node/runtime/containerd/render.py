"""Render the handlers for containerd: a drop-in, or the tables of a managed block. Pure.

containerd serves a handler of any type ``io.containerd.<name>.v2``. It runs the program of ``runtime_path``
and passes it ``options`` (source: containerd's code).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kata_node.errors import IneligibleNodeError
from kata_node.runtime.containerd.main import RUNC, RUNC_TYPE
from kata_node.runtime.containerd.read import HANDLER_PLUGINS
from kata_node.settings.handlers import Handler, handlers
from kata_node.snapshotters import mapping
from kata_node.toml import render as toml
from kata_node.toml import tables as toml_tables

if TYPE_CHECKING:
    from kata_node.settings.model import Settings
    from kata_node.versions import Version

NEWEST_SCHEMA = 3
"""The newest schema of our drop-ins. Later releases of containerd read it too."""


def render(settings: Settings, main_schema: int, version: Version, *, with_log_level: bool = True) -> bytes:
    """Return the drop-in with the handlers, for a main file of ``main_schema``.

    ``with_log_level`` says whether the settings may change the log level of containerd.
    """
    schema = min(main_schema, NEWEST_SCHEMA)
    # containerd 2 ignores the plugin name of schema 1.
    tables = content(settings, 3 if schema == 1 else schema, version)
    return toml.render(
        {"version": schema, **tables, **(_log_level(settings) if with_log_level else {})},
        (
            f"Managed by kata-node (instance {settings.instance}). Changes here are lost:",
            "put your own into the setting containerd.userDropIn.",
        ),
    )


def render_block(
    settings: Settings,
    schema: int,
    version: Version,
    existing_config: Mapping[str, Any],
    *,
    where: str,
    with_runc: bool,
    had_runc: bool = False,
) -> bytes:
    """Return the handlers as tables for the file ``where``, which has ``schema`` and ``existing_config``.

    With ``with_runc`` the tables also define runc in two cases. If the file defines no handler: the first
    handler would remove the built-in runc. If our previous tables ``had_runc``: handlers that were added
    since may need it. Raises :class:`IneligibleNodeError` when a setting must go into an existing table of
    the file.
    """
    schema = min(schema, NEWEST_SCHEMA)
    desired = content(settings, schema, version)
    missing = _missing_settings(desired, existing_config, (), where)
    existing_handlers: Any = existing_config
    for key in ("plugins", HANDLER_PLUGINS[schema], "containerd", "runtimes"):
        existing_handlers = existing_handlers.get(key, {})
    if with_runc and (not existing_handlers or (had_runc and RUNC not in existing_handlers)):
        runc = {RUNC: {"runtime_type": RUNC_TYPE}}
        missing = merge(missing, {"plugins": {HANDLER_PLUGINS[schema]: {"containerd": {"runtimes": runc}}}})
    # A log level in the file is the administrator's. A template is not parsed, and may have one.
    if existing_config and "debug" not in existing_config:
        missing |= _log_level(settings)
    return toml.render(missing)


def content(settings: Settings, schema: int, version: Version) -> dict[str, Any]:
    """Return the tables that the handlers need in a configuration of ``schema``."""
    return merge(
        {"plugins": {HANDLER_PLUGINS[schema]: {"containerd": {"runtimes": runtimes(settings)}}}},
        mapping.config_tables(settings, handlers(settings), schema, version),
    )


def _log_level(settings: Settings) -> dict[str, Any]:
    """Return the tables that make containerd log as much as ``debug: true`` asks for."""
    return {"debug": {"level": "debug"}} if settings.debug else {}


def _missing_settings(
    desired: Mapping[str, Any], existing_config: Mapping[str, Any], path: tuple[str, ...], where: str
) -> dict[str, Any]:
    """Return the part of ``desired`` that ``existing_config`` lacks.

    A managed block cannot add keys to a table that exists. This raises :class:`IneligibleNodeError`.
    """
    missing_settings: dict[str, Any] = {}
    for key, value in desired.items():
        existing = existing_config.get(key)
        if path[-1:] == ("runtimes",) and existing is not None:
            raise IneligibleNodeError(
                f"it defines the handler {key}, which this installation also defines",
                where=where,
                hint=f"remove the handler {key} from this file",
            )
        if isinstance(value, dict) and existing is not None and not isinstance(existing, dict):
            raise IneligibleNodeError(
                f"{toml_tables.dotted_key((*path, key))} is not a table; containerd does not start with that",
                where=where,
                hint=f"make it a table, or remove {key} from this file",
            )
        if isinstance(value, dict) and isinstance(existing, dict):
            missing_settings[key] = _missing_settings(value, existing, (*path, key), where)
        elif isinstance(value, dict) or not existing_config:
            missing_settings[key] = value
        elif existing is None and mapping.DEFAULTS.get(key) == value:
            continue
        elif existing != value:
            raise IneligibleNodeError(
                f"{toml_tables.dotted_key((*path, key))} is not {toml_value(value)}, which the snapshotter "
                "settings need",
                where=where,
                hint=f"set {key} = {toml_value(value)} in [{toml_tables.dotted_key(path)}] of this file, "
                "then run the command again",
            )
    return missing_settings


def toml_value(value: object) -> str:
    """Return a value as TOML text."""
    import tomlkit

    return tomlkit.item(value).as_string()


def runtimes(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the table of each handler, by its name."""
    return {handler.name: _handler_table(settings, handler) for handler in handlers(settings)}


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return two nested mappings as one. They must not both have a value at the same key path."""
    result = dict(one)
    for key, value in other.items():
        result[key] = merge(result[key], value) if isinstance(result.get(key), dict) else value
    return result


def _handler_table(settings: Settings, handler: Handler) -> dict[str, Any]:
    snapshotter = mapping.effective_name(settings, handler.snapshotter)
    return {
        "runtime_type": f"io.containerd.{_runtime_type_name(handler)}.v2",
        "runtime_path": f"{settings.install_dir}/{handler.shim.shim_binary}",
        "privileged_without_host_devices": True,
        "pod_annotations": list(handler.pod_annotations),
        **({"snapshotter": snapshotter} if snapshotter else {}),
        "options": {"ConfigPath": f"{settings.install_dir}/{handler.own_config}"},
    }


def _runtime_type_name(handler: Handler) -> str:
    return f"kata-{handler.shim.name}"
