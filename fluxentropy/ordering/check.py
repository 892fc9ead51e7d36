"""Proves a directory of bins: every row of the input in exactly one bin or in `unscored/`, and in the right one.

Counts and sums of row hashes are compared: shards -> their folder's manifest -> bins.json -> the input, where it is
still there. Each file is read once; memory does not grow with the rows.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fluxentropy.config.yaml import read_yaml
from fluxentropy.errors import FluxentropyError, RunError
from fluxentropy.models.tokenizers import fingerprint_files
from fluxentropy.ordering.bins import INDEX, Bins
from fluxentropy.ordering.blocks import COUNTS, FOLDER, RECORD, TOKENIZER, block_schema, fingerprint_blocks
from fluxentropy.ordering.edges import UNSCORED, Binning
from fluxentropy.ordering.inputs import Input
from fluxentropy.ordering.options import BinConfig
from fluxentropy.ordering.shards import FORMAT, MANIFEST, NAMES, bin_folder, bins_top, sum_of_rows, sum_of_tokens
from fluxentropy.ordering.split import fingerprints
from fluxentropy.ordering.within import value_names
from fluxentropy.runs.check import Findings, check_types, damage, read_record
from fluxentropy.runs.engine import Engine
from fluxentropy.runs.files import sha256_file
from fluxentropy.runs.progress import Progress
from fluxentropy.runs.tables import reading

# --- bins -------------------------------------------------------------------------------------------------------------


SUMS = ("rows", "tokens", "hash")
SAID = {**dict.fromkeys(SUMS, int), "files": list}


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of bin `number`, and what its folder's manifest says of it."""

    path: Path
    number: int
    record: dict[str, Any]

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, kw_only=True)
class ShardFacts:
    """What is in a shard; `problem` where it is damaged or holds rows of other bins."""

    rows: int = 0
    tokens: int = 0
    hash: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class ShardCheck:
    """The job that checks one shard; without `binning` the scores are not compared with the edges.

    `columns` says which column of the shards holds an axis of the binning that is an expression.
    """

    binning: Binning | None
    columns: dict[str, str]

    def __call__(self, shard: Shard) -> ShardFacts:
        if problem := damage(shard.path, shard.record):
            return ShardFacts(problem=problem)
        rows = tokens = total = 0
        try:
            with reading(shard.path), pa.memory_map(str(shard.path)) as source:
                file = pa.ipc.open_file(source)
                for number in range(file.num_record_batches):
                    batch = file.get_batch(number)
                    if problem := self._misplaced(batch, shard.number, rows):
                        return ShardFacts(problem=problem)
                    rows += batch.num_rows
                    total = (total + sum_of_rows(batch)) % 2**64
                    tokens += sum_of_tokens(batch)
        except FluxentropyError as error:
            return ShardFacts(problem=str(error))
        except KeyError as error:
            return ShardFacts(problem=f"it has no column {error}")
        if rows != shard.record["rows"]:
            return ShardFacts(problem=f"it has {rows:,} rows, its manifest says {shard.record['rows']:,}")
        return ShardFacts(rows=rows, tokens=tokens, hash=total)

    def _misplaced(self, batch: pa.RecordBatch, number: int, at: int) -> str | None:
        """What says that a row of `batch`, whose first is row `at`, is not of bin `number`."""
        bins = batch.column("bin").fill_null(UNSCORED).to_numpy()
        scored = bins
        if self.binning is not None:
            names = [self.columns.get(name) or _renamed(name, batch.schema.names) for name in self.binning.inputs]
            scored = self.binning.assign(*(batch.column(name) for name in names))
        for found, what in ((bins, "its column bin says"), (scored, "by its score it belongs into")):
            if (wrong := (found != number).nonzero()[0]).size:
                return f"row {at + wrong[0]} is in the wrong bin: {what} {_name(found[wrong[0]])}"
        return None


