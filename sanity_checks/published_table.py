"""The figures of the 2024 study from its published table: 8 models, 150 prompts, mean entropy.

python sanity_checks/published_table.py      writes runs/sanity/published with all plots; exits 1 when a figure is off
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from _report import Report, published_table

from fluxentropy.agreement import AgreeConfig
from fluxentropy.agreement.agree import agree

OUT = Path("runs/sanity/published")
QUINTILES = (14.0, 20.0, 24.3, 17.8, 7.7)  # population SD of ranks, from the lowest to the highest mean rank


def main() -> int:
    """Compare, print and return the exit code."""
    found = agree(AgreeConfig(inputs=(str(published_table()),), out=OUT, overwrite=True)).agreement
    ratios, report = found.explained_variance_ratio, Report()
    small, large = (found.models.index(model) for model in _named(found.models, "SmolLM2-135M", "Qwen2.5-3B"))
    report.equal("PCA, models as rows: first ratio of variance", ratios[0], 0.905, 5e-4)
    report.equal("PCA, models as rows: second ratio of variance", ratios[1], 0.032, 5e-4)
    report.equal("Kendall's W", found.kendall_w, 0.799, 5e-4)
    report.equal("Spearman, mean of the pairs", found.mean_spearman, 0.770, 5e-4)
    report.equal("Euclidean distance, SmolLM2-135M and Qwen2.5-3B", found.euclidean[small, large], 15.13, 5e-3)
    for place, (spread, expected) in enumerate(zip(found.rank_sd_by_quintile, QUINTILES, strict=True), 1):
        report.equal(f"SD of ranks, quintile {place} of the mean rank", spread, expected, 0.05)
    report.holds("models agree most on the texts of highest entropy", *_smallest_last(found.rank_sd_by_quintile))
    print(f"plots in {OUT}")
    return report.exit_code()


def _named(models: Sequence[str], *parts: str) -> list[str]:
    return [next(model for model in models if part in model) for part in parts]


def _smallest_last(values: np.ndarray) -> tuple[float, bool]:
    return round(float(values[-1]), 2), bool(values.min() == values[-1])


if __name__ == "__main__":
    sys.exit(main())
