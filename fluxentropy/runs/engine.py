"""Who does the units of a job: this process, several processes, or a Ray cluster. The result does not depend on it.

A job is a picklable function of one unit. It writes its files whole or not at all and finds them done when it is called
again, so a unit may be repeated anywhere at any time. Each worker keeps its copy of the job from unit to unit: what the
job has loaded, such as a model, stays loaded.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fluxentropy.errors import RunError, UsageError

# --- engines ----------------------------------------------------------------------------------------------------------


U = TypeVar("U")
R = TypeVar("R")
WORKER = "FLUXENTROPY_WORKER"  # in the environment of a worker process: its number, from 0
QUEUED = 2  # units that a worker has, one of them at work: it need not wait for the next
AHEAD = 16  # units a worker that may be drawn before the next result in order is there


class Engine(Protocol):
    """Runs a job over units, which are drawn as they are needed; the results come in the order of the units."""

    def run(self, job: Callable[[U], R], units: Iterable[U]) -> Iterator[R]: ...


@dataclass(frozen=True)
class Local:
    """The units in this process: one after the other, or so many at a time as there are `threads`.

    Threads share the job. They serve jobs that spend their time in Arrow and in files, where Python does not hold them.
    """

    threads: int = 1

    def run(self, job: Callable[[U], R], units: Iterable[U]) -> Iterator[R]:
        return map(job, units) if self.threads == 1 else self._run(job, units)

    def _run(self, job: Callable[[U], R], units: Iterable[U]) -> Iterator[R]:
        given_up = threading.Event()

        def work(unit: U) -> R:
            _unit.given_up = given_up
            return job(unit)

        made: deque[Future[R]] = deque()
        with ThreadPoolExecutor(self.threads) as pool:
            try:
                for unit in units:
                    made.append(pool.submit(work, unit))
                    if len(made) == QUEUED * self.threads:
                        yield made.popleft().result()
                while made:
                    yield made.popleft().result()
            except BaseException:  # nothing may write behind the back of whoever goes on
                given_up.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise


_unit = threading.local()  # `given_up`: whether anyone still waits for what this thread makes


class _Worker:
    """Does units, and keeps the job as long as the same one is asked for."""

    def __init__(self) -> None:
        self.pickled = b""
        self.job: Callable[[Any], Any] | None = None

    def work(self, pickled: bytes, unit: Any) -> Any:
        if self.job is None or pickled != self.pickled:
            self.job, self.pickled = pickle.loads(pickled), pickled
        return self.job(unit)


# --- threads ----------------------------------------------------------------------------------------------------------


def usable_cores(root: Path = Path("/")) -> int:
    """The cores that this process may run on, and no more than its control group lets it use at once.

    `root` is where /proc and /sys are.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min([cores, *map(math.ceil, _quotas(root))]), 1)


