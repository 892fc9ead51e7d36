"""A text's scores depend on the text alone: not on its batch, its neighbours, or where padding stands.

python sanity_checks/neighbours.py      scores with SmolLM2-135M-Instruct; exits 1 when a neighbour matters

The batch is also computed by the plain model of `transformers`, padded on the left and on the right: both must give the
scorer's numbers, or what the scorer saves by not padding would have changed them.
"""

from __future__ import annotations

import sys

import torch
from _report import Report

from fluxentropy.entropy import token_stats
from fluxentropy.models.loading import load_decoder
from fluxentropy.models.zoo import find_model
from fluxentropy.scoring.scorer import open_scorer

MODEL = "smollm2-135m-instruct"
TEXTS = (
    "Hi.",
    "Entropy measures how uncertain a distribution is.",
    "def area(radius):\n    return 3.14159 * radius ** 2\n",
    "The committee met on Tuesday, heard two reports, postponed the third, and closed at noon. " * 4,
)
TOLERANCE = 1e-4  # nats, of a text's mean entropy: float32 sums taken in another order differ by about 1e-6


def main() -> int:
    """Score in several ways, print the largest deviation of each and return the exit code."""
    scorer, _ = open_scorer(find_model(MODEL), offline=True, dtype="fp32")
    alone = [scorer.score([text])[0].entropy_mean or 0.0 for text in TEXTS]
    report = Report()
    ways = {
        "all in one batch": [row.entropy_mean or 0.0 for row in scorer.score(TEXTS)],
        "in reverse order": [row.entropy_mean or 0.0 for row in scorer.score(TEXTS[::-1])][::-1],
        "plain model, padded on the right": padded("right"),
        "plain model, padded on the left": padded("left"),
    }
    for name, found in ways.items():
        worst = max(abs(a - b) for a, b in zip(found, alone, strict=True))
        report.below(f"{name}: largest |dH| from each text alone, nats", worst, TOLERANCE)
    return report.exit_code()


@torch.inference_mode()
def padded(side: str) -> list[float]:
    """Mean entropies (nats) from one padded batch of the plain model."""
    decoder = load_decoder(find_model(MODEL), device="cpu", dtype="fp32", offline=True)
    tokenizer = decoder.tokenizer
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    batch = tokenizer(list(TEXTS), return_tensors="pt", padding=True, padding_side=side)
    positions = (batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = decoder.model(**batch, position_ids=positions).logits  # (B, T, V)
    entropy = token_stats(logits).entropy  # (B, T)
    mask = batch.attention_mask.bool()
    return [float(row[kept].double().mean()) for row, kept in zip(entropy, mask, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
