"""The table of host-check: each finding is pass, warn or fail, with the reason and the remedy. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kata_node.checks import snapshotters
from kata_node.checks.facts import HostCheckFacts
from kata_node.errors import KataNodeError, SystemdError
from kata_node.host.machine_id import is_machine
from kata_node.payload import layout
from kata_node.payload.facts import ArtifactFacts
from kata_node.plan.receipt import Receipt
from kata_node.plan.report import Check
from kata_node.runtime import compatibility, removal
from kata_node.runtime.containerd import read as containerd_read
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.model.config import own_paths
from kata_node.settings.handlers import handlers
from kata_node.settings.model import Settings
from kata_node.settings.unsupported import unsupported
from kata_node.text import counted, human

MIN_MEMORY = 2 << 30  # bytes: what one guest gets by default in Kata's configurations
SPARE = 64 << 20  # bytes left free beside the payload


def all_checks(settings: Settings, facts: HostCheckFacts, receipt: Receipt) -> tuple[Check, ...]:
    """Every check, in the order they are shown."""
    return tuple(_all(settings, facts, receipt))


def _all(settings: Settings, facts: HostCheckFacts, receipt: Receipt) -> Iterator[Check]:
    yield _settings(settings)
    yield _payload(settings, facts)
    yield _machine_id(facts)
    yield from _runtime(settings, facts, receipt)
    if facts.snapshotters is not None and isinstance(facts.runtime, RuntimeFacts):
        placed = receipt.artifacts.files if receipt.artifacts else None
        known = facts.artifacts.wanted if isinstance(facts.artifacts, ArtifactFacts) else None
        yield from snapshotters.checks(settings, facts.runtime, facts.snapshotters, known or placed)
    yield from _space(facts)
    yield _foreign(settings, facts)
    if facts.offline:
        yield Check("hardware", "skip", "offline: this is not the machine the files are for")
    else:
        yield from _hardware(settings, facts)


def _settings(settings: Settings) -> Check:
    refused = unsupported(settings)
    names = ", ".join(handler.name for handler in handlers(settings))
    if refused:
        return Check(
            "settings",
            "fail",
            "; ".join(sentence for _, sentence in refused),
            "take out " + ", ".join(key for key, _ in refused) + ", or use a release that has it",
        )
    skipped = "".join(f"; not for this node: {name} ({why})" for name, why in settings.skipped)
    return Check("settings", "pass", f"{names} on {settings.arch}{skipped}")


def _payload(settings: Settings, facts: HostCheckFacts) -> Check:
    if isinstance(facts.artifacts, KataNodeError):
        return _of_error("payload", facts.artifacts)
    if facts.missing:
        lacking = (f"{shim} needs {', '.join(paths)}" for shim, paths in facts.missing.items())
        return Check(
            "payload",
            "fail",
            "the payload is not complete: " + "; ".join(lacking),
            "use an image built with these components, or disable the shims",
        )
    if facts.artifacts.wanted is None:
        return Check("payload", "pass", "the one that is placed already")
    return Check(
        "payload", "pass", f"release {facts.artifacts.release or 'unknown'}, complete for every shim"
    )


def _machine_id(facts: HostCheckFacts) -> Check:
    expected, found = facts.expected_machine_id, facts.machine.machine_id
    if not expected:
        return Check("machine-id", "skip", "no machine id was given to compare with")
    if is_machine(found, expected):
        return Check("machine-id", "pass", found)
    return Check(
        "machine-id",
        "fail",
        f"this is machine {found or 'without an id'}, the work was meant for {expected}",
        "the Node's name now belongs to another machine: start over so that the Node is read again",
    )


def _runtime(settings: Settings, facts: HostCheckFacts, receipt: Receipt) -> Iterator[Check]:
    if facts.systemd:
        yield _of_error("systemd", facts.systemd, permanent=False)
    elif not facts.offline:
        yield Check("systemd", "pass", "reachable over D-Bus")
    runtime = facts.runtime
    if isinstance(runtime, KataNodeError):
        if not isinstance(runtime, SystemdError) or not facts.systemd:
            yield _of_error("runtime", runtime)
        return
    if error := compatibility.refusal(settings, runtime, receipt):
        yield _of_error("runtime", error)
    else:
        yield Check("runtime", "pass", f"{runtime.runtime}, says {runtime.told_by}")
    if settings.user_drop_in.strip() and runtime.runtime.name != "containerd":
        reason = f"containerd.userDropIn is for containerd, and this node runs {runtime.runtime.name}"
        yield Check("user-drop-in", "skip", reason)
    if not facts.offline:
        yield from _live(runtime, receipt)
    yield _config(settings, runtime, receipt)


def _live(runtime: RuntimeFacts, receipt: Receipt) -> Iterator[Check]:
    unfinished = receipt.cri is not None and receipt.cri.state != "serving"
    if runtime.unit and runtime.state == "active":
        yield Check("unit", "pass", f"{runtime.unit} is active")
    elif runtime.unit and unfinished:
        reason = f"{runtime.unit} is {runtime.state} after a run that did not finish"
        yield Check("unit", "warn", reason, "none needed: the cri stage goes on from there")
    else:
        yield Check(
            "unit",
            "fail",
            f"{runtime.unit} is {runtime.state}"
            if runtime.unit
            else f"systemd knows no unit of {runtime.runtime.name}",
            "start the CRI runtime as this unit; it must be restarted through it"
            if runtime.unit
            else "start the CRI runtime as one of: " + ", ".join(runtime.home.units),
            permanent=not runtime.unit,
        )
    if runtime.handlers is not None:
        yield Check("cri", "pass", f"answers, and serves {counted(len(runtime.handlers), 'named handler')}")
    else:
        reason = "does not answer after a run that did not finish"
        yield Check("cri", "warn", reason, "none needed: the cri stage goes on from there")


def _config(settings: Settings, runtime: RuntimeFacts, receipt: Receipt) -> Check:
    contents = runtime.contents
    own = own_paths(runtime.config)
    try:
        removal.refuse_others(runtime, receipt)
        wanted = runtime.config.wanted(settings, contents)
    except KataNodeError as error:
        return _of_error("config", error, permanent=True)
    then = {**contents, **dict.fromkeys(own), **{file.path: file.content for file in wanted.files}}
    # What the user's own drop-in imports may be there, and is looked for when it is written.
    of_user = {path: content for path in wanted.labels if (content := then.get(path)) is not None}
    to_come = {entry for _, entry in containerd_read.patterns(of_user)} if of_user else ()
    problems = runtime.config.check(
        {path: content for path, content in then.items() if content is not None},
        own_paths=own,
        handlers=wanted.handlers,
        labels=wanted.labels,
        exists=lambda path: path in to_come or path.startswith(f"{settings.install_dir}/"),
    )
    if problems:
        return Check("config", "fail", "; ".join(problems), "correct the runtime's configuration first")
    if runtime.config_path in contents:
        return Check("config", "pass", f"{runtime.config_path} can be extended")
    return Check("config", "pass", f"no {runtime.config_path}; one will be made")


def _space(facts: HostCheckFacts) -> Iterator[Check]:
    for space in facts.machine.spaces:
        if space.read_only or not space.writable:
            why = "is on a read-only file system" if space.read_only else "cannot be written by this user"
            yield Check(
                "writable",
                "fail",
                f"{space.path} {why}",
                "make it writable"
                + (", or set env.installationPrefix" if space is facts.machine.spaces[0] else ""),
            )
        else:
            yield Check("writable", "pass", space.path)
    room = facts.machine.spaces[0]
    needed = facts.to_place + SPARE if facts.to_place else 0
    reason = f"{human(room.free)} free at {room.path}"
    if not isinstance(facts.artifacts, KataNodeError):
        reason = f"{human(facts.to_place)} to place, {reason}"
    if needed > room.free:
        yield Check("space", "fail", reason, f"free {human(needed - room.free)} there", permanent=False)
    else:
        yield Check("space", "pass", reason)


def _foreign(settings: Settings, facts: HostCheckFacts) -> Check:
    if not facts.conflicts:
        return Check("foreign", "pass", f"nothing of others in the way below {settings.install_dir}")
    return Check(
        "foreign",
        "fail",
        f"{layout.in_the_way(facts.conflicts)} below {settings.install_dir}: "
        + ", ".join(facts.conflicts[:3]),
        "remove the earlier installation with the tool that made it",
    )


def _hardware(settings: Settings, facts: HostCheckFacts) -> Iterator[Check]:
    machine = facts.machine
    shims = {handler.shim.name: handler.shim for handler in handlers(settings)}
    local = [name for name, shim in shims.items() if shim.local_hypervisor]
    if not local:
        yield Check("kvm", "skip", "no enabled shim runs VMs on this node")
    elif not machine.dev_visible:
        yield Check("kvm", "skip", "the host's /dev is not mounted below the host root")
    elif machine.kvm:
        yield Check("kvm", "pass", "/dev/kvm is there")
    else:
        yield Check(
            "kvm",
            "fail",
            f"there is no /dev/kvm, which {', '.join(local)} need",
            "load the kvm module; in a VM, switch nested virtualization on; or enable only remote shims",
        )
    if local and machine.virtualization:
        yield Check("cpu", "pass", "virtualization extensions are there")
    elif local:
        yield Check(
            "cpu", "warn", "the CPU shows no virtualization extensions", "switch them on in the firmware"
        )
    yield from _modules(machine.modules, vsock=machine.vsock, dev_visible=machine.dev_visible, local=local)
    for kind in sorted({shim.tee for shim in shims.values() if shim.tee}):
        if kind in machine.tees:
            yield Check(f"tee-{kind}", "pass", "the kernel can start such guests")
        else:
            # A warning only: one values file serves nodes with and without it.
            yield Check(
                f"tee-{kind}",
                "warn",
                f"this kernel cannot start {kind} guests; pods of such a RuntimeClass will not start here",
                "enable it in firmware and kernel, or keep such pods away with a node selector",
            )
    yield _memory(machine.memory)
    yield _selinux(machine.selinux)


def _modules(modules: Iterable[str], *, vsock: bool, dev_visible: bool, local: list[str]) -> Iterator[Check]:
    if not local:
        return
    lacking = [name for name in ("vhost", "vhost_net") if name not in modules]
    if not vsock and "vhost_vsock" not in modules and dev_visible:
        lacking.append("vhost_vsock")
    if lacking:
        # A warning only: the kernel loads them on demand where they exist.
        remedy = "modprobe " + " ".join(lacking)
        yield Check("modules", "warn", f"not loaded: {', '.join(lacking)}", remedy)
    else:
        yield Check("modules", "pass", "vhost and vsock are loaded")


def _memory(memory: int) -> Check:
    if memory < MIN_MEMORY:
        reason = f"{human(memory)} in all; one guest gets {human(MIN_MEMORY)} by default"
        return Check("memory", "warn", reason, "lower default_memory in the Kata configuration")
    return Check("memory", "pass", human(memory))


def _selinux(state: str) -> Check:
    if state == "enforcing":
        return Check(
            "selinux",
            "warn",
            "enforcing: containers without the right label may be denied silently",
            "see the audit log if a stage or a Kata pod is refused; give the pod a privileged SELinux type",
        )
    return Check("selinux", "pass", state)


def _of_error(name: str, error: KataNodeError, *, permanent: bool | None = None) -> Check:
    reason = f"{error.where}: {error.what}" if error.where else error.what
    lasting = error.exit_code in (2, 3) if permanent is None else permanent
    return Check(name, "fail", reason, error.hint, permanent=lasting)