def default_threads() -> int:
    """How many threads compute where nobody says so: as `OMP_NUM_THREADS` asks, at most one for each usable core."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return min(usable_cores(), int(asked) if asked.isdigit() and int(asked) else usable_cores())


def _quotas(root: Path) -> Iterator[float]:
    """The cores that the control groups of this process, and those around them, let it use together."""
    with contextlib.suppress(OSError, ValueError):
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        for line in groups:
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            mount = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
            folder = mount / path.strip("/")
            for group in (folder, *folder.parents):
                with contextlib.suppress(OSError, ValueError):
                    if controllers:  # version 1
                        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                    else:
                        quota, period = (group / "cpu.max").read_text().split()
                    if float(quota) > 0:
                        yield float(quota) / float(period)
                if group == mount:
                    break


def one_thread_each(work: Callable[[U], R], items: Iterable[U], threads: int) -> Iterator[R]:
    """`work` of each item, in order, by `threads` threads that compute on a core each.

    No thread waits for another inside an item, as those of a parallel matrix product do: a core that something else
    takes for a while slows its own item down and no other. The results do not depend on the number of threads.
    """

    import torch

    def alone(item: U) -> R:
        torch.set_num_threads(1)
        return work(item)

    before = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads)
    try:
        yield from pool.map(alone, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # threads that are started later ask for the number that was set last


# --- several processes ------------------------------------------------------------------------------------------------


@dataclass
class Processes:
    """`workers` processes. One that is killed ends the run with the names of the units that were being made.

    They start with the first job, serve the next ones too, and end with this object.
    """

    workers: int
    pool: ProcessPoolExecutor | None = field(default=None, compare=False, repr=False)
    count: Any = field(default=None, compare=False, repr=False)  # of the workers, kept for those that start late
    pids: Any = field(default=(), compare=False, repr=False)  # of the workers that have started, else 0

    def run(self, job: Callable[[U], R], units: Iterable[U]) -> Iterator[R]:
        if self.pool is None:
            context = multiprocessing.get_context("spawn")
            threads = max(usable_cores() // self.workers, 1)
            self.count, self.pids = context.Value("i", 0), context.Array("l", self.workers)
            initargs = (self.count, self.pids, threads)
            self.pool = ProcessPoolExecutor(
                self.workers, mp_context=context, initializer=_start_worker, initargs=initargs
            )
        try:
            yield from self._run(self.pool, pickle.dumps(job), units)
        except BaseException as error:  # nothing may write behind the back of whoever goes on
            if not isinstance(error, Exception | GeneratorExit):  # told to stop: units that take hours are not awaited
                for process in filter(None, self.pids):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
            self.pool.shutdown(cancel_futures=True)
            self.pool = None
            raise

    def _run(self, pool: ProcessPoolExecutor, job: bytes, units: Iterable[U]) -> Iterator[Any]:
        busy: dict[Future[Any], tuple[int, U]] = {}  # the first of them are at work
        due = enumerate(units)
        results = _InOrder()
        try:
            while True:
                free = min(QUEUED * self.workers - len(busy), AHEAD * self.workers - len(results.found))
                for number, unit in itertools.islice(due, max(free, 0)):
                    busy[pool.submit(_work, job, unit)] = number, unit
                if not busy:
                    return
                for future in wait(busy, return_when=FIRST_COMPLETED).done:
                    results.add(busy[future][0], future.result())
                    del busy[future]
                yield from results.ready()
        except BrokenProcessPool as error:
            names = ", ".join(str(unit) for _, unit in itertools.islice(busy.values(), self.workers))
            raise RunError(
                f"a worker process was killed, perhaps for lack of memory, while {names} was made: "
                f"give the same command again"
            ) from error
        finally:
            for future in busy:
                future.cancel()


_worker = _Worker()


def _work(pickled: bytes, unit: Any) -> Any:
    return _worker.work(pickled, unit)


def _start_worker(count: Any, pids: Any, threads: int) -> None:
    """A worker ends without a word when the user interrupts the run, and when the process that started it is gone.

    It has its share of the cores, for libraries that compute in threads.
    """
    with count.get_lock():
        os.environ[WORKER] = str(count.value)
        pids[count.value] = os.getpid()
        count.value += 1
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()


class _InOrder:
    """Results that come in any order, given on in theirs."""

    def __init__(self) -> None:
        self.found: dict[int, Any] = {}
        self.next = 0

    def add(self, number: int, result: Any) -> None:
        self.found[number] = result

    def ready(self) -> Iterator[Any]:
        while self.next in self.found:
            yield self.found.pop(self.next)
            self.next += 1


# --- Ray --------------------------------------------------------------------------------------------------------------


@dataclass
class Ray:
    """Actors on a Ray cluster, or on this machine where no `address` is given.

    There are `workers` of them; None means one a core, where one core stays free for Ray itself, or one a share of
    `gpus` of a GPU. They start with the first job, serve the next ones too, and end with this process.
    """

    address: str | None = None
    workers: int | None = None
    gpus: float | None = None
    actors: list[Any] = field(default_factory=list, compare=False, repr=False)

    def run(self, job: Callable[[U], R], units: Iterable[U]) -> Iterator[R]:
        ray = import_ray()
        if not self.actors:
            self.actors = self._start(ray)
        try:
            yield from self._run(ray, ray.put(pickle.dumps(job)), units)
        except BaseException:  # nothing may write behind the back of whoever goes on
            for actor in self.actors:
                ray.kill(actor)
            self.actors = []
            raise

    def _start(self, ray: Any) -> list[Any]:
        if not ray.is_initialized():
            local: dict[str, Any] = {} if self.address else {"num_cpus": os.cpu_count(), "include_dashboard": False}
            try:
                ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", **local)
            except ConnectionError as error:
                said = str(error).splitlines()[0]
                raise UsageError(f"--address {self.address}: no Ray cluster answers ({said})") from error
        worker = ray.remote(num_cpus=1, num_gpus=self.gpus or 0, max_restarts=0)(_Worker)
        return [worker.remote() for _ in range(self._count(ray.cluster_resources()))]

    def _count(self, cluster: dict[str, float]) -> int:
        """How many actors. On this machine no more than it can hold, for the others would wait; a cluster may grow."""
        room = max(int(cluster.get("CPU", 1)) - 1, 1)
        if self.gpus:
            room = min(room, int(cluster.get("GPU", 0) / self.gpus))
            if not room:
                has = f"{cluster.get('GPU', 0):g}"
                raise UsageError(
                    f"--gpus-per-worker {self.gpus:g}: the Ray cluster has {has} GPUs, so nothing could run"
                )
        return room if self.workers is None else self.workers if self.address else min(self.workers, room)

    def _run(self, ray: Any, job: Any, units: Iterable[U]) -> Iterator[Any]:
        free = self.actors * QUEUED
        busy: dict[Any, tuple[int, U, Any]] = {}
        due = enumerate(units)
        results = _InOrder()
        while True:
            room = min(len(free), AHEAD * len(self.actors) - len(results.found))
            for number, unit in itertools.islice(due, max(room, 0)):
                actor = free.pop(0)
                busy[actor.work.remote(job, unit)] = number, unit, actor
            if not busy:
                return
            ray.wait(list(busy))
            ready, _ = ray.wait(list(busy), num_returns=len(busy), timeout=0)
            for reference in sorted(ready, key=lambda one: busy[one][0]):
                number, _, actor = busy[reference]
                at_work = next(unit for _, unit, other in busy.values() if other is actor)
                results.add(number, _result(ray, at_work, reference))
                del busy[reference]
                free.append(actor)
            yield from results.ready()


def _result(ray: Any, unit: object, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from error
    except ray.exceptions.RayError as error:
        raise RunError(f"Ray lost {unit} ({type(error).__name__}): give the same command again") from error


def import_ray() -> Any:
    """The module `ray`; UsageError says how to install it."""
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray: pip install 'fluxentropy[ray]'") from error
    return ray


def make_engine(name: str, workers: int, address: str | None = None, gpus: float | None = None) -> Engine:
    """The engine of `--engine NAME --workers N --address A --gpus-per-worker G`."""
    if name == "ray":
        return Ray(address, workers if workers > 1 else None, gpus)
    return Processes(workers) if workers > 1 else Local()


# --- parts of a corpus ------------------------------------------------------------------------------------------------
#
# A part is cut by its rows' content alone, so it is the same whenever and however often it is made.


PART_ROWS, PART_BYTES = 2**14, 2**26
T = TypeVar("T")
S = TypeVar("S", bound=Sized)


def cut_parts(
    batches: Iterable[pa.RecordBatch], text_field: str, part_chars: int, text_chars: int | None
) -> Iterator[pa.Table]:
    """Group the rows of `batches` into parts of about `part_chars` characters, a text counting at most `text_chars`.

    A part also ends at 16,384 rows or 64 MiB of text. Where it ends depends on the rows alone, not on how they are
    batched.
    """
    pending: list[pa.RecordBatch] = []
    size = np.zeros(3, dtype=np.int64)  # characters, rows, bytes
    limits = np.array([part_chars, PART_ROWS, PART_BYTES])
    for batch in batches:
        lengths = _cut_lengths(
            batch[text_field] if isinstance(batch, pa.Table) else batch.column(text_field), text_chars
        )  # (rows, 3)
        begin = 0
        while begin < len(lengths):
            reached = size + np.cumsum(lengths[begin:], axis=0)
            full = (reached >= limits).any(axis=1)
            end = begin + int(full.argmax()) + 1 if full.any() else len(lengths)
            pending.append(batch.slice(begin, end - begin))
            size = reached[end - begin - 1]
            begin = end
            if full.any():
                yield pa.Table.from_batches(pending)
                pending, size = [], np.zeros(3, dtype=np.int64)
    if pending:
        yield pa.Table.from_batches(pending)


def missing_parts(done: Mapping[int, int], read: Callable[[int], Iterable[S]]) -> Iterator[tuple[int, S]]:
    """The parts that are not `done` (part -> its rows), each with its number.

    `read(start)` gives the parts from row `start` on. Where a missing part begins is known from the parts before it;
    once it is made, reading goes on behind the parts that are done.

    >>> texts = ["aa", "bb", "cc", "d"]  # in parts of two rows
    >>> list(missing_parts({0: 2, 2: 2}, lambda start: texts[start // 2 :]))
    [(1, 'bb'), (3, 'd')]
    """
    number = start = 0
    while True:
        while number in done:
            start += done[number]
            number += 1
        for part in read(start):
            yield number, part
            start += len(part)
            number += 1
            if number in done:
                break
        else:
            return


def _cut_lengths(texts: pa.Array, text_chars: int | None) -> np.ndarray:
    chars = pc.fill_null(pc.utf8_length(texts), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    size = pc.fill_null(pc.binary_length(texts), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    if text_chars is not None:
        chars = np.minimum(chars, text_chars)
    return np.stack([chars, np.ones_like(chars), size], axis=1)


def prefetch(items: Iterable[T]) -> Generator[T, None, None]:
    """Yield the items while the next one is made in a thread: reading and tokenising overlap with the forward pass.

    In a unit of `Local` that nobody waits for any longer, `RunError` ends it before the next item.
    """
    given_up: threading.Event | None = getattr(_unit, "given_up", None)
    made: queue.Queue[tuple[bool, Any]] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def offer(entry: tuple[bool, Any]) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                made.put(entry, timeout=0.1)
                return

    def produce() -> None:
        try:
            for item in items:
                offer((True, item))
                if stop.is_set():
                    return
            offer((False, None))
        except BaseException as error:  # handed to the consumer, which raises it
            offer((False, error))

    thread = threading.Thread(target=produce, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            more, value = made.get()
            if not more:
                if value is not None:
                    raise value
                return
            if given_up is not None and given_up.is_set():
                raise RunError("given up")
            yield value
    finally:
        stop.set()
        thread.join()
