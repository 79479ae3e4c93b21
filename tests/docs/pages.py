"""The Markdown documents, read as far as the tests need it: headings, links and fenced blocks."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>```+)(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)(?P=ticks) *$",
    re.MULTILINE | re.DOTALL,
)
_HEADING = re.compile(r"^#{1,6} +(?P<text>.+?) *$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\((?P<target>[^)\s]+)\)")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: ``line`` is the number of its first line, ``classes`` those of its info string."""

    line: int
    language: str
    classes: frozenset[str]
    body: str

    @property
    def commands(self) -> tuple[str, ...]:
        """The commands of a block of shell, each with its continued lines."""
        joined = re.sub(r"\\\n\s*", "", self.body)
        lines = (line.strip() for line in joined.splitlines())
        return tuple(line for line in lines if line and not line.startswith("#"))


@dataclass(frozen=True)
class Page:
    """A Markdown file of the checkout, by its path relative to that."""

    name: str

    @property
    def path(self) -> Path:
        return CHECKOUT / self.name

    @cached_property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def prose(self) -> str:
        """The text without its fenced blocks, code spans and comments."""
        return re.sub(r"`[^`\n]+`", "`…`", _COMMENT.sub("", _FENCE.sub("", self.text)))

    @property
    def blocks(self) -> Iterator[Block]:
        for found in _FENCE.finditer(self.text):
            language, _, rest = found["info"].strip().partition(" ")
            classes = frozenset(re.findall(r"\.([\w-]+)", rest))
            line = self.text.count("\n", 0, found.start("body")) + 1
            yield Block(line, language, classes, textwrap.dedent(found["body"]))

    @property
    def anchors(self) -> set[str]:
        """What GitHub makes of the headings; a heading that is there twice gets a number."""
        found: dict[str, int] = {}
        anchors = set()
        for heading in _HEADING.finditer(_FENCE.sub("", self.text)):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading["text"]).replace("`", "")
            slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            anchors.add(f"{slug}-{found[slug]}" if slug in found else slug)
            found[slug] = found.get(slug, 0) + 1
        return anchors

    @property
    def links(self) -> Iterator[str]:
        """The links to files and headings of the checkout."""
        for found in _LINK.finditer(self.prose):
            if "://" not in found["target"] and not found["target"].startswith("mailto:"):
                yield found["target"]


PAGES = [
    Page(str(path.relative_to(CHECKOUT)))
    for path in (
        *(CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *sorted((CHECKOUT / "docs").rglob("*.md")),
    )
]
