"""`fluxentropy demo` with a tiny stand-in of the model: what it writes and says, that it goes on, and few texts."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from fakes import save_model
from scipy.stats import spearmanr

from fluxentropy.cli import demo as demo_module
from fluxentropy.cli import demo as demo_text
from fluxentropy.cli import demo as demo_training
from fluxentropy.cli.app import main
from fluxentropy.cli.demo import MAX_CHARS, MIN_CHARS, SKIPPED, document, other_passages, passages

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


# --- The demo's text: varied, distinct, within its limits, the same every time, and had without running a ---


LIBRARY = Path(sysconfig.get_path("stdlib"))


def test_200_distinct_passages_within_the_limits() -> None:
    found = passages()
    assert len(found) == 200
    assert all(MIN_CHARS <= len(passage["text"]) <= MAX_CHARS for passage in found)
    assert len({passage["id"] for passage in found}) == len({passage["text"] for passage in found}) == 200
    lengths = sorted(len(passage["text"]) for passage in found)
    assert lengths[20] < 300 and lengths[-20] > 1200  # short and long ones


def test_the_kinds_take_turns() -> None:
    counts = Counter(passage["source"] for passage in passages())
    assert counts.pop("character table") == 2
    assert len(counts) == 4 and max(counts.values()) - min(counts.values()) <= 1
    assert len({passage["source"] for passage in passages(5)}) == 4  # too few for a table


@pytest.mark.parametrize("kind", ["documentation", "source code", "docstring"])
def test_every_text_stands_where_its_id_says(kind: str) -> None:
    for passage in passages():
        if passage["source"] == kind:
            name = passage["id"].removeprefix(f"{kind}/")
            if kind == "documentation":
                assert passage["text"] in topics[name.rpartition("#")[0]].replace("\n\n\n", "\n\n")
            elif kind == "docstring":
                path, _, line = name.rpartition(":")
                nodes = ast.walk(ast.parse((LIBRARY / path).read_bytes()))
                (node,) = (node for node in nodes if getattr(node, "lineno", 0) == int(line) and hasattr(node, "body"))
                assert isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                assert ast.get_docstring(node) == passage["text"]
            else:
                words = (LIBRARY / name.rpartition("#")[0]).read_text(encoding="utf-8", errors="replace").split()
                assert " ".join(passage["text"].split()) in " ".join(words)


def test_the_same_seed_gives_the_same_text_in_another_process() -> None:
    code = "from fluxentropy.cli.demo import passages; print(passages())"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}, text=True,
            capture_output=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1]
    assert passages(seed=1) != passages(seed=2)
    assert passages(20) == passages(20, seed=0)


def test_other_passages_are_of_other_documents() -> None:
    others, scored = other_passages(400), passages()
    assert len(others) > 100
    assert not {document(one) for one in others} & {document(one) for one in scored}
    assert not any(one["text"] in other["text"] for one in scored for other in others)  # such as a docstring in code


def test_no_module_with_side_effects_is_run_or_quoted() -> None:
    code = "import sys; from fluxentropy.cli.demo import passages; passages(400); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True)
    assert not {"antigravity", "curses", "distutils", "this", "tkinter", "turtle", "webbrowser"} & set(
        run.stdout.split()
    )
    folders = {part for passage in passages(400) for part in passage["id"].split("#")[0].split("/")[:-1]}
    assert folders & SKIPPED == {"encodings"}  # the character tables


def test_an_installation_with_little_text_gives_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "def f():\n" + "".join(f"    x{i} = {i} * 17 + 4711\n" for i in range(12))
    (tmp_path / "one.py").write_text(body)
    (tmp_path / "two.py").write_text(body)  # the same text twice counts once
    monkeypatch.setattr(demo_text.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(metadata, "distributions", lambda: [])
    by_kind = Counter(passage["source"] for passage in passages(1000))
    assert by_kind.keys() == {"documentation", "source code"}
    assert by_kind["source code"] == 1
