"""The tables of docs/security.md are those of the rendered chart: containers, tokens and host paths."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from cluster.chart_objects import JOB, Document, documents, pods
from cluster.control_plane import Cluster
from node.cache import CHECKOUT

PAGE = (CHECKOUT / "docs/security.md").read_text()
EVERYTHING = {
    "monitor": {"enabled": True},
    "job": {"reconcileSchedule": "@daily"},
    "containerRuntime": "containerd",
    "snapshotter": {"setup": ["nydus"]},
}
TOKENS = {"dispatcher": "-dispatcher", "labeling": "-labeller", "stop": "-stop"}
"""The words of the table -> the end of a ServiceAccount's name."""


def rows() -> dict[str, tuple[str, frozenset[tuple[str, bool]]]]:
    """Return container -> the word for its token, and its host paths, each with whether it is read-only."""
    table = PAGE[PAGE.index("| container | token | host paths |") :].partition("\n\n")[0]
    found = {}
    for line in table.splitlines()[2:]:
        names, token, paths, *_ = line.strip("| ").split(" | ")
        word = re.match(r"\[(\w+)\]", token)
        mounts = frozenset((path, bool(ro)) for path, ro in re.findall(r"`(/[^`]*)`( ro)?", paths))
        for name in re.findall(r"`([^`]+)`", names):
            found[name] = (word[1] if word else "", mounts)
    return found


def containers(template: Document) -> Iterator[tuple[str, tuple[str, frozenset[tuple[str, bool]]]]]:
    """Yield each container of a pod in the form of :func:`rows`."""
    spec = template["spec"]
    volumes = {each["name"]: each for each in spec.get("volumes", ())}
    for each in (*spec.get("initContainers", ()), *spec["containers"]):
        mounts = [(volumes[mount["name"]], mount) for mount in each.get("volumeMounts", ())]
        has_token = spec.get("automountServiceAccountToken", True) or any(
            "projected" in volume for volume, _ in mounts
        )
        account = spec.get("serviceAccountName", "default")
        words = [word for word, end in TOKENS.items() if end in account] if has_token else [""]
        paths = frozenset(
            (volume["hostPath"]["path"], mount.get("readOnly", False))
            for volume, mount in mounts
            if "hostPath" in volume
        )
        yield each["name"], (words[0], paths)


def test_every_container_has_its_row(cluster: Cluster) -> None:
    page, seen = rows(), {}
    for mode in (JOB, {"deploymentMode": "daemonset"}):
        for template in pods(documents(cluster, EVERYTHING, mode, online=True)).values():
            for name, found in containers(template):
                assert page.get(name) == found, f"docs/security.md, row of {name}"
                seen[name] = found
    assert page.keys() == seen.keys()


def token_seconds(spec: Document, container: Document) -> int:
    """Return the life time of the token that a container sees; 0 if it sees none."""
    assert spec["automountServiceAccountToken"] is False
    mounted = {mount["name"] for mount in container.get("volumeMounts", ())}
    found = [
        source["serviceAccountToken"]["expirationSeconds"]
        for volume in spec.get("volumes", ())
        if volume["name"] in mounted
        for source in volume.get("projected", {}).get("sources", ())
        if "serviceAccountToken" in source
    ]
    return max(found, default=0)


@pytest.mark.parametrize("labels_by", ["node", "dispatcher"])
def test_no_container_with_host_paths_sees_a_token_in_the_mode_job_and_a_token_lasts_minutes(
    cluster: Cluster, labels_by: str
) -> None:
    values = {**EVERYTHING, "rbac": {"labelsBy": labels_by}, "containerRuntime": "auto"}
    with_token = set()
    for template in pods(documents(cluster, values, JOB, online=True)).values():
        spec = template["spec"]
        paths = {each["name"] for each in spec.get("volumes", ()) if "hostPath" in each}
        for each in (*spec.get("initContainers", ()), *spec["containers"]):
            seconds = token_seconds(spec, each)
            has_paths = bool(paths & {mount["name"] for mount in each.get("volumeMounts", ())})
            assert not (seconds and has_paths), each["name"]
            assert seconds in (0, 600)
            with_token |= {each["name"]} if seconds else set()
    on_nodes = {"claim", "label", "unlabel", "unclaim"} if labels_by == "node" else set()
    assert with_token - {"check"} == {"dispatcher", "stop", *on_nodes}


def test_only_the_stage_that_removes_the_install_dir_sees_the_directory_above_it(cluster: Cluster) -> None:
    values = {"env": {"installationPrefix": "/mnt/data", "multiInstallSuffix": "blue"}}
    found: dict[str, set[str]] = {}
    for template in pods(documents(cluster, JOB, values)).values():
        for name, (_, paths) in containers(template):
            found.setdefault(name, set()).update(path for path, _ in paths if path.startswith("/mnt"))
    whole = {name for name, paths in found.items() if "/mnt/data" in paths}
    assert whole == {"remove-artifacts"}
    narrow = {name for name, paths in found.items() if paths == {"/mnt/data/opt/kata-blue"}}
    assert narrow == {"host-check", "artifacts", "cri", "check-pods", "revert-cri"}


def test_the_secret_is_only_in_the_containers_that_need_it(cluster: Cluster) -> None:
    values = {"containerd": {"userDropInSecret": {"name": "mine", "digest": "0" * 64}}}
    for mode, expected in ((JOB, {"host-check", "cri"}), ({}, {"kube-kata"})):
        found = set()
        for template in pods(documents(cluster, mode, values, {"containerRuntime": "containerd"})).values():
            spec = template["spec"]
            secret = {each["name"] for each in spec.get("volumes", ()) if "secret" in each}
            for each in (*spec.get("initContainers", ()), *spec["containers"]):
                if secret & {mount["name"] for mount in each.get("volumeMounts", ())}:
                    found.add(each["name"])
        assert found == expected
