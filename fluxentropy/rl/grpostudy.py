"""`fluxentropy grpo-study`: finished runs of grpo with probes in, answers to the questions of the RL part out.

probedruns.py -> stepanswers.py, tokenanswers.py, promptanswers.py (pure; intervals by stepbootstrap.py)
-> grpostudy_text.py, grpostudy_figures.py
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fluxentropy.errors import UsageError
from fluxentropy.jsonvalues import plain
from fluxentropy.outcome import Outcome
from fluxentropy.progress import Progress
from fluxentropy.rl import stepanswers
from fluxentropy.rl.grpo_figures import Columns
from fluxentropy.rl.grpostudyoptions import GRPOStudyConfig
from fluxentropy.rl.probedruns import Group, ProbedRun, find_probed, grouped, other_options
from fluxentropy.rl.promptanswers import batches, prompt_answer
from fluxentropy.rl.stepbootstrap import StepBootstrap
from fluxentropy.rl.tokenanswers import step_row, token_answer
from fluxentropy.store import sha256_file, write_json, write_text

# What a question needs, and the option of grpo that writes it.
WRITTEN_BY = {
    "measured": "--probe.parts with measured",
    "first": "--probe.parts with first_order or second_order",
    "predicted": "--probe.parts with second_order",
    "snis": "--probe.parts with measured, by this version",
    "range": "--probe.parts with range",
    "optimizer": "--probe.parts with split, and AdamW without a controller of steps",
    "pairs": "--probe.parts with kernel, without a controller",
    "diagonal": "--probe.parts with kernel, by this version",
    "tokens": "--probe.attribution, for AdamW without a controller",
    "prompts": "--rollout.prompts 3 or more",
}


def grpo_study(config: GRPOStudyConfig) -> Outcome:
    """Answer the questions from `config.runs`, into `config.out`. The same runs give the same bytes.

    Errors: those of `find_probed`; `UsageError` where --out is a run; `RunError` where nothing can be written.
    """
    from fluxentropy.rl.grpostudy_figures import FIGURES, draw_study
    from fluxentropy.rl.grpostudy_text import markdown, summary

    runs, left_out = find_probed(config.runs)
    if (config.out / "manifest.json").exists():
        raise UsageError(f"--out {config.out}: this is a run, choose another folder")
    groups = grouped(runs)
    record: dict[str, Any] = {
        "unit": config.unit,
        "tolerance": config.tolerance,
        "rare": config.rare,
        "bootstrap": config.bootstrap,
        "seed": config.seed,
        "groups": (found := _answered(groups, config)),
        "differences": other_options(runs),
        "left_out": left_out,
        "points": {
            group.label: points(group.columns(), found[group.label]["predictions"], config.unit) for group in groups
        },
    }
    record = plain(record)
    write_json(config.out / "study.json", record)
    figures = draw_study(record, config.out)
    for name in FIGURES:  # of an earlier study
        for file in (config.out / f"{name}.png", config.out / f"{name}.svg"):
            if file not in figures:
                file.unlink(missing_ok=True)
    write_text(config.out / "study.md", markdown(record))
    lines = [*summary(record), f"answers in {config.out / 'study.md'}, numbers in {config.out / 'study.json'}"]
    return Outcome(lines=lines, data={"out": str(config.out), "figures": [file.name for file in figures], **record})


def _answered(groups: Sequence[Group], config: GRPOStudyConfig) -> dict[str, Any]:
    """The answers of each group, by its label."""
    found = {}
    with Progress(len(groups), unit="groups") as progress:
        for group in groups:
            found[group.label] = answers(group, config)
            progress.update(1, last=f"({group.label})")
    return found


def answers(group: Group, config: GRPOStudyConfig) -> dict[str, Any]:
    """All that the runs of a group say; None and an entry of `missing` where they lack what a question needs."""
    columns, unit = group.columns(), config.unit
    boot = StepBootstrap(group.lengths, config.bootstrap, config.seed)
    found: dict[str, Any] = {
        "lr": group.lr,
        "controller": group.controller,
        "runs": [_facts(run) for run in group.runs],
        "steps": sum(group.lengths),
        "predictions": predictions(columns, config, boot),
        "validity": stepanswers.validity(columns, unit, boot),
        "fresh": stepanswers.fresh(columns, unit, boot),
        **{kind: stepanswers.parts(columns, kind, unit, boot) for kind in stepanswers.PARTS},
        "diagonal": stepanswers.diagonal(columns, boot),
        "sketched": stepanswers.sketched(columns, boot),
        "common_prompts": stepanswers.common_prompts(columns, boot),
        "tokens": _tokens(group, config),
        "prompts": _prompts(group, config),
    }
    missing = [name for name in stepanswers.PREDICTIONS if name not in found["predictions"]]
    missing += [] if stepanswers.some(columns, f"probe_measured_per_{unit}") else ["measured"]
    missing += [] if "ghost_radius" in found["validity"] else ["range"]
    missing += [name for name in ("optimizer", "pairs", "tokens", "prompts") if found[name] is None]
    missing += ["diagonal"] if found["pairs"] and not found["diagonal"] else []
    return found | {"missing": {name: WRITTEN_BY[name] for name in missing}}


def predictions(columns: Columns, config: GRPOStudyConfig, boot: StepBootstrap) -> dict[str, Any]:
    """How each prediction that the runs have fits, with the verdict on it."""
    found: dict[str, Any] = {}
    for name in stepanswers.PREDICTIONS:
        if stepanswers.some(columns, *(f"probe_{one}_per_{config.unit}" for one in ("measured", name))):
            found[name] = stepanswers.prediction(columns, name, config.unit, boot)
            noise = found[name]["half_width"]["value"]
            found[name]["verdict"] = stepanswers.verdict(found[name]["rms_true"], config.tolerance, noise)
    return found


def points(columns: Columns, found: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """The measured change of every step, its predictions, and the half-widths of the differences: what is drawn."""
    drawn = {"step": columns["step"]}
    if found:
        drawn[f"measured_per_{unit}"] = columns[f"probe_measured_per_{unit}"]
    for name in found:
        drawn[f"{name}_per_{unit}"] = columns[f"probe_{name}_per_{unit}"]
        error = stepanswers.gap(columns, name, unit)[1]
        drawn[f"{name}_half"] = stepanswers.half_width(error, columns["probe_prompts"])
    return drawn


def _facts(run: ProbedRun) -> dict[str, Any]:
    sums = {"metrics.csv": sha256_file(run.path / "metrics.csv")}
    return {"run": run.name, "seed": run.seed, "probed": len(run.columns["step"]), "sha256": sums}


def _tokens(group: Group, config: GRPOStudyConfig) -> dict[str, Any] | None:
    """None where no run has attributions."""
    rows: list[list[dict[str, Any]]] = []
    for run in group.runs:
        responses, mine = run.responses(), []
        for tokens in run.tokens():
            step = None
            if responses is not None:
                here = responses["step"] == tokens["step"][0]
                step = {name: column[here] for name, column in responses.items()} if here.any() else None
            mine.append(step_row(tokens, step, by=config.rare))
        if mine:
            rows.append(mine)
    if not rows:
        return None
    return token_answer(rows, StepBootstrap([len(mine) for mine in rows], config.bootstrap, config.seed))


def _prompts(group: Group, config: GRPOStudyConfig) -> dict[str, Any] | None:
    """None where no run has responses to three prompts."""
    found = [batches(responses) for run in group.runs if (responses := run.responses()) is not None]
    found = [run for run in found if run]
    if not found:
        return None
    boot = StepBootstrap([len(run) for run in found], config.bootstrap, config.seed)
    return prompt_answer(found, boot, seed=config.seed)
