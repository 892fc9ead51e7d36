"""Scores made of other scores: arithmetic over the columns of a run.

    z(entropy_mean) - 0.5*minkpp        `a column with spaces`/2        log(n_tokens)

Numbers and columns are joined by + - * / and parentheses, as in Python, whose parser reads them. The functions are abs,
exp, log (natural), sqrt and z. z(x) is (x - mean) / standard deviation of x over all rows that have a value; these two
numbers, its standards, come from elsewhere, so a row's value needs that row alone.

Everything is float64, and a row's value has the same bits wherever in a table it stands: exp and log are Python's, as
NumPy's differ between machines. NaN stands for no value: a row without a value in some column has none, and nor has
one whose result is not finite, such as log(0) or 1/0.
"""

from __future__ import annotations

import ast
import dataclasses
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fluxentropy.config.yaml import did_you_mean
from fluxentropy.errors import RunError, UsageError
from fluxentropy.ordering.quantiles import ExactSums, as_floats
from fluxentropy.ordering.split import SCAN_ROWS, ScoredFile
from fluxentropy.runs.directory import RunRecord
from fluxentropy.runs.files import atomic_path
from fluxentropy.runs.tables import reading, table_files
from fluxentropy.scoring.scores import PER_TOKEN, REGISTRY

# --- expressions ------------------------------------------------------------------------------------------------------


TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[^\W\d]\w*)|`(?P<quoted>[^`]+)`|(?P<sign>[-+*/()]))"
)

MAX_LETTERS = 500  # of an expression, and so of its tree's depth
MAX_DEPTH = 20  # of parentheses, functions and signs within each other
WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "over", "(": "", ")": ""}
MAX_NAME = 60  # letters of the name of a result
Z = "z"


def _one_by_one(function: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    """`function` of each value of an array, NaN where it has no value there."""

    def value(x: float) -> float:
        try:
            return function(x)
        except (ValueError, OverflowError):
            return math.nan

    return lambda values: np.array([value(x) for x in values.tolist()], np.float64)


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "abs": np.abs,
    "exp": _one_by_one(math.exp),
    "log": _one_by_one(math.log),
    "sqrt": np.sqrt,
}

OPERATIONS: dict[type[ast.operator], Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
}


@dataclass(frozen=True, kw_only=True)
class Expression:
    """An expression that has been read. `tree` is Python's, of the text with an x for each letter of a word.

    >>> found = Expression.parse("2*a - z(b)")
    >>> found.columns, found.standardised
    (('a', 'b'), ('b',))
    >>> found.evaluate({"a": np.array([1.0, 2.0]), "b": np.array([5.0, np.nan])}, {"b": (3.0, 4.0)})
    array([1.5, nan])
    """

    text: str
    columns: tuple[str, ...]  # that it needs, each once
    tree: ast.expr = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Errors: UsageError that names the place of what cannot be read."""
        code, columns = _read(text)
        found = cls(text=text, columns=columns, tree=ast.parse(f"({code})", mode="eval").body)
        if any(Z in map(found._called, ast.walk(call.args[0])) for call in found._standards()):
            raise UsageError(f"{text.rstrip()}: z inside of z says nothing more: leave one out")
        return found

    @property
    def standardised(self) -> tuple[str, ...]:
        """The expressions within z(...), each once."""
        return tuple(dict.fromkeys(self._source(call.args[0]) for call in self._standards()))

    @property
    def is_column(self) -> bool:
        return isinstance(self.tree, ast.Name) and bool(self.columns)

    def evaluate(self, columns: Mapping[str, np.ndarray], standards: Mapping[str, tuple[float, float]]) -> np.ndarray:
        """The value of each row, float64 (n,), NaN where there is none.

        `columns` are float64 (n,), `standards` the mean and the standard deviation of each of `standardised`.
        """
        size = len(next(iter(columns.values())))

        def value(node: ast.expr) -> np.ndarray:
            match node:
                case ast.BinOp():
                    return OPERATIONS[type(node.op)](value(node.left), value(node.right))
                case ast.UnaryOp():
                    return np.negative(value(node.operand))
                case ast.Call() if self._called(node) == Z:
                    mean, deviation = standards[self._source(node.args[0])]
                    return (value(node.args[0]) - mean) / deviation
                case ast.Call():
                    return FUNCTIONS[self._called(node)](value(node.args[0]))
            source = self._source(node)
            number = source[0].isdecimal() or source[0] == "."
            return np.full(size, float(source)) if number else columns[source.strip("`")]

        with np.errstate(all="ignore"):
            found = np.array(value(self.tree))
        found[~np.isfinite(found)] = np.nan
        return found

    def _standards(self) -> list[ast.Call]:
        """The calls of z, in the order of the text."""
        calls = (node for node in ast.walk(self.tree) if isinstance(node, ast.Call) and self._called(node) == Z)
        return sorted(calls, key=lambda call: call.col_offset)

    def _called(self, node: ast.AST) -> str:
        """The function that `node` calls, if it does."""
        return self._source(node.func) if isinstance(node, ast.Call) else ""

    def _source(self, node: ast.expr) -> str:
        return self.text[node.col_offset - 1 : (node.end_col_offset or 0) - 1]


