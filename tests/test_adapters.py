"""The library's own entrances give what the scorer gives."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
from fakes import SENTENCES, save_model

import fluxentropy
from fluxentropy.errors import UsageError
from fluxentropy.scorer import Scorer

TEXTS = [*SENTENCES, None, "", SENTENCES[0]]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return fluxentropy.make_scorer(str(save_model(tmp_path_factory.mktemp("model"))), max_tokens=64)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets.disable_progress_bars()


def expected(scorer: Scorer) -> list[dict[str, Any]]:
    return [dataclasses.asdict(scores) for scores in scorer.score(TEXTS)]


def strip(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("text", "n")}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_gains_the_score_columns(scorer: Scorer, streaming: bool) -> None:
    dataset = datasets.Dataset.from_dict({"text": TEXTS, "n": list(range(len(TEXTS)))})
    scored = fluxentropy.score_dataset(dataset.to_iterable_dataset() if streaming else dataset, scorer)
    rows = list(scored)
    assert [row["n"] for row in rows] == list(range(len(TEXTS)))
    assert [strip(row) for row in rows] == expected(scorer)


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


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fluxentropy.nothing  # noqa: B018
