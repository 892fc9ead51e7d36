"""Tables of every format become the same floats and booleans, and what cannot be used is counted or named."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from fluxentropy.errors import FluxentropyError, SourceError, UsageError
from fluxentropy.evaluation.table import balanced, read_metric_table

ROWS: Mapping[str, list[Any]] = {
    "correct": [True, False, True, True, False, True],
    "entropy": [1.5, 2.5, 0.5, 3.0, 2.0, 1.0],
    "varentropy": [4.0, 9.0, 1.0, 2.0, 16.0, 25.0],
    "text": ["a", "b, c", 'd "e"', "f\ng", "", "h"],
}


def write_csv(path: Path, rows: Mapping[str, Sequence[Any]]) -> None:
    pyarrow.csv.write_csv(pa.table({name: pa.array(values) for name, values in rows.items()}), path)


def write_jsonl(path: Path, rows: Mapping[str, Sequence[Any]]) -> None:
    lines = (json.dumps(dict(zip(rows, row, strict=True))) for row in zip(*rows.values(), strict=True))
    text = "\n".join(lines).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


def write_arrow(path: Path, rows: Mapping[str, Sequence[Any]]) -> None:
    table = pa.table(dict(rows))
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)


def write_parquet(path: Path, rows: Mapping[str, Sequence[Any]]) -> None:
    pq.write_table(pa.table(dict(rows)), path, row_group_size=2)


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., str]:
    """`table(entropy=[...])` writes the rows of `ROWS`, with other columns or less of them, and returns the path."""

    def write(name: str = "items.parquet", **columns: Sequence[Any] | None) -> str:
        rows = {key: values for key, values in {**ROWS, **columns}.items() if values is not None}
        writers = {".csv": write_csv, ".jsonl": write_jsonl, ".gz": write_jsonl, ".arrow": write_arrow}
        writers.get(Path(name).suffix, write_parquet)(tmp_path / name, rows)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize("name", ["items.csv", "items.jsonl", "items.jsonl.gz", "items.arrow", "items.parquet"])
def test_every_format_gives_the_same(table: Callable[..., str], name: str) -> None:
    found = read_metric_table(table(name), "correct")
    assert found.target.tolist() == ROWS["correct"]
    assert {key: values.tolist() for key, values in found.metrics.items()} == {
        "entropy": ROWS["entropy"],
        "varentropy": ROWS["varentropy"],
    }
    assert (found.n, found.n_rows, found.excluded, found.skipped, found.derived) == (6, 6, {}, {}, {})


def test_a_folder_and_a_run_directory(table: Callable[..., str], tmp_path: Path) -> None:
    source = Path(table("one.parquet"))
    (tmp_path / "two.csv").write_text("entropy,varentropy,correct\n5,6,yes\n")
    assert read_metric_table(str(tmp_path), "correct").metrics["entropy"].tolist() == [*ROWS["entropy"], 5.0]
    (tmp_path / "logit_entropy.txt").write_text("a summary")
    assert read_metric_table(str(tmp_path), "correct").n == 7
    run = tmp_path / "run"
    run.mkdir()
    source.rename(run / "items.parquet")
    (run / "manifest.json").write_text("{}")
    assert read_metric_table(str(run), "correct").n == 6


@pytest.mark.parametrize(
    "target",
    [
        ["True", "False", "TRUE", "true", "false", " True "],
        ["yes", "no", "Y", "Yes", "n", "y"],
        ["1", "0", "1.0", "1", "0", "1"],
        [1, 0, 1, 1, 0, 1],
        [1.0, 0.0, 1.0, 1.0, 0.0, 1.0],
        pa.array(["t", "f", "t", "t", "f", "t"]).dictionary_encode(),
    ],
)
def test_spellings_of_true_and_false(table: Callable[..., str], target: Sequence[Any]) -> None:
    assert read_metric_table(table(correct=target), "correct").target.tolist() == ROWS["correct"]


def test_known_metrics_are_the_default(table: Callable[..., str]) -> None:
    columns = dict.fromkeys(("entropy_last", "sqrt_varentropy_mean", "entropy_mean_top100"), ROWS["entropy"])
    others = dict.fromkeys(("margin", "entropy_bound", "n_tokens"), ROWS["entropy"])
    found = read_metric_table(table(**columns, **others), "correct")
    assert set(found.metrics) == {"entropy", "varentropy", *columns}


def test_roots_are_derived_where_the_table_has_none(table: Callable[..., str]) -> None:
    varentropy = [4.0, -1.0, 1.0, 2.0, 16.0, 25.0]
    source = table(varentropy_last=varentropy, sqrt_varentropy=[1.0] * 6)
    found = read_metric_table(source, "correct", ["sqrt_varentropy", "sqrt_varentropy_last"])
    assert found.derived == {"sqrt_varentropy_last": "varentropy_last"}
    assert found.metrics["sqrt_varentropy"].tolist() == [1.0] * 5  # the table's own, without the row of the -1
    assert found.metrics["sqrt_varentropy_last"].tolist() == [2.0, 1.0, np.sqrt(2.0), 4.0, 5.0]
    assert found.excluded == {"sqrt_varentropy_last": {"nan": 1}}


def test_what_cannot_be_used_is_counted_by_name(table: Callable[..., str]) -> None:
    source = table(
        correct=[True, False, None, True, False, True],
        entropy=[float("nan"), 2.5, 0.5, None, 2.0, 1.0],
        varentropy=[float("inf"), float("-inf"), 1.0, 2.0, 16.0, 25.0],
        surprisal_mean=[None, 1.0, None, 2.0, 3.0, 4.0],
        perplexity=[None] * 5 + [float("nan")],
    )
    with pytest.raises(SourceError, match="2 of 6 rows have the target and all metrics"):
        read_metric_table(source, "correct")
    found = read_metric_table(source, "correct", ["entropy"])
    assert found.metrics["entropy"].tolist() == [2.5, 2.0, 1.0]
    assert found.excluded == {"correct": {"missing": 1}, "entropy": {"missing": 1, "nan": 1}}
    assert (found.n, found.n_rows) == (3, 6)


def test_a_default_metric_without_any_value_is_skipped(table: Callable[..., str]) -> None:
    source = table(perplexity=[None] * 6, bits_per_byte=[float("nan")] * 6)
    found = read_metric_table(source, "correct")
    assert set(found.metrics) == {"entropy", "varentropy"}
    assert set(found.skipped) == {"perplexity", "bits_per_byte"}
    with pytest.raises(SourceError, match="column 'perplexity' has no finite value in 6 rows"):
        read_metric_table(source, "correct", ["perplexity"])


@pytest.mark.parametrize("name", ["items.csv", "items.parquet"])
def test_numbers_written_as_text(table: Callable[..., str], name: str) -> None:
    found = read_metric_table(table(name, entropy=["1.5", " 2 ", "NA", "-Inf", "nan", "6"]), "correct", ["entropy"])
    assert found.metrics["entropy"].tolist() == [1.5, 2.0, 6.0]
    assert found.excluded == {"entropy": {"missing": 1, "nan": 1, "infinite": 1}}


@pytest.mark.parametrize(
    ("columns", "metrics", "error", "message"),
    [
        ({"correct": None}, (), UsageError, "--target correct: no such column in .*use one of entropy, varentropy, te"),
        ({"Correct": [True] * 6, "correct": None}, (), UsageError, "did you mean Correct?"),
        ({}, ["entrpy"], UsageError, "--metrics entrpy: no such column in .*: did you mean entropy?"),
        ({}, ["sqrt_varentropy_last"], UsageError, "--metrics sqrt_varentropy_last: no such column"),
        ({}, ["entropy", "entropy"], UsageError, "--metrics names entropy twice"),
        ({}, ["correct"], UsageError, "--metrics correct is the target"),
        (
            {"entropy": None, "varentropy": None},
            (),
            UsageError,
            "no column with a known metric .* --metrics; there are",
        ),
        ({"correct": [True] * 6}, (), SourceError, "the target 'correct' is true in all 6 rows"),
        ({"correct": [0] * 6}, (), SourceError, "the target 'correct' is false in all 6 rows .* both outcomes"),
        ({"correct": [None] * 6}, (), SourceError, r"0 of 6 rows have .*correct: 6 missing"),
        (
            {"correct": ["yes", "no", "maybe"] * 2},
            (),
            SourceError,
            "'correct', row 3: 'maybe' is neither true nor false",
        ),
        ({"correct": [0, 1, 2, 0, 1, 2]}, (), SourceError, "row 3: 2 is neither true nor false: use True and False"),
        ({"correct": [0.0, 0.5] * 3}, (), SourceError, "row 2: 0.5 is neither"),
        ({"entropy": ["1", "2", "3", "high", "5", "6"]}, (), SourceError, "'entropy', row 4: 'high' is no number"),
        ({"entropy": [[1.0]] * 6}, (), SourceError, "column 'entropy' holds list<.*>, not numbers"),
        (
            {"correct": [True, True, True, True, None, False], "entropy": [1.0, 2.0, 3.0, 4.0, 5.0, float("nan")]},
            (),
            SourceError,
            "true in all 4 rows that can be used .correct: 1 missing; entropy: 1 nan.",
        ),
    ],
)
def test_bad_columns(
    table: Callable[..., str],
    columns: dict[str, Sequence[Any]],
    metrics: Sequence[str],
    error: type[FluxentropyError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        read_metric_table(table(**columns), "correct", metrics)


def test_json_values_of_several_kinds_are_what_they_say(tmp_path: Path) -> None:
    lines = [(True, 1), ("no", "2.5"), (1, "n/a"), ("false", 0.5), (None, 3), (1, 2**53)]
    text = "".join(json.dumps({"correct": correct, "entropy": value}) + "\n" for correct, value in lines)
    (tmp_path / "a.jsonl").write_text(text)
    found = read_metric_table(str(tmp_path / "a.jsonl"), "correct")
    assert found.target.tolist() == [True, False, False, True]
    assert found.metrics["entropy"].tolist() == [1.0, 2.5, 0.5, 2.0**53]
    assert found.excluded == {"correct": {"missing": 1}, "entropy": {"missing": 1}}


def test_bad_files(tmp_path: Path) -> None:
    for name, content, message in [
        ("cut.parquet", b"PAR1", "cut.parquet: cannot be read"),
        ("a.txt", b"text", "plain text is no table"),
        ("mixed.jsonl", b'{"correct": true, "entropy": 1}\n{"correct": "so", "entropy": 2}\n', "row 2: 'so' is nei"),
        ("ragged.csv", b"correct,entropy\n1,2\n1\n", "ragged.csv:3: 1 cells where the header has 2"),
        ("empty.csv", b"correct,entropy\n", "empty.csv: no rows"),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(SourceError, match=message):
            read_metric_table(str(tmp_path / name), "correct")
    for name in ("nothing.csv", "nothing"):
        with pytest.raises(SourceError, match="no such file or folder"):
            read_metric_table(name, "correct")


def test_balancing_draws_from_the_larger_class(table: Callable[..., str]) -> None:
    found = read_metric_table(table(), "correct")
    drawn = [balanced(found, seed) for seed in range(40)]
    for half in drawn:
        assert half.target.sum() == 2 and half.n == 4 and half.n_rows == 6
        assert set(half.metrics["entropy"][~half.target]) == {2.5, 2.0}  # the smaller class stays whole
        pairs = set(zip(ROWS["entropy"], ROWS["varentropy"], strict=True))
        assert set(zip(half.metrics["entropy"], half.metrics["varentropy"], strict=True)) < pairs
    kept = {tuple(half.metrics["entropy"][half.target]) for half in drawn}
    assert len(kept) == 6  # each pair of the four true rows, in the order of the table
    assert np.array_equal(drawn[3].metrics["entropy"], balanced(found, 3).metrics["entropy"])