def result_name(text: str) -> str:
    """A name of plain words for the column that holds the values of the expression `text`.

    >>> result_name("z(entropy_mean) - 0.5*minkpp"), result_name("`a b`/2")
    ('z_entropy_mean_minus_0_5_times_minkpp', 'a_b_over_2')
    """
    words = [WORDS.get(match["sign"] or "", match[0]) for match in TOKEN.finditer(text)]
    name = re.sub(r"\W+", "_", " ".join(words)).strip("_") or "score"
    name = name if not name[0].isdigit() else f"score_{name}"
    return name[:MAX_NAME].rstrip("_")


def _read(text: str) -> tuple[str, tuple[str, ...]]:
    """`text` as Python, as long as it is and with an x for each letter of a number or a name; and its columns.

    >>> _read("2*`a b` - log(c)")
    ('x*xxxxx - xxx(x)', ('a b', 'c'))
    """
    if len(text) > MAX_LETTERS:
        raise UsageError(f"an expression of {len(text):,} letters: at most {MAX_LETTERS:,} are read")
    text = text.rstrip()
    code, columns, within, operand, at = "", dict[str, None](), [], True, 0  # `operand`: one comes next
    while match := TOKEN.match(text, at):
        sign, name = match["sign"], match["name"]
        if operand and sign and sign in "-(":
            within.append(sign)
        elif operand and name and text[match.end() :].lstrip()[:1] == "(":
            if name != Z and name not in FUNCTIONS:
                raise UsageError(f"{text}: no such function: {name}{did_you_mean(name, (*FUNCTIONS, Z))}")
        elif operand and not sign:
            operand = False
            columns |= {} if match["number"] else {name or match["quoted"]: None}
        elif not operand and sign and sign in "+-*/":
            operand = True
        elif not operand and sign == ")" and within:
            within.pop()
        else:
            break
        while not operand and within[-1:] == ["-"]:  # which end with their operand
            within.pop()
        if len(within) >= MAX_DEPTH:
            raise UsageError(f"{text}: more than {MAX_DEPTH} parentheses and signs within each other")
        token = match[0].lstrip()
        code += " " * (len(match[0]) - len(token)) + (token if sign else "x" * len(token))
        at = match.end()
    rest = text[at:].strip()
    if rest or operand or within:
        wanted = "a number, a column or (" if operand else ")" if within else "an operator + - * / or the end"
        where = f"before {rest!r}" if rest else "at its end"
        raise UsageError(f"{text}: {wanted} is missing {where}")
    return code, tuple(columns)


# --- columns of another run -------------------------------------------------------------------------------------------


MEMORY = "1GB"  # what the join holds; the rest is on disk
JOINED = "_joined"  # what is added to the name of a column that the input has as well
ALIKE = ("tokenizer", "bos_added", "max_tokens", "window", "stride", "text_field")  # what values per token rest on
INSTEAD = "use bits_per_byte, which compares between them, or score both runs alike"


def join_scores(files: Sequence[ScoredFile], run: str, names: Sequence[str], folder: Path) -> list[ScoredFile]:
    """`files` with the columns `names` of `run` beside them, written into `folder`; a text not in it has no score.

    `x_joined` is the column `x` of `run`, where `run` has no column of this very name.

    Errors: UsageError for a column that `run` lacks, or that holds no numbers, and for values per token where a text
    has other tokens or bytes in `run`; RunError where ids of `run` repeat: a text would have two scores.
    """
    other = table_files(run)
    with reading(other[0]):
        there = pq.read_schema(other[0])
    sources = [name if name in there.names else name.removesuffix(JOINED) for name in names]
    for name in ("id", *sources):
        if name not in there.names:
            said = "--scores needs the column id" if name == "id" else f"--by {name}"
            raise UsageError(f"{said}: no such column in {run}{did_you_mean(name, there.names)}")
        kind = there.field(name).type
        if name != "id" and not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
            raise UsageError(f"--by {name}: in {run} its values are of type {kind}, not numbers")
    columns = "".join(f", CAST(b.{_quoted(name)} AS DOUBLE)" for name in sources)
    per_token = _per_token(names, there.names)
    counts = [name for name in ("n_tokens", "n_bytes") if name in there.names and per_token]
    schema = pa.schema([(name, pa.float64()) for name in names])
    folder.mkdir(parents=True, exist_ok=True)
    joined = []
    import duckdb  # a tenth of a second that only joins take

    with duckdb.connect(config={"memory_limit": MEMORY, "temp_directory": str(folder / ".spill")}) as connection:
        connection.execute("CREATE VIEW b AS SELECT * FROM read_parquet([" + ", ".join(map(_text, other)) + "])")
        ((repeated,),) = connection.sql("SELECT count(id) - count(DISTINCT id) FROM b").fetchall()
        if repeated:
            raise RunError(f"{repeated} texts of {run} share an id with another one: their scores cannot be joined")
        for file in files:
            beside = folder / f"part-{file.number:05d}.arrow"
            joined.append(dataclasses.replace(file, scores=beside))
            if beside.exists():
                continue
            here = pq.read_schema(file.path).names
            if "id" not in here:
                raise UsageError(f"--scores joins by id, but {file.path} has no such column")
            both = [name for name in counts if name in here]
            checked = "".join(f", TRY_CAST(a.{name} AS BIGINT), TRY_CAST(b.{name} AS BIGINT), a.id" for name in both)
            table: pa.Table = connection.sql(
                f"SELECT a.file_row_number{columns}{checked} "
                f"FROM read_parquet({_text(file.path)}, file_row_number = true) a "
                f"LEFT JOIN b ON CAST(a.id AS VARCHAR) = CAST(b.id AS VARCHAR)"
            ).to_arrow_table()
            for place, name in enumerate(both):
                _check_counts(table.columns[1 + len(names) + 3 * place :][:3], name, per_token[0], file.path, run)
            ordered = table.take(pc.sort_indices(table.column(0))).select(range(1, 1 + len(names)))
            assert len(ordered) == file.rows
            with atomic_path(beside) as aside, pa.ipc.new_file(str(aside), schema) as writer:
                writer.write_table(ordered.rename_columns(list(names)).cast(schema))
    return joined


