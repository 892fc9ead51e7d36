"""Weights on disk against the model that is scored: what is missing, unused or of another shape refuses it by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fakes import make_config, make_model, make_tokenizer, save_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, GPTNeoConfig, GPTNeoForCausalLM, LlamaModel

from fluxentropy.errors import ModelError
from fluxentropy.gpt import GPT
from fluxentropy.gpt_export import export, from_export
from fluxentropy.gptconfig import GPTConfig
from fluxentropy.models import load_decoder
from fluxentropy.zoo_entries import find_model

Weights = dict[str, torch.Tensor]
IDS = torch.arange(2, 40)[None]


def edit(folder: Path, change: Callable[[Weights], Weights]) -> Path:
    """Change the weights of a model folder."""
    file = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(file).items()}
    save_file(change(weights), file, metadata={"format": "pt"})
    return folder


def configure(folder: Path, **changes: object) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: tensor for name, tensor in weights.items() if part not in name}


def under(prefix: str) -> Callable[[Weights], Weights]:
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def with_(**more: torch.Tensor) -> Callable[[Weights], Weights]:
    return lambda weights: weights | {name.replace("__", "."): tensor for name, tensor in more.items()}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (without("lm_head"), r'missing lm_head\.weight: .*"tie_word_embeddings": true'),
        (without("layers.1"), r"missing model\.layers\.1\.input_layernorm\.weight, .* and 3 more: get the files again"),
        (without("layers.1.mlp.up_proj"), r"missing model\.layers\.1\.mlp\.up_proj\.weight: get the files again"),
        (under("module."), r"unused module\.lm_head\.weight, .*begin with 'module\.'"),
        (under("_orig_mod."), r"begin with '_orig_mod\.'"),
        (with_(model__layers__2__mlp__up_proj__weight=torch.ones(64, 32)), r"unused model\.layers\.2\.mlp\.up_proj"),
        (
            with_(model__layers__0__self_attn__q_proj__bias=torch.ones(32)),
            r"unused model\.layers\.0\.self_attn\.q_proj\.b",
        ),
        (with_(v_head__summary__weight=torch.ones(1, 32)), r"unused v_head\.summary\.weight: it is a reward model"),
        (with_(lm_head__weight=torch.ones(410, 32)), r"another shape lm_head\.weight \(410, 32\) for \(400, 32\)"),
    ],
)
def test_weights_that_are_not_those_of_the_model_are_named(
    tmp_path: Path, change: Callable[[Weights], Weights], match: str
) -> None:
    folder = edit(save_model(tmp_path / "tiny"), change)
    with pytest.raises(ModelError, match=rf"(?s)^model 'tiny': its files do not hold .*{match}"):
        load_decoder(find_model(str(folder)))


def test_models_of_another_kind_and_pruned_ones_are_refused(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    LlamaModel(make_config()).save_pretrained(base)
    with pytest.raises(ModelError, match=r"missing lm_head\.weight"):
        load_decoder(find_model(str(base)))
    reward = save_model(tmp_path / "reward", tie_word_embeddings=True)
    config = make_config(tie_word_embeddings=True, num_labels=1)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(reward)
    with pytest.raises(ModelError, match=r"unused score\.weight: it is a reward model"):
        load_decoder(find_model(str(reward)))
    pruned = configure(save_model(tmp_path / "pruned"), num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"unused model\.layers\.1\."):
        load_decoder(find_model(str(pruned)))


@pytest.mark.parametrize("said", [{}, {"quantization_config": {"quant_method": "nosuch"}}])
def test_integers_that_nothing_dequantises_are_not_taken_for_weights(tmp_path: Path, said: dict[str, object]) -> None:
    """8-bit weights without a known way to scale them; masks of old files are integers rightly."""

    def quantised(weights: Weights) -> Weights:
        return {name: (w * 20).to(torch.int8) if "up_proj" in name else w for name, w in weights.items()}

    folder = edit(configure(save_model(tmp_path / "m"), **said), quantised)
    with pytest.raises(ModelError, match=r"quantised weights, model\.layers\.0\.mlp\.up_proj\.weight \(I8\), model"):
        load_decoder(find_model(str(folder)), device="cpu")


def logits(folder: Path) -> torch.Tensor:
    decoder = load_decoder(find_model(str(folder)))
    with torch.no_grad():
        return decoder.model(IDS).logits


def expected(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.double()(IDS).logits.float()


def test_what_may_be_missing_or_left_over_passes_with_the_models_own_numbers(tmp_path: Path) -> None:
    tied = save_model(tmp_path / "tied", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(tied / "model.safetensors")
    edit(tied, with_(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(4)))
    torch.testing.assert_close(logits(tied), expected(make_model(tie_word_embeddings=True)))
    old = save_model(tmp_path / "old", "gpt2")  # as OpenAI's files are: without prefix, with causal masks
    mask = torch.ones(1, 1, 8, 8)
    edit(old, lambda weights: {name.removeprefix("transformer."): tensor for name, tensor in weights.items()})
    edit(old, with_(h__0__attn__bias=mask, h__0__attn__masked_bias=torch.tensor(-1e4)))
    torch.testing.assert_close(logits(old), expected(make_model("gpt2")), rtol=1e-4, atol=1e-4)
    pickled = save_model(tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    torch.testing.assert_close(logits(pickled), expected(make_model()), rtol=1e-4, atol=1e-4)


def test_the_masks_of_gpt_neo_pass(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "attention_types": [[["global"], 1]]}
    model = GPTNeoForCausalLM(GPTNeoConfig(vocab_size=400, max_position_embeddings=64, **shape))
    model.save_pretrained(tmp_path / "neo")
    make_tokenizer().save_pretrained(tmp_path / "neo")
    mask = torch.ones(1, 1, 8, 8)
    edit(tmp_path / "neo", with_(transformer__h__0__attn__attention__bias=mask))
    load_decoder(find_model(str(tmp_path / "neo")))


def test_a_tied_model_with_another_head_in_its_files_says_that_it_is_used(tmp_path: Path) -> None:
    folder = configure(save_model(tmp_path / "tiny"), tie_word_embeddings=True)
    decoder = load_decoder(find_model(str(folder)))
    assert decoder.notes[-1] == (
        "its configuration ties the head to the embedding, and its files hold another head: that one is used"
    )
    torch.testing.assert_close(logits(folder), expected(make_model()), rtol=1e-4, atol=1e-4)
    decoder.model.save_pretrained(tmp_path / "again")
    make_tokenizer().save_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(tmp_path / "again"), logits(folder), rtol=0, atol=0)
    same = configure(save_model(tmp_path / "same", tie_word_embeddings=True), tie_word_embeddings=True)
    edit(same, lambda weights: weights | {"lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    assert "head" not in " ".join(load_decoder(find_model(str(same))).notes)


def test_an_export_that_lost_a_weight_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = export(GPT(GPTConfig(vocab_size=64, block_size=16, n_layer=2, n_head=2, n_embd=16)), tmp_path / "export")
    edit(folder, without("head"))
    with pytest.raises(ModelError, match=r"missing lm_head\.weight"):
        from_export(folder)
