"""From the records of cells to a judgement: each arm's numbers, and each comparison's difference and verdict.

Comparisons are made between runs of the same seed. They stand in families; Holm's correction is over each family, and
an arm whose runs are those of another, number for number, is neither tested nor counted.

Schedules (`judge`, `comparison.json`). Differences are in per cent, and verdicts rest on the final bits per byte alone:

    against random   what was asked: each arm against the random arm that is trained like it
    order            each arm against its static mixture, and against its pacing with shuffled labels
    controls         the controls themselves, against random
    training         random arms that are trained in another way, against each other

Controllers (`judge_controllers`, `grpo_comparison.json`). Each arm is compared with `none` in each measure's own unit,
and each measure is a family. The verdict on an arm rests on its reward; an entropy that is higher is neither better nor
worse, but it has collapsed or is kept:

    collapsed    final entropy < share · entropy at the first step, in that run

Rewards, accuracies and pass@k, all of them shares, are equal where a difference of the margin is ruled out on either
side; for entropies and numbers of responses there is no margin, so they are at most not distinguishable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fluxentropy.evaluation.statistics import holm
from fluxentropy.experiments.arms import RANDOM, Arm, Record
from fluxentropy.experiments.options import NONE
from fluxentropy.experiments.statistics import (
    BELOW,
    SIGNIFICANT,
    Paired,
    area,
    detectable,
    equivalence,
    forgetting,
    in_words,
    paired,
    percent,
    reached,
    same_runs,
    sd_limits,
    spread,
    word,
)
from fluxentropy.runs.files import plain

Runs = Mapping[str, Mapping[int, Record]]  # arm -> seed -> record

FAMILIES = {
    "against random": "each arm against the random arm that is trained like it",
    "order": "each arm against its mixture without its order (static), and against its pacing with shuffled bins",
    "controls": "the controls against random",
    "training": "random arms that are trained in another way",
}

EARLY = 0.1  # of the budget: what forgetting of early bins is about
LAST = 0.1  # of the steps: what a final reward or entropy is the mean of
REWARD, ENTROPY, LOWEST = "final reward", "final entropy", "lowest entropy"
NATS = (ENTROPY, LOWEST, "mean entropy")  # the others are better where they are larger


# --- what both share --------------------------------------------------------------------------------------------------


def by_arm(arms: Iterable[str], records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    """The records by arm and seed; an arm without any is there too."""
    runs: dict[str, dict[int, Record]] = {name: {} for name in arms}
    for record in records:
        runs[record["arm"]][record["seed"]] = record
    return runs


def correct(
    family: Sequence[dict[str, Any]],
    measure: str,
    first: Mapping[str, str],
    margin: float | None,
    words: tuple[str, str] = BELOW,
) -> tuple[float, list[int | None]]:
    """Put Holm's adjusted p-values and the verdict into each comparison of a family.

    -> the level of the first test, and for each comparison the place of the one that is tested; None where none is

    `measure`: the key of the differences; `first`: the arm whose runs are those of each. What compares runs with
    themselves is no test, and what compares the same runs as another comparison of its family is that one again, so
    Holm's correction counts neither. Without a `margin` nothing is equal; `words`: of differences below and above 0.
    """
    differences = [Paired(**one[measure]) for one in family]
    tested: dict[tuple[str, str], int] = {}
    roles = [(first[one["arm"]], first[one["against"]]) for one in family]
    for place, (ours, theirs) in enumerate(roles):
        if ours != theirs:
            tested.setdefault((ours, theirs), place)
    asked = [differences[place] for place in tested.values()]
    level = SIGNIFICANT / max(sum(np.isfinite(d.p) for d in asked), 1)  # of the first step of Holm's
    adjusted = dict(zip(tested, holm([d.p for d in asked]).tolist(), strict=True))
    beyond = [np.nan if margin is None else equivalence(d, margin) for d in asked]
    equal = dict(zip(tested, holm(beyond).tolist(), strict=True))
    sources = [tested.get(role) for role in roles]
    for place, (one, role, source) in enumerate(zip(family, roles, sources, strict=True)):
        found = differences[place if source is None else source]
        p, equal_p = adjusted.get(role, np.nan), equal.get(role, np.nan)
        least = detectable(found.sd, found.n, level=level)
        one |= {
            "p_holm": p,
            "p_equal_holm": equal_p,
            "detectable_corrected": least,
            "detectable_corrected_interval": [least * share for share in sd_limits(found.n)],
            "verdict": "the same" if source is None else word(found, p, equal_p, words),
            "same_as": one["against"] if source is None else None if source == place else family[source]["arm"],
        }
    return level, sources


# --- schedules --------------------------------------------------------------------------------------------------------


def judge(arms: Sequence[Arm], records: Sequence[Record], *, seeds: int, margin: float) -> dict[str, Any]:
    """What the finished cells say, as plain JSON; `margin` (%): what is too little to matter, so counts as equal."""
    runs = by_arm([arm.name for arm in arms], records)
    first, asked = same_runs(runs), pairs(arms)
    comparisons: list[dict[str, Any]] = []
    for family in FAMILIES:
        members = [_compared(runs, *pair) for pair in asked if pair[2] == family]
        level, sources = correct(members, "percent", first, margin)
        for place, (one, source) in enumerate(zip(members, sources, strict=True)):
            arm, against, found = one["arm"], one["against"], Paired(**one["percent"])
            one["words"] = in_words(found, one["verdict"], arm, against, level=level, margin=margin)
            if source not in (None, place):
                other = members[source]
                one["words"] = f"{arm} is the same as {other['arm']}, run by run: {other['words']}"
        comparisons += members
    judged: dict[str, Any] = plain(
        {
            "seeds": seeds,
            "margin_percent": margin,
            "order": [arm.name for arm in arms],
            "arms": {arm.name: _arm(arm, runs) for arm in arms},
            "families": FAMILIES,
            "comparisons": comparisons,
        }
    )
    return judged


def pairs(arms: Sequence[Arm]) -> list[tuple[str, str, str]]:
    """Arm, what it is compared with, and the family of the comparison."""
    found: list[tuple[str, str, str]] = []
    for arm in arms:
        if arm.kind == "random":
            plain_arm = arms[0].name if RANDOM not in {other.name for other in arms} else RANDOM
            if arm.name != plain_arm:
                found.append((arm.name, plain_arm, "training"))
            continue
        found.append((arm.name, arm.baseline, "against random" if arm.kind == "arm" else "controls"))
        for kind in ("static", "shuffled"):
            control = arm.controls.get(kind, arm.baseline)
            if control != arm.baseline:
                found.append((arm.name, control, "order"))
    return sorted(found, key=lambda pair: list(FAMILIES).index(pair[2]))


def measured(record: Record) -> dict[str, Any]:
    """The numbers of a run that comparisons are made of: bits per byte, in all, by bin and by source."""
    return {
        "bpb": record["bpb"][-1],
        "area": area(np.array(record["tokens"]), np.array(record["bpb"])),
        "bins": [np.nan if value is None else value for value in record["bpb_by_bin"][-1]],  # None: no held-out blocks
        "sources": {name: float(one["bpb"]) for name, one in record.get("sources", {}).items()},
    }


def across(function: Callable[..., Any], *runs: Sequence[Any]) -> Any:
    """`function` of the numbers at each place of what is nested alike, a list of them for each of `runs`.

    >>> across(max, [{"a": 1, "b": [2, 3]}, {"a": 4, "b": [1, 5]}])
    {'a': 4, 'b': [2, 5]}
    """
    first = runs[0][0]
    if isinstance(first, Mapping):
        return {name: across(function, *([one[name] for one in run] for run in runs)) for name in first}
    if isinstance(first, list):
        return [across(function, *([one[place] for one in run] for run in runs)) for place in range(len(first))]
    return function(*runs)


def _compared(runs: Runs, arm: str, against: str, family: str) -> dict[str, Any]:
    """All differences between two arms, in per cent but for those of questions, without verdict."""
    shared = sorted(runs[arm].keys() & runs[against].keys())
    found: dict[str, Any] = {"arm": arm, "against": against, "family": family, "seeds": shared}
    if not shared:
        nothing = vars(paired([]))
        found |= {"bits_per_byte": None, "percent": nothing, "area_percent": nothing}
        return found | {"bins_percent": [], "sources_percent": {}}
    both = [[runs[name][seed] for seed in shared] for name in (arm, against)]
    ours, theirs = ([measured(record) for record in records] for records in both)
    found["bits_per_byte"] = float(
        np.mean([one["bpb"] - other["bpb"] for one, other in zip(ours, theirs, strict=True)])
    )
    differences = across(lambda a, b: vars(paired(percent(a, b))), ours, theirs)
    found |= {("percent" if name == "bpb" else f"{name}_percent"): one for name, one in differences.items()}
    asked = "answer_loglikelihood"
    if asked in both[0][0].get("questions", ()):
        a, b = (np.array([record["questions"][asked] for record in records]) for records in both)
        found[asked] = vars(paired(a - b))
    return found


# --- arms -------------------------------------------------------------------------------------------------------------


def _arm(arm: Arm, runs: Runs) -> dict[str, Any]:
    """What an arm is, and its own numbers, over its seeds."""
    mine = runs[arm.name]
    found: dict[str, Any] = {
        "kind": arm.kind,
        "of": arm.of,
        "baseline": arm.baseline,
        "controls": dict(arm.controls),
        "own": dict(arm.own),
        "seeds": sorted(mine),
    }
    if not mine:
        return found
    records = [mine[seed] for seed in sorted(mine)]
    return found | {
        "weights": records[0]["weights"],
        "parameters": records[0]["parameters"],
        "tokens": records[0]["tokens"][-1],
        **across(spread, [measured(record) for record in records]),
        "reach": _reach(arm, runs),
        "forgetting": _forgetting(arm, records),
        "questions": across(spread, [record["questions"] for record in records]),
        "marginal": np.mean([np.mean(record["mixture"], axis=0) for record in records], axis=0),
    }


def _reach(arm: Arm, runs: Runs) -> dict[str, Any]:
    """After how many tokens each seed has the final loss of the random arm's run of that seed, null if it never has."""
    theirs = runs.get(arm.baseline, {})
    tokens = [
        reached(np.array(record["tokens"]), np.array(record["bpb"]), theirs[seed]["bpb"][-1])
        if seed in theirs
        else None
        for seed, record in sorted(runs[arm.name].items())
    ]
    known = [value for value in tokens if value is not None]
    whole = next(iter(runs[arm.name].values()))["tokens"][-1]
    share = float(np.mean(known)) / whole if len(known) == len(tokens) else None
    return {"tokens": tokens, "runs": len(known), "share_of_budget": share}


