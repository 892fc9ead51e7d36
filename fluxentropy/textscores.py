"""Scores of a text from the statistics of its tokens, its bytes, or how often its tokens occur elsewhere.

What each stands for, and where it comes from, is in `registry`. Order statistics and slopes need all tokens of a text
at once, so these functions take one text each; shapes: T tokens, V the vocabulary.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

LOWEST_PERCENT = 20  # k of Min-K% and Min-K%++: the default of both papers
DIVERGENCE_CAP = 0.01  # a of DC-PDD: what one token adds at most
ZLIB_LEVEL = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class TextFacts:
    """One text of T > 0 tokens, as a model sees it; nats and nats²."""

    text: str
    ids: np.ndarray  # (T,) int64
    entropy: np.ndarray  # (T,) float64, of the distribution after each token
    varentropy: np.ndarray  # (T,)
    surprisal: np.ndarray  # (T - 1,) of the token after each
    vocabulary: int  # V
    log_frequency: np.ndarray | None = None  # (V,) of each token, from token counts


def entropy_normalised(facts: TextFacts) -> float | None:
    """Mean of H_t / ln V: 0 where every next token is certain, 1 where all are alike."""
    return float(facts.entropy.mean() / np.log(facts.vocabulary)) if facts.vocabulary > 1 else None


def entropy_slope(facts: TextFacts) -> float | None:
    """Least-squares slope of H_t over t, nats per token; None for a single token."""
    if len(facts.entropy) < 2:
        return None
    t = np.arange(len(facts.entropy)) - (len(facts.entropy) - 1) / 2
    return float(t @ (facts.entropy - facts.entropy.mean()) / (t @ t))


def mink(facts: TextFacts) -> float | None:
    """Mean of the lowest 20 % of the tokens' log-probabilities, nats."""
    return lowest_mean(-facts.surprisal)


def minkpp(facts: TextFacts) -> float | None:
    """Mean of the lowest 20 % of the tokens' standardised log-probabilities.

    (ln p - mu) / sigma with the mean mu = -H_t and the standard deviation sigma = √V_t of ln p under the model. Where
    sigma is 0 all tokens that can follow are alike, so that ln p = mu: the value is 0.
    """
    distance = facts.entropy[:-1] - facts.surprisal
    sigma = np.sqrt(facts.varentropy[:-1])
    return lowest_mean(np.divide(distance, sigma, out=np.zeros_like(distance), where=sigma > 0))


def lowest_mean(values: np.ndarray, percent: int = LOWEST_PERCENT) -> float | None:
    """Mean of the lowest `percent` % of `values` (n,): ⌊n percent / 100⌋ of them, at least one; None where n is 0.

    >>> lowest_mean(np.array([-5.0, -1.0, -3.0, -2.0, -4.0, -6.0, -7.0, -8.0, -9.0, -10.0]))
    -9.5
    """
    if not len(values):
        return None
    k = max(len(values) * percent // 100, 1)
    return float(np.sort(values)[:k].mean())


def dcpdd(facts: TextFacts) -> float | None:
    """Mean of min(-p ln q, 0.01) over the predicted tokens, each where it first occurs: p the model's probability, q
    the token's frequency."""
    if facts.log_frequency is None or not len(facts.surprisal):
        return None
    tokens, first = np.unique(facts.ids[1:], return_index=True)
    divergence = -np.exp(-facts.surprisal[first]) * facts.log_frequency[tokens]
    return float(np.minimum(divergence, DIVERGENCE_CAP).mean())


def unigram_surprisal(facts: TextFacts) -> float | None:
    """Mean of -ln q over the predicted tokens, nats: how rare they are, whatever stands before them."""
    if facts.log_frequency is None or len(facts.ids) < 2:
        return None
    return float(-facts.log_frequency[facts.ids[1:]].mean())


def zlib_ratio(facts: TextFacts) -> float | None:
    """Bytes of the whole text, in UTF-8, after zlib at level 6, as a share of those before."""
    data = facts.text.encode()
    return len(zlib.compress(data, ZLIB_LEVEL)) / len(data) if data else None
