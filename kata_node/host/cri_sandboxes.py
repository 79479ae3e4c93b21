"""Requests and answers of the CRI about pod sandboxes.

The field numbers come from ``runtime.v1`` in Kubernetes' ``cri-api`` (``api.proto``). containerd 1.6 and
later lists the handler of each sandbox. CRI-O (up to 1.36 at least) reports it only in the verbose
status of one sandbox, as an annotation in its OCI runtime spec.
"""

from __future__ import annotations

from msgspec import Struct

from kata_node.host.protobuf import DecodeError, Message
from kata_node.text import foreign_words

NAME_LIMIT = 400
"""Characters of a pod's description. Each of its three names has at most 253 in Kubernetes."""

LIST_READY_REQUEST = b"\x0a\x02\x12\x00"
"""A serialized ``ListPodSandboxRequest``: filter (field 1), state (field 2) ``SANDBOX_READY`` (0)."""

_ANNOTATION = "io.kubernetes.cri-o.RuntimeHandler"


class Pod(Struct, frozen=True, order=True):
    """A pod with a running sandbox."""

    namespace: str
    name: str
    handler: str
    """Its handler; empty for the runtime's default."""

    def __str__(self) -> str:
        return foreign_words(f"{self.namespace}/{self.name} ({self.handler})", NAME_LIMIT)


def parse_pods(answer: Message) -> dict[str, Pod]:
    """Return the pods of a ``ListPodSandboxResponse`` by the ids of their sandboxes."""
    return {sandbox.text(1): _pod(sandbox) for sandbox in answer.messages(1)}


def _pod(sandbox: Message) -> Pod:
    metadata = next(iter(sandbox.messages(2)), Message(b""))
    return Pod(namespace=metadata.text(3), name=metadata.text(1), handler=sandbox.text(7))


def status_request(sandbox: str) -> bytes:
    """Return a serialized ``PodSandboxStatusRequest`` for a sandbox id (field 1), ``verbose`` (field 2)."""
    name = sandbox.encode()
    return b"\x0a" + bytes([len(name)]) + name + b"\x10\x01"  # ids have 64 characters


def handler(answer: Message) -> str:
    """Return the handler in CRI-O's ``info["info"]``, which is JSON.

    Raises :class:`DecodeError` when it is missing.
    """
    import json

    info = next((entry.text(2) for entry in answer.messages(2) if entry.text(1) == "info"), "")
    try:
        return str(json.loads(info)["runtimeSpec"]["annotations"][_ANNOTATION])
    except (ValueError, LookupError, TypeError, RecursionError):
        raise DecodeError(f"the annotation {_ANNOTATION} is missing") from None
