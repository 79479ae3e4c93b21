"""Which container runtime a node has, and whether this release works with it. Pure."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass

from kata_node.errors import KataNodeError, SettingsError

RUNTIMES = ("containerd", "cri-o")
RUNTIME_EXAMPLE = "containerd://2.1.9"
"""How a runtime and its version are written, the same as in a Node's ``containerRuntimeVersion``."""

CONTAINERD_PACKAGES = ("containerd", "containerd.io")
"""Debian's package of containerd, and Docker's."""

FIRST_WITH_SCHEMA = {3: "2.0.0", 4: "2.3.0"}
"""The oldest containerd that reads a configuration of this schema, as measured."""

# An epoch or a "v" before it; a pre-release, a build or a packager's revision behind it.
_VERSION = re.compile(r"(?:\d+:)?v?(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?(?:[-+~.][-+~.:\w]*)?", re.ASCII)


@dataclass(frozen=True)
class Version:
    """A runtime's version: three numbers and the text they came from."""

    major: int
    minor: int
    patch: int
    text: str

    def __str__(self) -> str:
        return self.text

    def at_least(self, major: int, minor: int) -> bool:
        """Whether this is ``major.minor.0`` or later; a pre-release counts as the release."""
        return (self.major, self.minor) >= (major, minor)


@dataclass(frozen=True)
class Runtime:
    """A container runtime by its name, one of :data:`RUNTIMES`, and its version."""

    name: str
    version: Version

    def __str__(self) -> str:
        return f"{self.name}://{self.version}"


ASSUMED_RUNTIME = Runtime("containerd", Version(2, 0, 0, "2.0.0"))
"""What is assumed on the way back when nothing tells: the most common, in its oldest form."""


def parse_version(text: str, *, where: str = "") -> Version:
    """Read a version as runtimes and packages write it: ``v2.1.9-k3s1``, ``2.1.9~ds1-1``, ``2.2``.

    Raises :class:`KataNodeError` when there are no numbers to go by; ``where`` tells who said it.
    """
    match = _VERSION.fullmatch(text.strip())
    if match is None:
        raise KataNodeError(
            f"{text!r} is not a version of a container runtime",
            where=where,
            hint=f"say which runtime the node has with --runtime, in the form {RUNTIME_EXAMPLE}",
        )
    major, minor, patch = match.groups()
    return Version(int(major), int(minor), int(patch or 0), text.strip())


def runtime_version(flag: str) -> Runtime:
    """Read what ``--runtime`` says. Raises :class:`SettingsError` that shows the form expected."""
    name, _, text = flag.strip().partition("://")
    match = _VERSION.fullmatch(text)
    if name not in RUNTIMES or match is None:
        raise SettingsError(
            f"{flag!r} does not name a runtime and its version",
            where="--runtime",
            hint=f"write it as NAME://VERSION with one of {', '.join(RUNTIMES)} as the name, "
            f"like {RUNTIME_EXAMPLE}",
        )
    return Runtime(name, parse_version(text))


def unsupported_reason(runtime: Runtime) -> str | None:
    """Why this release does not work with the runtime; ``None`` when it does."""
    version = runtime.version
    if runtime.name == "cri-o":
        if not version.at_least(1, 30):
            return f"CRI-O {version} does not tell which handlers it serves, which 1.30 and later do"
        return None
    if not version.at_least(1, 6):
        return f"containerd {version} is too old, this release needs 1.6 or later"
    if version.major > 2:
        return f"containerd {version} is newer than what this release knows, which is 2.x"
    return None


def version_from_files(dpkg_status: bytes | None, main_config: bytes | None) -> Version | None:
    """The version of containerd, as far as the files of a root that is not running tell.

    ``dpkg_status`` is the content of ``/var/lib/dpkg/status``, ``main_config`` that of containerd's
    configuration file; ``None`` when there is no such file. An installed package decides. Without
    one, a schema that only later releases read stands for the oldest of them. ``None``: they do not
    tell, or two packages contradict each other.
    """
    installed = _installed(dpkg_status or b"")
    if installed:
        match = _VERSION.fullmatch(installed[0])
        return parse_version(installed[0]) if match and len(installed) == 1 else None
    try:
        schema = tomllib.loads((main_config or b"").decode()).get("version")
    except ValueError:  # broken TOML or not UTF-8: for whoever reads the configuration to report
        return None
    oldest = FIRST_WITH_SCHEMA.get(schema) if isinstance(schema, int) else None
    return parse_version(oldest) if oldest else None


def _installed(dpkg_status: bytes) -> list[str]:
    """The versions of the packages of containerd that dpkg has as installed."""
    versions: list[str] = []
    for stanza in dpkg_status.decode(errors="replace").split("\n\n"):
        if not stanza.lstrip().startswith(tuple(f"Package: {name}\n" for name in CONTAINERD_PACKAGES)):
            continue
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if re.match(r"[\w-]+: ", line))
        if fields.get("Status", "").endswith(" installed"):
            versions.append(fields.get("Version", ""))
    return versions
