"""Fake nodes with each runtime and distribution. They only imitate how the runtime reads its files.

This was measured on the real programs, see :mod:`kata_node.runtime.containerd.main`,
:mod:`kata_node.runtime.crio` and :mod:`kata_node.runtime.model.distributions`. ``tests/node`` uses the real
programs.
"""

from __future__ import annotations

import posixpath
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes import DEVICES, FakeNode
from kata_node.host.files import Root

RUNC = 'runtime_type = "io.containerd.runc.v2"\n'
CRI_2, CRI_3 = 'plugins."io.containerd.grpc.v1.cri"', 'plugins."io.containerd.cri.v1.runtime"'


@dataclass
class Containerd1(FakeNode):
    """containerd 1.7: an imported file replaces a whole plugin, and handlers in a file the built-in ones."""

    def load(self) -> tuple[str, ...] | None:
        """Return the handlers of the main file. kata-node adds no import to it."""
        content = self.root.read(self.main)
        data = tomllib.loads(content.decode()) if content is not None else {}
        if data.get("version") not in (None, 2):
            raise ValueError("version is not one that this release reads")
        for path in data.get("imports", []):
            if "*" not in path and not self.root.exists(path):
                raise FileNotFoundError(path)
        plugin = "io.containerd.grpc.v1.cri" if data.get("version") == 2 else "cri"
        containerd = data.get("plugins", {}).get(plugin, {}).get("containerd", {})
        runtimes = tuple(sorted(containerd.get("runtimes", {"runc": {}})))
        return runtimes if containerd.get("default_runtime_name", "runc") in runtimes else None


@dataclass
class TemplateNode(FakeNode):
    """A distribution that renders the main file from a template at each start."""

    templates: tuple[str, ...] = ()
    base: str = ""
    values: Mapping[str, str] | None = None

    def load(self) -> tuple[str, ...] | None:
        """Render the main file, and load it as containerd 2 does."""
        found = (content for path in self.templates if (content := self.root.read(path)) is not None)
        text = (
            next(found, b'{{ template "base" . }}\n').decode().replace('{{ template "base" . }}', self.base)
        )
        for name, value in (self.values or {}).items():
            text = text.replace(f"${{{name}}}", value)
        # Written past the functions that killed_after guards: the distribution is not killed.
        self.root.resolve(self.main).write_text(text)
        return super().load()


