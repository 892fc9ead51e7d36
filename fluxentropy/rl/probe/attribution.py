"""Which tokens of an update changed the entropy: the first-order change, split over the update's responses and tokens.

The step d = η P Ȳ of policy-gradient ascent, Ȳ = (1/BG) Σ (A/norm) ∇S, is a sum over tokens, and so is the change:

    δ𝓗₁ = ∇𝓗 · d = Σ_i Σ_k c_ik,      c_ik = (η/BG) (A_i/norm) ∇S_ik · P X̄

with X̄ the entropy's gradient on an independent batch. The c_ik come from one backward pass over that batch and one
forward-mode pass along P X̄ over the update; they sum to `twobatch.update_change` exactly. Source: RL studies, section
on the two-batch estimator, taken apart.

Quadrants: sign of the advantage times rarity of the token. Natural gradient on free logits gives c = -η A (ln p + H),
so a token raises the entropy where its advantage is positive and it is rare (ln p < -H), or negative and it is common,
and lowers it in the other two; on average that is -η Cov(ln p, A) (Cui et al. 2025). A network shares parameters
between tokens, and its c_ik need not follow: `covariance_agreement` says how far they do.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fluxentropy.errors import UsageError
from fluxentropy.rl.probe.estimate import Estimate, mean_estimate
from fluxentropy.rl.probe.kernel import entropy_weights, known_step
from fluxentropy.rl.probe.policy import (
    ROWS,
    Parameters,
    Policy,
    Weights,
    derivatives,
    sequence_stats,
    weighted_gradient,
)
from fluxentropy.rl.probe.samples import Responses
from fluxentropy.rl.probe.step import Form, update_weights
from fluxentropy.runs.files import atomic_path

FOLDER = "attribution"  # of a run

# What natural gradient on free logits does in each quadrant: raise the entropy (+1) or lower it (-1).
QUADRANTS = {"positive_rare": 1, "positive_common": -1, "negative_rare": -1, "negative_common": 1}


@dataclass(frozen=True, kw_only=True, eq=False)
class Attribution:
    """Every token's part in the first-order change of an update; float64 (B, G, L), 0 after the end of a response.

    Attributes:
        tokens: c_ik, nats a sequence; their sum is the change.
        logp, entropy: S_k and H_k at the policy before the step, nats.
        update: the responses, with their advantages.
    """

    tokens: Tensor
    logp: Tensor
    entropy: Tensor
    update: Responses

    @property
    def advantages(self) -> Tensor:
        """(B, G, 1), float64."""
        assert self.update.advantages is not None
        return self.update.advantages.double()[..., None]

    @property
    def responses(self) -> Tensor:
        """(B, G), nats a sequence."""
        return self.tokens.sum(-1)

    @property
    def total(self) -> Estimate:
        """The change, nats a sequence, with the standard error between the update's prompts."""
        return _sum_estimate(self.tokens)


class Quadrant(NamedTuple):
    """What the tokens of one quadrant do together: nats a sequence, and their share of the update's tokens."""

    change: Estimate
    share: float


def attribute(
    policy: Policy,
    batch: Responses,
    update: Responses,
    *,
    norm: float,
    lr: float = 1.0,
    preconditioner: Parameters | None = None,
    form: Form = "to_go",
    params: Parameters | None = None,
    rows: int = ROWS,
) -> Attribution:
    """Every token's part in the change by the step lr · P · Ȳ of `update`, the entropy measured on `batch`.

    `preconditioner` is P (AdamW's: `AdamWSplit.preconditioner`, which holds the learning rate), 1 where None; `params`
    those of before the step. The batches must be independent. Cost: a backward and a forward-mode pass.
    Errors: `UsageError` for a truncating sampler, updates without advantages, and fewer than 2 prompts in `batch`.
    """
    Y = _update(update, norm)
    batch.need_whole_vocabulary("a change of the entropy")
    batch.need(prompts=2, reason="the baseline of the entropy's gradient")
    X = entropy_weights(sequence_stats(policy, batch, params, rows=rows), batch.mask, form)
    xbar = _scaled(weighted_gradient(policy, batch, X, params, rows=rows), preconditioner)
    value, slope = derivatives(policy, update, xbar, order=1, params=params, rows=rows)
    return Attribution(
        tokens=lr / update.shape[0] * Y.logp * slope.logp, logp=value.logp, entropy=value.entropy, update=update
    )


def part_change(
    policy: Policy,
    batch: Responses,
    update: Responses,
    keep: Tensor,
    *,
    norm: float,
    lr: float = 1.0,
    preconditioner: Parameters | None = None,
    form: Form = "to_go",
    params: Parameters | None = None,
    rows: int = ROWS,
) -> Estimate:
    """The change by the tokens `keep`, bool (B, G, L), of the update alone, nats a sequence.

    The sum of their parts in `attribute`, with the other standard error: the update as it was, the noise that of the
    entropy's batch. A backward pass over the update and a forward-mode pass over the batch.
    """
    Y = _update(update, norm)
    step = weighted_gradient(policy, update, Weights(Y.logp * keep), params, rows=rows)
    step = _scaled({name: lr * g for name, g in step.items()}, preconditioner)
    return known_step(policy, batch, step, form=form, params=params, rows=rows)


def _update(update: Responses, norm: float) -> Weights:
    update.need_whole_vocabulary("a change of the entropy")
    if update.advantages is None:
        raise UsageError("the update's responses have no advantages: give them to responses(..., advantages=)")
    return update_weights(update.advantages, update.mask, norm)


