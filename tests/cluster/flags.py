"""The command lines of the control plane's programs, and the files they read.

Each program runs in the cluster's directory, so paths are relative. etcd listens on sockets there, and only
the port of the API server on loopback is reachable. Nothing of the machine's configuration is used.
"""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

CERTIFICATES = "certs/apiserver.crt"
"""The file that the API server creates at its first start: its certificate, then its authority's."""

CA = "ca.crt"
"""The certificate of the authority alone, which the cluster publishes."""

USERS = "users.csv"
KEY = "service-accounts.pem"
CONTROLLER_MANAGER = "system:kube-controller-manager"
SCHEDULER = "system:kube-scheduler"

EGRESS = "egress.json"
EGRESS_SOCKET = "egress.sock"
NODES = "nodes"
"""The directory of the addresses of real nodes; see relay.py."""

SERVICE = "10.0.0.1"
"""The address of the API server for pods; its certificate contains this address."""

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def etcd() -> list[str]:
    """Return the flags of etcd, without fsync: the data need not survive a power failure."""
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
    """Return the flags of the API server: RBAC, Node authorizer and NodeRestriction, as in a real cluster."""
    return [
        "--etcd-servers=unix://etcd.sock",
        "--bind-address=127.0.0.1",
        "--advertise-address=127.0.0.1",
        # Its address is loopback, which cannot be an Endpoint.
        "--endpoint-reconciler-type=none",
        f"--secure-port={port}",
        "--cert-dir=certs",
        f"--token-auth-file={USERS}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        # This plugin taints new Nodes until the node-lifecycle controller, which is off, finds them Ready.
        "--disable-admission-plugins=TaintNodesByCondition",
        f"--egress-selector-config-file={EGRESS}",
        "--kubelet-preferred-address-types=InternalIP",
        "--allow-privileged=true",
        # By default it waits a minute for watching clients before it ends.
        "--shutdown-watch-termination-grace-period=1s",
        "--service-cluster-ip-range=10.0.0.0/24",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={KEY}",
        f"--service-account-signing-key-file={KEY}",
    ]


def controller_manager(kubeconfig: Path) -> list[str]:
    """Return the flags of the controller manager.

    The node-lifecycle controller is off, so Nodes without a kubelet stay Ready.
    """
    return [
        f"--kubeconfig={kubeconfig}",
        "--secure-port=0",
        "--leader-elect=false",
        "--controllers=*,-node-lifecycle-controller",
        "--use-service-account-credentials",
        # It creates an account for each controller at the start; the default of 20 requests a second is slow.
        "--kube-api-qps=500",
        "--kube-api-burst=500",
        f"--service-account-private-key-file={KEY}",
        f"--root-ca-file={CA}",
    ]


def scheduler(kubeconfig: Path) -> list[str]:
    """Return the flags of the scheduler."""
    return [f"--kubeconfig={kubeconfig}", "--secure-port=0", "--leader-elect=false"]


def egress() -> str:
    """Return the EgressSelectorConfiguration by which the API server reaches nodes: through relay.py."""
    transport = {"uds": {"udsName": EGRESS_SOCKET}}
    connection = {"proxyProtocol": "HTTPConnect", "transport": transport}
    selection = {"name": "cluster", "connection": connection}
    kind = {"apiVersion": "apiserver.k8s.io/v1beta1", "kind": "EgressSelectorConfiguration"}
    return json.dumps({**kind, "egressSelections": [selection]})


def signing_key() -> str:
    """Return a new P-256 key for ServiceAccount tokens, as PEM by RFC 5915 without the public key."""
    number = (secrets.randbelow(_P256_ORDER - 1) + 1).to_bytes(32, "big")
    der = bytes.fromhex("30310201010420") + number + bytes.fromhex("a00a06082a8648ce3d030107")
    return f"-----BEGIN EC PRIVATE KEY-----\n{base64.b64encode(der).decode()}\n-----END EC PRIVATE KEY-----\n"


def authority(certificates: str) -> str:
    """Return the last certificate of a PEM file."""
    begin = "-----BEGIN CERTIFICATE-----"
    return begin + certificates.rpartition(begin)[2]


def user_lines(users: Mapping[str, Sequence[str]]) -> str:
    """Return the API server's file of static tokens, with a new token for each user."""
    return "".join(
        f'{secrets.token_hex(16)},{name},{name},"{",".join(groups)}"\n' for name, groups in users.items()
    )


def kubeconfig(url: str, ca: str, token: str, namespace: str) -> str:
    """Return a self-contained kubeconfig with one context, as JSON, which is valid YAML."""
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
