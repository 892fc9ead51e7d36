"""Records become the questions that the tasks describe; what is no question is named, what has no label is flagged."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpusfiles import WRITERS, write_jsonl

from fluxentropy.config.yaml import config_path
from fluxentropy.errors import SourceError, UsageError
from fluxentropy.evaluation.questions import Question, Task, make_question, open_questions, read_task

SHARED = Path(os.environ.get("FLUXENTROPY_SHARED", "../shared"))
ROWS: list[dict[str, Any]] = [{"ctx": f"{i} and 1 is", "endings": [f"{i + 1}.", "none."], "label": 0} for i in range(9)]


def ask(task: str, **record: Any) -> tuple[str, tuple[str, ...], int | None]:
    question = make_question({"id": "a", **record}, read_task(task), 0)
    assert question.status == "ok"
    return question.context, question.endings, question.label


def read(path: Path, task: Task | None = None, start: int = 0, **options: Any) -> list[Question]:
    questions = open_questions(str(path), task or read_task("hellaswag"), **options)
    return [question for batch in questions.batches(start) for question in batch]


# --- the tasks: expected texts written out by hand from what lm-evaluation-harness 0.4.13 does ------------------------


@pytest.mark.parametrize(
    ("record", "context"),
    [
        # two parts: the second gets a capital, and loses all others
        (
            {"activity_label": "Canoeing", "ctx_a": "Two women wait.", "ctx_b": "the man from Oslo", "ctx": "unused"},
            "Canoeing: Two women wait. The man from oslo",
        ),
        # no second part: its space goes
        (
            {"activity_label": "Canoeing", "ctx_a": "Two women wait.", "ctx_b": "", "ctx": "?"},
            "Canoeing: Two women wait.",
        ),
        ({"activity_label": "Canoeing", "ctx": "Two women wait. the man"}, "Canoeing: Two women wait. the man"),
        ({"activity_label": "Canoeing", "ctx": "One.", "ctx_a": None, "ctx_b": None}, "Canoeing: One."),
        ({"activity_label": None, "ctx": " Alone. "}, "Alone."),
        # WikiHow's marks: a title ends a sentence, the rest goes, and each pair of spaces becomes one, once
        (
            {"activity_label": "Baking", "ctx": "[header] How to bake [title] Mix flour. [step] Stir well."},
            "Baking: How to bake. Mix flour. Stir well.",
        ),
        ({"ctx": "a    b [x] [y]"}, "a  b "),
        ({"ctx": "a [title]b [x\ny] c]"}, "a. b [x\ny] c]"),
    ],
)
def test_hellaswag_contexts(record: dict[str, Any], context: str) -> None:
    endings = ["stirs [substeps] on.", "  waits ", "[step] goes [title] in."]
    expected = ("stirs on.", "waits", " goes. in.")
    assert ask("hellaswag", **record, endings=endings, label="2") == (context, expected, 2)


@pytest.mark.parametrize("task", ["arc_easy", "arc_challenge"])
@pytest.mark.parametrize(
    ("names", "key", "label"), [("ABCD", "B", 1), ("1234", "4", 3), ("ABC", "C", 2), ("ABCDE", "E", 4)]
)
def test_arc_looks_its_label_up(task: str, names: str, key: str, label: int) -> None:
    texts = [f"gas {name} " for name in names]
    record = {"question": "Which {gas}? ", "choices": {"text": texts, "label": list(names)}, "answerKey": key}
    assert ask(task, **record) == ("Question: Which {gas}? \nAnswer:", tuple(texts), label)


def test_piqa() -> None:
    record = {"goal": "Dry hands.", "sol1": "Use a towel.", "sol2": "Use {sol1}.", "label": 1}
    assert ask("piqa", **record) == ("Question: Dry hands.\nAnswer:", ("Use a towel.", "Use {sol1}."), 1)


def test_winogrande_fills_the_first_blank() -> None:
    record = {"sentence": 'Ann saw "_ " and _. ', "option1": "a cup", "option2": "Bea", "answer": "2"}
    assert ask("winogrande", **record) == ('Ann saw "', ('a cup " and _.', 'Bea " and _.'), 1)
    assert read_task("winogrande").delimiter == ""
    with pytest.raises(ValueError, match=r"no blank \(_\) in 'Ann saw.'"):
        ask("winogrande", **(record | {"sentence": "Ann saw."}))


def test_the_tasks_say_where_their_data_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, tuple[str, str | None, str]] = {}

    def load(name: str, config: str | None, *, split: str, **options: Any) -> Any:
        asked[task] = (name, config, split)
        raise datasets.exceptions.DatasetNotFoundError(name)

    monkeypatch.setattr(datasets, "load_dataset", load)
    for path in config_path("questions").iterdir():
        task = path.stem
        shipped = read_task(task)
        assert shipped == read_task(str(path)) and shipped.name == task
        assert shipped.licence and shipped.notes and "https://arxiv.org/" in str(shipped.paper)
        with pytest.raises(SourceError, match="as a Hub dataset it cannot be read"):
            open_questions(None, shipped)
    assert asked == {
        "hellaswag": ("Rowan/hellaswag", None, "validation"),
        "arc_easy": ("allenai/ai2_arc", "ARC-Easy", "test"),
        "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
        "piqa": ("baber/piqa", None, "validation"),
        "winogrande": ("allenai/winogrande", "winogrande_xl", "validation"),
    }


# --- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in WRITERS if ".csv" not in name and ".tsv" not in name])
def test_every_format_that_holds_lists(tmp_path: Path, name: str) -> None:
    questions = read(WRITERS[name](tmp_path / name, ROWS))
    assert questions == [
        Question(ind=i, id=f"{name}:{i}", context=f"{i} and 1 is", endings=(f"{i + 1}.", "none."), label=0, status="ok")
        for i in range(9)
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.zst"])
def test_tables_have_a_column_for_each_ending(tmp_path: Path, name: str) -> None:
    rows = [{"q": f"{i} + 1 =", "right": i + 1, "wrong": "none", "key": 2} for i in range(3)]
    task = Task(context=("{q}",), endings=("{wrong}", "{right}"), label="key", labels=("1", "2"))
    assert [(q.context, q.endings, q.label) for q in read(WRITERS[name](tmp_path / name, rows), task)] == [
        (f"{i} + 1 =", ("none", str(i + 1)), 1) for i in range(3)
    ]


def test_reading_from_any_row_and_up_to_a_limit(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**row, "id": f"q{i}"} for i, row in enumerate(ROWS)])
    whole = read(path)
    assert [(q.ind, q.id) for q in whole] == [(i, f"q{i}") for i in range(9)]
    for start in (1, 8, 9):
        assert read(path, start=start) == whole[start:]
    assert read(path, limit=4, start=1) == whole[1:4]
    questions = open_questions(str(path), Task(), limit=4)
    assert questions.n_rows == 4
    assert [file.path for file in questions.files] == [path]


@pytest.mark.parametrize(
    ("label", "expected"),
    [(1, 1), ("1", 1), (" 1 ", 1), (1.0, 1), (None, None), ("", None), ("  ", None)],
)
def test_labels(label: Any, expected: int | None) -> None:
    assert ask("hellaswag", ctx="a", endings=["b", "c"], label=label)[2] == expected


def test_the_number_of_endings_may_differ_and_endings_may_be_empty(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "endings": endings} for endings in (["a", "b"], ["a", "b", "c", "d", "e"], ["", " "])]
    questions = read(write_jsonl(tmp_path / "a.jsonl", rows))
    assert [q.endings for q in questions] == [("a", "b"), ("a", "b", "c", "d", "e"), ("", "")]
    assert {q.status for q in questions} == {"ok"}


def test_ind_is_the_records_own_where_it_is_a_whole_number(tmp_path: Path) -> None:
    rows = [{**row, "ind": ind} for row, ind in zip(ROWS, (24, None, 7), strict=False)]
    assert [q.ind for q in read(write_jsonl(tmp_path / "a.jsonl", rows))] == [24, 1, 7]
    rows = [{**row, "ind": ind} for row, ind in zip(ROWS, ("x", "24"), strict=False)]
    assert [q.ind for q in read(write_jsonl(tmp_path / "a.jsonl", rows))] == [0, 1]


def test_rows_whose_label_must_not_count_are_flagged_and_kept(tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [
        {"label": 2},
        {"label": -1},
        {"ctx": ""},
        {"ctx": " \n"},
        {"ctx": None},
        {"ctx": "[step]"},
        {"ctx": "a \ud800"},
        {"ctx": "", "label": 5, "activity_label": "Canoeing"},
    ]
    questions = read(write_jsonl(tmp_path / "a.jsonl", [{**ROWS[0], **change} for change in odd]))
    assert [q.status for q in questions] == [
        *["label_out_of_range"] * 2,
        *["empty_context"] * 4,
        "lone_surrogates",
        "empty_context",
    ]
    assert [q.label for q in questions] == [None] * 8
    assert [len(q.endings) for q in questions] == [2] * 8
    record = {"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C", "id": "a"}
    assert make_question(record, read_task("arc_easy"), 0).status == "label_out_of_range"
    record = {"sentence": "_ ran.", "option1": "A", "option2": "B", "answer": "1", "id": "a"}
    assert make_question(record, read_task("winogrande"), 0).status == "empty_context"


# --- what is no question ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"endings": None}, "field 'endings' must be a list, and is null"),
        ({"endings": []}, "a question needs two endings or more, and this has 0"),
        ({"endings": ["a"]}, "a question needs two endings or more, and this has 1"),
        ({"endings": ["a", None]}, "field 'endings' must be a list of strings, and has null in it"),
        ({"label": "B"}, "the label 'B' in field 'label' is not a whole number: .* from 0, or name the endings"),
        ({"label": "1.5"}, r"the label '1\.5' in field 'label' is not a whole number"),
    ],
)
def test_a_row_that_is_no_question_is_named_before_any_is_answered(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    rows = [{**row, "label": "0"} for row in ROWS]
    path = write_jsonl(tmp_path / "a.jsonl", [*rows[:5], {**rows[5], **change}, *rows[6:]])
    with pytest.raises(SourceError, match=rf"a\.jsonl: row 5, counted from 0: {message}"):
        open_questions(str(path), read_task("hellaswag"))
    assert len(read(path, limit=5)) == 5


@pytest.mark.parametrize(
    ("endings", "message"),
    [
        ("a, b", "field 'endings' must be a list, and is a string"),
        ([1, 2], "field 'endings' must be a list of strings, and has an integer in it"),
        ([["a"], ["b"]], "field 'endings' must be a list of strings, and has an array in it"),
    ],
)
def test_endings_of_another_type(tmp_path: Path, endings: Any, message: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{**row, "endings": endings} for row in ROWS])
    with pytest.raises(SourceError, match=rf"a\.jsonl: row 0, counted from 0: {message}"):
        open_questions(str(path), Task())


@pytest.mark.parametrize("missing", ["ctx", "endings", "label"])
def test_a_missing_field_is_named_with_those_that_are_there(tmp_path: Path, missing: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{k: v for k, v in row.items() if k != missing} for row in ROWS])
    there = ", ".join(f"'{name}'" for name in ROWS[0] if name != missing)
    with pytest.raises(SourceError, match=rf"a\.jsonl: no field '{missing}' in any row.* the fields are {there}"):
        open_questions(str(path), read_task("hellaswag"))


def test_fields_of_templates_and_lists_of_names(tmp_path: Path) -> None:
    record = {"goal": "g", "sol1": "a", "sol2": "b", "label": 0}
    with pytest.raises(
        SourceError, match="no field 'sol2' in any row, as task piqa asks; the fields are 'goal', 'sol1'"
    ):
        read(write_jsonl(tmp_path / "a.jsonl", [{k: v for k, v in record.items() if k != "sol2"}]), read_task("piqa"))
    for value, message in (
        (None, "no value for the ending '{sol2}'"),
        (1.5, "'sol2' must be a string, and is a number"),
    ):
        with pytest.raises(SourceError, match=f"row 0, counted from 0: .*{message}"):
            read(write_jsonl(tmp_path / "a.jsonl", [record | {"sol2": value}]), read_task("piqa"))
    arc = {"question": "q", "choices": {"text": ["a", "b"], "label": "AB"}, "answerKey": "A"}
    with pytest.raises(SourceError, match=r"field 'choices\.label' must be a list, and is a string"):
        read(write_jsonl(tmp_path / "a.jsonl", [arc]), read_task("arc_easy"))
    with pytest.raises(SourceError, match=r"field 'choices\.text' must be a list, and is null"):
        read(write_jsonl(tmp_path / "a.jsonl", [arc | {"choices": {"label": ["A", "B"]}}]), read_task("arc_easy"))


def test_sources_without_questions(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("")
    with pytest.raises(SourceError, match=r"a\.jsonl: there is no question in it"):
        open_questions(str(path), Task())
    with pytest.raises(UsageError, match="task mine names no data: say where the questions are"):
        open_questions(None, Task(name="mine"))
    with pytest.raises(SourceError, match="Rowan/hellaswag:validation: .*--offline refuses"):
        open_questions(None, read_task("hellaswag"), offline=True)


def test_endings_that_are_not_utf8(tmp_path: Path) -> None:
    broken = pa.array([[b"a", b"\xff"]], pa.list_(pa.binary())).view(pa.list_(pa.string()))
    pq.write_table(pa.table({"ctx": ["a"], "endings": broken, "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match=r"a\.parquet: row 0, counted from 0: .*utf-8"):
        open_questions(str(tmp_path / "a.parquet"), Task())


# --- task files -------------------------------------------------------------------------------------------------------


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('context: "{stem}"\nendings: ["{yes}", "{no}"]\nlabels: [right, left]\nlabel: side\n')
    task = read_task(str(path))
    assert task == Task(
        name="mine", context=("{stem}",), endings=("{yes}", "{no}"), labels=("right", "left"), label="side"
    )
    record = {"id": "a", "stem": "s", "yes": "y", "no": "n", "side": "left"}
    assert make_question(record, task, 3) == Question(
        ind=3, id="a", context="s", endings=("y", "n"), label=1, status="ok"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("contxt: '{a}'", "unknown key contxt: did you mean context?"),
        ("context: '{a'", "template '{a': a brace that belongs to no field: write {field}"),
        ("context: '{a|upper}'", "template '{a|upper}': no function 'upper': use one of capitalize, before_blank"),
        ("endings: ['{a}', '{b|capitalise}']", "no function 'capitalise': did you mean capitalize?"),
        ("context: Question", "context: the last template must name a field, such as {ctx}"),
        ("context: []", "context: the last template must name a field, such as {ctx}"),
        ("clean: html", "clean: 'html' is not one of wikihow or null"),
        ("labels: [1, 2]", "labels: [1, 2] is not text"),
    ],
)
def test_what_is_wrong_in_a_task_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_task(str(path))
    assert str(caught.value).startswith(f"task file {path}: ")
    assert str(caught.value).count(str(path)) == 1
    assert message in str(caught.value)


def test_an_unknown_task_is_refused_with_those_that_exist() -> None:
    with pytest.raises(UsageError, match="task hellaswagg: no such file, .*: did you mean hellaswag?"):
        read_task("hellaswagg")
    with pytest.raises(UsageError, match="use one of arc_challenge, arc_easy, hellaswag, piqa, winogrande"):
        read_task("mmlu")


# --- the real data ----------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_the_validation_set_of_hellaswag() -> None:
    path = SHARED / "data" / "hellaswag" / "hellaswag_val.jsonl.gz"
    if not path.exists():
        pytest.skip("no shared data")
    with gzip.open(path, "rt") as file:
        records = [json.loads(line) for line in file]
    questions = read(path)
    assert [q.ind for q in questions] == [record["ind"] for record in records]
    assert [q.label for q in questions] == [int(record["label"]) for record in records]
    assert {(q.status, len(q.endings)) for q in questions} == {("ok", 4)}
    plain = {q.ind: q.context for q in questions if "[" not in records[q.ind]["ctx"]}
    assert len(plain) > 10_000
    assert all(
        " ".join(context.split()) == " ".join(f"{records[i]['activity_label']}: {records[i]['ctx']}".split())
        for i, context in plain.items()
    )
