"""`fluxentropy order`: every unit where brute force puts it, refusals, budgets, and what `verify` says of damage."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest
from scoredruns import write_run
from tokenruns import write_bins

import fluxentropy as fe
from fluxentropy.cli.app import main
from fluxentropy.errors import RunError, UsageError
from fluxentropy.runs.files import sha256_file
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.formats.catalogue import FORMATS, TEXT_FORMATS, TOKEN_FORMATS
from fluxentropy.schedules.plan import make_plan
from fluxentropy.schedules.sampler import Draws, Sampler
from fluxentropy.schedules.schedule import make
from fluxentropy.schedules.texts import Piece, TextSet

ROWS = 200


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three bins of texts, with blocks of 16 tokens."""
    return write_bins(tmp_path_factory.mktemp("corpus"), texts=ROWS)


def shard_rows(bins: Path) -> list[pa.Table]:
    """The rows of each bin, in the order of its shards."""
    folders = sorted((bins / "data").iterdir())
    return [pa.concat_tables(ipc.open_file(path).read_all() for path in sorted(one.glob("*.arrow"))) for one in folders]


def expected_rows(bins: Path, name: str, seed: int, batch: int, **plan: Any) -> list[dict[str, Any]]:
    """All rows in the order of a schedule, one by one from the whole corpus in memory."""
    rows = [row for table in shard_rows(bins) for row in table.to_pylist()]
    counts = [len(table) for table in shard_rows(bins)]
    draws = Draws(make_plan(make(name), counts, batch_size=batch, **plan), counts, seed=seed, fingerprint="")
    return [rows[number] for step in range(draws.steps) for number in draws.batch(step)]


