"""Read the shims and custom runtimes of the values, and select those for this node."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from kata_node.settings.shims import MACHINES, Shim, table
from kata_node.settings.values import ValuesReader, describe_value, did_you_mean, parse_yaml

FALLBACK_SHIMS = ("qemu", "qemu-runtime-rs")
"""The shims of which one is enabled if nothing names a shim: the first one that the payload has.

Kata builds both for every architecture.
"""

_HANDLER_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_KERNEL_PARAM_VALUE = re.compile(r"[!#-&(-~]*")

_K8S_NAMES = {machine: name for name, machine in MACHINES.items()}


class ShimSettings(Struct, frozen=True):
    """The values of one shim, without ``enabled`` and ``supportedArches``."""

    drop_in: str = ""
    """The user's Kata configuration, as TOML text."""
    allowed_hypervisor_annotations: tuple[str, ...] = ()
    snapshotter: str = ""
    force_guest_pull: bool = False
    extra_pod_annotations: tuple[str, ...] = ()
    crio_guest_pull: bool = False
    https_proxy: str = ""
    no_proxy: str = ""
    rootless: bool = False
    kernel_modules: bool = False
    """Whether ``kernelModulesImages`` is set."""
    enable_dcgm: bool = False


class CustomRuntime(Struct, frozen=True):
    """A handler that the user defines, with the configuration of a shim as its base."""

    name: str
    base_config: str
    """The name of the shim that it is based on."""
    handler: str
    """The handler of its RuntimeClass. It does not get the suffix of the installation."""
    drop_in: str = ""
    snapshotter: str = ""
    crio_pull_type: str = ""


class Selection(Struct, frozen=True):
    """The shims of one node, in fields of :class:`~kata_node.settings.model.Settings`."""

    shims: tuple[Shim, ...]
    skipped: tuple[tuple[str, str], ...]
    shim_settings: Mapping[str, ShimSettings]
    default_shim: str
    named: frozenset[str] = frozenset()
    is_fallback: bool = False
    nothing_runs: str = ""
    """Why no enabled shim and no custom runtime runs on this architecture; empty if one does."""


class _ShimEntry(Struct, frozen=True):
    """One entry of ``shims``."""

    enabled: bool | None
    arches: tuple[str, ...] | None
    """``supportedArches`` as machine types; ``None`` if it is not set."""
    settings: ShimSettings


def select(
    values: ValuesReader,
    arch: str,
    *,
    shims_override: str,
    custom: Collection[CustomRuntime] = (),
    skipped_custom: tuple[tuple[str, str], ...] = (),
) -> Selection:
    """Read ``shims`` and ``defaultShim``, and return the selection for the machine type ``arch``.

    ``shims_override`` has the names of shims, separated by commas. If it is not empty, exactly these
    shims are enabled. It is a problem if no shim is left, unless there are ``custom`` runtimes.
    ``skipped_custom`` has the custom runtimes that do not run on ``arch``, each with the reason.
    """
    problems_before = len(values.problems)
    with values.section("shims") as section:
        disable_all = section.flag("disableAll")
        shim_entries = {
            name: _read_shim(section, name) for name in section.names() if _is_known_shim(section, name)
        }
    defaults, wrong_default = _read_defaults(values, arch)
    enabled = {name: entry.enabled for name, entry in shim_entries.items()}
    uses_default = not (enabled or disable_all or shims_override)
    if uses_default and wrong_default:
        values.add_problem(f"defaultShim.{_K8S_NAMES.get(arch, arch)}", " ".join(wrong_default))
    enabled_names = (
        _read_shims_override(values, shims_override)
        if shims_override
        else select_enabled(enabled, disable_all, defaults.get(arch, ""))
    )
    if len(values.problems) > problems_before:
        # The enabled shims are not known. Checks of a guess would report problems that do not exist.
        return Selection((), (), {}, "")
    shims, skipped = split_by_arch(
        enabled_names, {name: entry.arches for name, entry in shim_entries.items()}, arch
    )
    k8s_arch = _K8S_NAMES.get(arch, arch)
    if shims_override:
        for name, reason in skipped:
            values.add_problem("--shims", f"{name} cannot run on this {k8s_arch} node: it {reason}")
    skipped += skipped_custom
    if wrong_default:
        skipped += ((f"defaultShim {wrong_default[0]}", wrong_default[1]),)
    nothing_runs = ""
    if not shims_override and not shims and not custom:
        if skipped:
            reasons = "; ".join(f"{name} {reason}" for name, reason in skipped)
            nothing_runs = f"no enabled shim runs on {k8s_arch}: {reasons}"
        else:
            values.add_problem("shims", f"no shim is enabled; enable a shim that runs on {k8s_arch}")
    return Selection(
        shims=shims,
        skipped=skipped,
        shim_settings={
            shim.name: shim_entries[shim.name].settings if shim.name in shim_entries else ShimSettings()
            for shim in shims
        },
        default_shim=next((shim.name for shim in shims if shim.name == defaults.get(arch)), ""),
        named=frozenset(shim.name for shim in shims if shims_override or uses_default or enabled[shim.name]),
        is_fallback=uses_default and arch not in defaults,
        nothing_runs=nothing_runs,
    )


