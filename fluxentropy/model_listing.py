"""`fluxentropy models`: the models of the zoo, where each comes from, and what of it is on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fluxentropy.config import ModelsConfig
from fluxentropy.memory import format_bytes
from fluxentropy.modelfiles import cache_folder, how_to_get, state
from fluxentropy.outcome import Outcome
from fluxentropy.zoo_entries import ZooEntry, read_zoo, shipped_zoos, zoo_path

COLUMNS = ("name", "weights", "kind", "source", "state", "on disk", "licence")
COMMIT = re.compile("@([0-9a-f]{7})[0-9a-f]{33}$")


def models(config: ModelsConfig) -> Outcome:
    """List the models of one zoo, or of all that come with the package. Nothing is downloaded, converted or loaded."""
    paths = [zoo_path(config.zoo)] if config.zoo else shipped_zoos()
    zoos = {path: [_facts(path, entry) for entry in read_zoo(path).values()] for path in paths}
    caches = {"hub": str(_hub_cache()), "converted": str(cache_folder() / "models")}
    listed = [facts for zoo in zoos.values() for facts in zoo]
    return Outcome(lines=_lines(zoos, caches), data={"models": listed, "caches": caches})


def _facts(path: Path, entry: ZooEntry) -> dict[str, Any]:
    found = state(entry)
    return {
        "name": entry.name,
        "zoo": path.stem,
        "source": entry.source,
        "parameters": entry.parameters,
        "chat": entry.chat,
        "licence": entry.licence,
        "terms": entry.terms,
        "dtype": entry.dtype,
        "state": found.status,
        "missing": list(found.missing),
        "get": how_to_get(entry),
        "size_bytes": found.size_bytes,
        "path": str(found.path) if found.path else None,
    }


def _hub_cache() -> str:
    from huggingface_hub import constants

    return constants.HF_HUB_CACHE


def _lines(zoos: dict[Path, list[dict[str, Any]]], caches: dict[str, str]) -> list[str]:
    """A table of all zoos with one heading a zoo, what to do for the models that are not here, and the caches."""
    rows = aligned([COLUMNS, *(_cells(facts) for zoo in zoos.values() for facts in zoo)])
    lines = [f"  {rows.pop(0)}"]
    for path, zoo in zoos.items():
        lines += [f"{path.stem} ({path})", *(f"  {rows.pop(0)}" for _ in zoo)]
    absent = {facts["name"]: facts for zoo in zoos.values() for facts in zoo if facts["state"] != "ready"}
    lines.append("")
    lines += [f"{name}: missing {', '.join(facts['missing'])}" for name, facts in absent.items() if _broken(facts)]
    commands = dict.fromkeys(facts["get"] for facts in absent.values() if facts["state"] == "not installed")
    lines += [f"not installed: {command}" for command in commands]
    if hub := next((f for f in absent.values() if f["state"] in ("not downloaded", "incomplete") and f["get"]), None):
        lines.append(f"not downloaded: the first run does it, or for example: {hub['get']}")
    if any(facts["state"] == "not converted" for facts in absent.values()):
        lines.append("not converted: the first run does it, once")
    return [*lines, f"caches: {caches['hub']} (downloaded), {caches['converted']} (converted)"]


def _broken(facts: dict[str, Any]) -> bool:
    return facts["state"] in ("incomplete", "missing")


def _cells(facts: dict[str, Any]) -> tuple[str, ...]:
    return (
        facts["name"],
        _count(facts["parameters"]),
        "?" if facts["chat"] is None else "chat" if facts["chat"] else "base",
        COMMIT.sub(r"@\1", facts["source"]),
        facts["state"],
        "-" if facts["size_bytes"] is None else format_bytes(facts["size_bytes"]),
        facts["licence"] or "?",
    )


def _count(parameters: int | None) -> str:
    """A number of weights as models are called after it.

    >>> _count(134515008), _count(1543714304), _count(None)
    ('135M', '1.54B', '?')
    """
    if parameters is None:
        return "?"
    return f"{parameters / 1e9:.3g}B" if parameters >= 999.5e6 else f"{parameters / 1e6:.3g}M"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines with straight columns; a column whose cells begin with digits is set to the right.

    >>> aligned([("name", "weights"), ("gpt2", "124M")])
    ['name  weights', 'gpt2     124M']
    """
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [any(cell[:1].isdigit() for cell in column) and column[0] in ("weights", "on disk") for column in columns]
    return [
        "  ".join(
            cell.rjust(width) if to_the_right else cell.ljust(width)
            for cell, width, to_the_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in rows
    ]
