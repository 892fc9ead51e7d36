"""Rollouts: functions of weights, prompts and seed, with log-probabilities of the distribution that was sampled."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from digits import Digits

from fluxentropy.errors import RunError, UsageError
from fluxentropy.rl.grpo.options import PolicyOptions
from fluxentropy.rl.grpo.policies import TrainedPolicy, character_tokenizer, open_policy
from fluxentropy.rl.grpo.rollouts import (
    distinct_right,
    greedy,
    mean_pass_at_k,
    pass_at_k,
    roll_out,
    sample,
    stream_seed,
)
from fluxentropy.rl.grpo.tasks import Problem
from fluxentropy.rl.probe.policy import Policy, sequence_stats
from fluxentropy.rl.probe.samples import Sampler

TASK = Digits()
PROBLEMS = [TASK.train(number) for number in range(5)]


@pytest.fixture(scope="module")
def policy() -> TrainedPolicy:
    """With weights that make some tokens likely, others not."""
    found = open_policy(PolicyOptions(n_layer=2, n_head=2, n_embd=16, block_size=32), TASK, seed=1)
    with torch.no_grad():
        rng = torch.Generator().manual_seed(0)
        for parameter in found.model.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=rng))
    return found


def drawn(policy: TrainedPolicy, **options: Any) -> Any:
    arguments = {"sampler": Sampler(), "max_tokens": 5, "seed": 3, **options}
    return sample(policy, PROBLEMS, 6, **arguments)


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(temperature=0.6), Sampler(temperature=1.5, top_k=4, top_p=0.9)])
def test_stored_log_probabilities_are_those_of_the_sampling_distribution(
    policy: TrainedPolicy, sampler: Sampler
) -> None:
    """With padding on the left and the cache, or in whole rows in float64: the same."""
    batch = drawn(policy, sampler=sampler)
    assert len(set(batch.prompt_lengths.tolist())) > 1 and len(set(batch.lengths.flatten().tolist())) > 1
    stats = sequence_stats(Policy(policy.model), batch)
    assert batch.logp is not None
    torch.testing.assert_close(batch.logp.double(), stats.logp, rtol=0, atol=2e-5)
    ended = batch.tokens.gather(2, batch.lengths[..., None] - 1)[..., 0] == policy.ends[0]
    assert (ended | (batch.lengths == 5)).all() and ended.any() and not ended.all()


def test_a_rollout_follows_from_its_seed_and_leaves_no_trace(policy: TrainedPolicy) -> None:
    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    one = drawn(policy)
    assert torch.equal(torch.rand(3), expected)
    two, other = drawn(policy), drawn(policy, seed=4)
    assert torch.equal(one.ids, two.ids) and torch.equal(one.logp, two.logp)
    assert one.ids.shape != other.ids.shape or not torch.equal(one.ids, other.ids)
    assert drawn(policy, rows=7).shape == one.shape


def test_responses_come_as_often_as_their_log_probabilities_say(policy: TrainedPolicy) -> None:
    batch = sample(policy, PROBLEMS[:1], 2000, sampler=Sampler(temperature=0.7), max_tokens=1, seed=0)
    counts = Counter(batch.tokens[0, :, 0].tolist())
    assert batch.logp is not None
    p = {int(token): math.exp(logp) for token, logp in zip(batch.tokens[0, :, 0], batch.logp[0, :, 0], strict=True)}
    for token, count in counts.items():
        assert abs(count - 2000 * p[token]) < 5 * math.sqrt(2000 * p[token]) + 1


def test_a_models_own_generation_options_do_not_count(policy: TrainedPolicy) -> None:
    before, own = drawn(policy), policy.model.generation_config
    own.top_k, own.repetition_penalty = 1, 3.0
    try:
        after = drawn(policy)
        assert policy.model.generation_config is own
    finally:
        own.top_k, own.repetition_penalty = None, None
    assert torch.equal(before.ids, after.ids)


def test_greedy_takes_the_most_likely_tokens(policy: TrainedPolicy) -> None:
    texts = greedy(policy, PROBLEMS, max_tokens=4, rows=2)
    for problem, text in zip(PROBLEMS, texts, strict=True):
        ids, found = policy.encode(problem.prompt), []
        for _ in range(4):
            token = int(policy.model(torch.tensor([ids + found])).logits[0, -1].argmax())
            found.append(token)
            if token in policy.ends:
                break
        assert text == policy.decode(found)


def test_rewards_of_texts(policy: TrainedPolicy) -> None:
    found = roll_out(policy, TASK, PROBLEMS, responses_each=4, sampler=Sampler(), max_tokens=2, seed=0)
    for problem, texts, rewards in zip(PROBLEMS, found.texts, found.rewards, strict=True):
        assert [TASK.score(problem, text) for text in texts] == rewards.tolist()


def test_a_reward_that_is_not_finite_names_prompt_and_response(policy: TrainedPolicy) -> None:
    class Broken(Digits):
        def score(self, problem: Problem, response: str) -> float:
            return math.nan if problem.prompt == "x7=" else 1.0

    with pytest.raises(RunError, match=r"the reward of the response '.*' to the prompt 'x7=' is nan: look at task"):
        roll_out(policy, Broken(), PROBLEMS, responses_each=2, sampler=Sampler(), max_tokens=2, seed=0)


def test_streams_of_random_numbers_differ() -> None:
    seeds = {stream_seed(s, stream, step) for s in range(3) for stream in ("rollout", "entropy") for step in range(50)}
    assert len(seeds) == 300


def test_the_character_tokenizer() -> None:
    tokenizer = character_tokenizer(["a b=\n"])
    assert tokenizer.decode(tokenizer("ab =\n10")["input_ids"]) == "ab =\n10"
    assert tokenizer("Z")["input_ids"] == [tokenizer.unk_token_id]
    assert tokenizer.decode([*tokenizer("7")["input_ids"], tokenizer.eos_token_id], skip_special_tokens=True) == "7"


# --- pass@k against counting subsets, and its expectation over all outcomes ---


@pytest.mark.parametrize(("n", "k"), [(n, k) for n in range(1, 7) for k in range(1, n + 1)])
def test_it_is_the_share_of_subsets_that_hold_a_right_response(n, k):
    for c in range(n + 1):
        subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-14)


def test_it_is_unbiased_where_the_plug_in_is_not():
    n, k, p = 6, 3, 0.2
    binomial = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    exact = 1 - (1 - p) ** k
    assert sum(q * pass_at_k(n, c, k) for c, q in enumerate(binomial)) == pytest.approx(exact, rel=1e-12)
    assert sum(q * (1 - (1 - c / n) ** k) for c, q in enumerate(binomial)) < exact - 0.02


def test_large_counts_do_not_overflow():
    assert pass_at_k(10_000, 3, 5_000) == pytest.approx(1 - math.comb(9_997, 5_000) / math.comb(10_000, 5_000))


def test_the_mean_over_prompts_has_the_error_between_them():
    right = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    found = mean_pass_at_k(right, [1, 2])
    values = torch.tensor([0.5, 1 - 1 / 6, 0.0], dtype=torch.float64)
    assert found[1].value == pytest.approx(0.25)
    assert found[2] == pytest.approx((float(values.mean()), float(values.std() / 3**0.5)))


def test_different_right_responses_are_counted_once():
    texts = [["a", " a", "b", "c"], ["a", "b", "c", "d"], ["a", "a", "a", "a"]]
    right = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 1, 0, 1]], dtype=torch.bool)
    found = distinct_right(texts, right)  # 2, 0 and 1
    assert found == pytest.approx((1.0, 1 / 3**0.5))


@pytest.mark.parametrize(
    ("counts", "said"), [((4, 1, 5), "pass@5 of 4"), ((4, 5, 1), "5 right of 4"), ((4, 1, 0), "pass@0")]
)
def test_impossible_counts_are_refused(counts, said):
    with pytest.raises(UsageError, match=said):
        pass_at_k(*counts)
