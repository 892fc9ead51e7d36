"""The token view: every token once, its pieces join to the text, its numbers are the scorer's."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from fakes import SENTENCES, save_model

from fluxentropy.cli import main
from fluxentropy.scorer import Scorer, open_scorer
from fluxentropy.tokens import token_views
from fluxentropy.zoo_entries import find_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scorer(folder: Path) -> Scorer:
    return open_scorer(find_model(str(folder)), max_tokens=200)[0]


@pytest.mark.parametrize("text", [*SENTENCES, "🙂🙂 中文", "tabs\tand\n\nlines", "<b>bold</b> &amp; é"])
def test_pieces_join_to_the_text_and_numbers_are_the_scorers(scorer: Scorer, text: str) -> None:
    (view,) = token_views(scorer, [("a", text)], top_k=3)
    assert "".join(row.token for row in view.tokens) == text
    assert [row.token_id for row in view.tokens] == scorer.decoder.tokenizer(text).input_ids
    (scores,) = scorer.score([text])
    assert sum(row.entropy for row in view.tokens) == pytest.approx(scores.entropy_sum, rel=1e-5)
    assert view.tokens[0].surprisal is None
    assert sum(row.surprisal for row in view.tokens[1:]) == pytest.approx(scores.surprisal_sum, rel=1e-5)
    for row in view.tokens:
        probabilities = [prob for _, prob in row.alternatives]
        assert len(probabilities) == 3
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0 < sum(probabilities) <= 1 + 1e-6


def test_a_text_without_tokens_has_no_rows(scorer: Scorer) -> None:
    (view,) = token_views(scorer, [("a", "")])
    assert view.tokens == []


def test_the_command_writes_a_page_and_a_table(
    capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("<script>alert(1)</script>", "b", "c")))
    out = tmp_path / "view.html"
    argv = ["tokens", str(source), "--model", str(folder), "--out", str(out), "--max-tokens", "100", "--limit", "2"]
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"texts": 2, "html": str(out), "csv": str(out.with_suffix(".csv"))}
    assert "<script>alert" not in out.read_text()
    with open(out.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["text_id"] for row in rows} == {"texts.jsonl:0", "texts.jsonl:1"}
    assert "".join(row["token"] for row in rows if row["text_id"].endswith(":0")) == "<script>alert(1)</script>"


def test_an_empty_source_is_named(capsys: pytest.CaptureFixture[str], folder: Path, tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("")
    assert (
        main(["tokens", str(tmp_path / "none.jsonl"), "--model", str(folder), "--out", str(tmp_path / "v.html")]) == 1
    )
    assert "none.jsonl" in capsys.readouterr().err
