"""Sections of a report on models: how far they agree, and how well they answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fluxentropy.markup import Content, Markup, el, given, join
from fluxentropy.questions import ACCURACIES
from fluxentropy.reportpictures import Pictures
from fluxentropy.reportruns import Run
from fluxentropy.reportscores import ScoreSummary, summarise_scores
from fluxentropy.reportsections import ROWS, Given, capped, distribution_charts, distribution_table, facts
from fluxentropy.store import read_json

# --- agreement --------------------------------------------------------------------------------------------------------

PLOTS = {
    "pca_models": "Models as points on the first two principal components of their scores",
    "distance_matrix": "Euclidean distance and Spearman correlation of each pair of models",
    "entropies": "Each model's score of each text, in the order of the baseline",
    "ranks": "Each model's rank of each text, in the order of the baseline",
    "explained_variance": "Share of the variance that each principal component explains",
    "rank_spread": "How far the models' ranks of a text lie apart, by its mean rank",
}


def read_agreement(run: Run) -> dict[str, Any]:
    return read_json(run.path / "agreement.json") or {}


def agreement_section(run: Run, found: dict[str, Any], beside: Given) -> Content:
    failed = run.manifest.get("failed") or {}
    lost = el("ul", (el("li", given(name), ": ", given(why, 300)) for name, why in failed.items())) if failed else None
    if not found:
        return [el("p", "The models were not compared.", class_="note"), lost]
    labels = {name: found.get("labels", {}).get(name, name) for name in found["models"]}
    limits = found.get("bootstrap", {}).get("intervals", {})
    shares = ", ".join(f"{share:.1%}" for share in found["pca"]["explained_variance_ratio"][:3])
    told = facts(
        [("models", len(labels)), ("texts", found["n_texts"]), ("score", found.get("measure")),
         ("Spearman, mean of the pairs", _limited(found.get("mean_spearman"), limits.get("mean_spearman"))),
         ("Kendall's W", _limited(found["kendall_w"], limits.get("kendall_w"))),
         ("PCA, variance of the first components", shares),
         ("SD of a text's rank, by quintile of its mean rank",
          ", ".join(f"{x:.1f}" for x in found["rank_sd_by_quintile"] if x is not None))]
    )  # fmt: skip
    short = [given(label, 24) for label in labels.values()]
    rows: list[list[Content]] = [
        [name, *("" if x is None else f"{x:.2f}" for x in line[:ROWS])]
        for name, line in zip(short, found["spearman"], strict=True)
    ]
    return [told, lost, el("h3", "Spearman correlations"), *capped(["", *short[:ROWS]], rows, label="correlations"),
            el("h3", "Plots"), plots(run.path, PLOTS, beside.pictures)]  # fmt: skip


def _limited(value: float | None, limits: Sequence[float] | None) -> str | None:
    if value is None:
        return None
    return f"{value:.3f}" + (f" [{limits[0]:.3f}, {limits[1]:.3f}]" if limits else "")


def plots(folder: Path, known: Mapping[str, str], pictures: Pictures) -> Markup:
    """The pictures `known` that are in `folder`, with what they show."""
    return join(
        pictures.show(path, words) for name, words in known.items() if (path := folder / f"{name}.png").is_file()
    )


# --- answers ----------------------------------------------------------------------------------------------------------

ITEM_SCORES = ("entropy_mean", "varentropy_mean", "right_surprisal_mean", "right_entropy_mean", "margin", "n_tokens")


def read_answers(run: Run) -> ScoreSummary:
    return summarise_scores([run.path / "items.parquet"], text_field="", names=ITEM_SCORES)


def answer_section(run: Run, summary: ScoreSummary, beside: Given) -> Content:
    del beside
    rights: list[tuple[str, object]] = []
    old = "format" not in run.identity  # there acc_norm was per byte
    for name, (_, words) in ACCURACIES.items():
        words = "right, " + (words.replace("character", "byte") if old else words)
        value, se, n = ((run.manifest.get(name) or {}).get(key) for key in ("value", "se", "n"))
        if value is not None:
            rights.append((words, f"{value:.1%}" + (f" ± {se:.1%}" if se is not None else "") + f" of {n:,}"))
    told = [("model", (run.identity.get("model") or {}).get("name")), ("task", run.manifest.get("task")),
            ("questions", summary.rows), *rights]  # fmt: skip
    drawn = [one for one in summary.distributions if one.name != "n_tokens" and np.ptp(one.edges) > 0]
    return [
        facts(told),
        distribution_charts(drawn[:4]),
        *distribution_table(summary.distributions),
    ]
