"""Progress with a clock of our own."""

from __future__ import annotations

import io
import itertools

import pytest

from fluxentropy.runs.progress import Progress, count, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_log_lines_are_plain_and_rare() -> None:
    clock, stream = Clock(), io.StringIO()
    with Progress(3000, stream=stream, clock=clock) as progress:
        for second in range(1, 26):
            clock.now = 100.0 + second
            progress.update(100, texts=second * 50)
    assert stream.getvalue().splitlines() == [
        " 33% | 1k/3k tok | 100 tok/s | 500 texts | ETA 20 s",
        " 66% | 2k/3k tok | 100 tok/s | 1,000 texts | ETA 10 s",
        "2.5k tok in 25 s | 100 tok/s | 1,250 texts",
    ]
    assert "\r" not in stream.getvalue()


def test_rate_and_eta_follow_the_recent_window() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(10_000, stream=stream, clock=clock, interval=60)
    for second in range(1, 121):  # 10 tok/s in the first minute, 50 tok/s in the second
        clock.now = 100.0 + second
        progress.update(10 if second <= 60 else 50)
    assert stream.getvalue().splitlines() == [
        "  6% | 600/10k tok | 10 tok/s | ETA 15 min 40 s",
        " 36% | 3.6k/10k tok | 50 tok/s | ETA 2 min 08 s",
    ]


def test_unknown_total_shows_the_time_gone() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(None, unit="rows", stream=stream, clock=clock)
    clock.now += 64
    progress.update(128, part="part-00003")
    assert stream.getvalue() == "128 rows | 2 rows/s | part part-00003 | 1 min 04 s\n"


def test_terminal_rewrites_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    clock, stream = Clock(), Terminal()
    progress = Progress(1600, stream=stream, clock=clock)
    for _ in range(160):  # 10 s of updates, 16 a second
        clock.now += 1 / 16
        progress.update(10)
    progress.close()
    text = stream.getvalue()
    assert text.count("\r") == 41  # every 4/16 s, as 3/16 s are less than 0.2 s, and the last
    assert text.index("\n") == len(text) - 1
    shown = text.rstrip("\n").split("\r")[1:]
    assert shown[-1].rstrip() == "1.6k tok in 10 s | 160 tok/s"
    for earlier, later in itertools.pairwise(shown):
        assert len(later) >= len(earlier.rstrip())  # nothing of the earlier line stays visible


def test_terminal_line_never_wraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    clock, stream = Clock(), Terminal()
    progress = Progress(1000, stream=stream, clock=clock)
    clock.now += 1
    progress.update(10, texts=3)
    assert len(stream.getvalue().lstrip("\r")) == 19


def test_close_says_nothing_twice_and_nothing_about_nothing() -> None:
    clock, stream = Clock(), io.StringIO()
    Progress(10, stream=stream, clock=clock).close()
    assert stream.getvalue() == ""
    progress = Progress(10, stream=stream, clock=clock)
    progress.update(10)
    progress.close()
    progress.close()
    assert stream.getvalue() == "10 tok in 0 s\n"


def test_a_closed_stderr_does_not_stop_the_work() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    clock = Clock()
    progress = Progress(10, stream=Broken(), clock=clock, interval=0)
    progress.update(10)
    progress.close()
    assert progress.done == 10


def test_stderr_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(None, interval=0) as progress:
        progress.update(5)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("5 tok | ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59.6, "1 min 00 s"), (3599, "59 min 59 s"), (3840, "1 h 04 min"), (86400, "1 d 00 h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(0, "0"), (999.4, "999"), (999.6, "1k"), (1e6, "1M"), (2.5e9, "2.5G")])
def test_count(number: float, text: str) -> None:
    assert count(number) == text
