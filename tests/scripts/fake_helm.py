"""A fake helm and kubectl that records its calls and gives prepared answers.

    fake_helm.py DIRECTORY PROGRAM ARGUMENT...

``answers.json`` in DIRECTORY has the answers. Each call adds a line to ``asked.jsonl``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def main(directory: Path, program: str, arguments: Sequence[str]) -> int:
    answers = json.loads((directory / "answers.json").read_text())
    files = [each.removeprefix("--values=") for each in arguments if each.startswith("--values=")]
    read = [Path(file).read_text() for file in files if Path(file).is_file()]
    with (directory / "asked.jsonl").open("a") as log:
        log.write(json.dumps({"command": [program, *arguments], "values": read}) + "\n")
    return helm(answers, arguments, files) if program == "helm" else kubectl(directory, answers, arguments)


def helm(answers: Mapping[str, Any], arguments: Sequence[str], files: Sequence[str]) -> int:
    if arguments[0] == "show":
        print(json.dumps(answers["chart"]))
    elif arguments[0] == "template":
        import yaml  # imported here because only this call needs it

        merged: Any = yaml.safe_load(Path(arguments[2], "values.yaml").read_text())
        for file in files:
            try:
                merged = merge(merged, yaml.safe_load(Path(file).read_text()) or {})
            except (OSError, ValueError, AttributeError, yaml.YAMLError) as error:
                print(f"Error: failed to parse {file}: {error}", file=sys.stderr)
                return 1
        for each in arguments:
            if each.startswith("--set="):
                key, _, value = each.removeprefix("--set=").partition("=")
                merged = merge(merged, {key: value})
        print("---\n# Source: probe/templates/values.yaml")
        print(json.dumps({"kind": "ConfigMap", "data": {"values": json.dumps(merged)}}))
    elif arguments[0] == "upgrade":
        print("Error: what helm says" if answers.get("helm") else "installed", file=sys.stderr)
        return int(answers.get("helm", 0))
    elif arguments[0] == "status":
        print("STATUS: as helm has it")
    return 0


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two mappings as helm does; null removes a key."""
    both = dict(below)
    for key, value in above.items():
        old = both.pop(key, None)
        if value is not None:
            both[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def kubectl(directory: Path, answers: Mapping[str, Any], arguments: Sequence[str]) -> int:
    words = [each for each in arguments if not each.startswith("--")]
    key = " ".join(words[:2])
    if words[0] == "logs":
        before = "earlier " if "--previous" in arguments else ""
        [container] = [each.partition("=")[2] for each in arguments if each.startswith("--container=")]
        print(f"{before}words of {words[1]}/{container}")
        return 0
    if "--output=json" not in arguments:
        print(f"table of {words[1]}")
        return 0
    # One answer per call; the last one is repeated.
    looks = answers.get(key, [])
    count = directory / f"looks-{words[1]}"
    number = int(count.read_text()) if count.exists() else 0
    count.write_text(str(number + 1))
    answer = looks[min(number, len(looks) - 1)] if looks else {"items": []}
    if isinstance(answer, str):
        print(answer, file=sys.stderr)
        return 1
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
