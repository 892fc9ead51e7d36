"""A comparison in words: `comparison.md`, `grpo_comparison.md`, and the lines that the command prints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from fluxentropy.experiments.arms import STEMS
from fluxentropy.experiments.judging import LAST, NATS, has_margin
from fluxentropy.experiments.options import NONE
from fluxentropy.experiments.statistics import LEVEL, POWER, SIGNIFICANT

# --- Markdown ---------------------------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a head; bars in cells are escaped.

    >>> print(table(["a"], [["1"]]))
    | a |
    | --- |
    | 1 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def columns(spec: Mapping[str, Callable[[Any], str]], rows: Iterable[Any]) -> str:
    """A table by what each column's head and cell of a row are.

    >>> print(columns({"n": str, "squared": lambda n: str(n**2)}, [3]))
    | n | squared |
    | --- | --- |
    | 3 | 9 |
    """
    return table(list(spec), [[cell(row) for cell in spec.values()] for row in rows])


def by_holm(one: Mapping[str, Any]) -> str:
    """The p-value of a comparison's verdict in brackets, with its seeds; nothing where there is none."""
    if one["p_holm"] is None:
        return ""
    tests, p = ("two one-sided tests, ", one["p_equal_holm"]) if one["verdict"] == "equal" else ("", one["p_holm"])
    return f" ({tests}p = {p:.2g} by Holm, {len(one['seeds'])} seeds)"


def number(value: float | None, style: str) -> str:
    """A number, or a dash.

    >>> number(0.1234, ".2f"), number(None, ".2f")
    ('0.12', '-')
    """
    return "-" if value is None else format(value, style)


def interval(low: float | None, high: float | None, style: str = "+.2f") -> str:
    """Two limits, or a dash where one is unknown."""
    return "-" if low is None or high is None else f"[{low:{style}}, {high:{style}}]"


def with_interval(value: float | None, limits: tuple[float | None, float | None] | None, style: str = ".2f") -> str:
    """A number with its limits, or a dash.

    >>> with_interval(1.5, (1.0, 2.0)), with_interval(None, None)
    ('1.50 [1.00, 2.00]', '-')
    """
    return "-" if value is None or limits is None else f"{value:{style}} {interval(limits[0], limits[1], style)}"


def count(number: int) -> str:
    """A large number in millions.

    >>> count(1_250_000), count(4000)
    ('1.2 M', '4,000')
    """
    return f"{number / 1e6:.2g} M" if number >= 1e6 else f"{number:,}"


# --- in words ---------------------------------------------------------------------------------------------------------


Record = Mapping[str, Any]
Arm = tuple[str, Mapping[str, Any]]  # its name, and what the record says of it


def summary(command: str, record: Record) -> list[str]:
    """Of controllers a line for each arm, of schedules one for each verdict, family by family."""
    if command == "grpo-compare":
        return [arm["words"] for arm in record["arms"].values()]
    return [
        line
        for family, members in _families(record).items()
        for line in (f"{family}:", *(f"  {one['words']}{by_holm(one)}" for one in members))
    ]


def markdown(command: str, record: Record) -> str:
    """All of the file: what is particular to the command, and how to repeat it."""
    sections = {"compare": _schedules, "grpo-compare": _controllers}[command](record)
    parts = [*sections, "## How to repeat it", *_repeat(record, f"{STEMS[command]}.json")]
    return "\n\n".join(part for part in parts if part) + "\n"


# --- what both share --------------------------------------------------------------------------------------------------


def _families(record: Record) -> dict[str, list[Record]]:
    """The comparisons of each family that has some."""
    found: dict[str, list[Record]] = {}
    for one in record["comparisons"]:
        found.setdefault(one["family"], []).append(one)
    return found


def _trained(record: Record) -> list[Arm]:
    return [(name, arm) for name, arm in record["arms"].items() if arm["seeds"]]


def _setting(record: Record) -> str:
    """How many runs there are."""
    runs, wanted = sum(len(arm["seeds"]) for _, arm in _trained(record)), record["seeds"] * len(record["arms"])
    missing = f" of {wanted}" if runs < wanted else ""
    return f"{len(record['arms'])} arms, {record['seeds']} seeds, {runs}{missing} runs"


