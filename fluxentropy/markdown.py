"""Numbers and tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a head; bars in cells are escaped.

    >>> print(table(["a"], [["1"]]))
    | a |
    | --- |
    | 1 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def columns(spec: Mapping[str, Callable[[Any], str]], rows: Iterable[Any]) -> str:
    """A table by what each column's head and cell of a row are.

    >>> print(columns({"n": str, "squared": lambda n: str(n**2)}, [3]))
    | n | squared |
    | --- | --- |
    | 3 | 9 |
    """
    return table(list(spec), [[cell(row) for cell in spec.values()] for row in rows])


def by_holm(one: Mapping[str, Any]) -> str:
    """The p-value of a comparison's verdict in brackets, with its seeds; nothing where there is none."""
    if one["p_holm"] is None:
        return ""
    tests, p = ("two one-sided tests, ", one["p_equal_holm"]) if one["verdict"] == "equal" else ("", one["p_holm"])
    return f" ({tests}p = {p:.2g} by Holm, {len(one['seeds'])} seeds)"


def number(value: float | None, style: str) -> str:
    """A number, or a dash.

    >>> number(0.1234, ".2f"), number(None, ".2f")
    ('0.12', '-')
    """
    return "-" if value is None else format(value, style)


def interval(low: float | None, high: float | None, style: str = "+.2f") -> str:
    """Two limits, or a dash where one is unknown."""
    return "-" if low is None or high is None else f"[{low:{style}}, {high:{style}}]"


def with_interval(value: float | None, limits: tuple[float | None, float | None] | None, style: str = ".2f") -> str:
    """A number with its limits, or a dash.

    >>> with_interval(1.5, (1.0, 2.0)), with_interval(None, None)
    ('1.50 [1.00, 2.00]', '-')
    """
    return "-" if value is None or limits is None else f"{value:{style}} {interval(limits[0], limits[1], style)}"


def count(number: int) -> str:
    """A large number in millions.

    >>> count(1_250_000), count(4000)
    ('1.2 M', '4,000')
    """
    return f"{number / 1e6:.2g} M" if number >= 1e6 else f"{number:,}"
