"""`fluxentropy bin --within`: edges inside each value as brute force finds them; blocks of one value; refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fluxentropy.cli.app import main
from fluxentropy.models.tokenizers import byte_tokenizer
from fluxentropy.ordering import within
from fluxentropy.ordering.bins import Bins
from fluxentropy.ordering.blocks import ValuePacker, block_schema, fingerprint_blocks
from tests.ordering.test_bin import CONFIG, Run, bins_of, read, snapshot, write_files

SOURCES = ["WEB/news", "WEB/code", "news", None, "books/"]
NAMES = {"WEB/news": "news", "WEB/code": "code", "news": "news", None: "unknown", "books/": "books"}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command: exit code, the JSON object on stdout, and stderr."""

    def call(*argv: object) -> Run:
        capsys.readouterr()
        code = main(["bin", *map(str, argv), "--json"])
        captured = capsys.readouterr()
        return code, json.loads(captured.out), captured.err

    return call


def corpus(folder: Path, *, rows: int = 400, files: int = 3, seed: int = 0, **columns: Any) -> pa.Table:
    """Rows whose scores lie apart by source, with ties, nulls and NaN."""
    rng = np.random.default_rng(seed)
    places = rng.integers(0, len(SOURCES), rows)
    scores = np.round(rng.normal(places * 3, 1, rows), 1)
    scores[rng.random(rows) < 0.03] = np.nan
    table = pa.table(
        {
            "id": [f"id-{row}" for row in range(rows)],
            "text": [f"text {row} " * (row % 7) for row in range(rows)],
            "entropy_mean": pa.array(scores, mask=rng.random(rows) < 0.05),
            "source": [SOURCES[place] for place in places],
            "n_tokens": pa.array(rng.integers(1, 100, rows), pa.int32()),
            **{name: pa.array(values) for name, values in columns.items()},
        }
    )
    write_files(folder, table, files)
    return table


def expected(table: pa.Table, levels: Any, weight: str | None = None) -> dict[str, list[float]]:
    """The quantiles of the scores of each source, by NumPy."""
    rows = [row for row in table.to_pylist() if row["entropy_mean"] is not None and not np.isnan(row["entropy_mean"])]
    found = {}
    for name in sorted(set(NAMES.values())):
        mine = [row for row in rows if NAMES[row["source"]] == name]
        how: dict[str, Any] = {}
        if weight:
            how = {"weights": [row[weight] for row in mine], "method": "inverted_cdf"}
        found[name] = np.quantile([row["entropy_mean"] for row in mine], levels, **how).tolist()
    return found


def assigned(table: pa.Table, edges: dict[str, list[float]]) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for row in table.to_pylist():
        x = row["entropy_mean"]
        mine = edges[NAMES[row["source"]]]
        found[row["id"]] = None if x is None or np.isnan(x) else sum(x > edge for edge in mine)
    return found


# --- edges ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "levels", "weight"),
    [
        (["--bins", "4"], [0.25, 0.5, 0.75], None),
        (["--quantiles", "10,50,90"], [0.1, 0.5, 0.9], None),
        (["--bins", "3", "--weight", "n_tokens"], [1 / 3, 2 / 3], "n_tokens"),
    ],
)
def test_edges_of_each_value_and_the_bin_of_every_row(
    flags: list[str], levels: list[float], weight: str | None, run: Any, tmp_path: Path
) -> None:
    table = corpus(tmp_path / "in")
    code, data, _ = run(tmp_path / "in", *flags, "--within", "source", "--out", tmp_path / "out")
    assert code == 0
    edges = expected(table, levels, weight)
    assert data["edges"] == edges
    assert bins_of(tmp_path / "out") == assigned(table, edges)
    assert (data["within"], data["format"]) == ("source", 4)
    assert main(["verify", str(tmp_path / "out")]) == 0
    bins = Bins.load(tmp_path / "out")
    assert (bins.label, bins.within, bins.edges, bins.older) == ("entropy_mean within source", "source", edges, False)


