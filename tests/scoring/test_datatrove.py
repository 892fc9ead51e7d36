"""A datatrove pipeline gives its documents the scores that `score_stream` gives."""

from __future__ import annotations

import gzip
import itertools
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datatrove.data import Document
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import JsonlReader, ParquetReader
from datatrove.pipeline.writers import JsonlWriter
from fakes import SENTENCES, save_model

from fluxentropy import score_stream
from fluxentropy.errors import RunError, SourceError, UsageError
from fluxentropy.scoring import dataset as adapters
from fluxentropy.scoring import datatrove as datatrove_block
from fluxentropy.scoring.datatrove import (
    INPUT_STATUS,
    NULL_TEXT,
    EntropyScorer,
    TableReader,
    TableWriter,
    compare,
    run_tasks,
)
from fluxentropy.scoring.scores import SCORE_NAMES

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
    monkeypatch.delitem(sys.modules, "fluxentropy.scoring.datatrove")
    monkeypatch.setitem(sys.modules, "datatrove.pipeline.base", None)
    with pytest.raises(ImportError, match=r"pip install 'fluxentropy\[datatrove\]'"):
        import fluxentropy.scoring.datatrove  # noqa: F401


# --- A datatrove run keeps every row of its tables, once, whatever is asked for the second time, or refus ---


ROWS = [("0", None), ("1", ""), ("2", "a b"), ("3", "c"), ("4", "d")]


class Serial(LocalPipelineExecutor):
    """datatrove's executor, which asks what is done and does the rest, without the processes around it."""

    def run(self) -> Any:
        for rank in self.get_incomplete_ranks():
            self._run_for_rank(rank)


