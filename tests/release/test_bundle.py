import json
from collections.abc import Mapping
from typing import Any, cast

import pytest

from kata_node.errors import KubeError
from kata_node.kube.reader import NotFoundError, Reader
from kata_node.release import bundle
from kata_node.release.archive import archive
from kata_node.release.bundle import collect
from kata_node.release.masking import MASK, mask, mask_object, mask_text
from kata_node.release.read import Wanted

STATE = {
    "metadata": {"name": "kata-deploy-state.kata", "namespace": "ns", "labels": {}},
    "data": {"desiredState": "present", "lastRollout": '{"reason":"x"}'},
}
VALUES = """\
containerd:
  userDropIn: |
    secret = "hunter2"
shims:
  qemu:
    enabled: true
    dropIn: "kernel_params = 'hunter2'"
    agent:
      httpsProxy: https://user:hunter2@proxy:3128
      noProxy: 10.0.0.0/8
"""


class FakeReader:
    """Answers with the lists in ``lists`` by the end of their path, and refuses the others in ``refused``."""

    def __init__(self, lists: Mapping[str, list[Any]], refused: tuple[str, ...] = ()) -> None:
        self.lists, self.refused = lists, refused
        self.asked: list[str] = []

    def list(self, path: str, query: Mapping[str, str] | None = None) -> list[Any]:
        self.asked.append(path)
        if path.endswith(self.refused or ("\0",)):
            raise KubeError("the API server answered 403")
        return next((each for end, each in self.lists.items() if path.endswith(end)), [])

    def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        self.asked.append(path)
        return {"gitVersion": "v1"}

    def text(self, path: str, query: Mapping[str, str] | None = None) -> str:
        self.asked.append(path)
        if "gone" in path:
            raise NotFoundError("no such pod")
        return "log of https://user:hunter2@registry/\n"


def pod(name: str, **state: Any) -> dict[str, Any]:
    states = [
        {"name": "cri", "state": {"terminated": {}}, "restartCount": 1},
        {"name": "label", "state": state},
    ]
    return {"metadata": {"name": name, "namespace": "ns"}, "status": {"containerStatuses": states}}


def collected(reader: FakeReader, wanted: Wanted | None = None) -> tuple[dict[str, str], tuple[str, ...]]:
    contents, missing = collect(cast("Reader", reader), wanted or Wanted())
    return {path: each.decode() for path, each in contents.items()}, missing


LISTS: dict[str, list[Any]] = {
    "/configmaps": [
        STATE,
        {"metadata": {"name": "kata-deploy-node", "namespace": "ns"}, "data": {"values.yaml": VALUES}},
    ],
    "ns/pods": [pod("b", waiting={}), pod("gone", running={})],
    "ns/events": [
        {"metadata": {"name": "e1"}, "involvedObject": {"name": "b"}},
        {"metadata": {"name": "e2"}, "involvedObject": {"name": "foreign"}},
    ],
    "default/events": [
        {"metadata": {"name": "n1"}, "reason": "KataRolledBack"},
        {"metadata": {"name": "n2"}, "reason": "NodeReady"},
    ],
    "/nodes": [
        {
            "metadata": {
                "name": "w",
                "resourceVersion": "1",
                "labels": {"katacontainers.io/kata-runtime": "true", "example.org/cost": "9"},
                "annotations": {"example.org/token": "hunter2"},
            },
            "status": {"nodeInfo": {"machineID": "m"}, "images": [{"names": ["x"]}]},
        }
    ],
}


def test_a_bundle_has_objects_logs_nodes_and_the_status() -> None:
    files, missing = collected(FakeReader(LISTS))
    assert [each["metadata"]["name"] for each in json.loads(files["ns/kata/events.json"])] == ["e1"]
    assert [each["metadata"]["name"] for each in json.loads(files["node-events.json"])] == ["n1"]
    assert {path for path in files if "/logs/" in path} == {
        "ns/kata/logs/b/cri.log",
        "ns/kata/logs/b/cri-previous.log",
    }
    (node,) = json.loads(files["nodes.json"])
    assert node["labels"] == {"katacontainers.io/kata-runtime": "true"}
    assert "images" not in node
    assert "1 node without Kata" in files["status.txt"]
    assert "the log does not exist any more" in files["missing.txt"]
    assert any("gone/cri.log" in each for each in missing)


def test_a_bundle_has_no_secrets_and_asks_for_none() -> None:
    reader = FakeReader(LISTS)
    files, _ = collected(reader)
    assert "hunter2" not in "".join(files.values())
    assert not [path for path in reader.asked if "secrets" in path]
    values = json.loads(files["ns/kata/configmaps.json"])[0]["data"]["values.yaml"]
    assert values["shims"]["qemu"]["enabled"] is True
    assert values["shims"]["qemu"]["dropIn"] == values["containerd"]["userDropIn"] == MASK


def test_what_cannot_be_read_is_told_in_the_bundle() -> None:
    files, missing = collected(FakeReader(LISTS, refused=("/runtimeclasses", "/nodes", "ns/jobs")))
    assert "ns/kata/runtimeclasses.json" not in files
    assert [each.partition(":")[0] for each in missing if "logs" not in each] == [
        "ns/kata/jobs.json",
        "ns/kata/runtimeclasses.json",
        "nodes.json",
    ]
    assert files["missing.txt"].splitlines() == list(missing)


