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
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

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