def select_enabled(enabled: Mapping[str, bool | None], disable_all: bool, default: str) -> tuple[str, ...]:
    """Return the names of the enabled shims, in the order of the shim table.

    ``enabled`` has the ``enabled`` value of each shim that the values name. A shim with ``None`` is enabled
    unless ``disable_all`` is true or the shim table says that the shim is off. A shim that is not named is
    disabled. If no shim is named and ``disable_all`` is false, the result is ``default`` (the
    ``defaultShim`` of this architecture), or the first of :data:`FALLBACK_SHIMS`.
    """
    if not enabled and not disable_all:
        return (default or FALLBACK_SHIMS[0],)
    selected = {
        name
        for name, value in enabled.items()
        if value or (value is None and not disable_all and not table()[name].off)
    }
    return tuple(name for name in table() if name in selected)


def split_by_arch(
    names: Iterable[str], arches: Mapping[str, Sequence[str] | None], arch: str
) -> tuple[tuple[Shim, ...], tuple[tuple[str, str], ...]]:
    """Return the shims of ``names`` that run on the machine type ``arch``, and the others with the reason.

    ``arches`` has the ``supportedArches`` of each shim as machine types; ``None`` allows all of the shim's.
    A reason continues a sentence that begins with the shim: ``runs only on s390x``.
    """
    chosen: list[Shim] = []
    skipped: list[tuple[str, str]] = []
    for name in names:
        shim = table()[name]
        allowed_arches = arches.get(name)
        if arch not in shim.arches:
            skipped.append((name, f"runs {_arches_text(shim.arches)}"))
        elif allowed_arches is not None and arch not in allowed_arches:
            skipped.append((name, f"runs {_arches_text(allowed_arches)} according to its supportedArches"))
        else:
            chosen.append(shim)
    return tuple(chosen), tuple(skipped)


def read_custom_runtimes(
    values: ValuesReader, arch: str
) -> tuple[tuple[CustomRuntime, ...], tuple[tuple[str, str], ...]]:
    """Read ``customRuntimes``. Return those that run on ``arch``, and the others with the reason.

    All are checked. Both results are empty unless ``customRuntimes.enabled`` is true.
    """
    with values.section("customRuntimes") as section:
        enabled = section.flag("enabled")
        with section.section("runtimes") as runtimes:
            read = [_read_custom(runtimes, name) for name in runtimes.names()]
    valid = [runtime for runtime in read if runtime is not None and enabled]
    skipped = [
        (
            f"customRuntimes.runtimes.{runtime.name}",
            f"runs {_arches_text(table()[runtime.base_config].arches)}",
        )
        for runtime in valid
        if arch not in table()[runtime.base_config].arches
    ]
    return tuple(each for each in valid if arch in table()[each.base_config].arches), tuple(skipped)


def _read_custom(runtimes: ValuesReader, name: str) -> CustomRuntime | None:
    """Return a custom runtime; ``None`` if it is null, or if it has problems, which ``runtimes`` then has."""
    if not runtimes.has(name):
        # With a null, a second values file takes a runtime out of the first.
        runtimes.skip(name)
        return None
    problems_before = len(runtimes.problems)
    with runtimes.section(name) as values:
        base = values.text("baseConfig")
        if not base:
            values.add_problem(
                "baseConfig", "is missing; set it to the name of the shim that this runtime is based on"
            )
        elif base not in table():
            values.add_problem("baseConfig", f"{base} is not a shim{did_you_mean(base, table())}")
        values.skip("inheritBaseOverhead")
        with values.section("containerd") as containerd, values.section("crio") as crio:
            runtime = CustomRuntime(
                name=name,
                base_config=base,
                handler=_read_handler(values),
                drop_in=read_toml(values, "dropIn"),
                snapshotter=containerd.text("snapshotter"),
                crio_pull_type=crio.choice("pullType", ("", "default", "guest-pull")),
            )
    return runtime if len(runtimes.problems) == problems_before else None


def _read_handler(values: ValuesReader) -> str:
    """Return the ``handler`` of the manifest in ``runtimeClass``; empty if there is a problem."""
    text = values.text("runtimeClass")
    try:
        manifest = parse_yaml(text)
    except ValueError as error:
        values.add_problem("runtimeClass", str(error))
        return ""
    handler = manifest.get("handler") if isinstance(manifest, dict) else None
    if not isinstance(handler, str) or not _HANDLER_NAME.fullmatch(handler):
        values.add_problem(
            "runtimeClass",
            "is not a RuntimeClass manifest with a handler of lower-case letters, digits and inner hyphens",
        )
        return ""
    return handler


def read_toml(values: ValuesReader, key: str) -> str:
    """Return a string that becomes a TOML file. Report a problem if it is not valid TOML."""
    text = values.text(key)
    if text.strip():
        import tomllib

        from kata_node.toml.parse import parse

        try:
            parse(text)
        except tomllib.TOMLDecodeError as error:
            values.add_problem(key, f"is not valid TOML: {error}")
    return text


