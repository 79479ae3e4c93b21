"""Which pods run on the node, from what the container runtime lists of their sandboxes.

Field numbers are those of ``runtime.v1`` in Kubernetes' ``cri-api`` (``api.proto``). containerd since
1.6 and CRI-O tell the handler of each.
"""

from __future__ import annotations

from dataclasses import dataclass

from kata_node.host.protobuf import Message

RUNNING = b"\x0a\x02\x12\x00"
"""A ``ListPodSandboxRequest`` whose filter (1) has a state (2), and in it ``SANDBOX_READY``, which is 0."""


@dataclass(frozen=True, order=True)
class Pod:
    """A pod whose sandbox runs."""

    namespace: str
    name: str
    handler: str
    """What runs it; empty for the runtime's default."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name} ({self.handler})"


def pods(answer: Message) -> tuple[Pod, ...]:
    """The pods of a ``ListPodSandboxResponse``, by namespace and name."""
    return tuple(sorted({_pod(sandbox) for sandbox in answer.messages(1)}))


def _pod(sandbox: Message) -> Pod:
    named = next(iter(sandbox.messages(2)), Message(b""))
    return Pod(namespace=named.text(3), name=named.text(1), handler=sandbox.text(7))
