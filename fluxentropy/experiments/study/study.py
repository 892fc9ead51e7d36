"""`fluxentropy grpo-study`: finished runs of grpo with probes in, answers to the questions of the RL part out.

metrics.csv             columns "probe_*" of the probed steps
responses.parquet       a row a response of the probed steps
attribution/*.parquet   a file a probed step, a row a token

-> answers.py (pure) -> text.py, figures.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from fluxentropy.config.results import Result, command
from fluxentropy.errors import RunError, SourceError, UsageError
from fluxentropy.experiments.options import NONE, GRPOStudyConfig
from fluxentropy.experiments.study import answers as stepanswers
from fluxentropy.experiments.study.answers import StepBootstrap, batches, prompt_answer, step_row, token_answer
from fluxentropy.rl.grpo.figures import some
from fluxentropy.rl.probe.probe import COVARIANCE
from fluxentropy.runs.directory import difference
from fluxentropy.runs.files import plain, sha256_file, write_json, write_text
from fluxentropy.runs.find import DEPTH, recognise
from fluxentropy.runs.progress import Progress
from fluxentropy.runs.tables import Columns, read_metrics, reading

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


@dataclass(frozen=True, kw_only=True)
class GRPOStudyResult(Result):
    """The answers, as in `study.json`."""

    out: Path
    figures: tuple[str, ...]  # names of files in `out`
    unit: str  # "token" or "sequence": what entropies are per, in nats
    tolerance: float  # of the relative error of a prediction
    rare: str  # which tokens are: "entropy" or "median"
    bootstrap: int
    seed: int
    groups: Mapping[str, Any]  # the answers, by learning rate and controller
    differences: str  # the first option, but for these two and the seed, in which the runs differ; or ""
    left_out: Sequence[str]  # runs, and why
    points: Mapping[str, Any]  # what is drawn

    def lines(self) -> list[str]:
        from fluxentropy.experiments.study.text import summary

        said = f"answers in {self.out / 'study.md'}, numbers in {self.out / 'study.json'}"
        return [*summary(vars(self)), said]


@command
def grpo_study(config: GRPOStudyConfig) -> GRPOStudyResult:
    """Answer the questions from `config.runs`, into `config.out`. The same runs give the same bytes.

    Errors: those of `find_probed`; `UsageError` where --out is a run; `RunError` where nothing can be written.
    """
    from fluxentropy.experiments.study.figures import FIGURES, draw_study
    from fluxentropy.experiments.study.text import markdown

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
    for name in (*FIGURES, "validity"):  # of an earlier study; earlier versions drew the last
        for file in (config.out / f"{name}.png", config.out / f"{name}.svg"):
            if file not in figures:
                file.unlink(missing_ok=True)
    write_text(config.out / "study.md", markdown(record))
    return GRPOStudyResult(out=config.out, figures=tuple(file.name for file in figures), **record)


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
    missing += [] if some(columns, f"probe_measured_per_{unit}") else ["measured"]
    missing += [] if "ghost_radius" in found["validity"] else ["range"]
    missing += [name for name in ("optimizer", "pairs", "tokens", "prompts") if found[name] is None]
    missing += ["diagonal"] if found["pairs"] and not found["diagonal"] else []
    return found | {"missing": {name: WRITTEN_BY[name] for name in missing}}


def predictions(columns: Columns, config: GRPOStudyConfig, boot: StepBootstrap) -> dict[str, Any]:
    """How each prediction that the runs have fits, with the verdict on it."""
    found: dict[str, Any] = {}
    for name in stepanswers.PREDICTIONS:
        if some(columns, *(f"probe_{one}_per_{config.unit}" for one in ("measured", name))):
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


# --- probed runs ------------------------------------------------------------------------------------------------------


RESPONSES = ("step", "prompt", "response", "reward", "length", "entropy")
TOKENS = ("step", "prompt", "response", "position", "advantage", "logp", "entropy", "change")
OWN = ("seed", "controller", "problems", "initial_policy")  # in what runs of one learning rate may differ

# Columns of every row that a study reads, beside those of the probe.
OF_STEPS = ("step", "lr", *(f"entropy_per_{unit}{end}" for unit in ("sequence", "token") for end in ("", "_se")))


@dataclass(frozen=True, kw_only=True)
class ProbedRun:
    """One run; `columns` (n,) are those of its n probed steps, with `next_entropy_*` of the step after each."""

    path: Path
    name: str
    identity: Mapping[str, Any]
    columns: Columns = field(repr=False)

    @property
    def lr(self) -> float:
        return float(self.identity["optim"]["lr"])

    @property
    def seed(self) -> int:
        return int(self.identity["seed"])

    @property
    def controller(self) -> str:
        return str((self.identity.get("controller") or {}).get("name", NONE))

    @property
    def own_prompts(self) -> bool:
        """Whether the entropy is that of the update's prompts, not of new ones."""
        return bool(self.identity["probe"].get("same_prompts", False))

    def responses(self) -> Columns | None:
        """The responses of the probed steps, None where the run kept none. Errors: `RunError` names a damaged file."""
        return _table(self.path / "responses.parquet", RESPONSES)

    def tokens(self) -> Iterator[Columns]:
        """The tokens of each attributed step. Errors: as `responses`."""
        for file in sorted((self.path / "attribution").glob("step_*.parquet")):
            table = _table(file, TOKENS)
            if table is not None:
                yield table


