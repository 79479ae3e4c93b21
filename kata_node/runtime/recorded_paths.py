"""Check that the receipt names only files that belong to a container runtime.

A revert restores or removes these files as root, so a receipt that somebody else wrote must not choose them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from typing import TYPE_CHECKING

from kata_node.errors import KataNodeError, UntrustedReceiptError
from kata_node.plan import receipt as receipts
from kata_node.runtime.config_selection import recorded_config
from kata_node.runtime.model.config import CriConfig, is_drop_in, is_drop_in_of, own_paths
from kata_node.runtime.model.distributions import DISTRIBUTION_RUNTIMES

if TYPE_CHECKING:
    from kata_node.host.files import Root
    from kata_node.plan.receipt import CriRecord, Receipt


def require_known_paths(root: Root, receipt: Receipt, config: CriConfig) -> None:
    """Raise :class:`UntrustedReceiptError` if the receipt names a file that no runtime can have.

    A runtime can have the files of ``config``, which comes from the unit and the values, and those of every
    distribution. At another place, an earlier unit or other values may have had it: then the file must have
    our entry, or must be a drop-in that is gone and is not restored.
    """
    cri = receipt.cri
    if cri is None:
        return
    known_files = {config.main_path, *config.shared_paths(), *own_paths(config), *_distribution_files()}
    drop_in_dirs = {*_distribution_drop_in_dirs(), f"{receipt.install_dir}/containerd/config.d"}
    unknown = [
        path
        for path in dict.fromkeys(cri.paths())
        if path not in known_files and not (is_drop_in(path) and posixpath.dirname(path) in drop_in_dirs)
    ]
    with_entry = {path for path in unknown if _has_entry(root, receipt, cri, path)}
    # The drop-in of the user has no mark, but it lies beside ours.
    own_dirs = {posixpath.dirname(path) for path in with_entry}
    own_dirs |= {f"{directory}/conf.d" for directory in own_dirs}
    for path in unknown:
        if path in with_entry or (is_drop_in(path) and posixpath.dirname(path) in own_dirs):
            continue
        if is_drop_in(path) and not root.exists(path) and not _is_restored(cri, path):
            continue
        raise UntrustedReceiptError(
            f"the receipt names {path}, but no container runtime of this node has its configuration there",
            where=receipts.path(receipt.install_dir),
            hint="if the runtime reads this file, set containerd.configDir and containerd.configFileName to "
            "it; if not, find out who changed the receipt",
        )


def _distribution_files() -> Iterator[str]:
    for each in DISTRIBUTION_RUNTIMES:
        yield each.config
        yield from each.template.values()


def _distribution_drop_in_dirs() -> Iterator[str]:
    for each in DISTRIBUTION_RUNTIMES:
        yield from each.drop_in_dirs.values()
        yield f"{posixpath.dirname(each.config)}/conf.d"


def _has_entry(root: Root, receipt: Receipt, cri: CriRecord, path: str) -> bool:
    content = root.read(path)
    if content is None:
        return False
    if is_drop_in(path):
        return is_drop_in_of(receipt.install_dir, content)
    try:
        return recorded_config(receipt, cri, path).without_entry(path, content) != content
    except KataNodeError:  # a file that cannot be a configuration
        return False


def _is_restored(cri: CriRecord, path: str) -> bool:
    states = [file.before for file in cri.files if file.path == path]
    states += [previous.state for previous in cri.previous if previous.path == path]
    return any(states) or (cri.fallback is not None and _is_restored(cri.fallback, path))
