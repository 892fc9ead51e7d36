"""Edges of a column inside each value of another: every bin then has each source in the same share.

    source  news news news news code code code code        2 bins within source
    score    1.0  2.0  3.0  4.0  7.0  7.5  8.0  9.0        edges {"code": [7.75], "news": [2.5]}
    bin       0    0    1    1    0    0    1    1

The edges are the exact quantiles of the rows of each value, as `quantiles.py` finds them, so they do not depend on the
order of the rows, on their files or on who reads them. Values are looked at some at a time, so memory does not grow
with their number. A value of the column is a name: of a path, such as `WEBMIX/news`, its last part; null is `unknown`.

All values have the same number of bins, and bin k holds the same quantiles of each. A score on an edge goes to the
lower bin and equal scores are never parted, so a value with ties may leave a bin without rows of its own, which is
said; a bin that all values leave empty goes.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from fluxentropy.errors import UsageError
from fluxentropy.ordering.edges import MAX_BINS, UNSCORED, BinEdges, Binning, Cut
from fluxentropy.ordering.quantiles import Histogram, ScoreColumn, Selection, as_floats
from fluxentropy.ordering.split import SCAN_ROWS, ScoredFile
from fluxentropy.runs.files import fingerprint_json

# --- values of a column -----------------------------------------------------------------------------------------------


UNKNOWN = "unknown"  # the name of a row whose source is null
MAX_VALUES = 1000  # of the column
AT_ONCE = 32  # values whose histograms are held at a time
SHOWN = 3  # values that a message names


def source_name(value: str) -> str:
    """The last part of a path, or the whole of what is none.

    >>> source_name("WEBMIX/news"), source_name("news")
    ('news', 'news')
    """
    return value.rstrip("/").rpartition("/")[2] or value


def value_names(column: Any, name: str) -> tuple[np.ndarray, list[str]]:
    """The value of each row of `column`, an array of PyArrow: places (n,) in a list of different names.

    Errors: `UsageError` where the column holds neither texts nor whole numbers nor booleans.

    >>> value_names(pa.array(["a/x", None, "x", "y"]), "source")
    (array([0, 2, 0, 1]), ['x', 'y', 'unknown'])
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    check_values(kind, name)
    if pa.types.is_string_view(kind):
        array = array.cast(pa.large_string())
    encoded = array.dictionary_encode() if not pa.types.is_null(kind) else None
    found = [] if encoded is None else [source_name(str(value)) for value in encoded.dictionary.to_pylist()]
    names = list(dict.fromkeys([*found, *([UNKNOWN] if array.null_count else [])]))
    places = {one: place for place, one in enumerate(names)}
    table = np.array([*(places[one] for one in found), places.get(UNKNOWN, 0)], np.int64)
    if encoded is None:
        return np.repeat(table, len(array)), names
    return table[encoded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)], names


