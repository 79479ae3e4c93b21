"""Releases: made from a commit, pushed to a registry, installed from there, upgraded and uninstalled."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster import conftest, programs, registry
from cluster.helm_releases import JOBS, LIMIT, NAMESPACE, PreparedNode
from cluster.joined_node import JoinedNode
from cluster.registry import Registry
from cluster.test_stages import payload_that_runs
from node import images
from node.cache import CHECKOUT
from node.containerd_build import NEWEST
from node.installation import HANDLERS, fake_kvm

pytestmark = pytest.mark.release

VERSIONS = ("7.0.0", "7.0.1")
"""Two versions that nobody has released."""

IMAGES = ("kata-node", "kata-deploy-job-dispatcher")
DEBIAN = {"amd64": "amd64", "arm64": "arm64", "ppc64le": "ppc64el", "s390x": "s390x"}
"""The architectures of a release -> what Debian calls them."""
PAYLOAD = "kata/payload:4.1.0"


@dataclass(frozen=True)
class Repository:
    """A git repository with the files of this checkout, in which releases are made."""

    directory: Path

    @classmethod
    def made(cls, directory: Path) -> Repository:
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
        for name in filter(None, names.split("\0")):
            if (CHECKOUT / name).exists():
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(CHECKOUT / name, directory / name)
        repository = cls(directory)
        repository.git("init", "--quiet")
        return repository

    def git(self, *arguments: str) -> None:
        who = {"GIT_AUTHOR_NAME": "A", "GIT_COMMITTER_NAME": "A"}
        who |= {"GIT_AUTHOR_EMAIL": "a@example.org", "GIT_COMMITTER_EMAIL": "a@example.org"}
        # Always the same time, so that the next run of the tests finds the first layers in buildah's cache.
        who |= {"GIT_AUTHOR_DATE": "2026-11-30T09:00:00Z", "GIT_COMMITTER_DATE": "2026-11-30T09:00:00Z"}
        subprocess.run(["git", *arguments], cwd=self.directory, env={**os.environ, **who}, check=True)

    def commit(self, version: str) -> None:
        """Commit all files as ``version``."""
        for name, pattern, text in (
            ("kata_node/__init__.py", r"__version__ = .*", f'__version__ = "{version}"'),
            ("assets/chart/kata-deploy/Chart.yaml", r"^version: .*", f"version: {version}"),
            ("assets/chart/kata-deploy/Chart.yaml", r"^appVersion: .*", f"appVersion: {version}"),
            ("CHANGELOG.md", r"^## \[Unreleased\]", f"## [Unreleased]\n\n## [{version}] - 2026-12-01"),
        ):
            path = self.directory / name
            path.write_text(re.sub(pattern, text, path.read_text(), count=1, flags=re.MULTILINE))
        self.git("add", "--all")
        self.git("commit", "--quiet", f"--message=Release {version}")

    def release(self, version: str, *options: str, output: Path | None = None) -> Path:
        """Run scripts/release, and return the directory of the release."""
        command = [sys.executable, "scripts/release", version, *options]
        if output:
            command.append(f"--output={output}")
        env = {**os.environ, "HELM": str(programs.program("helm"))}
        subprocess.run(command, cwd=self.directory, env=env, check=True)
        return output or self.directory / f"dist/kata-node-{version}"


@dataclass(frozen=True)
class Published:
    """A registry with a release, the repository that it was made in, and the key."""

    registry: Registry
    repository: Repository
    directory: Path
    key: Path

    @property
    def place(self) -> str:
        return f"{self.registry.host}/kata"

    def publish(self, version: str, *options: str) -> Path:
        """Make a release and push it."""
        push = (f"--push={self.place}", "--plain-http", f"--key={self.key}")
        return self.repository.release(version, *push, *options)

    def digest(self, name: str, version: str = VERSIONS[0]) -> str:
        """Return the digest of an image in the registry."""
        show = ["skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{self.place}/{name}:{version}"]
        raw = subprocess.run(show, capture_output=True, check=True).stdout
        return f"sha256:{hashlib.sha256(raw).hexdigest()}"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, needs_nodes: None) -> Iterator[Published]:
    """A release of all architectures, made and pushed; the images have been run."""
    conftest.skip_if_missing(registry.missing_prerequisites() or images.missing_prerequisites())
    scratch = tmp_path_factory.mktemp("release")
    key = scratch / "key.pem"
    curve = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    subprocess.run(["openssl", "genpkey", *curve, "-out", key], check=True, capture_output=True)
    repository = Repository.made(scratch / "repository")
    repository.commit(VERSIONS[0])
    (scratch / "registry").mkdir()
    with registry.serving(scratch / "registry") as serving:
        published = Published(
            serving, repository, repository.directory / f"dist/kata-node-{VERSIONS[0]}", key
        )
        published.publish(VERSIONS[0], "--check")
        yield published


def openssl_verifies(public: Path, signature: str, data: Path) -> bool:
    """Return whether openssl says that ``signature``, in base64, is one of ``data``."""
    binary = data.with_name(f"{data.name}.binary")
    binary.write_bytes(base64.b64decode(signature))
    verify = ("dgst", "-sha256", "-verify", public, "-signature", binary, data)
    return subprocess.run(["openssl", *verify], capture_output=True, check=False).returncode == 0


def test_everything_that_was_made_is_listed_signed_and_in_the_registry(
    published: Published, tmp_path: Path
) -> None:
    made = published.directory
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    subprocess.run(check, cwd=made, check=True)
    sums = tmp_path / "SHA256SUMS"
    shutil.copy(made / "SHA256SUMS", sums)
    assert openssl_verifies(made / "cosign.pub", (made / "SHA256SUMS.sig").read_text(), sums)

    names = (*IMAGES, "kata-deploy")
    digests = {name: published.digest(name) for name in names}
    statement = json.loads((made / "provenance.intoto.json").read_bytes())
    subjects = {each["name"]: each["digest"]["sha256"] for each in statement["subject"]}
    assert {name: f"sha256:{subjects[f'{published.place}/{name}']}" for name in names} == digests
    for name, digest in digests.items():
        tag = f"{digest.replace(':', '-')}.sig"
        copied = published.registry.copy(f"kata/{name}:{tag}", tmp_path / name)
        (layer,) = json.loads(copied.read_bytes())["layers"]
        payload = copied.with_name(layer["digest"].removeprefix("sha256:"))
        assert json.loads(payload.read_bytes())["critical"]["image"] == {"docker-manifest-digest": digest}
        signature = layer["annotations"]["dev.cosignproject.cosign/signature"]
        assert openssl_verifies(made / "cosign.pub", signature, payload)
        payload.write_bytes(payload.read_bytes().replace(b"sha256:", b"sha256;"))
        assert not openssl_verifies(made / "cosign.pub", signature, payload)


def test_a_second_run_without_caches_makes_the_same_files(published: Published, tmp_path: Path) -> None:
    again = published.repository.release(
        *(VERSIONS[0], f"--registry={published.place}", f"--key={published.key}", "--no-cache"),
        output=tmp_path / "again",
    )
    assert (again / "SHA256SUMS").read_text() == (published.directory / "SHA256SUMS").read_text()
    assert (again / "SHA256SUMS.sig").read_text() == (published.directory / "SHA256SUMS.sig").read_text()


def test_an_image_is_one_index_of_all_architectures(published: Published) -> None:
    for name in IMAGES:
        show = ["skopeo", "inspect", "--tls-verify=false", "--raw"]
        tag = f"docker://{published.place}/{name}:{VERSIONS[0]}"
        index = json.loads(subprocess.run([*show, tag], capture_output=True, check=True).stdout)
        found = [each["platform"]["architecture"] for each in index["manifests"]]
        assert found == list(DEBIAN)
        assert len({each["digest"] for each in index["manifests"]}) == len(DEBIAN)


def test_the_bill_of_materials_of_an_architecture_has_its_packages(published: Published) -> None:
    for architecture, debian in DEBIAN.items():
        bill = json.loads(
            (published.directory / f"kata-node-{VERSIONS[0]}-{architecture}.cdx.json").read_bytes()
        )
        found = {each["purl"].partition("@")[0]: each for each in bill["components"]}
        assert f"arch={debian}" in found["pkg:deb/debian/libc6"]["purl"]
        assert found["pkg:pypi/kata-node"]["version"] == VERSIONS[0]
        compiled = {name for name, each in found.items() if each.get("properties")}
        expected = {"pkg:pypi/msgspec", "pkg:pypi/psutil"}
        assert compiled == (expected if architecture in ("ppc64le", "s390x") else set())
        assert expected <= set(found)


@pytest.fixture
def node(published: Published, needs_nodes: None, tmp_path: Path) -> Iterator[JoinedNode]:
    """A node whose containerd pulls from the registry, in a cluster; no image of ours is on it."""
    with conftest.boot_joined_node(f"release-{os.getpid()}", scheduler=True, containerd=NEWEST) as joined:
        published.registry.open_to(joined)
        payload = payload_that_runs(joined.node, tmp_path / "payload")
        archive = images.payload(payload, tmp_path / "payload.tar", PAYLOAD)
        published.registry.push(archive, PAYLOAD)
        fake_kvm(joined.node)
        yield joined


def pulled_images(joined: JoinedNode) -> set[str]:
    """Return the images that the node has pulled from the registry, by their digests."""
    done = joined.node.run(["ctr", "--namespace=k8s.io", "images", "list", "--quiet"])
    return {line for line in done.stdout.splitlines() if "@sha256:" in line and line.startswith("127.")}


def test_a_release_is_installed_from_the_registry_upgraded_and_uninstalled(
    published: Published, node: JoinedNode, tmp_path: Path
) -> None:
    prepared = PreparedNode(node)
    values: dict[str, Any] = {
        **JOBS,
        "imagePullPolicy": "IfNotPresent",
        "image": {"reference": f"{published.place}/payload", "tag": "4.1.0"},
    }
    file = tmp_path / "values.json"
    file.write_text(json.dumps(values))
    chart = f"oci://{published.place}/kata-deploy"
    where = (f"--namespace={NAMESPACE}", f"--timeout={LIMIT}s")

    def helm(action: str, version: str) -> None:
        options = (f"--version={version}", "--plain-http", f"--values={file}", "--create-namespace", "--wait")
        node.cluster.helm(action, "kata-deploy", chart, *where, *options)

    helm("install", VERSIONS[0])
    assert prepared.handlers == HANDLERS
    assert prepared.labels["katacontainers.io/kata-runtime"] == "true"
    pulled = {f"{published.place}/{name}@{published.digest(name)}" for name in IMAGES}
    assert pulled <= pulled_images(node)

    published.repository.commit(VERSIONS[1])
    published.publish(VERSIONS[1], "--architecture=amd64")
    invocation = prepared.invocation
    helm("upgrade", VERSIONS[1])
    assert f"{published.place}/kata-node@{published.digest('kata-node', VERSIONS[1])}" in pulled_images(node)
    assert prepared.handlers == HANDLERS
    assert prepared.invocation == invocation  # the payload is the same, so containerd was not restarted

    node.cluster.helm("uninstall", "kata-deploy", *where)
    assert prepared.is_clean
