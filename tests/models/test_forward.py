"""The fast path against each model's own plain forward."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import SENTENCES, make_model, make_tokenizer
from torch import Tensor, nn
from transformers import LlamaConfig, Phi3Config, PhimoeConfig

from fluxentropy.entropy import token_stats
from fluxentropy.errors import ModelError
from fluxentropy.evaluation.answering import Reader
from fluxentropy.models.forward import (
    ALONE,
    FastPath,
    FreshState,
    Grouped,
    PlainPath,
    TailHead,
    dynamic_factor,
    entropies,
    is_causal,
    path_error,
    probe_logits,
    probe_rows,
    row_limit,
)
from fluxentropy.models.linear import can_pack
from fluxentropy.models.loading import Decoder
from fluxentropy.models.paths import choose_path
from fluxentropy.scoring.scorer import Scorer

KINDS = ["llama", "gpt2", "gemma3"]
CPU = torch.device("cpu")


def padded_batch() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    rows = [torch.randint(2, 400, (n,), generator=g) for n in (40, 40, 3, 1)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    keep = torch.arange(40) < torch.tensor([[len(row)] for row in rows])
    return ids, keep, torch.randint(2, 400, (int(keep.sum()),), generator=g)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_fast_path_matches_the_models_own_logits(kind: str, packed: bool) -> None:
    model = make_model(kind)
    ids, keep, targets = padded_batch()
    with torch.inference_mode():
        alone = [model(input_ids=row[None, k]).logits[0] for row, k in zip(ids, keep, strict=True)]
        expected = token_stats(torch.cat(alone).double(), targets, top_k=3)
        if packed and not can_pack(CPU, torch.float32):
            pytest.skip("this build of torch has no oneDNN")
        for path in (PlainPath(model), FastPath(model, packed=packed)):
            stats = path(ids, keep, targets, top_k=3)
            for got, want in zip(stats, expected, strict=True):
                torch.testing.assert_close(got.double(), want.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("packed", [False, True])
def test_the_head_honours_soft_caps_in_blocks_of_columns(packed: bool) -> None:
    model = make_model("gemma3", final_logit_softcapping=0.7)
    hidden = torch.randn(9, 32, generator=torch.Generator().manual_seed(1)) * 3
    logits = torch.cat(list(TailHead(model, packed=packed, columns=33).blocks(hidden)), -1)
    raw = hidden @ model.lm_head.weight.T
    assert raw.abs().max() > 2  # the cap bites
    torch.testing.assert_close(logits, 0.7 * torch.tanh(raw / 0.7), rtol=1e-4, atol=1e-5)


def test_the_full_logits_are_never_made() -> None:
    model = make_model()
    ids, keep, targets = padded_batch()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and func.__name__.startswith(("mm", "addmm", "bmm")) and out.shape[-1] > 64:
                largest = max(largest, out.numel())
            return out

    path = FastPath(model)
    path.head = TailHead(model, columns=100)
    with torch.no_grad(), Watch():
        path(ids, keep, targets)
    assert 0 < largest <= int(keep.sum()) * 100 < ids.numel() * 400


def test_packing_leaves_no_unpacked_layer_and_keeps_the_embedding() -> None:
    model = make_model()
    embedding = model.get_input_embeddings().weight.clone()
    FastPath(model, packed=True)
    assert not any(type(module) is nn.Linear for module in model.model.modules())
    torch.testing.assert_close(model.get_input_embeddings().weight, embedding)


def test_probe_error_is_small_for_a_right_path_and_large_for_a_wrong_one() -> None:
    model = make_model()
    reference = entropies(probe_logits(model, probe_rows(model)))
    assert path_error(FastPath(model), probe_rows(model), reference) < 1e-5
    wrong = FastPath(model)
    wrong.head = lambda hidden: model.lm_head(hidden) * 0.9
    assert path_error(wrong, probe_rows(model), reference) > 1e-2


def test_causality_is_told_from_bidirectional_attention() -> None:
    from transformers import BertConfig, BertLMHeadModel

    model = make_model()
    assert is_causal(probe_logits(model, probe_rows(model)))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    bert = BertLMHeadModel(config).eval()
    assert not is_causal(probe_logits(bert, probe_rows(bert)))


def test_a_model_without_separate_head_is_refused_by_name() -> None:
    model = make_model()
    model.lm_head = nn.Sequential(nn.Linear(32, 400))
    with pytest.raises(ValueError, match="no separate base model and linear output projection"):
        TailHead(model)


# --- Models whose forward looks at the whole batch, or remembers earlier ones, against each text alone in ---


SHAPE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}

LONG = " ".join(SENTENCES * 2)  # more than 200 tokens
TEXTS = [LONG[:700], SENTENCES[0], LONG[100:400], LONG[100:401], SENTENCES[1], LONG[:330], SENTENCES[2][:9], "e"]


def longrope(limit: int) -> Phi3Config:
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 8.0, 50.0]}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": limit, **factors}
    return Phi3Config(
        **SHAPE, rope_parameters=rope, max_position_embeddings=1024, original_max_position_embeddings=limit
    )


def dynamic(limit: int) -> LlamaConfig:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 8.0}
    return LlamaConfig(**SHAPE, rope_parameters=rope, max_position_embeddings=limit)


class ScarceExperts(nn.Module):
    """Two experts chosen by a sign; each takes the first tokens that come, 6 in 10 of all, and drops the others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 1, bias=False)
        self.experts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        capacity, out = math.ceil(0.6 * len(flat)), torch.zeros_like(flat)
        first = self.router(flat)[:, 0] > 0
        for expert, chosen in zip(self.experts, (first, ~first), strict=True):
            taken = chosen.nonzero()[:capacity, 0]
            out[taken] = expert(flat[taken])
        return out.reshape(x.shape)


