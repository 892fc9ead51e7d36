"""`fluxentropy hellaswag`: every column filled, resumed to the same bytes, bad questions flagged or named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from fakes import SENTENCES, save_model

from fluxentropy.cli.app import main
from fluxentropy.evaluation import hellaswag
from fluxentropy.evaluation.answering import Prompt, Reading
from fluxentropy.evaluation.hellaswag import SCHEMA, make_item, to_table
from fluxentropy.evaluation.questions import ACCURACIES, Question


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "questions.jsonl", [question(i) for i in range(11)])


def question(i: int, **changes: object) -> dict:
    endings = [f"{SENTENCES[(i + k) % 4].split()[0]} {k}" for k in range(4)]
    return {"ind": 100 + i, "ctx": SENTENCES[i % 4] + " he" * (i % 3), "endings": endings, "label": i % 4} | changes


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def run(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, dict, str]:
    code = main([*map(str, argv), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


def command(data: object, model: Path, out: Path) -> list[object]:
    return ["hellaswag", "--data", data, "--model", model, "--out", out]


def test_every_question_has_a_row_with_every_column(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result, err = run(capsys, *command(data, model, tmp_path / "run"))
    assert code == 0, err
    items = pq.read_table(tmp_path / "run" / "items.parquet")
    assert items["ind"].to_pylist() == [100 + i for i in range(11)]
    assert items["label"].to_pylist() == [i % 4 for i in range(11)]
    assert {name: items[name].null_count for name in items.column_names if items[name].null_count} == {}
    rows = items.to_pylist()
    assert [row["correct"] for row in rows] == [row["pred"] == row["label"] for row in rows]
    assert result["acc"]["value"] == pytest.approx(sum(row["correct"] for row in rows) / 11)
    assert (result["acc_norm"]["n"], result["status"]) == (11, {"ok": 11})
    assert all(row["entropy_lower_mean"] <= row["entropy_mean"] + 1e-5 for row in rows)
    assert all(row["entropy_mean"] <= row["entropy_upper_mean"] + 1e-5 for row in rows)
    main([str(word) for word in command(data, model, tmp_path / "run")])
    out, err = capsys.readouterr()
    found = hellaswag.hellaswag(data=str(data), model=str(model), out=tmp_path / "run")
    assert (found.out, found.items, found.resumed_items, found.acc.n) == (tmp_path / "run", 11, 11, 11)
    assert found.to_dict() == result | {"resumed_items": 11} and found.lines() == out.splitlines()
    assert "resuming: 1 parts, 11 questions are done" in err
    assert out.startswith(f"11 questions answered in {tmp_path / 'run' / 'items.parquet'}\nacc       ")


def test_a_stopped_run_resumes_to_the_same_bytes(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hellaswag, "PART_ITEMS", 4)
    run(capsys, *command(data, model, tmp_path / "whole"))
    make_item, calls = hellaswag.make_item, []

    def stops(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return make_item(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(hellaswag, "make_item", stops)
    assert run(capsys, *command(data, model, tmp_path / "stopped"))[0] == 130
    assert not (tmp_path / "stopped" / "items.parquet").exists()
    monkeypatch.setattr(hellaswag, "make_item", make_item)
    assert run(capsys, *command(data, model, tmp_path / "stopped"))[1]["resumed_items"] == 4
    for name in ("items.parquet", "manifest.json", "items/part-00002.parquet"):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_questions_that_cannot_be_judged_are_flagged_rows(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        question(0, label="0"),
        question(1, label="9"),
        question(2, label=""),
        question(3, endings=["x", ""], label="0"),
        question(4, ctx="the quick brown fox " * 200, label="0"),
        question(5, endings=["x", "the quick brown fox " * 200], label="0"),
    ]
    data = write(tmp_path / "odd.jsonl", rows)
    code, result, _ = run(capsys, *command(data, model, tmp_path / "run"))
    assert code == 0, result
    items = pq.read_table(tmp_path / "run" / "items.parquet").to_pylist()
    assert [row["status"] for row in items] == [
        "ok",
        "label_out_of_range",
        "ok",
        "empty_ending",
        "ok",
        "ending_too_long",
    ]
    assert [row["correct"] is None for row in items] == [False, True, True, True, False, True]
    assert [row["truncated"] for row in items] == [False, False, False, False, True, False]
    assert result["acc"]["n"] == 2


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--task", "hellaswog"], 2, "did you mean hellaswag?"),
        (["--limit", "0"], 2, "--limit 0: use 1 or more"),
        (["--max-tokens", "0"], 2, "--max-tokens 0: use 1 or more"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list, code: int, message: str
) -> None:
    found, result, _ = run(capsys, *command(data, model, tmp_path / "run"), *flags)
    assert (found, message in result["error"]) == (code, True), result


def test_a_file_that_is_missing_or_holds_no_questions_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result, _ = run(capsys, *command(tmp_path / "none.jsonl", model, tmp_path / "run"))
    assert (code, "none.jsonl" in result["error"]) == (1, True)
    data = write(tmp_path / "texts.jsonl", [{"text": "a"}])
    code, result, _ = run(capsys, *command(data, model, tmp_path / "other"))
    assert (code, "no field 'ctx'" in result["error"]) == (1, True), result


def test_answers_of_an_earlier_version_are_not_taken_for_those_of_today(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their `correct_norm` was per byte."""
    run(capsys, *command(data, model, tmp_path / "run"))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    del manifest["identity"]["format"]
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest))
    code, result, _ = run(capsys, *command(data, model, tmp_path / "run"))
    said = ("format is None there and 2 here", "--overwrite")
    assert (code, [words in result["error"] for words in said]) == (1, [True, True])
    items = tmp_path / "run" / "items.parquet"
    pq.write_table(pq.read_table(items).drop_columns(["ending_chars", "correct_bytes"]), items)
    code, result, _ = run(capsys, "diagnose", items, "--target", "correct_norm", "--out", tmp_path / "out")
    assert (code, "correct_norm was made by an earlier version, per byte" in result["error"]) == (2, True), result