@dataclass(frozen=True, kw_only=True)
class Group:
    """Runs of one learning rate, one controller, and one kind of prompts in the probe's batch."""

    label: str
    lr: float
    controller: str
    runs: Sequence[ProbedRun]

    @property
    def lengths(self) -> list[int]:
        """Probed steps of each run."""
        return [len(run.columns["step"]) for run in self.runs]

    def columns(self) -> Columns:
        """The columns of all runs, one after the other; NaN where a run has not such a column."""
        names = dict.fromkeys(name for run in self.runs for name in run.columns)
        missing = [np.full(n, np.nan) for n in self.lengths]
        return {
            name: np.concatenate([run.columns.get(name, gap) for run, gap in zip(self.runs, missing, strict=True)])
            for name in names
        }


def find_probed(paths: Sequence[str]) -> tuple[list[ProbedRun], list[str]]:
    """The probed runs that `paths` name or hold, each once; and the runs of folders that are left out, with the reason.

    Errors: `SourceError` where there is nothing; `RunError` where a path is a run that cannot be used, or holds none.
    """
    runs: dict[Path, ProbedRun] = {}
    left_out: list[str] = []
    for name in paths:
        path = Path(name).expanduser()
        if not path.is_dir():
            raise SourceError(f"{path}: no such folder; give runs of fluxentropy grpo, or a folder that holds some")
        if _kind(path) == "grpo":
            runs.setdefault(path.resolve(), read_run(path, path.resolve().name))
            continue
        skipped, before = [], len(runs)
        for inner in _inside(path, DEPTH):
            try:
                runs.setdefault(inner.resolve(), read_run(inner, inner.relative_to(path).as_posix()))
            except RunError as error:
                skipped.append(str(error))
        if len(runs) == before and not any(run.is_relative_to(path.resolve()) for run in runs):
            why = f": {skipped[0]}" if skipped else f" within {DEPTH} folders"
            raise RunError(f"{path} holds no finished run of grpo with probes{why}")
        left_out += skipped
    return list(runs.values()), left_out


