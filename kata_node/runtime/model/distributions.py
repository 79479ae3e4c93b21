"""What each distribution's CRI runtime is like: its units, socket, files, and how it takes a change. Data.

k3s, rke2
    They render containerd's configuration at every start, from a template of their own or the admin's
    (k3s ``pkg/agent/containerd/config.go`` and ``pkg/agent/templates``; rke2 runs the same code):

    - ``config-v3.toml.tmpl`` is used before ``config.toml.tmpl``, which then counts for nothing; the
      first needs containerd 2.0 (k3s 1.31.6, 1.32.2). So a template is added only where there is none.
    - ``{{ template "base" . }}`` stands for the template of their own, of the schema of the file it is in
      (k3s 1.24.17, 1.25.13, 1.26.8, 1.27.5, 1.28.1; before that it stops the start). A table that the
      base has too, written after it, is one TOML does not take twice.
    - The base imports ``config.toml.d/*.toml`` or ``config-v3.toml.d/*.toml`` beside the template since
      pull request 13680 (early 2026). A template that imports by itself and has such a base gives
      ``imports`` twice, and containerd does not start. What a template adds are tables, at its end.
    - A template without the base imports what it says itself. Only the rendered file tells.
    - The rendered file has what holds for one start (paths of one release): no template is made of it.
k0s
    It reads ``/etc/k0s/containerd.d/*.toml`` since 1.27.1, while the first line of ``containerd.toml``,
    which it writes itself, is ``# k0s_managed=true`` (its ``docs/runtime.md`` and
    ``pkg/component/worker/containerd``).

    - To 1.35, with containerd 1.7: files with a table of the schema 2 CRI plugin are merged into k0s' own
      (``/run/k0s/containerd-cri.toml``, as RFC 7396 has it: arrays replace), the others are imported.
    - From 1.36, with containerd 2: a file of another ``version`` than 3, or with that table, keeps the
      worker from starting. Later ones have containerd import the directory itself.
    - It watches that directory and sends containerd a SIGHUP three seconds after the last change. That ends
      containerd, and k0s starts it anew seconds later; the unit goes on, and so does its invocation.
microk8s
    At every start a script puts values for ``${SNAP_DATA}`` and the like into the template, which is TOML
    with those only inside of strings, and writes ``containerd.toml`` beside it (``run-containerd-with-args``,
    ``default-args/containerd-template.toml``). It is of schema 2 also where containerd is 2.1 (since
    pull request 5321, December 2025).
CRI-O
    Reads every file of its drop-in directory, and again on SIGHUP; there are no schemas.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kata_node.errors import IneligibleNodeError, SettingsError
from kata_node.settings.model import Settings

LoadMethod = Literal["restart", "watch", "signal"]

NO_SCHEMA = 0
"""The key of :attr:`Home.drop_ins` where there are no schemas."""

BASE_TEMPLATE_LINE = '{{ template "base" . }}\n'
"""What a template of k3s and rke2 must begin with to extend what they would render without it."""

K0S_MANAGED_LINE = "# k0s_managed=true"


@dataclass(frozen=True)
class DistributionRuntime:
    """A CRI runtime as one distribution runs it."""

    distribution: str
    """``k8sDistribution`` in the values: k8s, k3s, rke2, k0s, microk8s."""
    runtime: str
    """``containerd`` or ``cri-o``."""
    units: tuple[str, ...]
    """The systemd units that run it. The active one tells the distribution, and is what is restarted."""
    socket: str
    """Where it serves the CRI."""
    config: str
    """The file the runtime reads. Where there is a ``template``, the distribution alone writes it."""
    template: Mapping[int, str] = field(default_factory=dict)
    """Schema -> the file of an admin that ``config`` is rendered from; empty: ``config`` itself is edited."""
    initial_template: str = ""
    """What a template made from nothing begins with; empty: it is there, or cannot be made."""
    template_is_toml: bool = False
    """Whether it can be read and edited as TOML: not with Go's braces in it."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """What stands in a template that is TOML -> what is put there, as a rule."""
    drop_in_dirs: Mapping[int, str] = field(default_factory=dict)
    """Schema -> the directory whose ``*.toml`` the distribution has read (CRI-O: whose every file)."""
    always_reads_drop_ins: bool = False
    """Whether they are read in any case; else only when ``config`` imports them."""
    load_method: LoadMethod = "restart"
    """How a change comes to be: the unit is restarted; the distribution notices by itself; SIGHUP."""
    kubelet_root: str = "/var/lib/kubelet"
    """Where the kubelet keeps its pods."""
    config_from_argv: bool = False
    """Whether the unit's own command line may name another ``config``."""
    external_runtime_options: tuple[str, ...] = ()
    """Options of the unit's command line that have the distribution use a runtime it does not run."""

    @property
    def is_rendered(self) -> bool:
        """Whether ``config`` is written anew at every start."""
        return bool(self.template)

    def with_variables(self, template: bytes) -> bytes:
        """What a template that is TOML will say, as a rule: to be judged, never to be written.

        Variables of others than the distribution's own stay as they are.
        """
        for name, value in self.variables.items():
            template = template.replace(name.encode(), value.encode())
        return template

    def template_in_use(self, newest_schema: int, exists: Callable[[str], bool]) -> tuple[int, str]:
        """Schema and path of the template that counts, of those up to ``newest_schema``.

        The newest that is there; where none is, the newest, which is the one to be made. Raises
        :class:`KeyError` when ``config`` is not rendered, or the runtime is older than every template.
        """
        readable = sorted((schema for schema in self.template if schema <= newest_schema), reverse=True)
        if not readable:
            raise KeyError(newest_schema)
        schema = next((schema for schema in readable if exists(self.template[schema])), readable[0])
        return schema, self.template[schema]


