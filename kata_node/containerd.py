"""What containerd's configuration should be, as bytes, and what is wrong with one. Pure.

containerd merges the files its main one ``imports`` in, field by field, the later file winning. So
an instance brings drop-ins of its own and touches the main file at most to name them:

``import``   the drop-ins lie in the install dir, and the main file gets one ``imports`` entry.
``conf.d``   from 2.2 on, where a configuration on disk imports ``/etc/containerd/conf.d/*.toml``
             anyway: the drop-ins lie there, and the main file is left alone. ``conf.d`` is looked for
             beside the main file, wherever that is.

Measured on containerd 2.1.9 (2.0 and 2.2 read files by the same code) and 2.3.4:

- A glob that matches nothing, even below a directory that is not there, is fine; a plain path that
  is not there stops the daemon, and so does a dangling symlink that a glob finds. Hence our entry is
  a glob: with the install dir deleted by hand the daemon still starts.
- Only ``*`` makes a glob, ``?`` or ``[`` alone does not; hidden files match as well. A relative entry
  starts at the directory of the file that has it, under the name that file was read by.
- A file that several entries match, or that imports itself, is read once.
- A byte order mark stops the daemon. Top-level keys are matched whatever their case.
- A main file of ``version = 3`` and our entry serves exactly what no main file at all does.
- Up to 2.2 all files are merged and then migrated as one, as of the last ``version`` any of them gives;
  where the CRI tables of two schemas both have runtimes, one set is dropped without a word. From 2.3
  each file is migrated by itself, and a ``version`` above the first one read stops the daemon. So
  drop-ins take the schema of that first one, or 3 where it is 4: right for both.
- Beside a main file without ``version``, a drop-in of version 3 is served by all, and one of version 2
  would bring CRI tables to life that 2.1 ignored so far. Beside ``version = 1`` only 1 is allowed, and
  the table of schema 3 is the one that all serve.
- A handler of any type ``io.containerd.<name>.v2`` is served; by its source, containerd runs the program
  of ``runtime_path`` for it and hands it ``options``.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kata_node import toml_edit
from kata_node.containerd_read import (
    RUNTIME_TABLE,
    SCHEMA_2_TABLE,
    check,
    defined_handlers,
    import_closure,
    imports,
    in_order,
    matches,
    patterns,
    resolve,
    schema,
)

if TYPE_CHECKING:
    from kata_node.settings import Settings
    from kata_node.shims import Shim
    from kata_node.versions import Version

__all__ = [
    "CONFIG_PATH",
    "ConfigFile",
    "Mode",
    "Place",
    "Wanted",
    "add_import",
    "check",
    "config_path",
    "defined_handlers",
    "import_closure",
    "import_entry",
    "imports",
    "is_drop_in",
    "is_of",
    "matches",
    "own_paths",
    "places",
    "remove_import",
    "render",
    "wanted",
    "without_us",
]

CONFIG_PATH = "/etc/containerd/config.toml"

MADE_MAIN = b"""\
# Made by kata-node, as there was no configuration file. It goes with the last installation of Kata.
version = 3
"""
"""The main file where there was none, before it gets its ``imports`` entry."""

DROP_IN, USER_DROP_IN = "99-kata-deploy", "zz-kata-deploy-user"
"""How the names of our files begin. They sort behind those of others, and the user's behind ours."""

NEWEST_SCHEMA = 3
"""The newest schema our drop-ins are written in; every later containerd reads it too."""

POD_ANNOTATIONS = "io.katacontainers.*"
"""The annotations of a pod that reach the shim; Kata's own configuration decides which it heeds."""

Mode = Literal["import", "conf.d"]


@dataclass(frozen=True)
class ConfigFile:
    """A file as it should be; ``content`` is ``None`` where there must be none.

    ``without`` is what it would be, as it is now, without this instance: ``None`` when all of it is ours.
    """

    path: str
    content: bytes | None
    without: bytes | None = None


