"""What `--by` names beyond the columns of the input: expressions, and columns of another run.

    --by entropy_mean                  a column of the input: nothing to do
    --by difficulty --scores OTHER     a column of another run, joined by id
    --by "z(a) - b_joined"             an expression of the one and the other
    --by learnability                  a score of the registry that is an expression

The values are written into a file beside each file of the input, as `join_scores` does it, and from then on are read
like any other column. So whatever is exact for a column is exact for an expression.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.errors import UsageError
from fluxentropy.registry import REGISTRY
from fluxentropy.scorecolumn import ExactSums, as_floats
from fluxentropy.scoreexpression import Expression, result_name
from fluxentropy.scorejoin import JOINED, check_alike, join_scores
from fluxentropy.split import SCAN_ROWS, ScoredFile
from fluxentropy.store import atomic_path
from fluxentropy.tablefiles import reading, table_files
from fluxentropy.yamlfile import did_you_mean

Standards = Mapping[str, tuple[float, float]]  # expression within z(...) -> its mean and standard deviation
Run = Callable[[Any, Sequence[Any], str, Callable[[Any], int]], list[Any]]  # a job, its units, their name, their size

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Derived:
    """A name of `--by` that is no column of the input; `expression` is None for a column of another run.

    `column` is its name in what is written.
    """

    name: str
    column: str
    expression: Expression | None = None


def find_derived(by: Sequence[str], names: Sequence[str], source: str, other: str | None) -> dict[str, Derived]:
    """Those of `by` that are no columns of `source`, whose columns are `names`; `other` is the run of `--scores`.

    Errors: UsageError for what is neither a column, here or there, nor an expression of columns, and for values per
    token of a run that was made otherwise.
    """
    there = _names(other) if other else []
    found: dict[str, Derived] = {}
    for name in by:
        if name in names:
            continue
        expression = None if _is_joined(name, there) else _expression(name)
        if expression is None or not (other or {*expression.columns} & {*names}):
            if other is None:
                raise UsageError(f"--by {name}: no such column in {source}{_near(name, names)}")
            found[name] = Derived(name=name, column=name)  # `join_scores` says if it is not there
            continue
        for column in expression.columns:
            if column not in names and not _is_joined(column, there):
                where = f"{source} or {other}" if other else source
                hint = "" if other or not column.endswith(JOINED) else "; name the other run with --scores"
                raise UsageError(f"--by {name}: no such column: {column} in {where}{hint or _near(column, names)}")
        if other and {*expression.columns} <= {*names}:
            raise UsageError(
                f"--scores {other}: {source} has all of {', '.join(expression.columns)} itself, so nothing is joined; "
                f"write NAME{JOINED} for a column of {other}"
            )
        taken = [*names, *(item.column for item in found.values())]
        found[name] = Derived(name=name, column=_free(result_name(name), taken), expression=expression)
    if other is not None:
        check_alike(source, other, _joined(found.values(), names), there)
    return found


def derive_columns(
    files: Sequence[ScoredFile],
    derived: Sequence[Derived],
    *,
    names: Sequence[str],
    other: str | None,
    folder: Path,
    run: Run,
    standards: Standards | None = None,
) -> tuple[list[ScoredFile], Standards]:
    """`files` with the values of `derived` beside them, under their `name`; and the standards of z(...) in them.

    `names` are the columns of the input. `run` runs a job over units. `standards` of another corpus are used where
    they are given. What is in `folder` already is kept.

    Errors: UsageError for columns that hold no numbers, and for z of values that are all the same.
    """
    expressions = [item.expression for item in derived if item.expression]
    joined = _joined(derived, names)
    found = list(files)
    if joined:
        found = join_scores(found, str(other), joined, folder / "joined")
    if not expressions:
        return found, {}
    inner = tuple(dict.fromkeys(text for expression in expressions for text in expression.standardised))
    if standards is None:
        standards = {}
        if inner:
            parts = run(Sums(texts=inner, joined=joined), found, "rows read", lambda part: part[0])
            sums = reduce(add, (np.array(part[1], object) for part in parts))
            standards = {text: _standard(text, column) for text, column in zip(inner, sums, strict=True)}
    elif missing := sorted({*inner} - {*standards}):
        raise UsageError(f"the edges that are given say no mean and deviation of z({missing[0]}): cut afresh")
    (folder / "derived").mkdir(parents=True, exist_ok=True)
    job = Derive(derived=tuple(derived), joined=joined, standards=dict(standards), folder=folder / "derived")
    lost = sum(part[1] for part in run(job, found, "rows derived", lambda part: part[0]))
    if lost:
        log.warning(f"{lost:,} rows have all columns of the expression, but no finite result: they have no score")
    return [dataclasses.replace(file, scores=job.path(file)) for file in found], standards


def numbered(paths: Sequence[Path], row_bytes: int) -> list[ScoredFile]:
    """The files of an input, with the number of the first row of each among all rows."""
    found, start = [], 0
    for number, path in enumerate(paths):
        rows = pq.read_metadata(path).num_rows
        found.append(ScoredFile(number=number, path=path, start=start, rows=rows, row_bytes=row_bytes))
        start += rows
    return found


@dataclass(frozen=True, kw_only=True)
class Sums:
    """The job that sums up the values of the expressions `texts` in one file: its rows, and exact sums of each."""

    texts: tuple[str, ...]
    joined: tuple[str, ...]

    def __call__(self, file: ScoredFile) -> tuple[int, list[ExactSums]]:
        expressions = [Expression.parse(text) for text in self.texts]
        sums = [ExactSums() for _ in expressions]
        for columns in _columns(file, expressions, self.joined):
            for place, expression in enumerate(expressions):
                values = expression.evaluate(columns, {})
                sums[place] += ExactSums.of(values[~np.isnan(values)])
        return file.rows, sums


@dataclass(frozen=True, kw_only=True)
class Derive:
    """The job that writes the values beside one file: its rows, and how many have all columns but no finite result."""

    derived: tuple[Derived, ...]
    joined: tuple[str, ...]
    standards: dict[str, tuple[float, float]]
    folder: Path

    def path(self, file: ScoredFile) -> Path:
        return self.folder / f"part-{file.number:05d}.arrow"

    def __call__(self, file: ScoredFile) -> tuple[int, int]:
        schema = pa.schema([(item.name, pa.float64()) for item in self.derived])
        expressions = [item.expression or Expression.parse(f"`{item.name}`") for item in self.derived]
        lost = 0
        with atomic_path(self.path(file)) as aside, pa.ipc.new_file(str(aside), schema) as writer:
            for columns in _columns(file, expressions, self.joined):
                arrays = []
                for expression in expressions:
                    values = expression.evaluate(columns, self.standards)
                    arrays.append(pa.array(values, from_pandas=True))  # NaN becomes null
                    there = ~np.isnan([columns[name] for name in expression.columns]).any(axis=0)
                    lost += int((there & np.isnan(values)).sum())
                writer.write_batch(pa.record_batch(arrays, schema=schema))
        return file.rows, lost


def _columns(
    file: ScoredFile, expressions: Sequence[Expression], joined: Sequence[str]
) -> Iterator[dict[str, np.ndarray]]:
    """The columns that the expressions need, as float64 by name, some rows at a time."""
    needed = dict.fromkeys(name for expression in expressions for name in expression.columns)
    own = [name for name in needed if name not in joined]
    at = 0
    for table in file.batches(SCAN_ROWS, own, [name for name in needed if name in joined]):
        try:
            yield {name: as_floats(table[name], name) for name in needed}
        except UsageError as error:
            raise UsageError(f"{file}, rows {at:,} to {at + len(table):,}: {error}") from error
        at += len(table)


def _standard(text: str, sums: ExactSums) -> tuple[float, float]:
    if not sums.count or sums.std == 0:
        what = "no row has a value" if not sums.count else "all values are the same"
        raise UsageError(f"z({text}): {what}, so there is no standard deviation to divide by")
    return sums.mean, sums.std


def _expression(name: str) -> Expression | None:
    """The expression that `name` is; None for a plain name, or for what cannot be read and looks like one."""
    score = REGISTRY.get(name)
    if score and score.expression:
        return Expression.parse(score.expression)
    try:
        found = Expression.parse(name)
    except UsageError:
        if any(sign in name for sign in "()*/+`"):
            raise
        return None
    return None if found.is_column else found


def _joined(derived: Iterable[Derived], names: Sequence[str]) -> tuple[str, ...]:
    """The columns of the other run that are needed, each once."""
    asked = [name for item in derived for name in (item.expression.columns if item.expression else (item.name,))]
    return tuple(dict.fromkeys(name for name in asked if name not in names))


def _names(run: str) -> list[str]:
    first = table_files(run)[0]
    with reading(first):
        return list(pq.read_schema(first).names)


def _is_joined(name: str, there: Sequence[str]) -> bool:
    return name in there or (name.endswith(JOINED) and name.removesuffix(JOINED) in there)


def _near(name: str, names: Sequence[str]) -> str:
    near = did_you_mean(name, names)
    return near if ": use one of" in near else f"{near}; the columns are {', '.join(names)}"


def _free(name: str, taken: Sequence[str]) -> str:
    number, found = 1, name
    while found in taken or found == "bin":
        number += 1
        found = f"{name}_{number}"
    return found
