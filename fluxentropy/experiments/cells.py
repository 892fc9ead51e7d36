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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from fluxentropy.config.options import EngineOptions
from fluxentropy.config.results import Result, html_table
from fluxentropy.config.yaml import to_plain, to_yaml
from fluxentropy.errors import FluxentropyError, RunError, UsageError
from fluxentropy.experiments.arms import STEMS, Record
from fluxentropy.experiments.options import ComparisonOptions
from fluxentropy.pretraining.trainer import FOR_GOOD, all_checkpoints, as_begun, step_of
from fluxentropy.runs.directory import RunDirectory, RunRecord, difference
from fluxentropy.runs.engine import WORKER, Engine, make_engine, usable_cores
from fluxentropy.runs.files import plain, read_json, write_json, write_text
from fluxentropy.runs.progress import Progress

ARMS = "arms.json"
R = TypeVar("R", bound="ComparisonResult")
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One arm with one seed."""

    arm: str
    seed: int
    config: Any  # of the run; its `out` is the folder
    fingerprint: str  # of all that decides the record
    trunk: Cell | None = None  # that it starts from
    start: Path | None = None  # the checkpoint of the trunk that it starts with
    kept: bool = False  # other cells start from it

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"

    @property
    def path(self) -> Path:
        """Of the record."""
        return self.config.out.with_name(f"{self.config.out.name}.json")

    def record(self) -> dict[str, Any] | None:
        """What the cell is judged by; None where it is not finished."""
        found = read_json(self.path) if RunRecord.read(self.config.out).complete else None
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


@dataclass(frozen=True)
class RunCell:
    """The job of an engine: do the work of one cell and write its record. -> what went wrong with it, or nothing"""

    work: Callable[[Cell], Record]  # trains it, or goes on with that; what it returns is the record
    threads: int
    keep_checkpoints: bool

    def __call__(self, cell: Cell) -> str | None:
        with _threads(self.threads), _quiet():
            try:
                write_json(cell.path, plain(self.work(cell)))
            except UsageError:  # that of the configuration: all others would fail like this
                raise
            except FluxentropyError as error:  # this cell's failure, such as a loss that is not finite
                return str(error)
        if not self.keep_checkpoints:
            _tidy(cell.config.out / "checkpoints", kept=cell.kept)
        return None


def _tidy(folder: Path, *, kept: bool) -> None:
    """Remove the checkpoints, but for those that are `kept` for other cells."""
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)
    for path in all_checkpoints(folder).values():
        if not path.name.endswith(FOR_GOOD):
            path.unlink()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a comparison says of itself to `run_comparison`."""

    owned: tuple[str, ...]  # what it writes into --out, beside what all comparisons do
    arms: Mapping[str, Any]  # what each has of its own, as plain JSON
    cells: Sequence[Cell]
    base: Mapping[str, Any]  # of the options that all arms share, those that decide the result
    data: Mapping[str, str]  # fingerprints of what all arms share
    versions: Mapping[str, str]
    work: Callable[[Cell], Record]  # see RunCell
    judge: Callable[[Sequence[Record]], dict[str, Any]]  # records of finished cells -> what they say, as plain JSON
    settle: Callable[[], Comparison] | None = None  # trains what must be known before the arms are what they are


@dataclass(frozen=True, kw_only=True)
class ComparisonResult(Result):
    """A judgement of arms: parts of its JSON file, which `record` is all of."""

    command: ClassVar[str]
    measure: ClassVar[str]  # the key of a comparison's difference

    out: Path
    seeds: int
    arms: Mapping[str, Mapping[str, Any]] = field(repr=False)  # what each is, and its numbers over its seeds
    comparisons: Sequence[Mapping[str, Any]] = field(repr=False)  # two arms, their difference and the verdict
    runs: int  # that were asked for: arms times seeds
    failed: Mapping[str, str]  # runs, and what went wrong
    pictures: tuple[str, ...]  # names of files in `out`
    record: Mapping[str, Any] = field(repr=False)

    @property
    def exit_code(self) -> int:
        return 1 if self.failed else 0

    def lines(self) -> list[str]:
        from fluxentropy.experiments.text import summary

        stem, drawn = self.out / STEMS[self.command], [name for name in self.pictures if name.endswith(".png")]
        lines = [*summary(self.command, self.record), "", f"numbers    {stem}.json", f"words      {stem}.md"]
        lines += [f"pictures   {self.out}/: {', '.join(drawn)} (and .svg)"]
        if self.failed:
            lines += ["", f"{len(self.failed)} of {self.runs} runs failed:"]
            lines += [f"  {name}: {why}" for name, why in self.failed.items()]
        return lines

    def to_dict(self) -> dict[str, Any]:
        return {"out": str(self.out), **self.record}

    def _repr_html_(self) -> str:
        kept = ("family", "arm", "against", "verdict", "p_holm")
        return html_table(
            [{name: one[name] for name in kept} | {self.measure: one[self.measure]["mean"]} for one in self.comparisons]
        )