def _rancher(name: str, *units: str) -> DistributionRuntime:
    directory = f"/var/lib/rancher/{name}/agent/etc/containerd"
    return DistributionRuntime(
        distribution=name,
        runtime="containerd",
        units=units,
        socket="/run/k3s/containerd/containerd.sock",
        config=f"{directory}/config.toml",
        template={2: f"{directory}/config.toml.tmpl", 3: f"{directory}/config-v3.toml.tmpl"},
        initial_template=BASE_TEMPLATE_LINE,
        drop_in_dirs={2: f"{directory}/config.toml.d", 3: f"{directory}/config-v3.toml.d"},
        external_runtime_options=("--container-runtime-endpoint", "--docker"),
    )


_MICROK8S = "/var/snap/microk8s"

DISTRIBUTION_RUNTIMES: tuple[DistributionRuntime, ...] = (
    _rancher("k3s", "k3s.service", "k3s-agent.service"),
    _rancher("rke2", "rke2-server.service", "rke2-agent.service"),
    DistributionRuntime(
        distribution="k0s",
        runtime="containerd",
        units=("k0scontroller.service", "k0sworker.service"),
        socket="/run/k0s/containerd.sock",
        config="/etc/k0s/containerd.toml",
        drop_in_dirs={2: "/etc/k0s/containerd.d", 3: "/etc/k0s/containerd.d"},
        always_reads_drop_ins=True,
        load_method="watch",
        kubelet_root="/var/lib/k0s/kubelet",
        external_runtime_options=("--cri-socket",),
    ),
    DistributionRuntime(
        distribution="microk8s",
        runtime="containerd",
        units=("snap.microk8s.daemon-containerd.service",),
        socket=f"{_MICROK8S}/common/run/containerd.sock",
        config=f"{_MICROK8S}/current/args/containerd.toml",
        template={
            2: f"{_MICROK8S}/current/args/containerd-template.toml",
            3: f"{_MICROK8S}/current/args/containerd-template.toml",
        },
        template_is_toml=True,
        variables={
            "${SNAP}": "/snap/microk8s/current",
            "${SNAP_DATA}": f"{_MICROK8S}/current",
            "${SNAP_COMMON}": f"{_MICROK8S}/common",
            "${SNAPSHOTTER}": "overlayfs",
            "${RUNTIME}": "runc",
            "${RUNTIME_TYPE}": "io.containerd.runc.v2",
        },
        kubelet_root=f"{_MICROK8S}/common/var/lib/kubelet",
    ),
    DistributionRuntime(
        distribution="k8s",
        runtime="cri-o",
        units=("crio.service",),
        socket="/run/crio/crio.sock",
        config="/etc/crio/crio.conf",
        drop_in_dirs={NO_SCHEMA: "/etc/crio/crio.conf.d"},
        always_reads_drop_ins=True,
        load_method="signal",
    ),
    DistributionRuntime(
        distribution="k8s",
        runtime="containerd",
        units=("containerd.service",),
        socket="/run/containerd/containerd.sock",
        config="/etc/containerd/config.toml",
        config_from_argv=True,
    ),
)
"""Every runtime this release knows, those of a distribution with units of its own first."""


