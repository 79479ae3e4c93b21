"""The drop-ins of each handler's Kata configuration, as bytes. Pure.

kata-node does not edit Kata's configuration files. It writes drop-ins beside a copy of the shim's base
configuration, and takes their values from this copy. So each shim keeps its own kernel, image and firmware in
every install dir. Kata replaces whole values, so a value that the settings extend contains the value of the
base configuration too.

A drop-in without content is not written. So the effect of a setting ends when the setting is removed.

Facts from Kata's source and configuration files:

- Some Kubernetes distributions have another kubelet directory. ``[runtime]`` must name it, or changes of
  ConfigMaps and Secrets do not reach the guest and GPUs are not found. All paths of that section in the usual
  directory are changed; runtime-rs has fewer of them.
- The key ``experimental_force_guest_pull`` of the Go runtime makes the guest pull images. Only configurations
  of shims with guests that can pull have it. runtime-rs uses a feature in its list ``experimental``.
- A debug variant raises the log level of runtime, hypervisor and guest. Kata itself adds ``agent.log=debug``
  to the kernel parameters when ``enable_debug`` of the agent is on. It also opens the agent's debug
  console, which is a root shell in the guest for root on the node. No other handler has this console.
  Confidential guests do not open it, because they must be protected from the node. To open it nevertheless,
  set ``debug_console_enabled = true`` in the user's drop-in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from kata_node.errors import PULL_IMAGE_HINT, SettingsError, UnusablePayloadError
from kata_node.kata import devkit
from kata_node.kata.annotations import pattern_problems
from kata_node.kata.conflicts import conflicts
from kata_node.kata.merge import (
    Table,
    all_strings,
    is_below,
    merge,
    nested,
    relocated_paths,
    render,
    section,
)
from kata_node.kata.user_drop_in import GUEST_PULL_FEATURE, GUEST_PULL_KEY, find_problems
from kata_node.settings.handlers import Handler, handlers
from kata_node.settings.shims import BUILTIN_PREFIX

if TYPE_CHECKING:
    from kata_node.settings.model import Settings
    from kata_node.settings.shims import Shim

USER_DROP_IN = "50-user-overrides.toml"
"""The file name of the user's drop-in. Kata reads it last."""

KUBELET_ROOT = "/var/lib/kubelet"
KUBELET_ROOTS = {"k0s": "/var/lib/k0s/kubelet", "microk8s": "/var/snap/microk8s/common/var/lib/kubelet"}
"""The kubelet directories of distributions that do not use :data:`KUBELET_ROOT`."""

AGENT_DEBUG_PARAM = "agent.log=debug"
GUEST_DEBUG_PARAM = "initcall_debug"
DCGM_PARAM = "nvrc.dcgm=on"
"""Makes the init process of NVIDIA guests start the GPU metrics (DCGM)."""


class HandlerOverrides(Struct, frozen=True):
    """The settings that decide one handler's Kata configuration. Its ``repr`` is part of a digest's input."""

    install_dir: str
    kubelet_root: str
    debug: bool
    """Whether the handler logs more: with the variant ``debug`` and every variant that is based on it."""
    drop_in: str
    kernel_params: tuple[tuple[str, str], ...] = ()
    """The parameters for the guest's kernel command line, each with the key of its setting."""
    rootless: bool = False
    annotations: tuple[str, ...] = ()
    guest_pull: bool = False
    devkit: bool = False


def handler_overrides(handler: Handler, settings: Settings) -> HandlerOverrides:
    """Return the settings that decide the Kata configuration of ``handler``.

    A custom runtime gets the settings that the guests of its base shim need: proxies, DCGM and a rootless
    hypervisor. Allowed annotations and guest pull apply only to the shim's own handlers; a custom runtime
    can set them in its drop-in.
    """
    shim, values = f"shims.{handler.shim.name}", settings.for_shim(handler.shim)
    params = [
        (f"agent.https_proxy={values.https_proxy}" if values.https_proxy else "", f"{shim}.agent.httpsProxy"),
        (f"agent.no_proxy={values.no_proxy}" if values.no_proxy else "", f"{shim}.agent.noProxy"),
        (DCGM_PARAM if values.enable_dcgm else "", f"{shim}.nvrc.enableDCGM"),
    ]
    is_shim_handler = handler.key == shim
    return HandlerOverrides(
        install_dir=settings.install_dir,
        kubelet_root=KUBELET_ROOTS.get(settings.distribution, KUBELET_ROOT),
        debug=bool(handler.variant),
        drop_in=handler.drop_in,
        kernel_params=tuple((param, key) for param, key in params if param),
        rootless=values.rootless,
        annotations=values.allowed_hypervisor_annotations if is_shim_handler else (),
        guest_pull=values.force_guest_pull and is_shim_handler,
        devkit=handler.variant == "devkit",
    )