@dataclass(frozen=True)
class Wanted:
    """What one instance wants of containerd's configuration.

    ``files`` are in the order that can be interrupted anywhere: the drop-ins, then the main file if
    it has to name or no longer to name them, then what must be gone. Backwards, it is the order of
    the way back. ``labels`` names the settings that some of them come from.
    """

    mode: Mode
    files: tuple[ConfigFile, ...]
    handlers: tuple[str, ...]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """The drop-ins of an instance in one directory."""

    directory: str
    suffix: str

    @property
    def drop_in(self) -> str:
        """The handlers."""
        return self._path(DROP_IN)

    @property
    def user_drop_in(self) -> str:
        """What the settings have as ``containerd.userDropIn``."""
        return self._path(USER_DROP_IN)

    def _path(self, name: str) -> str:
        return (
            f"{self.directory}/{name}-{self.suffix}.toml" if self.suffix else f"{self.directory}/{name}.toml"
        )


def places(install_dir: str, suffix: str, main_path: str) -> dict[Mode, Place]:
    """Where the drop-ins of an instance lie in each mode."""
    conf_d = posixpath.join(posixpath.dirname(main_path), "conf.d")
    return {
        "import": Place(posixpath.dirname(import_entry(install_dir)), suffix),
        "conf.d": Place(conf_d, suffix),
    }


def own_paths(install_dir: str, suffix: str, main_path: str) -> tuple[str, ...]:
    """Every file an instance can have, whatever the mode; the main one is nobody's own."""
    both = places(install_dir, suffix, main_path).values()
    return tuple(path for place in both for path in (place.drop_in, place.user_drop_in))


def import_entry(install_dir: str) -> str:
    """The entry of the main file's ``imports`` that names the drop-ins in the install dir."""
    return f"{install_dir}/containerd/config.d/*.toml"


def is_drop_in(path: str, install_dir: str) -> bool:
    """Whether ``path`` is a drop-in of the instance in ``install_dir``, or of any in a ``conf.d``."""
    in_conf_d = posixpath.basename(posixpath.dirname(path)) == "conf.d"
    return _is_at_home(path, install_dir) or (in_conf_d and _has_our_name(path))


def _is_at_home(path: str, install_dir: str) -> bool:
    return posixpath.dirname(path) == posixpath.dirname(import_entry(install_dir)) and _has_our_name(path)


def _has_our_name(path: str) -> bool:
    return posixpath.basename(path).startswith((DROP_IN, USER_DROP_IN))


def is_of(install_dir: str, drop_in: bytes) -> bool:
    """Whether a drop-in with handlers is of the instance in ``install_dir``: by the programs it names.

    Instances of one suffix in several install dirs would share its path in a ``conf.d``.
    """
    return f'"{install_dir}/'.encode() in drop_in


def config_path(argv: Sequence[str], working_directory: str = "/") -> str:
    """The main file of a containerd started as ``argv``, the program first, as ExecStart has it."""
    path = CONFIG_PATH
    arguments = iter(argv[1:])
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag.startswith("-") and flag.lstrip("-") in _FLAGS_WITH_VALUE:
            value = value if equals else next(arguments, "")
            path = value if flag.lstrip("-") in ("config", "c") else path
    return posixpath.normpath(posixpath.join(working_directory, path))


_FLAGS_WITH_VALUE = ("config", "c", "log-level", "l", "address", "a", "root", "state")


def add_import(main: bytes, entry: str, where: str = CONFIG_PATH) -> bytes:
    """Name ``entry`` in ``imports``, by one insertion into the main file at ``where``.

    Raises :class:`~kata_node.errors.HostError` when the file is broken, or not safe to edit.
    """
    return toml_edit.add(main, "imports", entry, after="version", where=where)


def remove_import(main: bytes, entry: str, where: str = CONFIG_PATH) -> bytes:
    """Undo :func:`add_import`, byte for byte; of a file edited since, take only the entry.

    Raises :class:`~kata_node.errors.HostError` when the file is broken, or not safe to edit.
    """
    return toml_edit.remove(main, "imports", entry, where=where)


