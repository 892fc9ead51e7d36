"""Results with numpy arrays and undefined numbers -> what JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """`value` with arrays as lists, and null for NaN and infinities, which JSON has not.

    >>> plain({"a": np.array([1.5, np.nan]), "b": (np.int64(2), True)})
    {'a': [1.5, None], 'b': [2, True]}
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return None if isinstance(value, float) and not np.isfinite(value) else value
