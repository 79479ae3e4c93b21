"""What containerd's configuration should be, as bytes, and what is wrong with one. Pure.

containerd 2 merges the files its main one ``imports`` in, field by field, the later file winning. So
an instance brings drop-ins of its own and touches the main file at most to name them. On 1.x a file
that names the CRI plugin replaces all that others say of it, so there the main file has it all.

``import``   the drop-ins lie in the install dir, and the main file gets one ``imports`` entry.
``conf.d``   where the distribution reads a directory of drop-ins by itself, or a configuration on disk
             of containerd 2.2 or later imports ``/etc/containerd/conf.d/*.toml`` anyway: the drop-ins
             lie there, and the main file is left alone. ``conf.d`` is looked for beside the main file.
``main``     containerd 1.x, and distributions that render the main file from a template which is no
             TOML: one marked block of tables at the end of that file.

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
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from kata_node.errors import HostError, UnfitNodeError
from kata_node.host.go_glob import matches
from kata_node.runtime.containerd import main as containerd_main
from kata_node.runtime.containerd import read as containerd_read
from kata_node.runtime.containerd.managed_block import OurPart
from kata_node.runtime.containerd.read import in_order, patterns
from kata_node.runtime.containerd.render import render, render_block
from kata_node.runtime.model.config import (
    DROP_IN,
    USER_DROP_IN,
    ConfigFile,
    Glob,
    Place,
    Read,
    Wanted,
    named,
    own_paths,
)
from kata_node.settings.handlers import names
from kata_node.toml import edit as toml_edit
from kata_node.toml import tables as toml_tables

if TYPE_CHECKING:
    from kata_node.runtime.model.distributions import Home
    from kata_node.settings.model import Settings
    from kata_node.versions import Version

MADE_MAIN = b"""\
# Made by kata-node, as there was no configuration file. It goes with the last installation of Kata.
version = 3
"""
"""The main file of containerd 2 where there was none, before it gets its ``imports`` entry."""

Mode = Literal["import", "conf.d", "main"]


@dataclass(frozen=True)
class ContainerdConfig:
    """One instance on a containerd of ``version``, which keeps its configuration at ``home``."""

    install_dir: str
    suffix: str
    version: Version
    home: Home
    ours: tuple[str, ...] = ()
    """Handlers that this instance is known to have in a file of others, were their markers gone."""

    @property
    def main_path(self) -> str:
        """What containerd reads first."""
        return self.home.config

    def places(self) -> tuple[Place, ...]:
        """The install dir, and where drop-ins are read without being named."""
        conf_d = (posixpath.join(posixpath.dirname(self.main_path), "conf.d"),)
        directories = (posixpath.dirname(self._part.import_entry), *(self.home.drop_ins.values() or conf_d))
        return tuple(self._place(directory) for directory in dict.fromkeys(directories))

    def shared_paths(self) -> tuple[str, ...]:
        """The main file, or the templates it is rendered from."""
        return tuple(dict.fromkeys(self.home.template.values())) or (self.main_path,)

    def closure(self, read: Read, glob: Glob) -> dict[str, bytes]:
        """The main file with all it imports, and the templates."""
        root = self._root_path

        def read_filled_in(path: str) -> bytes | None:
            content = read(path)
            return self.home.filled_in(content) if content is not None and path == root else content

        imported = containerd_read.import_closure(root, read_filled_in, glob)
        files = {path: content if path != root else read(root) or b"" for path, content in imported.items()}
        shared = {path: read(path) for path in (*self.shared_paths(), self.main_path) if path not in files}
        return files | {path: content for path, content in shared.items() if content is not None}

    def wanted(self, settings: Settings, files: Mapping[str, bytes]) -> Wanted:
        """The drop-ins or the tables, in the way that this containerd reads them.

        ``files`` has at least what :meth:`closure` gives. What this instance may have left elsewhere, in
        another mode or for a setting that is off now, is among what must be gone; it need not be there.
        Raises :class:`HostError` when a file of others is broken or not safe to edit, and
        :class:`UnfitNodeError` when the settings ask for what this containerd cannot do.
        """
        own = own_paths(self)
        others = {path: content for path, content in files.items() if path not in own}
        mode, place = self._mode(self._in_order(others))
        drop_ins: list[ConfigFile] = []
        if place is not None:
            content = render(settings, self._schema(others), self.version)
            drop_ins.append(ConfigFile(place.drop_in, content))
        if settings.user_drop_in.strip():
            if place is None:
                raise self._no_drop_ins("containerd.userDropIn")
            text = settings.user_drop_in.rstrip("\n") + "\n"
            drop_ins.append(ConfigFile(place.beside[0], text.encode()))
        kept = [file.path for file in drop_ins]
        return Wanted(
            mode,
            (
                *drop_ins,
                *self._shared(settings, others, mode),
                *(ConfigFile(path, None) for path in own if path not in kept),
            ),
            names(settings),
            {place.beside[0]: "containerd.userDropIn" for place in self.places()},
        )

    def without_us(self, path: str, content: bytes) -> bytes | None:
        """A main file or template without this instance; ``None`` when nothing of others is left.

        A file that never named it comes back as it is. Raises :class:`HostError` when it is broken, or
        not safe to edit.
        """
        left = self._part.taken_out(path, content)
        return None if left in self._made() and left != content else left

    def check(
        self,
        files: Mapping[str, bytes],
        *,
        own_paths: Collection[str],
        handlers: Collection[str],
        labels: Mapping[str, str],
        exists: Callable[[str], bool],
    ) -> list[str]:
        """As of :class:`~kata_node.runtime.model.config.CriConfig`."""
        effective = self._in_order(files)
        if self._root_path in effective:
            effective[self._root_path] = self.home.filled_in(effective[self._root_path])
        if self.version.major < 2:
            return containerd_main.check_main(
                self._root_path,
                effective,
                instance=self._part.name,
                handlers=handlers,
                exists=exists,
                version=self.version,
            )
        root = effective.get(self._root_path)
        problems: list[str] = []
        if root is not None and toml_tables.has(root, self._part.name):
            # Our own tables there are no clash, but they must fit what is around them.
            try:
                toml_edit.load(root, self._root_path)
                effective[self._root_path] = toml_tables.remove(root, self._part.name, where=self._root_path)
            except HostError as error:
                problems.append(f"{self._root_path}: {error.what}")
        return problems + containerd_read.check(
            self._root_path,
            effective,
            own_paths=own_paths,
            handlers=handlers,
            labels=labels,
            exists=exists,
            version=self.version,
        )

    def reloads(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bool:
        """Whoever restarts it in the end, it reads everything anew."""
        return True

    def defined(self, files: Mapping[str, bytes]) -> frozenset[str]:
        """As of :class:`~kata_node.runtime.model.config.CriConfig`."""
        return containerd_read.defined_handlers(self._root_path, self._in_order(files))

    @property
    def _part(self) -> OurPart:
        """What is ours in the files of others."""
        keeps_runc = self.version.major < 2
        return OurPart(
            self.install_dir, self.suffix, self.ours, is_toml=not self._renders, keeps_runc=keeps_runc
        )

    @property
    def _renders(self) -> bool:
        """Whether the main file is rendered from a template that cannot be read as one."""
        return bool(self.home.template) and not self.home.template_is_toml

    @property
    def _root_path(self) -> str:
        """The file whose content tells what containerd reads."""
        return self.main_path if not self.home.template or self._renders else self._edited({})

    def _edited(self, files: Mapping[str, bytes]) -> str:
        """The file to edit, given those that are there."""
        if not self.home.template:
            return self.main_path
        return self.home.template_in_use(self._newest_schema, files.__contains__)[1]

    @property
    def _newest_schema(self) -> int:
        return 2 if self.version.major < 2 else containerd_read.SCHEMA_IF_NONE

    def _place(self, directory: str) -> Place:
        user = named(f"{directory}/{USER_DROP_IN}", self.suffix, ".toml")
        return Place(named(f"{directory}/{DROP_IN}", self.suffix, ".toml"), (user,))

    def _schema(self, files: Mapping[str, bytes]) -> int:
        """The schema to write for."""
        read = self._in_order(files)
        if self._renders and self.main_path not in read:
            return self.home.template_in_use(self._newest_schema, files.__contains__)[0]
        if self.version.major < 2:
            return containerd_main.schema_of(toml_edit.load(content, path) for path, content in read.items())
        return containerd_read.schema(read)

    def _mode(self, read: Mapping[str, bytes]) -> tuple[Mode, Place | None]:
        at_home, *others = self.places()
        if self.version.major < 2:
            return "main", None
        if self.version.at_least(2, 2) or self.home.drop_ins:
            for place in others:
                if _is_imported(place, read):
                    return "conf.d", place
        return ("main", None) if self._renders else ("import", at_home)

    def _shared(self, settings: Settings, files: Mapping[str, bytes], mode: Mode) -> Iterator[ConfigFile]:
        """The files of others that this instance has anything to say of."""
        edited = self._edited(files) if mode != "conf.d" else ""
        for path in self.shared_paths():
            there = files.get(path)
            without = None if there is None else self.without_us(path, there)
            if path == edited:
                yield ConfigFile(path, self._with_us(settings, path, files, mode), without)
            elif without != there:
                yield ConfigFile(path, without, without)

    def _with_us(self, settings: Settings, path: str, files: Mapping[str, bytes], mode: Mode) -> bytes:
        start = files[path] if path in files else self._start()
        if self._part.is_of_others(path, start):
            raise UnfitNodeError(
                f"the tables of {self._part.name} in it are of an installation elsewhere",
                where=path,
                hint="revert that one first, with the env.installationPrefix it was made with",
            )
        if mode == "import":
            left = self._part.taken_out(path, start, but=self._part.import_entry)
            return toml_edit.add(left, "imports", self._part.import_entry, after="version", where=path)
        left = self._part.without_strays(path, start)
        files = {**files, path: left}
        main, name = self._root_path, self._part.name
        others = toml_tables.remove(files.get(main, b""), name, where=main, template=self._renders)
        block = render_block(
            settings,
            self._schema(files),
            self.version,
            toml_edit.load(others, main),
            where=main,
            # What is rendered from a template of the distribution has it.
            with_runc=self.version.major < 2 and not self._renders,
            had_runc=containerd_main.has_runc(toml_tables.block_of(start, name, where=path)),
        )
        return toml_tables.add(left, block, name, where=path, template=self._renders)

    def _start(self) -> bytes:
        """What a shared file begins with that is not there."""
        if self.home.template:
            if not self.home.template_start:
                raise UnfitNodeError(
                    f"{self.home.distribution} has no template of its configuration here",
                    where=self._edited({}),
                    hint="see whether the distribution is installed, and where it keeps its configuration",
                )
            return self.home.template_start.encode()
        return containerd_main.MADE_MAIN if self.version.major < 2 else MADE_MAIN

    def _made(self) -> tuple[bytes, ...]:
        """What a shared file of our own making holds without us, whatever the version then."""
        return (MADE_MAIN, containerd_main.MADE_MAIN, self.home.template_start.encode() or MADE_MAIN)

    def _in_order(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """What containerd reads of ``files`` once the templates are rendered, in its order."""
        return in_order(self._root_path, self._rendered(files))

    def _rendered(self, files: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """The files with our tables in the main one as the template has them now."""
        if not self._renders:
            return files
        rendered = files.get(self.main_path)
        block = next(
            (
                block
                for path in self.shared_paths()
                if path in files and (block := toml_tables.block_of(files[path], self._part.name, where=path))
            ),
            b"",
        )
        if rendered is None and not block:
            return files
        left = toml_tables.remove(rendered or b"", self._part.name, where=self.main_path, template=True)
        return {
            **files,
            self.main_path: toml_tables.add(left, block, self._part.name, where=self.main_path, template=True)
            if block
            else left,
        }

    def _no_drop_ins(self, key: str) -> UnfitNodeError:
        why = (
            f"containerd {self.version} reads no drop-ins without losing settings of others"
            if self.version.major < 2
            else f"this {self.home.distribution} reads no drop-ins"
        )
        return UnfitNodeError(
            f"{key} cannot be honoured here: {why}",
            where=self._edited({}),
            hint=f"take out {key} for this node, and put its content into that file yourself",
        )


def config_path(argv: Sequence[str], default: str, working_directory: str = "/") -> str:
    """The main file of a containerd started as ``argv``, the program first, as ExecStart has it."""
    path = default
    arguments = iter(argv[1:])
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag.startswith("-") and flag.lstrip("-") in _FLAGS_WITH_VALUE:
            value = value if equals else next(arguments, "")
            path = value if flag.lstrip("-") in ("config", "c") else path
    return posixpath.normpath(posixpath.join(working_directory, path))


_FLAGS_WITH_VALUE = ("config", "c", "log-level", "l", "address", "a", "root", "state")


def _is_imported(place: Place, files: Mapping[str, bytes]) -> bool:
    """Whether a glob finds both drop-ins there; no plain path can.

    A glob that does not end in ``.toml`` does not count: it would also find what an interrupted
    write leaves beside them, and the daemon would not start.
    """
    return any(
        pattern.endswith(".toml") and all(matches(pattern, path) for path in place.paths)
        for _, pattern in patterns(files)
    )
