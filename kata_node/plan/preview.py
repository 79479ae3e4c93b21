"""What a dry run would change, with its summary as text and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from kata_node.plan.effects import Effect, LabelEffect, PathEffect, UnitEffect
from kata_node.text import human_size, pluralize

if TYPE_CHECKING:
    from kata_node.plan.blocking_pods import BlockingPods

MAX_NAMED_PATHS = 5

VERBS = {"add": "create", "change": "change", "remove": "remove"}
RUNTIME_OPERATIONS = {
    "restart": "yes: {unit}",
    "reload": "only if {unit} does not load the change on a reload",
    "wait for": "only if {unit} does not load the change by itself",
}


class Step(Struct, frozen=True):
    """One action: its line, and what it would change."""

    line: str
    effects: tuple[Effect, ...]


class Preview(Struct, frozen=True):
    """What a stage, or several stages together, would change."""

    install_dir: str
    steps: tuple[Step, ...] = ()
    added_handlers: tuple[str, ...] = ()
    removed_handlers: tuple[str, ...] = ()
    drifted: tuple[str, ...] = ()
    """Host paths that changed on the node since kata-node wrote them, and that are replaced."""
    blocking_pods: BlockingPods | None = None
    pods_unknown: bool = False

    @property
    def effects(self) -> Iterator[Effect]:
        """All effects, in the order of the actions."""
        return (effect for step in self.steps for effect in step.effects)

    @property
    def paths(self) -> Iterator[PathEffect]:
        """The effects on files, links and directories."""
        return (effect for effect in self.effects if isinstance(effect, PathEffect))

    @property
    def bytes_to_write(self) -> int:
        """The bytes of the files to place in the install dir."""
        return size_of(self._installed(remove=False))

    def configuration(self) -> list[PathEffect]:
        """Return the files of the runtime's configuration, and all files outside of the install dir."""
        return [each for each in self.paths if each.kind != "dir" and self.is_configuration(each)]

    def is_configuration(self, effect: PathEffect) -> bool:
        """Return whether ``effect`` is one of :meth:`configuration`."""
        return effect.is_configuration or not effect.path.startswith(f"{self.install_dir}/")

    def _installed(self, *, remove: bool) -> list[PathEffect]:
        return [
            each
            for each in self.paths
            if each.kind != "dir" and not self.is_configuration(each) and (each.change == "remove") is remove
        ]

    def to_json(self, free: Space | None) -> dict[str, Any]:
        """Return the summary as a JSON object. Every key is always there."""
        placed, removed = self._installed(remove=False), self._installed(remove=True)
        runtime = self._runtime_unit
        pods = self.blocking_pods.pods if self.blocking_pods else ()
        return {
            "files": {
                "placed": len(placed),
                "placed_bytes": size_of(placed),
                "removed": len(removed),
                "removed_bytes": size_of(removed),
            },
            "drifted": list(self.drifted),
            "configuration": [{"path": each.path, "change": each.change} for each in self.configuration()],
            "restart": None if runtime is None else _unit_document(runtime),
            "units": [_unit_document(each) for each in self._units],
            "handlers": {"added": list(self.added_handlers), "removed": list(self.removed_handlers)},
            "pods": {
                "known": not self.pods_unknown,
                "blocking": [
                    {"namespace": pod.namespace, "name": pod.name, "handler": pod.handler} for pod in pods
                ],
            },
            "space": None
            if free is None
            else {"directory": free.directory, "needed": self.bytes_to_write, "free": free.free},
            "labels": self._labels,
        }

    def to_text(self, free: Space | None, *, verbose: bool) -> str:
        """Return the summary as lines with a name and what changes."""
        lines = []
        for name, values in self._rows(free, verbose=verbose).items():
            lines += [f"  {name if at == 0 else '':<14} {value}" for at, value in enumerate(values)]
        return "\n".join(lines)

    def _rows(self, free: Space | None, *, verbose: bool) -> dict[str, list[str]]:
        files = [
            f"{pluralize(len(found), 'file')} to {verb} ({human_size(size_of(found))})"
            for found, verb in (
                (self._installed(remove=False), "place"),
                (self._installed(remove=True), "remove"),
            )
            if found
        ]
        handlers = [
            f"{verb} {', '.join(names)}"
            for verb, names in (("add", self.added_handlers), ("remove", self.removed_handlers))
            if names
        ]
        needed = human_size(self.bytes_to_write)
        space = [f"{needed} to write, {human_size(free.free)} free at {free.directory}"] if free else []
        labels = self._labels.items()
        return {
            "files": [", ".join(files) or "none"],
            "drift": _drift_lines(self.drifted, verbose=verbose),
            "configuration": [f"{VERBS[each.change]} {each.path}" for each in self.configuration()]
            or ["none"],
            "restart": [self._restart_text()],
            "units": [f"{each.operation} {each.unit}" for each in self._units],
            "handlers": handlers or ["none"],
            "pods": [self._pods_text()],
            "space": space,
            "labels": [f"remove {key}" if value is None else f"{key}={value}" for key, value in labels],
        }

    def _restart_text(self) -> str:
        runtime = self._runtime_unit
        if runtime is None:
            return "no"
        text = RUNTIME_OPERATIONS[runtime.operation].format(unit=runtime.unit)
        return f"{text}, if it runs" if runtime.only_if_running else text

    def _pods_text(self) -> str:
        if self.blocking_pods is not None:
            return str(self.blocking_pods)
        return "not known: the runtime did not answer" if self.pods_unknown else "none in the way"

    @property
    def _runtime_unit(self) -> UnitEffect | None:
        found = (each for each in self.effects if isinstance(each, UnitEffect) and each.is_runtime)
        return next(found, None)

    @property
    def _units(self) -> list[UnitEffect]:
        return [each for each in self.effects if isinstance(each, UnitEffect) and not each.is_runtime]

    @property
    def _labels(self) -> dict[str, str | None]:
        """The last change of each label."""
        return {each.key: each.value for each in self.effects if isinstance(each, LabelEffect)}


class Space(Struct, frozen=True):
    """The bytes that are free on the file system of ``directory``."""

    directory: str
    free: int


def combined(previews: Sequence[Preview]) -> Preview:
    """Return the preview of a run with at least one stage."""
    return Preview(
        previews[0].install_dir,
        tuple(step for each in previews for step in each.steps),
        tuple(name for each in previews for name in each.added_handlers),
        tuple(name for each in previews for name in each.removed_handlers),
        tuple(path for each in previews for path in each.drifted),
        next((each.blocking_pods for each in previews if each.blocking_pods), None),
        any(each.pods_unknown for each in previews),
    )


def size_of(effects: Iterable[PathEffect]) -> int:
    """Return the bytes of all files together."""
    return sum(each.size for each in effects)


def _unit_document(effect: UnitEffect) -> dict[str, Any]:
    return {
        "unit": effect.unit,
        "operation": effect.operation,
        "only_if_running": effect.only_if_running,
    }


def _drift_lines(paths: Sequence[str], *, verbose: bool) -> list[str]:
    if not paths:
        return []
    shown = paths if verbose else paths[:MAX_NAMED_PATHS]
    more = len(paths) - len(shown)
    rest = [f"... {more} more; --verbose shows all"] if more else []
    return [f"{pluralize(len(paths), 'path')} changed on the node and will be repaired", *shown, *rest]