def run_comparison(config: ComparisonOptions, this: Comparison, kind: type[R]) -> R:
    """Train what is not finished, then judge all arms; arms and seeds may be added later."""
    from fluxentropy.experiments.figures import draw_comparison
    from fluxentropy.experiments.text import markdown

    out, stem = config.out, STEMS[kind.command]
    with (
        RunDirectory(out, overwrite=config.overwrite, folder="cells", owned=(f"{stem}.*", ARMS, *this.owned)) as run,
        as_begun(out, config.base.accelerator, new=threads_each(config)) as threads,
    ):
        identity = {"kind": kind.command, "base": this.base, **this.data, **threads}
        run.begin(identity, to_yaml(config), last=True)
        if this.settle is not None:
            this = this.settle()
        remember_arms(out, dict(this.arms))
        failed: dict[str, str] = {}
        if config.train:
            job = RunCell(this.work, threads.get("threads", threads_each(config)), config.keep_checkpoints)
            engine = make_engine(config.engine, config.workers, config.address, config.gpus_per_worker)
            failed = _finish_all(engine, job, this.cells)
        records = _finished_records(this.cells, failed, out)
        prints = {f"{one['arm']}/seed-{one['seed']}": one["fingerprint"] for one in records}
        record = this.judge(records) | {
            "command": f"fluxentropy {kind.command} --config {out / 'config.resolved.yaml'}",
            "base": to_plain(config.base),
            "fingerprints": {**this.data, "cells": prints},
            "failed": failed,
            "versions": dict(this.versions),
        }
        write_json(out / f"{stem}.json", record)
        figures = draw_comparison(kind.command, record, records, out)
        write_text(out / f"{stem}.md", markdown(kind.command, record))
        run.finish({"arms": list(this.arms), "failed": failed, "versions": dict(this.versions)})
    return kind(
        out=out,
        **{name: record[name] for name in ("seeds", "arms", "comparisons")},
        runs=len(this.cells),
        failed=failed,
        pictures=tuple(path.name for path in figures),
        record=record,
    )


def _finish_all(engine: Engine, job: RunCell, cells: Sequence[Cell]) -> dict[str, str]:
    """Do the job on the cells that are not finished, those that others start from before these. -> as of `_finish`"""
    depths = {id(cell): len([*_trunks(cell)]) for cell in cells}
    for cell in sorted(cells, key=lambda cell: -depths[id(cell)]):
        _renew_trunk(cell)
    failed: dict[str, str] = {}
    for depth in sorted(set(depths.values())):
        due = [cell for cell in cells if depths[id(cell)] == depth and not cell.record()]
        stuck = [cell for cell in due if cell.trunk is not None and not cell.trunk.record()]
        failed |= {str(cell): f"it starts from {cell.trunk}, which failed" for cell in stuck}
        failed |= _finish(engine, job, [cell for cell in due if str(cell) not in failed])
    started = {cell.trunk.path: True for cell in cells if cell.trunk is not None}
    started |= {cell.trunk.path: False for cell in cells if cell.trunk is not None and not cell.record()}
    for cell in cells:
        if started.get(cell.path) and cell.record() and not job.keep_checkpoints:
            _tidy(cell.config.out / "checkpoints", kept=False)
    return failed


def _trunks(cell: Cell) -> Iterator[Cell]:
    """The cells that a cell starts from, one after the other."""
    if cell.trunk is not None:
        yield cell.trunk
        yield from _trunks(cell.trunk)


def _renew_trunk(cell: Cell) -> None:
    """Take away the run of a trunk that has passed the checkpoint which a new cell needs, and has not kept it."""
    if cell.trunk is None or cell.start is None or cell.record() or cell.start.is_file():
        return
    step = step_of(cell.start)
    passed = cell.trunk.record() or any(other > step for other in all_checkpoints(cell.start.parent))
    if passed and not all_checkpoints(cell.config.out / "checkpoints"):
        log.info(f"{cell.trunk} is trained again: {cell} starts from a checkpoint that it has not kept")
        shutil.rmtree(cell.trunk.config.out)


def _finish(engine: Engine, job: RunCell, cells: Sequence[Cell]) -> dict[str, str]:
    """Do the job on the cells. -> those that failed, and why"""
    failed: dict[str, str] = {}
    if not cells:
        return failed
    log.info(f"{len(cells):,} runs to finish")
    with Progress(len(cells), unit="runs", interval=0) as progress:
        for cell, problem in zip(cells, engine.run(job, cells), strict=True):
            if problem is not None:
                failed[str(cell)] = problem
                log.warning(f"{cell}: {problem}")
            progress.update(1, last=f"({cell})")
    return failed


def _finished_records(cells: Sequence[Cell], failed: Mapping[str, str], out: Path) -> Sequence[Record]:
    """The records of the finished cells. Errors: RunError where there are none."""
    records = [found for cell in cells if (found := cell.record()) is not None]
    if not records:
        why = next((f"{name}: {problem}" for name, problem in failed.items()), "leave out --no-train")
        raise RunError(f"{out} has no finished run to judge: {why}")
    return records


def threads_each(options: EngineOptions) -> int:
    """The threads of a worker: as the user has said, else so that all of them have the cores of this machine."""
    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads()
    by_core = options.engine == "ray" and options.workers == 1  # an actor a core
    return 1 if by_core else max(usable_cores() // options.workers, 1)


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