class Fails(PipelineStep):
    """Fails at a document."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            if document.id == self.at:
                raise MemoryError
            yield document


@pytest.fixture
def web(tmp_path: Path) -> Path:
    (tmp_path / "web").mkdir()
    for file in range(4):
        table = pa.table({"text": [text for _, text in ROWS], "id": [f"{file}/{name}" for name, _ in ROWS]})
        pq.write_table(table, tmp_path / "web" / f"{file}.parquet")
    return tmp_path / "web"


IDS = sorted(f"{file}/{row}" for file, row in itertools.product(range(4), range(5)))


def executor(web: Path, tasks: int, *steps: PipelineStep, limit: int | None = None) -> Serial:
    reader = TableReader(str(web), limit=limit)
    pipeline = [reader, *steps, TableWriter(web.parent / "out", reader.schema())]
    return Serial(pipeline, tasks=tasks, workers=1, logging_dir=str(web.parent / "logs"))


def ids(web: Path) -> list[str]:
    files = sorted((web.parent / "out").glob("*.parquet"))
    return sorted(name for path in files for name in pq.read_table(path)["id"].to_pylist())


@pytest.mark.parametrize(("before", "after"), list(itertools.product((1, 2, 4), repeat=2)))
def test_no_row_is_lost_or_doubled_by_another_number_of_tasks(before: int, after: int, web: Path) -> None:
    """Each time some tasks of the first run are done: none, …, all of them."""
    run_tasks(executor(web, before))
    assert ids(web) == IDS
    for done in range(before, -1, -1):
        for task in range(done, before):
            (web.parent / "logs" / "completions" / f"{task:05d}").unlink()
            (web.parent / "out" / f"{task:05d}.parquet").unlink()
        if before != after:
            left = ids(web)
            with pytest.raises(RunError, match=f"tasks is {before} there and {after} here"):
                run_tasks(executor(web, after))
            assert ids(web) == left
        run_tasks(executor(web, before))
        assert ids(web) == IDS
        reader, _, writer = [*executor(web, before).pipeline[:1], None, executor(web, before).pipeline[-1]]
        assert compare(reader, writer, before) == 20


def test_the_executors_own_run_loses_and_doubles_rows(web: Path) -> None:
    """Why there is `run_tasks`. If this fails, datatrove has changed."""
    executor(web, 4).run()
    for task in (2, 3):
        (web.parent / "logs" / "completions" / f"{task:05d}").unlink()
        (web.parent / "out" / f"{task:05d}.parquet").unlink()
    executor(web, 2).run()
    assert len(ids(web)) == 10
    with pytest.raises(RunError, match="lacks the row '2/0'"):
        compare(executor(web, 2).pipeline[0], executor(web, 2).pipeline[-1], 2)
    with pytest.raises(RunError, match=r"logs holds 4 finished tasks of \?, and not what they were given"):
        (web.parent / "logs" / "completions" / "00002").touch()
        (web.parent / "logs" / "completions" / "00003").touch()
        run_tasks(executor(web, 4))


def test_a_row_is_what_it_was(web: Path) -> None:
    run_tasks(executor(web, 1))
    table = pq.read_table(web.parent / "out" / "00000.parquet")
    assert table.equals(pa.concat_tables(pq.read_table(web / f"{file}.parquet") for file in range(4)))
    documents = list(TableReader(str(web)).run())
    assert [(document.text, document.metadata) for document in documents[:2]] == [
        ("", {INPUT_STATUS: NULL_TEXT}),
        ("", {}),
    ]


def test_a_task_that_fails_leaves_no_file(web: Path) -> None:
    with pytest.raises(MemoryError):
        run_tasks(executor(web, 2, Fails("3/2")))
    assert [path.name for path in (web.parent / "out").iterdir()] == ["00000.parquet"]
    assert not (web.parent / "logs" / "completions" / "00001").exists()
    with pytest.raises(RunError, match="00001.parquet is missing: the same command makes it again"):
        compare(TableReader(str(web)), executor(web, 2).pipeline[-1], 2)


def test_a_limit_is_that_of_a_task(web: Path) -> None:
    run_tasks(executor(web, 2, limit=6))
    assert ids(web) == sorted([*IDS[:5], "1/0", "1/1", "1/2", "1/3", "1/4", "2/0", "3/0"])
    assert compare(TableReader(str(web), limit=6), executor(web, 2).pipeline[-1], 2) == 12


def test_pipelines_of_datatroves_own_blocks_are_remembered_too(web: Path, tmp_path: Path) -> None:
    def of(tasks: int, limit: int = -1, **options: Any) -> Serial:
        pipeline = [ParquetReader(str(web), limit=limit), JsonlWriter(str(tmp_path / "json"), **options)]
        return Serial(pipeline, tasks=tasks, workers=1, logging_dir=str(tmp_path / "logs"))

    run_tasks(of(2))
    run_tasks(of(2))
    with pytest.raises(RunError, match="tasks is 2 there and 3 here"):
        run_tasks(of(3))
    with pytest.raises(RunError, match="limit is -1 there and 7 here"):
        run_tasks(of(2, limit=7))
    with pytest.raises(RunError, match="compression is"):
        run_tasks(of(2, compression=None))
    pq.write_table(pq.read_table(web / "3.parquet").slice(1), web / "3.parquet")
    with pytest.raises(RunError, match=r"files\.3\.parquet is 'sha256:"):
        run_tasks(of(2))


def test_tables_that_do_not_fit_are_named(web: Path) -> None:
    pq.write_table(pa.table({"text": ["a"], "id": [7]}), web / "9.parquet")
    with pytest.raises(SourceError, match=r"9\.parquet: its columns do not fit those of the other files"):
        TableReader(str(web)).schema()
    pq.write_table(pa.table({"id": ["a"]}), web / "9.parquet")
    with pytest.raises(SourceError, match=r"9\.parquet: no column 'text' of texts"):
        TableReader(str(web)).schema()
    (web / "9.parquet").write_text("no table")
    with pytest.raises(SourceError, match=r"9\.parquet cannot be read"):
        TableReader(str(web)).schema()
