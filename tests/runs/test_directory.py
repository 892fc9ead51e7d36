"""Files appear whole or not at all, and a run directory holds one run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxentropy.errors import RunError
from fluxentropy.runs import directory as store
from fluxentropy.runs import files
from fluxentropy.runs.directory import RunDirectory
from fluxentropy.runs.files import atomic_folder, atomic_path, fingerprint_file, read_json, write_json

IDENTITY = {"model": {"name": "a"}, "max_tokens": 512}


@contextlib.contextmanager
def open_run(path: Path, identity: dict[str, Any] = IDENTITY, *, overwrite: bool = False) -> Iterator[RunDirectory]:
    with RunDirectory(path, overwrite=overwrite) as run:
        run.begin(identity, "x: 1\n")
        yield run


def touch_run(path: Path, identity: dict[str, Any] = IDENTITY, *, overwrite: bool = False) -> None:
    with open_run(path, identity, overwrite=overwrite):
        pass


def write_part(run: RunDirectory, number: int, content: bytes) -> None:
    with run.part(number, {"rows": len(content)}) as path:
        path.write_bytes(content)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    store.write_text(target, "old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as aside:
        aside.write_text("half")
        assert target.read_text() == "old"
        assert aside.name.startswith(".")
        raise ZeroDivisionError
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]
    assert target.read_text() == "old"


def test_a_target_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    with pytest.raises(RunError, match="cannot write .*file/below"):
        store.write_text(tmp_path / "file" / "below", "x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    (tmp_path / ".aside-full").symlink_to("/dev/full")
    with (
        pytest.raises(RunError, match="cannot write .*full: No space left"),
        atomic_path(tmp_path / "full") as aside,
        open(aside, "wb", buffering=0) as file,
    ):
        file.write(b"x")


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "model") as aside:
        (aside / "half").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    for content in ("first", "second"):  # the copy that came first stays
        with atomic_folder(tmp_path / "model") as aside:
            (aside / "weights").write_text(content)
    assert (tmp_path / "model" / "weights").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_fingerprints_depend_on_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"content")
    b.write_bytes(b"content")
    os.utime(b, (0, 0))
    assert fingerprint_file(a) == fingerprint_file(b) == "sha256:" + hashlib.sha256(b"content").hexdigest()
    monkeypatch.setattr(files, "FULL_HASH_LIMIT", 1000)
    monkeypatch.setattr(files, "SAMPLE_BYTES", 100)
    large = bytearray(os.urandom(200_000))
    a.write_bytes(large)
    before = fingerprint_file(a)
    assert before.startswith("sampled:")
    large[-1] ^= 1
    a.write_bytes(large)
    assert fingerprint_file(a) != before


def test_damaged_json_is_named_and_a_missing_one_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") is None
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(RunError, match=r"cut\.json cannot be read.*--overwrite"):
        read_json(tmp_path / "cut.json")


def test_parts_count_only_with_their_manifest_and_in_full_length(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        for number in range(4):
            write_part(run, number, b"x" * number)
        assert {number: part["rows"] for number, part in run.done().items()} == {0: 0, 1: 1, 2: 2, 3: 3}
        (run.parts / ".part-00002.json").unlink()
        assert list(run.done()) == [0, 1, 3]
        (run.parts / "part-00001.parquet").write_bytes(b"longer than it was")
        assert list(run.done()) == [0, 3]


def test_a_part_records_its_size_and_hash(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        write_part(run, 0, b"hello")
        (part,) = run.done().values()
    assert part == {"rows": 5, "bytes": 5, "sha256": hashlib.sha256(b"hello").hexdigest()}


def test_another_runs_directory_is_refused_with_the_difference(tmp_path: Path) -> None:
    touch_run(tmp_path / "run")
    touch_run(tmp_path / "run")
    with pytest.raises(RunError, match="max_tokens is 512 there and 256 here.*--overwrite"):
        touch_run(tmp_path / "run", IDENTITY | {"max_tokens": 256})
    with pytest.raises(RunError, match="model.name is 'a' there and 'b' here"):
        touch_run(tmp_path / "run", IDENTITY | {"model": {"name": "b"}})


def test_overwrite_starts_afresh(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        write_part(run, 0, b"old")
        run.finish({})
    with open_run(tmp_path / "run", IDENTITY | {"max_tokens": 1}, overwrite=True) as run:
        assert run.done() == {}
        assert read_json(run.manifest)["complete"] is False


def test_parts_without_a_manifest_are_those_of_a_cut_overwrite_and_are_dropped(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        write_part(run, 0, b"old")
    run.manifest.unlink()
    with open_run(tmp_path / "run", IDENTITY | {"max_tokens": 1}) as run:
        assert run.done() == {}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match=r"is not a run directory \(it holds thesis.tex\)"):
        touch_run(tmp_path, overwrite=overwrite)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_two_writers_at_once_the_second_is_refused_and_told_who(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from fluxentropy.runs.directory import RunDirectory\n"
        f"with RunDirectory(pathlib.Path({str(tmp_path / 'run')!r})):\n"
        "    print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(RunError, match=f"is being written by process {holder.pid}"):
            touch_run(tmp_path / "run")
        holder.kill()
    touch_run(tmp_path / "run")  # a killed writer's lock is gone


def test_finish_records_facts(tmp_path: Path) -> None:
    with open_run(tmp_path / "run") as run:
        run.finish({"counts": {"rows": 1}})
    manifest = read_json(run.manifest)
    assert (manifest["complete"], manifest["identity"], manifest["counts"]) == (True, IDENTITY, {"rows": 1})
    write_json(tmp_path / "same.json", manifest)
    assert (tmp_path / "same.json").read_bytes() == run.manifest.read_bytes()
