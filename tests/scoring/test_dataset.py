"""The library's own entrances give what the scorer gives."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from fakes import SENTENCES, save_model

import fluxentropy
from fluxentropy.errors import UsageError
from fluxentropy.scoring.scorer import Scorer

TEXTS = [*SENTENCES, None, "", SENTENCES[0]]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return fluxentropy.make_scorer(str(save_model(tmp_path_factory.mktemp("model"))), max_tokens=64)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets.disable_progress_bars()


def expected(scorer: Scorer) -> list[dict[str, Any]]:
    return [dataclasses.asdict(scores) for scores in scorer.score_encoded(scorer.encode(TEXTS))]


def strip(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("text", "n")}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_gains_the_score_columns(scorer: Scorer, streaming: bool) -> None:
    dataset = datasets.Dataset.from_dict({"text": TEXTS, "n": list(range(len(TEXTS)))})
    scored = fluxentropy.score_dataset(dataset.to_iterable_dataset() if streaming else dataset, scorer)
    rows = list(scored)
    assert [row["n"] for row in rows] == list(range(len(TEXTS)))
    assert [strip(row) for row in rows] == expected(scorer)


def test_a_scorer_opens_by_name_is_called_on_texts_and_maps_data_sets(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    opened = fluxentropy.Scorer.from_pretrained(folder, max_tokens=64)
    assert opened(SENTENCES) == opened.score(SENTENCES)
    dataset = datasets.Dataset.from_dict({"text": TEXTS})
    scored = dataset.map(opened.columns("text"), batched=True, batch_size=4)
    want = expected(opened)
    for row, right in zip(scored, want, strict=True):
        assert strip(row) == {k: pytest.approx(v, rel=1e-4) if isinstance(v, float) else v for k, v in right.items()}
    again = dataset.map(fluxentropy.Scorer.from_pretrained(folder, max_tokens=64).columns(), batched=True, batch_size=4)
    other = dataset.map(fluxentropy.Scorer.from_pretrained(folder, max_tokens=8).columns(), batched=True, batch_size=4)
    assert scored._fingerprint == again._fingerprint != other._fingerprint
    copied = pickle.loads(pickle.dumps(opened.columns()))
    assert copied({"text": TEXTS}) == opened.columns()({"text": TEXTS})
    with pytest.raises(UsageError, match="use Scorer.from_pretrained"):
        pickle.loads(pickle.dumps(Scorer(opened.decoder, max_tokens=64, path=opened.path).columns()))


def test_unknown_options_and_windows_are_refused(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    with pytest.raises(UsageError, match=r"unknown option windw: did you mean window\?"):
        fluxentropy.Scorer.from_pretrained(folder, windw="sliding")
    with pytest.raises(UsageError, match="window 'firs': use first or sliding"):
        fluxentropy.Scorer.from_pretrained(folder, window="firs")


def test_a_token_table_has_arrays_and_shows_itself(scorer: Scorer) -> None:
    tokens = scorer.tokens(SENTENCES[0])
    assert np.isnan(tokens.surprisal[0])
    assert tokens.entropy.mean() == pytest.approx(scorer(SENTENCES[0])[0].entropy_mean, rel=1e-6)
    assert np.nanmean(tokens.surprisal) == pytest.approx(scorer(SENTENCES[0])[0].surprisal_mean, rel=1e-6)
    assert "".join(tokens.token) == SENTENCES[0] and len(tokens) == tokens.num_rows == len(tokens.to_pandas())
    assert tokens._repr_html_().count("<tr>") == 1 + len(tokens)
    with pytest.raises(AttributeError, match="no_such"):
        _ = tokens.no_such


def test_a_data_set_without_the_column_or_with_a_taken_name_is_refused(scorer: Scorer) -> None:
    with pytest.raises(UsageError, match="no column 'body' in the data set: it has text"):
        fluxentropy.score_dataset(datasets.Dataset.from_dict({"text": ["a"]}), scorer, text_field="body")
    with pytest.raises(UsageError, match="has a column 'entropy_mean' already"):
        fluxentropy.score_dataset(datasets.Dataset.from_dict({"text": ["a"], "entropy_mean": [1.0]}), scorer)


def test_a_stream_is_scored_in_order_without_reading_far_ahead(scorer: Scorer) -> None:
    rows = list(fluxentropy.score_stream([{"text": text, "n": n} for n, text in enumerate(TEXTS)], scorer, window=3))
    assert [row["n"] for row in rows] == list(range(len(TEXTS)))
    for row, want in zip(rows, expected(scorer), strict=True):
        assert strip(row) == {k: pytest.approx(v, rel=1e-4) if isinstance(v, float) else v for k, v in want.items()}
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield SENTENCES[read % len(SENTENCES)]

    stream = fluxentropy.score_stream(endless(), scorer, window=4)
    assert next(stream)["text"] == SENTENCES[1]
    stream.close()
    assert read <= 4 * 4


def test_a_record_without_the_field_is_named(scorer: Scorer) -> None:
    with pytest.raises(UsageError, match="a record has no field 'text': it has body"):
        list(fluxentropy.score_stream([{"body": "x"}], scorer))


def test_one_text_is_one_text(scorer: Scorer) -> None:
    (alone,) = scorer.score(SENTENCES[0])
    assert alone == scorer.score([SENTENCES[0]])[0] == scorer.score(text for text in SENTENCES[:1])[0]
    assert [item.ids.tolist() for item in scorer.encode(SENTENCES[0])] == [
        scorer.decoder.tokenizer(SENTENCES[0]).input_ids
    ]
    (row,) = fluxentropy.score_stream(SENTENCES[0], scorer)
    assert row == {"text": SENTENCES[0], **dataclasses.asdict(alone)}
    arrow = pa.chunked_array([SENTENCES[:1], SENTENCES[1:2]])
    assert scorer.score(arrow) == scorer.score(list(SENTENCES[:2]))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", {"text": "b"}], r"texts\[1\] is a dict \(\{'text': 'b'\}\), and no text"),
        (["a", None], r"texts\[1\] is None, and no text"),
        (["a", "b", 3], r"texts\[2\] is a int \(3\)"),
        ([b"a"], r"texts\[0\] is a bytes"),
        ([["a"]], r"texts\[0\] is a list"),
        ([float("nan")], r"texts\[0\] is a float \(nan\)"),
        ({"text": "a"}, r"texts is a dict \(\{'text': 'a'\}\): give a string, or a list"),
        (None, "texts is None: give a string"),
        (b"abc", "texts is a bytes"),
        (7, "texts is a int"),
    ],
)
def test_what_is_no_text_is_named_with_its_place(scorer: Scorer, texts: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        scorer.score(texts)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"text": "a"}, None], "record 1 is None: give a text, or a mapping with a field 'text'"),
        (["a", 5], r"record 1 is a int \(5\)"),
        ([{"text": "a"}, {"text": ["b"]}], r"record 1: its 'text' is a list \(\['b'\]\), and no text"),
        ({"text": "a"}, r"records is a dict"),
        (None, "records is None"),
    ],
)
def test_what_is_no_record_is_named_with_its_place(scorer: Scorer, records: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(fluxentropy.score_stream(records, scorer))


def test_what_is_no_data_set_or_holds_no_texts_is_named(scorer: Scorer) -> None:
    with pytest.raises(UsageError, match=r"dataset is a list \(\['a'\]\), and none of `datasets`"):
        fluxentropy.score_dataset(["a"], scorer)  # type: ignore[type-var]
    split = datasets.Dataset.from_dict({"text": ["a"]})
    with pytest.raises(UsageError, match="dataset has the splits train: give one of them"):
        fluxentropy.score_dataset(datasets.DatasetDict({"train": split}), scorer)  # type: ignore[type-var]
    with pytest.raises(UsageError, match=r"texts\[0\] is a int \(1\)"):
        fluxentropy.score_dataset(datasets.Dataset.from_dict({"text": [1, 2]}), scorer)


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fluxentropy.nothing  # noqa: B018
