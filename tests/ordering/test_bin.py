"""`fluxentropy bin` end to end: every row in its place, as brute force finds it; refusals."""

from __future__ import annotations

import datetime
import decimal
import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from scoredruns import write_run

from fluxentropy.cli.app import main
from fluxentropy.ordering.shards import sum_of_rows
from fluxentropy.ordering.split import mix

Run = tuple[int, dict[str, Any], str]


def corpus(folder: Path, rows: int = 500, files: int = 3, seed: int = 0, **columns: Any) -> pa.Table:
    """Rows with ties, nulls and NaN among their scores, in `files` Parquet files; returns all of them."""
    rng = np.random.default_rng(seed)
    scores = np.where(rng.random(rows) < 0.5, rng.normal(3, 1, rows), rng.integers(0, 6, rows))
    scores[rng.random(rows) < 0.03] = np.nan
    table = pa.table(
        {
            "id": [f"id-{row}" for row in range(rows)],
            "text": [f"text {row} " * (row % 7) for row in range(rows)],
            "entropy_mean": pa.array(scores, mask=rng.random(rows) < 0.05),
            "varentropy_mean": pa.array(rng.gamma(2, 2, rows), mask=rng.random(rows) < 0.05),
            "n_tokens": pa.array(rng.integers(0, 100, rows), pa.int32()),
            **{name: pa.array(values) for name, values in columns.items()},
        }
    )
    write_files(folder, table, files)
    return table


