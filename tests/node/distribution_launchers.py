#!/usr/bin/python3
"""Imitate how k3s, rke2, k0s and microk8s start containerd; the name of this program selects which.

It renders containerd's configuration from the administrator's templates or drop-ins and starts containerd
with it, as the real program does (see :mod:`kata_node.runtime.model.distributions`). It does nothing else.
It runs with the node's Python, so it imports only the standard library. ``node.distributions`` imports it
too. Environment variables select the behavior of a release::

    SCHEMA=2|3        schema of the rendered configuration
    IMPORTS=yes|no    k3s, rke2: whether the base template imports the drop-in directory
    WATCH=yes|no      k0s: whether it loads changed drop-ins by itself
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

RUNTIME_PLUGIN = {2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}

TICK = 0.1  # seconds between two checks of a directory
QUIET = 1.0  # seconds without a change before k0s acts on the last changes; the real k0s waits three
RESPAWN = 1.0  # seconds before k0s restarts a containerd that has ended; the real k0s waits five


# k3s and rke2


def rancher_dir(name: str) -> Path:
    """Return the directory of containerd's configuration in k3s or rke2."""
    return Path("/var/lib/rancher", name, "agent/etc/containerd")


def base_template(name: str, schema: int, *, imports: bool) -> str:
    """Return the template that k3s or rke2 renders if the administrator has none."""
    directory = "config.toml.d" if schema == 2 else f"config-v{schema}.toml.d"
    table = f"plugins.'{RUNTIME_PLUGIN[schema]}'"
    return "\n".join(
        (
            f"# Rendered by {name} at every start.",
            f"version = {schema}",
            *([f'imports = ["{rancher_dir(name)}/{directory}/*.toml"]'] if imports else []),
            'root = "{{ .NodeConfig.Containerd.Root }}"',
            'state = "{{ .NodeConfig.Containerd.State }}"',
            "",
            "[grpc]",
            '  address = "{{ .NodeConfig.Containerd.Address }}"',
            "",
            "[plugins.'io.containerd.internal.v1.opt']",
            '  path = "{{ .NodeConfig.Containerd.Opt }}"',
            "",
            f"[{table}]",
            "  enable_selinux = false",
            "",
            f"[{table}.containerd.runtimes.runc]",
            '  runtime_type = "io.containerd.runc.v2"',
            "",
            f"[{table}.containerd.runtimes.runc.options]",
            "  SystemdCgroup = true",
            "",
        )
    )


def values(name: str) -> Mapping[str, str]:
    """Return the template variables below ``.NodeConfig.Containerd`` that this program supports."""
    return {
        "Root": f"/var/lib/rancher/{name}/agent/containerd",
        "Opt": f"/var/lib/rancher/{name}/agent/containerd",
        "State": "/run/k3s/containerd",
        "Address": "/run/k3s/containerd/containerd.sock",
    }


def rendered(name: str, template: str, base: str) -> str:
    """Execute the template as Go does; raises :class:`ValueError` for an action that Go refuses."""

    def executed(match: re.Match[str]) -> str:
        action = match[1].strip().strip("-").strip()
        if action.startswith("/*") and action.endswith("*/"):
            return ""
        if action == 'template "base" .':
            return rendered(name, base, "")
        known = re.fullmatch(r"\.NodeConfig\.Containerd\.(\w+)", action)
        if known is None or known[1] not in values(name):
            raise ValueError(f"cannot evaluate {match[0]}")
        return values(name)[known[1]]

    return re.sub(r"\{\{(.*?)\}\}", executed, template, flags=re.DOTALL)


def rancher_config(name: str, directory: Path, newest: int, *, imports: bool) -> str:
    """Return the configuration that k3s or rke2 of schema ``newest`` renders from ``directory``."""
    for schema in range(newest, 1, -1):
        template = directory / ("config.toml.tmpl" if schema == 2 else f"config-v{schema}.toml.tmpl")
        if template.exists():
            return rendered(name, text_of(template), base_template(name, schema, imports=imports))
    base = base_template(name, newest, imports=imports)
    return rendered(name, base, base)


def rancher(name: str) -> NoReturn:
    """Render the configuration and become containerd; with an external runtime, only wait for signals."""
    if any(argument.startswith("--container-runtime-endpoint") for argument in sys.argv):
        while True:
            signal.pause()
    directory = rancher_dir(name)
    imports = os.environ["IMPORTS"] == "yes"
    text = rancher_config(name, directory, int(os.environ["SCHEMA"]), imports=imports)
    (directory / "config.toml").write_bytes(text.encode())
    known = values(name)
    run_containerd(
        ["-c", f"{directory}/config.toml", "-a", known["Address"]],
        ["--state", known["State"], "--root", known["Root"]],
    )


# microk8s

SNAP = "/snap/microk8s/8511"
SNAP_DATA = "/var/snap/microk8s/8511"
SNAP_COMMON = "/var/snap/microk8s/common"


def filled_in(template: str) -> str:
    """Return the template of microk8s with its variables replaced."""
    filling = {
        "SNAP": SNAP,
        "SNAP_DATA": SNAP_DATA,
        "SNAPSHOTTER": "overlayfs",
        "RUNTIME": "runc",
        "RUNTIME_TYPE": "io.containerd.runc.v2",
    }
    for name, value in filling.items():
        template = template.replace(f"${{{name}}}", value)
    return template


