"""Wide tables: which columns are models, what a cell may hold, and every way in which a table is bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scoredruns import described, write_run

from fluxentropy.agree import read_scores
from fluxentropy.errors import SourceError, UsageError


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "table.csv cannot be read as a table: .*"),
        ("text,a,b\nx,1\n", "row 1: 2 cells where the header has 3"),
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
