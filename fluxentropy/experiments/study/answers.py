"""Questions about whole steps: how good are predictions of the entropy's change, and which parts does the change have?

Measured and predicted changes come from the same prompts, so the standard error of their difference is that of paired
numbers, `probe_measured_minus_*_se`; where a run of an earlier version has none, se_measured + se_predicted, which it
never exceeds. The update is given: all errors are those of the entropy batch.

Intervals are over the steps of several runs, and know how many runs there are:

    1 run            blocks of about n^(1/3) successive steps are drawn again, on a circle, since the steps of a run
                     follow each other and are correlated (Politis and Romano 1992); this is about no other run
    2 to 7 runs      each run is left out once: value ± t_{0.975, R-1} √((R-1)/R Σ (value without r - their mean)²), the
                     jackknife over runs; a bootstrap of 3 covers 78 % instead of 95 (docs/LOG.md)
    8 runs or more   whole runs are drawn again, and blocks of steps in them

Every resample, or run that is left out, is a weight of each step, so that all statistics are weighted ones, of all at
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from scipy import stats

from fluxentropy.experiments.statistics import FEWEST as FEWEST_RUNS
from fluxentropy.rl.grpo.figures import some
from fluxentropy.rl.probe.attribution import QUADRANTS, by_quadrant
from fluxentropy.rl.probe.estimate import entropy_precision, prompts_needed
from fluxentropy.runs.tables import Columns

# --- steps ------------------------------------------------------------------------------------------------------------


LEVEL = 0.95
FEWEST = 4  # steps that an interval is made of
Interval = dict[str, float]  # value, low, high; limits are NaN where there are too few steps


def block_weights(lengths: Sequence[int], replicates: int, seed: int = 0) -> np.ndarray:
    """How often each step counts; the first row is 1, the data themselves. `lengths` of the runs -> (1 + replicates, N)

    >>> block_weights([3, 2], 4).sum(1).tolist()[0]
    5.0
    """
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(int)
    weights = np.zeros((replicates, starts[-1]))
    drawn = rng.integers(0, len(lengths), (replicates, len(lengths))) if len(lengths) > 1 else np.zeros((replicates, 1))
    for slot in drawn.T:
        for run, n in enumerate(lengths):
            rows = np.flatnonzero(slot == run)
            if not n or not len(rows):
                continue
            block = max(1, round(n ** (1 / 3)))
            first = rng.integers(0, n, (len(rows), -(-n // block)))
            steps = ((first[..., None] + np.arange(block)) % n).reshape(len(rows), -1)[:, :n]
            np.add.at(weights, (rows[:, None], starts[run] + steps), 1.0)
    return np.vstack([np.ones(starts[-1]), weights])


class StepBootstrap:
    """Statistics of columns (N,) over the steps of runs of these `lengths`; steps with a NaN are passed over.

    >>> StepBootstrap([5], 200).mean(np.arange(5.0))["value"]
    2.0
    """

    def __init__(self, lengths: Sequence[int], replicates: int = 2000, seed: int = 0) -> None:
        assert replicates >= FEWEST_RUNS
        self.runs = np.repeat(np.arange(len(lengths)), lengths)
        self.weights = block_weights(lengths, replicates, seed)

    def mean(self, x: np.ndarray) -> Interval:
        """Σ x / n."""
        w, x = self._finite(x)
        return found(_divided(w @ x, w.sum(1)), len(x))

    def ratio(self, x: np.ndarray, y: np.ndarray) -> Interval:
        """Σ x / Σ y; NaN where the sign of Σ y is not sure, for then the ratio may be anything."""
        w, x, y = self._finite(x, y)
        below = w @ y
        if not ((y >= 0).all() or (y <= 0).all() or _sign_is_sure(below)):
            below = np.full(len(below), np.nan)
        return found(_divided(w @ x, below), len(x))

    def root_ratio(self, x: np.ndarray, y: np.ndarray) -> Interval:
        """√(Σ x / Σ y), where Σ x < 0 counts as 0."""
        w, x, y = self._finite(x, y)
        below = w @ y
        return found(np.sqrt(np.maximum(_divided(w @ x, np.where(below > 0, below, np.nan)), 0.0)), len(x), least=0.0)

    def root_shares(self, columns: Sequence[np.ndarray]) -> list[Interval]:
        """√Σ x of each column over the sum of these roots; Σ x < 0 counts as 0."""
        w, *xs = self._finite(*columns)
        roots = [np.sqrt(np.maximum(w @ x, 0.0)) for x in xs]
        return [found(_divided(root, np.sum(roots, axis=0)), len(xs[0]), least=0.0) for root in roots]

    def median(self, x: np.ndarray) -> Interval:
        """The middle value, or the mean of the middle two."""
        w, x = self._finite(x)
        if not len(x):
            return found(np.full(1, np.nan), 0)
        order = np.argsort(x, kind="stable")
        counts = np.cumsum(w[:, order], axis=1)
        half = counts[:, -1:] / 2
        below, above = ((reached).argmax(1) for reached in (counts >= half, counts > half))
        values = (x[order][below] + x[order][above]) / 2
        return found(np.where(counts[:, -1] > 0, values, np.nan), len(x))

    def correlation(self, x: np.ndarray, y: np.ndarray) -> Interval:
        """Pearson's."""
        w, x, y = self._finite(x, y)
        xx, xy, yy, *_ = _moments(w, x, y)
        return found(_divided(xy, np.sqrt(xx * yy)), len(x))

    def line(self, x: np.ndarray, y: np.ndarray) -> tuple[Interval, Interval]:
        """Slope and intercept of y on x by least squares."""
        w, x, y = self._finite(x, y)
        xx, xy, _, mx, my = _moments(w, x, y)
        slope = _divided(xy, xx)
        return found(slope, len(x)), found(my - slope * mx, len(x))

    def _finite(self, *columns: np.ndarray) -> list[np.ndarray]:
        """The weights of the steps that have all of these numbers, the first row 1, and the numbers."""
        here = np.isfinite(np.stack(columns)).all(0)
        w, runs = self.weights[:, here], self.runs[here]
        if 2 <= len(known := np.unique(runs)) < FEWEST_RUNS:
            w = np.vstack([np.ones(len(runs)), runs != known[:, None]])
        elif len(known) == 1 < self.runs[-1] + 1:  # of several: what the others lack
            w = block_weights([len(runs)], len(w) - 1)
        return [w, *(column[here] for column in columns)]


