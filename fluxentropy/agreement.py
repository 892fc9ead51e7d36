"""How far models agree on a corpus: rank correlations, distances between the models, PCA, with bootstrap intervals.

Pure: an array of scores in, numbers out (`textsample.py` computes them for any weights of the texts).

    >>> scores = {"small": [1.0, 2.0, 3.0, 4.0, 5.0], "large": [1.5, 2.5, 3.5, 5.5, 4.5]}
    >>> result = agreement(scores, replicates=0)
    >>> [round(float(x), 3) for x in (result.spearman[0, 1], result.kendall_w, result.euclidean[0, 1])]
    [0.9, 0.95, 1.803]
"""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.cluster.hierarchy
import scipy.linalg
import scipy.spatial.distance
import scipy.special
import scipy.stats

from fluxentropy.errors import UsageError
from fluxentropy.textsample import QUINTILES, TextSample

LEVEL = 0.95  # of the intervals
FEWEST = 8  # texts that all models have scored: of fewer, percentiles of resamples are too narrow, and there are none
THREADS = 4  # each holds about ten numbers a text and model while it works


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What M models make of the same texts. Ranks ascend from 1 for the lowest score; ties share their mean rank.

    Numbers of two models rest on the texts that both have scored (`pair_counts`), all others on the `n_complete`
    texts that every model has scored.
    """

    models: tuple[str, ...]
    n_texts: int
    n_complete: int
    n_scored: np.ndarray  # (M,) texts that each model has scored
    pair_counts: np.ndarray  # (M, M) texts that both have scored
    spearman: np.ndarray  # (M, M)
    mean_spearman: float  # mean over the M(M-1)/2 pairs
    pearson: np.ndarray  # (M, M)
    kendall_w: float  # Kendall's coefficient of concordance, corrected for ties
    kendall_chi2: float  # M (n-1) W, chi-square with n-1 degrees of freedom if the models ranked at random
    kendall_log10_p: float  # log10 of its p-value, which is often below the smallest float
    euclidean: np.ndarray  # (M, M) √Σ_t (x_ti - x_tj)², scaled to n_texts where texts are missing
    euclidean_z: np.ndarray  # (M, M) the same of scores standardised per model: √(2 n (1 - Pearson))
    linkage: np.ndarray  # (M-1, 4) average linkage of `euclidean`, as SciPy writes it
    order: tuple[int, ...]  # the models in the order of the tree's leaves
    explained_variance_ratio: np.ndarray  # (K,) PCA, models as points, centred, not scaled
    coordinates: np.ndarray  # (M, K), K = max(M - 1, 2)
    rank_sd_by_quintile: np.ndarray  # (5,) mean SD of a text's ranks, by quintile of its mean rank, lowest first
    intervals: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)  # name -> (..., 2), limits of 95 %
    replicates: int = 0

    @property
    def kendall_p(self) -> float:
        """The p-value of W, 0.0 where it is below the smallest float."""
        return 10.0**self.kendall_log10_p

    @property
    def pca(self) -> dict[str, Any]:
        """Shares of the variance (K,), and each model's first two coordinates: [pc1, pc2]."""
        coordinates = {model: row[:2].tolist() for model, row in zip(self.models, self.coordinates, strict=True)}
        return {"explained_variance_ratio": self.explained_variance_ratio, "coordinates": coordinates}

    def _repr_html_(self) -> str:
        """What a notebook shows: the concordance in a line, and the Spearman correlations as a table."""

        def limits(name: str) -> str:
            return " [{:.3f}, {:.3f}]".format(*self.intervals[name]) if name in self.intervals else ""

        def cells(tag: str, texts: Iterable[str]) -> str:
            return "".join(f"<{tag}>{text}</{tag}>" for text in texts)

        names = [html.escape(name) for name in self.models]
        rows = [cells("th", ["Spearman", *names])]
        for name, row in zip(names, self.spearman, strict=True):
            rows.append(f"<th>{name}</th>" + cells("td", (f"{value:.3f}" for value in row)))
        said = (
            f"{len(names)} models, {self.n_texts:,} texts, {self.n_complete:,} of them scored by all. "
            f"Kendall's W {self.kendall_w:.3f}{limits('kendall_w')}, "
            f"mean Spearman {self.mean_spearman:.3f}{limits('mean_spearman')}"
        )
        return f"<p>{said}</p><table>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def agreement(matrix: Any, models: Sequence[str] | None = None, *, replicates: int = 1000, seed: int = 0) -> Agreement:
    """How far models agree on texts: the numbers of `agreement.json`, from scores in memory.

    `matrix` is an array (models, texts), whose rows `models` names, or a mapping, a data frame or an Arrow table with a
    column of scores (texts,) for each model. NaN and null: the model has no score for the text. `replicates` bootstrap
    samples of texts give the intervals; 0 gives none.

    Errors: `UsageError` names the model whose scores are no numbers, or not as many as those of the others, and says
    why models cannot be compared.
    """
    if hasattr(matrix, "column_names"):  # an Arrow table
        columns = dict(zip(matrix.column_names, matrix.columns, strict=True))
    elif hasattr(matrix, "items"):  # a mapping or a data frame
        columns = dict(matrix.items())
    else:
        array = np.asarray(matrix)
        if array.ndim != 2:
            raise UsageError(f"an array of shape {array.shape} is no matrix of scores: give one of (models, texts)")
        named = list(models) if models is not None else [f"model {number}" for number in range(len(array))]
        if len(set(named)) != len(array) or len(named) != len(array):
            raise UsageError(f"models {', '.join(named)}: the array has {len(array)} rows, name each of them once")
        columns = dict(zip(named, array, strict=True))
    scores = {str(model): _scores(str(model), column) for model, column in columns.items()}
    first = next(iter(scores), "")
    for model, column in scores.items():
        if len(column) != len(scores[first]):
            raise UsageError(
                f"{model} has {len(column)} scores and {first} {len(scores[first])}: give one for each text"
            )
    joined = np.stack(list(scores.values()), axis=1) if scores else np.empty((0, 0))
    return measure_agreement(joined, list(scores), replicates=replicates, seed=seed)


