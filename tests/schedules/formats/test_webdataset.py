"""Archives by the format's definition and by webdataset where it is installed."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fluxentropy as fe
from fluxentropy.errors import UsageError

IDS = [f"a.b/{row}.tar.gz" for row in range(40)]  # which no name of a member could hold


@pytest.fixture
def bins(tmp_path: Path) -> Path:
    table = pa.table(
        {"id": IDS, "body": [f"text {row}\n" for row in range(40)], "score": [float(row) for row in range(40)]}
    )
    pq.write_table(table, tmp_path / "any.parquet")
    return fe.bin(str(tmp_path / "any.parquet"), by=("score",), bins=2, out=tmp_path / "bins").out


def test_members_of_a_text_are_neighbours(bins: Path, tmp_path: Path) -> None:
    out = fe.order(bins, format="webdataset", text_field="body", batch_size=2, out=tmp_path / "out").out
    wanted = pq.read_table(out / "order.parquet")["id"].to_pylist()
    files = sorted((out / "data").glob("*.tar"))
    assert len(files) >= 8  # a reader needs as many as it has workers
    members, texts, ids = [], [], []
    for path in files:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None and member.mtime == 0
                members.append(member.name)
                (texts if member.name.endswith(".txt") else ids).append(file.read().decode())
    assert members == [f"{place:012d}.{kind}" for place in range(40) for kind in ("json", "txt")]
    assert [json.loads(row)["id"] for row in ids] == wanted
    assert texts == [f"text {IDS.index(name)}\n" for name in wanted]
    library = pytest.importorskip("webdataset")
    found = list(library.WebDataset([str(path) for path in files], shardshuffle=False).decode())
    assert [(row["json"]["id"], row["txt"]) for row in found] == list(zip(wanted, texts, strict=True))


def test_without_a_column_of_texts(bins: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no column text, which one is it\? Give --text-field, of id, body, score, bin"
    ):
        fe.order(bins, format="webdataset", out=tmp_path / "out")
