"""The engines: the same results in the same order, and failures that say where."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxentropy.errors import RunError, UsageError
from fluxentropy.runs.engine import (
    WORKER,
    Engine,
    Local,
    Processes,
    Ray,
    cut_parts,
    default_threads,
    make_engine,
    one_thread_each,
    prefetch,
    usable_cores,
)

ENGINES = [Local(), Local(threads=2), Processes(2)]  # Ray is asked the same things in a process of its own, see below


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
def test_a_killed_worker_ends_the_run_with_its_units_name() -> None:
    with pytest.raises(RunError, match=r"unit 1.*give the same command again"):
        list(Processes(2).run(die, [Unit(number) for number in range(6)]))


class Loader:
    """A job that loads something, and says how often it did: what it has loaded does not travel."""

    def __init__(self) -> None:
        self.loaded = 0

    def __getstate__(self) -> dict[str, int]:
        return {"loaded": 0}

    def __call__(self, unit: int) -> tuple[int, int]:
        if not self.loaded:
            time.sleep(0.2)
            self.loaded = 1
        else:
            self.loaded += 1
        return os.getpid(), self.loaded


@pytest.mark.parametrize("engine", [Local(), Processes(2)], ids=str)
def test_a_worker_keeps_its_job(engine: Engine) -> None:
    job = Loader()
    found = [*engine.run(job, range(4)), *engine.run(job, range(6))]
    assert sorted(found) == [
        (worker, n) for worker in sorted(dict(found)) for n in range(1, dict(sorted(found))[worker] + 1)
    ]
    assert len(dict(found)) <= 2


def test_units_are_drawn_as_they_are_needed() -> None:
    drawn = []

    def units() -> Iterator[Unit]:
        for number in range(1, 101):
            drawn.append(number)
            yield Unit(number)

    results = Processes(2).run(slow_first, units())
    assert next(results) == (1, 1)
    assert len(drawn) < 100
    results.close()  # type: ignore[attr-defined]


def test_workers_know_their_number_and_have_their_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = set(Processes(2).run(number_of_worker, range(8)))
    cores = str(max((os.cpu_count() or 1) // 2, 1))
    assert found and found <= {("0", cores), ("1", cores)}


def number_of_worker(_: int) -> tuple[str, str]:
    time.sleep(0.05)
    return os.environ[WORKER], os.environ["OMP_NUM_THREADS"]


RAY = """
import json, sys
from tests.runs.test_engine import Loader, Unit, die, refuse, slow_first
from fluxentropy.runs.engine import Ray
from fluxentropy.errors import FluxentropyError

engine, job, found = Ray(workers=2), Loader(), {}
found["order"] = list(engine.run(slow_first, [Unit(number) for number in range(7)]))
found["kept"] = [*engine.run(job, range(3)), *engine.run(job, range(2))]
found["actors"] = len(engine.actors)
for name, function in (("refused", refuse), ("killed", die)):
    try:
        list(engine.run(function, [Unit(number) for number in range(5)]))
    except FluxentropyError as error:
        found[name] = [type(error).__name__, str(error)]
found["after"] = list(engine.run(slow_first, [Unit(3)]))
try:
    list(Ray(gpus=0.5).run(slow_first, [Unit(3)]))
except FluxentropyError as error:
    found["no GPU"] = str(error)
