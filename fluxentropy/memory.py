"""How much memory is free, whether a model's weights fit into it, and which errors mean that they did not."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fluxentropy.errors import ModelError
from fluxentropy.zoo_entries import DTYPES

if TYPE_CHECKING:
    import torch

MARGIN = 1.1  # on the size of the weights: room for activations and the libraries' own copies


def check_memory(
    name: str, parameters: int | None, dtype: torch.dtype, device: torch.device, *, task: str = "its weights"
) -> None:
    """Raise ModelError, with both sizes and the way out, when so many weights do not fit on the device.

    Nothing is said where the number of parameters or the free memory is unknown.
    """
    if parameters is None:
        return
    needed = parameters * dtype.itemsize * MARGIN
    if (free := available_memory(device)) is None or needed <= free:
        return
    give_back_memory(device)  # takes as long as loading a small model: only where it may help
    if (free := available_memory(device)) is None or needed <= free:
        return
    precision = next(short for short, long in DTYPES.items() if str(dtype) == f"torch.{long}")
    halve = "--dtype bf16, " if dtype.itemsize == 4 and task == "its weights" and needed / 2 <= free else ""
    raise ModelError(
        f"model {name!r} needs about {format_bytes(needed)} for {task} in {precision}, and {format_bytes(free)} are "
        f"free on {device}: use {halve}a smaller model or a larger machine"
    )


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device, None where that is unknown (Apple GPUs, systems other than Linux)."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return host_memory() if device.type == "cpu" else None


def give_back_memory(device: torch.device) -> None:
    """Give back to the device what this process no longer uses."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc
        trim(0)


def host_memory(root: Path = Path("/")) -> int | None:
    """Bytes of main memory that can still be had: MemAvailable, or what a control group leaves; None off Linux.

    `root` is where /proc and /sys are.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*free, *_left_by_groups(root / "sys/fs/cgroup", groups)], default=None)


def _left_by_groups(mount: Path, groups: list[str]) -> Iterator[int]:
    """What the limits of this process's control groups, and of those around them, leave: limit - use + file cache."""
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            base, limit, use, prefix = mount, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):  # version 1
            base, limit, use, prefix = mount / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        folder = base / path.strip("/")
        for group in (folder, *folder.parents):
            try:
                stat = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
                cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                yield int((group / limit).read_text()) - int((group / use).read_text()) + cache
            except (OSError, ValueError):  # no such group from here, or its limit is "max"
                pass
            if group == base:
                break


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; torch's CPU allocator says so in a plain RuntimeError."""
    import torch

    said = isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "out of memory" in str(error))
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)


def format_bytes(size: float) -> str:
    """A size in bytes with three digits and a unit.

    >>> format_bytes(12_343_754_752), format_bytes(269_060_552), format_bytes(999)
    ('12.3 GB', '269 MB', '999 B')
    """
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB" if size < 999.5 else f"{size:,.0f} GB"
