"""Free memory, read from a made-up /proc and /sys, and what is said when a model does not fit."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fluxentropy import memory
from fluxentropy.errors import ModelError
from fluxentropy.memory import available_memory, check_memory, format_bytes, host_memory, is_out_of_memory

CPU = torch.device("cpu")
GB = 10**9


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n"}
GROUP = {
    "memory.max": "900000\n",
    "memory.current": "500000\n",
    "memory.stat": "active_file 7\ninactive_file 40\nx 1\n",
}
OLD = {"memory.limit_in_bytes": "800000", "memory.usage_in_bytes": "500000", "memory.stat": "total_active_file 9\n"}


def under(folder: str, files: dict[str, str], **changes: str) -> dict[str, str]:
    return {
        f"{folder}/{name}": text
        for name, text in {**files, **{k.replace("_", "."): v for k, v in changes.items()}}.items()
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MEMINFO, None),  # without /proc/self/cgroup this is no Linux
        (MEMINFO | {"proc/self/cgroup": "0::/\n"}, 5000 * 1024),
        (MEMINFO | {"proc/self/cgroup": "0::/a/b\n"} | under("sys/fs/cgroup/a/b", GROUP), 400047),
        (MEMINFO | {"proc/self/cgroup": "0::/a/b\n"} | under("sys/fs/cgroup/a", GROUP), 400047),  # the group around it
        (MEMINFO | {"proc/self/cgroup": "0::/host/path\n"} | under("sys/fs/cgroup", GROUP), 400047),  # a container
        (MEMINFO | {"proc/self/cgroup": "0::/a\n"} | under("sys/fs/cgroup/a", GROUP, memory_max="max\n"), 5000 * 1024),
        (MEMINFO | {"proc/self/cgroup": "3:cpu:/a\n4:memory:/a\n"} | under("sys/fs/cgroup/memory/a", OLD), 300009),
        (MEMINFO | {"proc/self/cgroup": "9:name=memory:/a\n"} | under("sys/fs/cgroup/memory/a", OLD), 5000 * 1024),
    ],
)
def test_the_memory_that_the_system_and_its_control_groups_leave(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    assert host_memory(write(tmp_path, files)) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="MemAvailable is Linux's")
def test_the_memory_of_this_machine() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    free = available_memory(CPU)
    assert free is not None
    assert 0 < free <= total


def test_a_model_that_does_not_fit_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    free: list[int | None] = [8_100_000_000]
    monkeypatch.setattr(memory, "available_memory", lambda _: free[0])
    check_memory("small", 1_500_000_000, torch.float32, CPU)
    check_memory("unknown", None, torch.float32, CPU)
    with pytest.raises(ModelError) as caught:
        check_memory("large", 2_800_000_000, torch.float32, CPU)
    assert str(caught.value) == (
        "model 'large' needs about 12.3 GB for its weights in fp32, and 8.1 GB are free on cpu: "
        "use --dtype bf16, a smaller model or a larger machine"
    )
    check_memory("large", 2_800_000_000, torch.bfloat16, CPU)
    with pytest.raises(ModelError, match="are free on cpu: use a smaller model"):  # bf16 would not do
        check_memory("huge", 7 * GB, torch.float32, CPU)
    with pytest.raises(ModelError, match=r"15\.4 GB for its weights in bf16, .*: use a smaller model"):
        check_memory("huge", 7 * GB, torch.bfloat16, CPU)
    free[0] = None
    check_memory("huge", 7 * GB, torch.float32, CPU)


def test_unused_memory_is_given_back_only_before_a_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    free, given = [1 * GB], []
    monkeypatch.setattr(memory, "available_memory", lambda _: free[0])

    def collect() -> None:
        given.append(free[0])
        free[0] = 6 * GB

    monkeypatch.setattr("gc.collect", collect)
    check_memory("small", 200_000_000, torch.float32, CPU)
    assert given == []
    check_memory("large", GB, torch.float32, CPU)
    assert given == [GB]
    with pytest.raises(ModelError, match=r"6 GB are free"):
        check_memory("huge", 7 * GB, torch.float32, CPU)


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(OSError("out of memory"))


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (1.5e9, "1.5 GB"), (2.5e12, "2,500 GB")],
)
def test_sizes_have_three_digits_and_a_unit(size: float, text: str) -> None:
    assert format_bytes(size) == text
