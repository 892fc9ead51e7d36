"""The pipelines run from text to verified bins, twice."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import SENTENCES, save_model

from fluxentropy.tablefiles import TableFiles, table_files

PIPELINES = Path(__file__).resolve().parent.parent / "pipelines"
TEXTS = [f"{sentence} {row}" for row in range(8) for sentence in SENTENCES]

Program = Callable[..., str]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Runs a program of pipelines/ in `tmp_path`, where a folder `model` is; returns what it prints."""
    save_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(PIPELINES)

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(PIPELINES / name), run_name="__main__")
        output = capsys.readouterr()
        assert end.value.code == 0, output.err
        return output.out

    return run


def test_fineweb_goes_from_text_to_verified_bins_and_resumes(program: Program, tmp_path: Path) -> None:
    rows = [{"text": text, "dump": "CC-MAIN-2024-10"} for text in TEXTS]
    (tmp_path / "web.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for _ in range(2):
        output = program("fineweb.py", "web.jsonl", "--model", "model", "--max-tokens", 64, "--bins", 4, "--out", "out")
        assert "40 rows by entropy_mean in 4 bins" in output
        assert output.count("nothing is missing") == 2


def test_datatrove_goes_from_parquet_to_verified_bins_and_resumes(program: Program, tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    for file in range(2):  # the first text of the first file has no surprisal, from which no type can be guessed
        texts = TEXTS[:20] if file else ["a", *TEXTS[:19]]
        ids = [f"{file}/{row}" for row in range(len(texts))]
        table = pa.table({"text": texts, "id": ids, "dump": ["CC"] * len(texts)})
        pq.write_table(table, tmp_path / "web" / f"{file}.parquet")
    arguments = ("web", "--model", "model", "--max-tokens", 64, "--bins", 4, "--tasks", 2, "--out", "out")
    for _ in range(2):
        output = program("datatrove_scores.py", *arguments)
        assert "40 rows by entropy_mean in 4 bins" in output and "nothing is missing" in output
    scored = TableFiles.open(table_files("out/scores"))
    assert {"dump", "entropy_mean", "status"} <= set(scored.schema.names) and scored.rows == 40
