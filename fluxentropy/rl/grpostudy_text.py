"""A study of probed runs in words: `study.md`, and the lines that the command prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fluxentropy.markdown import table
from fluxentropy.rl.stepanswers import NOT_JUDGED, PREDICTIONS
from fluxentropy.rl.stepbootstrap import FEWEST, LEVEL
from fluxentropy.rl.tokenanswers import POSITIONS, RIGHT
from fluxentropy.verdict import FEWEST as FEWEST_RUNS

Record = Mapping[str, Any]
PART_NAMES = {
    "batch": "this batch", "momentum": "momentum", "decay": "weight decay", "identical": "the same response",
    "same_prompt": "another response to the same prompt", "cross_prompt": "responses to other prompts",
}  # fmt: skip
QUADRANT_NAMES = {
    "positive_rare": "A > 0, rare", "positive_common": "A > 0, common", "negative_rare": "A < 0, rare",
    "negative_common": "A < 0, common",
}  # fmt: skip


def summary(record: Record) -> list[str]:
    """A line for each learning rate."""
    return [line for label, group in record["groups"].items() for line in _verdicts(record, label, group)]


def markdown(record: Record) -> str:
    """All of `study.md`."""
    sections = [
        "# What moves the entropy: a study of probed runs",
        _setting(record),
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


def _setting(record: Record) -> str:
    rows = [
        [label, f"{group['lr']:g}", group["controller"], _seeds(group), str(group["steps"])]
        for label, group in record["groups"].items()
    ]
    text = (
        f"{table(['runs', 'learning rate', 'controller', 'seeds', 'probed steps'], rows)}\n\n"
        f"In brackets: {LEVEL:.0%} intervals; none with fewer than {FEWEST} steps. Of two to {FEWEST_RUNS - 1} runs: t "
        f"intervals over the runs, by leaving out each (jackknife). Of one run: bootstrap of blocks of successive "
        f"steps, which says nothing about other seeds. Of {FEWEST_RUNS} runs or more: bootstrap of runs and blocks. "
        f"From {record['bootstrap']:,} resamples. Changes are in nats a {record['unit']}. The learning rate is the "
        f"peak of its schedule."
    )
    if record["differences"]:
        text += f"\n\nThe runs differ in more than learning rate, controller and seed: {record['differences']}."
    return text + "".join(f"\n\nLeft out: {why}." for why in record["left_out"])


def _seeds(group: Record) -> str:
    return ", ".join(str(run["seed"]) for run in group["runs"])


# --- predictions ------------------------------------------------------------------------------------------------------


def _verdicts(record: Record, label: str, group: Record) -> Iterator[str]:
    for name in ("first", "predicted"):
        if one := group["predictions"].get(name):
            error = f"error without noise {_share(one['rms_true'])} of the measured change"
            if one["verdict"] == NOT_JUDGED:
                error = f"the noise is as large as the change, error with it {_share(one['rms'])}"
            yield (
                f"learning rate {label}: {PREDICTIONS[name]} is {one['verdict']} ({error}; tolerated "
                f"{record['tolerance']:.0%})"
            )


def _predictions(record: Record) -> Iterator[str]:
    yield "## 1. Is the linear prediction good enough for a step?"
    lines = summary(record)
    if not lines:
        yield "Not answered: the runs have no measured change with a prediction beside it."
        return
    yield "\n".join(f"- {line[0].upper()}{line[1:]}." for line in lines)
    yield (
        "Measured: by importance weights on the probe's batch. Predictions are of the same batch, so that most of the "
        "noise is common to both: the error of their difference is that of paired numbers"
        + ("" if _all_paired(record) else " (where a run has none, the sum of both errors, which is never smaller)")
        + ". Error: √(Σd² / Σm²) of differences d and measured changes m; without noise: the squared standard errors "
        "taken off both. 0 covered: steps whose interval of the difference has 0 in it, which a small batch makes "
        "easy; half-width: what an error must exceed to be seen in one step, as a share of the measured change."
    )
    head = ["learning rate", "prediction", "slope", "intercept", "correlation", "sum predicted / measured"]
    head += ["error, median", "error, rms", "without noise", "0 covered", "half-width", "verdict"]
    rows = []
    for label, group in record["groups"].items():
        for name, one in group["predictions"].items():
            row = [label, PREDICTIONS[name], shown(one["slope"], ".3f"), shown(one["intercept"], ".1e")]
            row += [shown(one["correlation"], ".3f"), shown(one["total"], ".3f")]
            row += [_share(one[key]) for key in ("relative", "rms", "rms_true", "covered", "half_width")]
            rows.append([*row, one["verdict"]])
    yield table(head, rows)
    yield "![predicted and measured changes](predicted_measured.png)"
    yield "![the errors over the learning rate](errors.png)"
    yield from _validity(record)


def _all_paired(record: Record) -> bool:
    return all(one["paired"] for group in record["groups"].values() for one in group["predictions"].values())


def _validity(record: Record) -> Iterator[str]:
    keys = ("eta_star", "eta_star_below_1", "ghost_radius", "effective_share", "effective_below_half")
    rows = []
    for label, group in record["groups"].items():
        found = group["validity"]
        if found:
            eta, below, ghost, share, half = (found.get(key) for key in keys)
            rows.append([label, shown(eta, ".2f"), _share(below), shown(ghost, ".2f"), _share(share), _share(half)])
    if rows:
        head = ["learning rate", "eta*", "eta* < 1", "ghost radius", "effective sample", "effective < 50%"]
        yield (
            "How far a step goes: eta* is where the quadratic term equals the linear one and the ghost radius where "
            "the expansion may diverge, both in steps; the effective sample is a share of the probe's responses. "
            "Medians over steps, and the share of steps below a limit."
        )
        yield table(head, rows)
        yield "![eta* and effective sample size over the learning rate](validity.png)"
    fresh = {label: group["fresh"] for label, group in record["groups"].items() if group["fresh"]}
    if fresh:
        yield (
            "Is the measured change right? Against the difference of the entropies of this step's and the next step's "
            "rollouts, which are independent of it and of each other; z is the mean squared difference in standard "
            "errors, 1 if these are right."
        )
        head = ["learning rate", "steps", "mean difference", "0 covered", "z"]
        yield table(
            head,
            [
                [label, str(one["steps"]), shown(one["difference"]), _share(one["covered"]), shown(one["z"])]
                for label, one in fresh.items()
            ],
        )


# --- parts ------------------------------------------------------------------------------------------------------------


def _parts(record: Record) -> Iterator[str]:
    yield "## 2. How large are the cross-prompt and momentum parts?"
    asked = {
        "optimizer": "Parts of the first-order change by the optimizer's step",
        "pairs": "This batch's part by pairs of responses, one of the entropy batch and one of the update",
    }
    for kind, title in asked.items():
        rows = []
        for label, group in record["groups"].items():
            for name, one in ((group[kind] or {"parts": {}})["parts"]).items():
                row = [label, PART_NAMES[name], shown(one["mean"], ".2e")]
                row += [_share(one[key]) for key in ("share", "signed", "size", "size_true")]
                rows.append(row[: 7 if kind == "optimizer" else 6])
        if rows:
            head = ["learning rate", "part", "mean (nats)", "share of a step's change", "of the sum"]
            head += ["of the magnitude", "without noise"]
            yield f"{title}:\n\n{table(head[: len(rows[0])], rows)}"
        else:
            yield f"{title}: not answered."
    if any(group[kind] for group in record["groups"].values() for kind in asked):
        yield (
            "Shares of a step's change: Σ part·whole / Σ whole² over the steps; of the sum: Σ part / Σ whole, a dash "
            "where the sum may as well be 0; of the magnitude: Σ|part| / ΣΣ|parts|, where noise makes small parts look "
            "larger. Parts of the other sign than the whole make shares below 0, and others above 100%."
        )
        yield "![shares of the parts](parts.png)"
    yield from _diagonal(record)


def _diagonal(record: Record) -> Iterator[str]:
    told = {label: one for label, group in record["groups"].items() if (one := group["sketched"])}
    if told:
        said = "; ".join(
            f"{label}: correlation {shown(one['correlation'])}, difference {_share(one['error'])} of it (rms)"
            for label, one in told.items()
        )
        yield (
            f"The pairs' sum against this batch's part of the step, which it estimates ({said}): a sketch of the "
            "kernel (--probe.kernel sketch) adds noise, and so does the score form of the entropy's gradient. "
            "Where the difference is larger than the change, the shares of pairs are those of noise."
        )
    shared = {label: one for label, group in record["groups"].items() if (one := group["common_prompts"])}
    if shared:
        said = "; ".join(f"{label}: {_share(one)}" for label, one in shared.items())
        yield (
            f"Share of steps whose entropy batch has a prompt of the update: {said}. Unless a run has "
            "--probe.same-prompts, the entropy is that of new prompts: only where a prompt comes again can a pair be "
            "of the same prompt, so the cross-prompt share is large wherever prompts are many. With it, changes are "
            "those of the update's own prompts."
        )
    rows = []
    for label, group in record["groups"].items():
        for name in ("batch", "measured"):
            if one := (group["diagonal"] or {}).get(name):
                against = "this batch's part" if name == "batch" else "measured change"
                row = [label, against, shown(one["correlation"]), _share(one["same_sign"]), shown(one["total"])]
                rows.append(row)
    if rows:
        head = ["learning rate", "against", "correlation", "same sign", "sum predicted / sum"]
        yield "The diagonal kernel's account, −lr Cov(S, A/norm) of the update (Cui et al.), over the steps:"
        yield table(head, rows)


# --- tokens -----------------------------------------------------------------------------------------------------------


def _tokens(record: Record) -> Iterator[str]:
    yield "## 3. Which tokens drive the entropy?"
    known = {label: group["tokens"] for label, group in record["groups"].items() if group["tokens"]}
    if not known:
        yield "Not answered: no run has attributions of tokens."
        return
    for label, one in known.items():
        yield _told(label, one)
    rare = {"median": "below the median log-probability of the step's tokens", "entropy": "ln p < −H"}[record["rare"]]
    yield (
        f"Each token's part in the first-order change by this batch; rare: {rare}. Down and up: shares of the sums of "
        "all negative and of all positive parts. Numbers count the tokens of a response from 1. The entropy's gradient "
        "is that of one batch: its noise is in the part of every token, and in sums its mean is 0."
    )
    yield "![quadrants, and concentration](tokens.png)"
    names = {**QUADRANT_NAMES, **{name: f"{name} answers" for name in RIGHT}}
    for n in range(POSITIONS):
        names |= {f"token_{n}": f"number {n + 1}", f"eighth_{n}": f"eighth {n + 1} of a response"}
    rows = []
    for label, one in known.items():
        for name, found in one["classes"].items():
            values = [_share(found[key]) for key in ("tokens", "down", "up")]
            rows.append([label, names[name], *values, shown(found["change"], ".2e")])
    yield table(["learning rate", "tokens", "of the tokens", "of down", "of up", "mean change (nats)"], rows)


def _told(label: str, one: Record) -> str:
    """A group's tokens in sentences."""
    quadrants = {name: found for name, found in one["classes"].items() if name in QUADRANT_NAMES}
    down = max(quadrants, key=lambda name: quadrants[name]["down"]["value"] or 0.0)
    up = max(quadrants, key=lambda name: quadrants[name]["up"]["value"] or 0.0)
    needed, agreement, cancelled = one["needed"], one["agreement"], one["cancelled"]
    sizes = {of: " / ".join(_share(share) for share in needed[of].values()) for of in ("tokens", "responses")}
    return (
        f"Learning rate {label} ({one['steps']} steps): tokens of {QUADRANT_NAMES[down]} carry "
        f"{_share(quadrants[down]['down'])} of what lowers the entropy and are {_share(quadrants[down]['tokens'])} of "
        f"the tokens; of what raises it {QUADRANT_NAMES[up]} carry {_share(quadrants[up]['up'])}. "
        f"50 / 80 / 90% of all magnitude is in {sizes['tokens']} of the tokens, and in {sizes['responses']} of the "
        f"responses. The parts follow the covariance −(A − Ā)(ln p − mean) with correlation "
        f"{shown(agreement['correlation'])}, within prompts {shown(agreement['correlation_within'])}, and "
        f"{_share(agreement['same_sign'])} of the tokens have its sign. Of the magnitude "
        f"{_share(cancelled['within_responses'])} cancels between the tokens of a response, and of what is left "
        f"{_share(cancelled['within_prompts'])} between the responses to a prompt."
    )