def _mean(key: str, style: str) -> Callable[[Arm], str]:
    """A cell: the mean over the seeds."""
    return lambda arm: number(arm[1][key]["mean"], style)


def _means(key: str, names: Iterable[Any], style: str, head: str = "{}") -> dict[str, Callable[[Arm], str]]:
    """Columns: the means of several numbers of one kind."""

    def cell(name: Any) -> Callable[[Arm], str]:
        return lambda arm: number(arm[1][key][name]["mean"], style)

    return {head.format(name): cell(name) for name in names}


def _name(arm: Arm) -> str:
    return arm[0]


def _seeds(arm: Arm) -> str:
    return str(len(arm[1]["seeds"]))


def _differences(members: Sequence[Record], measure: str, places: int, unit: str = "", equal: bool = True) -> str:
    """The table of a family."""
    signed, plain = f"+.{places}f", f".{places}f"
    resampled = any(one[measure]["bootstrap_low"] is not None for one in members)

    def alone(one: Record) -> str:
        found = one[measure]
        return with_interval(found["detectable"], (found["detectable_low"], found["detectable_high"]), plain)

    spec: dict[str, Callable[[Any], str]] = {
        "arm": lambda one: one["arm"],
        "against": lambda one: one["against"],
        f"difference{unit}": lambda one: number(one[measure]["mean"], signed),
        "t interval": lambda one: interval(one[measure]["low"], one[measure]["high"], signed),
        "bootstrap interval": lambda one: interval(
            one[measure]["bootstrap_low"], one[measure]["bootstrap_high"], signed
        ),
        "p": lambda one: number(one[measure]["p"], ".2g"),
        "p (Holm)": lambda one: number(one["p_holm"], ".2g"),
        "p equal (Holm)": lambda one: number(one["p_equal_holm"], ".2g"),
        f"detectable{unit}": alone,
        f"corrected{unit}": lambda one: with_interval(
            one["detectable_corrected"], one["detectable_corrected_interval"], plain
        ),
        "verdict": lambda one: (
            one["verdict"] if one["same_as"] in (None, one["against"]) else f"{one['verdict']}, as {one['same_as']}"
        ),
    }
    left_out = ["bootstrap interval"] * (not resampled) + ["p equal (Holm)"] * (not equal)
    return columns({head: cell for head, cell in spec.items() if head not in left_out}, members)


HOW = (
    "An arm whose runs are those of another is not tested. Detectable: the smallest true difference that one test "
    f"alone finds with probability {POWER:g}; corrected: at the level that the correction leaves to the first of them. "
    f"In brackets: its {LEVEL:.0%} interval, as the SD of few seeds is uncertain itself."
)


def _repeat(record: Record, file: str) -> Iterator[str]:
    yield f"```sh\n{record['command']}\n```"
    facts = (f"- {name}: `{value}`" for name, value in record["fingerprints"].items() if name != "cells")
    yield f"Fingerprints (those of the runs are in `{file}`):\n\n" + "\n".join(facts)
    own = (f"- `{name}`: `{json.dumps(arm['own'])}`" for name, arm in record["arms"].items())
    yield "What each arm has of its own:\n\n" + "\n".join(own)
    same = [
        f"- the control `{kind}` of `{name}` is `{control}`"
        for name, arm in record["arms"].items()
        for kind, control in arm.get("controls", {}).items()
        if control != f"{name}-{kind}"
    ]
    yield "\n".join([*same, *(f"- failed: {name}: {why}" for name, why in record["failed"].items())])
    said = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    yield f"Versions: {said}. Significant is p < {SIGNIFICANT:g} after Holm's correction."


# --- schedules --------------------------------------------------------------------------------------------------------


