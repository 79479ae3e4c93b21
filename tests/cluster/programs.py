"""Build the programs of the control plane and its clients, in the versions that ``go.mod`` here pins.

They are built from one module of the tests, not each from its own module: Kubernetes cannot be built alone
outside its repository, and common packages are compiled only once. ``go.sum`` holds the digests of all
downloads. With ``KATA_NODE_TEST_KUBERNETES=1.30`` the programs of Kubernetes, the kubelet too, are those that
the module in the directory ``kubernetes-1.30`` pins, the oldest supported release. kubectl is a tool of the
tests and stays.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from node.cache import NodeError, cache_dir, key_of, made_once
from node.gomodule import GO, Program, missing_go, output, run, toolchain

HERE = Path(__file__).resolve().parent

KUBERNETES = "k8s.io/kubernetes"
ETCD = "go.etcd.io/etcd/server/v3"
HELM = "helm.sh/helm/v4"

SCHEDULER = "kube-scheduler"

HELM_3 = Program(
    "helm.sh/helm/v3",
    "v3.22.0",
    "./cmd/helm",
    ldflags="-s -w -X helm.sh/helm/v3/internal/version.version=v3.22.0",
)
"""The newest helm 3, beside the helm 4 of ``go.mod``."""

OTHER_KUBERNETES = "KATA_NODE_TEST_KUBERNETES"
"""The variable that names another release of Kubernetes than that of ``go.mod`` here, for example 1.30."""


def directory_of(module: str) -> Path:
    """Return the directory of the ``go.mod`` that pins ``module``."""
    other = os.environ.get(OTHER_KUBERNETES, "") if module == KUBERNETES else ""
    directory = HERE / f"kubernetes-{other}" if other else HERE
    if not (directory / "go.mod").is_file():
        known = ", ".join(path.name.removeprefix("kubernetes-") for path in HERE.glob("kubernetes-*"))
        raise NodeError(
            f"{OTHER_KUBERNETES} is {other}, and there is no {directory}/go.mod; set it to: {known}"
        )
    return directory


def version_of(module: str, directory: Path | None = None) -> str:
    """Return the version of ``module`` in its ``go.mod``, or that of ``directory``; for example v1.37.2."""
    pins = (directory or directory_of(module)) / "go.mod"
    found = re.search(rf"^(?:require)?\s+{re.escape(module)} (v\S+)", pins.read_text(), re.MULTILINE)
    if found is None:
        raise NodeError(f"{pins} does not require {module}")
    return found[1]


def kubernetes_release() -> tuple[int, int]:
    """Return the major and minor version of the Kubernetes of the tests, for example (1, 37)."""
    major, minor, _ = version_of(KUBERNETES).removeprefix("v").split(".", 2)
    return int(major), int(minor)


@dataclass(frozen=True)
class BuiltProgram:
    """A program: its file name, its Go package, and the module that has its version."""

    name: str
    package: str
    module: str

    @property
    def directory(self) -> Path:
        """The directory of the ``go.mod`` that pins it."""
        return HERE if self.name == "kubectl" else directory_of(self.module)

    @property
    def version(self) -> str:
        return version_of(self.module, self.directory)

    @property
    def path(self) -> Path:
        """Its path in the cache, whether it exists yet or not."""
        pinned = [(self.directory / name).read_text() for name in ("go.mod", "go.sum")]
        key = key_of(self.name, self.package, self.ldflags, *pinned, GO, platform.machine())
        return cache_dir() / "go" / f"{self.name}-{self.version}-{key}" / self.name

    @property
    def ldflags(self) -> str:
        """Linker flags that set its version, as upstream's builds do; etcd has its version in the source."""
        version = self.version
        values = {}
        if self.module == KUBERNETES:
            major, minor, _ = version.removeprefix("v").split(".", 2)
            place = "k8s.io/component-base/version"
            values = {f"{place}.git{what}": value for what, value in (("Major", major), ("Minor", minor))}
            values[f"{place}.gitVersion"] = version
        elif self.module == HELM:
            values = {f"{HELM}/internal/version.version": version}
        return " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in values.items())])


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
"""The programs that every cluster needs. The others are built on demand."""


def missing_prerequisites(names: Iterable[str] = CONTROL_PLANE) -> str:
    """Return why this machine cannot start a cluster of these programs, with the remedy; empty if it can."""
    if shutil.which("setpriv") is None:
        return "setpriv is missing, which ends programs with the tests: run: apt-get install util-linux"
    return missing_go() if to_build(names) else ""


def to_build(names: Iterable[str] = CONTROL_PLANE) -> list[str]:
    """Return the programs among ``names`` that are not cached yet."""
    return [name for name in names if not BUILT_PROGRAMS[name].path.exists()]


def program(name: str) -> Path:
    """Return the path of a program of :data:`BUILT_PROGRAMS`; build it if it is not cached.

    The first build takes minutes, a download and 3 GB of Go's caches; the next ones reuse most of it.
    Two processes that want the same program build it once. Raises :class:`NodeError` with the last lines
    of Go's output.
    """
    part = BUILT_PROGRAMS[name]
    if part.path.exists():
        return part.path  # without the lock, which may belong to root

    def make(directory: Path) -> None:
        if reason := missing_go():
            raise NodeError(reason)
        source = directory / "source"
        source.mkdir()
        for file in ("go.mod", "go.sum"):
            shutil.copy(part.directory / file, source)
        flags = ["-trimpath", "-buildvcs=false", "-mod=readonly", f"-ldflags={part.ldflags}"]
        command = ["nice", toolchain(), "build", *flags, "-o", str(directory / name), part.package]
        output(run(command, source, {"CGO_ENABLED": "0"}))
        shutil.rmtree(source)

    made_once(part.path.parent, make)
    return part.path
