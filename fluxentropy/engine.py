"""Who does the units of a job: this process, several processes, or a Ray cluster. The result does not depend on it.

A job is a picklable function of one unit. It writes its files whole or not at all and finds them done when it is called
again, so a unit may be repeated anywhere at any time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from fluxentropy.errors import RunError, UsageError

U = TypeVar("U")
R = TypeVar("R")


class Engine(Protocol):
    """Runs a job over units and yields the results in the order of the units."""

    def run(self, job: Callable[[U], R], units: Sequence[U]) -> Iterator[R]: ...


@dataclass(frozen=True)
class Local:
    """One unit after the other, in this process."""

    def run(self, job: Callable[[U], R], units: Sequence[U]) -> Iterator[R]:
        return map(job, units)


@dataclass
class Processes:
    """`workers` processes. One that is killed ends the run with the names of the units that were being made.

    They start with the first job, serve the next ones too, and end with this object.
    """

    workers: int
    pool: ProcessPoolExecutor | None = field(default=None, compare=False, repr=False)

    def run(self, job: Callable[[U], R], units: Sequence[U]) -> Iterator[R]:
        if self.pool is None:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_start_worker)
        try:
            yield from self._run(self.pool, job, units)
        except BaseException:  # nothing may write behind the back of whoever goes on
            self.pool.shutdown(cancel_futures=True)
            self.pool = None
            raise

    def _run(self, pool: ProcessPoolExecutor, job: Callable[[U], R], units: Sequence[U]) -> Iterator[R]:
        waiting = list(enumerate(units))[::-1]
        busy: dict[Future[R], int] = {}
        found: dict[int, R] = {}
        ready = 0
        try:
            while waiting or busy:
                while waiting and len(busy) < self.workers:
                    number, unit = waiting.pop()
                    busy[pool.submit(job, unit)] = number
                done, _ = wait(busy, return_when=FIRST_COMPLETED)
                for future in done:
                    found[busy[future]] = future.result()
                    del busy[future]
                while ready in found:
                    yield found.pop(ready)
                    ready += 1
        except BrokenProcessPool as error:
            names = ", ".join(str(units[number]) for number in sorted(busy.values()))
            raise RunError(
                f"a worker process was killed, perhaps for lack of memory, while {names} was made: "
                f"the same command goes on from there"
            ) from error
        finally:
            for future in busy:
                future.cancel()


def _start_worker() -> None:
    """A worker ends without a word when the user interrupts the run, and when the process that started it is gone."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()


@dataclass(frozen=True)
class Ray:
    """Tasks on a Ray cluster, or on this machine where no `address` is given; one core stays free for Ray itself."""

    address: str | None = None

    def run(self, job: Callable[[U], R], units: Sequence[U]) -> Iterator[R]:
        ray = import_ray()
        if not ray.is_initialized():
            spare = max((os.cpu_count() or 2) - 1, 1)
            local: dict[str, Any] = {} if self.address else {"num_cpus": spare, "include_dashboard": False}
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR", **local)
        task = ray.remote(max_retries=0)(job_on_unit)
        shared = ray.put(job)
        references = [task.remote(shared, unit) for unit in units]
        try:
            for unit, reference in zip(units, references, strict=True):
                yield _result(ray, unit, reference)
        finally:
            for reference in references:  # what is made already stays as it is
                ray.cancel(reference, force=True)


def _result(ray: Any, unit: object, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause if isinstance(error.cause, Exception) else error from error
    except ray.exceptions.RayError as error:
        raise RunError(f"Ray lost {unit} ({type(error).__name__}): the same command goes on from there") from error


def job_on_unit(job: Callable[[U], R], unit: U) -> R:
    """What a Ray task runs."""
    return job(unit)


def import_ray() -> Any:
    """The module `ray`; UsageError says how to install it."""
    try:
        import ray
    except ImportError as error:
        raise UsageError("--engine ray needs Ray: pip install 'fluxentropy[ray]'") from error
    return ray


def make_engine(name: str, workers: int, address: str | None = None) -> Engine:
    """The engine of `--engine NAME --workers N --address A`."""
    if name == "ray":
        return Ray(address)
    return Processes(workers) if workers > 1 else Local()
