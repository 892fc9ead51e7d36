"""The estimators against float64 references, scipy, closed forms and finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fluxentropy.entropy import check_finite, token_stats, truncated_entropy

CASES = {
    "random": lambda g: torch.randn(32, 5000, generator=g) * 3,
    "binary": lambda g: torch.randn(64, 2, generator=g) * 3,
    "single": lambda g: torch.randn(8, 1, generator=g),
    "flat": lambda g: torch.randn(8, 256_000, generator=g) * 1e-3,
    "uniform": lambda g: torch.full((4, 50_000), 7.0),
    "peaked": lambda g: torch.randn(32, 5000, generator=g) * 20,
    "offset": lambda g: torch.randn(32, 5000, generator=g) + 1e4,
    "negative offset": lambda g: torch.randn(32, 5000, generator=g) - 1e4,
    "huge": lambda g: torch.randn(32, 5000, generator=g) * 1e4,
    "masked": lambda g: torch.randn(32, 5000, generator=g).masked_fill(
        torch.rand(32, 5000, generator=g) < 0.7, -torch.inf
    ),
    "large vocabulary": lambda g: torch.randn(8, 262_144, generator=g) * 4,
}


class Blocks:
    """A head whose logits are the hidden states themselves, in blocks of columns of odd sizes."""

    def blocks(self, hidden: Tensor):
        return iter(hidden.split(777, dim=-1))


def reference(z: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy and varentropy by their definitions, in float64."""
    logp = torch.log_softmax(z.double(), -1)
    p = logp.exp()
    logp = logp.masked_fill(p == 0, 0.0)
    h = -(p * logp).sum(-1)
    return h, (p * (logp + h.unsqueeze(-1)) ** 2).sum(-1)


