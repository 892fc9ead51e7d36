"""Expressions over columns, against Python's own arithmetic."""

from __future__ import annotations

import ast
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scoredruns import write_run

from fluxentropy.cli.app import main
from fluxentropy.errors import RunError, SourceError, UsageError
from fluxentropy.ordering.expressions import Expression, check_alike, find_derived, join_scores, result_name
from fluxentropy.ordering.split import ScoredFile
from tests.ordering.test_bin import bins_of, corpus, folders, read, run, snapshot, write_files

ROWS = {
    "a": np.array([1.5, -2.0, 0.0, np.nan, 7.25]),
    "b": np.array([3.0, 0.1, -1.0, 2.0, 1e-3]),
    "n_tokens": np.array([1.0, 2.0, 3.0, 4.0, np.nan]),
}

leaves = st.sampled_from(["a", "b", "n_tokens", "2", "0.5", ".25", "1e-3", "3.", "1E+2"])

expressions = st.recursive(
    leaves,
    lambda inner: (
        st.tuples(inner, st.sampled_from(["+", " - ", "*", " /"]), inner).map("".join)
        | inner.map("({})".format)
        | inner.map("-{}".format)
        | st.tuples(st.sampled_from(["abs", "exp", "log", "sqrt"]), inner).map(lambda call: f"{call[0]}({call[1]})")
    ),
    max_leaves=12,
)


def by_python(text: str, row: dict[str, float]) -> float:
    """The value of one row, by Python's parser and its own floats."""
    try:
        functions = {"abs": abs, "exp": math.exp, "log": math.log, "sqrt": math.sqrt}
        value = float(eval(compile(ast.parse(text, mode="eval"), "", "eval"), {**functions, **row}))
    except (ZeroDivisionError, OverflowError, ValueError):
        return math.nan
    return value if math.isfinite(value) else math.nan


@given(expressions)
def test_values_are_those_of_python(text: str) -> None:
    found = Expression.parse(text)
    got = found.evaluate(ROWS, {}).tolist()
    for place, value in enumerate(got):
        row = {name: float(column[place]) for name, column in ROWS.items()}
        if any(math.isnan(row[name]) for name in found.columns):
            assert math.isnan(value)
        else:
            want = by_python(text, row)
            # where Python stops half-way (1 / 0 in 1 / (1 / 0)), NumPy goes on with infinities to a finite end
            assert value == want or math.isnan(want), (text, row)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50), st.data())
def test_a_rows_value_does_not_depend_on_its_place(values: list[float], data: st.DataObject) -> None:
    text = data.draw(expressions)
    columns = {name: np.array(values) * (place + 1) for place, name in enumerate(ROWS)}
    whole = Expression.parse(text).evaluate(columns, {})
    for place in range(len(values)):
        alone = Expression.parse(text).evaluate(
            {name: column[place : place + 1] for name, column in columns.items()}, {}
        )
        assert alone.tobytes() == whole[place : place + 1].tobytes()


