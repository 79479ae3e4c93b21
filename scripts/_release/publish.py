"""Push a release with skopeo: the images, the chart and the signatures."""

from __future__ import annotations

from pathlib import Path

from _release.commands import program, run
from _release.oci import Layout


def push(directory: Path, registry: str, *, plain_http: bool) -> None:
    """Push everything in ``directory``, signatures last. skopeo keeps digests and has the credentials."""
    copy = [program("skopeo"), "copy", "--all", "--preserve-digests"]
    if plain_http:
        copy.append("--dest-tls-verify=false")
    for kind in ("images", "charts", "signatures"):
        for layout in sorted((directory / kind).glob("*")):
            for name in Layout(layout).names():
                run(
                    *copy,
                    *(f"oci:{layout}:{name}", f"docker://{registry}/{layout.name}:{name}"),
                    hint="Log in with `skopeo login`; for a registry without TLS, give --plain-http",
                )
