"""How a run was made, for its section of a report: the command, the configuration, fingerprints and versions."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from fluxentropy.errors import RunError
from fluxentropy.markdowntext import scrolled, table
from fluxentropy.markup import Content, Markup, clipped, el, given
from fluxentropy.reportruns import Run
from fluxentropy.store import CONFIG
from fluxentropy.yamlfile import to_plain

LONGEST = 20_000  # characters of a configuration
ROWS = 24  # of a table of fingerprints
HASH = re.compile(r"(?:(?:sha256|sampled):)?[0-9a-f]{32,64}(?:/v\d+)?")


def origin(run: Run) -> Markup:
    """Everything that it takes to make the run again, behind a line that opens it."""
    yaml = _read_config(run.path / CONFIG) if run.path.is_dir() else None
    marks = [(name, mark) for mark, name in {mark: name for name, mark in fingerprints(run.manifest)}.items()]
    versions = run.manifest.get("versions")
    parts: list[Content] = [el("p", "In ", el("code", str(run.path)))]
    if yaml is not None:
        parts += [el("h3", "Command"), scrolled(el("pre", el("code", command(run.kind, yaml))), label="command")]
        parts += [
            el("h3", "Configuration"),
            scrolled(el("pre", el("code", clipped(yaml, LONGEST)), class_="long"), label=CONFIG),
        ]
    if marks:
        rows = [[given(name, 80), el("code", given(mark))] for name, mark in marks[:ROWS]]
        parts += [el("h3", "Fingerprints"), table(["of", "fingerprint"], *rows, label="fingerprints")]
        if len(marks) > ROWS:
            parts.append(el("p", f"{len(marks) - ROWS:,} more are in manifest.json.", class_="note"))
    if isinstance(versions, dict):
        named = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        parts += [el("h3", "Versions"), el("p", given(named, 1000))]
    return el("details", el("summary", "How it was made"), parts)


def _read_config(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}): the run is damaged") from error


def fingerprints(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The hashes anywhere in a manifest, each with where it stands.

    >>> list(fingerprints({"model": {"name": "m", "fingerprint": "sha256:" + 64 * "0"}}))[0][0]
    'model'
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            inner = key if key not in ("identity", "fingerprint", "sha256") else ""
            yield from fingerprints(item, " · ".join(part for part in (name, str(inner)) if part))
    elif isinstance(value, list):
        for item in value:
            label = item.get("name", "") if isinstance(item, Mapping) else ""
            yield from fingerprints(item, " · ".join(part for part in (name, str(label)) if part))
    elif isinstance(value, str) and HASH.fullmatch(value):
        yield name or "whole", value


# --- the command ------------------------------------------------------------------------------------------------------


def command(kind: str, yaml: str) -> str:
    """The command line that a run's configuration stands for; options with their default values are left out.

    >>> command("sort", "run: runs/web\\nby: surprisal_mean\\ndescending: true\\nout: a b.parquet\\nlimit: null\\n")
    "fluxentropy sort runs/web --by surprisal_mean --descending --out 'a b.parquet'"
    """
    import yaml as parser

    from fluxentropy.cli import COMMANDS  # it knows all commands; and imports none of them

    config = next((one.config for one in COMMANDS if one.name == kind), None)
    try:
        aliases = any(isinstance(event, parser.AliasEvent) for event in parser.parse(yaml, parser.SafeLoader))
        options = None if aliases else parser.safe_load(yaml)  # none of ours has aliases, and they could be many
    except (parser.YAMLError, RecursionError, ValueError):
        options = None
    if config is None or not isinstance(options, dict) or kind in ("compare", "grpo-compare"):  # its arms are no flags
        return f"fluxentropy {kind} --config {CONFIG}"
    places: list[str] = []
    flags: list[str] = []
    for option in fields(config):
        value, default = options.get(option.name), _default(option)
        if option.name in options and not option.kw_only:
            places += [str(item) for item in value] if isinstance(value, list) else [str(value)]
        elif value != default:
            flags += _flags(option.name, value, default)
    return shlex.join(["fluxentropy", kind, *places, *flags])


def _default(option: Any) -> Any:
    if option.default is not MISSING:
        return to_plain(option.default)
    return to_plain(option.default_factory()) if option.default_factory is not MISSING else None


def _flags(name: str, value: Any, default: Any) -> Iterator[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, dict):
        for key, item in value.items():
            known = default.get(key) if isinstance(default, dict) else None
            if item != known:
                yield from _flags(f"{name}.{key}", item, known)
    elif value is True or value is False:
        yield flag if value else flag.replace("--", "--no-", 1)
    elif value is not None:
        yield from (flag, ",".join(map(str, value)) if isinstance(value, list) else str(value))
