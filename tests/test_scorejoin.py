from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from scoredruns import write_run

from fluxentropy.derivedcolumns import find_derived
from fluxentropy.errors import RunError, SourceError, UsageError
from fluxentropy.scorejoin import check_alike, join_scores
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


def test_values_per_token_of_texts_with_other_tokens_are_refused(tmp_path: Path) -> None:
    """Also where nobody wrote down how the scores were made; values per byte compare."""
    table = {"id": ["a", "b", "c"], "n_tokens": [3, 4, None], "n_bytes": [9, 9, 9], "bits_per_byte": [1.0, 2.0, 3.0]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    file = ScoredFile(number=0, path=tmp_path / "a.parquet", start=0, rows=3, row_bytes=10)
    there = table | {"n_tokens": [3, 5, 7], "n_bytes": [9, 9, 9], "surprisal_mean": [1.0, 2.0, 3.0]}
    tokens = other(tmp_path / "tokens", there)
    with pytest.raises(UsageError, match=r"text b has 4 tokens in .*a\.parquet and 5 in .*tokens.*use bits_per_byte"):
        join_scores([file], tokens, ["surprisal_mean"], tmp_path / "one")
    (found,) = join_scores([file], tokens, ["bits_per_byte_joined"], tmp_path / "two")
    assert joined(found) == {"bits_per_byte_joined": [1.0, 2.0, 3.0]}
    texts = other(tmp_path / "texts", there | {"n_tokens": [3, 4, 7], "n_bytes": [9, 9, 8]})
    with pytest.raises(UsageError, match=r"--by surprisal_mean: text c has 9 bytes in .* and 8 in .*texts"):
        join_scores([file], texts, ["bits_per_byte_joined", "surprisal_mean"], tmp_path / "three")
    same = other(tmp_path / "same", there | {"n_tokens": [3, 4, 7], "id": ["a", "b", "x"]})
    (found,) = join_scores([file], same, ["surprisal_mean", "n_tokens_joined"], tmp_path / "four")
    assert joined(found) == {"surprisal_mean": [1.0, 2.0, None], "n_tokens_joined": [3.0, 4.0, None]}


@pytest.mark.parametrize(
    ("policies", "identity", "message"),
    [
        (
            {"tokenizer": "sha256:bb"},
            {},
            r"tokenizer is that of 'one' \(sha256:aa\) in .*one and that of 'two' \(sha256:bb\) in .*two",
        ),
        ({"max_tokens": 128}, {}, r"max_tokens is 512 in .*one and 128 in .*two"),
        ({"window": "sliding"}, {}, r"window is 'first' in .*one and 'sliding' in .*two"),
        ({"bos_added": True}, {}, r"bos_added is False in .*one and True in .*two"),
        ({}, {"text_field": "body"}, r"text_field is 'text' in .*one and 'body' in .*two"),
        ({}, {"stride": 7}, r"stride is None in .*one and 7 in .*two"),
    ],
)  # fmt: skip
def test_runs_made_otherwise_are_refused_unless_the_values_are_per_byte(
    policies: dict[str, Any], identity: dict[str, Any], message: str, tmp_path: Path
) -> None:
    made = {"tokenizer": "sha256:aa", **policies}
    one = write_run(tmp_path / "one", [1.0, 2.0], policies={"tokenizer": "sha256:aa"}, stride=None)
    two = write_run(tmp_path / "two", [1.0, 3.0], policies=made, **{"stride": None, **identity})
    names = pq.read_schema(next((one / "scores").glob("*.parquet"))).names
    for by in ("entropy_mean_joined", "surprisal_mean_joined - surprisal_mean", "entropy_mean/n_tokens_joined"):
        for path in (two, two / "scores", next((two / "scores").glob("*.parquet"))):
            with pytest.raises(UsageError, match=rf"--by \w+_joined: {message}.*: use bits_per_byte"):
                find_derived([by], names, str(one), str(path))
    check_alike(str(one), str(two), ["bits_per_byte_joined", "quality"], ["id", "bits_per_byte", "quality"])
    alike = write_run(tmp_path / "alike", [1.0, 3.0], policies={"tokenizer": "sha256:aa"}, stride=None)
    assert set(find_derived(["entropy_mean_joined"], names, str(one), str(alike))) == {"entropy_mean_joined"}