def _scores(model: str, column: Any) -> np.ndarray:
    """One model's scores as float64 (texts,), NaN where there is none."""
    try:
        found = np.array(column.to_pylist() if hasattr(column, "to_pylist") else column, np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"the scores of {model} are no numbers ({error}): leave this column out") from error
    if found.ndim != 1:
        raise UsageError(f"the scores of {model} have the shape {found.shape}: give a number for each text")
    return np.where(np.isfinite(found), found, np.nan)


def measure_agreement(
    scores: np.ndarray,  # (n, M) float, NaN where a model has no score
    models: Sequence[str],
    *,
    replicates: int = 1000,
    seed: int = 0,
    on_replicate: Callable[[], None] | None = None,
) -> Agreement:
    """The agreement of M models on n texts, with percentile intervals from `replicates` bootstrap samples of texts.

    Kendall and Babington Smith 1939 (W, with the correction for ties); Efron 1979 (bootstrap). The result does not
    depend on the number of cores. Errors: those of `check_scores`.
    """
    check_scores(scores, models)
    sample = TextSample(np.asarray(scores, dtype=np.float64))
    point = sample.statistics(np.ones(len(scores)))
    tree = _tree(point["euclidean"])
    complete = int(sample.complete.sum())
    chi2 = len(models) * (complete - 1) * float(point["kendall_w"])
    intervals = {}
    replicates = replicates if complete >= FEWEST else 0
    if replicates:
        draws = list(_bootstrap(sample, point["coordinates"], replicates, seed, on_replicate))
        intervals = {name: _limits(np.stack([draw[name] for draw in draws])) for name in point}
    return Agreement(
        models=tuple(models),
        n_texts=len(scores),
        n_complete=complete,
        n_scored=sample.scored.sum(axis=0),
        pair_counts=sample.scored.T.astype(np.int64) @ sample.scored,
        spearman=point["spearman"],
        mean_spearman=float(point["mean_spearman"]),
        pearson=point["pearson"],
        kendall_w=float(point["kendall_w"]),
        kendall_chi2=chi2,
        kendall_log10_p=log10_p(chi2, complete - 1),
        euclidean=point["euclidean"],
        euclidean_z=point["euclidean_z"],
        linkage=tree,
        order=tuple(int(leaf) for leaf in scipy.cluster.hierarchy.leaves_list(tree)),
        explained_variance_ratio=point["explained_variance_ratio"],
        coordinates=point["coordinates"],
        rank_sd_by_quintile=point["rank_sd_by_quintile"],
        intervals=intervals,
        replicates=replicates,
    )


