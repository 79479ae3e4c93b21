"""Whole values files of the public chart, and what nodes do with them, for tests with helm and with nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kata_node.settings.values import read_yaml
from kata_node.values import chart
from node.cache import CHECKOUT

EXAMPLES = {path.name: path for path in sorted((CHECKOUT / "assets/chart/kata-deploy").glob("*.values.yaml"))}
"""The examples of the chart, which have the names and the meaning of those of the public chart."""

FILES = {path.name: path for path in sorted((CHECKOUT / "tests/chart").glob("public_chart*.yaml"))}

SERVED = {"containerd": 11, "cri-o": 21}
"""Handlers on amd64 without debug. Confidential shims need nydus with containerd, and nothing with CRI-O."""

LEFT_OUT = frozenset({"qemu-coco-dev", "qemu-snp", "qemu-tdx-runtime-rs"})
"""Some of the shims that a containerd without nydus cannot serve."""


def node_values(path: Path) -> dict[str, Any]:
    """Return what helm renders of a values file for the nodes. A test with helm compares the two."""
    return chart.node_values(chart.merged(read_yaml(str(path))))
