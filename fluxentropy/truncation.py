"""Entropy from a model's k most likely tokens alone, as an API that shows only those would give it.

    S = −Σ_{v≤k} p_v ln p_v                  what is seen
    m = 1 − Σ_{v≤k} p_v                      the tail's mass, over the V − k other tokens, each at most p_k
    S − m ln p_k  ≤  H  ≤  S − m ln(m/(V−k))  the whole entropy: at least if the tail is as steep as it may be,
                                              at most if it is flat

and, as most people compute it, the entropy and varentropy of the k probabilities scaled to sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class TruncatedEntropy:
    """Per position, float64 (N,): of the renormalised top k, and the limits of the whole distribution's entropy."""

    entropy: np.ndarray  # nats
    varentropy: np.ndarray  # nats²
    tail_mass: np.ndarray
    lower: np.ndarray  # nats
    upper: np.ndarray  # nats


def truncated_entropy(top_probs: np.ndarray, vocabulary: int) -> TruncatedEntropy:
    """What the `top_probs` (N, k), in descending order, say about distributions over `vocabulary` tokens.

    >>> seen = truncated_entropy(np.array([[0.5, 0.25]]), vocabulary=4)  # of (1/2, 1/4, 1/8, 1/8), H = 1.213
    >>> [round(float(x[0]), 3) for x in (seen.entropy, seen.varentropy, seen.tail_mass, seen.lower, seen.upper)]
    [0.637, 0.107, 0.25, 1.04, 1.213]
    """
    p = np.asarray(top_probs, dtype=np.float64)
    k = p.shape[-1]
    seen = p.sum(axis=-1)
    m = np.clip(1 - seen, 0, 1) if k < vocabulary else np.zeros_like(seen)
    S = -_x_ln_x(p).sum(axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        lower = S - np.where(m > 0, m * np.log(p[..., -1]), 0)
        upper = S - np.where(m > 0, m * np.log(m / max(vocabulary - k, 1)), 0)
        q = p / seen[..., None]
    H = -_x_ln_x(q).sum(axis=-1)
    V = _x_ln2_x(q).sum(axis=-1) - H**2
    return TruncatedEntropy(
        entropy=H, varentropy=np.maximum(V, 0), tail_mass=m, lower=lower, upper=np.maximum(upper, lower)
    )


def _x_ln_x(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.where(x > 0, x, 1))


def _x_ln2_x(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.where(x > 0, x, 1)) ** 2