@dataclass(frozen=True)
class InputSum:
    """The job that counts the rows of an input file and sums their hashes."""

    def __call__(self, path: Path) -> tuple[int, int]:
        rows = total = 0
        with reading(path), pq.ParquetFile(path, pre_buffer=False) as parquet:
            columns = [name for name in NAMES if name in parquet.schema_arrow.names]
            for batch in parquet.iter_batches(columns=columns, use_threads=False):
                total = (total + sum_of_rows(batch)) % 2**64
                rows += batch.num_rows
        return rows, total


def check_bins(findings: Findings, manifest: dict[str, Any], engine: Engine) -> Bins | None:
    """Check every shard, and that together they are what `bins.json`, the manifest and the input say.

    What `bins.json` says is handed back, where it can be trusted.
    """
    findings.look_for_leftovers(findings.run)
    bins = _read(findings, manifest)
    folders = _folders(findings, bins)
    shards = [shard for number, folder in folders.items() for shard in list_files(findings, number, folder, SAID)[1]]
    found: dict[int, list[ShardFacts]] = {number: [] for number in folders}
    check = ShardCheck(bins.binning, bins.facts.get("columns", {})) if bins else ShardCheck(None, {})
    with Progress(manifest.get("rows"), unit="rows checked") as line:
        for shard, facts in zip(shards, engine.run(check, shards), strict=True):
            findings.files += 1
            line.update(facts.rows, shards=findings.files)
            found[shard.number].append(facts)
            if facts.problem:
                findings.add(shard.path, facts.problem, (shard.path.parent,))
    findings.rows = sum(facts.rows for shards in found.values() for facts in shards)
    if not findings.problems:
        for number, folder in folders.items():
            said = read_record(folder / MANIFEST)
            for name in SUMS if said.get("format") == FORMAT else SUMS[:-1]:
                findings.differs(folder / MANIFEST, f"as {name}", said[name], _sum(name, found[number]), (folder,))
    if bins is not None and not findings.problems:
        _check_totals(findings, manifest, bins, found)
    if bins is not None and bins.older:
        findings.notes.append(
            "made by a former version, whose hashes of rows this one does not know: the files were compared with their "
            "manifests by SHA-256 and by counts"
        )
    if not findings.problems:
        hashed = _sum("hash", [facts for shards in found.values() for facts in shards])
        _check_input(findings, manifest, hashed, engine)
    else:
        findings.notes.append("not compared with the input, as long as something is damaged")
    return bins


def _read(findings: Findings, manifest: dict[str, Any]) -> Bins | None:
    """What `bins.json` says, where it can be trusted."""
    path = findings.run / INDEX
    try:
        facts = read_record(path)
        if manifest.get("bins_sha256") not in (None, sha256_file(path)):
            raise RunError("it is damaged: its SHA-256 is not the one in manifest.json")
        bins = Bins.of(findings.run, facts)
        if bins.binning.fingerprint != manifest.get("fingerprint"):
            raise RunError("its edges are not those of manifest.json")
        check_types(facts, rows=int, unscored=int, hash=int)
        return bins
    except FluxentropyError as error:
        findings.add(path, str(error).removeprefix(f"{path}: "), (path,))
        return None


def _folders(findings: Findings, bins: Bins | None) -> dict[int, Path]:
    """The folders that there are, by number, after noting those that are missing and those too many."""
    run = findings.run
    top = bins_top(run)
    if bins is not None:
        wanted = {part.number: part.folder for part in bins.parts}
    else:
        digits = {folder: folder.name.removeprefix("bin=") for folder in sorted((run / top).glob("bin=*"))}
        wanted = {int(number): folder for folder, number in digits.items() if number.isdecimal()}
        wanted |= {UNSCORED: run / "unscored"} if (run / "unscored").is_dir() else {}
    note_strangers(findings, run, top, wanted.values())
    if (run / "unscored").exists() and UNSCORED not in wanted:
        findings.add(run / "unscored", "it is not of this run", (run / "unscored",))
    for folder in wanted.values():
        if not folder.is_dir():
            findings.add(folder, "it is missing")
    return {number: folder for number, folder in wanted.items() if folder.is_dir()}


