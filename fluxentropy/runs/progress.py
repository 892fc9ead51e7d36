"""Progress of a long command on stderr: how much, how fast, how much longer.

    41% | 12.3M/30.0M tok | 152k tok/s | 1,234 texts | ETA 1 min 56 s

On a terminal one line is rewritten in place; elsewhere, such as in a log file, a plain line is added now and then.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Self, TextIO

# --- progress ---------------------------------------------------------------------------------------------------------


RATE_WINDOW = 30.0  # seconds that the shown rate looks back
TERMINAL_INTERVAL, LOG_INTERVAL = 0.2, 10.0  # seconds between two lines, at least


class Progress:
    """Counts `unit`s done out of `total` (None: unknown), and says so from time to time.

    Each update may carry running totals of other things, shown by their names: `update(512, texts=20)`.
    `interval` is the number of seconds between two lines; by default 0.2 on a terminal and 10 elsewhere.
    """

    def __init__(
        self,
        total: int | None,
        *,
        unit: str = "tok",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        interval: float | None = None,
    ) -> None:
        self.total = total
        self.unit = unit
        self.done = 0
        self._fields: dict[str, int | str] = {}
        self._stream = stream or sys.stderr
        self._clock = clock
        self._terminal = self._stream.isatty()
        self._interval = interval if interval is not None else TERMINAL_INTERVAL if self._terminal else LOG_INTERVAL
        self._started = self._said = clock()
        self._samples = deque([(self._started, 0)])  # (seconds, done) within the rate's window
        self._width = 0  # of the line on the terminal
        self._closed = False

    def update(self, n: int, **fields: int | str) -> None:
        """`n` more are done; `fields` replace earlier ones of the same names."""
        now = self._clock()
        self.done += n
        self._fields |= fields
        self._samples.append((now, self.done))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_WINDOW:
            self._samples.popleft()
        if now - self._said >= self._interval:
            self._said = now
            self._say(self._line(now))

    def close(self) -> None:
        """Say what was done in all, unless nothing was. Later calls do nothing."""
        if self._closed or not self.done:
            return
        self._closed = True
        seconds = self._clock() - self._started
        rate = [f"{count(self.done / seconds)} {self.unit}/s"] if seconds > 0 else []
        self._say(" | ".join([f"{count(self.done)} {self.unit} in {duration(seconds)}", *rate, *self._extras()]))
        if self._terminal:
            self._write("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _line(self, now: float) -> str:
        (then, before), elapsed = self._samples[0], now - self._started
        rate = (self.done - before) / (now - then) if now > then else 0.0
        speed = f"{count(rate)} {self.unit}/s"
        if not self.total:
            return " | ".join([f"{count(self.done)} {self.unit}", speed, *self._extras(), duration(elapsed)])
        share = f"{100 * self.done // self.total:3d}%"
        counted = f"{count(self.done)}/{count(self.total)} {self.unit}"
        left = [f"ETA {duration(max(0, self.total - self.done) / rate)}"] if rate else []
        return " | ".join([share, counted, speed, *self._extras(), *left])

    def _extras(self) -> list[str]:
        return [
            f"{value:,} {name}" if isinstance(value, int) else f"{name} {value}" for name, value in self._fields.items()
        ]

    def _say(self, line: str) -> None:
        if not self._terminal:
            self._write(line + "\n")
            return
        line = line[: shutil.get_terminal_size().columns - 1]  # a wrapped line could not be rewritten
        self._write("\r" + line.ljust(self._width))
        self._width = len(line)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # that nobody reads stderr any more is no reason to stop the work
            self._stream.write(text)
            self._stream.flush()


def duration(seconds: float) -> str:
    """Seconds for people.

    >>> [duration(s) for s in (0.4, 42, 190, 3840, 190800)]
    ['0 s', '42 s', '3 min 10 s', '1 h 04 min', '2 d 05 h']
    """
    whole = round(seconds)
    for size, name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {name} {whole % size // small:02d} {small_name}"
    return f"{whole} s"


def count(number: float) -> str:
    """A number in three digits.

    >>> [count(n) for n in (0.25, 7, 999, 1234, 152_000, 999_999, 12_345_678)]
    ['0.25', '7', '999', '1.23k', '152k', '1M', '12.3M']
    """
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:  # what would be rounded up to it
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


# --- debugging --------------------------------------------------------------------------------------------------------


DEBUG = "FLUXENTROPY_DEBUG"


def debugging() -> bool:
    """Whether the user asked for tracebacks and for what libraries say."""
    return bool(os.environ.get(DEBUG))
