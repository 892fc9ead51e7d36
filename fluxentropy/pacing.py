"""Pure functions of u = tokens seen / budget: how much of the corpus is open, and where in it a window stands.

Every function takes u (n,) in [0, 1] and gives (n,) in [0, 1]. The pool lambda(u) is the share of the corpus, lowest
scores first, that is drawn from; it starts at `start` and is the whole from u = `full` on:

    lambda(u) = start + (1 - start) g(u / full),  g(0) = 0, g(1) = 1

as Wu, Dyer and Neyshabur (2021, "When Do Curricula Work?") write it with their b and a.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

TEN = 10.0  # the steepness of "exponential" and "logarithmic" in Wu et al.

# --- pools: the share of the corpus that is open ----------------------------------------------------------------------


def polynomial(v: np.ndarray, start: float, power: float = 1.0) -> np.ndarray:
    """start + (1 - start) v^p; p = 1/2, 1, 2 are the root, linear and quadratic pacing of Wu et al. (2021)."""
    return start + (1 - start) * v**power


def exponential(v: np.ndarray, start: float) -> np.ndarray:
    """start + (1 - start) (e^(10 v) - 1) / (e^10 - 1), of Wu et al. (2021)."""
    return start + (1 - start) * np.expm1(TEN * v) / np.expm1(TEN)


def logarithmic(v: np.ndarray, start: float) -> np.ndarray:
    """start + (1 - start) (1 + ln(v + e^-10) / 10), of Wu et al. (2021); it passes 1 by 5e-6 at v = 1, and is cut."""
    return start + (1 - start) * (1 + np.log(v + np.exp(-TEN)) / TEN)


def step(v: np.ndarray, start: float, steps: int = 1) -> np.ndarray:
    """start + (1 - start) floor(steps v) / steps; with one step that of Wu et al. (2021)."""
    return start + (1 - start) * np.floor(steps * v + 1e-12) / steps


def competence(v: np.ndarray, start: float, power: float = 2.0) -> np.ndarray:
    """(v (1 - start^p) + start^p)^(1/p): the competence of Platanios et al. (2019), c0 = start; p = 2 is their sqrt."""
    return (v * (1 - start**power) + start**power) ** (1 / power)


def root(v: np.ndarray, start: float, power: float = 3.0) -> np.ndarray:
    """The same with p = 3 at first: root-p in the survey of Wang, Chen and Zhu (2021)."""
    return competence(v, start, power)


# Name -> the function, and the parameter that it takes besides the start.
POOLS: dict[str, tuple[Callable[..., np.ndarray], str | None]] = {
    "polynomial": (polynomial, "power"),
    "exponential": (exponential, None),
    "logarithmic": (logarithmic, None),
    "step": (step, "steps"),
    "competence": (competence, "power"),
    "root": (root, "power"),
}


def pool(u: np.ndarray, pacing: str, *, start: float, full: float, **shape: float) -> np.ndarray:
    """lambda(u) of the pacing function of that name, a key of `POOLS`; `shape` is its power or its steps.

    >>> pool(np.array([0.0, 0.4, 0.8, 1.0]), "polynomial", start=0.2, full=0.8).round(9).tolist()
    [0.2, 0.6, 1.0, 1.0]
    """
    v = np.minimum(np.asarray(u) / full, 1)
    return np.where(v >= 1, 1.0, np.clip(POOLS[pacing][0](v, start, **shape), 0, 1))


# --- waves: positions that come back ----------------------------------------------------------------------------------


def cosine(phase: np.ndarray) -> np.ndarray:
    """(1 - cos(2 pi phase)) / 2: up and down once a cycle, slow at the turns."""
    return (1 - np.cos(2 * np.pi * phase)) / 2


def triangle(phase: np.ndarray) -> np.ndarray:
    """1 - |2 frac(phase) - 1|: up and down once a cycle, at an even pace."""
    return 1 - np.abs(2 * (phase % 1) - 1)


def sawtooth(phase: np.ndarray) -> np.ndarray:
    """frac(phase): up once a cycle, then back at once."""
    return phase % 1


WAVES = {"cosine": cosine, "triangle": triangle, "sawtooth": sawtooth}