def note_strangers(findings: Findings, run: Path, top: str, wanted: Collection[Path]) -> None:
    """Note what lies among the bins' folders, which are in `run`, or in `top` there, and is none of the `wanted`."""
    for path in (*sorted(run.glob("bin=*")), *(sorted((run / top).glob("bin=*")) if top else ())):
        if path not in wanted:
            findings.add(path, "it is not of this run", (path,))
    if top and (run / top).is_dir():
        findings.look_around(run / top, {path.name for path in (run / top).glob("bin=*")}, ())


def list_files(
    findings: Findings, number: int, folder: Path, types: Mapping[str, type]
) -> tuple[dict[str, Any], list[Shard]]:
    """A bin's manifest, which has keys of these `types`, and its files, after noting what else is in its folder.

    Where it cannot be trusted, that is noted, and there are none.
    """
    try:
        facts = read_record(folder / MANIFEST, **types)
        for file in facts["files"]:
            check_types(file, name=str, rows=int, bytes=int, sha256=str)
    except RunError as error:
        findings.add(folder / MANIFEST, str(error), (folder,))
        return {}, []
    findings.look_around(folder, {MANIFEST, *(file["name"] for file in facts["files"])}, ("part-*.arrow",))
    return facts, [Shard(path=folder / file["name"], number=number, record=file) for file in facts["files"]]


def _check_totals(findings: Findings, manifest: dict[str, Any], bins: Bins, found: dict[int, list[ShardFacts]]) -> None:
    path = bins.path / INDEX
    for one in bins:
        for name, said in (("rows", one.rows), *([] if one.tokens is None else [("tokens", one.tokens)])):
            findings.differs(path, f"{name} in bin {one.number}", said, _sum(name, found[one.number]), (path,))
    everything = [facts for shards in found.values() for facts in shards]
    for name in ("rows",) if bins.older else ("rows", "hash"):
        total = _sum(name, everything)
        findings.differs(path, f"as {name}", bins.facts[name], total, (path,))
        findings.differs(bins.path / "manifest.json", f"as {name}", manifest.get(name), total, None)
    unscored = _sum("rows", found.get(UNSCORED, []))
    findings.differs(path, "rows without a score", bins.facts["unscored"], unscored, (path,))


def _check_input(findings: Findings, manifest: dict[str, Any], hashed: int, engine: Engine) -> None:
    """Compare the input, where it is still there, with the rows that were found, whose hashes add up to `hashed`."""
    if changed := changed_input(manifest):
        findings.notes.append(f"not compared with the input: {changed}")
        return
    files = [Path(name) for name in manifest.get("files", ())]
    rows = total = 0
    try:
        with Progress(manifest.get("rows"), unit="input rows read") as line:
            found = Input.open(str(manifest["run"]))
            for count, part in engine.run(InputSum(), files) if found.corpus is None else found.sums():
                rows, total = rows + count, (total + part) % 2**64
                line.update(count)
    except FluxentropyError as error:
        findings.notes.append(f"not compared with the input: {error}")
        return
    findings.differs(findings.run, f"rows, by its input {manifest.get('run')}", rows, findings.rows, None)
    if total != hashed:
        findings.add(findings.run, f"its rows are not those of its input {manifest.get('run')}", None)
    how = (
        "by count and by hash" if total or not rows else "by count: it has no column that tells rows apart, such as id"
    )
    findings.notes.append(f"same rows as {manifest.get('run')}, {how}")


def changed_input(manifest: Mapping[str, Any]) -> str | None:
    """The first input file that is gone, or not the one that the bins were made of, in words."""
    files = [Path(name) for name in manifest["files"]]
    for file in files:
        if not file.is_file():
            return f"{file} is gone"
    try:
        found = fingerprints(manifest["run"], files)
    except (OSError, FluxentropyError) as error:
        return str(error)
    said = manifest["identity"]["inputs"]
    for file, (name, sha256) in zip(files, found.items(), strict=True):
        if said.get(name) != sha256:
            return f"{file} has changed since"
    return None


