"""Batches of responses: the EOS convention, samplers against transformers' own, and what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from fluxentropy.errors import UsageError
from fluxentropy.rl.probe.samples import Responses, Sampler, response_mask, responses


def test_the_position_that_chooses_eos_counts_and_none_after():
    tokens = torch.tensor([[[4, 0, 0, 3], [0, 1, 1, 1], [3, 3, 3, 3]]])
    batch = responses([[7, 8]], tokens, eos=0)
    assert batch.lengths.tolist() == [[2, 1, 4]]
    assert batch.mask.int().tolist() == [[[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]]
    assert batch.tokens.tolist() == [[[4, 0, 0, 0], [0, 0, 0, 0], [3, 3, 3, 3]]]


def test_any_of_several_eos_ids_ends_a_response():
    assert response_mask(torch.tensor([3, 5, 9, 5]), eos=[9, 5]).tolist() == [True, True, False, False]
    assert response_mask(torch.tensor([3, 5, 9, 5]), eos=None).all()


def test_prompts_of_different_lengths_stand_before_their_responses():
    batch = responses([[7], [8, 9, 7]], torch.tensor([[[1, 2]], [[3, 0]]]), eos=0)
    assert batch.ids.tolist() == [[[7, 1, 2, 0, 0]], [[8, 9, 7, 3, 0]]]
    assert (batch.prompt(0), batch.prompt(1)) == ((7,), (8, 9, 7))


def test_selected_prompts_are_the_same_batch_made_of_them():
    tokens = torch.randint(0, 4, (4, 3, 5), generator=torch.Generator().manual_seed(0))
    prompts = [[1], [2, 2], [3], [1, 2]]
    logp = -torch.rand(4, 3, 5)
    whole = responses(prompts, tokens, eos=0, advantages=torch.arange(12.0).view(4, 3))
    part = whole.select(slice(1, 3))
    alone = responses(prompts[1:3], tokens[1:3], eos=0)
    assert torch.equal(part.tokens, alone.tokens) and part.prompt(0) == (2, 2)
    assert part.advantages.tolist() == [[3, 4, 5], [6, 7, 8]]
    stored = responses(prompts, tokens, eos=0, logp=logp).select(slice(0, 1))
    assert stored.logp.shape == (1, 3, stored.longest)


@pytest.mark.parametrize(
    "sampler", [Sampler(temperature=0.7, top_k=3), Sampler(top_p=0.8), Sampler(temperature=2.0, top_k=4, top_p=0.6)]
)
def test_supports_are_those_of_transformers(sampler):
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    logits[0, 1] = logits[0, 2] = logits[0].max()  # ties of the kth logit
    scores = TemperatureLogitsWarper(sampler.temperature)(None, logits)
    if sampler.top_k is not None:
        scores = TopKLogitsWarper(sampler.top_k)(None, scores)
    if sampler.top_p is not None:
        scores = TopPLogitsWarper(sampler.top_p)(None, scores)
    assert torch.equal(sampler.restrict(logits) / sampler.temperature, scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[1]]}, "expected .1 prompts"),
        ({"tokens": torch.ones(2, 2, 0, dtype=torch.int64)}, "no token"),
        ({"tokens": torch.ones(2, 0, 3, dtype=torch.int64)}, "none of them 0"),
        ({"mask": torch.tensor([[[1, 1, 1], [0, 0, 0]], [[1, 1, 1]] * 2])}, r"\(0, 1\) has no token"),
        ({"mask": torch.tensor([[[1, 0, 1], [1, 0, 0]], [[1, 1, 1]] * 2])}, r"\(0, 0\) has a hole"),
        ({"mask": torch.ones(2, 2, 4)}, "mask has shape"),
        ({"logp": torch.zeros(2, 2, 1)}, "logp has shape"),
        ({"advantages": torch.zeros(2, 1)}, "advantages has shape"),
        ({"advantages": torch.tensor([[0, float("nan")], [0, 0]])}, r"response \(0, 1\) is not finite"),
    ],
)
def test_what_is_no_batch_is_refused(change, message):
    options = {"prompts": [[1], [2]], "tokens": torch.ones(2, 2, 3, dtype=torch.int64)} | change
    with pytest.raises(UsageError, match=message):
        responses(**options)


def test_rows_too_short_for_their_lengths_are_refused():
    with pytest.raises(UsageError, match="longer than the 3 columns"):
        Responses(
            ids=torch.ones(1, 1, 3, dtype=torch.int64), prompt_lengths=torch.tensor([2]), lengths=torch.tensor([[2]])
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [({"temperature": 0.0}, "temperature 0"), ({"top_k": 0}, "top_k 0"), ({"top_p": 1.5}, "top_p 1.5")],
)
def test_samplers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Sampler(**options)
