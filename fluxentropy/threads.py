"""The number of threads of a training: with another one, the same run has other last bits.

torch sums some gradients by thread, on a CPU that of LayerNorm's weights for one, so the sums depend on how many there
are. A run notes the number with which it was begun, and goes on with it.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from fluxentropy.errors import RunError
from fluxentropy.store import read_json

log = logging.getLogger(__name__)


@contextlib.contextmanager
def as_begun(out: Path, accelerator: str, *, new: int | None = None) -> Iterator[dict[str, int]]:
    """What is done meanwhile has the threads of the run in `out`; a new run has `new`, or as many as torch has now.

    Yields the number for the run's identity; nothing for a run of an earlier version, which did not note it.

    Errors: RunError where this machine has fewer cores, unless OMP_NUM_THREADS asks for that many all the same, or
    the training is on a GPU, where the threads decide nothing.
    """
    identity = (read_json(out / "manifest.json") or {}).get("identity")
    before = torch.get_num_threads()
    number = asked = before if new is None else new
    if identity is not None and "threads" not in identity:
        log.warning(
            f"{out} was begun by an earlier version, which did not note its number of threads: the result is bit for "
            f"bit that of a run that was not stopped if it had as many as now, {asked}"
        )
    elif identity is not None:
        number = int(identity["threads"])
        _check(out, number, accelerator)
        if number != asked:
            log.info(f"with {number} threads a run, as {out} was begun, instead of {asked}")
    torch.set_num_threads(number)
    try:
        yield {} if identity is not None and "threads" not in identity else {"threads": number}
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(out: Path, number: int, accelerator: str) -> None:
    gpu = accelerator != "cpu" and (torch.cuda.is_available() or torch.backends.mps.is_available())
    if gpu or number <= cores() or os.environ.get("OMP_NUM_THREADS") == str(number):
        return
    raise RunError(
        f"{out} was begun with {number} threads, and this machine has {cores()} cores: go on where there are as many; "
        f"or here, slowly and with the same result, with OMP_NUM_THREADS={number}; or start afresh with --overwrite"
    )
