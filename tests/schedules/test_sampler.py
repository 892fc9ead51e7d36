"""The sampler's guarantees: a batch is a function of its step, ranks slice it, permutations draw each block once."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenblocks import write_blocks
from torch.utils.data import DataLoader

from fluxentropy.errors import RunError, UsageError
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.options import ScheduleConfig
from fluxentropy.schedules.plan import make_plan
from fluxentropy.schedules.sampler import Draws, Sampler
from fluxentropy.schedules.schedule import Adaptive, group_bins, make, make_schedule

COUNTS = np.array([40, 0, 25, 60, 75])
FIRST = np.append(0, np.cumsum(COUNTS))


def sampler(
    name: str = "periodic",
    *,
    seed: int = 3,
    fingerprint: str = "f",
    groups: Any = None,
    counts: np.ndarray = COUNTS,
    batch_size: int = 8,
    parameters: Any = None,
    plan_seed: int = 0,
    **options: Any,
) -> Draws:
    members = group_bins(groups, len(counts))
    schedule = make_schedule(ScheduleConfig(name=name, **(parameters or {})), len(members))
    plan = make_plan(
        schedule, [int(counts[group].sum()) for group in members], batch_size=batch_size, seed=plan_seed, **options
    )
    return Draws(plan, counts, seed=seed, fingerprint=fingerprint, members=members)


def everything(of: Draws, start: int = 0) -> np.ndarray:
    return np.concatenate([of.batch(step) for step in range(start, of.steps)])


def bins_of(ids: np.ndarray) -> np.ndarray:
    return np.searchsorted(FIRST, ids, side="right") - 1


# --- 1: a pure function of the step -----------------------------------------------------------------------------------


def test_any_step_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked up alone, backwards, again, or from a copy: the batch of a step is the same."""
    monkeypatch.setattr("fluxentropy.schedules.sampler.CHUNK", 80)  # of blocks whose places are worked out together
    one = sampler(blocks=1000)
    batches = [one.batch(step) for step in range(one.steps)]
    for step in [*reversed(range(one.steps)), 5, 5, 90, 5]:
        np.testing.assert_array_equal(one.batch(step), batches[step])
    for step in (0, 17, one.steps - 1):
        np.testing.assert_array_equal(sampler(blocks=1000).batch(step), batches[step])
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(one)).batch(step), batches[step])


def test_batches_hold_what_the_plan_says() -> None:
    one = sampler(blocks=1003)
    assert one.steps == 126
    for step in range(one.steps):
        ids = one.batch(step)
        assert len(ids) == (8 if step < 125 else 3) and ids.dtype == np.int64
        drawn = np.bincount(bins_of(ids), minlength=5)
        np.testing.assert_array_equal(drawn, one.plan.counts[step + 1] - one.plan.counts[step])
    for step in (-1, 126):
        with pytest.raises(IndexError, match=f"step {step}: the plan has 126"):
            one.batch(step)


def test_seeds_differ_and_orders_inside_batches_are_mixed() -> None:
    one, other = everything(sampler("random", seed=1)), everything(sampler("random", seed=2))
    assert (one != other).mean() > 0.9
    assert 0.3 < (np.diff(one) > 0).mean() < 0.7
    ids = everything(sampler("increasing", batch_size=200))
    assert 20 < np.count_nonzero(np.diff(bins_of(ids))) < 180  # bins are mixed within the one batch


def test_never_changes() -> None:
    """A training is resumed with another version of everything: these blocks must stay."""
    assert sampler("folded", batch_size=6).batch(20).tolist() == [85, 97, 122, 98, 108, 69]
    assert sampler("folded", batch_size=6, jitter=25).batch(20).tolist() == [27, 12, 163, 41, 28, 69]


# --- 3: ranks slice -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("parts", [1, 2])
def test_ranks_and_parts_are_slices(world: int, parts: int) -> None:
    one = sampler(blocks=999)
    for step in (0, 7, one.steps - 1):
        slices = [one.rank_batch(step, rank, world, part, parts) for part in range(parts) for rank in range(world)]
        np.testing.assert_array_equal(np.concatenate(slices), one.batch(step))
        assert max(map(len, slices)) - min(map(len, slices)) <= 1


