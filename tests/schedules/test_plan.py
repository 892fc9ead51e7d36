"""Plans: what the table of counts must be for each kind of schedule, budget and policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxentropy.errors import UsageError
from fluxentropy.schedules.options import ScheduleConfig
from fluxentropy.schedules.plan import SCALE, Plan, capped_targets, counts_of, increments, largest_remainder, make_plan
from fluxentropy.schedules.schedule import Adaptive, make_schedule

SIZES = np.array([40, 25, 60, 75])
PERMUTATIONS = ("random", "increasing", "decreasing", "folded", "zigzag", "stair", "saw", "segment", "curriculum")


def planned(name: str, *, sizes: Any = SIZES, batch_size: int = 8, parameters: Any = None, **options: Any) -> Plan:
    schedule = make_schedule(ScheduleConfig(name=name, **(parameters or {})), len(sizes))
    return make_plan(schedule, sizes, batch_size=batch_size, **options)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(PERMUTATIONS),
    st.lists(st.integers(0, 40), min_size=1, max_size=7).filter(any),
    st.integers(1, 17),
    st.integers(1, 3),
    st.none() | st.floats(0.01, 0.99) | st.just(1),
)
def test_a_permutation_draws_each_block_once_an_epoch(
    name: str, sizes: list[int], size: int, epochs: int, jitter: float | None
) -> None:
    total = sum(sizes)
    plan = planned(name, sizes=sizes, batch_size=size, blocks=epochs * total, jitter=jitter, seed=total)
    drawn = np.append(0, np.cumsum(plan.batches))
    np.testing.assert_array_equal(plan.counts.sum(axis=1), drawn)
    assert (np.diff(plan.counts, axis=0) >= 0).all() and (plan.batches[:-1] == size).all()
    np.testing.assert_array_equal(plan.counts[-1], epochs * np.array(sizes))
    whole = drawn % total == 0
    np.testing.assert_array_equal(plan.counts[whole], np.outer(drawn[whole] // total, sizes))


def test_a_part_of_an_epoch_has_every_bins_share() -> None:
    plan = planned("increasing", blocks=100)
    assert plan.counts[-1].tolist() == [20, 13, 30, 37] and plan.steps == 13 and plan.batches[-1] == 4
    assert (plan.counts <= SIZES).all()


def test_epochs_of_a_permutation_are_whole() -> None:
    with pytest.raises(UsageError, match="needs whole epochs of 200 blocks"):
        planned("increasing", blocks=300)


@pytest.mark.parametrize("name", PERMUTATIONS)
def test_what_is_drawn_is_the_mixture(name: str) -> None:
    """In each tenth of an epoch the sum of the mixture over its blocks."""
    plan = planned(name, batch_size=5)
    u = (np.arange(200) + 0.5) / 200
    wanted = plan.schedule.mixture(u, SIZES).reshape(10, 20, 4).sum(axis=1)  # type: ignore[union-attr]
    assert np.abs(np.diff(plan.counts[plan.cuts(10)], axis=0) - wanted).max() < 2


def test_fingerprints_of_earlier_versions() -> None:
    """Runs that know none of the later options go on."""
    sizes = [40, 0, 25, 60, 75]
    found = {name: planned(name, sizes=sizes).fingerprint[:16] for name in ("zigzag", "periodic", "adaptive")}
    assert found == {"zigzag": "ed81154249a27485", "periodic": "18cf904184b10d00", "adaptive": "3524cf5fe7196c76"}


# --- jitter -----------------------------------------------------------------------------------------------------------


def places(counts: np.ndarray, k: int) -> np.ndarray:
    """At which step each draw of bin k is, where every step draws one block."""
    return np.flatnonzero(np.diff(counts[:, k]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=5).filter(any),
    st.integers(1, 40),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_no_block_moves_further_than_the_window(sizes: list[int], window: int, epochs: int, seed: int) -> None:
    total = sum(sizes)
    options: dict[str, Any] = {"sizes": sizes, "batch_size": 1, "blocks": epochs * total}
    jitter = min(window, total)
    plain, plan = planned("increasing", **options), planned("increasing", **options, jitter=jitter, seed=seed)
    opens = [epoch * total + place for epoch in range(epochs) for place in range(0, total, jitter)]
    np.testing.assert_array_equal(plan.counts[opens], plain.counts[opens])
    for k in range(len(sizes)):
        before, after = places(plain.counts, k), places(plan.counts, k)
        assert len(before) == len(after) == epochs * sizes[k]
        assert (np.abs(after - before) < jitter).all()


def test_jitter_shuffles_evenly_and_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"sizes": [2000, 2000], "batch_size": 1, "jitter": 0.5}
    plan = planned("increasing", **options)
    assert plan.counts[2000].tolist() == [2000, 0]  # windows are halves, of one bin each
    plan = planned("zigzag", **options, seed=1)
    half = plan.counts[1000:2001:250, 0] / np.arange(1000, 2001, 250)
    np.testing.assert_allclose(half, 0.5, atol=0.06)
    other = planned("zigzag", **options, seed=2)
    assert other.fingerprint != plan.fingerprint != planned("zigzag", sizes=[2000, 2000], batch_size=1).fingerprint
    monkeypatch.setattr("fluxentropy.schedules.plan.PIECE", 100)  # however it is cut to be made
    fine = planned("zigzag", **options | {"jitter": 30}, seed=1)
    monkeypatch.undo()
    assert fine.fingerprint == planned("zigzag", **options | {"jitter": 30}, seed=1).fingerprint


def test_batches_of_a_jittered_plan_are_parts_of_its_order() -> None:
    """The same windows with other batches, where no window cuts a batch."""
    one, eight = (planned("decreasing", batch_size=size, jitter=64, seed=3) for size in (1, 8))
    assert one.counts[::8].shape == eight.counts.shape
    assert np.abs(one.counts[::8] - eight.counts).max() < 9  # orders inside the windows differ, what they hold does not
    np.testing.assert_array_equal(one.counts[::64], eight.counts[::8])
    static = planned("decreasing", jitter=64, static=True)
    assert static.fingerprint == planned("decreasing", static=True).fingerprint


@pytest.mark.parametrize(
    ("name", "jitter", "message"),
    [
        ("window", 0.1, "jitter 0.1: it shuffles the order of schedules that draw each block once an epoch"),
        ("adaptive", 10, "jitter 10: it shuffles the order"),
        (
            "random",
            0,
            "jitter 0: use a share of an epoch, above 0 and below 1, or a whole number of blocks up to the 200",
        ),
        ("random", -5, "jitter -5: use a share"),
        ("random", 1.5, "jitter 1.5: use a share"),
        ("random", 201, "jitter 201: use a share"),
        ("random", float("nan"), "jitter nan: use a share"),
    ],
)
def test_what_jitter_cannot_be(name: str, jitter: float, message: str) -> None:
    with pytest.raises(UsageError, match=rf"schedule\.{message}"):
        planned(name, jitter=jitter)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["pool", "window", "periodic", "stages", "warmup", "anneal", "tilt"]),
    st.integers(1, 900),
    st.integers(1, 40),
)
def test_a_reweighting_follows_its_mixture(name: str, blocks: int, size: int) -> None:
    """Realised counts against the sum of the mixtures in the middle of each step, in floating point."""
    plan = planned(name, batch_size=size, blocks=blocks)
    ends = np.append(0, np.cumsum(plan.batches))
    weights = plan.schedule.mixture((ends[1:] + ends[:-1]) / 2 / blocks, SIZES)  # type: ignore[union-attr]
    targets = np.cumsum(weights * plan.batches[:, None], axis=0)
    assert (np.abs(plan.counts[1:] - targets) < 1 + 1e-6).all()
    assert plan.blocks == blocks and plan.marginal.sum() == pytest.approx(1)


def test_pieces_are_what_was_drawn() -> None:
    plan = planned("window", blocks=200)
    np.testing.assert_allclose(plan.realised(1)[0], plan.marginal)
    np.testing.assert_allclose(plan.realised(plan.steps), np.diff(plan.counts, axis=0) / 8)
    assert np.isnan(plan.realised(4 * plan.steps)).any()
    np.testing.assert_allclose(plan.epochs, plan.counts[-1] / SIZES)


# --- policies ---------------------------------------------------------------------------------------------------------

FEW = {"weights": "tests.schedules.test_plan:only_first"}


def only_first(u: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.tile([3.0, 1.0, 0.0, 0.0], (len(u), 1))


def test_reshuffle_draws_again() -> None:
    plan = planned("custom", parameters=FEW, blocks=160)
    assert plan.counts[-1].tolist() == [120, 40, 0, 0] and plan.epochs[0] == 3


def test_stop_ends_before_a_block_is_drawn_twice() -> None:
    plan = planned("custom", parameters=FEW, blocks=160, exhausted="stop")
    assert plan.counts[-1].tolist() == [36, 12, 0, 0] and plan.steps == plan.known == 6  # 42 would be next
    longer = planned("custom", parameters=FEW, blocks=160)
    np.testing.assert_array_equal(plan.counts, longer.counts[:7])
    assert planned("increasing", blocks=400, exhausted="stop").blocks == 400  # whole epochs of a permutation go on
    with pytest.raises(UsageError, match="the first batch already needs more"):
        planned("custom", parameters=FEW, batch_size=80, blocks=160, exhausted="stop")


def test_redistribute_uses_up_the_others() -> None:
    plan = planned("custom", parameters=FEW, blocks=200, exhausted="redistribute")
    np.testing.assert_array_equal(plan.counts[-1], SIZES)
    assert (plan.counts <= SIZES).all() and plan.counts[6].tolist() == [36, 12, 0, 0]
    first_only = plan.counts[(plan.counts[:, 1] < 25)]
    assert (first_only[:, 2:] == 0).all()  # bins without weight come when no other has blocks
    with pytest.raises(UsageError, match="201 blocks with --exhausted redistribute: the bins hold 200"):
        planned("custom", parameters=FEW, blocks=201, exhausted="redistribute")


# --- controls ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["increasing", "window", "anneal", "zigzag"])
def test_static_has_the_same_marginal_all_the_time(name: str) -> None:
    base, plan = (planned(name, blocks=200, static=static) for static in (False, True))
    np.testing.assert_array_equal(plan.counts[-1], base.counts[-1])
    targets = np.outer(np.arange(len(plan.counts)), base.counts[-1]) / base.steps
    assert (np.abs(plan.counts - targets) < 1).all()
    assert np.abs(base.counts - targets).max() > 5


def test_static_after_a_stop() -> None:
    base, plan = (
        planned("custom", parameters=FEW, blocks=160, exhausted="stop", static=static) for static in (False, True)
    )
    assert plan.steps == base.steps == 6 and plan.counts[-1].tolist() == base.counts[-1].tolist()


# --- adaptive ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exhausted", ["reshuffle", "redistribute"])
def test_adaptive_is_planned_piece_by_piece(exhausted: Any) -> None:
    rng = np.random.default_rng(0)
    plan = make_plan(Adaptive(every=4, floor=0.1), SIZES, blocks=200, batch_size=7, exhausted=exhausted)
    assert (plan.known, plan.steps) == (4, 29)
    ideal = np.zeros(4)
    while plan.known < plan.steps:
        before = plan
        plan = plan.after(rng.uniform(0, 3, 4).tolist())
        np.testing.assert_array_equal(plan.counts[: before.known + 1], before.counts)
        assert plan.known == min(before.known + 4, 29)
    assert (np.diff(plan.counts, axis=0) >= 0).all()
    np.testing.assert_array_equal(plan.counts.sum(axis=1), np.append(0, np.cumsum(plan.batches)))
    if exhausted == "redistribute":
        np.testing.assert_array_equal(plan.counts[-1], SIZES)
    else:
        for number, start in enumerate(range(0, plan.steps, 4)):
            blocks = plan.batches[start : start + 4].sum()
            ideal += blocks * plan.schedule.weights(SIZES, plan.history[:number])  # type: ignore[union-attr]
            assert np.abs(plan.counts[min(start + 4, 29)] - ideal).max() < 1 + 1e-3
    assert plan.after([1.0] * 4).known == 29


def test_adaptive_history_is_the_plan() -> None:
    def grown(history: list[list[float]]) -> Plan:
        plan = make_plan(Adaptive(every=5), SIZES, blocks=400, batch_size=8)
        for losses in history:
            plan = plan.after(losses)
        return plan

    history = np.random.default_rng(1).uniform(0, 3, (4, 4)).tolist()
    np.testing.assert_array_equal(grown(history).counts, grown(history).counts)
    assert grown(history).fingerprint == grown([]).fingerprint  # of the start, to which losses are added
    other = [*history[:3], [9.0, 0.0, 0.0, 0.0]]
    assert (grown(other).counts[-1] != grown(history).counts[-1]).any()
    with pytest.raises(UsageError, match="for an adaptive schedule only"):
        planned("random").after([1.0])


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [0, 0]}, "the bins hold no block"),
        ({"blocks": 0}, "less than one batch"),
        ({"blocks": 7, "drop_last": True}, "less than one batch"),
        ({"blocks": 2**31}, "at most 2,147,483,647"),
        ({"name": "window", "parameters": {"width": 0.0}, "sizes": [0, 5]}, None),
        ({"name": "custom", "parameters": FEW, "sizes": [0, 0, 5, 5]}, "draws only from bins that hold no block"),
    ],
)
def test_budgets_that_make_no_sense(options: dict[str, Any], message: str | None) -> None:
    name = options.pop("name", "random")
    if message is None:
        assert planned(name, **options).counts[-1].tolist() == [0, 5]
        return
    with pytest.raises(UsageError, match=message):
        planned(name, **options)


def test_the_last_batch() -> None:
    assert planned("random", blocks=20).batches.tolist() == [8, 8, 4]
    assert planned("random", blocks=20, drop_last=True).batches.tolist() == [8, 8]


def test_fingerprints_tell_plans_apart() -> None:
    plans = [
        planned("random"),
        planned("increasing"),
        planned("random", batch_size=9),
        planned("random", sizes=[41, 25, 60, 75]),
        planned("window"),
        planned("window", exhausted="stop"),
        planned("adaptive"),
        planned("adaptive", parameters={"rate": 0.5}),
    ]
    assert len({plan.fingerprint for plan in plans}) == len(plans)
    assert planned("window").fingerprint == plans[4].fingerprint


# --- Whole numbers from targets: the sums, the order, and the bound on the deviation, over random schedul ---


def cumulative(weights: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    return np.concatenate([np.zeros((1, weights.shape[1]), np.int64), np.cumsum(increments(weights, blocks), axis=0)])


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """weights (T, K), from even to one bin at a time, and the blocks of each step (T,)."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    bins, steps = draw(st.integers(1, 12)), draw(st.integers(1, 80))
    weights = rng.dirichlet(np.full(bins, draw(st.sampled_from([0.02, 0.2, 1.0, 20.0]))), size=steps)
    if draw(st.booleans()):  # pure bins among mixtures
        pure = rng.random(steps) < 0.5
        weights[pure] = np.eye(bins)[rng.integers(0, bins, pure.sum())]
    return weights, rng.integers(1, draw(st.sampled_from([2, 9, 600])), size=steps)


