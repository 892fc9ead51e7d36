"""The published HellaSwag study comes out of its published table, figure for figure."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

TABLE = Path(os.environ.get("FLUXENTROPY_SHARED", "../shared"), "data/hellaswag/published_entropy_vs_correct.csv")
Program = Callable[..., tuple[int, str, str]]

pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not TABLE.is_file(), reason=f"no {TABLE}"),
    pytest.mark.usefixtures("sketches"),
]


def test_every_published_figure(tmp_path: Path, program: Program) -> None:
    code, out, err = program("eval_entropy/published_study.py", TABLE, "--out", tmp_path / "study")
    assert code == 0, out + err
    assert "all figures reproduced" in out and "WRONG" not in out
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


def test_a_changed_table_is_found_out(tmp_path: Path, program: Program) -> None:
    text = TABLE.read_text(encoding="utf-8")
    (tmp_path / "changed.csv").write_text(text.replace(",True\n", ",False\n", 1), encoding="utf-8")
    code, out, _ = program("eval_entropy/published_study.py", tmp_path / "changed.csv", "--out", tmp_path / "study")
    assert code == 1
    assert "4529         4528  WRONG" in out
