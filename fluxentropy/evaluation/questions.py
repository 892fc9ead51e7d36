"""Any source of records -> multiple-choice questions: a context, its endings, and which of them is right.

task = read_task("hellaswag")                       # configs/questions/hellaswag.yaml
questions = open_questions("val.jsonl.gz", task)    # any source that corpus/corpus.py reads
for batch in questions.batches(start=0):            # list[Question]
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fluxentropy.config.yaml import config_path, did_you_mean, read_yaml
from fluxentropy.corpus.corpus import Corpus, SourceFile, open_corpus
from fluxentropy.corpus.layout import OWN_COLUMNS
from fluxentropy.corpus.textfiles import kind_of
from fluxentropy.errors import SourceError, UsageError

FIELD = re.compile(r"\{([^{}|]+)(?:\|([^{}|]+))?\}")  # {field}, {field.part} or {field|function} in a template
IN_BRACKETS = re.compile(r"\[.*?\]")
FORMAT = 2  # of answers: 1 had `correct_norm` per byte, and nothing per character

ACCURACIES = {  # their names -> the column of items.parquet that they are the mean of, and what chooses the ending
    "acc": ("correct", "by log-likelihood"),
    "acc_norm": ("correct_norm", "by log-likelihood per character"),
    "acc_bytes": ("correct_bytes", "by log-likelihood per byte"),
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One record as a question: `context` + the task's delimiter + one of `endings`.

    `status` is "ok", or why `label` must not count:
    - "empty_context": there is no text before the endings
    - "label_out_of_range": the label names no ending
    - "invalid_utf8", "lone_surrogates": a string of the record had to be mended
    """

    ind: int  # the record's own `ind` where that is a whole number, else its place among all records, from 0
    id: str
    context: str
    endings: tuple[str, ...]  # two or more
    label: int | None  # place of the right one in `endings`; None where it is unknown or the status is not "ok"
    status: str


# --- tasks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Task:
    """How records become questions. The defaults take records of the form `ctx`, `endings`, `label`.

    Templates are text with fields: `{goal}`, `{choices.text}` inside objects, and `{ctx_b|capitalize}` through one of
    `FUNCTIONS`.

    Errors: `UsageError` names the template and what is wrong in it.
    """

    name: str = "questions"
    data: str | None = None  # where the questions are if nobody says
    context: tuple[str, ...] = ("{ctx}",)  # templates: the first whose fields all have a value in the record
    endings: str | tuple[str, ...] = "endings"  # the field that holds the list of them, or a template for each
    label: str = "label"  # field: the right ending's number from 0, null or "" where it is unknown
    labels: str | tuple[str, ...] | None = None  # the endings' names in `label`: a field that lists them, or the list
    delimiter: str = " "  # between context and ending
    clean: Literal["wikihow"] | None = None  # how context and endings are tidied: see `clean_wikihow`
    paper: str | None = None
    licence: str | None = None
    notes: str | None = None

    def __post_init__(self) -> None:
        templates = self.context if isinstance(self.endings, str) else self.context + self.endings
        for template in templates:
            if set("{}") & set(FIELD.sub("", template)):
                raise UsageError(f"template {template!r}: a brace that belongs to no field: write {{field}}")
            for _, function in FIELD.findall(template):
                if function and function not in FUNCTIONS:
                    raise UsageError(
                        f"template {template!r}: no function {function!r}{did_you_mean(function, FUNCTIONS)}"
                    )
        if not self.context or not FIELD.search(self.context[-1]):
            raise UsageError("context: the last template must name a field, such as {ctx}")

    @property
    def text_field(self) -> str:
        """The field that no record can do without: the first one of the last template of the context."""
        return FIELD.findall(self.context[-1])[0][0]

    @property
    def fields(self) -> list[str]:
        """All fields that a source must have, without what is inside them."""
        templates = [self.context[-1], *(() if isinstance(self.endings, str) else self.endings)]
        names = [name for template in templates for name, _ in FIELD.findall(template)]
        names += [name for name in (self.endings, self.label, self.labels) if isinstance(name, str)]
        return list(dict.fromkeys(name.partition(".")[0] for name in names))


