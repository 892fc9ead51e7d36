"""Loading decoders: what is used when everything is here, and what is said when a model cannot be had."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import make_tokenizer, save_model
from modelcopies import COMMIT, block_network, write_hub_cache

from fluxentropy.errors import ModelError, UsageError
from fluxentropy.models.loading import load_decoder
from fluxentropy.models.zoo import ZooEntry, find_model
from fluxentropy.scoring.scorer import open_scorer


@pytest.fixture(autouse=True)
def _private_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXENTROPY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def no_loading(monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
    """Let transformers load nothing: a test fails when it is asked, or it raises `error`."""

    def refuse(*_: Any, **__: Any) -> None:
        if error is None:
            pytest.fail("transformers was asked")
        raise error

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", refuse)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)


def test_a_folder_loads_and_its_fingerprint_follows_its_content(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    decoder = load_decoder(find_model(str(folder)))
    assert (decoder.device.type, decoder.dtype, decoder.window) == ("cpu", torch.float32, 256)
    copy = shutil.copytree(folder, tmp_path / "other")
    assert load_decoder(find_model(str(copy))).fingerprint == decoder.fingerprint
    save_model(copy, seed=1)
    assert load_decoder(find_model(str(copy))).fingerprint != decoder.fingerprint


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_model_in_the_cache_is_loaded_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    write_hub_cache(tmp_path / "hub", max_shard_size="20KB")
    asked = block_network(monkeypatch)
    decoder = load_decoder(find_model("someone/tiny"), offline=offline)
    assert decoder.fingerprint == f"someone/tiny@{COMMIT}"
    assert load_decoder(find_model("someone/tiny", revision=COMMIT), offline=offline).fingerprint == decoder.fingerprint
    assert asked == []


def test_offline_names_the_missing_files_and_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_hub_cache(tmp_path / "hub", max_shard_size="20KB")
    shard = min(folder.glob("*.safetensors"))
    shard.unlink()
    (folder / "tokenizer.json").unlink()
    asked = block_network(monkeypatch)
    no_loading(monkeypatch)
    with pytest.raises(ModelError) as caught:
        load_decoder(find_model("someone/tiny"), offline=True)
    assert str(caught.value) == (
        f"model 'someone--tiny': the Hub's cache {tmp_path / 'hub'} has no tokenizer.json, {shard.name} of "
        f"someone/tiny@main: run `hf download someone/tiny --revision main`, or allow downloads (no --offline, no "
        f"HF_HUB_OFFLINE)"
    )
    with pytest.raises(ModelError, match=r"no config\.json, tokenizer\.json, model\.safetensors of someone/tiny@v2"):
        load_decoder(find_model("someone/tiny", revision="v2"), offline=True)
    with pytest.raises(ModelError, match=r"\(did you mean gemma-3-270m\?\)$"):
        load_decoder(find_model("gemma-3-270"), offline=True)
    assert asked == []


def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty holds no model: it has no config\.json, tokenizer\.json, model\.safe"):
        load_decoder(find_model(str(tmp_path / "empty")))
    folder = save_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="model 'model' cannot be loaded"):
        load_decoder(find_model(str(folder)))
    (folder / "model.safetensors").unlink()
    torch.save({"trained_on": tmp_path}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"its \.bin file holds more than weights.*: convert it to safetensors"):
        load_decoder(find_model(str(folder)))


def test_a_gated_model_is_named_with_its_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("fluxentropy.models.loading.download_adapter", lambda *_, **__: None)
    no_loading(monkeypatch, OSError("You are trying to access a gated repo.\nMake sure to have access to it"))
    entry = dataclasses.replace(find_model("meta-llama_Llama-3.2-1B-Instruct"), parameters=None)
    with pytest.raises(ModelError, match=r"gated repo\.: accept its licence .*LICENSE\.txt\) and run `hf auth login`$"):
        load_decoder(entry)


def test_a_model_that_does_not_fit_is_refused_before_it_is_downloaded_or_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path / "model")  # 35,000 weights
    asked = block_network(monkeypatch)
    no_loading(monkeypatch)
    monkeypatch.setattr("fluxentropy.models.weights.available_memory", lambda _: 100_000)
    with pytest.raises(
        ModelError, match=r"'model' needs about 1\d\d kB for its weights in fp32, and 100 kB are free on cpu"
    ):
        load_decoder(find_model(str(folder)))
    with pytest.raises(ModelError, match=r"'big' needs about 4\.4 GB for its weights in fp32"):
        load_decoder(ZooEntry(name="big", hub="someone/big", parameters=10**9))
    with pytest.raises(ModelError, match=r"'big' needs about 2\.2 GB for its weights in bf16"):
        load_decoder(ZooEntry(name="big", hub="someone/big", parameters=10**9), dtype="bf16")
    assert asked == []


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_running_out_of_memory_while_loading_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    folder = save_model(tmp_path / "model")
    no_loading(monkeypatch, error)
    with pytest.raises(ModelError, match="^model 'model' does not fit in memory: "):
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
    assert scorer.path.name == "fused"
    monkeypatch.setenv("FLUXENTROPY_CACHE", str(tmp_path / "empty"))  # where nothing is known about the model yet
    monkeypatch.setattr("fluxentropy.models.linear.PackedLinear.forward", lambda self, x, activation="none": x)
    fallback, _ = open_scorer(find_model(str(folder)), max_tokens=64)
    assert fallback.path.name == "fast"
    assert fallback.score(["the lazy dog"])[0].entropy_mean == pytest.approx(expected.entropy_mean, rel=1e-4)
