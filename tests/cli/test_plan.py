"""What ``plan`` and ``--dry-run`` print: a summary, the steps of the stages, and diffs of configuration."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.cli_runner import MAIN, CliRunner, open_cli_runner
from kata_node.cli import context
from kata_node.plan import dry_run

QEMU_CONFIG = "opt/kata/share/defaults/kata-containers/runtimes/qemu/configuration-qemu.toml"
DROP_IN = "opt/kata/containerd/config.d/99-kata-deploy.toml"
FREE = re.compile(r"[\d.]+ (?:B|[KMG]iB) free at")


@pytest.fixture
def cli_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    with open_cli_runner(tmp_path, capsys) as cli_runner:
        yield cli_runner


@pytest.fixture
def installed(cli_runner: CliRunner) -> CliRunner:
    assert cli_runner.offline("install").code == 0
    return cli_runner


def edit(runner: CliRunner, path: str, old: str, new: str) -> None:
    file = runner.host / path
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


def rows(text: str) -> dict[str, list[str]]:
    """Return the summary of a plan: the lines by the name in their first column."""
    found: dict[str, list[str]] = {}
    lines = text.partition("\n\n")[0].splitlines()
    assert lines[0] == "would change:"
    name = ""
    for line in lines[1:]:
        name = line[2:17].strip() or name
        found.setdefault(name, []).append(line[17:])
    return found


def test_a_plan_of_a_first_install_begins_with_its_summary(cli_runner: CliRunner) -> None:
    before = cli_runner.files()
    plan = cli_runner.offline("plan")
    assert plan.code == 10
    text = FREE.sub("SIZE free at", plan.out)
    summary, stages, *diffs = text.split("\n\n")
    assert summary.splitlines() == [
        "would change:",
        "  files          11 files to place (4.0 MiB)",
        f"  configuration  create /{DROP_IN}",
        f"                 change /{MAIN}",
        "  restart        no",
        "  handlers       add kata-qemu",
        "  pods           none in the way",
        "  space          4.0 MiB to write, SIZE free at /",
    ]
    assert "  - place 11 files (4.0 MiB) below /opt/kata" in stages.splitlines()
    assert f"  - change /{MAIN}" in stages.splitlines()
    assert "  pass  " not in stages, "findings that need no attention are counted, and not listed"
    assert [diff.splitlines()[1] for diff in diffs] == [f"+++ /{DROP_IN}", f"+++ /{MAIN}"]
    assert "place /opt/kata/VERSION" not in text
    assert cli_runner.files() == before


def test_a_verbose_plan_lists_every_file_and_every_diff(cli_runner: CliRunner) -> None:
    text = cli_runner.offline("plan", "--verbose").out
    assert "      place /opt/kata/VERSION (11 B)\n" in text
    assert f"+++ /{QEMU_CONFIG}\n" in text
    assert "  pass  settings " in text
    install = cli_runner.offline("install", "--dry-run", "--verbose")
    assert (install.code, FREE.sub("", install.out)) == (0, FREE.sub("", text))


def test_a_plan_without_changes_says_so(installed: CliRunner) -> None:
    plan = installed.offline("plan")
    assert plan.code == 0
    assert plan.out.startswith("nothing would change\n\nhost-check ")


def test_the_plan_of_a_revert_has_the_same_summary(installed: CliRunner) -> None:
    plan = installed.offline("plan", "revert")
    assert rows(plan.out) == {
        "files": ["11 files to remove (4.0 MiB)"],
        "configuration": [f"change /{MAIN}", f"remove /{DROP_IN}"],
        "restart": ["no"],
        "handlers": ["remove kata-qemu"],
        "pods": ["none in the way"],
    }
    assert f"--- /{DROP_IN}\n+++ /dev/null\n" in plan.out
    assert "\n  - remove 11 files (4.0 MiB) below /opt/kata\n" in plan.out


def test_json_has_the_facts_of_the_text(installed: CliRunner) -> None:
    arguments = ("plan", "--shims", "clh", "--output", "json")
    document = installed.offline(*arguments).json
    plan = document["plan"]
    assert plan["space"].pop("free") > 0
    files = plan["files"]
    assert files["placed"] == 3
    assert files["placed_bytes"] == plan["space"]["needed"]
    assert plan == {
        "complete": True,
        "files": files,
        "drifted": [],
        "configuration": [{"path": f"/{DROP_IN}", "change": "change"}],
        "restart": None,
        "units": [],
        "handlers": {"added": ["kata-clh"], "removed": ["kata-qemu"]},
        "pods": {"known": True, "blocking": []},
        "space": {"directory": "/opt/kata", "needed": files["placed_bytes"]},
        "labels": {},
    }
    stages = {stage["stage"]: stage for stage in document["stages"]}
    assert "runtimes.kata-clh]" in stages["cri"]["diff"]
    assert "paths" not in stages["artifacts"]
    stages = {stage["stage"]: stage for stage in installed.offline(*arguments, "--verbose").json["stages"]}
    paths = {each.pop("path"): each for each in stages["artifacts"]["paths"]}
    assert paths[f"/{QEMU_CONFIG}".replace("qemu", "clh")]["change"] == "add"


def test_a_plan_that_stops_says_that_it_is_incomplete(cli_runner: CliRunner) -> None:
    (cli_runner.host / MAIN).write_text("this is [not TOML\n")
    plan = cli_runner.offline("plan", "--output", "json")
    assert plan.code == 3
    assert not plan.json.get("plan", {"complete": False})["complete"]
    plan = cli_runner.offline("plan")
    assert plan.out.startswith("host-check       failed ")
    assert "would change" not in plan.out


def test_a_new_drop_in_of_kata_is_shown_because_it_comes_from_the_settings(cli_runner: CliRunner) -> None:
    text = cli_runner.offline("plan", "--installation-prefix", "/srv").out
    shown = re.findall(r"^\+\+\+ (/srv/opt/kata/share/.*)$", text, re.MULTILINE)
    assert [Path(path).parent.name for path in shown] == ["config.d"]


# --- drift ------------------------------------------------------------------------------------------


def test_a_changed_generated_file_is_shown_as_its_changed_line(installed: CliRunner) -> None:
    edit(installed, QEMU_CONFIG, "[hypervisor.qemu]", "[hypervisor.qemu]\nmine = true")
    text = installed.offline("plan").out
    assert rows(text)["drift"] == ["1 path changed on the node and will be repaired", f"/{QEMU_CONFIG}"]
    _, _, (diff) = text.partition(f"--- /{QEMU_CONFIG}\n")
    assert diff.startswith(f"+++ /{QEMU_CONFIG}\n@@ ")
    assert [line for line in diff.splitlines()[1:] if line[0] in "+-"] == ["-mine = true"]


def test_a_changed_drop_in_of_the_runtime_is_shown_as_its_changed_line(installed: CliRunner) -> None:
    edit(
        installed,
        DROP_IN,
        "privileged_without_host_devices = true",
        "privileged_without_host_devices = false",
    )
    text = installed.offline("plan").out
    summary = rows(text)
    assert summary["drift"][1:] == [f"/{DROP_IN}"]
    assert summary["configuration"] == [f"change /{DROP_IN}"]
    changed = [line for line in text.splitlines() if re.match(r"[+-][^+-]", line)]
    assert changed == [
        "-privileged_without_host_devices = false",
        "+privileged_without_host_devices = true",
    ]


def test_an_edit_of_a_shared_file_is_not_drift(installed: CliRunner) -> None:
    with (installed.host / MAIN).open("a") as main:
        main.write("\n[grpc]\n")
    assert installed.offline("plan").code == 0
    assert "drift" not in rows(installed.offline("plan", "--shims", "clh").out)


def test_many_changed_files_are_counted_and_listed_only_verbosely(installed: CliRunner) -> None:
    shutil.rmtree(installed.host / "opt/kata/share")
    drift = rows(installed.offline("plan").out)["drift"]
    assert len(drift) == 1 + 5 + 1
    more = re.fullmatch(r"\.\.\. (\d+) more; --verbose shows all", drift[-1])
    assert more
    verbose = rows(installed.offline("plan", "--verbose").out)["drift"]
    assert len(verbose) == 1 + 5 + int(more[1])
    document = installed.offline("plan", "--verbose", "--output", "json").json
    assert len(document["plan"]["drifted"]) == 5 + int(more[1])
    assert installed.offline("install").code == 0, "the plan can be carried out"


# --- without the payload ----------------------------------------------------------------------------


@pytest.fixture
def without_payload(installed: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    """An installed node, and a default directory of the payload that does not exist."""
    missing = tmp_path / "no-payload"
    monkeypatch.setattr(context, "DEFAULT_PAYLOAD", missing)
    return dataclasses.replace(installed, payload=missing)


def test_a_plan_without_the_payload_uses_the_record(without_payload: CliRunner) -> None:
    plan = without_payload.offline("plan")
    assert (plan.code, plan.out.splitlines()[0]) == (0, "nothing would change")
    assert "note: planned without the payload, from the record of 4.1.0-test: " in plan.out


def test_drift_is_planned_without_the_payload(without_payload: CliRunner) -> None:
    edit(without_payload, QEMU_CONFIG, "[hypervisor.qemu]", "[hypervisor.qemu]\nmine = true")
    edit(without_payload, DROP_IN, "privileged_without_host_devices = true", "mine = true")
    shutil.rmtree(without_payload.host / "opt/kata/libexec")
    before = without_payload.files()
    plan = without_payload.offline("plan")
    assert plan.code == 10
    summary = rows(plan.out)
    assert summary["drift"][1:] == [
        "/opt/kata/libexec/virtiofsd",
        f"/{QEMU_CONFIG}",
        f"/{DROP_IN}",
    ]
    assert summary["files"][0].startswith("2 files to place (")
    assert "the content of the files comes from the payload" in plan.out
    assert f"--- /{DROP_IN}\n" in plan.out, "this file does not come from the payload"
    assert f"--- /{QEMU_CONFIG}\n" not in plan.out
    assert without_payload.files() == before


def test_a_plan_without_the_payload_refuses_what_only_the_payload_knows(without_payload: CliRunner) -> None:
    plan = without_payload.offline("plan", "--shims", "qemu,clh")
    assert plan.code == 2
    assert "the files of kata-clh are not on this node yet" in plan.out
    assert "-> set --payload to the directory with the Kata files" in plan.out


def test_a_plan_without_the_payload_tells_of_files_of_removed_handlers(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cli_runner.offline("install", "--shims", "qemu,clh").code == 0
    monkeypatch.setattr(context, "DEFAULT_PAYLOAD", tmp_path / "none")
    plan = dataclasses.replace(cli_runner, payload=tmp_path / "none").offline("plan", "--shims", "qemu")
    assert rows(plan.out)["handlers"] == ["remove kata-clh"]
    assert "note: the files of the removed handlers will be removed too" in plan.out


@pytest.mark.parametrize("command", ["plan", "install"])
def test_a_missing_payload_that_is_named_or_needed_is_an_error(
    installed: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    if command == "install":
        monkeypatch.setattr(context, "DEFAULT_PAYLOAD", tmp_path / "none")
    result = dataclasses.replace(installed, payload=tmp_path / "none").offline(command)
    assert result.code == 2
    assert "the payload directory does not exist" in result.out


def test_a_node_without_kata_needs_the_payload(
    cli_runner: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "DEFAULT_PAYLOAD", tmp_path / "none")
    assert dataclasses.replace(cli_runner, payload=tmp_path / "none").offline("plan").code == 2


# --- bounds and secrets -----------------------------------------------------------------------------


def with_user_drop_in(runner: CliRunner, content: str) -> Path:
    values = runner.host.parent / "values.yaml"
    text = "".join(f"    {line}\n" for line in content.splitlines())
    values.write_text(
        f"shims: {{disableAll: true, qemu: {{enabled: true}}}}\ncontainerd:\n  userDropIn: |\n{text}"
    )
    return values


def test_the_password_of_a_registry_is_not_in_a_plan(installed: CliRunner) -> None:
    auth = '[plugins."io.containerd.cri.v1.images".registry.configs."example.org".auth]\nusername = "u"\n'
    for password in ("hunter2", "hunter3"):
        values = with_user_drop_in(installed, f'{auth}password = "{password}"\n')
        for output in ("text", "json"):
            plan = installed.offline("plan", "--verbose", "--config", values, "--output", output)
            assert plan.code == 10
            assert "hunter" not in plan.out + plan.err
        text = installed.offline("plan", "--config", values).out
        assert '+password = "(masked)"' in text
        assert ('-password = "(masked)"' in text) == (password == "hunter3")
        # Only its owner knows what is secret in this file, so no string is shown.
        assert '+username = "(masked)"' in text or ' username = "(masked)"' in text
        assert installed.offline("install", "--config", values).code == 0


def test_a_long_diff_is_cut_and_tells_how_to_see_it(installed: CliRunner) -> None:
    values = with_user_drop_in(installed, "".join(f"# line {number}\n" for number in range(1000)))
    text = installed.offline("plan", "--config", values).out
    more = re.search(r"^\.\.\. (\d+) more lines; --verbose shows all$", text, re.MULTILINE)
    assert more
    assert len(text.splitlines()) < 150
    verbose = installed.offline("plan", "--config", values, "--verbose").out
    assert "+# line 999\n" in verbose
    assert "more lines" not in verbose


def test_many_diffs_are_cut_and_counted(installed: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "MAX_ALL_DIFF_LINES", 10)
    edit(installed, DROP_IN, "privileged_without_host_devices = true", "mine = true")
    edit(installed, QEMU_CONFIG, "[hypervisor.qemu]", "[hypervisor.qemu]\nmine = true")
    text = installed.offline("plan").out
    assert re.search(
        r"^\.\.\. the diffs of [12] more files? with \d+ lines; --verbose shows all$", text, re.MULTILINE
    )
    assert f"--- /{QEMU_CONFIG}\n" in installed.offline("plan", "--verbose").out


def test_a_file_on_the_node_cannot_write_to_the_terminal(installed: CliRunner) -> None:
    edit(installed, QEMU_CONFIG, "[hypervisor.qemu]", "[hypervisor.qemu]\n# \x1b[2J")
    text = installed.offline("plan").out
    assert r"-# \x1b[2J" in text
    assert "\x1b" not in text


def test_the_help_tells_of_the_second_containerd(cli_runner: CliRunner) -> None:
    text = " ".join(cli_runner.run("plan", "--help").out.split())
    assert "systemd starts a second containerd beside the running one" in text
    assert "its own root directory and its own sockets" in text
