"""A datatrove pipeline gives its documents the scores that `score_stream` gives."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from fakes import SENTENCES, save_model

from fluxentropy import adapters, datatrove_block, score_stream
from fluxentropy.datatrove_block import EntropyScorer
from fluxentropy.errors import UsageError
from fluxentropy.scores import SCORE_NAMES

TEXTS = [f"{sentence} {number}" for number in range(3) for sentence in SENTENCES]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("model"), max_position_embeddings=512))


def documents(texts: list[str | None]) -> list[Document]:
    return [Document(text=text, id=str(number), metadata={"url": "u"}) for number, text in enumerate(texts)]  # type: ignore[arg-type]


def test_a_pipeline_of_two_tasks_scores_as_score_stream_does(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []
    make_scorer = adapters.make_scorer
    monkeypatch.setattr(
        datatrove_block, "make_scorer", lambda *names, **options: loaded.append(names) or make_scorer(*names, **options)
    )
    halves = [TEXTS[:8], TEXTS[8:]]
    (tmp_path / "in").mkdir()
    for task, half in enumerate(halves):
        rows = [{"text": text, "id": f"{task}/{n}", "dump": "CC"} for n, text in enumerate(half)]
        (tmp_path / "in" / f"{task}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pipeline = [
        JsonlReader(str(tmp_path / "in")),
        EntropyScorer(model, max_tokens=64, batch_size=3),
        JsonlWriter(str(tmp_path / "out")),
    ]
    executor = LocalPipelineExecutor(pipeline, tasks=2, workers=1, logging_dir=str(tmp_path / "logs"))
    stats = executor.run().stats[1]
    tokens = 0
    for task, half in enumerate(halves):
        lines = gzip.decompress((tmp_path / "out" / f"{task:05d}.jsonl.gz").read_bytes()).decode().splitlines()
        found = [json.loads(line) for line in lines]
        expected = list(score_stream(half, model, max_tokens=64, window=3))
        assert [row["id"] for row in found] == [f"{task}/{n}" for n in range(len(half))]
        for row, want in zip(found, expected, strict=True):
            assert {"text": row["text"], **{name: row["metadata"][name] for name in SCORE_NAMES}} == want
            assert row["metadata"]["dump"] == "CC"
            tokens += want["n_tokens"]
    assert len(loaded) == 2  # once a task
    assert stats.name == "🔢 - SCORER: 🎲 Entropy"
    assert (stats["status_ok"].total, stats["tokens"].total) == (len(TEXTS), tokens)


def test_texts_without_tokens_have_a_status_and_no_scores(model: str) -> None:
    block = EntropyScorer(model)
    found = [document.metadata for document in block(documents(["", TEXTS[0]]))]
    assert found[0] == {"url": "u", **dict.fromkeys(SCORE_NAMES), **EMPTY}
    assert found[1]["status"] == "ok"
    assert (block.stats["status_empty"].total, block.stats["entropy_mean"].n) == (1, 1)


EMPTY = {"n_tokens": 0, "n_bytes": 0, "n_predicted_bytes": 0, "truncated": False, "status": "empty"}


def test_two_models_score_the_same_documents_under_their_prefixes(model: str, tmp_path: Path) -> None:
    other = str(save_model(tmp_path / "other", max_position_embeddings=512, vocab_size=420))
    first, second = EntropyScorer(model, prefix="a_"), EntropyScorer(other, prefix="b_")
    (found,) = [document.metadata for document in second(first(documents(TEXTS[:1])))]
    assert {name[:2] for name in found} == {"a_", "b_", "ur"}
    assert found["a_n_tokens"] == found["b_n_tokens"] and found["a_entropy_mean"] != found["b_entropy_mean"]


def test_scores_are_never_written_over(model: str) -> None:
    block = EntropyScorer(model)
    with pytest.raises(UsageError, match="document '0' has 'bits_per_byte' in its metadata already: remove it, or"):
        list(block(block(documents(TEXTS[:1]))))


def test_a_block_is_small_and_loads_nothing_before_its_first_document(model: str) -> None:
    block = EntropyScorer("no/such-model", offline=True)
    assert len(pickle.dumps(block)) < 1000
    assert list(block(None)) == list(block(iter([]))) == []
    scored = pickle.loads(pickle.dumps(EntropyScorer(model)))(documents(TEXTS[:1]))
    assert next(scored).metadata["status"] == "ok"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size 0: use 1 or more"),
        ({"window": "fist"}, "window 'fist': use first or sliding"),
        ({"max_tokens": 0}, "max-tokens 0: use 1 or more"),
        ({"stride": 4}, "--stride 4 with --window first"),
    ],
)
def test_options_are_checked_before_anything_is_launched(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EntropyScorer("m", **options)


def test_without_datatrove_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "fluxentropy.datatrove_block")
    monkeypatch.setitem(sys.modules, "datatrove.pipeline.base", None)
    with pytest.raises(ImportError, match=r"pip install 'fluxentropy\[datatrove\]'"):
        import fluxentropy.datatrove_block  # noqa: F401
