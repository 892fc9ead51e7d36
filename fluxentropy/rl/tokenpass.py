"""Log-probabilities and entropies of chosen tokens, differentiable: the forward pass of training.

`passes.py` has them in float64 and for every kind of derivative; here the model runs as it is trained, logits are
float32, and rows are cut to their own width. Shape legend: N rows, L positions of the longest response, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call

from fluxentropy.estimators import token_stats
from fluxentropy.rl.policy import Parameters
from fluxentropy.rl.responses import Responses
from fluxentropy.rl.tokenstats import expected_sensitivity, nucleus_entropy

STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "expected_sensitivity": expected_sensitivity,
    "nucleus_entropy": nucleus_entropy,
}


class TokenValues(NamedTuple):
    """Of each chosen token, (n, L), 0 after the end of a response: log-probability and entropy in nats, and what else
    was asked for by name."""

    logp: Tensor
    entropy: Tensor
    extra: dict[str, Tensor]


def token_values(
    model: Any, batch: Responses, rows: slice, *, params: Parameters | None = None, extra: Collection[str] = ()
) -> TokenValues:
    """Values of some rows of a batch, differentiable in the model's parameters, or at other `params`.

    `extra`: of `STATISTICS`.
    """
    G = batch.shape[1]
    tokens, mask = batch.tokens.flatten(0, 1)[rows], batch.mask.flatten(0, 1)[rows]  # (n, L)
    starts = batch.prompt_lengths.repeat_interleave(G)[rows]
    width = int((starts + mask.sum(1)).max())
    ids = batch.ids.flatten(0, 1)[rows, :width]
    logits = all_logits(model, ids, params)
    places = (starts[:, None] - 1 + torch.arange(tokens.shape[1], device=ids.device)).clamp(max=width - 1)
    chosen = logits.gather(1, places[..., None].expand(-1, -1, logits.shape[-1]))
    z = batch.sampler.restrict(chosen if chosen.dtype == torch.float64 else chosen.float())
    stats = token_stats(z, tokens, temperature=batch.sampler.temperature)
    assert stats.surprisal is not None
    return TokenValues(
        logp=torch.where(mask, -stats.surprisal, 0.0),
        entropy=torch.where(mask, stats.entropy, 0.0),
        extra={name: torch.where(mask, STATISTICS[name](z / batch.sampler.temperature), 0.0) for name in extra},
    )


def all_logits(model: Any, ids: Tensor, params: Parameters | None = None) -> Tensor:
    """Next-token logits of rows with padding on the right, at the model's parameters or others. (n, W) -> (n, W, V)"""
    options = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    output = model(ids, **options) if params is None else functional_call(model, params, (ids,), options)
    logits: Tensor = getattr(output, "logits", output)
    return logits


def all_values(
    model: Any, batch: Responses, *, rows: int, params: Parameters | None = None, extra: Collection[str] = ()
) -> TokenValues:
    """The same of all N rows, without gradients, `rows` at a time."""
    N = batch.lengths.numel()
    with torch.no_grad():
        parts = [
            token_values(model, batch, slice(first, first + rows), params=params, extra=extra)
            for first in range(0, N, rows)
        ]
    return TokenValues(
        logp=torch.cat([part.logp for part in parts]),
        entropy=torch.cat([part.entropy for part in parts]),
        extra={name: torch.cat([part.extra[name] for part in parts]) for name in extra},
    )
