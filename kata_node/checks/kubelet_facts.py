"""Find the kubelet's ``runtimeRequestTimeout``, as far as the node's processes and files show it.

The kubelet takes it from its flag; without the flag, from the last drop-in of ``--config-dir`` that has it,
and then from ``--config``. Without any, it is two minutes. A pod of the chart does not see the kubelet's
directory, because that has the Secrets of all pods. It sees only the flags.
"""

from __future__ import annotations

import logging
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import Struct

from kata_node.errors import KataNodeError

if TYPE_CHECKING:
    from kata_node.host.files import Root
    from kata_node.plan.context import StageContext
    from kata_node.runtime.model.distributions import DistributionRuntime

log = logging.getLogger(__name__)

KEY, FLAG = "runtimeRequestTimeout", "runtime-request-timeout"
DEFAULT = 120.0  # seconds

_UNIT = "kubelet.service"
_MICROK8S_FLAGS = "/var/snap/microk8s/current/args/kubelet"
_CONFIGS = {"k0s": "/var/lib/k0s/kubelet-config.yaml"}
"""The file of ``--config`` of distributions other than kubeadm's."""
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class RequestTimeout(Struct, frozen=True):
    """How long the kubelet waits for the runtime."""

    seconds: float
    place: str
    """Where it is set, or can be set: a path, or the flag."""


class _Flags(Struct, frozen=True):
    timeout: str = ""
    config: str = ""
    config_dir: str = ""


def request_timeout(
    context: StageContext, distribution_runtime: DistributionRuntime
) -> RequestTimeout | None:
    """Return the timeout of the node's kubelet; ``None`` if its configuration is not visible."""
    distribution = distribution_runtime.distribution
    units = (_UNIT, *distribution_runtime.units)
    argv = () if context.options.offline else _kubelet(context, units)
    try:
        return _request_timeout(context.clients.root, distribution, argv)
    except (KataNodeError, ValueError) as error:
        log.debug("the configuration of the kubelet is not known: %s", error)
        return None


def _request_timeout(root: Root, distribution: str, argv: Sequence[str]) -> RequestTimeout | None:
    if not argv and distribution == "microk8s":
        argv = shlex.split((root.read(_MICROK8S_FLAGS) or b"").decode(errors="replace"), comments=True)
    found = _flags(argv)
    if found.timeout:
        return RequestTimeout(_parse_duration(found.timeout) or DEFAULT, f"--{FLAG}")
    if distribution in ("k3s", "rke2"):
        return _of_rancher(root, distribution, found)
    config = found.config or _CONFIGS.get(distribution, "/var/lib/kubelet/config.yaml")
    content = root.read(config)
    files = {config: content} if content is not None else {}
    default = RequestTimeout(DEFAULT, config) if files else None
    return _of_files(files | _drop_ins(root, found.config_dir)) or default


def _of_rancher(root: Root, name: str, flags: _Flags) -> RequestTimeout | None:
    """Return the timeout of k3s or rke2, which take the kubelet's flags from a file of their own."""
    path = f"/etc/rancher/{name}/config.yaml"
    settings = _parse(root.read(path) or b"")
    arguments = settings.get("kubelet-arg", ())
    arguments = [arguments] if isinstance(arguments, str) else arguments
    for argument in arguments if isinstance(arguments, list) else ():
        flag, _, value = str(argument).lstrip("-").partition("=")
        if flag == FLAG and (seconds := _parse_duration(value)):
            return RequestTimeout(seconds, f"kubelet-arg in {path}")
    directory = flags.config_dir or f"/var/lib/rancher/{name}/agent/etc/kubelet.conf.d"
    drop_ins = _drop_ins(root, directory)
    default = RequestTimeout(DEFAULT, f"kubelet-arg in {path}") if drop_ins or settings else None
    return _of_files(drop_ins) or default


def _drop_ins(root: Root, directory: str) -> dict[str, bytes]:
    names = root.list_dir(directory) if directory.startswith("/") else []
    paths = (posixpath.join(directory, name) for name in names if name.endswith(".conf"))
    return {path: content for path in paths if (content := root.read(path)) is not None}


def _of_files(files: Mapping[str, bytes]) -> RequestTimeout | None:
    """Return the timeout of the last file that has one."""
    for path, content in reversed(list(files.items())):
        if seconds := _parse_duration(str(_parse(content).get(KEY, ""))):
            return RequestTimeout(seconds, path)
    return None


def _parse(content: bytes) -> Mapping[str, object]:
    from kata_node.settings.yaml_parse import parse

    parsed = parse(content.decode(errors="replace"))
    return parsed if isinstance(parsed, dict) else {}


def _parse_duration(text: str) -> float:
    """Return the seconds of a duration as Go writes it (``10m0s``); 0 for none, which is the default."""
    parts = _DURATION.findall(text)
    if "".join(number + unit for number, unit in parts) != text:
        return 0.0
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _kubelet(context: StageContext, units: Sequence[str]) -> tuple[str, ...]:
    """Return the command line of the running kubelet; empty if no process of ``units`` is one."""
    try:
        systemd = context.clients.systemd()
        for unit in units:
            for process in systemd.processes(unit):
                argv = tuple(shlex.split(process.command_line))
                if argv and posixpath.basename(argv[0]) == "kubelet":
                    return argv
    except (KataNodeError, ValueError) as error:
        log.debug("cannot find the kubelet: %s", error)
    return ()


def _flags(argv: Sequence[str]) -> _Flags:
    values = dict(_pairs(argv))
    return _Flags(values.get(FLAG, ""), values.get("config", ""), values.get("config-dir", ""))


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each flag without its dashes, with its value."""
    for at, argument in enumerate(argv):
        if argument.startswith("-"):
            flag, equals, value = argument.lstrip("-").partition("=")
            yield flag, value if equals else "".join(argv[at + 1 : at + 2])
