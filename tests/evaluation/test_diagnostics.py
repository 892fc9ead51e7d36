"""The whole diagnosis of a table, its record, its summary and its pictures."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy.special import expit
from scipy.stats import gaussian_kde
from statsmodels.stats.multitest import multipletests

from fluxentropy.errors import UsageError
from fluxentropy.evaluation import figures as diagnostics_figures
from fluxentropy.evaluation.diagnose import headline, to_markdown, to_record
from fluxentropy.evaluation.diagnostics import Diagnostics, choose_pairs, diagnose_table
from fluxentropy.evaluation.figures import _density, _density_2d, _level, _residuals, draw_diagnostics
from fluxentropy.evaluation.logistic import fit_logit
from fluxentropy.evaluation.statistics import roc_auc
from fluxentropy.evaluation.table import MetricTable


def table(target: np.ndarray, metrics: Mapping[str, np.ndarray], **options: Any) -> MetricTable:
    facts: dict[str, Any] = {"n_rows": len(target), "excluded": {}, "skipped": {}, "derived": {}, "fingerprints": {}}
    floats = {name: values.astype(np.float64) for name, values in metrics.items()}
    return MetricTable(target_name="correct", target=target, metrics=floats, **facts | options)


def correlated(n: int, seed: int = 0, slopes: tuple[float, float] = (-0.5, 0.35)) -> MetricTable:
    """Entropy and varentropy that correlate 0.82, where the sign of varentropy turns beside entropy."""
    rng = np.random.default_rng(seed)
    a, noise = rng.normal(size=(2, n))
    b = 0.82 * a + np.sqrt(1 - 0.82**2) * noise
    y = rng.random(n) < expit(0.2 + slopes[0] * a + slopes[1] * b)
    return table(y, {"entropy": a + 5, "varentropy": b + 8})


@pytest.fixture(scope="module")
def result() -> Diagnostics:
    found = correlated(2000)
    return diagnose_table(found, choose_pairs(list(found.metrics)), replicates=200)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_models_of_each_metric_and_pair(result: Diagnostics) -> None:
    assert list(result.models) == ["entropy", "varentropy", "entropy+varentropy"]
    pair, y = result.models["entropy+varentropy"], result.table.target
    assert pair.fit.params == pytest.approx(fit_logit(y, result.table.metrics).params)
    assert pair.auc == pytest.approx(roc_auc(y, pair.fit.predict(result.table.metrics)))
    assert pair.auc_interval is not None and pair.auc is not None
    assert pair.auc_optimism is not None and pair.auc_optimism > 0
    assert pair.auc_interval[0] < pair.auc - pair.auc_optimism < pair.auc_interval[1]
    single = result.models["entropy"]
    assert single.auc == pytest.approx(1 - roc_auc(y, result.table.metrics["entropy"]))  # the effect is negative
    assert pair.against["entropy"].statistic == pytest.approx(2 * (pair.fit.llf - single.fit.llf))
    assert single.against == {} and single.inflation == {}
    r = result.pearson[0, 1]
    assert pair.inflation["entropy"] == pytest.approx(1 / (1 - r**2)) and r == pytest.approx(0.82, abs=0.02)
    size = pair.sample_size["varentropy"]
    assert size.rows_needed_at_limits[0] < size.rows_needed < size.rows_needed_at_limits[1]


def test_a_model_does_not_depend_on_the_others(result: Diagnostics) -> None:
    only = diagnose_table(
        table(result.table.target, {"varentropy": result.table.metrics["varentropy"]}), replicates=200
    )
    assert to_record(only)["models"]["varentropy"] | {"llr_pvalue_holm": 0} == to_record(result)["models"][
        "varentropy"
    ] | {"llr_pvalue_holm": 0}
    other = diagnose_table(only.table, seed=1, replicates=200)
    assert other.models["varentropy"].auc_interval != only.models["varentropy"].auc_interval
    assert diagnose_table(only.table, replicates=0).models["varentropy"].auc_interval is None


def test_holm_covers_every_test_once(result: Diagnostics) -> None:
    kinds = [(test.kind, test.subject, test.beside) for test in result.tests]
    assert sorted(kinds, key=str) == sorted(
        [
            *(("model", key, None) for key in result.models),
            *(("added", "entropy+varentropy", name) for name in ("entropy", "varentropy")),
            *((kind, name, None) for kind in ("anova", "chi2") for name in ("entropy", "varentropy")),
        ],
        key=str,
    )
    again = multipletests([test.p for test in result.tests], method="holm")[1]
    assert [test.p_holm for test in result.tests] == pytest.approx(list(again))


def test_false_alarms_of_the_whole_family_are_rare() -> None:
    alarms = 0
    for seed in range(60):
        found = correlated(200, seed, slopes=(0, 0))
        result = diagnose_table(found, choose_pairs(list(found.metrics)), replicates=0, folds=2)
        alarms += any(test.p_holm < 0.05 for test in result.tests)
    assert alarms <= 9  # the chance of more is below 0.002 at a rate of 5%


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (None, [("entropy", "varentropy"), ("entropy", "sqrt_varentropy"), ("entropy_last", "varentropy_last")]),
        (["none"], []),
        (["entropy+a+b", "varentropy+entropy"], [("entropy", "a+b"), ("varentropy", "entropy")]),
        (["a+b+entropy"], [("a+b", "entropy")]),
        (["entropy+varentropy", "entropy+varentropy"], [("entropy", "varentropy")]),
    ],
)
def test_pairs(asked: list[str] | None, expected: list[tuple[str, str]]) -> None:
    metrics = ["entropy", "varentropy", "sqrt_varentropy", "entropy_last", "varentropy_last", "entropy_mean", "a+b"]
    assert choose_pairs(metrics, asked) == expected


def test_all_pairs() -> None:
    assert choose_pairs(["a", "b", "c"], ["all"]) == [("a", "b"), ("a", "c"), ("b", "c")]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("entropy", "--pairs entropy: write two different metrics as a[+]b, or all, or none"),
        ("entropy+entropy", "two different metrics"),
        ("entropy+varentrpy", "varentrpy is not among the metrics: did you mean varentropy?"),
        ("entropy+", "an empty name is not among"),
    ],
)
def test_bad_pairs(asked: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        choose_pairs(["entropy", "varentropy"], [asked])


# --- the record -------------------------------------------------------------------------------------------------------


def test_record_keeps_its_promise(result: Diagnostics) -> None:
    record = json.loads(json.dumps(to_record(result), allow_nan=False))
    assert record["n"] == 2000 and record["balanced"] is False
    assert {"mean", "median", "std", "min", "max"} <= record["metrics"]["entropy"].keys()
    x = result.table.metrics["entropy"]
    assert record["metrics"]["entropy"]["std"] == pytest.approx(np.std(x, ddof=1))
    model = record["models"]["entropy+varentropy"]
    for key in ("params", "bse", "pvalues", "conf_int"):
        assert list(model[key]) == ["const", "entropy", "varentropy"]
    assert {"llr_pvalue", "pseudo_r2", "llf", "roc_auc", "vif", "likelihood_ratio_against"} <= model.keys()
    low, high = model["conf_int"]["entropy"]
    assert (low + high) / 2 == pytest.approx(model["params"]["entropy"])
    assert record["anova"]["entropy"].keys() >= {"F", "p"}
    assert record["chi2"]["entropy"].keys() >= {"statistic", "dof", "p"}
    assert record["correlation"]["variables"] == ["entropy", "varentropy", "correct"]
    assert record["holm"]["n_tests"] == 9


ODD = {
    "separated": table(np.arange(40) > 19, {"entropy": np.arange(40.0), "varentropy": np.arange(40.0) % 7}),
    "constant": table(np.arange(40) % 3 == 0, {"entropy": np.full(40, 2.0), "varentropy": np.arange(40.0) % 7}),
    "nothing": table(np.arange(40) % 3 == 0, {"entropy": np.full(40, 2.0), "varentropy": np.zeros(40)}),
    "collinear": table(np.arange(40) % 3 == 0, {"entropy": np.arange(40.0), "varentropy": 3 - np.arange(40.0)}),
    "three rows": table(np.array([True, False, True]), {"entropy": np.arange(3.0), "varentropy": np.ones(3)}),
    "one true row": table(np.arange(40) == 20, {"entropy": np.arange(40.0), "varentropy": np.arange(40.0) % 7}),
    "two values": table(np.arange(40) % 3 == 0, {"entropy": np.arange(40.0) % 2, "varentropy": np.arange(40.0) == 3}),
    "long tail": table(np.arange(40) % 3 == 0, {"entropy": np.exp(np.arange(40.0)), "varentropy": np.arange(40.0) % 7}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_tables_give_whole_results(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lay_out(figure: Figure, path: Path) -> list[Path]:
        figure.draw_without_rendering()
        return [path.with_suffix(".png")]

    monkeypatch.setattr(diagnostics_figures, "save", lay_out)
    found = ODD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = diagnose_table(found, [("entropy", "varentropy")], replicates=20)
        record = json.loads(json.dumps(to_record(result), allow_nan=False))
        text = to_markdown(result)
        files = draw_diagnostics(result, tmp_path)
    for key, model in result.models.items():
        assert record["models"][key]["status"] == model.fit.status
        if not model.fit.ok:
            assert record["models"][key]["params"]["const"] is None
            assert model.fit.message in text and record["models"][key]["message"] == model.fit.message
    assert {"distributions.png", "fitted_curves.png", "correlation_matrices.png"} <= {file.name for file in files}


def test_separation_is_reported_not_hidden() -> None:
    result = diagnose_table(ODD["separated"], [("entropy", "varentropy")])
    assert [model.fit.status for model in result.models.values()] == ["separated", "ok", "separated"]
    assert result.models["entropy"].auc == 1.0
    assert headline(result).startswith(
        "**Suspiciously well.** `entropy` separates the outcomes of `correct` completely"
    )


# --- the summary ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "slopes", "expected"),
    [
        (2000, (-0.5, 0.35), r"\*\*Yes, with a very small effect\.\*\* 1 of 2 metrics is associated"),
        (2000, (1.2, 1.2), r"\*\*Yes, with a large effect\.\*\* 2 of 2 metrics are .* The clearest is"),
        (60, (0.0, 0.0), r"\*\*No evidence\.\*\* .* With 60 rows, an odds ratio of 2\.\d\d \(or 1 / 2"),
    ],
)
def test_headlines(n: int, slopes: tuple[float, float], expected: str) -> None:
    found = correlated(n, 1, slopes)
    assert re.match(expected, headline(diagnose_table(found, replicates=0)))


def test_a_lost_effect_and_a_curved_one_have_their_own_words() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=1000)
    curved = diagnose_table(table(rng.random(1000) < expit(1.5 * x**2 - 1.5), {"entropy": x}), replicates=0)
    assert headline(curved).startswith("**Not as a trend.**")
    y = rng.random(400) < 0.5
    noise = {f"noise{k}": rng.normal(size=400) for k in range(8)}
    for chosen, mean in ((y, 0.25), (~y, 0.0)):  # t of 2.5
        noise["noise0"][chosen] += mean - noise["noise0"][chosen].mean()
    assert headline(diagnose_table(table(y, noise), replicates=0)).startswith("**Not after correction.**")


def test_summary_says_what_matters(result: Diagnostics) -> None:
    text = to_markdown(result, ["distributions.png", "surface_a%2Fb.png"])
    pair = result.models["entropy+varentropy"]
    for words in (
        "the two correlate 0.8",
        f"{pair.inflation['entropy']:.3g} times",
        "The sign of `varentropy` is − alone and + in the pair; its interval there excludes 1.",
        "rows have",
        "after correction",
        "![distributions](distributions.png)",
        "(surface_a%252Fb.png)",
    ):
        assert words in text, words
    ratio = result.models["entropy"].fit.odds_ratios[0]
    assert f"| entropy | {ratio[0]:.3f} ({ratio[1]:.3f} to {ratio[2]:.3f}) |" in text
    assert len([line for line in text.splitlines() if line.endswith(("| yes |", "| no |"))]) == len(result.tests)


def test_summary_names_what_was_left_out() -> None:
    found = correlated(200)
    facts = {"excluded": {"entropy": {"nan": 3, "missing": 1}}, "skipped": {"perplexity": "it has no finite value"}}
    odd = table(found.target, found.metrics, n_rows=204, derived={"varentropy": "v"}, **facts)
    text = to_markdown(diagnose_table(odd, replicates=0, balanced=True, seed=5))
    assert "(`entropy`: 3 nan, 1 missing); 204 rows were read" in text
    assert "`perplexity` was not used: it has no finite value." in text
    assert "`varentropy` is the square root of `v`." in text
    assert "cut at random to the size of the smaller (seed 5)" in text


# --- the pictures -----------------------------------------------------------------------------------------------------


def test_pictures_are_there_whole_and_the_same_each_time(result: Diagnostics, tmp_path: Path) -> None:
    first, second = (draw_diagnostics(result, tmp_path / name) for name in ("a", "b"))
    assert [file.stem for file in first[::2]] == [
        "distributions",
        "effects",
        "fitted_curves",
        "contingency",
        "correlation_matrices",
        "surface_entropy+varentropy",
        "reliability",
    ]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    for file in first[::2]:
        pixels = imread(file)
        assert pixels.shape[1] > 400 and pixels[..., :3].std() > 0.05, file.name


@pytest.mark.parametrize("n", [60, 5000])
def test_density_is_that_of_scipy(n: int) -> None:
    x = np.random.default_rng(0).normal(10, 2, size=n)
    grid, found = _density(x, 4.0, 16.0)
    width = 0.9 * min(x.std(), np.subtract(*np.quantile(x, [0.75, 0.25])) / 1.349) * n**-0.2
    expected = gaussian_kde(x, bw_method=width / x.std(ddof=1))(grid)
    np.testing.assert_allclose(found, expected, atol=0.01 * expected.max())


def test_density_stays_above_zero() -> None:
    x = np.random.default_rng(0).exponential(size=4000)
    grid, found = _density(x, 0.0, 12.0)
    assert grid.min() > 0 and np.trapezoid(found, grid) == pytest.approx(1, abs=0.01)
    assert found[0] == pytest.approx(1, abs=0.15)  # without the mirror it would be a half


def test_the_outline_holds_its_share_of_rows() -> None:
    x, z = np.random.default_rng(0).normal(size=(2, 20_000))
    density = _density_2d(x, z, (-4, 4, -4, 4))
    inside = density[((z + 4) * 25).astype(int).clip(0, 199), ((x + 4) * 25).astype(int).clip(0, 199)]
    for share in (0.5, 0.9, 0.99):
        assert np.mean(inside >= _level(density, share)) == pytest.approx(share, abs=0.02)


def test_residuals_sum_to_the_chi_square(result: Diagnostics) -> None:
    found = result.metrics["entropy"].quartiles
    assert found is not None
    assert np.sum(_residuals(found.table) ** 2) == pytest.approx(found.statistic)
