"""From the records of cells to `grpo_comparison.json`: each arm's numbers, its differences to the arm `none`, verdicts.

Differences are between runs of one seed, in the measure's own unit. Each measure is a family of its own: Holm's
correction is over the arms. The verdict on an arm rests on its reward; an entropy that is higher is neither better nor
worse, but it has collapsed or is kept:

    collapsed    final entropy < share · entropy at the first step, in that run

Rewards, accuracies and pass@k, all of them shares, are equal where a difference of the margin is ruled out on either
side; for entropies and numbers of responses there is no margin, so they are at most not distinguishable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fluxentropy.effects import holm
from fluxentropy.jsonvalues import plain
from fluxentropy.rl.grpocompareoptions import NONE
from fluxentropy.verdict import (
    SIGNIFICANT,
    Paired,
    detectable,
    equivalence,
    paired,
    same_runs,
    sd_limits,
    spread,
    word,
)

Record = Mapping[str, Any]  # of a cell, as grpocells.judged makes it
Runs = Mapping[str, Mapping[int, Record]]  # arm -> seed -> record

LAST = 0.1  # of the steps: what a final reward or entropy is the mean of
REWARD, ENTROPY, LOWEST = "final reward", "final entropy", "lowest entropy"
NATS = (ENTROPY, LOWEST, "mean entropy")  # the others are better where they are larger


def final(values: Sequence[float]) -> float:
    """The mean over the last tenth of the steps.

    >>> final([0.0] * 18 + [1.0, 2.0])
    1.5
    """
    return float(np.mean(values[-max(round(LAST * len(values)), 1) :]))


def numbers_of(record: Record) -> list[str]:
    """The k of pass@k, smallest first: JSON has them in another order."""
    return sorted(record["pass_at_k"], key=int)


def measures(record: Record) -> dict[str, float]:
    """What a run is compared by. Rewards and entropies are those of the training, the rest of held-out problems."""
    passed = {f"pass@{k}": record["pass_at_k"][k]["value"] for k in numbers_of(record)}
    last = list(passed)[-1]
    return {
        REWARD: final(record["reward"]),
        "mean reward": float(np.mean(record["reward"])),  # the area under the curve, by its width
        "greedy accuracy": record["greedy"],
        "pass@1": passed["pass@1"],
        last: passed[last],
        last.replace("pass", "distinct"): record["distinct"]["value"],
        ENTROPY: final(record["entropy"]),
        LOWEST: float(np.min(record["entropy"])),
        "mean entropy": float(np.mean(record["entropy"])),
    }


def judge(
    arms: Mapping[str, Mapping[str, Any]], records: Sequence[Record], *, seeds: int, share: float, margin: float
) -> dict[str, Any]:
    """What the finished cells say, as plain JSON; `arms`: what each has of its own, `share`: of a collapse."""
    runs: dict[str, dict[int, Record]] = {name: {} for name in arms}
    for record in records:
        runs[record["arm"]][record["seed"]] = record
    comparisons = [one for measure in measures(records[0]) for one in _compared(runs, measure, margin)]
    found: dict[str, Any] = plain(
        {
            "seeds": seeds,
            "samples": int(numbers_of(records[0])[-1]),
            "order": list(arms),
            "collapse": share,
            "margin": margin,
            "arms": {name: _arm(own, runs[name], share) for name, own in arms.items()},
            "comparisons": comparisons,
        }
    )
    for name, arm in found["arms"].items():
        arm["words"] = _words(name, arm, found["comparisons"])
    return found


# --- comparisons ------------------------------------------------------------------------------------------------------


def _compared(runs: Runs, measure: str, margin: float) -> list[dict[str, Any]]:
    """Each arm against `none` by one measure. Arms whose runs are those of another are neither tested nor counted."""
    first = same_runs(runs)
    found: dict[str, tuple[list[int], Paired]] = {}
    for name in runs:
        if name != NONE:
            shared = sorted(runs[name].keys() & runs[NONE].keys())
            ours, theirs = ([measures(runs[arm][seed])[measure] for seed in shared] for arm in (name, NONE))
            found[name] = shared, paired(np.array(ours) - np.array(theirs))
    tested = [name for name in found if first[name] == name]
    differences = [found[name][1] for name in tested]
    level = SIGNIFICANT / max(sum(np.isfinite(d.p) for d in differences), 1)  # of the first step of Holm's
    adjusted = dict(zip(tested, holm([d.p for d in differences]).tolist(), strict=True))
    beyond = [equivalence(d, margin) if has_margin(measure) else np.nan for d in differences]
    equal = dict(zip(tested, holm(beyond).tolist(), strict=True))
    comparisons = []
    for name, (shared, difference) in found.items():
        same = None if first[name] == name else first[name]
        p, equal_p = adjusted.get(first[name], np.nan), equal.get(first[name], np.nan)  # NaN of `none`
        least = detectable(difference.sd, difference.n, level=level)
        comparisons.append(
            {
                "arm": name,
                "against": NONE,
                "family": measure,
                "seeds": shared,
                "difference": vars(difference),
                "p_holm": p,
                "p_equal_holm": equal_p,
                "detectable_corrected": least,
                "detectable_corrected_interval": [least * limit for limit in sd_limits(difference.n)],
                "verdict": "the same" if same == NONE else verdict(measure, difference, p, equal_p),
                "same_as": same,
            }
        )
    return comparisons


def has_margin(measure: str) -> bool:
    """Whether a measure is a share, whose margin is one for all tasks."""
    return measure not in NATS and not measure.startswith("distinct")


def verdict(measure: str, difference: Paired, p: float, equal_p: float = np.nan) -> str:
    """better, worse, or of entropies higher, lower; equal; not distinguishable; not judged."""
    said = word(difference, p, equal_p)
    if said not in ("better", "worse"):
        return said
    up, down = ("higher", "lower") if measure in NATS else ("better", "worse")
    return up if difference.mean > 0 else down


# --- arms -------------------------------------------------------------------------------------------------------------


def _arm(own: Mapping[str, Any], runs: Mapping[int, Record], share: float) -> dict[str, Any]:
    """What an arm is, and its own numbers, over its seeds."""
    records = [runs[seed] for seed in sorted(runs)]
    found: dict[str, Any] = {"own": dict(own), "seeds": sorted(runs)}
    if not records:
        return found
    values = [measures(record) for record in records]
    starts = [record["entropy"][0] for record in records]
    kept = [value[ENTROPY] >= share * start for value, start in zip(values, starts, strict=True)]
    return found | {
        "steps": len(records[0]["steps"]),
        "held_out": records[0]["held_out"],
        "parameters": records[0]["parameters"],
        "measures": {name: spread([value[name] for value in values]) for name in values[0]},
        "pass_at_k": {
            k: spread([record["pass_at_k"][k]["value"] for record in records]) for k in numbers_of(records[0])
        },
        "first entropy": spread(starts),
        "kept": kept,
        "entropy": "kept"
        if all(kept)
        else "collapsed"
        if not any(kept)
        else f"kept in {sum(kept)} of {len(kept)} runs",
    }


def _words(name: str, arm: Mapping[str, Any], comparisons: Sequence[Mapping[str, Any]]) -> str:
    """An arm in one sentence."""
    if not arm["seeds"]:
        return f"{name}: no finished run"
    value = arm["measures"]
    entropy = (
        f"entropy {arm['entropy']}: {value[ENTROPY]['mean']:.3f} nats a token after "
        f"{arm['first entropy']['mean']:.3f} at the start"
    )
    one = next((one for one in comparisons if one["arm"] == name and one["family"] == REWARD), None)
    if one is None or not one["seeds"]:
        return f"{name}: reward {value[REWARD]['mean']:.3f}; {entropy}"
    found = one["difference"]
    limits = "" if found["low"] is None else f" [{found['low']:+.3f}, {found['high']:+.3f}]"
    p = "" if one["p_holm"] is None else f", p = {one['p_holm']:.2g} by Holm"
    if one["same_as"] is not None:
        return f"{name}: the same as {one['same_as']}, run by run; {entropy}"
    said = {"better": "better than", "worse": "worse than", "not distinguishable": "not distinguishable from"}
    against = (said | {"equal": "equal to"}).get(one["verdict"], "against")
    return f"{name}: reward {against} {NONE} ({found['mean']:+.3f}{limits}{p}); {entropy}"
