"""The table of distributions: how each one runs its container runtime. Data.

It has the units, socket and files of each runtime, and how the runtime loads a change.

k3s, rke2
    They render containerd's configuration at every start, from a built-in template or from one of the
    administrator. Sources: k3s ``pkg/agent/containerd/config.go`` and ``pkg/agent/templates``; rke2 runs the
    same code.

    - If ``config-v3.toml.tmpl`` exists, ``config.toml.tmpl`` is ignored. ``config-v3.toml.tmpl`` needs
      containerd 2.0 (k3s 1.31.6, 1.32.2). So kata-node adds a template only where none exists.
    - ``{{ template "base" . }}`` includes the built-in template of the same schema. It needs k3s 1.24.17,
      1.25.13, 1.26.8, 1.27.5 or 1.28.1; older releases do not start with it. TOML allows each table once,
      so a table of the base must not follow it again.
    - Since pull request 13680 (early 2026) the base imports ``config.toml.d/*.toml`` or
      ``config-v3.toml.d/*.toml`` beside the template. If a template has its own ``imports`` and includes
      such a base, the rendered file has ``imports`` twice and containerd does not start. So kata-node adds
      only tables to a template, at its end.
    - A template without the base imports only what it lists. Only the rendered file shows the imports.
    - The rendered file has paths that are valid for one release, so it cannot become a template.
k0s
    It reads ``/etc/k0s/containerd.d/*.toml`` since 1.27.1, as long as the first line of its
    ``containerd.toml`` is ``# k0s_managed=true``. Sources: k0s ``docs/runtime.md`` and
    ``pkg/component/worker/containerd``.

    - Up to 1.35 (containerd 1.7), k0s merges drop-ins with a table of the schema 2 CRI plugin into
      ``/run/k0s/containerd-cri.toml`` by RFC 7396 (arrays replace), and imports the other drop-ins.
    - From 1.36 (containerd 2), a drop-in with that table, or with a ``version`` other than 3, keeps the
      worker from starting. Later releases have containerd import the directory itself.
    - k0s watches the directory. Three seconds after the last change it sends containerd a SIGHUP, which ends
      containerd. k0s starts it again some seconds later. The unit keeps running with the same invocation.
microk8s
    At every start a script replaces variables like ``${SNAP_DATA}`` in the template and writes
    ``containerd.toml`` beside it. The template is TOML, with variables only inside strings. Sources:
    ``run-containerd-with-args``, ``default-args/containerd-template.toml``. The template has schema 2 even
    for containerd 2.1 (since pull request 5321, December 2025).
CRI-O
    It reads every file of its drop-in directory at its start and on SIGHUP. Its files have no schema.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

from msgspec import Struct, field

from kata_node.errors import IneligibleNodeError, SettingsError
from kata_node.settings.model import Settings

LoadMethod = Literal["restart", "watch", "signal"]

NO_SCHEMA = 0
"""The key of :attr:`DistributionRuntime.drop_in_dirs` for a runtime without schemas."""

BASE_TEMPLATE_LINE = '{{ template "base" . }}\n'
"""The first line of a k3s or rke2 template that extends the built-in one."""

K0S_MANAGED_LINE = "# k0s_managed=true"


class DistributionRuntime(Struct, frozen=True):
    """A container runtime as one distribution runs it."""

    distribution: str
    """``k8sDistribution`` in the values: k8s, k3s, rke2, k0s, microk8s."""
    runtime: str
    """``containerd`` or ``cri-o``."""
    units: tuple[str, ...]
    """The systemd units that run it. The active one shows the distribution, and kata-node restarts it."""
    socket: str
    """The CRI socket."""
    config: str
    """The main file. Where there is a ``template``, only the distribution writes the main file."""
    template: Mapping[int, str] = field(default_factory=dict)
    """Schema -> the template that ``config`` is rendered from. Empty when ``config`` itself is edited."""
    initial_template: str = ""
    """The first content of a template that kata-node creates. Empty when kata-node cannot create one."""
    template_is_toml: bool = False
    """Whether the template can be parsed as TOML. A Go template cannot."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variable of a TOML template -> its usual value."""
    drop_in_dirs: Mapping[int, str] = field(default_factory=dict)
    """Schema -> the drop-in directory. containerd reads ``*.toml`` in it, CRI-O every file."""
    always_reads_drop_ins: bool = False
    """Whether the runtime reads the drop-ins even when ``config`` does not import them."""
    load_method: LoadMethod = "restart"
    """How the runtime loads a change: by a restart of its unit, by watching its files, or on SIGHUP."""
    kubelet_root: str = "/var/lib/kubelet"
    """The kubelet's root directory."""
    paths_from: Literal["", "unit", "process"] = ""
    """Where the command line is that may name another main file: in the unit, or only in its process."""
    external_runtime_options: tuple[str, ...] = ()
    """Options on the unit's command line that select a runtime which the distribution does not run."""

    @property
    def is_rendered(self) -> bool:
        """Whether the distribution renders ``config`` at every start."""
        return bool(self.template)

    def with_variables(self, template: bytes) -> bytes:
        """Return a TOML template with the usual values of its variables; unknown variables stay.

        The result is only good for checks. It must not be written.
        """
        for name, value in self.variables.items():
            template = template.replace(name.encode(), value.encode())
        return template

    def template_in_use(self, newest_schema: int, exists: Callable[[str], bool]) -> tuple[int, str]:
        """Return schema and path of the template in use, with a schema up to ``newest_schema``.

        That is the newest one that exists. If none exists, it is the newest one that could be created. Raises
        :class:`KeyError` when ``config`` is not rendered or the runtime supports none of the templates.
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
        # With --data-dir, or data-dir in its own configuration, these paths are below another directory.
        paths_from="process",
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
        paths_from="unit",
    ),
    DistributionRuntime(
        distribution="k8s",
        runtime="containerd",
        units=("containerd.service",),
        socket="/run/containerd/containerd.sock",
        config="/etc/containerd/config.toml",
        paths_from="unit",
    ),
)
"""Every runtime that this release supports; plain Kubernetes (``k8s``) comes last."""


def distribution_runtime_of_unit(name: str) -> DistributionRuntime | None:
    """Return the runtime that the systemd unit ``name`` runs, or ``None``."""
    return next(
        (
            distribution_runtime
            for distribution_runtime in DISTRIBUTION_RUNTIMES
            if name in distribution_runtime.units
        ),
        None,
    )


def distribution_runtimes_of_units(active: Collection[str]) -> tuple[DistributionRuntime, ...]:
    """Return the runtimes with a unit in ``active``, in the order of :data:`DISTRIBUTION_RUNTIMES`.

    If another distribution is active, plain Kubernetes is left out: ``containerd.service`` then serves
    another program, for example Docker.
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
    """Return how ``distribution`` runs ``runtime``.

    Raises :class:`~kata_node.errors.SettingsError` when the distribution does not run that runtime.
    """
    for found in DISTRIBUTION_RUNTIMES:
        if (found.distribution, found.runtime) == (distribution, runtime):
            return found
    raise SettingsError(
        f"{distribution} does not run {runtime}",
        where="k8sDistribution",
        hint=f"set k8sDistribution: k8s if {runtime} runs as its own systemd unit on this node",
    )


