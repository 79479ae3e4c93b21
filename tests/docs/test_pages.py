"""The documents: every page is found, every link leads somewhere, what is generated is up to date."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from docs.pages import CHECKOUT, PAGES, Page

README_LINES = 150

NAMES = [page.name for page in PAGES]


def nav(entries: list[Any]) -> Iterator[str]:
    """The pages of the navigation."""
    for entry in entries:
        for target in entry.values():
            if isinstance(target, list):
                yield from nav(target)
            else:
                yield target


def test_every_page_is_in_the_navigation_once() -> None:
    # Not safe_load: a setting of mkdocs may have a tag of its own.
    config = yaml.load((CHECKOUT / "mkdocs.yml").read_text(), Loader=yaml.BaseLoader)
    found = sorted(nav(config["nav"]))
    assert found == sorted(name.removeprefix("docs/") for name in NAMES if name.startswith("docs/"))


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, to_do = set(), ["README.md"]
    while to_do:
        name = to_do.pop()
        if name in reached or name not in NAMES:
            continue
        reached.add(name)
        page = Page(name)
        for link in page.links:
            target = (page.path.parent / link.partition("#")[0]).resolve()
            to_do.append(str(target.relative_to(CHECKOUT)))
    assert set(NAMES) - {"CHANGELOG.md"} <= reached


def test_the_readme_can_be_read_in_one_go() -> None:
    assert len(Page("README.md").text.splitlines()) <= README_LINES


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_to_a_file_and_a_heading_of_it(name: str) -> None:
    page = Page(name)
    for link in page.links:
        path, _, anchor = link.partition("#")
        target = (page.path.parent / path).resolve() if path else page.path
        assert target.exists(), f"{name}: {link} leads nowhere"
        assert target.is_relative_to(CHECKOUT), f"{name}: {link} leads out of the checkout"
        if anchor and target.suffix == ".md":
            there = Page(str(target.relative_to(CHECKOUT))).anchors
            assert anchor in there, f"{name}: {link} names no heading of that page"


@pytest.mark.parametrize("name", NAMES)
def test_github_and_the_site_give_every_heading_the_same_anchor(name: str) -> None:
    from markdown.extensions.toc import slugify

    headings = re.findall(r"^#+ +(.+?) *$", Page(name).prose, flags=re.MULTILINE)
    for heading in headings if name.startswith("docs/") else ():
        plain = heading.replace("`", "")
        github = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        assert slugify(plain, "-") == github, f"{name}: {heading}"


@pytest.mark.parametrize("name", NAMES)
def test_every_fenced_block_says_what_is_in_it(name: str) -> None:
    known = {"sh", "yaml", "toml", "console", "text", "json", "mermaid", "python"}
    assert {block.language for block in Page(name).blocks} <= known


@pytest.mark.commands
@pytest.mark.parametrize("script", ["scripts/cli-docs", "scripts/versions-docs", "scripts/plot"])
def test_the_generated_parts_of_the_reference_are_up_to_date(script: str) -> None:
    command = [sys.executable, str(CHECKOUT / script), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_variable_that_a_program_reads_is_in_the_reference() -> None:
    page = Page("docs/reference/environment.md").text
    sources = [*(CHECKOUT / "kata_node").rglob("*.py"), CHECKOUT / "scripts/helm-install"]
    read = {
        name
        for path in sources
        for name in re.findall(r"environ(?:ment)?(?:\.get\(|\[)\"([A-Z_]+)\"", path.read_text())
    }
    assert read
    assert {name for name in read - {"GITHUB_ACTIONS"} if f"`{name}`" not in page} == set()


def test_every_check_of_host_check_is_in_the_troubleshooting() -> None:
    page = Page("docs/troubleshooting.md").text
    texts = [path.read_text() for path in (CHECKOUT / "kata_node").rglob("*.py")]
    names = {name for text in texts for name in re.findall(r'\bFinding\(\s*"([\w.-]+)"', text)}
    assert len(names) > 15
    assert {name for name in names if f"`{name}`" not in page} == set()


def test_every_reason_of_an_event_is_in_the_reference() -> None:
    page = Page("docs/reference/labels-and-events.md").text
    texts = [path.read_text() for path in (CHECKOUT / "kata_node").rglob("*.py")]
    reasons = {name for text in texts for name in re.findall(r'"(Kata[A-Z]\w+)"', text)}
    assert len(reasons) > 5
    assert {name for name in reasons if f"`{name}`" not in page} == set()


def test_every_outcome_of_a_node_is_in_the_troubleshooting() -> None:
    from kata_node.dispatcher.rollout import FINAL_OUTCOMES

    page = Page("docs/troubleshooting.md").text
    assert {str(outcome) for outcome in FINAL_OUTCOMES if f"`{outcome}`" not in page} == set()


def test_the_tree_of_the_architecture_is_the_tree_of_the_package() -> None:
    tree = Page("docs/architecture.md").text.partition("```text\nkata_node/\n")[2].partition("```")[0]
    named = set(re.findall(r"── (\w+(?:/|\.py))", tree))
    package = CHECKOUT / "kata_node"
    folders = {f"{path.parent.name}/" for path in package.rglob("__init__.py")} - {"kata_node/"}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert named == folders | modules


def test_every_path_of_the_code_that_a_page_names_exists() -> None:
    named = {
        (page.name, path)
        for page in PAGES
        for path in re.findall(r"`((?:kata_node|stages|tests|scripts|assets)/[\w./-]+)`", page.text)
    }
    folders = re.findall(r"`([a-z_/]+/[a-z_]+\.py)`", Page("docs/architecture.md").text)
    assert {each for each in named if not (CHECKOUT / each[1]).exists()} == set()
    assert {each for each in folders if not (CHECKOUT / "kata_node" / each).exists()} == {
        "tests/test_layers.py"
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_test_that_a_page_names_exists(name: str) -> None:
    for path, test in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", Page(name).text):
        assert f"def {test}(" in (CHECKOUT / path).read_text(), f"{name}: {path} has no {test}"
