"""Print parts of the troubleshooting guide. The pages of the documentation are part of the program."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import typer
from msgspec import Struct

from kata_node.assets import page
from kata_node.cli.options import Output
from kata_node.cli.output import PROGRAM_NAME, print_json_result, print_result
from kata_node.errors import UsageError

TROUBLESHOOTING, EXIT_CODES = "troubleshooting.md", "reference/exit-codes.md"

MAX_WIDTH = 100
"""Columns of the text; a terminal may have fewer."""

_Row = tuple[str, ...]
_Table = tuple[_Row, list[_Row]]

_HEADING = re.compile(r"(#{1,4}) +(.+?) *$")
_LINK = re.compile(r"\[([^\]]+)\]\(([^)]*)\)")
_CELL_END = re.compile(r"(?<!\\)\|")


class Explanation(Struct, frozen=True):
    """A part of the guide in Markdown. ``see`` are the names of further parts."""

    title: str
    text: str
    see: tuple[str, ...] = ()


class Guide(Struct, frozen=True):
    """What can be explained, by name. The name of a topic is the anchor of its heading.

    In the name of a check, ``…`` stands for any text.
    """

    checks: Mapping[str, Explanation]
    codes: Mapping[str, Explanation]
    topics: Mapping[str, Explanation]

    @property
    def names(self) -> tuple[str, ...]:
        """All names; a check and a topic can have the same one."""
        return tuple(dict.fromkeys((*self.checks, *self.codes, *self.topics)))

    def find(self, name: str) -> tuple[Explanation, ...]:
        """Return the explanations with a name; none for an unknown name."""
        checks = [
            found
            for key, found in self.checks.items()
            if key == name or ("…" in key and name.startswith(key.partition("…")[0]))
        ]
        others = (found[name] for found in (self.codes, self.topics) if name in found)
        return (*checks, *others)


def explain(name: str, output: Output) -> int:
    """Print what the guide says of ``name``; list all names when it is empty.

    Raises :class:`UsageError` for an unknown name.
    """
    guide = read_guide()
    if not name:
        _print_names(guide, output)
        return 0
    found = guide.find(name.lower())
    if not found:
        raise _unknown(name, guide)
    if output is Output.JSON:
        parts = [{"title": each.title, "text": each.text, "see": list(each.see)} for each in found]
        print_json_result({"outcome": "ok", "name": name, "explanations": parts})
    else:
        print_result("\n\n".join(_to_text(each) for each in found))
    return 0


def _unknown(name: str, guide: Guide) -> UsageError:
    import difflib

    near = difflib.get_close_matches(name.lower(), guide.names, n=3, cutoff=0.55)
    near += [each for each in guide.names if name.lower() in each and each not in near][:3]
    listing = f"run {PROGRAM_NAME} explain to list all names"
    hint = f"did you mean {' or '.join(near)}? Otherwise {listing}" if near else listing
    return UsageError(
        f"it is neither a check nor an exit code nor a topic: {name}", where="explain", hint=hint
    )


def _print_names(guide: Guide, output: Output) -> None:
    if output is Output.JSON:
        names = {
            "checks": list(guide.checks),
            "exit_codes": {code: found.title for code, found in guide.codes.items()},
            "topics": {name: found.title for name, found in guide.topics.items()},
        }
        print_json_result({"outcome": "ok", **names})
        return
    width = max(map(len, guide.topics))
    meanings = {code: found.title.partition(": ")[2] for code, found in guide.codes.items()}
    lines = [f"Usage: {PROGRAM_NAME} explain NAME", "", "Checks of host-check:"]
    lines += textwrap.wrap(", ".join(guide.checks), _width(), initial_indent="  ", subsequent_indent="  ")
    lines += ["", "Exit codes:", *(f"  {code:>2}  {_plain(meaning)}" for code, meaning in meanings.items())]
    lines += ["", "Topics:", *(f"  {name:<{width}}  {found.title}" for name, found in guide.topics.items())]
    print_result("\n".join(lines))


# --- the pages --------------------------------------------------------------------------------------


def read_guide() -> Guide:
    """Read the pages of the guide."""
    troubleshooting = _sections(page(TROUBLESHOOTING).read_text(encoding="utf-8"))
    exit_codes = _sections(page(EXIT_CODES).read_text(encoding="utf-8"))
    topics = {slug: Explanation(title, text) for slug, (title, text) in troubleshooting.items()}
    checks: dict[str, list[tuple[_Row, _Row]]] = {}
    for _, text in troubleshooting.values():
        for header, rows in _tables(text):
            for row in rows if header[0] == "check" else []:
                for name in re.findall(r"`([^`]+)`", row[0]):
                    known = checks.setdefault(name, [])
                    if (header, row) not in known:  # a section contains those below it
                        known.append((header, row))
    return Guide(
        {name: _check(name, rows) for name, rows in checks.items()},
        dict(_codes(exit_codes, topics)),
        topics,
    )


def _check(name: str, rows: Sequence[tuple[_Row, _Row]]) -> Explanation:
    text = "\n\n".join(_row_text(header, row) for header, row in rows)
    see = tuple(each for each in _anchors(text) if each != name)
    return Explanation(f"{name}: a check of host-check", text, see)


def _codes(
    pages: Mapping[str, tuple[str, str]], topics: Mapping[str, Explanation]
) -> Iterator[tuple[str, Explanation]]:
    start = topics["start-from-the-exit-code"].text
    links = {row[0]: row[1] for _, rows in _tables(start) for row in rows}
    header, rows = next(_tables(pages[PROGRAM_NAME][1]))
    for row in rows:
        code, meaning = row[:2]
        see = _anchors(links.get(code, ""))
        texts = [f"{header[2].capitalize()}: {row[2]}"]
        if more := pages.get(f"exit-code-{code}"):
            texts.append(more[1])
        if len(see) == 1:
            texts.append(f"## {topics[see[0]].title}\n\n{topics[see[0]].text}")
            see = ()
        yield code, Explanation(f"exit code {code}: {meaning}", "\n\n".join(texts), see)


def _sections(text: str) -> dict[str, tuple[str, str]]:
    """Return the title and the text of each heading below the first level, by its anchor.

    A section contains the sections below it.
    """
    lines = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL).splitlines()
    headings: list[tuple[int, int, str]] = []  # line, level, title
    in_block = False
    for at, line in enumerate(lines):
        if line.startswith("```"):
            in_block = not in_block
        elif not in_block and (found := _HEADING.match(line)):
            headings.append((at, len(found[1]), found[2].replace("`", "")))
    sections = {}
    for index, (at, level, title) in enumerate(headings):
        end = next((line for line, other, _ in headings[index + 1 :] if other <= level), len(lines))
        if level > 1:
            sections[_anchor(title)] = (title, "\n".join(lines[at + 1 : end]).strip())
    return sections


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _anchors(text: str) -> tuple[str, ...]:
    """Return the anchors of this page that ``text`` links to."""
    targets = (target for _, target in _LINK.findall(text))
    return tuple(dict.fromkeys(target[1:] for target in targets if target.startswith("#")))


def _tables(text: str) -> Iterator[_Table]:
    """Yield the header and the rows of each table."""
    for found in re.finditer(r"(?m)(?:^\|.*\n?)+", text):
        header, _, *rows = (_cells(line) for line in found[0].splitlines())
        yield header, rows


def _cells(line: str) -> _Row:
    cells = _CELL_END.split(line.strip().removeprefix("|").removesuffix("|"))
    return tuple(cell.replace("\\|", "|").strip() for cell in cells)


def _row_text(header: _Row, row: _Row) -> str:
    pairs = zip(header[1:], row[1:], strict=False)
    return "\n\n".join(f"{title[:1].upper()}{title[1:]}: {cell}" for title, cell in pairs if cell)


# --- Markdown as text -------------------------------------------------------------------------------


def _width() -> int:
    return min(MAX_WIDTH, typer.get_terminal_size().columns)


def _to_text(explanation: Explanation) -> str:
    lines = [*_wrapped(explanation.title, _width()), "", *_text_lines(explanation.text, _width())]
    if explanation.see:
        commands = f"{PROGRAM_NAME} explain {' | '.join(explanation.see)}"
        lines += ["", *_wrapped(f"See also: {commands}", _width())]
    return "\n".join(lines)


def _text_lines(text: str, width: int) -> Iterator[str]:
    """Yield Markdown as lines for a terminal. Only the elements that the pages have are known."""
    for number, block in enumerate(re.split(r"\n{2,}", text.strip())):
        if number:
            yield ""
        if block.startswith("```"):
            yield from (f"    {line}" for line in block.splitlines()[1:-1])
        elif heading := _HEADING.match(block.partition("\n")[0]):
            yield from (_plain(heading[2]), "-" * len(_plain(heading[2])))
        elif block.startswith("|"):
            for header, rows in _tables(block):
                for row in rows:
                    yield from _row_lines(header, row, width)
        else:
            for item in re.split(r"\n(?=- |\d+\. )", block):
                indent = "  " if re.match(r"- |\d+\. ", item) else ""
                yield from _wrapped(item, width, indent=indent)


def _row_lines(header: _Row, row: _Row, width: int) -> Iterator[str]:
    yield from _wrapped(f"- {row[0]}", width, indent="  ")
    for title, cell in zip(header[1:], row[1:], strict=False):
        if cell:
            yield from _wrapped(f"  {title}: {cell}", width, indent="    ")


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    lead = re.match(r" *", text)
    first = lead[0] if lead else ""
    return textwrap.wrap(
        _plain(" ".join(text.split())),
        max(width, 20),
        initial_indent=first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _plain(text: str) -> str:
    """Return the text of a line without links and emphasis. Code keeps its backticks."""
    pieces = re.split(r"(`[^`]*`)", _LINK.sub(r"\1", text))
    pieces[::2] = [re.sub(r"\*{1,2}([^*]+)\*{1,2}", r"\1", piece) for piece in pieces[::2]]
    return "".join(pieces).removeprefix("> ")
