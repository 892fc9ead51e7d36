"""Learning-rate schedules: their shapes, their borders, and torch's own schedulers."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR

from fluxentropy.errors import UsageError
from fluxentropy.pretraining.options import LRConfig, constant, cosine, trapezoid

BUDGET = 1000


def torch_rates(make: Any, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_the_cosine_is_that_of_torch() -> None:
    want = torch_rates(lambda optimizer: CosineAnnealingLR(optimizer, T_max=800, eta_min=0.1), 800)
    got = [cosine(200 + tokens, BUDGET, warmup=0.2, floor=0.1) for tokens in range(801)]
    assert got == pytest.approx(want)


def test_the_decay_of_the_trapezoid_is_linear() -> None:
    want = torch_rates(lambda optimizer: LinearLR(optimizer, 1.0, 0.25, total_iters=400), 400)
    got = [trapezoid(600 + tokens, BUDGET, warmup=0.1, decay=0.4, floor=0.25) for tokens in range(401)]
    assert got == pytest.approx(want)
    assert {trapezoid(tokens, BUDGET, warmup=0.1, decay=0.4) for tokens in range(100, 601)} == {1.0}


@pytest.mark.parametrize("schedule", ["trapezoid", "cosine", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_every_schedule_rises_to_one_and_never_again(schedule: Any, warmup: float) -> None:
    config = LRConfig(schedule=schedule, warmup=warmup, decay=min(0.3, 1 - warmup), floor=0.05)
    factors = [config.factor(tokens, BUDGET) for tokens in range(BUDGET + 1)]
    rise = int(warmup * BUDGET)
    assert factors[:rise] == pytest.approx([tokens / rise for tokens in range(rise)])
    assert factors[rise] == 1.0
    assert factors[rise:] == sorted(factors[rise:], reverse=True)
    assert max(abs(a - b) for a, b in itertools.pairwise(factors)) < 0.011  # no jump
    if warmup < 1:
        assert factors[-1] == pytest.approx(1.0 if schedule == "constant" else 0.05)
    assert config.factor(2 * BUDGET, BUDGET) == factors[-1]
    assert config.factor(-1, BUDGET) == factors[0]


def test_the_configuration_chooses_the_function() -> None:
    options = {"warmup": 0.1, "floor": 0.2}
    for tokens in range(0, BUDGET, 37):
        assert LRConfig(schedule="cosine", **options).factor(tokens, BUDGET) == cosine(tokens, BUDGET, **options)
        assert LRConfig(schedule="constant", **options).factor(tokens, BUDGET) == constant(tokens, BUDGET, warmup=0.1)
        want = trapezoid(tokens, BUDGET, decay=0.5, **options)
        assert LRConfig(decay=0.5, **options).factor(tokens, BUDGET) == want


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"warmup": 1.5}, "warmup 1.5: use a share from 0 to 1"),
        ({"floor": -0.1}, "floor -0.1: use a share"),
        ({"warmup": 0.7, "decay": 0.4}, "warmup 0.7 and decay 0.4 are more than the whole budget"),
    ],
)
def test_shares_that_make_no_schedule_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        LRConfig(**changes)
    assert LRConfig(schedule="cosine", warmup=0.7, decay=0.4).factor(1000, 1000) == 0.0  # it has no decay