def _forgetting(arm: Arm, records: Sequence[Record]) -> dict[str, Any]:
    """Bits per byte that each bin has lost since its best, the mean over seeds; early: of what is trained on first."""
    lost = np.mean([forgetting(np.array(record["bpb_by_bin"], np.float64)) for record in records], axis=0)
    early = None
    if "bins" not in arm.own:  # else the bins of the blocks are not those that are validated
        mixture = np.mean([record["mixture"] for record in records], axis=0)  # (pieces, K)
        first = mixture[: max(round(EARLY * len(mixture)), 1)].mean(axis=0)
        if len(first) == len(lost):
            early = float(np.nansum(first * lost))
    return {"bins": lost, "mean": float(np.nanmean(lost)) if np.isfinite(lost).any() else None, "early": early}


# --- controllers ------------------------------------------------------------------------------------------------------


def judge_controllers(
    arms: Mapping[str, Mapping[str, Any]], records: Sequence[Record], *, seeds: int, share: float, margin: float
) -> dict[str, Any]:
    """What the finished cells say, as plain JSON; `arms`: what each has of its own, `share`: of a collapse."""
    runs = by_arm(arms, records)
    values = {name: {seed: measures(one) for seed, one in mine.items()} for name, mine in runs.items()}
    first = same_runs(runs)
    comparisons: list[dict[str, Any]] = []
    for measure in measures(records[0]):
        family: list[dict[str, Any]] = []
        for name in runs:
            if name != NONE:
                shared = sorted(runs[name].keys() & runs[NONE].keys())
                difference = vars(paired([values[name][s][measure] - values[NONE][s][measure] for s in shared]))
                known = {"arm": name, "against": NONE, "family": measure, "seeds": shared}
                family.append(known | {"difference": difference})
        words = ("lower", "higher") if measure in NATS else ("worse", "better")
        correct(family, "difference", first, margin if has_margin(measure) else None, words)
        comparisons += family
    found: dict[str, Any] = plain(
        {
            "seeds": seeds,
            "samples": int(numbers_of(records[0])[-1]),
            "order": list(arms),
            "collapse": share,
            "margin": margin,
            "arms": {name: _controlled(own, runs[name], share) for name, own in arms.items()},
            "comparisons": comparisons,
        }
    )
    for name, arm in found["arms"].items():
        arm["words"] = _words(name, arm, found["comparisons"])
    return found


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


def has_margin(measure: str) -> bool:
    """Whether a measure is a share, whose margin is one for all tasks."""
    return measure not in NATS and not measure.startswith("distinct")


def _controlled(own: Mapping[str, Any], runs: Mapping[int, Record], share: float) -> dict[str, Any]:
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
