"""The machine id of the node, which systemd generates."""

from __future__ import annotations

from kata_node.host.files import Root


def machine_id(root: Root) -> str:
    """Return the node's machine id; empty when it has none."""
    return (root.read("/etc/machine-id") or b"").decode(errors="replace").strip()


def is_same_machine_id(found: str, expected: str) -> bool:
    """Return whether two machine ids are the same. Some kubelets report the id in the form of a UUID."""
    return found.replace("-", "").lower() == expected.strip().replace("-", "").lower()