def _is_known_shim(section: ValuesReader, name: str) -> bool:
    if name not in table():
        section.add_problem(name, f"is not a shim{did_you_mean(name, table())}")
    elif not section.has(name):
        # Helm removes a key that is null, which disables the shim. In a file that Helm did not read, an entry
        # without `enabled` enables it.
        section.add_problem(name, "is empty; write `enabled: true` or `enabled: false` below it")
    else:
        return True
    section.skip(name)
    return False


def _read_shim(section: ValuesReader, name: str) -> _ShimEntry:
    with section.section(name) as values:
        with values.section("runtimeClass") as runtime_class:
            runtime_class.skip("nodeSelector", "overhead", "overheadEnabled")
        with (
            values.section("containerd") as containerd,
            values.section("crio") as crio,
            values.section("agent") as agent,
            values.section("hypervisor") as hypervisor,
            values.section("nvrc") as nvrc,
        ):
            settings = ShimSettings(
                drop_in=read_toml(values, "dropIn"),
                allowed_hypervisor_annotations=values.text_list("allowedHypervisorAnnotations") or (),
                snapshotter=containerd.text("snapshotter"),
                force_guest_pull=containerd.flag("forceGuestPull"),
                extra_pod_annotations=containerd.text_list("extraPodAnnotations") or (),
                crio_guest_pull=crio.flag("guestPull"),
                https_proxy=_read_kernel_param(agent, "httpsProxy"),
                no_proxy=_read_kernel_param(agent, "noProxy"),
                rootless=hypervisor.flag("rootless"),
                kernel_modules=bool(values.unchecked_list("kernelModulesImages")),
                enable_dcgm=nvrc.flag("enableDCGM"),
            )
            shim = table()[name]
            if settings.rootless and not _can_be_rootless(shim):
                others = ", ".join(each.name for each in table().values() if _can_be_rootless(each))
                hypervisor.add_problem(
                    "rootless", f"{name} cannot run its hypervisor rootless; use one of {others}"
                )
            if settings.enable_dcgm and not shim.gpu:
                nvrc.add_problem("enableDCGM", f"{name} does not pass NVIDIA GPUs to its guests")
        return _ShimEntry(values.optional_flag("enabled"), _read_arches(values), settings)


def _read_kernel_param(values: ValuesReader, key: str) -> str:
    """Return a string for the guest's kernel command line. Report characters that would end or quote it."""
    text = values.text(key)
    if not _KERNEL_PARAM_VALUE.fullmatch(text):
        values.add_problem(
            key,
            f"{describe_value(text)} has blanks, quotes or other characters that a kernel parameter cannot "
            "have",
        )
    return text


def _can_be_rootless(shim: Shim) -> bool:
    """Return whether the shim's hypervisor can run without privileges.

    Only runtime-rs opens the devices of the node before it drops the privileges.
    """
    return shim.runtime == "runtime-rs" and (shim.hypervisor == "qemu" or shim.name == "clh-runtime-rs")


def _read_arches(values: ValuesReader) -> tuple[str, ...] | None:
    """Return ``supportedArches`` as machine types; ``None`` if it is not set.

    It can list architectures that the shim does not run on: the shim is then skipped on such nodes.
    """
    names = values.text_list("supportedArches")
    if names is None:
        return None
    for name in names:
        if name not in MACHINES:
            known = f"{name} is not one of {', '.join(MACHINES)}"
            hint = f"; did you mean {_K8S_NAMES[name]}?" if name in _K8S_NAMES else ""
            values.add_problem("supportedArches", known + hint)
    return tuple(MACHINES[name] for name in names if name in MACHINES)


def _read_defaults(values: ValuesReader, arch: str) -> tuple[dict[str, str], tuple[str, str] | None]:
    """Return the shim names in ``defaultShim``, by machine type.

    The second result is the name for ``arch`` if that shim does not run on ``arch``, with the reason.
    """
    defaults: dict[str, str] = {}
    wrong: tuple[str, str] | None = None
    with values.section("defaultShim") as section:
        for k8s_arch, machine in MACHINES.items():
            name = section.text(k8s_arch)
            if name and name not in table():
                section.add_problem(k8s_arch, f"{name} is not a shim{did_you_mean(name, table())}")
            elif name and machine in table()[name].arches:
                defaults[machine] = name
            elif name and machine == arch:
                wrong = name, f"runs {_arches_text(table()[name].arches)}"
    return defaults, wrong


def _read_shims_override(values: ValuesReader, shims_override: str) -> tuple[str, ...]:
    names = shims_override.replace(",", " ").split()
    for name in names:
        if name not in table():
            values.add_problem("--shims", f"{name} is not a shim{did_you_mean(name, table())}")
    if not names:
        values.add_problem("--shims", "names no shim")
    return tuple(name for name in table() if name in names)


def _arches_text(arches: Sequence[str]) -> str:
    return "only on " + ", ".join(_K8S_NAMES[arch] for arch in arches) if arches else "on no architecture"
