"""Decide from the receipt and the runtime whether an installation is served on this node. Pure."""

from __future__ import annotations

from collections.abc import Collection

from kata_node.plan.receipt import Receipt


def why_not_served(receipt: Receipt, served: Collection[str] | None, wanted: Collection[str] = ()) -> str:
    """Return why the installation of ``receipt`` is not served, as a phrase; empty if it is, or nobody knows.

    ``served`` are the handlers of the runtime, ``None`` if it does not answer. While a transaction is under
    way, the handlers of the record before it are enough. ``wanted`` are the handlers of the settings. If
    the runtime serves one of them without a receipt, they are those of another install dir or program.
    """
    if receipt.artifacts is None and receipt.cri is None:
        if served is not None and not set(wanted).isdisjoint(served):
            return ""
        return "Kata is not installed on this machine"
    if served is None:
        return ""
    if receipt.cri is None:
        return "the container runtime is not configured for Kata"
    missing = [name for name in receipt.cri.handlers if name not in served]
    if not missing:
        return ""
    if receipt.cri.state != "serving" and set(receipt.cri.possibly_loaded_handlers).intersection(served):
        return ""
    return f"the container runtime does not serve {', '.join(missing)}"
