"""Weights on disk against the model that is scored: what is missing, unused or of another shape refuses it by name."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fakes import SENTENCES, make_config, make_model, make_tokenizer, save_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, GPTNeoConfig, GPTNeoForCausalLM, LlamaModel

from fluxentropy.entropy import token_stats
from fluxentropy.errors import ModelError
from fluxentropy.models import weights as memory
from fluxentropy.models.loading import load_decoder
from fluxentropy.models.weights import available_memory, check_memory, format_bytes, host_memory, is_out_of_memory
from fluxentropy.models.zoo import find_model
from fluxentropy.pretraining.export import export, from_export
from fluxentropy.pretraining.gpt import GPT, GPTConfig
from fluxentropy.scoring.scorer import open_scorer

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


# --- Wrappers around decoders are loaded whole, and what is no decoder gets a sentence ---


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


# --- Free memory, read from a made-up /proc and /sys, and what is said when a model does not fit ---


CPU = torch.device("cpu")
GB = 10**9


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


MEMINFO = {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    5000 kB\n"}

GROUP = {
    "memory.max": "900000\n",
    "memory.current": "500000\n",
    "memory.stat": "active_file 7\ninactive_file 40\nx 1\n",
}

OLD = {"memory.limit_in_bytes": "800000", "memory.usage_in_bytes": "500000", "memory.stat": "total_active_file 9\n"}


def under_memory(folder: str, files: dict[str, str], **changes: str) -> dict[str, str]:
    return {
        f"{folder}/{name}": text
        for name, text in {**files, **{k.replace("_", "."): v for k, v in changes.items()}}.items()
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MEMINFO, None),  # without /proc/self/cgroup this is no Linux
        (MEMINFO | {"proc/self/cgroup": "0::/\n"}, 5000 * 1024),
        (MEMINFO | {"proc/self/cgroup": "0::/a/b\n"} | under_memory("sys/fs/cgroup/a/b", GROUP), 400047),
        (
            MEMINFO | {"proc/self/cgroup": "0::/a/b\n"} | under_memory("sys/fs/cgroup/a", GROUP),
            400047,
        ),  # the group around it
        (
            MEMINFO | {"proc/self/cgroup": "0::/host/path\n"} | under_memory("sys/fs/cgroup", GROUP),
            400047,
        ),  # a container
        (
            MEMINFO | {"proc/self/cgroup": "0::/a\n"} | under_memory("sys/fs/cgroup/a", GROUP, memory_max="max\n"),
            5000 * 1024,
        ),
        (
            MEMINFO | {"proc/self/cgroup": "3:cpu:/a\n4:memory:/a\n"} | under_memory("sys/fs/cgroup/memory/a", OLD),
            300009,
        ),
        (
            MEMINFO | {"proc/self/cgroup": "9:name=memory:/a\n"} | under_memory("sys/fs/cgroup/memory/a", OLD),
            5000 * 1024,
        ),
    ],
)
def test_the_memory_that_the_system_and_its_control_groups_leave(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    assert host_memory(write(tmp_path, files)) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="MemAvailable is Linux's")
def test_the_memory_of_this_machine() -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    free = available_memory(CPU)
    assert free is not None
    assert 0 < free <= total


def test_a_model_that_does_not_fit_is_refused_with_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    free: list[int | None] = [8_100_000_000]
    monkeypatch.setattr(memory, "available_memory", lambda _: free[0])
    check_memory("small", 1_500_000_000, torch.float32, CPU)
    check_memory("unknown", None, torch.float32, CPU)
    with pytest.raises(ModelError) as caught:
        check_memory("large", 2_800_000_000, torch.float32, CPU)
    assert str(caught.value) == (
        "model 'large' needs about 12.3 GB for its weights in fp32, and 8.1 GB are free on cpu: "
        "use --dtype bf16, a smaller model or a larger machine"
    )
    check_memory("large", 2_800_000_000, torch.bfloat16, CPU)
    with pytest.raises(ModelError, match="are free on cpu: use a smaller model"):  # bf16 would not do
        check_memory("huge", 7 * GB, torch.float32, CPU)
    with pytest.raises(ModelError, match=r"15\.4 GB for its weights in bf16, .*: use a smaller model"):
        check_memory("huge", 7 * GB, torch.bfloat16, CPU)
    free[0] = None
    check_memory("huge", 7 * GB, torch.float32, CPU)


def test_unused_memory_is_given_back_only_before_a_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    free, given = [1 * GB], []
    monkeypatch.setattr(memory, "available_memory", lambda _: free[0])

    def collect() -> None:
        given.append(free[0])
        free[0] = 6 * GB

    monkeypatch.setattr("gc.collect", collect)
    check_memory("small", 200_000_000, torch.float32, CPU)
    assert given == []
    check_memory("large", GB, torch.float32, CPU)
    assert given == [GB]
    with pytest.raises(ModelError, match=r"6 GB are free"):
        check_memory("huge", 7 * GB, torch.float32, CPU)


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    assert not is_out_of_memory(OSError("out of memory"))


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (1.5e9, "1.5 GB"), (2.5e12, "2,500 GB")],
)
def test_sizes_have_three_digits_and_a_unit(size: float, text: str) -> None:
    assert format_bytes(size) == text