# --- 4: each block once; quotas ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "increasing", "decreasing", "folded", "zigzag", "stair", "segment"])
@pytest.mark.parametrize("batch_size", [1, 8, 200, 300])
@pytest.mark.parametrize("groups", [None, 2, ["0+4", "1-3"]])
def test_a_permutation_draws_each_block_exactly_once(name: str, batch_size: int, groups: Any) -> None:
    once = everything(sampler(name, batch_size=batch_size, groups=groups))
    np.testing.assert_array_equal(np.sort(once), np.arange(200))
    twice = everything(sampler(name, batch_size=batch_size, groups=groups, blocks=400))
    np.testing.assert_array_equal(twice[:200] if 200 % batch_size == 0 else once, once)
    np.testing.assert_array_equal(np.sort(twice), np.repeat(np.arange(200), 2))


@pytest.mark.parametrize("jitter", [0.05, 30])
def test_a_jittered_epoch_has_each_block_once(jitter: float) -> None:
    """Inside each window the blocks are those of the plain order; which bin is when follows from the seed."""
    plain, one, other = (
        everything(sampler("zigzag", batch_size=1, jitter=share, blocks=400, plan_seed=seed))
        for share, seed in ((None, 0), (jitter, 0), (jitter, 1))
    )
    window = 10 if jitter < 1 else 30
    for start in (*range(0, 200, window), *range(200, 400, window)):
        stop = min(start + window, 200 if start < 200 else 400)
        assert set(plain[start:stop]) == set(one[start:stop]) == set(other[start:stop])
    assert (one != plain).mean() > 0.2 and (one != other).mean() > 0.1


def test_increasing_goes_from_bin_to_bin() -> None:
    up, down = (everything(sampler(name, batch_size=1)) for name in ("increasing", "decreasing"))
    assert (np.diff(bins_of(up)) >= 0).all() and (np.diff(up) < 0).any()  # shuffled inside the bins
    np.testing.assert_array_equal(bins_of(down), bins_of(up)[::-1])


def test_an_epoch_of_a_bin_is_a_shuffle_and_the_next_is_another() -> None:
    one = sampler("tilt", blocks=1000, batch_size=10)
    ids = everything(one)
    for k in (0, 2, 3, 4):
        # Draws of a bin are in order of their steps; inside a step the order is shuffled, so compare sets by step.
        draws = [set(one.batch(step)[bins_of(one.batch(step)) == k].tolist()) for step in range(one.steps)]
        counts = one.plan.counts[:, k]
        for epoch in range(int(counts[-1]) // COUNTS[k]):
            full = np.flatnonzero((counts[:-1] >= epoch * COUNTS[k]) & (counts[1:] <= (epoch + 1) * COUNTS[k]))
            inside = [block for step in full for block in draws[step]]
            assert len(set(inside)) == len(inside) > 0
        seen = np.bincount(ids[bins_of(ids) == k] - FIRST[k], minlength=COUNTS[k])
        assert seen.max() - seen.min() <= 1
    twice = everything(sampler("increasing", batch_size=1, blocks=400))
    assert (twice[:200] != twice[200:]).mean() > 0.8


def test_groups_mix_their_bins() -> None:
    ids = everything(sampler("increasing", groups=["0+3", "1+2+4"], batch_size=1))
    assert set(bins_of(ids[:100])) == {0, 3} and set(bins_of(ids[100:])) == {2, 4}
    assert np.count_nonzero(np.diff(bins_of(ids[:100]))) > 20


# --- 2, 5: resuming ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["random", "folded", "periodic"])
def test_resume_at_every_step(name: str) -> None:
    whole = everything(sampler(name))
    for step in range(25):
        state = json.loads(json.dumps(sampler(name).state(step)))
        again = sampler(name)
        assert again.resume(state) == step
        np.testing.assert_array_equal(everything(again, step), whole[8 * step :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "g"}, "blocks is 'f' there and 'g' here"),
        ({"seed": 4}, "seed is 3 there and 4 here"),
        ({"name": "window"}, "plan is "),
        ({"parameters": {"cycles": 3}}, "plan is "),
        ({"blocks": 150}, "plan is "),
        ({"batch_size": 4}, "plan is "),
    ],
)
def test_other_data_are_refused(change: dict[str, Any], message: str) -> None:
    state = sampler().state(5)
    other = sampler(**change)
    with pytest.raises(RunError, match=f"other data: {message}.*--allow-changed-bins"):
        other.resume(state)
    assert other.resume(state, allow_changed=True) == 5


