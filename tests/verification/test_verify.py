"""`fluxentropy verify`: every kind of damage is named by its path, and a repair gives the bytes that were there."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from fakes import SENTENCES, save_model
from scoredruns import write_run

import fluxentropy
from fluxentropy.cli.app import main
from fluxentropy.runs.directory import RunDirectory
from fluxentropy.runs.files import sha256_file
from fluxentropy.verification.verify import VerifyResult

N_TEXTS = 60
Capture = pytest.CaptureFixture[str]


def command(capsys: Capture, *argv: str | Path) -> tuple[int, dict[str, Any], str]:
    """Exit code, the JSON object on stdout, and stderr."""
    code = main([*map(str, argv), "--json"])
    captured = capsys.readouterr()
    assert "unexpected error" not in captured.err
    return code, json.loads(captured.out), captured.err


def problems(capsys: Capture, run: Path) -> dict[str, str]:
    """What `verify` names: path in the run -> problem."""
    code, data, _ = command(capsys, "verify", run)
    assert (code == 1) == bool(data["problems"]) == (not data["ok"])
    return {str(Path(one["path"]).relative_to(run)): one["problem"] for one in data["problems"]}


def snapshot(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def swap(a: Path, b: Path) -> None:
    old = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(old)


def record_anew(folder: Path, number: int, table: pa.Table) -> None:
    """Put `table` into a part, with a manifest that fits: only the rows themselves can tell."""
    file, record = folder / f"part-{number:05d}.parquet", folder / f".part-{number:05d}.json"
    facts = json.loads(record.read_text())
    pq.write_table(table, file)
    facts |= {"rows": len(table), "bytes": file.stat().st_size, "sha256": sha256_file(file)}
    record.write_text(json.dumps(facts))


def edit(manifest: Path, **facts: Any) -> None:
    """Change a manifest, and its SHA-256 so that it looks whole: only what it says can tell."""
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | facts))
    records = manifest.with_name(".records.json")
    records.write_text(json.dumps(json.loads(records.read_text()) | {"manifest_sha256": sha256_file(manifest)}))


# --- runs of score ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a source, and a run of several parts."""
    folder = tmp_path_factory.mktemp("scored")
    save_model(folder / "model")
    rng = random.Random(0)
    for name in ("a", "b"):
        rows = [{"id": f"{name}{n}", "text": " ".join(rng.choices(SENTENCES, k=4))} for n in range(N_TEXTS // 2)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    argv = ["score", folder / "a.jsonl", folder / "b.jsonl", "--model", folder / "model", "--out", folder / "run"]
    assert main([*map(str, argv), "--max-tokens", "100", "--part-tokens", "500"]) == 0
    return folder


@pytest.fixture
def scored(scored_once: Path, tmp_path: Path) -> Path:
    shutil.copytree(scored_once / "run", tmp_path / "run")
    return tmp_path / "run"


def test_a_whole_run_is_proved(capsys: Capture, scored: Path) -> None:
    code, data, _ = command(capsys, "verify", scored)
    parts = len(list(scored.glob("scores/part-*.parquet")))
    assert parts > 4
    assert (code, data["ok"], data["problems"], data["leftovers"]) == (0, True, [], [])
    assert data["runs"] == [{"run": str(scored), "kind": "score", "rows": N_TEXTS, "files": parts}]
    result = fluxentropy.verify(scored)
    assert isinstance(result, VerifyResult) and result.ok and not result.exit_code and result.to_dict() == data
    assert (result.dir, result.runs[0].rows) == (scored, N_TEXTS)
    assert result.lines()[-1] == "nothing is missing, nothing is damaged"
    (scored / "scores" / "part-00001.parquet").unlink()
    damaged = fluxentropy.verify(scored)
    assert not damaged.ok and damaged.exit_code == 1
    assert [one.path for one in damaged.problems] == [scored / "scores" / "part-00001.parquet"]
    assert fluxentropy.verify(scored, repair=True).repaired == [scored / "scores" / "part-00001.parquet"]


SCORE_DAMAGE: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "truncated": (lambda s: truncate(s / "part-00001.parquet"), ["part-00001.parquet"], "its manifest says"),
    "a flipped bit": (lambda s: flip(s / "part-00001.parquet"), ["part-00001.parquet"], "SHA-256"),
    "a lost part": (lambda s: (s / "part-00002.parquet").unlink(), ["part-00002.parquet"], "missing"),
    "a lost manifest": (lambda s: (s / ".part-00002.json").unlink(), [".part-00002.json"], "missing"),
    "a cut manifest": (lambda s: truncate(s / ".part-00000.json"), [".part-00000.json"], "cannot be read"),
    "an emptied manifest": (lambda s: (s / ".part-00000.json").write_text("[]"), [".part-00000.json"], "no JSON obj"),
    "a foreign part": (
        lambda s: shutil.copy(s / "part-00000.parquet", s / "part-00099.parquet"),
        ["part-00099.parquet"],
        "not of this run",
    ),
    "two swapped": (
        lambda s: swap(s / "part-00000.parquet", s / "part-00003.parquet"),
        ["part-00000.parquet", "part-00003.parquet"],
        "",
    ),
    "rows twice": (
        lambda s: record_anew(s, 2, pq.read_table(s / "part-00001.parquet")),
        ["part-00002.parquet"],
        "is there twice",
    ),
}


@pytest.mark.parametrize("damage", SCORE_DAMAGE)
def test_damage_of_parts_is_named_and_repaired(capsys: Capture, scored: Path, damage: str) -> None:
    before = snapshot(scored)
    do, names, words = SCORE_DAMAGE[damage]
    do(scored / "scores")
    found = problems(capsys, scored)
    assert sorted(found) == sorted(f"scores/{name}" for name in names)
    assert all(words in problem for problem in found.values())
    code, data, _ = command(capsys, "verify", scored, "--repair")
    assert (code, data["ok"]) == (0, True)
    assert sorted(data["repaired"]) == sorted(str(scored / "scores" / name) for name in names)
    assert snapshot(scored) == before


def test_a_lost_row_is_missed_by_its_source(capsys: Capture, scored: Path) -> None:
    before = snapshot(scored)
    record_anew(scored / "scores", 1, pq.read_table(scored / "scores" / "part-00001.parquet").slice(1))
    edit(scored / "manifest.json", counts={})
    assert problems(capsys, scored) == {"manifest.json": "it says 30 rows of a.jsonl, there are 29"}
    shutil.rmtree(scored / "scores")
    assert problems(capsys, scored) == {"scores": "it is missing"}
    assert command(capsys, "verify", scored, "--repair")[0] == 0
    assert snapshot(scored) == before


def test_wrong_counts_are_counted_again(capsys: Capture, scored: Path) -> None:
    before = snapshot(scored)
    counts = json.loads((scored / "manifest.json").read_text())["counts"]
    edit(scored / "manifest.json", counts=counts | {"status_ok": N_TEXTS - 1})
    assert problems(capsys, scored) == {
        "manifest.json": f"it says {N_TEXTS - 1} rows with status ok, there are {N_TEXTS}"
    }
    assert command(capsys, "verify", scored, "--repair")[0] == 0
    assert snapshot(scored) == before


def test_a_changed_source_is_named_and_nothing_is_taken_away(
    capsys: Capture, scored_once: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.jsonl").write_text('{"text": "one"}\n')
    run = tmp_path / "run"
    score = ["score", tmp_path / "c.jsonl", "--model", scored_once / "model", "--out", run, "--max-tokens", "100"]
    assert command(capsys, *score)[0] == 0
    truncate(run / "scores" / "part-00000.parquet")
    before, cache = snapshot(run), {".scans.json": b""}
    (tmp_path / "c.jsonl").write_text('{"text": "two"}\n')
    code, data, _ = command(capsys, "verify", run, "--repair")
    assert code == 1
    assert "sources.c.jsonl" in data["not_repaired"][0]
    assert snapshot(run) | cache == before | cache
    (tmp_path / "c.jsonl").unlink()
    code, data, _ = command(capsys, "verify", run, "--repair")
    assert code == 1
    assert "c.jsonl: no such file" in data["not_repaired"][0]
    assert snapshot(run) | cache == before | cache


def test_what_shows_only_once_the_parts_are_whole_is_repaired_too(capsys: Capture, scored: Path) -> None:
    before = snapshot(scored)
    flip(scored / "scores" / "part-00000.parquet")
    record_anew(scored / "scores", 3, pq.read_table(scored / "scores" / "part-00002.parquet"))
    assert list(problems(capsys, scored)) == ["scores/part-00000.parquet"]
    code, data, _ = command(capsys, "verify", scored, "--repair")
    assert (code, len(data["repaired"])) == (0, 2)
    assert snapshot(scored) == before


def test_leftovers_are_named_do_no_harm_and_go(capsys: Capture, scored: Path) -> None:
    before = snapshot(scored)
    left = scored / "scores" / ".aside-part-00007.parquet"
    left.write_bytes(b"half")
    code, data, _ = command(capsys, "verify", scored)
    assert (code, data["leftovers"]) == (0, [str(left)])
    assert command(capsys, "verify", scored, "--repair")[0] == 0
    assert snapshot(scored) == before


def test_a_strangers_file_is_named_and_left_alone(capsys: Capture, scored: Path) -> None:
    (scored / "scores" / "notes.txt").write_text("mine")
    assert "move it away" in problems(capsys, scored)["scores/notes.txt"]
    assert command(capsys, "verify", scored, "--repair")[0] == 1
    assert (scored / "scores" / "notes.txt").read_text() == "mine"


# --- bins -------------------------------------------------------------------------------------------------------------


HOW = {
    "one column": ["--bins", "4"],
    "a grid": ["--by", "entropy_mean,surprisal_mean", "--grid", "2x2"],
    "several shards": ["--bins", "3", "--shard-size", "1KB", "--order", "source"],
}


def make_bins(folder: Path, how: str) -> Path:
    values = np.random.default_rng(0).normal(size=40).tolist()
    values[7] = values[30] = None
    run = write_run(folder / "scored", values, part_rows=9)
    assert main(["bin", str(run), *HOW[how], "--out", str(folder / "bins")]) == 0
    return folder / "bins"


@pytest.fixture(params=HOW)
def bins(capsys: Capture, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    found = make_bins(tmp_path, request.param)
    capsys.readouterr()
    return found


@pytest.fixture(scope="module")
def all_bins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {how: make_bins(tmp_path_factory.mktemp("bins"), how) for how in HOW}


def rewrite(shard: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the rows of a shard, and its folder's manifest so that the file itself looks whole."""
    with pa.memory_map(str(shard)) as source:
        table = change(pa.ipc.open_file(source).read_all())
    with pa.ipc.new_file(str(shard), table.schema) as writer:
        writer.write_table(table)
    manifest = shard.parent / ".manifest.json"
    facts = json.loads(manifest.read_text())
    facts["files"][0] |= {"rows": len(table), "bytes": shard.stat().st_size, "sha256": sha256_file(shard)}
    manifest.write_text(json.dumps(facts))


def set_column(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        column = pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(name).type)
        return table.set_column(place, table.schema.field(name), column)

    return change


def test_whole_bins_are_proved_against_their_input(capsys: Capture, bins: Path) -> None:
    code, data, _ = command(capsys, "verify", bins)
    assert (code, data["ok"], data["runs"][0]["rows"]) == (0, True, 40)
    assert "same rows as" in data["notes"][0]
    shutil.rmtree(bins.parent / "scored")
    code, data, _ = command(capsys, "verify", bins)
    assert (code, data["ok"]) == (0, True)
    assert "part-00000.parquet is gone" in data["notes"][0]


SHARD = "part-00000.arrow"

BIN_DAMAGE: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "truncated": (lambda b: truncate(b / "data" / "bin=01" / SHARD), [f"data/bin=01/{SHARD}"]),
    "a flipped bit": (lambda b: flip(b / "unscored" / SHARD), [f"unscored/{SHARD}"]),
    "a lost shard": (lambda b: (b / "data" / "bin=02" / SHARD).unlink(), [f"data/bin=02/{SHARD}"]),
    "a lost manifest": (lambda b: (b / "data" / "bin=02" / ".manifest.json").unlink(), ["data/bin=02/.manifest.json"]),
    "a lost bin": (lambda b: shutil.rmtree(b / "data" / "bin=00"), ["data/bin=00"]),
    "rows without a score lost": (lambda b: shutil.rmtree(b / "unscored"), ["unscored"]),
    "a foreign bin": (lambda b: shutil.copytree(b / "data" / "bin=00", b / "data" / "bin=77"), ["data/bin=77"]),
    "a foreign shard": (
        lambda b: shutil.copy(b / "data" / "bin=00" / SHARD, b / "data" / "bin=00/part-00077.arrow"),
        ["data/bin=00/part-00077.arrow"],
    ),
    "two swapped": (
        lambda b: swap(b / "data" / "bin=00" / SHARD, b / "data" / "bin=01" / SHARD),
        [f"data/bin=00/{SHARD}", f"data/bin=01/{SHARD}"],
    ),
    "another bin's number": (
        lambda b: rewrite(b / "data" / "bin=01" / SHARD, set_column("bin", 0)),
        [f"data/bin=01/{SHARD}"],
    ),
    "another bin's score": (
        lambda b: rewrite(
            b / "data" / "bin=01" / SHARD,
            lambda t: set_column("surprisal_mean", -9.0)(set_column("entropy_mean", 9.0)(t)),
        ),
        [f"data/bin=01/{SHARD}"],
    ),
    "a row twice": (
        lambda b: rewrite(b / "data" / "bin=01" / SHARD, lambda t: pa.concat_tables([t.slice(1), t.slice(1, 1)])),
        ["data/bin=01/.manifest.json"],
    ),
    "an odd manifest": (
        lambda b: (b / "data" / "bin=02" / ".manifest.json").write_text('{"files": [1]}'),
        ["data/bin=02/.manifest.json"],
    ),
    "no bins.json": (lambda b: (b / "bins.json").unlink(), ["bins.json"]),
    "an edited bins.json": (
        lambda b: (b / "bins.json").write_text((b / "bins.json").read_text().replace('"seed": 0', '"seed": 1')),
        ["bins.json"],
    ),
    "much at once": (
        lambda b: (
            shutil.rmtree(b / "data" / "bin=00"),
            flip(b / "unscored" / SHARD),
            (b / "bins.json").write_text("{}"),
        ),
        ["bins.json", f"unscored/{SHARD}"],
    ),
}


@pytest.mark.parametrize(
    ("damage", "how"),
    [(damage, [*HOW][number % 3]) for number, damage in enumerate(BIN_DAMAGE)]  # each on one of them, and
    + [("another bin's score", how) for how in ("one column", "several shards")]
    + [("much at once", how) for how in ("a grid", "several shards")],
)
def test_damage_of_bins_is_named_and_repaired(
    capsys: Capture, all_bins: dict[str, Path], tmp_path: Path, damage: str, how: str
) -> None:
    bins = Path(shutil.copytree(all_bins[how], tmp_path / "bins"))
    capsys.readouterr()
    before = snapshot(bins)
    do, names = BIN_DAMAGE[damage]
    do(bins)
    assert sorted(problems(capsys, bins)) == sorted(names)
    untouched = {
        path: path.stat().st_mtime_ns
        for path in bins.glob("data/bin=*/*")
        if not any(path.match(name) or path.parent.name in name for name in names)
    }
    code, data, _ = command(capsys, "verify", bins, "--repair")
    assert (code, data["problems"]) == (0, [])
    assert snapshot(bins) == before
    assert all(path.stat().st_mtime_ns == time for path, time in untouched.items() if path.exists())


@pytest.mark.parametrize("bins", ["one column"], indirect=True)
def test_rows_of_another_corpus_in_a_consistent_disguise(capsys: Capture, bins: Path) -> None:
    """All manifests agree with each other; only the input tells."""
    rewrite(bins / "data" / "bin=01" / SHARD, set_column("id", "somebody else"))
    from fluxentropy.ordering.shards import sum_of_rows

    with pa.memory_map(str(bins / "data" / "bin=01" / SHARD)) as source:
        changed = sum_of_rows(pa.ipc.open_file(source).read_all())
    record = bins / "data" / "bin=01" / ".manifest.json"
    facts = json.loads(record.read_text())
    shift = changed - facts["hash"]
    record.write_text(json.dumps(facts | {"hash": changed}))
    found = json.loads((bins / "bins.json").read_text())
    found["hash"] = (found["hash"] + shift) % 2**64
    (bins / "bins.json").write_text(json.dumps(found))
    edit(bins / "manifest.json", hash=found["hash"], bins_sha256=sha256_file(bins / "bins.json"))
    code, data, _ = command(capsys, "verify", bins)
    assert code == 1
    (problem,) = data["problems"]
    assert (problem["path"], problem["repairable"]) == (str(bins), False)
    assert "not those of its input" in problem["problem"]


@pytest.mark.parametrize("bins", ["one column"], indirect=True)
def test_a_changed_input_is_named_and_nothing_is_taken_away(capsys: Capture, bins: Path) -> None:
    truncate(bins / "data" / "bin=01" / SHARD)
    before = snapshot(bins)
    scores = bins.parent / "scored" / "scores"
    record_anew(scores, 2, pq.read_table(scores / "part-00002.parquet").slice(1))
    code, data, _ = command(capsys, "verify", bins, "--repair")
    assert code == 1
    assert f"{scores / 'part-00002.parquet'} has changed since" in data["not_repaired"][0]
    assert snapshot(bins) == before


@pytest.mark.parametrize("bins", ["several shards"], indirect=True)
def test_two_processes_find_the_same(capsys: Capture, bins: Path) -> None:
    flip(bins / "data" / "bin=01" / SHARD)
    alone, shared = (command(capsys, "verify", bins, "--workers", n)[1] for n in ("1", "2"))
    assert alone == shared
    assert len(alone["problems"]) == 1


# --- what is said of a run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made_once(scored_once: Path) -> Path:
    """The folder of `scored_once`, with bins of its run."""
    assert main(["bin", str(scored_once / "run"), "--bins", "2", "--out", str(scored_once / "bins")]) == 0
    return scored_once


@pytest.fixture(params=["run", "bins"])
def run(request: pytest.FixtureRequest, made_once: Path, tmp_path: Path) -> Path:
    """A run of `score`, or bins of it."""
    shutil.copytree(made_once / request.param, tmp_path / request.param)
    return tmp_path / request.param


def change(path: Path, *keys: str) -> None:
    """Put another value to a key in a JSON file."""
    found = json.loads(path.read_text())
    *outer, last = keys
    inner = found
    for key in outer:
        inner = inner[key]
    inner[last] = "another"
    path.write_text(json.dumps(found, indent=1, sort_keys=True))


MANIFEST_DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": truncate,
    "emptied": lambda m: m.write_text("{}"),
    "other versions": lambda m: change(m, "versions", "pyarrow"),
    "another identity": lambda m: change(m, "identity", "order" if m.parent.name == "bins" else "limit"),
}


@pytest.mark.parametrize("damage", MANIFEST_DAMAGE)
def test_a_damaged_manifest_is_named_and_left_alone(capsys: Capture, run: Path, damage: str) -> None:
    MANIFEST_DAMAGE[damage](run / "manifest.json")
    before = snapshot(run)
    code, data, _ = command(capsys, "verify", run, "--repair")
    (problem,) = data["problems"]
    assert (code, problem["path"], problem["repairable"]) == (1, str(run / "manifest.json"), False)
    assert "afresh, with --overwrite" in problem["problem"]
    assert snapshot(run) == before


def test_a_lost_manifest_is_named(capsys: Capture, run: Path) -> None:
    (run / "manifest.json").unlink()
    before = snapshot(run)
    code, data, _ = command(capsys, "verify", run, "--repair")
    assert (code, f"{run} has lost its manifest.json: remove the folder, and give" in data["error"]) == (1, True)
    assert snapshot(run) == before


def test_an_edited_configuration_is_named(capsys: Capture, run: Path) -> None:
    before = snapshot(run)
    config = run / "config.resolved.yaml"
    text = config.read_text()
    config.write_text(text.replace("overwrite: false", "overwrite: true"))
    assert list(problems(capsys, run)) == ["config.resolved.yaml"]
    assert command(capsys, "verify", run, "--repair")[0] == 1
    config.unlink()
    assert list(problems(capsys, run)) == ["config.resolved.yaml"]
    config.write_text(text)
    assert problems(capsys, run) == {}
    assert snapshot(run) == before


def test_a_complete_run_keeps_the_configuration_it_was_made_with(capsys: Capture, tmp_path: Path) -> None:
    scored, out = write_run(tmp_path / "scored", [1.0, 2.0, 3.0]), tmp_path / "bins"
    argv = ["bin", scored, "--bins", "2", "--out", out]
    assert command(capsys, *argv)[0] == 0
    before = snapshot(out)
    assert command(capsys, *argv, "--memory", "2GB")[0] == 0
    assert snapshot(out) == before
    (out / "config.resolved.yaml").unlink()
    assert command(capsys, *argv, "--memory", "2GB")[0] == 0
    assert "memory: 2GB" in (out / "config.resolved.yaml").read_text()
    assert problems(capsys, out) == {}


# --- other directories ------------------------------------------------------------------------------------------------


def test_a_zoo_and_its_consensus(capsys: Capture, scored_once: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", seed=1)
    models = {"first": scored_once / "model", "second": other}
    entries = "".join(f"  {name}:\n    folder: {path}\n" for name, path in models.items())
    (tmp_path / "zoo.yaml").write_text(f"models:\n{entries}")
    out = tmp_path / "zoo"
    argv = ["zoo", scored_once / "a.jsonl", "--zoo", tmp_path / "zoo.yaml", "--out", out, "--bootstrap", "0"]
    code, data, _ = command(capsys, *argv, "--max-tokens", "100", "--part-tokens", "500")
    assert code == 0, data
    assert problems(capsys, out) == {}
    before = snapshot(out)
    truncate(out / "second" / "scores" / "part-00001.parquet")
    flip(out / "consensus" / "scores" / "part-00000.parquet")
    (out / "agreement.json").unlink()
    named = ["agreement.json", "consensus/scores/part-00000.parquet", "second/scores/part-00001.parquet"]
    assert sorted(problems(capsys, out)) == named
    assert list(problems(capsys, out / "consensus")) == ["scores/part-00000.parquet"]
    assert command(capsys, "verify", out, "--repair")[0] == 0
    assert snapshot(out) == before


def test_answers_to_questions(capsys: Capture, scored_once: Path, tmp_path: Path) -> None:
    rows = [
        {"ind": n, "ctx": SENTENCES[n % 3], "endings": [f"{n} one", "two", "three", "a fox"], "label": n % 4}
        for n in range(6)
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    argv = ["hellaswag", "--model", scored_once / "model", "--data", tmp_path / "questions.jsonl", "--out", out]
    assert command(capsys, *argv)[0] == 0
    assert problems(capsys, out) == {}
    before = snapshot(out)
    table = pq.read_table(out / "items.parquet")
    pq.write_table(table.slice(1), out / "items.parquet")
    assert list(problems(capsys, out)) == ["items.parquet"]
    (out / "items" / "part-00000.parquet").unlink()
    assert list(problems(capsys, out)) == ["items/part-00000.parquet"]
    assert command(capsys, "verify", out, "--repair")[0] == 0
    assert snapshot(out) == before


def test_what_is_no_finished_run_is_said(capsys: Capture, tmp_path: Path) -> None:
    def error(path: Path) -> str:
        code, data, _ = command(capsys, "verify", path)
        assert code == 1
        return str(data["error"])

    assert "is not there" in error(tmp_path / "nowhere")
    write_run(tmp_path / "unfinished", [1.0, 2.0], finish=False)
    assert "is not finished" in error(tmp_path / "unfinished")
    assert "it holds unfinished; give one of them" in error(tmp_path)
    with RunDirectory(tmp_path / "other") as run:
        run.begin({"kind": "something new"}, "")
        run.finish({})
    assert "no other can be verified" in error(tmp_path / "other")
    (tmp_path / "file").write_text("")
    assert "is a file" in error(tmp_path / "file")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"complete": true, "identity": 3}'])
def test_a_damaged_manifest_of_the_whole_is_named(capsys: Capture, tmp_path: Path, text: str) -> None:
    run = write_run(tmp_path / "run", [1.0, 2.0])
    (run / "manifest.json").write_text(text)
    for flags in ([], ["--repair"]):
        code, data, _ = command(capsys, "verify", run, *flags)
        assert (code, data["problems"][0]["path"]) == (1, str(run / "manifest.json"))
    assert (run / "scores" / "part-00000.parquet").exists()