def external_runtime_option(distribution_runtime: DistributionRuntime, argv: Sequence[str]) -> str:
    """Return the option of a unit's command line ``argv`` that selects an external runtime; or ``""``.

    It does not see the same option in the distribution's configuration file.
    """
    given = (argument.partition("=")[0] for argument in argv)
    return next((option for option in given if option in distribution_runtime.external_runtime_options), "")


def k0s_manages(config: bytes | None) -> bool:
    """Return whether k0s manages this ``containerd.toml``. Only then does it read drop-ins.

    k0s creates a missing file and manages it. Before k0s 1.30 an empty line came first, and k0s searched the
    whole file for the marker.
    """
    if config is None:
        return True
    first = config.decode(errors="replace").lstrip("\r\n").partition("\n")[0]
    return first.rstrip("\r") == K0S_MANAGED_LINE


def wrong_distribution_error(
    settings: Settings, distribution_runtime: DistributionRuntime, unit: str
) -> IneligibleNodeError | None:
    """Return the error for settings of another distribution than that of ``unit``, or ``None``."""
    if distribution_runtime.distribution == settings.distribution:
        return None
    return IneligibleNodeError(
        f"the settings are for {settings.distribution}, but this node runs {unit}",
        where="k8sDistribution",
        hint=f"set k8sDistribution: {distribution_runtime.distribution}",
    )
