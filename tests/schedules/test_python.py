"""docs/python.md as it stands: both trainings see the blocks that `fluxentropy pretrain` draws, in its order."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenruns import write_bins

from fluxentropy.cli.app import main
from fluxentropy.pretraining.ledger import hash_ids
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.sampler import Sampler
from fluxentropy.schedules.schedule import make

pytestmark = pytest.mark.usefixtures("one_thread")
PAGE = Path(__file__).parents[2] / "docs" / "python.md"
MODEL = ["--model.n-layer", "1", "--model.n-head", "1", "--model.n-embd", "8", "--optim.kind", "adamw"]
PERIODIC = ["--schedule.name", "periodic", "--schedule.cycles", "2", "--batch-size", "8"]


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bins(tmp_path_factory.mktemp("corpus"), texts=20)


def drawn(bins: Path, out: Path, *options: str) -> list[str]:
    """A hash of the blocks of each step, by a training of the command line."""
    argv = ["pretrain", "--bins", str(bins), "--out", str(out), "--accelerator", "cpu", *MODEL, *options]
    assert main(argv) == 0
    hashes: list[str] = pq.read_table(out / "ledger.parquet")["ids_hash"].to_pylist()
    return hashes


def test_the_examples_train_on_the_blocks_of_the_command(
    bins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = drawn(bins, tmp_path / "run", *PERIODIC, "--validation", str(bins), "--eval-blocks", "1")
    monkeypatch.chdir(bins.parent)
    seen: list[int] = []
    own = BlockSet.__getitem__
    monkeypatch.setattr(BlockSet, "__getitem__", lambda self, number: seen.append(number) or own(self, number))
    names: dict[str, Any] = {}
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        seen.clear()
        exec(compile(example, str(PAGE), "exec"), names)
        batches = [np.array(seen[at : at + 8]) for at in range(0, len(seen), 8)]
        assert [hash_ids(batch) for batch in batches] == expected
    assert names["loss"].item() < np.log(400) - 0.05
    assert names["trainer"].state.global_step == len(expected)


@pytest.mark.parametrize("seed", [0, 5])
def test_a_sampler_draws_what_the_command_draws(bins: Path, tmp_path: Path, seed: int) -> None:
    """With blocks held out, a budget, a seed and coarser bins; in one process or in slices of several."""
    options = ["--holdout", "3", "--tokens", "1999", "--seed", str(seed), "--schedule.groups", "2"]
    expected = drawn(bins, tmp_path / "run", *PERIODIC, *options)
    blocks = BlockSet.open(bins).without_end(3)
    schedule = make("periodic", cycles=2)
    given: dict[str, Any] = {"batch_size": 8, "tokens": 1999, "seed": seed, "groups": 2}
    whole = Sampler(blocks, schedule, **given)
    assert [hash_ids(np.array(batch)) for batch in whole.batches] == expected
    assert list(whole) == [number for batch in whole.batches for number in batch]
    assert (len(whole), len(whole.batches)) == (1999 // 16, len(expected))
    given["tokens"] = 2048
    whole = Sampler(blocks, schedule, **given)
    ranks = [Sampler(blocks, schedule, **given, rank=rank, world=4).batches for rank in range(4)]
    for pieces, batch in zip(zip(*ranks, strict=True), whole.batches, strict=True):
        assert {len(piece) for piece in pieces} == {2}
        assert [number for piece in pieces for number in piece] == batch
