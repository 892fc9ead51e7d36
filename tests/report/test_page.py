"""report"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from pages import Page
from reportedruns import EVIL, KINDS, finished, write_all, write_picture, write_training
from scoredruns import write_run

from fluxentropy.cli.app import main
from fluxentropy.config.yaml import from_plain, to_yaml
from fluxentropy.errors import RunError, UsageError
from fluxentropy.ordering.options import BinConfig
from fluxentropy.pretraining.options import PretrainConfig
from fluxentropy.report import ReportConfig
from fluxentropy.report import page as reportpage
from fluxentropy.report.page import ReportResult, fingerprints, report
from fluxentropy.report.page import command_line as command
from fluxentropy.report.sections import Given, Pictures, bin_section
from fluxentropy.runs.find import Run
from fluxentropy.scoring.options import ScoreConfig

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

ELEMENTS = """
html head meta title style body h1 h2 h3 h4 h5 p b bdi code pre a ul li dl dt dd div span i table thead tbody tr th td
nav main section article header footer figure figcaption details summary fieldset legend label input img
svg g rect line text path polyline circle
"""  # all that the program writes


def make(out: Path, *runs: Path, title: str = "Report") -> tuple[ReportResult, Page]:
    result = report(ReportConfig(runs=tuple(map(str, runs)), out=out, title=title))
    return result, Page(out.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    write_all(root / "runs")
    return root


@pytest.fixture(scope="module")
def made(folder: Path) -> tuple[ReportResult, Page]:
    return make(folder / "page.html", folder / "runs", title=EVIL[1])


# --- what is on the page ----------------------------------------------------------------------------------------------


def test_a_folder_is_searched_and_each_run_has_a_section(made: tuple[ReportResult, Page]) -> None:
    result, page = made
    assert sorted(run.kind for run in result.runs) == sorted(KINDS)
    assert len(page.all("section")) == len(KINDS)
    assert result.left_out == []
    paths = [{"kind": run.kind, "run": str(run.path)} for run in result.runs]
    assert result.to_dict() == {"out": str(result.out), "bytes": result.bytes, "runs": paths, "left_out": []}


def test_hostile_text_stays_text(made: tuple[ReportResult, Page]) -> None:
    _, page = made
    assert {tag for tag, _, _ in page.elements} <= set(ELEMENTS.split())
    assert page.texts("title")[0] == EVIL[1]
    for evil in EVIL:
        assert evil in page.text


def test_nothing_refers_to_the_outside(made: tuple[ReportResult, Page]) -> None:
    made[1].check_self_contained()


def test_the_page_can_be_read_by_all(made: tuple[ReportResult, Page]) -> None:
    _, page = made
    assert page.all("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert all(picture.get("alt") for picture in page.all("img")) and page.all("img")
    assert all(drawing.get("role") == "img" for drawing in page.all("svg")) and page.all("svg")
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert "nan" not in " ".join(str(v) for tag, a, _ in page.elements if tag in ("rect", "path") for v in a.values())


def test_token_views_stand_beside_the_scores_of_their_texts(made: tuple[ReportResult, Page]) -> None:
    _, page = made
    tips = [attributes["data-tip"] for attributes in page.all("label") if "data-tip" in attributes]
    assert len(tips) == 4  # two tokens beside the scores, two of the other text in its own section
    numbers = "entropy 1.000  varentropy 2.000  surprisal 1.000  entropy before 0.000  varentropy before 2.000"
    assert tips[1].startswith(f"“<script>document.title=…”  {numbers}\nnext: ")
    assert "1 of 2 texts are shown above" in page.text


def test_the_ends_are_those_of_the_scores(tmp_path: Path) -> None:
    values = [float((7 * k) % 40) for k in range(40)]
    run = write_run(tmp_path / "run", values, part_rows=9)
    _, page = make(tmp_path / "r.html", run)
    ranked = sorted(range(40), key=values.__getitem__)
    shown = re.findall(r"text of (id-\d+)", page.text)
    assert shown == [f"id-{row}" for row in [*ranked[:-6:-1], *ranked[:5]]]


def test_the_same_runs_give_the_same_bytes(folder: Path, made: tuple[ReportResult, Page]) -> None:
    make(folder / "again.html", folder / "runs", title=EVIL[1])
    assert (folder / "again.html").read_bytes() == (folder / "page.html").read_bytes()


def test_a_run_given_twice_is_there_once_and_trainings_are_compared(tmp_path: Path) -> None:
    runs = [write_training(tmp_path / name, name) for name in ("up", "down")]
    result, page = make(tmp_path / "r.html", *runs, runs[0], tmp_path)
    assert [run.path for run in result.runs] == runs
    assert "Trainings side by side" in page.text


def test_a_zoo_shows_the_comparison_and_each_model(tmp_path: Path) -> None:
    finished(tmp_path / "zoo", {"kind": "zoo"}, models=["small", "large"], failed={"broken": EVIL[0]})
    for model in ("small", "large", "consensus"):
        write_run(tmp_path / "zoo" / model, [1.0, 3.0, 2.0])
    result, page = make(tmp_path / "r.html", tmp_path / "zoo")
    found = [run.path.name for run in result.runs]
    assert found == ["zoo", "small", "large"]  # in the order of the zoo
    assert "The models were not compared." in page.text and f"broken: {EVIL[0]}" in page.text
    assert len(page.all("section")) == 3


def test_a_full_page_leaves_out_pictures_and_then_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        write_picture(finished(tmp_path / f"g{number}", {"kind": "grpo"}) / "noise.png", size=200, seed=number)
        (tmp_path / f"g{number}" / "metrics.csv").write_text("step,reward\n1,1\n2,2\n")
    monkeypatch.setattr(reportpage, "LARGEST", 220_000)
    monkeypatch.setattr(reportpage, "SPARE", 100_000)
    result, page = make(tmp_path / "r.html", tmp_path)
    left_out = [one.name for one in result.left_out]
    assert left_out == [f"g{number}/noise.png" for number in (2, 3)]
    assert len(page.all("img")) == 2 and "The picture noise.png is left out" in page.text
    assert result.bytes == (tmp_path / "r.html").stat().st_size < 220_000
    monkeypatch.setattr(reportpage, "SHARE_OF_TEXT", 0.015)
    result, page = make(tmp_path / "r.html", tmp_path)
    assert [one.name[-2:] for one in result.left_out] == ["g1", "g2", "g3"]
    assert len(page.all("section")) == 1


# --- how a run was made -----------------------------------------------------------------------------------------------

CONFIGS = {
    "score": ScoreConfig(sources=("-",), model="$(rm -rf /)", out=Path("a folder/'x'"), text=False, max_tokens=128),
    "bin": BinConfig(run="r", by=("z(a) + z(b)",), quantiles=("10", "50"), out=Path("o"), tokenize="bytes"),
    "pretrain": from_plain(PretrainConfig, {"bins": "b", "out": "o", "schedule": {"name": "periodic", "cycles": 3}}),
}


@pytest.mark.parametrize("folder", ["plain", "a 'b' $(touch owned)\n;", "-x"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_command_gives_the_configuration_back(
    kind: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = finished(tmp_path / folder, {}, to_yaml(CONFIGS[kind]))
    line = command(Run(kind=kind, path=run.relative_to(tmp_path), name=folder))
    words = shlex.split(line)
    shell = subprocess.run(["sh", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True)
    assert shell.stdout.split("\0")[:-1] == words
    assert main([*words[1:], "--print-config"]) == 0
    assert capsys.readouterr().out == to_yaml(CONFIGS[kind])
    assert not (tmp_path / "owned").exists()


def test_fingerprints_are_found_wherever_they_stand() -> None:
    a, b, c = ("sha256:" + digit * 64 for digit in "abc")
    manifest = {"identity": {"model": {"name": "m", "fingerprint": a}}, "inputs": [{"name": "x", "fingerprint": b}]}
    assert list(fingerprints(manifest | {"fingerprint": c, "rows": 3})) == [
        ("model", a),
        ("inputs · x", b),
        ("whole", c),
    ]


def test_bins_of_two_scores_have_no_edges_in_a_row() -> None:
    bins = {
        "by": ["a", "b"],
        "how": ["2 bins", "2 bins"],
        "edges": [[0.5], [1.5]],
        "counts": [1, 2, 3, 4],
        "tokens": [5, 6, 7, 8],
        "rows": 10,
    }
    blocks = {"length": 16, "blocks": [1, 2, 3, 4], "tokenizer": {"name": "bytes"}}
    beside = Given(number=0, views=(), shown=(), pictures=Pictures(0))
    page = "".join(bin_section(Run(kind="bin", path=Path("x"), name="x"), (bins, blocks), beside))
    assert page.count("<tr>") == 5 and "2 bins x 2 bins" in page and "a, b" in page and ">bytes<" in page
    assert "≤" not in page and "Blocks of 16 tokens" in page


# --- what is no run ---------------------------------------------------------------------------------------------------


def test_foreign_and_missing_paths_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("x")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "manifest.json").write_text('{"complete": true, "identity": {"kind": "cake"}}')
    for path in ("notes", "odd", "gone", "notes/a.txt"):
        assert main(["report", str(tmp_path / path), "--out", str(tmp_path / "r.html"), "--json"]) == 1
        printed = capsys.readouterr()
        assert str(tmp_path / path) in json.loads(printed.out)["error"] and printed.err.count("\n") == 1
    assert main(["report", "--out", "r.html"]) == 2
    assert main(["report", str(tmp_path), "--out", "r.pdf"]) == 2
    assert not (tmp_path / "r.html").exists()


def test_unfinished_runs_are_refused_by_name_and_left_out_of_folders(tmp_path: Path) -> None:
    write_run(tmp_path / "whole", [1.0, 2.0])
    write_run(tmp_path / "half", [1.0, 2.0], finish=False)
    with pytest.raises(RunError, match="half is not finished"):
        make(tmp_path / "r.html", tmp_path / "half")
    result, page = make(tmp_path / "r.html", tmp_path)
    assert [one.why for one in result.left_out] == ["not finished"]
    assert "not finished" in page.text and "/half" in page.text


DAMAGE = {
    "score/scores/part-00000.parquet": b"PAR1 no",
    "score/manifest.json": b"{",
    "tokens.csv": b'"text_id","position","token_id","token","entropy","varentropy","surprisal","alternatives"\n"a",x\n',
    "agree/agreement.json": b'{"models": 3}',
    "agree//agreement.json": b'{"models": ["a", "b"], "n_texts": 1, "pca": {"explained_variance_ratio": []}, '
    b'"kendall_w": 0.5, "rank_sd_by_quintile": [], "spearman": [[1, 1], [1]]}',  # a matrix with a short row
    "agree/./agreement.json": b'{"models": ["a", "b"], "n_texts": 1, "pca": {"explained_variance_ratio": []}, '
    b'"kendall_w": 0.5, "rank_sd_by_quintile": [], "spearman": [[1], [1]]}',  # and one without a column
    "agree/pca_models.png": b"\x89PNG no",
    "bin/bins.json": b'{"by": "x"}',
    "schedule/mixture.json": b'{"mixture": "x"}',
    "pretrain/metrics.csv": b"step,tokens\n1,x\n",
    "pretrain/ledger.parquet": b"x",
    "compare/comparison.md": b"\xff\xfe",
    "diagnose/summary.md": b"\xff",
    "hellaswag/items.parquet": b"x",
    "grpo/metrics.csv": b"\n\n",
    "bin/config.resolved.yaml": b"\xff",
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_nothing_is_written(folder: Path, tmp_path: Path, name: str) -> None:
    given = name.split("/")[0]
    source = folder / "runs" / given
    (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / given)
    (tmp_path / name).write_bytes(DAMAGE[name])
    with pytest.raises(RunError, match=re.escape(str(tmp_path / given))):
        make(tmp_path / "r.html", tmp_path / given)
    assert not (tmp_path / "r.html").exists()


def test_a_page_of_tokens_is_not_overwritten(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "runs" / "tokens.csv", tmp_path / "t.csv")
    (tmp_path / "t.html").write_text("a page")
    with pytest.raises(UsageError, match="choose another name"):
        make(tmp_path / "t.html", tmp_path / "t.html")
    assert (tmp_path / "t.html").read_text() == "a page"


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_runs_nothing_of_it(folder: Path, made: tuple[ReportResult, Page], tmp_path: Path) -> None:
    control = tmp_path / "control.html"
    control.write_text(f"<!DOCTYPE html><title>was</title><p>{EVIL[0]}</p>")
    titles = [re.search("<title>(.*?)</title>", _dom(page), re.DOTALL) for page in (control, folder / "page.html")]
    assert titles[0] and titles[0][1] == "owned"  # the browser does run scripts
    assert titles[1] and "owned" in titles[1][1] and titles[1][1].startswith("&lt;/style&gt;")


def _dom(page: Path) -> str:
    """The document as the browser has it after loading."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    assert CHROMIUM is not None
    command = [CHROMIUM, *flags, profile, page.resolve().as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