@settings(max_examples=150, deadline=None)
@given(mixtures())
def test_the_bound(case: tuple[np.ndarray, np.ndarray]) -> None:
    weights, blocks = case
    targets = cumulative(weights, blocks)
    counts = counts_of(targets)
    np.testing.assert_array_equal(counts.sum(axis=1), np.append(0, np.cumsum(blocks)))
    assert (np.diff(counts, axis=0) >= 0).all()
    assert (np.abs(counts - targets / SCALE) < 1).all()


def test_why_each_step_cannot_be_rounded_on_its_own() -> None:
    """Largest remainders of each row alone would take back what they gave; the quotas never do."""
    rng = np.random.default_rng(0)
    targets = cumulative(rng.dirichlet(np.full(6, 0.5), size=200), np.full(200, 1))
    alone = np.array([largest_remainder(int(row.sum()) // SCALE, row) if row.any() else row for row in targets])
    assert (np.diff(alone, axis=0) < 0).any()
    assert (np.diff(counts_of(targets), axis=0) >= 0).all()


def greedy(targets: np.ndarray, denominator: int) -> np.ndarray:
    """One block a step, to the bin that lags most: what one would do without looking ahead."""
    counts = np.zeros_like(targets)
    for t in range(1, len(targets)):
        counts[t] = counts[t - 1]
        counts[t, (targets[t] - denominator * counts[t]).argmax()] += 1
    return counts


def test_looking_ahead_is_needed() -> None:
    """Each step feeds only bins that the greedy rule has not served yet: the last one then lags by 1/6 + ... + 1/2."""
    steps = [[60 // (6 - t) * (k >= t) for k in range(6)] for t in range(6)]
    targets = np.cumsum([[0] * 6, *steps], axis=0)
    assert np.abs(greedy(targets, 60) - targets / 60).max() == pytest.approx(1.45)
    assert np.abs(counts_of(targets, 60) - targets / 60).max() < 1


def test_the_nearest_last_step_goes_before_the_largest_remainder() -> None:
    """In tenths of a block. Bin 0 has as large a remainder after step 1 as bin 3, which is due two steps later."""
    targets = np.array([[0, 0, 0, 0], [3, 2, 2, 3], [3, 7, 7, 3], [3, 7, 10, 10], [11, 9, 10, 10]])
    counts = counts_of(targets, 10)
    assert counts.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]
    assert (np.abs(10 * counts - targets) < 10).all()


def test_whole_targets_are_met() -> None:
    targets = np.array([[0, 0], [2, 0], [2, 2], [4, 2]])
    np.testing.assert_array_equal(counts_of(7 * targets, 7), targets)


@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**9), min_size=1, max_size=9).filter(any))
def test_largest_remainder(total: int, sizes: list[int]) -> None:
    found = largest_remainder(total, np.array(sizes))
    assert found.sum() == total
    assert all(
        abs(total * size - int(count) * sum(sizes)) < sum(sizes) for size, count in zip(sizes, found, strict=True)
    )


@settings(max_examples=100, deadline=None)
@given(mixtures(), st.integers(0, 2**32))
def test_capped_targets(case: tuple[np.ndarray, np.ndarray], seed: int) -> None:
    """No bin gets more than it has, each step gets all it asked for, and nothing moves before a bin is full."""
    weights, blocks = case
    bins, total = weights.shape[1], int(blocks.sum())
    room = np.random.default_rng(seed).multinomial(total + 3, np.full(bins, 1 / bins))
    found = capped_targets(weights, blocks, room)
    np.testing.assert_array_equal(found.sum(axis=1), np.append(0, np.cumsum(blocks)) * SCALE)
    assert (np.diff(found, axis=0) >= 0).all() and (found <= room * SCALE).all()
    free = cumulative(weights, blocks)
    before = int((free > room * SCALE).any(axis=1).argmax()) if (free > room * SCALE).any() else len(free)
    if (room > 0).all():
        np.testing.assert_array_equal(found[:before], free[:before])
    assert (counts_of(found) <= room).all()


def test_a_full_bins_share_goes_to_the_others_in_proportion() -> None:
    weights = np.tile([0.5, 0.25, 0.25, 0.0], (4, 1))
    found = capped_targets(weights, np.full(4, 8), np.array([8, 100, 50, 9])) / SCALE
    assert found.tolist() == [[0, 0, 0, 0], [4, 2, 2, 0], [8, 4, 4, 0], [8, 8, 8, 0], [8, 12, 12, 0]]


def test_where_only_bins_without_weight_are_left() -> None:
    found = capped_targets(np.tile([1.0, 0.0, 0.0], (3, 1)), np.full(3, 4), np.array([4, 6, 3])) / SCALE
    assert found[1].tolist() == [4, 0, 0]
    assert found[-1] == pytest.approx([4, 8 * 6 / 9, 8 * 3 / 9])
