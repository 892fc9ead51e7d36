"""Which blocks a schedule draws from: all, a share by score (`keep`), each value of a column apart (`stratify`).

    bin            0  0  0  0  1  1  1  1        keep: lowest 0.5      all of bin 0, none of bin 1
    source         a  b  a  a  b  b  a  b        stratify: source      a: 3 of bin 0, 1 of bin 1; b: 1 and 3

A block knows where its documents begin, and which rows of the bin's shards they are; the rows have the column. An
order of texts draws texts instead, which have a value of their own; all that is said of blocks holds for them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fluxentropy.config.yaml import did_you_mean
from fluxentropy.errors import RunError, UsageError
from fluxentropy.ordering.bins import Bins
from fluxentropy.ordering.shards import bin_folder, bins_top
from fluxentropy.ordering.within import source_name
from fluxentropy.runs.tables import reading
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.orders import between

# --- columns of the bins ----------------------------------------------------------------------------------------------


def read_column(blocks: BlockSet, number: int, column: str, *, flag: str) -> pa.ChunkedArray:
    """A column of a bin's shards, a value a row, dictionary-encoded. Only that column is unpacked.

    Errors: UsageError, opened by `flag`, names a column that the shards do not have, or whose values are no labels.
    """
    return _column(blocks.path / bin_folder(number, blocks.bins, bins_top(blocks.path)), column, flag)


def _column(folder: Path, column: str, flag: str) -> pa.ChunkedArray:
    found: list[pa.Array] = []
    for path, table in _tables(folder, column, flag):
        if pa.types.is_nested(table.type):
            raise UsageError(f"{flag} {column}: a value of {path} is a {table.type}: name a column of single values")
        found += table.chunks
    whole = pa.chunked_array(found) if found else pa.chunked_array([], pa.string())
    return whole if pa.types.is_dictionary(whole.type) else whole.dictionary_encode()


def _tables(folder: Path, column: str, flag: str) -> Iterator[tuple[Path, pa.ChunkedArray]]:
    for path in sorted(folder.glob("part-*.arrow")):
        with reading(path), pa.memory_map(str(path)) as file:
            names = pa.ipc.open_file(file).schema.names
            if column not in names:
                raise UsageError(f"{flag} {column}: no such column in {path}{did_you_mean(column, names)}")
            file.seek(0)
            only = pa.ipc.IpcReadOptions(included_fields=[names.index(column)])
            yield path, pa.ipc.open_file(file, options=only).read_all()[column]


# --- strata -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Strata:
    """The blocks by their values of a column.

    A block's value is that of its documents; where these differ, the one that most of its predicted tokens belong to,
    and of equals the first by name. The tokens of the others are off: in a batch they stand with a stratum that is not
    theirs. A path is named by its last part, as in the losses by source.
    """

    column: str
    names: tuple[str, ...]  # of the strata, in their order; each has a block
    lost: tuple[str, ...]  # values that no block is of
    counts: np.ndarray  # (S, K) blocks
    numbers: np.ndarray  # (N,) of the blocks, by bin, therein by stratum
    tokens: np.ndarray  # (S,)
    off: np.ndarray  # (S,) of these, that are of other values

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the names, and of which block is in which stratum."""
        digest = hashlib.sha256(repr((self.column, self.names, self.counts.tolist())).encode())
        digest.update(np.ascontiguousarray(self.numbers, "<i8").tobytes())
        return digest.hexdigest()


def read_strata(blocks: BlockSet, column: str, *, flag: str = "schedule.stratify") -> Strata:
    """The strata of `blocks` by a column of the bins' shards.

    Errors: UsageError names a column that is not there or has nulls; RunError bins that are not those of the blocks.
    """
    if column == "bin":  # of which a stratum would have one: nothing would be left to order
        raise UsageError(
            f"{flag} bin: it is the number of the bin, which the schedule orders by; a column bin of the input is "
            f"source_bin here"
        )
    columns = [read_column(blocks, number, column, flag=flag) for number in range(blocks.bins)]
    names, rows = _labels(columns, blocks.path, f"{flag} {column}")
    found = [_majority(blocks, number, codes) for number, codes in enumerate(rows)]
    off = sum((np.bincount(one, others, len(names)) for one, others in found), np.zeros(len(names)))
    return _strata(column, names, [one for one, _ in found], blocks.length, off.astype(np.int64))


