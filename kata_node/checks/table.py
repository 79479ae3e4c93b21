"""The checks of host-check. Each gives findings: pass, skip, warn or fail, with reason and remedy. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from msgspec.structs import replace

from kata_node.checks import devices, kubelet, memory, paths, snapshotters, unread
from kata_node.checks.facts import HostCheckFacts
from kata_node.checks.served import served_settings
from kata_node.errors import KataNodeError, SystemdError, UnfitNodeError, UsageError
from kata_node.host.machine_id import is_same_machine_id
from kata_node.host.write_access import WriteAccess
from kata_node.payload import layout
from kata_node.payload.facts import ArtifactFacts
from kata_node.plan.receipt import Receipt
from kata_node.plan.report import Finding
from kata_node.runtime import compatibility, foreign_copies, removal
from kata_node.runtime.containerd import read as containerd_read
from kata_node.runtime.correction import correction, template_of
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.model.config import HandlerCopy, own_paths
from kata_node.runtime.planned_changes import check_repeatable
from kata_node.settings.handlers import handlers
from kata_node.settings.model import Settings
from kata_node.settings.unsupported import unsupported
from kata_node.text import human_size, pluralize

SPACE_RESERVE = 64 << 20  # bytes that must stay free after the payload is written
UNFINISHED_RUN_REMEDY = "do nothing: `install` and `revert` complete the earlier run"


def all_findings(settings: Settings, facts: HostCheckFacts, receipt: Receipt) -> tuple[Finding, ...]:
    """Return the findings of all checks, in the order in which they are shown."""
    return tuple(_iterate_findings(settings, facts, receipt))


def _iterate_findings(asked: Settings, facts: HostCheckFacts, receipt: Receipt) -> Iterator[Finding]:
    settings = asked
    placed: Collection[str] | None = receipt.artifacts.files if receipt.artifacts else None
    if isinstance(facts.artifacts, ArtifactFacts) and facts.artifacts.desired_files is not None:
        settings = facts.artifacts.settings or asked
        placed = facts.artifacts.desired_files
    if facts.snapshotters is not None and isinstance(facts.runtime, RuntimeFacts):
        settings = served_settings(settings, facts.runtime, facts.snapshotters, placed)
    yield _settings(settings)
    yield from _left_out(asked, settings)
    yield _payload(settings, facts)
    yield from _kata_configuration(facts)
    yield _machine_id(facts)
    yield from _runtime(settings, facts, receipt)
    if facts.snapshotters is not None and isinstance(facts.runtime, RuntimeFacts):
        yield from snapshotters.checks(settings, facts.runtime, facts.snapshotters, placed)
    yield from kubelet.checks(settings, facts.request_timeout)
    yield _ownership(facts)
    yield from paths.checks(settings, facts)
    yield from _space(settings, facts)
    yield _foreign_files(settings, facts)
    if facts.offline:
        yield Finding("hardware", "skip", "offline: the hardware of this machine is not that of the node")
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
            "remove " + ", ".join(key for key, _ in refused) + " from the values",
        )
    skipped = "".join(f"; skipped on this node: {name} ({why})" for name, why in settings.skipped)
    return Finding("settings", "pass", f"handlers on {settings.arch}: {names}{skipped}")


def _left_out(asked: Settings, served: Settings) -> Iterator[Finding]:
    if sentences := served.left_out_since(asked):
        yield Finding(
            "left-out",
            "warn",
            "; ".join(sentences),
            "set shims.<shim>.enabled: false for these shims, or true to make host-check fail without them",
        )


def _payload(settings: Settings, facts: HostCheckFacts) -> Finding:
    if isinstance(facts.artifacts, KataNodeError):
        return _failed_finding("payload", facts.artifacts)
    if facts.artifacts.by_record:
        return Finding(
            "payload", "skip", f"no payload: the plan uses the record of {facts.artifacts.release}"
        )
    if facts.missing_files:
        missing = (f"{shim} needs {', '.join(paths)}" for shim, paths in facts.missing_files.items())
        return Finding(
            "payload",
            "fail",
            "the payload is not complete: " + "; ".join(missing),
            "use an image, or an archive of a Kata release, that has these files, or set "
            "shims.<shim>.enabled: false for these shims",
        )
    if facts.artifacts.desired_files is None:
        return Finding("payload", "pass", "already placed on this node")
    return Finding(
        "payload",
        "pass",
        f"release {facts.artifacts.release or 'unknown'}, has every file that the shims need",
    )


def _kata_configuration(facts: HostCheckFacts) -> Iterator[Finding]:
    if isinstance(facts.artifacts, ArtifactFacts) and (found := facts.artifacts.drop_in_warnings):
        yield Finding("kata-config", "warn", "; ".join(found), "correct these settings, or take them out")


def _machine_id(facts: HostCheckFacts) -> Finding:
    expected, found = facts.expected_machine_id, facts.machine.machine_id
    if not expected:
        return Finding("machine-id", "skip", "no expected machine id was given")
    if is_same_machine_id(found, expected):
        return Finding("machine-id", "pass", found)
    return Finding(
        "machine-id",
        "fail",
        f"the machine id of this node is {found or 'not set'}, expected {expected}",
        "start the installation again, so that the Node is read again: another machine now has its name",
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
        yield Finding("runtime", "pass", f"{runtime.runtime}, according to {runtime.runtime_source}")
    if settings.user_drop_in.strip() and runtime.runtime.name != "containerd":
        reason = f"containerd.userDropIn has no effect: this node runs {runtime.runtime.name}"
        yield Finding("user-drop-in", "skip", reason)
    if not facts.offline:
        yield from _running_runtime(runtime, receipt)
    config = list(_config(settings, runtime, receipt, facts))
    yield from config
    if facts.unread is not None:
        found = unread.check(facts.unread, runtime)
        # Usually both have one cause, and then one remedy is enough.
        yield replace(found, remedy="") if any(each.status == "fail" for each in config) else found


def _running_runtime(runtime: RuntimeFacts, receipt: Receipt) -> Iterator[Finding]:
    unfinished = receipt.cri is not None and receipt.cri.state != "serving"
    if runtime.unit and runtime.state == "active":
        yield Finding("unit", "pass", f"{runtime.unit} is active")
    elif runtime.unit and unfinished:
        reason = f"{runtime.unit} is {runtime.state}, and an earlier run did not finish"
        yield Finding("unit", "warn", reason, UNFINISHED_RUN_REMEDY)
    else:
        yield Finding(
            "unit",
            "fail",
            f"{runtime.unit} is {runtime.state}"
            if runtime.unit
            else f"systemd has no unit of {runtime.runtime.name}",
            f"run `systemctl start {runtime.unit}`; kata-node restarts the runtime through this unit"
            if runtime.unit
            else f"run {runtime.runtime.name} as one of these units: "
            + ", ".join(runtime.distribution_runtime.units),
            permanent=not runtime.unit,
        )
    if runtime.handlers is not None:
        yield Finding("cri", "pass", f"answers, and serves {pluralize(len(runtime.handlers), 'handler')}")
    else:
        reason = "the runtime does not answer, and an earlier run did not finish"
        yield Finding("cri", "warn", reason, UNFINISHED_RUN_REMEDY)


def _config(
    settings: Settings, runtime: RuntimeFacts, receipt: Receipt, facts: HostCheckFacts
) -> Iterator[Finding]:
    contents = runtime.contents
    own = own_paths(runtime.config)
    try:
        removal.refuse_foreign_drop_ins(runtime, receipt)
        desired_config = runtime.config.desired_config(settings, contents)
    except KataNodeError as error:
        found = _failed_finding("config", error, permanent=True)
        if _is_of_foreign_installation(error, settings, runtime, facts):
            found = replace(found, remedy="")
        elif template := template_of(runtime.config, error.where, runtime.files):
            found = replace(found, remedy=f"correct {template}, from which this file is rendered")
        yield found
        return
    conflict = foreign_copies.conflict(desired_config.copies)
    if conflict and _is_of_foreign_installation(conflict, settings, runtime, facts):
        yield replace(_failed_finding("copies", conflict, permanent=True), remedy="")
        return
    yield from _copies(desired_config.copies)
    if conflict:
        return
    future_contents = {
        **contents,
        **dict.fromkeys(own),
        **{file.path: file.content for file in desired_config.changes},
    }
    user_files = {
        path: content for path in desired_config.labels if (content := future_contents.get(path)) is not None
    }
    found_imports = (
        {entry for _, entry in containerd_read.resolved_imports(user_files)} if user_files else set()
    )
    found_imports -= facts.missing_imports
    problems = runtime.config.check(
        {path: content for path, content in future_contents.items() if content is not None},
        own_paths=own,
        handlers=desired_config.handlers,
        labels=desired_config.labels,
        exists=lambda path: path in found_imports or _will_exist(path, settings, facts, receipt),
    )
    if problems:
        remedy = correction(runtime.config, problems, desired_config.labels, runtime.files)
        yield Finding("config", "fail", "; ".join(problems), remedy)
        return
    try:
        check_repeatable(desired_config, settings, runtime, receipt)
    except KataNodeError as error:
        yield _failed_finding("config", error, permanent=True)
        return
    if runtime.config_path in contents:
        yield Finding("config", "pass", f"{runtime.config_path} is valid with the entry of kata-node")
    else:
        yield Finding("config", "pass", f"{runtime.config_path} does not exist; the cri stage creates it")


def _is_of_foreign_installation(
    error: KataNodeError, settings: Settings, runtime: RuntimeFacts, facts: HostCheckFacts
) -> bool:
    """Return whether ``error`` is about the handlers of the installation that the check ``foreign`` finds.

    The remedy of that check is then enough: who uninstalls it removes its handlers too.
    """
    content = runtime.contents.get(error.where, b"")
    return bool(facts.conflicts) and f"{settings.install_dir}/".encode() in content


def _ownership(facts: HostCheckFacts) -> Finding:
    if facts.untrusted is None:
        return Finding("ownership", "pass", "no other user can write the files that root runs")
    return _failed_finding("ownership", facts.untrusted.error())


def _copies(copies: tuple[HandlerCopy, ...]) -> Iterator[Finding]:
    """Yield what other programs copied of our handlers; nothing when there is no copy."""
    if error := foreign_copies.conflict(copies):
        yield _failed_finding("copies", error, permanent=True)
        return
    for copy in copies:
        names = ", ".join(copy.handlers)
        if copy.state == "outdated":
            yield Finding(
                "copies",
                "warn",
                f"{copy.path} has an outdated copy of {names}, which the cri stage removes",
                f"run {copy.writer} again after the install if it needs the current copy",
            )
        else:
            yield Finding("copies", "pass", f"{copy.path} has a copy of {names}, which does no harm")


def _will_exist(path: str, settings: Settings, facts: HostCheckFacts, receipt: Receipt) -> bool:
    """Return whether the artifacts stage places the file at ``path``, as far as that is known."""
    relative = path.removeprefix(f"{settings.install_dir}/")
    known = facts.artifacts.desired_files if isinstance(facts.artifacts, ArtifactFacts) else None
    if known is None and receipt.artifacts is not None:
        return relative in receipt.artifacts.files
    return relative != path and (known is None or relative in known)


def _space(settings: Settings, facts: HostCheckFacts) -> Iterator[Finding]:
    access = facts.access.get(settings.install_dir)
    if not isinstance(access, WriteAccess):
        return
    needed = facts.bytes_to_place + SPACE_RESERVE if facts.bytes_to_place else 0
    reason = f"{human_size(access.free)} free at {access.directory}"
    if not isinstance(facts.artifacts, KataNodeError):
        reason = f"{human_size(facts.bytes_to_place)} to write, {reason}"
    if needed > access.free:
        remedy = f"free {human_size(needed - access.free)} on the file system of {access.directory}"
        yield Finding("space", "fail", reason, remedy, permanent=False)
    else:
        yield Finding("space", "pass", reason)


def _foreign_files(settings: Settings, facts: HostCheckFacts) -> Finding:
    if not facts.conflicts:
        return Finding("foreign", "pass", f"no foreign files at the paths to write in {settings.install_dir}")
    return Finding(
        "foreign",
        "fail",
        f"{layout.conflict_summary(facts.conflicts)} below {settings.install_dir}: "
        + ", ".join(facts.conflicts[:3]),
        f"uninstall Kata with the tool that placed these files{_other_name(facts)}",
    )


def _other_name(facts: HostCheckFacts) -> str:
    """Return how to install beside files of another program; ``""`` where that is not possible."""
    runtime = facts.runtime
    is_containerd_1 = (
        isinstance(runtime, RuntimeFacts)
        and runtime.runtime.name == "containerd"
        and runtime.runtime.version.major < 2
    )
    return "" if is_containerd_1 else ", or set env.multiInstallSuffix to install beside them"


def _hardware(settings: Settings, facts: HostCheckFacts) -> Iterator[Finding]:
    machine = facts.machine
    shims = {handler.shim.name: handler.shim for handler in handlers(settings)}
    yield from devices.checks(settings, machine, facts.kata_configurations)
    local = [name for name, shim in shims.items() if shim.local_hypervisor]
    if local and machine.virtualization:
        yield Finding("cpu", "pass", "the CPU has virtualization extensions")
    elif local:
        yield Finding(
            "cpu",
            "warn",
            "the CPU does not show virtualization extensions",
            "enable virtualization in the firmware; if the node is a VM, enable nested virtualization",
        )
    for kind in sorted({shim.tee for shim in shims.values() if shim.tee}):
        if kind in machine.supported_tees:
            yield Finding(f"tee-{kind}", "pass", f"the kernel can start {kind} guests")
        else:
            # Only a warning: one values file is used for nodes with and without the TEE.
            yield Finding(
                f"tee-{kind}",
                "warn",
                f"the kernel cannot start {kind} guests, so pods with such a RuntimeClass do not start",
                f"enable {kind} in the firmware and the kernel, or select nodes with {kind} in "
                "shims.<shim>.runtimeClass.nodeSelector",
            )
    yield memory.check(settings, machine.memory, facts.kata_configurations)
    yield _selinux(machine.selinux)


def _selinux(state: str) -> Finding:
    if state == "enforcing":
        return Finding(
            "selinux",
            "warn",
            "enforcing: SELinux may deny a container access without an error message",
            "if a stage or a Kata pod fails, read the audit log; set selinux.type: spc_t for the stages",
        )
    return Finding("selinux", "pass", state)


def _failed_finding(name: str, error: KataNodeError, *, permanent: bool | None = None) -> Finding:
    reason = f"{error.where}: {error.what}" if error.where else error.what
    is_permanent = error.exit_code in (2, 3) if permanent is None else permanent
    return Finding(
        name,
        "fail",
        reason,
        error.hint,
        permanent=is_permanent,
        unfit=isinstance(error, UnfitNodeError),
        usage=type(error) is UsageError,
    )
