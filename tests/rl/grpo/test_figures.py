"""Pictures of a run that was made up: what each of them draws, and what is left out where columns are missing."""

from __future__ import annotations

import csv

import matplotlib.collections
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import statsmodels.api as sm
from PIL import Image

from fluxentropy.errors import SourceError, UsageError
from fluxentropy.figures import paper, settle
from fluxentropy.rl.grpo.figures import figures, fit_reward, run_figures
from fluxentropy.runs.tables import read_metrics

STEPS, EVERY = 120, 4
NAMES = ["entropy_reward", "predicted_measured", "kernel", "split", "reward_fit", "tails", "attribution"]


def rows(seed=0):
    """Entropy falls from 1.5 to 0.3 nats a token over responses of 20 tokens; the reward follows it."""
    rng = np.random.default_rng(seed)
    for step in range(1, STEPS + 1):
        H = 0.3 + 1.2 * np.exp(-step / 40) + 0.02 * rng.normal()
        row = {
            "step": step, "reward": 0.9 - 0.15 * np.exp(H) + 0.02 * rng.normal(), "reward_sd": 0.4, "lr": 1e-5,
            "entropy_per_token": H, "entropy_per_token_se": 0.03,
            "entropy_per_sequence": 20 * H, "entropy_per_sequence_se": 0.8,
            "entropy_naive": 20 * H + rng.normal(), "entropy_naive_se": 1.5,
        }  # fmt: skip
        if step % 20 == 0:
            row["eval_reward"] = row["reward"] - 0.05
        if step % EVERY == 0:
            change = -0.6 * np.exp(-step / 40) + 0.05 * rng.normal()
            first = change * 0.8
            row |= {
                "probe_measured_per_sequence": change, "probe_measured_per_sequence_se": 0.03,
                "probe_first_per_sequence": first, "probe_first_per_sequence_se": 0.025,
                "probe_predicted_per_sequence": change + 0.01 * rng.normal(),
                "probe_predicted_per_sequence_se": 0.03,
                "probe_batch_per_sequence": 0.3 * first + 0.05 * rng.normal(), "probe_batch_per_sequence_se": 0.02,
                "probe_momentum_per_sequence": 0.68 * first, "probe_momentum_per_sequence_se": 0.03,
                "probe_decay_per_sequence": 0.02 * first, "probe_decay_per_sequence_se": 0.001,
                "probe_kernel_identical": 0.05 * first, "probe_kernel_same_prompt": 0.1 * first,
                "probe_kernel_cross_prompt": 0.15 * first + 0.02 * rng.normal(), "probe_kernel_total": 0.3 * first,
            }  # fmt: skip
        yield row


