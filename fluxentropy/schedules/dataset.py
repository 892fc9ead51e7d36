"""Token blocks of a binned corpus, memory-mapped: `fluxentropy bin … --tokenize` writes them, training reads them.

DIR/_blocks/blocks.json                    length, vocabulary, blocks of each bin, fingerprint
DIR/_blocks/data/bin=00/part-00000.arrow … Arrow IPC files, uncompressed, record batches of 256 blocks

A block has length + 1 tokens, which give `length` predictions. Blocks are numbered over all bins: the blocks of bin 0,
then those of bin 1, and so on; `read` takes a bin and a place in it, `gather` takes these numbers.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fluxentropy.errors import RunError, SourceError
from fluxentropy.ordering.bins import Bins
from fluxentropy.ordering.shards import bin_folder, bins_top
from fluxentropy.runs.files import read_json

FOLDER, INDEX = "_blocks", "blocks.json"
ROWS = 256  # blocks in a record batch; a file's last one may be smaller
NEEDED = ("length", "vocabulary", "eos_token_id", "blocks", "fingerprint")


class Block(NamedTuple):
    """One block: ids (length+1,) of uint16 or uint32, a view of the file; where segments start, and their documents."""

    ids: np.ndarray
    starts: np.ndarray  # (S,) int32, the first is 0
    documents: np.ndarray  # (S,) int64, rows of the bin


class _Places(NamedTuple):
    """All record batches in order: the number of the first block of each, over all bins, and its file and place."""

    starts: np.ndarray
    batches: list[tuple[Path, int]]


class _Batch(NamedTuple):
    """The columns of one record batch, as views of the file."""

    ids: np.ndarray  # (rows, length+1)
    offsets: np.ndarray  # (rows+1,) of starts and documents
    starts: np.ndarray
    documents: np.ndarray


@dataclass(kw_only=True)
class BlockSet:
    """Blocks in K bins. It can be pickled; each process maps the files that it reads, once."""

    path: Path
    length: int
    vocabulary: int
    eos_token_id: int | None
    fingerprint: str
    counts: np.ndarray  # (K,) blocks
    facts: dict[str, Any]  # all of blocks.json
    files: tuple[tuple[Path, ...], ...]  # of each bin
    file_ends: tuple[np.ndarray, ...]  # of each bin: blocks up to the end of each file
    grid: tuple[int, ...] | None  # of bins by two scores
    _open: dict[Path, Any] = field(default_factory=dict, repr=False)
    _batches: dict[tuple[Path, int], _Batch] = field(default_factory=dict, repr=False)

    @classmethod
    def open(cls, folder: Path) -> BlockSet:
        """The blocks in `folder`, which `bin` wrote. Errors: `SourceError`, `RunError` name the file at fault."""
        index = Path(folder) / FOLDER / INDEX
        facts = read_json(index)
        if facts is None:
            raise SourceError(
                f"{index}: no such file: make the blocks with `fluxentropy bin … --out {folder} --tokenize`"
            )
        missing = [name for name in NEEDED if name not in facts]
        if missing:
            raise RunError(f"{index} says nothing of {missing[0]}: make the blocks again")
        counts = np.array(facts["blocks"], np.int64)
        top = bins_top(index.parent, INDEX)
        folders = [index.parent / bin_folder(number, len(counts), top) for number in range(len(counts))]
        files = tuple(tuple(sorted(path.glob("part-*.arrow"))) for path in folders)
        bins = Bins.read(Path(folder))
        found = cls(
            path=Path(folder),
            length=int(facts["length"]),
            vocabulary=int(facts["vocabulary"]),
            eos_token_id=facts["eos_token_id"],
            fingerprint=str(facts["fingerprint"]),
            counts=counts,
            facts=facts,
            files=files,
            file_ends=tuple(np.cumsum([_rows(path) for path in paths], dtype=np.int64) for paths in files),
            grid=bins.grid if bins else None,
        )
        for number, (ends, count) in enumerate(zip(found.file_ends, counts.tolist(), strict=True)):
            if (int(ends[-1]) if len(ends) else 0) != count:
                raise RunError(
                    f"{folders[number]} holds {int(ends[-1]) if len(ends) else 0:,} blocks where {index} says "
                    f"{count:,}: make the blocks again"
                )
        return found

    @property
    def bins(self) -> int:
        return len(self.counts)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the tokens in the files."""
        return np.dtype(self.facts.get("dtype", "uint32"))

    @property
    def first(self) -> np.ndarray:
        """The number of each bin's first block, and at the end that of all blocks. (K+1,)"""
        return np.append(0, np.cumsum(self.counts))

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """The block of a number over all bins, as a data set for models that shift labels themselves, those of
        transformers: `input_ids` and `labels`, both its length + 1 tokens, int64. Errors: IndexError."""
        if not 0 <= number < len(self):
            raise IndexError(f"block {number}: {self.path} has {len(self)}")
        ids = self.gather(np.array([number]))[0]
        return {"input_ids": ids, "labels": ids.copy()}

    def without_end(self, held: int) -> BlockSet:
        """These blocks but for the last `held` of each bin, which `pretrain --holdout` keeps for validation."""
        counts = np.maximum(self.counts - held, 0)
        return replace(self, counts=counts, fingerprint=f"{self.fingerprint}-without-{held}")

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_places", "_views")}
        return {**kept, "_open": {}, "_batches": {}}

    def read(self, number: int, index: int) -> Block:
        """Block `index` of bin `number`. Errors: IndexError where there is none; `RunError` names a damaged file."""
        if not (0 <= number < self.bins and 0 <= index < self.counts[number]):
            raise IndexError(f"block {index} of bin {number}: there is none in {self.path}")
        ends = self.file_ends[number]
        file = int(np.searchsorted(ends, index, side="right"))
        batch, row = divmod(index - (int(ends[file - 1]) if file else 0), ROWS)
        found = self._batch(self.files[number][file], batch)
        span = slice(found.offsets[row], found.offsets[row + 1])
        return Block(found.ids[row], found.starts[span], found.documents[span])

    def places(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The bins and the places in them of blocks by their numbers over all bins. (B,) -> (B,), (B,)"""
        first = self.first
        bins = np.searchsorted(first, numbers, side="right") - 1
        return bins, numbers - first[bins]

    def blocks(self, numbers: np.ndarray) -> list[Block]:
        """The blocks of these numbers over all bins."""
        bins, places = self.places(np.asarray(numbers, np.int64))
        return [self.read(number, index) for number, index in zip(bins.tolist(), places.tolist(), strict=True)]

    def segments(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pieces of documents in the blocks of a bin: block, targets (predicted tokens), document, each (S,).

        The first token of a block is predicted by the block before it, so a piece of that token alone has no target.
        """
        blocks, targets, documents = [], [], []
        count, at = int(self.counts[number]), 0
        for file in self.files[number]:
            for batch in range(_reader(file).num_record_batches):
                if at >= count:
                    break
                found = self._batch(file, batch)
                rows = min(len(found.offsets) - 1, count - at)
                span = slice(int(found.offsets[0]), int(found.offsets[rows]))
                starts, row = found.starts[span], np.repeat(np.arange(rows), np.diff(found.offsets[: rows + 1]))
                ends = np.append(starts[1:], 0)
                ends[np.append(row[1:] != row[:-1], True)] = self.length + 1
                blocks.append(at + row)
                targets.append(ends - np.maximum(starts, 1))
                documents.append(found.documents[span])
                at += rows
        none = np.zeros(0, np.int64)
        return tuple(np.concatenate([none, *parts]) for parts in (blocks, targets, documents))  # type: ignore[return-value]

    def gather(self, numbers: np.ndarray, dtype: Any = np.int64, width: int | None = None) -> np.ndarray:
        """The tokens of the blocks of these numbers, all or the first `width`. (B,) -> (B, length+1)

        Blocks of one record batch are taken together. Errors: IndexError; `RunError` names a damaged file.
        """
        width = self.length + 1 if width is None else width
        found = np.empty((len(numbers), width), dtype)
        if not len(numbers):
            return found
        order = np.argsort(numbers, kind="stable")
        rising = np.asarray(numbers, np.int64)[order]
        if rising[0] < 0 or rising[-1] >= len(self):
            raise IndexError(f"block {rising[0] if rising[0] < 0 else rising[-1]}: {self.path} has {len(self)}")
        places = self._places
        batch = np.searchsorted(places.starts, rising, side="right") - 1
        edges = np.flatnonzero(np.diff(batch, prepend=-1, append=-1))
        for a, b in itertools.pairwise(edges.tolist()):
            at = int(batch[a])
            found[order[a:b]] = self._batch(*places.batches[at]).ids[rising[a:b] - places.starts[at], :width]
        return found

    def pick(self, numbers: np.ndarray) -> list[memoryview]:
        """The first `length` tokens of each of these blocks, of `dtype`, as views of the mapped files.

        Errors: IndexError; `RunError` names a damaged file, and blocks that hold a token of no vocabulary.
        """
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise IndexError(f"block {numbers.min()} to {numbers.max()}: {self.path} has {len(self)}")
        places = self._places
        batch = np.searchsorted(places.starts, numbers, side="right") - 1
        width, size = (self.length + 1) * self.dtype.itemsize, self.length * self.dtype.itemsize
        at = (numbers - places.starts[batch]) * width
        return [
            self._views[which][start : start + size] for which, start in zip(batch.tolist(), at.tolist(), strict=True)
        ]

    @functools.cached_property
    def _views(self) -> _Views:
        return _Views(self)

    @functools.cached_property
    def _places(self) -> _Places:
        starts, batches = [], []
        for number, first in enumerate(self.first[:-1].tolist()):
            start = 0
            for path, stop in zip(self.files[number], self.file_ends[number].tolist(), strict=True):
                firsts = range(start, min(stop, int(self.counts[number])), ROWS)  # without what is held out
                starts += [first + at for at in firsts]
                batches += [(path, place) for place in range(len(firsts))]
                start = stop
        return _Places(np.array(starts, np.int64), batches)

    def document_starts(self, numbers: np.ndarray) -> np.ndarray:
        """For each token of the blocks the place in its block where its document begins. (B,) -> int64 (B, length+1)"""
        found = np.zeros((len(numbers), self.length + 1), np.int64)
        for row, block in enumerate(self.blocks(numbers)):
            found[row, block.starts] = block.starts
        return np.asarray(np.maximum.accumulate(found, axis=1))

    def _batch(self, path: Path, number: int) -> _Batch:
        """Record batch `number` of a file, kept: its columns lie in the mapped file, not in memory."""
        key = (path, number)
        if key not in self._batches:
            if path not in self._open:
                self._open[path] = _reader(path)
            columns = self._open[path].get_batch(number)
            ids, starts, documents = (columns.column(name) for name in ("input_ids", "starts", "documents"))
            self._batches[key] = _Batch(
                ids=np.asarray(ids.values).reshape(-1, self.length + 1),
                offsets=np.asarray(starts.offsets),
                starts=np.asarray(starts.values),
                documents=np.asarray(documents.values),
            )
        return self._batches[key]


class _Views(dict[int, memoryview]):
    """The bytes of the tokens of each record batch, by its number over all bins, after a look at all of them."""

    def __init__(self, blocks: BlockSet) -> None:
        super().__init__()
        self.blocks = blocks

    def __missing__(self, number: int) -> memoryview:
        blocks = self.blocks
        path, place = blocks._places.batches[number]
        ids = blocks._batch(path, place).ids
        if ids.size and (largest := int(ids.max())) >= blocks.vocabulary:
            raise RunError(
                f"{path}: a block holds the id {largest:,}, and the vocabulary has {blocks.vocabulary:,}: make the "
                f"blocks again"
            )
        self[number] = ids.data.cast("B")
        return self[number]


def _reader(path: Path) -> Any:
    """The mapped file, open. `RunError` names one that is damaged."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (pa.ArrowInvalid, OSError) as error:
        raise RunError(f"{path} cannot be read ({str(error).splitlines()[0]}): make the blocks again") from error


def _rows(path: Path) -> int:
    """Blocks in a file; all of its record batches but the last are full."""
    reader = _reader(path)
    last = reader.num_record_batches - 1
    return last * ROWS + int(reader.get_batch(last).num_rows) if last >= 0 else 0
