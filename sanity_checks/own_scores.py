"""The study's prompts scored here, by SmolLM2-135M-Instruct and by Gemma-3-270M, against the published entropies.

python sanity_checks/own_scores.py      writes runs/sanity/offline and /all_models; exits 1 when a figure is off

The same model must reproduce its own column better than any other column. Its weights here are 4-bit ones, the
study's were not, so the correlation is not 1. Gemma-3-270M, which the study did not have, joins the comparison.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pyarrow.parquet as pq
import scipy.stats
from _report import Report, published_table

from fluxentropy.agreement import AgreeConfig, ZooConfig
from fluxentropy.agreement.agree import agree, zoo
from fluxentropy.agreement.statistics import Agreement
from fluxentropy.runs.files import write_text

OUT = Path("runs/sanity")
OURS, GEMMA, THEIRS = "smollm2-135m-instruct", "gemma-3-270m", "HuggingFaceTB_SmolLM2-135M-Instruct"
ENDING = "_Characteristic_Value"


def main() -> int:
    """Score, compare, print and return the exit code."""
    table = published_table()
    config = ZooConfig(sources=(str(table),), zoo=Path("offline"), text_field="Text", out=OUT / "offline", offline=True)
    scored = zoo(config)
    print("\n".join(scored.lines()))
    if scored.exit_code:
        return scored.exit_code
    own = {name: pq.read_table(OUT / "offline" / name / "scores")["entropy_mean"].to_pylist() for name in (OURS, GEMMA)}
    published = _published(table)
    report = Report()
    correlation = {name: scipy.stats.spearmanr(own[OURS], column).statistic for name, column in published.items()}
    same = next(name for name in published if name.startswith(THEIRS))
    own_column = correlation.pop(same)
    report.at_least(f"Spearman of {OURS} with its published column", own_column, 0.97)
    for name, value in correlation.items():
        report.below(f"  with {name.split('_awesome')[0]}", value, own_column)
    report.equal(f"Spearman of {OURS} and {GEMMA}", scipy.stats.spearmanr(own[OURS], own[GEMMA]).statistic, 0.81, 0.02)
    everyone = _all_models(table, published | own)
    place = everyone.pca["coordinates"].get(GEMMA)
    report.holds(f"{GEMMA} takes part in the PCA of all ten models", place and f"PC1 {place[0]:.2f}", bool(place))
    print(f"plots in {OUT / 'offline'} and {OUT / 'all_models'}")
    return report.exit_code()


def _published(table: Path) -> dict[str, list[float]]:
    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name.removesuffix(ENDING): [float(row[name]) for row in rows] for name in rows[0] if name.endswith(ENDING)}


def _all_models(table: Path, columns: dict[str, list[float]]) -> Agreement:
    """Compare the published models and ours, in one table."""
    wide = OUT / f"{table.stem}_and_own.csv"
    header = ",".join(f"{name}{ENDING}" for name in columns)
    lines = [",".join(map(repr, row)) for row in zip(*columns.values(), strict=True)]
    write_text(wide, "\n".join([header, *lines]) + "\n")
    return agree(AgreeConfig(inputs=(str(wide),), out=OUT / "all_models", overwrite=True)).agreement


if __name__ == "__main__":
    sys.exit(main())
