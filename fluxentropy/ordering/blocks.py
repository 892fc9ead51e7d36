"""The texts of bins as tokens, packed into blocks of one length to train on.

    DIR/_blocks/blocks.json                      length, tokenizer, counts of each bin; written last
    DIR/_blocks/tokenizer/                       what `save_pretrained` writes
    DIR/_blocks/data/bin=00/part-00000.arrow …   Arrow IPC files, not compressed: training maps them into memory
    DIR/_blocks/data/bin=00/.manifest.json       counts, and each file's rows, bytes and SHA-256

A bin's documents follow each other in the order of its shards, each ended by the tokenizer's end-of-text token, and run
on from block to block. Where the bins are within the values of a column, each value has a stream of its own, so that a
block holds texts of one value; blocks follow each other as they become full, and `packed_by` names the column.

Readers of the shards pass over a folder whose name begins with an underscore.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from fluxentropy.config.yaml import did_you_mean
from fluxentropy.corpus.readers import is_text
from fluxentropy.errors import RunError, UsageError
from fluxentropy.models.tokenizers import FoundTokenizer, encode, fingerprint_files, open_backend
from fluxentropy.ordering.bins import Bins
from fluxentropy.ordering.shards import DATA, FORMATS, MANIFEST, ShardWriter, bin_folder, bins_top, read_manifest
from fluxentropy.ordering.within import rows_of_values
from fluxentropy.runs.check import damage
from fluxentropy.runs.directory import RunRecord, difference
from fluxentropy.runs.files import atomic_folder, fingerprint_json, read_json, write_json
from fluxentropy.runs.tables import reading, without_dictionary

if TYPE_CHECKING:
    from tokenizers import Tokenizer


# --- packing ----------------------------------------------------------------------------------------------------------
#
#     documents   5 6 0 | 7 0 | 8 9 0       L = 3, 0 ends a document
#     block 0     5 6 0 7        starts 0 3      documents 0 1      predictions 5→6, 6→0, 0→7
#     block 1     7 0 8 9        starts 0 2      documents 1 2      predictions 7→0, 0→8, 8→9
#     left over   5, which nothing predicts, and the last 0
#
# Neighbouring blocks share one token, so that every token of the stream but the first is predicted exactly once.


BATCH_BLOCKS = 256  # of a record batch


def block_schema(vocabulary: int, length: int) -> pa.Schema:
    """The columns of blocks that predict `length` tokens: ids in uint16 where all of the vocabulary fits, else uint32.

    `starts`: where each segment, a piece of one document, begins in the block. `documents`: the row of that document.
    """
    token = pa.uint16() if vocabulary <= 2**16 else pa.uint32()
    return pa.schema(
        {
            "input_ids": pa.list_(token, length + 1),
            "starts": pa.list_(pa.int32()),
            "documents": pa.list_(pa.int64()),
            "bin": pa.int32(),
        }
    )


class Packer:
    """Documents in, record batches of blocks out.

    >>> packer = Packer(block_schema(10, 3), bin=4)
    >>> packer.add(np.array([5, 6, 0, 7, 0, 8, 9, 0]), np.array([3, 2, 3]))
    >>> (batch,) = packer.batches(last=True)
    >>> batch.to_pylist()[1], packer.left_over
    ({'input_ids': [7, 0, 8, 9], 'starts': [0, 2], 'documents': [1, 2], 'bin': 4}, 2)
    """

    def __init__(self, schema: pa.Schema, *, bin: int) -> None:
        kind = schema.field("input_ids").type
        self.schema, self.bin = schema, bin
        self.length = kind.list_size - 1
        self.dtype = kind.value_type.to_pandas_dtype()
        self.rows = 0  # documents so far, those without tokens included
        self.blocks = self.tokens = 0  # written, and put in
        self._ids: list[np.ndarray] = []  # the tokens of the blocks to come
        self._starts: list[np.ndarray] = []  # where documents begin, counted from the stream's first token
        self._documents: list[np.ndarray] = []

    @property
    def left_over(self) -> int:
        """Tokens that no block predicts: the first of the stream, and those that fill no block."""
        return self.tokens - self.blocks * self.length

    def add(self, ids: np.ndarray, sizes: np.ndarray, rows: np.ndarray | None = None) -> None:
        """Documents with `sizes` (n,) tokens each, whose `ids` (sum of sizes,) follow each other.

        `rows` (n,) are their rows in the bin, by default those that follow each other from 0 on.
        """
        there = np.flatnonzero(sizes)
        self._ids.append(ids.astype(self.dtype))
        self._starts.append(self.tokens + (np.cumsum(sizes) - sizes)[there])
        self._documents.append(self.rows + there if rows is None else rows[there])
        self.rows += len(sizes)
        self.tokens += len(ids)

    def batches(self, *, last: bool = False) -> Iterator[pa.RecordBatch]:
        """The full batches of BATCH_BLOCKS blocks; with `last`, also a smaller one of all other full blocks."""
        full = max(self.tokens - 1, 0) // self.length - self.blocks
        if full < BATCH_BLOCKS and not (last and full):
            return
        ids, starts, documents = map(np.concatenate, (self._ids, self._starts, self._documents))
        origin = self.blocks * self.length  # the place in the stream of the first token in `ids`
        while full >= (1 if last else BATCH_BLOCKS):
            count = min(full, BATCH_BLOCKS)
            first = self.blocks * self.length
            yield self._batch(ids[first - origin :], starts, documents, first, count)
            self.blocks += count
            full -= count
        end = self.blocks * self.length
        kept = slice(max(int(np.searchsorted(starts, end, "right")) - 1, 0), None)  # from the document that runs on
        self._ids, self._starts, self._documents = [ids[end - origin :]], [starts[kept]], [documents[kept]]

    def _batch(
        self, ids: np.ndarray, starts: np.ndarray, documents: np.ndarray, first: int, count: int
    ) -> pa.RecordBatch:
        """`count` blocks from the stream's token `first` on, which is ids[0]."""
        begins = first + np.arange(count) * self.length
        low = np.searchsorted(starts, begins, "right") - 1  # (count,) the first segment's document
        sizes = np.searchsorted(starts, begins + self.length, "right") - low
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        places = np.repeat(low - offsets[:-1], sizes) + np.arange(offsets[-1])
        within = np.maximum(starts[places] - np.repeat(begins, sizes), 0)
        windows = np.lib.stride_tricks.sliding_window_view(ids, self.length + 1)[: count * self.length : self.length]
        kind, ends = self.schema.field("input_ids").type, pa.array(offsets, pa.int32())
        columns = [
            pa.FixedSizeListArray.from_arrays(pa.array(windows.ravel(), kind.value_type), type=kind),
            pa.ListArray.from_arrays(ends, pa.array(within, pa.int32())),
            pa.ListArray.from_arrays(ends, pa.array(documents[places], pa.int64())),
            pa.array(np.full(count, self.bin, np.int32)),
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


class ValuePacker:
    """Documents of several values in, record batches of blocks out, each block with documents of one value.

    A value's block goes out with the documents that fill it, so at most a block of each value is held.

    >>> packer = ValuePacker(block_schema(10, 1), bin=4)
    >>> packer.add(np.array([5, 0, 6, 0, 7, 0]), np.array([2, 2, 2]), [("a", np.array([0, 2])), ("b", np.array([1]))])
    >>> (batch,) = packer.batches(last=True)
    >>> batch.column("documents").to_pylist(), packer.left_over
    ([[0], [0, 2], [2], [1]], 2)
    """

    def __init__(self, schema: pa.Schema, *, bin: int) -> None:
        self.schema, self.bin = schema, bin
        self.length = schema.field("input_ids").type.list_size - 1
        self.rows = self.blocks = 0
        self._packers: dict[str, Packer] = {}
        self._held: list[pa.RecordBatch] = []

    @property
    def left_over(self) -> int:
        """Tokens that no block predicts, of all values."""
        return sum(packer.left_over for packer in self._packers.values())

    def add(self, ids: np.ndarray, sizes: np.ndarray, values: Iterable[tuple[str, np.ndarray]]) -> None:
        """Documents as `Packer.add` takes them, and for each value which of them it has, ascending."""
        ends = np.cumsum(sizes)
        for value, mine in values:
            packer = self._packers.setdefault(value, Packer(self.schema, bin=self.bin))
            pieces = [ids[ends[place] - sizes[place] : ends[place]] for place in mine.tolist()]
            packer.add(np.concatenate([*pieces, ids[:0]]), sizes[mine], self.rows + mine)
            self._held += packer.batches(last=True)  # all that are full
        self.rows += len(sizes)

    def batches(self, *, last: bool = False) -> Iterator[pa.RecordBatch]:
        """The full batches of BATCH_BLOCKS blocks; with `last`, also a smaller one of all other full blocks."""
        while (full := sum(batch.num_rows for batch in self._held)) >= (1 if last else BATCH_BLOCKS):
            whole = pa.concat_batches(self._held)
            count = min(full, BATCH_BLOCKS)
            self._held = [whole.slice(count)] if full > count else []
            self.blocks += count
            yield whole.take(pa.array(np.arange(count)))  # whose bytes follow from the rows alone


# --- blocks -----------------------------------------------------------------------------------------------------------


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
    packed_by: str | None = None  # the column of the shards whose values blocks do not mix

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
            packed_by=self.packed_by,
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
            **({} if self.packed_by is None else {"packed_by": self.packed_by}),
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
    packed_by: str | None = None

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
        packer: Packer | ValuePacker = (ValuePacker if self.packed_by else Packer)(self.schema, bin=number)
        empty = 0
        backend = _backend(self.out / FOLDER / TOKENIZER, self.tokenizer)

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal empty
            for texts, values in self._texts(source, shards):
                ids, sizes = encode(backend, texts, self.eos)
                empty += int(np.sum(sizes == 0))
                if isinstance(packer, ValuePacker):
                    assert self.packed_by is not None
                    packer.add(ids, sizes, rows_of_values(values, self.packed_by))
                else:
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
                **({} if self.packed_by is None else {"packed_by": self.packed_by}),
            }
        )

    def _texts(self, folder: Path, shards: Sequence[dict[str, Any]]) -> Iterator[tuple[list[str], pa.Array | None]]:
        """The texts of a bin in the order of its rows, in lists of bounded size; one that is null is empty.

        With them their values of `packed_by`, if the blocks are by value.
        """
        for record in shards:
            path = folder / record["name"]
            if problem := damage(path, record):  # its bin may have been made long ago
                raise RunError(f"{path}: {problem}; `fluxentropy verify {self.out} --repair` makes it again")
            with reading(path), pa.memory_map(str(path)) as source:
                file = pa.ipc.open_file(source)
                for place in range(file.num_record_batches):
                    batch = file.get_batch(place)
                    values, at = batch.column(self.packed_by) if self.packed_by else None, 0
                    for texts in _lists(text or "" for text in batch.column(self.text_field).to_pylist()):
                        yield texts, None if values is None else values.slice(at, len(texts))
                        at += len(texts)


