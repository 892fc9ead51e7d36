"""Questions about whole steps: how good are predictions of the entropy's change, and which parts does the change have?

Measured and predicted changes come from the same prompts, so the standard error of their difference is that of paired
numbers, `probe_measured_minus_*_se`; where a run of an earlier version has none, se_measured + se_predicted, which it
never exceeds. The update is given: all errors are those of the entropy batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from fluxentropy.rl.grpo_figures import Columns
from fluxentropy.rl.stepbootstrap import LEVEL, Interval, StepBootstrap

NOT_JUDGED = "not judged"
PREDICTIONS = {"first": "first order", "predicted": "second order", "snis": "self-normalised weights"}
PARTS = {
    "optimizer": ("first", ("batch", "momentum", "decay")),
    "pairs": ("kernel_total", ("kernel_identical", "kernel_same_prompt", "kernel_cross_prompt")),
}


def some(columns: Columns, *names: str) -> bool:
    """Whether there is a step that has all of these numbers."""
    return all(name in columns for name in names) and bool(
        np.isfinite(np.stack([columns[name] for name in names])).all(0).any()
    )


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
