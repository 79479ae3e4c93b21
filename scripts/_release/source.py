"""What is released: one commit of the checkout, without changes, that names its version."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from _release.commands import output
from _release.errors import ReleaseError

_SCP = re.compile(r"^([\w.-]+@[\w.-]+):(?!/)(.+)$")
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")


@dataclass(frozen=True)
class Source:
    """A commit: its version, its full hash, its time in seconds, and its public URL or ``""``."""

    version: str
    commit: str
    epoch: int
    url: str


def released(checkout: Path, version: str) -> Source:
    """Return the commit to release. Raises :class:`ReleaseError` if the checkout is not ready for it."""
    if not _VERSION.fullmatch(version):
        raise ReleaseError(
            f"{version} is not a version of three numbers",
            "write it as 1.2.3, without a v and without a suffix",
        )
    if not (checkout / ".git").exists():
        raise ReleaseError(
            f"{checkout} is not a git checkout", "make the release in a clone: its commit gives all times"
        )
    if changed := output("git", "status", "--porcelain", directory=checkout).splitlines():
        names = ", ".join(line.split(maxsplit=1)[1] for line in changed[:5])
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise ReleaseError(
            f"the checkout has changes that no commit has: {names}{more}",
            "commit them, or put them away with `git stash --include-untracked`",
        )
    require_version(checkout, version)
    commit, epoch = output("git", "log", "-1", "--format=%H %ct", directory=checkout).split()
    return Source(version, commit, int(epoch), public_url(remote(checkout)))


def require_version(checkout: Path, version: str) -> None:
    """Raise :class:`ReleaseError` unless the program, the chart and the changelog have ``version``."""
    for name, pattern, remedy in (
        ("kata_node/__init__.py", r'^__version__ = "(.*)"$', 'set `__version__ = "{}"` in it'),
        (
            "assets/chart/kata-deploy/Chart.yaml",
            r"^version: (.*)$",
            "set `version` and `appVersion` to {} in it",
        ),
        ("assets/chart/kata-deploy/Chart.yaml", r"^appVersion: (.*)$", "set `appVersion: {}` in it"),
    ):
        found = re.search(pattern, (checkout / name).read_text(), re.MULTILINE)
        if found is None or found[1].strip('"') != version:
            has = f"has the version {found[1]}" if found else "has no version"
            raise ReleaseError(f"{name} {has}, not {version}", remedy.format(version) + ", and commit it")
    changelog = (checkout / "CHANGELOG.md").read_text()
    if not re.search(rf"^## \[{re.escape(version)}\]", changelog, re.MULTILINE):
        raise ReleaseError(
            f"CHANGELOG.md has no section for {version}",
            f"write `## [{version}] - YYYY-MM-DD` below `## [Unreleased]`, and commit it",
        )


def remote(checkout: Path) -> str:
    """Return the URL of the remote ``origin``, or ``""``."""
    lines = output("git", "remote", "--verbose", directory=checkout).splitlines()
    return next((line.split()[1] for line in lines if line.startswith("origin\t")), "")


def public_url(url: str) -> str:
    """Return ``url`` without credentials, or ``""`` if it is a path or a URL of this machine."""
    parts = urlsplit(_SCP.sub(r"ssh://\1/\2", url))
    if parts.scheme not in ("https", "http", "ssh", "git") or not parts.hostname:
        return ""
    host = parts.hostname + (f":{parts.port}" if parts.port else "")
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def export(checkout: Path, source: Source, directory: Path) -> Path:
    """Write the files of the commit to ``directory`` with its time and plain modes, and return it."""
    archive = directory.with_suffix(".tar")
    command = ("git", "-c", "tar.umask=022", "archive", "--format=tar", f"--output={archive}", source.commit)
    output(*command, directory=checkout)
    directory.mkdir()
    extract = ("tar", "--extract", "--no-same-owner", "--preserve-permissions")
    output(*extract, f"--file={archive}", f"--directory={directory}")
    archive.unlink()
    return directory