def scarce() -> Any:
    model = make_model()
    for layer in model.model.layers:
        torch.manual_seed(1)
        layer.mlp = ScarceExperts(32)
    return model


def of_config(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(10)  # attention that looks at positions
    return model


def decoder_of(model: Any) -> Decoder:
    return Decoder.of(model, make_tokenizer(), name="tiny", fingerprint="none")


def alone(model: Any, ids: Any) -> tuple[np.ndarray, np.ndarray]:
    """Entropies (T,) and surprisals (T - 1,) of a text in a copy of the model that has read nothing."""
    with torch.no_grad():
        logits = copy.deepcopy(model)(torch.tensor([list(ids)])).logits[0].double()
    stats = token_stats(logits[:-1], torch.tensor(list(ids))[1:])
    assert stats.surprisal is not None
    return token_stats(logits).entropy.numpy(), stats.surprisal.numpy()


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "longrope": (lambda: of_config(longrope(64)), "rows above 64 tokens by length"),
    "longrope, a limit below the probes": (lambda: of_config(longrope(20)), "rows above 20 tokens by length"),
    "dynamic": (lambda: of_config(dynamic(64)), "rows above 64 tokens by length"),
    "dynamic, a limit below the probes": (lambda: of_config(dynamic(30)), "rows above 30 tokens by length"),
    "scarce experts": (scarce, "each row alone"),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_text_has_the_score_it_has_alone_in_a_fresh_model(kind: str) -> None:
    make, words = MODELS[kind]
    untouched = make()
    decoder = decoder_of(copy.deepcopy(untouched))
    path, note = choose_path(decoder, pack=kind == "longrope")
    assert path is not None
    assert path.name.endswith(words), note
    scorer = Scorer(decoder, path=path, max_tokens=200)
    encoded = scorer.encode(TEXTS)
    assert min(map(len, (item.ids for item in encoded))) == 1
    sums = set()
    for order in (TEXTS, TEXTS[::-1]):
        for text, scores in zip(order, scorer.score(order), strict=True):
            entropy, surprisal = alone(untouched, scorer.encode([text])[0].ids)
            assert scores.entropy_sum == pytest.approx(entropy.sum(), rel=1e-5)
            assert scores.entropy_last == pytest.approx(entropy[-1], rel=1e-5)
            if len(surprisal):
                assert scores.surprisal_mean == pytest.approx(surprisal.mean(), rel=1e-5)
            sums.add(scores.n_tokens)
    assert min(sums) < 20 < 64 < max(sums)  # on both sides of the limits


@pytest.mark.parametrize("kind", ["longrope", "dynamic", "scarce experts"])
def test_without_groups_the_neighbours_matter(kind: str) -> None:
    """The fault that the groups mend, so that the test above cannot pass by a model that is indifferent."""
    untouched = MODELS[kind][0]()
    decoder = decoder_of(copy.deepcopy(untouched))
    scores = Scorer(decoder, path=FastPath(decoder.model), max_tokens=200).score(TEXTS)
    right = [alone(untouched, decoder.tokenizer(text).input_ids[:200])[1].mean() for text in TEXTS[:-1]]
    assert max(abs(got.surprisal_mean - want) for got, want in zip(scores, right, strict=False)) > 0.02


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_windows_of_long_texts_and_tokens_are_those_of_the_model_alone(kind: str) -> None:
    untouched = MODELS[kind][0]()
    scorer = Scorer(decoder_of(copy.deepcopy(untouched)), max_tokens=90, window="sliding", stride=40)
    scorer.score(TEXTS)  # something was read before
    (encoded,) = scorer.encode([LONG])
    ids = encoded.ids
    begins = [0, *range(40, len(ids) - 50, 40)]  # of the windows: 90 tokens, the first 50 of them context
    parts = [alone(untouched, ids[begin : begin + 90])[0][50 if begin else 0 :] for begin in begins]
    expected = np.concatenate(parts)
    assert len(expected) == len(ids)
    assert scorer.position_stats(encoded).entropy.numpy() == pytest.approx(expected, abs=1e-3)
    assert scorer.score([LONG, *TEXTS])[0].entropy_sum == pytest.approx(expected.sum(), rel=1e-5)


@pytest.mark.parametrize("kind", ["longrope", "dynamic", "scarce experts"])
def test_endings_are_read_as_the_model_alone_reads_them(kind: str) -> None:
    """As the harness asks: the context with an ending, without its last token, which is predicted and not read."""
    untouched = MODELS[kind][0]()
    decoder = decoder_of(copy.deepcopy(untouched))
    path, _ = choose_path(decoder)
    assert path is not None
    reader = Reader(decoder, path, batch_tokens=4000)
    assert reader.shared == (kind != "scarce experts"), reader.note
    contexts = [SENTENCES[0], LONG[:170], LONG[:300], "a model"]
    endings = [["jumps", "sleeps now"], ["is a fox", LONG[50:160]], [SENTENCES[1], "x"], ["reads", LONG[:260]]]
    prompts = reader.encode(contexts, endings)
    assert min(prompt.length for prompt in prompts) < 64 < max(prompt.length for prompt in prompts)
    readings = reader.read(prompts)
    for prompt, reading in zip(prompts, readings, strict=True):
        assert reading is not None
        for ending, surprisal in zip(prompt.endings, reading.surprisal, strict=True):
            ids = [*prompt.context, *ending]
            with torch.no_grad():
                logits = copy.deepcopy(untouched)(torch.tensor([ids[:-1]])).logits[0].double()
            logp = logits.log_softmax(-1)[len(prompt.context) - 1 :]
            expected = -logp[range(len(ending)), ending].numpy()
            assert surprisal == pytest.approx(expected, abs=2e-3)


def test_rows_are_put_back_in_order() -> None:
    model = make_model()
    g = torch.Generator().manual_seed(0)
    lengths = (7, 3, 7, 1, 12, 3)
    rows = [torch.randint(2, 400, (n,), generator=g) for n in lengths]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    at, end = torch.arange(12), torch.tensor(lengths)[:, None]
    keep = (at < end) & (at >= torch.tensor([[0], [1], [4], [0], [11], [0]]))
    targets = torch.randint(2, 400, (int(keep.sum()),), generator=g)
    with torch.inference_mode():
        expected = FastPath(model)(ids, keep, targets, top_k=3)
        for limit in (ALONE, 0, 3, 7, 100):
            for got, want in zip(Grouped(FastPath(model), limit)(ids, keep, targets, top_k=3), expected, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_group_holds_rows_that_cannot_disagree() -> None:
    seen: list[list[int]] = []

    class Seen(PlainPath):
        def __call__(self, ids: torch.Tensor, keep: torch.Tensor, targets: Any, *, top_k: Any = None) -> Any:
            seen.append(sorted(keep.sum(1).tolist()))
            return token_stats(torch.zeros(int(keep.sum()), 4))

    path = Seen(make_model("llama"))
    lengths = [5, 9, 12, 9, 2, 10, 12]
    keep = torch.arange(12) < torch.tensor(lengths)[:, None]
    for limit, groups in (
        (9, [[2, 5, 9, 9], [10], [12, 12]]),
        (0, [[2], [5], [9, 9], [10], [12, 12]]),
        (ALONE, [[n] for n in sorted(lengths)]),
        (12, [sorted(lengths)]),
    ):
        seen.clear()
        Grouped(path, limit)(keep.long(), keep, None)
        assert sorted(seen) == groups


def test_a_fresh_state_undoes_what_a_long_row_left() -> None:
    model = of_config(dynamic(16))
    short, long = torch.arange(2, 22)[None], torch.arange(2, 102)[None]
    state = FreshState(model)
    with torch.no_grad():
        first = model(short).logits
        model(long)
        assert (model(short).logits - first).abs().max() > 0.1
        for _ in range(2):
            state.restore()
            torch.testing.assert_close(model(short).logits, first)
            model(long)


def test_the_plain_path_forgets_too() -> None:
    untouched = of_config(dynamic(16))
    untouched.lm_head = nn.Sequential(untouched.lm_head)  # off the mould
    decoder = decoder_of(copy.deepcopy(untouched))
    path, note = choose_path(decoder)
    assert isinstance(path, Grouped)
    assert isinstance(path.path, PlainPath)
    assert "path plain, slow" in note
    decoder.model.get_output_embeddings = lambda: None
    scores = Scorer(decoder, path=path, max_tokens=100).score(TEXTS)
    for text, got in zip(TEXTS, scores, strict=True):
        ids = decoder.tokenizer(text).input_ids[:100]
        assert got.entropy_sum == pytest.approx(alone(untouched, ids)[0].sum(), rel=1e-4)


def test_a_model_that_keeps_what_it_read_in_an_unknown_place_is_refused() -> None:
    model = make_model()
    forward, calls = model.model.forward, []

    def changing(*args: Any, **options: Any) -> Any:
        calls.append(1)
        out = forward(*args, **options)
        out.last_hidden_state.mul_(1 + 0.1 * len(calls))
        return out

    model.model.forward = changing
    with pytest.raises(ModelError, match="gives the same tokens other numbers each time"):
        choose_path(decoder_of(model))


def test_a_model_whose_forward_fails_on_text_is_said() -> None:
    model = make_model()

    def blind(**_: Any) -> None:
        raise TypeError("pixel_values is missing")

    model.model.forward = blind
    with pytest.raises(ModelError, match=r"'tiny' \(llama\) cannot read a text alone: TypeError: pixel_values is mi"):
        choose_path(decoder_of(model))


def test_the_window_of_dynamic_ntk_is_what_it_stretches_to() -> None:
    assert decoder_of(of_config(dynamic(64))).window == 512
    assert decoder_of(make_model()).window == 256
    assert dynamic_factor(longrope(64)) == 1.0


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (LlamaConfig(), None),
        (LlamaConfig(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}), None),
        (longrope(64), 64),
        (dynamic(48), 48),
        (SimpleNamespace(rope_scaling={"type": "su"}, original_max_position_embeddings=4096), 0),
        (SimpleNamespace(rope_scaling=None, use_dynamic_ntk=True), 0),
        (SimpleNamespace(rope_parameters={"full": {"rope_type": "default"}, "other": {"rope_type": "longrope"}}), 0),
        (SimpleNamespace(rope_scaling=None, ffn={"eval_capacity_factor": 1.5}), ALONE),
        (SimpleNamespace(rope_scaling=None, moe_capacity_factor=None, expert_capacity=0, drop_tokens=False), None),
        (PhimoeConfig(), None),
    ],
)
def test_what_a_configuration_says_about_neighbours(config: Any, limit: int | None) -> None:
    if isinstance(config, SimpleNamespace):
        config.get_text_config = lambda: config
        config.to_dict = lambda: {name: value for name, value in vars(config).items() if not callable(value)}
    assert row_limit(SimpleNamespace(config=config)) == limit  # type: ignore[arg-type]
