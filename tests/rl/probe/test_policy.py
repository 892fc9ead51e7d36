"""Log-probabilities, entropies and their derivatives against enumeration and torch's own reverse mode."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from rl_enumeration import TinyPolicy, direction, world
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from fluxentropy.errors import ModelError, UsageError
from fluxentropy.pretraining.gpt import GPT, GPTConfig
from fluxentropy.rl.probe.policy import (
    Policy,
    Weights,
    derivatives,
    dot,
    flatten,
    logit_range,
    row_gradients,
    sequence_stats,
    weighted_gradient,
)
from fluxentropy.rl.probe.samples import responses


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_and_entropies_are_those_of_enumeration(temperature):
    w = world(limit=3, temperature=temperature)
    stats = sequence_stats(Policy(w.policy), w.batch, rows=7)
    S = stats.logp.sum(-1)
    torch.testing.assert_close(S, w.logp().detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(S.exp().sum(1), torch.ones(2, dtype=torch.float64))
    expected = (S.exp() * stats.entropy.sum(-1)).sum(1).mean()
    torch.testing.assert_close(expected, w.entropy().detach(), rtol=0, atol=1e-12)


def test_directional_derivatives_are_those_of_finite_differences():
    w = world(vocabulary=4, limit=3)
    v, step = direction(w), 1e-4
    policy, batch = Policy(w.policy), w.batch
    value, first, second = derivatives(policy, batch, w.named(v), order=2)
    at = {
        eta: derivatives(Policy(w.moved(v, eta).policy), batch, {}, order=0)[0]
        for eta in (-2 * step, -step, step, 2 * step)
    }
    for k in range(2):
        slope = (8 * (at[step][k] - at[-step][k]) - (at[2 * step][k] - at[-2 * step][k])) / (12 * step)
        bend = (16 * (at[step][k] + at[-step][k]) - at[2 * step][k] - at[-2 * step][k] - 30 * value[k]) / (12 * step**2)
        torch.testing.assert_close(first[k], slope, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(second[k], bend, rtol=1e-4, atol=1e-5)
    once = derivatives(policy, batch, w.named(v), order=1)
    assert torch.equal(once[1].logp, first.logp) and torch.equal(once[0].entropy, value.entropy)


def test_a_model_prepared_for_gradient_checkpointing_has_the_same_derivatives():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=5, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    batch = responses([[1, 2]], torch.tensor([[[3, 4, 1]]]))
    step = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    before = derivatives(Policy(model), batch, step, order=2)
    model.enable_input_require_grads()  # a hook that calls requires_grad_, which transforms refuse
    after = derivatives(Policy(model), batch, step, order=2)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.logp, other.logp) and torch.equal(one.entropy, other.entropy)
    assert all(tensor.any() for tensor in after[2])


def test_gradients_by_reverse_mode_and_by_vmap_are_those_of_enumeration():
    w = world(limit=3)
    policy, batch = Policy(w.policy), w.batch
    weights = Weights(batch.mask.double())
    each = row_gradients(policy, batch, weights, rows=5)
    torch.testing.assert_close(each, w.logp_gradients(), rtol=0, atol=1e-12)
    total = weighted_gradient(policy, batch, weights, rows=4)
    torch.testing.assert_close(flatten(total), w.logp_gradients().sum(1).mean(0), rtol=0, atol=1e-12)
    v = w.named(direction(w))
    slope = weights.apply(derivatives(policy, batch, v, order=1)[1])
    torch.testing.assert_close(float(slope.mean()), dot(total, v))


def test_weights_on_entropies_too():
    w = world()
    policy, batch = Policy(w.policy), w.batch
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(batch.mask.shape, generator=rng, dtype=torch.float64) for _ in range(2))
    weights = Weights(a, b)
    each = row_gradients(policy, batch, weights).sum(1)
    slope = derivatives(policy, batch, w.named(direction(w)), order=1)[1]
    torch.testing.assert_close(each @ direction(w), weights.apply(slope))
    torch.testing.assert_close(each.mean(0), flatten(weighted_gradient(policy, batch, weights, rows=3)))


class Masked(nn.Module):
    """A tiny policy some of whose tokens are forbidden by logits of -inf."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TinyPolicy(4)

    def forward(self, ids):
        return self.inner(ids).masked_fill(torch.tensor([False, False, True, False]), -torch.inf)


def test_forbidden_tokens_give_finite_values_and_derivatives_to_second_order():
    batch = responses([[1]], torch.tensor([[[1, 3, 0], [3, 0, 0]]]), eos=0)
    policy = Policy(Masked())
    v = {name: torch.ones_like(p) for name, p in policy.parameters().items()}
    for stats in derivatives(policy, batch, v, order=2):
        assert stats.logp.isfinite().all() and stats.entropy.isfinite().all()
    weights = Weights(batch.mask.double(), batch.mask.double())
    assert flatten(weighted_gradient(policy, batch, weights)).isfinite().all()
    assert row_gradients(policy, batch, weights).isfinite().all()
    assert logit_range(policy, batch, v)[batch.mask].isfinite().all()
    three = torch.tensor([0, 1, 3])
    logits = policy.logits({}, batch.ids[0], batch.ids[0] >= 0)[0, 0, three]
    p = logits.softmax(-1)
    torch.testing.assert_close(sequence_stats(policy, batch).entropy[0, 0, 0], -(p * p.log()).sum().detach())


def test_float32_logits_are_reduced_in_float64():
    """An entropy change of 1e-9 would drown in a float32 log-softmax."""
    rng = torch.Generator().manual_seed(0)
    z = 30 * torch.randn(1, 4, 500, generator=rng) + 1e4
    batch = responses([[1]], torch.tensor([[[7, 8, 9]]]))
    stats = sequence_stats(Policy(lambda ids: z), batch)
    logp = z.double().log_softmax(-1)[0, :3]
    torch.testing.assert_close(stats.logp[0, 0], logp[torch.arange(3), [7, 8, 9]], rtol=1e-13, atol=0)
    torch.testing.assert_close(stats.entropy[0, 0], -(logp.exp() * logp).sum(-1), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_distribution_are_refused(bad):
    policy = Policy(lambda ids: torch.full((*ids.shape, 3), bad))
    with pytest.raises(ModelError, match=r"2 of 2 positions have NaN entropy, the first at \(0, 0, 0\)"):
        sequence_stats(policy, responses([[1]], torch.tensor([[[1, 1]]])))


def test_outputs_that_are_no_logits_are_refused():
    batch = responses([[1]], torch.tensor([[[1, 1]]]))
    with pytest.raises(ModelError, match="gave tuple"):
        sequence_stats(Policy(lambda ids: (ids,)), batch)


def test_a_direction_with_another_models_parameters_is_refused():
    w = world()
    with pytest.raises(UsageError, match="direction has nothing"):
        derivatives(Policy(w.policy), w.batch, {"nothing": torch.zeros(1)}, order=1)


def _llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=6, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _gpt2():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=6, n_embd=8, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )  # fmt: skip
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize("make", [_llama, _gpt2])
def test_transformers_decoders_with_fused_attention_and_dropout_are_differentiated_and_restored(make):
    model = make()
    model.train()
    model.lm_head.eval()  # a module that stood otherwise than the rest is restored as it was
    assert model.config._attn_implementation == "sdpa"
    tokens = torch.randint(0, 6, (2, 3, 4), generator=torch.Generator().manual_seed(0))
    batch = responses([[1], [2, 3, 4]], tokens, eos=0)
    policy = Policy(model)
    v = {n: torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) for n, p in policy.parameters().items()}
    value, first, second = derivatives(policy, batch, v, order=2, rows=4)
    weights = Weights(batch.mask.double(), 0.3 * batch.mask.double())
    expected = row_gradients(policy, batch, weights).sum(1).double() @ flatten(v)
    torch.testing.assert_close(weights.apply(first), expected, rtol=1e-3, atol=1e-4)
    assert second.logp.isfinite().all()
    assert model.training and not model.lm_head.training and model.config._attn_implementation == "sdpa"

    model.eval()  # the row alone, with transformers' own attention
    row = torch.tensor([[2, 3, 4, *batch.tokens[1, 2].tolist()]])
    logp = model(row).logits.double().log_softmax(-1)[0, 2:-1].gather(1, row[0, 3:, None])[:, 0]
    T = int(batch.lengths[1, 2])
    torch.testing.assert_close(value.logp[1, 2, :T], logp.detach()[:T], rtol=1e-5, atol=1e-5)


def _own_gpt(preset):
    config = GPTConfig.preset(preset, vocab_size=6, block_size=16, n_layer=2, n_head=2, n_embd=8, zero_init=False)
    torch.manual_seed(0)
    return GPT(config)


@pytest.mark.parametrize("make", [_llama, _gpt2, partial(_own_gpt, "modern"), partial(_own_gpt, "gpt2")])
def test_derivatives_of_transformers_are_those_of_finite_differences(make):
    """torch's own layer norm (GPT-2) is silently wrong in forward over forward mode."""
    model = make().double()
    batch = responses([[1], [2, 3, 4]], torch.tensor([[[1, 2, 3]], [[5, 4, 0]]]), eos=0)
    policy = Policy(model)
    rng = torch.Generator().manual_seed(1)
    v = {n: 0.1 * torch.randn(p.shape, generator=rng, dtype=torch.float64) for n, p in policy.parameters().items()}
    value, first, second = derivatives(policy, batch, v, order=2)
    eta = 4e-3  # some of these models keep float32 parts, whose noise is divided by eta squared

    def at(sign):
        return sequence_stats(policy, batch, {n: p + sign * eta * v[n] for n, p in policy.parameters().items()})

    for k in range(2):
        up, down = at(1)[k], at(-1)[k]
        torch.testing.assert_close(first[k], (up - down) / (2 * eta), rtol=0.01, atol=0.01)
        torch.testing.assert_close(second[k], (up + down - 2 * value[k]) / eta**2, rtol=0.02, atol=0.1)
    assert second.logp.abs().max() > 1


def test_mixtures_of_experts_are_differentiated_and_restored():
    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=6, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, max_position_embeddings=16,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    kernel = model.config._experts_implementation
    batch = responses([[1], [2]], torch.tensor([[[1, 2, 3]], [[5, 4, 0]]]), eos=0)
    v = {name: torch.ones_like(p) for name, p in Policy(model).parameters().items()}
    assert derivatives(Policy(model), batch, v, order=2)[2].logp.isfinite().all()
    assert model.config._experts_implementation == kernel


class Opaque(torch.autograd.Function):
    """An operation without a forward-mode derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()


def test_a_model_without_forward_mode_derivatives_is_named():
    w = world()

    class Model(TinyPolicy):
        def forward(self, ids):
            return Opaque.apply(super().forward(ids))

    v = {name: torch.ones_like(p) for name, p in w.policy.named_parameters()}
    with pytest.raises(ModelError, match="the policy cannot be differentiated in forward mode"):
        derivatives(Policy(Model()), w.batch, v, order=1)


def test_frozen_parameters_take_no_part():
    w = world()
    w.policy.embedding.requires_grad_(False)
    policy = Policy(w.policy)
    assert list(policy.parameters()) == ["carry", "head", "bias"]
    weights = Weights(w.batch.mask.double())
    assert list(weighted_gradient(policy, w.batch, weights)) == ["carry", "head", "bias"]


def test_attention_kernels_without_forward_mode_are_replaced_for_the_moment():
    model = TinyPolicy()
    seen = []
    model.config = type("Config", (), {"_attn_implementation": "flash_attention_2"})()
    model.set_attn_implementation = seen.append
    with Policy(model).differentiable():
        assert seen == ["eager"]
    assert seen == ["eager", "flash_attention_2"]


def test_a_decoder_that_wants_a_mask_gets_it():
    class Wants(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = TinyPolicy()

        def forward(self, ids, mask):
            assert mask.shape == ids.shape
            return self.inner(ids) * mask[..., None]

    batch = responses([[1], [2, 1]], torch.tensor([[[1, 0]], [[2, 2]]]), eos=0)
    model = Wants()
    wants = Policy(model, forward=lambda policy, ids, mask: policy(ids, mask))
    plain = Policy(model.inner)
    assert torch.equal(sequence_stats(wants, batch).logp, sequence_stats(plain, batch).logp)
    assert next(iter(wants.parameters())) == "inner.embedding"