def check_scores(scores: np.ndarray, models: Sequence[str]) -> None:
    """UsageError says why agreement cannot be measured: too few models or texts, or a model without any order."""
    assert scores.shape == (len(scores), len(models))
    if len(models) < 2:
        raise UsageError(f"agreement needs two models or more, here is {models[0] if models else 'none'}")
    for model, reason in unusable(scores, models).items():
        others = ",".join(name for name in models if name != model)
        raise UsageError(f"model {model!r} {reason}: leave it out with --models {others}")
    complete = int(np.isfinite(scores).all(axis=1).sum())
    if complete < QUINTILES:
        raise UsageError(
            f"only {complete} of {len(scores)} texts are scored by all {len(models)} models: "
            f"agreement needs {QUINTILES} or more"
        )


def unusable(scores: np.ndarray, models: Sequence[str]) -> dict[str, str]:
    """Models whose column has no order, and why."""
    found = {}
    for model, column in zip(models, scores.T, strict=True):
        values = column[np.isfinite(column)]
        if len(values) == 0:
            found[model] = "has not scored a single text"
        elif values.min() == values.max():
            found[model] = f"has the same score, {values[0]:g}, for all {len(values)} texts"
    return found


def log10_p(chi2: float, dof: int) -> float:
    """log10 of the chance that a chi-square variable of `dof` degrees of freedom exceeds `chi2`.

    Where that chance is below the smallest float, by the leading term of Temme's uniform expansion (NIST DLMF 8.12.4).

    >>> round(log10_p(30.0, 10), 3), round(log10_p(3e6, 10**6))
    (-3.067, -195737)
    """
    log_p = float(scipy.stats.chi2.logsf(chi2, dof))
    if np.isneginf(log_p):
        ratio = chi2 / dof
        log_p = float(scipy.special.log_ndtr(-np.sqrt(dof * (ratio - 1 - np.log(ratio)))))
    return log_p / float(np.log(10))


def _tree(distances: np.ndarray) -> np.ndarray:
    condensed = scipy.spatial.distance.squareform(distances, checks=False)
    return scipy.cluster.hierarchy.linkage(condensed, "average", optimal_ordering=True)


# --- the bootstrap ----------------------------------------------------------------------------------------------------


def _bootstrap(
    sample: TextSample, coordinates: np.ndarray, replicates: int, seed: int, on_replicate: Callable[[], None] | None
) -> Iterator[dict[str, np.ndarray]]:
    """Statistics of samples of texts, drawn with replacement; a replicate's draw depends on its number alone."""

    def replicate(child: np.random.SeedSequence) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(child)
        weights = np.bincount(rng.integers(0, sample.n, sample.n), minlength=sample.n).astype(np.float64)
        found = sample.statistics(weights)
        found["coordinates"] = _turned(found["coordinates"], coordinates)
        return found

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        for found in pool.map(replicate, np.random.SeedSequence(seed).spawn(replicates)):
            if on_replicate:
                on_replicate()
            yield found


def _turned(points: np.ndarray, target: np.ndarray) -> np.ndarray:
    """`points` (M, K) turned and mirrored onto `target`: components are defined up to that only."""
    if not np.isfinite(points).all():
        return points
    return points @ scipy.linalg.orthogonal_procrustes(points, target)[0]


def _limits(draws: np.ndarray) -> np.ndarray:
    """Percentile limits (..., 2) of replicates (B, ...), without those in which a number is not defined."""
    tail = (1 - LEVEL) / 2
    undefined = np.isnan(draws).all(axis=0)
    draws = np.where(undefined, 0, draws)
    limits = np.nanquantile(draws, [tail, 1 - tail], axis=0)
    return np.moveaxis(np.where(undefined, np.nan, limits), 0, -1)
