"""Scores of several runs side by side, and every way in which runs do not fit together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoredruns import described, write_run

from fluxentropy.agreement.agree import read_scores
from fluxentropy.errors import FluxentropyError, RunError, SourceError, UsageError
from fluxentropy.runs.find import run_folders


def test_runs_of_one_corpus_are_matched_row_by_row_even_where_ids_repeat(tmp_path: Path) -> None:
    ids = ["x", "y", "x", "z", "w"]
    one = write_run(tmp_path / "one", [1.0, 2.0, 3.0, None, 5.0], ids=ids, part_rows=2)
    two = write_run(tmp_path / "two", [5.0, 4.0, 3.0, 2.0, 1.0], ids=ids, part_rows=3)
    matrix = read_scores([str(one), str(two)])
    assert matrix.models == ("one", "two")
    assert matrix.scores[:, 1].tolist() == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert np.isnan(matrix.scores[3, 0])
    assert matrix.absent == {"one": 0, "two": 0}
    assert [(row, record["id"]) for row, record in described(matrix)] == list(enumerate(ids))
    assert set(described(matrix)[0][1]) == {"id", "source_row", "text", "n_tokens"}
    assert read_scores([str(one), str(two)], by="surprisal_mean").scores[0].tolist() == [-1.0, -5.0]


def test_runs_of_different_texts_are_matched_by_id_and_the_missing_counted(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [1.0, 2.0, 3.0], ids=["a", "b", "c"])
    two = write_run(tmp_path / "two", [30.0, 40.0, 20.0], ids=["c", "d", "b"], part_rows=2)
    matrix = read_scores([str(one), str(two)])
    assert np.nan_to_num(matrix.scores, nan=-1).tolist() == [[1, -1], [2, 20], [3, 30], [-1, 40]]
    assert matrix.absent == {"one": 1, "two": 1}
    assert [(row, record["id"], record["text"]) for row, record in described(matrix)] == [
        (0, "a", "text of a"),
        (1, "b", "text of b"),
        (2, "c", "text of c"),
        (3, "d", "text of d"),
    ]


def test_a_zoo_is_read_in_its_own_order_without_the_consensus(tmp_path: Path) -> None:
    for name in ("b", "a", "c", "consensus"):
        write_run(tmp_path / "zoo" / name, [1.0, 2.0])
    assert [run.name for run in run_folders(tmp_path / "zoo")] == ["a", "b", "c"]
    (tmp_path / "zoo" / "manifest.json").write_text(json.dumps({"models": ["c", "a"]}))
    assert [run.name for run in run_folders(tmp_path / "zoo")] == ["c", "a", "b"]


def test_names_come_from_models_then_folders(tmp_path: Path) -> None:
    one = write_run(tmp_path / "fp32", [1.0, 2.0], model="gpt2")
    two = write_run(tmp_path / "bf16", [1.0, 2.0], model="gpt2")
    three = write_run(tmp_path / "x", [1.0, 2.0], model="llama")
    assert read_scores([str(one), str(three)]).models == ("gpt2", "llama")
    assert read_scores([str(one), str(two)]).models == ("fp32", "bf16")
    with pytest.raises(UsageError, match="fp32 is given twice"):
        read_scores([str(one), str(one)])


def test_select_keeps_the_chosen_models_in_the_order_given(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / name, [1.0, float(place)])) for place, name in enumerate(["a", "b", "c"])]
    matrix = read_scores(runs)
    chosen = matrix.select(["c", "a"])
    assert (chosen.models, chosen.scores[1].tolist()) == (("c", "a"), [2.0, 0.0])
    with pytest.raises(UsageError, match="--models d: no such model"):
        matrix.select(["a", "d"])


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (
            {},
            {"policies": {"max_tokens": 128}},
            "different policies cannot be compared: max_tokens is 512 in one and 128 in two",
        ),
        ({"stride": 64}, {}, "stride is 64 in one and None in two"),
        ({}, {"text_field": "body"}, "text_field is 'text' in one and 'body' in two"),
        (
            {},
            {"sources": {"web.jsonl": "sha256:2"}},
            "different sources cannot be compared: web.jsonl is 'sha256:1' in one",
        ),
        ({"finish": False}, {}, "one is not finished"),
        ({}, {"ids": ["a", "a", "b"]}, "1 texts of two share an id with another one .a stands there 2 times"),
    ],
)
def test_runs_that_do_not_fit_together_are_refused(tmp_path: Path, there: dict, here: dict, message: str) -> None:
    one = write_run(tmp_path / "one", [1.0, 2.0, 3.0], **there)
    two = write_run(tmp_path / "two", [1.0, 2.0, 3.0], **here)
    with pytest.raises(RunError, match=message):
        read_scores([str(one), str(two)])


def test_what_a_tokenizer_decides_is_no_difference(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [1.0, 2.0], policies={"bos_added": True})
    two = write_run(tmp_path / "two", [1.0, 2.0], sources={"web.jsonl": "sha256:1", "more.jsonl": "sha256:3"})
    assert read_scores([str(one), str(two)]).scores.shape == (2, 2)


def test_a_folder_without_runs_and_a_column_without_numbers_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", [1.0, 2.0])
    (tmp_path / "empty").mkdir()
    for path, by, message in (
        (tmp_path / "empty", "entropy_mean", "is no run directory and holds none"),
        (run, "entropy_men", "--by entropy_men: no such column in .*did you mean entropy_mean"),
        (run, "text", "are of type string, not numbers"),
    ):
        with pytest.raises(FluxentropyError, match=message):
            read_scores([str(path)], by)


# --- Wide tables: which columns are models, what a cell may hold, and every way in which a table is bad ---


def table(folder: Path, text: str, name: str = "table.csv") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_published_table_has_a_model_for_each_pair_of_columns(tmp_path: Path) -> None:
    text = "Text,a_entropy_Rank,a_entropy_Characteristic_Value,b_Rank,b_Characteristic_Value,kind\n"
    text += '"one, two",0,2.5,1,3.5,x\n"line\nbreak",1,1.5,0,,y\n'
    matrix = read_scores([table(tmp_path, text)])
    assert matrix.models == ("a_entropy", "b")
    assert matrix.scores.tolist()[0] == [2.5, 3.5]
    assert matrix.scores[1, 0] == 1.5
    assert np.isnan(matrix.scores[1, 1])
    assert matrix.measure == "entropy"
    assert described(matrix) == [(0, {"Text": "one, two", "kind": "x"}), (1, {"Text": "line\nbreak", "kind": "y"})]


def test_a_table_with_one_column_for_each_model(tmp_path: Path) -> None:
    matrix = read_scores([table(tmp_path, "id,text,source,small,large\n1,a,web,1.5,2\n2,b,web,nan,1e-3\n")])
    assert matrix.models == ("small", "large")
    assert matrix.scores[:, 1].tolist() == [2.0, 1e-3]
    assert np.isnan(matrix.scores[1, 0])
    assert matrix.measure == "score"
    pq.write_table(pa.table({"text": ["a", "b"], "m": [1, 2], "n": [0.5, None]}), tmp_path / "t.parquet")
    matrix = read_scores([str(tmp_path / "t.parquet")])
    assert (matrix.models, matrix.scores[0].tolist()) == (("m", "n"), [1.0, 0.5])


SCORES = {"small": [1.5, 2.25, 0.5, 3.0], "large": [2.0, 1.75, 0.25, 2.5]}


def row_names(folder: Path) -> dict[str, str]:
    """The same scores as pandas and R write them, with row names of all kinds."""
    frame = pd.DataFrame(SCORES)
    (folder / "p.csv").write_text(frame.to_csv())
    twice = pd.read_csv(folder / "p.csv")
    thrice = frame.set_index(pd.Index([10, 20, 5, 7])).reset_index()
    frame.set_index(pd.Index([3, 1, 2, 9])).to_parquet(folder / "index.parquet")
    text = frame.to_csv(index=False).splitlines()
    quoted = [f'"{i}",{line}' for i, line in enumerate(text[1:], 1)]
    return {
        "plain": table(folder, frame.to_csv(index=False), "plain.csv"),
        "pandas": str(folder / "p.csv"),
        "twice": table(folder, twice.to_csv(), "twice.csv"),
        "reset": table(folder, thrice.to_csv(index=False), "reset.csv"),
        "levels": table(folder, frame.reset_index().rename(columns={"index": "level_0"}).to_csv(), "levels.csv"),
        "named": table(folder, frame.assign(row=range(1, 5)).to_csv(index=False, sep="\t"), "named.tsv"),
        "r": table(folder, "\n".join(['"",' + text[0], *quoted]) + "\n", "r.csv"),
        "write.table": table(folder, "\n".join([text[0], *quoted]) + "\n", "table.csv"),
        "parquet": str(folder / "index.parquet"),
    }


LEFT_OUT = {
    "plain": [],
    "pandas": [""],
    "twice": ["", "Unnamed: 0"],
    "reset": ["index"],
    "levels": ["", "level_0"],
    "named": ["row"],
    "r": [""],
    "write.table": [""],
    "parquet": ["__index_level_0__"],
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_row_numbers_are_no_model(tmp_path: Path, name: str) -> None:
    matrix = read_scores([row_names(tmp_path)[name]])
    assert matrix.models == ("small", "large")
    assert matrix.scores.T.tolist() == list(SCORES.values())
    assert list(matrix.left_out) == LEFT_OUT[name]
    assert all(name for described, _ in matrix.texts() for name in described.column_names)


def test_what_only_looks_like_row_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ranks = read_scores([table(tmp_path, "text,a,b\nx,1,3\ny,2,1\nz,3,2\n")])
    assert (ranks.models, ranks.left_out) == (("a", "b"), {})
    assert "column 'a' counts the rows; it is taken for a model" in caplog.text
    gap = read_scores([table(tmp_path, "text,a,b\nx,1,0.5\ny,2,1\nz,4,2\n")])
    assert (gap.models, gap.left_out) == (("a", "b"), {})
    names = read_scores([table(tmp_path, ",a,b\nr1,1,0.5\n2,2.5,1\n")])
    assert (names.models, names.left_out) == (("a", "b"), {"": "it names the rows"})
    assert described(names) == [(0, {"row_name": "r1"}), (1, {"row_name": "2"})]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "table.csv cannot be read as a table: it is empty"),
        ("text,a,b\n", "table.csv: there is no row in it, so there is nothing to compare"),
        (",id\n0,4\n", "has no column of scores"),
        ("text,a,b\nx,1\n", "row 1: 2 cells where the header has 3"),
        ("text,a,b\nx,1,2,\ny,3,4,\n", "row 1: 4 cells where the header has 3"),  # commas at the end, no row names
        ("text,a,a\nx,1,2\n", "several columns named 'a'"),
        (
            "text,kind\nx,y\n",
            "no column of scores: expected NAME_Characteristic_Value, or .*; its columns are text, kind",
        ),
        ("text,a_Rank,b_Characteristic_Value\nx,1,2\n", "column a_Rank has no column a_Characteristic_Value"),
        ("text,a,b\nx,1,2\ny,1,high\n", "row 2, column b: 'high' is not a finite number"),
        ("text,a,b\nx,1,inf\n", "row 1, column b: 'inf' is not a finite number"),
        ("Text,a,b\nx,1,2\ny,1,2\nx,3,4\n", "rows 1 and 3 have the same Text, 'x': remove one"),
        ('text,a\n"x,1\n', "cannot be read as a table"),
    ],
)
def test_a_bad_table_is_refused_by_what_is_wrong_in_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        read_scores([table(tmp_path, text)])


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a table of scores is a .csv, .tsv or .parquet file"):
        read_scores([table(tmp_path, "x", "table.xlsx")])
    with pytest.raises(SourceError, match="no such file or folder"):
        read_scores([str(tmp_path / "none.csv")])
    with pytest.raises(UsageError, match="one table alone"):
        read_scores([table(tmp_path, "text,a\nx,1\n"), str(write_run(tmp_path / "run", [1.0]))])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(SourceError, match="bad.parquet cannot be read"):
        read_scores([str(tmp_path / "bad.parquet")])
    (tmp_path / "latin.csv").write_bytes("text,a\ncaf\xe9,1\n".encode("latin-1"))
    with pytest.raises(SourceError, match=r"latin.csv cannot be read as a table"):
        read_scores([str(tmp_path / "latin.csv")])
