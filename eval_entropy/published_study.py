"""The published HellaSwag study, reproduced from its published table: does entropy predict correctness?

python eval_entropy/published_study.py [TABLE] [--out DIR]    prints a table; exits 1 when a figure is off

TABLE is published_entropy_vs_correct.csv: the mean token entropy of each of the 10,042 validation contexts and whether
the model answered correctly. It is looked for in $FLUXENTROPY_SHARED/data/hellaswag, by default ../shared.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxentropy.errors import FluxentropyError
from fluxentropy.evaluation import DiagnoseConfig
from fluxentropy.evaluation.diagnose import diagnose

TABLE = Path(os.environ.get("FLUXENTROPY_SHARED", "../shared"), "data/hellaswag/published_entropy_vs_correct.csv")
TARGET = "Correctly Answered"

# What was published: a name, the place in diagnostics.json, and the figure in the digits that were printed.
PUBLISHED = (
    ("rows", "n", "10042"),
    ("correct", "n_true", "4529"),
    ("const", "models.entropy.params.const", "0.0295"),
    ("coefficient of entropy", "models.entropy.params.entropy", "-0.0741"),
    ("standard error of const", "models.entropy.bse.const", "0.0949"),
    ("standard error of entropy", "models.entropy.bse.entropy", "0.0304"),
    ("p of entropy", "models.entropy.pvalues.entropy", "0.0148"),
    ("LLR p", "models.entropy.llr_pvalue", "0.01468"),
    ("pseudo-R²", "models.entropy.pseudo_r2", "0.0004307"),
    ("log-likelihood", "models.entropy.llf", "-6909.319"),
    ("AUC", "models.entropy.roc_auc", "0.5178"),
    ("ANOVA F", "anova.entropy.F", "5.9465"),
    ("ANOVA p", "anova.entropy.p", "0.01476"),
)


def compare(record: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """For each published figure its name, the figure, and what `record` has in its place, in as many digits.

    >>> compare({"n": 10042.2})[0]
    ('rows', '10042', '10042')
    """
    rows = []
    for name, place, figure in PUBLISHED:
        value: Any = record
        for key in place.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        digits = len(figure.partition(".")[2])
        rows.append((name, figure, "missing" if value is None else f"{value:.{digits}f}"))
    return rows


def main() -> int:
    """Diagnose the table, compare with what was published, and return the exit code."""
    parser = argparse.ArgumentParser(description="Reproduce the published HellaSwag study.")
    parser.add_argument("table", nargs="?", default=str(TABLE), help="published_entropy_vs_correct.csv")
    parser.add_argument("--out", type=Path, default=Path("eval_entropy/results/published"), help="folder to write")
    options = parser.parse_args()
    try:
        result = diagnose(DiagnoseConfig(table=options.table, target=TARGET, metrics=("entropy",), out=options.out))
    except FluxentropyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    wrong = 0
    print(f"{'figure':28} {'published':>12} {'here':>12}")
    for name, published, found in compare(result.to_dict()):
        wrong += published != found
        print(f"{name:28} {published:>12} {found:>12}{'' if published == found else '  WRONG'}")
    print(f"{wrong} wrong" if wrong else "all figures reproduced", end="\n\n")
    print("\n".join(result.lines()))
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
