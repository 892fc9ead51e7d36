from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from fluxentropy.errors import RunError, SourceError, UsageError
from fluxentropy.scorejoin import join_scores
from fluxentropy.split import ScoredFile


def scored(path: Path, ids: list[Any], number: int = 0) -> ScoredFile:
    pq.write_table(pa.table({"id": ids, "n": list(range(len(ids)))}), path, row_group_size=2)
    return ScoredFile(number=number, path=path, start=0, rows=len(ids), row_bytes=10)


def other(folder: Path, *parts: dict[str, Any]) -> str:
    folder.mkdir()
    for number, part in enumerate(parts):
        pq.write_table(pa.table(part), folder / f"part-{number}.parquet")
    return str(folder)


def joined(file: ScoredFile) -> dict[str, list[Any]]:
    assert file.scores is not None
    return ipc.open_file(file.scores).read_all().to_pydict()


def test_scores_are_beside_the_rows_of_their_ids(tmp_path: Path) -> None:
    files = [scored(tmp_path / "a.parquet", ["c", "a", None, "a"]), scored(tmp_path / "b.parquet", ["x", "b"], 1)]
    run = other(
        tmp_path / "other",
        {"id": ["a", "b"], "s": [1.5, None], "t": pa.array([1, 2], pa.int32())},
        {"id": ["c", None, "unused"], "s": [3.5, 9.0, 9.0], "t": pa.array([3, 9, 9], pa.int32())},
    )
    found = join_scores(files, run, ["s", "t"], tmp_path / "joined")
    assert joined(found[0]) == {"s": [3.5, 1.5, None, 1.5], "t": [3.0, 1.0, None, 1.0]}
    assert joined(found[1]) == {"s": [None, None], "t": [None, 2.0]}
    assert [path.name for path in sorted((tmp_path / "joined").glob("*.arrow"))] == [
        "part-00000.arrow",
        "part-00001.arrow",
    ]
    (table,) = found[0].batches(100, ["n"], ["s"])
    assert table.to_pydict() == {"n": [0, 1, 2, 3], "s": [3.5, 1.5, None, 1.5]}
    pieces = list(found[0].batches(3, ["n"], ["s"]))
    assert pa.concat_tables(pieces).equals(table) and len(pieces) == 2


def test_many_rows_in_any_order(tmp_path: Path) -> None:
    ids = [f"id-{(n * 7919) % 20_000}" for n in range(20_000)]
    run = other(tmp_path / "other", {"id": sorted(ids), "s": [float(name[3:]) for name in sorted(ids)]})
    (found,) = join_scores([scored(tmp_path / "a.parquet", ids)], run, ["s"], tmp_path / "joined")
    assert joined(found)["s"] == [float(name[3:]) for name in ids]


def test_numbers_as_ids_and_odd_names(tmp_path: Path) -> None:
    folder = tmp_path / "a [1] * it's"
    folder.mkdir()
    run = other(folder / "other", {"id": ["1", "2"], 'of "all"': [1.0, 2.0]})
    (found,) = join_scores([scored(folder / "a.parquet", [2, 1])], run, ['of "all"'], tmp_path / "joined")
    assert joined(found) == {'of "all"': [2.0, 1.0]}


def test_a_file_that_is_made_is_kept(tmp_path: Path) -> None:
    file = scored(tmp_path / "a.parquet", ["a"])
    run = other(tmp_path / "other", {"id": ["a"], "s": [1.0]})
    (found,) = join_scores([file], run, ["s"], tmp_path / "joined")
    assert found.scores is not None
    before = found.scores.stat().st_mtime_ns
    assert join_scores([file], run, ["s"], tmp_path / "joined") == [found]
    assert found.scores.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("columns", "name", "error", "message"),
    [
        ({"id": ["a", "b", "a"], "s": [1.0] * 3}, "s", RunError, "1 texts of .* share an id"),
        ({"id": ["a"], "score": [1.0]}, "scorr", UsageError, r"--by scorr: no such column in .*did you mean score\?"),
        ({"name": ["a"], "s": [1.0]}, "s", UsageError, "--scores needs the column id: no such column in"),
        ({"id": ["a"], "s": ["1.5"]}, "s", UsageError, "--by s: in .* its values are of type string, not numbers"),
    ],
)
def test_runs_that_cannot_be_joined(
    columns: dict[str, Any], name: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    run = other(tmp_path / "other", columns)
    with pytest.raises(error, match=message):
        join_scores([scored(tmp_path / "a.parquet", ["a"])], run, [name], tmp_path / "joined")


def test_input_without_ids(tmp_path: Path) -> None:
    run = other(tmp_path / "other", {"id": ["a"], "s": [1.0]})
    pq.write_table(pa.table({"n": [1]}), tmp_path / "a.parquet")
    file = ScoredFile(number=0, path=tmp_path / "a.parquet", start=0, rows=1, row_bytes=8)
    with pytest.raises(UsageError, match=r"--scores joins by id, but .*a\.parquet has no such column"):
        join_scores([file], run, ["s"], tmp_path / "joined")
    with pytest.raises(SourceError, match="no Parquet file there"):
        join_scores([file], str(tmp_path / "nowhere"), ["s"], tmp_path / "joined")
