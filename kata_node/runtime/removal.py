"""What of the CRI runtime's configuration is this instance's, and how each file is without it. Pure.

The record tells, and where it does not (it was lost, or a run was interrupted that did not get to
keep it), the files themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

from kata_node.errors import UnfitNodeError
from kata_node.plan.receipt import Receipt
from kata_node.runtime.config_selection import keeper
from kata_node.runtime.facts import RuntimeFacts
from kata_node.runtime.file_records import digests, is_at_hand, records, sha256
from kata_node.runtime.model.config import ConfigFile as Change
from kata_node.runtime.model.config import is_drop_in, is_of


def hand_back(facts: RuntimeFacts, receipt: Receipt) -> tuple[list[Change], list[str]]:
    """Every file with something of this instance as it is to be without, and what there is to say of it.

    Those that others write as well come first, for they import the rest.
    """
    recorded = receipt.cri.paths() if receipt.cri else ()
    paths = dict.fromkeys((*recorded, *_found(facts, receipt.install_dir)))
    changes: list[Change] = []
    notes: list[str] = []
    for path in sorted(paths, key=is_drop_in):
        content, note = _without_us(path, facts, receipt)
        changes.append(Change(path, content, content))
        notes += [f"{note}: {path}"] if note else []
    return changes, notes


def refuse_others(facts: RuntimeFacts, receipt: Receipt) -> None:
    """Raise :class:`UnfitNodeError` when another installation has drop-ins where this one needs them."""
    recorded = set(receipt.cri.paths()) if receipt.cri else set()
    for place in facts.config.places():
        there = facts.files.get(place.drop_in)
        if there and place.drop_in not in recorded and not is_of(receipt.install_dir, there.content):
            raise UnfitNodeError(
                "this drop-in is of another installation",
                where=place.drop_in,
                hint="revert that one first, or give this one an env.multiInstallSuffix",
            )


def _found(facts: RuntimeFacts, install_dir: str) -> Iterator[str]:
    for place in facts.config.places():
        drop_in = facts.files.get(place.drop_in)
        if place.directory.startswith(f"{install_dir}/") or (drop_in and is_of(install_dir, drop_in.content)):
            yield from (path for path in place.paths if path in facts.files)
    for path in facts.config.shared_paths():
        there = facts.files.get(path)
        if there and facts.config.without_us(path, there.content) != there.content:
            yield path


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
    edited = bool(known and not recognised)
    if is_drop_in(path):
        return None, "edited by somebody since, removed all the same for it was ours" if edited else ""
    left = keeper(facts.config, path, receipt).without_us(path, there.content)
    if not edited or left == there.content:
        return left, ""
    other = facts.others_wrote.get((path, digest))
    # Of an installation that has gone again there is no record to tell it from a person.
    who = f"by the installation {other}" if other else "by somebody, or by an installation that has gone,"
    return left, f"changed {who} since, only our entry taken out"
