"""Rows of answers against the definitions."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fluxentropy.answering import Prompt, Reading
from fluxentropy.items import SCHEMA, make_item, to_table
from fluxentropy.questions import ACCURACIES, Question

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
