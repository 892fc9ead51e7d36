"""`fluxentropy demo` with a tiny stand-in of the model: what it writes and says, that it goes on, and few texts."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from fakes import save_model
from scipy.stats import spearmanr

from fluxentropy.cli import demo as demo_module
from fluxentropy.cli import demo as demo_training
from fluxentropy.cli.app import main
from fluxentropy.cli.passages import document, other_passages

PASSAGES = 40
TIMED = re.compile(r"timings\.csv$|checkpoints/")  # what tells of seconds


@pytest.fixture(scope="module", autouse=True)
def small(module_sketches: None) -> Iterator[None]:
    """Little training, in this process, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    text = other_passages(300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(demo_training, "TOKENS", 6 * 8 * demo_training.BLOCK)
        patch.setattr(demo_training, "SEEDS", 1)
        patch.setattr(demo_training, "WORKERS", 1)
        patch.setattr(demo_training, "other_passages", lambda: text)
        for figures in ("agreement.figures.draw_agreement", "experiments.figures.draw_comparison"):
            patch.setattr(f"fluxentropy.{figures}", lambda *_, **__: [])  # slow, and have tests of their own
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny", max_position_embeddings=512)


def command(out: Path, model: Path, passages: int = PASSAGES) -> list[str]:
    return ["demo", "--out", str(out), "--model", str(model), "--passages", str(passages)]


@pytest.fixture(scope="module")
def out(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo that nothing disturbed, kept under another name; the result that it printed is beside it."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("fluxentropy.cli.app.write_line", printed.append)
        assert main([*command(folder, model), "--json"]) == 0
    folder.with_name("printed.json").write_text(printed[0])
    return folder


def contents(out: Path) -> dict[str, bytes]:
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    names = {str(path.relative_to(out)): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if not TIMED.search(name)}


def test_every_step_is_done_and_on_the_page(out: Path) -> None:
    data = json.loads(out.with_name("printed.json").read_text())
    assert {name: Path(path).exists() for name, path in data["files"].items()} == dict.fromkeys(
        ("scores", "sorted", "heatmap", "bins", "small_gpt", "agreement", "comparison", "report"), True
    )
    kinds = sorted(one["kind"] for one in data["report"]["runs"])
    assert kinds == sorted(["score", "score", "tokens", "bin", "bin", "pretrain", "agree", "compare"])
    assert data["rows"] == data["second_scores"]["rows"] == sum(data["bins"]["counts"]) == PASSAGES
    assert data["verify"]["ok"] and not data["report"]["left_out"]


def test_the_models_are_compared_in_bits_of_the_same_bytes(out: Path) -> None:
    ours, theirs = (
        {row["id"]: row for row in pq.read_table(out / run / "scores").to_pylist()} for run in ("run", "run_small_gpt")
    )
    shared = [name for name in ours if not ours[name]["truncated"]]
    assert [theirs[name]["n_predicted_bytes"] for name in shared] == pytest.approx(
        [ours[name]["n_bytes"] for name in shared], rel=0.05
    )  # all of each text: but for its first token
    rho = spearmanr(*([rows[name]["bits_per_byte"] for name in ours] for rows in (ours, theirs))).statistic
    found = json.loads((out / "agreement" / "agreement.json").read_text())
    assert found["spearman"][0][1] == pytest.approx(rho)
    assert (found["measure"], found["models"][1]) == ("bits_per_byte", demo_training.NAME)


def test_the_small_gpt_is_trained_on_other_documents(out: Path) -> None:
    trained = {document(row) for row in pq.read_table(out / "other_passages.parquet").to_pylist()}
    scored = [json.loads(line) for line in (out / f"passages-{PASSAGES}.jsonl").read_text().splitlines()]
    assert trained and not trained & {document(row) for row in scored}


def test_a_demo_that_was_stopped_goes_on_to_the_same_bytes(
    out: Path, model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(out)
    aside = out.with_name("aside")
    shutil.move(out, aside)
    with monkeypatch.context() as patch:

        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(demo_module, "agreement", stop)
        assert main(command(out, model)) == 130
    assert "the same command again" in capsys.readouterr().err
    trained = (out / "small_gpt" / "metrics.csv").stat().st_mtime_ns
    assert main(command(out, model)) == 0
    assert (out / "small_gpt" / "metrics.csv").stat().st_mtime_ns == trained  # not done again
    assert contents(out) == before
    printed = capsys.readouterr().out
    assert str(out.resolve() / "report.html") in printed
    assert "1 seed of a GPT" in printed


def test_few_passages_leave_out_what_needs_more(model: Path, tmp_path: Path) -> None:
    found = demo_module.demo(out=tmp_path / "out", model=str(model), passages=4)
    assert (found.exit_code, found.agreement, found.comparison) == (0, None, None)
    assert (found.scores.rows, found.verify.ok, found.small_gpt.steps) == (4, True, 6)
    assert found.files["report"] == tmp_path / "out" / "report.html"
    printed = "\n".join(found.lines())
    assert "agreement needs 5 or more" in printed
    assert "4 passages are too few" in printed
    assert (tmp_path / "out" / "report.html").is_file()
