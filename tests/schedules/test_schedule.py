"""Schedules: against brute force over the sorted corpus, sums, mirrors, periods, controls, groups, and bad options."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxentropy.config.yaml import to_plain
from fluxentropy.errors import FluxentropyError, SourceError, UsageError
from fluxentropy.schedules.mixtures import GridStages, Periodic, Reweighting, Stages, Tilt
from fluxentropy.schedules.options import ScheduleConfig
from fluxentropy.schedules.orders import Increasing, Permutation
from fluxentropy.schedules.schedule import (
    SCHEDULES,
    Adaptive,
    balanced_order,
    group_bins,
    make,
    make_schedule,
    relabelled,
)

SIZES = np.array([50, 20, 0, 80, 50])
PERMUTATIONS = ("random", "increasing", "decreasing", "folded", "zigzag", "stair", "saw", "segment", "curriculum")
MIXTURES = ("pool", "window", "periodic", "stages", "warmup", "anneal", "tilt")
DESCENDING = ("pool", "window", "periodic", "stages", "warmup")


def made(name: str, sizes: np.ndarray = SIZES, **parameters: Any) -> Any:
    return make_schedule(ScheduleConfig(name=name, **parameters), len(sizes))


def mean_bin(weights: np.ndarray) -> np.ndarray:
    return weights @ np.arange(weights.shape[1])


def share_of_bins(low: float, high: float, sizes: np.ndarray, fine: int = 2000) -> np.ndarray:
    """By brute force: how the points of [low, high] fall into the bins of the sorted corpus."""
    points = (np.arange(fine) + 0.5) / fine * (high - low) + low
    bins = np.searchsorted(np.cumsum(sizes) / sizes.sum(), points, side="right")
    return np.bincount(bins, minlength=len(sizes)) / fine


@st.composite
def configurations(draw: st.DrawFn) -> ScheduleConfig:
    """Any schedule but adaptive, grid and custom, with any of its parameters."""
    unit = st.floats(0, 1)
    positive = st.floats(0.01, 1)
    parameters: dict[str, dict[str, st.SearchStrategy[Any]]] = {
        "pool": {
            "pacing": st.sampled_from(["polynomial", "exponential", "logarithmic", "step", "competence", "root"]),
            "start": unit,
            "full": positive,
        },
        "window": {"width": unit},
        "periodic": {"width": unit, "wave": st.sampled_from(["cosine", "triangle", "sawtooth"])},
        "stages": {
            "stages": st.integers(1, 2),
            "method": st.sampled_from(["sequential", "cumulative", "hybrid"]),
            "share": unit,
        },
        "warmup": {"until": positive, "width": unit},
        "anneal": {"since": unit, "width": unit, "target": st.sampled_from(["low", "high"])},
        "stair": {"sections": st.integers(1, 5), "transition": unit, "descending": st.booleans()},
        "saw": {"sections": st.integers(1, 5), "transition": unit, "descending": st.booleans()},
        "segment": {
            "front": st.floats(0, 0.5),
            "back": st.floats(0, 0.5),
            "begin": st.sampled_from(["low", "high"]),
            "target": st.sampled_from(["low", "high"]),
        },
        "curriculum": {"until": unit, "begin": st.sampled_from(["all", "low", "high"]), "descending": st.booleans()},
        "tilt": {"betas": st.tuples(st.floats(-300, 300), st.floats(-300, 300))},
    }
    name = draw(st.sampled_from([*PERMUTATIONS, *MIXTURES]))
    given = {key: draw(st.none() | values) for key, values in parameters.get(name, {}).items()}
    if name in ("folded", "zigzag", "periodic", "stair", "saw"):
        given["cycles"] = draw(st.integers(1, 9))
    if name == "stages":
        given["stages"] = given["stages"] or 2  # the lowest and the highest bin have blocks, others may have none
    if name in DESCENDING:
        given["descending"] = draw(st.booleans())
    return ScheduleConfig(name=name, shuffle_labels=draw(st.none() | st.integers(0, 9)), **given)


@settings(max_examples=150, deadline=None)
@given(configurations(), st.lists(st.integers(0, 1000), min_size=2, max_size=9).filter(lambda s: s[0] and s[-1]))
def test_every_mixture_is_a_distribution(config: ScheduleConfig, sizes: list[int]) -> None:
    schedule = make_schedule(config, len(sizes))
    u = np.linspace(0, 1, 41)
    found = schedule.mixture(u, np.array(sizes))  # type: ignore[union-attr]
    assert found.shape == (41, len(sizes)) and (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert (found[:, np.array(sizes) == 0] == 0).all()


# --- permutations -----------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(PERMUTATIONS),
    st.lists(st.integers(0, 12), min_size=2, max_size=6).filter(any),
    st.integers(1, 5),
    st.none() | st.integers(0, 5),
)
def test_permutations_use_up_every_bin(name: str, sizes: list[int], cycles: int, seed: int | None) -> None:
    given = {"cycles": cycles} if name in ("folded", "zigzag", "stair", "saw") else {}
    schedule = made(name, np.array(sizes), shuffle_labels=seed, **given)
    x = np.arange(sum(sizes) + 1)
    found, whole = schedule.targets(x, np.array(sizes))
    assert schedule.kind == "permutation"
    np.testing.assert_array_equal(found.sum(axis=1), x * whole)
    np.testing.assert_array_equal(found[-1], np.array(sizes) * whole)
    assert (found[0] == 0).all() and (np.diff(found, axis=0) >= 0).all()


@pytest.mark.parametrize(
    ("name", "cycles", "expected"),
    [
        ("increasing", None, "000000112222"),
        ("decreasing", None, "222211000000"),
        ("folded", 2, "000122000122"),
        ("zigzag", 2, "000122221000"),
    ],
)
def test_orders(name: str, cycles: int | None, expected: str) -> None:
    sizes = np.array([6, 2, 4])
    found, whole = made(name, sizes, cycles=cycles).targets(np.arange(13), sizes)
    assert "".join(map(str, (np.diff(found, axis=0) / whole).argmax(axis=1))) == expected


def test_random_is_in_proportion() -> None:
    found, whole = made("random").targets(np.arange(201), SIZES)
    np.testing.assert_allclose(found / whole, np.arange(201)[:, None] * SIZES / 200)


def test_increasing_rises_and_decreasing_is_its_mirror() -> None:
    u = np.linspace(0, 1, 200, endpoint=False)
    up = made("increasing").mixture(u, SIZES)
    down = made("decreasing").mixture(u, SIZES[::-1])[:, ::-1]
    assert (np.diff(mean_bin(up)) >= 0).all() and mean_bin(up)[0] == 0 and mean_bin(up)[-1] == 4
    np.testing.assert_array_equal(up, down)


# --- reweightings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DESCENDING)
def test_descending_is_the_mirror(name: str) -> None:
    u = np.linspace(0, 1, 50)
    sizes = np.array([50, 20, 30, 80, 50])
    up = made(name).mixture(u, sizes)
    np.testing.assert_allclose(made(name, descending=True).mixture(u, sizes[::-1])[:, ::-1], up, atol=1e-12)


@pytest.mark.parametrize("u", [0.0, 0.1, 0.37, 0.6, 0.8, 1.0])
def test_pool_against_brute_force(u: float) -> None:
    found = made("pool", start=0.2, full=0.8).mixture(np.array([u]), SIZES)[0]
    np.testing.assert_allclose(found, share_of_bins(0, min(0.2 + u, 1.0), SIZES), atol=2e-3)


@pytest.mark.parametrize("u", [0.0, 0.1, 0.37, 0.6, 0.8, 1.0])
@pytest.mark.parametrize("width", [0.1, 0.3, 1.0])
def test_window_against_brute_force(u: float, width: float) -> None:
    found = made("window", width=width).mixture(np.array([u]), SIZES)[0]
    np.testing.assert_allclose(found, share_of_bins(u * (1 - width), u * (1 - width) + width, SIZES), atol=2e-3)


def test_windows_move_up_and_pools_grow() -> None:
    u = np.linspace(0, 1, 100)
    for name in ("pool", "window", "tilt"):
        assert (np.diff(mean_bin(made(name).mixture(u, SIZES))) >= -1e-12).all()
    np.testing.assert_allclose(made("pool").mixture(np.array([0.9]), SIZES)[0], SIZES / 200)


@pytest.mark.parametrize("wave", ["cosine", "triangle", "sawtooth"])
@pytest.mark.parametrize("cycles", [1, 4])
def test_periodic_has_its_period(wave: str, cycles: int) -> None:
    schedule = made("periodic", wave=wave, cycles=cycles)
    u = np.linspace(0, 1 / cycles, 60, endpoint=False)
    once = schedule.mixture(u, SIZES)
    for cycle in range(cycles):
        np.testing.assert_allclose(schedule.mixture(u + cycle / cycles, SIZES), once, atol=1e-9)
    assert once[0, 0] == 1 and mean_bin(once).max() > 3.5  # from the lowest quarter to the highest


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("sequential", [[5 / 7, 2 / 7, 0, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]),
        ("cumulative", [[5 / 7, 2 / 7, 0, 0, 0], [1 / 3, 2 / 15, 0, 8 / 15, 0], [1 / 4, 1 / 10, 0, 2 / 5, 1 / 4]]),
        ("hybrid", [[5 / 7, 2 / 7, 0, 0, 0], [1 / 7, 2 / 35, 0, 4 / 5, 0], [1 / 15, 2 / 75, 0, 8 / 75, 4 / 5]]),
    ],
)
def test_stages(method: str, expected: list[list[float]]) -> None:
    schedule = made("stages", stages=3, method=method, ends=(0.2, 0.5), share=0.8 if method == "hybrid" else None)
    found = schedule.mixture(np.array([0.0, 0.19, 0.2, 0.49, 0.5, 1.0]), SIZES)
    np.testing.assert_allclose(found, np.repeat(expected, 2, axis=0), atol=1e-12)


@pytest.mark.parametrize(("bins", "stages"), [(2, 2), (4, 4), (9, 4)])
def test_stages_by_default(bins: int, stages: int) -> None:
    found = made("stages", np.ones(bins)).mixture(np.linspace(0, 1, 401), np.ones(bins))
    assert len(np.unique(found, axis=0)) == stages


@pytest.mark.parametrize(
    ("axis", "stages"),
    [("first", [[0, 1, 2], [3, 4, 5]]), ("second", [[0, 3], [1, 4], [2, 5]]), ("diagonal", [[0], [1, 3], [2, 4], [5]])],
)
def test_grid(axis: str, stages: list[list[int]]) -> None:
    config = ScheduleConfig(name="grid", axis=axis, method="sequential")
    schedule = make_schedule(config, 6, grid=(2, 3))
    u = (np.arange(len(stages)) + 0.5) / len(stages)
    found = schedule.mixture(u, np.full(6, 10))  # type: ignore[union-attr]
    assert [np.flatnonzero(row).tolist() for row in found] == stages


def test_warm_up_then_random() -> None:
    schedule = made("warmup", until=0.4, width=0.25)
    window = made("window", width=0.25)
    u = np.array([0.0, 0.1, 0.39])
    np.testing.assert_allclose(schedule.mixture(u, SIZES), window.mixture(u / 0.4, SIZES))
    np.testing.assert_allclose(schedule.mixture(np.array([0.4, 1.0]), SIZES), [SIZES / 200] * 2)


@pytest.mark.parametrize(("target", "end"), [("low", [1, 0, 0, 0, 0]), ("high", [0, 0, 0, 0, 1])])
def test_anneal(target: str, end: list[float]) -> None:
    found = made("anneal", since=0.8, target=target).mixture(np.array([0.0, 0.8, 0.9, 1.0]), SIZES)
    start = SIZES / 200
    np.testing.assert_allclose(found, [start, start, (start + end) / 2, end], atol=1e-12)


def test_tilt() -> None:
    found = made("tilt", betas=(-2.0, 2.0)).mixture(np.array([0.0, 0.5, 1.0]), SIZES)
    middles = np.array([-0.75, -0.4, -0.3, 0.1, 0.75])
    expected = np.array([SIZES * np.exp(beta * middles) for beta in (-2, 0, 2)])
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True))


# --- adaptive ---------------------------------------------------------------------------------------------------------


def test_adaptive_is_domain_reweighting() -> None:
    """The update of DoReMi, algorithm 1: alpha exp(eta excess), normalised, then smoothed with c."""
    schedule = made("adaptive", np.ones(3), rate=0.5, floor=0.2, reference=(2.0, 2.0, 2.0))
    alpha = np.array([0.2, 0.3, 0.5])
    raised = alpha * np.exp(0.5 * np.array([1.0, 0.0, 0.25]))
    np.testing.assert_allclose(
        schedule.update(alpha, [3.0, 1.0, 2.25]), 0.8 * raised / raised.sum() + 0.2 / 3, atol=1e-12
    )


def test_adaptive_state_is_its_history() -> None:
    schedule = Adaptive(floor=0.1)
    history = np.random.default_rng(0).uniform(1, 5, size=(6, 5))
    history[:, 2] = np.nan  # the bin without blocks has no loss
    weights = schedule.start(SIZES)
    for losses in history:
        weights = schedule.update(weights, losses)
        assert weights.sum() == pytest.approx(1) and weights[2] == 0 and (weights[[0, 1, 3, 4]] >= 0.1 / 4).all()
    np.testing.assert_array_equal(schedule.weights(SIZES, history), weights)


@pytest.mark.parametrize("losses", [[1.0], [1.0, float("nan"), 1.0], [1.0, 1.0, float("inf")]])
def test_adaptive_refuses_bad_losses(losses: list[float]) -> None:
    with pytest.raises(UsageError, match="give 3 finite numbers"):
        Adaptive().update(np.full(3, 1 / 3), losses)


# --- custom -----------------------------------------------------------------------------------------------------------


def ramps(u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """A schedule of the user's own, as `tests.schedules.test_schedule:ramps`."""
    return np.stack([1 - u, *([u] * (len(sizes) - 1))], axis=1)