def read_text_strata(bins: Bins, column: str, *, flag: str = "schedule.stratify") -> Strata:
    """The texts of bins by their values of a column. Errors: UsageError names one that is not there or has nulls."""
    names, labels = _labels([_column(one.folder, column, flag) for one in bins], bins.path, f"{flag} {column}")
    return _strata(column, names, labels, 1)


def _labels(columns: Sequence[pa.ChunkedArray], path: Path, flag: str) -> tuple[list[str], list[np.ndarray]]:
    """The values in the bins of `path`, sorted, and of each bin's texts the place in these. -> U names, K x (rows,)"""
    for number, values in enumerate(columns):
        if missing := _missing(values):
            raise UsageError(
                f"{flag}: {missing:,} of the {len(values):,} texts of bin {number} in {path} have no value: fill it in "
                f"and bin again, or name another column"
            )
    texts = [_texts(values) for values in columns]
    names = sorted({name for part, _ in texts for name in part})
    places = {name: place for place, name in enumerate(names)}
    return names, [np.array([places[name] for name in part], np.int32)[codes] for part, codes in texts]


def _strata(
    column: str, names: Sequence[str], labels: Sequence[np.ndarray], length: int, off: np.ndarray | None = None
) -> Strata:
    """The strata of units of `length` tokens, of which each bin's have these `labels`, places in the sorted `names`."""
    counts = np.stack([np.bincount(found, minlength=len(names)) for found in labels], axis=1)
    first = np.append(0, np.cumsum([len(found) for found in labels])).tolist()
    numbers = [start + np.argsort(found, kind="stable") for start, found in zip(first, labels, strict=False)]
    there = np.flatnonzero(counts.sum(axis=1)).tolist()
    off = np.zeros(len(names), np.int64) if off is None else off
    return Strata(
        column=column,
        names=tuple(names[place] for place in there),
        lost=tuple(name for place, name in enumerate(names) if place not in there),
        counts=counts[there],
        numbers=np.concatenate(numbers),
        tokens=counts[there].sum(axis=1) * length,
        off=off[there],
    )


# --- strata in a file -------------------------------------------------------------------------------------------------


STRATUM = "stratum"  # the one column of the file: of each unit over all bins, whether it is drawn or not


def write_strata(path: Path, strata: Strata) -> None:
    """Write which stratum each unit is of, all that a plan needs to be made again."""
    labels = np.zeros(len(strata.numbers), np.int32)
    labels[strata.numbers] = np.concatenate([np.repeat(np.arange(len(row)), row) for row in strata.counts.T])
    column = pa.DictionaryArray.from_arrays(labels, pa.array(strata.names, pa.string()))
    pq.write_table(pa.table({STRATUM: column}), path, compression="zstd")


def load_strata(path: Path, column: str, counts: np.ndarray) -> Strata:
    """What `write_strata` wrote, of bins of `counts` (K,) units; `lost`, `tokens` and `off`, which plan nothing, are 0.

    Errors: RunError names a file that is not of such bins.
    """
    with reading(path):
        found = pq.read_table(path, read_dictionary=[STRATUM], memory_map=False)[STRATUM]
    if len(found) != int(counts.sum()) or found.null_count:
        raise RunError(f"{path}: it has {len(found):,} units, the bins have {int(counts.sum()):,}")
    chunk = found.unify_dictionaries().combine_chunks()
    chunk = chunk.chunk(0) if isinstance(chunk, pa.ChunkedArray) else chunk
    said = chunk.dictionary.to_pylist()
    labels = np.argsort(np.argsort(said))[chunk.indices.to_numpy()].astype(np.int32)
    return _strata(column, sorted(said), np.split(labels, np.cumsum(counts)[:-1]), 0)


# --- values of rows ---------------------------------------------------------------------------------------------------


def _missing(values: pa.ChunkedArray) -> int:
    """Rows without a value, NaN included."""
    kinds = [pc.is_null(chunk.dictionary, nan_is_null=True).to_numpy(zero_copy_only=False) for chunk in values.chunks]
    codes = [chunk.indices for chunk in values.chunks]
    return sum(
        code.null_count + int(kind[code.drop_null().to_numpy()].sum()) for kind, code in zip(kinds, codes, strict=True)
    )


