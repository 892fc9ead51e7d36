"""Sections of a report on schedules, trainings, comparisons and diagnoses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from markupsafe import Markup

from fluxentropy.errors import RunError
from fluxentropy.report.html import Chart, Line, areas, columns, lines, markdown, parts
from fluxentropy.report.sections import Given, Section, plots
from fluxentropy.runs.files import read_json
from fluxentropy.runs.find import Run
from fluxentropy.runs.tables import Columns, read_metrics, reading

PIECES = 60  # of the budget: what a drawn mixture is the mean of


@dataclass(frozen=True, kw_only=True)
class Training:
    """What is shown of a run of `pretrain`."""

    metrics: Columns
    at: np.ndarray  # (P,) tokens after each piece
    shares: np.ndarray  # (P, K) of the blocks drawn in it


# --- schedules and trainings ------------------------------------------------------------------------------------------


def read_plan(run: Run) -> dict[str, Any]:
    return read_json(run.path / "mixture.json") or {}


def plan_section(run: Run, plan: dict[str, Any], beside: Given) -> list[Markup]:
    del run, beside
    mixture = np.array(plan["mixture"], np.float64)
    at = np.linspace(0, plan["tokens"], len(mixture) + 1)[1:]
    names = [str(k) for k in range(len(plan["epochs"]))]
    told = [("schedule", plan["config"]["name"]), ("kind", plan["kind"]), ("steps", plan["steps"]),
            ("tokens", plan["tokens"]), ("blocks drawn", sum(plan["drawn"]))]  # fmt: skip
    charts = [
        areas(at, mixture, title="Planned share of each bin, by tenths of the budget", label="tokens", name="bin"),
        columns(names, plan["epochs"], title="How often each bin is drawn", label="bin", unit="epochs"),
    ]
    return [parts().facts(told), parts().charts(charts)]


def read_training(run: Run) -> Training:
    path = run.path / "ledger.parquet"
    with reading(path):
        ledger = pq.read_table(path, columns=["tokens", "bins"])
    tokens = np.asarray(ledger["tokens"].to_numpy())
    drawn = ledger["bins"].combine_chunks().flatten().to_numpy()
    counts = drawn.reshape(len(ledger), -1).astype(np.float64)  # (steps, K)
    cuts = np.linspace(0, len(counts), min(PIECES, len(counts)) + 1).round().astype(np.int64)
    pieces = np.add.reduceat(counts, cuts[:-1])
    shares = pieces / np.maximum(pieces.sum(axis=1, keepdims=True), 1)
    return Training(metrics=read_metrics(run.path / "metrics.csv"), at=tokens[cuts[1:] - 1], shares=shares)


def training_section(run: Run, found: Training, beside: Given) -> list[Markup]:
    del beside
    return [parts().facts(_training_facts(run, found.metrics)), parts().charts(_training_charts(found))]


def _training_facts(run: Run, metrics: Columns) -> list[tuple[str, object]]:
    identity = run.identity
    schedule, optim, model = (identity.get(name) or {} for name in ("schedule", "optim", "model"))
    sizes = {"layers": model.get("n_layer"), "heads": model.get("n_head"), "channels": model.get("n_embd")}
    shape = ", ".join(f"{size} {word}" for word, size in sizes.items() if size)
    return [
        ("schedule", f"{schedule.get('name')}" + ", static" * bool(schedule.get("static"))),
        ("GPT", shape),
        ("parameters", run.manifest.get("parameters")),
        ("tokens", run.manifest.get("tokens")),
        ("steps", run.manifest.get("steps")),
        ("optimizer", f"{optim.get('kind')}, rate {optim.get('lr')}" if optim else None),
        ("seed", identity.get("seed")),
        ("held-out loss at the end", _last(metrics, "val_loss", "nats per token")),
        ("bits per byte", _last(metrics, "val_bpb", "")),
    ]


def _last(metrics: Columns, name: str, unit: str) -> str | None:
    known = metrics[name][np.isfinite(metrics[name])] if name in metrics else np.zeros(0)
    return f"{known[-1]:.4f} {unit}".strip() if len(known) else None


def _training_charts(found: Training) -> list[Chart | None]:
    metrics = found.metrics
    tokens = metrics["tokens"]
    losses = [Line(name=words, x=tokens, y=metrics[name])
              for name, words in (("train_loss", "training"), ("val_loss", "held out")) if name in metrics]  # fmt: skip
    by_bin = [name for name in metrics if name.startswith("val_bpb_bin_")]
    ends = [float(metrics[name][np.isfinite(metrics[name])][-1:].sum()) for name in by_bin]  # 0 where there is none
    bins = [name.rpartition("_")[2] for name in by_bin]
    charts = [
        lines(losses, title="Loss over the tokens", label="tokens", unit="nats per token"),
        areas(found.at, found.shares, title="Share of each bin in what was drawn", label="tokens", name="bin"),
    ]
    if any(ends):
        title = "Held-out bits per byte of each bin, at the end"
        charts.append(columns(bins, ends, title=title, label="bin", unit="bits per byte"))
    if "lr" in metrics:
        rate = [Line(name="rate", x=tokens, y=metrics["lr"])]
        charts.append(lines(rate, title="Learning rate", label="tokens", unit="rate"))
    return charts


def side_by_side(runs: Sequence[tuple[Run, Training]]) -> list[Markup]:
    """All trainings of the page in one chart and one table."""
    curves = [Line(name=run.name, x=found.metrics["tokens"], y=found.metrics["val_bpb"]) for run, found in runs
              if "val_bpb" in found.metrics]  # fmt: skip
    late = [_from(line, 0.1) for line in curves]
    rows = [
        [run.name, str((run.identity.get("schedule") or {}).get("name", "")), f"{run.manifest['tokens']:,}",
         _last(found.metrics, "val_bpb", "") or "", _last(found.metrics, "val_loss", "") or ""]
        for run, found in runs
    ]  # fmt: skip
    title = "Held-out bits per byte of all trainings, from a tenth of the budget on"
    return [
        parts().charts([lines(late, title=title, label="tokens", unit="bits per byte")]),
        parts().table(["training", "schedule", "tokens", "bits per byte", "held-out loss"], rows, "trainings", None),
        parts().note(
            "One run each says little: fluxentropy compare trains several seeds and says what can be told apart."
        ),
    ]


def _from(line: Line, share: float) -> Line:
    kept = line.x >= share * np.nanmax(line.x)
    return Line(name=line.name, x=line.x[kept], y=line.y[kept])


# --- what other commands have put into words --------------------------------------------------------------------------


def read_words(run: Run) -> str:
    """`comparison.md` or `grpo_comparison.md` of a comparison, `summary.md` of a diagnosis."""
    path = run.path / {"compare": "comparison.md", "grpo-compare": "grpo_comparison.md"}.get(run.kind, "summary.md")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}): the command that wrote {run.path} makes it again") from error


def words_section(run: Run, words: str, beside: Given) -> list[Markup]:
    def picture(alt: str, name: str) -> Markup:
        path = run.path / Path(name).name  # pictures of this folder, wherever the text points
        if not (path.suffix == ".png" and path.is_file()):
            return parts().note(f"The picture {name} is not there.")
        return beside.pictures.show(path, alt)

    title, _, rest = words.partition("\n")
    kept = rest if title.startswith("# ") else words
    return [markdown(kept, picture=picture)]


# --- reinforcement learning -------------------------------------------------------------------------------------------

# Charts of a run of `grpo`: title, unit, and the columns whose lines it has.
REWARD_CHARTS: Sequence[tuple[str, str, Mapping[str, str]]] = (
    ("Reward", "reward", {"reward": "of the samples", "eval_reward": "held-out problems"}),
    ("Entropy of the policy", "nats per token", {"entropy_per_token": "entropy"}),
    ("Change of the entropy by a step", "nats per token",
     {"probe_predicted_per_token": "predicted", "probe_measured_per_token": "measured"}),
    ("Length of a response", "tokens", {"length": "length"}),
    ("Divergence from the first policy", "nats", {"kl": "KL"}),
    ("Tokens whose ratio was clipped", "share", {"clip_fraction": "clipped"}),
)  # fmt: skip


def read_rewards(run: Run) -> Columns:
    return read_metrics(run.path / "metrics.csv")


def reward_section(run: Run, metrics: Columns, beside: Given) -> list[Markup]:
    steps = metrics["step"]
    charts = []
    for title, unit, names in REWARD_CHARTS:
        known = {name: words for name, words in names.items() if name in metrics and np.isfinite(metrics[name]).any()}
        drawn = [Line(name=words, x=steps, y=metrics[name]) for name, words in known.items()]
        charts.append(lines(drawn, title=title, label="step", unit=unit))
    found = {path.stem: path.stem.replace("_", " ") for path in sorted(run.path.glob("*.png"))}
    told = [
        ("steps", int(np.nanmax(steps))),
        ("parameters", run.manifest.get("parameters")),
        ("reward at the end", _last(metrics, "reward", "")),
        ("of held-out problems", _last(metrics, "eval_reward", "")),
        ("solved", _last(metrics, "eval_solved", "")),
        ("entropy", _last(metrics, "entropy_per_token", "nats per token")),
    ]
    return [parts().facts(told), parts().charts(charts), *plots(run.path, found, beside.pictures)]


TRAINING_SECTIONS = {
    "schedule": Section("Schedule", read_plan, plan_section),
    "pretrain": Section("Training", read_training, training_section),
    "compare": Section("Comparison of schedules", read_words, words_section),
    "diagnose": Section("Diagnosis", read_words, words_section),
    "grpo": Section("Reinforcement learning", read_rewards, reward_section),
    "grpo-compare": Section("Comparison of controllers", read_words, words_section),
}
