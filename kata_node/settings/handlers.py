"""The handlers one instance brings to the CRI runtime: what each is called, and what it stands for. Pure.

Every enabled shim has one, named after it; with ``debug`` a second one that logs more; and every custom
runtime has one, named by its RuntimeClass. Each has a Kata configuration directory to itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kata_node.settings.model import Settings
    from kata_node.settings.shims import Shim


@dataclass(frozen=True)
class Handler:
    """One handler. Paths are relative to the install dir."""

    name: str
    """What the CRI serves and a RuntimeClass names: ``kata-qemu``, ``kata-qemu-debug-<suffix>``."""
    shim: Shim
    """What runs it, and whose configuration it starts from."""
    own_dir: str
    """The directory of its Kata configuration, which no other handler reads."""
    key: str
    """Where the settings speak of it: ``shims.qemu``, ``customRuntimes.runtimes.mine``."""
    debug: bool = False
    drop_in: str = ""
    """Kata configuration of the user's own, as TOML text; it has the last word."""
    snapshotter: str = ""
    """containerd's snapshotter for its images; empty for the default one."""
    guest_pull: bool = False
    """Whether CRI-O leaves the pulling of images to the guest."""
    pod_annotations: tuple[str, ...] = ()
    """The annotations of a pod that containerd hands to the shim, as globs."""

    @property
    def own_config(self) -> str:
        """The configuration the handler points at. Kata reads ``config.d`` beside it."""
        return f"{self.own_dir}/configuration-{self.shim.name}.toml"

    @property
    def drop_in_dir(self) -> str:
        """The drop-ins Kata merges over its configuration, in lexical order."""
        return f"{self.own_dir}/config.d"


POD_ANNOTATIONS = "io.katacontainers.*"
"""The annotations of a pod that reach the shim; Kata's own configuration decides which it heeds."""


def handlers(settings: Settings) -> tuple[Handler, ...]:
    """Every handler of the instance, shims first, in the table's order."""
    return (*_shim_handlers(settings), *_custom_handlers(settings))


def handler_names(settings: Settings) -> tuple[str, ...]:
    """What they are called."""
    return tuple(handler.name for handler in handlers(settings))


def _shim_handlers(settings: Settings) -> Iterator[Handler]:
    for shim in settings.shims:
        values = settings.for_shim(shim)
        for debug in (False, True) if settings.debug else (False,):
            yield Handler(
                shim.handler(settings.suffix, debug=debug),
                shim,
                f"{shim.own_dir}-debug" if debug else shim.own_dir,
                f"shims.{shim.name}",
                debug,
                values.drop_in,
                values.snapshotter,
                values.crio_guest_pull,
                _annotations(settings, values.extra_pod_annotations),
            )


def _custom_handlers(settings: Settings) -> Iterator[Handler]:
    from kata_node.settings.shims import table

    for custom in settings.custom_runtimes:
        shim = table()[custom.base_config]
        if settings.arch not in shim.arches:
            continue
        yield Handler(
            custom.handler,
            shim,
            f"{shim.config_dir}/custom-runtimes/{custom.handler}",
            f"customRuntimes.runtimes.{custom.name}",
            drop_in=custom.drop_in,
            snapshotter=custom.snapshotter,
            guest_pull=custom.crio_pull_type == "guest-pull",
            pod_annotations=_annotations(settings, ()),
        )


def _annotations(settings: Settings, extra: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((POD_ANNOTATIONS, *settings.containerd.extra_pod_annotations, *extra)))