def check_values(kind: pa.DataType, name: str) -> None:
    """Errors: `UsageError` where a column of this type has no values to bin within, or to pack by."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (texts or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
        raise UsageError(
            f"--within {name}: its values are of type {kind}: name a column of texts, whole numbers or booleans, such "
            f"as the source of each text"
        )


# --- bins -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WithinBinning(Binning):
    """The bins of the column `by`, with edges of their own for each value of the column `within`.

    >>> binning = WithinBinning(by="x", within="source", edges={"news": (1.0,), "code": (5.0,)}, how="2 bins")
    >>> binning.bins, binning.assign(pa.array([2.0, 2.0, None]), pa.array(["a/news", "code", "new"]))
    (2, array([ 1,  0, -1], dtype=int32))
    """

    axes: tuple[BinEdges, ...] = ()
    by: str
    within: str
    edges: Mapping[str, tuple[float, ...]]  # of each value: the same number for all, ascending, equal ones allowed
    how: str
    requested: int = 0
    gaps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # bins without rows of a value, because of ties

    def __post_init__(self) -> None:
        if len({len(edges) for edges in self.edges.values()}) > 1:
            raise UsageError(f"edges of {self.by} within {self.within}: not all values have the same number of them")
        for value, edges in self.edges.items():
            odd = next((edge for edge in edges if not math.isfinite(edge)), None)
            if odd is not None or list(edges) != sorted(edges):
                said = "they must be ascending" if odd is None else f"{odd} is not a finite number"
                raise UsageError(f"edges of {self.by} within {self.within} {value!r}: {said}")
        if self.bins > MAX_BINS:
            raise UsageError(f"{self.bins} bins: at most {MAX_BINS} are possible")

    @property
    def bins(self) -> int:
        return len(next(iter(self.edges.values()), ())) + 1

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.by,)

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.by, self.within

    @property
    def notes(self) -> list[str]:
        found = []
        if self.edges and self.bins < self.requested:
            found.append(f"{self.by}: {self.bins} of {self.requested} bins, as equal values are never parted")
        for value, bins in [*self.gaps.items()][:SHOWN]:
            numbers = ", ".join(map(str, bins))
            found.append(f"{self.within} {value!r} has no rows in bin {numbers}, as equal values are never parted")
        if (more := len(self.gaps) - SHOWN) > 0:
            found.append(f"so it is with {more} more values of {self.within}")
        return found

    @property
    def fingerprint(self) -> str:
        edges = [[value, *map(float.hex, self.edges[value])] for value in sorted(self.edges)]
        return fingerprint_json([self.by, self.within, edges])

    def assign(self, *columns: Any) -> np.ndarray:
        """The bin of each row, int32 (n,), -1 for null and NaN. `columns` are `by` and `within`.

        Errors: those of `as_floats` and `value_names`; UsageError where a value has no edges and a row of it a score.
        """
        scores, values = columns
        numbers = as_floats(scores, self.by)
        found = np.full(len(numbers), UNSCORED, np.int32)
        for name, rows in rows_of_values(values, self.within):
            part = numbers[rows]
            there = ~np.isnan(part)
            if there.any():
                if name not in self.edges:
                    raise UsageError(
                        f"column {self.within}: {name!r} has no edges, they are of "
                        f"{', '.join(map(repr, sorted(self.edges)[:SHOWN]))}{'…' if len(self.edges) > SHOWN else ''}"
                    )
                found[rows[there]] = np.searchsorted(np.array(self.edges[name]), part[there], side="left")
        return found

    def to_json(self) -> dict[str, Any]:
        """What `bins.json` says of the edges: those of each value.

        >>> binning = WithinBinning(by="x", within="source", edges={"news": (1.0,)}, how="2 bins", requested=2)
        >>> binning.to_json() | {"fingerprint": "…"}  # doctest: +NORMALIZE_WHITESPACE
        {'by': 'x', 'within': 'source', 'edges': {'news': [1.0]}, 'how': '2 bins', 'requested': 2, 'fingerprint': '…'}
        """
        edges = {value: list(self.edges[value]) for value in sorted(self.edges)}
        facts = {"by": self.by, "within": self.within, "edges": edges, "how": self.how, "requested": self.requested}
        return {**facts, "fingerprint": self.fingerprint}

    @classmethod
    def of(cls, facts: Any) -> WithinBinning:
        """The edges that `facts`, the content of a `bins.json`, say. Errors: `UsageError`, and those of odd JSON."""
        edges = {str(value): tuple(map(float, numbers)) for value, numbers in dict(facts["edges"]).items()}
        binning = cls(
            by=str(facts["by"]), within=str(facts["within"]), edges=edges, how=str(facts.get("how", "loaded"))
        )
        if facts.get("fingerprint", binning.fingerprint) != binning.fingerprint:
            raise UsageError("the edges do not fit the fingerprint: remove it if you meant to change them")
        return dataclasses.replace(binning, requested=binning.bins)


def rows_of_values(column: Any, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Each value of `column`, in the order in which they first occur, and its rows, ascending."""
    places, names = value_names(column, name)
    order = np.argsort(places, kind="stable")
    stops = np.cumsum(np.bincount(places, minlength=len(names)))
    rows = np.split(order, stops[:-1]) if names else []
    yield from sorted(zip(names, rows, strict=True), key=lambda item: int(item[1][0]) if len(item[1]) else 0)


# --- finding the edges ------------------------------------------------------------------------------------------------
#
#     Values       how many rows with a score each value has
#     ValueScan    the histograms of some values, for their selections; as often as these ask


Each = Callable[[Any, Sequence[ScoredFile]], Iterable[Any]]  # what a job returns for each file


@dataclass(frozen=True, kw_only=True)
class Values:
    """The job that counts the rows of each value of `within` in a file: with a score, and all."""

    by: str
    within: str
    joined: tuple[str, ...]

    def __call__(self, file: ScoredFile) -> tuple[Counter[str], Counter[str]]:
        scored: Counter[str] = Counter()
        rows: Counter[str] = Counter()
        for scores, values in _columns(file, self.by, self.within, None, self.joined):
            there = ~np.isnan(as_floats(scores, self.by))
            for name, places in rows_of_values(values, self.within):
                scored[name] += int(there[places].sum())
                rows[name] += len(places)
            if len(rows) > MAX_VALUES:
                raise _too_many(self.within)
        return scored, rows


def _too_many(within: str) -> UsageError:
    return UsageError(
        f"--within {within}: it has more than {MAX_VALUES:,} values: name a column of sources or classes, whose values "
        f"repeat"
    )


