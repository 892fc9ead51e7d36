"""What a command hands back to the command line."""

from __future__ import annotations

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
