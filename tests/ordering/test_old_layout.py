"""Bins of former versions: they open, train and verify as they are, and get blocks; none is made again alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scoredruns import write_run
from tokenruns import write_bins

from fluxentropy.cli.app import main
from fluxentropy.ordering.bins import Bins
from fluxentropy.runs.files import read_json, sha256_file, write_json
from tests.pretraining.test_pretrain import command, result

pytestmark = pytest.mark.usefixtures("one_thread")
SCORES = [1.0, 2.0, None, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 2.5, 3.5]

# Of the files that version 0.1.0 wrote for these scores and the command in `scored`.
WRITTEN = {
    "bins.json": "11db0bebb9823543c7ddc16dee5248e3c1912a45c1b244e93cbe642d582e820d",
    "manifest": "c185286f79f4f28bbc132ca30e5ef287dc590f81cbccda9252ca6d3179911964",
}

# The sums of its hashes of rows: of the bins, of `unscored`, and of all.
HASHES = {
    "bin=00": 7767083143868639274,
    "bin=01": 11917952937953759462,
    "bin=02": 14096604036530318393,
    "unscored": 2784539788840489483,
}


def as_before(bins: Path, layout: int = 1) -> Path:
    """Lay the folders, and write the records, as version 0.1.0 did, or as the one after it, of format 2, did."""
    for top in (bins, bins / "_blocks") if layout == 1 else ():
        if (top / "data").is_dir():
            for folder in (top / "data").iterdir():
                folder.rename(top / folder.name)
            (top / "data").rmdir()
    for record in (*bins.glob("data/*/.manifest.json"), *bins.glob("*/.manifest.json")):
        if "hash" in (read_json(record) or {}):
            change(record, None, hash=HASHES[record.parent.name])
    said, total = (None, 2)[layout - 1], sum(HASHES.values()) % 2**64
    change(bins / "bins.json", said, hash=total)
    if (bins / "_blocks").is_dir():
        change(bins / "_blocks" / "blocks.json", said)
    manifest = bins / "manifest.json"
    change(manifest, said, hash=total, bins_sha256=sha256_file(bins / "bins.json"))
    records = read_json(bins / ".records.json") or {}
    write_json(bins / ".records.json", records | {"manifest_sha256": sha256_file(manifest)})
    return bins


def change(path: Path, said: int | None, **changes: object) -> None:
    """Let `path` say another format, or none, and the `changes`."""
    found = {**(read_json(path) or {}), **changes, "format": said}
    write_json(path, {name: value for name, value in found.items() if value is not None or name != "format"})


def snapshot(out: Path) -> dict[str, bytes]:
    leave = (".lock", "config.resolved.yaml", ".records.json")
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in leave)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.fixture(params=[1, 2])
def argv(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that made `bins` in the working directory, which is of an old layout."""
    monkeypatch.chdir(tmp_path)
    write_run(Path("scored"), SCORES)
    argv = ["bin", "scored", "--bins", "3", "--tokenize", "bytes", "--block-length", "8", "--out", "bins"]
    assert main(argv) == 0
    as_before(Path("bins"), request.param)
    return argv


OLDEST = pytest.mark.parametrize("argv", [1], indirect=True)


@OLDEST
def test_it_is_what_the_old_version_wrote(argv: list[str]) -> None:
    assert sha256_file(Path("bins/bins.json")) == WRITTEN["bins.json"]
    manifest = (read_json(Path("bins/manifest.json")) or {}) | {"versions": {}}
    assert hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest() == WRITTEN["manifest"]
    assert sorted(path.name for path in Path("bins").glob("[!.]*")) == [
        *("_blocks", "bin=00", "bin=01", "bin=02", "bins.json", "config.resolved.yaml", "manifest.json", "unscored")
    ]


