"""How far models agree on a corpus: rank correlations, distances between the models, PCA, with bootstrap intervals.

Pure: an array of scores in, numbers out (`agreement/statistics.py` computes them for any weights of the texts).

    >>> scores = {"small": [1.0, 2.0, 3.0, 4.0, 5.0], "large": [1.5, 2.5, 3.5, 5.5, 4.5]}
    >>> result = agreement(scores, replicates=0)
    >>> [round(float(x), 3) for x in (result.spearman[0, 1], result.kendall_w, result.euclidean[0, 1])]
    [0.9, 0.95, 1.803]
"""

from __future__ import annotations

import dataclasses
import html
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.cluster.hierarchy
import scipy.linalg
import scipy.spatial.distance
import scipy.special
from threadpoolctl import threadpool_limits

from fluxentropy.agreement.matrix import ScoreMatrix, unusable
from fluxentropy.config.yaml import to_yaml
from fluxentropy.errors import UsageError
from fluxentropy.runs.directory import RunDirectory
from fluxentropy.runs.engine import usable_cores
from fluxentropy.runs.files import versions
from fluxentropy.runs.find import CONSENSUS

# --- samples of texts -------------------------------------------------------------------------------------------------
#
# They derive from two small matrices of the texts that models share,
#
#     C = Σ_t w_t (R_t - R̄)(R_t - R̄)ᵀ      products of midranks          (M, M)
#     G = Σ_t w_t (x_t - x̄)(x_t - x̄)ᵀ      products of scores           (M, M)
#
# where w_t counts how often text t stands in the sample: 1, or what a bootstrap draws. A replicate costs no sorting:
# midranks are a running sum of the counts in the order of the scores. C is exact below 300,000 texts, as all its sums
# are whole numbers below 2^53; G is linear in w, so that one product serves all replicates of a `BLOCK`.


QUINTILES = 5
OF_PAIRS = ("spearman", "pearson", "euclidean", "euclidean_z")
OF_ALL = ("mean_spearman", "kendall_w", "explained_variance_ratio", "coordinates", "rank_sd_by_quintile")
PART = 2048  # texts at a time, so that what is computed from them stays in the cache
NARROW = 2**22  # texts, below which the chance of a difference above 2^14 is below 10^-50 (Massart 1990)
MANTISSA, WHOLE = 2.0**52, np.float64(2.0**52).view(np.uint64)  # its last bits are those of the whole number added
BINS = 1024  # of mean ranks, of which only those with a border of two fifths are sorted