def read_blocks(out: Path) -> dict[str, Any] | None:
    """The record of the blocks that the folder of bins `out` has; None where it has none, or they are not finished."""
    return read_json(out / FOLDER / RECORD)


def fingerprint_blocks(record: dict[str, Any], made: Sequence[dict[str, Any]]) -> str:
    """The fingerprint of a record of blocks and of all their files, which the bins' manifests `made` list."""
    facts = {key: value for key, value in record.items() if key not in ("fingerprint", "format")}
    return "sha256:" + fingerprint_json({**facts, "files": [[file["sha256"] for file in one["files"]] for one in made]})


def text_tokens(out: Path, bins: int) -> list[int]:
    """The tokens of the texts of each of the bins in `out`, as its blocks have them, without those that end texts."""
    top = bins_top(out / FOLDER, RECORD)
    made = [read_manifest(out / FOLDER / bin_folder(number, bins, top)) or {} for number in range(bins)]
    return [one["tokens"] + one["left_over"] - (one["documents"] - one["empty"]) for one in made]


def text_column(run: str, schema: pa.Schema, name: str | None = None) -> str:
    """The column `name` of the rows in `run`, or that which holds the texts: what `score` was told, else `text`.

    Errors: UsageError where there is none.
    """
    given = name
    places = [place for place in (Path(run), Path(run).parent) if place.is_dir()]  # a run, or its folder of parts
    record = next((one for place in places if (one := RunRecord.read(place)).facts), None)
    name = given or (record.identity if record else {}).get("text_field") or "text"
    near = [column for column in schema.names if column.lower() == name.lower()]
    found: str | None = name if name in near else near[0] if len(near) == 1 and not given else None
    if found is None:
        hint = did_you_mean(name, schema.names) + ("" if given else " (name it with --text-field)")
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
