"""What the programs of a control plane are started with, and the files they read.

Plain flags, nothing of the machine's. Each runs in the cluster's own directory, so that paths are
relative; etcd's are sockets there, and the API server's port on loopback is all that can be reached.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

CERTIFICATES = "certs/apiserver.crt"
"""What the API server makes for itself at its first start: its certificate, then its authority's."""

CA = "ca.crt"
"""The authority's alone: what is published in the cluster may hold nothing else."""

USERS = "users.csv"
KEY = "service-accounts.pem"
CONTROLLER_MANAGER = "system:kube-controller-manager"
SCHEDULER = "system:kube-scheduler"

EGRESS = "egress.json"
EGRESS_SOCKET = "egress.sock"
NODES = "nodes"
"""Of nodes with a network of their own: see relay.py."""

SERVICE = "10.0.0.1"
"""Where a pod finds the API server, whose certificate has this address as well."""

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def etcd() -> list[str]:
    """Flags of etcd; nothing in it is to outlive the machine, so it does not wait for the disk."""
    client, peer = "unix://etcd.sock", "unix://peer.sock"
    return [
        "--data-dir=etcd",
        "--unsafe-no-fsync",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
    ]


def apiserver(port: int) -> list[str]:
    """Flags of the API server: RBAC and the Node authorizer, with NodeRestriction, as in a real cluster."""
    return [
        "--etcd-servers=unix://etcd.sock",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        # Its own address is loopback, which cannot be an Endpoint.
        "--endpoint-reconciler-type=none",
        f"--secure-port={port}",
        "--cert-dir=certs",
        f"--token-auth-file={USERS}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        # It taints new Nodes until the node-lifecycle controller finds them Ready, which is off here.
        "--disable-admission-plugins=TaintNodesByCondition",
        f"--egress-selector-config-file={EGRESS}",
        "--kubelet-preferred-address-types=InternalIP",
        "--allow-privileged=true",
        # Else it waits a minute for those who watch to go away before it ends.
        "--shutdown-watch-termination-grace-period=1s",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={KEY}",
        f"--service-account-signing-key-file={KEY}",
    ]


def controller_manager(kubeconfig: Path) -> list[str]:
    """Flags of the controller manager.

    The node-lifecycle controller is off: Nodes without a kubelet stay as the tests have made them.
    """
    return [
        f"--kubeconfig={kubeconfig}",
        "--secure-port=0",
        "--leader-elect=false",
        "--controllers=*,-node-lifecycle-controller",
        "--use-service-account-credentials",
        # It makes an account for each controller before it serves; its default of 20 a second is for crowds.
        "--kube-api-qps=500",
        "--kube-api-burst=500",
        f"--service-account-private-key-file={KEY}",
        f"--root-ca-file={CA}",
    ]


def scheduler(kubeconfig: Path) -> list[str]:
    """Flags of the scheduler."""
    return [f"--kubeconfig={kubeconfig}", "--secure-port=0", "--leader-elect=false"]


def egress() -> str:
    """By which way the API server reaches nodes, and services, which there are none of."""
    transport = {"uds": {"udsName": EGRESS_SOCKET}}
    connection = {"proxyProtocol": "HTTPConnect", "transport": transport}
    selection = {"name": "cluster", "connection": connection}
    kind = {"apiVersion": "apiserver.k8s.io/v1beta1", "kind": "EgressSelectorConfiguration"}
    return json.dumps({**kind, "egressSelections": [selection]})


def signing_key() -> str:
    """A new P-256 key for ServiceAccount tokens, in the form of RFC 5915 that leaves its public half out."""
    number = (secrets.randbelow(_P256_ORDER - 1) + 1).to_bytes(32, "big")
    der = bytes.fromhex("30310201010420") + number + bytes.fromhex("a00a06082a8648ce3d030107")
    return f"-----BEGIN EC PRIVATE KEY-----\n{base64.b64encode(der).decode()}\n-----END EC PRIVATE KEY-----\n"


def authority(certificates: str) -> str:
    """The last of some certificates."""
    begin = "-----BEGIN CERTIFICATE-----"
    return begin + certificates.rpartition(begin)[2]


def user_lines(users: Mapping[str, Sequence[str]]) -> str:
    """The API server's list of static tokens: a new one for each user, with the user's groups."""
    return "".join(
        f'{secrets.token_hex(16)},{name},{name},"{",".join(groups)}"\n' for name, groups in users.items()
    )


def kubeconfig(url: str, ca: str, token: str, namespace: str) -> str:
    """A kubeconfig with one context that names no other file; JSON, which is YAML as well."""
    authority = base64.b64encode(ca.encode()).decode()
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [
                {"name": "test", "cluster": {"server": url, "certificate-authority-data": authority}}
            ],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "test", "namespace": namespace}}
            ],
        },
        indent=2,
    )
