"""The scores of the registry against their formulas, computed naively in float64 from each text's plain logits."""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fakes import SENTENCES, make_model, make_tokenizer, save_model

from fluxentropy.cli.app import main
from fluxentropy.errors import UsageError
from fluxentropy.models.loading import Decoder
from fluxentropy.scoring.batching import TextStats
from fluxentropy.scoring.counts import TokenCounts, count
from fluxentropy.scoring.options import CountConfig, ScoreConfig
from fluxentropy.scoring.parts import ScoreParts
from fluxentropy.scoring.scorer import Scorer
from fluxentropy.scoring.scores import (
    EXTRA,
    OF_ALL,
    REGISTRY,
    SCORE_NAMES,
    ExtraScores,
    TextFacts,
    chosen_extra,
    minkpp,
)

TEXTS = [*SENTENCES, " ".join(SENTENCES), SENTENCES[1], "e", "", " ".join(SENTENCES) + " and more", "aaaa aaaa " * 9]
GUIDE = Path(__file__).parents[2] / "docs" / "guide.md"


def make_decoder(kind: str = "llama", **changes: Any) -> Decoder:
    return Decoder.of(make_model(kind, **changes), make_tokenizer(), name="tiny", fingerprint="none")


def oracle(decoder: Decoder, text: str, max_tokens: int, q: list[float]) -> dict[str, float | None]:
    """Every extra score of one text with Python's own floats, one token after the other, as the papers write them."""
    ids = decoder.tokenizer(text).input_ids[:max_tokens]
    with torch.no_grad():
        logp = torch.log_softmax(decoder.model(torch.tensor([ids])).logits[0].double(), -1)  # (T, V)
    vocabulary = logp.shape[1]
    entropy = [-sum(math.exp(x) * x for x in row) for row in logp.tolist()]
    actual, standardised, q_actual = [], [], []
    for t, token in enumerate(ids[1:]):
        row = logp[t].tolist()
        mu = sum(math.exp(x) * x for x in row)
        sigma = math.sqrt(sum(math.exp(x) * (x - mu) ** 2 for x in row))
        actual.append(row[token])
        standardised.append((row[token] - mu) / sigma)
        q_actual.append(q[token])
    k = max(int(0.2 * len(actual)), 1)
    first: dict[int, float] = {}
    for token, x, frequency in zip(ids[1:], actual, q_actual, strict=True):
        first.setdefault(token, min(-math.exp(x) * math.log(frequency), 0.01))
    n = len(actual)
    return {
        "entropy_normalised": sum(entropy) / len(entropy) / math.log(vocabulary),
        "entropy_slope": float(np.polyfit(np.arange(len(ids)), entropy, 1)[0]) if n else None,
        "mink": sum(sorted(actual)[:k]) / k if n else None,
        "minkpp": sum(sorted(standardised)[:k]) / k if n else None,
        "zlib_ratio": len(zlib.compress(text.encode(), 6)) / len(text.encode()),
        "dcpdd": sum(first.values()) / len(first) if n else None,
        "unigram_surprisal": -sum(map(math.log, q_actual)) / n if n else None,
    }


def extra_columns(scorer: Scorer, texts: list[str], log_frequency: np.ndarray | None = None) -> dict[str, list[Any]]:
    encoded = scorer.encode(texts)
    extra = ExtraScores(EXTRA, texts, encoded, vocabulary=scorer.outcomes, log_frequency=log_frequency)
    scorer.score_encoded(encoded, on_text=extra.add)
    return {name: column.to_pylist() for name, column in extra.columns().items()}


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_extra_scores_are_their_formulas(kind: str) -> None:
    decoder = make_decoder(kind)
    scorer = Scorer(decoder, max_tokens=40, batch_tokens=100)
    q = np.random.default_rng(0).dirichlet(np.full(scorer.outcomes, 0.5)) + 1e-6
    found = extra_columns(scorer, TEXTS, np.log(q))
    assert list(found) == list(EXTRA)
    for place, text in enumerate(TEXTS):
        want = oracle(decoder, text, 40, q.tolist()) if text else dict.fromkeys(EXTRA)
        for name, value in want.items():
            expected = None if value is None else pytest.approx(value, rel=2e-4, abs=2e-5)
            assert found[name][place] == expected, (name, text)


