"""Scores of texts against the definitions, computed naively from each text's full logits in float64."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SENTENCES, make_model, make_tokenizer, save_model

from fluxentropy.errors import ModelError, UsageError
from fluxentropy.models.forward import FastPath, PlainPath
from fluxentropy.models.loading import Decoder
from fluxentropy.models.paths import choose_path
from fluxentropy.scoring import scorer as module
from fluxentropy.scoring.scorer import Scorer
from fluxentropy.scoring.scores import Scores

TEXTS = [*SENTENCES, " ".join(SENTENCES), SENTENCES[1], "e", "", " ", "\x00\x01"]


def make_decoder(kind: str = "llama", *, bos: bool = False, **changes: Any) -> Decoder:
    return Decoder.of(make_model(kind, **changes), make_tokenizer(bos=bos), name="tiny", fingerprint="none")


def reference(decoder: Decoder, text: str, max_tokens: int) -> dict[str, float | None]:
    """The contract's aggregates of one text, straight from their definitions."""
    ids = decoder.tokenizer(text).input_ids[:max_tokens]
    with torch.no_grad():
        logp = torch.log_softmax(decoder.model(torch.tensor([ids])).logits[0].double(), -1)  # (T, V)
    p = logp.exp()
    h = -(p * logp).sum(-1)
    v = (p * (logp + h[:, None]) ** 2).sum(-1)
    s = -logp[torch.arange(len(ids) - 1), ids[1:]]
    predicted = len(decoder.tokenizer.decode(ids[1:]).encode())
    return {
        "entropy_mean": h.mean().item(),
        "entropy_sum": h.sum().item(),
        "entropy_last": h[-1].item(),
        "varentropy_mean": v.mean().item(),
        "varentropy_sum": v.sum().item(),
        "varentropy_last": v[-1].item(),
        "sqrt_varentropy_mean": v.sqrt().mean().item(),
        "surprisal_mean": s.mean().item() if len(s) else None,
        "surprisal_sum": s.sum().item() if len(s) else None,
        "perplexity": s.mean().exp().item() if len(s) else None,
        "bits_per_byte": s.sum().item() / math.log(2) / predicted if len(s) else None,
        "n_tokens": len(ids),
    }


def assert_equal(got: Scores, want: Scores, rel: float = 1e-4) -> None:
    for field in dataclasses.fields(Scores):
        a, b = getattr(got, field.name), getattr(want, field.name)
        assert a == (pytest.approx(b, rel=rel, abs=1e-5) if isinstance(b, float) else b), field.name


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_scores_are_those_of_the_contract(kind: str) -> None:
    decoder = make_decoder(kind)
    scorer = Scorer(decoder, max_tokens=40, batch_tokens=100)
    for text, scores in zip(TEXTS, scorer.score(TEXTS), strict=True):
        if not text:
            assert scores == Scores(status="empty")
            continue
        for name, value in reference(decoder, text, 40).items():
            assert getattr(scores, name) == (None if value is None else pytest.approx(value, rel=1e-4, abs=1e-5)), name
        assert (scores.n_bytes, scores.status) == (len(text.encode()), "ok")
        assert scores.truncated == (len(decoder.tokenizer(text).input_ids) > 40)


@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
def test_neighbours_and_batches_do_not_change_a_score(batch_tokens: int) -> None:
    scorer = Scorer(make_decoder(), max_tokens=200, batch_tokens=batch_tokens)
    together = scorer.score([*TEXTS, " ".join(SENTENCES * 3)])
    for text, scores in zip(TEXTS, together, strict=False):
        assert_equal(scores, scorer.score([text])[0])


def test_the_same_tokens_are_run_once() -> None:
    scorer = Scorer(make_decoder(), max_tokens=20)
    long = " ".join(SENTENCES)
    a, b, c = scorer.score([long, long + " with another end", long])
    assert scorer.work.tokens == 20
    assert a == c
    assert (a.entropy_mean, a.n_bytes) != (b.entropy_mean, b.n_bytes)
    assert a.entropy_mean == b.entropy_mean


@pytest.mark.parametrize("bos", [False, True])
def test_sliding_windows_score_every_token(bos: bool) -> None:
    decoder = make_decoder(bos=bos)
    text = " ".join(SENTENCES)
    whole = Scorer(decoder, max_tokens=250, window="sliding").score([text])[0]
    assert_equal(whole, Scorer(decoder, max_tokens=250).score([text])[0])
    slid = Scorer(decoder, max_tokens=24, window="sliding", stride=8).score([text])[0]
    assert (slid.n_tokens, slid.truncated, slid.n_predicted_bytes) == (whole.n_tokens, False, whole.n_predicted_bytes)
    assert slid.surprisal_mean == pytest.approx(whole.surprisal_mean, rel=0.3)
    assert slid.surprisal_mean != whole.surprisal_mean


def test_token_stats_of_one_text_add_up_to_its_scores() -> None:
    for options in ({"max_tokens": 60}, {"max_tokens": 16, "window": "sliding"}):
        scorer = Scorer(make_decoder(), **options)
        (encoded,) = scorer.encode([SENTENCES[1]])
        stats = scorer.position_stats(encoded, top_k=5)
        (scores,) = scorer.score([SENTENCES[1]])
        assert stats.entropy.mean().item() == pytest.approx(scores.entropy_mean, rel=1e-5)
        assert stats.surprisal[:-1].sum().item() == pytest.approx(scores.surprisal_sum, rel=1e-5)
        assert stats.surprisal[-1].isnan()


