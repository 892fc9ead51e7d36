"""Headers of GGUF files, against the reader of the package `gguf`."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from ggufmodels import make, sizes, write
from modelcopies import write_gguf
from transformers import AutoModelForCausalLM

from fluxentropy.errors import ModelError
from fluxentropy.models.gguf import convert_gguf
from fluxentropy.models.gguffile import join_gguf, read_gguf


def test_the_header_is_the_one_that_the_gguf_package_reads(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    reader, found = gguf.GGUFReader(file), read_gguf(file)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert found.metadata == fields
    assert found.tensors == {tensor.name for tensor in reader.tensors}
    vectors = {tensor.name: tensor.data.tolist() for tensor in reader.tensors if tensor.name in found.small}
    assert {name: list(values) for name, values in found.small.items()} == vectors
    assert "output_norm.weight" in vectors


@pytest.mark.parametrize("size", [0, 3, 10, 30, 500, 3000])
def test_a_file_that_is_cut_is_named(tmp_path: Path, size: int) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(write_gguf(tmp_path / "tiny.gguf").read_bytes()[:size])
    with pytest.raises(ModelError, match=r"GGUF file .*cut\.gguf cannot be read: "):
        read_gguf(file)


def test_what_is_no_gguf_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "page.gguf").write_text("<!doctype html>" * 10)
    with pytest.raises(ModelError, match=r"page\.gguf cannot be read: it is not a GGUF file"):
        read_gguf(tmp_path / "page.gguf")


def test_files_of_another_alignment_are_joined_with_it(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "part.gguf", "llama")
    writer.add_custom_alignment(256)
    writer.add_uint16("split.no", 0)
    writer.add_uint16("split.count", 1)
    right = {f"{n}.weight": np.arange(n, n + 5, dtype=np.float32) for n in range(3)}
    for name, values in right.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    join_gguf([tmp_path / "part.gguf"], tmp_path / "whole.gguf")
    found = {tensor.name: tensor.data.tolist() for tensor in gguf.GGUFReader(tmp_path / "whole.gguf").tensors}
    assert found == {name: values.tolist() for name, values in right.items()}


def test_a_file_without_alignment_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "none.gguf", "llama")
    writer.add_uint32("general.alignment", 0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ModelError, match=r"none\.gguf cannot be read"):
        read_gguf(tmp_path / "none.gguf")


# --- GGUF files of many architectures: what comes out is the model that went in, or the file is refused b ---


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


def error_of(tmp_path: Path, model: Any, file: Path) -> float:
    """The largest difference of logits in float64 between a model and what is made of its GGUF file."""
    convert_gguf(file, tmp_path / "folder")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float64)
    for each in (ours, model):
        each.set_experts_implementation("eager")  # the other ones have no float64
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
    "llama, yarn": (
        "llama",
        {"rms_norm_eps": 0.001, "rope_parameters": YARN},
        lambda m: sizes(m, **RMS, **THETA, **SCALED),
    ),
    "qwen2, yarn": (
        "qwen2",
        {"rms_norm_eps": 0.001, "rope_parameters": {**YARN, "beta_fast": 8.0, "attention_factor": 1.5}},
        lambda m: (
            sizes(m, **RMS, **THETA, **SCALED)
            | {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_attn_factor": 1.5}
        ),
    ),
    "qwen2, tied": (
        "qwen2",
        {"tie_word_embeddings": True, "rms_norm_eps": 0.001, **rope()},
        lambda m: sizes(m, **RMS, **THETA),
    ),
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
        lambda m: (
            sizes(m, **RMS, **THETA)
            | {"attention.key_length": 16, "attention.value_length": 16, "attention.sliding_window": 8}
            | {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 2.0}
        ),
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
        lambda m: (
            sizes(m, **RMS)
            | {"rope.freq_base": 5000.0, "rope.freq_base_swa": 300.0, "attention.sliding_window": 8}
            | {"attention.key_length": 16, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
        ),
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
        lambda _: (
            {"context_length": 48, "embedding_length": 32, "block_count": 2, "feed_forward_length": 40}
            | {"attention.head_count": 2, **NORM}
        ),
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


def llama3(factor: float, original: int, width: int) -> tuple[dict[str, Any], np.ndarray]:
    """The positions of Llama 3.1 as its configuration has them, and as the tensor of divisors of its frequencies."""
    config = {"factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    divisors = []
    for pair in range(width // 2):
        turns = original / (2 * math.pi * 500.0 ** (2 * pair / width))  # of this frequency in the original context
        share = min(max((turns - 1.0) / (4.0 - 1.0), 0.0), 1.0)
        divisors.append(1 / ((1 - share) / factor + share))
    return rope("llama3", original_max_position_embeddings=original, **config), np.array(divisors)


def test_the_divisors_of_llama_3_1_are_its_positions(tmp_path: Path) -> None:
    config, divisors = llama3(8.0, 32, 16)
    model = make("llama", head_dim=16, **config)
    keys = sizes(model, **THETA, **{"attention.key_length": 16, "attention.layer_norm_rms_epsilon": 1e-6})
    file = write(tmp_path / "tiny.gguf", model, "llama", keys, tensors={"rope_freqs.weight": divisors})
    assert 1.0 in divisors and 8.0 in divisors and len(set(divisors)) > 2
    assert error_of(tmp_path, model, file) < 1e-4


@pytest.mark.parametrize("original", [16, 48])
def test_longrope_of_phi3_is_honoured_for_short_and_for_long_texts(tmp_path: Path, original: int) -> None:
    short, long = [1.0, 1.5], [2.0, 9.0]
    factors = {"short_factor": short, "long_factor": long, "original_max_position_embeddings": original}
    more = {"original_max_position_embeddings": original, "pad_token_id": 0}
    model = make("phi3", **more, **rope("longrope", partial_rotary_factor=0.5, **factors))
    attention = math.sqrt(1 + math.log(64 / original) / math.log(original))
    keys = sizes(model, **THETA, **{"attention.layer_norm_rms_epsilon": 1e-5, "rope.dimension_count": 4})
    keys |= {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": attention}
    tensors = {"rope_factors_short.weight": np.array(short), "rope_factors_long.weight": np.array(long)}
    file = write(tmp_path / "tiny.gguf", model, "phi3", keys, tensors=tensors)
    assert error_of(tmp_path, model, file) < 1e-4  # of 40 tokens


def refused(tmp_path: Path, match: str, arch: str = "llama", **changes: Any) -> None:
    """A tiny file with other metadata (`key: None` leaves one out), or with tensors more or less, is refused."""
    model = make(arch, head_dim=8) if arch == "llama" else make(arch)
    keys = sizes(model, **RMS, **THETA) | changes.pop("keys", {})
    file = write(tmp_path / "tiny.gguf", model, arch, {k: v for k, v in keys.items() if v is not None}, **changes)
    with pytest.raises(ModelError, match=match):
        convert_gguf(file, tmp_path / "folder")
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"drop": ["blk.1.attn_q.weight"]}, r"tiny\.gguf: .* missing blk\.1\.attn_q\.weight: get the files"),
        ({"drop": ["token_embd.weight"]}, r"missing token_embd\.weight"),
        ({"keys": {"block_count": 1}}, r"unused blk\.1\.attn_k\.weight, .* and 3 more"),
        ({"keys": {"block_count": 3}}, r"missing blk\.2\.attn_k\.weight, .* and 3 more"),
        ({"tensors": {"blk.0.attn_q.bias": np.ones(32)}}, r"missing blk\.0\.attn_k\.bias, .*blk\.1\.attn_q\.bias"),
        ({"tensors": {"blk.1.attn_q.bias": np.ones(32)}}, r"unused blk\.1\.attn_q\.bias"),
        ({"tensors": {"blk.0.ffn_gate_inp.weight": np.ones((4, 32))}}, r"unused blk\.0\.ffn_gate_inp\.weight"),
        ({"tensors": {"blk.0.attn_q.scale": np.ones(1)}}, r"unused blk\.0\.attn_q\.scale"),
        ({"arch": "qwen2", "tensors": {"rope_freqs.weight": np.ones(4)}}, r"unused rope_freqs\.weight"),
        (
            {"keys": {"embedding_length": 64}},
            r"of another shape .*model\.embed_tokens\.weight \(400, 32\) for \(400, 64\)",
        ),
        ({"keys": {"expert_count": 8, "expert_used_count": 2}}, r"llama\.expert_count = 8: only 0 can be honoured"),
        ({"keys": {"attention.head_count_kv": None}}, r"llama\.attention\.head_count_kv: it is missing"),
        ({"keys": {"context_length": 0}}, r"llama\.context_length = 0: it must be more than 0"),
        ({"keys": {"attention.scale": 0.5}}, r"llama\.attention\.scale = 0\.5: it cannot be honoured"),
        ({"keys": {"attention.causal": False}}, r"llama\.attention\.causal = False: only True"),
        ({"keys": {"attention.value_length": 4}}, r"llama\.attention\.value_length = 4: only 8"),
        ({"keys": {"rope.dimension_count": 4}}, r"llama\.rope\.dimension_count = 4: only the whole head, 8"),
        ({"keys": {"rope.scaling.type": "dynamic"}}, r"llama\.rope\.scaling\.type = dynamic"),
        ({"keys": {"rope.scaling.type": "longrope"}}, r"llama\.rope\.scaling\.type = longrope"),
        ({"keys": {"rope.scaling.factor": 2.0}}, r"rope\.scaling\.factor = 2\.0: there is no rope\.scaling\.type"),
        (
            {
                "keys": {"rope.scaling.type": "longrope", "rope.scaling.factor": 2.0},
                "tensors": {f"rope_factors_{kind}.weight": np.ones(4) for kind in ("long", "short")},
            },
            r"rope\.scaling\.factor = 2\.0: rope\.scaling\.type is longrope",
        ),
        ({"keys": {"attention.head_count": 0}}, r"llama\.attention\.head_count = 0: it must be more than 0"),
        ({"keys": {**SCALED, "rope.scaling.yarn_ext_factor": 0.5}}, r"yarn_ext_factor = 0\.5: only 1\.0"),
        ({"keys": SCALED, "tensors": {"rope_freqs.weight": np.ones(4)}}, r"scales its positions with rope_freqs"),
        ({"arch": "qwen2", "keys": {"attention.sliding_window": 8}}, r"qwen2\.attention\.sliding_window = 8"),
    ],
)
def test_what_would_be_lost_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    refused(tmp_path, match, **changes)


def test_an_architecture_that_is_not_written_out_is_refused_with_those_that_are(tmp_path: Path) -> None:
    model = make("llama")
    file = write(tmp_path / "tiny.gguf", model, "llama", sizes(model, **RMS))
    file.write_bytes(file.read_bytes().replace(b"llama", b"deci2"))
    with pytest.raises(ModelError, match=r"architecture 'deci2' cannot be read exactly; those that can are gemma2, "):
        convert_gguf(file, tmp_path / "folder")


def test_a_head_is_the_embedding_only_where_llama_cpp_ties_it(tmp_path: Path) -> None:
    for arch, norm in (("nemotron", NORM), ("stablelm", NORM)):
        model = make(arch)
        file = write(tmp_path / f"{arch}.gguf", model, arch, sizes(model, **norm), drop=["output.weight"])
        with pytest.raises(ModelError, match=r"missing output\.weight"):
            convert_gguf(file, tmp_path / arch)


def test_experts_of_which_a_tensor_is_missing_are_refused(tmp_path: Path) -> None:
    arch, config, keys = MODELS["qwen3moe"]
    model = make(arch, **config)
    file = write(tmp_path / "tiny.gguf", model, arch, keys(model), drop=["blk.1.ffn_gate_exps.weight"])
    with pytest.raises(ModelError, match=r"missing blk\.1\.ffn_gate_exps\.weight"):
        convert_gguf(file, tmp_path / "folder")