def test_texts_in_windows_have_the_scores_of_their_tokens() -> None:
    """Windows come in any order, and duplicates are run once: the tokens of each text are put together all the same."""
    scorer = Scorer(make_decoder(), max_tokens=16, window="sliding", stride=5, batch_tokens=40)
    found = extra_columns(scorer, TEXTS)
    for place, text in enumerate(TEXTS):
        if not text:
            continue
        (encoded,) = scorer.encode([text])
        stats = scorer.position_stats(encoded)
        facts = TextFacts(
            text=text,
            ids=encoded.ids,
            entropy=stats.entropy.double().numpy(),
            varentropy=stats.varentropy.double().numpy(),
            surprisal=stats.surprisal[:-1].double().numpy(),
            vocabulary=400,
        )
        for name in ("entropy_normalised", "entropy_slope", "mink", "minkpp"):
            value = REGISTRY[name].function(facts)
            assert found[name][place] == (None if value is None else pytest.approx(value, rel=1e-3, abs=1e-4)), name


def test_a_text_is_handed_on_and_let_go_of_when_it_is_whole() -> None:
    scorer = Scorer(make_decoder(), max_tokens=16, window="sliding", batch_tokens=40)
    encoded = scorer.encode(TEXTS[:4])
    told: list[tuple[int, np.ndarray]] = []
    held = TextStats([len(item.ids) for item in encoded], lambda *item: told.append(item))
    rows = [row for index, item in enumerate(encoded) for row in scorer._rows(index, item)]
    for row in rows[::-1]:
        held.add([row], scorer._forward([row]))
        assert {text for text, _ in told}.isdisjoint(held.open)
    assert [text for text, _ in told] == [3, 2, 1, 0]
    assert held.open == {}
    assert all(values.shape == (3, len(encoded[text].ids)) for text, values in told)


def test_minkpp_of_a_distribution_without_spread_is_zero() -> None:
    two = np.full(3, math.log(2))
    facts = TextFacts(text="x", ids=np.arange(3), entropy=two, varentropy=np.zeros(3), surprisal=two[:2], vocabulary=9)
    assert minkpp(facts) == 0.0


def test_which_scores_are_asked_for() -> None:
    with_counts = ("dcpdd", "unigram_surprisal")
    assert chosen_extra(["all"], counts=True) == OF_ALL
    assert chosen_extra(["all"], counts=False) == tuple(name for name in OF_ALL if name not in with_counts)
    for name, message in (
        ("dcpdd", "--scores dcpdd needs --token-counts: the file that `fluxentropy count`"),
        ("minkp", r"--scores minkp: no such score.*did you mean mink"),
        ("entropy_mean", "--scores entropy_mean: this is not scored here, every run has it"),
        ("learnability", "--scores learnability: this is not scored here, give it to --by"),
    ):
        with pytest.raises(UsageError, match=message):
            chosen_extra([name], counts=False)


def test_every_score_is_documented() -> None:
    assert set(SCORE_NAMES) - set(REGISTRY) == {"n_predicted_bytes", "truncated", "status"}
    guide = GUIDE.read_text(encoding="utf-8")
    for score in REGISTRY.values():
        assert score.formula and score.source
        if score.needs != "every run":
            assert f"| `{score.name}` | {score.formula} | {score.units} | {score.source} |" in guide


def test_help_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert all(name in said for name in EXTRA)


# --- runs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("model"), bos=True))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("source") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text, "mink": n}) + "\n" for n, text in enumerate(TEXTS)))
    return str(path)


