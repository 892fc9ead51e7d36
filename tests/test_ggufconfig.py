"""GGUF files of many architectures: the model that comes out is the one that went in, or the file is refused by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ggufmodels
import numpy as np
import pytest
import torch
from ggufmodels import make, sizes, write
from transformers import AutoModelForCausalLM

from fluxentropy import conversion
from fluxentropy.conversion import convert_gguf
from fluxentropy.errors import ModelError

RMS = {"attention.layer_norm_rms_epsilon": 0.001}
NORM = {"attention.layer_norm_epsilon": 0.001}
THETA = {"rope.freq_base": 500.0}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
SCALED = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
N_EXPERTS = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16}
IDS = torch.arange(2, 42)[None]


def rope(kind: str = "default", **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **more}}


@pytest.fixture(autouse=True)
def _without_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer is not what is tested here."""
    monkeypatch.setattr(conversion, "_tokenizer_in_gguf", lambda _: ggufmodels.make_tokenizer())


def error_of(tmp_path: Path, model: Any, file: Path) -> float:
    """The largest difference of logits in float64 between a model and what is made of its GGUF file."""
    convert_gguf(file, tmp_path / "folder")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float64)
    with torch.no_grad():
        difference = ours(IDS).logits - model.double()(IDS).logits
    return float(difference.abs().max())


# architecture, its configuration in transformers, its metadata: everything is unlike the defaults
MODELS: dict[str, tuple[str, dict[str, Any], Callable[[Any], dict[str, Any]]]] = {
    "llama": ("llama", {"rms_norm_eps": 0.001, **rope()}, lambda m: sizes(m, **RMS, **THETA)),
    "llama with long heads and biases": (
        "llama",
        {"rms_norm_eps": 0.001, "head_dim": 16, "attention_bias": True, "mlp_bias": True, **rope()},
        lambda m: sizes(m, **RMS, **THETA, **{"attention.key_length": 16, "attention.value_length": 16}),
    ),
    "llama, linear": (
        "llama",
        {"rms_norm_eps": 0.001, **rope("linear", factor=4.0)},
        lambda m: sizes(m, **RMS, **THETA, **{"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    ),
    "llama, linear as it was written in 2023": (
        "llama",
        {"rms_norm_eps": 0.001, **rope("linear", factor=4.0)},
        lambda m: sizes(m, **RMS, **THETA, **{"rope.scale_linear": 4.0}),
    ),
    "llama, yarn": ("llama", {"rms_norm_eps": 0.001, "rope_parameters": YARN}, lambda m: sizes(m, **RMS, **THETA, **SCALED)),
    "qwen2, yarn": (
        "qwen2",
        {"rms_norm_eps": 0.001, "rope_parameters": {**YARN, "beta_fast": 8.0, "attention_factor": 1.5}},
        lambda m: sizes(m, **RMS, **THETA, **SCALED)
        | {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_attn_factor": 1.5},
    ),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True, "rms_norm_eps": 0.001, **rope()}, lambda m: sizes(m, **RMS, **THETA)),
    "qwen3": (
        "qwen3",
        {"head_dim": 16, "rms_norm_eps": 0.001, **rope()},
        lambda m: sizes(m, **RMS, **THETA, **{"attention.key_length": 16, "attention.value_length": 16}),
    ),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 2.0,
            "tie_word_embeddings": True,
            "rms_norm_eps": 0.001,
            **rope(),
        },
        lambda m: sizes(m, **RMS, **THETA)
        | {"attention.key_length": 16, "attention.value_length": 16, "attention.sliding_window": 8}
        | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0},
    ),
    "gemma3, linear": (
        "gemma3",
        {
            "num_hidden_layers": 6,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "tie_word_embeddings": True,
            "rms_norm_eps": 0.001,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
        lambda m: sizes(m, **RMS)
        | {"rope.freq_base": 5000.0, "rope.freq_base_swa": 300.0, "attention.sliding_window": 8}
        | {"attention.key_length": 16, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "phi3": (
        "phi3",
        {"pad_token_id": 0, "sliding_window": 8, "rms_norm_eps": 0.001, **rope(partial_rotary_factor=0.5)},
        lambda m: sizes(m, **RMS, **THETA, **{"attention.sliding_window": 8, "rope.dimension_count": 4}),
    ),
    "gpt2": (
        "gpt2",
        {"vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 48, "n_inner": 40}
        | {"layer_norm_epsilon": 0.001, "bos_token_id": 0, "eos_token_id": 1},
        lambda _: {"context_length": 48, "embedding_length": 32, "block_count": 2, "feed_forward_length": 40}
        | {"attention.head_count": 2, **NORM},
    ),
    "starcoder2": ("starcoder2", {"norm_epsilon": 0.001, **rope()}, lambda m: sizes(m, **NORM, **THETA)),
    "stablelm": (
        "stablelm",
        {"layer_norm_eps": 0.001, "use_qkv_bias": True, **rope(partial_rotary_factor=0.5)},
        lambda m: sizes(m, **NORM, **THETA, **{"rope.dimension_count": 4, "use_parallel_residual": True}),
    ),
    "nemotron": (
        "nemotron",
        {"norm_eps": 0.001, **rope(partial_rotary_factor=0.5)},
        lambda m: sizes(m, **NORM, **THETA, **{"rope.dimension_count": 4}),
    ),
    "qwen2moe": (
        "qwen2moe",
        {"shared_expert_intermediate_size": 24, "rms_norm_eps": 0.001, **EXPERTS, **rope()},
        lambda m: sizes(m, **RMS, **THETA, **N_EXPERTS, **{"expert_shared_feed_forward_length": 24}),
    ),
    "qwen3moe": (
        "qwen3moe",
        {"head_dim": 16, "norm_topk_prob": True, "rms_norm_eps": 0.001, **EXPERTS, **rope()},
        lambda m: sizes(m, **RMS, **THETA, **N_EXPERTS, **{"attention.key_length": 16}),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_out_as_it_went_in(tmp_path: Path, name: str) -> None:
    arch, config, keys = MODELS[name]
    model = make(arch, **config)
    file = write(tmp_path / "tiny.gguf", model, arch, keys(model))
    assert error_of(tmp_path, model, file) < 1e-4
