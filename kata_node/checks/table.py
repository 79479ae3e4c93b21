"""The table of host-check: each finding is pass, warn or fail, with the reason and the remedy. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kata_node.checks import snapshotters
from kata_node.checks.facts import HostCheckFacts
from kata_node.errors import KataNodeError, SystemdError
from kata_node.host.machine_id import is_same_machine_id
from kata_node.payload import layout
from kata_node.payload.facts import ArtifactFacts
from kata_node.plan.receipt import Receipt
from kata_node.plan.report import Finding
from kata_node.runtime import compatibility, removal
from kata_node.runtime.containerd import read as containerd_read
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.model.config import own_paths
from kata_node.settings.handlers import handlers
from kata_node.settings.model import Settings
from kata_node.settings.unsupported import unsupported
from kata_node.text import human_size, pluralize

MIN_MEMORY = 2 << 30  # bytes: what one guest gets by default in Kata's configurations
SPACE_RESERVE = 64 << 20  # bytes left free beside the payload


def all_findings(settings: Settings, facts: HostCheckFacts, receipt: Receipt) -> tuple[Finding, ...]:
    """Every check, in the order they are shown."""
    return tuple(_iterate_findings(settings, facts, receipt))


def _iterate_findings(settings: Settings, facts: HostCheckFacts, receipt: Receipt) -> Iterator[Finding]:
    yield _settings(settings)
    yield _payload(settings, facts)
    yield _machine_id(facts)
    yield from _runtime(settings, facts, receipt)
    if facts.snapshotters is not None and isinstance(facts.runtime, RuntimeFacts):
        placed = receipt.artifacts.files if receipt.artifacts else None
        known = facts.artifacts.desired_files if isinstance(facts.artifacts, ArtifactFacts) else None
        yield from snapshotters.checks(settings, facts.runtime, facts.snapshotters, known or placed)
    yield from _space(facts)
    yield _foreign_files(settings, facts)
    if facts.offline:
        yield Finding("hardware", "skip", "offline: this is not the machine the files are for")
    else:
        yield from _hardware(settings, facts)


def _settings(settings: Settings) -> Finding:
    refused = unsupported(settings)
    names = ", ".join(handler.name for handler in handlers(settings))
    if refused:
        return Finding(
            "settings",
            "fail",
            "; ".join(sentence for _, sentence in refused),
            "take out " + ", ".join(key for key, _ in refused) + ", or use a release that has it",
        )
    skipped = "".join(f"; not for this node: {name} ({why})" for name, why in settings.skipped)
    return Finding("settings", "pass", f"{names} on {settings.arch}{skipped}")


def _payload(settings: Settings, facts: HostCheckFacts) -> Finding:
    if isinstance(facts.artifacts, KataNodeError):
        return _failed_finding("payload", facts.artifacts)
    if facts.missing_files:
        lacking = (f"{shim} needs {', '.join(paths)}" for shim, paths in facts.missing_files.items())
        return Finding(
            "payload",
            "fail",
            "the payload is not complete: " + "; ".join(lacking),
            "use an image built with these components, or disable the shims",
        )
    if facts.artifacts.desired_files is None:
        return Finding("payload", "pass", "the one that is placed already")
    return Finding(
        "payload", "pass", f"release {facts.artifacts.release or 'unknown'}, complete for every shim"
    )


def _machine_id(facts: HostCheckFacts) -> Finding:
    expected, found = facts.expected_machine_id, facts.machine.machine_id
    if not expected:
        return Finding("machine-id", "skip", "no machine id was given to compare with")
    if is_same_machine_id(found, expected):
        return Finding("machine-id", "pass", found)
    return Finding(
        "machine-id",
        "fail",
        f"this is machine {found or 'without an id'}, the work was meant for {expected}",
        "the Node's name now belongs to another machine: start over so that the Node is read again",
    )


def _runtime(settings: Settings, facts: HostCheckFacts, receipt: Receipt) -> Iterator[Finding]:
    if facts.systemd:
        yield _failed_finding("systemd", facts.systemd, permanent=False)
    elif not facts.offline:
        yield Finding("systemd", "pass", "reachable over D-Bus")
    runtime = facts.runtime
    if isinstance(runtime, KataNodeError):
        if not isinstance(runtime, SystemdError) or not facts.systemd:
            yield _failed_finding("runtime", runtime)
        return
    if error := compatibility.incompatibility(settings, runtime, receipt):
        yield _failed_finding("runtime", error)
    else:
        yield Finding("runtime", "pass", f"{runtime.runtime}, says {runtime.runtime_source}")
    if settings.user_drop_in.strip() and runtime.runtime.name != "containerd":
        reason = f"containerd.userDropIn is for containerd, and this node runs {runtime.runtime.name}"
        yield Finding("user-drop-in", "skip", reason)
    if not facts.offline:
        yield from _running_runtime(runtime, receipt)
    yield _config(settings, runtime, receipt)


def _running_runtime(runtime: RuntimeFacts, receipt: Receipt) -> Iterator[Finding]:
    unfinished = receipt.cri is not None and receipt.cri.state != "serving"
    if runtime.unit and runtime.state == "active":
        yield Finding("unit", "pass", f"{runtime.unit} is active")
    elif runtime.unit and unfinished:
        reason = f"{runtime.unit} is {runtime.state} after a run that did not finish"
        yield Finding("unit", "warn", reason, "none needed: the cri stage goes on from there")
    else:
        yield Finding(
            "unit",
            "fail",
            f"{runtime.unit} is {runtime.state}"
            if runtime.unit
            else f"systemd knows no unit of {runtime.runtime.name}",
            "start the CRI runtime as this unit; it must be restarted through it"
            if runtime.unit
            else "start the CRI runtime as one of: " + ", ".join(runtime.distribution_runtime.units),
            permanent=not runtime.unit,
        )
    if runtime.handlers is not None:
        yield Finding(
            "cri", "pass", f"answers, and serves {pluralize(len(runtime.handlers), 'named handler')}"
        )
    else:
        reason = "does not answer after a run that did not finish"
        yield Finding("cri", "warn", reason, "none needed: the cri stage goes on from there")


def _config(settings: Settings, runtime: RuntimeFacts, receipt: Receipt) -> Finding:
    contents = runtime.contents
    own = own_paths(runtime.config)
    try:
        removal.refuse_foreign_drop_ins(runtime, receipt)
        desired_config = runtime.config.desired_config(settings, contents)
    except KataNodeError as error:
        return _failed_finding("config", error, permanent=True)
    future_contents = {
        **contents,
        **dict.fromkeys(own),
        **{file.path: file.content for file in desired_config.changes},
    }
    # What the user's own drop-in imports may be there, and is looked for when it is written.
    user_files = {
        path: content for path in desired_config.labels if (content := future_contents.get(path)) is not None
    }
    expected_imports = (
        {entry for _, entry in containerd_read.resolved_imports(user_files)} if user_files else ()
    )
    problems = runtime.config.check(
        {path: content for path, content in future_contents.items() if content is not None},
        own_paths=own,
        handlers=desired_config.handlers,
        labels=desired_config.labels,
        exists=lambda path: path in expected_imports or path.startswith(f"{settings.install_dir}/"),
    )
    if problems:
        return Finding("config", "fail", "; ".join(problems), "correct the runtime's configuration first")
    if runtime.config_path in contents:
        return Finding("config", "pass", f"{runtime.config_path} can be extended")
    return Finding("config", "pass", f"no {runtime.config_path}; one will be made")


def _space(facts: HostCheckFacts) -> Iterator[Finding]:
    for space in facts.machine.spaces:
        if space.read_only or not space.writable:
            why = "is on a read-only file system" if space.read_only else "cannot be written by this user"
            yield Finding(
                "writable",
                "fail",
                f"{space.path} {why}",
                "make it writable"
                + (", or set env.installationPrefix" if space is facts.machine.spaces[0] else ""),
            )
        else:
            yield Finding("writable", "pass", space.path)
    install_space = facts.machine.spaces[0]
    needed = facts.bytes_to_place + SPACE_RESERVE if facts.bytes_to_place else 0
    reason = f"{human_size(install_space.free)} free at {install_space.path}"
    if not isinstance(facts.artifacts, KataNodeError):
        reason = f"{human_size(facts.bytes_to_place)} to place, {reason}"
    if needed > install_space.free:
        yield Finding(
            "space", "fail", reason, f"free {human_size(needed - install_space.free)} there", permanent=False
        )
    else:
        yield Finding("space", "pass", reason)


def _foreign_files(settings: Settings, facts: HostCheckFacts) -> Finding:
    if not facts.conflicts:
        return Finding("foreign", "pass", f"nothing of others in the way below {settings.install_dir}")
    return Finding(
        "foreign",
        "fail",
        f"{layout.conflict_summary(facts.conflicts)} below {settings.install_dir}: "
        + ", ".join(facts.conflicts[:3]),
        "remove the earlier installation with the tool that made it",
    )


def _hardware(settings: Settings, facts: HostCheckFacts) -> Iterator[Finding]:
    machine = facts.machine
    shims = {handler.shim.name: handler.shim for handler in handlers(settings)}
    local = [name for name, shim in shims.items() if shim.local_hypervisor]
    if not local:
        yield Finding("kvm", "skip", "no enabled shim runs VMs on this node")
    elif not machine.dev_visible:
        yield Finding("kvm", "skip", "the host's /dev is not mounted below the host root")
    elif machine.kvm:
        yield Finding("kvm", "pass", "/dev/kvm is there")
    else:
        yield Finding(
            "kvm",
            "fail",
            f"there is no /dev/kvm, which {', '.join(local)} need",
            "load the kvm module; in a VM, switch nested virtualization on; or enable only remote shims",
        )
    if local and machine.virtualization:
        yield Finding("cpu", "pass", "virtualization extensions are there")
    elif local:
        yield Finding(
            "cpu", "warn", "the CPU shows no virtualization extensions", "switch them on in the firmware"
        )
    yield from _modules(machine.modules, vsock=machine.vsock, dev_visible=machine.dev_visible, local=local)
    for kind in sorted({shim.tee for shim in shims.values() if shim.tee}):
        if kind in machine.supported_tees:
            yield Finding(f"tee-{kind}", "pass", "the kernel can start such guests")
        else:
            # A warning only: one values file serves nodes with and without it.
            yield Finding(
                f"tee-{kind}",
                "warn",
                f"this kernel cannot start {kind} guests; pods of such a RuntimeClass will not start here",
                "enable it in firmware and kernel, or keep such pods away with a node selector",
            )
    yield _memory(machine.memory)
    yield _selinux(machine.selinux)


def _modules(
    modules: Iterable[str], *, vsock: bool, dev_visible: bool, local: list[str]
) -> Iterator[Finding]:
    if not local:
        return
    missing_modules = [name for name in ("vhost", "vhost_net") if name not in modules]
    if not vsock and "vhost_vsock" not in modules and dev_visible:
        missing_modules.append("vhost_vsock")
    if missing_modules:
        # A warning only: the kernel loads them on demand where they exist.
        remedy = "modprobe " + " ".join(missing_modules)
        yield Finding("modules", "warn", f"not loaded: {', '.join(missing_modules)}", remedy)
    else:
        yield Finding("modules", "pass", "vhost and vsock are loaded")


def _memory(memory: int) -> Finding:
    if memory < MIN_MEMORY:
        reason = f"{human_size(memory)} in all; one guest gets {human_size(MIN_MEMORY)} by default"
        return Finding("memory", "warn", reason, "lower default_memory in the Kata configuration")
    return Finding("memory", "pass", human_size(memory))


def _selinux(state: str) -> Finding:
    if state == "enforcing":
        return Finding(
            "selinux",
            "warn",
            "enforcing: containers without the right label may be denied silently",
            "see the audit log if a stage or a Kata pod is refused; give the pod a privileged SELinux type",
        )
    return Finding("selinux", "pass", state)


def _failed_finding(name: str, error: KataNodeError, *, permanent: bool | None = None) -> Finding:
    reason = f"{error.where}: {error.what}" if error.where else error.what
    is_permanent = error.exit_code in (2, 3) if permanent is None else permanent
    return Finding(name, "fail", reason, error.hint, permanent=is_permanent)
