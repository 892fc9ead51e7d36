"""`fluxentropy diagnose` on the command line: what it writes, again the same, and what it says to bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import expit

from fluxentropy.cli import app as cli
from fluxentropy.evaluation.diagnose import diagnose


@pytest.fixture
def items(tmp_path: Path) -> Callable[..., str]:
    """`items(rows)` writes a table with entropy and varentropy of two regimes and returns its path."""

    def write(n: int = 300, **columns: object) -> str:
        rng = np.random.default_rng(0)
        a, noise, last = rng.normal(size=(3, n))
        table = {
            "entropy": a + 4,
            "varentropy": (0.82 * a + 0.57 * noise + 6) ** 2,
            "entropy_last": np.exp(last),
            "correct": rng.random(n) < expit(0.5 * a),
        }
        pq.write_table(pa.table({**table, **columns}), tmp_path / "items.parquet")
        return str(tmp_path / "items.parquet")

    return write


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.usefixtures("sketches")
def test_what_is_written(items: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "diagnosis"
    command = ["diagnose", items(), "--target", "correct", "--metrics", "entropy,varentropy,sqrt_varentropy"]
    assert cli.main([*command, "--out", str(out), "--bootstrap", "50"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("Yes, with a ") and f"summary    {out}/summary.md" in printed.out
    assert "Warning" not in printed.err and "warning" not in printed.err
    record = json.loads((out / "diagnostics.json").read_text())
    models = ["entropy", "varentropy", "sqrt_varentropy", "entropy+varentropy", "entropy+sqrt_varentropy"]
    assert set(record["models"]) == set(models) and record["derived"] == {"sqrt_varentropy": "varentropy"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"] is True and "statsmodels" in manifest["versions"]
    written = {path.name for path in out.iterdir()}
    plots = ["distributions", "effects", "fitted_curves", "contingency", "correlation_matrices", "reliability"]
    plots += [f"surface_{key}" for key in models[3:]]
    texts = {f"logit_{key}.txt" for key in models}
    files = texts | {"summary.md", "diagnostics.json"} | {f"{plot}.{kind}" for plot in plots for kind in ("png", "svg")}
    assert written == files | {"manifest.json", "config.resolved.yaml", ".lock", ".records.json"}
    assert set(manifest["files"]) == files
    text = (out / "logit_entropy+varentropy.txt").read_text()
    assert text.count("Logit Regression Results") == 2 and "HC0" in text and "Date:" not in text
    again = tmp_path / "again"
    assert cli.main(["diagnose", "--config", str(out / "config.resolved.yaml"), "--out", str(again), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["models"] == record["models"]
    one, other = contents(out), contents(again)
    for files in (one, other):
        del files["config.resolved.yaml"], files[".records.json"]  # they differ in --out
    assert one == other


@pytest.mark.usefixtures("sketches")
def test_the_same_command_again_and_another_one(
    items: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "diagnosis"
    command = ["diagnose", items(60), "--target", "correct", "--out", str(out), "--bootstrap", "20"]
    assert cli.main([*command, "--pairs", "entropy+varentropy"]) == 0
    first = contents(out)
    (out / "logit_entropy.txt").unlink()
    (out / "effects.png").write_bytes(b"damaged")
    found = diagnose(items(60), target="correct", out=out, bootstrap=20, pairs=("entropy+varentropy",))
    assert (found.out, found.diagnostics.n, "effects.png" in found.files) == (out, 60, True)
    assert found.to_dict()["models"] == json.loads((out / "diagnostics.json").read_text())["models"]
    assert contents(out) == first and "anova" in found._repr_html_()
    assert cli.main([*command, "--pairs", "none"]) == 1
    assert "holds another run: pairs is ['entropy+varentropy'] there and [] here" in capsys.readouterr().err
    (out / "notes.txt").write_text("mine")
    assert cli.main([*command, "--pairs", "none", "--overwrite"]) == 0
    left = {path.name for path in out.iterdir()}
    assert not {name for name in left if "+" in name} and {"notes.txt", "logit_entropy.txt"} <= left


@pytest.mark.usefixtures("sketches")
def test_what_is_left_out_is_said(
    items: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    entropy = rng.normal(size=300)
    entropy[:7] = np.nan
    entropy[7] = np.inf
    correct = [None, *(rng.random(299) < 0.5).tolist()]
    path = items(entropy=entropy, correct=correct, perplexity=np.full(300, np.nan), varentropy=np.full(300, 1.0))
    command = ["diagnose", path, "--target", "correct", "--bootstrap", "0", "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    printed = capsys.readouterr()
    assert "left out, correct of 300 rows: 1 missing\n" in printed.out
    assert "left out, entropy of 300 rows: 7 nan, 1 infinite\n" in printed.out
    assert "not used, perplexity: it has no finite value\n" in printed.out
    record = json.loads((tmp_path / "out" / "diagnostics.json").read_text())
    assert (record["n"], record["n_rows"]) == (292, 300)
    assert record["excluded"] == {"correct": {"missing": 1}, "entropy": {"nan": 7, "infinite": 1}}
    assert record["metrics"]["entropy"]["mean"] == pytest.approx(np.mean(entropy[8:]))
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    assert counts == {"rows": 300, "used": 292, "excluded": record["excluded"]}


@pytest.mark.usefixtures("sketches")
def test_balancing(items: Callable[..., str], tmp_path: Path) -> None:
    correct = np.arange(300) % 3 == 0
    command = ["diagnose", items(correct=correct), "--target", "correct", "--metrics", "entropy", "--balance"]
    records = {}
    for seed in ("0", "1"):
        assert cli.main([*command, "--seed", seed, "--bootstrap", "0", "--out", str(tmp_path / seed)]) == 0
        records[seed] = json.loads((tmp_path / seed / "diagnostics.json").read_text())
    assert [(records[seed]["n"], records[seed]["n_true"], records[seed]["balanced"]) for seed in "01"] == [
        (200, 100, True),
        (200, 100, True),
    ]
    assert records["0"]["n_rows"] == 300
    assert records["0"]["metrics"] != records["1"]["metrics"]


def test_another_commands_folder_is_safe(
    items: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (run / "scores").mkdir(parents=True)
    (run / "manifest.json").write_text('{"identity": {"model": "x"}}')
    assert cli.main(["diagnose", items(), "--target", "correct", "--out", str(run), "--overwrite"]) == 1
    assert f"{run} holds a run of another command: choose another --out" in capsys.readouterr().err
    assert (run / "scores").is_dir() and (run / "manifest.json").exists()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    assert cli.main(["diagnose", items(), "--target", "correct", "--out", str(mine)]) == 1
    assert "is not a run directory (it holds thesis.txt)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("columns", "flags", "code", "message"),
    [
        ({}, ["--target", "corect"], 2, "--target corect: no such column in {items}: did you mean correct?"),
        (
            {},
            ["--target", "correct", "--metrics", "entropi"],
            2,
            "--metrics entropi: no such column in {items}: did you",
        ),
        ({}, ["--target", "correct", "--pairs", "entropy+x"], 2, "--pairs entropy+x: x is not among the metrics"),
        ({}, ["--target", "entropy"], 1, "column 'entropy', row 1: 4.12"),
        ({"correct": [True] * 300}, ["--target", "correct"], 1, "'correct' is true in all 300 rows"),
        ({"correct": [None] * 300}, ["--target", "correct"], 1, "0 of 300 rows have the target"),
        ({"entropy": [float("nan")] * 300}, ["--target", "correct", "--metrics", "entropy"], 1, "has no finite value"),
    ],
)
def test_bad_input_is_one_line(
    items: Callable[..., str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    columns: dict[str, object],
    flags: list[str],
    code: int,
    message: str,
) -> None:
    path = items(**columns)
    assert cli.main(["diagnose", path, *flags, "--out", str(tmp_path / "out")]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message.format(items=path) in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("sketches")
def test_separation_is_a_result(items: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = items(60, correct=np.arange(60) > 29, entropy=np.arange(60.0), varentropy=np.full(60, 2.0))
    assert cli.main(["diagnose", path, "--target", "correct", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("Suspiciously well. entropy separates") and "arning" not in printed.err
    models = json.loads((tmp_path / "out" / "diagnostics.json").read_text())["models"]
    assert {key: model["status"] for key, model in models.items()} == {
        "entropy": "separated",
        "varentropy": "constant",
        "entropy_last": "ok",
        "entropy+varentropy": "constant",
    }
    assert "No fit: entropy separates" in (tmp_path / "out" / "logit_entropy.txt").read_text()
