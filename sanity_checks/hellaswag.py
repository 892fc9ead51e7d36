"""300 HellaSwag questions answered by SmolLM2-135M-Instruct: accuracies near those that are known for it.

python sanity_checks/hellaswag.py      writes runs/sanity/hellaswag; exits 1 when an accuracy is off

Its model card says 0.41 for acc_norm over all 10,042 questions; one standard error of 300 is 0.028.
"""

from __future__ import annotations

import sys
from pathlib import Path

from _report import SHARED, Report

from fluxentropy.evaluation import HellaswagConfig
from fluxentropy.evaluation.hellaswag import hellaswag

DATA = SHARED / "data" / "hellaswag" / "hellaswag_val.jsonl.gz"
OUT = Path("runs/sanity/hellaswag")


def main() -> int:
    """Answer, compare, print and return the exit code."""
    if not DATA.is_file():
        raise SystemExit(f"no questions {DATA}: set FLUXENTROPY_SHARED to the folder that holds data/hellaswag")
    found = hellaswag(HellaswagConfig(model="smollm2-135m-instruct", data=str(DATA), limit=300, out=OUT))
    report = Report()
    report.equal("acc: the likeliest ending", found.acc.value or 0.0, 0.35, 0.07)
    report.equal("acc_norm: the likeliest ending per character", found.acc_norm.value or 0.0, 0.415, 0.085)
    return report.exit_code()


if __name__ == "__main__":
    sys.exit(main())
