"""Settings this release understands but does not carry out yet.

They are refused by name rather than ignored. Each entry goes away with the work that makes it true.
"""

from __future__ import annotations

from kata_node.settings import DEFAULT_INSTALL_DIR, DISTRIBUTIONS, Settings, ShimSettings


def unsupported(settings: Settings) -> list[tuple[str, str]]:
    """The key of each setting that asks for such a thing, with a sentence about it.

    Only shims of this node count, and only what containerd would do: empty and false values ask for
    nothing, and CRI-O's own keys are for CRI-O nodes.
    """
    found: list[tuple[str, str]] = []
    if settings.distribution != DISTRIBUTIONS[0]:
        found.append(("k8sDistribution", f"{settings.distribution} is not in this release, only k8s"))
    if settings.install_dir != DEFAULT_INSTALL_DIR:
        key = "env.multiInstallSuffix" if settings.suffix else "env.installationPrefix"
        found.append((key, f"{settings.install_dir} is not in this release, only {DEFAULT_INSTALL_DIR}"))
    asked = {
        "debug": settings.debug,
        "env.hostOS": settings.host_os,
        "containerd.configDir": settings.containerd.config_dir,
        "containerd.configFileName": settings.containerd.config_file_name,
        "containerd.runtimeSocket": settings.containerd.runtime_socket,
        "containerd.extraPodAnnotations": settings.containerd.extra_pod_annotations,
        "snapshotter.setup": settings.snapshotter.setup,
        "customRuntimes.runtimes": settings.custom_runtimes,
        "startupTaints": settings.startup_taints,
    }
    for shim in settings.shims:
        asked |= _asked_of_shim(f"shims.{shim.name}", settings.shim_settings.get(shim.name, ShimSettings()))
    return found + [(key, f"{key} is not in this release") for key, value in asked.items() if value]


def _asked_of_shim(key: str, shim: ShimSettings) -> dict[str, object]:
    return {
        f"{key}.dropIn": shim.drop_in,
        f"{key}.allowedHypervisorAnnotations": shim.allowed_hypervisor_annotations,
        f"{key}.hypervisor.rootless": shim.rootless,
        f"{key}.containerd.snapshotter": shim.snapshotter,
        f"{key}.containerd.forceGuestPull": shim.force_guest_pull,
        f"{key}.containerd.extraPodAnnotations": shim.extra_pod_annotations,
        f"{key}.agent.httpsProxy": shim.https_proxy,
        f"{key}.agent.noProxy": shim.no_proxy,
        f"{key}.nvrc.enableDCGM": shim.enable_dcgm,
    }