def test_every_bin_has_each_value_in_the_same_share(run: Any, tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": [str(row) for row in range(240)],
            "x": np.random.default_rng(1).permutation(240) + np.repeat([0.0, 1000.0, 500.0], [120, 80, 40]),
            "source": ["a"] * 120 + ["b"] * 80 + ["c"] * 40,
        }
    )
    write_files(tmp_path / "in", table, 2)
    run(tmp_path / "in", "--by", "x", "--bins", 8, "--within", "source", "--out", tmp_path / "out")
    for folder in sorted((tmp_path / "out" / "data").iterdir()):
        assert np.unique(read(folder)["source"].to_pylist(), return_counts=True)[1].tolist() == [15, 10, 5]
    run(tmp_path / "in", "--by", "x", "--bins", 8, "--out", tmp_path / "mixed")  # without it, bins are of one source
    first = read(tmp_path / "mixed" / "data" / "bin=00")["source"].to_pylist()
    assert set(first) == {"a"}


def test_order_files_workers_memory_groups_and_repetition_change_nothing(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--bins", 3, "--within", "source", "--order", "source", "--tokenize", "bytes", "--block-length", 32]
    table = corpus(tmp_path / "in", files=3)
    write_files(tmp_path / "many", table, 7)
    shuffled = table.take(pa.array(np.random.default_rng(3).permutation(len(table))))
    write_files(tmp_path / "shuffled", shuffled, 2)
    run(tmp_path / "in", *flags, "--out", tmp_path / "one")
    run(tmp_path / "in", *flags, "--workers", 2, "--out", tmp_path / "two")
    assert snapshot(tmp_path / "two") == snapshot(tmp_path / "one")
    run(tmp_path / "many", *flags, "--out", tmp_path / "other")
    monkeypatch.setattr(within, "AT_ONCE", 2)
    _, data, _ = run(tmp_path / "shuffled", *flags, "--out", tmp_path / "third")
    edges = [json.loads((tmp_path / name / "bins.json").read_text())["edges"] for name in ("one", "other", "third")]
    assert edges[0] == edges[1] == edges[2] == data["edges"]
    before = snapshot(tmp_path / "one")
    (tmp_path / "one" / "data" / "bin=01" / ".manifest.json").unlink()  # as a kill may leave it
    record = json.loads((tmp_path / "one" / "manifest.json").read_text())
    (tmp_path / "one" / "manifest.json").write_text(json.dumps(record | {"complete": False}))
    run(tmp_path / "in", *flags, "--out", tmp_path / "one")
    assert snapshot(tmp_path / "one") == before


def test_many_distinct_scores_take_several_passes(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fluxentropy.ordering.quantiles.CELLS", 64)
    rng = np.random.default_rng(5)
    scores, sources = rng.normal(size=3000), rng.integers(0, 2, 3000)
    write_files(tmp_path / "in", pa.table({"id": pa.array(range(3000)), "x": scores, "kind": sources}), 2)
    _, data, _ = run(tmp_path / "in", "--by", "x", "--bins", 3, "--within", "kind", "--out", tmp_path / "out")
    wanted = {str(kind): np.quantile(scores[sources == kind], [1 / 3, 2 / 3]).tolist() for kind in (0, 1)}
    assert data["edges"] == wanted


def test_ties_go_to_the_lower_bin_and_bins_that_stay_empty_are_said(run: Any, tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": [str(row) for row in range(16)],
            "x": [1, 1, 1, 1, 1, 1, 2, 2, 1, 2, 3, 4, 5, 6, 7, 8],
            "source": ["ties"] * 8 + ["rest"] * 8,
        }
    )
    write_files(tmp_path / "in", table, 1)
    flags = ["--by", "x", "--bins", 4, "--within", "source"]
    code, data, said = run(tmp_path / "in", *flags, "--out", tmp_path / "out")
    assert code == 0
    assert data["edges"] == {"rest": [2.75, 4.5, 6.25], "ties": [1.0, 1.0, 1.25]}
    assert data["counts"] == [8, 2, 2, 4]
    assert "source 'ties' has no rows in bin 1, 2, as equal values are never parted" in said
    ties = table.filter(pa.compute.equal(table["source"], "ties"))
    write_files(tmp_path / "ties", ties, 1)
    _, data, said = run(tmp_path / "ties", *flags, "--out", tmp_path / "two")  # which no value fills
    assert (data["edges"], data["counts"]) == ({"ties": [1.0]}, [6, 2])
    assert "2 of 4 bins" in said
    assert main(["verify", str(tmp_path / "two")]) == 0


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (pa.array([1, 2] * 8, pa.int8()), {"1", "2"}),
        (pa.array([True, False] * 8), {"True", "False"}),
        (pa.array(["a/x", "b/x"] * 8).dictionary_encode(), {"x"}),
        (pa.array(["x", "y"] * 8, pa.large_string()), {"x", "y"}),
        (pa.nulls(16), {"unknown"}),
    ],
)
def test_kinds_of_values(values: pa.Array, names: set[str], run: Any, tmp_path: Path) -> None:
    table = pa.table({"id": pa.array(range(16)), "x": pa.array(range(16)), "bin": values})
    write_files(tmp_path / "in", table, 2)
    code, data, _ = run(tmp_path / "in", "--by", "x", "--bins", 2, "--within", "bin", "--out", tmp_path / "out")
    assert (code, set(data["edges"])) == (0, names)
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_an_expression_and_the_edges_of_another_corpus(run: Any, tmp_path: Path, capsys: Any) -> None:
    table = corpus(tmp_path / "in")
    flags = ["--by", "2*entropy_mean", "--bins", 3, "--within", "source"]
    _, data, _ = run(tmp_path / "in", *flags, "--out", tmp_path / "out")
    single = expected(table, [1 / 3, 2 / 3])
    assert data["edges"] == {name: [2 * edge for edge in edges] for name, edges in single.items()}
    assert main(["verify", str(tmp_path / "out")]) == 0
    run(tmp_path / "in", "--bins", 3, "--within", "source", "--out", tmp_path / "plain")
    second = corpus(tmp_path / "second", seed=9)
    edges = tmp_path / "plain" / "bins.json"
    code, data, _ = run(tmp_path / "second", "--edges", edges, "--out", tmp_path / "again")
    assert code == 0
    assert bins_of(tmp_path / "again") == assigned(second, single)
    new = second.set_column(3, "source", pa.array(["poems"] * len(second)))
    write_files(tmp_path / "poems", new, 1)
    code, data, _ = run(tmp_path / "poems", "--edges", edges, "--out", tmp_path / "refused")
    assert code == 2
    assert "'poems' has no edges" in data["error"]
    code, data, _ = run(tmp_path / "second", "--edges", edges, "--within", "id", "--out", tmp_path / "refused")
    assert "are within source; leave --within out" in data["error"]


