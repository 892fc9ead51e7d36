"""pass@k against counting subsets, and its expectation over all outcomes."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from fluxentropy.errors import UsageError
from fluxentropy.rl.passatk import distinct_right, mean_pass_at_k, pass_at_k


@pytest.mark.parametrize(("n", "k"), [(n, k) for n in range(1, 7) for k in range(1, n + 1)])
def test_it_is_the_share_of_subsets_that_hold_a_right_response(n, k):
    for c in range(n + 1):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-14)


def test_it_is_unbiased_where_the_plug_in_is_not():
    n, k, p = 6, 3, 0.2
    binomial = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    exact = 1 - (1 - p) ** k
    assert sum(q * pass_at_k(n, c, k) for c, q in enumerate(binomial)) == pytest.approx(exact, rel=1e-12)
    assert sum(q * (1 - (1 - c / n) ** k) for c, q in enumerate(binomial)) < exact - 0.02


def test_large_counts_do_not_overflow():
    assert pass_at_k(10_000, 3, 5_000) == pytest.approx(1 - math.comb(9_997, 5_000) / math.comb(10_000, 5_000))


def test_the_mean_over_prompts_has_the_error_between_them():
    right = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    found = mean_pass_at_k(right, [1, 2])
    values = torch.tensor([0.5, 1 - 1 / 6, 0.0], dtype=torch.float64)
    assert found[1].value == pytest.approx(0.25)
    assert found[2] == pytest.approx((float(values.mean()), float(values.std() / 3**0.5)))


def test_different_right_responses_are_counted_once():
    texts = [["a", " a", "b", "c"], ["a", "b", "c", "d"], ["a", "a", "a", "a"]]
    right = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]], dtype=torch.bool)
    found = distinct_right(texts, right)  # 2, 0 and 1
    assert found == pytest.approx((1.0, 1 / 3**0.5))


@pytest.mark.parametrize(
    ("counts", "said"), [((4, 1, 5), "pass@5 of 4"), ((4, 5, 1), "5 right of 4"), ((4, 1, 0), "pass@0")]
)
def test_impossible_counts_are_refused(counts, said):
    with pytest.raises(UsageError, match=said):
        pass_at_k(*counts)
