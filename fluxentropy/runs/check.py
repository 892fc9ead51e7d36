"""What `verify` finds in a run directory: damage by path, and what was left behind and does no harm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.errors import RunError
from fluxentropy.runs.directory import CONFIG, RECORDS, part_numbers, part_paths
from fluxentropy.runs.engine import Engine
from fluxentropy.runs.files import read_json, sha256_file
from fluxentropy.runs.progress import Progress
from fluxentropy.runs.tables import reading

# --- what was found ---------------------------------------------------------------------------------------------------


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


# --- what is checked in every run -------------------------------------------------------------------------------------
#
# Only the last row of each source file is kept, so memory does not grow with the rows.


COLUMNS = ("source_file", "source_row", "status")
BATCH_ROWS = 2**16
Span = tuple[str, int, int, int]  # source file, first and last row of a stretch of rising rows, their number


@dataclass(frozen=True, kw_only=True)
class PartFacts:
    """What is in a part; `problem` where it cannot be told."""

    number: int
    rows: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # what its manifest says
    status: dict[str, int] = field(default_factory=dict)
    spans: list[Span] = field(default_factory=list)
    problem: Problem | None = None


@dataclass(frozen=True)
class PartCheck:
    """The job that checks one part of `folder`."""

    folder: Path

    def __call__(self, number: int) -> PartFacts:
        file, record = part_paths(self.folder, number)

        def wrong(path: Path, problem: str) -> PartFacts:
            return PartFacts(number=number, problem=Problem(path=path, problem=problem, redo=(file, record)))

        try:
            expected = read_record(record, rows=int, bytes=int, sha256=str)
        except RunError as error:
            return wrong(record if file.exists() else file, str(error) if file.exists() else "it is missing")
        if problem := damage(file, expected):
            return wrong(file, problem)
        rows, status, spans = 0, Counter[str](), list[Span]()
        try:
            for batch in _batches(file):
                rows += batch.num_rows
                if "status" in batch.schema.names:
                    status.update(batch.column("status").to_pylist())
                spans += _spans(batch)
        except RunError as error:
            return wrong(file, str(error))
        if rows != expected["rows"]:
            return wrong(file, f"it has {rows:,} rows, its manifest says {expected['rows']:,}")
        counts = expected.get("counts") or {}
        return PartFacts(number=number, rows=rows, counts=dict(counts), status=dict(status), spans=spans)


def _batches(file: Path) -> Any:
    with reading(file), pq.ParquetFile(file, pre_buffer=False) as parquet:
        columns = [name for name in COLUMNS if name in parquet.schema_arrow.names]
        yield from parquet.iter_batches(batch_size=BATCH_ROWS, columns=columns, use_threads=False)


def _spans(batch: pa.RecordBatch) -> list[Span]:
    """Stretches of one source file with rising rows.

    >>> _spans(pa.record_batch({"source_row": [3, 4, 9, 9, 10]}))
    [('', 3, 9, 3), ('', 9, 10, 2)]
    """
    if "source_row" not in batch.schema.names or not batch.num_rows:
        return []
    rows = batch.column("source_row").cast(pa.int64()).fill_null(-1).to_numpy()
    codes, names = np.zeros(len(rows), np.int64), [""]
    if "source_file" in batch.schema.names:
        encoded = batch.column("source_file").cast(pa.string()).fill_null("").dictionary_encode()
        codes, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    breaks = np.flatnonzero((codes[1:] != codes[:-1]) | (rows[1:] <= rows[:-1])) + 1
    stretches = zip([0, *breaks], [*breaks, len(rows)], strict=True)
    return [(names[codes[a]], int(rows[a]), int(rows[b - 1]), int(b - a)) for a, b in stretches]


def check_parts(findings: Findings, manifest: dict[str, Any], engine: Engine, *, folder: str, ordered: bool) -> None:
    """Check all parts in `folder` of a run, and that together they are what its manifest says.

    `ordered`: rows of a source file rise over the run, so that none can be there twice.
    """
    parts = findings.run / folder
    if not parts.is_dir():
        findings.add(parts, "it is missing")
        return
    wanted = manifest.get("parts")
    numbers = range(max(part_numbers(parts), default=-1) + 1 if wanted is None else int(wanted))
    names = {path.name for number in numbers for path in part_paths(parts, number)}
    findings.look_for_leftovers(findings.run)
    findings.look_around(parts, names, ("part-*", ".part-*.json"))
    found = _run(PartCheck(parts), numbers, engine, (manifest.get("counts") or {}).get("rows"))
    findings.problems += (part.problem for part in found if part.problem)
    findings.rows, findings.files = sum(part.rows for part in found), len(numbers)
    if not any(part.problem for part in found):
        sources = _check_order(findings, parts, found if ordered else [])
        _check_totals(findings, manifest, found, sources)


def _run(check: PartCheck, numbers: Sequence[int], engine: Engine, rows: int | None) -> list[PartFacts]:
    found = []
    with Progress(rows, unit="rows checked") as line:
        for part in engine.run(check, numbers):
            found.append(part)
            line.update(part.rows, parts=len(found))
    return found


def _check_order(findings: Findings, parts: Path, found: Sequence[PartFacts]) -> Counter[str]:
    """The rows of each source file, after noting every part with a row that was there before."""
    last: dict[str, int] = {}
    rows: Counter[str] = Counter()
    for part in found:
        paths = part_paths(parts, part.number)
        for name, first, end, count in part.spans:
            if first <= last.get(name, -1):
                of = f" of {name}" if name else ""
                findings.add(paths[0], f"row {first}{of} is there twice, or after row {last[name]}", paths)
                break
            last[name] = end
            rows[name] += count
    return rows


def _check_totals(
    findings: Findings, manifest: dict[str, Any], found: Sequence[PartFacts], sources: Counter[str]
) -> None:
    path, counts = findings.run / "manifest.json", manifest.get("counts") or {}
    findings.differs(path, "rows", counts.get("rows"), findings.rows)
    total: Counter[str] = Counter()
    status: Counter[str] = Counter()
    for part in found:
        total.update(part.counts)
        status.update({f"status_{name}": n for name, n in part.status.items()})
    for name in counts:
        if name.startswith("status_"):
            findings.differs(path, f"rows with {name.replace('_', ' ', 1)}", counts[name], status[name])
        elif name in total:
            findings.differs(path, name, counts[name], total[name])
    for source in manifest.get("inputs") or []:
        if not findings.problems:
            findings.differs(path, f"rows of {source['name']}", source["rows"], sources[source["name"]])


def check_records(findings: Findings) -> None:
    """Note where the manifest, or what says how the run was made, is not as it was written."""
    run = findings.run
    config, manifest, records = (run / name for name in (CONFIG, "manifest.json", RECORDS))
    if not config.is_file():
        findings.add(config, "it is missing: give the command that wrote the run once more", None)
    if not records.exists():  # as in older runs
        return
    try:
        known = read_record(records)
    except RunError as error:
        findings.add(records, str(error), (records,))
        return
    if config.is_file() and known.get("config_sha256") not in (None, sha256_file(config)):
        again = "put back what it said, or remove it and give the command that wrote the run once more"
        findings.add(config, f"it is not as it was written: {again}", None)
    if known.get("manifest_sha256") not in (None, sha256_file(manifest)):
        again = "put it back from a copy, or make the run afresh, with --overwrite"
        findings.add(manifest, f"it is not as it was written, its SHA-256 is another one: {again}", None)
