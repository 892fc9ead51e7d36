"""What a command hands back to the command line."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a command: `lines` for a person on stdout, `data` as the one JSON object of `--json`.

    The library never prints; `cli.py` does, and exits with `exit_code`.
    """

    lines: Sequence[str]
    data: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int = 0


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a table for a notebook: everything escaped, floats to four digits, at most 60 rows.

    >>> html_table([{"a": 0.123456, "b": None}])
    '<table><tr><th>a</th><th>b</th></tr><tr><td>0.1235</td><td></td></tr></table>'
    """

    def cell(value: Any) -> str:
        shown = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        return f"<td>{html.escape(shown if len(shown) <= 200 else shown[:199] + '…')}</td>"

    names = list(dict.fromkeys(name for row in rows[:60] for name in row))
    lines = ["".join(cell(row.get(name)) for name in names) for row in rows[:60]]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in names)
    more = f"<p>and {len(rows) - 60:,} more</p>" if len(rows) > 60 else ""
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in [head, *lines]) + "</table>" + more