def _texts(values: pa.ChunkedArray) -> tuple[list[str], np.ndarray]:
    """The names of values without nulls, and the place of each row's in them. -> U names, (rows,)"""
    names: dict[str, int] = {}
    codes = [np.zeros(0, np.int64)]
    for chunk in values.chunks:
        here = [names.setdefault(source_name(str(value)), len(names)) for value in chunk.dictionary.to_pylist()]
        codes.append(np.array(here, np.int64)[chunk.indices.to_numpy()])
    return list(names), np.concatenate(codes)


def _majority(blocks: BlockSet, number: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each block of a bin the label that most of its targets have, and how many have another one. -> (n,), (n,)

    rows: the label of each of the bin's texts. Equals: the smallest label.
    """
    block, targets, documents = blocks.segments(number)
    if len(documents) and documents.max() >= len(rows):
        raise RunError(
            f"bin {number} in {blocks.path} has {len(rows):,} texts, and its blocks are of more: make the blocks again"
        )
    most = int(rows.max(initial=0)) + 1
    pairs, place = np.unique(block * most + rows[documents], return_inverse=True)
    tokens = np.bincount(place, targets, minlength=len(pairs)).astype(np.int64)
    whose, label = np.divmod(pairs, most)
    order = np.lexsort((label, -tokens, whose))
    first = order[np.searchsorted(whose[order], np.arange(int(blocks.counts[number])))]
    return label[first], blocks.length - tokens[first]


# --- a share of the blocks --------------------------------------------------------------------------------------------


WHICH = ("lowest", "middle", "highest")


def parse_keep(keep: str) -> tuple[str, float]:
    """Which end, and the share. Errors: `UsageError` says how to write it.

    >>> parse_keep("lowest 0.5")
    ('lowest', 0.5)
    """
    match = re.fullmatch(rf"\s*({'|'.join(WHICH)})\s+(\d*\.?\d+|\d+\.)\s*", keep)
    if match is None or not 0 < float(match[2]) <= 1:
        raise UsageError(
            f"schedule.keep {keep}: write lowest, middle or highest and a share above 0 and up to 1, such as lowest 0.5"
        )
    return match[1], float(match[2])


def kept_of(counts: np.ndarray, keep: str) -> np.ndarray:
    """How many blocks of each bin are among the lowest, middle or highest round(share * n) of n in all. (K,) -> (K,)

    >>> kept_of(np.array([4, 4, 4]), "middle 0.5")
    array([1, 4, 1])
    """
    which, share = parse_keep(keep)
    total = int(counts.sum())
    kept = round(share * total)
    low = {"lowest": 0, "middle": (total - kept) // 2, "highest": total - kept}[which]
    return between(low, low + kept, counts)


@dataclass(frozen=True, kw_only=True, eq=False)
class Chosen:
    """The blocks that are drawn: of each stratum (one, where there are none) and bin so many of so many.

    Of a bin that is cut by `keep` those are kept that come first in a shuffle by the seed, `sampler.KEEP`; so a smaller
    share of one end is a part of a larger one.
    """

    counts: np.ndarray  # (S, K) blocks that there are
    kept: np.ndarray  # (S, K) blocks that are drawn
    keep: str | None
    strata: Strata | None

    @property
    def fingerprint(self) -> str:
        """What a plan has as its `chosen`; empty where all blocks are drawn, and are alike."""
        if self.keep is None and self.strata is None:
            return ""
        facts = (parse_keep(self.keep) if self.keep else None, self.strata.fingerprint if self.strata else None)
        return repr((*facts, self.kept.tolist()))


def choose(counts: np.ndarray, *, keep: str | None = None, strata: Strata | None = None) -> Chosen:
    """Blocks of bins of `counts` (K,), or a share `keep` of each stratum. Errors: `UsageError` where none is left."""
    table = np.atleast_2d(np.asarray(counts, np.int64)) if strata is None else strata.counts
    kept = table if keep is None else np.stack([kept_of(row, keep) for row in table])
    for number in np.flatnonzero((kept.sum(axis=1) == 0) & (table.sum(axis=1) > 0)).tolist():
        whose = "" if strata is None else f" of {strata.column} {strata.names[number]}"
        raise UsageError(
            f"schedule.keep {keep}: there are {int(table[number].sum()):,} blocks{whose}, and none would be left: use "
            f"a larger share"
        )
    return Chosen(counts=table, kept=kept, keep=keep, strata=strata)