def test_another_model_or_task_in_the_same_folder_is_refused(
    data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, *command(data, model, tmp_path / "run"))
    code, result, _ = run(capsys, *command(data, model, tmp_path / "run"), "--limit", 5)
    assert (code, "limit is None there and 5 here" in result["error"]) == (1, True)


# --- Rows of answers against the definitions ---


QUESTION = Question(ind=7, id="q", context="a b", endings=("é", "longer"), label=1, status="ok")
PROMPT = Prompt(context=np.array([1, 2]), endings=(np.array([3]), np.array([4, 5])))

READING = Reading(
    entropy=np.array([1.0, 3.0]),
    varentropy=np.array([4.0, 9.0]),
    top_probs=np.array([[0.5, 0.5], [0.75, 0.125]]),
    surprisal=(np.array([2.5]), np.array([1.0, 2.0])),
    ending_entropy=(np.array([0.5]), np.array([1.0, 2.0])),
)


def test_an_answer_is_the_largest_sum_also_per_character_and_per_byte() -> None:
    item = make_item(QUESTION, PROMPT, READING, vocabulary=10)
    assert item.logliks == [-2.5, -3.0]
    assert (item.pred, item.pred_norm, item.pred_bytes) == (0, 1, 1)  # -2.5 of é, a character of 2 bytes; -3.0 / 6
    assert (item.correct, item.correct_norm, item.correct_bytes) == (False, True, True)
    assert item.margin == pytest.approx(0.5)
    assert item.margin_norm == pytest.approx(2.5 / 1 - 3.0 / 6)
    assert item.margin_bytes == pytest.approx(2.5 / 2 - 3.0 / 6)
    assert (item.ending_tokens, item.ending_chars, item.ending_bytes, item.n_tokens) == ([1, 2], [1, 6], [2, 6], 2)
    assert (item.entropy_mean, item.entropy_last, item.varentropy_last, item.sqrt_varentropy_mean) == (2, 3, 9, 2.5)
    assert (item.right_surprisal_mean, item.right_entropy_mean) == (1.5, 1.5)
    assert (item.chosen_surprisal_mean, item.chosen_entropy_mean) == (2.5, 0.5)
    assert (item.tail_mass_last, item.entropy_top100_mean) == (
        0.125,
        pytest.approx((np.log(2) + 0.41012) / 2, abs=1e-4),
    )


