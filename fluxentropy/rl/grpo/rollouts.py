"""Responses sampled from a policy with `generate` of transformers: left padding, key-value cache, stored log-probs.

A rollout is a pure function of the weights, the prompts and a seed: the global random state is put back after it.
The log-probabilities are those of the distribution that was sampled, after temperature, top-k and top-p.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from fluxentropy.errors import RunError, UsageError
from fluxentropy.rl.grpo.policies import TrainedPolicy
from fluxentropy.rl.grpo.tasks import Problem, Scores, Task
from fluxentropy.rl.probe.estimate import Estimate, mean_estimate
from fluxentropy.rl.probe.samples import Responses, Sampler, responses
from fluxentropy.schedules.orders import keys

# --- rollouts ---------------------------------------------------------------------------------------------------------


STREAMS = {"weights": 0, "rollout": 1, "entropy": 2, "evaluation": 3, "controller": 4, "warmup": 5}


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollout:
    """B problems with G responses each: ids and log-probabilities, texts, and rewards float64 (B, G).

    `checker_errors`: responses on which the task's checker raised; their reward is 0.
    """

    problems: tuple[Problem, ...]
    responses: Responses
    texts: tuple[tuple[str, ...], ...]
    rewards: Tensor
    checker_errors: int = 0


def stream_seed(seed: int, stream: str, *numbers: int) -> int:
    """The seed of a stream of random numbers at a step: different for every stream and step.

    >>> stream_seed(0, "rollout", 3) == stream_seed(0, "entropy", 3)
    False
    """
    return int(keys(seed, STREAMS[stream], *numbers)[0] & np.uint64(2**63 - 1))


def roll_out(
    policy: TrainedPolicy,
    task: Task,
    problems: Sequence[Problem],
    *,
    responses_each: int,
    sampler: Sampler,
    max_tokens: int,
    seed: int,
    rows: int | None = None,
) -> Rollout:
    """Sample `responses_each` responses to each problem and score them, `rows` of them generated at once.

    Errors: RunError names the prompt and the response whose reward is not finite.
    """
    batch = sample(policy, problems, responses_each, sampler=sampler, max_tokens=max_tokens, seed=seed, rows=rows)
    texts = tuple(
        tuple(policy.decode(ids[: int(T)].tolist()) for ids, T in zip(tokens, lengths, strict=True))
        for tokens, lengths in zip(batch.tokens, batch.lengths, strict=True)
    )
    score = Scores(task)
    rewards = [[score(problem, text) for text in row] for problem, row in zip(problems, texts, strict=True)]
    return Rollout(
        problems=tuple(problems),
        responses=batch,
        texts=texts,
        rewards=torch.tensor(rewards, dtype=torch.float64),
        checker_errors=score.errors,
    )


def sample(
    policy: TrainedPolicy,
    problems: Sequence[Problem],
    each: int,
    *,
    sampler: Sampler,
    max_tokens: int,
    seed: int,
    rows: int | None = None,
) -> Responses:
    """`each` responses to every problem, with the log-probabilities they were drawn with."""
    prompts = [policy.encode(problem.prompt) for problem in problems]
    repeated = [ids for ids in prompts for _ in range(each)]
    chosen, logp = [], []
    with _seeded(seed, policy.model):
        for first in range(0, len(repeated), rows or len(repeated)):
            part = generate(policy, repeated[first : first + (rows or len(repeated))], sampler, max_tokens)
            chosen.append(part[0])
            logp.append(part[1])
    longest = max(tokens.shape[1] for tokens in chosen)
    end = policy.ends[0]
    tokens = torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=end) for part in chosen])
    stored = torch.cat([torch.nn.functional.pad(part, (0, longest - part.shape[1])) for part in logp])
    shape = (len(prompts), each, longest)
    found = responses(prompts, tokens.view(shape), eos=policy.ends, sampler=sampler)
    kept = stored.view(shape)[..., : found.longest]
    return responses(
        prompts, tokens.view(shape), eos=policy.ends, sampler=sampler, logp=torch.where(found.mask, kept, 0.0)
    )


def greedy(policy: TrainedPolicy, problems: Sequence[Problem], *, max_tokens: int, rows: int) -> list[str]:
    """The response of the most likely tokens to each problem."""
    found = []
    prompts = [policy.encode(problem.prompt) for problem in problems]
    for first in range(0, len(prompts), rows):
        tokens, _ = generate(policy, prompts[first : first + rows], None, max_tokens)
        batch = responses(prompts[first : first + rows], tokens[:, None], eos=policy.ends)
        found += [policy.decode(batch.tokens[n, 0, : int(batch.lengths[n, 0])].tolist()) for n in range(len(tokens))]
    return found


def generate(
    policy: TrainedPolicy, prompts: Sequence[Sequence[int]], sampler: Sampler | None, max_tokens: int
) -> tuple[Tensor, Tensor]:
    """Tokens int64 (n, L) after the prompts and their log-probabilities (n, L); without a sampler the most likely.

    What follows the first end of a row is padding and its numbers mean nothing. Uses torch's global random state.
    """
    model, width = policy.model, max(map(len, prompts))
    device = next(model.parameters()).device
    ids = torch.full((len(prompts), width), policy.pad, device=device)
    present = torch.zeros_like(ids)
    for n, prompt in enumerate(prompts):
        ids[n, width - len(prompt) :] = torch.tensor(prompt, device=device)
        present[n, width - len(prompt) :] = 1
    recorder = _Recorder(sampler or Sampler())
    config = GenerationConfig(
        do_sample=sampler is not None,
        max_new_tokens=max_tokens,
        eos_token_id=list(policy.ends),
        pad_token_id=policy.pad,
        use_cache=True,
        **({"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampler is not None else {}),  # the recorder does these
    )
    with _only(model, config):
        output = model.generate(
            input_ids=ids,
            attention_mask=present,
            generation_config=config,
            logits_processor=LogitsProcessorList([recorder]),
        )
    recorder.note(output[:, -1])
    return output[:, width:].clone(), torch.stack(recorder.logp, 1)


class _Recorder(LogitsProcessor):
    """Turns logits into those of the sampler, and keeps the log-probability of each token that is then chosen."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.logp: list[Tensor] = []
        self._before: Tensor | None = None

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._before is not None:
            self.note(input_ids[:, -1])
        if scores.isnan().any():
            raise RunError("the policy's logits are not numbers any more: lower --optim.lr, and start afresh")
        self._before = (self.sampler.restrict(scores.float()) / self.sampler.temperature).log_softmax(-1)
        return self._before

    def note(self, tokens: Tensor) -> None:
        """The tokens (n,) that were chosen from the last distribution."""
        assert self._before is not None
        self.logp.append(self._before.gather(1, tokens[:, None])[:, 0])