def read_tables(out: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((out / "data").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


# --- the order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", ["whole", "spilled"])
@pytest.mark.parametrize(
    ("name", "plan"),
    [("increasing", {}), ("random", {"blocks": 77}), ("pool", {"blocks": 450}), ("folded", {"blocks": 400})],
)
def test_texts_come_in_the_order_of_the_schedule(
    memory: str, name: str, plan: dict[str, int], bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than an epoch, one, two, and a reweighting that draws some texts several times; also through the disk."""
    if memory == "spilled":  # in loads and pieces of a few rows
        for module in ("order", "texts"):
            monkeypatch.setattr(f"fluxentropy.schedules.{module}.load_bytes", lambda _: 3000)
    out = tmp_path / "out"
    options = {
        "schedule": {"name": name},
        "seed": 5,
        "batch_size": 9,
        "shard_size": "20KB",
        "texts": plan.get("blocks"),
    }
    result = fe.order(bins, format="parquet", out=out, **options)
    wanted = expected_rows(bins, name, 5, 9, **plan)
    assert read_tables(out) == wanted
    order = pq.read_table(out / "order.parquet").to_pylist()
    assert [row["id"] for row in order] == [row["id"] for row in wanted]
    assert [row["position"] for row in order] == list(range(len(wanted)))
    assert [row["bin"] for row in order] == [row["bin"] for row in wanted]
    inside = shard_rows(bins)
    assert all(inside[row["bin"]]["id"][row["row"]].as_py() == row["id"] for row in order)
    assert result.units == len(wanted) and result.drawn == [Counter(r["bin"] for r in wanted)[k] for k in range(3)]
    assert result.files > 1 and not list(out.glob(".spill")) and not list(out.glob(".order"))
    if name != "pool":
        assert {*Counter(row["id"] for row in wanted).values()} == {max(plan.get("blocks", 0) // ROWS, 1)}
    assert fe.verify(out).ok


@pytest.mark.parametrize("form", FORMATS)
def test_bytes_do_not_depend_on_memory_or_repetition(
    form: str, bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"format": form, "schedule": {"name": "zigzag"}, "batch_size": 8, "shard_size": "3KB"}
    fe.order(bins, out=tmp_path / "one", **options)
    for module in ("order", "texts"):
        monkeypatch.setattr(f"fluxentropy.schedules.{module}.load_bytes", lambda _: 2000)
    fe.order(bins, out=tmp_path / "two", **options)
    files = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()}
    same = {path for path in files if path.name not in (".lock", ".records.json", "config.resolved.yaml")}
    assert len(same) > 3
    for path in same:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes(), path
    times = {path: (tmp_path / "one" / path).stat().st_mtime_ns for path in same}
    fe.order(bins, out=tmp_path / "one", **options)
    assert times == {path: (tmp_path / "one" / path).stat().st_mtime_ns for path in same}  # nothing is made twice


def test_a_bin_without_rows_and_one_that_is_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    bins = fe.bin(str(run), edges=(0.0, 2.5, 4.5), out=tmp_path / "bins").out
    weights = tmp_path / "weights.csv"
    weights.write_text("u,w_0,w_1,w_2,w_3\n0,1,0,1,1\n")
    monkeypatch.setattr("fluxentropy.schedules.texts.load_bytes", lambda _: 10)
    options = {"schedule": {"name": "custom", "weights": str(weights)}, "texts": 8, "batch_size": 4}
    result = fe.order(bins, format="jsonl", out=tmp_path / "out", **options)
    assert result.there == [0, 2, 2, 2] and result.drawn == [0, 0, 4, 4]
    assert fe.verify(tmp_path / "out").ok
    weights.unlink()
    (problem,) = fe.verify(tmp_path / "out").problems
    assert "cannot be compared with its schedule" in problem.problem and problem.redo is None


def test_blocks_come_as_pretrain_draws_them(bins: Path, tmp_path: Path) -> None:
    """Both formats of tokens against `Sampler`; blocks without their last token, which begins the next one."""
    blocks = BlockSet.open(bins).without_end(2)
    sampler = Sampler(blocks, "folded", batch_size=4, seed=3, tokens=16 * 60)
    wanted = blocks.gather(np.array(list(sampler)))[:, :-1]
    given = {"schedule": {"name": "folded"}, "batch_size": 4, "seed": 3, "tokens": 16 * 60, "holdout": 2}
    for form in TOKEN_FORMATS:
        out = tmp_path / form
        result = fe.order(bins, format=form, shard_size="700B", out=out, **given)
        assert (result.units, result.tokens) == (60, 960)
        order = pq.read_table(out / "order.parquet")
        assert order["id"].to_pylist() == list(sampler)
        first = blocks.first[order["bin"].to_numpy()]
        np.testing.assert_array_equal(first + order["row"].to_numpy(), order["id"].to_numpy())
    files = sorted((tmp_path / "nanogpt-bin" / "data").glob("*.bin"))
    streams = [np.fromfile(path, np.uint16)[512:-2] for path in files]
    assert len(files) > 1 and {len(stream) % 64 for stream in streams} == {0}  # whole batches
    np.testing.assert_array_equal(np.concatenate(streams).reshape(-1, 16), wanted)
    stored = np.fromfile(tmp_path / "megatron" / "data" / "order.bin", np.uint16)
    np.testing.assert_array_equal(stored.reshape(-1, 16), wanted)


# --- strata, shares that are kept, jitter -----------------------------------------------------------------------------


CHOSEN = {"name": "increasing", "stratify": "source", "keep": "highest 0.6", "jitter": 0.1}


def stop_before_part(number: int, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the writing of a part end as a kill would end it."""
    write, made = type(form).write, iter(range(number))

    def killed(*given: Any) -> None:
        if next(made, None) is None:
            raise KeyboardInterrupt
        write(*given)

    monkeypatch.setattr(type(form), "write", killed)


def test_every_batch_of_texts_holds_each_source_in_its_share(bins: Path, tmp_path: Path) -> None:
    """By the definitions: kept texts of each source counted by hand, and each source in the order of the bins."""
    there = [row for table in shard_rows(bins) for row in table.to_pylist()]
    of_source = {name: [row for row in there if row["source"] == name] for name in sorted({r["source"] for r in there})}
    kept = {name: round(0.6 * len(rows)) for name, rows in of_source.items()}
    for jitter in (None, 0.1):
        out = tmp_path / f"jitter-{jitter}"
        options = {"schedule": {**CHOSEN, "jitter": jitter}, "batch_size": 10, "shard_size": "6KB"}
        result = fe.order(bins, format="parquet", out=out, **options)
        rows = read_tables(out)
        assert result.files > 1 and {*Counter(row["id"] for row in rows).values()} == {1}
        drawn = Counter(row["source"] for row in rows)
        assert drawn == kept
        for name, mine in of_source.items():  # the highest are kept: of the lowest bin that is left, some of its texts
            highest = Counter(row["bin"] for row in mine[len(mine) - kept[name] :])
            assert Counter(row["bin"] for row in rows if row["source"] == name) == highest
        for stop in range(10, len(rows) + 1, 10):
            seen = Counter(row["source"] for row in rows[:stop])
            assert all(abs(seen[name] - stop * count / len(rows)) < 1 for name, count in drawn.items())
        falls = []
        for name in drawn:
            numbers = [sorted(r["bin"] for r in rows[at : at + 10] if r["source"] == name) for at in range(0, 120, 10)]
            falls += [max(one) > min(two) for one, two in itertools.pairwise(numbers) if one and two]
        assert any(falls) == (jitter is not None)
        assert fe.verify(out).ok
    assert sorted(path.name for path in out.glob("*.parquet")) == ["order.parquet", "strata.parquet"]
    assert pq.read_table(out / "strata.parquet")["stratum"].to_pylist() == [row["source"][-1] for row in there]


def test_strata_of_blocks_are_those_of_pretrain(bins: Path, tmp_path: Path) -> None:
    blocks = BlockSet.open(bins).without_end(2)
    sampler = Sampler(blocks, "increasing", batch_size=4, stratify="source", keep="highest 0.6", jitter=0.1)
    plain = Sampler(blocks, "increasing", batch_size=4)
    assert list(sampler) != list(plain)[: len(sampler)]
    for form in TOKEN_FORMATS:
        out = tmp_path / form
        fe.order(bins, format=form, schedule=CHOSEN, batch_size=4, holdout=2, out=out)
        assert pq.read_table(out / "order.parquet")["id"].to_pylist() == list(sampler)
        assert fe.verify(out).ok


@pytest.mark.parametrize("form", ["parquet", "megatron"])
def test_strata_survive_a_kill_and_are_verified(
    form: str, bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"format": form, "schedule": CHOSEN, "batch_size": 8, "shard_size": "2KB"}
    fe.order(bins, out=tmp_path / "whole", **options)
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_before_part(2, FORMATS[form], patch)
        fe.order(bins, out=out, **options)
    assert not (out / "order.parquet").exists()
    fe.order(bins, out=out, **options)
    made = [
        path.relative_to(out) for path in out.rglob("*.*") if path.is_file() and path.name != "config.resolved.yaml"
    ]
    kept = [path for path in made if path.name not in (".lock", ".records.json")]
    assert len(kept) > 4
    assert all((out / path).read_bytes() == (tmp_path / "whole" / path).read_bytes() for path in kept)
    before = (out / "strata.parquet").read_bytes()
    strata = pq.read_table(out / "strata.parquet")
    for damaged in (before[:-9], None):
        (out / "strata.parquet").unlink() if damaged is None else (out / "strata.parquet").write_bytes(damaged)
        assert [one.path.name for one in fe.verify(out).problems] == ["strata.parquet"]
        assert fe.verify(out, repair=True).ok and (out / "strata.parquet").read_bytes() == before
    # Other strata, with a manifest that fits: the schedule draws something else, and verify says so.
    pq.write_table(strata.take(list(range(len(strata)))[::-1]), out / "strata.parquet")
    manifest = json.loads((out / "manifest.json").read_text())
    rerecord(out, out / "strata.parquet", manifest["strata"])
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert "draws something else today" in str(fe.verify(out).problems)


def test_strata_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    table = {"text": ["x"] * 12, "score": np.arange(12.0), "part": [*"abc" * 3, "a", "b", None], "n": np.arange(12)}
    pq.write_table(pa.table(table), tmp_path / "any.parquet")
    bins = fe.bin(str(tmp_path / "any.parquet"), by=("score",), bins=2, out=tmp_path / "bins").out
    for column, said in (
        ("part", "schedule.stratify part: 1 of the 6 texts of bin 1 in .* have no value: fill it in"),
        ("prt", "schedule.stratify prt: no such column in .*part"),
        ("n", "schedule.stratify n: the texts are of 12 values, and a batch holds 5 texts: .* raise --batch-size"),
    ):
        with pytest.raises(UsageError, match=said):
            fe.order(bins, format="jsonl", batch_size=5, schedule={"stratify": column}, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- texts ------------------------------------------------------------------------------------------------------------


def test_rows_without_ids_get_their_place(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": [f"t{i}" for i in range(20)], "quality": np.arange(20.0)}), tmp_path / "any.parquet"
    )
    bins = fe.bin(str(tmp_path / "any.parquet"), by=("quality",), bins=2, order="source", out=tmp_path / "bins").out
    fe.order(bins, format="jsonl", schedule={"name": "increasing"}, out=tmp_path / "out", batch_size=3)
    rows = [json.loads(line) for line in (tmp_path / "out" / "data" / "part-00000.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == sorted(f"{k}/{row}" for k in range(2) for row in range(10))
    assert all(row["text"] == f"t{10 * int(row['id'][0]) + int(row['id'][2:])}" for row in rows)
    assert fe.verify(tmp_path / "out").ok


def test_pieces_may_leave_gaps(bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a kill, or a repair: only some positions are asked for."""
    texts = TextSet.open(fe.Bins.load(bins))
    numbers = np.random.default_rng(0).permutation(ROWS)
    wanted = [Piece(start=10, stop=31), Piece(start=31, stop=40), Piece(start=150, stop=ROWS)]
    monkeypatch.setattr("fluxentropy.schedules.texts.load_bytes", lambda _: 1500)
    found = texts.pieces(wanted, lambda a, b: numbers[a:b], memory=0, spill=tmp_path / "spill")
    for piece, (table, order) in zip(wanted, found, strict=True):
        assert table.take(order)["__row"].to_pylist() == numbers[piece.start : piece.stop].tolist()
    assert not (tmp_path / "spill").exists()


# --- budgets ----------------------------------------------------------------------------------------------------------


def test_a_budget_in_tokens(tmp_path: Path) -> None:
    """Texts of the low bin have 10 tokens, of the high one 30; what is drawn comes to the budget within a text."""
    table = {"id": [f"{i}" for i in range(100)], "text": ["x"] * 100, "n_tokens": [10] * 50 + [30] * 50}
    pq.write_table(pa.table({**table, "score": np.arange(100.0)}), tmp_path / "any.parquet")
    bins = fe.bin(str(tmp_path / "any.parquet"), by=("score",), bins=2, out=tmp_path / "bins").out

    def drawn(name: str, **options: Any) -> Any:
        return fe.order(
            bins, format="parquet", schedule={"name": name, **options}, tokens=4200, batch_size=5, out=tmp_path / name
        )

    tilted = drawn("tilt", betas=(-2.0, -2.0))
    found = sum(row["n_tokens"] for row in read_tables(tmp_path / "tilt"))
    assert found == tilted.tokens and abs(found - 4200) <= 30
    assert drawn("random").units == 200  # whole epochs, the nearest number of them
    low = drawn("increasing", keep="lowest 0.5")  # 50 texts of 10 tokens are an epoch then
    assert (low.units, low.tokens) == (400, 4000) and low.drawn == [400, 0]
    pq.write_table(pa.table({"text": ["a", "b"], "score": [1.0, 2.0]}), tmp_path / "none.parquet")
    other = fe.bin(str(tmp_path / "none.parquet"), by=("score",), bins=2, out=tmp_path / "none").out
    with pytest.raises(UsageError, match="--tokens 10: .* knows no tokens of its texts; give --texts, or .* n_tokens"):
        fe.order(other, format="jsonl", tokens=10, out=tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    assert fe.order(other, format="jsonl", texts=2, out=tmp_path / "unknown").tokens is None
    assert json.loads((tmp_path / "unknown" / "manifest.json").read_text())["tokens"] is None


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"format": "parket"}, "--format parket: did you mean parquet?"),
        ({"format": "jsonl", "schedule": {"name": "adaptive"}}, "schedule.name adaptive: .* losses"),
        ({"format": "jsonl", "texts": 5, "tokens": 5}, "--texts and --tokens: give one of them"),
        ({"format": "jsonl", "texts": 450}, "450 texts: .* needs whole epochs of 200 texts"),
        ({"format": "megatron", "texts": 5}, "--texts 5: --format megatron is of blocks of tokens, use --tokens"),
        ({"format": "mds", "holdout": 5}, "--holdout 5: it is of blocks of tokens, --format mds is of texts"),
        ({"format": "mds", "text_field": "txt"}, "--text-field txt: no such column of texts; there are .*text"),
    ],
)
def test_refused_options(options: dict[str, Any], said: str, bins: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=said):
        fe.order(bins, out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_format_of_tokens_needs_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", [1.0, 2.0, None])
    bins = fe.bin(str(run), bins=2, out=tmp_path / "bins").out
    for form in TOKEN_FORMATS:
        with pytest.raises(UsageError, match=f"--format {form} is of tokens, and .* --tokenize"):
            fe.order(bins, format=form, out=tmp_path / "out")
    assert main(["order", str(tmp_path / "nothing"), "--format", "mds", "--out", str(tmp_path / "out"), "--json"]) == 1
    assert "no such file; `fluxentropy bin" in json.loads(capsys.readouterr().out)["error"]
    empty = pa.schema({"id": pa.string(), "text": pa.string(), "x": pa.float64()}).empty_table()
    pq.write_table(empty, tmp_path / "empty.parquet")
    none = fe.bin(str(tmp_path / "empty.parquet"), by=("x",), bins=2, out=tmp_path / "none").out
    with pytest.raises(UsageError, match="the bins hold no text: they are empty"):
        fe.order(none, format="mds", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_bins_and_other_orders_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [float(i) for i in range(12)])
    bins, out = tmp_path / "bins", tmp_path / "out"
    fe.bin(str(run), bins=2, out=bins)
    fe.order(bins, format="jsonl", out=out)
    before = (out / "data" / "part-00000.jsonl").read_bytes()
    with pytest.raises(RunError, match=r"holds another run: .*seed is 0 there and 1 here.*--overwrite"):
        fe.order(bins, format="jsonl", seed=1, out=out)
    fe.bin(str(run), bins=2, seed=9, out=bins, overwrite=True)
    with pytest.raises(RunError, match="was begun with other bins: those in .* have changed since"):
        fe.order(bins, format="jsonl", out=out)
    assert (out / "data" / "part-00000.jsonl").read_bytes() == before
    fe.order(bins, format="jsonl", out=out, overwrite=True)
    assert (out / "data" / "part-00000.jsonl").read_bytes() != before and fe.verify(out).ok
    shard = next((bins / "data").glob("*/*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(RunError, match="SHA-256 is not the one in its manifest; `fluxentropy verify .* --repair`"):
        fe.order(bins, format="parquet", out=tmp_path / "damaged")
    assert not list((tmp_path / "damaged").glob("data/part-*"))


# --- verify -----------------------------------------------------------------------------------------------------------


def rerecord(out: Path, path: Path, facts: dict[str, Any]) -> None:
    """Let a part's record, or what the manifest says of a file, fit what is there: only the content can tell."""
    facts |= {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


@pytest.mark.parametrize("form", FORMATS)
def test_verify_names_damage_and_repairs_it(form: str, bins: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    fe.order(bins, format=form, schedule={"name": "increasing"}, batch_size=8, shard_size="6KB", out=out)
    assert fe.verify(out).ok
    data = sorted(path for path in (out / "data").iterdir() if not path.name.startswith(".") and path.suffix != ".json")
    before = {path: path.read_bytes() for path in [*data, out / "order.parquet"]}
    for path in (data[0], data[-1], out / "order.parquet"):
        for damaged in (before[path][:-9], before[path][:60] + bytes([before[path][60] ^ 1]) + before[path][61:], None):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            found = fe.verify(out)
            assert path in [one.path for one in found.problems], damaged and len(damaged)
            assert fe.verify(out, repair=True).ok
            assert {one: one.read_bytes() for one in before} == before


@pytest.mark.parametrize("form", FORMATS)
def test_verify_reads_the_files_themselves(form: str, bins: Path, tmp_path: Path) -> None:
    """Parts that hold each other's units, with records that fit: the order in them is wrong, and nothing else."""
    out = tmp_path / "out"
    fe.order(bins, format=form, schedule={"name": "increasing"}, batch_size=8, shard_size="600B", out=out)
    other = tmp_path / "other"
    fe.order(bins, format=form, schedule={"name": "decreasing"}, batch_size=8, shard_size="600B", out=other)
    manifest = json.loads((out / "manifest.json").read_text())
    if form == "megatron":
        path = out / "data" / "order.bin"
        shutil.copy(other / "data" / "order.bin", path)
        rerecord(out, path, manifest["joined"]["order.bin"])
        (out / "manifest.json").write_text(json.dumps(manifest))
    else:
        path = out / "data" / f"part-00000{FORMATS[form].suffix}"
        record = out / "data" / ".part-00000.json"
        facts, theirs = (json.loads((one / "data" / record.name).read_text()) for one in (out, other))
        assert facts["rows"] == theirs["rows"]
        shutil.copy(other / "data" / path.name, path)
        rerecord(out, path, facts)
        record.write_text(json.dumps(facts))
    problems = {one.path: one.problem for one in fe.verify(out).problems}
    assert "position 0: it" in problems[path]


def test_verify_compares_the_order_with_the_plan(bins: Path, tmp_path: Path) -> None:
    """A text twice and another not at all, in the order and in the data alike."""
    out = tmp_path / "out"
    fe.order(bins, format="parquet", schedule={"name": "increasing"}, batch_size=8, out=out)
    part, record = out / "data" / "part-00000.parquet", out / "data" / ".part-00000.json"
    manifest, facts = json.loads((out / "manifest.json").read_text()), json.loads(record.read_text())
    twice = pa.array([*range(ROWS - 1), 3])
    for path, kept in ((part, facts), (out / "order.parquet", manifest["order"])):
        table = pq.read_table(path).take(twice)
        if "position" in table.column_names:
            table = table.set_column(0, "position", pa.array(range(ROWS)))
        pq.write_table(table, path)
        rerecord(out, path, kept)
    record.write_text(json.dumps(facts))
    (out / "manifest.json").write_text(json.dumps(manifest))
    problems = {one.path: one.problem for one in fe.verify(out).problems}
    assert problems[out / "order.parquet"] == f"position {ROWS - 1}: it is not the unit that the schedule draws there"


def test_the_command_line(bins: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "order",
        str(bins),
        "--schedule.name",
        "increasing",
        "--format",
        "nanogpt-bin",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"\d+ blocks of [\d,]+ tokens in the order of increasing, 1 epochs, nanogpt-bin", lines[0])
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["unit"] == "block" and sum(found["drawn"]) == found["units"] and found["files"] == 1
    config = tmp_path / "train.yaml"
    config.write_text("schedule:\n  name: increasing\nbatch_size: 8\nlr:\n  warmup: 0.1\nholdout: 1\n")
    assert (
        main(["order", str(bins), "--config", str(config), "--format", "megatron", "--out", str(tmp_path / "m")]) == 0
    )
    said = json.loads((tmp_path / "m" / "manifest.json").read_text())["identity"]["draws"]["options"]
    assert said["batch_size"] == 8 and said["schedule"]["name"] == "increasing"
    assert main(["verify", str(tmp_path / "m")]) == 0
    assert TEXT_FORMATS.keys() | TOKEN_FORMATS.keys() == FORMATS.keys()
