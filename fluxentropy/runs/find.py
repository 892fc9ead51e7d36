"""Folders and files -> the runs in them, by what each one holds: the first step of a report."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxentropy.errors import RunError, SourceError
from fluxentropy.runs.directory import RunRecord
from fluxentropy.runs.files import read_json

# --- runs with scores -------------------------------------------------------------------------------------------------


CONSENSUS = "consensus"  # the folder of what all models say together: never one of the models


def run_folders(path: Path) -> list[Path]:
    """`path` itself where it is a run directory, else the runs in it, in the order of the zoo that wrote them."""
    if (path / "scores").is_dir():
        return [path]
    inside = {folder.parent.name: folder.parent for folder in sorted(path.glob("*/scores"))}
    inside.pop(CONSENSUS, None)
    if not inside:
        raise RunError(
            f"{path} is no run directory and holds none: `fluxentropy score` and `fluxentropy zoo` write them"
        )
    ordered = RunRecord.read(path).facts.get("models", [])
    return [inside[name] for name in sorted(inside, key=lambda name: (name not in ordered, _place(name, ordered)))]


def _place(name: str, ordered: Sequence[str]) -> tuple[int, str]:
    return (ordered.index(name) if name in ordered else 0), name


# --- runs of any kind -------------------------------------------------------------------------------------------------


DEPTH = 2  # folders below a given one that are searched

INNER = (
    "_blocks",
    "cells",
    "checkpoints",
    CONSENSUS,
    "export",
    "input",
    "items",
    "scores",
)  # parts of runs, never runs

KINDS = (
    *("score", "zoo", "agree", "tokens", "bin", "schedule", "pretrain", "compare", "hellaswag", "diagnose", "grpo"),
    "grpo-compare",
)

BY_IDENTITY = {"bins": "bin", "questions": "hellaswag"} | {
    name: name for name in ("zoo", "pretrain", "compare", "grpo", "grpo-compare", CONSENSUS)
}

# of the table of `tokens`
NUMBERS = ("entropy", "varentropy", "surprisal", "entropy_before", "varentropy_before")
COLUMNS = ("text_id", "position", "token_id", "token", *NUMBERS, "alternatives")
OLD_COLUMNS = tuple(name for name in COLUMNS if not name.endswith("_before"))  # of tables of earlier versions


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a command wrote: a folder, or the table of `tokens`."""

    kind: str  # one of KINDS
    path: Path
    name: str  # as it is called on the page
    manifest: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Any]:
        return dict(self.manifest.get("identity") or {})


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Something that is not on the page, and why."""

    name: str
    why: str


def find_runs(paths: Sequence[Path]) -> tuple[list[Run], list[LeftOut]]:
    """The runs that `paths` name or hold, each once, in the order of `paths`; in folders, unfinished ones are left out.

    Errors: `SourceError` where there is nothing; `RunError` where a path is no run and holds none, or is damaged or
    unfinished.
    """
    runs: dict[Path, Run] = {}
    left_out: list[LeftOut] = []
    for path in paths:
        if not path.exists():
            raise SourceError(f"{path}: no such file or folder; give what a command of fluxentropy wrote")
        run = recognise(path)
        found = [run] if run is not None else list(_inside(path, path.resolve().name, DEPTH, left_out))
        if not found and not left_out:
            raise RunError(f"{path} is not a run of fluxentropy, and holds none within {DEPTH} folders")
        if run is not None and (why := _unfinished(run)):
            raise RunError(f"{path} is {why}: give the command that writes it once more, it resumes where it stopped")
        for one in found:
            for member in (one, *_models(one)):
                runs.setdefault(member.path.resolve(), member)
    return list(runs.values()), left_out


def recognise(path: Path, name: str | None = None) -> Run | None:
    """The run at `path`, None where it is a folder of something else.

    Errors: `RunError` where it is damaged, or is a file or a part of a run that nothing can be said of.
    """
    name = name or path.resolve().name
    if path.is_file():
        table = path.with_suffix(".csv")
        if not _is_token_table(table):
            raise RunError(f"{path} is no page or table of `fluxentropy tokens`: give its .csv, or a run directory")
        return Run(kind="tokens", path=table, name=name)
    manifest = read_json(path / "manifest.json")
    if manifest is None:
        plan = path / "mixture.json"
        return Run(kind="schedule", path=path, name=name) if plan.is_file() else None
    identity = manifest.get("identity") if isinstance(manifest, dict) else None
    kind = _kind(identity) if isinstance(identity, dict) else None
    if kind == CONSENSUS:
        raise RunError(f"{path} is the consensus of several models: give the folder it is in")
    if kind is None:
        raise RunError(f"{path}/manifest.json is not one that fluxentropy wrote, or of a run that was cleared")
    return Run(kind=kind, path=path, name=name, manifest=manifest)


def _kind(identity: dict[str, Any]) -> str | None:
    """The command that wrote a run with this identity."""
    if identity.get("command") == "diagnose":
        return "diagnose"
    if isinstance(identity.get("kind"), str):
        return BY_IDENTITY.get(identity["kind"])
    if "sources" in identity and "model" in identity:
        return "score"
    return "agree" if "models" in identity and "inputs" in identity else None


def _inside(folder: Path, name: str, depth: int, left_out: list[LeftOut]) -> Iterator[Run]:
    """The runs below `folder`, by name; not those within runs."""
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise RunError(f"cannot look into {folder}: {error.strerror or error}") from error
    for path in paths:
        inner = f"{name}/{path.name}"
        if path.name.startswith(".") or path.name in INNER:
            continue
        if path.is_file():
            if path.suffix == ".csv" and _is_token_table(path):
                yield Run(kind="tokens", path=path, name=inner)
            continue
        if not path.is_dir():
            continue
        run = recognise(path, inner)
        if run is None:
            yield from _inside(path, inner, depth - 1, left_out) if depth > 1 else ()
        elif why := _unfinished(run):
            left_out.append(LeftOut(name=inner, why=why))
        else:
            yield run


def _models(run: Run) -> Iterator[Run]:
    """The runs of each model in a folder of `zoo`."""
    if run.kind == "zoo" and any(run.path.glob("*/scores")):
        if not isinstance(run.manifest.get("models", []), list):
            raise RunError(f"{run.path}/manifest.json is damaged: its models are no list")
        for path in run_folders(run.path):
            inner = recognise(path, f"{run.name}/{path.name}")
            if inner is not None and not _unfinished(inner):
                yield inner


def _unfinished(run: Run) -> str:
    """`not finished` where a run is not, else nothing."""
    return "" if run.manifest.get("complete", not run.manifest) is True else "not finished"


def _is_token_table(path: Path) -> bool:
    """Whether `path` begins as `tokenview.write_csv` begins a table."""
    try:
        with open(path, encoding="utf-8", errors="replace", newline="") as file:
            return tuple(next(csv.reader([file.readline(1000)]), ())) in (COLUMNS, OLD_COLUMNS)
    except OSError:
        return False
