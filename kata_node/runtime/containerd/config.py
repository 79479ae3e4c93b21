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

from kata_node.errors import HostError, IneligibleNodeError
from kata_node.host.go_glob import matches
from kata_node.runtime.containerd import main as containerd_main
from kata_node.runtime.containerd import read as containerd_read
from kata_node.runtime.containerd.managed_block import ContainerdEntry
from kata_node.runtime.containerd.read import in_read_order, resolved_imports
from kata_node.runtime.containerd.render import render, render_block
from kata_node.runtime.model.config import (
    DROP_IN_NAME,
    USER_DROP_IN_NAME,
    DesiredConfig,
    DropInLocation,
    FileChange,
    Glob,
    ReadFile,
    own_paths,
    suffixed_name,
)
from kata_node.settings.handlers import handler_names
from kata_node.toml import edit as toml_edit
from kata_node.toml import tables as toml_tables

if TYPE_CHECKING:
    from kata_node.runtime.model.distributions import DistributionRuntime
    from kata_node.settings.model import Settings
    from kata_node.versions import Version

INITIAL_MAIN_FILE = b"""\
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
    distribution_runtime: DistributionRuntime
    recorded_handlers: tuple[str, ...] = ()
    """Handlers that this instance is known to have in a file of others, were their markers gone."""

    @property
    def main_path(self) -> str:
        """What containerd reads first."""
        return self.distribution_runtime.config

    def drop_in_locations(self) -> tuple[DropInLocation, ...]:
        """The install dir, and where drop-ins are read without being named."""
        conf_d = (posixpath.join(posixpath.dirname(self.main_path), "conf.d"),)
        directories = (
            posixpath.dirname(self._entry.import_entry),
            *(self.distribution_runtime.drop_in_dirs.values() or conf_d),
        )
        return tuple(self._drop_in_location(directory) for directory in dict.fromkeys(directories))

    def shared_paths(self) -> tuple[str, ...]:
        """The main file, or the templates it is rendered from."""
        return tuple(dict.fromkeys(self.distribution_runtime.template.values())) or (self.main_path,)

    def read_files(self, read: ReadFile, glob: Glob) -> dict[str, bytes]:
        """The main file with all it imports, and the templates."""
        root = self._effective_main_path

        def read_with_variables(path: str) -> bytes | None:
            content = read(path)
            return (
                self.distribution_runtime.with_variables(content)
                if content is not None and path == root
                else content
            )

        imported = containerd_read.import_closure(root, read_with_variables, glob)
        files = {path: content if path != root else read(root) or b"" for path, content in imported.items()}
        shared = {path: read(path) for path in (*self.shared_paths(), self.main_path) if path not in files}
        return files | {path: content for path, content in shared.items() if content is not None}

    def desired_config(self, settings: Settings, files: Mapping[str, bytes]) -> DesiredConfig:
        """The drop-ins or the tables, in the way that this containerd reads them.

        ``files`` has at least what :meth:`closure` gives. What this instance may have left elsewhere, in
        another mode or for a setting that is off now, is among what must be gone; it need not be there.
        Raises :class:`HostError` when a file of others is broken or not safe to edit, and
        :class:`UnfitNodeError` when the settings ask for what this containerd cannot do.
        """
        own = own_paths(self)
        others = {path: content for path, content in files.items() if path not in own}
        mode, location = self._select_mode(self._in_read_order(others))
        drop_ins: list[FileChange] = []
        if location is not None:
            content = render(settings, self._schema(others), self.version)
            drop_ins.append(FileChange(location.drop_in, content))
        if settings.user_drop_in.strip():
            if location is None:
                raise self._drop_ins_unsupported("containerd.userDropIn")
            text = settings.user_drop_in.rstrip("\n") + "\n"
            drop_ins.append(FileChange(location.extra_drop_ins[0], text.encode()))
        kept = [file.path for file in drop_ins]
        return DesiredConfig(
            mode,
            (
                *drop_ins,
                *self._shared_changes(settings, others, mode),
                *(FileChange(path, None) for path in own if path not in kept),
            ),
            handler_names(settings),
            {location.extra_drop_ins[0]: "containerd.userDropIn" for location in self.drop_in_locations()},
        )

    def without_entry(self, path: str, content: bytes) -> bytes | None:
        """A main file or template without this instance; ``None`` when nothing of others is left.

        A file that never named it comes back as it is. Raises :class:`HostError` when it is broken, or
        not safe to edit.
        """
        remaining = self._entry.remove_from(path, content)
        return None if remaining in self._known_initial_contents() and remaining != content else remaining

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
        effective = self._in_read_order(files)
        if self._effective_main_path in effective:
            effective[self._effective_main_path] = self.distribution_runtime.with_variables(
                effective[self._effective_main_path]
            )
        if self.version.major < 2:
            return containerd_main.check_main(
                self._effective_main_path,
                effective,
                instance=self._entry.name,
                handlers=handlers,
                exists=exists,
                version=self.version,
            )
        root = effective.get(self._effective_main_path)
        problems: list[str] = []
        if root is not None and toml_tables.has_marker(root, self._entry.name):
            # Our own tables there are no clash, but they must fit what is around them.
            try:
                toml_edit.load(root, self._effective_main_path)
                effective[self._effective_main_path] = toml_tables.remove(
                    root, self._entry.name, where=self._effective_main_path
                )
            except HostError as error:
                problems.append(f"{self._effective_main_path}: {error.what}")
        return problems + containerd_read.check(
            self._effective_main_path,
            effective,
            own_paths=own_paths,
            handlers=handlers,
            labels=labels,
            exists=exists,
            version=self.version,
        )

    def loads_without_restart(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bool:
        """Whoever restarts it in the end, it reads everything anew."""
        return True

    def defined_handlers(self, files: Mapping[str, bytes]) -> frozenset[str]:
        """As of :class:`~kata_node.runtime.model.config.CriConfig`."""
        return containerd_read.defined_handlers(self._effective_main_path, self._in_read_order(files))

    @property
    def _entry(self) -> ContainerdEntry:
        """What is ours in the files of others."""
        keeps_runc = self.version.major < 2
        return ContainerdEntry(
            self.install_dir,
            self.suffix,
            self.recorded_handlers,
            is_toml=not self._has_go_template,
            keeps_runc=keeps_runc,
        )

    @property
    def _has_go_template(self) -> bool:
        """Whether the main file is rendered from a template that cannot be read as one."""
        return bool(self.distribution_runtime.template) and not self.distribution_runtime.template_is_toml

    @property
    def _effective_main_path(self) -> str:
        """The file whose content tells what containerd reads."""
        return (
            self.main_path
            if not self.distribution_runtime.template or self._has_go_template
            else self._path_to_edit({})
        )

    def _path_to_edit(self, files: Mapping[str, bytes]) -> str:
        """The file to edit, given those that are there."""
        if not self.distribution_runtime.template:
            return self.main_path
        return self.distribution_runtime.template_in_use(self._newest_schema, files.__contains__)[1]

    @property
    def _newest_schema(self) -> int:
        return 2 if self.version.major < 2 else containerd_read.DEFAULT_SCHEMA

    def _drop_in_location(self, directory: str) -> DropInLocation:
        user = suffixed_name(f"{directory}/{USER_DROP_IN_NAME}", self.suffix, ".toml")
        return DropInLocation(suffixed_name(f"{directory}/{DROP_IN_NAME}", self.suffix, ".toml"), (user,))

    def _schema(self, files: Mapping[str, bytes]) -> int:
        """The schema to write for."""
        read = self._in_read_order(files)
        if self._has_go_template and self.main_path not in read:
            return self.distribution_runtime.template_in_use(self._newest_schema, files.__contains__)[0]
        if self.version.major < 2:
            return containerd_main.schema_of(toml_edit.load(content, path) for path, content in read.items())
        return containerd_read.schema(read)

    def _select_mode(self, read: Mapping[str, bytes]) -> tuple[Mode, DropInLocation | None]:
        install_dir_location, *others = self.drop_in_locations()
        if self.version.major < 2:
            return "main", None
        if self.version.at_least(2, 2) or self.distribution_runtime.drop_in_dirs:
            for location in others:
                if _is_imported(location, read):
                    return "conf.d", location
        return ("main", None) if self._has_go_template else ("import", install_dir_location)

    def _shared_changes(
        self, settings: Settings, files: Mapping[str, bytes], mode: Mode
    ) -> Iterator[FileChange]:
        """The files of others that this instance has anything to say of."""
        edited = self._path_to_edit(files) if mode != "conf.d" else ""
        for path in self.shared_paths():
            current = files.get(path)
            content_without_entry = None if current is None else self.without_entry(path, current)
            if path == edited:
                yield FileChange(path, self._with_entry(settings, path, files, mode), content_without_entry)
            elif content_without_entry != current:
                yield FileChange(path, content_without_entry, content_without_entry)

    def _with_entry(self, settings: Settings, path: str, files: Mapping[str, bytes], mode: Mode) -> bytes:
        original = files[path] if path in files else self._initial_content()
        if self._entry.is_foreign(path, original):
            raise IneligibleNodeError(
                f"the tables of {self._entry.name} in it are of an installation elsewhere",
                where=path,
                hint="revert that one first, with the env.installationPrefix it was made with",
            )
        if mode == "import":
            remaining = self._entry.remove_from(path, original, kept_import=self._entry.import_entry)
            return toml_edit.add(remaining, "imports", self._entry.import_entry, after="version", where=path)
        remaining = self._entry.remove_incomplete(path, original)
        files = {**files, path: remaining}
        main, name = self._effective_main_path, self._entry.name
        others = toml_tables.remove(files.get(main, b""), name, where=main, template=self._has_go_template)
        block = render_block(
            settings,
            self._schema(files),
            self.version,
            toml_edit.load(others, main),
            where=main,
            # What is rendered from a template of the distribution has it.
            with_runc=self.version.major < 2 and not self._has_go_template,
            had_runc=containerd_main.has_runc(toml_tables.block_content(original, name, where=path)),
        )
        return toml_tables.add(remaining, block, name, where=path, template=self._has_go_template)

    def _initial_content(self) -> bytes:
        """What a shared file begins with that is not there."""
        if self.distribution_runtime.template:
            if not self.distribution_runtime.initial_template:
                raise IneligibleNodeError(
                    f"{self.distribution_runtime.distribution} has no template of its configuration here",
                    where=self._path_to_edit({}),
                    hint="see whether the distribution is installed, and where it keeps its configuration",
                )
            return self.distribution_runtime.initial_template.encode()
        return containerd_main.INITIAL_MAIN_FILE if self.version.major < 2 else INITIAL_MAIN_FILE

    def _known_initial_contents(self) -> tuple[bytes, ...]:
        """What a shared file of our own making holds without us, whatever the version then."""
        return (
            INITIAL_MAIN_FILE,
            containerd_main.INITIAL_MAIN_FILE,
            self.distribution_runtime.initial_template.encode() or INITIAL_MAIN_FILE,
        )

    def _in_read_order(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """What containerd reads of ``files`` once the templates are rendered, in its order."""
        return in_read_order(self._effective_main_path, self._simulate_rendering(files))

    def _simulate_rendering(self, files: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """The files with our tables in the main one as the template has them now."""
        if not self._has_go_template:
            return files
        rendered = files.get(self.main_path)
        block = next(
            (
                block
                for path in self.shared_paths()
                if path in files
                and (block := toml_tables.block_content(files[path], self._entry.name, where=path))
            ),
            b"",
        )
        if rendered is None and not block:
            return files
        remaining = toml_tables.remove(rendered or b"", self._entry.name, where=self.main_path, template=True)
        return {
            **files,
            self.main_path: toml_tables.add(
                remaining, block, self._entry.name, where=self.main_path, template=True
            )
            if block
            else remaining,
        }

    def _drop_ins_unsupported(self, key: str) -> IneligibleNodeError:
        why = (
            f"containerd {self.version} reads no drop-ins without losing settings of others"
            if self.version.major < 2
            else f"this {self.distribution_runtime.distribution} reads no drop-ins"
        )
        return IneligibleNodeError(
            f"{key} cannot be honoured here: {why}",
            where=self._path_to_edit({}),
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


def _is_imported(location: DropInLocation, files: Mapping[str, bytes]) -> bool:
    """Whether a glob finds both drop-ins there; no plain path can.

    A glob that does not end in ``.toml`` does not count: it would also find what an interrupted
    write leaves beside them, and the daemon would not start.
    """
    return any(
        pattern.endswith(".toml") and all(matches(pattern, path) for path in location.paths)
        for _, pattern in resolved_imports(files)
    )