def found(values: np.ndarray, steps: int, *, least: float = -np.inf) -> Interval:
    """The value of the data (the first), with limits: percentiles of the others, or t where they are runs left out.

    Fewer than FEWEST_RUNS others are such; `least`: what the number cannot be below.
    """
    others = values[1:][np.isfinite(values[1:])]
    value, ends = float(values[0]), [np.nan, np.nan]
    if steps >= FEWEST and len(others) >= 0.9 * (len(values) - 1) > 0 and np.isfinite(value):
        if len(values) - 1 < FEWEST_RUNS:
            half = _jackknife_half(others)
            ends = [max(value - half, least), value + half]
        else:
            ends = np.quantile(others, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return {"value": value, "low": ends[0], "high": ends[1]}


def _jackknife_half(without: np.ndarray) -> float:
    """Half of the t interval of a number, by its values (R,) without each of the runs."""
    R = len(without)
    return float(stats.t.ppf((1 + LEVEL) / 2, R - 1) * np.sqrt((R - 1) / R * ((without - without.mean()) ** 2).sum()))


def _sign_is_sure(sums: np.ndarray) -> bool:
    if len(sums) - 1 < FEWEST_RUNS:  # runs left out; two at least
        return bool(abs(sums[0]) > _jackknife_half(sums[1:]))
    return bool(np.mean(np.sign(sums) == np.sign(sums[0])) >= (1 + LEVEL) / 2)


def _divided(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.divide(x, y, out=np.full(np.shape(x), np.nan), where=y != 0)


def _moments(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Weighted variances and covariance of x and y, and their means, of each row of w."""
    n = w.sum(1)
    mx, my = _divided(w @ x, n), _divided(w @ y, n)
    dx, dy = x - mx[:, None], y - my[:, None]
    return (w * dx * dx).sum(1), (w * dx * dy).sum(1), (w * dy * dy).sum(1), mx, my


# --- questions --------------------------------------------------------------------------------------------------------


NOT_JUDGED = "not judged"
PREDICTIONS = {"first": "first order", "predicted": "second order", "snis": "self-normalised weights"}

PARTS = {
    "optimizer": ("first", ("batch", "momentum", "decay")),
    "pairs": ("kernel_total", ("kernel_identical", "kernel_same_prompt", "kernel_cross_prompt")),
}


def gap(columns: Columns, name: str, unit: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """Measured minus predicted at each step, its standard error, and whether that is the paired one."""
    measured, predicted = f"probe_measured_per_{unit}", f"probe_{name}_per_{unit}"
    paired = f"probe_measured_minus_{name}_per_{unit}_se"
    bound = columns[f"{measured}_se"] + columns[f"{predicted}_se"]
    error = columns.get(paired, np.full(len(bound), np.nan))
    known = np.isfinite(error)
    return columns[measured] - columns[predicted], np.where(known, error, bound), bool(known[np.isfinite(bound)].all())


def half_width(error: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """Of the t interval of a number whose standard error is between so many prompts."""
    return np.asarray(stats.t.ppf((1 + LEVEL) / 2, np.maximum(prompts - 1, 1)) * error)


def covers(difference: np.ndarray, half: np.ndarray) -> np.ndarray:
    """1 where difference ± half has 0 in it, else 0; NaN where it is unknown."""
    return _indicator(difference + half, np.abs(difference) <= half)


def prediction(columns: Columns, name: str, unit: str, boot: StepBootstrap) -> dict[str, Any]:
    """How a prediction fits the measured change.

    `rms`: √(Σ d² / Σ m²) of differences d and measured changes m; `rms_true` the same of Σ (d² - se_d²) and
    Σ (m² - se_m²), what is left when the noise of the entropy batch is taken off.
    """
    m, p = columns[f"probe_measured_per_{unit}"], columns[f"probe_{name}_per_{unit}"]
    se_m = columns[f"probe_measured_per_{unit}_se"]
    d, se, paired = gap(columns, name, unit)
    here = np.isfinite(d + se)
    slope, intercept = boot.line(p, m)
    relative = np.where(m != 0, np.abs(d) / np.abs(np.where(m != 0, m, 1)), np.nan)
    half = half_width(se, columns["probe_prompts"])
    return {
        "steps": int(here.sum()),
        "paired": paired,
        "slope": slope,
        "intercept": intercept,
        "correlation": boot.correlation(p, m),
        "total": boot.ratio(np.where(here, p, np.nan), np.where(here, m, np.nan)),
        "relative": boot.median(relative),
        "rms": boot.root_ratio(d**2, m**2),
        "rms_true": boot.root_ratio(d**2 - se**2, np.where(here, m**2 - se_m**2, np.nan)),
        "covered": boot.mean(covers(d, half)),
        "half_width": boot.root_ratio(np.where(here, half**2, np.nan), np.where(here, m**2, np.nan)),
    }


def verdict(rms: Interval, tolerance: float, noise: float) -> str:
    """What an interval of the relative error says of a prediction.

    Nothing where the `noise` of a step, its half-width as a share of the change, would hide the whole change.
    """
    if not np.isfinite(rms["low"]) or not noise < 1:
        return NOT_JUDGED
    if rms["high"] < tolerance:
        return "good enough"
    return "not good enough" if rms["low"] > tolerance else "undecided"


def validity(columns: Columns, unit: str, boot: StepBootstrap) -> dict[str, Interval]:
    """How far a step goes: eta* and the ghost radius in steps, and the effective share of the responses."""
    found = {}
    if some(columns, eta := f"probe_eta_star_per_{unit}"):
        found["eta_star"] = boot.median(columns[eta])
        found["eta_star_below_1"] = boot.mean(_indicator(columns[eta], columns[eta] < 1))
    if some(columns, "probe_ghost_radius"):
        found["ghost_radius"] = boot.median(columns["probe_ghost_radius"])
    if some(columns, "probe_effective_sample_size"):
        share = columns["probe_effective_sample_size"] / columns["probe_responses"]
        found |= {
            "effective_share": boot.median(share),
            "effective_below_half": boot.mean(_indicator(share, share < 0.5)),
        }
    return found


def fresh(columns: Columns, unit: str, boot: StepBootstrap) -> dict[str, Any] | None:
    """The measured change against that between the rollouts of the step and of the next, other prompts both.

    `covered`: steps whose 95% interval of the difference has 0 in it; `z`: the mean of (difference / se)², 1 if the
    standard errors are right. None where the runs have several inner epochs, or no step after a probed one.
    """
    names = [f"{when}entropy_per_{unit}{end}" for when in ("", "next_") for end in ("", "_se")]
    measured = f"probe_measured_per_{unit}"
    if not some(columns, measured, *names):
        return None
    before, se_before, after, se_after = (columns[name] for name in names)
    d = columns[measured] - (after - before)
    se = np.sqrt(columns[f"{measured}_se"] ** 2 + se_before**2 + se_after**2)
    return {
        "steps": int(np.isfinite(d + se).sum()),
        "difference": boot.mean(d),
        "covered": boot.mean(covers(d, half_width(se, np.full(len(d), np.inf)))),
        "z": boot.mean((d / np.where(se > 0, se, np.nan)) ** 2),
    }


# --- parts ------------------------------------------------------------------------------------------------------------


def parts(columns: Columns, kind: str, unit: str, boot: StepBootstrap) -> dict[str, Any] | None:
    """The parts of a change: `mean` in nats, and three shares of the whole.

    `signed` Σ part / Σ whole; `share` Σ part · whole / Σ whole², how much of a step's change the part makes, whatever
    its sign; `size` Σ |part| / Σ Σ |parts|. The first two sum to 1 over the parts, for the whole is their sum.

    `size_true` is √Σ (part² - se²) over the sum of these, without the noise that makes small parts look larger; None
    where parts have no standard errors. None where the steps have no such parts.
    """
    unit = "sequence" if kind == "pairs" else unit
    whole, names = PARTS[kind]
    ends = "" if kind == "pairs" else f"_per_{unit}"
    keys = [f"probe_{name}{ends}" for name in names]
    if not some(columns, f"probe_{whole}{ends}", *keys):
        return None
    values = {name: columns[key] for name, key in zip(names, keys, strict=True)}
    sizes = np.sum([np.abs(value) for value in values.values()], axis=0)
    total = np.where(np.isfinite(sizes), np.sum(list(values.values()), axis=0), np.nan)
    true: dict[str, Interval] = {}
    if all(f"{key}_se" in columns for key in keys):
        squares = [columns[key] ** 2 - columns[f"{key}_se"] ** 2 for key in keys]
        true = dict(zip(names, boot.root_shares(squares), strict=True))
    return {
        "unit": unit,
        "steps": int(np.isfinite(sizes).sum()),
        "whole": boot.mean(total),
        "parts": {
            name.removeprefix("kernel_"): {
                "mean": boot.mean(value),
                "share": boot.ratio(value * total, total**2),
                "signed": boot.ratio(value, total),
                "size": boot.ratio(np.abs(value), sizes),
                "size_true": true.get(name),
            }
            for name, value in values.items()
        },
    }


def diagonal(columns: Columns, boot: StepBootstrap) -> dict[str, Any] | None:
    """What a diagonal kernel predicts, -lr Cov(S, A/norm), beside this batch's part and the measured change."""
    if not some(columns, "probe_covariance_per_lr", "lr"):
        return None
    predicted = columns["probe_covariance_per_lr"] * columns["lr"]
    found: dict[str, Any] = {"steps": int(np.isfinite(predicted).sum()), "mean": boot.mean(predicted)}
    for name in ("batch", "measured"):
        if some(columns, key := f"probe_{name}_per_sequence"):
            same = _indicator(columns[key] * predicted, np.sign(predicted) == np.sign(columns[key]))
            found[name] = {
                "correlation": boot.correlation(predicted, columns[key]),
                "same_sign": boot.mean(same),
                "total": boot.ratio(np.where(np.isfinite(columns[key]), predicted, np.nan), columns[key]),
            }
    return found


def sketched(columns: Columns, boot: StepBootstrap) -> dict[str, Interval] | None:
    """How far the kernel's total, from a sketch, is from this batch's part of the split, which it estimates."""
    if not some(columns, "probe_kernel_total", "probe_batch_per_sequence"):
        return None
    total, batch = columns["probe_kernel_total"], columns["probe_batch_per_sequence"]
    known = np.where(np.isfinite(total), batch, np.nan)
    return {"correlation": boot.correlation(total, batch), "error": boot.root_ratio((total - batch) ** 2, known**2)}


def common_prompts(columns: Columns, boot: StepBootstrap) -> Interval | None:
    """The share of steps whose entropy batch has a prompt of the update."""
    if not some(columns, "probe_kernel_identical", "probe_kernel_same_prompt"):
        return None
    same = np.abs(columns["probe_kernel_identical"]) + np.abs(columns["probe_kernel_same_prompt"])
    return boot.mean(_indicator(same, same > 0))


def _indicator(known: np.ndarray, true: np.ndarray) -> np.ndarray:
    """1 or 0, NaN where it is not known."""
    return np.where(np.isfinite(known), true.astype(float), np.nan)


# --- tokens and prompts -----------------------------------------------------------------------------------------------
#
# Each attributed step becomes a row of sums, `step_row`; `token_answer` says what the rows say together. A token's
# part c is nats a sequence, the sum over the tokens is the first-order change by this batch.
#
# And about prompts: how many does a reliable entropy need, from the responses of the probed steps?


SHARES = (0.5, 0.8, 0.9)
GRID = np.linspace(0, 1, 51)  # of a concentration curve
POSITIONS = 8  # tokens, or eighths where a response is longer
Rare = Literal["median", "entropy"]
RIGHT = ("right", "wrong")


def step_row(tokens: Columns, responses: Columns | None, *, by: Rare = "entropy") -> dict[str, float | np.ndarray]:
    """The sums over one step's tokens; by right and wrong answers where the step's responses are known.

    `by`: rare tokens are those of ln p < -H, or those below the median log-probability (`attribution.rare_tokens`).
    """
    c, logp, A = tokens["change"], tokens["logp"], tokens["advantage"]
    answer, each = np.unique(np.stack([tokens["prompt"], tokens["response"]]), axis=1, return_inverse=True)
    each = each.ravel()
    by_response = np.bincount(each, c)
    rare = logp < (np.quantile(logp, 0.5) if by == "median" else -tokens["entropy"])
    classes = by_quadrant(A, rare)
    last = np.maximum(np.bincount(each), 1)[each]
    place = np.minimum(tokens["position"] * POSITIONS // last, POSITIONS - 1)
    classes |= {f"eighth_{n}": place == n for n in range(POSITIONS)}
    classes |= {f"token_{n}": tokens["position"] == n for n in range(POSITIONS)}
    if responses is not None:
        right = _right(answer, responses)
        classes |= {name: right[each] == (name == "right") for name in RIGHT}
    row: dict[str, float | np.ndarray] = {
        "tokens": float(len(c)),
        "change": float(c.sum()),
        "longest": float(last.max()),
    }
    row |= {"down": float(np.minimum(c, 0).sum()), "up": float(np.maximum(c, 0).sum())}
    for name, inside in classes.items():
        row[f"{name}_tokens"] = float(inside.sum())
        row[f"{name}_change"] = float(c[inside].sum())
        row[f"{name}_down"] = float(np.minimum(c[inside], 0).sum())
        row[f"{name}_up"] = float(np.maximum(c[inside], 0).sum())
    moved = A != 0
    row |= agreement(c[moved], logp[moved], A[moved], tokens["prompt"][moved])
    for name, parts in (("tokens", c), ("responses", by_response)):
        row[f"curve_{name}"] = concentration(parts, GRID)
        for share in SHARES:
            row[f"{name}_for_{share:g}"] = carrying(parts, share)
    by_prompt = np.bincount(np.unique(answer[0], return_inverse=True)[1].ravel(), by_response)
    row |= {"by_token": float(np.abs(c).sum()), "by_response": float(np.abs(by_response).sum())}
    return row | {"by_prompt": float(np.abs(by_prompt).sum())}


def agreement(c: np.ndarray, logp: np.ndarray, A: np.ndarray, prompt: np.ndarray) -> dict[str, float]:
    """How far parts c follow the covariance's -(A - Ā)(ln p - mean ln p): over all tokens, and within prompts."""
    names = ("correlation", "same_sign", "correlation_within")
    if len(c) < 3:
        return dict.fromkeys(names, np.nan)
    predicted = -(A - A.mean()) * (logp - logp.mean())
    _, at = np.unique(prompt, return_inverse=True)

    def centred(x: np.ndarray) -> np.ndarray:
        return np.asarray(x - (np.bincount(at, x) / np.bincount(at))[at])

    values = (
        _correlation(predicted, c),
        float((np.sign(predicted) == np.sign(c)).mean()),
        _correlation(centred(-centred(A) * centred(logp)), centred(c)),
    )
    return dict(zip(names, values, strict=True))


def concentration(parts: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """The share of Σ |part| that the largest `shares` of the parts carry; NaN where all are 0.

    >>> concentration(np.array([3.0, -1.0, 0.0, 0.0]), np.array([0.0, 0.25, 0.5, 1.0])).tolist()
    [0.0, 0.75, 1.0, 1.0]
    """
    size = np.sort(np.abs(parts))[::-1]
    sums = np.concatenate([[0.0], np.cumsum(size)])
    if not sums[-1] > 0:
        return np.full(len(shares), np.nan)
    return np.asarray(np.interp(shares * len(size), np.arange(len(sums)), sums / sums[-1]))


def carrying(parts: np.ndarray, share: float) -> float:
    """The smallest share of the parts that carries `share` of Σ |part|.

    >>> carrying(np.array([3.0, -1.0, 0.0, 0.0]), 0.8)
    0.5
    """
    sums = np.cumsum(np.sort(np.abs(parts))[::-1])
    if not len(sums) or not sums[-1] > 0:
        return float("nan")
    return float((np.searchsorted(sums, share * sums[-1] * (1 - 1e-12)) + 1) / len(sums))


def token_answer(rows: Sequence[Sequence[dict[str, Any]]], boot: StepBootstrap) -> dict[str, Any]:
    """What the rows of the attributed steps of each run say, with intervals; `boot` is over these steps."""
    every = [row for run in rows for row in run]
    columns = {name: np.array([row.get(name, np.nan) for row in every]) for name in every[0] if "curve" not in name}
    for row in every[1:]:
        for name in row:
            if "curve" not in name and name not in columns:
                columns[name] = np.array([other.get(name, np.nan) for other in every])
    place = "token" if max(row["longest"] for row in every) <= POSITIONS else "eighth"
    names = [*QUADRANTS, *(f"{place}_{n}" for n in range(POSITIONS)), *RIGHT]
    return {
        "steps": len(every),
        "tokens_per_step": float(columns["tokens"].mean()),
        "change": boot.mean(columns["change"]),
        "down": boot.mean(columns["down"]),
        "up": boot.mean(columns["up"]),
        "classes": {
            name: _class(columns, name, boot) for name in names if np.nansum(columns.get(f"{name}_tokens", 0)) > 0
        },
        "agreement": {name: boot.mean(columns[name]) for name in ("correlation", "same_sign", "correlation_within")},
        "needed": {
            of: {f"{share:g}": boot.mean(columns[f"{of}_for_{share:g}"]) for share in SHARES}
            for of in ("tokens", "responses")
        },
        "cancelled": {
            f"within_{of}s": _complement(boot.ratio(columns[f"by_{of}"], columns[f"by_{inner}"]))
            for of, inner in (("response", "token"), ("prompt", "response"))
        },
        "curves": {of: _mean_curve([row[f"curve_{of}"] for row in every]) for of in ("tokens", "responses")},
        "grid": GRID.tolist(),
    }


def _class(columns: Columns, name: str, boot: StepBootstrap) -> dict[str, Any]:
    known = np.where(np.isfinite(columns[f"{name}_tokens"]), 1.0, np.nan)
    return {
        "tokens": boot.ratio(columns[f"{name}_tokens"], columns["tokens"] * known),
        "down": boot.ratio(columns[f"{name}_down"], columns["down"] * known),
        "up": boot.ratio(columns[f"{name}_up"], columns["up"] * known),
        "change": boot.mean(columns[f"{name}_change"]),
    }


def _right(answer: np.ndarray, responses: Columns) -> np.ndarray:
    """Whether each response (prompt, response) of the step got a reward of 1 or more."""
    right = {
        (int(n), int(g)): reward >= 1
        for n, g, reward in zip(responses["prompt"], responses["response"], responses["reward"], strict=True)
    }
    return np.array([right.get((int(n), int(g)), False) for n, g in answer.T])


def _complement(one: dict[str, float]) -> dict[str, float]:
    return {"value": 1 - one["value"], "low": 1 - one["high"], "high": 1 - one["low"]}


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")


def _mean_curve(curves: Sequence[np.ndarray]) -> list[float]:
    kept = [curve for curve in curves if np.isfinite(curve).all()]
    return np.mean(kept, axis=0).tolist() if kept else []


# --- prompts ----------------------------------------------------------------------------------------------------------


RELATIVE = (0.01, 0.05, 0.1)
REPLICATES = 200  # batches of each size
UNITS = ("per_sequence", "per_token")


def batches(responses: Columns) -> list[tuple[np.ndarray, np.ndarray]]:
    """ΣH and length (B, G) of the responses of each step; without steps of fewer than 3 prompts, or of entropy 0."""
    found = []
    for step in np.unique(responses["step"]):
        here = responses["step"] == step
        order = np.lexsort((responses["response"][here], responses["prompt"][here]))
        prompts, counts = np.unique(responses["prompt"][here], return_counts=True)
        entropy, length = (responses[name][here][order] for name in ("entropy", "length"))
        if len(prompts) >= 3 and len(set(counts)) == 1 and entropy.sum() > 0:
            found.append((entropy.reshape(len(prompts), -1), length.reshape(len(prompts), -1).astype(float)))
    return found


def prompt_answer(
    runs: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], boot: StepBootstrap, *, seed: int = 0
) -> dict[str, Any]:
    """Prompts needed for a relative standard error, and that error at every size; medians over steps.

    `runs`: the `batches` of each run; `boot` is over these steps. By responses to a prompt: the first 1, 2, 4, ... of
    each. `curve`: the error of batches that are drawn from those of a step, as `precision.entropy_precision` has it.
    """
    every = [batch for run in runs for batch in run]
    prompts, most = (min(batch[0].shape[axis] for batch in every) for axis in (0, 1))
    each = sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})
    return {
        "steps": len(every),
        "prompts": prompts,
        "by_responses": {str(G): _of_size(every, G, boot, seed) for G in each},
    }


def _of_size(every: Sequence[tuple[np.ndarray, np.ndarray]], G: int, boot: StepBootstrap, seed: int) -> dict[str, Any]:
    cut = [(entropy[:, :G], length[:, :G]) for entropy, length in every]
    needed = {share: [prompts_needed(H, T, relative=share) for H, T in cut] for share in RELATIVE}
    sizes = [2**power for power in range(1, 32) if all(2**power <= len(H) for H, _ in cut)]
    drawn = [entropy_precision(H, T, sizes, replicates=REPLICATES, seed=seed) for H, T in cut]
    return {
        "needed": {
            unit: {
                f"{share:g}": boot.median(np.array([float(getattr(n, unit)) for n in needed[share]]))
                for share in RELATIVE
            }
            for unit in UNITS
        },
        "curve": {
            unit: {
                str(size): boot.median(np.array([getattr(steps[place], unit).relative for steps in drawn]))
                for place, size in enumerate(sizes)
            }
            for unit in UNITS
        },
    }
