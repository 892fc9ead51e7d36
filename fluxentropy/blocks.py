"""The texts of bins as tokens, packed into blocks of one length to train on.

    DIR/_blocks/blocks.json                      length, tokenizer, counts of each bin; written last
    DIR/_blocks/tokenizer/                       what `save_pretrained` writes
    DIR/_blocks/data/bin=00/part-00000.arrow …   Arrow IPC files, not compressed: training maps them into memory
    DIR/_blocks/data/bin=00/.manifest.json       counts, and each file's rows, bytes and SHA-256

A bin's documents follow each other in the order of its shards, each ended by the tokenizer's end-of-text token, and run
on from block to block (packing.py). Readers of the shards pass over a folder whose name begins with an underscore.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fluxentropy.binset import Bins
from fluxentropy.errors import RunError, UsageError
from fluxentropy.findings import damage
from fluxentropy.packing import Packer, block_schema
from fluxentropy.readers import is_text
from fluxentropy.shards import DATA, FORMATS, MANIFEST, ShardWriter, bin_folder, bins_top, read_manifest
from fluxentropy.store import atomic_folder, difference, fingerprint_json, read_json, write_json
from fluxentropy.tablefiles import reading, without_dictionary
from fluxentropy.tokenizing import FoundTokenizer, encode, fingerprint_files, open_backend
from fluxentropy.yamlfile import did_you_mean

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FOLDER, RECORD, TOKENIZER = "_blocks", "blocks.json", "tokenizer"
TEXTS, CHARS = 256, 2**20  # tokenised at once: so many texts, or fewer that reach so many characters

RunJob = Callable[["Pack", Sequence[int]], Sequence[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The blocks of the bins in `out`: made, found made, or refused where they are others."""

    out: Path
    tokenizer: FoundTokenizer
    length: int  # of a block, in predictions
    text_field: str
    shard_bytes: int

    def refuse_others(self) -> None:
        """RunError names the difference from the blocks that `out` has, or has begun to have."""
        folder = self.out / FOLDER
        found, saved = read_blocks(self.out) or {}, folder / TOKENIZER
        if not found and not saved.is_dir():
            return
        text = difference(found.get("length"), self.length, "block_length") if found else ""
        there = found.get("tokenizer") or {"fingerprint": fingerprint_files(saved)}
        if there.get("fingerprint") != self.tokenizer.fingerprint:
            name = self.tokenizer.name
            text = difference(there.get("name", name), name, "tokenizer") or f"their tokenizer is not this {name}"
        if text:
            raise RunError(
                f"{folder} holds other blocks: {text}. Remove {folder} to make these of the same bins, choose another "
                f"--out, or start afresh with --overwrite"
            )

    def make(self, bins: Bins, run: RunJob) -> None:
        """Make what is missing for `bins`, by `run`, which hands back what a job returns for each unit."""
        folder = self.out / FOLDER
        for pattern in (".aside-*/", f"{DATA}/.aside-*/"):  # of a process that was killed
            for aside in folder.glob(pattern):
                shutil.rmtree(aside, ignore_errors=True)
        saved = folder / TOKENIZER
        if not saved.is_dir() or fingerprint_files(saved) != self.tokenizer.fingerprint:
            shutil.rmtree(saved, ignore_errors=True)
            self.tokenizer.write(saved)
        pack = Pack(
            out=self.out,
            tops=(bins.top, bins_top(folder, RECORD)),
            bins=len(bins),
            tokenizer=self.tokenizer.fingerprint,
            eos=self.tokenizer.eos,
            schema=block_schema(self.tokenizer.vocabulary, self.length),
            text_field=self.text_field,
            shard_bytes=self.shard_bytes,
        )
        made = run(pack, range(pack.bins))
        record = self._record(bins, made, pack.tops[1])
        if read_blocks(self.out) != record:
            write_json(folder / RECORD, record)

    def _record(self, bins: Bins, made: Sequence[dict[str, Any]], top: str) -> dict[str, Any]:
        ours = {"name": self.tokenizer.name, "fingerprint": self.tokenizer.fingerprint}
        record = {
            "length": self.length,
            "vocabulary": self.tokenizer.vocabulary,
            "dtype": str(block_schema(self.tokenizer.vocabulary, self.length).field("input_ids").type.value_type),
            "eos_token_id": self.tokenizer.eos,
            "tokenizer": (read_blocks(self.out) or {}).get("tokenizer", ours),  # the same one, maybe by another name
            **{name: [facts[key] for facts in made] for name, key in COUNTS.items()},
            "bins_fingerprint": bins.binning.fingerprint,
            **({"format": FORMATS[RECORD]} if top else {}),
        }
        return {**record, "fingerprint": fingerprint_blocks(record, made)}


# What RECORD counts for each bin, and what the bin's manifest calls it.
COUNTS = {"blocks": "rows", "tokens": "tokens", "documents": "documents", "left_over": "left_over"}


