"""A comparison in words: `comparison.md`, and the lines that the command prints."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from fluxentropy.markdown import by_holm, count, interval, number, table, with_interval
from fluxentropy.verdict import LEVEL, POWER, SIGNIFICANT


def summary(record: Mapping[str, Any]) -> list[str]:
    """A line for each verdict, family by family."""
    lines: list[str] = []
    for family in record["families"]:
        members = [one for one in record["comparisons"] if one["family"] == family]
        if members:
            lines += [f"{family}:", *(f"  {one['words']}{by_holm(one)}" for one in members)]
    return lines


def markdown(record: Mapping[str, Any]) -> str:
    """All of `comparison.md`."""
    parts = [
        "# Comparison of schedules",
        _setting(record),
        *_verdicts(record),
        "![differences with their intervals](effects.png)",
        "## Final losses",
        _losses(record),
        "![validation curves](curves.png)",
        *_answers(record),
        "## By bin" + " and by source" * bool(_sources(record)),
        *_by_part(record),
        "![differences by bin](differences.png)",
        "## On the way",
        _way(record),
        "![mixtures](mixture.png)",
        "## How to repeat it",
        _repeat(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _setting(record: Mapping[str, Any]) -> str:
    trained = [arm for arm in record["arms"].values() if arm["seeds"]]
    one = trained[0]
    runs = sum(len(arm["seeds"]) for arm in trained)
    wanted = record["seeds"] * len(record["arms"])
    missing = f" of {wanted}" if runs < wanted else ""
    return (
        f"{len(record['arms'])} arms, {record['seeds']} seeds, {runs}{missing} runs: a GPT of "
        f"{count(one['parameters'])} parameters on {one['tokens']:,} tokens. Runs of one seed share their initial "
        f"weights and the order of blocks in each bin; all are judged on the same held-out blocks. Differences are "
        f"paired by seed, in per cent of the other arm's loss: below 0 is better. In brackets: {LEVEL:.0%} t intervals."
    )


def _verdicts(record: Mapping[str, Any]) -> Iterable[str]:
    for family, words in record["families"].items():
        members = [one for one in record["comparisons"] if one["family"] == family]
        if not members:
            continue
        yield f"## {family.capitalize()}"
        tested = sum(one["p_holm"] is not None and one["same_as"] is None for one in members)
        yield (
            f"{words[0].upper()}{words[1:]}. Holm's correction is over the {tested} that are tested. Equal: two "
            f"one-sided tests rule out a difference of {record['margin_percent']:g} % or more on either side. "
            f"Detectable: the smallest true difference that one test alone finds with probability {POWER:g}; "
            f"corrected: at the level that the correction leaves to the first of them. In brackets: its {LEVEL:.0%} "
            f"interval, as the SD of few seeds is uncertain itself."
        )
        yield "\n".join(f"- {one['words']}{by_holm(one)}." for one in members)
        resampled = any(one["percent"]["bootstrap_low"] is not None for one in members)
        head = ["arm", "against", "difference (%)", "t interval", *["bootstrap interval"] * resampled, "p", "p (Holm)"]
        head += ["p equal (Holm)", "detectable (%)", "corrected (%)", "verdict"]
        yield table(head, [_comparison(one, resampled) for one in members])


def _comparison(one: Mapping[str, Any], resampled: bool) -> list[str]:
    found = one["percent"]
    limits = [interval(found["low"], found["high"])]
    limits += [interval(found["bootstrap_low"], found["bootstrap_high"])] * resampled
    numbers = [number(found["p"], ".2g"), number(one["p_holm"], ".2g"), number(one["p_equal_holm"], ".2g")]
    numbers.append(with_interval(found["detectable"], (found["detectable_low"], found["detectable_high"])))
    numbers.append(with_interval(one["detectable_corrected"], one["detectable_corrected_interval"]))
    return [one["arm"], one["against"], number(found["mean"], "+.2f"), *limits, *numbers, one["verdict"]]


def _losses(record: Mapping[str, Any]) -> str:
    rows = []
    asked = any(arm.get("questions") for arm in record["arms"].values())
    for name, arm in _trained(record):
        bpb = arm["bpb"]
        row = [name, arm["kind"], number(bpb["mean"], ".4f"), interval(bpb["low"], bpb["high"], ".4f")]
        row += [number(bpb["sd"], ".4f"), number(arm["area"]["mean"], ".4f")]
        row += [str(len(arm["seeds"])), arm["weights"]]
        if asked:
            row.append(number(arm["questions"].get("answer_loglikelihood", {}).get("mean"), ".4f"))
        rows.append(row)
    head = ["arm", "kind", "bits per byte", "t interval", "SD of seeds", "mean over the tokens"]
    head += ["seeds", "weights"]
    return table([*head, *["answers (nats per byte)"] * asked], rows)


def _answers(record: Mapping[str, Any]) -> Iterable[str]:
    asked = [one for one in record["comparisons"] if one.get("answer_loglikelihood")]
    if asked:
        yield "Log-likelihood of the right answers, in nats per byte, against the other arm: above 0 is better."
        found = [(one["arm"], one["against"], one["answer_loglikelihood"]) for one in asked]
        style = "+.4f"
        rows = [[a, b, number(c["mean"], style), interval(c["low"], c["high"], style)] for a, b, c in found]
        yield table(["arm", "against", "difference", "t interval"], rows)


def _by_part(record: Mapping[str, Any]) -> Iterable[str]:
    yield "Bits per byte, the mean over the seeds; in the pictures: differences to random."
    arms = _trained(record)
    bins = len(arms[0][1]["bins"])
    rows = [[name, *(number(cell["mean"], ".3f") for cell in arm["bins"])] for name, arm in arms]
    yield table(["arm", *(f"bin {number}" for number in range(bins))], rows)
    if sources := _sources(record):
        rows = [[name, *(number(arm["sources"][source]["mean"], ".3f") for source in sources)] for name, arm in arms]
        yield table(["arm", *sources], rows)


def _way(record: Mapping[str, Any]) -> str:
    areas = {(one["arm"], one["against"]): one["area_percent"] for one in record["comparisons"]}
    rows = []
    for name, arm in _trained(record):
        area, reach, lost = areas.get((name, arm["baseline"]), {}), arm["reach"], arm["forgetting"]
        row = [name, number(area.get("mean"), "+.2f"), interval(area.get("low"), area.get("high"))]
        row += [number(reach["share_of_budget"], ".0%"), f"{reach['runs']} of {len(arm['seeds'])}"]
        rows.append([*row, number(lost["mean"], "+.4f"), number(lost["early"], "+.4f")])
    note = (
        "Area: the mean over the tokens of the validation curve, against random. Tokens: the share of the budget after "
        "which a run has the final loss of its random run, where all runs reach it. Forgetting: a bin's final bits per "
        "byte minus the best it had before, below 0 where it is best at the end; early bins are those that the first "
        "tenth of the training draws, in its proportions."
    )
    head = ["arm", "area (%)", "t interval", "tokens to random's loss", "runs that reach it"]
    return note + "\n\n" + table([*head, "forgetting, mean of the bins", "forgetting of early bins"], rows)


def _repeat(record: Mapping[str, Any]) -> str:
    own = "\n".join(f"- `{name}`: `{json.dumps(arm['own'])}`" for name, arm in record["arms"].items())
    same = [
        f"- the control `{kind}` of `{name}` is `{control}`"
        for name, arm in record["arms"].items()
        for kind, control in arm["controls"].items()
        if control != f"{name}-{kind}"
    ]
    failed = [f"- failed: {name}: {why}" for name, why in record["failed"].items()]
    facts = "\n".join(f"- {name}: `{value}`" for name, value in record["fingerprints"].items() if name != "cells")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n\n".join(
        part
        for part in (
            f"```sh\n{record['command']}\n```",
            f"Fingerprints of the data (those of the runs are in `comparison.json`):\n\n{facts}",
            f"What each arm has of its own:\n\n{own}",
            "\n".join(same + failed),
            f"Versions: {versions}. Significant is p < {SIGNIFICANT:g} after Holm's correction.",
        )
        if part
    )


# --- parts of a text --------------------------------------------------------------------------------------------------


def _trained(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, arm) for name, arm in record["arms"].items() if arm["seeds"]]


def _sources(record: Mapping[str, Any]) -> list[str]:
    return list(_trained(record)[0][1]["sources"])
