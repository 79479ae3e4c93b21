"""What of the CRI runtime's configuration is this instance's, and how each file is without it. Pure.

The record tells, and where it does not (it was lost, or a run was interrupted that did not get to
keep it), the files themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

from kata_node import containerd
from kata_node.cri_files import Change, digests, is_at_hand, records, sha256
from kata_node.errors import UnfitNodeError
from kata_node.facts.runtime import RuntimeFacts
from kata_node.receipt import Receipt


def hand_back(facts: RuntimeFacts, receipt: Receipt, suffix: str) -> tuple[list[Change], list[str]]:
    """Every file with something of this instance as it is to be without, and what there is to say of it.

    Those that others write as well come first, for they import the rest.
    """
    recorded = receipt.cri.paths() if receipt.cri else ()
    paths = dict.fromkeys((*recorded, *_found(facts, receipt.install_dir, suffix)))
    changes: list[Change] = []
    notes: list[str] = []
    for path in sorted(paths, key=lambda path: containerd.is_drop_in(path, receipt.install_dir)):
        content, note = _without_us(path, facts, receipt)
        changes.append(Change(path, content, content))
        notes += [f"{note}: {path}"] if note else []
    return changes, notes


def refuse_others(facts: RuntimeFacts, receipt: Receipt, suffix: str) -> None:
    """Raise :class:`UnfitNodeError` when another installation has drop-ins where this one needs them."""
    recorded = set(receipt.cri.paths()) if receipt.cri else set()
    for place in containerd.places(receipt.install_dir, suffix, facts.config_path).values():
        there = facts.files.get(place.drop_in)
        if (
            there
            and place.drop_in not in recorded
            and not containerd.is_of(receipt.install_dir, there.content)
        ):
            raise UnfitNodeError(
                "this drop-in is of another installation",
                where=place.drop_in,
                hint="revert that one first, or give this one an env.multiInstallSuffix",
            )


def _found(facts: RuntimeFacts, install_dir: str, suffix: str) -> Iterator[str]:
    for place in containerd.places(install_dir, suffix, facts.config_path).values():
        drop_in = facts.files.get(place.drop_in)
        if place.directory.startswith(f"{install_dir}/") or (
            drop_in and containerd.is_of(install_dir, drop_in.content)
        ):
            yield from (path for path in (place.drop_in, place.user_drop_in) if path in facts.files)
    main = facts.files.get(facts.config_path)
    if main and containerd.without_us(main.content, install_dir, facts.config_path) != main.content:
        yield facts.config_path


def _without_us(path: str, facts: RuntimeFacts, receipt: Receipt) -> tuple[bytes | None, str]:
    there, known = facts.files.get(path), records(receipt.cri, path)
    if there is None:
        others_had_it = any(each.before is not None for each in known)
        return None, "removed by somebody since, left so" if others_had_it else ""
    digest = sha256(there.content)
    recognised = [each for each in known if digest in digests(each)]
    for each in recognised:
        if each.before is None:
            return None, ""
        if is_at_hand(each.before, facts):
            return facts.backups[each.before.sha256], ""
    edited = "edited by somebody since, " if known and not recognised else ""
    if containerd.is_drop_in(path, receipt.install_dir):
        return None, edited and f"{edited}removed all the same for it was ours"
    left = containerd.without_us(there.content, receipt.install_dir, path)
    return left, f"{edited}only our entry taken out" if edited and left != there.content else ""
