"""The node's container runtime and its version, and whether this release supports it. Pure."""

from __future__ import annotations

import re

from msgspec import Struct

from kata_node.errors import KataNodeError, SettingsError
from kata_node.toml.parse import parse

RUNTIMES = ("containerd", "cri-o")
RUNTIME_EXAMPLE = "containerd://2.1.9"
"""The form of a runtime and its version, the same as in a Node's ``containerRuntimeVersion``."""

CONTAINERD_PACKAGES = ("containerd", "containerd.io")
"""The names of the containerd packages of Debian and of Docker."""

FIRST_WITH_SCHEMA = {3: "2.0.0", 4: "2.3.0"}
"""The oldest containerd that reads a configuration of each schema (measured)."""

# An epoch or a "v" may precede the numbers; a pre-release, build or package revision may follow them.
_VERSION = re.compile(r"(?:\d+:)?v?(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?(?:[-+~.][-+~.:\w]*)?", re.ASCII)


class Version(Struct, frozen=True):
    """A runtime's version: three numbers, and the text they were parsed from."""

    major: int
    minor: int
    patch: int
    text: str

    def __str__(self) -> str:
        return self.text

    def at_least(self, major: int, minor: int) -> bool:
        """Return whether this is ``major.minor.0`` or later. A pre-release counts as its release."""
        return (self.major, self.minor) >= (major, minor)


class Runtime(Struct, frozen=True):
    """A container runtime: its name, one of :data:`RUNTIMES`, and its version."""

    name: str
    version: Version

    def __str__(self) -> str:
        return f"{self.name}://{self.version}"


ASSUMED_RUNTIME = Runtime("containerd", Version(2, 0, 0, "2.0.0"))
"""The runtime that ``revert`` assumes when it cannot find out: the most common one, in its oldest 2.x."""


def parse_version(text: str, *, where: str = "") -> Version:
    """Parse a version as runtimes and packages write it: ``v2.1.9-k3s1``, ``2.1.9~ds1-1``, ``2.2``.

    ``where`` names the source of the text. Raises :class:`KataNodeError` when it is not a version.
    """
    match = _VERSION.fullmatch(text.strip())
    if match is None:
        raise KataNodeError(
            f"{text!r} is not a version of a container runtime",
            where=where,
            hint=f"set --runtime to the node's runtime and its version, for example {RUNTIME_EXAMPLE}",
        )
    major, minor, patch = match.groups()
    return Version(int(major), int(minor), int(patch or 0), text.strip())


def is_version(text: str) -> bool:
    """Return whether :func:`parse_version` can parse ``text``."""
    return _VERSION.fullmatch(text.strip()) is not None


def runtime_version(flag: str) -> Runtime:
    """Parse the value of ``--runtime``. Raises :class:`SettingsError` when it has another form."""
    name, _, text = flag.strip().partition("://")
    match = _VERSION.fullmatch(text)
    if name not in RUNTIMES or match is None:
        raise SettingsError(
            f"{flag!r} is not a runtime and its version",
            where="--runtime",
            hint=f"set it to NAME://VERSION, for example {RUNTIME_EXAMPLE}; "
            f"NAME is one of {', '.join(RUNTIMES)}",
        )
    return Runtime(name, parse_version(text))


def unsupported_reason(runtime: Runtime) -> str | None:
    """Return why this release does not support the runtime; ``None`` when it does."""
    version = runtime.version
    if runtime.name == "cri-o":
        if not version.at_least(1, 30):
            return f"CRI-O {version} does not report its handlers; this release needs 1.30 or later"
        return None
    if not version.at_least(1, 6):
        return f"containerd {version} is too old; this release needs 1.6 or later"
    if version.major > 2:
        return f"containerd {version} is too new; this release supports versions up to 2.x"
    return None


def version_from_files(dpkg_status: bytes | None, main_config: bytes | None) -> Version | None:
    """Return the version of containerd according to files, for a root where no runtime runs.

    ``dpkg_status`` is the content of ``/var/lib/dpkg/status``, ``main_config`` that of containerd's
    main file; ``None`` when the file is missing. An installed package decides. Without one, the schema
    of the main file gives the oldest containerd that reads it. Returns ``None`` when neither file
    tells, or when two packages are installed.
    """
    installed = _installed(dpkg_status or b"")
    if installed:
        match = _VERSION.fullmatch(installed[0])
        return parse_version(installed[0]) if match and len(installed) == 1 else None
    try:
        schema = parse((main_config or b"").decode()).get("version")
    except ValueError:  # invalid TOML or not UTF-8; the code that edits the file reports it
        return None
    oldest = FIRST_WITH_SCHEMA.get(schema) if isinstance(schema, int) else None
    return parse_version(oldest) if oldest else None


def _installed(dpkg_status: bytes) -> list[str]:
    """Return the versions of the containerd packages that dpkg lists as installed."""
    versions: list[str] = []
    for stanza in dpkg_status.decode(errors="replace").split("\n\n"):
        if not stanza.lstrip().startswith(tuple(f"Package: {name}\n" for name in CONTAINERD_PACKAGES)):
            continue
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if re.match(r"[\w-]+: ", line))
        if fields.get("Status", "").endswith(" installed"):
            versions.append(fields.get("Version", ""))
    return versions
