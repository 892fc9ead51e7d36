"""SOURCE strings -> the files, or Hub datasets, that they name: in a stable order, each once, with stable names."""

from __future__ import annotations

import difflib
import glob
import json
import os
import re
import shutil
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fluxentropy.errors import SourceError, UsageError
from fluxentropy.runs.files import atomic_path
from fluxentropy.runs.tables import run_parts

FORMATS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
}

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}  # of the text formats
KNOWN = f"{', '.join(FORMATS)} (the text formats also with {' or '.join(COMPRESSIONS)})"

HUB_NAME = re.compile(
    r"(?P<name>\w[\w.-]*(?:/\w[\w.-]*)?)(?:@(?P<revision>[\w.-]+))?(?:/(?P<config>\w[\w.-]*))?(?::(?P<split>[^/]+))?"
)


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file, or a Hub dataset, where `path` is None and `name` is `OWNER/NAME[@REVISION][/CONFIG][:SPLIT]`."""

    path: Path | None
    name: str
    format: str  # parquet, arrow, jsonl, csv, tsv, txt or hub


def find_sources(sources: Sequence[str], *, spool: Path | None = None) -> list[Found]:
    """All files that `sources` name, in order; a file that several of them name counts once.

    A name is the path relative to the folder or to the fixed part of the glob, for a single file its last part.
    Files that would share a name get as many of their parent folders in front as tell them apart.

    `-` is standard input: JSON Lines, kept in the file `spool`, which is read instead where it exists already.

    Errors: `SourceError` says what was looked for and what was found; `UsageError` for what is no source at all.
    """
    found: dict[str, Found] = {}
    for source in sources:
        for item in _find(source, spool):
            found.setdefault(os.path.realpath(item.path) if item.path else item.name, item)
    return _distinct(list(found.values()))


def file_format(name: str) -> str | None:
    """The format that a file name stands for; None where the suffix is not known.

    >>> file_format("a.jsonl.zst"), file_format("A.CSV"), file_format("a.parquet.gz"), file_format("README.md")
    ('jsonl', 'csv', None, None)
    """
    path = Path(name.lower())
    if path.suffix not in COMPRESSIONS:
        return FORMATS.get(path.suffix)
    kind = FORMATS.get(Path(path.stem).suffix)
    return None if kind in ("parquet", "arrow") else kind


def _find(source: str, spool: Path | None) -> list[Found]:
    if not source.strip() or "\0" in source:
        raise UsageError(f"{source!r} is no source: give a file, a folder, a glob, - for standard input, or a dataset")
    if source == "-":
        return [_stdin(spool)]
    if source.startswith("hf://"):
        return [_hub(source.removeprefix("hf://datasets/"), source)]  # what keeps its prefix is refused there
    path = Path(source).expanduser()
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return _not_a_path(source, path)
    except OSError as error:
        raise SourceError(f"{source}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        return _folder(path)
    kind = file_format(path.name)
    if kind is None or not stat.S_ISREG(mode):
        raise SourceError(f"{source}: not a kind of file that can be read; known are {KNOWN}, and - for JSONL on stdin")
    return [Found(path=path, name=path.name, format=kind)]


def _not_a_path(source: str, path: Path) -> list[Found]:
    if glob.has_magic(source):
        return _glob(path)
    beside = "/" in source and Path(path.parts[0]).exists()  # `data/x` beside a folder `data` is a path
    if file_format(source) is None and not beside and HUB_NAME.fullmatch(source):
        return [_hub(source, source)]
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    missing = path.absolute().relative_to(folder).parts[0]
    names = sorted(entry.name for entry in folder.iterdir()) if os.access(folder, os.R_OK) else []
    near = difflib.get_close_matches(missing, names, n=3)
    shown = path.parents[len(path.absolute().relative_to(folder).parts) - 1]
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(names[:5]) or 'no files'}"
    raise SourceError(f"{source}: no such file or folder: {shown} has no {missing}; {hint}")


# --- the Hub and standard input ---------------------------------------------------------------------------------------


def _hub(name: str, source: str) -> Found:
    match = HUB_NAME.fullmatch(name)
    if match is None or file_format(match["config"] or "") is not None:
        raise UsageError(f"{source}: a Hub dataset is written hf://datasets/OWNER/NAME[@REVISION][/CONFIG][:SPLIT]")
    return Found(path=None, name=name, format="hub")


def _stdin(spool: Path | None) -> Found:
    if spool is None:
        raise UsageError("- (standard input) cannot be read by this command: give a file")
    if not spool.exists():
        with atomic_path(spool) as aside, open(aside, "wb") as file:
            shutil.copyfileobj(sys.stdin.buffer, file, 2**20)
    return Found(path=spool, name="stdin", format="jsonl")


# --- folders and globs ------------------------------------------------------------------------------------------------


def _folder(folder: Path) -> list[Found]:
    if (folder / "scores").is_dir() and (
        (folder / "manifest.json").exists() or (folder / "config.resolved.yaml").exists()
    ):
        return [Found(path=part, name=part.name, format="parquet") for part in run_parts(folder)]
    return _data_files(folder, list(_walk(folder, set())), folder)


def _glob(pattern: Path) -> list[Found]:
    fixed = [str(part) for part in pattern.parts]
    root = Path(*fixed[: next(index for index, part in enumerate(fixed) if glob.has_magic(part))])
    files: list[Path] = []
    seen: set[str] = set()
    for match in sorted(Path(name) for name in glob.glob(str(pattern), recursive=True)):  # noqa: PTH207
        if not any(part[0] in "._" for part in match.relative_to(root).parts):
            files += _walk(match, seen) if match.is_dir() else [match]
    return _data_files(root, files, pattern)


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    """All files below `folder` in the order of their paths, without names that start with `.` or `_`.

    A folder written by `Dataset.save_to_disk` gives the files that its `state.json` lists, in that order.
    """
    real = os.path.realpath(folder)
    if real in seen:  # a link back up
        return
    seen.add(real)
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise SourceError(f"{folder}: the folder cannot be read: {error.strerror}") from error
    if saved := _saved_dataset(folder):
        yield from saved
        return
    for entry in entries:
        if entry.name[0] in "._":
            continue
        if entry.is_dir():
            yield from _walk(entry, seen)
        else:
            yield entry


def _saved_dataset(folder: Path) -> list[Path]:
    try:
        return [folder / item["filename"] for item in json.loads((folder / "state.json").read_bytes())["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _data_files(root: Path, files: Sequence[Path], shown: Path) -> list[Found]:
    """The files whose suffix is known. Beside other data, `.json` files describe it and do not count."""
    kinds = {path: file_format(path.name) for path in files}
    if any(kind and path.suffix != ".json" for path, kind in kinds.items()):
        kinds = {path: kind for path, kind in kinds.items() if path.suffix != ".json"}
    found = [
        Found(path=path, name=path.relative_to(root).as_posix(), format=kind) for path, kind in kinds.items() if kind
    ]
    if not found:
        suffixes = Counter(path.suffix or path.name for path in files)
        there = ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(8)) or "no file at all"
        raise SourceError(
            f"{shown}: no data there, but {there}; known are {KNOWN}; names with . or _ in front are left out"
        )
    return found


def _distinct(found: list[Found]) -> list[Found]:
    """Put parent folders in front of names until no two files share one."""
    while shared := {name for name, count in Counter(item.name for item in found).items() if count > 1}:
        found = [replace(item, name=_longer(item)) if item.name in shared else item for item in found]
    return found


def _longer(item: Found) -> str:
    """The name of `item` with one more folder in front.

    >>> _longer(Found(path=Path("/data/a/x.csv"), name="x.csv", format="csv"))
    'a/x.csv'
    """
    assert item.path is not None  # Hub datasets are told apart by their names
    return "/".join(item.path.absolute().parts[-item.name.count("/") - 2 :])
