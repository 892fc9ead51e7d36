"""Parts do not depend on batches, and prefetching changes nothing but time."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxentropy.parts import cut_parts, prefetch


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
