"""Entropy-discriminator clipping: leave out tokens of bad responses whose suppression would lower the entropy.

    batch-normalised (Clip_B)        S*_a - mean S* < -μ sd(S*)
    vocabulary-normalised (Clip_V)   x = E_{i~p} S*_i - S*_a > μ sd(x), at most a share `most` of all tokens, largest x

for tokens with A < 0, S*_a = p_a (H + ln p_a); moments over all tokens of the batch, sd with 1/n. A gradient step on
token a changes the entropy by -α (S*_a - E_{i~p} S*_i), α of the sign of A, so that one with small S*_a and A < 0
lowers it. Source: Wang et al. 2026, arXiv:2602.03392.

Checked against the code in Trinity-RFT (`clipb`, `clipv`), which has exactly these thresholds: x is not centred
although its sd is; μ of Clip_V is 2.0 in the signature and 8.5 in `default_args`. It filters negative advantages only.
There a token is taken out of the mask, so that a mean over tokens has fewer of them; here it keeps its place in the
normaliser (a difference of the share dropped). Clip_B there uses log-probabilities of the sampler, here those of the
policy now. S* itself is tested against autograd. Not checked: the text of the paper beyond its abstract.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from fluxentropy.rl.controllers.base import Base, valid, without
from fluxentropy.rl.updatebatch import TokenBatch, TokenPlan

TINY = 1e-12  # a deviation below which all tokens are alike, as in the code


@dataclass(frozen=True, kw_only=True)
class ClipBatch(Base):
    """`threshold` μ, in standard deviations of S* over the batch."""

    name: ClassVar[str] = "clip_b"
    threshold: float = 2.5

    def __post_init__(self) -> None:
        self.need("threshold", self.threshold > 0, "a positive number")

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        A, S = valid(batch, batch.advantages), valid(batch, batch.sensitivity)
        sd = S.std(correction=0)
        return without(batch, (A < 0) & (S - S.mean() < -self.threshold * sd) & (sd >= TINY))


@dataclass(frozen=True, kw_only=True)
class ClipVocabulary(Base):
    """`threshold` μ, in standard deviations of x; `most`: the largest share of tokens to leave out (at least one)."""

    name: ClassVar[str] = "clip_v"
    statistics: ClassVar[frozenset[str]] = frozenset({"expected_sensitivity"})
    threshold: float = 8.5
    most: float = 1e-4

    def __post_init__(self) -> None:
        self.need("threshold", self.threshold > 0, "a positive number")
        self.need("most", 0 < self.most <= 1, "a share above 0 and at most 1")

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        expected = valid(batch, batch.expected_sensitivity, "expected_sensitivity")
        A, x = valid(batch, batch.advantages), expected - valid(batch, batch.sensitivity)
        sd = x.std(correction=0)
        beyond = (A < 0) & (x > self.threshold * sd) & (sd >= TINY)
        order = x.masked_fill(~beyond, -torch.inf).argsort(descending=True, stable=True)
        beyond[order[max(1, int(self.most * len(x))) :]] = False
        return without(batch, beyond)
