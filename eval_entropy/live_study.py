"""The HellaSwag study with a model of today: does its uncertainty about a context predict whether it answers right?

python eval_entropy/live_study.py [--model NAME] [--data FILE] [--limit N] [--out DIR]

Answers the validation items (resumable), then fits the regressions for both ways to choose an ending and three groups
of metrics: the four published regimes of the context, the same from the model's 100 most likely tokens, and, for
comparison, what the model shows while it answers. Each group is corrected for all tests in it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from fluxentropy.errors import FluxentropyError
from fluxentropy.evaluation import DiagnoseConfig, HellaswagConfig
from fluxentropy.evaluation.diagnose import diagnose
from fluxentropy.evaluation.hellaswag import hellaswag

DATA = Path(os.environ.get("FLUXENTROPY_SHARED", "../shared"), "data/hellaswag/hellaswag_val.jsonl.gz")
TARGETS = ("correct", "correct_norm")

# Metrics, and the pairs that are fitted together.
GROUPS = {
    "context": (
        ("entropy_mean", "varentropy_mean", "sqrt_varentropy_mean", "entropy_last", "varentropy_last", "n_tokens"),
        ("entropy_mean+varentropy_mean", "entropy_last+varentropy_last", "entropy_mean+n_tokens"),
    ),
    "top100": (
        ("entropy_top100_mean", "varentropy_top100_mean", "entropy_top100_last", "varentropy_top100_last"),
        ("entropy_top100_mean+varentropy_top100_mean", "entropy_top100_last+varentropy_top100_last"),
    ),
    "answer": (("margin", "margin_norm", "chosen_entropy_mean", "chosen_surprisal_mean"), ("none",)),
}


def main() -> int:
    """Answer, diagnose, print and return the exit code."""
    parser = argparse.ArgumentParser(description="Run the live HellaSwag study.")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="zoo name, Hub id, folder or .gguf file")
    parser.add_argument("--data", default=str(DATA), help="HellaSwag's records, or hf://datasets/Rowan/hellaswag")
    parser.add_argument("--limit", type=int, help="answer only the first items")
    parser.add_argument("--out", type=Path, default=Path("eval_entropy/results/live"), help="folder to write")
    options = parser.parse_args()
    try:
        run = options.out / "answers"
        answered = hellaswag(HellaswagConfig(model=options.model, data=options.data, limit=options.limit, out=run))
        print("\n".join(answered.lines()[:-1]))
        for target in TARGETS:
            for name, (metrics, pairs) in GROUPS.items():
                out = options.out / f"{target}-{name}"
                found = diagnose(
                    DiagnoseConfig(table=str(run), target=target, metrics=metrics, pairs=pairs, out=out, overwrite=True)
                )
                print(f"\n{target}, {name}: {found.lines()[0]}\n  {out / 'summary.md'}")
    except FluxentropyError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
