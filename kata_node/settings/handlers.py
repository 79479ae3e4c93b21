"""The handlers of one installation: their names, shims and configurations. Pure.

Every enabled shim has one handler. With ``debug``, it has a second one that logs more; with ``devkit`` as
well, a third one with tools in its guests. Every custom runtime has one handler, which its RuntimeClass
names. Each handler has its own Kata configuration directory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from kata_node.settings.model import Settings
    from kata_node.settings.shims import Shim, Variant


class Handler(Struct, frozen=True):
    """One handler. Paths are relative to the install dir."""

    name: str
    """The name that the runtime serves: ``kata-qemu``, ``kata-qemu-debug-<suffix>``."""
    shim: Shim
    """The shim that runs the handler's pods. Its configuration is the base of the handler's configuration."""
    own_dir: str
    """The directory of the handler's Kata configuration. No other handler reads it."""
    key: str
    """The key of the handler's settings in the values: ``shims.qemu``, ``customRuntimes.runtimes.mine``."""
    variant: Variant = ""
    drop_in: str = ""
    """The user's Kata configuration, as TOML text. It overrides all other drop-ins."""
    snapshotter: str = ""
    """The containerd snapshotter of the handler's images; empty for containerd's default."""
    guest_pull: bool = False
    """Whether CRI-O lets the guest pull the images."""
    pod_annotations: tuple[str, ...] = ()
    """Globs of the pod annotations that containerd passes to the shim."""

    @property
    def is_custom(self) -> bool:
        """Whether this is the handler of a custom runtime."""
        return self.key.startswith("customRuntimes.")

    @property
    def own_config(self) -> str:
        """The path of the handler's Kata configuration. Kata also reads ``config.d`` beside it."""
        return f"{self.own_dir}/configuration-{self.shim.name}.toml"

    @property
    def drop_in_dir(self) -> str:
        """The directory of the drop-ins that Kata merges into the configuration, in lexical order."""
        return f"{self.own_dir}/config.d"


POD_ANNOTATIONS = "io.katacontainers.*"
"""The pod annotations that every handler passes to the shim. Kata's configuration decides which apply."""


def handlers(settings: Settings) -> tuple[Handler, ...]:
    """Return all handlers of the installation: first those of shims, then those of custom runtimes."""
    return (*_shim_handlers(settings), *_custom_handlers(settings))


def handler_names(settings: Settings) -> tuple[str, ...]:
    """Return the names of all handlers of the installation."""
    return tuple(handler.name for handler in handlers(settings))


def is_asked_for(settings: Settings, handler: Handler) -> bool:
    """Return whether ``handler`` is asked for by name, so that no stage leaves it out."""
    return handler.is_custom or handler.shim.name in settings.named


def _shim_handlers(settings: Settings) -> Iterator[Handler]:
    for shim in settings.shims:
        values = settings.for_shim(shim)
        for variant in _variants(settings, shim):
            yield Handler(
                shim.handler(settings.suffix, variant),
                shim,
                f"{shim.own_dir}-{variant}" if variant else shim.own_dir,
                f"shims.{shim.name}",
                variant,
                values.drop_in,
                values.snapshotter,
                values.crio_guest_pull,
                _annotations(settings, values.extra_pod_annotations),
            )


def _variants(settings: Settings, shim: Shim) -> Iterator[Variant]:
    yield ""
    if settings.debug:
        yield "debug"
        if settings.devkit and settings.arch in shim.devkit_arches:
            yield "devkit"


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
