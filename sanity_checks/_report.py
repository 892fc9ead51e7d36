"""What the checks share: a table of expected and found figures, and the exit code."""

from __future__ import annotations

import os
from pathlib import Path

SHARED = Path(os.environ.get("FLUXENTROPY_SHARED", Path(__file__).resolve().parents[2] / "shared"))
PUBLISHED = SHARED / "data" / "zoo" / "published_entropies.csv"


class Report:
    """Prints one line a figure, and remembers whether all of them hold."""

    def __init__(self) -> None:
        self.failed = 0

    def equal(self, what: str, found: float, expected: float, tolerance: float) -> None:
        """`found` must be within `tolerance` of `expected`."""
        self._line(what, f"{found:.4f}", f"{expected:g} ± {tolerance:g}", abs(found - expected) <= tolerance)

    def at_least(self, what: str, found: float, least: float) -> None:
        """`found` must be `least` or more."""
        self._line(what, f"{found:.4f}", f">= {least:.4f}", found >= least)

    def below(self, what: str, found: float, limit: float) -> None:
        """`found` must be below `limit`."""
        self._line(what, f"{found:.4g}", f"< {limit:.4g}", found < limit)

    def holds(self, what: str, found: object, true: bool) -> None:
        """A statement that must be true."""
        self._line(what, str(found), "true", true)

    def _line(self, what: str, found: str, expected: str, right: bool) -> None:
        self.failed += not right  # a NaN is never right
        print(f"{what:72} {found:>12}   {expected}{'' if right else '   WRONG'}")

    def exit_code(self) -> int:
        """Print the verdict; 0 if every figure holds."""
        print(f"{self.failed} wrong" if self.failed else "all hold")
        return 1 if self.failed else 0


def published_table() -> Path:
    """The published table; the program ends where it is not there."""
    if not PUBLISHED.is_file():
        raise SystemExit(f"no published table {PUBLISHED}: set FLUXENTROPY_SHARED to the folder that holds data/zoo")
    return PUBLISHED
