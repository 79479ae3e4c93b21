"""What ``plan`` says on a real node, and that the run after it does that."""

from __future__ import annotations

import json
import re
from typing import Any

from node import cri
from node.conftest import BootNode
from node.debian_node import SOCKET, Node
from node.installation import HANDLERS, MAIN, PAYLOAD, UNIT, VALUES, WATCHED, install, kata_handlers
from node.running_pods import allow_pods, payload_with_shim, values
from node.snapshot import changes

DROP_IN = "opt/kata/containerd/config.d/99-kata-deploy.toml"
CONFIG = "opt/kata/share/defaults/kata-containers/runtimes/qemu/configuration-qemu.toml"


def plan(node: Node, *arguments: str, **options: Any) -> dict[str, Any]:
    """Return the summary of a plan that has changes."""
    done = node.kata_node("plan", *arguments, "--output", "json", **options)
    assert done.returncode == 10, done.stdout
    summary: dict[str, Any] = json.loads(done.stdout)["plan"]
    return summary


def edit(node: Node, path: str, old: str, new: str) -> None:
    text = (node.root / path).read_text()
    assert old in text
    (node.root / path).write_text(text.replace(old, new, 1))


def test_an_install_and_a_revert_do_what_their_plans_say(ready: Node) -> None:
    before, invocation = ready.snapshot(*WATCHED), ready.unit(UNIT).invocation
    found = plan(ready, config=VALUES, payload=PAYLOAD)
    assert changes(before, ready.snapshot(*WATCHED), times=True) == []
    assert ready.unit(UNIT).invocation == invocation
    restart = {"unit": UNIT, "operation": "restart", "only_if_running": False}
    assert (found["restart"], found["handlers"]) == (restart, {"added": list(HANDLERS), "removed": []})
    assert f"/{DROP_IN}" in [each["path"] for each in found["configuration"]]
    assert found["files"]["placed_bytes"] == found["space"]["needed"] < found["space"]["free"]

    install(ready)
    assert kata_handlers(ready) == HANDLERS
    assert ready.activations(UNIT) == 2

    found = plan(ready, "revert")
    assert found["restart"] == {**restart, "only_if_running": True}
    assert found["handlers"] == {"added": [], "removed": list(HANDLERS)}
    assert found["files"]["removed"] > 0
    assert ready.activations(UNIT) == 2
    ready.kata_node("revert", check=True)
    assert kata_handlers(ready) == ()


def test_drift_is_planned_from_the_record_and_repaired_from_the_payload(ready: Node) -> None:
    install(ready)
    edit(ready, DROP_IN, "privileged_without_host_devices = true", "privileged_without_host_devices = false")
    edit(ready, CONFIG, "enable_debug = false", "enable_debug = true")
    (ready.root / "opt/kata/libexec/virtiofsd").unlink()

    text = ready.kata_node("plan", config=VALUES, payload=PAYLOAD)
    assert text.returncode == 10
    changed = [line for line in text.stdout.splitlines() if re.match(r"[+-](?![+-])", line)]
    assert changed == [
        "-privileged_without_host_devices = false",
        "+privileged_without_host_devices = true",
        "-enable_debug = true",
        "+enable_debug = false",
    ]

    drifted = [f"/{path}" for path in ("opt/kata/libexec/virtiofsd", CONFIG, DROP_IN)]
    with_payload = plan(ready, config=VALUES, payload=PAYLOAD)
    without_payload = plan(ready, config=VALUES)
    assert with_payload["drifted"] == without_payload["drifted"] == drifted
    for each in (with_payload, without_payload):
        each["space"].pop("free")
    assert with_payload == without_payload
    install(ready)
    assert ready.kata_node("plan", config=VALUES).returncode == 0


def test_a_plan_names_the_pods_in_the_way(boot_node: BootNode, tmp_path: Any) -> None:
    node = allow_pods(boot_node(""), payload_with_shim(tmp_path / "payload"))
    node.kata_node("install", config=values("qemu"), payload=PAYLOAD, check=True)
    cri.run_pod(node.root / SOCKET, "web", "kata-qemu")
    pod = {"namespace": "default", "name": "web", "handler": "kata-qemu"}
    assert plan(node, "revert")["pods"] == {"known": True, "blocking": [pod]}
    text = node.kata_node("plan", "revert").stdout
    assert "pods           1 pod runs on a handler that would be removed: default/web (kata-qemu)" in text
    assert f"configuration  change {MAIN}" in text
