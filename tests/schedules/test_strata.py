"""Values of a column as strata, and shares that are kept: against counting token by token, and the definitions."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenblocks import block_starts, write_blocks

from fluxentropy.errors import RunError, UsageError
from fluxentropy.pretraining.loader import BlockBatches
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.sampler import Sampler
from fluxentropy.schedules.schedule import make
from fluxentropy.schedules.strata import choose, kept_of, parse_keep, read_strata

COUNTS = (60, 0, 45, 95)
LENGTH = 8


def values_of(count: int, number: int) -> list[Any]:
    """Sources of the texts of a bin, ten a block: runs, so that most blocks are of one, and some are mixed."""
    rng = np.random.default_rng(number)
    weights = [0.5, 0.3, 0.2] if number % 2 else [0.2, 0.3, 0.5]
    runs = rng.choice(["mix/a", "b", "mix/c"], count, p=weights)
    found = np.repeat(runs, 10)
    mixed = rng.random(len(found)) < 0.3
    return np.where(mixed, rng.choice(["mix/a", "b", "mix/c"], len(found)), found).tolist()


def write_column(folder: Path, columns: Sequence[Sequence[Any]], kind: Any = None, per_file: int = 200) -> Path:
    """The shards of bins, whose texts have these sources, in files of `per_file` rows."""
    for number, values in enumerate(columns):
        path = folder / "data" / f"bin={number:02d}"
        path.mkdir(parents=True)
        for file, first in enumerate(range(0, max(len(values), 1), per_file)):
            part = pa.array(values[first : first + per_file], kind or pa.string())
            table = pa.table({"text": ["x"] * len(part), "source": part, "list": [["y"]] * len(part)})
            with pa.ipc.new_file(str(path / f"part-{file:05d}.arrow"), table.schema) as writer:
                writer.write_table(table)
    return folder


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> BlockSet:
    folder = write_blocks(tmp_path_factory.mktemp("bins"), COUNTS, length=LENGTH, per_file=256)
    return BlockSet.open(write_column(folder, [values_of(count, number) for number, count in enumerate(COUNTS)]))


def labelled(blocks: BlockSet) -> tuple[list[str], list[int]]:
    """Token by token: the source of each block, and how many of its targets are of another."""
    labels, off = [], []
    for number, count in enumerate(blocks.counts.tolist()):
        values = [value.rpartition("/")[2] for value in values_of(count, number)] if count else []
        for index in range(count):
            block = blocks.read(number, index)
            tokens: Counter[str] = Counter()
            for target in range(1, LENGTH + 1):
                segment = max(place for place, start in enumerate(block.starts) if start <= target)
                tokens[values[block.documents[segment]]] += 1
            best = min(tokens, key=lambda name: (-tokens[name], name))
            labels.append(best)
            off.append(LENGTH - tokens[best])
    return labels, off


# --- strata -----------------------------------------------------------------------------------------------------------


def test_segments_of_blocks(blocks: BlockSet) -> None:
    for number, count in enumerate(COUNTS):
        block, targets, documents = blocks.segments(number)
        expected = []
        for index in range(count):
            starts = [*block_starts(index, LENGTH), LENGTH + 1]
            ends = itertools.pairwise(starts)
            expected += [(index, end - max(start, 1), 10 * index + i) for i, (start, end) in enumerate(ends)]
        assert list(zip(block.tolist(), targets.tolist(), documents.tolist(), strict=True)) == expected


def test_a_block_is_of_the_source_of_most_of_its_tokens(blocks: BlockSet) -> None:
    labels, off = labelled(blocks)
    found = read_strata(blocks, "source")
    assert found.names == ("a", "b", "c") and found.lost == () and sum(off) > 0
    bins = np.repeat(np.arange(4), COUNTS)
    for place, name in enumerate(found.names):
        own = [number for number, label in enumerate(labels) if label == name]
        np.testing.assert_array_equal(found.counts[place], np.bincount(bins[own], minlength=4))
        assert found.tokens[place] == len(own) * LENGTH and found.off[place] == sum(off[number] for number in own)
    order = sorted(range(len(labels)), key=lambda number: (bins[number], labels[number], number))
    assert found.numbers.tolist() == order


@pytest.mark.parametrize(
    ("pieces", "label", "off"),
    [
        ({"b": 4, "a": 4}, "a", 4),  # equal: the first by name
        ({"b": 3, "c": 3, "a": 2}, "b", 5),
        ({"c": 5, "b": 3}, "c", 3),
        ({"a": 0, "c": 8}, "c", 0),  # a token that is predicted before the block
    ],
)
def test_most_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: dict[str, int], label: str, off: int
) -> None:
    blocks = BlockSet.open(write_column(write_blocks(tmp_path, (1,), length=LENGTH), [list(pieces)]))
    size = len(pieces)
    found = np.zeros(size, np.int64), np.array([*pieces.values()]), np.arange(size)
    monkeypatch.setattr(BlockSet, "segments", lambda *_: found)
    strata = read_strata(blocks, "source")
    assert strata.names == (label,) and strata.off.tolist() == [off]
    assert strata.lost == tuple(sorted({*pieces} - {label}))


@pytest.mark.parametrize("kind", [pa.int64(), pa.bool_(), pa.dictionary(pa.int8(), pa.string()), pa.large_string()])
def test_values_of_other_types(tmp_path: Path, kind: Any) -> None:
    values = [1 if pa.types.is_integer(kind) else True if pa.types.is_boolean(kind) else "v"] * 50
    blocks = BlockSet.open(write_column(write_blocks(tmp_path, (5,), length=LENGTH), [values], kind))
    assert read_strata(blocks, "source").names == (str(values[0]),)


def sampled(blocks: BlockSet, name: str, **options: Any) -> Sampler:
    return Sampler(blocks, make(name), **{"batch_size": 8, "seed": 5, "stratify": "source", **options})


def everything(sampler: Sampler) -> np.ndarray:
    return np.concatenate([sampler.batch(step) for step in range(sampler.steps)])


PERMUTATIONS = ["random", "increasing", "folded", "zigzag", "saw", "segment", "curriculum"]


@pytest.mark.parametrize("name", [*PERMUTATIONS, "pool", "tilt", "warmup"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tokens": 77 * LENGTH},
        {"tokens": 400 * LENGTH},
        {"groups": ["0+3", "1+2"]},
        {"keep": "middle 0.6"},
        {"static": True},
        {"jitter": 0.2},
        {"keep": "highest 0.4", "groups": 2, "batch_size": 11, "jitter": 7},
    ],
)
def test_every_batch_has_every_sources_share(blocks: BlockSet, name: str, options: dict[str, Any]) -> None:
    """After each step a source has its share within 1, and each of its bins what the schedule says of it within 1."""
    if name not in PERMUTATIONS:
        options = {key: value for key, value in options.items() if key != "jitter"}
    one = sampled(blocks, name, **options)
    labels = np.array(labelled(blocks)[0])
    ids = [one.batch(step) for step in range(one.steps)]
    x = np.append(0, np.cumsum([len(batch) for batch in ids]))
    kept = one.chosen.kept
    groups = one.members
    bins = blocks.places(np.arange(200))[0]
    group_of = np.array([next(place for place, group in enumerate(groups) if k in group) for k in bins])
    for place, source in enumerate(("a", "b", "c")):
        own = [batch[labels[batch] == source] for batch in ids]
        sums = np.append(0, np.cumsum([len(batch) for batch in own]))
        assert (np.abs(sums - x * kept[place].sum() / kept.sum()) < 1).all()
        table = np.cumsum([np.bincount(group_of[batch], minlength=len(groups)) for batch in own], axis=0)
        part = one.plan.strata[place]
        np.testing.assert_array_equal(table, part.counts[1:])
        np.testing.assert_array_equal(part.sizes, [kept[place][group].sum() for group in groups])
        if name in PERMUTATIONS and "jitter" not in options and not options.get("static") and one.plan.blocks != 77:
            found, whole = one.plan.schedule.targets(sums % max(int(part.sizes.sum()), 1), part.sizes)  # type: ignore[union-attr]
            epochs = (sums // max(int(part.sizes.sum()), 1))[:, None] * part.sizes
            assert (np.abs(part.counts - found / whole - epochs) < 1).all()
    drawn = np.concatenate(ids)
    assert (np.diff(x)[:-1] == options.get("batch_size", 8)).all()
    if name in PERMUTATIONS:
        times = np.bincount(drawn, minlength=200)
        assert len(drawn) in (int(kept.sum()), 77, 400) and times.max() <= -(-len(drawn) // int(kept.sum()))
        if len(drawn) % int(kept.sum()) == 0:
            assert (times[times > 0] == len(drawn) // int(kept.sum())).all() and (times > 0).sum() == kept.sum()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_an_order_holds_inside_each_source(blocks: BlockSet, data: st.DataObject) -> None:
    """Increasing, block by block: each source goes through its bins from low to high."""
    size, seed = data.draw(st.integers(3, 40)), data.draw(st.integers(0, 9))
    labels, bins = np.array(labelled(blocks)[0]), blocks.places(np.arange(200))[0]
    one = sampled(blocks, "increasing", batch_size=size, seed=seed)
    for source in "abc":
        last = 0
        for step in range(one.steps):
            batch = one.batch(step)
            here = bins[batch[labels[batch] == source]]
            assert len(here) == 0 or here.min() >= last
            last = max(here, default=last)


def test_ranks_parts_and_states(blocks: BlockSet) -> None:
    one = sampled(blocks, "saw", jitter=0.1)
    for step in (0, 9, one.steps - 1):
        for world, parts in ((1, 1), (2, 2), (4, 2)):
            slices = [one.rank_batch(step, rank, world, part, parts) for part in range(parts) for rank in range(world)]
            np.testing.assert_array_equal(np.concatenate(slices), one.batch(step))
    batches = BlockBatches(blocks, one, world=2, parts=2)
    assert batches[3]["ids"].tolist() == one.rank_batch(1, 0, 2, 1, 2).tolist()
    whole = everything(one)
    for step in (0, 4, 17):
        again = sampled(blocks, "saw", jitter=0.1)
        assert again.resume(json.loads(json.dumps(one.state(step)))) == step
        np.testing.assert_array_equal(list(again), whole[8 * step :])
    for change in ({"stratify": None}, {"keep": "lowest 0.9"}, {"jitter": 0.2}, {"seed": 6}):
        with pytest.raises(RunError, match="other data: (plan|seed) is"):
            sampled(blocks, "saw", **{"jitter": 0.1, **change}).resume(one.state(3))


def test_what_is_drawn_is_a_part_of_the_fingerprint(blocks: BlockSet) -> None:
    plain = Sampler(blocks, "random", batch_size=8, groups=1)
    marks = [
        sampled(blocks, "random", groups=1, stratify=stratify, keep=keep).plan.fingerprint
        for stratify in (None, "source")
        for keep in (None, "lowest 0.5", "highest 0.5", "middle 0.5")
    ]
    assert marks[0] == plain.plan.fingerprint and len(set(marks)) == 8
    assert sampled(blocks, "random", keep=" lowest  .50 ").plan.fingerprint == (
        sampled(blocks, "random", keep="lowest 0.5").plan.fingerprint
    )


def test_held_out_blocks_are_in_no_stratum(blocks: BlockSet) -> None:
    rest = blocks.without_end(5)
    labels, bins = np.array(labelled(blocks)[0]), blocks.places(np.arange(200))
    inside = bins[1] < rest.counts[bins[0]]
    one = sampled(rest, "increasing")
    np.testing.assert_array_equal(np.sort(everything(one)), np.arange(185))
    assert [int(part.sizes.sum()) for part in one.plan.strata] == [(labels[inside] == name).sum() for name in "abc"]


def test_one_value_is_no_stratification(tmp_path: Path, blocks: BlockSet) -> None:
    folder = write_column(write_blocks(tmp_path, COUNTS), [["v"] * 10 * count for count in COUNTS])
    one = Sampler(BlockSet.open(folder), "folded", batch_size=8, seed=2, stratify="source", keep="middle 0.7")
    plain = Sampler(blocks, "folded", batch_size=8, seed=2, keep="middle 0.7")
    np.testing.assert_array_equal(everything(one), everything(plain))


def test_controls_give_all_sources_the_same_labels(blocks: BlockSet) -> None:
    one = sampled(blocks, "random")
    shuffled = Sampler(blocks, make("increasing", bins=4, balanced_labels=1), batch_size=8, stratify="source")
    labels = shuffled.plan.schedule.labels  # type: ignore[union-attr]
    for part in shuffled.plan.strata:
        filled = [int(np.argmax(part.counts[:, k] > 0)) for k in labels if part.sizes[k]]
        assert filled == sorted(filled)
    assert [part.sizes.tolist() for part in shuffled.plan.strata] == [part.sizes.tolist() for part in one.plan.strata]


def test_adaptive_learns_for_all_sources(blocks: BlockSet) -> None:
    def fresh() -> Sampler:
        return Sampler(blocks, make("adaptive", every=5), tokens=30 * 8 * LENGTH, batch_size=8, stratify="source")

    one, rng = fresh(), np.random.default_rng(0)
    while one.plan.known < one.steps:
        with pytest.raises(UsageError, match="needs the losses"):
            one.batch(one.plan.known)
        one.learn(rng.uniform(0, 4, 4).tolist())
    again = fresh()
    again.resume(json.loads(json.dumps(one.state(30))))
    np.testing.assert_array_equal(everything(again), everything(one))
    for part in one.plan.strata:
        assert part.history == one.plan.history and len(part.history) == 5
    assert np.abs(np.diff(one.plan.counts.sum(axis=1)) - 8).max() == 0


def test_policies_for_bins_that_are_used_up(blocks: BlockSet) -> None:
    stop = sampled(blocks, "window", tokens=400 * LENGTH, exhausted="stop")
    longer = sampled(blocks, "window", tokens=400 * LENGTH)
    assert stop.steps < longer.steps == 50
    np.testing.assert_array_equal(stop.plan.counts, longer.plan.counts[: stop.steps + 1])
    assert all((part.counts <= part.sizes).all() and part.steps == stop.steps for part in stop.plan.strata)
    over = [(part.counts[stop.steps + 1] > part.sizes).any() for part in longer.plan.strata]
    assert any(over)
    whole = sampled(blocks, "pool", exhausted="redistribute")
    np.testing.assert_array_equal(np.sort(everything(whole)), np.arange(200))


def test_a_source_that_is_too_small_for_the_budget(tmp_path: Path) -> None:
    values = [["v"] * 990 + ["w"] * 10, ["v"] * 1000]
    blocks = BlockSet.open(write_column(write_blocks(tmp_path, (100, 100)), values))
    for name in ("increasing", "tilt", "adaptive"):
        one = Sampler(blocks, name, tokens=9 * LENGTH, batch_size=3, stratify="source")
        assert [int(part.counts[-1].sum()) for part in one.plan.strata] == [9, 0] and len(everything(one)) == 9


# --- a share that is kept ---------------------------------------------------------------------------------------------


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any),
    st.sampled_from(["lowest", "middle", "highest"]),
    st.floats(0.001, 1),
)
def test_a_share_is_cut_from_the_corpus_in_order(sizes: list[int], which: str, share: float) -> None:
    corpus = np.repeat(np.arange(len(sizes)), sizes)
    left = len(corpus) - round(float(f"{share:f}") * len(corpus))
    low = {"lowest": 0, "middle": left // 2, "highest": left}[which]
    expected = np.bincount(corpus[low : low + len(corpus) - left], minlength=len(sizes))
    np.testing.assert_array_equal(kept_of(np.array(sizes), f"{which} {share:f}"), expected)


@pytest.mark.parametrize("name", ["random", "increasing", "window"])
def test_only_kept_blocks_are_drawn_whatever_the_epochs(blocks: BlockSet, name: str) -> None:
    draws = {
        keep: set(everything(Sampler(blocks, name, batch_size=8, keep=keep, tokens=tokens * LENGTH, seed=4)).tolist())
        for keep, tokens in (("lowest 0.4", 800), ("lowest 0.75", 1500), ("highest 0.5", 1000), ("middle 0.5", 1000))
    }
    assert [len(found) for found in draws.values()] == [80, 150, 100, 100]
    assert draws["lowest 0.4"] < draws["lowest 0.75"]  # a smaller share is a part of a larger one
    assert set(range(60)) < draws["lowest 0.4"] < set(range(105))
    assert set(range(105, 200)) < draws["highest 0.5"] < set(range(60, 200))
    assert set(range(60, 105)) < draws["middle 0.5"] and len(draws["middle 0.5"] & set(range(60))) == 10
    assert draws["lowest 0.4"] != set(range(80))  # which of the cut bin is up to the seed
    other = Sampler(blocks, name, batch_size=8, keep="lowest 0.4", tokens=800 * LENGTH, seed=5)
    assert set(everything(other).tolist()) != draws["lowest 0.4"]


def test_a_share_of_every_source(blocks: BlockSet) -> None:
    labels, bins = np.array(labelled(blocks)[0]), blocks.places(np.arange(200))[0]
    one = sampled(blocks, "increasing", keep="lowest 0.3")
    drawn = everything(one)
    for source in "abc":
        here = np.flatnonzero(labels == source)
        own = drawn[labels[drawn] == source]
        assert len(set(own.tolist())) == len(own) == round(0.3 * len(here))
        assert bins[own].max() <= np.sort(bins[here])[len(own) - 1]


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keep", ["lowest", "0.5", "lowest 0", "lowest 1.5", "low 0.5", "lowest -0.5", "lowest 50%", ""]
)
def test_shares_that_are_none(blocks: BlockSet, keep: str) -> None:
    with pytest.raises(UsageError, match=r"schedule\.keep .*: write lowest, middle or highest and a share above 0"):
        Sampler(blocks, "random", keep=keep)
    assert parse_keep("highest 1") == ("highest", 1.0)


def test_nothing_would_be_left(blocks: BlockSet) -> None:
    with pytest.raises(
        UsageError, match=r"keep lowest 0.001: there are 200 blocks, and none would be left: use a larger"
    ):
        Sampler(blocks, "random", keep="lowest 0.001")
    with pytest.raises(
        UsageError, match=r"keep lowest 0.005: there are \d+ blocks of source a, and none would be left"
    ):
        sampled(blocks, "random", keep="lowest 0.005")
    assert choose(np.array([0, 0]), keep="lowest 0.5").kept.sum() == 0  # which the plan refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"stratify": "sorce"},
            r"schedule\.stratify sorce: no such column in .*part-00000.arrow: did you mean source\?",
        ),
        ({"stratify": "bin"}, r"schedule\.stratify bin: it is the number of the bin, which the schedule orders by"),
        ({"stratify": "list"}, r"schedule\.stratify list: a value of .* is a list.*: name a column of single values"),
        ({"batch_size": 2}, "source: the blocks are of 3 values, and a batch holds 2 blocks: name a column of fewer"),
        ({"schedule": make("stages", method="sequential")}, "the blocks of a: schedule: stage 2 of 4 has no blocks"),
        ({"tokens": 300 * LENGTH}, "a budget of 300 blocks: .* needs whole epochs of 200 blocks"),
    ],
)
def test_strata_that_cannot_be(blocks: BlockSet, options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"schedule": "random", "batch_size": 8, "stratify": "source", **options}
    with pytest.raises(UsageError, match=message):
        Sampler(blocks, **given)


def test_a_bin_that_a_mixture_needs_alone(tmp_path: Path) -> None:
    weights = tmp_path / "weights.csv"
    weights.write_text("u,w_0,w_1\n0,1,0\n1,0,1\n")
    values = [["v"] * 500, ["w"] * 500]
    blocks = BlockSet.open(write_column(write_blocks(tmp_path, (50, 50)), values))
    step = make("custom", weights=str(weights), interpolation="step")
    with pytest.raises(
        UsageError, match=r"the blocks of w: schedule: .* only from bins that hold no block; make coarser"
    ):
        Sampler(blocks, step, batch_size=5, stratify="source")


@pytest.mark.parametrize("kind", [pa.string(), pa.float64()])
def test_nulls_are_counted(tmp_path: Path, kind: Any) -> None:
    values: list[list[Any]] = [[1.0 if kind == pa.float64() else "v"] * 30 for _ in range(2)]
    values[1][3] = values[1][21] = None
    if kind == pa.float64():
        values[1][4] = float("nan")
    blocks = BlockSet.open(write_column(write_blocks(tmp_path, (3, 3)), values, kind))
    missing = 3 if kind == pa.float64() else 2
    with pytest.raises(
        UsageError, match=rf"source: {missing} of the 30 texts of bin 1 in .* have no value: fill it in"
    ):
        Sampler(blocks, "random", batch_size=2, stratify="source")


def test_blocks_of_other_bins(tmp_path: Path) -> None:
    blocks = BlockSet.open(write_column(write_blocks(tmp_path, (3,)), [["v"] * 9]))
    with pytest.raises(RunError, match="bin 0 in .* has 9 texts, and its blocks are of more: make the blocks again"):
        read_strata(blocks, "source")
