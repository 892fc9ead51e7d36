"""How a run is cut into parts, and made while the next part is read.

A part is cut by its rows' content alone, so it is the same whenever and however often it is made.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sized
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

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
    """Yield the items while the next one is made in a thread: reading and tokenising overlap with the forward pass."""
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
            yield value
    finally:
        stop.set()
        thread.join()
