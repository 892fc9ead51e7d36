"""Peak learning rates for each arm of `compare`, chosen on seeds that are not judged.

    OUT/tuning/    a comparison of its own, in which the arm ARM+lr0.012 is ARM at the peak rate 0.012

An arm that has a rate of its own keeps it, a control has that of the arm it is a control of, and an arm that starts
from another has its trunk's. All others take the rate with the lowest mean of final bits per byte.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from fluxentropy.errors import RunError
from fluxentropy.experiments.arms import Arm
from fluxentropy.experiments.options import SHIFT, CompareConfig

FOLDER = "tuning"


def tuned_arms(arms: Sequence[Arm]) -> list[Arm]:
    """The arms that have no rate of their own, and take none from another."""
    return [arm for arm in arms if arm.kind in ("random", "arm") and arm.trunk is None and not _has_rate(arm)]


def grid(config: CompareConfig, arms: Sequence[Arm]) -> CompareConfig:
    """The comparison that rates are chosen by: each arm of `tuned_arms` at each rate, on seeds of its own."""
    base = config.base
    model_seed = None if base.model_seed is None else base.model_seed + SHIFT
    return dataclasses.replace(
        config,
        arms={f"{arm.name}+lr{rate:g}": _at(arm.own, rate) for rate in config.rates for arm in tuned_arms(arms)},
        controls=(),
        rates=(),
        seeds=config.tuning_seeds,
        base=dataclasses.replace(base, seed=base.seed + SHIFT, model_seed=model_seed),
        out=config.out / FOLDER,
    )


def choices(config: CompareConfig, arms: Sequence[Arm], record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The rate of each arm of `tuned_arms`, by the judged `record` of the comparison of `grid`.

    -> for each: `lr`; `bpb`, the mean for each rate, null where a seed failed; `edge`, whether it is the lowest or the
    highest of the rates, so that a better one may lie beyond. Of equal rates the lowest is taken.

    Errors: RunError names an arm without a rate at which all seeds were finished.
    """
    found: dict[str, dict[str, Any]] = {}
    rates = sorted(config.rates)
    for arm in tuned_arms(arms):
        means: dict[float, float | None] = {}
        for rate in rates:
            one = record["arms"][f"{arm.name}+lr{rate:g}"]
            means[rate] = one["bpb"]["mean"] if len(one["seeds"]) == config.tuning_seeds else None
        whole = {rate: mean for rate, mean in means.items() if mean is not None}
        if not whole:
            raise RunError(
                f"arm {arm.name}: no peak rate of {', '.join(f'{rate:g}' for rate in rates)} has all of its "
                f"{config.tuning_seeds} runs in {config.out / FOLDER}: lower --rates, or train the rest"
            )
        best = min(whole, key=lambda rate: (whole[rate], rate))
        edge = len(rates) > 1 and best in (rates[0], rates[-1])
        found[arm.name] = {"lr": best, "bpb": {f"{rate:g}": mean for rate, mean in means.items()}, "edge": edge}
    return found


def with_rates(arms: Sequence[Arm], chosen: Mapping[str, Mapping[str, Any]]) -> list[Arm]:
    """The arms with the rates that were `chosen` for them, or for the arms that they are controls of."""
    found: dict[str, Arm] = {}

    def rated(arm: Arm) -> Arm:
        if arm.name not in found:
            one = chosen.get(arm.name) or (chosen.get(arm.of or "") if not _has_rate(arm) and not arm.trunk else None)
            found[arm.name] = dataclasses.replace(
                arm,
                own=arm.own if one is None else _at(arm.own, one["lr"]),
                trunk=None if arm.trunk is None else rated(arm.trunk),
            )
        return found[arm.name]

    return [rated(arm) for arm in arms]


def _has_rate(arm: Arm) -> bool:
    return "lr" in (arm.own.get("optim") or {})


def _at(own: Mapping[str, Any], rate: float) -> dict[str, Any]:
    return {**own, "optim": {**(own.get("optim") or {}), "lr": rate}}