class TextSample:
    """The texts, prepared so that the statistics of any samples of them need no sorting."""

    def __init__(self, scores: np.ndarray) -> None:
        self.n, self.m = scores.shape
        self.texts = np.argsort(sum(_order(column).places for column in scores.T), kind="stable")
        scores = scores[self.texts]  # in one order for all models, what is looked up lies close together
        self.scored = np.isfinite(scores)
        self.complete = self.scored.all(axis=1)
        self.orders = [_order(column) for column in scores.T]
        self.means = np.where(self.scored, scores, 0).sum(axis=0) / self.scored.sum(axis=0)
        self.centred = np.where(self.scored, scores - self.means, 0).T.copy()  # (M, n)
        self.pairs: dict[bytes, list[tuple[int, int]]] = {}  # by the texts that both have scored
        if not self.complete.all():
            for i, j in itertools.combinations(range(self.m), 2):
                self.pairs.setdefault(np.packbits(self.scored[:, i] & self.scored[:, j]).tobytes(), []).append((i, j))

    def statistics(self, counts: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Every number of `Agreement` that the bootstrap repeats, of samples with each text `counts` (B, n) times."""
        counts = counts.take(self.texts, axis=1)  # which keeps each sample together, as counts[:, texts] does not
        with np.errstate(divide="ignore", invalid="ignore"):  # a sample may hold one text only
            samples = self._measure(counts, self.complete, list(range(self.m)))
            for found in samples:
                products = found.pop("rank_products")
                # Σ_ij C_ij / (M Σ_j C_jj): the variance of the rank sums over its largest possible value, ties included
                found["kendall_w"] = products.sum() / (self.m * np.trace(products))
                found["explained_variance_ratio"], found["coordinates"] = pca_of_distances(found["euclidean"])
            for pairs in self.pairs.values():
                models = sorted({model for pair in pairs for model in pair})
                both = self.scored[:, pairs[0]].all(axis=1)
                for found, theirs in zip(samples, self._measure(counts, both, models), strict=True):
                    for name, (i, j) in itertools.product(OF_PAIRS, pairs):
                        value = theirs[name][models.index(i), models.index(j)]
                        found[name][i, j] = found[name][j, i] = value
            for found in samples:
                found["mean_spearman"] = np.mean(found["spearman"][np.triu_indices(self.m, 1)])
        return samples

    def _measure(self, counts: np.ndarray, base: np.ndarray, models: list[int]) -> list[dict[str, np.ndarray]]:
        """The matrices (k, k) of k `models` in samples (B, n) of the texts `base` (n,) that all of them have scored."""
        counts = counts if base.all() else counts * base
        found = []
        moments = self._moments(counts, models)
        for total, (rank_products, spread), sums, products, squared in zip(
            counts.sum(axis=1, dtype=np.int64), self._ranks(counts, base, models), *moments, strict=True
        ):
            pearson = _correlation(products - np.outer(sums, sums) / total)
            of_pairs = (
                _correlation(rank_products),
                pearson,
                np.sqrt(squared * (self.n / total)),
                np.sqrt(np.maximum(2 * self.n * (1 - pearson), 0)),
            )
            whole = {"rank_products": rank_products, "rank_sd_by_quintile": spread}
            found.append(dict(zip(OF_PAIRS, of_pairs, strict=True)) | whole)
        return found

    def _moments(self, counts: np.ndarray, models: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Σ w x_i (B, k), Σ w x_i x_j and Σ w (x_i - x_j)² (B, k, k) of samples (B, n).

        x are scores about the model's mean, which the differences have again.
        """
        k, size = len(models), len(counts)
        upper, above = np.triu_indices(k), np.triu_indices(k, 1)
        means = self.means[models]
        found = np.zeros((size, k + len(upper[0]) + len(above[0])))
        terms, weights = np.empty((found.shape[1], PART)), np.empty((size, PART))
        for start in range(0, self.n, PART):
            x = self.centred[models, start : start + PART]
            t, w = terms[:, : x.shape[1]], weights[:, : x.shape[1]]
            t[:k], w[:] = x, counts[:, start : start + PART]
            for row, (i, j) in enumerate(zip(*upper, strict=True), k):
                np.multiply(x[i], x[j], out=t[row])
            for row, (i, j) in enumerate(zip(*above, strict=True), k + len(upper[0])):
                np.subtract(x[i], x[j], out=t[row])
                t[row] += means[i] - means[j]
                np.square(t[row], out=t[row])
            found += w @ t.T
        sums, *flat = np.split(found, [k, k + len(upper[0])], axis=1)
        products, squared = np.zeros((2, size, k, k))
        for matrix, places, values in zip((products, squared), (upper, above), flat, strict=True):
            matrix[:, places[0], places[1]] = matrix[:, places[1], places[0]] = values
        return sums, products, squared

    def _ranks(
        self, counts: np.ndarray, base: np.ndarray, models: list[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each sample (n,) of `counts`: 4 C (k, k), and the spread of the ranks by quintile of the mean rank (5,).

        Several samples go through the orders together, in the lanes of 64-bit words: by how much each text's rank, as a
        distance from the middle, differs from that in the sample `base` (n,) that holds each text once. Such a
        difference has a standard deviation of √n at most, so that 16 bits are enough below `NARROW` texts.
        """
        k, bits = len(models), 16 if self.n <= NARROW else 32
        orders = [self.orders[model] for model in models]
        word = sum(1 << shift for shift in range(0, 64, bits))  # 1 in each lane
        plain = np.stack([order.sums_upto(base.astype(np.int64))[order.places] for order in orders]) - (
            float(base.sum()) + 2.0 ** (bits - 1) + MANTISSA
        )
        moved = np.empty((k, self.n), np.uint64)
        weights, (sums, variances) = np.empty(self.n), np.empty((2, self.n))
        centred, weighted = np.empty((2, k, PART))
        for first in range(0, len(counts), 64 // bits):
            samples = counts[first : first + 64 // bits]
            lanes, change = base * np.uint64(-word % 2**64), 0
            for lane, sample in enumerate(samples):
                lanes += sample.astype(np.uint64) << np.uint64(lane * bits)
                change += int(sample.sum(dtype=np.int64) - base.sum()) << lane * bits
            middle = np.uint64(((word << bits - 1) - change) % 2**64)
            for row, order in zip(moved, orders, strict=True):
                table = order.sums_upto(lanes)
                table += middle
                np.take(table, order.places, out=row, mode="clip")
            for lane, sample in enumerate(samples):
                weights[:] = sample
                products = np.zeros((k, k))
                for start in range(0, self.n, PART):
                    part = slice(start, min(start + PART, self.n))
                    c, w = (buffer[:, : part.stop - start] for buffer in (centred, weighted))
                    found = c.view(np.uint64)
                    np.right_shift(moved[:, part], np.uint64(lane * bits), out=found)
                    found &= np.uint64(2**bits - 1)
                    found |= WHOLE  # as a float: MANTISSA and the lane
                    c += plain[:, part]  # 2 (R - R̄)
                    products += np.multiply(c, weights[part], out=w) @ c.T
                    c.sum(axis=0, out=sums[part])
                    np.einsum("kt,kt->t", c, c, out=variances[part])
                variances *= k
                variances -= np.square(sums)
                spread = np.sqrt(np.maximum(variances, 0)) / (2 * k)
                yield products, _by_quintile(sums, spread, weights, self.texts)


@dataclass(frozen=True, kw_only=True)
class _Order:
    """The order of a model's scores."""

    texts: np.ndarray  # (n,) from the lowest score; those without one stand last
    ends: np.ndarray | None  # (G,) the place of the last text of each different score; None where there are no ties
    places: np.ndarray  # (n,) the number of each text's score among the different ones

    def sums_upto(self, counts: np.ndarray) -> np.ndarray:
        """How many lie below each different score, and up to it, in sum (G,), where texts stand `counts` (n,) times.

        That is twice the rank from 1 of a text that stands there, less 1; equal texts share their mean rank.

        >>> order = _order(np.array([0.5, 0.9, 0.7, 0.9]))
        >>> (order.sums_upto(np.ones(4))[order.places] + 1) / 2
        array([1. , 3.5, 2. , 3.5])
        """
        upto = counts.take(self.texts)
        np.cumsum(upto, out=upto)
        if self.ends is not None:
            upto = upto[self.ends]
        found = upto.copy()
        found[1:] += upto[:-1]
        return found


def _order(scores: np.ndarray) -> _Order:
    """The order of scores (n,), NaN where there is none."""
    texts = np.argsort(scores)
    ordered = scores[texts]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    places = np.empty(len(scores), np.intp)
    places[texts] = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=-1))
    return _Order(texts=texts, ends=None if len(ends) == len(scores) else ends, places=places)


def _correlation(products: np.ndarray) -> np.ndarray:
    """Products about the mean (M, M) as correlations; exactly 1 with itself."""
    scale = np.sqrt(np.diag(products))
    found = np.clip(products / np.outer(scale, scale), -1, 1)
    np.fill_diagonal(found, 1.0)
    return found


def pca_of_distances(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PCA of points by their Euclidean distances (M, M): ratios of variance (K,), coordinates (M, K).

    The doubly centred squared distances are the Gram matrix of the centred points (Torgerson 1952), so that n texts
    of M models need no (n, n) matrix. Signs: the largest coordinate of each component is positive.
    """
    m = len(distances)
    kept = max(m - 1, 2)  # M centred points span M - 1 dimensions
    if not np.isfinite(distances).all():  # a replicate without any text that all have scored
        return np.full(kept, np.nan), np.full((m, kept), np.nan)
    centring = np.eye(m) - 1 / m
    values, vectors = np.linalg.eigh(-0.5 * centring @ distances**2 @ centring)
    values = np.maximum(values[::-1][:kept], 0)
    coordinates = vectors[:, ::-1][:, :kept] * np.sqrt(values)
    largest = np.take_along_axis(coordinates, np.abs(coordinates).argmax(axis=0)[None], axis=0)
    if m == 2:
        values[1], coordinates[:, 1] = 0, 0
    return values / values.sum(), coordinates * np.where(largest < 0, -1, 1)


def _by_quintile(keys: np.ndarray, values: np.ndarray, counts: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Means of `values` (n,) by fifths of a sample that has each text `counts` (n,) times. -> (5,)

    The order is that of `keys` (n,), then of `texts` (n,). A text on the border of two fifths counts for both in part.
    """
    low = keys.min()
    bins = ((keys - low) * ((BINS - 1) / max(keys.max() - low, 1))).astype(np.intp)
    reached = np.cumsum(np.bincount(bins, counts))  # texts up to the end of each bin
    summed = np.cumsum(np.bincount(bins, counts * values))
    borders = np.linspace(0, reached[-1], QUINTILES + 1)
    found = np.zeros(QUINTILES + 1)
    found[-1] = summed[-1]
    for place in range(1, QUINTILES):
        chosen = int(np.searchsorted(reached, borders[place]))
        rows = np.flatnonzero(bins == chosen)
        rows = rows[np.lexsort((texts[rows], keys[rows]))]
        times = counts[rows].astype(np.float64)
        before = reached[chosen] - times.sum(), summed[chosen] - (times * values[rows]).sum()
        at = np.cumsum(np.append(before[0], times))
        sums = np.cumsum(np.append(before[1], times * values[rows]))
        found[place] = np.interp(borders[place], at, sums)
    return np.diff(found) / np.diff(borders)


# --- agreement --------------------------------------------------------------------------------------------------------


LEVEL = 0.95  # of the intervals
FEWEST = 8  # texts that all models have scored: of fewer, percentiles of resamples are too narrow, and there are none
THREADS = 4  # each holds about two numbers a text and model while it works
BLOCK = 32  # replicates that share a product


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
    (point,) = sample.statistics(np.ones((1, len(scores)), np.uint8))
    tree = _tree(point["euclidean"])
    complete = int(sample.complete.sum())
    chi2 = len(models) * (complete - 1) * float(point["kendall_w"])
    intervals = {}
    replicates = replicates if complete >= FEWEST else 0
    if replicates:
        draws = list(_bootstrap(sample, point["coordinates"], replicates, seed, on_replicate))
        intervals = {name: _limits(np.stack([draw[name] for draw in draws])) for name in OF_PAIRS + OF_ALL}
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


def log10_p(chi2: float, dof: int) -> float:
    """log10 of the chance that a chi-square variable of `dof` degrees of freedom exceeds `chi2`.

    Where that chance is below the smallest float, by the leading term of Temme's uniform expansion (NIST DLMF 8.12.4).

    >>> round(log10_p(30.0, 10), 3), round(log10_p(3e6, 10**6))
    (-3.067, -195737)
    """
    with np.errstate(divide="ignore"):
        log_p = float(np.log(scipy.special.chdtrc(dof, chi2)))
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

    def draw(child: np.random.SeedSequence) -> np.ndarray:
        drawn = np.random.default_rng(child).integers(0, sample.n, sample.n)
        return np.bincount(drawn, minlength=sample.n).astype(np.uint8)  # the chance of a 256 is below 10^-500

    def block(children: Sequence[np.random.SeedSequence]) -> list[dict[str, np.ndarray]]:
        samples = sample.statistics(np.stack([draw(child) for child in children]))
        return [found | {"coordinates": _turned(found["coordinates"], coordinates)} for found in samples]

    children = np.random.SeedSequence(seed).spawn(replicates)
    # A product that several threads share waits for the one whose core is busy with something else.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(THREADS, usable_cores())) as pool:
        for samples in pool.map(block, (children[start : start + BLOCK] for start in range(0, replicates, BLOCK))):
            for found in samples:
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


# --- the consensus ----------------------------------------------------------------------------------------------------
#
# | column | meaning |
# |---|---|
# | `mean_rank` | mean over the models of the text's rank, 1 for the lowest score |
# | `rank_sd` | population standard deviation over the models of these ranks: how far they disagree |
# | `pc1` | the text's coordinate on the first principal component of the standardised scores, texts as points |
# | `n_models` | models that have scored the text |
# | `status` | `ok`, or `incomplete`: not every model has scored the text, which then has no consensus |


ROWS = 2**16  # of a part
SCORES = {"mean_rank": pa.float64(), "rank_sd": pa.float64(), "pc1": pa.float64(), "n_models": pa.int64()}


def consensus_scores(scores: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """`mean_rank`, `rank_sd`, `pc1` and `n_models` of texts (n, M), NaN where a model is missing; PC1's share.

    The component is that of the models' correlation matrix, of length 1, with the sign for which it rises with the
    scores. Its share of the variance is near 1 where one order explains all models.

    >>> found, share = consensus_scores(np.array([[1.0, 10.0], [3.0, 20.0], [2.0, 30.0], [1.5, np.nan]]))
    >>> found["mean_rank"], found["pc1"].round(2), round(share, 2)
    (array([1. , 2.5, 2.5, nan]), array([-1.73,  0.87,  0.87,   nan]), 0.75)
    """
    n, m = scores.shape
    complete = np.isfinite(scores).all(axis=1)
    whole = scores[complete]
    orders = [_order(column) for column in whole.T]
    ranks = np.stack([order.sums_upto(np.ones(len(whole)))[order.places] for order in orders]) / 2 + 0.5  # (M, n)
    spread = whole.std(axis=0)
    standard = (whole - whole.mean(axis=0)) / np.where(spread > 0, spread, 1)
    values, vectors = np.linalg.eigh(standard.T @ standard / len(whole))
    direction = vectors[:, -1] * np.sign(vectors[:, -1].sum() or 1.0)
    found = {"mean_rank": ranks.mean(axis=0), "rank_sd": ranks.std(axis=0), "pc1": standard @ direction}
    columns: dict[str, np.ndarray] = {}
    for name, column in found.items():
        columns[name] = np.full(n, np.nan)
        columns[name][complete] = column
    columns["n_models"] = np.isfinite(scores).sum(axis=1)
    return columns, float(values[-1] / m)


def write_consensus(matrix: ScoreMatrix, out: Path, identity: dict[str, Any]) -> float:
    """Write the consensus of all models as the run directory `out`; return PC1's share of the variance."""
    columns, share = consensus_scores(matrix.scores)
    with RunDirectory(out, overwrite=True) as run:
        run.begin({"kind": CONSENSUS, **identity}, to_yaml({"consensus": identity}))
        number, held, size = 0, [], 0
        for described, rows in matrix.texts():
            held.append(_with_scores(described, rows, columns, len(matrix.models)))
            size += len(rows)
            if size >= ROWS:
                _write_part(run, number, held)
                number, held, size = number + 1, [], 0
        if held:
            _write_part(run, number, held)
            number += 1
        complete = int((columns["n_models"] == len(matrix.models)).sum())
        counts = {"rows": len(matrix.scores), "status_ok": complete, "status_incomplete": len(matrix.scores) - complete}
        run.finish({"counts": counts, "parts": number, "pc1_share": share, "versions": versions()})
    return share


def _with_scores(described: pa.Table, rows: np.ndarray, columns: dict[str, np.ndarray], models: int) -> pa.Table:
    table = described.drop_columns([name for name in (*SCORES, "status") if name in described.column_names])
    for name, kind in SCORES.items():
        table = table.append_column(name, pa.array(columns[name][rows], kind, from_pandas=True))  # NaN becomes null
    status = np.where(columns["n_models"][rows] == models, "ok", "incomplete")
    return table.append_column("status", pa.array(status, pa.string()))


def _write_part(run: RunDirectory, number: int, tables: list[pa.Table]) -> None:
    table = pa.concat_tables(tables).combine_chunks()
    with run.part(number, {"rows": len(table), "counts": {"rows": len(table)}}) as path:
        pq.write_table(table, path, compression="zstd", row_group_size=4096)