def digest_inputs(settings: Settings) -> str:
    """Return a text of all settings that decide the configurations, as the input of a digest."""
    return repr(
        [
            (each.name, each.shim.name, each.own_dir, handler_overrides(each, settings))
            for each in handlers(settings)
        ]
    )


def parse(content: str, where: str) -> dict[str, Any]:
    """Return a parsed configuration of the payload. Raises :class:`PayloadError` if it is not valid TOML."""
    import tomllib

    from kata_node.toml import parse as toml

    try:
        return toml.parse(content)
    except tomllib.TOMLDecodeError as error:
        raise UnusablePayloadError(
            f"this Kata configuration is not valid TOML: {error}", where=where, hint=PULL_IMAGE_HINT
        ) from error


def drop_ins(
    handler: Handler, settings: Settings, base: Table, texts: Sequence[str] = (), *, devkit_verity: str = ""
) -> dict[str, bytes]:
    """Return the drop-ins of ``handler`` by file name. ``base`` is the base configuration of its shim.

    ``texts`` are the payload's configurations for the same Kata runtime. They document the keys that the
    user's drop-in can have. ``devkit_verity`` is for :func:`kata_node.kata.devkit.drop_in`.

    Raises :class:`SettingsError` if ``base`` does not have the key that a setting needs, or if Kata could not
    start a pod with the user's drop-in. Raises :class:`PayloadError` if Kata could not start a pod even
    without the user's drop-in.
    """
    overrides, shim = handler_overrides(handler, settings), handler.shim
    hypervisor = section(base, "hypervisor", shim.hypervisor)
    runtime = {"runtime": section(base, "runtime")}
    parts = {
        "10-install-dir.toml": (
            "The paths of the shim's configuration, where this installation has them.",
            relocated_paths(base, BUILTIN_PREFIX, overrides.install_dir),
        ),
        "20-debug.toml": (
            "The debug variant: more logs, and a console unless the guest is confidential.",
            _debug(shim, base) if overrides.debug else {},
        ),
        "22-devkit.toml": (
            "The devkit variant: an image with tools, behind the images of the shim's configuration.",
            devkit.drop_in(shim, base, overrides.install_dir, devkit_verity) if overrides.devkit else {},
        ),
        "25-kubelet-root.toml": (
            "Where this distribution's kubelet has its directory.",
            relocated_paths(runtime, KUBELET_ROOT, overrides.kubelet_root),
        ),
        "30-kernel-params.toml": (
            "The kernel parameters of the shim's configuration, and those of the settings behind them.",
            _kernel_params(shim, base, overrides),
        ),
        "35-annotations.toml": (
            "The annotations of the shim's configuration, and those of allowedHypervisorAnnotations.",
            _annotations(shim, hypervisor, overrides.annotations),
        ),
        "40-guest-pull.toml": (
            "Container images are pulled in the guest.",
            _guest_pull(handler, base) if overrides.guest_pull else {},
        ),
        "45-rootless.toml": (
            "The hypervisor runs as a user without privileges.",
            _rootless(handler, hypervisor) if overrides.rootless else {},
        ),
    }
    rendered = {
        name: render(content, header_comment) for name, (header_comment, content) in parts.items() if content
    }
    if overrides.drop_in.strip():
        rendered[USER_DROP_IN] = overrides.drop_in.encode()
    _check(handler, base, rendered, texts)
    return rendered


def drop_in_warnings(
    handler: Handler,
    settings: Settings,
    paths: Collection[str],
    base: Table | None = None,
    texts: Sequence[str] = (),
) -> Iterator[str]:
    """Yield a sentence for each setting of Kata's configuration that is valid but probably has no effect.

    These are paths that do not exist in the installation, keys that Kata ignores, and patterns that allow no
    annotation. ``paths`` are the paths of all files of the installation, relative to the install dir. For
    ``base`` and ``texts`` see :func:`drop_ins`. Keys are checked only if ``base`` is given.
    """
    from kata_node.toml import parse as toml

    if base is not None:
        setting = f"shims.{handler.shim.name}.allowedHypervisorAnnotations"
        yield from pattern_problems(setting, handler_overrides(handler, settings).annotations, base)
    if not handler.drop_in.strip():
        return
    drop_in = toml.parse(handler.drop_in)
    if base is not None:
        for problem in find_problems(drop_in, handler.shim, base, texts):
            yield f"{handler.key}.dropIn: {problem.sentence}"
    for name in dict.fromkeys(all_strings(drop_in)):
        subject = f"{handler.key}.dropIn names {name}"
        if is_below(name, settings.install_dir):
            relative = name.removeprefix(settings.install_dir).strip("/")
            if relative and relative not in paths:
                yield f"{subject}, which is not in the payload"
        elif is_below(name, BUILTIN_PREFIX):
            yield f"{subject}, but the install dir is {settings.install_dir}"


