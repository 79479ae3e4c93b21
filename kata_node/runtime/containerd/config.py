"""The configuration of containerd for one installation: render it and find its problems. Pure.

containerd 2 merges imported files into the main file, field by field; the later file wins. So an installation
has its own drop-ins, and edits the main file only to import them. In containerd 1.x a file with a table of
the CRI plugin replaces that table of all earlier files. So there the main file has all our tables. The modes:

``import``   The drop-ins are in the install dir. The main file gets one entry in ``imports``.
``conf.d``   The drop-ins are in a directory that is read anyway, and the main file is not edited: the drop-in
             directory of the distribution, or for containerd 2.2 and later ``conf.d`` beside the main file,
             if a file on disk imports ``conf.d/*.toml``.
``main``     containerd 1.x, and distributions with a Go template: a managed block at the end of the main file
             or the template.

Measured on containerd 2.1.9 (2.0 and 2.2 have the same code) and 2.3.4:

- A glob may match nothing, even below a missing directory. containerd does not start with a plain path that
  does not exist, nor with a dangling symlink that a glob matches. So our import is a glob: containerd starts
  even after the install dir was deleted by hand.
- Only ``*`` makes a glob; ``?`` or ``[`` alone does not. Hidden files match too. A relative import starts at
  the directory of its file, by the path under which that file was read.
- A file that several imports match, or that imports itself, is read once.
- containerd does not start with a byte order mark. Top-level keys match in any case.
- A main file with ``version = 3`` and our import serves exactly what a node without main file serves.
- Up to 2.2, all files are merged and then migrated together by the last ``version`` in any of them. If the
  CRI tables of two schemas both have runtimes, one of the tables is dropped silently. From 2.3 on each file
  is migrated separately, and containerd does not start with a ``version`` above the first one it reads. So
  our drop-ins have the schema of the first ``version``, or 3 if that is 4, which all releases read.
- Beside a main file without ``version``, all releases serve a drop-in of version 3. A drop-in of version 2
  would activate CRI tables that 2.1 ignored. Beside ``version = 1`` only 1 is allowed, and all releases serve
  the table of schema 3.
- containerd serves a handler of any type ``io.containerd.<name>.v2``. It runs the program of ``runtime_path``
  and passes it ``options`` (source: containerd's code).
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from msgspec import Struct

from kata_node.errors import HostError, IneligibleNodeError
from kata_node.runtime.containerd import main as containerd_main
from kata_node.runtime.containerd import own_tables
from kata_node.runtime.containerd import read as containerd_read
from kata_node.runtime.containerd.copies import merged_copies, replacing_copies
from kata_node.runtime.containerd.initial_content import initial_content, known_initial_contents
from kata_node.runtime.containerd.managed_block import ContainerdEntry
from kata_node.runtime.containerd.read import in_read_order
from kata_node.runtime.containerd.render import render, render_block, runtimes
from kata_node.runtime.containerd.template import with_rendered_tables
from kata_node.runtime.model.config import (
    DROP_IN_NAME,
    USER_DROP_IN_NAME,
    DesiredConfig,
    DropInLocation,
    FileChange,
    Glob,
    HandlerCopy,
    ReadFile,
    StartProblem,
    files_after,
    own_paths,
    suffixed_name,
    without_outdated,
)
from kata_node.settings.handlers import handler_names
from kata_node.toml import edit as toml_edit
from kata_node.toml import tables as toml_tables

if TYPE_CHECKING:
    from kata_node.runtime.model.distributions import DistributionRuntime
    from kata_node.settings.model import Settings
    from kata_node.versions import Version

Mode = Literal["import", "conf.d", "main"]


class ContainerdConfig(Struct, frozen=True):
    """One installation on a containerd of ``version`` that runs as ``distribution_runtime``."""

    install_dir: str
    suffix: str
    version: Version
    distribution_runtime: DistributionRuntime
    recorded_handlers: tuple[str, ...] = ()
    """The handlers of this installation that the receipt records."""
    dangling_imports: frozenset[str] = frozenset()
    """See :func:`kata_node.runtime.containerd.managed_block.dangling_imports`."""

    @property
    def main_path(self) -> str:
        """The file that containerd reads first."""
        return self.distribution_runtime.config

    def drop_in_locations(self) -> tuple[DropInLocation, ...]:
        """Return the install dir, and the directories whose drop-ins are read without our import."""
        conf_d = (posixpath.join(posixpath.dirname(self.main_path), "conf.d"),)
        directories = (
            posixpath.dirname(self._entry.import_entry),
            *(self.distribution_runtime.drop_in_dirs.values() or conf_d),
        )
        return tuple(self._drop_in_location(directory) for directory in dict.fromkeys(directories))

    def shared_paths(self) -> tuple[str, ...]:
        """Return the main file, or the templates that it is rendered from."""
        return tuple(dict.fromkeys(self.distribution_runtime.template.values())) or (self.main_path,)

    def read_files(self, read: ReadFile, glob: Glob) -> dict[str, bytes]:
        """Return the main file and its imports in the order of reading, then what may be read later."""
        root = self._effective_main_path

        def read_with_variables(path: str) -> bytes | None:
            content = read(path)
            return self.distribution_runtime.with_variables(content) if content and path == root else content

        imported = containerd_read.import_closure(root, read_with_variables, glob)
        files = {path: content if path != root else read(root) or b"" for path, content in imported.items()}
        # Our import makes containerd read every file beside our drop-in.
        is_import = self._select_mode(in_read_order(root, imported))[0] == "import"
        beside = glob(self._entry.import_entry) if is_import else ()
        more = (path for path in (*self.shared_paths(), self.main_path, *beside) if path not in files)
        found = {path: read(path) for path in more}
        return files | {path: content for path, content in found.items() if content is not None}

    def desired_config(self, settings: Settings, files: Mapping[str, bytes]) -> DesiredConfig:
        """Return the drop-ins or tables in the form that this containerd reads.

        ``files`` must include the result of :meth:`read_files`. The changes also remove drop-ins that this
        installation may have at other places, whether they exist or not. Raises :class:`HostError` when a
        shared file is broken or not safe to edit, and :class:`IneligibleNodeError` when this containerd
        cannot do what the settings ask for.
        """
        own = own_paths(self)
        foreign_files = {path: content for path, content in files.items() if path not in own}
        mode, location = self._select_mode(self._in_read_order(foreign_files))
        drop_ins: list[FileChange] = []
        if location is not None:
            content = render(settings, self._schema(foreign_files), self.version)
            drop_ins.append(FileChange(location.drop_in, content))
        if settings.user_drop_in.strip():
            if location is None:
                raise self._drop_ins_unsupported("containerd.userDropIn")
            text = settings.user_drop_in.rstrip("\n") + "\n"
            drop_ins.append(FileChange(location.extra_drop_ins[0], text.encode()))
        changes = (
            *drop_ins,
            *self._shared_changes(settings, foreign_files, mode),
            *(FileChange(path, None) for path in own if path not in [file.path for file in drop_ins]),
        )
        copies = self._copies(settings, files, changes, mode)
        return DesiredConfig(
            mode,
            # Without an outdated copy the runtime serves what our files say, before and after the next write.
            (*without_outdated(copies, files, self.without_own_handlers), *changes),
            handler_names(settings),
            {location.extra_drop_ins[0]: "containerd.userDropIn" for location in self.drop_in_locations()},
            copies,
        )

    def without_entry(self, path: str, content: bytes) -> bytes | None:
        """Return a main file or template without our entry; ``None`` when kata-node made it and it is empty.

        A file without our entry is returned unchanged. Raises :class:`HostError` when it is broken or not
        safe to edit.
        """
        remaining = self._entry.remove_from(path, content)
        return (
            None
            if remaining in known_initial_contents(self.distribution_runtime) and remaining != content
            else remaining
        )

    def own_handlers(self, path: str, content: bytes) -> frozenset[str]:
        """See :meth:`kata_node.runtime.model.config.CriConfig.own_handlers`; a rendered file has none."""
        if self._is_rendered(path):
            return frozenset()
        return own_tables.handlers(content, self.install_dir, path, template=self._is_go_template(path))

    def without_own_handlers(self, path: str, content: bytes) -> bytes:
        """See :meth:`kata_node.runtime.model.config.CriConfig.without_own_handlers`."""
        return own_tables.without(content, self.install_dir, path, template=self._is_go_template(path))

    def without_default_handler(self, path: str, content: bytes, names: Collection[str]) -> bytes:
        """See :meth:`kata_node.runtime.model.config.CriConfig.without_default_handler`."""
        if self._is_rendered(path):
            return content
        return own_tables.without_default(content, names, path, template=self._is_go_template(path))

    def check(
        self,
        files: Mapping[str, bytes],
        *,
        own_paths: Collection[str],
        handlers: Collection[str],
        labels: Mapping[str, str],
        exists: Callable[[str], bool],
    ) -> list[str]:
        """See :meth:`kata_node.runtime.model.config.CriConfig.check`."""
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
                install_dir=self.install_dir,
            )
        root = effective.get(self._effective_main_path)
        problems: list[str] = []
        if root is not None and toml_tables.has_marker(root, self._entry.name):
            # Our own tables are no conflict, but together with the other tables they must be valid TOML.
            try:
                toml_edit.load(root, self._effective_main_path)
                effective[self._effective_main_path] = toml_tables.remove(
                    root, self._entry.name, where=self._effective_main_path
                )
            except HostError as error:
                problems.append(StartProblem(f"{self._effective_main_path}: {error.what}"))
        return problems + containerd_read.check(
            self._effective_main_path,
            effective,
            own_paths=own_paths,
            handlers=handlers,
            labels=labels,
            exists=exists,
            version=self.version,
            install_dir=self.install_dir,
        )

    def default_handler(self, files: Mapping[str, bytes]) -> str:
        """See :meth:`kata_node.runtime.model.config.CriConfig.default_handler`."""
        return containerd_read.default_handler(self._in_read_order(files))

    def loads_without_restart(self, before: Mapping[str, bytes], after: Mapping[str, bytes]) -> bool:
        """Return true: however containerd is restarted, it reads all files."""
        return True

    def defined_handlers(self, files: Mapping[str, bytes]) -> frozenset[str]:
        """See :meth:`kata_node.runtime.model.config.CriConfig.defined_handlers`."""
        return containerd_read.defined_handlers(self._effective_main_path, self._in_read_order(files))

    @property
    def _entry(self) -> ContainerdEntry:
        """Our entry in the shared files."""
        keeps_runc = self.version.major < 2
        return ContainerdEntry(
            self.install_dir,
            self.suffix,
            is_toml=not self._has_go_template,
            keeps_runc=keeps_runc,
            dangling_imports=self.dangling_imports,
        )

    @property
    def _has_go_template(self) -> bool:
        """Whether the main file is rendered from a Go template, which cannot be parsed as TOML."""
        return bool(self.distribution_runtime.template) and not self.distribution_runtime.template_is_toml

    def _is_rendered(self, path: str) -> bool:
        return path == self.main_path and path not in self.shared_paths()

    def _is_go_template(self, path: str) -> bool:
        return self._has_go_template and path in self.shared_paths()

    @property
    def _effective_main_path(self) -> str:
        """The file to parse for what containerd reads: the main file, or the TOML template in use."""
        return (
            self.main_path
            if not self.distribution_runtime.template or self._has_go_template
            else self._path_to_edit({})
        )

    def _path_to_edit(self, files: Mapping[str, bytes]) -> str:
        """Return the shared file to edit, given the existing ``files``."""
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
        """Return the schema that our drop-in or block must have."""
        read = self._in_read_order(files)
        if self._has_go_template and self.main_path not in read:
            return self.distribution_runtime.template_in_use(self._newest_schema, files.__contains__)[0]
        if self.version.major < 2:
            return containerd_main.schema_of(toml_edit.load(content, path) for path, content in read.items())
        return containerd_read.schema(read)

    def _select_mode(self, read: Mapping[str, bytes]) -> tuple[Mode, DropInLocation | None]:
        install_dir_location, *other_locations = self.drop_in_locations()
        if self.version.major < 2:
            return "main", None
        if self.version.at_least(2, 2) or self.distribution_runtime.drop_in_dirs:
            for location in other_locations:
                if containerd_read.is_imported(location.paths, read):
                    return "conf.d", location
        return ("main", None) if self._has_go_template else ("import", install_dir_location)

    def _shared_changes(
        self, settings: Settings, files: Mapping[str, bytes], mode: Mode
    ) -> Iterator[FileChange]:
        """Yield the change of each shared file that gets or loses our entry."""
        edited = self._path_to_edit(files) if mode != "conf.d" else ""
        for path in self.shared_paths():
            current = files.get(path)
            content_without_entry = None if current is None else self.without_entry(path, current)
            if path == edited:
                yield FileChange(path, self._with_entry(settings, path, files, mode), content_without_entry)
            elif content_without_entry != current:
                yield FileChange(path, content_without_entry, content_without_entry)

    def _copies(
        self, settings: Settings, files: Mapping[str, bytes], changes: Collection[FileChange], mode: Mode
    ) -> tuple[HandlerCopy, ...]:
        """Return the copies of our handlers that containerd reads after ``changes``."""
        read = self._in_read_order(files_after(files, changes))
        own = own_paths(self)
        if self.version.major < 2:
            return replacing_copies(read, runtimes(settings), self.install_dir) if read else ()
        if mode == "main":
            own = (*own, self._effective_main_path)
        return merged_copies(
            read,
            own,
            {path: files[path] for path in own if path in files},
            handler_names(settings),
            set(self.recorded_handlers).difference(handler_names(settings)),
            self.install_dir,
            hidden_by_schema_3=containerd_read.schema(read) == 2 and not self.version.at_least(2, 3),
        )

    def _with_entry(self, settings: Settings, path: str, files: Mapping[str, bytes], mode: Mode) -> bytes:
        original = (
            files[path]
            if path in files
            else initial_content(self.distribution_runtime, self.version, self._path_to_edit({}))
        )
        if self._entry.is_foreign(path, original):
            raise IneligibleNodeError(
                f"the managed block {self._entry.name} in this file belongs to an installation in another "
                "install dir",
                where=path,
                hint="run `kata-node revert` for that installation first, with its env.installationPrefix",
            )
        if mode == "import":
            remaining = self._entry.remove_from(path, original, kept_import=self._entry.import_entry)
            return toml_edit.add(remaining, "imports", self._entry.import_entry, after="version", where=path)
        remaining = self._entry.remove_incomplete(path, original)
        files = {**files, path: remaining}
        main, name = self._effective_main_path, self._entry.name
        without_block = toml_tables.remove(
            files.get(main, b""), name, where=main, template=self._has_go_template
        )
        if self._has_go_template:  # the file is rendered anew, without the tables that the template loses
            without_block = own_tables.without(without_block, self.install_dir, main)
        block = render_block(
            settings,
            self._schema(files),
            self.version,
            toml_edit.load(without_block, main),
            where=main,
            # A file that is rendered from a Go template has runc.
            with_runc=self.version.major < 2 and not self._has_go_template,
            had_runc=containerd_main.has_runc(toml_tables.block_content(original, name, where=path)),
        )
        return toml_tables.add(remaining, block, name, where=path, template=self._has_go_template)

    def _in_read_order(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """Return those of ``files`` that containerd reads after the templates are rendered, in its order."""
        if self._has_go_template:
            files = with_rendered_tables(files, self._entry, self.main_path, self.shared_paths())
        return in_read_order(self._effective_main_path, files)

    def _drop_ins_unsupported(self, key: str) -> IneligibleNodeError:
        why = (
            f"in containerd {self.version} a drop-in would replace settings of the main file"
            if self.version.major < 2
            else f"this release of {self.distribution_runtime.distribution} reads no drop-ins"
        )
        return IneligibleNodeError(
            f"{key} cannot work on this node: {why}",
            where=self._path_to_edit({}),
            hint=f"remove {key} for this node, and add its content to this file by hand",
        )