# --- prompts ----------------------------------------------------------------------------------------------------------


def _prompts(record: Record) -> Iterator[str]:
    yield "## 4. How many prompts does a reliable entropy need?"
    rows = []
    for label, group in record["groups"].items():
        for G, one in (group["prompts"] or {"by_responses": {}})["by_responses"].items():
            for unit, needed in one["needed"].items():
                row = [label, G, unit.replace("per_", "a "), *(shown(found, ",.0f") for found in needed.values())]
                rows.append(row)
    if not rows:
        yield "Not answered: no run has the responses of a step with three prompts or more."
        return
    yield (
        "Prompts for a relative standard error of the entropy of 1%, 5% and 10%, from the rollouts of the probed steps "
        "(medians over them; ΣH is used, not −ln p):"
    )
    yield table(["learning rate", "responses each", "entropy", "1%", "5%", "10%"], rows)
    yield "![relative standard error over prompts](prompts.png)"


# --- missing ----------------------------------------------------------------------------------------------------------


def _missing(record: Record) -> Iterator[str]:
    lacking: dict[str, list[str]] = {}
    for label, group in record["groups"].items():
        for name, option in group["missing"].items():
            lacking.setdefault(f"{MISSING[name]}: written by `fluxentropy grpo` {option}", []).append(label)
    if lacking:
        yield "## What could not be answered"
        every = len(record["groups"])
        yield "\n".join(
            f"- {what}" + ("." if len(labels) == every else f" (of {', '.join(labels)}).")
            for what, labels in lacking.items()
        )


MISSING = {
    "measured": "The measured change",
    "first": "The first order",
    "predicted": "The second order and eta*",
    "snis": "Self-normalised importance weights",
    "range": "The ghost radius",
    "optimizer": "Momentum and weight decay",
    "pairs": "Pairs of prompts",
    "tokens": "Single tokens",
    "prompts": "The prompts that are needed",
}
