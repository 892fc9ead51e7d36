"""The engines: the same results in the same order, and failures that say where."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from fluxentropy.engine import Engine, Local, Processes, Ray, make_engine
from fluxentropy.errors import RunError, UsageError

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
ENGINES = [Local(), Processes(2), pytest.param(Ray(), marks=needs_ray)]


@pytest.fixture(scope="module", autouse=True)
def ray_workers_find_this_module() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]))
        yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@dataclass(frozen=True)
class Unit:
    number: int

    def __str__(self) -> str:
        return f"unit {self.number}"


def slow_first(unit: Unit) -> tuple[int, int]:
    time.sleep(0.3 if unit.number == 0 else 0)
    return unit.number, unit.number**2


def refuse(unit: Unit) -> int:
    if unit.number == 2:
        raise UsageError("value 2 in row 7: use another")
    return unit.number


def die(unit: Unit) -> int:
    if unit.number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.5)
    return unit.number


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_results_come_in_the_order_of_the_units(engine: Engine) -> None:
    units = [Unit(number) for number in range(7)]
    assert list(engine.run(slow_first, units)) == [(number, number**2) for number in range(7)]
    assert list(engine.run(slow_first, [])) == []


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_errors_of_a_job_reach_the_caller_as_they_are(engine: Engine) -> None:
    with pytest.raises(UsageError, match=r"^value 2 in row 7: use another$"):
        list(engine.run(refuse, [Unit(number) for number in range(5)]))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("engine", ENGINES[1:], ids=str)
def test_a_killed_worker_ends_the_run_with_its_units_name(engine: Engine) -> None:
    with pytest.raises(RunError, match=r"unit 1.*goes on from there"):
        list(engine.run(die, [Unit(number) for number in range(6)]))


ORPHANS = """
import sys, time
sys.path.insert(0, {tests!r})
from test_engine import wait_long
from fluxentropy.engine import Processes
if __name__ == "__main__":
    list(Processes(2).run(wait_long, [{folder!r} + "/a", {folder!r} + "/b"]))
"""


def wait_long(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


@pytest.fixture
def two_busy_workers(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A process with two workers that would sleep for long, and the workers' ids."""
    script = tmp_path / "main.py"
    script.write_text(ORPHANS.format(tests=str(Path(__file__).parent), folder=str(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE)
    files = [tmp_path / "a", tmp_path / "b"]
    until = time.monotonic() + 60
    while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < until:
        time.sleep(0.02)
    workers = [int(file.read_text()) for file in files]
    yield process, workers
    for number in [process.pid, *workers]:
        if alive(number):
            os.kill(number, signal.SIGKILL)
    process.communicate()


def test_workers_end_with_the_process_that_started_them(
    two_busy_workers: tuple[subprocess.Popen[bytes], list[int]],
) -> None:
    process, workers = two_busy_workers
    assert all(map(alive, workers))
    process.kill()
    process.wait()
    until = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(alive, workers))


def test_an_interrupt_ends_the_workers_without_a_word(
    two_busy_workers: tuple[subprocess.Popen[bytes], list[int]],
) -> None:
    process, workers = two_busy_workers
    for number in [process.pid, *workers]:  # what Ctrl-C does
        os.kill(number, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert not any(map(alive, workers))
    assert errors.count(b"KeyboardInterrupt") == 1  # that of the process itself
    assert b"ForkProcess" not in errors and b"SpawnProcess" not in errors


def test_engines_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_engine("local", 1) == Local()
    assert make_engine("local", 3) == Processes(3)
    assert make_engine("ray", 1, "auto") == Ray("auto")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'fluxentropy\[ray\]'"):
        list(Ray().run(refuse, [Unit(0)]))
