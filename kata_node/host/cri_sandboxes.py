"""Which pods run on the node, from what the container runtime tells of their sandboxes.

Field numbers are those of ``runtime.v1`` in Kubernetes' ``cri-api`` (``api.proto``). containerd since
1.6 lists the handler of each; CRI-O, to 1.36 at least, has it only in the verbose status of a sandbox,
as an annotation of what its runtime was given.
"""

from __future__ import annotations

from dataclasses import dataclass

from kata_node.host.protobuf import DecodeError, Message

LIST_READY_REQUEST = b"\x0a\x02\x12\x00"
"""A ``ListPodSandboxRequest`` whose filter (1) has a state (2), and in it ``SANDBOX_READY``, which is 0."""

_ANNOTATION = "io.kubernetes.cri-o.RuntimeHandler"


@dataclass(frozen=True, order=True)
class Pod:
    """A pod whose sandbox runs."""

    namespace: str
    name: str
    handler: str
    """What runs it; empty for the runtime's default."""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name} ({self.handler})"


def parse_pods(answer: Message) -> dict[str, Pod]:
    """The pods of a ``ListPodSandboxResponse``, by the ids of their sandboxes."""
    return {sandbox.text(1): _pod(sandbox) for sandbox in answer.messages(1)}


def _pod(sandbox: Message) -> Pod:
    metadata = next(iter(sandbox.messages(2)), Message(b""))
    return Pod(namespace=metadata.text(3), name=metadata.text(1), handler=sandbox.text(7))


def status_request(sandbox: str) -> bytes:
    """A ``PodSandboxStatusRequest`` for the sandbox of this id (1), with ``verbose`` (2) set."""
    name = sandbox.encode()
    return b"\x0a" + bytes([len(name)]) + name + b"\x10\x01"  # ids have 64 characters


def handler(answer: Message) -> str:
    """The handler in CRI-O's ``info["info"]``, which is JSON. Raises :class:`DecodeError` without one."""
    import json

    info = next((entry.text(2) for entry in answer.messages(2) if entry.text(1) == "info"), "")
    try:
        return str(json.loads(info)["runtimeSpec"]["annotations"][_ANNOTATION])
    except (ValueError, LookupError, TypeError):
        raise DecodeError(f"there is no {_ANNOTATION} in it") from None