def distribution_runtime_of_unit(name: str) -> DistributionRuntime | None:
    """The home that the systemd unit ``name`` runs, if it is one's."""
    return next(
        (
            distribution_runtime
            for distribution_runtime in DISTRIBUTION_RUNTIMES
            if name in distribution_runtime.units
        ),
        None,
    )


def distribution_runtimes_of_units(active: Collection[str]) -> tuple[DistributionRuntime, ...]:
    """The homes with a unit among ``active``, in the order of :data:`HOMES`.

    A distribution with units of its own counts before plain Kubernetes: beside it, ``containerd.service``
    is there for something else, such as Docker.
    """
    found = tuple(
        distribution_runtime
        for distribution_runtime in DISTRIBUTION_RUNTIMES
        if any(unit in active for unit in distribution_runtime.units)
    )
    return (
        tuple(
            distribution_runtime
            for distribution_runtime in found
            if distribution_runtime.distribution != "k8s"
        )
        or found
    )


def distribution_runtime(distribution: str, runtime: str) -> DistributionRuntime:
    """The home of ``runtime`` in ``distribution``.

    Raises :class:`~kata_node.errors.SettingsError` when that distribution does not run that runtime.
    """
    for found in DISTRIBUTION_RUNTIMES:
        if (found.distribution, found.runtime) == (distribution, runtime):
            return found
    raise SettingsError(
        f"{distribution} does not run {runtime} by itself",
        where="k8sDistribution",
        hint=f"set k8sDistribution to k8s when {runtime} is a service of its own on this node",
    )


def external_runtime_option(distribution_runtime: DistributionRuntime, argv: Sequence[str]) -> str:
    """The option in ``argv``, a unit's command line, by which it uses a runtime it does not run; or empty.

    The distribution's configuration file can have the same option, which this does not see.
    """
    given = (argument.partition("=")[0] for argument in argv)
    return next((option for option in given if option in distribution_runtime.external_runtime_options), "")


def k0s_manages(config: bytes | None) -> bool:
    """Whether k0s writes this ``containerd.toml`` itself; drop-ins are read only then.

    A missing one counts, as k0s makes it. Before 1.30 an empty line came first, and the mark was looked
    for in all of the file.
    """
    if config is None:
        return True
    first = config.decode(errors="replace").lstrip("\r\n").partition("\n")[0]
    return first.rstrip("\r") == K0S_MANAGED_LINE


def wrong_distribution_error(
    settings: Settings, distribution_runtime: DistributionRuntime, unit: str
) -> IneligibleNodeError | None:
    """That the settings are for another distribution than that of ``unit``, if they are."""
    if distribution_runtime.distribution == settings.distribution:
        return None
    return IneligibleNodeError(
        f"the settings are for {settings.distribution}, but this node runs {unit}",
        where="k8sDistribution",
        hint=f"set k8sDistribution: {distribution_runtime.distribution}",
    )
