"""The pipelines run from text to verified bins, twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from fakes import SENTENCES, save_model

ROOT = Path(__file__).resolve().parent.parent


def test_fineweb_goes_from_text_to_verified_bins_and_resumes(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    rows = [{"text": f"{sentence} {row}", "dump": "CC-MAIN-2024-10"} for row in range(8) for sentence in SENTENCES]
    (tmp_path / "web.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, ROOT / "pipelines" / "fineweb.py", tmp_path / "web.jsonl", "--model", model]
    command += ["--max-tokens", "64", "--bins", "4", "--out", tmp_path / "out"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    outputs = []
    for _ in range(2):
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    for output in outputs:
        assert "40 rows by entropy_mean in 4 bins" in output
        assert output.count("nothing is missing") == 2
