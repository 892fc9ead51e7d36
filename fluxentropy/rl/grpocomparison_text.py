"""A comparison of controllers in words: `grpo_comparison.md`, and the lines that the command prints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from fluxentropy.markdown import count, interval, number, table, with_interval
from fluxentropy.rl.grpocompareoptions import NONE
from fluxentropy.rl.grpojudging import LAST, NATS, has_margin
from fluxentropy.verdict import LEVEL, SIGNIFICANT

Record = Mapping[str, Any]


def summary(record: Record) -> list[str]:
    """A line for each arm."""
    return [arm["words"] for arm in record["arms"].values()]


def markdown(record: Record) -> str:
    """All of `grpo_comparison.md`."""
    parts = [
        "# Comparison of entropy controllers",
        _setting(record),
        "\n".join(f"- {line}." for line in summary(record)),
        _rule(record),
        "![rewards and entropies](trajectories.png)",
        "## At the end",
        _values(record),
        "## pass@k",
        _passes(record),
        "![pass@k](pass_at_k.png)",
        f"## Differences to {NONE}",
        *_differences(record),
        "![differences with their intervals](effects.png)",
        "## How to repeat it",
        _repeat(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _trained(record: Record) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, arm) for name, arm in record["arms"].items() if arm["seeds"]]


def _setting(record: Record) -> str:
    one = _trained(record)[0][1]
    runs = sum(len(arm["seeds"]) for _, arm in _trained(record))
    wanted = record["seeds"] * len(record["arms"])
    missing = f" of {wanted}" if runs < wanted else ""
    return (
        f"{len(record['arms'])} arms, {record['seeds']} seeds, {runs}{missing} runs of {one['steps']:,} steps: a "
        f"policy of {count(one['parameters'])} parameters on {record['task']}. Runs of one seed share the policy "
        f"after the warm-up and the problems of each step. In brackets: {LEVEL:.0%} t intervals, paired by seed in "
        f"differences."
    )


def _rule(record: Record) -> str:
    return (
        f"An entropy has collapsed where it is, over the last {LAST:.0%} of the steps, below {record['collapse']:.0%} "
        f"of that of the first step of the same run. It falls in every training that succeeds: a lower entropy alone "
        f"is neither better nor worse. Verdicts on rewards are of paired t tests with Holm's correction over the arms; "
        f"significant is p < {SIGNIFICANT:g}. Equal: two one-sided tests, with the same correction, rule out a "
        f"difference of {record['margin']:g} or more on either side. An arm whose runs are those of another is not "
        f"tested."
    )


def _values(record: Record) -> str:
    arms = _trained(record)
    names = list(arms[0][1]["measures"])
    rows = [
        [
            name,
            *(
                f"{number(arm['measures'][one]['mean'], '.3f')} "
                f"{interval(arm['measures'][one]['low'], arm['measures'][one]['high'], '.3f')}"
                for one in names
            ),
            arm["entropy"],
            str(len(arm["seeds"])),
        ]
        for name, arm in arms
    ]
    return (
        f"Final: the mean of the last {LAST:.0%} of the steps; mean: of all steps. Rewards and entropies are those of "
        f"the training, entropies in nats a token; accuracy and pass@k are of {arms[0][1]['held_out']:,} held-out "
        f"problems after the last step; distinct@{record['samples']} is the number of different right responses among "
        f"{record['samples']} to one of them.\n\n" + table(["arm", *names, "entropy is", "seeds"], rows)
    )


def _passes(record: Record) -> str:
    arms = _trained(record)
    ks = list(arms[0][1]["pass_at_k"])
    rows = [[name, *(number(arm["pass_at_k"][k]["mean"], ".3f") for k in ks)] for name, arm in arms]
    return (
        f"The probability that one of k responses is right, without bias from {record['samples']} responses to each "
        f"held-out problem at the temperature of the training.\n\n" + table(["arm", *(f"pass@{k}" for k in ks)], rows)
    )


def _differences(record: Record) -> Iterable[str]:
    resampled = any(one["difference"]["bootstrap_low"] is not None for one in record["comparisons"])
    for family in dict.fromkeys(one["family"] for one in record["comparisons"]):
        rows = []
        for one in record["comparisons"]:
            found = one["difference"]
            if one["family"] != family or not one["seeds"]:
                continue
            row = [one["arm"], number(found["mean"], "+.3f"), interval(found["low"], found["high"], "+.3f")]
            row += [interval(found["bootstrap_low"], found["bootstrap_high"], "+.3f")] * resampled
            row += [number(found["p"], ".2g"), number(one["p_holm"], ".2g")]
            row += [number(one["p_equal_holm"], ".2g")] * has_margin(family)
            row += [with_interval(one["detectable_corrected"], one["detectable_corrected_interval"], ".3f")]
            rows.append([*row, one["verdict"] if one["same_as"] in (None, NONE) else f"as {one['same_as']}"])
        if rows:
            head = ["arm", "difference", "t interval", *["bootstrap interval"] * resampled, "p", "p (Holm)"]
            head += [*["p equal (Holm)"] * has_margin(family), "detectable", "verdict"]
            yield f"{family.capitalize()}{', nats a token' * (family in NATS)}:\n\n" + table(head, rows)


def _repeat(record: Record) -> str:
    own = "\n".join(f"- `{name}`: `{json.dumps(arm['own'])}`" for name, arm in record["arms"].items())
    failed = "\n".join(f"- failed: {name}: {why}" for name, why in record["failed"].items())
    facts = "\n".join(f"- {name}: `{value}`" for name, value in record["fingerprints"].items() if name != "cells")
    said = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    parts = (
        f"```sh\n{record['command']}\n```",
        f"Fingerprints (those of the runs are in `grpo_comparison.json`):\n\n{facts}",
        f"What each arm has of its own:\n\n{own}",
        failed,
        f"Versions: {said}. Detectable: the smallest true difference that is found with probability 0.8 at the level "
        f"that the correction leaves to the first arm, with its {LEVEL:.0%} interval, as the SD of few seeds is "
        f"uncertain itself.",
    )
    return "\n\n".join(part for part in parts if part)