def write(run, drop=()):
    run.mkdir(parents=True)
    every = list(rows())
    names = [name for name in max(every, key=len) if not name.startswith(tuple(drop))]
    names += [] if "eval_reward" in drop else ["eval_reward"] * ("eval_reward" not in names)
    with open(run / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(every)
    return run


def write_tables(run):
    rng = np.random.default_rng(1)
    B, G, parts = 64, 4, []
    for step in range(EVERY, STEPS + 1, 5 * EVERY):
        entropy = rng.lognormal(2.5, 0.7, size=B * G)
        parts.append({
            "step": np.full(B * G, step), "prompt": np.repeat(np.arange(B), G),
            "length": rng.integers(10, 40, B * G), "entropy": entropy,
        })  # fmt: skip
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    pq.write_table(pa.table(table), run / "responses.parquet")
    (run / "attribution").mkdir()
    for step in range(EVERY, STEPS + 1, 2 * EVERY):
        n = 3000
        logp = -rng.gamma(0.6, 1.5, size=n)
        A = np.repeat(rng.normal(size=n // 20), 20)
        change = -1e-4 * A * (logp - logp.mean()) + 1e-4 * rng.normal(size=n)
        prompt = np.repeat(np.arange(n // 20) // 3, 20)
        entropy = rng.gamma(0.6, 1.0, size=n)
        columns = {"step": np.full(n, step), "prompt": prompt, "advantage": A, "logp": logp, "entropy": entropy}
        columns["change"] = change
        pq.write_table(pa.table(columns), run / "attribution" / f"step_{step:06d}.parquet")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("run") / "a")
    write_tables(folder)
    return folder


@pytest.fixture(scope="module")
def drawn(run):
    with paper():
        found = dict(run_figures(run, read_metrics(run / "metrics.csv")))
        for figure in found.values():
            settle(figure)
    return found


def test_every_picture_is_written_as_png_and_svg(tmp_path):
    run = write(tmp_path / "run", drop=("probe_kernel", "probe_batch", "probe_momentum", "probe_decay"))
    files = figures(run)
    expected = ["entropy_reward", "predicted_measured", "reward_fit"]
    assert [file.relative_to(run / "figures").as_posix() for file in files] == [
        f"{name}.{suffix}" for name in expected for suffix in ("png", "svg")
    ]
    with Image.open(files[0]) as image:
        assert image.width == pytest.approx(3.4 * 300, abs=2)


def test_each_picture_has_axes_with_labels_and_units(drawn):
    assert list(drawn) == NAMES
    for name, figure in drawn.items():
        for axes in figure.axes:
            assert axes.get_ylabel() or axes.get_xlabel(), name
        below = [axes for axes in figure.axes if axes.get_xlabel()]
        assert below, name
    titles = [axes.get_title(loc="left") for figure in drawn.values() for axes in figure.axes]
    assert all(len(line) < 95 for title in titles for line in title.split("\n"))


def test_the_numbers_drawn_are_those_of_the_table(run, drawn):
    metrics = read_metrics(run / "metrics.csv")
    here = np.isfinite(metrics["probe_measured_per_sequence"])
    assert here.sum() == STEPS // EVERY
    first, second = drawn["predicted_measured"].axes
    for axes, name in ((first, "first"), (second, "predicted")):
        points = axes.lines[-1].get_xydata()
        np.testing.assert_array_equal(points[:, 0], metrics["probe_measured_per_sequence"][here])
        np.testing.assert_array_equal(points[:, 1], metrics[f"probe_{name}_per_sequence"][here])
        ends = axes.lines[0].get_xydata()
        assert (ends[:, 0] == ends[:, 1]).all()  # the identity
    band = next(
        c for c in drawn["entropy_reward"].axes[0].collections if isinstance(c, matplotlib.collections.PolyCollection)
    )
    heights = np.ptp(band.get_paths()[0].vertices[:, 1])
    assert heights >= np.ptp(metrics["entropy_per_token"]) + 2 * 1.96 * 0.03 - 1e-9
    shares = np.stack([line.get_ydata() for line in drawn["kernel"].axes[1].lines])
    np.testing.assert_allclose(shares.sum(0), 1)
    summed = {line.get_label(): line.get_ydata()[-1] for line in drawn["split"].axes[1].lines}
    assert summed["momentum"] == pytest.approx(np.nansum(metrics["probe_momentum_per_sequence"]))
    assert summed["measured, whole step"] == pytest.approx(np.nansum(metrics["probe_measured_per_sequence"]))
    lines = {line.get_label(): line.get_ydata() for line in drawn["attribution"].axes[0].lines}
    table = pq.read_table(run / "attribution" / f"step_{EVERY:06d}.parquet").to_pandas()
    assert lines["sum"][0] == pytest.approx(table.change.sum())
    rare = table.logp < -table.entropy
    inside = rare & (table.advantage > 0)
    assert lines["A > 0, rare"][0] == pytest.approx(table.change[inside].sum())
    segments = drawn["attribution"].axes[0].collections[0].get_segments()  # the error bars of this quadrant
    sums = (table.change * inside).groupby(table.prompt).sum()
    assert np.ptp(segments[0][:, 1]) == pytest.approx(2 * 1.96 * len(sums) ** 0.5 * sums.std())
    bars = [bar.get_width() for bar in drawn["attribution"].axes[1].patches]
    steps = len(lines["sum"])
    assert sum(bars) == pytest.approx(lines["sum"].sum() / steps)
    every = pa.concat_tables(map(pq.read_table, (run / "attribution").glob("*"))).to_pandas()
    unlikely = (every.logp < np.log(0.01)) & (every.advantage > 0)
    assert 0 < unlikely.sum() < len(every) and bars[0] == pytest.approx(every.change[unlikely].sum() / steps)


def test_the_fit_is_that_of_the_made_up_curve(drawn):
    title = drawn["reward_fit"].axes[0].get_title(loc="left")
    a = float(title.split("a = ")[1].split(" ")[0])
    assert a == pytest.approx(0.15, abs=0.02)


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(SourceError, match=r"metrics.csv: No such file.*give the folder of a run"):
        figures(tmp_path)
    (tmp_path / "metrics.csv").write_text("step,reward\n")
    with pytest.raises(SourceError, match="no row"):
        figures(tmp_path)
    (tmp_path / "metrics.csv").write_text("step,reward,note\n1,0.5,word\n2,,\n")
    assert [file.name for file in figures(tmp_path)] == ["entropy_reward.png", "entropy_reward.svg"]
    (tmp_path / "responses.parquet").write_text("nonsense")
    with pytest.raises(SourceError, match=r"responses.parquet"):
        figures(tmp_path)


# --- The curve against numpy's least squares, statsmodels' errors, and known curves with noise ---


def run_rewardfit(seed, n=40, correlated=0.0):
    rng = np.random.default_rng(seed)
    H = np.linspace(1.4, 0.2, n) + 0.05 * rng.normal(size=n)
    noise = rng.normal(size=n)
    for k in range(1, n):
        noise[k] = correlated * noise[k - 1] + (1 - correlated**2) ** 0.5 * noise[k]
    return H, -0.2 * np.exp(H) + 0.9 + 0.03 * noise


def test_parameters_and_errors_are_those_of_least_squares():
    H, R = run_rewardfit(0)
    fit = fit_reward(H, R)
    X = np.stack([-np.exp(H), np.ones_like(H)], axis=1)
    (a, b), *_ = np.linalg.lstsq(X, R)
    assert (fit.a.value, fit.b.value) == pytest.approx((a, b), rel=1e-10)
    oracle = sm.OLS(R, X).fit()
    np.testing.assert_allclose(fit.covariance, oracle.cov_params(), rtol=1e-9)
    assert fit.r_squared == pytest.approx(oracle.rsquared)
    assert fit.residual_sd == pytest.approx(oracle.mse_resid**0.5)
    at = oracle.get_prediction(np.array([[-np.exp(0.5), 1.0], [-1.0, 1.0]]))
    for estimate, mean, se in zip((fit.predict(0.5), fit.ceiling), at.predicted_mean, at.se_mean, strict=True):
        assert estimate == pytest.approx((mean, se), rel=1e-9)
    assert fit.ceiling.value == pytest.approx(fit.b.value - fit.a.value)
    assert (fit.lowest, fit.highest, fit.points) == (H.min(), H.max(), 40)


def test_intervals_cover_the_known_ceiling():
    fits = [fit_reward(*run_rewardfit(seed)) for seed in range(300)]
    inside = sum(low < 0.7 < high for low, high in (fit.ceiling.interval(0.95) for fit in fits))
    assert 270 <= inside <= 297  # normal intervals of 38 degrees of freedom: 94.3% expected


def test_blocks_are_wider_where_steps_are_correlated_and_right():
    runs = [run_rewardfit(seed, n=120, correlated=0.8) for seed in range(60)]
    independent = [fit_reward(*columns) for columns in runs]
    blocks = [fit_reward(*columns, block=15, replicates=200) for columns in runs]
    spread = np.std([fit.ceiling.value for fit in independent])
    assert np.mean([fit.ceiling.se for fit in independent]) < 0.5 * spread
    assert 0.65 * spread < np.mean([fit.ceiling.se for fit in blocks]) < 1.3 * spread
    single = fit_reward(*run_rewardfit(1), block=1, replicates=4000)
    assert single.ceiling.se == pytest.approx(fit_reward(*run_rewardfit(1)).ceiling.se, rel=0.25)


def test_what_cannot_be_fitted_is_refused():
    H, R = run_rewardfit(0)
    for entropy, reward, options, said in (
        (H[:2], R[:2], {}, "2 steps"),
        (H, R[:-1], {}, "shape"),
        (np.ones(5), R[:5], {}, "every entropy is 1"),
        (np.append(H[:-1], np.nan), R, {}, "entropy of step 39 is not finite"),
        (H * 1000, R, {}, "use the entropy per token"),
        (H, R, {"block": 21}, "blocks of 21 steps: use 1 to 20"),
    ):
        with pytest.raises(UsageError, match=said):
            fit_reward(entropy, reward, **options)