@dataclass
class K0s(FakeNode):
    """k0s up to 1.35: it merges drop-ins of schema 2, and restarts containerd when it sees a change."""

    def load(self) -> tuple[str, ...] | None:
        """Return ``runc`` and the handlers of the drop-ins."""
        runtimes = {"runc"}
        for path in self.root.glob("/etc/k0s/containerd.d/*.toml"):
            data = tomllib.loads((self.root.read(path) or b"").decode())
            if data.get("version") != 2:
                raise ValueError("a drop-in of another version")
            containerd = data["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]
            runtimes |= set(containerd.get("runtimes", ()))
        return tuple(sorted(runtimes))

    def watch(self) -> None:
        """Load the files. The real k0s does so periodically; this one does at each call to the CRI."""
        if self.state == "active":
            self.handlers = self.load()

    def _answers(self) -> tuple[str, ...]:
        self.watch()
        return super()._answers()


@dataclass
class Crio(FakeNode):
    """CRI-O: it reads every file of its directory, and again on SIGHUP, except the storage options."""

    reloads: int = 0

    def load(self) -> tuple[str, ...] | None:
        """Return the handlers of all files. A later table replaces an earlier one as a whole."""
        runtimes: dict[str, Any] = {"crun": {}}
        for path in self.root.glob("/etc/crio/crio.conf.d/*"):
            data = tomllib.loads((self.root.read(path) or b"").decode())
            runtimes |= data.get("crio", {}).get("runtime", {}).get("runtimes", {})
        return tuple(sorted(name for name, table in runtimes.items() if self._can_run(table)))

    def _can_run(self, table: Mapping[str, Any]) -> bool:
        return all(
            self.root.exists(table[key]) for key in ("runtime_path", "runtime_config_path") if key in table
        )

    def reload(self, name: str, timeout: float) -> None:
        """Read the files. If one is broken, keep the previous handlers."""
        self.reloads += 1
        self.handlers = self.load()


RANCHER = "/var/lib/rancher/k3s/agent/etc/containerd"
MICROK8S = "/var/snap/microk8s/current/args"
BASE_3 = f"version = 3\n\n[{CRI_3}.containerd.runtimes.runc]\n{RUNC}"
BASE_2 = f"version = 2\n\n[{CRI_2}.containerd.runtimes.runc]\n{RUNC}"


@dataclass(frozen=True)
class NodeVariant:
    """How to make a fake node, and the name of its distribution in the settings."""

    make: Callable[[Root], FakeNode]
    files: Mapping[str, str]
    kata_files: tuple[str, ...]
    """The files outside of the install dir that an installation creates or edits."""
    distribution: str = "k8s"
    hot_reload: bool = False
    """Whether it loads new handlers without a restart."""


def _k3s(root: Root, **changes: Any) -> FakeNode:
    templates = (f"{RANCHER}/config-v3.toml.tmpl", f"{RANCHER}/config.toml.tmpl")
    return TemplateNode(
        root,
        **{"unit_name": "k3s.service", "main": f"{RANCHER}/config.toml", "templates": templates, **changes},
    )


NODE_VARIANTS: Mapping[str, NodeVariant] = {
    "containerd 1.7": NodeVariant(
        lambda root: Containerd1(root, version="1.7.24"),
        {"/etc/containerd/config.toml": f"# mine\nversion = 2\r\n[{CRI_2}]\nsandbox_image = 'a'"},
        ("/etc/containerd/config.toml",),
    ),
    "containerd 1.6 without a file": NodeVariant(
        lambda root: Containerd1(root, version="1.6.20"), {}, ("/etc/containerd/config.toml",)
    ),
    "k3s that imports no drop-ins": NodeVariant(
        lambda root: _k3s(root, base=BASE_3), {}, (f"{RANCHER}/config-v3.toml.tmpl",), "k3s"
    ),
    "k3s with an admin's template": NodeVariant(
        lambda root: _k3s(root, base=BASE_3),
        {
            f"{RANCHER}/config-v3.toml.tmpl": '{{ template "base" . }}\n[debug]\n  level = "info"',
        },
        (f"{RANCHER}/config-v3.toml.tmpl",),
        "k3s",
    ),
    "k3s with drop-ins": NodeVariant(
        lambda root: _k3s(root, base=f'imports = ["{RANCHER}/config-v3.toml.d/*.toml"]\n{BASE_3}'),
        {},
        (f"{RANCHER}/config-v3.toml.d/99-kata-deploy.toml",),
        "k3s",
    ),
    "k0s": NodeVariant(
        lambda root: K0s(
            root, version="1.7.27", unit_name="k0sworker.service", main="/etc/k0s/containerd.toml"
        ),
        {"/etc/k0s/containerd.toml": "# k0s_managed=true\nversion = 2\n"},
        ("/etc/k0s/containerd.d/99-kata-deploy.toml",),
        "k0s",
        hot_reload=True,
    ),
    "microk8s": NodeVariant(
        lambda root: TemplateNode(
            root,
            unit_name="snap.microk8s.daemon-containerd.service",
            main=f"{MICROK8S}/containerd.toml",
            templates=(f"{MICROK8S}/containerd-template.toml",),
            values={"SNAP_DATA": "/var/snap/microk8s/current"},
        ),
        {f"{MICROK8S}/containerd-template.toml": 'version = 3\nstate = "${SNAP_DATA}/state"\n'},
        (f"{MICROK8S}/containerd-template.toml",),
        "microk8s",
    ),
    "CRI-O": NodeVariant(
        lambda root: Crio(root, version="1.36.3", unit_name="crio.service", runtime_name="cri-o"),
        {"/etc/crio/crio.conf.d/10-crio.conf": '[crio.image]\nsignature_policy = "/etc/crio/policy.json"\n'},
        ("/etc/crio/crio.conf.d/99-kata-deploy",),
    ),
}


def make_node(kind: NodeVariant, base: Path) -> FakeNode:
    """Return a node of this variant that serves, before Kata is installed."""
    for path in DEVICES:
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).touch()
    for path in ("run", "opt", "etc/containerd"):
        (base / path).mkdir(parents=True)
    root = Root(base)
    node = kind.make(root)
    for path in (*kind.files, node.main):
        root.make_dirs(posixpath.dirname(path))
    for path, content in kind.files.items():
        root.write(path, content.encode())
    node.handlers = node.load()
    return node
