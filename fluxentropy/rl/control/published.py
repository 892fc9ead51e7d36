"""Controllers of papers: clipping, covariances, bonuses and masks, each with its source."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from fluxentropy.config.checks import Check
from fluxentropy.rl.control.base import POSITIVE, Base, TokenBatch, TokenPlan, covariance, share, spread, valid, without

TINY = 1e-12  # a deviation below which all tokens are alike, as in the code
FLOOR = 0.02  # |Ω| below which the exponential form does not stretch its range


def part(what: str = "share") -> Check:
    return Check(lambda value: 0 < value <= 1, f"use a {what} above 0 and at most 1")


@dataclass(frozen=True, kw_only=True)
class NoControl(Base):
    """No control, what the others are compared with: leaves loss and step as they are."""

    name: ClassVar[str] = "none"


@dataclass(frozen=True, kw_only=True)
class Bonus(Base):
    """Entropy bonus: the loss gets -c mean H_k.

    The usual regulariser of policy gradients (Williams and Peng 1991; Mnih et al. 2016, arXiv:1602.01783). The gradient
    of mean H_k at the sampled prefixes is not that of the policy's entropy: how the prefixes themselves change is left
    out.

    A constant coefficient c; negative ones lower the entropy.
    """

    name: ClassVar[str] = "bonus"
    coefficient: float = 1e-3

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        return TokenPlan(bonus=self.coefficient)


@dataclass(frozen=True, kw_only=True)
class AsymmetricClip(Base):
    """Asymmetric clipping ("clip-higher"): the ratio is clipped to [1 - low, 1 + high] with high > low.

    Source: DAPO, Yu et al. 2025, arXiv:2503.14476 (0.2 and 0.28). A token of small probability that did well may grow
    further before it loses its gradient, which keeps entropy up; clipping from below raises it too (arXiv:2509.26114).
    It acts only where a batch is used for several steps: at ratio 1 nothing is clipped.

    Bounds of the ratio in place of the configuration's.
    """

    name: ClassVar[str] = "asymmetric_clip"
    low: Annotated[float, part("number")] = 0.2
    high: Annotated[float, POSITIVE] = 0.28

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        return TokenPlan(clip=(self.low, self.high))


@dataclass(frozen=True, kw_only=True)
class ClipCov(Base):
    """Clip-Cov: leave out a few tokens whose covariance of advantage and log-probability is large.

        c_i = (A_i - mean A)(ln π_i - mean ln π);  draw max(1, ⌊ratio n⌋) of n tokens uniformly from {low < c_i < high}

    without those that the loss clips already, and give them no gradient. Under natural gradient on free logits the
    entropy changes by -η Cov(ln π, A), so these tokens lower it most. Source: Cui et al. 2025, arXiv:2505.22617.

    Checked against the code in verl (`clip_cov`): means over all tokens, the bounds exclusive, at least one token.
    There all of it is done in each micro-batch, so that the share and the means depend on how a batch is split, and "at
    least one token" becomes one a micro-batch; here it is one draw over the batch of the optimizer step. Not checked:
    the text of the paper beyond its abstract.

    `ratio`: share of the tokens to leave out; `low`, `high`: covariances that they may have, nats.
    """

    name: ClassVar[str] = "clip_cov"
    ratio: Annotated[float, part()] = 2e-4
    low: float = 1.0
    high: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.need("low", self.low < self.high, f"a number below high, {self.high}")

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:
        c, clipped = covariance(batch), valid(batch, batch.clipped) > 0
        candidates = ((c > self.low) & (c < self.high) & ~clipped).nonzero()[:, 0]
        order = torch.randperm(len(candidates), generator=generator).to(candidates.device)
        dropped = torch.zeros_like(clipped)
        dropped[candidates[order[: max(1, int(self.ratio * len(c)))]]] = True
        return without(batch, dropped)


@dataclass(frozen=True, kw_only=True)
class KLCov(Base):
    """KL-Cov: tokens of the largest covariance are held where they are by a penalty.

        c_i as in Clip-Cov;  the max(1, ⌊ratio n⌋) tokens of the largest c_i get the loss -A ρ + β |ln ρ|

    Source: Cui et al. 2025, arXiv:2505.22617. Checked against the code in verl (`kl_cov`), where β is 1 in the loss and
    0.1 in the configuration's default. There the loss of *all other* tokens is -A ρ, without clipping, which the name
    does not say: `keep_clip` keeps it. There tokens are chosen in each micro-batch, here over the whole batch.

    |ln ρ| has its kink at ρ = 1 and torch gives it the gradient 0 there: with one step a batch, KL-Cov does nothing at
    all but take the clip away. Not checked: the text of the paper beyond its abstract.

    `ratio`: share of the tokens; `coefficient`: β; `keep_clip`: leave the other tokens' clip as it is.
    """

    name: ClassVar[str] = "kl_cov"
    ratio: Annotated[float, part()] = 2e-4
    coefficient: Annotated[float, POSITIVE] = 1.0
    keep_clip: bool = False

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        c = covariance(batch)
        chosen = torch.zeros_like(c, dtype=torch.bool)
        chosen[c.argsort(descending=True, stable=True)[: max(1, int(self.ratio * len(c)))]] = True
        return TokenPlan(
            kl=spread(batch, self.coefficient * chosen.double(), outside=0.0),
            clip=None if self.keep_clip else (1.0, math.inf),
            facts={"penalised": share(chosen)},
        )


@dataclass(frozen=True, kw_only=True)
class ClipBatch(Base):
    """Entropy-discriminator clipping: leave out tokens of bad responses whose suppression would lower the entropy.

        batch-normalised (Clip_B)        S*_a - mean S* < -μ sd(S*)
        vocabulary-normalised (Clip_V)   x = E_{i~p} S*_i - S*_a > μ sd(x), at most a share `most` of tokens, largest x

    for tokens with A < 0, S*_a = p_a (H + ln p_a); moments over all tokens of the batch, sd with 1/n. A gradient step
    on token a changes the entropy by -α (S*_a - E_{i~p} S*_i), α of the sign of A, so that one with small S*_a and A <
    0 lowers it. Source: Wang et al. 2026, arXiv:2602.03392.

    Checked against the code in Trinity-RFT (`clipb`, `clipv`), which has exactly these thresholds: x is not centred
    although its sd is; μ of Clip_V is 2.0 in the signature and 8.5 in `default_args`. It filters negative advantages
    only. There a token is taken out of the mask, so that a mean over tokens has fewer of them; here it keeps its place
    in the normaliser (a difference of the share dropped). Clip_B there uses log-probabilities of the sampler, here
    those of the policy now. S* itself is tested against autograd. Not checked: the text of the paper beyond its
    abstract.

    `threshold` μ, in standard deviations of S* over the batch.
    """

    name: ClassVar[str] = "clip_b"
    threshold: Annotated[float, POSITIVE] = 2.5

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        A, S = valid(batch, batch.advantages), valid(batch, batch.sensitivity)
        sd = S.std(correction=0)
        return without(batch, (A < 0) & (S - S.mean() < -self.threshold * sd) & (sd >= TINY))


@dataclass(frozen=True, kw_only=True)
class ClipVocabulary(Base):
    """See `ClipBatch`. `threshold` μ, in standard deviations of x; `most`: the largest share of tokens to leave out.

    At least one token may be left out.
    """

    name: ClassVar[str] = "clip_v"
    statistics: ClassVar[frozenset[str]] = frozenset({"expected_sensitivity"})
    threshold: Annotated[float, POSITIVE] = 8.5
    most: Annotated[float, part()] = 1e-4

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        expected = valid(batch, batch.expected_sensitivity, "expected_sensitivity")
        A, x = valid(batch, batch.advantages), expected - valid(batch, batch.sensitivity)
        sd = x.std(correction=0)
        beyond = (A < 0) & (x > self.threshold * sd) & (sd >= TINY)
        order = x.masked_fill(~beyond, -torch.inf).argsort(descending=True, stable=True)
        beyond[order[max(1, int(self.most * len(x))) :]] = False
        return without(batch, beyond)


@dataclass(frozen=True, kw_only=True)
class Steer(Base):
    """STEER: tokens that would change the entropy much weigh less.

        Ω = (A/π_old) π (1 - π)(ln π + H)
        linear        w falls from `high` at the smallest |Ω| of the batch to `low` at the largest
        exponential   w = e^(-k|Ω|), k = -ln(low) / max(max |Ω|, 0.02), so that w is in [low, 1]

    Source: Hao et al. 2025, arXiv:2510.10150 (its abstract names the four factors: clipping, advantage, probability,
    entropy; a summary has the exponential form). Ω, the linear form as default, 0.8 and 1.2 are those of the code;
    there Ω is taken from a micro-batch, here from the whole batch, and entropies are those of sampling, here those of
    now.

    Checked: the change of H when the logit of the token alone moves by η A ρ (1 - π) is -η A ρ π (1 - π)(ln π + H),
    that is -η Ω π: the code's Ω is larger by 1/π, and so ranks rare tokens higher. `exact` uses the change itself.

    `form` of the weights, their bounds `low` and `high` (the exponential form ends at 1), and `exact` for Ω π.
    """

    name: ClassVar[str] = "steer"
    form: Literal["linear", "exponential"] = "linear"
    low: Annotated[float, part("weight")] = 0.8
    high: Annotated[float, Check(lambda weight: weight >= 1, "use a weight of at least 1")] = 1.2
    exact: bool = False

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        weight = self.weights(self.change(batch))
        return TokenPlan(
            weight=spread(batch, weight), facts={"weight_mean": float(weight.mean()), "weight_low": float(weight.min())}
        )

    def change(self, batch: TokenBatch) -> Tensor:
        """|Ω| of the tokens of the mask, (n,)."""
        A, logp, H = (valid(batch, x) for x in (batch.advantages, batch.logp, batch.entropy))
        omega = A * valid(batch, batch.ratio) * (1 - logp.exp()) * (logp + H)  # π/π_old = ρ
        return (omega * logp.exp() if self.exact else omega).abs()

    def weights(self, change: Tensor) -> Tensor:
        """(n,) -> (n,)"""
        if self.form == "exponential":
            k = -math.log(self.low) / max(float(change.max()), FLOOR)
            return (-k * change).exp()
        least, most = change.min(), change.max()
        if most == least:
            return torch.ones_like(change)
        return (self.high - (self.high - self.low) * (change - least) / (most - least)).clamp(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class Siren(Base):
    """SIREN: hold the entropy of the most uncertain tokens, within the nucleus, at what it was at the first step.

        Ĥ_k = entropy of the renormalised top-p 0.8 distribution
        M = {k: Ĥ_k > the `quantile` of Ĥ over its own response},   loss + strength (mean_M Ĥ_k - anchor)²

    with the anchor mean_M Ĥ_k of the first step, kept from then on. Source: Jiang et al. 2025, arXiv:2509.25133;
    checked against its code (`Linn3a/siren`): quantile and strict inequality per response, the anchored square. There
    means and squares are taken of each micro-batch, and the square of a mean does not add up over them; here it is that
    of the batch. The code's nucleus ends before the token that crosses 0.8 (as far as read), here that token belongs to
    it, as in top-p sampling; and the code's mask may count padding, here it cannot.

    strength (m - anchor)² has the gradient 2 strength (m - anchor) ∇m: with m known, micro-batches may sum that
    instead.

    `quantile` of a response's entropies above which tokens count; `strength` of the square.
    """

    name: ClassVar[str] = "siren"
    statistics: ClassVar[frozenset[str]] = frozenset({"nucleus_entropy"})
    quantile: Annotated[float, Check(lambda quantile: 0 <= quantile < 1, "use a share of at least 0 and below 1")] = 0.8
    strength: Annotated[float, POSITIVE] = 5e-3

    def plan(self, batch: TokenBatch, generator: torch.Generator) -> TokenPlan:  # noqa: ARG002
        H = valid(batch, batch.nucleus_entropy, "nucleus_entropy")
        rows = torch.full(batch.mask.shape, torch.nan, dtype=torch.float64, device=H.device)
        rows[batch.mask] = H
        bound = torch.stack([row.nanquantile(self.quantile) for row in rows])  # torch limits the size of one call
        peaks = (rows > bound[:, None]) & batch.mask
        if not peaks.any():  # every response has one entropy only
            return TokenPlan()
        mean = float(rows[peaks].mean())
        anchor = self.state.setdefault("anchor", mean)
        facts = {"peaks": share(peaks[batch.mask]), "peak_entropy": mean, "anchor": anchor}
        return TokenPlan(target=(peaks, anchor, self.strength), nucleus=True, facts=facts)