def _schedules(record: Record) -> Iterator[str]:
    arms = _trained(record)
    one = arms[0][1]
    yield "# Comparison of schedules"
    yield (
        f"{_setting(record)}: a GPT of {count(one['parameters'])} parameters on {one['tokens']:,} tokens. Runs of one "
        f"seed share their initial weights and the order of blocks in each bin; all are judged on the same held-out "
        f"blocks. Differences are paired by seed, in per cent of the other arm's loss: below 0 is better. In brackets: "
        f"{LEVEL:.0%} t intervals."
    )
    yield from _rates(record)
    for family, members in _families(record).items():
        words = record["families"][family]
        tested = sum(one["p_holm"] is not None and one["same_as"] is None for one in members)
        yield f"## {family.capitalize()}"
        yield (
            f"{words[0].upper()}{words[1:]}. Holm's correction is over the {tested} that are tested. Equal: two "
            f"one-sided tests rule out a difference of {record['margin_percent']:g} % or more on either side. {HOW}"
        )
        yield "\n".join(f"- {one['words']}{by_holm(one)}." for one in members)
        yield _differences(members, "percent", 2, " (%)")
    yield "![differences with their intervals](effects.png)"
    yield "## Final losses"
    yield _losses(arms)
    yield "![validation curves](curves.png)"
    yield from _answers(record)
    yield "## By bin" + " and by source" * bool(one["sources"])
    yield "Bits per byte, the mean over the seeds; in the pictures: differences to random."
    yield columns({"arm": _name, **_means("bins", range(len(one["bins"])), ".3f", "bin {}")}, arms)
    if one["sources"]:
        yield columns({"arm": _name, **_means("sources", one["sources"], ".3f")}, arms)
    yield "![differences by bin](differences.png)"
    yield "## On the way"
    yield _way(record, arms)
    yield "![mixtures](mixture.png)"


def _rates(record: Record) -> Iterator[str]:
    """How each arm's peak learning rate was chosen, where it was."""
    if tuning := record.get("tuning"):
        rates = next(iter(tuning.values()))["bpb"]
        spec: dict[str, Callable[[Any], str]] = {"arm": lambda item: item[0]}
        spec |= {rate: lambda item, rate=rate: number(item[1]["bpb"][rate], ".4f") for rate in rates}
        spec["chosen"] = lambda item: f"{item[1]['lr']:g}{', at the edge' if item[1]['edge'] else ''}"
        yield "## Peak learning rates"
        yield (
            "Each arm's own is the one with the lowest mean of final bits per byte on seeds that are not judged (the "
            "runs are in `tuning/`). At the edge of the rates, a better one may lie beyond."
        )
        yield columns(spec, tuning.items())


def _losses(arms: Sequence[Arm]) -> str:
    spec: dict[str, Callable[[Any], str]] = {
        "arm": _name,
        "kind": lambda arm: arm[1]["kind"],
        "bits per byte": _mean("bpb", ".4f"),
        "t interval": lambda arm: interval(arm[1]["bpb"]["low"], arm[1]["bpb"]["high"], ".4f"),
        "SD of seeds": lambda arm: number(arm[1]["bpb"]["sd"], ".4f"),
        "mean over the tokens": _mean("area", ".4f"),
        "seeds": _seeds,
        "weights": lambda arm: arm[1]["weights"],
    }
    asked = "answer_loglikelihood"
    if any(asked in arm["questions"] for _, arm in arms):
        spec["answers (nats per byte)"] = lambda arm: number(arm[1]["questions"].get(asked, {}).get("mean"), ".4f")
    return columns(spec, arms)


def _answers(record: Record) -> Iterator[str]:
    asked = [one for one in record["comparisons"] if one.get("answer_loglikelihood")]
    if asked:
        yield "Log-likelihood of the right answers, in nats per byte, against the other arm: above 0 is better."
        spec: dict[str, Callable[[Any], str]] = {
            "arm": lambda one: one["arm"],
            "against": lambda one: one["against"],
            "difference": lambda one: number(one["answer_loglikelihood"]["mean"], "+.4f"),
            "t interval": lambda one: interval(
                one["answer_loglikelihood"]["low"], one["answer_loglikelihood"]["high"], "+.4f"
            ),
        }
        yield columns(spec, asked)


