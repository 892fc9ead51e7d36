"""Scores made of other scores: arithmetic over the columns of a run.

    sum     := product (("+" | "-") product)*
    product := factor (("*" | "/") factor)*
    factor  := "-" factor | number | column | `any column` | function "(" sum ")" | "(" sum ")"

The functions are abs, exp, log (natural), sqrt and z. z(x) is (x - mean) / standard deviation of x over all rows that
have a value; these two numbers, its standards, come from elsewhere, so a row's value needs that row alone.

Everything is float64, and a row's value has the same bits wherever in a table it stands: exp and log are Python's, as
NumPy's differ between machines. NaN stands for no value: a row without a value in some column has none, and nor has
one whose result is not finite, such as log(0) or 1/0.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fluxentropy.errors import UsageError
from fluxentropy.yamlfile import did_you_mean

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
OPERATIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
}


@dataclass(frozen=True, kw_only=True)
class Node:
    """A part of an expression: `kind` number, column, one of FUNCTIONS or OPERATIONS, or z. `text` is its source."""

    kind: str
    text: str
    parts: tuple[Node, ...] = ()
    value: float = 0.0  # of a number
    name: str = ""  # of a column

    def walk(self) -> Iterator[Node]:
        yield self
        for part in self.parts:
            yield from part.walk()


@dataclass(frozen=True, kw_only=True)
class Expression:
    """An expression that has been read.

    >>> found = Expression.parse("2*a - z(b)")
    >>> found.columns, found.standardised
    (('a', 'b'), ('b',))
    >>> found.evaluate({"a": np.array([1.0, 2.0]), "b": np.array([5.0, np.nan])}, {"b": (3.0, 4.0)})
    array([1.5, nan])
    """

    text: str
    root: Node

    @classmethod
    def parse(cls, text: str) -> Expression:
        """Errors: UsageError that names the place of what cannot be read."""
        return cls(text=text, root=_Parser(text).whole())

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it needs, each once."""
        return tuple(dict.fromkeys(node.name for node in self.root.walk() if node.kind == "column"))

    @property
    def standardised(self) -> tuple[str, ...]:
        """The expressions within z(...), each once."""
        return tuple(dict.fromkeys(node.parts[0].text for node in self.root.walk() if node.kind == Z))

    @property
    def is_column(self) -> bool:
        return self.root.kind == "column"

    def evaluate(self, columns: Mapping[str, np.ndarray], standards: Mapping[str, tuple[float, float]]) -> np.ndarray:
        """The value of each row, float64 (n,), NaN where there is none.

        `columns` are float64 (n,), `standards` the mean and the standard deviation of each of `standardised`.
        """
        size = len(next(iter(columns.values())))
        with np.errstate(all="ignore"):
            found = np.array(_evaluate(self.root, columns, standards, size))
        found[~np.isfinite(found)] = np.nan
        return found


def result_name(text: str) -> str:
    """A name of plain words for the column that holds the values of the expression `text`.

    >>> result_name("z(entropy_mean) - 0.5*minkpp"), result_name("`a b`/2")
    ('z_entropy_mean_minus_0_5_times_minkpp', 'a_b_over_2')
    """
    words = [WORDS.get(match["sign"] or "", match[0]) for match in TOKEN.finditer(text)]
    name = re.sub(r"\W+", "_", " ".join(words)).strip("_") or "score"
    name = name if not name[0].isdigit() else f"score_{name}"
    return name[:MAX_NAME].rstrip("_")


def _evaluate(
    node: Node, columns: Mapping[str, np.ndarray], standards: Mapping[str, tuple[float, float]], size: int
) -> np.ndarray:
    parts = [_evaluate(part, columns, standards, size) for part in node.parts]
    if node.kind == "number":
        return np.full(size, node.value)
    if node.kind == "column":
        return columns[node.name]
    if node.kind == Z:
        mean, deviation = standards[node.parts[0].text]
        return (parts[0] - mean) / deviation
    return FUNCTIONS[node.kind](parts[0]) if node.kind in FUNCTIONS else OPERATIONS[node.kind](parts[0], parts[1])


class _Parser:
    """Reads an expression by the grammar above, by recursive descent."""

    def __init__(self, text: str) -> None:
        self.text = text.rstrip()
        self.at = 0  # the first letter not yet read
        self.depth = 0
        if len(text) > MAX_LETTERS:
            raise UsageError(f"an expression of {len(text):,} letters: at most {MAX_LETTERS:,} are read")

    def whole(self) -> Node:
        found = self._sum()
        if self.at < len(self.text):
            raise self._missing("an operator + - * / or the end")
        return found

    def _sum(self) -> Node:
        return self._chain(("+", "-"), lambda: self._chain(("*", "/"), self._factor))

    def _chain(self, signs: tuple[str, ...], operand: Callable[[], Node]) -> Node:
        """Operands joined by `signs`, from the left."""
        start, found = self.at, operand()
        while (sign := self._peek("sign")) in signs:
            self._next()
            found = self._node(str(sign), start, found, operand())
        return found

    def _factor(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise UsageError(f"{self.text}: more than {MAX_DEPTH} parentheses and signs within each other")
        found = self._operand()
        self.depth -= 1
        return found

    def _operand(self) -> Node:
        start, match = self.at, self._next()
        if match is None:
            raise self._missing("a number, a column or (")
        source = match[0].strip()
        if match["number"]:
            return Node(kind="number", text=source, value=float(source))
        if match["name"] and self._peek("sign") == "(":
            return self._call(source, start)
        if match["name"] or match["quoted"]:
            return Node(kind="column", text=source, name=match["name"] or match["quoted"])
        if source == "-":
            return self._node("-", start, Node(kind="number", text="", value=-0.0), self._factor())
        if source == "(":
            found = self._sum()
            self._close()
            return found
        self.at = start
        raise self._missing("a number, a column or (")

    def _call(self, name: str, start: int) -> Node:
        if name != Z and name not in FUNCTIONS:
            raise UsageError(f"{self.text}: no such function: {name}{did_you_mean(name, (*FUNCTIONS, Z))}")
        self._next()
        inside = self._sum()
        self._close()
        if name == Z and any(node.kind == Z for node in inside.walk()):
            raise UsageError(f"{self.text}: z inside of z says nothing more: leave one out")
        return self._node(name, start, inside)

    def _node(self, kind: str, start: int, *parts: Node) -> Node:
        return Node(kind=kind, text=self.text[start : self.at].strip(), parts=parts)

    def _close(self) -> None:
        if self._peek("sign") != ")":
            raise self._missing(")")
        self._next()

    def _peek(self, group: str) -> str | None:
        match = TOKEN.match(self.text, self.at)
        return match[group] if match else None

    def _next(self) -> re.Match[str] | None:
        match = TOKEN.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return match

    def _missing(self, wanted: str) -> UsageError:
        rest = self.text[self.at :].strip()
        where = f"before {rest!r}" if rest else "at its end"
        return UsageError(f"{self.text}: {wanted} is missing {where}")
