"""Results with arrays and undefined numbers -> what JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """`value` with arrays as lists, and null for NaN and infinities, which JSON has not.

    >>> import numpy as np
    >>> plain({"a": np.array([1.5, np.nan]), "b": (np.int64(2), True), 3: float("inf")})
    {'a': [1.5, None], 'b': [2, True], '3': None}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy's arrays and numbers; numpy itself need not be loaded for this
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
