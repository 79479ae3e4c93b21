"""scripts/release: what a release says about itself, and when it refuses."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from _release import chart, checksums, cli, images, provenance, sbom, signatures, source
from _release.errors import ReleaseError
from _release.oci import Layout
from _release.signatures import Key
from _release.source import Source

CHECKOUT = Path(__file__).resolve().parents[2]
VALUES = (CHECKOUT / "assets/chart/kata-deploy/values.yaml").read_text()
SOURCE = Source("1.2.3", "c" * 40, 1_700_000_000, "https://example.org/kata-node.git")
DIGEST = f"sha256:{'d' * 64}"
DIGESTS = {"kata-node": f"sha256:{'a' * 64}", "kata-deploy-job-dispatcher": f"sha256:{'b' * 64}"}
IMAGE = sbom.Image("kata-node", "1.2.3", "arm64", DIGEST, SOURCE.epoch)


def layer(files: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return content.getvalue()


def image(directory: Path, *layers: bytes) -> tuple[Layout, str]:
    """Write an image of these layers, and return its layout and digest."""
    layout = Layout(directory)
    written = [layout.write("application/vnd.oci.image.layer.v1.tar+gzip", each) for each in layers]
    manifest = layout.write_manifest(layout.write("application/json", b"{}"), written)
    layout.name({"1.2.3": manifest})
    return layout, str(manifest["digest"])


LAYER = layer(
    {
        "usr/lib/os-release": 'NAME="Debian GNU/Linux"\nVERSION_ID="13"\n',
        "usr/bin/python3.13": "not a package",
        "var/lib/dpkg/status.d/libc6": "Package: libc6\nVersion: 2.41-12\nArchitecture: arm64\n",
        "usr/lib/kata-node/lib/python3.13/site-packages/pyyaml-6.0.3.dist-info/METADATA": (
            "Metadata-Version: 2.4\nName: PyYAML\nVersion: 6.0.3\nLicense-Expression: MIT\n"
        ),
    }
)


def test_a_bill_of_materials_has_the_packages_that_are_in_the_image(tmp_path: Path) -> None:
    layout, digest = image(tmp_path / "layout", LAYER)
    targets = [tmp_path / "first.json", tmp_path / "second.json"]
    for target in targets:
        sbom.write(layout, sbom.Image(**{**vars(IMAGE), "digest": digest}), tmp_path / target.stem, target)
    first, second = (target.read_bytes() for target in targets)
    assert first == second
    bill = json.loads(first)
    assert {each["purl"] for each in bill["components"]} == {
        "pkg:deb/debian/libc6@2.41-12?arch=arm64&distro=debian-13",
        "pkg:pypi/pyyaml@6.0.3",
    }
    assert [each["licenses"] for each in bill["components"] if each["name"] == "PyYAML"] == [
        [{"license": {"id": "MIT"}}]
    ]
    assert bill["metadata"]["component"]["purl"] == f"pkg:oci/kata-node@{digest}?arch=arm64"
    assert bill["metadata"]["timestamp"] == "2023-11-14T22:13:20+00:00"


PSUTIL = "usr/lib/kata-node/lib/python3.13/site-packages/psutil"
COMPILED = {
    f"{PSUTIL}/_psutil_linux.abi3.so": "\x7fELF GCC: (Debian 14.2.0-19) 14.2.0",
    f"{PSUTIL}-7.2.2.dist-info/METADATA": "Metadata-Version: 2.4\nName: psutil\nVersion: 7.2.2\n",
    f"{PSUTIL}-7.2.2.dist-info/RECORD": "psutil/_psutil_linux.abi3.so,,\n",
    f"{PSUTIL}-7.2.2.dist-info/WHEEL": "Wheel-Version: 1.0\nTag: cp36-abi3-linux_s390x\n",
}


@pytest.mark.parametrize(
    ("tag", "compiler"), [("linux_s390x", "Debian 14.2.0-19"), ("manylinux_2_28_x86_64", "")]
)
def test_the_bill_names_the_compiler_of_what_was_compiled_for_the_image(
    tmp_path: Path, tag: str, compiler: str
) -> None:
    files = {name: text.replace("linux_s390x", tag) for name, text in COMPILED.items()}
    layout, digest = image(tmp_path / "layout", LAYER, layer(files))
    root, target = tmp_path / "root", tmp_path / "bill.json"
    sbom.write(layout, sbom.Image(**{**vars(IMAGE), "digest": digest}), root, target)
    found = {
        each["name"]: each.get("properties", []) for each in json.loads(target.read_bytes())["components"]
    }
    expected = [{"name": "kata-node:compiler", "value": compiler}] if compiler else []
    assert found == {"libc6": [], "psutil": expected, "PyYAML": []}
    assert sbom.compilers(root) == ({compiler} if compiler else set())


def test_a_compiled_library_that_does_not_tell_its_compiler_is_refused(tmp_path: Path) -> None:
    files = {name: text.replace("GCC:", "") for name, text in COMPILED.items()}
    layout, digest = image(tmp_path / "layout", LAYER, layer(files))
    with pytest.raises(ReleaseError, match="no library of psutil says which compiler made it"):
        sbom.write(layout, replace(IMAGE, digest=digest), tmp_path / "root", tmp_path / "bill.json")


def test_a_layer_that_removes_files_is_refused(tmp_path: Path) -> None:
    layout, digest = image(tmp_path / "layout", LAYER, layer({"usr/lib/.wh.os-release": ""}))
    with pytest.raises(ReleaseError, match="removes"):
        sbom.unpack(layout, digest, tmp_path / "root")


def test_the_provenance_names_sources_and_materials() -> None:
    pins = f"# comment\n{'e' * 64}  zlib1g_1%3a1.3-1_amd64.deb\n"
    made = provenance.statement(
        SOURCE,
        {"b.tgz": "2" * 64, "a.whl": "1" * 64},
        {"registry": ""},
        provenance.debian(pins),
        {"helm": "v4"},
    )
    assert made["_type"] == "https://in-toto.io/Statement/v1"
    assert made["predicateType"] == "https://slsa.dev/provenance/v1"
    assert [each["name"] for each in made["subject"]] == ["a.whl", "b.tgz"]
    commit, package = made["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert commit["uri"] == f"git+https://example.org/kata-node.git@{SOURCE.commit}"
    assert commit["digest"] == {"gitCommit": SOURCE.commit}
    assert package == {
        "uri": "pkg:deb/debian/zlib1g@1:1.3-1?arch=amd64",
        "digest": {"sha256": "e" * 64},
    }


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("https://user:secret@example.org/kata/node.git?token=secret", "https://example.org/kata/node.git"),
        ("ssh://git@example.org:22/kata-node", "ssh://example.org:22/kata-node"),
        ("/home/me/kata-node", ""),
        ("file:///home/me/kata-node", ""),
        ("git@example.org:kata/node.git", "ssh://example.org/kata/node.git"),
        ("", ""),
    ],
)
def test_the_url_of_the_source_has_no_credentials_and_no_path_of_this_machine(url: str, public: str) -> None:
    assert source.public_url(url) == public


def test_checksums_find_a_file_that_was_changed_added_or_removed(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.whl", "images/blob"):
        (tmp_path / name).write_text(name)
    sums = checksums.write(tmp_path).read_text()
    assert f"{hashlib.sha256(b'images/blob').hexdigest()}  images/blob\n" in sums
    (tmp_path / checksums.SIGNATURE).write_text("made afterwards")
    checksums.verify(tmp_path)
    (tmp_path / "a.whl").write_text("changed")
    (tmp_path / "new").write_text("added")
    (tmp_path / "images/blob").unlink()
    with pytest.raises(ReleaseError, match=r"a\.whl, images/blob, new"):
        checksums.verify(tmp_path)


@pytest.mark.parametrize("registry", ["registry.example.org:5000/kata", ""])
def test_the_chart_pins_the_images_and_changes_nothing_else(registry: str) -> None:
    values = chart.pinned(VALUES, registry, DIGESTS)
    before, after = yaml.safe_load(VALUES), yaml.safe_load(values)
    place = f"{registry}/" if registry else ""
    for name, block in (
        ("kata-node", after["nodeImage"]),
        ("kata-deploy-job-dispatcher", after["job"]["dispatcherImage"]),
    ):
        assert block == {"reference": f"{place}{name}" if registry else "", "tag": DIGESTS[name]}
    before["nodeImage"], before["job"]["dispatcherImage"] = (
        after["nodeImage"],
        after["job"]["dispatcherImage"],
    )
    assert before == after
    comments = re.compile(r"^ *#.*$", re.MULTILINE)
    assert comments.findall(values) == comments.findall(VALUES)


def test_a_chart_without_the_keys_of_the_images_is_refused() -> None:
    with pytest.raises(ReleaseError, match=r"no empty nodeImage\.tag"):
        chart.pinned(VALUES.replace('  tag: ""\n\n# Not used', '  tag: "1"\n\n# Not used'), "", DIGESTS)


@pytest.fixture(scope="module")
def key() -> Key:
    return Key(ec.generate_private_key(ec.SECP256R1()))


def test_the_signature_of_an_index_and_of_its_images_is_what_cosign_looks_for(
    tmp_path: Path, key: Key
) -> None:
    signed = Layout(tmp_path / "images/kata-node")
    manifest = signed.write("application/vnd.oci.image.manifest.v1+json", b'{"schemaVersion":2}')
    index = signed.write(
        "application/json",
        json.dumps({"manifests": [{**manifest, "platform": {"architecture": "amd64"}}]}).encode(),
    )
    layout = Layout(tmp_path / "signatures/kata-node")
    signatures.write(layout, signed, "registry.example.org/kata-node", index["digest"], key)

    names = layout.names()
    assert set(names) == {f"{each['digest'].replace(':', '-')}.sig" for each in (index, manifest)}
    (found,) = layout.read(names[signatures.tag(index["digest"])])["layers"]
    assert found["mediaType"] == "application/vnd.dev.cosign.simplesigning.v1+json"
    payload = layout.blob(found["digest"]).read_bytes()
    assert json.loads(payload) == {
        "critical": {
            "identity": {"docker-reference": "registry.example.org/kata-node"},
            "image": {"docker-manifest-digest": index["digest"]},
            "type": "cosign container image signature",
        },
        "optional": None,
    }
    public = serialization.load_pem_public_key(key.public())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    signature = base64.b64decode(found["annotations"]["dev.cosignproject.cosign/signature"])
    public.verify(signature, payload, ec.ECDSA(hashes.SHA256()))  # raises if it does not fit
    config = layout.read(layout.read(names[signatures.tag(index["digest"])])["config"]["digest"])
    assert config["rootfs"]["diff_ids"] == [found["digest"]]


def test_the_envelope_signs_the_statement_with_its_type(key: Key) -> None:
    statement = b'{"predicateType":"https://slsa.dev/provenance/v1"}'
    found = json.loads(signatures.envelope(statement, key))
    assert base64.b64decode(found["payload"]) == statement
    # As the protocol writes it for a payload of 50 bytes.
    signed = b"DSSEv1 28 application/vnd.in-toto+json 50 " + statement
    public = serialization.load_pem_public_key(key.public())
    assert isinstance(public, ec.EllipticCurvePublicKey)
    [each] = found["signatures"]
    public.verify(base64.b64decode(each["sig"]), signed, ec.ECDSA(hashes.SHA256()))
    assert found["payloadType"] == "application/vnd.in-toto+json"


def pem(key: Any, password: bytes = b"") -> bytes:
    form = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, form))


def test_the_same_key_signs_the_same_way_and_may_be_encrypted(
    tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.pem").write_bytes(pem(key.private, b"secret"))
    with pytest.raises(ReleaseError, match="RELEASE_KEY_PASSWORD"):
        Key.read(tmp_path / "key.pem")
    monkeypatch.setenv("RELEASE_KEY_PASSWORD", "secret")
    assert Key.read(tmp_path / "key.pem").sign(b"data") == key.sign(b"data")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        (b"text", "not a private key in PEM"),
        (b"-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----", "cosign's own form"),
        (pem(ec.generate_private_key(ec.SECP384R1())), "not a key for ECDSA on the curve P-256"),
        (pem(rsa.generate_private_key(65537, 2048)), "not a key for ECDSA on the curve P-256"),
    ],
)
def test_another_key_is_refused_with_the_command_that_makes_one(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)
    with pytest.raises(ReleaseError, match=says) as refused:
        Key.read(tmp_path / "key")
    assert "openssl genpkey" in str(refused.value)


def release_in(directory: Path, registry: str, key: Key) -> Path:
    """Write what :func:`cli.require_same` reads of a release."""
    parameters = {"registry": registry}
    statement = provenance.statement(SOURCE, {}, parameters, [], {})
    (directory / cli.PROVENANCE).write_text(json.dumps(statement))
    (directory / cli.PUBLIC_KEY).write_bytes(key.public())
    checksums.write(directory)
    return directory


def test_only_the_same_release_is_pushed_without_making_it_again(tmp_path: Path, key: Key) -> None:
    directory = release_in(tmp_path, "registry.example.org", key)
    wanted = cli.Request(SOURCE, "registry.example.org", images.BuildOptions(), key)
    cli.require_same(wanted, directory)
    other_key = Key(ec.generate_private_key(ec.SECP256R1()))
    for other, says in (
        (replace(wanted, source=replace(SOURCE, commit="e" * 40)), "another commit"),
        (replace(wanted, registry="mirror.example.org"), "another registry"),
        (replace(wanted, key=other_key), "not signed with this key"),
    ):
        with pytest.raises(ReleaseError, match=says):
            cli.require_same(other, directory)
    (directory / "added").write_text("")
    with pytest.raises(ReleaseError, match="not as it was made"):
        cli.require_same(wanted, directory)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout that is ready for version 1.2.3."""
    for name, text in {
        "kata_node/__init__.py": '__version__ = "1.2.3"\n',
        "assets/chart/kata-deploy/Chart.yaml": "version: 1.2.3\nappVersion: 1.2.3\n",
        "CHANGELOG.md": "## [Unreleased]\n\n## [1.2.3] - 2026-12-01\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "old", "new", "says"),
    [
        ("kata_node/__init__.py", "1.2.3", "1.2.2", '1.2.2, not 1.2.3\n  hint: set `__version__ = "1.2.3"`'),
        ("assets/chart/kata-deploy/Chart.yaml", "appVersion: 1.2.3", "appVersion: 1.2.2", "1.2.2, not 1.2.3"),
        ("CHANGELOG.md", "[1.2.3]", "[1.2.2]", "no section for 1.2.3"),
    ],
)
def test_a_version_that_a_file_does_not_have_is_refused(
    checkout: Path, name: str, old: str, new: str, says: str
) -> None:
    source.require_version(checkout, "1.2.3")
    (checkout / name).write_text((checkout / name).read_text().replace(old, new))
    with pytest.raises(ReleaseError, match=re.escape(says)):
        source.require_version(checkout, "1.2.3")


