"""From the records of cells to `comparison.json`: each arm's numbers, and each comparison's difference and verdict.

Comparisons are made between runs of the same seed. They stand in families; Holm's correction is over each family's
final bits per byte, and verdicts rest on that alone:

    against random   what was asked: each arm against the random arm that is trained like it
    order            each arm against its static mixture, and against its pacing with shuffled labels
    controls         the controls themselves, against random
    training         random arms that are trained in another way, against each other
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fluxentropy.arms import RANDOM, Arm
from fluxentropy.effects import holm
from fluxentropy.jsonvalues import plain
from fluxentropy.verdict import (
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

Record = Mapping[str, Any]  # of a cell, as cells.judged makes it
Runs = Mapping[str, Mapping[int, Record]]  # arm -> seed -> record

FAMILIES = {
    "against random": "each arm against the random arm that is trained like it",
    "order": "each arm against its mixture without its order (static), and against its pacing with shuffled bins",
    "controls": "the controls against random",
    "training": "random arms that are trained in another way",
}
EARLY = 0.1  # of the budget: what forgetting of early bins is about


def judge(arms: Sequence[Arm], records: Sequence[Record], *, seeds: int, margin: float) -> dict[str, Any]:
    """What the finished cells say, as plain JSON; `margin` (%): what is too little to matter, so counts as equal."""
    runs: dict[str, dict[int, Record]] = {arm.name: {} for arm in arms}
    for record in records:
        runs[record["arm"]][record["seed"]] = record
    comparisons = [_compared(runs, *pair) for pair in pairs(arms)]
    _correct(comparisons, same_runs(runs), margin)
    found: dict[str, Any] = plain(
        {
            "seeds": seeds,
            "margin_percent": margin,
            "order": [arm.name for arm in arms],
            "arms": {arm.name: _arm(arm, runs) for arm in arms},
            "families": FAMILIES,
            "comparisons": comparisons,
        }
    )
    return found


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


# --- comparisons ------------------------------------------------------------------------------------------------------


def _compared(runs: Runs, arm: str, against: str, family: str) -> dict[str, Any]:
    """All differences between two arms, in per cent but for those of questions, without verdict."""
    shared = sorted(runs[arm].keys() & runs[against].keys())

    def of(measure: Callable[[Record], float]) -> Paired:
        ours, theirs = ([measure(runs[name][seed]) for seed in shared] for name in (arm, against))
        return paired(percent(ours, theirs))

    first: Record = runs[arm][shared[0]] if shared else {}
    final = {name: np.array([runs[name][seed]["bpb"][-1] for seed in shared]) for name in (arm, against)}
    found: dict[str, Any] = {
        "arm": arm,
        "against": against,
        "family": family,
        "seeds": shared,
        "bits_per_byte": float(np.mean(final[arm] - final[against])) if shared else None,
        "percent": of(lambda record: record["bpb"][-1]),
        "area_percent": of(_area),
        "bins_percent": [of(functools.partial(_bin, number=k)) for k in range(len(_bins(first)))],
        "sources_percent": {name: of(functools.partial(_source, name=name)) for name in first.get("sources", ())},
    }
    if "answer_loglikelihood" in first.get("questions", ()):
        ours, theirs = (
            np.array([runs[name][seed]["questions"]["answer_loglikelihood"] for seed in shared])
            for name in (arm, against)
        )
        found["answer_loglikelihood"] = paired(ours - theirs)
    return found


def _area(record: Record) -> float:
    return area(np.array(record["tokens"]), np.array(record["bpb"]))


def _bins(record: Record) -> Sequence[float]:
    return record["bpb_by_bin"][-1] if record else ()


def _bin(record: Record, number: int) -> float:
    value = _bins(record)[number]
    return np.nan if value is None else value  # a bin without held-out blocks


def _source(record: Record, name: str) -> float:
    return float(record["sources"][name]["bpb"])


def _correct(comparisons: Sequence[dict[str, Any]], first: Mapping[str, str], margin: float) -> None:
    """Put Holm's adjusted p-values and the verdict into each comparison, and its numbers as plain mappings.

    `first`: the arm whose runs are those of each. What compares runs with themselves is no test, and what compares the
    same runs as another comparison of its family is that one again, so Holm's correction counts neither.
    """
    for family in FAMILIES:
        members = [one for one in comparisons if one["family"] == family]
        tested: dict[tuple[str, str], dict[str, Any]] = {}
        for one in members:
            ours, theirs = (first[one[role]] for role in ("arm", "against"))
            if ours != theirs:
                tested.setdefault((ours, theirs), one)
        _test(list(tested.values()), margin)
        for one in members:
            ours, theirs = (first[one[role]] for role in ("arm", "against"))
            if ours == theirs:
                words = in_words(one["percent"], "the same", one["arm"], one["against"])
                one |= {"p_holm": None, "p_equal_holm": None, "verdict": "the same", "words": words}
                one |= {"detectable_corrected": None, "detectable_corrected_interval": None, "same_as": one["against"]}
            elif (other := tested[ours, theirs]) is not one:
                kept = ("p_holm", "p_equal_holm", "verdict", "detectable_corrected", "detectable_corrected_interval")
                words = f"{one['arm']} is the same as {other['arm']}, run by run: {other['words']}"
                one |= {name: other[name] for name in kept} | {"words": words, "same_as": other["arm"]}
    for one in comparisons:
        for name in ("percent", "area_percent", "answer_loglikelihood"):
            if name in one:
                one[name] = vars(one[name])
        one["bins_percent"] = [vars(each) for each in one["bins_percent"]]
        one["sources_percent"] = {name: vars(each) for name, each in one["sources_percent"].items()}


def _test(members: Sequence[dict[str, Any]], margin: float) -> None:
    """The verdicts of comparisons that share the level."""
    differences = [one["percent"] for one in members]
    level = SIGNIFICANT / max(sum(np.isfinite(d.p) for d in differences), 1)  # of the first step of Holm's
    adjusted = holm([d.p for d in differences]).tolist()
    equal = holm([equivalence(d, margin) for d in differences]).tolist()
    for one, found, p, equal_p in zip(members, differences, adjusted, equal, strict=True):
        verdict = word(found, p, equal_p)
        least = detectable(found.sd, found.n, level=level)
        one |= {
            "p_holm": p,
            "p_equal_holm": equal_p,
            "detectable_corrected": least,
            "detectable_corrected_interval": [least * share for share in sd_limits(found.n)],
            "verdict": verdict,
            "words": in_words(found, verdict, one["arm"], one["against"], level=level, margin=margin),
            "same_as": None,
        }


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
    names = records[0].get("sources", {})
    return found | {
        "weights": records[0]["weights"],
        "parameters": records[0]["parameters"],
        "tokens": records[0]["tokens"][-1],
        "bpb": spread([record["bpb"][-1] for record in records]),
        "area": spread([_area(record) for record in records]),
        "bins": [spread([_bin(record, k) for record in records]) for k in range(len(_bins(records[0])))],
        "sources": {name: spread([record["sources"][name]["bpb"] for record in records]) for name in names},
        "reach": _reach(arm, runs),
        "forgetting": _forgetting(arm, records),
        "questions": {
            name: spread([record["questions"][name] for record in records]) for name in records[0]["questions"]
        },
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
