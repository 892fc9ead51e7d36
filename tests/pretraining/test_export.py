"""Exported models: the same logits everywhere, generation with a cache, and the way back into the scorer."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from fakes import SENTENCES, VOCABULARY, make_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, NanoChatForCausalLM

from fluxentropy.cli import app as cli
from fluxentropy.errors import ModelError
from fluxentropy.models.forward import FastPath, PlainPath, entropies, is_causal, path_error, probe_logits, probe_rows
from fluxentropy.models.loading import load_decoder
from fluxentropy.models.zoo import find_model
from fluxentropy.pretraining.export import export, from_export, to_transformers
from fluxentropy.pretraining.gpt import GPT, GPTConfig

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "modern": ("modern", {"soft_cap": 2.0, "vocab_multiple": 64}),
    "grouped": ("modern", {"n_kv_head": 2, "tied": True, "rope_base": 500.0, "norm_eps": 1e-3}),
    "odd": ("modern", {"n_embd": 30, "n_head": 3, "n_kv_head": 1, "n_hidden": 37, "mlp": "gelu", "soft_cap": None}),
    "gpt2": ("gpt2", {"vocab_multiple": 64}),
    "gpt2-untied": ("gpt2", {"tied": False, "n_hidden": 37}),
}


def make_gpt(variant: str) -> GPT:
    preset, options = VARIANTS[variant]
    shape = {"vocab_size": VOCABULARY, "block_size": 64, "n_layer": 2, "n_head": 4, "n_embd": 32}
    torch.manual_seed(0)
    gpt = GPT(GPTConfig.preset(preset, **(shape | options)))  # type: ignore[arg-type]
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
    gpt, model, ids = make_gpt(variant), AutoModelForCausalLM.from_pretrained(folders[variant]), some_ids()
    assert type(model) is (GPT2LMHeadModel if variant.startswith("gpt2") else NanoChatForCausalLM)
    with torch.no_grad():
        output = model(input_ids=ids, labels=ids)
        torch.testing.assert_close(output.logits, gpt(ids), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.loss, gpt(ids[:, :-1], ids[:, 1:]))
        # in float64 what is left is the float32 of our angles and of their norms
        wide, ours = model.double()(ids).logits, gpt.double()(ids)
    assert float((wide - ours).abs().max()) < 1e-4
    width, heads = gpt.config.n_embd, 1 if gpt.config.tied else 2
    rows = gpt.config.padded_vocab_size - VOCABULARY
    assert model.num_parameters() == gpt.num_parameters() - rows * width * heads
    assert (model.config.max_position_embeddings, model.config.bos_token_id, model.config.eos_token_id) == (64, 0, None)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folders[variant] / name).read_bytes() == (tokenizer / name).read_bytes()
    assert not list(folders[variant].glob("*.py")) and "auto_map" not in model.config.to_dict()


def test_a_loaded_model_can_be_saved_and_loaded_again(folders: dict[str, Path], tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folders["grouped"])
    assert model.lm_head.weight is model.get_input_embeddings().weight
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(some_ids()).logits, model(some_ids()).logits)


@pytest.mark.parametrize(("eos", "pad"), [("</s>", "</s>"), ("</s>", "<s>"), (None, "</s>")])
def test_a_token_that_is_no_mere_padding_can_be_trained_on(eos: str | None, pad: str, tmp_path: Path) -> None:
    """A NanoChat gives the embedding of the token that pads no gradient."""
    tokenizer = make_tokenizer(bos=True)
    tokenizer.eos_token, tokenizer.pad_token = eos, pad
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model: Any = AutoModelForCausalLM.from_pretrained(
        export(make_gpt("modern"), tmp_path / "export", tokenizer=tmp_path / "tokenizer")
    )
    ids = torch.tensor([[5, 1, 0, 6, 1, 7]])
    model(ids, labels=ids).loss.backward()
    trained = [bool(model.model.embed_tokens.weight.grad[number].abs().max() > 0) for number in (0, 1)]
    assert trained == [True, eos is not None]
    config = model.generation_config
    assert (config.eos_token_id, config.pad_token_id) == (None if eos is None else 1, 0 if pad == "<s>" else 1)


def test_a_model_in_training_is_left_as_it_is() -> None:
    gpt = make_gpt("grouped")
    before, state = {name: tensor.clone() for name, tensor in gpt.state_dict().items()}, torch.get_rng_state()
    model = to_transformers(gpt)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in gpt.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("variant", ["modern", "grouped", "odd"])
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


@pytest.mark.parametrize("variant", ["modern", "grouped", "odd"])
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


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_scorers_fast_paths_agree_with_the_model(variant: str, packed: bool) -> None:
    model = to_transformers(make_gpt(variant))
    logits = probe_logits(model, probe_rows(model))
    reference = entropies(logits)
    assert is_causal(logits)
    assert reference.std() > 0.005
    assert path_error(PlainPath(model), probe_rows(model), reference) < 1e-6
    assert path_error(FastPath(model, packed=packed), probe_rows(model), reference) < 1e-4


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


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_exported_model_comes_back_as_it_was(variant: str, folders: dict[str, Path]) -> None:
    gpt, found, ids = make_gpt(variant), from_export(folders[variant]), some_ids()
    starts = torch.tensor([[0] * 12 + [12] * 18] * 2)
    assert torch.equal(found(ids, starts=starts), gpt(ids, starts=starts))  # no weight has another bit


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
    assert json.loads((folder / "config.json").read_text())["final_logit_softcapping"] == cap
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


def test_exports_of_earlier_versions_are_refused_by_name(tmp_path: Path) -> None:
    make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "fluxgpt", "n_layer": 2}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    said = r"was exported by an earlier version of fluxentropy, .*give --trust-remote-code to load it .*train it again"
    with pytest.raises(ModelError, match=said):
        load_decoder(find_model(str(tmp_path)))
    with pytest.raises(ModelError, match=said):
        from_export(tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded"):  # it is tried with its own code, which is not there
        load_decoder(find_model(str(tmp_path), trust_remote_code=True))
