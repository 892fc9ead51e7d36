"""What all comparisons share: their cells are finished by an engine, and an arm that has cells stays what it is.

A cell is one arm with one seed, `OUT/cells/ARM/seed-0`; a job makes it whole and says what went wrong, or nothing.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from fluxentropy.engine import WORKER, Engine
from fluxentropy.errors import FluxentropyError, RunError, UsageError
from fluxentropy.jsonvalues import plain
from fluxentropy.options import EngineOptions
from fluxentropy.outcome import Outcome
from fluxentropy.progress import Progress
from fluxentropy.store import difference, read_json, write_json

C = TypeVar("C")
ARMS = "arms.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm with one seed."""

    arm: str
    seed: int
    config: Any  # of the run; its `out` is the folder
    fingerprint: str  # of all that decides the record

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def path(self) -> Path:
        """Of the record."""
        return self.config.out.with_name(f"{self.config.out.name}.json")

    def record(self) -> dict[str, Any] | None:
        """What the cell is judged by; None where it is not finished."""
        run = read_json(self.config.out / "manifest.json") or {}
        found = read_json(self.path) if run.get("complete") is True else None
        return found if found is not None and found.get("fingerprint") == self.fingerprint else None


def remember_arms(out: Path, here: dict[str, Any]) -> None:
    """Keep what each arm has of its own, as plain JSON. RunError where one that has cells was another before."""
    known = read_json(out / ARMS) or {}
    for name, own in here.items():
        changed = difference(known.get(name, own), own)
        if changed and (out / "cells" / name).exists():
            raise RunError(
                f"{out} has runs of another arm {name}: {changed}. Choose another name, or remove "
                f"{out / 'cells' / name}"
            )
    if known | here != known:
        write_json(out / ARMS, known | here)


def finish(engine: Engine, job: Callable[[C], str | None], cells: Sequence[C]) -> dict[str, str]:
    """Do the job on the cells. -> those that failed, and why"""
    failed: dict[str, str] = {}
    log.info(f"{len(cells):,} runs to finish")
    with Progress(len(cells), unit="runs", interval=0) as progress:
        for cell, problem in zip(cells, engine.run(job, cells), strict=True):
            if problem is not None:
                failed[str(cell)] = problem
                log.warning(f"{cell}: {problem}")
            progress.update(1, last=f"({cell})")
    return failed


def run_cell(cell: Cell, work: Callable[[], Any], *, threads: int, keep_checkpoints: bool) -> str | None:
    """Do the work and write the record that it returns. -> what went wrong with this cell, or nothing"""
    with _alone(threads):
        try:
            write_json(cell.path, plain(work()))
        except UsageError:  # that of the configuration: all others would fail like this
            raise
        except FluxentropyError as error:  # this cell's failure, such as a loss that is not finite
            return str(error)
    if not keep_checkpoints:
        shutil.rmtree(cell.config.out / "checkpoints", ignore_errors=True)
    return None


def finished_records(cells: Sequence[Cell], failed: Mapping[str, str], out: Path) -> list[dict[str, Any]]:
    """The records of the finished cells. Errors: RunError where there are none."""
    records = [found for cell in cells if (found := cell.record()) is not None]
    if not records:
        why = next((f"{name}: {problem}" for name, problem in failed.items()), "leave out --no-train")
        raise RunError(f"{out} has no finished run to judge: {why}")
    return records


def comparison_outcome(
    out: Path, stem: str, record: dict[str, Any], summary: Sequence[str], figures: Sequence[Path], cells: int
) -> Outcome:
    """What a comparison prints: its summary, where its files are (`stem`.json, `stem`.md), and what failed."""
    failed = record["failed"]
    lines = [*summary, "", f"numbers    {out / stem}.json", f"words      {out / stem}.md"]
    pictures = ", ".join(path.name for path in figures if path.suffix == ".png")
    lines += [f"pictures   {out}/: {pictures} (and .svg)"]
    if failed:
        lines += ["", f"{len(failed)} of {cells} runs failed:", *(f"  {k}: {v}" for k, v in failed.items())]
    return Outcome(lines=lines, data={"out": str(out), **record}, exit_code=1 if failed else 0)


def threads_each(options: EngineOptions) -> int:
    """The threads of a worker: as the user has said, else so that all of them have the cores of this machine."""
    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads()
    by_core = options.engine == "ray" and options.workers == 1  # an actor a core
    return 1 if by_core else max((os.cpu_count() or 1) // options.workers, 1)


@contextlib.contextmanager
def _alone(threads: int) -> Iterator[None]:
    """A job's work: with so many threads, and without a word where there are several workers."""
    with _threads(threads), _quiet():
        yield


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    """So many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Of several workers none speaks for itself."""
    if WORKER not in os.environ:
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield
