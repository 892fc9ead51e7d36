"""The GPT against a naive version of its formulas, and against GPT-2 of transformers."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, NanoChatConfig, NanoChatForCausalLM

from fluxentropy.errors import ModelError
from fluxentropy.pretraining.export import family, from_transformers, to_transformers
from fluxentropy.pretraining.gpt import GPT, IGNORE, GPTConfig, document_mask, document_starts, rotary_angles, rotated

SHAPE: dict[str, Any] = {"vocab_size": 50, "block_size": 24, "n_layer": 3, "n_head": 4, "n_embd": 32}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "modern": ("modern", {}),
    "grouped": ("modern", {"n_kv_head": 2, "n_hidden": 48, "vocab_multiple": 16}),
    "tied": ("modern", {"tied": True, "soft_cap": None, "qk_norm": False, "mlp": "gelu"}),
    "gpt2": ("gpt2", {}),
}


def make_gpt(variant: str = "modern", *, flex: bool | None = None, **changes: Any) -> GPT:
    """A tiny model with random weights everywhere, also where training starts from zero."""
    preset, options = VARIANTS[variant]
    torch.manual_seed(0)
    gpt = GPT(GPTConfig.preset(preset, **SHAPE, **{**options, **changes}), flex=flex)
    for parameter in gpt.parameters():
        nn.init.normal_(parameter, std=0.3)
    return gpt


def some_ids(rows: int = 2, length: int = 24, seed: int = 1) -> Tensor:
    return torch.randint(50, (rows, length), generator=torch.Generator().manual_seed(seed))


def naive_logits(gpt: GPT, ids: Tensor) -> Tensor:
    """Logits (T, V) in float64 of one row (T,) of a modern model: position by position, head by head."""
    config, weights = gpt.config, {name: tensor.double() for name, tensor in gpt.state_dict().items()}
    E, group = config.head_width, config.n_head // config.kv_heads

    def normed(x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()

    def turned(x: Tensor, position: int) -> Tensor:
        angles = position * config.rope_base ** (-2 * torch.arange(E // 2, dtype=torch.float64) / E)
        z = torch.complex(x[: E // 2], x[E // 2 :]) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([z.real, z.imag])

    x = normed(weights["body.embed.weight"][ids])  # (T, D)
    for layer in range(config.n_layer):
        w = {name.split(f"blocks.{layer}.")[1]: t for name, t in weights.items() if f"blocks.{layer}." in name}
        y = normed(x)
        q, k, v = (y @ w[f"attention.{name}.weight"].T for name in "qkv")
        out = torch.zeros_like(x)
        for head in range(config.n_head):
            mine, theirs = slice(head * E, head * E + E), slice(head // group * E, head // group * E + E)
            for t in range(len(ids)):
                query = turned(normed(q[t, mine]), t)
                scores = [query @ turned(normed(k[s, theirs]), s) / math.sqrt(E) for s in range(t + 1)]
                out[t, mine] = torch.stack(scores).softmax(0) @ v[: t + 1, theirs]
        x = x + out @ w["attention.out.weight"].T
        x = x + (normed(x) @ w["mlp.up.weight"].T).relu() ** 2 @ w["mlp.down.weight"].T
    logits = normed(x) @ weights["head.weight"].T[:, : config.vocab_size]
    return config.soft_cap * torch.tanh(logits / config.soft_cap)


@pytest.mark.parametrize("variant", ["modern", "grouped"])
def test_logits_are_those_of_the_formulas(variant: str) -> None:
    gpt = make_gpt(variant)
    (ids,) = some_ids(1, 10)
    logits = gpt(ids[None])[0]
    assert logits.shape == (10, 50)
    torch.testing.assert_close(logits.double(), naive_logits(gpt, ids), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"n_inner": 40, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-3}])
def test_gpt2_weights_give_gpt2_logits_and_go_back(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=24, n_embd=32, n_layer=3, n_head=4, **changes)
    theirs = GPT2LMHeadModel(config).eval()
    for parameter in theirs.parameters():  # norms and biases too
        nn.init.normal_(parameter, std=0.2)
    gpt, ids = from_transformers(theirs), some_ids()
    with torch.no_grad():
        want = theirs(input_ids=ids, labels=ids)
        torch.testing.assert_close(gpt(ids), want.logits, rtol=1e-4, atol=1e-4)
        targets = torch.cat([ids[:, 1:], torch.full((2, 1), IGNORE)], 1)
        torch.testing.assert_close(gpt(ids, targets), want.loss, rtol=1e-5, atol=1e-5)
    assert gpt.num_parameters() == theirs.num_parameters()
    back = to_transformers(gpt).state_dict()
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs.state_dict().items())


def test_only_plain_gpt2_is_taken_over() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    model.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(ModelError, match="scale_attn_by_inverse_layer_idx True: only False can be taken over"):
        from_transformers(model)


def test_only_plain_nanochats_are_taken_over() -> None:
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = NanoChatForCausalLM(NanoChatConfig(vocab_size=9, **shape))
    for name, value, match in (
        ("attention_bias", True, "nanochat with attention_bias True: only False can"),
        ("hidden_act", "silu", "nanochat with hidden_act 'silu': only 'relu2' can"),
        ("rope_parameters", {"rope_type": "linear"}, "nanochat with rope_type 'linear': only 'default' can"),
        ("model_type", "llama", "a model of the type llama: only nanochat and gpt2"),
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ModelError, match=match):
            patch.setattr(model.config, name, value)
            from_transformers(model)


@pytest.mark.parametrize(
    ("preset", "changes", "match"),
    [
        ("gpt2", {"n_kv_head": 6}, "n_kv_head 6: with learned positions .* as a gpt2 of transformers, .* is 12"),
        ("gpt2", {"bias": False}, "bias False: with learned positions"),
        ("gpt2", {"soft_cap": 15.0}, r"soft_cap 15\.0: .* where soft_cap is None: leave it at that"),
        ("modern", {"positions": "learned"}, "norm rms: with learned positions"),
        ("modern", {"qk_norm": False}, "qk_norm False: with rotary positions .* as a nanochat"),
        ("modern", {"norm": "layer"}, "norm layer: with rotary positions"),
        ("modern", {"bias": True}, "bias True: with rotary positions"),
    ],
)
def test_what_transformers_has_not_is_named(preset: Any, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        family(GPTConfig.preset(preset, **changes))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_later_token_changes_no_earlier_logit(variant: str) -> None:
    gpt, ids = make_gpt(variant), some_ids()
    changed = ids.clone()
    changed[:, 15] = (ids[:, 15] + 1) % 50
    a, b = gpt(ids), gpt(changed)
    assert torch.equal(a[:, :15], b[:, :15])
    assert ((a - b)[:, 15:].abs().amax(-1) > 1e-6).all()


@torch.no_grad()  # FlexAttention has no backward pass on a CPU
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize("flex", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_document_in_a_row_is_as_if_it_were_alone(variant: str, flex: bool) -> None:
    gpt, ids = make_gpt(variant, flex=flex), some_ids()
    borders = [[0, 1, 7, 24], [0, 11, 23, 24]]
    begins = torch.zeros(2, 24, dtype=torch.bool)
    for row, edges in enumerate(borders):
        begins[row, edges[1:-1]] = True  # a row's first document needs no mark
    logits = gpt(ids, starts=document_starts(begins))
    for row, edges in enumerate(borders):
        for start, stop in itertools.pairwise(edges):
            alone = gpt(ids[row : row + 1, start:stop])[0]
            torch.testing.assert_close(logits[row, start:stop], alone, rtol=1e-4, atol=1e-4)
    assert (logits - gpt(ids)).abs().max() > 0.01  # the mask bites


def test_masks_are_causal_and_within_documents() -> None:
    starts = torch.tensor([[0, 0, 2, 2, 4], [0, 0, 0, 0, 0]])
    mask = document_mask(starts)
    assert isinstance(mask, Tensor)
    for row in range(2):
        for query in range(5):
            allowed = [key <= query and bool(starts[row, key] == starts[row, query]) for key in range(5)]
            assert mask[row, 0, query].tolist() == allowed


def test_rotary_products_depend_on_the_distance_alone() -> None:
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 16, generator=g)

    def product(at_q: int, at_k: int) -> float:
        turned = [rotated(x, rotary_angles(torch.tensor([[at]]), 16, 100.0)) for x, at in ((q, at_q), (k, at_k))]
        return float((turned[0] * turned[1]).sum())

    assert product(0, 0) == pytest.approx(float((q * k).sum()), abs=1e-5)
    assert product(17, 12) == pytest.approx(product(5, 0), abs=1e-4)
    assert product(17, 12) != pytest.approx(product(17, 11), abs=1e-2)
    far = torch.arange(200)[None]
    norms = rotated(q.expand(1, 1, 200, 16), rotary_angles(far, 16, 100.0)).norm(dim=-1)
    torch.testing.assert_close(norms, q.norm().expand(1, 1, 200))


def test_the_soft_cap_bounds_logits_and_leaves_small_ones() -> None:
    gpt, ids = make_gpt(soft_cap=3.0), some_ids()
    plain = GPT(dataclasses.replace(gpt.config, soft_cap=None))
    plain.load_state_dict(gpt.state_dict())
    capped, raw = gpt(ids), plain(ids)
    assert raw.abs().max() > 4
    assert capped.abs().max() < 3
    torch.testing.assert_close(capped, 3 * torch.tanh(raw / 3))


@pytest.mark.parametrize("tied", [False, True])
def test_at_first_the_residual_stream_passes_the_embeddings(tied: bool) -> None:
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**SHAPE, tied=tied))
    ids = some_ids()
    stream = functional.rms_norm(gpt.body.embed(ids), (32,), eps=1e-6)
    assert torch.equal(gpt.body(ids), functional.rms_norm(stream, (32,), eps=1e-6))
    assert gpt(ids, ids.roll(1, 1)).item() == pytest.approx(math.log(50), abs=0.05)


def test_a_tied_head_is_the_embedding() -> None:
    tied, own = make_gpt("tied"), make_gpt("tied", tied=False)
    assert tied.head.weight is tied.body.embed.weight
    assert own.num_parameters() - tied.num_parameters() == 50 * 32
    assert tied.flops_per_token() == own.flops_per_token()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_gradient_reaches_every_parameter(variant: str) -> None:
    gpt, ids = make_gpt(variant), some_ids()
    gpt(ids, ids.roll(-1, 1)).backward()
    assert [name for name, p in gpt.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_losses_of_rows_add_up_and_ignored_targets_do_not_count() -> None:
    gpt, ids = make_gpt("grouped"), some_ids(3)
    targets = ids.roll(-1, 1)
    targets[0, 5:] = IGNORE
    logp = gpt(ids).double().log_softmax(-1)
    want = torch.stack(
        [
            -sum(p[t] for p, t in zip(row, line, strict=True) if t != IGNORE)
            for row, line in zip(logp, targets, strict=True)
        ]
    )
    rows = gpt(ids, targets, reduction="rows")
    torch.testing.assert_close(rows.double(), want, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gpt(ids, targets, reduction="sum"), rows.sum())
    torch.testing.assert_close(gpt(ids, targets), rows.sum() / (5 + 24 + 24))


@pytest.mark.parametrize("variant", VARIANTS)
def test_in_bf16_logits_and_losses_are_float32_and_near(variant: str) -> None:
    gpt, ids = make_gpt(variant), some_ids()
    want = gpt(ids, ids)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = gpt(ids, ids, starts=torch.zeros_like(ids))
    whole = gpt.bfloat16()(ids, ids)
    assert mixed.dtype == whole.dtype == torch.float32
    torch.testing.assert_close(torch.stack([mixed, whole]), want.expand(2), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_flops_are_those_of_the_products_that_ran(variant: str) -> None:
    gpt, ids = make_gpt(variant), some_ids(2, 24)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        gpt(ids, ids).backward()
    assert counter.get_total_flops() == 2 * 24 * gpt.flops_per_token(24)


def test_rows_beyond_the_block_size_are_refused() -> None:
    with pytest.raises(ValueError, match="25 tokens are more than the model's block_size, 24"):
        make_gpt()(some_ids(1, 25))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 0}, "n_layer 0: use 1 or more"),
        ({"n_head": 5}, "n_embd 32 is not a multiple of n_head 5"),
        ({"n_kv_head": 3}, "n_head 4 is not a multiple of n_kv_head 3"),
        ({"n_kv_head": 0}, "n_kv_head 0: use 1 or more"),
        ({"n_head": 32}, "use an even number"),
        ({"soft_cap": 0.0}, "soft_cap 0.0: use a positive number"),
    ],
)
def test_sizes_that_make_no_model_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{**SHAPE, **changes})


def test_an_unknown_preset_is_named() -> None:
    with pytest.raises(ValueError, match="preset 'gpt3': there are modern, gpt2"):
        GPTConfig.preset("gpt3")  # type: ignore[arg-type]
