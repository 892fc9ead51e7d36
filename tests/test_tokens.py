"""The token view: every token once, its pieces join to the text, its numbers are the scorer's."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from fakes import SENTENCES, save_model

from fluxentropy.cli import main
from fluxentropy.errors import UsageError
from fluxentropy.models import load_decoder
from fluxentropy.reportruns import COLUMNS
from fluxentropy.scorer import Scorer, open_scorer
from fluxentropy.tokens import token_views
from fluxentropy.tokenview import read_views, write_csv
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


def by_hand(folder: Path, ids: list[int]) -> list[tuple[float | None, ...]]:
    """surprisal, entropy and varentropy before, entropy and varentropy after each token, from float64 logits."""
    model = load_decoder(find_model(str(folder)), device="cpu").model.double()
    with torch.inference_mode():
        logp = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    rows: list[tuple[float | None, ...]] = []
    before: tuple[float | None, float | None] = (None, None)
    for t, token in enumerate(ids):
        p = [math.exp(x) for x in logp[t].tolist()]
        entropy = -sum(x * math.log(x) for x in p if x > 0)
        after = (entropy, sum(x * (math.log(x) + entropy) ** 2 for x in p if x > 0))
        rows.append((None if t == 0 else -float(logp[t - 1, token]), *before, *after))
        before = after
    return rows


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("window", ["first", "sliding"])
def test_one_alignment_in_python_the_table_and_the_report(window: str, bos: bool, tmp_path: Path) -> None:
    """Against the definition, row by row; a BOS is a row of its own, so that the next token has a surprisal."""
    folder = save_model(tmp_path / "model", bos=bos)
    scorer = open_scorer(find_model(str(folder)), max_tokens=200, window=window)[0]
    text = SENTENCES[4]
    table = scorer.tokens(text, top_k=2)
    expected = by_hand(folder, scorer.decoder.tokenizer(text).input_ids)
    names = ("surprisal", "entropy_before", "varentropy_before", "entropy", "varentropy")
    rows = table.to_pylist()
    assert table.num_rows == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        for name, value in zip(names, wanted, strict=True):
            assert row[name] == (None if value is None else pytest.approx(value, rel=1e-3, abs=1e-3)), name
    (scores,) = scorer.score(text)
    for name in ("entropy", "varentropy", "surprisal"):
        known = [row[name] for row in rows if row[name] is not None]
        assert sum(known) / len(known) == pytest.approx(getattr(scores, f"{name}_mean"), rel=1e-4)
    write_csv(token_views(scorer, [("a", text)], top_k=2), tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert tuple(written[0]) == COLUMNS
    for row, other in zip(rows, written, strict=True):
        assert [other[name] for name in names] == ["" if row[name] is None else repr(row[name]) for name in names]
    (view,) = read_views(tmp_path / "t.csv")
    assert [[getattr(token, name) for name in names] for token in view.tokens] == [
        [row[name] for name in names] for row in rows
    ]
    columns = [name for name in COLUMNS if not name.endswith("_before")]
    with open(tmp_path / "old.csv", "w", newline="", encoding="utf-8") as file:  # of an earlier version
        old = csv.DictWriter(file, columns, extrasaction="ignore", quoting=csv.QUOTE_ALL, lineterminator="\n")
        old.writeheader()
        old.writerows(written)
    assert read_views(tmp_path / "old.csv")[0].tokens == view.tokens


def test_tokens_of_no_text(scorer: Scorer) -> None:
    assert scorer.tokens("").num_rows == 0
    for wrong in (None, ["a"], {"text": "a"}):
        with pytest.raises(UsageError, match="is no text: give a string"):
            scorer.tokens(wrong)  # type: ignore[arg-type]


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
