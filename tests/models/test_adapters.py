"""Adapter folders against peft's own forward of the adapter on its base."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from fakes import SENTENCES, save_model
from modelcopies import COMMIT, block_network, write_hub_cache
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from fluxentropy.entropy import token_stats
from fluxentropy.errors import ModelError
from fluxentropy.models.adapters import download_adapter
from fluxentropy.models.forward import FastPath
from fluxentropy.models.loading import load_decoder
from fluxentropy.models.zoo import find_model
from fluxentropy.scoring.scorer import Scorer, open_scorer

TEXTS = [*SENTENCES, " ".join(SENTENCES)]
WEIGHTS = "adapter_model.safetensors"

KINDS = {
    "lora": peft.LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", init_lora_weights=False),
    "rslora, some layers": peft.LoraConfig(
        r=4, use_rslora=True, layers_to_transform=[1], rank_pattern={"v_proj": 2}, init_lora_weights=False
    ),
    "dora": peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    "modules to save": peft.LoraConfig(r=4, modules_to_save=["lm_head", "embed_tokens"], init_lora_weights=False),
    "embeddings": peft.LoraConfig(r=4, target_modules=["embed_tokens", "lm_head"], init_lora_weights=False),
    "new tokens": peft.LoraConfig(r=4, trainable_token_indices=[5, 77], init_lora_weights=False),
    "ia3": peft.IA3Config(
        target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
    ),
    "loha": peft.LoHaConfig(r=4, target_modules=["q_proj", "v_proj"], init_weights=False),
}


@pytest.fixture(autouse=True)
def _private_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXENTROPY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def save_adapter(folder: Path, base: Path | str, config: Any, *, source: Path | None = None, rows: int = 400) -> Path:
    """An adapter with random weights on `base` (its files at `source`), as training with peft leaves it."""
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(source or base)
    if rows != 400:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config.base_model_name_or_path = str(base)
        adapted = peft.get_peft_model(model, config)
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad or (rows != 400 and ("embed" in name or "lm_head" in name)):
                parameter.data += torch.randn_like(parameter) * 0.3
        adapted.save_pretrained(folder, save_embedding_layers=rows != 400)
    return folder


def expected(adapter: Path, base: Path, rows: int = 400) -> list[tuple[float, float]]:
    """Mean entropy and surprisal of each text by peft's forward, not merged."""
    found, tokenizer = [], AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows != 400:
        model.resize_token_embeddings(rows, mean_resizing=False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        adapted = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
        for text in TEXTS:
            ids = tokenizer(text).input_ids
            logits = adapted(input_ids=torch.tensor([ids])).logits[0].double()
            surprisal = token_stats(logits[:-1], torch.tensor(ids[1:])).surprisal
            assert surprisal is not None
            found.append((token_stats(logits).entropy.mean().item(), surprisal.mean().item()))
    return found


def assert_scores(adapter: Path, base: Path, model: str, *, rows: int = 400, offline: bool = False) -> Scorer:
    scorer, notes = open_scorer(find_model(model), max_tokens=200, offline=offline)
    assert any(f"adapter {adapter} merged" in note for note in notes)
    for scores, right in zip(scorer.score(TEXTS), expected(adapter, base, rows), strict=True):
        assert (scores.entropy_mean, scores.surprisal_mean) == pytest.approx(right, rel=1e-5)
    return scorer


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_is_scored_with_its_base(tmp_path: Path, kind: str, tied: bool) -> None:
    base = save_model(tmp_path / "base", tie_word_embeddings=tied)
    adapter = save_adapter(tmp_path / "adapter", base, KINDS[kind])
    if tied and kind == "embeddings":  # two changes of one weight
        with pytest.raises(ModelError, match=r"cannot be merged: the merged model's logits differ from peft's by"):
            load_decoder(find_model(str(adapter)))
        return
    scorer = assert_scores(adapter, base, str(adapter))
    assert isinstance(scorer.path, FastPath)
    plain, _ = open_scorer(find_model(str(base)), max_tokens=200)
    pairs = zip(scorer.score(TEXTS), plain.score(TEXTS), strict=True)
    assert max(abs(a.surprisal_mean - b.surprisal_mean) for a, b in pairs) > 0.01


def test_the_fingerprint_follows_the_adapter_and_its_base(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, KINDS["lora"])
    first = load_decoder(find_model(str(adapter))).fingerprint
    assert first != load_decoder(find_model(str(base))).fingerprint
    assert load_decoder(find_model(str(adapter))).fingerprint == first
    save_model(base, seed=1)
    second = load_decoder(find_model(str(adapter))).fingerprint
    change_weights(adapter, lambda weights: {key: value * 2 for key, value in weights.items()})
    third = load_decoder(find_model(str(adapter))).fingerprint
    assert len({first, second, third}) == 3


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_with_more_tokens_than_its_base_brings_them(tmp_path: Path, tied: bool) -> None:
    base = save_model(tmp_path / "base", tie_word_embeddings=tied)
    adapter = save_adapter(tmp_path / "adapter", base, KINDS["lora"], rows=410)
    assert assert_scores(adapter, base, str(adapter), rows=410).vocabulary == 410
    if not tied:
        change_weights(adapter, lambda weights: {k: v for k, v in weights.items() if "lm_head" not in k or "lora" in k})
        with pytest.raises(ModelError, match=r"trained with 410 tokens, its base has 400, and adapter_model\.safetens"):
            load_decoder(find_model(str(adapter)))


def test_half_precision_rounds_the_merged_weights_once(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, KINDS["lora"])
    exact, half = (load_decoder(find_model(str(adapter)), dtype=dtype).model for dtype in ("fp32", "bf16"))
    for (name, a), b in zip(exact.named_parameters(), half.parameters(), strict=True):
        assert b.dtype == torch.bfloat16, name
        assert torch.equal(a.to(torch.bfloat16), b), name
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    for (name, a), b in zip(loaded.named_buffers(), half.buffers(), strict=True):
        assert a.dtype == b.dtype, name
    assert (half.dtype, half.config.dtype) == (torch.bfloat16, torch.bfloat16)


def test_the_base_is_found_by_hub_id_and_by_a_path_beside_the_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = write_hub_cache(tmp_path / "hub")
    asked = block_network(monkeypatch)
    adapter = save_adapter(tmp_path / "adapter", "someone/tiny", KINDS["lora"], source=snapshot)
    decoder = load_decoder(find_model(str(adapter)), offline=True)
    assert_scores(adapter, snapshot, str(adapter), offline=True)
    shutil.copytree(snapshot, adapter / "base")
    set_config(adapter, base_model_name_or_path="base")
    assert_scores(adapter, snapshot, str(adapter))
    set_config(adapter, base_model_name_or_path="someone/tiny", revision=COMMIT)
    assert load_decoder(find_model(str(adapter)), offline=True).fingerprint != decoder.fingerprint
    set_config(adapter, base_model_name_or_path="someone/other", revision=None)
    with pytest.raises(ModelError, match=r"cache .* has no config\.json, .* of someone/other@main: run `hf download"):
        load_decoder(find_model(str(adapter)), offline=True)
    assert asked == []


def test_an_adapter_in_the_hubs_cache_is_loaded_without_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_model(tmp_path / "base")
    repository = tmp_path / "hub" / "models--someone--adapter"
    adapter = save_adapter(repository / "snapshots" / COMMIT, base, KINDS["lora"])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    asked = block_network(monkeypatch)
    assert_scores(adapter, base, "someone/adapter", offline=True)
    assert_scores(adapter, base, "someone/adapter")
    assert asked == []


def change_weights(adapter: Path, change: Any) -> None:
    weights = {key: value.clone() for key, value in load_file(adapter / WEIGHTS).items()}
    save_file(change(weights), adapter / WEIGHTS)


def set_config(adapter: Path, **values: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_what_would_give_other_numbers_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_model(tmp_path / "base")
    whole = save_adapter(tmp_path / "adapter", base, KINDS["modules to save"])

    def refused(words: str, change: Any = None, **values: Any) -> None:
        adapter = tmp_path / "broken"
        shutil.rmtree(adapter, ignore_errors=True)
        shutil.copytree(whole, adapter)
        if change:
            change_weights(adapter, change)
        set_config(adapter, **values)
        with pytest.raises(ModelError, match=words):
            load_decoder(find_model(str(adapter)))

    def without(part: str) -> Any:
        return lambda weights: {key: value for key, value in weights.items() if part not in key}

    refused(r"adapter_model\.safetensors lacks .*layers\.1\.self_attn\.q_proj\.lora_A", without("1.self_attn.q_proj"))
    refused(r"does not fit its base.*lm_head", without("lm_head"))

    def renamed(weights: Any) -> Any:
        return {key.replace("base_model.model", "base_model.model._orig_mod"): value for key, value in weights.items()}

    refused("lacks|does not fit", renamed)
    more = {"base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)}
    refused(r"holds weights that nothing in its base uses: .*layers\.7", lambda weights: weights | more)

    def wide(weights: Any) -> Any:
        return {key: value.repeat(1, 2) if "lora_A" in key else value for key, value in weights.items()}

    refused("does not fit its base", wide)
    refused("is for the task SEQ_CLS", task_type="SEQ_CLS")
    refused("peft .* does not know: use_magic: upgrade peft", use_magic=True)
    refused("knows no peft_type 'MAGIC'", peft_type="MAGIC")
    refused("aLoRA, which depends on the input", alora_invocation_tokens=[1, 2])
    refused("names no base model: write its name or folder", base_model_name_or_path=None)
    refused(
        r"its base: model '/home/someone/llama': no such file or folder: correct base_model_name_or_path in .*config",
        base_model_name_or_path="/home/someone/llama",
    )
    refused("is an adapter too", base_model_name_or_path=str(whole))
    (whole / "adapter_config.json").rename(tmp_path / "kept.json")
    (whole / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"adapter_config\.json is damaged"):
        load_decoder(find_model(str(whole)))
    (tmp_path / "kept.json").rename(whole / "adapter_config.json")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ModelError, match=r"is an adapter .*needs peft: pip install 'fluxentropy\[peft\]'"):
        load_decoder(find_model(str(whole)))
    (whole / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"holds no adapter: it has no adapter_model\.safetensors"):
        load_decoder(find_model(str(whole)))


def test_prompts_are_no_weights(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    adapter = save_adapter(tmp_path / "adapter", base, config)
    with pytest.raises(ModelError, match="is PROMPT_TUNING, which depends on the input"):
        load_decoder(find_model(str(adapter)))


def test_a_folder_with_a_whole_model_and_an_adapter_is_refused(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base")
    save_adapter(base, base, KINDS["lora"])
    with pytest.raises(ModelError, match=r"holds a whole model and adapter_config\.json"):
        load_decoder(find_model(str(base)))


def test_a_repository_that_is_not_there_is_no_adapter_and_one_that_cannot_be_had_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What transformers and huggingface_hub raise where the Hub answers."""
    entry = find_model("someone/model")

    def missing(*_: Any, **__: Any) -> str:
        raise OSError("someone/model is not a local folder and is not a valid model identifier")

    monkeypatch.setattr("transformers.utils.peft_utils.find_adapter_config_file", missing)
    assert download_adapter(entry) is None
    monkeypatch.setattr(
        "transformers.utils.peft_utils.find_adapter_config_file", lambda *_, **__: "adapter_config.json"
    )
    monkeypatch.setattr("huggingface_hub.snapshot_download", missing)
    with pytest.raises(
        ModelError, match=r"adapter 'someone--model' cannot be downloaded: OSError: someone/model is not"
    ):
        download_adapter(entry)