def test_a_function() -> None:
    found = made("custom", np.ones(3), weights="tests.schedules.test_schedule:ramps").mixture(
        np.array([0.0, 0.5, 1.0]), np.ones(3)
    )
    np.testing.assert_allclose(found, [[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0, 0.5, 0.5]])


@pytest.mark.parametrize(
    ("interpolation", "expected"),
    [
        ("linear", [[1, 0], [0.75, 0.25], [0.5, 0.5], [0.5, 0.5]]),
        ("step", [[1, 0], [1, 0], [0.5, 0.5], [0.5, 0.5]]),
    ],
)
def test_a_table(tmp_path: Path, interpolation: str, expected: list[list[float]]) -> None:
    path = tmp_path / "weights.csv"
    path.write_text("u,w_0,w_1\n0.0,3,0\n0.8,2,2\n")
    schedule = made("custom", np.ones(2), weights=str(path), interpolation=interpolation)
    np.testing.assert_allclose(schedule.mixture(np.array([0.0, 0.4, 0.8, 1.0]), np.ones(2)), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: columns \(none\): write u,w_0"),
        ("u,w_1\n0,1\n", "line 1: columns u,w_1"),
        ("u,w_0,w_1\n", "no rows"),
        ("u,w_0,w_1\n0,1,x\n", "line 2: could not convert"),
        ("u,w_0,w_1\n0,1\n", "line 2: 2 cells, expected 3"),
        ("u,w_0,w_1\n0.5,1,1\n0.2,1,1\n", "u must rise"),
        ("u,w_0,w_1\n0,1,1\n2,1,1\n", "u must rise"),
        ("u,w_0,w_1\n0,1,inf\n", "not finite"),
        ("u,w_0,w_1\n0,0,0\n", "not all 0"),
        ("u,w_0,w_1\n0,-1,2\n", "must be finite, 0 or more"),
        ("u,w_0,w_1,w_2\n0,1,2,3\n", "weights of 3 bins, here are 2"),
    ],
)
def test_a_bad_table(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "weights.csv"
    path.write_text(text)
    with pytest.raises(FluxentropyError, match=rf"weights\.csv.*{message}"):
        made("custom", np.ones(2), weights=str(path)).mixture(np.array([0.5]), np.ones(2))


def test_a_missing_table_and_bad_functions(tmp_path: Path) -> None:
    u, sizes = np.array([0.5]), np.ones(2)
    with pytest.raises(SourceError, match=r"none\.csv: No such file"):
        made("custom", weights=str(tmp_path / "none.csv")).mixture(u, sizes)
    for name, message in [
        ("no_such_module:f", "no .csv file, and no module:function"),
        ("tests.schedules.test_schedule:no_such", "no .csv file, and no module:function"),
        ("weights", "no .csv file, and no module:function"),
        ("math:exp", "TypeError"),
        ("numpy:add", r"shape \(2,\), expected \(1, 2\)"),
    ]:
        with pytest.raises(UsageError, match=f"schedule.weights {name}.*{message}"):
            made("custom", sizes, weights=name).mixture(u, sizes)


# --- controls and groups ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PERMUTATIONS[1:], *MIXTURES])
def test_shuffled_labels_keep_the_pacing(name: str) -> None:
    """The bins' weights are those of the schedule, for other bins; and the order is never the true one."""
    sizes = np.array([30, 30, 30])
    u = np.linspace(0, 1, 30, endpoint=False)
    base = made(name, sizes, stages=3 if name == "stages" else None).mixture(u, sizes)
    orders = [order for order in itertools.permutations(range(3)) if order != (0, 1, 2)]
    seen = set()
    for seed in range(20):
        schedule = made(name, sizes, shuffle_labels=seed, stages=3 if name == "stages" else None)
        found = schedule.mixture(u, sizes)
        matching = [order for order in orders if np.allclose(found[:, order], base)]
        assert matching and schedule.kind == SCHEDULES[name].kind
        seen.add(matching[0])
    assert len(seen) > 2


def test_one_bin_cannot_be_shuffled() -> None:
    with pytest.raises(UsageError, match="1 bin has one order"):
        made("window", np.ones(1), shuffle_labels=0)
    with pytest.raises(UsageError, match="balanced_labels: 1 bin has one order"):
        made("window", np.ones(1), balanced_labels=0)


@pytest.mark.parametrize("bins", [3, 4, 5, 8, 16])
def test_balanced_orders_are_latin_squares(bins: int) -> None:
    for square in range(3):
        rows = np.array([balanced_order(bins, square * bins + row) for row in range(bins)])
        for lines in (rows, rows.T):  # each bin once in each order, and once at each place
            assert (np.sort(lines, axis=1) == np.arange(bins)).all()
        assert [*range(bins)] not in rows.tolist()
        lower = np.cumsum(rows[:, 0] < (bins + 1) // 2)
        assert np.abs(lower - np.arange(1, bins + 1) / 2).max() <= 0.5  # the first five of eight are 3 and 2
        follows = {(a, b) for row in rows.tolist() for a, b in itertools.pairwise(row)}
        assert bins % 2 or len(follows) == bins * (bins - 1)
    assert bins == 3 or balanced_order(bins, 0) != balanced_order(bins, bins)


def test_balanced_labels_relabel_as_their_order_says() -> None:
    sizes = np.array([10, 20, 30, 40])
    schedule, base = made("increasing", sizes, balanced_labels=2), made("increasing", sizes)
    order = list(balanced_order(4, 2))
    u = np.linspace(0, 1, 20, endpoint=False)
    np.testing.assert_allclose(schedule.mixture(u, sizes)[:, order], base.mixture(u, sizes[order]))


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        (None, [[0], [1], [2], [3], [4]]),
        (2, [[0, 1, 2], [3, 4]]),
        ([2], [[0, 1, 2], [3, 4]]),
        (5, [[0], [1], [2], [3], [4]]),
        (["0-2", "3+4"], [[0, 1, 2], [3, 4]]),
        ([4, "0 - 1+3", 2], [[4], [0, 1, 3], [2]]),
        ([[0, 1], [2, 3, 4]], [[0, 1], [2, 3, 4]]),
    ],
)
def test_groups(groups: Any, expected: list[list[int]]) -> None:
    assert group_bins(groups, 5) == expected


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (0, "use 1 to 5"),
        (6, "use 1 to 5"),
        (["0-1", "3-4"], "bin 2 is in no group"),
        (["0-2", "2-4"], "bin 2 is in two groups"),
        (["0-5", "6"], "only bins 0 to 4"),
        (["a", "b"], "write a bin"),
    ],
)
def test_bad_groups(groups: Any, message: str) -> None:
    with pytest.raises(UsageError, match=rf"schedule\.groups.*{message}"):
        group_bins(groups, 5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "increasng"}, "name increasng: did you mean increasing"),
        (
            {"name": "increasing", "cycles": 2},
            "cycles: increasing takes groups, shuffle_labels, balanced_labels, static, stratify, keep, jitter",
        ),
        ({"name": "window", "pacing": "step"}, "pacing: window takes width, descending, groups"),
        ({"name": "pool", "pacing": "exponent"}, "pacing exponent: did you mean exponential"),
        ({"name": "pool", "pacing": "step", "power": 2.0}, "power: the pacing step takes steps"),
        ({"name": "pool", "pacing": "exponential", "steps": 2}, "steps: the pacing exponential takes neither"),
        ({"name": "pool", "full": 0.0}, "full 0: use above 0 to 1"),
        ({"name": "pool", "power": 0.0}, "power 0: use above 0"),
        ({"name": "pool", "start": 1.5}, "start 1.5: use 0 to 1"),
        ({"name": "window", "width": -0.1}, "width -0.1: use 0 to 1"),
        ({"name": "periodic", "wave": "sine"}, "wave sine: did you mean cosine"),
        ({"name": "periodic", "cycles": 0}, "cycles 0: use 1"),
        ({"name": "zigzag", "cycles": 0}, "cycles 0: use 1"),
        ({"name": "stair", "sections": 0}, "sections 0: use 1 or more"),
        ({"name": "saw", "transition": 1.5}, "transition 1.5: use a number from 0 to 1"),
        ({"name": "segment", "front": 0.7, "back": 0.4}, "front 0.7 and schedule.back 0.4 are more than the corpus"),
        ({"name": "segment", "begin": "all"}, "begin all: use low or high"),
        ({"name": "curriculum", "begin": "middle"}, "begin middle: use all, low or high"),
        ({"name": "curriculum", "until": -1.0}, "until -1.*: use a number from 0 to 1"),
        ({"name": "stages", "method": "both"}, "method both: use sequential"),
        ({"name": "stages", "ends": (0.5, 0.4)}, "ends .*ascending"),
        ({"name": "anneal", "target": "middle"}, "target middle: use low or high"),
        ({"name": "tilt", "betas": (1.0,)}, "betas .*give two"),
        ({"name": "grid", "axis": "third"}, "axis third: use first"),
        ({"name": "grid", "groups": 2}, "groups with name: grid"),
        ({"name": "custom"}, "weights is missing"),
        ({"name": "custom", "weights": "a.csv", "interpolation": "cubic"}, "interpolation cubic: use linear"),
        ({"name": "adaptive", "floor": 2.0}, "floor 2: use 0 to 1"),
        ({"name": "adaptive", "static": True}, "static: the mixture of adaptive"),
        ({"name": "adaptive", "shuffle_labels": 1}, "shuffle_labels: adaptive"),
    ],
)
def test_bad_options(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=rf"schedule\.{message}"):
        make_schedule(ScheduleConfig(**given), 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "stages", "stages": 9}, "only 5 bins"),
        ({"name": "stages", "ends": (0.5,)}, "4 stages need 3"),
        ({"name": "stages", "stages": 5}, "stage 3 of 5 has no blocks"),
        ({"name": "grid"}, "the bins are no grid"),
    ],
)
def test_schedules_that_do_not_fit_the_bins(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        made(**given).mixture(np.array([0.5]), SIZES)


def test_the_identity_of_earlier_runs_stays() -> None:
    """A run that uses nothing new is the run that it was."""
    earlier = (
        "name descending pacing start full power steps width wave cycles stages method share ends axis until since "
        "target betas every rate floor reference weights interpolation groups shuffle_labels balanced_labels static"
    )
    assert set(ScheduleConfig.identity(to_plain(ScheduleConfig()))) == set(earlier.split())
    assert "keep" in ScheduleConfig.identity(to_plain(ScheduleConfig(keep="lowest 0.5")))


def test_every_schedule_says_what_it_is() -> None:
    for name, cls in SCHEDULES.items():
        assert issubclass(cls, Permutation | Reweighting | Adaptive)
        assert (cls.kind == "permutation") == (name in PERMUTATIONS)
        assert len(cls.__doc__ or "") > 60


@pytest.mark.parametrize(
    ("name", "options", "same"),
    [
        ("periodic", {"cycles": 2, "wave": "triangle"}, Periodic(cycles=2, wave="triangle")),
        ("tilt", {"betas": (-1.0, 2)}, Tilt(betas=(-1.0, 2))),
        ("stages", {"ends": [0.3], "stages": 2}, Stages(ends=(0.3,), stages=2)),
        ("grid", {"grid": (2, 3)}, GridStages(grid=(2, 3))),
        ("increasing", {"bins": 2, "shuffle_labels": 1}, relabelled(Increasing(), (1, 0))),
    ],
)
def test_schedules_by_name(name: str, options: dict[str, Any], same: Any) -> None:
    assert make(name, **options) == same


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("windw", {}, "schedule.name windw: did you mean window"),
        ("window", {"widht": 0.1}, "unknown key widht: did you mean width"),
        ("window", {"width": "wide"}, "width: 'wide' is not a number or null"),
        ("window", {"width": 2.0}, "schedule.width 2: use 0 to 1"),
        ("window", {"cycles": 2}, "schedule.cycles: window takes width, descending"),
        ("window", {"groups": 2}, "schedule.groups: give it to Sampler"),
        ("zigzag", {"jitter": 0.1}, "schedule.jitter: give it to Sampler"),
        ("window", {"balanced_labels": 2}, "say for how many bins"),
    ],
)
def test_schedules_that_are_not_there(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make(name, **options)
