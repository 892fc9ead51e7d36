"""`fluxentropy agree` from the command line: its files, its words, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scoredruns import write_run

from fluxentropy.agreement.agree import agree
from fluxentropy.cli.app import main

PLOTS = ("entropies", "ranks", "distance_matrix", "pca_models", "explained_variance", "rank_spread")


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict, str]:
    code = main([*map(str, argv), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    base = rng.normal(3, 1, 40)
    columns = [base + rng.normal(0, spread, 40) for spread in (0.1, 0.3, 0.5)]
    lines = ["Text,SmolLM2-135M_Characteristic_Value,SmolLM2-360M_Characteristic_Value,gpt2_Characteristic_Value"]
    lines += [f"text {row}," + ",".join(f"{column[row]:.6f}" for column in columns) for row in range(40)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return tmp_path / "table.csv"


def test_a_table_gives_every_promised_file_and_number(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, data, _ = run(capsys, "agree", table, "--out", out, "--bootstrap", 50)
    assert code == 0
    written = json.loads((out / "agreement.json").read_text())
    models = ["SmolLM2-135M", "SmolLM2-360M", "gpt2"]
    assert written["models"] == data["models"] == models
    assert (written["n_texts"], written["n_complete"]) == (40, 40)
    assert np.shape(written["spearman"]) == np.shape(written["euclidean"]) == (3, 3)
    assert len(written["pca"]["explained_variance_ratio"]) == 2
    assert all(len(written["pca"]["coordinates"][model]) == 2 for model in models)
    assert len(written["rank_sd_by_quintile"]) == 5
    intervals = written["bootstrap"]["intervals"]
    assert np.shape(intervals["spearman"]) == (3, 3, 2)
    for name in ("kendall_w", "mean_spearman"):
        low, high = intervals[name]
        assert low <= written[name] <= high
    for plot in PLOTS:
        assert (out / f"{plot}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (out / f"{plot}.svg").read_text()
    assert (out / "config.resolved.yaml").is_file()
    assert json.loads((out / "manifest.json").read_text())["complete"] is True
    assert (out / "consensus" / "scores" / "part-00000.parquet").is_file()


@pytest.mark.usefixtures("sketches")
def test_again_gives_the_same_bytes_and_another_comparison_is_refused(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ("agree", table, "--out", out, "--bootstrap", 20)
    run(capsys, *command)
    first = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    printed = run(capsys, *command)[1]
    found = agree(table, out=out, bootstrap=20)
    assert (found.out, found.consensus, found.agreement.n_texts) == (out, out / "consensus", 40)
    assert found.mean_spearman == printed["mean_spearman"] == found.agreement.mean_spearman
    assert found.to_dict() == printed and "Kendall" in found._repr_html_()
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == first
    code, data, _ = run(capsys, *command, "--seed", 1)
    assert code == 1
    assert "holds another run: seed is 0 there and 1 here" in data["error"]
    assert run(capsys, *command, "--seed", 1, "--overwrite")[0] == 0


@pytest.mark.usefixtures("sketches")
def test_models_baseline_and_words(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["agree", str(table), "--out", str(tmp_path / "out"), "--models", "gpt2,SmolLM2-360M", "--baseline", "360m"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 models, 40 texts, 40 of them scored by all; score\nSpearman, mean of 1 pairs  0.")
    assert "Kendall's W  0." in out
    assert "p = " in out
    written = json.loads((tmp_path / "out" / "agreement.json").read_text())
    assert (written["models"], written["baseline"]) == (["gpt2", "SmolLM2-360M"], "SmolLM2-360M")


@pytest.mark.usefixtures("sketches")
def test_runs_of_different_texts_are_counted_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    ids = [f"t{i}" for i in range(20)]
    one = write_run(tmp_path / "one", rng.normal(size=20).tolist(), ids=ids)
    two = write_run(tmp_path / "two", [None, *rng.normal(size=14).tolist()], ids=ids[:15])
    code = main(["agree", str(one), str(two), "--out", str(tmp_path / "out"), "--bootstrap", "0"])
    out, err = capsys.readouterr()
    assert code == 0
    assert "two: its run does not hold 5 of the 20 texts" in err
    assert "2 models, 20 texts, 14 of them scored by all; entropy_mean" in out
    assert "texts without a score, left out pairwise: two 6" in out


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--models", "gpt3"], 2, "--models gpt3: no such model: did you mean gpt2?"),
        (["--models", "gpt2"], 2, "agreement needs two models or more, here is gpt2"),
        (["--baseline", "smol"], 2, "--baseline smol: several models have this name"),
        (["--baseline", "llama"], 2, "--baseline llama: no model has this name"),
        (["--bootstrap", "-1"], 2, "--bootstrap -1: use 0 or more"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, message: str
) -> None:
    found, data, _ = run(capsys, "agree", table, "--out", tmp_path / "out", *flags)
    assert (found, message in data["error"]) == (code, True), data


@pytest.mark.usefixtures("sketches")
def test_a_slow_bootstrap_shows_progress(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxentropy.agreement.agree.SLOW", 0)
    monkeypatch.setattr("fluxentropy.agreement.statistics.THREADS", 1)
    assert main(["agree", str(table), "--out", str(tmp_path / "out"), "--bootstrap", "20"]) == 0
    assert "20 replicates in" in capsys.readouterr().err


def test_models_are_compared_without_loading_torch() -> None:
    """It costs seconds and 300 MB, and only `zoo` needs it."""
    code = "import sys, fluxentropy.agreement.agree; print({'torch', 'transformers', 'scipy.stats'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