json.dump(found, sys.stdout)
"""


def test_ray() -> None:
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    child = subprocess.run(
        [sys.executable, "-c", RAY],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout.splitlines()[-1])  # Ray prints too
    assert found["order"] == [[number, number**2] for number in range(7)]
    assert found["actors"] == max(1, min(2, (os.cpu_count() or 1) - 1))  # a core stays free
    workers = {worker for worker, _ in found["kept"]}
    assert len(workers) <= 2 and max(n for _, n in found["kept"]) >= 5 / len(workers)  # loaded once, then kept
    assert found["refused"] == ["UsageError", "value 2 in row 7: use another"]
    assert found["killed"][0] == "RunError"
    assert found["killed"][1].startswith("Ray lost unit 1 (") and "give the same command again" in found["killed"][1]
    assert found["after"] == [[3, 9]]
    assert found["no GPU"].startswith("--gpus-per-worker 0.5: the Ray cluster has 0 GPUs")


ORPHANS = """
import sys, time
sys.path.insert(0, {tests!r})
from tests.runs.test_engine import wait_long
from fluxentropy.runs.engine import Processes
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
    script.write_text(ORPHANS.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path)))
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
        with contextlib.suppress(ProcessLookupError):  # the process ends its workers
            os.kill(number, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert not any(map(alive, workers))
    assert errors.count(b"KeyboardInterrupt") == 1  # that of the process itself
    assert b"ForkProcess" not in errors and b"SpawnProcess" not in errors


def test_a_process_that_is_told_to_stop_does_not_wait_for_its_workers(
    two_busy_workers: tuple[subprocess.Popen[bytes], list[int]],
) -> None:
    process, workers = two_busy_workers
    process.send_signal(signal.SIGINT)  # to it alone, as a supervisor does
    process.communicate(timeout=30)
    assert not any(map(alive, workers))


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert usable_cores() == 2


def test_engines_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_engine("local", 1) == Local()
    assert make_engine("local", 3) == Processes(3)
    assert make_engine("ray", 1, "auto") == Ray("auto")
    assert make_engine("ray", 4, None, 0.5) == Ray(None, 4, 0.5)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'fluxentropy\[ray\]'"):
        list(Ray().run(refuse, [Unit(0)]))


@pytest.mark.timeout(60)
def test_threads_work_at_the_same_time_on_few_units_ahead() -> None:
    both, drawn = threading.Barrier(2), []

    def units() -> Iterator[int]:
        for number in range(100):
            drawn.append(number)
            yield number

    def meet(number: int) -> int:
        both.wait(timeout=30)  # breaks where no other thread is at work
        return number

    results = Local(threads=2).run(meet, units())
    assert [next(results) for _ in range(4)] == [0, 1, 2, 3]
    assert len(drawn) <= 8
    assert list(results) == list(range(4, 100))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("told", [KeyboardInterrupt, GeneratorExit])
def test_threads_that_nobody_waits_for_end_before_their_next_item(told: type[BaseException]) -> None:
    begun, ended = threading.Event(), []

    def endless(number: int) -> int:
        if number == 1:
            return number
        try:
            for item in prefetch(itertools.count()):
                if item == 10:
                    begun.set()
        finally:
            ended.append(number)
        return number

    def units() -> Iterator[int]:
        yield 0
        begun.wait(timeout=30)
        raise told

    with pytest.raises(told):
        list(Local(threads=2).run(endless, units()))
    assert ended == [0]
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


# --- Parts do not depend on batches, and prefetching changes nothing but time ---


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 40), st.integers(1, 120), st.integers(1, 17))
def test_parts_do_not_depend_on_batches_and_close_when_full(lengths: list[int], cap: int, part: int, rows: int) -> None:
    table = pa.table(
        {"text": pa.array(["x" * n for n in lengths], pa.string()), "n": pa.array(range(len(lengths)), pa.int64())}
    )
    whole = [part["n"].to_pylist() for part in cut_parts(table.to_batches(), "text", part, cap)]
    small = [part["n"].to_pylist() for part in cut_parts(table.to_batches(max_chunksize=rows), "text", part, cap)]
    assert whole == small
    assert [n for ns in whole for n in ns] == list(range(len(lengths)))
    size = [sum(min(lengths[n], cap) for n in ns) for ns in whole]
    assert all(total >= part for total in size[:-1])
    assert all(total - min(lengths[ns[-1]], cap) < part for total, ns in zip(size, whole, strict=True))


def test_a_part_starts_anew_at_any_part_border() -> None:
    table = pa.table({"text": ["x" * (n % 7) for n in range(100)]})
    parts = list(cut_parts(table.to_batches(max_chunksize=9), "text", 20, None))
    done = sum(len(part) for part in parts[:3])
    rest = list(cut_parts(table.slice(done).to_batches(max_chunksize=9), "text", 20, None))
    assert [part.to_pylist() for part in rest] == [part.to_pylist() for part in parts[3:]]


def test_prefetch_keeps_order_hands_on_errors_and_stops_early() -> None:
    assert list(prefetch(range(100))) == list(range(100))

    def broken() -> Any:
        yield 1
        raise OSError("disk gone")

    items = prefetch(broken())
    assert next(items) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(items)
    made = []
    for item in prefetch(made.append(n) or n for n in range(1000)):
        if item == 3:
            break
    assert len(made) < 10


# --- cores and threads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "150000 100000"}, 2),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "50000 100000"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000"}, 8),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/job\n3:memory:/job\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/job\n",
                "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
            },
            8,
        ),
        ({}, 8),
    ],
)
def test_cores_are_limited_by_control_groups(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert usable_cores(tmp_path) == cores


def test_threads_are_as_many_as_openmp_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    for asked, threads in (("3", 3), ("9", 4), ("2,1", 2), ("0", 4), ("many", 4), ("", 4)):
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
        assert default_threads() == threads


def test_threads_that_compute_alone_give_results_in_order() -> None:
    import torch

    before, seen = torch.get_num_threads(), set()

    def work(number: int) -> tuple[int, int]:
        seen.add(threading.get_ident())
        time.sleep(0.002 * (7 - number))
        return number, torch.get_num_threads()

    assert list(one_thread_each(work, range(8), 3)) == [(number, 1) for number in range(8)]
    assert len(seen) == 3
    assert torch.get_num_threads() == before


def test_a_thread_that_fails_ends_the_others() -> None:
    done: list[int] = []

    def work(number: int) -> int:
        if number == 2:
            raise ValueError("number 2")
        time.sleep(0.01)
        done.append(number)
        return number

    with pytest.raises(ValueError, match="number 2"):
        list(one_thread_each(work, range(100), 2))
    assert len(done) < 20