def test_a_finished_one_stays_and_verifies(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(Path("bins"))
    assert main(argv) == 0
    capsys.readouterr()
    assert main(["verify", "bins"]) == 0
    said = capsys.readouterr().out
    assert "same rows as scored, by count and by hash" in said
    assert "made by a former version, whose hashes of rows this one does not know" in said
    assert main(["report", "bins", "--out", "report.html"]) == 0
    assert snapshot(Path("bins")) == before
    bins = Bins.load("bins")
    assert (len(bins), bins.counts) == (3, [4, 3, 3])
    assert bins[2].files == [top_of(Path("bins")) / "bin=02" / "part-00000.arrow"]


def top_of(bins: Path) -> Path:
    return bins / "data" if (bins / "data").is_dir() else bins


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a cut shard": lambda b: (top_of(b) / "bin=01" / "part-00000.arrow").write_bytes(b"ARROW1"),
    "a lost bin": lambda b: shutil.rmtree(top_of(b) / "bin=02"),
    "a lost record": lambda b: (b / "bins.json").unlink(),
    "a record of nothing": lambda b: (b / "bins.json").write_text("{}"),
    "all bins": lambda b: [shutil.rmtree(path) for path in top_of(b).glob("bin=*")],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_and_left_alone(
    damage: str, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bins = Path("bins")
    DAMAGES[damage](bins)
    before = snapshot(bins)
    assert main(["verify", "bins"]) == 1
    capsys.readouterr()
    assert main(["verify", "bins", "--repair"]) == 1
    assert "bins holds bins of a former version" in capsys.readouterr().out
    assert snapshot(bins) == before


def test_an_unfinished_one_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    bins = Path("bins")
    manifest = read_json(bins / "manifest.json") or {}
    write_json(bins / "manifest.json", {"complete": False, "identity": manifest["identity"]})
    (bins / "bins.json").unlink()
    assert main(argv) == 1
    assert "to make them again, start afresh with --overwrite" in capsys.readouterr().err
    assert main([*argv, "--overwrite"]) == 0
    assert main(["verify", "bins"]) == 0


def test_cut_blocks_are_made_again(argv: list[str]) -> None:
    before = snapshot(Path("bins"))
    (top_of(Path("bins/_blocks")) / "bin=00" / "part-00000.arrow").write_bytes(b"ARROW1")
    assert main(["verify", "bins", "--repair"]) == 0
    assert snapshot(Path("bins")) == before


@OLDEST
def test_it_gets_blocks_in_the_new_layout(argv: list[str]) -> None:
    expected = snapshot(Path("bins/_blocks"))
    shutil.rmtree("bins/_blocks")
    assert main(argv) == 0
    assert main(["verify", "bins"]) == 0
    found = {name.removeprefix("data/"): data for name, data in snapshot(Path("bins/_blocks")).items()}
    for index in (found, expected):
        index["blocks.json"] = index["blocks.json"].replace(b' "format": 2,\n', b"")
    assert found == expected  # with their fingerprint


def test_overwriting_makes_the_new_layout(argv: list[str], tmp_path: Path) -> None:
    assert main([*argv, "--overwrite"]) == 0
    assert main([*argv[:-1], "fresh"]) == 0
    assert snapshot(Path("bins")) == snapshot(Path("fresh"))
    assert read_json(Path("bins/bins.json"))["format"] == 3  # type: ignore[index]
    assert not list(Path("bins").glob("bin=*")) and len(list(Path("bins/data").glob("bin=*"))) == 3


@OLDEST
def test_what_lies_beside_the_bins_is_named(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Arrow would take it for a shard."""
    assert main([*argv[:-1], "fresh"]) == 0
    Path("fresh/data/notes.txt").write_text("mine")
    assert main(["verify", "fresh"]) == 1
    assert "fresh/data/notes.txt: it is not of this run: move it away" in capsys.readouterr().out


@OLDEST
def test_a_later_format_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_json(Path("bins/bins.json"), (read_json(Path("bins/bins.json")) or {}) | {"format": 5})
    assert main(argv) == 1
    assert "bins/bins.json has format 5, this version knows 4: install a later one" in capsys.readouterr().err


def test_training_on_it_is_training_on_the_new_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = write_bins(tmp_path / "corpus")
    old = as_before(Path(shutil.copytree(new, tmp_path / "old" / "bins")))
    runs = [tmp_path / name for name in ("new-run", "old-run")]
    for bins, run in zip((new, old), runs, strict=True):
        assert main(command(bins, run)) == 0
        assert main(["ledger", str(run), "--out", str(run / "seen.parquet")]) == 0
    first, second = map(result, runs)
    for name in ("metrics.csv", "ledger.parquet", "export/model.safetensors", "seen.parquet"):
        assert first[name] == second[name], name
    assert main(["schedule", "--bins", str(old), "--batch-size", "8", "--out", str(tmp_path / "plan")]) == 0
