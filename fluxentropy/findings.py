"""What `verify` finds in a run directory: damage by path, and what was left behind and does no harm."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxentropy.errors import RunError
from fluxentropy.store import read_json, sha256_file

LEFTOVERS = (".aside-*", ".damaged-*", ".spill*", ".pieces")  # of killed commands; hidden, so that no reader sees them


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something wrong. A repair takes the files `redo` away and makes them again; None where it cannot."""

    path: Path
    problem: str
    redo: tuple[Path, ...] | None = ()

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


@dataclass(kw_only=True)
class Findings:
    """What is known of one run directory; `kind` names the command that wrote it."""

    run: Path
    kind: str
    rows: int = 0
    files: int = 0
    summary: str = ""
    problems: list[Problem] = field(default_factory=list)
    leftovers: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def repairable(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.redo is not None]

    def add(self, path: Path, problem: str, redo: tuple[Path, ...] | None = ()) -> None:
        self.problems.append(Problem(path=path, problem=problem, redo=redo))

    def differs(self, path: Path, what: str, said: Any, found: Any, redo: tuple[Path, ...] | None = ()) -> None:
        """Note a number in `path` that is not what was found. What is not recorded is not compared."""
        if said is not None and said != found:
            self.add(path, f"it says {said} {what}, there are {found}", redo)

    def look_for_leftovers(self, folder: Path) -> None:
        """Note what killed commands left in `folder`."""
        self.leftovers += (path for pattern in LEFTOVERS for path in sorted(folder.glob(pattern)))

    def look_around(self, folder: Path, expected: Collection[str], ours: Collection[str]) -> None:
        """Note what is in `folder` beside the `expected` names; files of the patterns `ours` a repair may remove."""
        self.look_for_leftovers(folder)
        for path in sorted(folder.iterdir()):
            if path.name in expected:
                continue
            own = any(path.match(pattern) for pattern in ours)
            if not path.name.startswith("."):
                why = "it is not of this run" + ("" if own else ": move it away")
                self.add(path, why, (path,) if own else None)
            elif own:
                self.leftovers.append(path)


def read_record(path: Path, **types: type) -> dict[str, Any]:
    """The JSON object in `path`, with keys of these `types`; `RunError` says what is wrong, without the path."""
    try:
        found = read_json(path)
    except RunError as error:
        raise RunError(f"it cannot be read ({error.__cause__})") from error
    if found is None:
        raise RunError("it is missing")
    if not isinstance(found, dict):
        raise RunError("it holds no JSON object")
    check_types(found, **types)
    return found


def check_types(record: Any, **types: type) -> None:
    """`RunError` names a key that `record` lacks, or that has a value of another type."""
    for key, kind in types.items():
        if not isinstance(record, dict) or not isinstance(record.get(key), kind):
            raise RunError(f"it is not as it was written: {key} is missing or wrong")


def damage(file: Path, record: Mapping[str, Any]) -> str | None:
    """What is wrong with `file` by the size and SHA-256 in `record`; None where it is whole."""
    try:
        if not file.is_file():
            return "it is missing"
        if (size := file.stat().st_size) != record["bytes"]:
            return f"it has {size:,} bytes, its manifest says {record['bytes']:,}"
        if sha256_file(file) != record["sha256"]:
            return "it is damaged: its SHA-256 is not the one in its manifest"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    return None
