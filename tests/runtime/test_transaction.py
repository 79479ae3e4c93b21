"""The plans of the CRI transaction, as tables. No test needs a node or a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from kata_node.host.cri_sandboxes import Pod
from kata_node.host.files import FileState
from kata_node.plan.actions import Action, Clients, Plan, RemoveFile, RemoveLeftovers, WriteFile, WriteReceipt
from kata_node.plan.effects import Effect
from kata_node.plan.receipt import ArtifactsRecord, Backup, CriFile, CriRecord, PreviousFile, Receipt
from kata_node.runtime.check_config import CheckConfig
from kata_node.runtime.containerd.config import ContainerdConfig
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.file_actions import RemoveReserves, RestoreFile
from kata_node.runtime.file_records import sha256
from kata_node.runtime.model.config import FileChange
from kata_node.runtime.model.distributions import LoadMethod, distribution_runtime
from kata_node.runtime.restart import RestartRuntime
from kata_node.runtime.rollback import ConfigChecks
from kata_node.runtime.transaction import install, revert
from kata_node.versions import parse_version, runtime_version

DROP_IN = "/opt/kata/containerd/config.d/99-kata-deploy.toml"
MAIN = "/etc/containerd/config.toml"
OLD, NEW = b"version = 3\n", b'version = 3\nimports = ["/opt/kata/containerd/config.d/*.toml"]\n'
HANDLERS = ("kata-qemu",)
INSTALL_CHANGES = (FileChange(DROP_IN, b"handlers\n"), FileChange(MAIN, NEW, content_without_entry=OLD))
REVERT_CHANGES = (FileChange(MAIN, OLD, content_without_entry=OLD), FileChange(DROP_IN, None))
MAIN_BACKUP = Backup(sha256(OLD), 0o640, 0, 7)


@dataclass(frozen=True)
class FakeCheck:
    """A check of the configuration that does nothing."""

    what: str

    def describe(self) -> str:
        return self.what

    def effects(self) -> tuple[Effect, ...]:
        return ()

    def apply(self, clients: Clients) -> None: ...

    def check(self, clients: Clients) -> None: ...


class OneDropIn(ContainerdConfig, frozen=True):
    """A configuration with one drop-in, which defines the handlers whatever its content is."""

    def defined_handlers(self, files: Mapping[str, bytes]) -> frozenset[str]:
        return frozenset(HANDLERS if files.get(DROP_IN) else ())


CONFIG = OneDropIn("/opt/kata", "", parse_version("2.1.9"), distribution_runtime("k8s", "containerd"))


def facts(
    files: Mapping[str, bytes],
    *,
    handlers: tuple[str, ...] | None = (),
    invocation: str = "run-1",
    unit: bool = True,
    load_method: LoadMethod = "restart",
) -> RuntimeFacts:
    return RuntimeFacts(
        runtime_version("containerd://2.1.9"),
        "the CRI socket",
        replace(distribution_runtime("k8s", "containerd"), load_method=load_method),
        CONFIG,
        {path: FileState(content, 0o640, 0, 7) for path, content in files.items()},
        {sha256(OLD): OLD},
        () if DROP_IN in files else ("/opt/kata/containerd", "/opt/kata/containerd/config.d"),
        frozenset(),
        "containerd.service" if unit else "",
        invocation if unit else "",
        "active" if unit else "",
        "boot-1",
        handlers if unit else None,
    )


CHECKS = ConfigChecks(
    FakeCheck("check planned"),
    FakeCheck("check"),
    CheckConfig(CONFIG, (), (), {}),
)


def receipt(cri: CriRecord | None = None) -> Receipt:
    return Receipt("default", "/opt/kata", "0", artifacts=ArtifactsRecord("placed", "r", "i", {}), cri=cri)


SERVING = CriRecord(
    "serving",
    "containerd",
    "2.1.9",
    "containerd.service",
    "run-1",
    "boot-1",
    HANDLERS,
    (CriFile(DROP_IN, None, sha256(b"handlers\n")), CriFile(MAIN, MAIN_BACKUP, sha256(NEW))),
    ("/opt/kata/containerd", "/opt/kata/containerd/config.d"),
)
PREVIOUS = (PreviousFile(DROP_IN, None), PreviousFile(MAIN, MAIN_BACKUP))
WRITING = replace(SERVING, state="writing", previous=PREVIOUS)
RESTARTING = replace(SERVING, state="restarting", previous=PREVIOUS)
INSTALLED = {DROP_IN: b"handlers\n", MAIN: NEW}


def actions_of(plan: Plan) -> list[str]:
    """Return one short line for each action of the plan."""
    bookkeeping = (RemoveLeftovers, RemoveReserves)
    return [_action_line(action) for action in plan.actions if not isinstance(action, bookkeeping)]


def _action_line(action: Action) -> str:
    match action:
        case WriteReceipt(receipt=written):
            return f"record {written.cri.state if written.cri else 'nothing'}"
        case WriteFile(path=path):
            return f"write {path.rpartition('/')[2]}"
        case RemoveFile(path=path):
            return f"remove {path.rpartition('/')[2]}"
        case RestartRuntime(restart="never"):
            return "prove"
        case RestartRuntime(restart=restart, receipt_after_proof=receipt_after_proof):
            cri = receipt_after_proof.cri if receipt_after_proof else None
            record = f", then {cri.state if cri else 'nothing'}" if receipt_after_proof else ""
            return f"restart {restart}{record}"
        case RestoreFile(path=path):
            return f"restore {path.rpartition('/')[2]}"
        case FakeCheck(what):
            return what
        case _:
            return action.describe().split(" /")[0]


FULL_INSTALL = [
    "record writing",
    "check planned",
    "create directory",
    "write 99-kata-deploy.toml",
    "write config.toml",
    "check",
    "restart always, then serving",
]


@pytest.mark.parametrize(
    ("found", "cri", "expected"),
    [
        pytest.param(facts({MAIN: OLD}), None, FULL_INSTALL, id="on-a-fresh-node"),
        pytest.param(facts({}), None, FULL_INSTALL, id="without-a-main-file"),
        pytest.param(facts(INSTALLED, handlers=HANDLERS), SERVING, [], id="served-already"),
        pytest.param(
            facts(INSTALLED, handlers=HANDLERS, invocation="run-9"),
            SERVING,
            [],
            id="restarted-by-others-since",
        ),
        pytest.param(
            facts(INSTALLED),
            SERVING,
            ["record serving", "check", "restart always, then serving"],
            id="files-right-but-not-served",
        ),
        pytest.param(facts({MAIN: OLD}), WRITING, FULL_INSTALL, id="killed-before-the-first-byte"),
        pytest.param(
            facts({MAIN: OLD, DROP_IN: b"handlers\n"}),
            WRITING,
            ["record writing", "check planned", "write config.toml", "check", "restart always, then serving"],
            id="killed-between-two-files",
        ),
        pytest.param(
            facts(INSTALLED),
            WRITING,
            ["record writing", "check", "restart always, then serving"],
            id="killed-between-write-and-restart",
        ),
        pytest.param(
            facts(INSTALLED),
            RESTARTING,
            ["record restarting", "check", "restart always, then serving"],
            id="killed-right-before-the-restart",
        ),
        pytest.param(
            facts(INSTALLED, invocation="run-2", handlers=HANDLERS),
            RESTARTING,
            ["record restarting", "check", "prove"],
            id="killed-by-the-restart-itself",
        ),
        pytest.param(
            facts(INSTALLED, invocation="run-2", handlers=HANDLERS),
            replace(RESTARTING, files=(CriFile(DROP_IN, None, sha256(b"others\n")), SERVING.files[1])),
            ["record restarting", "check", "restart always, then serving"],
            id="killed-in-the-rollback-to-what-is-wanted-now",
        ),
        pytest.param(
            facts(INSTALLED, invocation="run-2", handlers=HANDLERS),
            replace(RESTARTING, state="unloading", fallback=SERVING),
            ["record unloading", "check", "restart always, then serving"],
            id="a-revert-killed-in-its-rollback",
        ),
        pytest.param(
            facts(INSTALLED, handlers=None),
            replace(RESTARTING, boot="boot-0"),
            ["record restarting", "check", "prove"],
            id="node-rebooted-before-the-restart",
        ),
        pytest.param(
            facts({**INSTALLED, DROP_IN: b"edited\n"}, handlers=HANDLERS),
            SERVING,
            [
                "record writing",
                "check planned",
                "write 99-kata-deploy.toml",
                "check",
                "restart always, then serving",
            ],
            id="drop-in-edited-on-the-host",
        ),
        pytest.param(
            facts({MAIN: OLD}, unit=False),
            None,
            [*FULL_INSTALL[:-1], "record restarting"],
            id="offline",
        ),
        pytest.param(
            facts(INSTALLED, unit=False), replace(RESTARTING, invocation=""), [], id="offline-again"
        ),
        pytest.param(
            facts(INSTALLED, handlers=HANDLERS),
            replace(RESTARTING, invocation="", boot="boot-of-the-image-builder"),
            ["record restarting", "check", "prove"],
            id="baked-image-booted",
        ),
        pytest.param(
            facts(INSTALLED),
            replace(RESTARTING, invocation=""),
            ["record restarting", "check", "restart always, then serving"],
            id="written-offline-on-the-running-node",
        ),
    ],
)
def test_install_plans_only_the_missing_actions(
    found: RuntimeFacts, cri: CriRecord | None, expected: list[str]
) -> None:
    assert actions_of(install(found, receipt(cri), INSTALL_CHANGES, HANDLERS, CHECKS)) == expected


def test_the_first_action_saves_the_backup_of_the_main_file() -> None:
    first = install(facts({MAIN: OLD}), receipt(), INSTALL_CHANGES, HANDLERS, CHECKS).actions[0]
    assert isinstance(first, WriteReceipt)
    assert OLD in first.backups
    cri = first.receipt.cri
    assert cri is not None
    assert cri.previous == PREVIOUS
    assert cri.file(MAIN) == CriFile(MAIN, MAIN_BACKUP, sha256(NEW))
    assert cri.file(DROP_IN) == CriFile(DROP_IN, None, sha256(b"handlers\n"))


def test_a_later_install_keeps_the_backup_of_the_first_one() -> None:
    changes = (FileChange(DROP_IN, b"other handlers\n"), *INSTALL_CHANGES[1:])
    plan = install(facts(INSTALLED, handlers=HANDLERS), receipt(SERVING), changes, HANDLERS, CHECKS)
    restart = plan.actions[-1]
    assert isinstance(restart, RestartRuntime)
    assert restart.receipt_after_proof is not None
    assert restart.receipt_after_proof.cri is not None
    assert restart.receipt_after_proof.cri.file(MAIN) == CriFile(MAIN, MAIN_BACKUP, sha256(NEW))


def test_a_reconstructed_record_has_a_backup_without_our_entry() -> None:
    plan = install(facts(INSTALLED, handlers=HANDLERS), receipt(), INSTALL_CHANGES, HANDLERS, CHECKS)
    record = plan.actions[0]
    assert isinstance(record, WriteReceipt)
    assert record.receipt.cri is not None
    known = record.receipt.cri.file(MAIN)
    assert known is not None
    assert known.before is not None
    assert known.before.sha256 == sha256(OLD)
    assert OLD in record.backups


def test_the_rollback_of_a_first_install_restores_the_files_in_the_opposite_order() -> None:
    plan = install(facts({MAIN: OLD}), receipt(), INSTALL_CHANGES, HANDLERS, CHECKS)
    assert [_action_line(action) for action in plan.rollback] == [
        "restore config.toml",
        "restore 99-kata-deploy.toml",
        "restart if-read, then nothing",
    ]
    restart = plan.rollback[-1]
    assert isinstance(restart, RestartRuntime)
    assert restart.invocation_before == "run-1"
    assert restart.removed_handlers == HANDLERS


def test_the_rollback_of_a_resumed_update_restores_the_state_that_last_served() -> None:
    """The killed run had written a configuration that was never proven to serve."""
    broken = {**INSTALLED, DROP_IN: b"broken\n"}
    resumed = replace(
        SERVING,
        state="restarting",
        previous=(
            PreviousFile(DROP_IN, Backup(sha256(b"handlers\n"), 0o644, 0, 0)),
            PreviousFile(MAIN, MAIN_BACKUP),
        ),
        fallback=SERVING,
    )
    found = facts(broken, handlers=None, invocation="run-2")
    found = replace(found, backups={sha256(OLD): OLD, sha256(b"handlers\n"): b"handlers\n"})
    changes = (FileChange(DROP_IN, b"broken\n"), *INSTALL_CHANGES[1:])
    plan = install(found, receipt(resumed), changes, HANDLERS, CHECKS)
    restored = {action.path: action.state for action in plan.rollback if isinstance(action, RestoreFile)}
    assert restored[DROP_IN] == FileState(b"handlers\n", 0o644, 0, 0)
    restart = plan.rollback[-1]
    assert isinstance(restart, RestartRuntime)
    assert restart.expected_handlers == HANDLERS
    assert restart.invocation_before == ""
    assert restart.receipt_after_proof is not None
    assert restart.receipt_after_proof.cri == SERVING


FULL_REVERT = [
    "record reverting",
    "check planned",
    "write config.toml",
    "remove 99-kata-deploy.toml",
    "check",
    "restart always",
    "remove 2 empty directories",
    "record nothing",
]


@pytest.mark.parametrize(
    ("found", "cri", "expected"),
    [
        pytest.param(facts(INSTALLED, handlers=HANDLERS), SERVING, FULL_REVERT, id="what-serves"),
        pytest.param(
            facts({MAIN: OLD, DROP_IN: b"handlers\n"}),
            WRITING,
            [
                "record reverting",
                "check planned",
                "remove 99-kata-deploy.toml",
                "check",
                "prove",
                "remove 2 empty directories",
                "record nothing",
            ],
            id="an-install-killed-before-its-restart-needs-none",
        ),
        pytest.param(
            facts({MAIN: OLD, DROP_IN: b"handlers\n"}, invocation="run-2"),
            WRITING,
            [
                "record reverting",
                "check planned",
                "remove 99-kata-deploy.toml",
                "check",
                "restart always",
                "remove 2 empty directories",
                "record nothing",
            ],
            id="unless-the-runtime-was-restarted-by-somebody-meanwhile",
        ),
        pytest.param(facts(INSTALLED), RESTARTING, FULL_REVERT, id="an-install-killed-at-its-restart"),
        pytest.param(
            facts({MAIN: OLD}, handlers=HANDLERS),
            replace(SERVING, state="reverting", previous=PREVIOUS, fallback=SERVING),
            ["record reverting", "check", "restart always", "remove 2 empty directories", "record nothing"],
            id="killed-between-putting-back-and-restart",
        ),
        pytest.param(
            facts({MAIN: OLD}, invocation="run-2"),
            replace(SERVING, state="unloading", previous=PREVIOUS),
            ["record unloading", "check", "prove", "remove 2 empty directories", "record nothing"],
            id="killed-by-the-restart-itself",
        ),
        pytest.param(
            facts(INSTALLED, unit=False),
            replace(RESTARTING, invocation=""),
            [line for line in FULL_REVERT if line != "restart always"],
            id="offline",
        ),
    ],
)
def test_revert_restarts_only_a_runtime_that_has_read_our_files(
    found: RuntimeFacts, cri: CriRecord, expected: list[str]
) -> None:
    assert actions_of(revert(found, receipt(cri), cri, REVERT_CHANGES, CHECKS)) == expected


def test_revert_removes_the_import_before_the_drop_in() -> None:
    plan = revert(facts(INSTALLED, handlers=HANDLERS), receipt(SERVING), SERVING, REVERT_CHANGES, CHECKS)
    paths = [action.path for action in plan.actions if isinstance(action, WriteFile | RemoveFile)]
    assert paths == [MAIN, DROP_IN]


def test_revert_keeps_mode_and_owner_of_the_main_file() -> None:
    plan = revert(facts(INSTALLED, handlers=HANDLERS), receipt(SERVING), SERVING, REVERT_CHANGES, CHECKS)
    main = next(action for action in plan.actions if isinstance(action, WriteFile))
    assert (main.mode, main.owner) == (0o640, (0, 7))


def test_the_rollback_of_a_revert_restores_the_handlers() -> None:
    plan = revert(facts(INSTALLED, handlers=HANDLERS), receipt(SERVING), SERVING, REVERT_CHANGES, CHECKS)
    assert [_action_line(action) for action in plan.rollback] == [
        "restore 99-kata-deploy.toml",
        "restore config.toml",
        "restart if-read, then serving",
    ]


KATA_POD, RUNC_POD = Pod("shop", "web", "kata-qemu"), Pod("shop", "db", "runc")


@pytest.mark.parametrize(
    ("found", "cri", "expected"),
    [
        pytest.param(facts(INSTALLED, handlers=HANDLERS), SERVING, (KATA_POD,), id="what-serves"),
        pytest.param(facts(INSTALLED, handlers=HANDLERS), WRITING, (KATA_POD,), id="what-a-killed-run-left"),
        pytest.param(
            facts({MAIN: OLD}, handlers=HANDLERS),
            replace(SERVING, state="unloading"),
            (KATA_POD,),
            id="half-gone",
        ),
        pytest.param(
            facts({MAIN: b"another's", **INSTALLED}, handlers=HANDLERS),
            SERVING,
            (KATA_POD,),
            id="an-edited-file",
        ),
    ],
)
def test_pods_on_our_handlers_block_a_revert(
    found: RuntimeFacts, cri: CriRecord, expected: tuple[Pod, ...]
) -> None:
    found = replace(found, pods=(RUNC_POD, KATA_POD))
    plan = revert(found, receipt(cri), cri, REVERT_CHANGES, CHECKS)
    assert plan.blocking_pods is not None
    assert plan.blocking_pods.pods == expected
    assert plan.notes == ()


def test_pods_on_a_handler_that_a_foreign_file_also_defines_do_not_block() -> None:
    found = replace(facts(INSTALLED, handlers=HANDLERS), pods=(KATA_POD,))
    kept = (FileChange(MAIN, OLD, content_without_entry=OLD), FileChange(DROP_IN, b"others\n"))
    assert revert(found, receipt(SERVING), SERVING, kept, CHECKS).blocking_pods is None


def test_only_pods_on_a_removed_handler_block_an_update() -> None:
    clh = Pod("shop", "cache", "kata-clh")
    both = replace(SERVING, handlers=(*HANDLERS, "kata-clh"))
    found = replace(facts(INSTALLED, handlers=both.handlers), pods=(KATA_POD, RUNC_POD, clh))
    changes = (FileChange(DROP_IN, b"fewer handlers\n"), *INSTALL_CHANGES[1:])
    plan = install(found, receipt(both), changes, HANDLERS, CHECKS)
    assert plan.blocking_pods is not None
    assert plan.blocking_pods.pods == (clh,)


def test_a_revert_that_cannot_list_pods_continues_with_a_note() -> None:
    found = replace(facts(INSTALLED, handlers=None), pods=None)
    plan = revert(found, receipt(SERVING), SERVING, REVERT_CHANGES, CHECKS)
    assert plan.blocking_pods is None
    assert plan.notes == ("the runtime did not answer, so it is unknown which pods run on kata-qemu",)
    assert install(found, receipt(RESTARTING), INSTALL_CHANGES, HANDLERS, CHECKS).notes == ()