def test_characters_and_bytes_choose_as_lm_evaluation_harness_does() -> None:
    """Against its own `process_results`, which divides by the length of the choice without the space before it."""
    from lm_eval.api.task import ConfigurableTask

    rng = np.random.default_rng(0)
    task: Any = ConfigurableTask.__new__(ConfigurableTask)
    metrics = {"acc": None, "acc_norm": None, "acc_bytes": None}
    task.__dict__ |= {"OUTPUT_TYPE": "multiple_choice", "_metric_fn_list": metrics, "multiple_input": 0}
    task.__dict__ |= {"multiple_target": 0, "_config": SimpleNamespace(process_results=None)}
    task.doc_to_choice = lambda doc: list(doc.endings)
    task.doc_to_target = lambda doc: doc.label
    chosen = set()
    for number in range(200):
        endings = tuple("".join(rng.choice(list("aé中😀"), rng.integers(1, 6))) for _ in range(4))
        if number % 4 == 0:
            endings = (endings[1], *endings[1:])  # equal ones: the first counts
        question = Question(ind=0, id="q", context="a", endings=endings, label=number % 4, status="ok")
        surprisal = [rng.integers(1, 4, len(ending)) / 2 for ending in endings]
        surprisal[0] = surprisal[1] if number % 4 == 0 else surprisal[0]
        reading = dataclasses.replace(READING, surprisal=tuple(surprisal), ending_entropy=tuple(surprisal))
        prompt = Prompt(context=np.array([1, 2]), endings=tuple(np.arange(len(ending)) for ending in endings))
        item = make_item(question, prompt, reading, vocabulary=10)
        theirs = task.process_results(question, [(-values.sum(), False) for values in surprisal])
        ours = {name: getattr(item, column) for name, (column, _) in ACCURACIES.items()}
        assert ours == {name: theirs[name] == 1.0 for name in ACCURACIES}
        chosen.add((item.pred, item.pred_norm, item.pred_bytes))
    assert sum(len(set(three)) == 3 for three in chosen) > 2


def test_an_unlabelled_question_is_answered_but_not_judged() -> None:
    for status in ("ok", "label_out_of_range"):
        question = Question(ind=0, id="q", context="a b", endings=("x", "y"), label=None, status=status)
        item = make_item(question, PROMPT, READING, vocabulary=10)
        assert item.pred is not None
        assert (item.correct, item.correct_norm, item.right_entropy_mean, item.status) == (None, None, None, status)


def test_what_could_not_be_asked_has_its_status_and_no_answer() -> None:
    prompt = Prompt(context=np.array([1]), endings=(np.array([3]), np.array([], dtype=np.int64)), status="empty_ending")
    item = make_item(QUESTION, prompt, None, vocabulary=10)
    assert (item.status, item.pred, item.entropy_mean, item.ending_tokens) == ("empty_ending", None, None, [1, 0])
    broken = Reading(**{**vars(READING), "surprisal": (np.array([np.nan]), np.array([1.0, 2.0]))})
    item = make_item(QUESTION, PROMPT, broken, vocabulary=10)
    assert (item.status, item.pred, item.logliks, item.entropy_mean) == ("nan", None, None, None)


def test_items_become_columns_with_fixed_types() -> None:
    prompt = Prompt(context=np.array([1]), endings=(np.array([3]),), status="ending_too_long")
    table = to_table([make_item(QUESTION, prompt, None, vocabulary=10)])
    assert table.schema == SCHEMA
    assert table["logliks"].null_count == 1
