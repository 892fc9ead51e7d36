"""The consensus order against its definition, and as a run that `sort` reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import scipy.stats
from scoredruns import write_run
from sklearn.decomposition import PCA

from fluxentropy.agree import read_scores
from fluxentropy.consensus import consensus_scores, write_consensus
from fluxentropy.sorting import sort_scores


def test_consensus_scores_are_mean_ranks_and_the_first_component_of_standardised_scores() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(80, 1)) + rng.normal(size=(80, 4))
    scores[7, 2] = np.nan
    whole = np.delete(scores, 7, axis=0)
    found, share = consensus_scores(scores)
    ranks = np.apply_along_axis(scipy.stats.rankdata, 0, whole)
    pca = PCA().fit(scipy.stats.zscore(whole))
    component = pca.transform(scipy.stats.zscore(whole))[:, 0]
    component *= np.sign(np.corrcoef(component, whole.mean(axis=1))[0, 1])
    assert np.delete(found["mean_rank"], 7) == pytest.approx(ranks.mean(axis=1))
    assert np.delete(found["rank_sd"], 7) == pytest.approx(ranks.std(axis=1))
    assert np.delete(found["pc1"], 7) == pytest.approx(component)
    assert share == pytest.approx(pca.explained_variance_ratio_[0])
    assert all(np.isnan(found[name][7]) for name in ("mean_rank", "rank_sd", "pc1"))
    assert found["n_models"].tolist() == [4] * 7 + [3] + [4] * 72


def test_the_written_consensus_can_be_sorted_and_keeps_every_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fluxentropy.consensus.ROWS", 3)
    one = write_run(tmp_path / "one", [5.0, 4.0, None, 2.0, 1.0, 0.5, 6.0])
    two = write_run(tmp_path / "two", [50.0, 41.0, 30.0, 20.0, 10.0, 9.0, 60.0], part_rows=2)
    write_consensus(read_scores([str(one), str(two)]), tmp_path / "consensus", {"inputs": {}})
    assert len(list((tmp_path / "consensus" / "scores").glob("part-*.parquet"))) > 1
    sort_scores(str(tmp_path / "consensus"), tmp_path / "sorted.parquet", by="mean_rank")
    rows = pq.read_table(tmp_path / "sorted.parquet").to_pylist()
    assert [row["id"] for row in rows] == ["id-5", "id-4", "id-3", "id-1", "id-0", "id-6", "id-2"]
    assert [row["mean_rank"] for row in rows] == [1, 2, 3, 4, 5, 6, None]
    assert [row["status"] for row in rows] == ["ok"] * 6 + ["incomplete"]
    assert rows[0]["text"] == "text of id-5"
    assert rows[0]["n_tokens"] == 7
    assert "entropy_mean" not in rows[0]