def test_adaptive_resumes_from_its_losses() -> None:
    rng = np.random.default_rng(0)

    def fresh() -> Draws:
        return sampler("adaptive", blocks=600, parameters={"every": 10, "floor": 0.1})

    one, states, batches = fresh(), [], []
    for step in range(one.steps):
        states.append(json.loads(json.dumps(one.state(step))))
        if step == one.plan.known:
            with pytest.raises(UsageError, match=f"step {step}: .* needs the losses"):
                one.batch(step)
            one.learn(rng.uniform(0, 2, 5).tolist())
        batches.append(one.batch(step))
    assert isinstance(one.plan.schedule, Adaptive) and len(one.plan.history) == 7
    for step in (0, 10, 11, 29, 74):
        again = fresh()
        start = again.resume(states[step])
        for later in range(start, one.steps):
            if later == again.plan.known:
                again.learn(one.plan.history[len(again.plan.history)])
            np.testing.assert_array_equal(again.batch(later), batches[later])


def test_a_plan_for_other_bins() -> None:
    plan = sampler().plan
    with pytest.raises(UsageError, match="does not fit"):
        Draws(plan, COUNTS + 1, seed=0, fingerprint="f")


# --- for any DataLoader -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> BlockSet:
    return BlockSet.open(write_blocks(tmp_path_factory.mktemp("bins"), (30, 20, 46)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_loader_gives_the_blocks_in_order(blocks: BlockSet, workers: int) -> None:
    sampler = Sampler(blocks, make("window"), batch_size=8, seed=1)
    for options in ({"batch_sampler": sampler.batches}, {"sampler": sampler, "batch_size": 8}):
        loader: Any = DataLoader(blocks, num_workers=workers, **options)  # type: ignore[arg-type]
        for _ in range(2):  # a second pass is the same
            found = list(loader)
            assert len(found) == len(loader) == 12
            for step, batch in enumerate(found):
                expected = blocks.gather(sampler.batch(step))
                for name in ("input_ids", "labels"):
                    np.testing.assert_array_equal(batch[name].numpy(), expected)


@pytest.mark.parametrize("step", [0, 5, 12])
def test_a_sampler_goes_on_where_it_was(blocks: BlockSet, step: int) -> None:
    whole = list(Sampler(blocks, "zigzag", batch_size=8, seed=1))
    again = Sampler(blocks, "zigzag", batch_size=8, seed=1)
    assert again.resume(json.loads(json.dumps(again.state(step)))) == step
    assert list(again) == whole[8 * step :]
    assert (len(again), len(again.batches)) == (96 - 8 * step, 12 - step)


def test_a_sampler_learns_on_the_way(blocks: BlockSet) -> None:
    sampler = Sampler(blocks, make("adaptive", every=5), batch_size=8)
    for number, _ in enumerate(DataLoader(blocks, batch_sampler=sampler.batches), 1):  # type: ignore[arg-type]
        if number == sampler.plan.known < sampler.steps:
            sampler.learn([1.0, 0.0, 3.0])
    assert number == 12 and len(sampler.plan.history) == 2


def test_controls_and_grids(tmp_path: Path) -> None:
    record = {"by": ["entropy_mean", "varentropy_mean"], "edges": [[1], [2]], "counts": [8] * 4, "tokens": [8] * 4}
    blocks = BlockSet.open(write_blocks(tmp_path, (8, 8, 8, 8), bins_json=record))

    def order(schedule: Any, **options: Any) -> list[int]:
        ids = np.array(list(Sampler(blocks, schedule, batch_size=8, **options)))
        return list(dict.fromkeys(blocks.places(ids)[0].tolist()))

    assert order("increasing") == [0, 1, 2, 3]
    assert order(make("increasing", bins=4, balanced_labels=1)) == [2, 3, 0, 1]
    assert order(make("grid", axis="second", method="sequential"))[:2] in ([0, 2], [2, 0])
    with pytest.raises(UsageError, match="made for other bins: give make bins=2"):
        order(make("increasing", bins=4, balanced_labels=1), groups=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "periodc"}, "schedule.name periodc: did you mean periodic"),
        ({"tokens": 3}, "--tokens 3: one block has 8"),
        ({"rank": 2, "world": 2}, "rank 2 of 2: use 0 to 1"),
        ({"world": 3}, "a batch of 8 blocks has no equal share for 3 ranks: use another batch_size$"),
        ({"world": 4, "tokens": 34 * 8}, "a batch of 2 blocks has no equal share for 4 ranks: .*, or drop_last=True"),
    ],
)
def test_what_a_sampler_cannot_do(blocks: BlockSet, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampler(blocks, **{"batch_size": 8, **options})


def test_numbers_of_blocks_that_are_not_there(blocks: BlockSet) -> None:
    for number in (-1, 96):
        with pytest.raises(IndexError, match=f"block {number}: .* has 96"):
            blocks[number]
    held = blocks.without_end(4)
    np.testing.assert_array_equal(held[26]["input_ids"], blocks[30]["labels"])  # the first of the second bin
    assert len(held) == 96 - 3 * 4