@contextlib.contextmanager
def _only(model: Any, config: GenerationConfig) -> Iterator[None]:
    """Generate by `config` alone: what a model brings along (top-k, repetition penalties) is another distribution."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


@contextlib.contextmanager
def _seeded(seed: int, model: Any) -> Iterator[None]:
    """The global random state of a seed, for the block alone."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


# --- pass@k -----------------------------------------------------------------------------------------------------------
#
#     pass@k = 1 - C(n - c, k) / C(n, k) = 1 - Π_{i=0}^{k-1} (n - c - i) / (n - i)
#
# for c right ones of n: the share of the k-subsets of the n that hold a right one. 1 - (1 - c/n)^k is biased downwards.
# Source: Chen et al. 2021, arXiv:2107.03374.
#
# Where a problem has many right answers, pass@k cannot tell a policy that finds them all from one that knows a single
# one: the number of different right responses among k can.


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The unbiased estimate for one prompt from `correct` of `samples`. Errors: `UsageError` for impossible counts.

    >>> pass_at_k(4, 1, 2)  # 3 of the 6 pairs hold the right one
    0.5
    """
    if not 1 <= k <= samples:
        raise UsageError(f"pass@{k} of {samples} responses a prompt: use a k from 1 to {samples}, or sample more")
    if not 0 <= correct <= samples:
        raise UsageError(f"{correct} right of {samples} responses: use a count from 0 to {samples}")
    missed = 1.0
    for i in range(k):
        missed *= max(samples - correct - i, 0) / (samples - i)
    return 1 - missed


def mean_pass_at_k(right: Tensor, ks: Sequence[int]) -> dict[int, Estimate]:
    """pass@k over prompts with its standard error between them, for each k; `right` bool (B, n).

    >>> mean_pass_at_k(torch.tensor([[True, False], [False, False]]), [1, 2])[2].value
    0.5
    """
    n = right.shape[1]
    counts = right.sum(1).tolist()
    return {k: mean_estimate(torch.tensor([pass_at_k(n, c, k) for c in counts], dtype=torch.float64)) for k in ks}


def distinct_right(texts: Sequence[Sequence[str]], right: Tensor) -> Estimate:
    """Different right responses to a prompt, mean over prompts with its standard error; `right` bool (B, n).

    Responses are the same where they are without white space at their ends.

    >>> distinct_right([["ab", "ab ", "ba"], ["x", "y", "x"]], torch.tensor([[1, 1, 1], [1, 0, 1]]).bool()).value
    1.5
    """
    counts = [
        len({text.strip() for text, good in zip(row, flags, strict=True) if good})
        for row, flags in zip(texts, right.tolist(), strict=True)
    ]
    return mean_estimate(torch.tensor(counts, dtype=torch.float64))
