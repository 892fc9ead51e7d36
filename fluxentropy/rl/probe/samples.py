"""A batch of sampled responses: ids, where each response begins and ends, and how it was sampled.

Shape legend: B prompts, G responses a prompt, L positions of the longest response, W width of the padded rows, V
vocabulary, N = B·G rows. A row is prompt, response, padding; with the padding on the right, a causal decoder needs
neither position ids nor an attention mask.

The convention on the end of a response (RL studies, conventions): a position counts where a token is *chosen*, the
position where EOS is chosen included, and none after it. A response cut at the limit counts all its positions; its sums
then are unbiased for the distribution over cut sequences. Rows without EOS are kept: removing them selects by length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fluxentropy.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """What turned logits z into the distribution that was sampled: softmax(z / temperature), cut to top-k, then top-p.

    `top_k` and `top_p` cut the support as `transformers` does: ties of the k-th logit stay, and so does the token that
    crosses the mass `top_p`. Errors: `UsageError` for values outside their range.

    >>> Sampler(top_p=0.6).restrict(torch.tensor([2.0, 1.0, 0.0])).tolist()
    [2.0, -inf, -inf]
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise UsageError(f"temperature {self.temperature}: use a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise UsageError(f"top_k {self.top_k}: use a whole number of at least 1, or None for the whole vocabulary")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UsageError(f"top_p {self.top_p}: use a number above 0 and at most 1, or None")

    @property
    def truncates(self) -> bool:
        """Whether tokens outside a support have probability 0."""
        return self.top_k is not None or self.top_p not in (None, 1.0)

    def restrict(self, logits: Tensor) -> Tensor:
        """Raw logits (..., V), -inf outside the support. Not yet divided by the temperature."""
        if not self.truncates:
            return logits
        scores = logits.detach() / self.temperature
        if self.top_k is not None:
            kth = scores.topk(min(self.top_k, scores.shape[-1]), -1).values[..., -1:]
            scores = scores.masked_fill(scores < kth, -torch.inf)
        if self.top_p is not None:
            ordered, order = scores.sort(-1)  # ascending: what lies in the lowest 1 - top_p of the mass goes
            below = ordered.softmax(-1).cumsum(-1) <= 1 - self.top_p
            below[..., -1] = False
            scores = scores.masked_fill(torch.zeros_like(below).scatter(-1, order, below), -torch.inf)
        return logits.masked_fill(scores == -torch.inf, -torch.inf)


@dataclass(frozen=True, kw_only=True, eq=False)
class Responses:
    """B prompts with G responses each, sampled from a policy; make it with `responses`.

    Attributes:
        ids: int64 (B, G, W), rows of prompt, response, padding.
        prompt_lengths: int64 (B,), at least 1.
        lengths: int64 (B, G), tokens of each response, its EOS included; at least 1.
        sampler: how the tokens were chosen from the logits.
        logp: (B, G, L) log-probabilities (nats) stored when sampling, under `sampler`; None where not stored.
        advantages: (B, G) of the update, or None.

    Errors: `UsageError` names shapes that do not match, empty prompts and empty responses.
    """

    ids: Tensor
    prompt_lengths: Tensor
    lengths: Tensor
    sampler: Sampler = field(default_factory=Sampler)
    logp: Tensor | None = None
    advantages: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ids.ndim != 3 or self.ids.numel() == 0:
            raise UsageError(
                f"ids of shape {tuple(self.ids.shape)}: expected (prompts, responses, width), none of them 0"
            )
        B, G, W = self.ids.shape
        for name, tensor, shape in (
            ("prompt_lengths", self.prompt_lengths, (B,)),
            ("lengths", self.lengths, (B, G)),
            ("advantages", self.advantages, (B, G)),
        ):
            if tensor is not None and tuple(tensor.shape) != shape:
                raise UsageError(f"{name} has shape {tuple(tensor.shape)}, expected {shape}")
        if (self.prompt_lengths < 1).any():
            raise UsageError(f"prompt {_first(self.prompt_lengths < 1)} is empty: give it at least a BOS token")
        if (self.lengths < 1).any():
            raise UsageError(
                f"response {_first(self.lengths < 1)} has no token: leave out empty and fully masked responses"
            )
        if (self.prompt_lengths[:, None] + self.lengths > W).any():
            raise UsageError(f"a prompt and its response are longer than the {W} columns of ids")
        if self.logp is not None and tuple(self.logp.shape) != (B, G, self.longest):
            raise UsageError(f"logp has shape {tuple(self.logp.shape)}, expected {(B, G, self.longest)}")
        if self.advantages is not None and not self.advantages.isfinite().all():
            raise UsageError(f"the advantage of response {_first(~self.advantages.isfinite())} is not finite")

    @property
    def shape(self) -> tuple[int, int]:
        """(B, G)."""
        return self.ids.shape[0], self.ids.shape[1]

    @property
    def longest(self) -> int:
        """L, tokens of the longest response."""
        return int(self.lengths.max())

    @property
    def mask(self) -> Tensor:
        """Bool (B, G, L), true where a token was chosen."""
        return torch.arange(self.longest, device=self.ids.device) < self.lengths[..., None]

    @property
    def tokens(self) -> Tensor:
        """Int64 (B, G, L), the responses alone, 0 after their ends."""
        place = self.prompt_lengths[:, None, None] + torch.arange(self.longest, device=self.ids.device)
        return self.ids.gather(2, place.clamp(max=self.ids.shape[2] - 1).expand(*self.lengths.shape, -1)) * self.mask

    def prompt(self, n: int) -> tuple[int, ...]:
        """The token ids of prompt n."""
        return tuple(self.ids[n, 0, : int(self.prompt_lengths[n])].tolist())

    def select(self, prompts: slice) -> Responses:
        """The batch with these prompts alone."""
        lengths = self.lengths[prompts]
        return dataclasses.replace(
            self,
            ids=self.ids[prompts],
            prompt_lengths=self.prompt_lengths[prompts],
            lengths=lengths,
            logp=None if self.logp is None else self.logp[prompts, :, : int(lengths.max())],
            advantages=None if self.advantages is None else self.advantages[prompts],
        )

    def need(self, *, prompts: int = 1, responses: int = 1, reason: str) -> None:
        """Raise `UsageError` where there are fewer prompts or responses a prompt than `reason` asks for."""
        B, G = self.shape
        if prompts > B:
            raise UsageError(f"{B} prompts in the batch: {reason} needs at least {prompts}")
        if responses > G:
            raise UsageError(f"{G} responses a prompt: {reason} needs at least {responses}")

    def need_whole_vocabulary(self, reason: str) -> None:
        """Raise `UsageError` for a sampler with top-k or top-p.

        Where the support is cut, tokens enter and leave it during a step: the change has no derivative there, and the
        full-vocabulary entropy on prefixes of the cut policy estimates neither policy's entropy.
        """
        if self.sampler.truncates:
            raise UsageError(
                f"responses sampled with top_k {self.sampler.top_k}, top_p {self.sampler.top_p}: {reason} needs "
                "responses from the whole vocabulary (top_k None, top_p None)"
            )


def response_mask(tokens: Tensor, eos: int | Sequence[int] | None) -> Tensor:
    """Where tokens were chosen: up to the first EOS of each row, it included. int64 (..., L) -> bool (..., L)

    >>> response_mask(torch.tensor([[5, 2, 2, 5], [5, 5, 5, 5]]), eos=2).int().tolist()
    [[1, 1, 0, 0], [1, 1, 1, 1]]
    """
    ends = () if eos is None else (eos,) if isinstance(eos, int) else tuple(eos)
    is_eos = torch.isin(tokens, torch.tensor(ends, dtype=tokens.dtype, device=tokens.device))
    return is_eos.cumsum(-1) - is_eos.long() == 0


def responses(
    prompts: Sequence[Sequence[int]],
    tokens: Tensor,
    *,
    eos: int | Sequence[int] | None = None,
    mask: Tensor | None = None,
    sampler: Sampler | None = None,
    logp: Tensor | None = None,
    advantages: Tensor | None = None,
) -> Responses:
    """The record of a batch.

    Args:
        prompts: B lists of token ids, of any lengths of at least 1.
        tokens: int64 (B, G, L), the responses as sampled; what follows the first EOS is ignored.
        eos: the id or ids that end a response. With `mask` the end is taken from there.
        mask: bool (B, G, L), true for the tokens of each response; every row must begin with true and end with false.
        sampler: how tokens were sampled; the default is temperature 1 and the whole vocabulary.
        logp: (B, G, L) or narrower than L by what all rows have after their ends: stored log-probabilities, nats.
        advantages: (B, G).

    Errors: `UsageError` names a row that is empty, fully masked, or masked in its middle, and shapes that do not match.

    >>> batch = responses([[7], [8, 9]], torch.tensor([[[1, 2, 0]], [[1, 1, 1]]]), eos=2)
    >>> batch.lengths.tolist(), batch.ids.tolist()
    ([[2], [3]], [[[7, 1, 2, 0, 0]], [[8, 9, 1, 1, 1]]])
    """
    if tokens.ndim != 3 or tokens.shape[0] != len(prompts):
        raise UsageError(f"tokens of shape {tuple(tokens.shape)}: expected ({len(prompts)} prompts, responses, length)")
    if mask is None:
        mask = response_mask(tokens, eos)
    elif mask.shape != tokens.shape:
        raise UsageError(f"mask has shape {tuple(mask.shape)}, expected {tuple(tokens.shape)}")
    mask = mask.bool()
    lengths = mask.sum(-1)
    holes = (mask.long().cumprod(-1) != mask).any(-1)
    if holes.any():
        raise UsageError(
            f"the mask of response {_first(holes)} has a hole: a response is one run from the first position"
        )
    for n, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UsageError(f"prompt {n} is empty: give it at least a BOS token")
    longest = int(lengths.max()) if lengths.numel() else 0
    prompt_lengths = torch.tensor([len(prompt) for prompt in prompts], device=tokens.device)
    B, G, _ = tokens.shape
    ids = tokens.new_zeros(B, G, max(map(len, prompts), default=0) + longest)
    kept = (tokens * mask)[:, :, :longest]
    for n, prompt in enumerate(prompts):
        ids[n, :, : len(prompt)] = torch.tensor(prompt, dtype=ids.dtype, device=ids.device)
        ids[n, :, len(prompt) : len(prompt) + longest] = kept[n]
    return Responses(
        ids=ids,
        prompt_lengths=prompt_lengths,
        lengths=lengths,
        sampler=sampler or Sampler(),
        logp=None if logp is None else logp[..., :longest],
        advantages=advantages,
    )


def _first(bad: Tensor) -> tuple[int, ...]:
    return tuple(bad.nonzero()[0].tolist())