def _way(record: Record, arms: Sequence[Arm]) -> str:
    areas = {(one["arm"], one["against"]): one["area_percent"] for one in record["comparisons"]}

    def area(arm: Arm) -> Mapping[str, Any]:
        return areas.get((arm[0], arm[1]["baseline"]), {})

    spec: dict[str, Callable[[Any], str]] = {
        "arm": _name,
        "area (%)": lambda arm: number(area(arm).get("mean"), "+.2f"),
        "t interval": lambda arm: interval(area(arm).get("low"), area(arm).get("high")),
        "tokens to random's loss": lambda arm: number(arm[1]["reach"]["share_of_budget"], ".0%"),
        "runs that reach it": lambda arm: f"{arm[1]['reach']['runs']} of {_seeds(arm)}",
        "forgetting, mean of the bins": lambda arm: number(arm[1]["forgetting"]["mean"], "+.4f"),
        "forgetting of early bins": lambda arm: number(arm[1]["forgetting"]["early"], "+.4f"),
    }
    return (
        "Area: the mean over the tokens of the validation curve, against random. Tokens: the share of the budget after "
        "which a run has the final loss of its random run, where all runs reach it. Forgetting: a bin's final bits per "
        "byte minus the best it had before, below 0 where it is best at the end; early bins are those that the first "
        "tenth of the training draws, in its proportions.\n\n" + columns(spec, arms)
    )


# --- controllers ------------------------------------------------------------------------------------------------------


def _controllers(record: Record) -> Iterator[str]:
    arms = _trained(record)
    one = arms[0][1]
    yield "# Comparison of entropy controllers"
    yield (
        f"{_setting(record)} of {one['steps']:,} steps: a policy of {count(one['parameters'])} parameters on "
        f"{record['task']}. Runs of one seed share the policy after the warm-up and the problems of each step. "
        f"Differences are paired by seed. In brackets: {LEVEL:.0%} t intervals."
    )
    yield "\n".join(f"- {line}." for line in summary("grpo-compare", record))
    yield (
        f"An entropy has collapsed where it is, over the last {LAST:.0%} of the steps, below {record['collapse']:.0%} "
        f"of that of the first step of the same run. It falls in every training that succeeds: a lower entropy alone "
        f"is neither better nor worse. Verdicts on rewards are of paired t tests with Holm's correction over the arms; "
        f"significant is p < {SIGNIFICANT:g}. Equal: two one-sided tests, with the same correction, rule out a "
        f"difference of {record['margin']:g} or more on either side. {HOW}"
    )
    yield "![rewards and entropies](trajectories.png)"
    yield "## At the end"
    yield (
        f"Final: the mean of the last {LAST:.0%} of the steps; mean: of all steps. Rewards and entropies are those of "
        f"the training, entropies in nats a token; accuracy and pass@k are of {one['held_out']:,} held-out problems "
        f"after the last step; distinct@{record['samples']} is the number of different right responses among "
        f"{record['samples']} to one of them."
    )
    values: dict[str, Callable[[Any], str]] = {name: _measured(name) for name in one["measures"]}
    yield columns({"arm": _name, **values, "entropy is": lambda arm: arm[1]["entropy"], "seeds": _seeds}, arms)
    yield "## pass@k"
    yield (
        f"The probability that one of k responses is right, without bias from {record['samples']} responses to each "
        f"held-out problem at the temperature of the training."
    )
    yield columns({"arm": _name, **_means("pass_at_k", one["pass_at_k"], ".3f", "pass@{}")}, arms)
    yield "![pass@k](pass_at_k.png)"
    yield f"## Differences to {NONE}"
    for family, members in _families(record).items():
        if known := [one for one in members if one["seeds"]]:
            unit = ", nats a token" * (family in NATS)
            yield f"{family.capitalize()}{unit}:"
            yield _differences(known, "difference", 3, equal=has_margin(family))
    yield "![differences with their intervals](effects.png)"


def _measured(name: str) -> Callable[[Arm], str]:
    """A cell: a measure with its interval."""

    def cell(arm: Arm) -> str:
        found = arm[1]["measures"][name]
        return f"{number(found['mean'], '.3f')} {interval(found['low'], found['high'], '.3f')}"

    return cell
