"""pass@k: the probability that at least one of k responses to a prompt is right, without bias from n >= k of them.

    pass@k = 1 - C(n - c, k) / C(n, k) = 1 - Π_{i=0}^{k-1} (n - c - i) / (n - i)

for c right ones of n: the share of the k-subsets of the n that hold a right one. 1 - (1 - c/n)^k is biased downwards.
Source: Chen et al. 2021, arXiv:2107.03374.

Where a problem has many right answers, pass@k cannot tell a policy that finds them all from one that knows a single
one: the number of different right responses among k can.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fluxentropy.errors import UsageError
from fluxentropy.rl.estimate import Estimate, mean_estimate


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased estimate for one prompt from `correct` of `samples`. Errors: `UsageError` for impossible counts.

    >>> pass_at_k(4, 1, 2)  # 3 of the 6 pairs hold the right one
    0.5
    """
    if not 1 <= k <= samples:
        raise UsageError(f"pass@{k} of {samples} responses a prompt: use a k from 1 to {samples}, or sample more")
    if not 0 <= correct <= samples:
        raise UsageError(f"{correct} right of {samples} responses: use a count from 0 to {samples}")
    missed = 1.0
    for i in range(k):
        missed *= max(samples - correct - i, 0) / (samples - i)
    return 1 - missed


def mean_pass_at_k(right: Tensor, ks: Sequence[int]) -> dict[int, Estimate]:
    """pass@k over prompts with its standard error between them, for each k; `right` bool (B, n).

    >>> mean_pass_at_k(torch.tensor([[True, False], [False, False]]), [1, 2])[2].value
    0.5
    """
    n = right.shape[1]
    counts = right.sum(1).tolist()
    return {k: mean_estimate(torch.tensor([pass_at_k(n, c, k) for c in counts], dtype=torch.float64)) for k in ks}


def distinct_right(texts: Sequence[Sequence[str]], right: Tensor) -> Estimate:
    """Different right responses to a prompt, mean over prompts with its standard error; `right` bool (B, n).

    Responses are the same where they are without white space at their ends.

    >>> distinct_right([["ab", "ab ", "ba"], ["x", "y", "x"]], torch.tensor([[1, 1, 1], [1, 0, 1]]).bool()).value
    1.5
    """
    counts = [
        len({text.strip() for text, good in zip(row, flags, strict=True) if good})
        for row, flags in zip(texts, right.tolist(), strict=True)
    ]
    return mean_estimate(torch.tensor(counts, dtype=torch.float64))
