"""Wrappers around decoders are loaded whole, and what is no decoder gets a sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fakes import SENTENCES, make_tokenizer, save_model
from safetensors.torch import load_file

from fluxentropy.errors import ModelError
from fluxentropy.estimators import token_stats
from fluxentropy.models import load_decoder
from fluxentropy.scorer import open_scorer
from fluxentropy.zoo_entries import find_model

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 400,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
EYES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
MLLAMA_EYES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_global_layers": 1,
    "attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "vision_output_dim": 64,
    "supported_aspect_ratios": [[1, 1]],
    "intermediate_layers_indices": [0],
}
WRAPPERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        "Gemma3Config",
        {"text_config": {**TEXT, "head_dim": 8, "sliding_window": 16}, "vision_config": EYES, "mm_tokens_per_image": 4},
    ),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        "Qwen2VLConfig",
        {
            "text_config": {**TEXT, "rope_parameters": ROPE},
            "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2},
        },
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {"model_type": "llama", **TEXT},
            "vision_config": {"model_type": "clip_vision_model", **EYES},
        },
    ),
    "mllama": (
        "MllamaForConditionalGeneration",
        "MllamaConfig",
        {"text_config": {**TEXT, "cross_attention_layers": [1]}, "vision_config": MLLAMA_EYES},
    ),
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_wrapper_is_loaded_whole_and_scored_as_its_decoder(tmp_path: Path, kind: str) -> None:
    cls, config, values = WRAPPERS[kind]
    torch.manual_seed(0)
    model = getattr(transformers, cls)(getattr(transformers, config)(**values)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(5)
    model.save_pretrained(tmp_path / kind)
    make_tokenizer().save_pretrained(tmp_path / kind)
    scorer, _ = open_scorer(find_model(str(tmp_path / kind)), max_tokens=100)
    held = load_file(tmp_path / kind / "model.safetensors")
    assert type(scorer.decoder.model) is type(model)
    assert sum(weight.numel() for weight in held.values()) == sum(weight.numel() for weight in model.parameters())
    for text, scores in zip(SENTENCES, scorer.score(SENTENCES), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([make_tokenizer()(text).input_ids])).logits[0].double()
        assert scores.entropy_mean == pytest.approx(token_stats(logits).entropy.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("cls", "config", "values", "match"),
    [
        ("T5ForConditionalGeneration", "T5Config", {"d_model": 32, "num_layers": 1}, "t5 is an encoder-decoder"),
        ("BartForConditionalGeneration", "BartConfig", {"d_model": 32, "encoder_layers": 1}, "bart is an encoder-deco"),
        ("DistilBertForMaskedLM", "DistilBertConfig", {"dim": 32, "n_layers": 1}, "distilbert is an encoder, which"),
        (
            "CLIPModel",
            "CLIPConfig",
            {"text_config": {"vocab_size": 400, **EYES}, "vision_config": EYES},
            r"no language model of the type clip \(CLIPModel\): scoring needs a decoder",
        ),
        ("BlipForConditionalGeneration", "BlipConfig", {"vision_config": EYES}, r"\(blip\) has no output projection"),
    ],
)
def test_what_is_no_decoder_gets_a_sentence(
    tmp_path: Path, cls: str, config: str, values: dict[str, Any], match: str
) -> None:
    small = {"vocab_size": 400, "num_heads": 2, "n_heads": 2, "decoder_layers": 1, "hidden_dim": 64}
    if cls.startswith("Blip"):
        small = {"text_config": {**TEXT, "encoder_hidden_size": 32}}
    torch.manual_seed(0)
    getattr(transformers, cls)(getattr(transformers, config)(**{**small, **values})).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    with pytest.raises(ModelError, match=rf"model 'model'.*{match}"):
        open_scorer(find_model(str(tmp_path / "model")))


def test_an_unknown_type_and_an_embedding_model_are_said(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    config = folder / "config.json"
    known = config.read_text()
    config.write_text(json.dumps(json.loads(known) | {"model_type": "llamas"}))
    with pytest.raises(ModelError, match="'model' cannot be loaded: .*model type `llamas`"):
        load_decoder(find_model(str(folder)))
    config.write_text(known)
    modules = [{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(modules[:1]))
    load_decoder(find_model(str(folder)))
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="it is an embedding model"):
        load_decoder(find_model(str(folder)))
