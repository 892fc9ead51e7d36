"""The published HellaSwag study comes out of its published table, figure for figure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLE = Path(os.environ.get("FLUXENTROPY_SHARED", "../shared"), "data/hellaswag/published_entropy_vs_correct.csv")


def study(table: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(ROOT / "eval_entropy" / "published_study.py"),
        str(table.resolve()),
        "--out",
        str(out),
    ]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.shared_data
def test_every_published_figure(tmp_path: Path) -> None:
    if not TABLE.is_file():
        pytest.skip(f"no {TABLE}")
    done = study(TABLE, tmp_path / "study")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all figures reproduced" in done.stdout and "WRONG" not in done.stdout
    record = json.loads((tmp_path / "study" / "diagnostics.json").read_text())
    model = record["models"]["entropy"]
    assert (record["n"], record["n_true"], record["balanced"]) == (10042, 4529, False)
    assert model["params"] == pytest.approx({"const": 0.0295, "entropy": -0.0741}, abs=5e-5)
    assert model["bse"] == pytest.approx({"const": 0.0949, "entropy": 0.0304}, abs=5e-5)
    assert model["pvalues"]["entropy"] == pytest.approx(0.0148, abs=5e-5)
    assert model["llr_pvalue"] == pytest.approx(0.01468, abs=5e-6)
    assert model["pseudo_r2"] == pytest.approx(0.0004307, abs=5e-8)
    assert model["llf"] == pytest.approx(-6909.319, abs=5e-4)
    assert model["roc_auc"] == pytest.approx(0.5178, abs=5e-5)
    assert record["anova"]["entropy"]["F"] == pytest.approx(5.9465, abs=5e-5)
    assert record["anova"]["entropy"]["p"] == pytest.approx(0.01476, abs=5e-6)


@pytest.mark.shared_data
def test_a_changed_table_is_found_out(tmp_path: Path) -> None:
    if not TABLE.is_file():
        pytest.skip(f"no {TABLE}")
    text = TABLE.read_text(encoding="utf-8")
    (tmp_path / "changed.csv").write_text(text.replace(",True\n", ",False\n", 1), encoding="utf-8")
    done = study(tmp_path / "changed.csv", tmp_path / "study")
    assert done.returncode == 1
    assert "4529         4528  WRONG" in done.stdout
