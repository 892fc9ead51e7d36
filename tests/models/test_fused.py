"""The fused decoder against transformers' own forward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import VOCABULARY, make_config, make_tokenizer, save_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from fluxentropy.entropy import token_stats
from fluxentropy.evaluation.answering import Reader
from fluxentropy.models import linear, paths
from fluxentropy.models.files import file_weights
from fluxentropy.models.forward import FastPath
from fluxentropy.models.fused import FusedDecoder, FusedPath, Span, shape_of, spans_of
from fluxentropy.models.linear import can_pack, can_quantise
from fluxentropy.models.loading import Decoder, load_decoder
from fluxentropy.models.zoo import find_model

SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "sliding_window": None,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "llama, tied, biases, wide heads": LlamaConfig(
        **SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, head_dim=16
    ),
    "llama, a key head for each query head": LlamaConfig(**{**SMALL, "num_key_value_heads": 6}),
    "llama, one key head": LlamaConfig(**{**SMALL, "num_key_value_heads": 1}, rms_norm_eps=1e-2),
    "llama 3": LlamaConfig(**SMALL, rope_parameters=LLAMA3),
    "yarn": LlamaConfig(**SMALL, rope_parameters=YARN),
    "linear": LlamaConfig(**SMALL, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}),
    "mistral": MistralConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
}
LENGTHS = [300, 70, 70, 33, 9, 9, 9, 1]  # beyond the sizes at which another kernel is taken; neighbours of one length


def saved(config: Any, folder: Path) -> tuple[Any, Path]:
    """A model whose norms and biases are no longer ones and zeros, and whose attention looks at positions."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.data.copy_(torch.randn_like(parameter) * 0.3 + ("norm" in name))
        else:
            parameter.data.mul_(6)
    model.save_pretrained(folder)
    return model, folder


def fused(config: Any, folder: Path, dtype: torch.dtype = torch.float32) -> FusedDecoder:
    shape, weights = shape_of(config), file_weights(folder)
    assert shape and weights
    return FusedDecoder(shape, weights, dtype)


def rows(lengths: list[int] = LENGTHS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCABULARY, (n,), generator=generator) for n in lengths]


def batch(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    return ids, torch.arange(ids.shape[1]) < torch.tensor([[len(text)] for text in texts])


@torch.no_grad()
def plain(model: Any, texts: list[Tensor]) -> Tensor:
    return torch.cat([model(text[None]).logits[0] for text in texts])


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, folder = saved(CONFIGS[name], tmp_path)
    decoder = fused(CONFIGS[name], folder)
    texts = rows()
    positions = torch.cat([torch.arange(len(text)) for text in texts])
    with torch.inference_mode():
        hidden = decoder.hidden(torch.cat(texts), positions, spans_of(list(map(len, texts))))
        logits = torch.cat(list(decoder.blocks(hidden)), -1)
    want = plain(model, texts)
    assert want.std() > 0.5
    torch.testing.assert_close(logits, want, rtol=2e-4, atol=2e-4)


def test_a_path_keeps_what_it_is_asked_for_and_no_text_sees_another(tmp_path: Path) -> None:
    _, folder = saved(CONFIGS["qwen2"], tmp_path)
    path = FusedPath(fused(CONFIGS["qwen2"], folder))
    texts = rows()
    ids, keep = batch(texts)
    targets = torch.arange(int(keep.sum())) % VOCABULARY
    with torch.inference_mode():
        together = path(ids, keep, targets, top_k=3)
        alone = [path(text[None], torch.ones(1, len(text), dtype=torch.bool), None).entropy for text in texts]
        later = keep & (torch.arange(ids.shape[1]) >= 5)
        some = path(ids, later, targets[later[keep]], top_k=3)
    torch.testing.assert_close(together.entropy, torch.cat(alone), rtol=0, atol=1e-5)
    for part, whole in zip(some, together, strict=True):
        assert part is not None and whole is not None
        torch.testing.assert_close(part, whole[later[keep]], rtol=0, atol=1e-5)


@pytest.mark.skipif(not can_pack(torch.device("cpu"), torch.bfloat16), reason="this processor has no bf16 units")
def test_bf16_is_near(tmp_path: Path) -> None:
    model, folder = saved(CONFIGS["qwen3"], tmp_path)
    texts = rows()
    with torch.inference_mode():
        got = FusedPath(fused(CONFIGS["qwen3"], folder, torch.bfloat16))(*batch(texts), None).entropy
    assert (got - token_stats(plain(model, texts)).entropy).abs().mean() < 0.05


def test_other_families_have_no_shape() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    others = [
        make_config("gpt2"),
        make_config("gemma3"),
        MistralConfig(**{**SMALL, "sliding_window": 64}),
        LlamaConfig(**SMALL, rope_parameters=rope),
        LlamaConfig(**SMALL, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}),
        LlamaConfig(**SMALL, hidden_act="gelu"),
        LlamaConfig(**SMALL, quantization_config={"quant_method": "fp8"}),
        Qwen2Config(**{**SMALL, "sliding_window": 8}, use_sliding_window=True, max_window_layers=1),
    ]
    assert [shape_of(config) for config in others] == [None] * len(others)


