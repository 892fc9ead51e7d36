"""SmolLM2-135M-Instruct answers HellaSwag: log-likelihoods and answers of the harness, the same bytes again.

`sanity_checks/hellaswag.py` has the accuracy over more questions.
"""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from fluxentropy.cli.app import main

SHARED = Path(os.environ.get("FLUXENTROPY_SHARED", "../shared"))
DATA = SHARED / "data" / "hellaswag" / "hellaswag_val.jsonl.gz"
MODEL = "smollm2-135m-instruct"

pytestmark = [
    pytest.mark.real_model,
    pytest.mark.shared_data,
    pytest.mark.skipif(not DATA.is_file(), reason=f"no shared data in {SHARED}: set FLUXENTROPY_SHARED"),
]

QUESTIONS = 14


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hellaswag") / "run"
    assert main(command(out)) == 0
    return out


def command(out: Path) -> list[str]:
    return ["hellaswag", "--model", MODEL, "--data", str(DATA), "--limit", str(QUESTIONS), "--out", str(out)]


def test_every_column_is_filled_and_the_bounds_hold(run: Path) -> None:
    items = pq.read_table(run / "items.parquet")
    assert len(items) == QUESTIONS
    assert {name: items[name].null_count for name in items.column_names if items[name].null_count} == {}
    for regime in ("mean", "last"):
        low, entropy, high = (
            items[f"{name}_{regime}"].to_numpy() for name in ("entropy_lower", "entropy", "entropy_upper")
        )
        assert (low <= entropy + 1e-4).all()
        assert (entropy <= high + 1e-4).all()


def test_a_rerun_changes_no_byte(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(command(run)) == 0
    assert f"{QUESTIONS} questions" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_log_likelihoods_and_accuracies_are_those_of_lm_evaluation_harness(run: Path, tmp_path: Path) -> None:
    with gzip.open(DATA, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line, _ in zip(file, range(QUESTIONS), strict=False)]
    whole = [record | {"ctx_a": record["ctx"], "ctx_b": ""} for record in records]  # the file has them joined
    (tmp_path / "records.jsonl").write_text("\n".join(map(json.dumps, whole)))
    command = [
        sys.executable,
        Path(__file__).parents[1] / "harness.py",
        tmp_path / "records.jsonl",
        tmp_path / "out.json",
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    theirs = np.array(json.loads((tmp_path / "out.json").read_text()))
    items = pq.read_table(run / "items.parquet")
    ours = np.array(items["logliks"].to_pylist())
    assert ours == pytest.approx(theirs, abs=5e-3)
    assert ours.argmax(axis=1).tolist() == theirs.argmax(axis=1).tolist() == items["pred"].to_pylist()
    for lengths, chosen in (("ending_chars", "pred_norm"), ("ending_bytes", "pred_bytes")):
        relative = theirs / np.array(items[lengths].to_pylist())
        assert relative.argmax(axis=1).tolist() == items[chosen].to_pylist()