def test_token_tables_are_in_order_whatever_the_threads() -> None:
    expected = [Scorer(make_decoder(), max_tokens=40, threads=1).tokens(text, top_k=3).table for text in TEXTS]
    scorer = Scorer(make_decoder(), max_tokens=40, threads=3)
    torch_threads = torch.get_num_threads()
    found = list(scorer.token_tables(scorer.encode(TEXTS), top_k=3))
    assert found == expected
    assert torch.get_num_threads() == torch_threads


def test_a_batch_that_does_not_fit_is_halved_and_gives_the_same_scores() -> None:
    decoder = make_decoder()
    expected = Scorer(decoder, max_tokens=60).score(TEXTS)
    calls = []

    class Small(FastPath):
        def __call__(self, ids: torch.Tensor, *args: Any, **options: Any) -> Any:
            calls.append(ids.shape)
            if ids.numel() > 70:
                raise torch.OutOfMemoryError("out of memory")
            return super().__call__(ids, *args, **options)

    scorer = Scorer(decoder, max_tokens=60, path=Small(decoder.model))
    for got, want in zip(scorer.score(TEXTS), expected, strict=True):
        assert_equal(got, want)
    assert scorer.batch_tokens < 1024
    assert len(calls) > 3


class CountedCard(FastPath):
    """A GPU's memory of 4,000 tokens, and the path of a model that lives there."""

    parallel = False

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder.model)
        self.batches, self.highest = [], 0

    def __call__(self, ids: torch.Tensor, *args: Any, **options: Any) -> Any:
        self.batches.append(ids.numel())
        self.highest = max(self.highest, ids.numel())
        return super().__call__(ids, *args, **options)

    def free(self) -> int:
        return 4000

    def peak(self, work: Any) -> int:
        self.highest = 0
        work()
        return self.highest


def test_the_budget_of_a_gpu_is_what_its_memory_was_seen_to_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = make_decoder()
    card = CountedCard(decoder)
    monkeypatch.setattr(module, "device_memory", lambda _: card)
    monkeypatch.setattr(module, "GPU_FIRST_TOKENS", 64)
    scorer = Scorer(decoder, max_tokens=60, path=card)
    few = scorer.score(TEXTS[:2])
    assert len(card.batches) == 1  # one batch in any case: no probe
    got = scorer.score([*TEXTS, *(text + " and more" * n for n, text in enumerate(SENTENCES * 8))])
    assert scorer.batch_tokens == 2048  # 4,096 would be more than 0.8 of 4,000
    assert card.batches[1:8] == [60, 60, 120, 240, 480, 1020, 2040]  # rows of 60 tokens
    assert max(card.batches[8:]) <= 2048
    assert scorer.work.padded == card.batches[0] + sum(card.batches[8:])
    for a, b in zip(got, few, strict=False):
        assert_equal(a, b)
    monkeypatch.setattr(module, "GPU_BATCH_WORK", 2 * decoder.model.num_parameters() * 300)
    assert Scorer(decoder, max_tokens=60, path=card).batch_tokens == 256
    assert Scorer(decoder, max_tokens=60, path=card, batch_tokens=77).batch_tokens == 77


def test_a_single_text_that_does_not_fit_is_an_error_that_says_so() -> None:
    class Refuse(PlainPath):
        def __call__(self, *_: Any, **__: Any) -> Any:
            raise torch.OutOfMemoryError("out of memory")

    decoder = make_decoder()
    with pytest.raises(ModelError, match=r"a text of \d+ tokens does not fit.*lower --max-tokens"):
        Scorer(decoder, max_tokens=60, path=Refuse(decoder.model)).score([SENTENCES[0]])


def test_nan_from_the_model_is_a_status_of_that_text_alone() -> None:
    decoder = make_decoder()
    word = decoder.tokenizer("dog").input_ids[-1]
    decoder.model.get_input_embeddings().weight.data[word] = torch.nan
    bad, good = Scorer(decoder, max_tokens=60, path=PlainPath(decoder.model)).score(["dog", "e"])
    assert (bad.status, bad.entropy_mean, bad.perplexity) == ("nan", None, None)
    assert good.status == "ok"


def test_limits_of_the_model_are_named() -> None:
    with pytest.raises(UsageError, match="max_tokens 300 is beyond the window of tiny, 256 tokens"):
        Scorer(make_decoder(), max_tokens=300)
    with pytest.raises(UsageError, match="stride 16"):
        Scorer(make_decoder(bos=True), max_tokens=16, window="sliding", stride=16)
    decoder = make_decoder(vocab_size=300)
    with pytest.raises(ModelError, match="do not belong together"):
        Scorer(decoder, max_tokens=60).score(TEXTS)


def test_a_model_off_the_mould_takes_the_plain_path_and_says_so() -> None:
    decoder = make_decoder()
    decoder.model.lm_head = torch.nn.Sequential(torch.nn.Linear(32, 400, bias=False))
    path, note = choose_path(decoder)
    assert isinstance(path, PlainPath)
    assert "path plain, slow: this model cannot run the fast path" in note
    assert choose_path(decoder, pack=True) == (None, "")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_scores_do_not_depend_on_the_number_of_threads(kind: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", kind)
    found = []
    for threads in (1, 2, 5):
        scorer = Scorer.from_pretrained(folder, max_tokens=60, window="sliding", batch_tokens=70, threads=threads)
        found.append(scorer.score(TEXTS * 3))
    assert found[0] == found[1] == found[2]
