"""What the demo trains: a small GPT on bytes, which scores the passages too, and one for each run of a comparison."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fluxentropy.agree import agree
from fluxentropy.binning import bin_corpus
from fluxentropy.blockset import BlockSet
from fluxentropy.compare import compare
from fluxentropy.config import AgreeConfig, BinConfig, CompareConfig, DemoConfig, PretrainConfig, ScoreConfig
from fluxentropy.demo_text import APART, Passage, other_passages
from fluxentropy.errors import UsageError
from fluxentropy.lr import LRConfig
from fluxentropy.markdown import interval
from fluxentropy.optimconfig import OptimConfig
from fluxentropy.outcome import Outcome
from fluxentropy.pretrain import pretrain
from fluxentropy.pretrainoptions import ArchitectureOptions, TrainingOptions
from fluxentropy.scoring import score
from fluxentropy.store import atomic_path, write_text
from fluxentropy.tablefiles import run_parts
from fluxentropy.yamlfile import to_yaml

NAME = "small-gpt"
BLOCK = 128  # bytes in a block
HELD = 8  # blocks of each bin to validate on
TOKENS = 500_000  # bytes that the small GPT is trained on
SEEDS = 3
WORKERS = 4  # at most: each has libraries of half a gigabyte to load
LEVELS = {0.9: "almost entirely", 0.7: "largely", 0.3: "in part"}  # rank correlation, at least -> how far models agree


# --- the small GPT ----------------------------------------------------------------------------------------------------


def small_gpt(config: DemoConfig) -> Outcome:
    """Train it on passages of other documents than those that are scored, whatever their number."""
    table, blocks, out = (config.out / name for name in ("other_passages.parquet", "other_blocks", "small_gpt"))
    if config.overwrite or not table.exists():
        _write_table(other_passages(), table)
    packed = BinConfig(
        run=str(table),
        by=("n_bytes",),
        bins=2,
        tokenize="bytes",
        block_length=BLOCK,
        out=blocks,
        overwrite=config.overwrite,
    )
    bin_corpus(packed)
    training = PretrainConfig(
        bins=blocks,
        model=ArchitectureOptions(n_layer=2, n_head=4, n_embd=96),
        tokens=TOKENS,
        eval_every=TOKENS // 4,
        batch_size=8,
        holdout=HELD,
        optim=OptimConfig(lr=0.015),
        lr=LRConfig(schedule="trapezoid", warmup=0.05, decay=0.4),
        accelerator="cpu",
        out=out,
        overwrite=config.overwrite,
    )
    with _one_thread():
        trained = pretrain(training)
    which = "other passages" if config.passages <= APART else "passages, a part of those scored among them"
    lines = [
        "",
        f"A second model, trained here: a GPT of {trained.data['parameters']:,} parameters, on {TOKENS:,} bytes of "
        f"{pq.read_metadata(table).num_rows:,} {which}",
    ]
    return Outcome(lines=lines, data={"small_gpt": trained.data, "files": {"small_gpt": str(out / "export")}})


def _write_table(passages: list[Passage], path: Path) -> None:
    columns: dict[str, list[Any]] = {name: [dict(one)[name] for one in passages] for name in Passage.__annotations__}
    columns["n_bytes"] = [len(one["text"].encode()) for one in passages]
    with atomic_path(path) as aside:
        pq.write_table(pa.table(columns), aside)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices as small as here gain nothing from more, and so the result does not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- two models -------------------------------------------------------------------------------------------------------


def second_scores(config: DemoConfig, texts: Path) -> Outcome:
    """The same passages scored with the small GPT: all of each, in windows as long as its blocks."""
    zoo = config.out / "zoo.yaml"
    write_text(zoo, to_yaml({"models": {NAME: {"folder": str(config.out.resolve() / "small_gpt" / "export")}}}))
    scoring = ScoreConfig(
        sources=(str(texts),),
        model=NAME,
        zoo=zoo,
        device="cpu",
        max_tokens=BLOCK,
        window="sliding",
        out=config.out / "run_small_gpt",
        offline=True,
        overwrite=config.overwrite,
    )
    with _one_thread():
        scored = score(scoring)
    return Outcome(lines=[], data={"second_scores": scored.data}, exit_code=scored.exit_code)


def agreement(config: DemoConfig) -> Outcome:
    """How far the models agree on which passages are hard to predict: in bits per byte, as their tokens differ."""
    table, out = config.out / "bits_per_byte.parquet", config.out / "agreement"
    ours, theirs = (_bits_per_byte(config.out / run) for run in ("run", "run_small_gpt"))
    with atomic_path(table) as aside:
        columns = {"id": list(ours), config.model: list(ours.values()), NAME: [theirs[name] for name in ours]}
        pq.write_table(pa.table(columns), aside)
    try:
        agreed = agree(AgreeConfig(inputs=(str(table),), by="bits_per_byte", out=out, overwrite=config.overwrite))
    except UsageError as error:  # such as too few passages
        return Outcome(lines=[f"  not compared with {config.model}: {error}"], data={"agreement": None})
    rho = float(agreed.data["spearman"][0][1])
    limits = agreed.data["bootstrap"]["intervals"].get("mean_spearman")  # of a few passages there are none
    how = next((words for least, words in LEVELS.items() if rho >= least), "hardly")
    means = " and ".join(f"{_mean(bits):.2f} to {name}" for name, bits in ((config.model, ours), (NAME, theirs)))
    lines = [
        f"  a byte of the {len(ours):,} passages carries {means}, in bits: the less, the better a model predicts them",
        f"  which passages are hard to predict? The two agree {how}: rank correlation {rho:.2f}"
        f"{' ' * bool(limits)}{interval(limits[0], limits[1], '.2f') if limits else ''}, see {out}",
    ]
    return Outcome(lines=lines, data={"agreement": agreed.data, "files": {"agreement": str(out)}})


def _bits_per_byte(run: Path) -> dict[str, float | None]:
    """By id; None where a text has no score."""
    table = pa.concat_tables(pq.read_table(part, columns=["id", "bits_per_byte"]) for part in run_parts(run))
    return dict(zip(table["id"].to_pylist(), table["bits_per_byte"].to_pylist(), strict=True))


def _mean(bits: dict[str, float | None]) -> float:
    return statistics.fmean(value for value in bits.values() if value is not None)


# --- two schedules ----------------------------------------------------------------------------------------------------


def comparison(config: DemoConfig) -> Outcome:
    """Bins of rising entropy, and of falling, against a random order: a smaller GPT, and as many seeds as are quick."""
    bins, out = config.out / "bins", config.out / "comparison"
    blocks = BlockSet.open(bins).counts
    title = ["", "Does the order of the bins matter for training?"]
    if blocks.min() < 2 * HELD:
        why = f"not compared: {config.passages} passages are too few, use 40 or more"
        return Outcome(lines=[*title, f"  {why}"], data={"comparison": None})
    comparing = CompareConfig(
        bins=bins,
        base=TrainingOptions(
            model=ArchitectureOptions(n_layer=1, n_head=2, n_embd=64),
            batch_size=8,
            holdout=HELD,
            optim=OptimConfig(lr=0.015),
            accelerator="cpu",
        ),
        arms={"increasing": {"schedule": {"name": "increasing"}}},
        controls=("reversed",),
        seeds=SEEDS,
        workers=min(WORKERS, os.cpu_count() or 1),
        out=out,
        overwrite=config.overwrite,
    )
    compared = compare(comparing)
    arm = compared.data["arms"]["increasing"]
    seeds = f"{SEEDS} seed{'s' * (SEEDS > 1)}"
    lines = [
        *title,
        f"  from low to high entropy: {compared.data['comparisons'][0]['words']}",
        f"  {seeds} of a GPT of {arm['parameters']:,} parameters on {arm['tokens']:,} bytes: a demonstration, "
        f"no evidence; see {out / 'comparison.md'}",
    ]
    data = {"comparison": compared.data, "files": {"comparison": str(out)}}
    return Outcome(lines=lines, data=data, exit_code=compared.exit_code)