def read_run(path: Path, name: str) -> ProbedRun:
    """The run of grpo at `path`. Errors: `RunError` where it is unfinished, or was not probed."""
    found = recognise(path)
    if found is None or found.kind != "grpo":
        raise RunError(f"{path} is no run of fluxentropy grpo")
    if found.manifest.get("complete") is not True:
        raise RunError(
            f"{path} is not finished: give the command that writes it once more, it resumes where it stopped"
        )
    every = read_metrics(path / "metrics.csv")
    probed = [column for column in every if column.startswith("probe_")]
    finite = [np.isfinite(every[column]) for column in probed] or [np.zeros(0, dtype=bool)]
    rows = np.flatnonzero(np.any(finite, axis=0))
    if not len(rows):
        raise RunError(f"{path} has no probed step: run it with --probe.every 10")
    columns = {name: every[name][rows] for name in (*OF_STEPS, *probed) if name in every}
    if found.identity.get("covariance") != COVARIANCE:  # of an earlier version: not in the units of the step
        columns.pop("probe_covariance_per_lr", None)
    options = found.identity["probe"]
    prompts = options["prompts"]
    if options.get("same_prompts"):
        prompts = min(prompts, found.identity["rollout"]["prompts"])
    columns["probe_prompts"] = np.full(len(rows), float(prompts))
    columns["probe_responses"] = np.full(len(rows), float(prompts * options["responses"]))
    if found.identity.get("inner_epochs") == 1:
        columns |= _next_entropies(every, rows)
    return ProbedRun(path=path, name=name, identity=found.identity, columns=columns)


def grouped(runs: Sequence[ProbedRun]) -> list[Group]:
    """By learning rate, and by controller and prompts of the probe where there are several."""
    controllers, kinds = {run.controller for run in runs}, {run.own_prompts for run in runs}
    found: dict[tuple[float, str, bool], list[ProbedRun]] = {}
    for run in sorted(runs, key=lambda run: (run.lr, run.controller, run.own_prompts, run.seed, run.name)):
        found.setdefault((run.lr, run.controller, run.own_prompts), []).append(run)
    groups = []
    for (lr, controller, own), members in found.items():
        label = f"{lr:g}" + f", {controller}" * (len(controllers) > 1)
        label += f", {'own' if own else 'new'} prompts" * (len(kinds) > 1)
        groups.append(Group(label=label, lr=lr, controller=controller, runs=members))
    return groups


def other_options(runs: Sequence[ProbedRun]) -> str:
    """The first difference of runs in what is neither learning rate, seed nor controller; empty where there is none."""

    def options(run: ProbedRun) -> dict[str, Any]:
        kept = {name: value for name, value in run.identity.items() if name not in OWN}
        return json.loads(json.dumps(kept | {"optim": {**kept["optim"], "lr": None}}))

    for run in runs[1:]:
        if said := difference(options(runs[0]), options(run)):
            return f"{said.replace(' there and ', f' in {runs[0].name}, ').removesuffix(' here')} in {run.name}"
    return ""


# --- parts ------------------------------------------------------------------------------------------------------------


def _kind(path: Path) -> str | None:
    found = recognise(path) if (path / "manifest.json").is_file() else None
    return None if found is None else found.kind


def _inside(folder: Path, depth: int) -> Iterator[Path]:
    """The runs of grpo below `folder`, by name; those of a comparison of controllers too."""
    if _kind(folder) == "grpo-compare":
        folder, depth = folder / "cells", 2
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.is_dir() or path.name.startswith("."):
            continue
        kind = _kind(path)
        if kind == "grpo":
            yield path
        elif kind == "grpo-compare" or (kind is None and depth > 1):
            yield from _inside(path, depth - 1)


def _next_entropies(every: Columns, rows: np.ndarray) -> Columns:
    """The entropies of the next step's responses, which the policy of after the step has sampled."""
    found = {}
    for name in OF_STEPS:
        if name.startswith("entropy") and name in every:
            later = np.append(every[name][1:], np.nan)
            follows = np.append(np.diff(every["step"]) == 1, False)
            found[f"next_{name}"] = np.where(follows, later, np.nan)[rows]
    return found


def _table(file: Path, columns: Sequence[str]) -> Columns | None:
    if not file.is_file():
        return None
    with reading(file):
        table = pq.read_table(file)
    if lacking := set(columns) - set(table.column_names):
        raise RunError(f"{file} has no column {min(lacking)}: it was not written by fluxentropy grpo")
    return {name: table.column(name).to_numpy() for name in columns} if table.num_rows else None
