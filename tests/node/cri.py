"""A CRI client on Google's gRPC and protobuf: ask a runtime for its status, run and remove pod sandboxes.

It shares no code with the client in ``kata_node``, so a mistake in that client cannot hide itself.
"""

from __future__ import annotations

import functools
import importlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.cache import NodeError

# The fields of runtime.v1 that are used here: message -> name -> (number, type).
_MESSAGES: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "VersionResponse": {"runtime_name": (2, "string"), "runtime_version": (3, "string")},
    "VersionRequest": {},
    "StatusRequest": {"verbose": (1, "bool")},
    "StatusResponse": {
        "status": (1, "RuntimeStatus"),
        "info": (2, "repeated InfoEntry"),
        "runtime_handlers": (3, "repeated RuntimeHandler"),
    },
    "RuntimeStatus": {"conditions": (1, "repeated RuntimeCondition")},
    "RuntimeCondition": {"type": (1, "string"), "status": (2, "bool")},
    "RuntimeHandler": {"name": (1, "string")},
    # On the wire a map is a repeated message of key and value.
    "InfoEntry": {"key": (1, "string"), "value": (2, "string")},
    "RunPodSandboxRequest": {"config": (1, "PodSandboxConfig"), "runtime_handler": (2, "string")},
    "RunPodSandboxResponse": {"pod_sandbox_id": (1, "string")},
    "PodSandboxConfig": {
        "metadata": (1, "PodSandboxMetadata"),
        "hostname": (2, "string"),
        "linux": (8, "LinuxPodSandboxConfig"),
    },
    "PodSandboxMetadata": {"name": (1, "string"), "uid": (2, "string"), "namespace": (3, "string")},
    "LinuxPodSandboxConfig": {"security_context": (2, "LinuxSandboxSecurityContext")},
    "LinuxSandboxSecurityContext": {"namespace_options": (1, "NamespaceOption")},
    "NamespaceOption": {"network": (1, "int32"), "pid": (2, "int32"), "ipc": (3, "int32")},
    "StopPodSandboxRequest": {"pod_sandbox_id": (1, "string")},
    "StopPodSandboxResponse": {},
    "RemovePodSandboxRequest": {"pod_sandbox_id": (1, "string")},
    "RemovePodSandboxResponse": {},
}

_SCALARS = {"bool": "TYPE_BOOL", "string": "TYPE_STRING", "int32": "TYPE_INT32"}
_CONTAINER, _NODE = 1, 2  # namespace modes


@dataclass(frozen=True)
class CriStatus:
    """The answer to the CRI call ``Status``, or the gRPC status if it failed."""

    error: str = ""
    """The gRPC status, for example ``UNIMPLEMENTED`` or ``UNAVAILABLE``; empty when the CRI answers."""
    handlers: tuple[str, ...] = ()
    """Sorted, without the empty name of the default handler: ``runc`` is listed under its own name."""
    conditions: Mapping[str, bool] = field(default_factory=dict)
    """The runtime's conditions, for example ``RuntimeReady``."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The effective configuration of containerd's CRI plugin; its keys depend on the release."""
    version: str = ""
    """``name://version``, for example ``containerd://2.1.9``, as on the Node object."""

    @property
    def serving(self) -> bool:
        """Whether the CRI answered."""
        return not self.error


def status(socket: Path, *, timeout: float = 30) -> CriStatus:
    """Ask the CRI at ``socket`` for its version and status; ``timeout`` is in seconds for each call."""
    try:
        version = _call(socket, "Version", timeout)
        answer = _call(socket, "Status", timeout, verbose=True)
    except CallFailed as error:
        return CriStatus(error=error.code)
    config = json.loads(next((entry.value for entry in answer.info if entry.key == "config"), "{}"))
    names = {handler.name for handler in answer.runtime_handlers} - {""}
    if not names:  # containerd before 2.0 does not fill the field
        names = set(config.get("containerd", {}).get("runtimes", {}))
    return CriStatus(
        handlers=tuple(sorted(names)),
        conditions={condition.type: condition.status for condition in answer.status.conditions},
        config=config,
        version=f"{version.runtime_name}://{version.runtime_version}",
    )


class CallFailed(NodeError):  # noqa: N818 - what happened, not a kind of error
    """A CRI call failed; ``code`` is the gRPC status."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code


def run_pod(socket: Path, name: str, handler: str, *, timeout: float = 120) -> str:
    """Run the sandbox of a pod ``default/<name>`` in the node's network, and return the sandbox id."""
    # With a pid namespace for each container, CRI-O starts no pause process.
    options = {"network": _NODE, "pid": _CONTAINER, "ipc": _NODE}
    config = {
        "metadata": {"name": name, "uid": str(uuid.uuid4()), "namespace": "default"},
        "linux": {"security_context": {"namespace_options": options}},
    }
    answer = _call(socket, "RunPodSandbox", timeout, config=config, runtime_handler=handler)
    return str(answer.pod_sandbox_id)


def end_pod(socket: Path, sandbox: str, *, timeout: float = 120) -> None:
    """Stop and remove a sandbox, as the kubelet does for a deleted pod."""
    _call(socket, "StopPodSandbox", timeout, pod_sandbox_id=sandbox)
    _call(socket, "RemovePodSandbox", timeout, pod_sandbox_id=sandbox)


def _call(socket: Path, method: str, timeout: float, **fields: Any) -> Any:
    """Call the RuntimeService and return the answer; ``timeout`` in seconds. Raises :class:`CallFailed`."""
    grpc: Any = importlib.import_module("grpc")  # takes 80 ms; stopping or listing nodes does not need it
    message = _messages()
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        ask = channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
        try:
            answer: bytes = ask(message[f"{method}Request"](**fields).SerializeToString(), timeout=timeout)
        except grpc.RpcError as error:
            raise CallFailed(error.code().name, error.details()) from error
    return message[f"{method}Response"].FromString(answer)


@functools.cache
def _messages() -> Mapping[str, Any]:
    """Return protobuf classes for :data:`_MESSAGES`; protobuf ignores fields that are not listed there."""
    descriptors: Any = importlib.import_module("google.protobuf.descriptor_pb2")
    pools: Any = importlib.import_module("google.protobuf.descriptor_pool")
    factory: Any = importlib.import_module("google.protobuf.message_factory")
    file = descriptors.FileDescriptorProto(name="cri.proto", package="runtime.v1", syntax="proto3")
    kinds = descriptors.FieldDescriptorProto
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            added = message.field.add(name=field_name, number=number)
            added.label = kinds.LABEL_REPEATED if kind.startswith("repeated ") else kinds.LABEL_OPTIONAL
            kind = kind.removeprefix("repeated ")
            if kind in _MESSAGES:
                added.type, added.type_name = kinds.TYPE_MESSAGE, f".runtime.v1.{kind}"
            else:
                added.type = getattr(kinds, _SCALARS[kind])
    pool = pools.DescriptorPool()
    pool.Add(file)
    return {
        name: factory.GetMessageClass(pool.FindMessageTypeByName(f"runtime.v1.{name}")) for name in _MESSAGES
    }
