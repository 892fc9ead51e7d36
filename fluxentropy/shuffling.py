"""Seeded shuffles without tables: where the i-th element of a shuffle lies is computed, for any i, on its own.

    permuted([0, 1, 2, 3], size=4, key) -> [2, 0, 3, 1]

A shuffle of n elements is a Feistel network on the smallest square of a power of two that holds n (Luby and Rackoff
1988), walked along its cycle until it falls below n (Black and Rogaway 2002). It holds only integers of 64 bits, so it
is the same on every machine and with every version of NumPy, which its generators do not promise.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 10  # more than the 4 that proofs ask for: small squares mix slowly


def mixed(values: np.ndarray) -> np.ndarray:
    """Hashes of uint64 values: the finalizer of SplitMix64 (Steele, Lea and Flood 2014). A bijection."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def keys(*parts: int | np.ndarray) -> np.ndarray:
    """Hashes of tuples of whole numbers, which broadcast: `keys(seed, bins, epochs)` -> uint64 (n,).

    >>> bool(keys(1, np.array([2, 3]))[0] == keys(1, 2)[0]), bool(keys(1, 2)[0] == keys(2, 1)[0])
    (True, False)
    """
    found = np.zeros(1, np.uint64)
    for part in parts:
        found = mixed(found ^ mixed(np.atleast_1d(np.asarray(part)).astype(np.uint64)))
    return found


def permuted(places: np.ndarray, sizes: np.ndarray, key: np.ndarray) -> np.ndarray:
    """The element at each of `places` (n,) of a shuffle of range(size). -> int64 (n,)

    sizes: (n,) or one, each above its place; key: uint64 (n,) or one, which names the shuffle.

    >>> sorted(permuted(np.arange(5), np.array([5]), keys(0)).tolist())
    [0, 1, 2, 3, 4]
    """
    values, sizes, key = np.broadcast_arrays(places.astype(np.uint64), sizes.astype(np.uint64), key)
    values = values.copy()
    half = (
        np.maximum(np.ceil(np.log2(np.maximum(sizes, 2).astype(np.float64))), 4).astype(np.uint64) + np.uint64(1)
    ) // np.uint64(2)
    open_ = np.flatnonzero(sizes > 1)
    while len(open_):
        values[open_] = _feistel(values[open_], half[open_], key[open_])
        open_ = open_[values[open_] >= sizes[open_]]
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half: np.ndarray, key: np.ndarray) -> np.ndarray:
    """A bijection of the numbers of 2 * `half` bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for number in range(ROUNDS):
        left, right = right, left ^ (mixed(right ^ mixed(key + np.uint64(number))) & mask)
    return (left << half) | right
