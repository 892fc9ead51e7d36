"""`fluxentropy zoo`: every model an ordinary run, failures by name, nothing done twice."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import yaml
from fakes import SENTENCES, save_model

from fluxentropy.agreement import agree
from fluxentropy.cli.app import main
from fluxentropy.runs.tables import run_parts

pytestmark = pytest.mark.usefixtures("sketches")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "small": save_model(root / "small", seed=1),
        "large": save_model(root / "large", seed=2, bos=True),
        "other": save_model(root / "other", "gpt2", seed=3),
    }


@pytest.fixture
def zoo(folders: dict[str, Path], tmp_path: Path) -> Path:
    return write_zoo(tmp_path / "zoo.yaml", {name: {"folder": str(folder)} for name, folder in folders.items()})


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    rows = [{"text": sentence * times} for times in (1, 2, 3) for sentence in SENTENCES]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "texts.jsonl"


def write_zoo(path: Path, models: dict) -> Path:
    path.write_text(yaml.safe_dump({"models": models}, sort_keys=False))
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict, str]:
    code = main([*map(str, argv), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def command(texts: object, zoo: Path, out: Path) -> list[object]:
    return ["zoo", texts, "--zoo", zoo, "--out", out, "--max-tokens", 64, "--bootstrap", 20]


def test_each_model_is_an_ordinary_run_and_the_comparison_lies_beside_them(
    texts: Path, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    code, data, err = run(capsys, *command(texts, zoo, out))
    assert code == 0, err
    assert list(data["runs"]) == data["agreement"]["models"] == ["small", "large", "other"]
    assert data["failed"] == {}
    for name in data["runs"]:
        assert len(run_parts(out / name)) == 1
        score = ["score", texts, "--zoo", zoo, "--model", name, "--max-tokens", 64]
        alone = run(capsys, *score, "--out", tmp_path / name)[1]
        assert (tmp_path / name / "scores" / "part-00000.parquet").read_bytes() == run_parts(out / name)[0].read_bytes()
        resumed = run(capsys, *score, "--out", out / name)[1]
        assert (alone["resumed_rows"], resumed["resumed_rows"]) == (0, 15)
    assert json.loads((out / "agreement.json").read_text())["n_texts"] == 15
    assert (out / "pca_models.png").is_file()
    code, data, _ = run(capsys, "agree", out, "--out", tmp_path / "agreement", "--bootstrap", 0)
    assert (code, data["models"]) == (0, ["small", "large", "other"])


def test_models_that_fail_are_named_with_their_reasons_and_the_others_count(
    texts: Path, folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    models = {"gone": {"folder": str(tmp_path / "gone")}, "small": {"folder": str(folders["small"])}}
    models |= {"huge": {"hub": "no/such", "parameters": 10**14}, "large": {"folder": str(folders["large"])}}
    models |= {"wheelless": {"wheel": "no-such-wheel", "file": "model.gguf"}}
    zoo, out = write_zoo(tmp_path / "zoo.yaml", models), tmp_path / "out"
    code, data, err = run(capsys, *command(texts, zoo, out), "--offline")
    assert code == 1
    assert list(data["runs"]) == data["agreement"]["models"] == ["small", "large"]
    assert list(data["failed"]) == ["gone", "huge", "wheelless"]
    assert "gone" in data["failed"]["gone"]
    assert "pip install" in data["failed"]["wheelless"]
    assert "model 3 of 5: huge" in err
    main([str(word) for word in [*command(texts, zoo, out), "--offline"]])
    shown = capsys.readouterr().out
    assert "3 of 5 models failed:\n  gone: " in shown


def test_a_model_that_does_not_fit_is_one_of_them(
    texts: Path, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fluxentropy.scoring import score as module

    score = module.score

    def without_memory(config):
        if config.model == "large":
            raise MemoryError
        return score(config)

    monkeypatch.setattr(module, "score", without_memory)
    code, data, _ = run(capsys, *command(texts, zoo, tmp_path / "out"))
    assert (code, data["failed"], list(data["runs"])) == (1, {"large": "MemoryError"}, ["small", "other"])


def test_one_model_alone_is_scored_but_not_compared(
    texts: Path, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(word) for word in [*command(texts, zoo, tmp_path / "out"), "--models", "small"]]) == 0
    assert "no comparison: it needs two models, and small could be used" in capsys.readouterr().out


def test_too_few_texts_are_scored_but_not_compared(
    texts: Path, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*command(texts, zoo, tmp_path / "out"), "--models", "small,large", "--limit", 4]
    assert main([str(word) for word in argv]) == 0
    shown = capsys.readouterr().out
    assert "no comparison: only 4 of 4 texts are scored by all 2 models: agreement needs 5 or more" in shown
    assert all(len(run_parts(tmp_path / "out" / name)) == 1 for name in ("small", "large"))
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "2 models, not compared" in capsys.readouterr().out


def test_a_zoo_resumes_and_takes_more_models(
    texts: Path, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(capsys, *command(texts, zoo, out), "--models", "small,other")
    code, data, _ = run(capsys, *command(texts, zoo, out))
    assert code == 0
    assert {name: data["runs"][name]["resumed_rows"] for name in data["runs"]} == {"small": 15, "large": 0, "other": 15}
    found = agree.zoo(str(texts), zoo=zoo, out=out, max_tokens=64, bootstrap=20)
    assert (found.out, found.failed, found.exit_code, found.runs["large"].out) == (out, {}, 0, out / "large")
    assert found.agreement and found.agreement.to_dict() == data["agreement"]
    files = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    run(capsys, *command(texts, zoo, tmp_path / "fresh"))
    fresh = {path.relative_to(tmp_path / "fresh"): path for path in (tmp_path / "fresh").rglob("*") if path.is_file()}
    assert set(files) == set(fresh)
    for name, path in fresh.items():
        if name.name not in ("config.resolved.yaml", ".records.json"):  # it names the folder
            assert path.read_bytes() == files[name], name


def test_another_corpus_in_the_same_folder_is_refused(
    texts: Path, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    run(capsys, *command(texts, zoo, out))
    code, data, _ = run(capsys, *command(texts, zoo, out), "--limit", 3)
    assert code == 1
    assert "holds another run: limit is None there and 3 here" in data["error"]
    assert run(capsys, *command(texts, zoo, out), "--limit", 7, "--overwrite")[1]["runs"]["small"]["rows"] == 7


def test_standard_input_is_kept_for_all_models(
    texts: Path, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(texts.read_bytes()))
    monkeypatch.setattr(sys, "stdin", stdin)
    code, data, err = run(capsys, *command("-", zoo, tmp_path / "out"))
    assert code == 0, err
    assert [data["runs"][name]["rows"] for name in data["runs"]] == [15, 15, 15]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--text-field", "body"], 1, "no field 'body'"),
        (["--models", "smal"], 2, "--models smal: no such model in"),
        (["--by", "entropy"], 2, "--by entropy: no such score"),
    ],
)
def test_what_no_model_could_help_fails_before_any_is_loaded(
    texts: Path,
    zoo: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: int,
    message: str,
) -> None:
    found, data, err = run(capsys, *command(texts, zoo, tmp_path / "out"), *flags)
    assert (found, message in data["error"]) == (code, True), data
    assert "model 1 of" not in err


def test_zoo_files_by_their_bare_name(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, data, _ = run(capsys, *command(texts, Path("nosuch"), tmp_path / "out"))
    assert code == 2
    assert "offline" in data["error"]
