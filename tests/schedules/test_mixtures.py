"""Pacing functions against their published formulas and endpoints; waves against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxentropy.schedules.mixtures import POOLS, WAVES, pool

# As Wu, Dyer and Neyshabur (2021) print them, with N = 1 and T = 1: t, a and b as there.
PUBLISHED = {
    "polynomial": lambda t, a, b: b + (1 - b) / a * t,
    "exponential": lambda t, a, b: b + (1 - b) / (math.exp(10) - 1) * (math.exp(10 * t / a) - 1),
    "logarithmic": lambda t, a, b: b + (1 - b) * (1 + 0.1 * math.log(t / a + math.exp(-10))),
    "step": lambda t, a, b: b + (1 - b) * math.floor(t / a),
    "competence": lambda t, a, b: math.sqrt(t / a * (1 - b**2) + b**2),  # Platanios et al. (2019)
    "root": lambda t, a, b: (t / a * (1 - b**3) + b**3) ** (1 / 3),
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("a", [0.3, 1.0])
@pytest.mark.parametrize("b", [0.0, 0.01, 0.25])
def test_published_formulas(name: str, a: float, b: float) -> None:
    u = np.linspace(0, 1, 101)
    expected = [1.0 if t >= a else min(PUBLISHED[name](t, a, b), 1) for t in u]
    np.testing.assert_allclose(pool(u, name, start=b, full=a), expected, atol=1e-12)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_powers(power: float) -> None:
    u = np.linspace(0, 1, 11)
    np.testing.assert_allclose(pool(u, "polynomial", start=0, full=1, power=power), u**power)
    np.testing.assert_allclose(pool(u, "root", start=0, full=1, power=power), u ** (1 / power))


def test_steps() -> None:
    assert pool(np.array([0, 0.24, 0.25, 0.5, 0.99, 1]), "step", start=0.2, full=1, steps=4).tolist() == pytest.approx(
        [0.2, 0.2, 0.4, 0.6, 0.8, 1.0]
    )


@given(st.sampled_from(sorted(POOLS)), st.floats(0, 1), st.floats(0.01, 1))
def test_every_pool_grows_from_its_start_to_the_whole(name: str, start: float, full: float) -> None:
    u = np.linspace(0, 1, 301)
    found = pool(u, name, start=start, full=full)
    assert (np.diff(found) >= -1e-12).all()
    assert found[0] == pytest.approx(start, abs=1e-9) and (found[u >= full] == 1).all()


@pytest.mark.parametrize("name", WAVES)
def test_waves(name: str) -> None:
    phase = np.linspace(0, 1, 400, endpoint=False)
    wave = WAVES[name]
    np.testing.assert_allclose(wave(phase + 3), wave(phase), atol=1e-9)  # period 1
    assert wave(np.array([0.0])) == 0 and wave(phase).min() >= 0 and wave(phase).max() <= 1
    assert wave(phase).max() > 0.99 and wave(phase).mean() == pytest.approx(0.5, abs=2e-3)
    if name != "sawtooth":
        np.testing.assert_allclose(wave(1 - phase), wave(phase), atol=1e-9)  # down as it went up
    assert wave(np.array([0.25])) == pytest.approx(0.25 if name == "sawtooth" else 0.5)