def parts(out: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(path) for path in sorted((out / "scores").glob("part-*.parquet")))


def test_a_run_with_more_scores(source: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["score", source, "--model", model, "--max-tokens", "60", "--part-tokens", "100"]
    counts = tmp_path / "counts.parquet"
    assert main(["count", source, "--model", model, "--out", str(counts)]) == 0
    assert main([*command, "--out", str(tmp_path / "plain")]) == 0
    more = [*command, "--scores", "all", "--token-counts", str(counts), "--out", str(tmp_path / "more")]
    assert main(more) == 0
    plain, found = parts(tmp_path / "plain"), parts(tmp_path / "more")
    assert "mink" in plain.column_names and "source_mink" not in plain.column_names
    assert found.column_names == [
        *("source_mink" if name == "mink" else name for name in plain.column_names),
        *OF_ALL,
    ]
    same = [name for name in plain.column_names if name != "mink"]
    assert found.select(same).equals(plain.select(same))
    empty = TEXTS.index("")
    for name in OF_ALL:
        values = found[name].to_pylist()
        assert values.pop(empty) is None
        assert all(math.isfinite(value) for value in values)  # with a BOS every text has a prediction
    identity = json.loads((tmp_path / "more" / "manifest.json").read_text())["identity"]
    assert identity["scores"] == list(OF_ALL)
    assert "scores" not in json.loads((tmp_path / "plain" / "manifest.json").read_text())["identity"]
    assert main(more) == 0  # goes on where it was: all is done
    capsys.readouterr()
    assert main([*command, "--scores", "mink", "--out", str(tmp_path / "more")]) == 1
    assert "scores is " in capsys.readouterr().err


def test_token_counts_are_those_of_the_tokenizer(source: str, model: str, tmp_path: Path) -> None:
    out = tmp_path / "counts.parquet"
    result = count(CountConfig(sources=(source,), model=model, out=out))
    tokenizer = make_tokenizer()
    expected = Counter(token for text in TEXTS for token in tokenizer(text).input_ids)  # no BOS
    table = pq.read_table(out)
    assert {token: n for token, n in zip(*table.to_pydict().values(), strict=True) if n} == expected
    found = {"texts": len(TEXTS), "tokens": expected.total(), "distinct": len(expected)}
    assert result.to_dict() == {"out": str(out), **found} and result.out == out
    frequency = np.exp(TokenCounts.read(out).log_frequency(len(table) + 5))
    assert frequency.sum() == pytest.approx(1)
    token, n = expected.most_common(1)[0]
    assert frequency[token] == pytest.approx((n + 1) / (expected.total() + len(table) + 5))


def test_token_counts_that_do_not_fit_are_refused(source: str, model: str, tmp_path: Path) -> None:
    def score(counts: Path) -> Any:
        config = ScoreConfig(
            sources=(source,), model=model, scores=("dcpdd",), token_counts=counts, max_tokens=60, out=tmp_path / "run"
        )
        return ScoreParts(config=config).describe()

    other = tmp_path / "other.parquet"
    TokenCounts(counts=np.ones(400, np.int64), vocabulary="sha256:0", facts={"model": "gpt2"}).write(other)
    with pytest.raises(UsageError, match="these are tokens of gpt2, and those of .* are different ones: count again"):
        score(other)
    pq.write_table(pa.table({"token": [0, 2]}), tmp_path / "bad.parquet")
    with pytest.raises(UsageError, match=r"bad.parquet is no file of `fluxentropy count`"):
        score(tmp_path / "bad.parquet")
    with pytest.raises(UsageError, match="no such file; `fluxentropy count` writes it"):
        score(tmp_path / "missing.parquet")
    with pytest.raises(UsageError, match="--token-counts x without --scores"):
        ScoreConfig(sources=(source,), model=model, token_counts=Path("x"), out=tmp_path)