@pytest.mark.commands  # git
def test_only_a_commit_without_changes_is_released(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def git(*arguments: str) -> None:
        who = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", *who, *arguments], cwd=checkout, check=True, capture_output=True)

    with pytest.raises(ReleaseError, match="not a git checkout"):
        source.released(checkout, "1.2.3")
    git("init", "--quiet")
    with pytest.raises(ReleaseError, match=r"no commit has: .*CHANGELOG\.md"):
        source.released(checkout, "1.2.3")
    git("add", ".")
    git("commit", "--quiet", "--message=all")
    released = source.released(checkout, "1.2.3")
    (checkout / "ignored").write_text("not of the commit")
    export = source.export(checkout, released, tmp_path_factory.mktemp("export") / "source")
    assert not (export / "ignored").exists()
    assert (export / "CHANGELOG.md").stat().st_mtime == released.epoch
    with pytest.raises(ReleaseError, match="of three numbers"):
        source.released(checkout, "v1.2.3")


@pytest.mark.commands
def test_a_registry_that_is_none_is_refused_before_anything_is_built() -> None:
    command = [sys.executable, str(CHECKOUT / "scripts/release"), "1.2.3", "--registry=a b"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines() == [
        "release: a b is not a registry",
        "  hint: write its host and a path, for example registry.example.org/kata",
    ]


def test_programs_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from _release.commands import require

    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("HELM", raising=False)
    for name, hint in (("buildah", "apt-get install buildah"), ("helm", "in the variable HELM")):
        with pytest.raises(ReleaseError, match=f"{name} is not installed\n  hint: .*{hint}"):
            require([name])