def read_task(task: str) -> Task:
    """A YAML file with the fields of `Task`, or by its bare name one that comes with the package.

    Errors: `UsageError` names the file and the key that is wrong, or lists the tasks that come with the package.

    >>> read_task("piqa").endings
    ('{sol1}', '{sol2}')
    """
    shipped = {path.stem: path for path in sorted(config_path("questions").glob("*.yaml"))}
    path = Path(task) if Path(task).is_file() else shipped.get(task)
    if path is None:
        raise UsageError(
            f"task {task}: no such file, and no task that comes with the package{did_you_mean(task, shipped)}"
        )
    try:
        keys: dict[str, Any] = read_yaml(path, Task)
        keys = {key: tuple(value) if isinstance(value, list) else value for key, value in keys.items()}
        if isinstance(keys.get("context"), str):
            keys["context"] = (keys["context"],)
        return Task(**{"name": path.stem, **keys})
    except UsageError as error:
        reason = str(error).removeprefix("--config ")
        raise UsageError(f"task file {reason if reason.startswith(str(path)) else f'{path}: {reason}'}") from error


# --- questions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The records of a corpus as questions, in its order."""

    corpus: Corpus
    task: Task

    @property
    def files(self) -> tuple[SourceFile, ...]:
        return self.corpus.files

    @property
    def n_rows(self) -> int | None:
        """Number of questions; None where a Hub dataset does not tell."""
        return self.corpus.n_rows

    def batches(self, start: int = 0) -> Iterator[list[Question]]:
        """All questions from number `start` on.

        Errors: `SourceError` names the file and the row that is no question.
        """
        paths = {file.name: file.path or file.name for file in self.files}
        for batch in self.corpus.batches(start):
            questions = []
            for row in range(batch.num_rows):
                try:
                    (record,) = batch.slice(row, 1).to_pylist()
                    record |= {name: json.loads(record[name] or "null") for name in self.corpus.json_text}
                    questions.append(make_question(record, self.task, start + row))
                except ValueError as error:  # also for bytes inside lists that are not UTF-8
                    file, number = batch["source_file"][row].as_py(), batch["source_row"][row].as_py()
                    raise SourceError(f"{paths[file]}: row {number}, counted from 0: {error}") from error
            yield questions
            start += batch.num_rows


def open_questions(
    data: str | None, task: Task, *, limit: int | None = None, offline: bool = False, spool: Path | None = None
) -> Questions:
    """The questions of the source `data`, by default the task's own; see `open_corpus` for the other arguments.

    Files are read once to their end, so that a row that is no question is found before any model is asked.

    Errors: `SourceError` names the file, and the row or the field that is missing; `UsageError` without any source.
    """
    data = data or task.data
    if data is None:
        raise UsageError(f"task {task.name} names no data: say where the questions are")
    corpus = open_corpus([data], text_field=task.text_field, limit=limit, offline=offline, spool=spool)
    if corpus.n_rows == 0:
        raise SourceError(f"{data}: there is no question in it")
    for name in task.fields:
        if name not in corpus.schema.names:
            there = ", ".join(repr(field) for field in corpus.schema.names if field not in OWN_COLUMNS)
            raise SourceError(f"{data}: no field {name!r} in any row, as task {task.name} asks; the fields are {there}")
    questions = Questions(corpus=corpus, task=task)
    if questions.n_rows is not None:
        deque(questions.batches(), maxlen=0)
    return questions


def make_question(record: Mapping[str, Any], task: Task, number: int) -> Question:
    """The question of one record of a corpus, which is number `number` in it. `ValueError` says why it is none.

    >>> record = {"id": "a", "ctx": "2 + 2 =", "endings": ["4.", "5."], "label": "0"}
    >>> make_question(record, Task(), 7)
    Question(ind=7, id='a', context='2 + 2 =', endings=('4.', '5.'), label=0, status='ok')
    """
    clean = clean_wikihow if task.clean else str
    context = next((text for text in (_fill(template, record) for template in task.context) if text is not None), "")
    context, endings, label = clean(context), tuple(map(clean, _endings(record, task))), _label(record, task)
    status = record.get("input_status") or "ok"
    if not context.strip() or not (_value(record, task.text_field) or "").strip():
        status = "empty_context"
    elif status == "ok" and label is not None and not 0 <= label < len(endings):
        status = "label_out_of_range"
    ind = record.get("ind")
    return Question(
        ind=ind if type(ind) is int else number,
        id=record["id"],
        context=context,
        endings=endings,
        label=label if status == "ok" else None,
        status=status,
    )