def wanted(settings: Settings, version: Version, main_path: str, files: Mapping[str, bytes]) -> Wanted:
    """What the instance of ``settings`` wants of a containerd of ``version``.

    ``files`` has, by path, at least those that containerd reads now; without the main one, there is
    none. What this instance may have left elsewhere, in the other mode or for a setting that is off
    now, is among what must be gone; it need not be there. Raises
    :class:`~kata_node.errors.HostError` when the main file is broken, or not safe to edit.
    """
    both = places(settings.install_dir, settings.suffix, main_path)
    own = own_paths(settings.install_dir, settings.suffix, main_path)
    read = in_order(main_path, {path: content for path, content in files.items() if path not in own})
    mode: Mode = "conf.d" if version.at_least(2, 2) and _is_imported(both["conf.d"], read) else "import"

    drop_ins = [ConfigFile(both[mode].drop_in, render(settings, schema(read)))]
    if settings.user_drop_in.strip():
        text = settings.user_drop_in.rstrip("\n") + "\n"
        drop_ins.append(ConfigFile(both[mode].user_drop_in, text.encode()))
    kept = [file.path for file in drop_ins]
    return Wanted(
        mode,
        (
            *drop_ins,
            *_main(settings.install_dir, main_path, files.get(main_path), mode),
            *(ConfigFile(path, None) for path in own if path not in kept),
        ),
        tuple(shim.handler(settings.suffix) for shim in settings.shims),
        {place.user_drop_in: "containerd.userDropIn" for place in both.values()},
    )


def _main(install_dir: str, main_path: str, main: bytes | None, mode: Mode) -> tuple[ConfigFile, ...]:
    """The main file, if this instance has anything to say of it."""
    without = None if main is None else without_us(main, install_dir, main_path)
    if mode == "conf.d":
        return () if without == main else (ConfigFile(main_path, without, without),)
    entry = import_entry(install_dir)
    content = MADE_MAIN if main is None else _without(main, install_dir, main_path, but=entry)
    return (ConfigFile(main_path, add_import(content, entry, main_path), without),)


def without_us(main: bytes, install_dir: str, main_path: str) -> bytes | None:
    """The main file without the instance in ``install_dir``; ``None`` when nothing of others is left.

    A file that never named it comes back as it is. Raises :class:`~kata_node.errors.HostError` when
    it is broken, or not safe to edit.
    """
    left = _without(main, install_dir, main_path)
    return None if left == MADE_MAIN != main else left


def _without(main: bytes, install_dir: str, main_path: str, *, but: str = "") -> bytes:
    """The main file without the imports, ``but`` one, that mean our drop-ins in the install dir.

    A plain path to one is never ours to write, but would stop the daemon once that drop-in is gone.
    """
    for entry in imports(main, main_path):
        path = resolve(main_path, entry)
        if path != but and (path == import_entry(install_dir) or _is_at_home(path, install_dir)):
            main = remove_import(main, entry, main_path)
    return main


def render(settings: Settings, root_schema: int) -> bytes:
    """The drop-in with the handlers, for a main configuration of ``root_schema``."""
    import tomlkit

    version = min(root_schema, NEWEST_SCHEMA)
    handlers = tomlkit.table(is_super_table=True)
    for shim in settings.shims:
        handler = tomlkit.table()
        handler["runtime_type"] = f"io.containerd.kata-{shim.name}.v2"
        handler["runtime_path"] = f"{settings.install_dir}/{shim.shim_binary}"
        handler["privileged_without_host_devices"] = True
        handler["pod_annotations"] = _pod_annotations(settings, shim)
        handler["options"] = {"ConfigPath": f"{settings.install_dir}/{shim.own_config}"}
        handlers[shim.handler(settings.suffix)] = handler
    table = handlers
    for name in ("runtimes", "containerd", SCHEMA_2_TABLE if version == 2 else RUNTIME_TABLE, "plugins"):
        above = tomlkit.table(is_super_table=True)
        above[name] = table
        table = above
    document = tomlkit.document()
    document.add(
        tomlkit.comment(f"Managed by kata-node (instance {settings.instance}). Changes here are lost:")
    )
    document.add(tomlkit.comment("put your own into the setting containerd.userDropIn."))
    document["version"] = version
    document["plugins"] = table["plugins"]
    return document.as_string().encode()


def _pod_annotations(settings: Settings, shim: Shim) -> list[str]:
    per_shim = settings.shim_settings.get(shim.name)
    extra = (
        *settings.containerd.extra_pod_annotations,
        *(per_shim.extra_pod_annotations if per_shim else ()),
    )
    return list(dict.fromkeys((POD_ANNOTATIONS, *extra)))


def _is_imported(place: Place, files: Mapping[str, bytes]) -> bool:
    """Whether a glob finds both drop-ins there; no plain path can.

    A glob that does not end in ``.toml`` does not count: it would also find what an interrupted
    write leaves beside them, and the daemon would not start.
    """
    return any(
        pattern.endswith(".toml") and matches(pattern, place.drop_in) and matches(pattern, place.user_drop_in)
        for _, pattern in patterns(files)
    )
