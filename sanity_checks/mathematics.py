"""Distributions whose entropy and varentropy are known in closed form, against fluxentropy.entropy.token_stats.

python sanity_checks/mathematics.py      prints a table; exits 1 when a value is off

uniform over n tokens    H = ln n                              V = 0
one token has it all     H = 0                                 V = 0
two equal peaks          H = ln 2                              V = 0
two tokens, p and 1-p    H = -p ln p - (1-p) ln(1-p)           V = p (1-p) ln²(p / (1-p))
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fluxentropy.entropy import token_stats

VOCABULARY = 49152
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}  # nats and nats², relative above 1


def cases() -> Iterator[tuple[str, Tensor, float, float]]:
    """Yield (name, logits (V,) in float64, H in nats, V in nats²)."""
    for size in (2, VOCABULARY):
        yield f"uniform over {size:,}", torch.zeros(size), math.log(size), 0.0
        yield f"uniform over {size:,}, logits at 1e4", torch.full((size,), 1e4), math.log(size), 0.0
    yield "one token, the others -inf", only({7: 3.0}), 0.0, 0.0
    yield "one token, the others 1e4 lower", torch.zeros(VOCABULARY).index_fill(0, torch.tensor([7]), 1e4), 0.0, 0.0
    yield "two equal peaks", only({0: -2.0, VOCABULARY - 1: -2.0}), math.log(2), 0.0
    for p in (0.5, 0.9, 0.999, 1e-6):
        entropy = -p * math.log(p) - (1 - p) * math.log1p(-p)
        varentropy = p * (1 - p) * (math.log(p) - math.log1p(-p)) ** 2
        yield f"two tokens, p = {p:g}", only({3: math.log(p), 5: math.log1p(-p)}), entropy, varentropy


def only(logits: dict[int, float]) -> Tensor:
    """Logits (V,) that are -inf except at the given tokens."""
    z = torch.full((VOCABULARY,), -torch.inf, dtype=torch.float64)
    for token, value in logits.items():
        z[token] = value
    return z


def main() -> int:
    """Print one line a case and precision; return the exit code."""
    failed = 0
    print(f"{'distribution':34} {'dtype':8} {'H':>10} {'error':>9} {'V':>10} {'error':>9}")
    for name, logits, entropy, varentropy in cases():
        for dtype, tolerance in TOLERANCE.items():
            stats = token_stats(logits.to(dtype))
            errors = [
                abs(float(found) - true) / max(1.0, abs(true))
                for found, true in ((stats.entropy, entropy), (stats.varentropy, varentropy))
            ]
            wrong = not all(error <= tolerance for error in errors)  # NaN is wrong too
            failed += wrong
            print(
                f"{name:34} {str(dtype).removeprefix('torch.'):8} {entropy:10.6f} {errors[0]:9.1e} "
                f"{varentropy:10.6f} {errors[1]:9.1e}{'  WRONG' if wrong else ''}"
            )
    print(f"{failed} wrong" if failed else "all hold")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