def microk8s() -> NoReturn:
    """Render the configuration and become containerd."""
    args = Path(SNAP_DATA, "args")
    (args / "containerd.toml").write_bytes(filled_in(text_of(args / "containerd-template.toml")).encode())
    run_containerd(
        ["--config", f"{args}/containerd.toml", "--root", f"{SNAP_COMMON}/var/lib/containerd"],
        ["--state", f"{SNAP_COMMON}/run/containerd", "--address", f"{SNAP_COMMON}/run/containerd.sock"],
    )


# k0s

K0S_CONFIG = Path("/etc/k0s/containerd.toml")
K0S_DROP_INS = Path("/etc/k0s/containerd.d")
K0S_MERGED = Path("/run/k0s/containerd-cri.toml")
K0S_MARK = "# k0s_managed=true"


def merge_patch(target: object, patch: object) -> object:
    """Return ``target`` with ``patch`` merged in, by RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        merged[key] = merge_patch(merged.get(key), value)
    return merged


def toml(tables: Mapping[str, Any], above: Sequence[str] = ()) -> str:
    """Return tables of strings, numbers, booleans and lists as TOML; ``above`` names the enclosing tables."""
    # JSON's form of these values is valid TOML.
    own = [
        f"{json.dumps(key)} = {json.dumps(value)}" for key, value in tables.items() if type(value) is not dict
    ]
    text = "".join(f"{line}\n" for line in own)
    if own and above:
        text = f"[{'.'.join(map(json.dumps, above))}]\n{text}"
    return text + "".join(toml(value, (*above, key)) for key, value in tables.items() if type(value) is dict)


def k0s_configure(schema: int) -> None:
    """Write the main file of k0s, unless its first line is not k0s's mark, and the file of merged drop-ins.

    Raises :class:`ValueError` for a drop-in that this release of k0s refuses.
    """
    if K0S_CONFIG.exists() and K0S_CONFIG.read_text().partition("\n")[0] != K0S_MARK:
        return
    K0S_DROP_INS.mkdir(parents=True, exist_ok=True)
    own: dict[str, Any] = {"version": schema, "plugins": {RUNTIME_PLUGIN[schema]: {"enable_selinux": False}}}
    imports = [f"{K0S_DROP_INS}/*.toml"]
    drop_ins = {path: tomllib.loads(path.read_text()) for path in sorted(K0S_DROP_INS.glob("*.toml"))}
    if schema == 2:
        own["plugins"][RUNTIME_PLUGIN[2]] |= {
            "containerd": {"runtimes": {"runc": {"runtime_type": "io.containerd.runc.v2"}}}
        }
        of_cri = {path: it for path, it in drop_ins.items() if RUNTIME_PLUGIN[2] in it.get("plugins", {})}
        merged: Any = own
        for drop_in in of_cri.values():
            merged = merge_patch(merged, drop_in)
        K0S_MERGED.parent.mkdir(parents=True, exist_ok=True)
        K0S_MERGED.write_text(toml(merged))
        imports = [*(str(path) for path in drop_ins if path not in of_cri), str(K0S_MERGED)]
        own = {"version": 2}
    else:
        for path, drop_in in drop_ins.items():
            if drop_in.get("version", 3) != 3 or RUNTIME_PLUGIN[2] in drop_in.get("plugins", {}):
                raise ValueError(f"{path}: unsupported containerd configuration")
    K0S_CONFIG.write_text(f"{K0S_MARK}\n{toml({'imports': imports, **own})}")


def k0s() -> int:
    """Keep containerd running until SIGTERM, and restart it after changes of drop-ins if ``WATCH=yes``."""
    schema, watch = int(os.environ["SCHEMA"]), os.environ["WATCH"] == "yes"
    k0s_configure(schema)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    child = k0s_start()
    seen = acted_on = k0s_drop_ins()
    changed = 0.0
    try:
        while True:
            time.sleep(TICK)
            if child.poll() is not None:
                time.sleep(RESPAWN)
                child = k0s_start()
            now = k0s_drop_ins()
            if now != seen:
                seen, changed = now, time.monotonic()
            if watch and seen != acted_on and time.monotonic() - changed >= QUIET:
                acted_on = seen
                try:
                    k0s_configure(schema)
                except ValueError as error:
                    print(f"failed to resolve config: {error}", flush=True)
                    continue
                child.send_signal(signal.SIGHUP)  # containerd does not reload on SIGHUP, it ends
    finally:
        child.terminate()
        child.wait()


def k0s_start() -> subprocess.Popen[bytes]:
    run, data = "/run/k0s", "/var/lib/k0s"
    return subprocess.Popen(
        [
            *("containerd", f"--root={data}/containerd", f"--state={run}/containerd"),
            *(f"--address={run}/containerd.sock", "--log-level=info", f"--config={K0S_CONFIG}"),
        ]
    )


def k0s_drop_ins() -> dict[str, tuple[int, int]]:
    """Return file name -> inode and modification time in ns, which show a change of the drop-ins."""
    if not K0S_DROP_INS.is_dir():
        return {}
    return {
        entry.name: (entry.inode(), entry.stat(follow_symlinks=False).st_mtime_ns)
        for entry in os.scandir(K0S_DROP_INS)
    }


# Common functions


def text_of(path: Path) -> str:
    """Return the text of a file with its line ends unchanged."""
    return path.read_bytes().decode()


def run_containerd(*arguments: Sequence[str]) -> NoReturn:
    """Replace this process with containerd; the arguments are lists."""
    os.execvp("containerd", ["containerd", *(each for some in arguments for each in some)])


def main() -> int:
    """Imitate the program of the name that this program was started with."""
    name = Path(sys.argv[0]).name
    if name == "k0s":
        return k0s()
    if name == "microk8s":
        microk8s()
    rancher(name)


if __name__ == "__main__":
    sys.exit(main())
