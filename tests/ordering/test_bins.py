"""Bins as they are opened from Python, against what polars and pyarrow find in the files and in the input."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import polars
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import fluxentropy
from fluxentropy.cli.app import main
from fluxentropy.errors import FluxentropyError, RunError, SourceError
from fluxentropy.ordering.bin import BinResult
from fluxentropy.ordering.bins import Bins
from tests.ordering.test_bin import corpus

ODD = "a<b & c"  # a column's name
Binned = tuple[Path, polars.DataFrame]


@pytest.fixture(scope="module")
def binned(tmp_path_factory: pytest.TempPathFactory) -> Binned:
    """Bins with an empty one and several shards, a grid, and the rows that they were made of."""
    folder = tmp_path_factory.mktemp("binset")
    table = corpus(folder / "in", rows=3000, tags=[["a", "b"]] * 3000, **{ODD: range(3000)})
    for out, *flags in (
        ("bins", "--edges", "1,2,3,1000", "--shard-size", "30KB"),
        ("grid", "--by", f"entropy_mean,{ODD}", "--grid", "2x3"),
    ):
        assert main(["bin", str(folder / "in"), *flags, "--out", str(folder / out)]) == 0
    frame = polars.from_arrow(table)
    assert isinstance(frame, polars.DataFrame)
    return folder, frame.with_columns(polars.col("entropy_mean").fill_nan(None))


def test_scores_counts_and_tokens_are_those_of_the_input(binned: Binned) -> None:
    folder, rows = binned
    bins = Bins.load(str(folder / "bins"))
    result = fluxentropy.bin(folder / "in", edges="1,2,3,1000", shard_size="30KB", out=folder / "bins")
    assert isinstance(result, BinResult) and result.bins == bins and result.blocks is None
    assert (result.out, result.rows, result.edges, result.counts) == (folder / "bins", 3000, bins.edges, bins.counts)
    assert result.to_dict() == {"out": str(folder / "bins"), **bins.facts}
    assert (bins.by, bins.edges, bins.grid, len(bins)) == ("entropy_mean", [1, 2, 3, 1000], None, 5)
    places = [polars.col("entropy_mean").is_between(*span, closed="right") for span in ((-1e9, 1), (1, 2), (2, 3))]
    expected = [rows.filter(place) for place in (*places, polars.col("entropy_mean") > 3)]
    assert bins.counts == [*map(len, expected), 0]
    assert bins.tokens == [*(int(part["n_tokens"].sum()) for part in expected), 0]
    assert bins.unscored is not None and bins.unscored.rows == rows["entropy_mean"].null_count()
    assert [one.span for one in bins] == [
        "entropy_mean <= 1",
        "entropy_mean > 1 and <= 2",
        "entropy_mean > 2 and <= 3",
        "entropy_mean > 3 and <= 1000",
        "entropy_mean > 1000",
    ]


def test_a_bin_is_a_dataset(binned: Binned, tmp_path: Path) -> None:
    bins = Bins.load(binned[0] / "bins")
    assert sum(len(one.files) for one in bins) > len(bins)
    for one in bins:
        expected = ds.dataset(one.files, format="ipc").to_table()
        assert sorted(one.files) == sorted((bins.path / "data" / f"bin=0{one.number}").glob("*.arrow"))
        found = one.dataset(cache_dir=str(tmp_path))
        assert found.num_rows == one.rows == len(expected)
        assert set(found.column_names) == set(expected.column_names)
        assert found["id"][:] == expected["id"].to_pylist()
        assert found["tags"][:] == expected["tags"].to_pylist()
        assert bool(found.cache_files) or not one.rows  # mapped from there
    streamed = bins[-2].dataset(streaming=True)
    assert [row["id"] for row in streamed] == bins[3].dataset(cache_dir=str(tmp_path))["id"][:]
    assert bins.unscored is not None
    assert polars.scan_ipc(bins.unscored.files).collect()["bin"].null_count() == bins.unscored.rows


def test_they_are_a_sequence(binned: Binned) -> None:
    bins = Bins.load(binned[0] / "bins" / "bins.json")
    assert [one.number for one in bins] == [0, 1, 2, 3, 4]
    assert [one.number for one in bins[1:-1]] == [1, 2, 3]
    assert bins[-1] == bins[4] and bins[-5] == bins[0] in bins
    for number in (5, -6):
        with pytest.raises(IndexError, match=rf"bin {number} of .*bins: there are 5, from 0 to 4"):
            bins[number]


def test_a_grid_counts_along_its_second_score_first(binned: Binned) -> None:
    folder, rows = binned
    bins = Bins.load(folder / "grid")
    assert (bins.by, bins.grid, len(bins)) == (["entropy_mean", ODD], (2, 3), 6)
    first, second = bins.edges
    for one in bins:
        row, column = divmod(one.number, 3)
        found = polars.scan_ipc(one.files).collect()
        assert len(found) == one.rows > 0
        assert ((found["entropy_mean"] > first[0]) == bool(row)).all()
        assert (sum(found[ODD].to_numpy() > edge for edge in second) == column).all()
    assert bins[3].span == f"entropy_mean > {first[0]:.6g}, {ODD} <= {second[0]:.6g}"
    assert sum(bins.counts) == len(rows.drop_nulls("entropy_mean"))


def test_a_table_in_a_notebook(binned: Binned) -> None:
    for name, rows in (("bins", 7), ("grid", 8)):  # with the head and the rows without a score
        bins = Bins.load(binned[0] / name)
        table = ElementTree.fromstring(bins._repr_html_())
        cells = [[cell.text for cell in row] for row in table.iter("tr")]
        assert len(cells) == rows
        assert cells[1] == ["0", bins[0].span, f"{bins.counts[0]:,}", f"{bins.tokens[0]:,}"]


def test_what_cannot_be_opened_is_named(binned: Binned, tmp_path: Path) -> None:
    def refused(error: type[FluxentropyError], message: str, path: Path = tmp_path / "bins") -> None:
        with pytest.raises(error, match=message):
            print(Bins.load(path)[1].files)

    refused(
        SourceError, "nowhere/bins.json: no such file; `fluxentropy bin RUN --out .*nowhere` writes it", Path("nowhere")
    )
    refused(SourceError, "in/bins.json: no such file", binned[0] / "in")
    bins = Path(shutil.copytree(binned[0] / "bins", tmp_path / "bins"))
    index, manifest = (json.loads((bins / name).read_text()) for name in ("bins.json", "manifest.json"))
    (bins / "data/bin=01/part-00000.arrow").unlink()
    refused(RunError, "bin=01/part-00000.arrow is missing: `fluxentropy verify")
    shutil.rmtree(bins / "data/bin=01")
    refused(RunError, "data/bin=01 is missing: `fluxentropy verify")
    for odd, message in (
        ({"edges": [1]}, "bins.json: it is not as it was written .*fingerprint.*: remove it, and the same command"),
        ({"edges": "x"}, "bins.json: it is not as it was written .*ValueError"),
        ({"counts": [1, 2]}, "bins.json: it has edges of 5 bins, and counts of 2"),
        ({"tokens": None}, "bins.json: it is not as it was written .*TypeError"),
    ):
        (bins / "bins.json").write_text(json.dumps(index | odd))
        refused(RunError, message)
    (bins / "bins.json").write_text("[1]")
    refused(RunError, "bins.json: it is not as it was written")
    (bins / "manifest.json").write_text(json.dumps(manifest | {"complete": False}))
    refused(RunError, "bins is not finished: give the command that writes it once more")


def test_types_survive(binned: Binned, tmp_path: Path) -> None:
    found = Bins.load(binned[0] / "bins")[4].dataset(cache_dir=str(tmp_path))  # without a row
    kinds = {name: found.features.arrow_schema.field(name).type for name in ("tags", "n_tokens", "bin")}
    assert kinds == {"tags": pa.list_(pa.string()), "n_tokens": pa.int32(), "bin": pa.int32()}


# --- other readers ----------------------------------------------------------------------------------------------------


def placed(rows: polars.DataFrame) -> list[tuple[str, int]]:
    """The (id, bin) of the rows that have a bin, by the edges 1, 2, 3 and 1000."""
    places = zip(rows["id"], rows["entropy_mean"], strict=True)
    return sorted((name, sum(x > edge for edge in (1, 2, 3, 1000))) for name, x in places if x is not None)


def pairs(columns: dict[str, list[Any]]) -> list[tuple[str, int]]:
    return sorted(zip(columns["id"], columns["bin"], strict=True))


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets(binned: Binned, streaming: bool, tmp_path: Path) -> None:
    from datasets import load_dataset

    out, expected = binned[0] / "bins", placed(binned[1])
    options = {"cache_dir": str(tmp_path), "streaming": streaming, "split": "train"}
    rows = list(load_dataset("arrow", data_files=f"{out}/data/bin=*/*.arrow", **options))
    assert sorted((row["id"], row["bin"]) for row in rows) == expected
    assert rows[0]["tags"] == ["a", "b"]
    one = list(load_dataset("arrow", data_dir=f"{out}/data/bin=00", **options))
    assert sorted((row["id"], row["bin"]) for row in one) == [pair for pair in expected if pair[1] == 0]


def test_pyarrow_and_duckdb(binned: Binned) -> None:
    import duckdb

    out, expected = binned[0] / "bins", placed(binned[1])
    found = ds.dataset(out / "data", format="ipc", partitioning="hive")
    assert found.schema.field("bin").type == pa.int32()
    assert pairs(found.to_table(columns=["id", "bin"]).to_pydict()) == expected
    unscored = ds.dataset(out / "unscored", format="ipc")
    assert found.count_rows() + unscored.count_rows() == 3000
    first = found.to_table(filter=ds.field("bin") == 0)
    assert pairs(first.to_pydict()) == [pair for pair in expected if pair[1] == 0]
    counted = duckdb.sql("SELECT bin, count(*) FROM found GROUP BY bin ORDER BY bin").fetchall()
    assert counted == [(place, len(list(group))) for place, group in itertools.groupby(sorted(p for _, p in expected))]


@pytest.mark.parametrize("hive", [False, True])
def test_polars(binned: Binned, hive: bool) -> None:
    out, expected = binned[0] / "bins", placed(binned[1])
    found = polars.scan_ipc(f"{out}/data/bin=*/*.arrow", hive_partitioning=hive).select("id", "bin").collect()
    assert pairs(found.to_dict(as_series=False)) == expected
