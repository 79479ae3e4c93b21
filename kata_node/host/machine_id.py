"""Which machine this is, by the id that systemd gave it."""

from __future__ import annotations

from kata_node.host.files import Root


def machine_id(root: Root) -> str:
    """The host's machine id; empty when it has none."""
    return (root.read("/etc/machine-id") or b"").decode(errors="replace").strip()


def is_same_machine_id(found: str, expected: str) -> bool:
    """Whether two machine ids are the same; some kubelets report it in the form of a UUID."""
    return found.replace("-", "").lower() == expected.strip().replace("-", "").lower()