@pytest.mark.parametrize("head", [None, Blocks()], ids=["whole", "blocks"])
@pytest.mark.parametrize("case", CASES)
def test_moments_match_float64_reference(case: str, head: Blocks | None) -> None:
    z = CASES[case](torch.Generator().manual_seed(1))
    assert z.dtype == torch.float32
    stats = token_stats(z, head=head)
    h, v = reference(z)
    torch.testing.assert_close(stats.entropy.double(), h, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(stats.varentropy.double(), v, rtol=1e-4, atol=1e-12)
    torch.testing.assert_close(stats.max_prob.double(), torch.softmax(z.double(), -1).amax(-1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("head", [None, Blocks()], ids=["whole", "blocks"])
def test_surprisal_and_top_k_mass(head: Blocks | None) -> None:
    g = torch.Generator().manual_seed(2)
    z = torch.randn(40, 3000, generator=g) * 5
    targets = torch.randint(0, 3000, (40,), generator=g)
    stats = token_stats(z, targets, head=head, top_k=10)
    expected = torch.nn.functional.cross_entropy(z.double(), targets, reduction="none")
    torch.testing.assert_close(stats.surprisal.double(), expected, rtol=1e-6, atol=1e-6)
    probs, tokens = torch.softmax(z.double(), -1).topk(10)
    torch.testing.assert_close(stats.top_probs.double(), probs, rtol=1e-6, atol=0)
    assert torch.equal(stats.top_tokens, tokens)
    torch.testing.assert_close(stats.top_k_mass.double(), probs.sum(-1), rtol=1e-6, atol=0)


def test_entropy_matches_scipy() -> None:
    z = torch.randn(5, 300, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = scipy.stats.entropy(torch.softmax(z, -1).numpy(), axis=-1)
    torch.testing.assert_close(token_stats(z).entropy, torch.from_numpy(expected), rtol=1e-12, atol=0)


def test_closed_forms() -> None:
    for size in (1, 2, 1000):
        stats = token_stats(torch.full((size,), -3.0))
        assert stats.entropy.item() == pytest.approx(math.log(size), abs=1e-7)
        assert stats.varentropy.item() == pytest.approx(0, abs=1e-12)
    one_hot = torch.full((50,), -torch.inf)
    one_hot[7] = 1e4
    assert (token_stats(one_hot).entropy.item(), token_stats(one_hot).varentropy.item()) == (0.0, 0.0)
    for p in (0.01, 0.3, 0.9):
        stats = token_stats(torch.tensor([p, 1 - p]).log())
        assert stats.varentropy.item() == pytest.approx(p * (1 - p) * math.log(p / (1 - p)) ** 2, rel=1e-5)


def test_temperature_divides_the_logits_once() -> None:
    z = torch.randn(4, 100, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(token_stats(z, temperature=0.5).entropy, token_stats(z * 2).entropy)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_anything_is_computed(dtype: torch.dtype) -> None:
    z = (torch.randn(16, 50_000, generator=torch.Generator().manual_seed(5)) * 3).to(dtype)
    stats = token_stats(z)
    h, v = reference(z)
    assert stats.entropy.dtype == torch.float32
    torch.testing.assert_close(stats.entropy.double(), h, rtol=1e-5, atol=0)
    torch.testing.assert_close(stats.varentropy.double(), v, rtol=1e-4, atol=0)


def test_undefined_positions_are_nan_and_reported() -> None:
    z = torch.zeros(4, 10)
    z[1, 3], z[2, 0], z[3] = torch.nan, torch.inf, -torch.inf
    stats = token_stats(z, torch.zeros(4, dtype=torch.long), top_k=2)
    for column in (*stats[:4], stats.top_k_mass):
        assert column.isnan().tolist() == [False, True, True, True]
    with pytest.raises(FloatingPointError, match=r"3 of 4 positions.*first at \(1,\)"):
        check_finite(stats)
    check_finite(token_stats(z[:1]))


def test_a_token_of_probability_zero_has_infinite_surprisal_and_a_negative_target_none() -> None:
    z = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])
    surprisal = token_stats(z, torch.tensor([1, -1])).surprisal
    assert surprisal[0] == torch.inf
    assert surprisal[1].isnan()


@pytest.mark.parametrize("head", [None, Blocks()], ids=["whole", "blocks"])
def test_gradients_match_finite_differences(head: Blocks | None) -> None:
    z = (torch.randn(3, 900, generator=torch.Generator().manual_seed(6), dtype=torch.float64) * 2).requires_grad_()
    targets = torch.tensor([1, 800, 5])

    def outputs(x: Tensor) -> tuple[Tensor, ...]:
        stats = token_stats(x, targets, head=head)
        return stats.entropy, stats.varentropy, stats.surprisal, stats.max_prob

    assert torch.autograd.gradcheck(outputs, (z,), fast_mode=True)


def test_second_derivatives_match_finite_differences() -> None:
    z = torch.randn(2, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: token_stats(x).entropy, (z,))
    assert torch.autograd.gradgradcheck(lambda x: token_stats(x).varentropy, (z,))


def test_gradients_are_finite_with_masked_logits_and_equal_those_without_them() -> None:
    z = torch.randn(2, 6, generator=torch.Generator().manual_seed(8), requires_grad=True)
    masked = torch.cat([z, torch.full((2, 3), -torch.inf)], -1)
    for pick in ("entropy", "varentropy"):
        (with_mask,) = torch.autograd.grad(getattr(token_stats(masked), pick).sum(), z)
        (without,) = torch.autograd.grad(getattr(token_stats(z), pick).sum(), z)
        torch.testing.assert_close(with_mask, without)
    leaf = masked.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(token_stats(leaf).varentropy.sum(), leaf)
    assert gradient.isfinite().all()


def test_works_under_torch_func() -> None:
    z = torch.randn(4, 9, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    direction = torch.randn(4, 9, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    _, tangent = torch.func.jvp(lambda x: token_stats(x).entropy, (z,), (direction,))
    gradient = torch.func.vmap(torch.func.grad(lambda x: token_stats(x).entropy))(z)
    torch.testing.assert_close(tangent, (gradient * direction).sum(-1))


def test_hidden_states_and_a_callable_head_keep_the_shape_and_match_full_logits() -> None:
    g = torch.Generator().manual_seed(11)
    hidden, weight = torch.randn(2, 300, 16, generator=g), torch.randn(500, 16, generator=g)
    targets = torch.randint(0, 500, (2, 300), generator=g)
    stats = token_stats(hidden, targets, head=lambda rows: rows @ weight.T)
    whole = token_stats(hidden @ weight.T, targets)
    assert stats.entropy.shape == (2, 300)
    for fused, plain in zip(stats[:4], whole[:4], strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)
    assert token_stats(hidden[:, :0], head=lambda rows: rows @ weight.T).entropy.shape == (2, 0)


def test_gradient_through_a_head_matches_full_logits() -> None:
    g = torch.Generator().manual_seed(12)
    hidden = torch.randn(300, 8, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 8, generator=g, dtype=torch.float64, requires_grad=True)
    fused = torch.autograd.grad(token_stats(hidden, head=lambda rows: rows @ weight.T).entropy.sum(), (hidden, weight))
    plain = torch.autograd.grad(token_stats(hidden @ weight.T).entropy.sum(), (hidden, weight))
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"targets": torch.zeros(3, dtype=torch.long)}, r"targets have shape \(3,\), expected \(2,\)"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"top_k": 0}, "top_k 0"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_stats(torch.zeros(2, 5), **arguments)


# --- Entropy from the top k: against the definition, and limits that hold for every distribution and are  ---


def draw(seed: int, vocabulary: int, sharpness: float) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(5, vocabulary)) * sharpness
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.sort(p / p.sum(axis=1, keepdims=True), axis=1)[:, ::-1]


@given(st.integers(0, 1000), st.integers(2, 60), st.integers(1, 60), st.floats(0, 20))
def test_the_limits_hold(seed: int, vocabulary: int, k: int, sharpness: float) -> None:
    p = draw(seed, vocabulary, sharpness)
    seen = truncated_entropy(p[:, :k], vocabulary)
    H = scipy.stats.entropy(p, axis=1)
    assert (seen.lower <= H + 1e-9).all()
    assert (seen.upper >= H - 1e-9).all()
    assert seen.tail_mass == pytest.approx(p[:, k:].sum(axis=1), abs=1e-12)
    kept = p[:, :k] / p[:, :k].sum(axis=1, keepdims=True)
    assert seen.entropy == pytest.approx(scipy.stats.entropy(kept, axis=1))
    surprise = -np.log(np.where(kept > 0, kept, 1))
    second = (kept * (surprise - seen.entropy[:, None]) ** 2).sum(axis=1)
    assert seen.varentropy == pytest.approx(second, abs=1e-9)


def test_a_flat_tail_reaches_the_upper_limit_and_a_steep_one_the_lower() -> None:
    flat = np.array([[0.4, 0.2, 0.1, 0.1, 0.1, 0.1]])
    assert truncated_entropy(flat[:, :2], 6).upper == pytest.approx(scipy.stats.entropy(flat, axis=1))
    steep = np.array([[0.4, 0.2, 0.2, 0.2, 0.0, 0.0]])
    assert truncated_entropy(steep[:, :2], 6).lower == pytest.approx(scipy.stats.entropy(steep, axis=1))


def test_the_whole_distribution_leaves_nothing_open() -> None:
    p = draw(0, 7, 2.0)
    seen = truncated_entropy(p, 7)
    assert (seen.tail_mass == 0).all()
    assert seen.lower == pytest.approx(scipy.stats.entropy(p, axis=1))
    assert seen.upper == pytest.approx(seen.lower)


def test_certainty_is_zero() -> None:
    seen = truncated_entropy(np.array([[1.0, 0.0]]), 50_000)
    assert [float(x[0]) for x in (seen.entropy, seen.varentropy, seen.tail_mass, seen.lower, seen.upper)] == [0.0] * 5
