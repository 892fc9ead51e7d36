"""Bins of the layout before `data/`: they open, train, verify, are repaired and finished where they are."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from scoredruns import write_run
from test_pretrain import command, result
from tokenruns import write_bins

from fluxentropy.cli import main
from fluxentropy.store import read_json, sha256_file, write_json

pytestmark = pytest.mark.usefixtures("one_thread")

SCORES = [1.0, 2.0, None, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 2.5, 3.5]
# Of the files that version 0.1.0 wrote for these scores and the command in `scored`.
WRITTEN = {
    "bins.json": "11db0bebb9823543c7ddc16dee5248e3c1912a45c1b244e93cbe642d582e820d",
    "manifest": "c185286f79f4f28bbc132ca30e5ef287dc590f81cbccda9252ca6d3179911964",
}


def as_before(bins: Path) -> Path:
    """Lay the folders, and write the records, as version 0.1.0 did."""
    for top, index in ((bins, "bins.json"), (bins / "_blocks", "blocks.json")):
        if (top / "data").is_dir():
            for folder in (top / "data").iterdir():
                folder.rename(top / folder.name)
            (top / "data").rmdir()
            forget_format(top / index)
    manifest = bins / "manifest.json"
    forget_format(manifest, bins_sha256=sha256_file(bins / "bins.json"))
    records = read_json(bins / ".records.json") or {}
    write_json(bins / ".records.json", records | {"manifest_sha256": sha256_file(manifest)})
    return bins


def forget_format(path: Path, **changes: str) -> None:
    found = read_json(path) or {}
    assert found.pop("format") == 2
    write_json(path, found | changes)


def snapshot(out: Path) -> dict[str, bytes]:
    leave = (".lock", "config.resolved.yaml", ".records.json")
    files = (path for path in sorted(out.rglob("*")) if path.is_file() and path.name not in leave)
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


@pytest.fixture
def argv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command that made `bins` in the working directory, which is of the old layout."""
    monkeypatch.chdir(tmp_path)
    write_run(Path("scored"), SCORES)
    argv = ["bin", "scored", "--bins", "3", "--tokenize", "bytes", "--block-length", "8", "--out", "bins"]
    assert main(argv) == 0
    as_before(Path("bins"))
    return argv


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
    assert main(["verify", "bins"]) == 0
    assert "same rows as scored" in capsys.readouterr().out
    assert main(["report", "bins", "--out", "report.html"]) == 0
    assert snapshot(Path("bins")) == before


def test_a_killed_one_is_finished_in_its_layout(argv: list[str]) -> None:
    bins = Path("bins")
    expected = snapshot(bins)
    for lost in (("bin=01", "bins.json"), ("bin=00", "bin=02", "unscored", "bins.json", "_blocks/bin=01")):
        for name in (*lost, "_blocks/blocks.json"):
            shutil.rmtree(bins / name) if (bins / name).is_dir() else (bins / name).unlink(missing_ok=True)
        manifest = read_json(bins / "manifest.json") or {}
        write_json(bins / "manifest.json", {"complete": False, "identity": manifest["identity"]})
        assert main(argv) == 0
        assert snapshot(bins) == expected


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a cut shard": lambda b: (b / "bin=01" / "part-00000.arrow").write_bytes(b"ARROW1"),
    "a lost bin": lambda b: shutil.rmtree(b / "bin=02"),
    "a lost record": lambda b: (b / "bins.json").unlink(),
    "a record of nothing": lambda b: (b / "bins.json").write_text("{}"),
    "cut blocks": lambda b: (b / "_blocks" / "bin=00" / "part-00000.arrow").write_bytes(b"ARROW1"),
    "everything": lambda b: [shutil.rmtree(b / f"bin=0{n}") for n in range(3)] and (b / "bins.json").unlink(),
    "every shard": lambda b: [p.write_bytes(b"ARROW1") for p in b.glob("bin=*/*.arrow")] and None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_repaired_in_its_layout(damage: str, argv: list[str]) -> None:
    bins = Path("bins")
    expected = snapshot(bins)
    DAMAGES[damage](bins)
    assert main(["verify", "bins"]) == 1
    assert main(["verify", "bins", "--repair"]) == 0
    assert snapshot(bins) == expected


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
    assert not list(Path("bins").glob("bin=*")) and len(list(Path("bins/data").glob("bin=*"))) == 3


def test_what_lies_beside_the_bins_is_named(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Arrow would take it for a shard."""
    assert main([*argv[:-1], "fresh"]) == 0
    Path("fresh/data/notes.txt").write_text("mine")
    assert main(["verify", "fresh"]) == 1
    assert "fresh/data/notes.txt: it is not of this run: move it away" in capsys.readouterr().out


def test_a_later_format_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    write_json(Path("bins/bins.json"), (read_json(Path("bins/bins.json")) or {}) | {"format": 3})
    assert main(argv) == 1
    assert "bins/bins.json has format 3, and this version knows 2: install a later one" in capsys.readouterr().err


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
