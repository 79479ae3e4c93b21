"""What mkdocs does to every page before it renders it. Named in mkdocs.yml, and not a program.

The pages are written for GitHub first. Three things that GitHub understands mean nothing to mkdocs:

- a class behind the language of a code block, as in ```` ```sh {.cluster} ````;
- a link to a file of the checkout that is no page, as in ``[the examples](../assets/values)``;
- a diagram: what draws it would have to be fetched from another host, so the site shows its text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w+) +\{(?P<classes>[^}\n]*)\}[ \t]*$", re.MULTILINE)
_DIAGRAM = re.compile(r"^( *)```mermaid$", re.MULTILINE)
_LINK = re.compile(r"\[(?P<text>[^\]\n]+)\]\((?P<path>(?:\.\./)+[^)\s#]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the Markdown of a page in the form that mkdocs understands."""
    markdown = _FENCE.sub(r"\g<indent>``` {.\g<language> \g<classes>}", markdown)
    markdown = _DIAGRAM.sub(r'\1``` {.text title="A diagram in Mermaid, which GitHub draws"}', markdown)
    return _LINK.sub(lambda link: _without_checkout(link, page.file.src_uri), markdown)


def _without_checkout(link: re.Match[str], page: str) -> str:
    """Return the link, or its text alone where it leads out of ``docs/`` to a file of the checkout.

    A link that leads nowhere stays, so that the strict build names it.
    """
    target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link["path"]))
    if target.startswith(("docs/", "../")) or not (CHECKOUT / target).exists():
        return link[0]
    return link["text"]