@dataclass(frozen=True, kw_only=True)
class ValueScan:
    """The job of a pass over a file: the histogram of each of `values`, or what its selection asks for."""

    by: str
    within: str
    weight: str | None
    joined: tuple[str, ...]
    values: tuple[str, ...]
    selections: tuple[Selection | None, ...] = ()  # of each value, None for one that asks for nothing

    def __call__(self, file: ScoredFile) -> list[Histogram]:
        found = [Histogram.empty(weighted=self.weight is not None) for _ in self.values]
        place = {value: number for number, value in enumerate(self.values)}
        for scores, values, *weights in _columns(file, self.by, self.within, self.weight, self.joined):
            for name, rows in rows_of_values(values, self.within):
                number = place.get(name)
                if number is None or (self.selections and self.selections[number] is None):
                    continue
                mine = pa.array(rows)
                column = ScoreColumn.read(
                    scores.take(mine),
                    weights[0].take(mine) if weights else None,
                    name=self.by,
                    weight_name=self.weight or "",
                )
                selection = self.selections[number] if self.selections else None
                scan = Histogram.of if selection is None else selection.scan
                found[number] += scan(column.values, column.weights)
        return found


def _columns(
    file: ScoredFile, by: str, within: str, weight: str | None, joined: Sequence[str]
) -> Iterator[tuple[Any, ...]]:
    """The columns `by`, `within` and, if asked for, `weight` of a file, some rows at a time."""
    names = [name for name in (by, within, weight) if name is not None]
    own = [name for name in dict.fromkeys(names) if name not in joined]
    for table in file.batches(SCAN_ROWS, own, joined):
        yield tuple(table[name] for name in names)


def cut_within(
    files: Sequence[ScoredFile], by: str, within: str, cut: Cut, each: Each, joined: Sequence[str] = ()
) -> WithinBinning:
    """The bins of `by` inside each value of `within`, where `cut` says; `each` runs a job over the files.

    Errors: UsageError names a value with fewer rows than bins, and says where no row has a score, or where there are
    more values than MAX_VALUES.
    """
    scored: Counter[str] = Counter()
    for part, rows in each(Values(by=by, within=within, joined=tuple(joined)), files):
        scored.update({name: part[name] for name in rows})
        if len(scored) > MAX_VALUES:
            raise _too_many(within)
    names = sorted(name for name, count in scored.items() if count)
    bins = len(cut.levels) + 1
    small = sorted((scored[name], name) for name in names if scored[name] < bins)
    if small:
        count, name = small[0]
        more = f", and {len(small) - 1} more values have fewer than {bins}" if len(small) > 1 else ""
        raise UsageError(
            f"--within {within}: {name!r} has only {count} row{'s' * (count > 1)} with a score for {bins} bins{more}: "
            f"use at most {count} bins, or give such rows another value of {within}"
        )
    edges, filled = {}, {}
    for start in range(0, len(names), AT_ONCE):
        group = tuple(names[start : start + AT_ONCE])
        scan = ValueScan(by=by, within=within, weight=cut.weight, joined=tuple(joined), values=group)
        for name, selection in zip(group, _select(scan, files, cut, each), strict=True):
            places, cuts = cut.places(selection)
            edges[name] = places
            filled[name] = np.diff([-np.inf, *cuts, selection.maximum]) > 0  # (bins,)
    there = np.any([*filled.values(), np.arange(bins) == 0], axis=0)  # (bins,)
    later = np.cumsum(there[::-1])[::-1] > 1  # whether a bin above, too, has rows
    stays = (there & later)[:-1]  # of the edges that cut in the same place, the lowest
    return WithinBinning(
        by=by,
        within=within,
        edges={name: tuple((places[stays] + 0.0).tolist()) for name, places in edges.items()},
        how=f"{cut.how} within each {within}",
        requested=bins,
        gaps={
            name: tuple(np.flatnonzero(~found[there]).tolist())
            for name, found in filled.items()
            if not found[there].all()
        },
    )


def _select(scan: ValueScan, files: Sequence[ScoredFile], cut: Cut, each: Each) -> list[Selection]:
    """The finished selections of the scan's values."""
    selections = [cut.start(found) for found in _total(scan, files, each)]
    while not all(one.done for one in selections):
        asked = tuple(None if one.done else one for one in selections)
        found = _total(dataclasses.replace(scan, selections=asked), files, each)
        selections = [one if one.done else one.refine(part) for one, part in zip(selections, found, strict=True)]
    return selections


def _total(scan: ValueScan, files: Sequence[ScoredFile], each: Each) -> list[Histogram]:
    found = [Histogram.empty(weighted=scan.weight is not None) for _ in scan.values]
    for part in each(scan, files):
        found = [whole + one for whole, one in zip(found, part, strict=True)]
    return found