def test_the_same_content_makes_the_same_archive() -> None:
    assert archive({"b": b"1", "a": b"2"}) == archive({"a": b"2", "b": b"1"})


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        pytest.param({"userDropIn": ""}, {"userDropIn": ""}, id="an empty text is no secret"),
        pytest.param({"noProxy": "10.0.0.0/8"}, {"noProxy": "10.0.0.0/8"}, id="no proxy"),
        pytest.param([{"https_proxy": "http://p"}], [{"https_proxy": MASK}], id="a proxy in a list"),
        pytest.param(
            {"name": "HTTPS_PROXY", "value": "http://p"},
            {"name": "HTTPS_PROXY", "value": MASK},
            id="a variable",
        ),
        pytest.param(
            {"name": "PATH", "value": "/bin"}, {"name": "PATH", "value": "/bin"}, id="another variable"
        ),
        pytest.param("https://a:b@c/d", f"https://{MASK}@c/d", id="a user in a URL"),
        pytest.param({"api_key": "k"}, {"api_key": MASK}, id="a key of an API"),
        pytest.param({"secretName": "s"}, {"secretName": "s"}, id="the name of a secret"),
        pytest.param({"serviceAccountToken": {"path": "token"}}, None, id="no text"),
        pytest.param(
            {"annotations": {"kapp.k14s.io/original": '{"data":1}', "b": "x" * 2000, "c": "d", "e": "1\n2"}},
            {"annotations": {"kapp.k14s.io/original": MASK, "b": MASK, "c": "d", "e": MASK}},
            id="annotations that repeat an object, also in templates",
        ),
        pytest.param(
            {"annotations": {"vault-token": "x"}}, {"annotations": {"vault-token": MASK}}, id="note"
        ),
        pytest.param(7, 7, id="a number"),
    ],
)
def test_secrets_are_masked_wherever_they_are(value: Any, masked: Any) -> None:
    assert mask(value) == (value if masked is None else masked)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer hunter2hunter2\n",
        'password = "hunter2"',
        "  auth: 'hunter2' # of the registry",
        "REGISTRY_PASSWORD=hunter2 and more",
        '{"msg":"{\\"identitytoken\\":\\"hunter2\\"}"}',
        'dyn({ "vault-token":dyn("hunter2"),"x":dyn("y") })',
        "secret=hunter2",
    ],
)
def test_a_secret_in_a_text_is_masked(text: str) -> None:
    assert MASK in mask_text(text)
    assert "hunter2" not in mask_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "automountServiceAccountToken: true",
        '"serviceAccountToken":dyn({ "expirationSeconds":dyn(3600) })',
        'MountVolume failed: secretName="x": not found',
        "token " * 9,
        "tokens=" * 200_000,
    ],
)
def test_words_that_only_look_like_secrets_stay(text: str) -> None:
    shown = mask_text(text)
    assert shown == text or text.startswith("tokens=")


@pytest.mark.parametrize(
    ("key", "document"),
    [
        ("drop-in.toml", 'secret = "hunter2"'),
        ("drop-in.toml", "a = 1\nplain hunter2"),
        ("password", "hunter2"),
        ("values.yaml", "x: {apiKey: hunter2}"),
    ],
)
def test_documents_in_config_maps_have_no_secrets(key: str, document: str) -> None:
    found = mask_object({"metadata": {"name": "x"}, "data": {key: document}})
    assert "hunter2" not in str(found)


def test_a_log_has_its_end_and_the_logs_that_tell_most_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MAX_PODS_WITH_LOGS", 3)
    monkeypatch.setattr(bundle, "LOG_LIMIT", 9)

    def of(name: str, component: str, phase: str) -> dict[str, Any]:
        made = pod(name, waiting={})
        labels = {"app.kubernetes.io/component": component}
        return {
            "metadata": {**made["metadata"], "labels": labels},
            "status": {**made["status"], "phase": phase},
        }

    pods = [of("a", "node-job", "Succeeded"), of("b", "node-job", "Running"), of("c", "node-job", "Failed")]
    pods.append(of("d", "dispatcher", "Succeeded"))
    reader = FakeReader({**LISTS, "ns/pods": pods})
    files, missing = collected(reader)
    assert {path.split("/")[3] for path in files if "/logs/" in path} == {"b", "c", "d"}
    assert files["ns/kata/logs/c/cri.log"] == "registry/\n"[-9:]
    assert any("the logs of 1 more pods" in each for each in missing)


def test_an_annotation_that_repeats_the_object_is_left_out() -> None:
    found = mask_object(
        {
            "metadata": {
                "name": "x",
                "managedFields": [{}],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": VALUES, "a": "b"},
            },
            "data": {"x": "a: [b\nc"},
            "binaryData": {"y": "aHVudGVyMg=="},
        }
    )
    assert found["metadata"] == {"name": "x", "annotations": {"a": "b"}}
    assert found["data"] == {"x": MASK}
    assert "binaryData" not in found