def test_z_is_standardised() -> None:
    values = np.array([1.0, 2.0, 4.0, np.nan])
    found = Expression.parse("z(a) - 0.5*z( 2*a + `odd name` ) + z(a)")
    assert found.columns == ("a", "odd name")
    assert found.standardised == ("a", "2*a + `odd name`")
    inner = Expression.parse(found.standardised[1])
    assert inner.columns == ("a", "odd name")
    mean, deviation = statistics.fmean(values[:3]), statistics.pstdev(values[:3])
    got = found.evaluate(
        {"a": values, "odd name": -values}, {found.standardised[0]: (mean, deviation), inner.text: (mean, deviation)}
    )
    assert got[:3] == pytest.approx(1.5 * (values[:3] - mean) / deviation)
    assert math.isnan(got[3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a number, a column or ( is missing at its end"),
        ("a +", "a number, a column or ( is missing at its end"),
        ("a b", "an operator + - * / or the end is missing before 'b'"),
        ("2a", "an operator + - * / or the end is missing before 'a'"),
        ("(a", ") is missing at its end"),
        ("a)", "an operator + - * / or the end is missing before ')'"),
        ("a ** b", "a number, a column or ( is missing before '* b'"),
        ("a; b", "an operator + - * / or the end is missing before '; b'"),
        ("logg(a)", "no such function: logg: did you mean log?"),
        ("__import__(a)", "no such function: __import__"),
        ("a.b", "an operator + - * / or the end is missing before '.b'"),
        ("z(z(a))", "z inside of z"),
        ("-" * 400 + "a", "more than 20 parentheses and signs within each other"),
        ("(" * 200, "more than 20 parentheses and signs within each other"),
        ("a+" * 300, "an expression of 600 letters: at most 500 are read"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        Expression.parse(text)
    assert message in str(raised.value)


def test_the_longest_expression_is_evaluated() -> None:
    text = "+".join("a" * 250)
    assert Expression.parse(text).evaluate({"a": np.array([2.0])}, {}).tolist() == [500.0]


def test_names_of_results() -> None:
    assert result_name("surprisal_mean - surprisal_mean_joined") == "surprisal_mean_minus_surprisal_mean_joined"
    assert result_name("-2*(a+b)") == "minus_2_times_a_plus_b"
    assert result_name("1/a") == "score_1_over_a"
    assert len(result_name("+".join("abc" * 50))) <= 60


@pytest.mark.parametrize("name", ["class", "None", "lambda", "ﬁ", "naïve", "²", "`a-b`", "`for`", "`1/2`", "` a (b) `"])
def test_columns_whose_names_mean_something_else_to_python(name: str) -> None:
    column = name.strip("`")
    found = Expression.parse(f"2*{name} - abs({name}) + 007")
    assert found.columns == (column,)
    assert found.evaluate({column: np.array([-1.5, 3.0])}, {}).tolist() == [2.5, 10.0]


# --- `bin --by EXPRESSION` end to end: the values, their bins and what is written of them, as NumPy finds ---


__all__ = ["run"]  # the fixture


def column(table: pa.Table, name: str) -> np.ndarray:
    return np.array([np.nan if x is None else x for x in table[name].to_pylist()], float)


def by_hand(table: pa.Table, values: np.ndarray, edges: list[float]) -> dict[str, int | None]:
    bins = [None if np.isnan(x) else int(sum(x > edge for edge in edges)) for x in values]
    return dict(zip(table["id"].to_pylist(), bins, strict=True))


def test_bins_by_an_expression(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in")
    by = "entropy_mean - 0.5*varentropy_mean"
    values = column(table, "entropy_mean") - 0.5 * column(table, "varentropy_mean")
    edges = np.quantile(values[~np.isnan(values)], [0.25, 0.5, 0.75]).tolist()
    command = (tmp_path / "in", "--by", by, "--bins", 4)
    code, data, _ = run(*command, "--out", tmp_path / "out")
    name = "entropy_mean_minus_0_5_times_varentropy_mean"
    assert (code, data["by"], data["edges"], data["columns"], data["standards"]) == (0, by, edges, {by: name}, {})
    assert bins_of(tmp_path / "out") == by_hand(table, values, edges)
    whole = pa.concat_tables(map(read, folders(tmp_path / "out")))
    assert whole.column_names == [*table.column_names, name, "bin"]
    found = dict(zip(whole["id"].to_pylist(), column(whole, name), strict=True))
    np.testing.assert_array_equal([found[key] for key in table["id"].to_pylist()], values)
    assert main(["verify", str(tmp_path / "out")]) == 0
    before = snapshot(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "data" / "bin=01")
    assert run(*command, "--out", tmp_path / "out")[0] == 0  # makes what is missing
    assert snapshot(tmp_path / "out") == before
    write_files(tmp_path / "one", table, 1)
    assert (
        run(tmp_path / "one", "--by", by, "--bins", 4, "--workers", 2, "--out", tmp_path / "same")[1]["edges"] == edges
    )
    assert bins_of(tmp_path / "same") == bins_of(tmp_path / "out")


def test_standardised_columns_and_their_edges_for_another_corpus(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in")
    by = "z(entropy_mean) + z(2*n_tokens)"
    parts = [column(table, "entropy_mean"), 2 * column(table, "n_tokens")]
    standards = [(np.nanmean(x), np.nanstd(x)) for x in parts]
    values = sum((x - mean) / deviation for x, (mean, deviation) in zip(parts, standards, strict=True))
    code, data, _ = run(tmp_path / "in", "--by", by, "--bins", 3, "--order", "score", "--out", tmp_path / "out")
    assert (code, data["columns"][by]) == (0, "z_entropy_mean_plus_z_2_times_n_tokens")
    assert data["edges"] == pytest.approx(np.quantile(values[~np.isnan(values)], [1 / 3, 2 / 3]))
    assert data["standards"]["2*n_tokens"] == pytest.approx(standards[1])
    assert bins_of(tmp_path / "out") == by_hand(table, values, data["edges"])
    ordered = column(read(tmp_path / "out" / "data" / "bin=01"), data["columns"][by])
    assert len(ordered) > 100 and (np.diff(ordered) >= 0).all()
    assert main(["verify", str(tmp_path / "out")]) == 0

    second = corpus(tmp_path / "other", rows=200, seed=5)  # its own means are others: those of the edges count
    code, again, _ = run(tmp_path / "other", "--edges", tmp_path / "out" / "bins.json", "--out", tmp_path / "cut")
    assert (code, again["standards"]) == (0, data["standards"])
    x, y = (column(second, name) for name in ("entropy_mean", "n_tokens"))
    (m, d), (n, e) = data["standards"]["entropy_mean"], data["standards"]["2*n_tokens"]
    assert bins_of(tmp_path / "cut") == by_hand(second, (x - m) / d + (2 * y - n) / e, data["edges"])


def test_learnability_of_two_runs(run: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    loss = {name: rng.normal(3, 1, 500) for name in ("small", "large")}
    small = corpus(tmp_path / "small", bits_per_byte=loss["small"])
    ids = small["id"].to_pylist()
    (tmp_path / "large").mkdir()
    pq.write_table(pa.table({"id": ids[:490], "bits_per_byte": loss["large"][:490]}), tmp_path / "large" / "l.parquet")
    command = (tmp_path / "small", "--by", "learnability", "--bins", 4)
    code, data, _ = run(*command, "--scores", tmp_path / "large", "--out", tmp_path / "out")
    values = np.append(loss["small"][:490] - loss["large"][:490], [np.nan] * 10)
    assert (code, data["unscored"], data["columns"]) == (0, 10, {"learnability": "learnability"})
    assert data["edges"] == np.quantile(values[:490], [0.25, 0.5, 0.75]).tolist()
    assert bins_of(tmp_path / "out") == by_hand(small, values, data["edges"])
    grid = ("--by", "learnability,entropy_mean", "--grid", "2x2", "--scores", tmp_path / "large")
    code, data, _ = run(tmp_path / "small", *grid, "--out", tmp_path / "grid")
    assert (code, data["by"]) == (0, ["learnability", "entropy_mean"])
    assert main(["verify", str(tmp_path / "grid")]) == 0
    code, data, _ = run(*command, "--out", tmp_path / "alone")
    assert (code, "bits_per_byte_joined in " in data["error"], "--scores" in data["error"]) == (2, True, True)


def test_surprisal_minus_entropy_from_the_columns_of_a_run(run: Any, tmp_path: Path) -> None:
    """The positions that have both are all but the last: 2 tokens with entropies 1 and 5 have the one of 1."""
    columns = {"surprisal_mean": [3.0, None, 2.5], "entropy_sum": [6.0, 4.0, 5.0], "entropy_last": [5.0, 4.0, 1.0]}
    table = pa.table({"id": ["a", "b", "c"], "n_tokens": [2, 1, 3], **columns})
    write_files(tmp_path / "in", table, 1)
    code, data, err = run(
        tmp_path / "in", "--by", "surprisal_minus_entropy", "--bins", 2, "--order", "source", "--out", tmp_path / "out"
    )
    assert (code, data["edges"], data["unscored"]) == (0, [1.25], 1)
    assert bins_of(tmp_path / "out") == {"a": 1, "b": None, "c": 0}
    assert "no finite result" not in err  # b has no surprisal in the first place


def test_a_result_that_is_not_finite_is_no_score(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in", kind=[0.0, 1.0, 2.0, 4.0] * 125)
    code, data, err = run(tmp_path / "in", "--by", "1/kind", "--bins", 2, "--out", tmp_path / "out")
    assert (code, data["unscored"], data["edges"]) == (0, 125, [0.5])
    assert "125 rows have all columns of the expression, but no finite result" in err
    assert bins_of(tmp_path / "out") == by_hand(table, np.array([np.nan, 1.0, 0.5, 0.25] * 125), [0.5])


def test_a_column_with_the_name_of_a_result(run: Any, tmp_path: Path) -> None:
    corpus(tmp_path / "in", z_kind=[7] * 500, kind=[1, 2] * 250, **{"odd-name": range(500), "a-b": [2, 1] * 250})
    code, data, _ = run(tmp_path / "in", "--by", "z(kind)", "--bins", 2, "--out", tmp_path / "out")
    assert (code, data["columns"]) == (0, {"z(kind)": "z_kind_2"})
    code, data, _ = run(tmp_path / "in", "--by", "`odd-name`/2", "--bins", 2, "--out", tmp_path / "odd")
    assert (code, data["edges"], data["columns"]) == (0, [124.75], {"`odd-name`/2": "odd_name_over_2"})
    code, data, _ = run(tmp_path / "in", "--by", "a-b", "--bins", 2, "--out", tmp_path / "plain")  # a column it is
    assert (code, data["edges"], "columns" in data) == (0, [1.5], False)


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