# --- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_hold_texts_of_one_value(run: Any, tmp_path: Path) -> None:
    corpus(tmp_path / "in")
    flags = ["--bins", 2, "--within", "source", "--tokenize", "bytes", "--block-length", 16]
    code, data, _ = run(tmp_path / "in", *flags, "--out", tmp_path / "out")
    assert (code, data["blocks"]["packed_by"]) == (0, "source")
    assert main(["verify", str(tmp_path / "out")]) == 0
    tokenizer = byte_tokenizer()
    for number, folder in enumerate(sorted((tmp_path / "out" / "data").iterdir())):
        rows = read(folder).to_pylist()
        blocks = read(tmp_path / "out" / "_blocks" / "data" / folder.name).to_pylist()
        found: dict[str, list[dict[str, Any]]] = {}
        for block in blocks:
            (name,) = {NAMES[rows[row]["source"]] for row in block["documents"]}
            found.setdefault(name, []).append(block)
        left = 0
        for name in set(NAMES.values()):  # the stream of each value, by brute force
            ids: list[int] = []
            owner: list[int] = []
            for row, one in enumerate(rows):
                if NAMES[one["source"]] == name and one["text"]:
                    ids += [*tokenizer(one["text"], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
                    owner += [row] * (len(ids) - len(owner))
            mine = found.get(name, [])
            for place, block in enumerate(mine):
                part = slice(place * 16, place * 16 + 17)
                assert block["input_ids"] == ids[part]
                assert block["documents"] == list(dict.fromkeys(owner[part]))
                assert block["starts"] == [owner[part].index(row) for row in block["documents"]]
            assert len(mine) == max(len(ids) - 1, 0) // 16
            left += len(ids) - 16 * len(mine)
        facts = {name: data["blocks"][name][number] for name in ("blocks", "documents", "left_over")}
        assert facts == {"blocks": len(blocks), "documents": len(rows), "left_over": left}


def test_blocks_of_one_value_do_not_depend_on_how_documents_come(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(0, 9, 600)
    ids = rng.integers(0, 10, sizes.sum())
    values = rng.integers(0, 3, 600)

    def packed(step: int) -> tuple[list[Any], int]:
        packer = ValuePacker(block_schema(10, 5), bin=0)
        found = []
        for start in range(0, 600, step):
            part = slice(start, start + step)
            first, last = sizes[:start].sum(), sizes[: start + step].sum()
            groups = [(str(value), np.flatnonzero(values[part] == value)) for value in range(3)]
            packer.add(ids[first:last], sizes[part], groups)
            found += packer.batches()
        found += packer.batches(last=True)
        assert all(batch.num_rows == 256 for batch in found[:-1])
        return sorted(
            (row["documents"], row["input_ids"]) for batch in found for row in batch.to_pylist()
        ), packer.left_over

    assert packed(600) == packed(7) == packed(1)


def test_a_block_of_two_values_is_found(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus(tmp_path / "in")
    flags = ["--bins", 2, "--within", "source", "--tokenize", "bytes", "--block-length", 16]
    run(tmp_path / "in", *flags, "--out", tmp_path / "out")
    plain = ["--bins", 2, "--tokenize", "bytes", "--block-length", 16]
    assert main(["bin", str(tmp_path / "in"), *map(str, plain), "--out", str(tmp_path / "plain")]) == 0
    record = tmp_path / "plain" / "_blocks" / "blocks.json"
    facts = json.loads(record.read_text())
    facts["packed_by"] = "source"  # which these are not
    folders = sorted((tmp_path / "plain" / "_blocks" / "data").iterdir())
    made = [json.loads((folder / ".manifest.json").read_text()) for folder in folders]
    facts["fingerprint"] = fingerprint_blocks(facts, made)
    record.write_text(json.dumps(facts))
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "plain")]) == 1
    assert "holds texts of several values of source" in capsys.readouterr().out


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--within", "sorce", "--bins", "2"], "no such column in IN: use one of source"),
        (["--within", "entropy_mean", "--bins", "2"], "its values are of type double: name a column of texts"),
        (["--within", "rare", "--bins", "3"], "'once' has only 1 row with a score for 3 bins"),
        (["--within", "source", "--edges", "1,2"], "--within source with --edges 1,2: give --bins or --quantiles"),
        (["--within", "source", "--by", "entropy_mean,n_tokens", "--grid", "2x2"], "--within source with --grid 2x2"),
        (["--within", "id", "--bins", "2"], "more than 40 values"),
    ],
)
def test_mistakes(flags: list[str], message: str, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(within, "MAX_VALUES", 40)
    rare = ["often"] * 399 + ["once"]
    table = corpus(tmp_path / "in", rare=rare)
    table = table.set_column(2, "entropy_mean", pa.array(np.arange(400.0)))
    pq.write_table(table, tmp_path / "in" / "part-0.parquet")
    for number in (1, 2):
        (tmp_path / "in" / f"part-{number}.parquet").unlink()
    code, data, _ = run(tmp_path / "in", *flags, "--out", tmp_path / "out")
    assert code == 2
    assert message.replace("IN", str(tmp_path / "in")) in data["error"].replace("did you mean", "use one of")
    assert not (tmp_path / "out" / CONFIG).exists() or not (tmp_path / "out" / "bins.json").exists()


def test_nothing_to_bin_within(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in")
    write_files(tmp_path / "none", table.slice(0, 0), 1)
    code, data, said = run(tmp_path / "none", "--bins", 3, "--within", "source", "--out", tmp_path / "out")
    assert (code, data["counts"]) == (0, [0])
    assert "has no row" in said
    blank = table.slice(0, 9).set_column(2, "entropy_mean", pa.nulls(9, pa.float64()))
    write_files(tmp_path / "blank", blank, 1)
    code, data, _ = run(tmp_path / "blank", "--bins", 3, "--within", "source", "--out", tmp_path / "two")
    assert code == 2
    assert "has a score in it" in data["error"]


def test_bins_of_one_edge_for_all_stay_of_the_format_before(run: Any, tmp_path: Path) -> None:
    corpus(tmp_path / "in")
    _, data, _ = run(tmp_path / "in", "--bins", 3, "--out", tmp_path / "out")
    assert data["format"] == 3
    assert "within" not in json.loads((tmp_path / "out" / "bins.json").read_text())
    identity = json.loads((tmp_path / "out" / "manifest.json").read_text())["identity"]
    assert "within" not in identity


def test_a_page_of_such_bins(run: Any, tmp_path: Path) -> None:
    table = corpus(tmp_path / "in").drop_columns(["n_tokens"])
    write_files(tmp_path / "none", table, 1)
    run(tmp_path / "none", "--bins", 2, "--within", "source", "--out", tmp_path / "out")
    assert main(["report", str(tmp_path / "out"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "within each source" in page
    assert "unknown" in page
