"""What a person corrects when the runtime's configuration has problems. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from kata_node.runtime.model.config import is_drop_in

if TYPE_CHECKING:
    from kata_node.runtime.model.config import CriConfig


def correction(
    config: CriConfig, problems: Collection[str], labels: Mapping[str, str], files: Collection[str]
) -> str:
    """Return the remedy for ``problems``, which are those of :meth:`CriConfig.check`.

    ``labels`` has the settings that some files come from. ``files`` are the existing files: they decide
    which template a rendered main file comes from.
    """
    places = list(dict.fromkeys(_place(config, problem, labels, files) for problem in problems))
    managed = [place for place in places if is_drop_in(place)]
    remedies = [
        f"run `kata-node revert` for the installation of {path}, with its env.installationPrefix, or set "
        "env.multiInstallSuffix here"
        for path in managed
    ]
    if corrected := [place for place in places if place not in managed]:
        remedies.insert(0, f"correct {' and '.join(corrected)}")
    return "; ".join(remedies)


def template_of(config: CriConfig, path: str, files: Collection[str]) -> str:
    """Return the template that the distribution renders the file at ``path`` from; else ``""``."""
    shared = config.shared_paths()
    if path != config.main_path or not shared or path in shared:
        return ""
    # The template of the newest schema comes last, and the distribution prefers it.
    return next((each for each in reversed(shared) if each in files), shared[-1])


def _place(config: CriConfig, problem: str, labels: Mapping[str, str], files: Collection[str]) -> str:
    for path, label in labels.items():
        if problem.startswith(f"{path} (from {label})"):
            return label
    # A path can contain a colon, so the known paths are tried.
    for path in _known_paths(config, files):
        if problem.startswith(f"{path}:"):
            template = template_of(config, path, files)
            return f"{template}, from which {path} is rendered" if template else path
    return "the named files"


def _known_paths(config: CriConfig, files: Collection[str]) -> Iterator[str]:
    yield config.main_path
    yield from files