@dataclass(frozen=True, kw_only=True)
class Pack:
    """The job that makes the blocks of one bin. Repeated, it finds them made."""

    out: Path
    tops: tuple[str, str]  # of the bins' folders in `out`, and in FOLDER
    bins: int
    tokenizer: str  # the fingerprint of the one in FOLDER
    eos: int
    schema: pa.Schema
    text_field: str
    shard_bytes: int

    def __call__(self, number: int) -> dict[str, Any]:
        source, folder = (
            place / bin_folder(number, self.bins, top)
            for place, top in zip((self.out, self.out / FOLDER), self.tops, strict=True)
        )
        shards = (read_manifest(source) or {})["files"]
        made_of = self._made_of(shards)
        facts = read_manifest(folder)
        if facts is not None and facts.get("made_of") == made_of:
            return facts
        shutil.rmtree(folder, ignore_errors=True)
        packer, empty = Packer(self.schema, bin=number), 0
        backend = _backend(self.out / FOLDER / TOKENIZER, self.tokenizer)

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal empty
            for texts in self._texts(source, shards):
                ids, sizes = encode(backend, texts, self.eos)
                empty += int(np.sum(sizes == 0))
                packer.add(ids, sizes)
                yield from packer.batches()
            yield from packer.batches(last=True)

        with atomic_folder(folder) as aside:
            files = _write(batches(), self.schema, aside, self.shard_bytes)
            facts = {
                "rows": packer.blocks,
                "tokens": packer.blocks * packer.length,
                "documents": packer.rows,
                "empty": empty,
                "left_over": packer.left_over,
                "files": files,
                "made_of": made_of,
            }
            write_json(aside / MANIFEST, facts)
        return facts

    def _made_of(self, shards: Sequence[dict[str, Any]]) -> str:
        """A fingerprint of everything that decides the bytes of a bin's blocks."""
        return fingerprint_json(
            {
                "shards": [file["sha256"] for file in shards],
                "text_field": self.text_field,
                "tokenizer": self.tokenizer,
                "schema": str(self.schema),
                "shard_bytes": self.shard_bytes,
            }
        )

    def _texts(self, folder: Path, shards: Sequence[dict[str, Any]]) -> Iterator[list[str]]:
        """The texts of a bin in the order of its rows, in lists of bounded size; one that is null is empty."""
        for record in shards:
            path = folder / record["name"]
            if problem := damage(path, record):  # its bin may have been made long ago
                raise RunError(f"{path}: {problem}; `fluxentropy verify {self.out} --repair` makes it again")
            with reading(path), pa.memory_map(str(path)) as source:
                file = pa.ipc.open_file(source)
                for place in range(file.num_record_batches):
                    yield from _lists(text or "" for text in file.get_batch(place).column(self.text_field).to_pylist())


def read_blocks(out: Path) -> dict[str, Any] | None:
    """The record of the blocks that the folder of bins `out` has; None where it has none, or they are not finished."""
    return read_json(out / FOLDER / RECORD)


def fingerprint_blocks(record: dict[str, Any], made: Sequence[dict[str, Any]]) -> str:
    """The fingerprint of a record of blocks and of all their files, which the bins' manifests `made` list."""
    facts = {key: value for key, value in record.items() if key not in ("fingerprint", "format")}
    return "sha256:" + fingerprint_json({**facts, "files": [[file["sha256"] for file in one["files"]] for one in made]})


def text_column(run: str, schema: pa.Schema) -> str:
    """The column of the scored rows in `run` that holds the texts: what `score` was told, else `text`.

    Errors: UsageError where there is none.
    """
    places = [place for place in (Path(run), Path(run).parent) if place.is_dir()]  # a run, or its folder of parts
    manifest: dict[str, Any] = next((one for place in places if (one := read_json(place / "manifest.json"))), {})
    name: str = (manifest.get("identity") or {}).get("text_field") or "text"
    near = [column for column in schema.names if column.lower() == name.lower()]
    found: str | None = name if name in near else near[0] if len(near) == 1 else None
    if found is None:
        hint = did_you_mean(name, schema.names) or ": score with the texts kept (no --no-text), or rename the column"
        raise UsageError(f"--tokenize: no column {name} with texts in {run}{hint}")
    if not is_text(without_dictionary(schema.field(found)).type):
        raise UsageError(f"--tokenize: the column {found} of {run} holds {schema.field(found).type}, not texts")
    return found


@functools.lru_cache(maxsize=1)
def _backend(folder: Path, fingerprint: str) -> Tokenizer:
    """The tokenizer in `folder`, read once a process: a large vocabulary takes a second."""
    if fingerprint_files(folder) != fingerprint:
        raise RunError(f"{folder} has changed meanwhile: the same command writes it again")
    return open_backend(folder)


def _lists(texts: Iterator[str]) -> Iterator[list[str]]:
    held: list[str] = []
    chars = 0
    for text in texts:
        held.append(text)
        chars += len(text)
        if len(held) == TEXTS or chars >= CHARS:
            yield held
            held, chars = [], 0
    if held:
        yield held


def _write(
    batches: Iterator[pa.RecordBatch], schema: pa.Schema, folder: Path, shard_bytes: int
) -> list[dict[str, Any]]:
    """Write files that end with the batch in which they reach `shard_bytes`; without any batch, an empty one."""
    files: list[dict[str, Any]] = []
    writer: ShardWriter | None = None
    for batch in batches:
        writer = writer or ShardWriter(folder / f"part-{len(files):05d}.arrow", schema, compress=False)
        writer.write(batch)
        if writer.size >= shard_bytes:
            files.append(writer.close())
            writer = None
    if writer or not files:
        files.append((writer or ShardWriter(folder / "part-00000.arrow", schema, compress=False)).close())
    return files