def _sum(name: str, facts: Sequence[ShardFacts]) -> int:
    total = sum(getattr(one, name) for one in facts)
    return total % 2**64 if name == "hash" else total


def _renamed(name: str, names: Sequence[str]) -> str:
    """The column of a shard that holds the input's column `name`: an input's own `bin` has source_ in front.

    >>> _renamed("bin", ["source_bin", "source_source_bin", "bin"])
    'source_source_bin'
    """
    own = [other for other in names if re.fullmatch("(source_)+bin", other)]
    return max(own, key=len) if name == "bin" and own else name


def _name(number: int) -> str:
    return "unscored" if number == UNSCORED else f"bin {number}"


# --- blocks -----------------------------------------------------------------------------------------------------------
#
# Files -> their folder's manifest -> blocks.json -> bins.json. Each file is read once.


MADE = {"rows": int, "tokens": int, "documents": int, "empty": int, "left_over": int, "files": list}
RECORDED = {"length": int, "vocabulary": int, "tokenizer": dict, **dict.fromkeys(COUNTS, list)}


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """How many blocks a file holds, or what is wrong: with the file, or `recorded`, with what is said of it."""

    rows: int = 0
    problem: str | None = None
    recorded: bool = False


@dataclass(frozen=True)
class BinValues:
    """The values of `column` in the shards of each of `folders`, by bin; those of one bin are held at a time."""

    column: str
    folders: tuple[Path, ...]

    def mixed(self, batch: pa.RecordBatch, number: int, at: int) -> str | None:
        """What says that a block of `batch`, whose first is block `at`, holds texts of several values, or of none."""
        folder = self.folders[number]
        places = _places_of_values(folder, (folder / MANIFEST).read_text(encoding="utf-8"), self.column)
        documents = batch.column("documents")
        rows = documents.flatten().to_numpy()
        if len(rows) and int(rows.max()) >= len(places):
            return f"it holds document {rows.max()} of {len(places)}"
        sizes = pc.list_value_length(documents).to_numpy()
        first = np.repeat(places[rows[np.cumsum(sizes) - sizes]], sizes)
        if (odd := np.flatnonzero(places[rows] != first)).size:
            block = int(np.searchsorted(np.cumsum(sizes), odd[0], side="right"))
            return f"block {at + block} holds texts of several values of {self.column}"
        return None


@functools.lru_cache(maxsize=1)
def _places_of_values(folder: Path, manifest: str, column: str) -> np.ndarray:
    """A number for the value of each row of a bin with this manifest, int32 (rows,)."""
    found: list[np.ndarray] = []
    names: dict[str, int] = {}
    for record in json.loads(manifest)["files"]:
        with reading(folder / record["name"]), pa.memory_map(str(folder / record["name"])) as source:
            file = pa.ipc.open_file(source)
            for number in range(file.num_record_batches):
                places, values = value_names(file.get_batch(number).column(column), column)
                known = np.array([names.setdefault(value, len(names)) for value in values], np.int32)
                found.append(known[places])
    return np.concatenate([*found, np.zeros(0, np.int32)])


@dataclass(frozen=True)
class FileCheck:
    """The job that checks one file of blocks; `values` says where the value of each document of a bin is read."""

    schema: pa.Schema
    values: BinValues | None = None

    def __call__(self, shard: Shard) -> FileFacts:
        if problem := damage(shard.path, shard.record):
            return FileFacts(problem=problem)
        rows = 0
        try:
            with reading(shard.path), pa.memory_map(str(shard.path)) as source:
                file = pa.ipc.open_file(source)
                if file.schema != self.schema:
                    return FileFacts(problem=f"its columns are not as {RECORD} says", recorded=True)
                for place in range(file.num_record_batches):
                    batch = file.get_batch(place)
                    if not set(batch.column("bin").unique().to_pylist()) <= {shard.number}:
                        return FileFacts(problem=f"it holds blocks of another bin than {shard.number}", recorded=True)
                    if self.values is not None and (problem := self.values.mixed(batch, shard.number, rows)):
                        return FileFacts(problem=problem)
                    rows += batch.num_rows
        except FluxentropyError as error:
            return FileFacts(problem=str(error))
        if rows != shard.record["rows"]:
            problem = f"it has {rows:,} blocks, its manifest says {shard.record['rows']:,}"
            return FileFacts(problem=problem, recorded=True)
        return FileFacts(rows=rows)


