"""Readings of questions against each ending read alone by the plain model, in float64."""

from __future__ import annotations

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import SENTENCES, make_tokenizer, save_model

from fluxentropy.entropy import token_stats
from fluxentropy.evaluation.answering import Prompt, Reader, shared_rows
from fluxentropy.models.forward import PlainPath
from fluxentropy.models.loading import Decoder, load_decoder
from fluxentropy.models.paths import open_path
from fluxentropy.models.zoo import find_model
from fluxentropy.scoring.scorer import Scorer

CONTEXTS = [SENTENCES[0], "a model", SENTENCES[4] + " " + SENTENCES[1]]
ENDINGS = [["reads one token.", "is a fox", "predicts 3.14159 and the next"], ["jumps", "sleeps"], ["x y z", "中文 🙂"]]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / request.param, request.param, bos=request.param == "gemma3")


@functools.cache
def opened(folder: Path) -> tuple[Decoder, Any]:
    return open_path(find_model(str(folder)), device="cpu")[:2]


@functools.cache
def in_float64(folder: Path) -> Decoder:
    decoder = load_decoder(find_model(str(folder)), device="cpu")
    decoder.model.double()
    return decoder


def reader_of(folder: Path, **options: Any) -> Reader:
    return Reader(*opened(folder), **options)


def expected(folder: Path, context: str, ending: str) -> tuple[float, np.ndarray]:
    """Log-likelihood of the ending, entropies of the context, by the definition."""
    decoder = in_float64(folder)
    start = decoder.tokenizer(context).input_ids
    ids = start + decoder.tokenizer(f"{context} {ending}").input_ids[len(start) :]
    with torch.inference_mode():
        logits = decoder.model(torch.tensor([ids])).logits[0]
    logp = logits.log_softmax(-1)
    positions = torch.arange(len(start) - 1, len(ids) - 1)
    loglik = logp[positions, torch.tensor(ids[len(start) :])].sum()
    return float(loglik), token_stats(logits[: len(start)]).entropy.numpy()


def test_shared_contexts_give_what_each_ending_alone_gives(folder: Path) -> None:
    reader = reader_of(folder)
    assert reader.shared, reader.note
    readings = reader.read(reader.encode(CONTEXTS, ENDINGS))
    for context, endings, reading in zip(CONTEXTS, ENDINGS, readings, strict=True):
        assert reading is not None
        for ending, surprisal in zip(endings, reading.surprisal, strict=True):
            loglik, entropy = expected(folder, context, ending)
            assert -surprisal.sum() == pytest.approx(loglik, abs=2e-3)
            assert reading.entropy == pytest.approx(entropy, abs=2e-3)


@pytest.mark.parametrize("shared", [True, False])
def test_equal_endings_have_equal_log_likelihoods_to_the_bit(shared: bool, folder: Path) -> None:
    reader = reader_of(folder)
    reader.shared = shared
    endings = [[*ENDINGS[0], ENDINGS[0][0], "a longer ending than the others are", ENDINGS[0][2]], ["x", "x"]]
    first, second = reader.read(reader.encode(CONTEXTS[:2], endings))
    assert first is not None and second is not None
    for values in (first.surprisal, first.ending_entropy):
        assert len(values) == 6
        assert (values[0] == values[3]).all() and (values[2] == values[5]).all()
    assert (second.surprisal[0] == second.surprisal[1]).all()
    for ending, surprisal in zip(endings[0], first.surprisal, strict=True):
        assert -surprisal.sum() == pytest.approx(expected(folder, CONTEXTS[0], ending)[0], abs=2e-3)


def test_the_other_path_gives_the_same_readings(folder: Path) -> None:
    reader = reader_of(folder)
    prompts = reader.encode(CONTEXTS, ENDINGS)
    shared = reader.read(prompts)
    reader.shared = False
    for ours, other in zip(shared, reader.read(prompts), strict=True):
        assert ours is not None
        assert other is not None
        assert ours.entropy == pytest.approx(other.entropy, abs=1e-4)
        assert ours.varentropy == pytest.approx(other.varentropy, rel=1e-3, abs=1e-3)
        assert ours.top_probs == pytest.approx(other.top_probs, abs=1e-5)
        for name in ("surprisal", "ending_entropy"):
            for a, b in zip(getattr(ours, name), getattr(other, name), strict=True):
                assert a == pytest.approx(b, abs=1e-3), name


