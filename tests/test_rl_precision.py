"""Errors over batch sizes, against the variances that were put in and the library's own standard errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fluxentropy.errors import UsageError
from fluxentropy.rl.passes import SequenceStats
from fluxentropy.rl.precision import entropy_precision, prompts_needed
from fluxentropy.rl.sequence_entropy import sequence_entropy


def batch(B, G, seed=0):
    """Variance 4 between prompts and 9 within them around a mean of 20, over 10 to 20 tokens."""
    rng = np.random.default_rng(seed)
    H = 20 + 2 * rng.normal(size=(B, 1)) + 3 * rng.normal(size=(B, G))
    return H, rng.integers(10, 21, size=(B, G)).astype(float)


@pytest.mark.parametrize("G", [1, 4])
def test_errors_fall_as_the_root_of_the_prompts(G):
    H, T = batch(2000, G)
    found = entropy_precision(H, T, [4, 16, 64], replicates=2000)
    true = (4 + 9 / G) ** 0.5
    h = H.mean() / T.mean()
    column = (H - h * T).mean(1) / T.mean()  # the delta method of a ratio
    for row in found:
        assert row.per_sequence.se == pytest.approx(true / row.prompts**0.5, rel=0.08)
        assert row.per_sequence.theory == pytest.approx(true / row.prompts**0.5, rel=0.06)
        assert row.per_sequence.relative == pytest.approx(row.per_sequence.se / H.mean())
        assert row.per_token.theory == pytest.approx(column.std() / row.prompts**0.5, rel=0.01)
        assert row.per_token.se == pytest.approx(row.per_token.theory, rel=0.1)
        assert row.per_token.relative == pytest.approx(row.per_token.se / h)


def test_theory_starts_from_the_library_s_own_standard_errors():
    H, T = batch(64, 2)
    lengths = torch.tensor(T).long()
    mask = torch.arange(20) < lengths[..., None]
    entropy = torch.tensor(H)[..., None] / lengths[..., None] * mask
    whole = sequence_entropy(SequenceStats(-entropy, entropy), mask)
    last = entropy_precision(H, T, replicates=10)[-1]
    assert last.prompts == 64
    assert last.per_sequence.theory == pytest.approx(whole.rao_blackwell.se)
    assert last.per_token.theory == pytest.approx(whole.per_token.se)
    needed = prompts_needed(H, T, relative=0.02)
    assert needed.per_sequence == int(np.ceil(64 * (whole.rao_blackwell.se / whole.rao_blackwell.value / 0.02) ** 2))
    assert needed.per_token == int(np.ceil(64 * (whole.per_token.se / whole.per_token.value / 0.02) ** 2))


def test_heavy_tails_keep_the_root_law():
    """The variance of a mean is σ²/B whatever the distribution; sizes are powers of two by default."""
    rng = np.random.default_rng(0)
    H = rng.lognormal(0, 1.5, size=(500, 1))
    found = entropy_precision(H, np.ones_like(H), replicates=4000)
    assert [row.prompts for row in found] == [2, 4, 8, 16, 32, 64, 128, 256]
    for row in found:
        assert row.per_sequence.se == pytest.approx(row.per_sequence.theory, rel=0.2)
        assert row.per_sequence == pytest.approx(row.per_token)  # of one token each


def test_what_cannot_be_measured_is_refused():
    H, T = batch(5, 2)
    with pytest.raises(UsageError, match="batches of 6 prompts: use 1 to 5"):
        entropy_precision(H, T, [6])
    with pytest.raises(UsageError, match="2 prompts"):
        entropy_precision(H[:2], T[:2])
    with pytest.raises(UsageError, match="shape"):
        prompts_needed(H[:, 0], T[:, 0], relative=0.1)
    with pytest.raises(UsageError, match="relative error 0"):
        prompts_needed(H, T, relative=0)