def check_alike(source: str, run: str, names: Sequence[str], there: Sequence[str]) -> None:
    """Refuse values per token of `run`, whose columns are `there`, beside rows of `source`, if these were made
    otherwise: with another tokenizer, length, window or text field.

    What is no run directory, or does not say, is not compared here; `join_scores` looks at the numbers of tokens.

    Errors: UsageError that names both runs and how each was made.
    """
    found = _per_token(names, there)
    if not found:
        return
    one, two = _made(source), _made(run)
    for what in ALIKE:
        if what in one and what in two and one[what] != two[what]:
            raise UsageError(
                f"--by {found[0]}: {what} is {_said(one, what)} in {source} and {_said(two, what)} in {run}, and "
                f"values per token do not compare between them: {INSTEAD}"
            )


def _per_token(names: Sequence[str], there: Sequence[str]) -> list[str]:
    """Those of the joined columns `names` that are made of values per token."""
    return [name for name in names if (name if name in there else name.removesuffix(JOINED)) in PER_TOKEN]


def _made(run: str) -> dict[str, Any]:
    """How the scores of a run directory, or of a part of it, were made; nothing for other files."""
    path = Path(run)
    path = path.parent if path.suffix == ".parquet" and not path.is_dir() else path
    path = path.parent if path.name == "scores" else path
    record = RunRecord.read(path)
    identity, policies = record.identity, record.facts.get("policies")
    if not isinstance(policies, dict) or not isinstance(identity, dict):
        return {}
    return policies | {name: identity[name] for name in ("model", "stride", "text_field") if name in identity}


def _said(made: Mapping[str, Any], what: str) -> str:
    """A value in words: a tokenizer by its model and the beginning of its fingerprint."""
    if what != "tokenizer":
        return repr(made[what])
    return f"that of {(made.get('model') or {}).get('name')!r} ({str(made[what])[:15]})"


def _check_counts(columns: Sequence[pa.ChunkedArray], name: str, by: str, path: Path, run: str) -> None:
    """Refuse texts that have another number of tokens, or bytes, here (first column) than there (second)."""
    here, there, ids = columns
    different = pc.fill_null(pc.not_equal(here, there), False)
    if pc.any(different).as_py():
        first = pc.index(different, True).as_py()
        what = "tokens" if name == "n_tokens" else "bytes"
        raise UsageError(
            f"--by {by}: text {ids[first]} has {here[first]} {what} in {path} and {there[first]} in {run}, and "
            f"values per token do not compare between them: {INSTEAD}"
        )


def _quoted(name: str) -> str:
    """`name` as SQL writes a column's name."""
    return '"' + name.replace('"', '""') + '"'


def _text(path: Path) -> str:
    """`path` as a SQL text, in which DuckDB finds no pattern."""
    plain = "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(path))
    return "'" + plain.replace("'", "''") + "'"


# --- derived columns --------------------------------------------------------------------------------------------------
#
#     --by entropy_mean                  a column of the input: nothing to do
#     --by difficulty --scores OTHER     a column of another run, joined by id
#     --by "z(a) - b_joined"             an expression of the one and the other
#     --by learnability                  a score of the registry that is an expression
#
# The values are written into a file beside each file of the input, as `join_scores` does it, and from then on are read
# like any other column. So whatever is exact for a column is exact for an expression.


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
