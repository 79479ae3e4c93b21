"""The programs of the control plane, and those that talk to it: built as ``go.mod`` here pins them.

They come from one module of the tests' own rather than each from its own, because Kubernetes cannot
be built alone outside of its repository, and so that what they have in common is compiled once.
``go.sum`` holds the digests of all that is fetched.
"""

from __future__ import annotations

import platform
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from node.cache import NodeError, cache_dir, key_of, made_once
from node.gomodule import GO, missing_go, output, run, toolchain

HERE = Path(__file__).resolve().parent

KUBERNETES = "k8s.io/kubernetes"
ETCD = "go.etcd.io/etcd/server/v3"
HELM = "helm.sh/helm/v4"

SCHEDULER = "kube-scheduler"


def version_of(module: str) -> str:
    """The release of ``module`` that ``go.mod`` asks for, such as v1.37.2."""
    found = re.search(rf"^\s+{re.escape(module)} (v\S+)", (HERE / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise NodeError(f"{HERE / 'go.mod'} does not ask for {module}")
    return found[1]


@dataclass(frozen=True)
class BuiltProgram:
    """A program: what it is called, the package it is built from, and the module whose release it is."""

    name: str
    package: str
    module: str

    @property
    def path(self) -> Path:
        """Where it is kept, whether it is there yet or not."""
        pinned = [(HERE / name).read_text() for name in ("go.mod", "go.sum")]
        key = key_of(self.name, self.package, self.ldflags, *pinned, GO, platform.machine())
        return cache_dir() / "go" / f"{self.name}-{version_of(self.module)}-{key}" / self.name

    @property
    def ldflags(self) -> str:
        """Its release, told to it as its own builds do; etcd has it in its source."""
        version = version_of(self.module)
        told = {}
        if self.module == KUBERNETES:
            major, minor, _ = version.removeprefix("v").split(".", 2)
            place = "k8s.io/component-base/version"
            told = {f"{place}.git{what}": value for what, value in (("Major", major), ("Minor", minor))}
            told[f"{place}.gitVersion"] = version
        elif self.module == HELM:
            told = {f"{HELM}/internal/version.version": version}
        return " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in told.items())])


BUILT_PROGRAMS = {
    part.name: part
    for part in (
        BuiltProgram("etcd", ETCD, ETCD),
        BuiltProgram("kube-apiserver", f"{KUBERNETES}/cmd/kube-apiserver", KUBERNETES),
        BuiltProgram("kube-controller-manager", f"{KUBERNETES}/cmd/kube-controller-manager", KUBERNETES),
        BuiltProgram(SCHEDULER, f"{KUBERNETES}/cmd/kube-scheduler", KUBERNETES),
        BuiltProgram("kubectl", f"{KUBERNETES}/cmd/kubectl", KUBERNETES),
        BuiltProgram("kubelet", f"{KUBERNETES}/cmd/kubelet", KUBERNETES),
        BuiltProgram("helm", f"{HELM}/cmd/helm", HELM),
    )
}

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
"""What a cluster does not start without. The others are built when they are asked for."""


def missing_prerequisites(names: Iterable[str] = CONTROL_PLANE) -> str:
    """Why this machine cannot start a cluster of these programs, with the remedy; empty when it can."""
    if shutil.which("setpriv") is None:
        return (
            "setpriv is missing, which ties programs to the tests that start them: apt-get install util-linux"
        )
    return missing_go() if to_build(names) else ""


def to_build(names: Iterable[str] = CONTROL_PLANE) -> list[str]:
    """Those of these programs that are not kept yet."""
    return [name for name in names if not BUILT_PROGRAMS[name].path.exists()]


def program(name: str) -> Path:
    """The program ``name`` of :data:`PARTS`, built when it is not kept yet.

    The first takes minutes, a download and 3 GB of Go's caches; the others then have most of it.
    Asked for twice at once it is built once. Raises :class:`NodeError` with the last lines of what Go said.
    """
    part = BUILT_PROGRAMS[name]
    if part.path.exists():
        return part.path  # without the lock: who built it may be root, and who runs it not

    def make(directory: Path) -> None:
        if reason := missing_go():
            raise NodeError(reason)
        source = directory / "source"
        source.mkdir()
        for file in ("go.mod", "go.sum"):
            shutil.copy(HERE / file, source)
        flags = ["-trimpath", "-buildvcs=false", "-mod=readonly", f"-ldflags={part.ldflags}"]
        command = ["nice", toolchain(), "build", *flags, "-o", str(directory / name), part.package]
        output(run(command, source, {"CGO_ENABLED": "0"}))
        shutil.rmtree(source)

    made_once(part.path.parent, make)
    return part.path
