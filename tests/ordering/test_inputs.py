"""Tables that others made: any format, any kind of score, tokens counted or unknown; refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from fluxentropy.cli.app import main
from fluxentropy.models.tokenizers import byte_tokenizer
from fluxentropy.ordering import inputs
from fluxentropy.ordering.bins import Bins
from fluxentropy.ordering.quantiles import as_floats
from tests.ordering.test_bin import read, snapshot

Run = tuple[int, dict[str, Any], str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command: exit code, the JSON object on stdout, and stderr."""

    def call(*argv: object) -> Run:
        capsys.readouterr()
        code = main([*map(str, argv), "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out), captured.err

    return call


def table(rows: int = 300) -> pa.Table:
    """As a classifier of web pages leaves it: no id, no entropy, no number of tokens."""
    rng = np.random.default_rng(0)
    return pa.table(
        {
            "text": [f"text {row} " * (row % 5) for row in range(rows)],
            "score": pa.array(rng.normal(2, 1, rows), mask=rng.random(rows) < 0.05),
            "int_score": pa.array(rng.integers(0, 5, rows), pa.int64()),
            "url": [f"http://x/{row}" for row in range(rows)],
        }
    )


def write(rows: pa.Table, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".parquet":
            pq.write_table(rows, path)
        case ".arrow":
            with ipc.new_file(str(path), rows.schema) as writer:
                writer.write_table(rows)
        case ".feather":
            feather.write_feather(rows, path)
        case ".csv":
            pa.csv.write_csv(rows, path)
        case _:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()))
    return path


FORMATS = [".parquet", ".arrow", ".feather", ".jsonl", ".csv"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_any_format_gives_the_same_bins_and_blocks(suffix: str, run: Any, tmp_path: Path) -> None:
    rows = table()
    source = write(rows, tmp_path / f"any{suffix}")
    flags = ["--by", "score", "--bins", 4, "--tokenize", "bytes", "--block-length", 16]
    code, data, _ = run("bin", source, *flags, "--out", tmp_path / "out")
    assert code == 0
    scores = np.array([row for row in rows["score"].to_pylist() if row is not None])
    assert data["edges"] == np.quantile(scores, [0.25, 0.5, 0.75]).tolist()
    assert data["unscored"] == rows["score"].null_count
    tokenizer = byte_tokenizer()
    for number in range(4):
        part = read(tmp_path / "out" / "data" / f"bin={number:02}").to_pylist()
        expected = [row for row in rows.to_pylist() if row["score"] is not None and row["score"] <= 99]
        expected = [row for row in expected if np.searchsorted(data["edges"], row["score"]) == number]
        assert sorted(row["url"] for row in part) == sorted(row["url"] for row in expected)
        assert {row["text"] or "" for row in part} == {row["text"] for row in expected}
        sizes = [len(tokenizer(row["text"], add_special_tokens=False).input_ids) for row in expected]
        assert data["tokens"][number] == sum(sizes)
    assert run("verify", tmp_path / "out")[0] == 0
    assert not (tmp_path / "out" / ".pieces").exists()


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_unknown_tokens_are_not_zero(suffix: str, run: Any, tmp_path: Path) -> None:
    source = write(table(), tmp_path / f"any{suffix}")
    code, data, _ = run("bin", source, "--by", "score", "--bins", 2, "--out", tmp_path / "out")
    assert (code, data["tokens"], data["format"]) == (0, [None, None], 4)
    bins = Bins.load(tmp_path / "out")
    assert (bins.tokens, bins[0].tokens, "unknown" in bins._repr_html_()) == ([None, None], None, True)
    assert run("verify", tmp_path / "out")[0] == 0
    assert main(["bin", str(source), "--by", "score", "--bins", "2", "--out", str(tmp_path / "out")]) == 0


def test_words_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(table(), tmp_path / "any.jsonl")
    assert main(["bin", str(source), "--by", "score", "--bins", "2", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "unknown tokens" in said
    assert "there is no column n_tokens: --tokenize counts them" in said


def test_numbers_of_tokens_that_are_no_whole_numbers(run: Any, tmp_path: Path) -> None:
    rows = table(20).append_column("n_tokens", pa.array([1.5] * 20))
    source = write(rows, tmp_path / "any.parquet")
    code, data, _ = run("bin", source, "--by", "score", "--bins", 2, "--out", tmp_path / "out")
    assert (code, data["tokens"]) == (0, [None, None])
    assert run("verify", tmp_path / "out")[0] == 0


KINDS: list[tuple[pa.DataType, Callable[[int], Any]]] = [
    (pa.int8(), int),
    (pa.uint16(), int),
    (pa.float16(), float),
    (pa.float32(), float),
    (pa.decimal128(9, 2), Decimal),
    (pa.decimal64(9, 2), Decimal),
    (pa.decimal256(40, 2), Decimal),
]


@pytest.mark.parametrize(("kind", "make"), KINDS, ids=lambda one: str(one))
@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_kinds_of_scores(kind: pa.DataType, make: Any, suffix: str, run: Any, tmp_path: Path) -> None:
    values = np.random.default_rng(1).integers(0, 6, 60).tolist()
    rows = pa.table({"id": [str(row) for row in range(60)], "edu": pa.array(list(map(make, values)), kind)})
    source = write(rows, tmp_path / f"any{suffix}")
    code, data, _ = run("bin", source, "--by", "edu", "--bins", 3, "--out", tmp_path / "out")
    assert (code, data["edges"]) == (0, np.quantile(values, [1 / 3, 2 / 3]).tolist())
    assert run("verify", tmp_path / "out")[0] == 0


def test_a_decimal_on_an_edge_goes_to_the_lower_bin(run: Any, tmp_path: Path) -> None:
    """Arrow's own cast makes 2.6750000000000003 of it, which is above the edge."""
    values = [Decimal("1.000"), Decimal("2.675"), Decimal("3.000")]
    assert as_floats(pa.array(values), "x").tolist() == [1.0, 2.675, 3.0]
    source = write(pa.table({"id": ["a", "b", "c"], "x": values}), tmp_path / "any.parquet")
    code, data, _ = run("bin", source, "--by", "x", "--edges=2.675", "--out", tmp_path / "out")
    assert (code, data["counts"]) == (0, [2, 1])


def test_decimals_are_rounded_once() -> None:
    rng = np.random.default_rng(0)
    for precision, scale in ((18, 4), (18, 9), (38, 30), (38, 2)):
        numbers = [*rng.integers(-(10**18) + 1, 10**18, 200).tolist(), 0, None]
        decimals = [None if n is None else Decimal(n).scaleb(-scale) for n in numbers]
        wanted = np.array([np.nan if one is None else float(one) for one in decimals])
        column = pa.array(decimals, pa.decimal128(precision, scale))
        np.testing.assert_array_equal(as_floats(column.slice(3), "x"), wanted[3:])


def test_folders_globs_and_parts(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(3000)
    whole = write(rows, tmp_path / "whole" / "a.jsonl")
    write(rows.slice(0, 1000), tmp_path / "many" / "a.jsonl")
    write(rows.slice(1000), tmp_path / "many" / "b.jsonl")
    flags = ["--by", "score", "--bins", 3, "--order", "source", "--out"]
    first = run("bin", tmp_path / "many", *flags, tmp_path / "one")[1]
    second = run("bin", tmp_path / "many" / "*.jsonl", *flags, tmp_path / "two")[1]
    assert first["edges"] == second["edges"] == run("bin", whole, *flags, tmp_path / "three")[1]["edges"]
    assert snapshot(tmp_path / "one" / "data") == snapshot(tmp_path / "two" / "data")
    monkeypatch.setattr(inputs, "PART_ROWS", 1024)  # several written files, made by several processes
    run("bin", tmp_path / "many", *flags, tmp_path / "four", "--workers", 2)
    assert snapshot(tmp_path / "four" / "data") == snapshot(tmp_path / "one" / "data")
    code, data, _ = run("sort", tmp_path / "many", "--by", "score", "--out", tmp_path / "sorted.parquet")
    assert (code, data["rows"]) == (0, 3000)
    found = pq.read_table(tmp_path / "sorted.parquet")
    order = sorted(range(3000), key=lambda row: (rows["score"][row].as_py() is None, rows["score"][row].as_py() or 0))
    assert found["score"].to_pylist() == [rows["score"][row].as_py() for row in order]
    assert found["url"].to_pylist()[:2500] == [rows["url"][row].as_py() for row in order][:2500]


def test_killed_and_repeated(run: Any, tmp_path: Path) -> None:
    source = write(table(), tmp_path / "any.jsonl")
    flags = ["bin", source, "--by", "score", "--bins", 3, "--out"]
    run(*flags, tmp_path / "whole")
    run(*flags, tmp_path / "out")
    before = snapshot(tmp_path / "out")
    assert before == snapshot(tmp_path / "whole")
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(facts | {"complete": False}))
    (tmp_path / "out" / "data" / "bin=01" / ".manifest.json").unlink()
    run(*flags, tmp_path / "out")
    assert snapshot(tmp_path / "out") == before
    source.write_text(source.read_text() + '{"text": "more", "score": 1}\n')
    code, data, _ = run(*flags, tmp_path / "out")
    assert code == 1
    assert "inputs.any.jsonl" in data["error"]
    code, data, _ = run("verify", tmp_path / "out")
    assert code == 0
    assert any("any.jsonl has changed since" in note for note in data["notes"])


def test_texts_of_another_column(run: Any, tmp_path: Path) -> None:
    rows = table(40).rename_columns(["content", "score", "int_score", "url"])
    source = write(rows, tmp_path / "any.parquet")
    flags = ["bin", source, "--by", "int_score", "--bins", 2, "--tokenize", "bytes", "--block-length", 8]
    code, data, _ = run(*flags, "--out", tmp_path / "no")
    assert code == 2
    assert "--text-field" in data["error"]
    code, data, _ = run(*flags, "--text-field", "content", "--out", tmp_path / "out")
    assert code == 0
    assert sum(data["blocks"]["blocks"]) > 0
    assert run("verify", tmp_path / "out")[0] == 0


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("edu_scor", "no such column in"),
        ("url", "its values are of type string, not numbers; columns of numbers are score, int_score"),
        ("nothing", "has a score in it; columns of numbers are score, int_score"),
    ],
)
def test_mistakes(by: str, message: str, suffix: str, run: Any, tmp_path: Path) -> None:
    rows = table(20).append_column("nothing", pa.nulls(20))
    source = write(rows, tmp_path / f"any{suffix}")
    code, data, _ = run("bin", source, "--by", by, "--bins", 2, "--out", tmp_path / "out")
    assert code == 2
    assert message in data["error"]
    assert not (tmp_path / "out" / "bins.json").exists()


def test_a_bad_row_is_named(run: Any, tmp_path: Path) -> None:
    (tmp_path / "any.jsonl").write_text('{"score": 1}\n{"score": \n')
    code, data, _ = run("bin", tmp_path / "any.jsonl", "--by", "score", "--bins", 2, "--out", tmp_path / "out")
    assert code == 1
    assert "any.jsonl:2" in data["error"]
    code, data, _ = run("bin", tmp_path / "runs", "--by", "score", "--bins", 2, "--out", tmp_path / "out")
    assert code in (1, 2)
    assert "no Parquet file there" in data["error"]