def _endings(record: Mapping[str, Any], task: Task) -> list[str]:
    if isinstance(task.endings, str):
        endings = _list(record, task.endings)
        if odd := [ending for ending in endings if not isinstance(ending, str)]:
            raise ValueError(f"field {task.endings!r} must be a list of strings, and has {kind_of(odd[0])} in it")
    else:
        endings = [_fill(template, record) for template in task.endings]
        if None in endings:
            raise ValueError(f"no value for the ending {task.endings[endings.index(None)]!r}")
    if len(endings) < 2:
        raise ValueError(f"a question needs two endings or more, and this has {len(endings)}")
    return endings


def _label(record: Mapping[str, Any], task: Task) -> int | None:
    """The place of the right ending, which may be out of range; None where there is none."""
    value = _value(record, task.label)
    if isinstance(value, float) and value.is_integer():  # where one label of the column is no whole number
        value = int(value)
    word = "" if value is None else str(value).strip()
    if not word:
        return None
    if task.labels is not None:
        names = list(map(str, _list(record, task.labels) if isinstance(task.labels, str) else task.labels))
        return names.index(word) if word in names else -1
    if not re.fullmatch(r"[+-]?[0-9]+", word):
        raise ValueError(
            f"the label {value!r} in field {task.label!r} is not a whole number: write the right ending's number from "
            f"0, or name the endings with `labels` in a task file"
        )
    return int(word)


# --- fields and templates ---------------------------------------------------------------------------------------------


def _value(record: Mapping[str, Any], field: str) -> Any:
    """What stands in `field`, `a.b` being field `b` of the object in `a`; None where there is nothing."""
    value: Any = record
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _list(record: Mapping[str, Any], field: str) -> list[Any]:
    value = _value(record, field)
    if not isinstance(value, list):
        raise ValueError(f"field {field!r} must be a list, and is {kind_of(value)}")
    return value


def _fill(template: str, record: Mapping[str, Any]) -> str | None:
    """The template with the record's values; None where one is missing.

    >>> _fill("{a|capitalize}: {b.c}", {"a": "x", "b": {"c": 1}}), _fill("{a}", {})
    ('X: 1', None)
    """
    values = {field: _value(record, field) for field, _ in FIELD.findall(template)}
    if None in values.values():
        return None
    for field, value in values.items():
        if type(value) not in (str, int):
            raise ValueError(f"field {field!r} must be a string, and is {kind_of(value)}")
    return FIELD.sub(lambda match: FUNCTIONS.get(match[2], str)(str(values[match[1]])), template)


def clean_wikihow(text: str) -> str:
    """Remove the marks that WikiHow articles left in HellaSwag, as evaluations of it commonly do.

    The spaces around what is removed stay; then each two of them become one, which is done once.

    >>> clean_wikihow(" Baking: [header] How to bake [title] Mix flour. [step] Stir. [substeps] ")
    'Baking: How to bake. Mix flour. Stir. '
    """
    return IN_BRACKETS.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _around_blank(text: str) -> tuple[str, str]:
    """What stands before the first `_`, and what after it.

    >>> _around_blank("The cup did not fit because _ was large.")
    ('The cup did not fit because ', ' was large.')
    """
    before, blank, after = text.partition("_")
    if not blank:
        raise ValueError(f"no blank (_) in {text[:80]!r}")
    return before, after


FUNCTIONS: dict[str, Callable[[str], str]] = {
    "capitalize": str.capitalize,
    "before_blank": lambda text: _around_blank(text)[0],
    "after_blank": lambda text: _around_blank(text)[1].strip(),
}