def test_context_entropies_are_those_of_the_scorer(folder: Path) -> None:
    reader = reader_of(folder)
    scores = Scorer(reader.decoder, path=reader.path, max_tokens=100).score(CONTEXTS)
    for score, reading in zip(scores, reader.read(reader.encode(CONTEXTS, ENDINGS)), strict=True):
        assert reading is not None
        assert reading.entropy.mean() == pytest.approx(score.entropy_mean, abs=1e-4)
        assert reading.entropy[-1] == pytest.approx(score.entropy_last, abs=1e-3)


def test_a_model_without_a_fast_path_is_read_row_by_row(folder: Path) -> None:
    fast = reader_of(folder)
    decoder = load_decoder(find_model(str(folder)), device="cpu")
    plain = Reader(decoder, PlainPath(decoder.model))
    assert not plain.shared
    assert "plain path" in plain.note
    a, b = (reader.read(reader.encode(CONTEXTS, ENDINGS))[0] for reader in (fast, plain))
    assert a is not None
    assert b is not None
    assert a.surprisal[0] == pytest.approx(b.surprisal[0], abs=1e-3)


def test_rows_longer_than_a_sliding_window_are_read_by_the_model_itself(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "gemma3", "gemma3")  # its windows are 16 tokens long
    reader = reader_of(folder)
    assert reader.sliding == 16
    context, ending = SENTENCES[2] + " " + SENTENCES[1], "reads one token"
    reading = reader.read(reader.encode([context], [[ending, "x"]]))[0]
    assert reading is not None
    assert -reading.surprisal[0].sum() == pytest.approx(expected(folder, context, ending)[0], abs=2e-3)


def test_long_contexts_lose_their_beginning(folder: Path) -> None:
    reader = reader_of(folder, max_tokens=20)
    whole, cut = reader_of(folder).encode(CONTEXTS[2:], ENDINGS[2:])[0], reader.encode(CONTEXTS[2:], ENDINGS[2:])[0]
    longest = max(map(len, cut.endings))
    assert cut.truncated
    assert not whole.truncated
    assert len(cut.context) == 20 - longest + 1
    assert cut.context.tolist() == whole.context[-len(cut.context) :].tolist()
    assert reader.read([cut])[0] is not None


def test_endings_that_cannot_be_read_are_flagged(folder: Path) -> None:
    reader = reader_of(folder, max_tokens=8)
    prompts = reader.encode(["a", "b", "c"], [["x", ""], ["x", "long " * 30], ["x", "y"]], delimiter="")
    assert [prompt.status for prompt in prompts] == ["empty_ending", "ending_too_long", "ok"]
    assert [reading is None for reading in reader.read(prompts)] == [True, True, False]


def test_an_empty_context_starts_from_the_first_special_token() -> None:
    tokenizer = make_tokenizer(bos=False)
    tokenizer.eos_token = "</s>"

    reader = Reader.__new__(Reader)
    reader.decoder, reader.window = SimpleNamespace(tokenizer=tokenizer), 100  # type: ignore[assignment]
    assert reader._prompt(np.array([], dtype=np.int64), [np.array([5])]).context.tolist() == [1]


def test_the_rows_of_a_prompt_show_each_ending_the_context_and_itself() -> None:
    prompt = Prompt(context=np.array([7, 8]), endings=(np.array([1, 2]), np.array([3])))
    ids, positions, mask = shared_rows([prompt, Prompt(context=np.array([9]), endings=(np.array([4]),))])
    assert ids.tolist() == [[7, 8, 1, 2, 3], [9, 4, 0, 0, 0]]
    assert positions[0].tolist() == [0, 1, 2, 3, 2]
    assert (mask[0, 0] == 0).int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert (mask[1, 0] == 0).any(dim=-1).all()  # padding sees something, or its softmax would be NaN
