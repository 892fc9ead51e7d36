"""Tiny models of many architectures as GGUF files, the way llama.cpp's converter writes them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from fakes import VOCABULARY, make_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

PAIRED = ("llama",)  # GGUF interleaves the halves of a head that rotary embedding pairs
OFFSET = ("gemma2", "gemma3", "nemotron")  # norms are stored plus one
KINDS = {"gemma3": "gemma3_text", "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe"}
SHAPE = {
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def make(arch: str, **config: Any) -> Any:
    """A tiny model with random weights, also in its norms and biases, in float32."""
    torch.manual_seed(0)
    shape = {} if arch == "gpt2" else {**SHAPE, "tie_word_embeddings": False}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[KINDS.get(arch, arch)](**(shape | config))).eval()
    for weights in model.parameters():
        weights.data.normal_(0, 0.4 if weights.dim() > 1 else 0.2)
    return model


def write(
    path: Path,
    model: Any,
    arch: str,
    keys: Mapping[str, Any],
    *,
    drop: Collection[str] = (),
    tensors: Mapping[str, np.ndarray] | None = None,
    kind: str = "F32",
    **options: Any,
) -> Path:
    """The model as a GGUF file with the metadata `ARCH.key` and more `tensors`, without those in `drop`.

    Matrices are of `kind`.
    """
    writer = gguf.GGUFWriter(path, arch, **options)
    for key, value in keys.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add[type(value)](f"{arch}.{key}", value)
    _write_tokenizer(writer)
    for name, data in {**_tensors(model, arch), **(tensors or {})}.items():
        if name not in drop:
            values = np.ascontiguousarray(data, np.float32)
            form = gguf.GGMLQuantizationType[kind if values.ndim > 1 else "F32"]
            writer.add_tensor(name, gguf.quants.quantize(values, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sizes(model: Any, **more: Any) -> dict[str, Any]:
    """The metadata that all but GPT-2 have."""
    config = model.config
    return {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        **more,
    }


def _tensors(model: Any, arch: str) -> dict[str, np.ndarray]:
    config = model.config
    number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == arch)
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    found = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = tensor.float().numpy()
        if "experts." in name:
            found |= _experts(name, data)
            continue
        if arch in PAIRED and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            data = data.reshape(heads, 2, -1, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)
        if arch in OFFSET and name.endswith("norm.weight"):
            data = data + 1
        if arch == "gpt2" and ".c_" in name and data.ndim == 2:
            data = data.T
        if name.endswith("shared_expert_gate.weight"):
            data = data[0]
        found[names.get_name(name, (".weight", ".bias"))] = data
    return found


def _experts(name: str, data: np.ndarray) -> dict[str, np.ndarray]:
    block = f"blk.{name.split('.')[2]}"
    if name.endswith("down_proj"):
        return {f"{block}.ffn_down_exps.weight": data}
    gate, up = np.split(data, 2, axis=1)
    return {f"{block}.ffn_gate_exps.weight": gate, f"{block}.ffn_up_exps.weight": up}


def _write_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokenizer = make_tokenizer()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in ("<s>", "</s>") else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