def write_files(folder: Path, table: pa.Table, files: int) -> None:
    folder.mkdir(parents=True)
    for number in range(files):
        start, stop = (len(table) * place // files for place in (number, number + 1))
        pq.write_table(table.slice(start, stop - start), folder / f"part-{number}.parquet", row_group_size=60)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command: exit code, the JSON object on stdout, and stderr."""

    def call(*argv: object) -> Run:
        capsys.readouterr()
        code = main(["bin", *map(str, argv), "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out), captured.err

    return call


def folders(out: Path) -> list[Path]:
    return [*sorted((out / "data").iterdir()), *out.glob("unscored")]


def read(folder: Path) -> pa.Table:
    return pa.concat_tables(ipc.open_file(path).read_all() for path in sorted(folder.glob("*.arrow")))


def bins_of(out: Path) -> dict[str, int | None]:
    """The bin of each id; its row is in the folder of that bin, once."""
    found: dict[str, int | None] = {}
    for folder in folders(out):
        number = None if folder.name == "unscored" else int(folder.name.removeprefix("bin="))
        for row in read(folder).select(["id", "bin"]).to_pylist():
            assert row["id"] not in found
            assert row["bin"] == number
            found[row["id"]] = number
    return found


def assigned(table: pa.Table, by: str, edges: Any) -> list[int | None]:
    """The bins by brute force."""
    values = table[by].to_pylist()
    return [None if x is None or np.isnan(x) else sum(x > edge for edge in edges) for x in values]


def snapshot(out: Path) -> dict[str, bytes]:
    """Every file but the lock, also hidden ones; not the configuration, which names --out, nor its SHA-256."""
    files = (
        path
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in (".lock", ".records.json", CONFIG)
    )
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


CONFIG = "config.resolved.yaml"


# --- edges ------------------------------------------------------------------------------------------------------------


def finite(table: pa.Table, name: str) -> np.ndarray:
    values = np.array([np.nan if x is None else x for x in table[name].to_pylist()], float)
    return values[~np.isnan(values)]


def expected_edges(table: pa.Table, flags: list[str]) -> list[float]:
    scores = finite(table, "entropy_mean")
    match flags:
        case ["--bins", bins]:
            return np.quantile(scores, np.arange(1, int(bins)) / int(bins)).tolist()
        case ["--quantiles", percents]:
            return np.quantile(scores, np.array(percents.split(","), float) / 100).tolist()
        case ["--bins", bins, "--weight", name]:
            there = [x is not None and not np.isnan(x) for x in table["entropy_mean"].to_pylist()]
            weights = table[name].filter(pa.array(there)).to_numpy()
            levels = np.arange(1, int(bins)) / int(bins)
            return np.quantile(scores, levels, weights=weights, method="inverted_cdf").tolist()
        case ["--edges", values]:
            return [float(value) for value in values.split(",")]
    raise AssertionError(flags)


@pytest.mark.parametrize(
    "flags",
    [
        ["--bins", "4"],
        ["--quantiles", "10,25,50,75,90"],
        ["--bins", "3", "--weight", "n_tokens"],
        ["--edges", "1,2.5,4"],
        ["--edges", "-1,2.5,400"],
    ],
    ids=" ".join,
)
def test_edges_and_the_bin_of_every_row(flags: list[str], run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in")
    flags = [f"--edges={flags[1]}"] if flags[0] == "--edges" else flags
    code, data, _ = run(tmp_path / "in", *flags, "--out", tmp_path / "out")
    assert code == 0
    edges = expected_edges(table, flags[0].split("=", 1) if "=" in flags[0] else flags)
    assert data["edges"] == edges
    expected = assigned(table, "entropy_mean", edges)
    assert bins_of(tmp_path / "out") == dict(zip(table["id"].to_pylist(), expected, strict=True))
    found = json.loads((tmp_path / "out" / "bins.json").read_text())
    tokens = table["n_tokens"].to_pylist()
    assert found["counts"] == [expected.count(number) for number in range(len(edges) + 1)]
    assert found["tokens"] == [
        sum(n for n, place in zip(tokens, expected, strict=True) if place == number) for number in range(len(edges) + 1)
    ]
    assert (found["rows"], found["unscored"]) == (500, expected.count(None))
    assert found["hash"] == sum_of_rows(table)
    assert found["by"] == "entropy_mean"


def test_stats_against_numpy(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in")
    _, data, _ = run(tmp_path / "in", "--bins", 3, "--out", tmp_path / "out")
    scores = finite(table, "entropy_mean")
    stats = data["stats"]
    assert (stats["count"], stats["nulls"]) == (len(scores), table["entropy_mean"].null_count)
    assert stats["nan"] == 500 - len(scores) - table["entropy_mean"].null_count > 0
    assert (stats["min"], stats["max"]) == (scores.min(), scores.max())
    assert stats["mean"] == pytest.approx(scores.mean(), rel=1e-14)
    assert stats["std"] == pytest.approx(scores.std(), rel=1e-13)
    for percent, value in stats["percentiles"].items():
        assert value == np.quantile(scores, int(percent) / 100)


def test_grid_of_two_scores(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in")
    flags = ["--by", "entropy_mean,varentropy_mean", "--grid", "2x3"]
    code, data, _ = run(tmp_path / "in", *flags, "--out", tmp_path / "out")
    assert code == 0
    edges = [
        np.quantile(finite(table, name), np.arange(1, n) / n).tolist()
        for name, n in (("entropy_mean", 2), ("varentropy_mean", 3))
    ]
    assert (data["by"], data["edges"], data["grid"]) == (["entropy_mean", "varentropy_mean"], edges, [2, 3])
    first, second = (assigned(table, name, axis) for name, axis in zip(data["by"], edges, strict=True))
    expected = [None if a is None or b is None else 3 * a + b for a, b in zip(first, second, strict=True)]
    assert bins_of(tmp_path / "out") == dict(zip(table["id"].to_pylist(), expected, strict=True))
    assert [stats["count"] for stats in data["stats"]] == [len(finite(table, name)) for name in data["by"]]


def test_edges_of_another_corpus(run: Any, tmp_path: Path) -> None:
    corpus(tmp_path / "first", seed=1)
    table = corpus(tmp_path / "second", seed=2)
    for flags in (
        ["--by", "varentropy_mean", "--bins", "3"],
        ["--by", "entropy_mean,varentropy_mean", "--grid", "2x2"],
    ):
        one, two = tmp_path / f"one-{flags[-1]}", tmp_path / f"two-{flags[-1]}"
        _, first, _ = run(tmp_path / "first", *flags, "--out", one)
        _, data, _ = run(tmp_path / "second", "--edges", one / "bins.json", "--out", two)
        assert [data[name] for name in ("by", "edges", "fingerprint")] == [
            first[name] for name in ("by", "edges", "fingerprint")
        ]
    expected = assigned(table, "varentropy_mean", json.loads((tmp_path / "one-3" / "bins.json").read_text())["edges"])
    assert bins_of(tmp_path / "two-3") == dict(zip(table["id"].to_pylist(), expected, strict=True))
    code, data, _ = run(
        tmp_path / "second", "--by", "n_tokens", "--edges", tmp_path / "one-3" / "bins.json", "--out", tmp_path / "x"
    )
    assert (code, "are of varentropy_mean" in data["error"]) == (2, True)


def test_scores_joined_from_another_run(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in")
    ids = table["id"].to_pylist()
    other = {name: float(number % 11) for number, name in enumerate(ids) if number % 5}
    shuffled = sorted(other, key=lambda name: mix(np.array([int(name[3:])], np.uint64))[0])
    (tmp_path / "other").mkdir()
    pq.write_table(
        pa.table({"id": shuffled, "difficulty": [other[name] for name in shuffled]}), tmp_path / "other/o.parquet"
    )
    flags = ["--by", "difficulty", "--scores", tmp_path / "other", "--bins", 3]
    code, data, _ = run(tmp_path / "in", *flags, "--out", tmp_path / "out")
    assert code == 0
    edges = np.quantile(list(other.values()), [1 / 3, 2 / 3])
    assert data["edges"] == edges.tolist()
    expected = {name: None if name not in other else sum(other[name] > edge for edge in edges) for name in ids}
    assert bins_of(tmp_path / "out") == expected
    whole = pa.concat_tables(map(read, folders(tmp_path / "out")))
    assert dict(zip(whole["id"].to_pylist(), whole["difficulty"].to_pylist(), strict=True)) == {
        name: other.get(name) for name in ids
    }
    both = ["--by", "entropy_mean,difficulty", "--grid", "2x2", "--scores", tmp_path / "other"]
    code, data, _ = run(tmp_path / "in", *both, "--out", tmp_path / "grid")
    assert (code, data["by"]) == (0, ["entropy_mean", "difficulty"])


def test_joined_scores_that_the_run_has_itself(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in")
    ids = table["id"].to_pylist()
    other = {name: float(number % 11) for number, name in enumerate(ids)}
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"id": ids, "entropy_mean": list(other.values())}), tmp_path / "other/o.parquet")
    joined = ["--scores", tmp_path / "other"]
    code, data, _ = run(tmp_path / "in", *joined, "--bins", 3, "--out", tmp_path / "out")
    assert (code, data["by"]) == (0, "entropy_mean_joined")
    assert data["edges"] == np.quantile(list(other.values()), [1 / 3, 2 / 3]).tolist()
    whole = pa.concat_tables(map(read, folders(tmp_path / "out")))
    for name, values in (("entropy_mean_joined", other.values()), ("entropy_mean", table["entropy_mean"].to_pylist())):
        found = dict(zip(whole["id"].to_pylist(), whole[name].to_pylist(), strict=True))
        np.testing.assert_array_equal(np.array([found[name] for name in ids], float), np.array(list(values), float))
    both = ["--by", "entropy_mean,entropy_mean_joined", "--grid", "2x2", "--out", tmp_path / "grid"]
    code, data, _ = run(tmp_path / "in", *joined, *both)
    assert (code, data["by"]) == (0, ["entropy_mean", "entropy_mean_joined"])
    edges = tmp_path / "out" / "bins.json"
    code, data, _ = run(tmp_path / "in", *joined, "--edges", edges, "--out", tmp_path / "again")
    assert (code, bins_of(tmp_path / "again")) == (0, bins_of(tmp_path / "out"))
    assert main(["verify", str(tmp_path / "grid")]) == 0


def test_fewer_values_than_bins(run: Any, tmp_path: Path) -> None:
    corpus(tmp_path / "in", kind=[1, 2, 3, 2] * 125)
    code, data, err = run(tmp_path / "in", "--by", "kind", "--bins", 10, "--out", tmp_path / "out")
    assert (code, data["counts"], data["requested"]) == (0, [125, 250, 125], 10)
    assert "kind: 3 of 10 bins" in err


def test_more_bins_than_a_process_may_have_open_files(run: Any, tmp_path: Path) -> None:
    corpus(tmp_path / "in", rows=400, files=1, place=list(range(400)))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = 50
    try:
        with open(tmp_path / "in" / "part-0.parquet") as lowest:
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno() + free, hard))
        code, data, _ = run(tmp_path / "in", "--by", "place", "--bins", 4 * free, "--out", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (code, data["counts"]) == (0, [2] * 4 * free)
    assert (tmp_path / "out" / "data" / "bin=007").is_dir() and (tmp_path / "out" / "data" / "bin=199").is_dir()


# --- rows -------------------------------------------------------------------------------------------------------------


def test_columns_keep_their_types_and_values(run: Any, tmp_path: Path) -> None:
    rows = 40
    stamps = [datetime.datetime(2024, 2, 29, n % 24, tzinfo=datetime.UTC) for n in range(rows)]
    rich = {
        "tags": pa.array([["a"] * (n % 3) for n in range(rows)], pa.list_(pa.string())),
        "large_tags": pa.array([[n] for n in range(rows)], pa.large_list(pa.int16())),
        "pair": pa.array([[n, -n] for n in range(rows)], pa.list_(pa.float32(), 2)),
        "meta": pa.array([{"url": f"u{n}", "n": n} for n in range(rows)]),
        "map": pa.array([[("k", n)] for n in range(rows)], pa.map_(pa.string(), pa.int64())),
        "stamp": pa.array(stamps, pa.timestamp("us", "UTC")),
        "date": pa.array([stamp.date() for stamp in stamps]),
        "long": pa.array([f"l{n}" for n in range(rows)], pa.large_string()),
        "raw": pa.array([bytes([n, 255]) for n in range(rows)], pa.binary()),
        "price": pa.array([decimal.Decimal(n) / 100 for n in range(rows)], pa.decimal128(10, 2)),
        "flag": pa.array([None, True] * (rows // 2)),
        "half": pa.array(np.arange(rows, dtype=np.float16)),
        "nothing": pa.nulls(rows),
        "language": pa.array(["en", "de"] * (rows // 2)).dictionary_encode(),
    }
    table = corpus(tmp_path / "in", rows=rows, **rich)
    code, _, _ = run(tmp_path / "in", "--bins", 2, "--order", "source", "--workers", 2, "--out", tmp_path / "out")
    assert code == 0
    found = pa.concat_tables(map(read, folders(tmp_path / "out")))
    pair = pa.struct([pa.field("key", pa.string(), nullable=False), pa.field("value", pa.int64())])
    kinds = {
        "language": pa.string(),  # a file's dictionary is its own: what is kept is the values
        "map": pa.list_(pa.field("entries", pair, nullable=False)),  # `datasets` has no maps
    }
    plain = pa.schema([field.with_type(kinds.get(field.name, field.type)) for field in table.schema])
    assert found.schema == pa.schema([*plain, pa.field("bin", pa.int32())])
    by_id = {row["id"]: row for row in map(as_written, found.drop_columns(["bin"]).to_pylist())}
    written = [row | {"map": [{"key": "k", "value": row["map"][0][1]}]} for row in table.to_pylist()]
    assert by_id == {row["id"]: row for row in map(as_written, written)}


def as_written(row: dict[str, Any]) -> dict[str, Any]:
    """`row` with its NaN as text, which equals itself."""
    return {name: "NaN" if isinstance(value, float) and value != value else value for name, value in row.items()}


def test_a_column_named_bin_gives_way(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in", bin=list(range(500)), source_bin=["x"] * 500)
    flags = ["--by", "bin", "--bins", 2, "--order", "score"]
    code, data, _ = run(tmp_path / "in", *flags, "--out", tmp_path / "out")
    assert (code, data["counts"]) == (0, [250, 250])
    found = read(tmp_path / "out" / "data" / "bin=01")
    assert found.schema.names == [*table.schema.names[:-2], "source_source_bin", "source_bin", "bin"]
    assert found["source_source_bin"].to_pylist() == list(range(250, 500))
    assert set(found["bin"].to_pylist()) == {1}
    assert set(found["source_bin"].to_pylist()) == {"x"}


@pytest.mark.parametrize("order", ["shuffle", "score", "source"])
def test_orders_do_not_depend_on_the_files(order: str, run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "one", files=1)
    write_files(tmp_path / "many", table, 7)
    shards = []
    for name in ("one", "many"):
        run(tmp_path / name, "--bins", 2, "--order", order, "--out", tmp_path / f"out-{name}")
        files = snapshot(tmp_path / f"out-{name}")
        shards.append({name: data for name, data in files.items() if name != "manifest.json"})  # names the files
    assert shards[0] == shards[1]
    rows = {name: row for row, name in enumerate(table["id"].to_pylist())}
    scores = table["entropy_mean"].to_pylist()
    for folder in folders(tmp_path / "out-one"):
        found = [rows[name] for name in read(folder)["id"].to_pylist()]
        keys = {
            "source": lambda row: row,
            "shuffle": lambda row: int(mix(np.array([row], np.uint64) ^ mix(np.array([0], np.uint64)))[0]),
            "score": lambda row: (scores[row] is None, scores[row] != scores[row], scores[row] or 0, row),
        }
        if order == "score" and folder.name == "unscored":  # NaN before null
            nulls = [scores[row] is None for row in found]
            assert nulls == sorted(nulls) and sorted(found) == sorted(
                rows[name] for name in read(folder)["id"].to_pylist()
            )
        else:
            assert found == sorted(found, key=keys[order])


def test_seed_of_the_shuffle(run: Any, tmp_path: Path) -> None:
    corpus(tmp_path / "in")
    orders = []
    for name, seed in (("a", 0), ("b", 1), ("c", 1)):
        run(tmp_path / "in", "--bins", 2, "--seed", seed, "--out", tmp_path / name)
        orders.append(read(tmp_path / name / "data" / "bin=00")["id"].to_pylist())
    assert orders[0] != orders[1] == orders[2]
    assert sorted(orders[0]) == sorted(orders[1])
    places = np.array([int(name[3:]) for name in orders[0]])
    assert abs(np.corrcoef(places, np.arange(len(places)))[0, 1]) < 0.2  # 1 for the source's order


def test_shard_size(run: Any, tmp_path: Path) -> None:
    corpus(tmp_path / "in", rows=6000, body=["y" * 1000] * 6000)
    run(tmp_path / "in", "--bins", 2, "--shard-size", "1MB", "--out", tmp_path / "out")
    for folder in folders(tmp_path / "out"):
        sizes = [ipc.open_file(path).read_all().num_rows for path in sorted(folder.glob("*.arrow"))]
        assert all(size == 1024 for size in sizes[:-1]) and 0 < sizes[-1] <= 1024


def test_one_text_of_5_mb(run: Any, tmp_path: Path) -> None:
    texts = ["small"] * 100
    texts[37] = "long " * 1_000_000
    corpus(tmp_path / "in", rows=100, body=texts)
    code, _, _ = run(tmp_path / "in", "--bins", 2, "--memory", "16MiB", "--out", tmp_path / "out")
    found = pa.concat_tables(map(read, folders(tmp_path / "out")))
    assert code == 0
    assert dict(zip(found["id"].to_pylist(), found["body"].to_pylist(), strict=True))["id-37"] == texts[37]


# --- the same bytes, whoever makes them -------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_cores_memory_and_repetition_change_no_byte(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(97, 123, size))) for size in rng.integers(0, 6000, 6000)]
    corpus(tmp_path / "in", rows=6000, body=[text or None for text in texts])
    flags = ["--bins", 2, "--shard-size", "2MB"]
    for name, more in {
        "one": [],
        "two": ["--workers", 2],
        "disk": ["--memory", "16MiB"],  # 4 MB are sorted at a time, of 9 in a bin
    }.items():
        assert run(tmp_path / "in", *flags, *more, "--out", tmp_path / name)[0] == 0
    for number in (1, 3):
        monkeypatch.setattr("fluxentropy.ordering.bin.usable_cores", lambda number=number: number)
        assert run(tmp_path / "in", *flags, "--out", tmp_path / f"cores {number}")[0] == 0
    files = snapshot(tmp_path / "one")
    assert len(files) > 8
    assert snapshot(tmp_path / "cores 1") == snapshot(tmp_path / "cores 3") == files
    assert snapshot(tmp_path / "two") == files
    assert snapshot(tmp_path / "disk") == files
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.arrow")}
    assert run(tmp_path / "in", *flags, "--out", tmp_path / "one")[0] == 0
    assert snapshot(tmp_path / "one") == files
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.arrow")} == before


def test_another_configuration_is_refused_with_the_difference(run: Any, tmp_path: Path) -> None:
    corpus(tmp_path / "in")
    out = tmp_path / "out"
    run(tmp_path / "in", "--bins", 3, "--out", out)
    before = snapshot(out)
    for flags, difference in [
        (["--bins", 4], "bins is 3 there and 4 here"),
        (["--bins", 3, "--seed", 7], "seed is 0 there and 7 here"),
        (["--bins", 3, "--order", "score"], "order is 'shuffle' there and 'score' here"),
        (["--bins", 3, "--by", "n_tokens"], "by is ['entropy_mean'] there and ['n_tokens'] here"),
        (["--bins", 3, "--shard-size", "1MB"], "shard_bytes is 256000000 there and 1000000 here"),
    ]:
        code, data, _ = run(tmp_path / "in", *flags, "--out", out)
        assert (code, difference in data["error"]) == (1, True), data
    assert snapshot(out) == before
    code, _, _ = run(tmp_path / "in", "--bins", 2, "--out", out, "--overwrite")
    assert (code, [path.name for path in folders(out)]) == (0, ["bin=00", "bin=01", "unscored"])


def test_a_file_that_changed_is_refused_by_name(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in")
    run(tmp_path / "in", "--bins", 3, "--out", tmp_path / "out")
    pq.write_table(table.slice(0, 100), tmp_path / "in" / "part-1.parquet")
    code, data, _ = run(tmp_path / "in", "--bins", 3, "--out", tmp_path / "out")
    assert (code, "inputs.part-1.parquet is" in data["error"]) == (1, True), data


def test_a_folder_of_other_files_is_left_alone(run: Any, tmp_path: Path) -> None:
    corpus(tmp_path / "in")
    (tmp_path / "mine" / "bin=00").mkdir(parents=True)
    (tmp_path / "mine" / "bin=00" / "part-00000.arrow").write_text("not yours")
    for more in ([], ["--overwrite"]):
        code, data, _ = run(tmp_path / "in", "--bins", 3, "--out", tmp_path / "mine", *more)
        assert (code, "is not a run directory (it holds bin=00)" in data["error"]) == (1, True)
    assert (tmp_path / "mine" / "bin=00" / "part-00000.arrow").read_text() == "not yours"


# --- mistakes and odd input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--by", "entropy_meen", "--bins", "2"], 2, "did you mean entropy_mean?"),
        (["--weight", "n_token", "--bins", "2"], 2, "--weight n_token: no such column in"),
        (["--by", "text", "--bins", "2"], 2, "column text: its values are of type string, not numbers"),
        (["--weight", "varentropy_mean", "--bins", "2"], 2, "weight column varentropy_mean"),
        ([], 2, "give one of --bins, --quantiles, --grid and --edges"),
        (["--bins", "2", "--edges", "1,2"], 2, "here is --bins and --edges"),
        (["--bins", "1"], 2, "from 2 to"),
        (["--quantiles", "10,x"], 2, "--quantiles 10,x"),
        (["--quantiles", "50,10"], 2, "ascending"),
        (["--edges", "2,1"], 2, "ascending"),
        (["--grid", "2x2"], 2, "give two columns"),
        (["--by", "entropy_mean,n_tokens", "--bins", "2"], 2, "two columns need --grid"),
        (["--by", "entropy_mean,n_tokens", "--grid", "4"], 2, "a grid such as 4x4"),
        (["--edges", "1,2", "--weight", "n_tokens"], 2, "--weight with --edges"),
        (["--edges", "none.json"], 2, "none.json: no such file"),
        (["--bins", "2", "--memory", "1MB"], 2, "--memory 1MB: use 16 MiB or more"),
        (["--bins", "2", "--shard-size", "big"], 2, "--shard-size big: write a number with a unit"),
        (["--bins", "2", "--workers", "0"], 2, "--workers 0: use 1 or more"),
        (["--bins", "2", "--scores", "elsewhere"], 1, "elsewhere: no Parquet file there"),
        (["--by", "far", "--bins", "2", "--scores", "nowhere"], 1, "nowhere: no Parquet file there"),
        (["--by", "entropy-mean", "--bins", "2"], 2, "--by entropy-mean: no such column in"),
        (["--by", "entropy_mean - n_token", "--bins", "2"], 2, "no such column: n_token in"),
        (["--by", "entropy_mean - n_tokens_joined", "--bins", "2"], 2, "name the other run with --scores"),
        (["--by", "entropy_mean +", "--bins", "2"], 2, "a number, a column or ( is missing at its end"),
        (["--by", "zz(entropy_mean)", "--bins", "2"], 2, "no such function: zz: did you mean z?"),
        (["--by", "2*text", "--bins", "2"], 2, "column text: its values are of type string, not numbers"),
        (["--by", "z(n_tokens - n_tokens)", "--bins", "2"], 2, "all values are the same"),
        (["--by", "n_tokens - id/2", "--bins", "2"], 2, "rows 0 to 166: column id"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_clear_line(flags: list[str], code: int, message: str, run: Any, tmp_path: Path) -> None:
    corpus(tmp_path / "in")
    got, data, err = run(tmp_path / "in", *flags, "--out", tmp_path / "out")
    assert (got, message in data["error"]) == (code, True), data
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "bins.json").exists()


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinite_scores_are_refused_by_file_and_row(value: float, run: Any, tmp_path: Path) -> None:
    scores = np.ones(500)
    scores[400] = value
    corpus(tmp_path / "in", odd=scores)
    code, data, _ = run(tmp_path / "in", "--by", "odd", "--bins", 2, "--out", tmp_path / "out")
    assert code == 2
    assert "part-2.parquet, rows 0 to 167: column odd: 1 of 167 values are infinite" in data["error"]
    assert f"{value} in row 67" in data["error"]


def test_nothing_to_bin(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in", rows=20, none=pa.nulls(20, pa.float64()), nan=np.full(20, np.nan))
    for by in ("none", "nan"):
        code, data, _ = run(tmp_path / "in", "--by", by, "--bins", 2, "--out", tmp_path / "out")
        assert (code, f"no row of {tmp_path / 'in'} has a score" in data["error"]) == (2, True)
    code, data, _ = run(tmp_path / "in", "--by", "none", "--edges", "1", "--out", tmp_path / "fixed")
    assert (code, data["counts"], data["unscored"], data["stats"]["mean"]) == (0, [0, 0], 20, None)
    write_files(tmp_path / "empty", table.slice(0, 0), 1)
    for number, how in enumerate((["--bins", 2], ["--quantiles", "10,50"], ["--edges", "1,2"])):
        code, data, _ = run(tmp_path / "empty", *how, "--out", tmp_path / str(number))
        assert (code, data["rows"], sum(data["counts"]), data["stats"]["mean"]) == (0, 0, 0, None)
        assert data["edges"] == ([1.0, 2.0] if number == 2 else [])
        assert main(["verify", str(tmp_path / str(number))]) == 0


def test_a_file_without_rows_among_others(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in")
    pq.write_table(table.slice(0, 0), tmp_path / "in" / "part-00.parquet")
    code, data, _ = run(tmp_path / "in", "--bins", 3, "--out", tmp_path / "out")
    assert (code, data["rows"]) == (0, 500)


def test_mixed_types_are_unified_or_both_files_named(run: Any, tmp_path: Path) -> None:
    for name, value in (("a", pa.array([1, 2])), ("b", pa.nulls(2))):
        (tmp_path / "in").mkdir(exist_ok=True)
        pq.write_table(pa.table({"entropy_mean": [1.0, 2.0], "x": value}), tmp_path / "in" / f"{name}.parquet")
    code, _, _ = run(tmp_path / "in", "--bins", 2, "--out", tmp_path / "out")
    assert code == 0
    assert read(tmp_path / "out" / "data" / "bin=00")["x"].to_pylist().count(None) == 1
    pq.write_table(pa.table({"entropy_mean": [1.0], "x": ["text"]}), tmp_path / "in" / "c.parquet")
    code, data, _ = run(tmp_path / "in", "--bins", 2, "--out", tmp_path / "other")
    assert code == 1
    assert "c.parquet" in data["error"] and "a.parquet" in data["error"]


def test_damaged_file_is_named(run: Any, tmp_path: Path) -> None:
    corpus(tmp_path / "in", rows=5000)
    path = tmp_path / "in" / "part-1.parquet"
    data = bytearray(path.read_bytes())
    data[2000:3000] = bytes(1000)
    path.write_bytes(data)
    code, found, err = run(tmp_path / "in", "--bins", 2, "--out", tmp_path / "out")
    assert (code, f"{path} cannot be read" in found["error"], "Traceback" in err) == (1, True, False)


def test_run_directories(run: Any, tmp_path: Path) -> None:
    scores = [1.0, 2.0, None, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    write_run(tmp_path / "open", scores, finish=False)
    code, data, _ = run(tmp_path / "open", "--bins", 2, "--out", tmp_path / "out")
    assert (code, "open is not finished" in data["error"]) == (1, True)
    write_run(tmp_path / "done", scores)
    code, data, _ = run(tmp_path / "done", "--bins", 2, "--out", tmp_path / "out")
    assert (code, data["counts"], data["tokens"], data["unscored"]) == (0, [4, 4], [28, 28], 1)
    part = tmp_path / "done" / "scores" / "part-00001.parquet"
    pq.write_table(pq.read_table(part).slice(1), part)
    code, data, _ = run(tmp_path / "done", "--bins", 2, "--out", tmp_path / "out")
    assert (code, f"{part} is damaged" in data["error"]) == (1, True)


def test_words_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "run", [1.0, 2.0, None, 4.0])
    assert main(["bin", str(tmp_path / "run"), "--edges", "2", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"4 rows by entropy_mean in 2 bins (fixed values), shuffle order, in {tmp_path / 'out'}",
        "  bin=00  2 rows, 14 tokens  entropy_mean <= 2",
        "  bin=01  1 rows, 7 tokens  entropy_mean > 2",
        "  unscored  1 rows without a score",
        f"edges and counts in {tmp_path}/out/bins.json; `fluxentropy verify {tmp_path}/out` proves the whole",
    ]
