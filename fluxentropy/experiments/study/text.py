"""A study of probed runs in words: `study.md`, and the lines that the command prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fluxentropy.experiments.statistics import FEWEST as FEWEST_RUNS
from fluxentropy.experiments.study.answers import FEWEST, LEVEL, NOT_JUDGED, POSITIONS, PREDICTIONS, RIGHT
from fluxentropy.experiments.text import columns

Record = Mapping[str, Any]
Row = tuple[str, str, Record]  # the label of a group, a name, and what is known of it

NAMES = {
    **PREDICTIONS,
    "batch": "this batch", "momentum": "momentum", "decay": "weight decay", "identical": "the same response",
    "same_prompt": "another response to the same prompt", "cross_prompt": "responses to other prompts",
    "measured": "measured change",
    "positive_rare": "A > 0, rare", "positive_common": "A > 0, common", "negative_rare": "A < 0, rare",
    "negative_common": "A < 0, common",
    **{name: f"{name} answers" for name in RIGHT},
    **{f"token_{n}": f"number {n + 1}" for n in range(POSITIONS)},
    **{f"eighth_{n}": f"eighth {n + 1} of a response" for n in range(POSITIONS)},
}  # fmt: skip

MISSING = {
    "measured": "The measured change",
    "first": "The first order",
    "predicted": "The second order and eta*",
    "snis": "Self-normalised importance weights",
    "range": "The ghost radius",
    "optimizer": "Momentum and weight decay",
    "pairs": "Pairs of prompts",
    "diagonal": "The diagonal kernel",
    "tokens": "Single tokens",
    "prompts": "The prompts that are needed",
}


def summary(record: Record) -> list[str]:
    """A line for each learning rate and prediction."""
    return [
        f"learning rate {label}: {NAMES[name]} is {one['verdict']} ({_error(one)}; tolerated {record['tolerance']:.0%})"
        for label, name, one in _rows(record, "predictions")
        if name in ("first", "predicted")
    ]


def markdown(record: Record) -> str:
    """All of `study.md`."""
    sections = [
        "# What moves the entropy: a study of probed runs",
        *_setting(record),
        *_predictions(record),
        *_parts(record),
        *_tokens(record),
        *_prompts(record),
        *_missing(record),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def shown(one: Record | None, style: str = ".2g", *, percent: bool = False) -> str:
    """A value with its interval, or a dash. Per cent have two digits, or as many as stand before the point.

    >>> shown({"value": 0.5, "low": 0.0123, "high": 1.25}, percent=True)
    '50% [1.2%, 125%]'
    """
    if one is None or one["value"] is None:
        return "-"
    times, unit = (100, "%") if percent else (1, "")
    value, *ends = (
        "-"
        if one[key] is None
        else f"{(x := times * one[key]):z{'.0f' if percent and abs(x) >= 9.95 else style}}{unit}"
        for key in ("value", "low", "high")
    )
    return value if "-" in ends else f"{value} [{', '.join(ends)}]"


def _share(one: Record | None) -> str:
    return shown(one, percent=True)


def _error(one: Record) -> str:
    if one["verdict"] == NOT_JUDGED:
        return f"the noise is as large as the change, error with it {_share(one['rms'])}"
    return f"error without noise {_share(one['rms_true'])} of the measured change"


def _rows(record: Record, *path: str) -> list[Row]:
    """What the groups know by names at this place, a row each; without groups that know nothing there."""
    rows = []
    for label, group in record["groups"].items():
        found = group
        for key in path:
            found = (found or {}).get(key)
        rows += [(label, name, one) for name, one in (found or {}).items() if one]
    return rows


def _table(rows: list[Row], second: str, spec: Mapping[str, tuple[str, str]]) -> str:
    """Numbers with intervals. `spec`: of each column the key, and how its numbers look, % where they are shares."""

    def cell(key: str, style: str) -> Callable[[Row], str]:
        return lambda row: _share(row[2].get(key)) if style == "%" else shown(row[2].get(key), style)

    first: dict[str, Callable[[Row], str]] = {"learning rate": lambda row: row[0]}
    if second:
        first[second] = lambda row: NAMES.get(row[1], row[1])
    return columns(first | {head: cell(*how) for head, how in spec.items()}, rows)


def _setting(record: Record) -> Iterator[str]:
    spec: dict[str, Callable[[Any], str]] = {
        "runs": lambda row: row[0],
        "learning rate": lambda row: f"{row[1]['lr']:g}",
        "controller": lambda row: row[1]["controller"],
        "seeds": lambda row: ", ".join(str(run["seed"]) for run in row[1]["runs"]),
        "probed steps": lambda row: str(row[1]["steps"]),
    }
    yield columns(spec, record["groups"].items())
    yield (
        f"In brackets: {LEVEL:.0%} intervals, from {FEWEST} steps on. Of two to {FEWEST_RUNS - 1} runs: jackknife over "
        f"the runs. Of one run: bootstrap of blocks of its steps, which says nothing about other seeds. Of "
        f"{FEWEST_RUNS} or more: bootstrap of runs and blocks ({record['bootstrap']:,} resamples). Changes are in nats "
        f"a {record['unit']}; the learning rate is the peak of its schedule."
    )
    if record["differences"]:
        yield f"The runs differ in more than learning rate, controller and seed: {record['differences']}."
    yield from (f"Left out: {why}." for why in record["left_out"])


def _predictions(record: Record) -> Iterator[str]:
    yield "## 1. Is the linear prediction good enough for a step?"
    if rows := _rows(record, "predictions"):
        yield "\n".join(f"- {line[0].upper()}{line[1:]}." for line in summary(record))
        paired = all(one["paired"] for _, _, one in rows)
        yield (
            "Error: √(Σd² / Σm²) of differences d from measured changes m, both of the probe's batch; without noise: "
            "the squared standard errors taken off both. Half-width: what an error must exceed to be seen in one step, "
            "as a share of the change." + " Some runs have no standard errors of paired differences." * (not paired)
        )
        spec = {
            "slope": ("slope", ".3f"),
            "correlation": ("correlation", ".3f"),
            "sum predicted / measured": ("total", ".3f"),
            "error, rms": ("rms", "%"),
            "without noise": ("rms_true", "%"),
            "0 covered": ("covered", "%"),
            "half-width": ("half_width", "%"),
        }
        yield _table(rows, "prediction", spec)
        yield "![predicted and measured changes](predicted_measured.png)"
        yield "![the errors over the learning rate](errors.png)"
    else:
        yield "Not answered: the runs have no measured change with a prediction beside it."
    groups = record["groups"].items()
    if known := [(label, "", group["validity"]) for label, group in groups if group["validity"]]:
        yield (
            "How far a step goes, in steps: eta* is where the quadratic term equals the linear one, the ghost radius "
            "where the expansion may diverge; the effective sample is a share of the responses. Medians over steps."
        )
        spec = {
            "eta*": ("eta_star", ".2f"),
            "eta* < 1": ("eta_star_below_1", "%"),
            "ghost radius": ("ghost_radius", ".2f"),
            "effective sample": ("effective_share", "%"),
            "effective < 50%": ("effective_below_half", "%"),
        }
        yield _table(known, "", spec)
    if known := [(label, "", group["fresh"]) for label, group in groups if group["fresh"]]:
        yield (
            "The measured change against the difference of this step's and the next step's rollouts; z: the mean "
            "squared difference in standard errors, 1 if these are right."
        )
        spec = {"mean difference": ("difference", ".2g"), "0 covered": ("covered", "%"), "z": ("z", ".2g")}
        yield _table(known, "", spec)


def _parts(record: Record) -> Iterator[str]:
    yield "## 2. How large are the cross-prompt and momentum parts?"
    spec = {
        "mean (nats)": ("mean", ".2e"),
        "share of a step's change": ("share", "%"),
        "of the sum": ("signed", "%"),
        "of the magnitude": ("size", "%"),
        "without noise": ("size_true", "%"),
    }
    asked = {
        "optimizer": "Parts of the first-order change by the optimizer's step",
        "pairs": "This batch's part by pairs of responses, one of the entropy batch and one of the update",
    }
    answered = {kind: rows for kind in asked if (rows := _rows(record, kind, "parts"))}
    for kind, title in asked.items():
        yield f"{title}:" if kind in answered else f"{title}: not answered."
        if kind in answered:
            yield _table(answered[kind], "part", spec)
    if answered:
        yield (
            "Share of a step's change: Σ part·whole / Σ whole²; of the sum: Σ part / Σ whole, a dash where the sum may "
            "as well be 0; of the magnitude: Σ|part| / ΣΣ|parts|, where noise makes small parts look larger."
        )
        yield "![shares of the parts](parts.png)"
    groups = record["groups"].items()
    for key, text in (
        ("sketched", "Difference of the pairs' sum from this batch's part, which it estimates: {}."),
        (
            "common_prompts",
            "Steps whose entropy batch has a prompt of the update, as only there a pair can be of one prompt: {}.",
        ),
    ):
        told = {label: one.get("error", one) for label, group in groups if (one := group[key])}
        if told:
            yield text.format("; ".join(f"{label}: {_share(one)}" for label, one in told.items()))
    known = [row for row in _rows(record, "diagonal") if row[1] in ("batch", "measured")]
    if known:
        yield "The diagonal kernel's account, −lr Cov(S, A/norm) of the update (Cui et al.), over the steps:"
        spec = {"correlation": ("correlation", ".2g"), "same sign": ("same_sign", "%"), "sum / sum": ("total", ".2g")}
        yield _table(known, "against", spec)


def _tokens(record: Record) -> Iterator[str]:
    yield "## 3. Which tokens drive the entropy?"
    known = {label: group["tokens"] for label, group in record["groups"].items() if group["tokens"]}
    if not known:
        yield "Not answered: no run has attributions of tokens."
        return
    rare = {"median": "below the median log-probability of the step's tokens", "entropy": "ln p < −H"}[record["rare"]]
    yield (
        f"Each token's part in the first-order change by this batch; rare: {rare}. Down and up: shares of the sums of "
        "all negative and of all positive parts. Numbers count the tokens of a response from 1."
    )
    yield "![quadrants, and concentration](tokens.png)"
    spec = {name: (key, "%") for name, key in (("of the tokens", "tokens"), ("of down", "down"), ("of up", "up"))}
    yield _table(_rows(record, "tokens", "classes"), "tokens", spec | {"mean change (nats)": ("change", ".2e")})
    yield (
        "Half of all magnitude is in this share of the tokens and of the responses; how far the parts follow the "
        "covariance −(A − Ā)(ln p − mean); and what of the magnitude cancels between the tokens of a response."
    )
    rows: list[Row] = []
    for label, one in known.items():
        halves = {of: one["needed"][of]["0.5"] for of in ("tokens", "responses")}
        rows.append((label, "", halves | one["agreement"] | one["cancelled"]))
    spec = {
        "half: of the tokens": ("tokens", "%"),
        "of the responses": ("responses", "%"),
        "covariance: correlation": ("correlation", ".2g"),
        "same sign": ("same_sign", "%"),
        "cancels": ("within_responses", "%"),
    }
    yield _table(rows, "", spec)


def _prompts(record: Record) -> Iterator[str]:
    yield "## 4. How many prompts does a reliable entropy need?"
    rows: list[Row] = []
    for label, G, one in _rows(record, "prompts", "by_responses"):
        for unit, needed in one["needed"].items():
            rows.append((label, f"{G}, {unit.replace('per_', 'a ')}", needed))
    if not rows:
        yield "Not answered: no run has the responses of a step with three prompts or more."
        return
    yield "Prompts for a relative standard error of ΣH of 1%, 5% and 10%, medians over the steps' rollouts:"
    spec = {"1%": ("0.01", ",.0f"), "5%": ("0.05", ",.0f"), "10%": ("0.1", ",.0f")}
    yield _table(rows, "responses each, entropy", spec)
    yield "![relative standard error over prompts](prompts.png)"


def _missing(record: Record) -> Iterator[str]:
    lacking: dict[str, list[str]] = {}
    for label, name, option in _rows(record, "missing"):
        lacking.setdefault(f"{MISSING[name]}: written by `fluxentropy grpo` {option}", []).append(label)
    if lacking:
        yield "## What could not be answered"
        every = len(record["groups"])
        yield "\n".join(
            f"- {what}" + ("." if len(labels) == every else f" (of {', '.join(labels)}).")
            for what, labels in lacking.items()
        )
