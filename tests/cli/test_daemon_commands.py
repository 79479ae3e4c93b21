"""The commands of a DaemonSet's pod: the options of ``daemon``, and the answers of ``wanted``."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cli.cli_runner import CliRunner, open_cli_runner, run_as
from kata_node.daemon import daemon, health
from kata_node.errors import KubeError
from kata_node.kube import daemonset
from kata_node.kube.client import Clock, KubeClient
from kata_node.kube.session import KubeconfigSession

POD = ("--daemonset=kube-system/kata-deploy", "--node-name=n1")


@pytest.fixture
def cli_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[CliRunner]:
    with open_cli_runner(tmp_path, capsys) as cli_runner:
        yield cli_runner


# --- daemon -------------------------------------------------------------------------------------------


class ExecveError(BaseException):
    """Raised instead of replacing this process."""

    def __init__(self, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        super().__init__(command)
        self.command = command
        self.environment = environment


@pytest.fixture
def run_daemon(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ExecveError]:
    def execve(path: str, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        assert path == command[0]
        raise ExecveError(command, environment)

    def listen(address: str) -> Any:
        listener = real(address)
        listeners.append(listener)
        return listener

    def run(cli_runner: CliRunner, *arguments: str) -> ExecveError:
        with pytest.raises(ExecveError) as caught:
            cli_runner.run("daemon", *cli_runner.path_options, "--listen=127.0.0.1:0", *arguments)
        (listener,) = listeners
        assert caught.value.command[-4] == str(listener.fileno())
        assert listener.get_inheritable()
        listener.close()
        return caught.value

    real, listeners = health.listen, list[Any]()
    monkeypatch.setattr(os, "execve", execve)
    run_as(monkeypatch, 0)
    monkeypatch.setattr(health, "listen", listen)
    monkeypatch.setattr(daemon, "block_signals", lambda: None)
    return run


def test_its_children_get_all_options_in_their_variables(
    cli_runner: CliRunner,
    run_daemon: Callable[..., ExecveError],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("env: {multiInstallSuffix: blue}\n")
    for name, value in (
        ("KATA_NODE_LABEL_TIMEOUT", "7"),  # no option overrides it
        ("KATA_NODE_RESTART_TIMEOUT", "8"),  # an option overrides it
        ("KATA_NODE_DRY_RUN", "1"),  # not an option of the daemon
        ("KATA_NODE_REPORTS", str(tmp_path)),  # not an option of the daemon
        ("KATA_NODE_SHIMS", ""),
        ("NODE_NAME", "n1"),
        ("UNRELATED", "kept"),
    ):
        monkeypatch.setenv(name, value)
    options = (
        "--daemonset=ns/ds",
        f"--config={values}",
        "--restart-timeout=9",
        "--lock-timeout=0",
        "--ignore-pods",
    )
    environment = run_daemon(cli_runner, *options).environment
    given = {name: text for name, text in environment.items() if name.startswith("KATA_NODE_")}
    assert (
        given.items()
        >= {
            "KATA_NODE_CONFIG": str(values),
            "KATA_NODE_HOST_ROOT": str(cli_runner.host),
            "KATA_NODE_LABEL_TIMEOUT": "7.0",
            "KATA_NODE_RESTART_TIMEOUT": "9.0",
            "KATA_NODE_LOCK_TIMEOUT": "0.0",
            "KATA_NODE_IGNORE_PODS": "1",
            "KATA_NODE_NODE_NAME": "n1",
            "KATA_NODE_DAEMONSET": "ns/ds",
            "KATA_NODE_DAEMONSET_TIMEOUT": "30.0",
            "KATA_NODE_LOG_LEVEL": "info",
            "KATA_NODE_OUTPUT": "text",
        }.items()
    )
    assert not given.keys() & {
        "KATA_NODE_DRY_RUN",
        "KATA_NODE_REPORTS",
        "KATA_NODE_SHIMS",
        "KATA_NODE_OFFLINE",
    }
    assert environment["UNRELATED"] == "kept"


def test_its_children_run_with_the_options_of_the_daemon(
    cli_runner: CliRunner, run_daemon: Callable[..., ExecveError], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = run_daemon(
        cli_runner, "--offline", "--runtime=containerd://2.1.9", "--output=json"
    ).environment
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    install = cli_runner.run("install")
    assert (install.code, install.json["outcome"]) == (0, "ok")
    assert (cli_runner.host / "opt/kata").is_dir()
    wanted = cli_runner.run("wanted")
    assert (wanted.code, wanted.json["wanted"]) == (0, True)


@pytest.mark.parametrize("desired", ["present", "absent"])
def test_the_process_of_the_daemon_knows_what_is_wanted(
    cli_runner: CliRunner, run_daemon: Callable[..., ExecveError], desired: str
) -> None:
    options = ("--offline", "--runtime=containerd://2.1.9", f"--desired-state={desired}")
    assert run_daemon(cli_runner, *options).command[-5] == desired


def test_with_wrong_settings_it_starts_and_can_still_revert(
    cli_runner: CliRunner,
    run_daemon: Callable[..., ExecveError],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("env: {installationPrefix: /srv, multiInstallSuffix: blue}\n")
    offline = ("--offline", "--runtime=containerd://2.1.9")
    placed = cli_runner.host / "srv/opt/kata-blue"
    assert cli_runner.run("install", *cli_runner.path_options, *offline, f"--config={values}").code == 0
    assert placed.is_dir()
    values.write_text(values.read_text() + "shims: {qmeu: {enabled: true}}\n")
    daemon_call = run_daemon(cli_runner, *offline, f"--config={values}", "--shims=none", "--output=json")
    for name, value in daemon_call.environment.items():
        monkeypatch.setenv(name, value)
    assert cli_runner.run("install").code == cli_runner.run("revert").code == 2
    for name, value in json.loads(daemon_call.command[-1]).items():
        monkeypatch.setenv(name, value)
    assert cli_runner.run("revert").code == 0
    assert not placed.exists()


@pytest.mark.parametrize(
    "values",
    [
        pytest.param("env: {multiInstallSuffix: 5}\n", id="a suffix that is no text"),
        pytest.param("env: [\n", id="no YAML"),
        pytest.param(None, id="no file"),
    ],
)
def test_there_is_no_fallback_when_the_values_do_not_identify_the_installation(
    cli_runner: CliRunner, run_daemon: Callable[..., ExecveError], tmp_path: Path, values: str | None
) -> None:
    path = tmp_path / "values.yaml"
    if values is not None:
        path.write_text(values)
    assert json.loads(run_daemon(cli_runner, "--offline", f"--config={path}").command[-1]) == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["--node-name=n1"], ["--daemonset", "KATA_NODE_DAEMONSET"], id="no DaemonSet"),
        pytest.param(["--daemonset=a/b"], ["--node-name", "KATA_NODE_NODE_NAME"], id="no Node"),
        pytest.param([*POD, "--daemonset=b"], ["expected NAMESPACE/NAME, got b"], id="no namespace"),
        pytest.param([*POD, "--daemonset=a/b/c"], ["expected NAMESPACE/NAME"], id="too many names"),
        pytest.param(["--offline", "--daemonset=A/b"], ["expected NAMESPACE/NAME"], id="capitals"),
        pytest.param([*POD, "--listen=8090"], ["--listen 8090", "expected [HOST]:PORT"], id="no port"),
        pytest.param([*POD, "--dry-run"], ["--dry-run"], id="dry run"),
        pytest.param([*POD, "--daemonset-timeout=0"], ["--daemonset-timeout", "1 or more"], id="no time"),
        pytest.param([*POD, "--host-root=/nowhere"], ["the host root does not exist"], id="host root"),
    ],
)
def test_invalid_options_are_refused_at_the_start(
    cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: list[str]
) -> None:
    run_as(monkeypatch, 0)
    result = cli_runner.run("daemon", *cli_runner.path_options, *arguments)
    assert result.code == 2
    assert [text for text in says if text not in result.err] == [], result.err


def test_a_live_node_needs_root(cli_runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    run_as(monkeypatch, 1000)
    result = cli_runner.run("daemon", *cli_runner.path_options, *POD)
    assert (result.code, "needs root" in result.err) == (2, True)


def test_the_daemon_command_blocks_signals_before_it_loads_the_commands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kata_node import __main__

    calls: list[str] = []
    monkeypatch.setattr(daemon, "block_signals", lambda: calls.append("block_signals"))

    def run(arguments: list[str]) -> int:
        calls.append("run")
        return 0

    monkeypatch.setattr("kata_node.cli.main.run", run)
    for arguments, expected in ((["daemon", "--help"], ["block_signals", "run"]), (["install"], ["run"])):
        calls.clear()
        monkeypatch.setattr("sys.argv", ["kata-node", *arguments])
        with pytest.raises(SystemExit):
            __main__.main()
        assert calls == expected
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


# --- wanted -------------------------------------------------------------------------------------------

DAEMONSET = {
    "kind": "DaemonSet",
    "metadata": {"name": "kata-deploy"},
    "spec": {"template": {"spec": {"nodeSelector": {"zone": "a"}}}},
}
PATHS = {
    "/apis/apps/v1/namespaces/kube-system/daemonsets/kata-deploy": "daemonset",
    "/api/v1/nodes/n1": "node",
}


def node(**labels: str) -> tuple[int, dict[str, Any]]:
    return 200, {"kind": "Node", "metadata": {"name": "n1", "resourceVersion": "1", "labels": labels}}


def status(code: int, message: str, reason: str = "") -> tuple[int, dict[str, Any]]:
    return code, {"kind": "Status", "code": code, "message": message, "reason": reason}


NO_DAEMONSET = status(404, 'daemonsets.apps "kata-deploy" not found', "NotFound")
FORBIDDEN = status(403, 'daemonsets.apps "kata-deploy" is forbidden: User "x" cannot get it', "Forbidden")

Answers = Mapping[str, Any]


@pytest.fixture
def api_server(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answers], list[str]]:
    """Return a function that makes the API server give these answers and returns its list of requests."""

    def answering(answers: Answers) -> list[str]:
        def serve(request: httpx2.Request) -> httpx2.Response:
            what = PATHS[request.url.path]
            requests.append(f"{request.method} {what}")
            if what not in answers:
                raise httpx2.ConnectError("refused")
            code, body = answers[what]
            return httpx2.Response(code, json=body)

        def connect() -> KubeClient:
            client = httpx2.Client(transport=httpx2.MockTransport(serve), base_url="https://127.0.0.1:1")
            return KubeClient(KubeconfigSession(client), clock=Clock(lambda: now[0], pass_time, lambda: 0.0))

        def pass_time(seconds: float) -> None:
            now[0] += seconds

        requests: list[str] = []
        now = [0.0]
        monkeypatch.setattr(KubeClient, "connect", connect)
        return requests

    return answering


@pytest.mark.parametrize(
    ("answers", "code", "says"),
    [
        pytest.param({"daemonset": (200, DAEMONSET), "node": node(zone="a")}, 0, "still wanted", id="yes"),
        pytest.param(
            {"daemonset": (200, DAEMONSET), "node": node(zone="b")}, 10, "no longer wanted", id="not here"
        ),
        pytest.param({"daemonset": NO_DAEMONSET}, 10, "the DaemonSet is gone", id="gone"),
    ],
)
def test_the_exit_code_is_the_answer(
    cli_runner: CliRunner, api_server: Callable[..., list[str]], answers: Answers, code: int, says: str
) -> None:
    requests = api_server(answers)
    result = cli_runner.run("wanted", *POD)
    assert (result.code, says in result.out) == (code, True)
    looks = 2 if "node" in answers and code else 1
    assert requests == [f"GET {what}" for what in answers] * looks
    assert cli_runner.run("wanted", *POD, "--output=json").json["wanted"] is (code == 0)


def test_a_label_that_is_missing_for_a_moment_does_not_remove_kata(
    cli_runner: CliRunner, api_server: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"daemonset": (200, DAEMONSET), "node": node()}
    api_server(answers)
    connect = KubeClient.connect

    def reconnected() -> KubeClient:
        kube = connect()
        pass_time = kube.clock.sleep

        def labelled(seconds: float) -> None:
            answers["node"] = node(zone="a")
            pass_time(seconds)

        kube.clock = Clock(kube.clock.now, labelled, kube.clock.jitter)
        return kube

    monkeypatch.setattr(KubeClient, "connect", reconnected)
    result = cli_runner.run("wanted", *POD)
    assert result.code == 0
    assert "this one has no label zone; reading the Node again in 10 s" in result.err


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        pytest.param({"daemonset": FORBIDDEN}, ['give the account the verb "get"', "apps"], id="no right"),
        pytest.param({"daemonset": status(401, "Unauthorized")}, ["ServiceAccount"], id="token"),
        pytest.param({"daemonset": status(500, "etcd")}, ['answered 500: "etcd"', "times"], id="fault"),
        pytest.param({}, ["gave no answer", "is reachable"], id="no answer"),
        pytest.param(
            {"daemonset": status(404, "404 page not found")}, ["a Kubernetes API server"], id="another server"
        ),
        pytest.param(
            {"daemonset": status(404, 'daemonsets.apps "other" not found', "NotFound")}, ["404"], id="another"
        ),
        pytest.param({"daemonset": (200, {"kind": "Pod"})}, ["the answer is not a DaemonSet"], id="nonsense"),
        pytest.param(
            {"daemonset": (200, DAEMONSET), "node": status(404, "", "NotFound")},
            ["no Node named n1"],
            id="no Node",
        ),
        pytest.param({"daemonset": (200, DAEMONSET)}, ["node/n1", "gave no answer"], id="no answer on it"),
    ],
)
def test_without_a_clear_answer_the_exit_code_is_1(
    cli_runner: CliRunner, api_server: Callable[..., list[str]], answers: Answers, says: list[str]
) -> None:
    api_server(answers)
    result = cli_runner.run("wanted", *POD)
    assert result.code == 1 != daemon.NOT_WANTED
    assert [text for text in says if text not in result.err] == [], result.err


def test_an_unavailable_api_server_is_asked_again(api_server: Callable[..., list[str]]) -> None:
    answers: dict[str, Any] = {"daemonset": status(503, "starting")}
    requests = api_server(answers)
    with KubeClient.connect() as kube:
        pass_time = kube.clock.sleep

        def comes_back(seconds: float) -> None:
            answers["daemonset"] = (200, DAEMONSET)
            pass_time(seconds)

        kube.clock = Clock(kube.clock.now, comes_back, kube.clock.jitter)
        assert (
            daemonset.find_daemonset(kube, "kube-system", "kata-deploy", kube.deadline_after(30)) == DAEMONSET
        )
    assert requests == ["GET daemonset"] * 2


def test_the_api_server_is_asked_only_until_the_deadline(api_server: Callable[..., list[str]]) -> None:
    api_server({})
    with KubeClient.connect() as kube:
        with pytest.raises(KubeError, match="gave no answer"):
            daemonset.find_daemonset(kube, "kube-system", "kata-deploy", kube.deadline_after(30))
        assert kube.clock.now() <= 30
