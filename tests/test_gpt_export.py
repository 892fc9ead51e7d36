"""Exported models: the same logits everywhere, generation with a cache, and the way back into the scorer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from fakes import SENTENCES, VOCABULARY, make_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from fluxentropy import cli
from fluxentropy.errors import ModelError
from fluxentropy.forward import FastPath, PlainPath, entropies, is_causal, path_error, probe_logits, probe_rows
from fluxentropy.gpt import GPT
from fluxentropy.gpt_export import export, from_export, to_transformers
from fluxentropy.gptconfig import GPTConfig
from fluxentropy.hf_gpt import FluxGPTConfig, FluxGPTForCausalLM, causal_mask, register
from fluxentropy.models import load_decoder
from fluxentropy.zoo_entries import find_model

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "modern": ("modern", {"soft_cap": 2.0, "vocab_multiple": 64}),
    "grouped": ("modern", {"n_kv_head": 2, "value_embeddings": True, "tied": True}),
    "learned": ("modern", {"positions": "learned", "norm": "layer"}),  # rotary positions would not show a shift
    "gpt2": ("gpt2", {"vocab_multiple": 64}),
}


def make_gpt(variant: str) -> GPT:
    preset, options = VARIANTS[variant]
    shape = {"vocab_size": VOCABULARY, "block_size": 64, "n_layer": 2, "n_head": 4, "n_embd": 32}
    torch.manual_seed(0)
    gpt = GPT(GPTConfig.preset(preset, **shape, **options))  # type: ignore[arg-type]
    for parameter in gpt.parameters():
        nn.init.normal_(parameter, std=0.25)
    return gpt.eval().requires_grad_(False)


def some_ids(rows: int = 2, length: int = 30) -> Tensor:
    return torch.randint(2, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer(bos=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    return {variant: export(make_gpt(variant), home / variant, tokenizer=tokenizer) for variant in VARIANTS}


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_exported_model_has_our_logits_and_its_tokenizer(
    folders: dict[str, Path], tokenizer: Path, variant: str
) -> None:
    register()
    gpt, model, ids = make_gpt(variant), AutoModelForCausalLM.from_pretrained(folders[variant]), some_ids()
    assert isinstance(model, GPT2LMHeadModel if variant == "gpt2" else FluxGPTForCausalLM)
    output = model(input_ids=ids, labels=ids)
    torch.testing.assert_close(output.logits, gpt(ids), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.loss, gpt(ids[:, :-1], ids[:, 1:]))
    assert model.num_parameters() == gpt.num_parameters() - (gpt.config.padded_vocab_size - VOCABULARY) * 32 * (
        1 if gpt.config.tied else 2
    )
    assert (model.config.max_position_embeddings, model.config.bos_token_id, model.config.eos_token_id) == (64, 0, None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folders[variant] / name).read_bytes() == (tokenizer / name).read_bytes()


def test_a_loaded_model_can_be_saved_and_loaded_again(folders: dict[str, Path], tmp_path: Path) -> None:
    register()
    model = AutoModelForCausalLM.from_pretrained(folders["grouped"])
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)


def test_a_new_model_of_a_configuration_starts_like_ours() -> None:
    torch.manual_seed(0)
    model = FluxGPTForCausalLM(FluxGPTConfig(vocab_size=50, n_embd=16, n_head=2, n_layer=2))
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=50, n_embd=16, n_head=2, n_layer=2))
    ours = gpt.body.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in model.model.body.state_dict().items())


@pytest.mark.parametrize("variant", ["modern", "grouped", "learned"])
def test_greedy_text_is_the_same_with_and_without_cache_and_padding(variant: str) -> None:
    model: Any = to_transformers(make_gpt(variant))
    rows = [some_ids(1, 12)[0], some_ids(1, 5)[0]]
    options = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    alone = [model.generate(row[None], use_cache=True, **options)[0, len(row) :] for row in rows]
    assert len({tuple(text.tolist()) for text in alone}) == 2
    for row, text in zip(rows, alone, strict=True):
        naive = row
        for _ in range(10):  # the definition: the likeliest token, again and again
            naive = torch.cat([naive, model(naive[None]).logits[0, -1].argmax()[None]])
        assert text.tolist() == naive[len(row) :].tolist()
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_side="left")
    padding = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")
    for use_cache in (True, False):
        texts = model.generate(ids, attention_mask=padding, use_cache=use_cache, **options)[:, ids.shape[1] :]
        assert texts.tolist() == [text.tolist() for text in alone]


@pytest.mark.parametrize("variant", ["modern", "grouped", "learned"])
def test_padding_on_the_left_and_pieces_through_a_cache_change_no_logit(variant: str) -> None:
    model: Any = to_transformers(make_gpt(variant))
    ids = some_ids(2, 20)
    want = model(ids).logits
    cut = model(ids[:, :7], use_cache=True)
    rest = model(ids[:, 7:], past_key_values=cut.past_key_values, use_cache=True)
    torch.testing.assert_close(torch.cat([cut.logits, rest.logits], 1), want, rtol=1e-4, atol=1e-4)
    padding = torch.ones(2, 26, dtype=torch.long)
    padding[:, :6] = 0
    padded = model(nn.functional.pad(ids, (6, 0)), attention_mask=padding, logits_to_keep=20).logits
    assert padded.isfinite().all()
    torch.testing.assert_close(padded, want, rtol=1e-4, atol=1e-4)


def test_masks_of_padding_and_cache() -> None:
    assert causal_mask(None, 0, 5, torch.device("cpu")) is None
    mask = causal_mask(torch.tensor([[0, 0, 1, 1, 1]]), 2, 3, torch.device("cpu"))
    assert mask is not None
    assert mask.int().tolist() == [[[[0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]]]
    mask = causal_mask(torch.tensor([[0, 0, 1]]), 0, 3, torch.device("cpu"))
    assert mask is not None
    assert mask.int().tolist() == [[[[1, 0, 0], [0, 1, 0], [0, 0, 1]]]]  # no row without any key


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_scorers_fast_paths_agree_with_the_model(variant: str, packed: bool) -> None:
    model = to_transformers(make_gpt(variant))
    logits = probe_logits(model, probe_rows(model))
    reference = entropies(logits)
    assert is_causal(logits)
    assert reference.std() > 0.005
    assert path_error(PlainPath(model), model, reference) < 1e-6
    assert path_error(FastPath(model, packed=packed), model, reference) < 1e-4


@pytest.mark.parametrize("variant", ["modern", "gpt2"])
def test_an_exported_model_scores_text(folders: dict[str, Path], tmp_path: Path, variant: str) -> None:
    corpus, run = tmp_path / "texts.jsonl", tmp_path / "run"
    corpus.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(SENTENCES)))
    argv = ["score", str(corpus), "--model", str(folders[variant]), "--max-tokens", "48", "--out", str(run)]
    assert cli.main([*argv, "--device", "cpu"]) == 0
    (part,) = run.rglob("part-*.parquet")
    scores = pq.read_table(part)["surprisal_mean"].to_pylist()
    gpt, tokenizer = make_gpt(variant), make_tokenizer(bos=True)
    for text, score in zip(SENTENCES, scores, strict=True):
        ids = torch.tensor([tokenizer(text).input_ids[:48]])
        assert score == pytest.approx(float(gpt(ids[:, :-1], ids[:, 1:])), rel=1e-4)
    decoder = load_decoder(find_model(str(folders[variant])), device="cpu")
    assert decoder.window == 64


def test_an_exported_folder_runs_without_this_package(folders: dict[str, Path], tmp_path: Path) -> None:
    code = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "assert 'fluxentropy' not in sys.modules\n"
        "ids = torch.tensor([[5, 6, 7, 8]])\n"
        "print(model(ids).logits.double().sum().item())\n"
        "print(model.generate(ids, max_new_tokens=4, do_sample=False).tolist())"
    )
    (tmp_path / "fluxentropy.py").write_text("raise ImportError('not installed')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", code, folders["grouped"]],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    gpt = make_gpt("grouped")
    total, text = done.stdout.splitlines()
    ids = torch.tensor([[5, 6, 7, 8]])
    assert float(total) == pytest.approx(float(gpt(ids).double().sum()), abs=0.01)
    assert json.loads(text)[0][4] == int(gpt(ids)[0, -1].argmax())


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_exported_model_comes_back_as_it_was(variant: str, folders: dict[str, Path]) -> None:
    gpt, found, ids = make_gpt(variant), from_export(folders[variant]), some_ids()
    starts = torch.tensor([[0] * 12 + [12] * 18] * 2)
    with torch.no_grad():
        torch.testing.assert_close(found(ids, starts=starts), gpt(ids, starts=starts), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_exported_is_said(tokenizer: Path, tmp_path: Path) -> None:
    gpt = make_gpt("modern")
    with pytest.raises(ModelError, match="exists: export a model to a new folder"):
        export(gpt, tmp_path)
    with pytest.raises(ModelError, match="holds no tokenizer"):
        export(gpt, tmp_path / "new", tokenizer=tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="damaged cannot be read: "):
        export(gpt, tmp_path / "new", tokenizer=tmp_path / "damaged")
    small = GPT(GPTConfig(vocab_size=30, n_layer=1, n_embd=8, n_head=1))
    with pytest.raises(ModelError, match="has 400 tokens, the model 30: they do not belong together"):
        export(small, tmp_path / "new", tokenizer=tokenizer)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("cap", [2.0, 15.0, None])
def test_the_soft_cap_has_the_name_that_others_read(cap: float | None, tmp_path: Path) -> None:
    """TRL's fused head takes hidden states and the head's weight, and the cap from the configuration."""
    pytest.importorskip("trl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # trl and what it imports may have some of their own
        from trl.trainer.utils import add_fused_lm_head
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(vocab_size=40, block_size=64, n_layer=1, n_head=2, n_embd=32, soft_cap=cap))
    for parameter in gpt.parameters():
        nn.init.normal_(parameter, std=0.5)
    folder, ids = export(gpt, tmp_path / "model"), torch.randint(2, 40, (2, 20))
    saved = json.loads((folder / "config.json").read_text())
    assert (saved["soft_cap"], saved["final_logit_softcapping"]) == (cap, cap)
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logp = gpt(ids).double().log_softmax(-1)
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
        found = model(input_ids=ids, labels=ids, fused_lm_head=True)
    entropy = -(logp.exp() * logp).sum(-1)
    torch.testing.assert_close(found.entropy.double(), entropy[:, :-1], rtol=0, atol=1e-4)
    torch.testing.assert_close(
        found.log_probs.double(), logp[:, :-1].gather(2, ids[:, 1:, None])[..., 0], atol=1e-4, rtol=0
    )
    for name in ("soft_cap", "final_logit_softcapping"):  # a folder of an earlier version, or what others write
        (folder / "config.json").write_text(json.dumps({key: value for key, value in saved.items() if key != name}))
        assert from_export(folder).config.soft_cap == cap


def test_two_soft_caps_are_refused() -> None:
    with pytest.raises(ValueError, match=r"soft_cap 2\.0 and final_logit_softcapping 3\.0: give one of them"):
        FluxGPTConfig(soft_cap=2.0, final_logit_softcapping=3.0)