def _scaled(gradient: Parameters, preconditioner: Parameters | None) -> Parameters:
    if preconditioner is None:
        return gradient
    return {name: preconditioner[name] * g for name, g in gradient.items() if name in preconditioner}


# --- quadrants --------------------------------------------------------------------------------------------------------


def rare_tokens(attribution: Attribution, quantile: float | None = None) -> Tensor:
    """Bool (B, G, L): tokens of ln p < -H of their own distribution, where natural gradient changes sign.

    With a quantile a token is rare where its log-probability is below that of the update's tokens.
    """
    mask = attribution.update.mask
    if quantile is None:
        return mask & (attribution.logp < -attribution.entropy)
    if not 0 < quantile < 1:
        raise UsageError(f"quantile {quantile}: use a number between 0 and 1, or None for ln p < -H")
    threshold = float(np.quantile(attribution.logp[mask].cpu().numpy(), quantile))
    return mask & (attribution.logp < threshold)


def by_quadrant(A: Any, rare: Any) -> dict[str, Any]:
    """The tokens of each of `QUADRANTS`, of arrays or tensors; tokens of advantage 0 are in none."""
    common = ~rare
    return dict(zip(QUADRANTS, (rare & (A > 0), common & (A > 0), rare & (A < 0), common & (A < 0)), strict=True))


def quadrant_masks(attribution: Attribution, quantile: float | None = None) -> dict[str, Tensor]:
    """`by_quadrant` of an update's tokens, bool (B, G, L)."""
    found = by_quadrant(attribution.advantages, rare_tokens(attribution, quantile))
    return {name: attribution.update.mask & inside for name, inside in found.items()}


def quadrants(attribution: Attribution, quantile: float | None = None) -> dict[str, Quadrant]:
    """How much of the change each quadrant carries; the changes sum to the total.

    Standard errors are the jackknife's between the update's prompts, the threshold and the entropy's gradient held
    fixed; `part_change` gives the other half. Errors: `UsageError` for a quantile outside (0, 1).
    """
    tokens = float(attribution.update.mask.sum())
    return {
        name: Quadrant(_sum_estimate(attribution.tokens * inside), float(inside.sum()) / tokens)
        for name, inside in quadrant_masks(attribution, quantile).items()
    }


class CovarianceAgreement(NamedTuple):
    """How far tokens follow -(A - Ā)(ln p - mean ln p), what a diagonal kernel predicts up to a factor.

    `correlation` over tokens, weighted equally; `same_sign`, the share of tokens with the predicted sign. NaN where one
    of the two does not vary.
    """

    correlation: float
    same_sign: float


def covariance_agreement(attribution: Attribution) -> CovarianceAgreement:
    """Over the update's tokens of nonzero advantage."""
    mask = attribution.update.mask & (attribution.advantages != 0)
    c, logp = attribution.tokens[mask], attribution.logp[mask]
    A = attribution.advantages.expand_as(attribution.logp)[mask]
    if len(c) < 2:
        return CovarianceAgreement(float("nan"), float("nan"))
    predicted = -(A - A.mean()) * (logp - logp.mean())
    return CovarianceAgreement(
        float(torch.corrcoef(torch.stack([predicted, c]))[0, 1]), float((predicted.sign() == c.sign()).double().mean())
    )


def _sum_estimate(parts: Tensor) -> Estimate:
    """The sum of (B, G, L), its standard error that of a sum over B independent prompts."""
    return mean_estimate(len(parts) * parts.sum((-1, -2)))


# --- tables -----------------------------------------------------------------------------------------------------------


def row(attribution: Attribution, quantile: float | None = None) -> dict[str, float]:
    """The summary by name, for a row of a table: NAME, NAME_se and NAME_share of each quadrant, and the agreement."""
    found: dict[str, float] = {}
    found["attribution_total"], found["attribution_total_se"] = attribution.total
    for name, quadrant in quadrants(attribution, quantile).items():
        found[f"attribution_{name}"], found[f"attribution_{name}_se"] = quadrant.change
        found[f"attribution_{name}_share"] = quadrant.share
    agreement = covariance_agreement(attribution)
    found["attribution_correlation"], found["attribution_same_sign"] = agreement
    return found


def attribution_path(run: Path, step: int) -> Path:
    """Where a run keeps the attribution of a step.

    >>> attribution_path(Path("run"), 20).as_posix()
    'run/attribution/step_000020.parquet'
    """
    return run / FOLDER / f"step_{step:06d}.parquet"


def write_attribution(path: str | os.PathLike[str], attribution: Attribution, *, step: int) -> None:
    """A Parquet table with a row a token: step, prompt, response, position, token, advantage, logp, entropy, change.

    `prompt` and `response` number the update's rows; `change` is c_ik in nats a sequence. Errors: `RunError` where
    `path` cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    update = attribution.update
    prompt, response, position = update.mask.nonzero(as_tuple=True)
    at = (prompt, response, position)
    columns = {
        "step": torch.full_like(prompt, step).int(),
        "prompt": prompt.int(),
        "response": response.int(),
        "position": position.int(),
        "token": update.tokens[at],
        "advantage": attribution.advantages.expand_as(attribution.logp)[at],
        "logp": attribution.logp[at],
        "entropy": attribution.entropy[at],
        "change": attribution.tokens[at],
    }
    table = pa.table({name: column.cpu().numpy() for name, column in columns.items()})
    with atomic_path(path) as aside:
        pq.write_table(table, aside, compression="zstd")
