"""Questions about tokens: which of an update's tokens move the entropy, and is it those that the covariance names?

Each attributed step becomes a row of sums, `step_row`; `token_answer` says what the rows say together. A token's part c
is nats a sequence, the sum over the tokens is the first-order change by this batch.

And about prompts: how many does a reliable entropy need, from the responses of the probed steps?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from fluxentropy.rl.attribution import QUADRANTS, by_quadrant
from fluxentropy.rl.grpo_figures import Columns
from fluxentropy.rl.precision import entropy_precision, prompts_needed
from fluxentropy.rl.stepanswers import StepBootstrap

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
