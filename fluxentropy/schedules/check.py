"""Proves an order: each unit as often as planned, at the planned position, and the files as they were written.

The plan is made again from the manifest, without the bins, and goes through `order.parquet` and the data in step. The
strata of `stratify` stand in `strata.parquet`; the plan's fingerprint in the manifest holds only with these.

    plan           (position, bin, row)      = the first columns of order.parquet
    order.parquet  id, or hash of the tokens = what a reader of the format finds in the files
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.config.yaml import from_plain
from fluxentropy.errors import FluxentropyError, RunError
from fluxentropy.runs.check import Findings, damage, read_record
from fluxentropy.runs.directory import part_paths
from fluxentropy.runs.progress import Progress
from fluxentropy.runs.tables import reading
from fluxentropy.schedules.drawn import Drawn
from fluxentropy.schedules.formats.catalogue import TEXT_FORMATS, TOKEN_FORMATS, find_format
from fluxentropy.schedules.formats.format import TokenFormat, TokenLayout
from fluxentropy.schedules.formats.tables import plain_ids
from fluxentropy.schedules.options import BudgetOptions
from fluxentropy.schedules.order import DATA, ORDER, PARTS, PIECES, STRATA, hashes
from fluxentropy.schedules.strata import load_strata

ROWS = 2**16  # of order.parquet, that are compared together


def check_order(findings: Findings, manifest: dict[str, Any]) -> None:
    """Check all files of an order, and that together they are what was planned."""
    run, identity = findings.run, manifest["identity"]
    findings.look_for_leftovers(run)
    findings.leftovers += [path for path in (run / PARTS, run / PIECES) if path.exists()]
    units = manifest["units"]
    findings.rows, findings.files = units, manifest["files"]
    findings.summary = f"{units:,} {identity['unit']}s as {identity['format']}, in {findings.files} files"
    if problem := damage(run / ORDER, manifest["order"]):
        findings.add(run / ORDER, problem, (run / ORDER,))
        return
    if (record := manifest.get("strata")) and (problem := damage(run / STRATA, record)):
        findings.add(run / STRATA, problem, (run / STRATA,))
        return
    _check_plan(findings, identity, units)
    if not (run / DATA).is_dir():
        findings.add(run / DATA, "it is missing")
        return
    with Progress(units, unit=f"{identity['unit']}s checked") as line:
        if identity["format"] in TOKEN_FORMATS and TOKEN_FORMATS[identity["format"]].joined:
            _check_joined(findings, manifest)
            line.update(units)
        else:
            _check_parts(findings, manifest, line)


def _check_plan(findings: Findings, identity: dict[str, Any], units: int) -> None:
    """Note where `order.parquet` is not what the schedule draws."""
    path = findings.run / ORDER
    facts = identity["draws"]
    try:
        options = from_plain(BudgetOptions, facts["options"])
        counts, column = np.array(facts["counts"], np.int64), options.schedule.stratify
        strata = None if column is None else load_strata(findings.run / STRATA, column, counts)
        drawn = Drawn.of(options, counts, facts["grid"], facts["length"], strata)
    except FluxentropyError as error:  # such as a mixture in a file that is gone
        findings.add(path, f"it cannot be compared with its schedule: {error}", None)
        return
    if drawn.sampler.plan.fingerprint != identity["plan"]:
        findings.add(path, "its schedule draws something else today than when it was written", None)
        return
    at = 0
    for table in _order(path, ["position", "bin", "row"]):
        numbers = drawn.numbers(at, min(at + len(table), drawn.units))
        bins = np.searchsorted(drawn.first, numbers, side="right") - 1
        found = np.stack([column.to_numpy() for column in table.columns], axis=1)
        wanted = np.stack([np.arange(at, at + len(numbers)), bins, numbers - drawn.first[bins]], axis=1)
        if found.shape != wanted.shape or not np.array_equal(found, wanted):
            same = (found[: len(wanted)] == wanted[: len(found)]).all(axis=1)
            place = at + int(np.argmin(same) if not same.all() else len(same))
            findings.add(path, f"position {place}: it is not the unit that the schedule draws there", (path,))
            return
        at += len(table)
    findings.differs(path, "positions", units, at, (path,))


def _order(path: Path, columns: list[str], first: int = 0, rows: int | None = None) -> Iterator[pa.Table]:
    """Rows `first` to `first + rows - 1` of order.parquet, in tables of bounded size."""
    stop = None if rows is None else first + rows
    at = 0
    with reading(path), pq.ParquetFile(path, pre_buffer=False) as file:
        groups = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
        for number, count in enumerate(groups):
            if at + count > first and (stop is None or at < stop):
                table = file.read_row_group(number, columns=columns, use_threads=False)
                low = max(first - at, 0)
                yield table.slice(low, None if stop is None else min(stop - at, count) - low)
            at += count


def _check_parts(findings: Findings, manifest: dict[str, Any], line: Progress) -> None:
    """Check each part by its record, and then by what a reader finds in it."""
    identity, folder = manifest["identity"], findings.run / DATA
    form = find_format(identity["format"])
    numbers = range(manifest["parts"])
    names = [part_paths(folder, number, form.suffix) for number in numbers]
    expected = {path.name for pair in names for path in pair} | ({"index.json"} if form.name == "mds" else set())
    findings.look_around(folder, expected, ("part-*", ".part-*.json"))
    at = 0
    for file, record in names:
        try:
            facts = read_record(record, rows=int, first=int, bytes=int, sha256=str)
        except RunError as error:
            findings.add(record if file.exists() else file, str(error), (file, record))
            return  # where the next part begins is not known
        problem = damage(file, facts) or (facts["first"] != at and "it does not begin where the part before it ends")
        if not problem:
            problem = _problem(findings.run, file, facts, identity)
        if problem:
            findings.add(file, problem, (file, record))
        at += facts["rows"]
        line.update(facts["rows"])
    findings.differs(findings.run / "manifest.json", f"{identity['unit']}s", manifest["units"], at)
    if form.name == "mds":
        _check_index(findings, names)


def _check_index(findings: Findings, names: list[tuple[Path, Path]]) -> None:
    """Note where index.json of MDS does not list the shards."""
    path = findings.run / DATA / "index.json"
    try:
        said = [(one["raw_data"]["basename"], one["samples"]) for one in read_record(path, shards=list)["shards"]]
        there = [(file.name, read_record(record, rows=int)["rows"]) for file, record in names]
    except (RunError, KeyError, TypeError) as error:
        findings.add(path, str(error) if isinstance(error, RunError) else f"it says nothing of {error}", (path,))
        return
    if said != there:
        findings.add(path, "it does not list the shards that are there, in their order", (path,))


def _problem(run: Path, file: Path, facts: dict[str, Any], identity: dict[str, Any]) -> str | None:
    """What a reader of the format finds to be wrong in a part; None where it is as planned."""
    first, rows = facts["first"], facts["rows"]
    try:
        if identity["format"] in TOKEN_FORMATS:
            return _wrong_blocks(run, TOKEN_FORMATS[identity["format"]], identity, file, first, rows)
        return _wrong_ids(run, TEXT_FORMATS[identity["format"]].ids(file), first, rows)
    except (ValueError, KeyError, OSError, pa.ArrowException) as error:
        return f"it cannot be read as {identity['format']}: {str(error).splitlines()[0] if str(error) else error!r}"


def _wrong_ids(run: Path, found: Iterator[list[Any]], first: int, rows: int) -> str | None:
    """Where the ids that were found are not those of the order."""
    held: list[Any] = []
    at = first
    for table in _order(run / ORDER, ["id"], first, rows):
        wanted = plain_ids(table.column("id"))
        while len(held) < len(wanted) and (more := next(found, None)) is not None:
            held += more
        for place, (one, other) in enumerate(zip(held, wanted, strict=False)):
            if one != other:
                return f"position {at + place}: it holds the text {one!r} where {other!r} belongs"
        if len(held) < len(wanted):
            return f"position {at + len(held)}: it ends there, and {wanted[len(held)]!r} is missing"
        held, at = held[len(wanted) :], at + len(wanted)
    held += next((more for more in found if more), [])
    return f"it holds a text more than it should, {held[0]!r}" if held else None


def _wrong_blocks(
    run: Path, form: TokenFormat, identity: dict[str, Any], file: Path, first: int, rows: int
) -> str | None:
    """Where the tokens that were found are not those of the order."""
    layout = TokenLayout(length=identity["draws"]["length"], vocabulary=identity["vocabulary"], end=identity["end"])
    tables = _order(run / ORDER, ["hash"], first, rows)
    wanted, at = np.zeros(0, np.uint64), first
    for some in form.blocks(file, layout, rows):
        while len(wanted) < len(some):
            wanted = np.append(wanted, next(tables).column("hash").to_numpy())
        wrong = np.flatnonzero(hashes(some) != wanted[: len(some)])
        if len(wrong):
            return f"position {at + int(wrong[0])}: its tokens are not those of the block that belongs there"
        wanted, at = wanted[len(some) :], at + len(some)
    return None


def _check_joined(findings: Findings, manifest: dict[str, Any]) -> None:
    """Check the one data set of a format that has no parts."""
    folder, identity = findings.run / DATA, manifest["identity"]
    files = {folder / name: facts for name, facts in manifest["joined"].items()}
    findings.look_around(folder, {path.name for path in files}, ())
    damaged = {path: problem for path, facts in files.items() if (problem := damage(path, facts))}
    for path, problem in damaged.items():
        findings.add(path, problem, tuple(files))
    if damaged:
        return
    data = next(iter(files))
    problem = _problem(findings.run, data, {"first": 0, "rows": manifest["units"]}, identity)
    if problem:
        findings.add(data, problem, tuple(files))
