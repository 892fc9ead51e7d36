"""The fast path against each model's own plain forward."""

from __future__ import annotations

import pytest
import torch
from fakes import make_model
from torch import Tensor, nn

from fluxentropy.estimators import token_stats
from fluxentropy.forward import (
    FastPath,
    PlainPath,
    TailHead,
    can_pack,
    entropies,
    is_causal,
    path_error,
    probe_logits,
    probe_rows,
)

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
    assert path_error(FastPath(model), model, reference) < 1e-5
    wrong = FastPath(model)
    wrong.head = lambda hidden: model.lm_head(hidden) * 0.9
    assert path_error(wrong, model, reference) > 1e-2


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