def _debug(shim: Shim, base: Table) -> dict[str, Any]:
    """Return the debug settings. Only keys of the base configuration are set: shims have different keys."""
    sections = (("runtime",), ("agent", "kata"), ("hypervisor", shim.hypervisor))
    content: dict[str, Any] = {}
    for keys in sections:
        known = section(base, *keys)
        changes: dict[str, Any] = {}
        if "enable_debug" in known:
            changes["enable_debug"] = True
        if "log_level" in known:
            changes["log_level"] = "debug"
        if "debug_console_enabled" in known and not shim.tee:
            changes["debug_console_enabled"] = True
        content |= nested(keys, changes)
    return content


def _kernel_params(shim: Shim, base: Table, overrides: HandlerOverrides) -> dict[str, Any]:
    hypervisor = section(base, "hypervisor", shim.hypervisor)
    if "kernel_params" not in hypervisor:
        for _, key in overrides.kernel_params:
            raise _unsupported_key_error(key, shim, "kernel_params")
        return {}
    params = [param for param, _ in overrides.kernel_params]
    if overrides.debug:
        if "enable_debug" not in section(base, "agent", "kata"):
            params.append(AGENT_DEBUG_PARAM)
        params.append(GUEST_DEBUG_PARAM)
    before = str(hypervisor["kernel_params"]).strip()
    params = [param for param in params if param not in before.split()]
    if not params:
        return {}
    line = " ".join([before, *params]).strip()
    return {"hypervisor": {shim.hypervisor: {"kernel_params": line}}}


def _annotations(shim: Shim, hypervisor: Table, allowed: tuple[str, ...]) -> dict[str, Any]:
    base = list(hypervisor.get("enable_annotations", ()))
    merged = list(dict.fromkeys([*base, *allowed]))
    return {"hypervisor": {shim.hypervisor: {"enable_annotations": merged}}} if merged != base else {}


def _guest_pull(handler: Handler, base: Table) -> dict[str, Any]:
    known = section(base, "runtime")
    if GUEST_PULL_KEY in known:
        return {"runtime": {GUEST_PULL_KEY: True}} if known[GUEST_PULL_KEY] is not True else {}
    if handler.shim.runtime == "runtime-rs" and "experimental" in known:
        features = list(dict.fromkeys([*known["experimental"], GUEST_PULL_FEATURE]))
        return {"runtime": {"experimental": features}} if features != known["experimental"] else {}
    raise _unsupported_key_error(f"{handler.key}.containerd.forceGuestPull", handler.shim, GUEST_PULL_KEY)


def _rootless(handler: Handler, hypervisor: Table) -> dict[str, Any]:
    if "rootless" not in hypervisor:
        raise _unsupported_key_error(
            f"shims.{handler.shim.name}.hypervisor.rootless", handler.shim, "rootless"
        )
    return {"hypervisor": {handler.shim.hypervisor: {"rootless": True}}}


def _unsupported_key_error(key: str, shim: Shim, name: str) -> SettingsError:
    return SettingsError(
        f"the Kata configuration of {shim.name} has no key {name}, which this setting needs",
        where=key,
        hint=f"remove {key}; if Kata supports the option nevertheless, set it in dropIn",
    )


def _check(handler: Handler, base: Table, rendered: dict[str, bytes], texts: Sequence[str]) -> None:
    """Raise an error if Kata could not start a pod with the configuration. See :func:`drop_ins`."""
    import tomllib

    from kata_node.toml import parse as toml

    generated = merge(base, {name: content for name, content in rendered.items() if name != USER_DROP_IN})
    if _has_image_and_initrd(handler.shim, generated):
        raise UnusablePayloadError(
            "this Kata configuration sets both image and initrd",
            where=handler.shim.base_config,
            hint=PULL_IMAGE_HINT,
        )
    if USER_DROP_IN not in rendered:
        return
    key, hint = f"{handler.key}.dropIn", "correct the drop-in; nothing was changed on this node"
    try:
        user_drop_in = toml.parse(handler.drop_in)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"the drop-in is not valid TOML: {error}", where=key, hint=hint) from error
    problems = find_problems(user_drop_in, handler.shim, generated, texts)
    if fatal := [problem.sentence for problem in problems if problem.is_fatal]:
        raise SettingsError("; ".join(fatal), where=key, hint=hint)
    result = merge(generated, {USER_DROP_IN: rendered[USER_DROP_IN]})
    before = set(conflicts(handler.shim, generated))
    if found := [each for each in conflicts(handler.shim, result) if each not in before]:
        raise SettingsError("; ".join(found), where=key, hint=hint)
    if _has_image_and_initrd(handler.shim, result):
        raise SettingsError(
            "the configuration with this drop-in sets both image and initrd, and Kata refuses that",
            where=key,
            hint='set image = "" or initrd = "" in the drop-in',
        )


def _has_image_and_initrd(shim: Shim, config: Table) -> bool:
    hypervisor = section(config, "hypervisor", shim.hypervisor)
    return bool(hypervisor.get("image") and hypervisor.get("initrd"))
