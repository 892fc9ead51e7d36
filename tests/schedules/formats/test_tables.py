"""jsonl, parquet and arrow as `datasets` reads them, in order."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from tokenruns import write_bins

import fluxentropy as fe

LOADERS = {"jsonl": "json", "parquet": "parquet", "arrow": "arrow"}


@pytest.mark.parametrize("form", LOADERS)
def test_datasets_reads_the_order(form: str, tmp_path: Path) -> None:
    """As a map and as a stream; all columns are there."""
    bins = write_bins(tmp_path / "corpus", texts=40)
    out = fe.order(
        bins, format=form, schedule={"name": "decreasing"}, batch_size=4, shard_size="2KB", out=tmp_path / "o"
    ).out
    wanted = pq.read_table(out / "order.parquet")["id"].to_pylist()
    files = sorted(str(path) for path in (out / "data").glob("part-*"))
    assert len(files) > 2
    cache = str(tmp_path / "cache")
    for given in ({"data_dir": str(out / "data")}, {"data_files": files, "streaming": True}):
        found = datasets.load_dataset(LOADERS[form], split="train", cache_dir=cache, **given)
        rows = list(found)
        assert [row["id"] for row in rows] == wanted
        assert {"text", "bin", "entropy_mean", "source", "n_tokens"} <= rows[0].keys()
