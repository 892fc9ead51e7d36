"""Scores of several runs side by side, and every way in which runs do not fit together."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scoredruns import described, write_run

from fluxentropy.agree import read_scores
from fluxentropy.errors import FluxentropyError, RunError, UsageError
from fluxentropy.runscores import run_folders


def test_runs_of_one_corpus_are_matched_row_by_row_even_where_ids_repeat(tmp_path: Path) -> None:
    ids = ["x", "y", "x", "z", "w"]
    one = write_run(tmp_path / "one", [1.0, 2.0, 3.0, None, 5.0], ids=ids, part_rows=2)
    two = write_run(tmp_path / "two", [5.0, 4.0, 3.0, 2.0, 1.0], ids=ids, part_rows=3)
    matrix = read_scores([str(one), str(two)])
    assert matrix.models == ("one", "two")
    assert matrix.scores[:, 1].tolist() == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert np.isnan(matrix.scores[3, 0])
    assert matrix.absent == {"one": 0, "two": 0}
    assert [(row, record["id"]) for row, record in described(matrix)] == list(enumerate(ids))
    assert set(described(matrix)[0][1]) == {"id", "source_row", "text", "n_tokens"}
    assert read_scores([str(one), str(two)], by="surprisal_mean").scores[0].tolist() == [-1.0, -5.0]


def test_runs_of_different_texts_are_matched_by_id_and_the_missing_counted(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [1.0, 2.0, 3.0], ids=["a", "b", "c"])
    two = write_run(tmp_path / "two", [30.0, 40.0, 20.0], ids=["c", "d", "b"], part_rows=2)
    matrix = read_scores([str(one), str(two)])
    assert np.nan_to_num(matrix.scores, nan=-1).tolist() == [[1, -1], [2, 20], [3, 30], [-1, 40]]
    assert matrix.absent == {"one": 1, "two": 1}
    assert [(row, record["id"], record["text"]) for row, record in described(matrix)] == [
        (0, "a", "text of a"),
        (1, "b", "text of b"),
        (2, "c", "text of c"),
        (3, "d", "text of d"),
    ]


def test_a_zoo_is_read_in_its_own_order_without_the_consensus(tmp_path: Path) -> None:
    for name in ("b", "a", "c", "consensus"):
        write_run(tmp_path / "zoo" / name, [1.0, 2.0])
    assert [run.name for run in run_folders(tmp_path / "zoo")] == ["a", "b", "c"]
    (tmp_path / "zoo" / "manifest.json").write_text(json.dumps({"models": ["c", "a"]}))
    assert [run.name for run in run_folders(tmp_path / "zoo")] == ["c", "a", "b"]


def test_names_come_from_models_then_folders(tmp_path: Path) -> None:
    one = write_run(tmp_path / "fp32", [1.0, 2.0], model="gpt2")
    two = write_run(tmp_path / "bf16", [1.0, 2.0], model="gpt2")
    three = write_run(tmp_path / "x", [1.0, 2.0], model="llama")
    assert read_scores([str(one), str(three)]).models == ("gpt2", "llama")
    assert read_scores([str(one), str(two)]).models == ("fp32", "bf16")
    with pytest.raises(UsageError, match="fp32 is given twice"):
        read_scores([str(one), str(one)])


def test_select_keeps_the_chosen_models_in_the_order_given(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / name, [1.0, float(place)])) for place, name in enumerate(["a", "b", "c"])]
    matrix = read_scores(runs)
    chosen = matrix.select(["c", "a"])
    assert (chosen.models, chosen.scores[1].tolist()) == (("c", "a"), [2.0, 0.0])
    with pytest.raises(UsageError, match="--models d: no such model"):
        matrix.select(["a", "d"])


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        (
            {},
            {"policies": {"max_tokens": 128}},
            "different policies cannot be compared: max_tokens is 512 in one and 128 in two",
        ),
        ({"stride": 64}, {}, "stride is 64 in one and None in two"),
        ({}, {"text_field": "body"}, "text_field is 'text' in one and 'body' in two"),
        (
            {},
            {"sources": {"web.jsonl": "sha256:2"}},
            "different sources cannot be compared: web.jsonl is 'sha256:1' in one",
        ),
        ({"finish": False}, {}, "one is not finished"),
        ({}, {"ids": ["a", "a", "b"]}, "1 texts of two share an id with another one .a stands there 2 times"),
    ],
)
def test_runs_that_do_not_fit_together_are_refused(tmp_path: Path, there: dict, here: dict, message: str) -> None:
    one = write_run(tmp_path / "one", [1.0, 2.0, 3.0], **there)
    two = write_run(tmp_path / "two", [1.0, 2.0, 3.0], **here)
    with pytest.raises(RunError, match=message):
        read_scores([str(one), str(two)])


def test_what_a_tokenizer_decides_is_no_difference(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [1.0, 2.0], policies={"bos_added": True})
    two = write_run(tmp_path / "two", [1.0, 2.0], sources={"web.jsonl": "sha256:1", "more.jsonl": "sha256:3"})
    assert read_scores([str(one), str(two)]).scores.shape == (2, 2)


def test_a_folder_without_runs_and_a_column_without_numbers_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", [1.0, 2.0])
    (tmp_path / "empty").mkdir()
    for path, by, message in (
        (tmp_path / "empty", "entropy_mean", "is no run directory and holds none"),
        (run, "entropy_men", "--by entropy_men: no such column in .*did you mean entropy_mean"),
        (run, "text", "are of type string, not numbers"),
    ):
        with pytest.raises(FluxentropyError, match=message):
            read_scores([str(path)], by)