def check_blocks(findings: Findings, bins: Bins | None, engine: Engine) -> None:
    """Check the blocks in the folder of `bins`, where there are any or there should be."""
    top = findings.run / FOLDER
    if not top.is_dir():
        if _wanted(findings.run):
            findings.add(top, "it is missing")
        return
    findings.look_for_leftovers(top)
    before = len(findings.problems)
    if bins is None:  # which has been named
        return
    try:
        record = read_record(top / RECORD, **RECORDED)
        if any(len(record[name]) != len(bins) for name in COUNTS):
            raise RunError(f"it has counts of {len(record['blocks'])} bins, and there are {len(bins)}")
    except RunError as error:
        findings.add(top / RECORD, str(error), (top / RECORD,))
        return
    data = bins_top(top, RECORD)
    folders = [top / bin_folder(number, len(bins), data) for number in range(len(bins))]
    made, shards = [], []
    for number, folder in enumerate(folders):
        if not folder.is_dir():
            findings.add(folder, "it is missing")
            continue
        facts, files = list_files(findings, number, folder, MADE)
        made.append(facts)
        shards += files
    note_strangers(findings, top, data, folders)
    by = record.get("packed_by")
    values = BinValues(by, tuple(one.folder for one in bins)) if by and not findings.problems else None
    _check_files(findings, shards, FileCheck(block_schema(record["vocabulary"], record["length"]), values), engine)
    if len(findings.problems) == before:
        _check_counts(findings, folders, record, made, bins.counts)
    if len(findings.problems) == before and fingerprint_blocks(record, made) != record.get("fingerprint"):
        findings.add(top / RECORD, "it is damaged: its fingerprint is not that of the blocks", (top / RECORD,))
    elif not (top / TOKENIZER).is_dir():
        findings.add(top / TOKENIZER, "it is missing")
    elif fingerprint_files(top / TOKENIZER) != record["tokenizer"].get("fingerprint"):
        findings.add(top / TOKENIZER, f"it is damaged: it is not the one that {RECORD} names", (top / TOKENIZER,))
    if len(findings.problems) == before:
        blocks, length = sum(record["blocks"]), record["length"]
        findings.notes.append(f"{blocks:,} blocks of {length:,} tokens in {len(shards)} files")


def _wanted(run: Path) -> bool:
    """Whether the run's command made blocks; no, where its options cannot be read."""
    with contextlib.suppress(FluxentropyError):
        return read_yaml(run / "config.resolved.yaml", BinConfig).get("tokenize") is not None
    return False


def _check_files(findings: Findings, shards: list[Shard], check: FileCheck, engine: Engine) -> None:
    with Progress(sum(shard.record["rows"] for shard in shards), unit="blocks checked") as line:
        for shard, facts in zip(shards, engine.run(check, shards), strict=True):
            line.update(facts.rows)
            if facts.problem:
                folder = shard.path.parent
                redo = (folder, folder.parent / RECORD) if facts.recorded else (folder,)
                findings.add(shard.path, facts.problem, redo)


def _check_counts(
    findings: Findings, folders: list[Path], record: dict[str, Any], made: list[dict[str, Any]], counts: list[int]
) -> None:
    path = findings.run / FOLDER / RECORD
    for number, (folder, facts) in enumerate(zip(folders, made, strict=True)):
        redo = (folder, path)
        rows = sum(file["rows"] for file in facts["files"])
        findings.differs(folder / MANIFEST, "blocks", facts["rows"], rows, redo)
        findings.differs(folder / MANIFEST, "documents", facts["documents"], counts[number], redo)
        for ours, theirs in COUNTS.items():
            findings.differs(path, f"{ours} in {folder.name}", record[ours][number], facts[theirs], redo)
