"""The commands below ``cluster``, which read a cluster with the kubeconfig of the user.

``kubectl kata`` runs them too: kubectl finds the program ``kubectl-kata``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kata_node.cli.options import OUTPUT, WHAT, WHERE, Common
from kata_node.cli.registration import command


def _option(group: str, *names: str, metavar: str, text: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=group, show_default=False)


Release = Annotated[str, _option(WHAT, "--release", metavar="NAME", text="Only this release of the chart.")]
Namespace = Annotated[
    str, _option(WHAT, "--namespace", "-n", metavar="NAME", text="Only releases in this namespace.")
]
KubeConfigFile = Annotated[
    str,
    _option(
        WHERE,
        "--kubeconfig",
        metavar="FILE",
        text="The kubeconfig. Without it, that of KUBECONFIG, or ~/.kube/config.",
    ),
]
KubeContext = Annotated[
    str,
    _option(
        WHERE,
        "--context",
        metavar="NAME",
        text="The context in the kubeconfig. Without it, the current one.",
    ),
]
BundleFile = Annotated[
    Path | None,
    _option(
        OUTPUT,
        "--file",
        metavar="FILE.tar.gz",
        text="The new archive. Without it, kata-bundle-TIME.tar.gz here.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    cluster_app = typer.Typer(
        no_args_is_help=True, help="Show what a cluster knows of Kata on its nodes. Also as `kubectl kata`."
    )
    app.add_typer(cluster_app, name="cluster")

    @command(cluster_app, "status", group="cluster")
    def status(
        common: Common,
        release: Release = "",
        namespace: Namespace = "",
        kubeconfig: KubeConfigFile = "",
        kube_context: KubeContext = "",
    ) -> int:
        """Show one table over all nodes with Kata. Exit code: 0 if all is healthy, 10 if not.

        It reads Nodes, the states of releases and their DaemonSets with your kubeconfig. It changes nothing.
        """
        from kata_node.cli import cluster

        return cluster.status(common, release, namespace, kubeconfig, kube_context)

    @command(cluster_app, "bundle", group="cluster")
    def bundle(
        common: Common,
        release: Release = "",
        namespace: Namespace = "",
        kubeconfig: KubeConfigFile = "",
        kube_context: KubeContext = "",
        file: BundleFile = None,
    ) -> int:
        """Collect objects, logs, Nodes and values without secrets in one archive, for the maintainers.

        What cannot be read is named in the archive. No Secret is read.
        """
        from kata_node.cli import cluster

        return cluster.bundle(common, release, namespace, kubeconfig, kube_context, file)