def test_a_prefix_is_seen_by_what_follows_it_and_by_nothing_else(tmp_path: Path) -> None:
    model, folder = saved(CONFIGS["llama 3"], tmp_path)
    decoder = fused(CONFIGS["llama 3"], folder)
    context, *endings = rows([90, 7, 1, 70])
    ids = torch.cat([context, *endings])
    spans, positions, start = [Span(0, 90)], [torch.arange(90)], 90
    for ending in endings:
        spans.append(Span(start, len(ending), before=0, prefix=90))
        positions.append(90 + torch.arange(len(ending)))
        start += len(ending)
    with torch.inference_mode():
        logits = torch.cat(list(decoder.blocks(decoder.hidden(ids, torch.cat(positions), spans))), -1)
    want = [plain(model, [context]), *(plain(model, [torch.cat([context, one])])[90:] for one in endings)]
    torch.testing.assert_close(logits, torch.cat(want), rtol=2e-4, atol=2e-4)


def test_questions_have_the_readings_of_the_layers_of_transformers(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    decoder, path, _ = paths.open_path(find_model(str(folder)))
    assert isinstance(path, FusedPath)
    readers = [Reader(decoder, path, threads=2), Reader(load_decoder(find_model(str(folder))), FastPath(decoder.model))]
    assert [reader.shared for reader in readers] == [True, True]
    contexts, endings = ["the quick brown", "entropy"], [["fox jumps", "dog"], ["measures how", "is", "a model"]]
    for one, other in zip(*(reader.read(reader.encode(contexts, endings)) for reader in readers), strict=True):
        assert one and other
        np.testing.assert_allclose(one.entropy, other.entropy, atol=1e-5)
        for a, b in zip(one.surprisal, other.surprisal, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


# --- 8-bit integers ---------------------------------------------------------------------------------------------------


def exact_product(layer: linear.Int8Linear, q: Tensor) -> Tensor:
    """What a processor with VNNI computes."""
    return ((q.double() - 128) @ layer.whole.double().T).mul(layer.scale.double()).float()


@pytest.mark.parametrize("name", ["llama, tied, biases, wide heads", "qwen3"])
def test_int8_is_near_and_learns_the_sizes_of_its_features(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not can_quantise():
        monkeypatch.setattr(linear.Int8Linear, "product", exact_product)
    model, folder = saved(CONFIGS[name], tmp_path)
    weights, shape = file_weights(folder), shape_of(CONFIGS[name])
    assert weights and shape
    with torch.inference_mode():
        largest = FusedDecoder(shape, weights).largest(paths.random_rows(VOCABULARY))
        path = FusedPath(FusedDecoder(shape, weights, largest=largest))
        got = path(*batch(rows()), None).entropy
    want = token_stats(plain(model, rows())).entropy
    assert 0 < (got - want).abs().mean() < 0.1
    assert {key.split()[0] for key in largest} == {"qkv", "gate", "down"}


def test_int8_where_it_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fluxentropy.errors import UsageError

    other, llama = save_model(tmp_path / "gpt2", "gpt2"), save_model(tmp_path / "llama")
    monkeypatch.setattr(paths, "can_quantise", lambda: True)
    with pytest.raises(UsageError, match=r"--dtype int8: .*gpt2.* has other layers than Llama, Mistral and Qwen"):
        paths.open_path(find_model(str(other)), dtype="int8")
    monkeypatch.setattr(paths, "can_quantise", lambda: False)
    with pytest.raises(UsageError, match="this processor has no VNNI.*use fp32"):
        paths.open_path(find_model(str(llama)), dtype="int8")


# --- what is kept about a model ---------------------------------------------------------------------------------------


def test_a_known_model_is_not_loaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_model(tmp_path / "model")
    decoder, first, notes = paths.open_path(find_model(str(folder)))
    window = decoder.window

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("loaded again")

    ids, keep = batch(rows([20, 5]))
    with monkeypatch.context() as patched:
        patched.setattr("fluxentropy.models.loading.load_checked", refuse)
        patched.setattr("fluxentropy.models.loading._load_config", refuse)
        again, second, said = paths.open_path(find_model(str(folder)))
    assert (said, again.window) == (notes, window)
    with torch.inference_mode():
        assert torch.equal(first(ids, keep, None).entropy, second(ids, keep, None).entropy)
    kept = next((paths.cache_folder() / "paths").iterdir())
    kept.write_text("{")  # damaged: looked at again
    assert paths.open_path(find_model(str(folder)))[1].name == "fused"
    assert again.model.config.model_type == "llama"  # for whoever asks


def test_a_decoder_in_memory_is_what_it_is() -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["qwen3"]).eval()
    decoder = Decoder.of(model, make_tokenizer(), name="mine", fingerprint="none")
    assert decoder.model is model
    assert decoder.window == 1024
