"""Find the texts of all hints in the code, and the reason why a machine cannot follow some of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

CODE = Path(__file__).parents[2] / "kata_node"
_NAME = re.compile(r"hint|remed", re.IGNORECASE)
_FUNCTION = re.compile(r"hint|remed|correction|other_way|other_name", re.IGNORECASE)


def hint_texts() -> dict[str, str]:
    """Return every text of a hint in the code, with ``{}`` for what is filled in, and its module."""
    found: dict[str, str] = {}
    for path in sorted(CODE.rglob("*.py")):
        module = path.relative_to(CODE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for expression in _hint_expressions(node):
                for text in _texts(expression):
                    found.setdefault(text, module)
    return found


def _hint_expressions(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Call(func=function, args=arguments, keywords=keywords):
            yield from (each.value for each in keywords if each.arg in ("hint", "remedy"))
            if getattr(function, "id", "") == "Finding" and len(arguments) > 3:
                yield arguments[3]
        case ast.Assign(targets=[target], value=value) if _is_hint(target):
            yield value
        case ast.AugAssign(target=target, value=value) if _is_hint(target):
            yield value
        case ast.FunctionDef(name=name) if _FUNCTION.search(name):
            for each in ast.walk(node):
                if isinstance(each, ast.Return | ast.Yield) and each.value is not None:
                    yield each.value


def _is_hint(target: ast.AST) -> bool:
    return isinstance(target, ast.Name) and _NAME.search(target.id) is not None


def _texts(expression: ast.AST) -> Iterator[str]:
    """Yield the strings in an expression that a person reads: those of at least two words."""
    match expression:
        case ast.Constant(value=str(text)) if " " in text.strip():
            yield text
        case ast.JoinedStr(values=parts):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
            if " " in text.strip().replace("{}", ""):
                yield text
        case ast.Call(keywords=keywords) if any(each.arg in ("hint", "remedy") for each in keywords):
            return  # the call itself is looked at
        case ast.Call(func=ast.Name(id="Finding")):
            return
        case _:
            for child in ast.iter_child_nodes(expression):
                yield from _texts(child)


def is_in(text: str, hint: str) -> bool:
    """Return whether ``hint`` contains the text of the code ``text``, with anything for ``{}``."""
    return re.search(".*?".join(map(re.escape, text.split("{}"))), hint, re.DOTALL) is not None
