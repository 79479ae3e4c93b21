"""The rules of the chart's templates that its schema cannot express. Pure.

``helm template`` is the authority: a test renders the chart with values for each of its refusals, and
expects the same sentences here. helm can refuse only in its own language, and this module has to work
without helm, so there are two forms of each rule.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator

from kata_node.settings.selection import select_enabled
from kata_node.settings.shims import MACHINES, table
from kata_node.settings.system_dirs import runtime_dir_problem
from kata_node.settings.values import parse_yaml
from kata_node.values.chart import Values, at, gone

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_CLASS_MAPPINGS = (
    *("metadata", "metadata.annotations", "metadata.labels", "overhead", "overhead.podFixed"),
    *("scheduling", "scheduling.nodeSelector"),
)
_PUBLIC_DISPATCHER = re.compile(r"(^|/)k8s-job-dispatcher([:@]|$)")


def problems(values: Values) -> Iterator[str]:
    """Yield a sentence for each problem of merged ``values``, each with the path of the key."""
    yield from _gone(values)
    yield from _shims(values)
    yield from _images(values)
    yield from _job(values)
    yield from _paths(values)
    yield from _user_drop_in(values)
    yield from _runtime_classes(values)
    yield from _verification(values)


def enabled_shims(values: Values) -> tuple[str, ...]:
    """Return the shims that merged ``values`` enable on some architecture."""
    shims = at(values, "shims")
    entries = {
        name: shim
        for name, shim in (shims if isinstance(shims, dict) else {}).items()
        if name in table() and isinstance(shim, dict) and _runs_on(shim, table()[name].arches)
    }
    flags = {name: shim.get("enabled") for name, shim in entries.items()}
    off = bool(at(values, "shims.disableAll"))
    return select_enabled(flags, off, "") if flags or off else ()


def _runs_on(shim: Values, machines: Collection[str]) -> bool:
    """Return whether ``supportedArches`` of a shim allows one of the machine types."""
    allowed = shim.get("supportedArches")
    return any(
        not isinstance(allowed, list) or arch in allowed
        for arch, machine in MACHINES.items()
        if machine in machines
    )


def _gone(values: Values) -> Iterator[str]:
    for path, remedy in gone().items():
        if at(values, path):
            yield f"{path}: {remedy}"
    if at(values, "snapshotter.erofsSnapshotterMode") == "integrity":
        yield (
            "snapshotter.erofsSnapshotterMode: integrity is a value of another chart; set "
            "snapshotter.erofsDmverity: true instead"
        )


def _shims(values: Values) -> Iterator[str]:
    for name in enabled_shims(values):
        if at(values, f"shims.{name}.hypervisor.rootless"):
            yield (
                f"shims.{name}.hypervisor.rootless: is not supported in this release; remove the key, or "
                "disable the shim"
            )
        if at(values, f"shims.{name}.kernelModulesImages"):
            yield (
                f"shims.{name}.kernelModulesImages: Kata 4.1 does not read it; attach a guest extension "
                f"image with guest_extension_images in shims.{name}.dropIn"
            )


def _images(values: Values) -> Iterator[str]:
    keys = ["image", "job.dispatcherImage"]
    keys += ["nodeImage"] if at(values, "nodeImage.reference") else []
    moved = bool(at(values, "image.registry"))
    keys += ["monitor.image"] if at(values, "monitor.enabled") else []
    for key in keys:
        reference = str(at(values, f"{key}.reference") or "").strip()
        foreign = key == "job.dispatcherImage" and _PUBLIC_DISPATCHER.search(reference)
        if foreign and moved:
            continue  # The chart takes the dispatcher of that registry.
        tag = str(at(values, f"{key}.tag") or "").strip()
        whole = "@" in reference or ":" in reference.rpartition("/")[2]
        if not reference and key == "job.dispatcherImage":
            continue  # It has no default, and can come from the command line of helm.
        if not reference:
            example = "quay.io/kata-containers/kata-deploy"
            yield f"{key}.reference: is empty; set it to an image, for example {example}"
        elif whole and tag:
            yield (
                f"{key}.tag: the reference {reference} already has a tag or a digest; remove the tag {tag}, "
                "or remove it from the reference"
            )
        elif tag.startswith("sha256:") and not _DIGEST.fullmatch(tag):
            yield f"{key}.tag: {tag} is not a complete digest; write sha256: and 64 hexadecimal digits"
        if foreign:
            yield (
                f"{key}.reference: {reference} is the dispatcher of the public chart, which cannot read the "
                f"configuration of this chart; set {key} to the image of kata-deploy-job-dispatcher"
            )


def _job(values: Values) -> Iterator[str]:
    if values.get("deploymentMode") == "job" and str(at(values, "job.rollout.waveSize")) in ("0", "0%"):
        yield (
            "job.rollout.waveSize: a wave must have at least one node; set a number of 1 or more, a share of "
            "1% or more, or remove the key"
        )
    kept = at(values, "job.ttlSecondsAfterFinished")
    if isinstance(kept, int) and kept < 60:
        yield (
            f"job.ttlSecondsAfterFinished: {kept} is too short for the dispatcher to read the result of a "
            "Job; set 60 or more"
        )
    policy = at(values, "rbac.admissionPolicy") or "auto"
    if policy not in ("auto", "always", "never"):
        yield f"rbac.admissionPolicy: {policy} is none of auto, always, never; set one of these"
    labels_by = at(values, "rbac.labelsBy") or "auto"
    if labels_by not in ("auto", "node", "dispatcher"):
        yield f"rbac.labelsBy: {labels_by} is none of auto, node, dispatcher; set one of these"
    elif labels_by == "dispatcher" and values.get("deploymentMode") != "job":
        yield (
            "rbac.labelsBy: the mode daemonset has no dispatcher; set deploymentMode: job, or remove "
            "rbac.labelsBy"
        )


def _paths(values: Values) -> Iterator[str]:
    distribution = values.get("k8sDistribution") or "k8s"
    crio = values.get("containerRuntime") == "crio"
    if crio and distribution not in ("k8s", "kubeadm", "vanilla"):
        yield (
            f"containerRuntime: {distribution} always runs containerd, not crio; remove containerRuntime, or "
            "set k8sDistribution: k8s if CRI-O runs as its own unit"
        )
    for key in () if crio else ("configDir", "runtimeSocket"):
        path = str(at(values, f"containerd.{key}") or "").removeprefix("unix://")
        if path and key == "configDir":
            path = posixpath.normpath(path)
        folder = path if key == "configDir" else posixpath.dirname(path)
        if path and not path.startswith("/"):
            yield f"containerd.{key}: {path} is not an absolute path; write a path that begins with /"
        elif path and (problem := runtime_dir_problem(folder)):
            yield f"containerd.{key}: {path} {problem}"
    endpoint = str(at(values, "monitor.runtimeEndpoint") or "")
    if at(values, "monitor.enabled") and endpoint:
        socket_dir = posixpath.dirname(endpoint.removeprefix("unix://"))
        if problem := runtime_dir_problem(socket_dir):
            yield f"monitor.runtimeEndpoint: {endpoint} {problem}"


def _user_drop_in(values: Values) -> Iterator[str]:
    if at(values, "containerd.userDropInSecret.name") and at(values, "containerd.userDropIn"):
        yield (
            "containerd.userDropInSecret.name: containerd.userDropIn is set too, and only one of both can be "
            "the drop-in; remove one"
        )


def _runtime_classes(values: Values) -> Iterator[str]:
    if at(values, "runtimeClasses.enabled") is False:
        return
    suffix, names = str(at(values, "env.multiInstallSuffix") or ""), {}
    on = enabled_shims(values)
    for name in on:
        variants = [table()[name].handler(suffix)]
        if values.get("debug") is True:
            variants.append(table()[name].handler(suffix, "debug"))
            if values.get("devkit") and _runs_on(at(values, f"shims.{name}"), table()[name].devkit_arches):
                variants.append(table()[name].handler(suffix, "devkit"))
        for handler in variants:
            names[handler] = f"shims.{name}"
            if len(handler) > 63:
                yield (
                    f"env.multiInstallSuffix: the handler {handler} has {len(handler)} characters and "
                    f"Kubernetes allows 63; choose a shorter suffix, or disable shims.{name}"
                )
    if at(values, "runtimeClasses.createDefault") and not suffix:
        default = str(at(values, "runtimeClasses.defaultName") or "kata")
        if not any(at(values, f"defaultShim.{arch}") in on for arch in MACHINES):
            yield (
                "runtimeClasses.createDefault: no shim in defaultShim is enabled; enable one of them, or set "
                "defaultShim to an enabled shim"
            )
        elif default in names:
            yield (
                f"runtimeClasses.defaultName: {default} is the RuntimeClass of {names[default]}; choose "
                "another name"
            )
        names.setdefault(default, "runtimeClasses.defaultName")
    if at(values, "customRuntimes.enabled"):
        yield from _custom_runtimes(at(values, "customRuntimes.runtimes"), names)


def _custom_runtimes(runtimes: object, names: dict[str, str]) -> Iterator[str]:
    for name, runtime in (runtimes if isinstance(runtimes, dict) else {}).items():
        if runtime is None:
            continue
        where = f"customRuntimes.runtimes.{name}.runtimeClass"
        try:
            manifest = parse_yaml(str(at(runtime, "runtimeClass") or ""), as_helm=True)
        except ValueError as error:
            yield f"{where}: is not valid YAML ({error}); correct it"
            continue
        called, handler = at(manifest, "metadata.name"), at(manifest, "handler")
        if at(manifest, "kind") != "RuntimeClass" or at(manifest, "apiVersion") != "node.k8s.io/v1":
            wanted = "a manifest of kind RuntimeClass and apiVersion node.k8s.io/v1"
            yield f"{where}: is not a RuntimeClass; write {wanted}"
        elif wrong := _not_mapping(manifest, _CLASS_MAPPINGS):
            yield f"{where}: {wrong} is not a mapping; correct it"
        elif not all(each and isinstance(each, str) for each in (called, handler)):
            yield f"{where}: has no metadata.name or no handler; add both, and put a number in quotes"
        elif called in names:
            yield f"{where}: {called} is the RuntimeClass of {names[called]}; choose another name"
        names[str(called)] = f"customRuntimes.runtimes.{name}"


def _verification(values: Values) -> Iterator[str]:
    text = at(values, "verification.pod")
    if not text:
        return
    try:
        pod = parse_yaml(str(text), as_helm=True)
    except ValueError as error:
        yield f"verification.pod: is not valid YAML ({error}); correct it"
        return
    if wrong := _not_mapping(pod, ("metadata", "metadata.annotations", "metadata.labels", "spec")):
        yield f"verification.pod: {wrong} is not a mapping; correct it"
    elif at(pod, "kind") != "Pod" or not at(pod, "metadata.name") or not at(pod, "spec"):
        yield (
            "verification.pod: is not the manifest of a Pod with metadata.name and a spec; pass a manifest "
            "with --set-file verification.pod=FILE"
        )
    elif not at(pod, "spec.runtimeClassName"):
        yield (
            "verification.pod: has no runtimeClassName and would not run in Kata; set a RuntimeClass of this "
            "release, for example kata-qemu"
        )
    elif at(pod, "spec.restartPolicy") in (None, "", "Always"):
        yield "verification.pod: would be restarted whenever it ends; set restartPolicy: Never"


def _not_mapping(manifest: object, paths: Collection[str]) -> str:
    """Return the first of the paths at which a manifest has something else than a mapping; else empty."""
    found = (path for path in paths if not isinstance(at(manifest, path), dict | None))
    return next(found, "")
