"""The runtime's version from options, runtimes, packages and files."""

from __future__ import annotations

import pytest

from kata_node.errors import KataNodeError, SettingsError
from kata_node.versions import parse_version, runtime_version, unsupported_reason, version_from_files


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("2.1.9", (2, 1, 9)),
        ("v2.1.9", (2, 1, 9)),
        ("v2.1.9-k3s1", (2, 1, 9)),
        ("2.2.2-bd1.34", (2, 2, 2)),
        ("2.1.9~ds1-1", (2, 1, 9)),
        ("2.1.9+unknown", (2, 1, 9)),
        ("1.7.24~ds1-6+deb13u1+b3", (1, 7, 24)),
        ("2.1.5-1~debian.12~bookworm", (2, 1, 5)),
        ("1:2.0.4-1", (2, 0, 4)),
        ("2.3.0-beta.1", (2, 3, 0)),
        ("2.2", (2, 2, 0)),
        (" 10.20.30\n", (10, 20, 30)),
    ],
)
def test_versions_of_runtimes_and_packages_are_parsed(text: str, numbers: tuple[int, int, int]) -> None:
    version = parse_version(text)
    assert (version.major, version.minor, version.patch) == numbers
    assert str(version) == text.strip()


@pytest.mark.parametrize(
    "text", ["", "2", "two", "2.x", "2.1.9 and more", "-2.1", "2.1.9/3", "\u0662.\u0661", "2..1"]
)
def test_a_text_that_is_not_a_version_is_an_error_with_its_source(text: str) -> None:
    with pytest.raises(KataNodeError, match="is not a version") as caught:
        parse_version(text, where="the CRI")
    assert caught.value.where == "the CRI"
    assert "containerd://2.1.9" in caught.value.hint


def test_a_version_is_at_least_itself_and_earlier_versions() -> None:
    version = parse_version("2.10.1")
    assert version.at_least(2, 10)
    assert version.at_least(2, 9)
    assert version.at_least(1, 11)
    assert not version.at_least(2, 11)
    assert not version.at_least(3, 0)


def test_the_runtime_option_is_parsed() -> None:
    runtime = runtime_version("containerd://v2.1.9-k3s1")
    assert (runtime.name, runtime.version.patch) == ("containerd", 9)
    assert str(runtime) == "containerd://v2.1.9-k3s1"
    assert runtime_version("cri-o://1.36.3").name == "cri-o"


@pytest.mark.parametrize(
    "flag",
    [
        "",
        "containerd",
        "2.1.9",
        "containerd:2.1.9",
        "containerd://",
        "docker://28.0.0",
        "containerd://latest",
    ],
)
def test_a_malformed_runtime_option_is_an_error_with_an_example(flag: str) -> None:
    with pytest.raises(SettingsError) as caught:
        runtime_version(flag)
    assert caught.value.exit_code == 2
    assert caught.value.where == "--runtime"
    assert "containerd://2.1.9" in caught.value.hint


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("containerd://2.0.0", None),
        ("containerd://2.3.4", None),
        ("containerd://1.7.34", None),
        ("containerd://1.6.0", None),
        ("containerd://1.5.18", "containerd 1.5.18 is too old; this release needs 1.6 or later"),
        ("containerd://3.0.0", "containerd 3.0.0 is too new; this release supports versions up to 2.x"),
        ("cri-o://1.30.0", None),
        ("cri-o://1.29.9", "CRI-O 1.29.9 does not report its handlers; this release needs 1.30 or later"),
    ],
)
def test_unsupported_runtimes_are_reported_with_the_reason(flag: str, reason: str | None) -> None:
    assert unsupported_reason(runtime_version(flag)) == reason


def package(name: str, version: str, status: str = "install ok installed") -> str:
    return f"Package: {name}\nStatus: {status}\nDescription: first line\n and: more\nVersion: {version}\n"


@pytest.mark.parametrize(
    ("packages", "config", "text"),
    [
        pytest.param([package("containerd", "2.1.9~ds1-1")], None, "2.1.9~ds1-1", id="Debian's package"),
        pytest.param(
            [package("containerd.io", "2.2.1-1~debian.13")], None, "2.2.1-1~debian.13", id="Docker's"
        ),
        pytest.param(
            [package("runc", "1.3.0"), package("containerd", "2.1.9"), package("zlib", "1")],
            "version = 4",
            "2.1.9",
            id="the package decides, not the file",
        ),
        pytest.param(
            [package("containerd", "2.1.9", "install ok unpacked")], None, None, id="not yet configured"
        ),
        pytest.param(
            [package("containerd", "2.1.9", "deinstall ok config-files"), package("containerd.io", "2.2.0")],
            None,
            "2.2.0",
            id="one removed, one installed",
        ),
        pytest.param(
            [package("containerd", "2.1.9"), package("containerd.io", "1.7.0")],
            "version = 3",
            None,
            id="two installed",
        ),
        pytest.param([package("containerd", "unknown")], "version = 3", None, id="a version that is none"),
        pytest.param(
            [package("containerd-dev", "2.1.9"), package("golang-containerd", "2.1.9")],
            None,
            None,
            id="others",
        ),
        pytest.param([], "version = 3", "2.0.0", id="schema 3"),
        pytest.param([], "version = 4", "2.3.0", id="schema 4"),
        pytest.param([], "version = 2", None, id="schema 2 says nothing"),
        pytest.param([], "version = '3'", None, id="not a number"),
        pytest.param([], "version = ", None, id="broken"),
        pytest.param([], None, None, id="nothing there"),
    ],
)
def test_the_version_comes_from_files_when_no_runtime_runs(
    packages: list[str], config: str | None, text: str | None
) -> None:
    status = "\n".join(packages).encode() if packages else None
    version = version_from_files(status, None if config is None else config.encode())
    assert (None if version is None else version.text) == text


def test_files_that_are_not_text_are_ignored() -> None:
    assert version_from_files(
        b"\xff\n\n" + package("containerd", "2.1.9").encode(), b"\xff"
    ) == parse_version("2.1.9")
    assert version_from_files(b"\xff", b"\xff") is None
