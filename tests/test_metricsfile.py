"""metrics.csv: what is written comes back, as pandas reads it too, and damage is named by its line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fluxentropy.errors import RunError
from fluxentropy.metricsfile import MetricsFile, last_row, read_metrics


def test_metrics_are_cut_back_to_a_step(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv", ("step", "tokens", "loss"))
    file.start(-1)
    for step in range(5):
        file.append({"step": step, "tokens": 10 * step, "loss": 0.1 * step if step else math.nan})
    with open(file.path, "a") as raw:
        raw.write("5,50,0.")  # a line that was cut off
    file.start(3)
    file.append({"step": 4, "tokens": 40})
    assert file.path.read_text() == "step,tokens,loss\n0,0,\n1,10,0.1\n2,20,0.2\n3,30,0.30000000000000004\n4,40,\n"
    assert last_row(file.path) == {"step": 4, "tokens": 40}


def test_columns_grow_on_the_right_and_stay_when_a_run_resumes(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, ("step", "loss"))
    file.start(-1)
    file.append({"step": 0, "loss": 1.5})
    file.append({"step": 1, "loss": 0.1, "probe, mean": 2.0})
    file.append({"step": 2, "loss": 1e-300})
    again = MetricsFile(path, ("step", "loss", "lr"))  # of a later version, with one column more
    again.start(1)
    again.append({"step": 2, "lr": 0.5})
    assert path.read_text() == 'step,loss,"probe, mean",lr\n0,1.5,,\n1,0.1,2.0,\n2,,,0.5\n'
    found, frame = read_metrics(path), pd.read_csv(path)
    assert list(found) == list(frame.columns)
    for name, column in found.items():
        np.testing.assert_array_equal(column, frame[name].to_numpy(np.float64))


def test_words_are_read_where_they_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("step,note\n1,\n2,word\n")
    assert read_metrics(tmp_path / "m.csv", words=True)["note"].tolist() == ["", "word"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "m.csv: No such file"),
        (b"step,loss\n1,\xff\n", "m.csv: .*can't decode"),
        (b"", "no row, or no column 'step'"),
        (b"step,loss\n", "no row, or no column 'step': the run has not trained a step yet"),
        (b"tokens\n1\n", "no row, or no column 'step'"),
        (b"step,loss\n1,0.5\n2\n", "m.csv, line 3: 1 cells where the header has 2"),
        (b"step,loss\n1,\n2,high\n", "m.csv, line 3, column loss: .*'high'"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(RunError, match=message):
        read_metrics(tmp_path / "m.csv")
