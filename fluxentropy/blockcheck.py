"""Proves the blocks of a directory of bins: their files by SHA-256 and count, and all counts against each other.

Files -> their folder's manifest -> blocks.json -> bins.json. Each file is read once.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fluxentropy.bincheck import Shard, list_files, note_strangers
from fluxentropy.binset import Bins
from fluxentropy.blocks import COUNTS, FOLDER, RECORD, TOKENIZER, fingerprint_blocks
from fluxentropy.config import BinConfig
from fluxentropy.engine import Engine
from fluxentropy.errors import FluxentropyError, RunError
from fluxentropy.findings import Findings, damage, read_record
from fluxentropy.packing import block_schema
from fluxentropy.progress import Progress
from fluxentropy.shards import MANIFEST, bin_folder, bins_top
from fluxentropy.tablefiles import reading
from fluxentropy.tokenizing import fingerprint_files
from fluxentropy.yamlfile import read_yaml

MADE = {"rows": int, "tokens": int, "documents": int, "empty": int, "left_over": int, "files": list}
RECORDED = {"length": int, "vocabulary": int, "tokenizer": dict, **dict.fromkeys(COUNTS, list)}


@dataclass(frozen=True, kw_only=True)
class FileFacts:
    """How many blocks a file holds, or what is wrong: with the file, or `recorded`, with what is said of it."""

    rows: int = 0
    problem: str | None = None
    recorded: bool = False


@dataclass(frozen=True)
class FileCheck:
    """The job that checks one file of blocks."""

    schema: pa.Schema

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
    _check_files(findings, shards, FileCheck(block_schema(record["vocabulary"], record["length"])), engine)
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
