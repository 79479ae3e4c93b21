"""Whether the handlers of an installation are served, by its receipt and what the CRI lists."""

from __future__ import annotations

from typing import Any

import pytest

from kata_node.plan.receipt import ArtifactsRecord, CriRecord, Receipt
from kata_node.runtime.not_served import why_not_served

PLACED = ArtifactsRecord("placed", "3.30.0", "", {})


def receipt(state: Any = "serving", *handlers: str, before: tuple[str, ...] = ()) -> Receipt:
    fallback = CriRecord("serving", "containerd", "2.1.9", "", "", "", before, ()) if before else None
    cri = CriRecord(state, "containerd", "2.1.9", "", "", "", handlers, (), fallback=fallback)
    return Receipt("default", "/opt/kata", "1", artifacts=PLACED, cri=cri)


@pytest.mark.parametrize(
    ("receipt", "served", "reason"),
    [
        pytest.param(receipt("serving", "kata-qemu"), ("runc", "kata-qemu"), "", id="served"),
        pytest.param(receipt("serving", "kata-qemu"), None, "", id="the runtime does not answer"),
        pytest.param(
            receipt("serving", "kata-clh", "kata-qemu"),
            ("runc", "kata-clh"),
            "the container runtime does not serve kata-qemu",
            id="one handler is gone",
        ),
        pytest.param(
            receipt("restarting", "kata-new", before=("kata-qemu",)), ("kata-qemu",), "", id="in an upgrade"
        ),
        pytest.param(
            receipt("restarting", "kata-qemu"),
            ("runc",),
            "the container runtime does not serve kata-qemu",
            id="in a first install",
        ),
        pytest.param(
            Receipt("default", "/opt/kata", "1"), None, "Kata is not installed on this machine", id="rebuilt"
        ),
        pytest.param(
            Receipt("default", "/opt/kata", "1", artifacts=PLACED),
            ("runc",),
            "the container runtime is not configured for Kata",
            id="only the files are there",
        ),
    ],
)
def test_an_installation_is_served_if_the_runtime_lists_its_handlers(
    receipt: Receipt, served: tuple[str, ...] | None, reason: str
) -> None:
    assert why_not_served(receipt, served) == reason


@pytest.mark.parametrize(
    ("served", "reason"),
    [
        pytest.param(("runc", "kata-qemu"), "", id="below another prefix, or by another program"),
        pytest.param(
            ("runc", "kata-qemu-blue"), "Kata is not installed on this machine", id="another suffix"
        ),
    ],
)
def test_without_a_receipt_the_handlers_of_the_settings_tell(served: tuple[str, ...], reason: str) -> None:
    assert why_not_served(Receipt("default", "/opt/kata", "1"), served, ("kata-clh", "kata-qemu")) == reason
