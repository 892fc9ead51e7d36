"""A weighted sample of texts that several models have scored -> all statistics of their agreement.

They derive from two small matrices of the texts that models share,

    C = Σ_t w_t (R_t - R̄)(R_t - R̄)ᵀ      products of midranks          (M, M)
    G = Σ_t w_t (x_t - x̄)(x_t - x̄)ᵀ      products of scores           (M, M)

where w_t counts how often text t stands in the sample: 1, or what a bootstrap draws. So a replicate costs no sorting.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

QUINTILES = 5


class TextSample:
    """The texts, prepared so that the statistics of any weights of them need no sorting."""

    def __init__(self, scores: np.ndarray) -> None:
        self.n, self.m = scores.shape
        self.scored = np.isfinite(scores)
        self.complete = self.scored.all(axis=1)
        self.all = _Shared(scores, self.complete, range(self.m))
        self.pairs = [] if self.complete.all() else list(self._pairs(scores))

    def _pairs(self, scores: np.ndarray) -> Iterator[tuple[_Shared, list[tuple[int, int]]]]:
        """Pairs of models, together where they share the same texts."""
        groups: dict[bytes, list[tuple[int, int]]] = {}
        for i, j in itertools.combinations(range(self.m), 2):
            groups.setdefault(np.packbits(self.scored[:, i] & self.scored[:, j]).tobytes(), []).append((i, j))
        for pairs in groups.values():
            i, j = pairs[0]
            yield (
                _Shared(scores, self.scored[:, i] & self.scored[:, j], sorted({k for pair in pairs for k in pair})),
                pairs,
            )

    def statistics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Every number of `Agreement` that the bootstrap repeats, for texts of `weights` (n,)."""
        with np.errstate(divide="ignore", invalid="ignore"):  # a replicate may hold one text only
            ranks, found = self.all.measure(weights, self.n)
            products = found.pop("rank_products")
            ratio, coordinates = pca_of_distances(found["euclidean"])
            for shared, pairs in self.pairs:
                _, of_pairs = shared.measure(weights, self.n)
                for name, matrix in found.items():
                    for i, j in pairs:
                        at = shared.models.index(i), shared.models.index(j)
                        matrix[i, j] = matrix[j, i] = of_pairs[name][at]
            return {
                **found,
                "mean_spearman": np.mean(found["spearman"][np.triu_indices(self.m, 1)]),
                # Σ_ij C_ij / (M Σ_j C_jj): the variance of the rank sums over its largest possible value, ties included
                "kendall_w": products.sum() / (self.m * np.trace(products)),
                "explained_variance_ratio": ratio,
                "coordinates": coordinates,
                "rank_sd_by_quintile": _spread_by_quintile(ranks, weights[self.complete]),
            }


class _Shared:
    """Models and the texts that all of them have scored."""

    def __init__(self, scores: np.ndarray, rows: np.ndarray, models: Sequence[int]) -> None:
        self.models = list(models)
        self.rows = None if rows.all() else rows
        self.scores = np.ascontiguousarray(scores[rows][:, self.models].T)  # (m, n)
        self.codes = [np.unique(row, return_inverse=True)[1].astype(np.int32) for row in self.scores]
        self.means = self.scores.mean(axis=1, keepdims=True)
        self.scores -= self.means

    def measure(self, weights: np.ndarray, scale_to: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Midranks (m, n), and the matrices (m, m) of the models' pairs under `weights` of all texts."""
        w = weights if self.rows is None else weights[self.rows]
        total = w.sum()
        ranks = np.stack([midranks(codes, w) for codes in self.codes])  # (m, n)
        centred = ranks - (total + 1) / 2
        rank_products = (centred * w) @ centred.T
        weighted = self.scores * w
        sums = weighted.sum(axis=1, keepdims=True)  # (m, 1)
        products = weighted @ self.scores.T
        # (x_i - x_j)² with x = a + mean: the Gram matrix of a, the linear terms, and the distance of the means
        gap, sum_gap = self.means - self.means.T, sums - sums.T
        own = np.diag(products)
        squared = own[:, None] + own - 2 * products + 2 * gap * sum_gap + total * gap**2
        squared = np.maximum(squared, 0) * (scale_to / total)
        np.fill_diagonal(squared, 0)
        pearson = _correlation(products - sums @ sums.T / total)
        matrices = {
            "spearman": _correlation(rank_products),
            "pearson": pearson,
            "euclidean": np.sqrt(squared),
            "euclidean_z": np.sqrt(np.maximum(2 * scale_to * (1 - pearson), 0)),
            "rank_products": rank_products,
        }
        return ranks, matrices


def midranks(codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ranks from 1 of a sample that holds text t `weights[t]` times; equal texts share their mean rank. -> (n,)

    `codes` number the distinct scores in ascending order, from 0.

    >>> midranks(np.array([0, 2, 1, 2]), np.ones(4))
    array([1. , 3.5, 2. , 3.5])
    """
    size = np.bincount(codes, weights)  # of each group of ties
    return (np.cumsum(size) - (size - 1) / 2)[codes]


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


def _spread_by_quintile(ranks: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over texts of the population SD of a text's ranks (M, n), by fifths of the texts in order of mean rank. (5,)

    A text on the border of two fifths counts for both in part.
    """
    order = np.argsort(ranks.mean(axis=0), kind="stable")
    ordered = weights[order]
    reached = np.concatenate([[0], np.cumsum(ordered)])  # texts up to here
    spread = np.concatenate([[0], np.cumsum(ranks.std(axis=0)[order] * ordered)])
    borders = np.linspace(0, reached[-1], QUINTILES + 1)
    return np.diff(np.interp(borders, reached, spread)) / np.diff(borders)
