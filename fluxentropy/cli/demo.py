"""`fluxentropy demo`: everything once, offline, on text that every Python installation carries.

    passages-200.jsonl -> run/ -> sorted_by_entropy.parquet, tokens.html, bins/     with the model
    other_passages.parquet -> other_blocks/ -> small_gpt/ -> run_small_gpt/         with a second one, trained here
    run/, run_small_gpt/ -> agreement/      bins/ -> comparison/      all of them -> report.html

Each step is a command of its own, which finds what it has done already.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fluxentropy.agreement import AgreeConfig
from fluxentropy.agreement.agree import AgreeResult, agree
from fluxentropy.cli.commands import DemoConfig
from fluxentropy.cli.passages import APART, Passage, other_passages, passages
from fluxentropy.config.results import Result, command
from fluxentropy.config.yaml import to_plain, to_yaml
from fluxentropy.errors import UsageError
from fluxentropy.experiments.options import CompareConfig
from fluxentropy.experiments.schedules import CompareResult, compare
from fluxentropy.experiments.text import interval
from fluxentropy.models.zoo import find_model
from fluxentropy.ordering.bin import BinResult, bin_corpus
from fluxentropy.ordering.options import BinConfig, SortConfig
from fluxentropy.ordering.sort import sort
from fluxentropy.pretraining.options import ArchitectureOptions, LRConfig, OptimConfig, PretrainConfig, TrainingOptions
from fluxentropy.pretraining.pretrain import PretrainResult, pretrain
from fluxentropy.report import ReportConfig
from fluxentropy.report.page import ReportResult, report
from fluxentropy.report.tokens import token_views, write_views
from fluxentropy.runs.files import atomic_path, write_text
from fluxentropy.runs.tables import run_parts
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.scoring.options import ScoreConfig
from fluxentropy.scoring.score import ScoreResult, score
from fluxentropy.scoring.scorer import open_scorer
from fluxentropy.verification import VerifyConfig
from fluxentropy.verification.verify import VerifyResult, verify

# --- its trainings ----------------------------------------------------------------------------------------------------


NAME = "small-gpt"
BLOCK = 128  # bytes in a block
HELD = 8  # blocks of each bin to validate on
TOKENS = 250_000  # bytes that the small GPT is trained on
SEEDS = 3
WORKERS = 4  # at most: each has libraries of half a gigabyte to load
LEVELS = {0.9: "almost entirely", 0.7: "largely", 0.3: "in part"}  # rank correlation, at least -> how far models agree


class Step(NamedTuple):
    """What a step has to say, fields of `DemoResult`, and what to look at."""

    lines: list[str]
    results: dict[str, Result | None]
    files: dict[str, Path]


# --- the small GPT ----------------------------------------------------------------------------------------------------


def small_gpt(config: DemoConfig) -> Step:
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
        f"A second model, trained here: a GPT of {trained.parameters:,} parameters, on {TOKENS:,} bytes of "
        f"{pq.read_metadata(table).num_rows:,} {which}",
    ]
    return Step(lines, {"small_gpt": trained}, {"small_gpt": trained.export})


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


def second_scores(config: DemoConfig, texts: Path) -> Step:
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
        return Step([], {"second_scores": score(scoring)}, {})


def agreement(config: DemoConfig) -> Step:
    """How far the models agree on which passages are hard to predict: in bits per byte, as their tokens differ."""
    table, out = config.out / "bits_per_byte.parquet", config.out / "agreement"
    ours, theirs = (_bits_per_byte(config.out / run) for run in ("run", "run_small_gpt"))
    with atomic_path(table) as aside:
        columns = {"id": list(ours), config.model: list(ours.values()), NAME: [theirs[name] for name in ours]}
        pq.write_table(pa.table(columns), aside)
    try:
        agreed = agree(AgreeConfig(inputs=(str(table),), by="bits_per_byte", out=out, overwrite=config.overwrite))
    except UsageError as error:  # such as too few passages
        return Step([f"  not compared with {config.model}: {error}"], {"agreement": None}, {})
    rho = agreed.mean_spearman
    limits = agreed.record["bootstrap"]["intervals"].get("mean_spearman")  # of a few passages there are none
    how = next((words for least, words in LEVELS.items() if rho >= least), "hardly")
    means = " and ".join(f"{_mean(bits):.2f} to {name}" for name, bits in ((config.model, ours), (NAME, theirs)))
    lines = [
        f"  a byte of the {len(ours):,} passages carries {means}, in bits: the less, the better a model predicts them",
        f"  which passages are hard to predict? The two agree {how}: rank correlation {rho:.2f}"
        f"{' ' * bool(limits)}{interval(limits[0], limits[1], '.2f') if limits else ''}, see {out}",
    ]
    return Step(lines, {"agreement": agreed}, {"agreement": out})


def _bits_per_byte(run: Path) -> dict[str, float | None]:
    """By id; None where a text has no score."""
    table = pa.concat_tables(pq.read_table(part, columns=["id", "bits_per_byte"]) for part in run_parts(run))
    return dict(zip(table["id"].to_pylist(), table["bits_per_byte"].to_pylist(), strict=True))


def _mean(bits: dict[str, float | None]) -> float:
    return statistics.fmean(value for value in bits.values() if value is not None)


# --- two schedules ----------------------------------------------------------------------------------------------------


def comparison(config: DemoConfig) -> Step:
    """Bins of rising entropy, and of falling, against a random order: a smaller GPT, and as many seeds as are quick."""
    bins, out = config.out / "bins", config.out / "comparison"
    blocks = BlockSet.open(bins).counts
    title = ["", "Does the order of the bins matter for training?"]
    if blocks.min() < 2 * HELD:
        why = f"not compared: {config.passages} passages are too few, use 40 or more"
        return Step([*title, f"  {why}"], {"comparison": None}, {})
    comparing = CompareConfig(
        bins=bins,
        base=TrainingOptions(
            model=ArchitectureOptions(n_layer=1, n_head=2, n_embd=64),
            batch_size=16,
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
    arm = compared.arms["increasing"]
    seeds = f"{SEEDS} seed{'s' * (SEEDS > 1)}"
    lines = [
        *title,
        f"  from low to high entropy: {compared.comparisons[0]['words']}",
        f"  {seeds} of a GPT of {arm['parameters']:,} parameters on {arm['tokens']:,} bytes: a demonstration, "
        f"no evidence; see {out / 'comparison.md'}",
    ]
    return Step(lines, {"comparison": compared}, {"comparison": out})


# --- `fluxentropy demo` -----------------------------------------------------------------------------------------------


BINS = 4
SHOWN = 3  # passages from either end that are printed and drawn
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DemoResult(Result):
    """The results of the commands that the demo is made of."""

    scores: ScoreResult
    bins: BinResult
    verify: VerifyResult
    small_gpt: PretrainResult
    second_scores: ScoreResult  # of the small GPT
    agreement: AgreeResult | None  # None, as the next: of too few passages
    comparison: CompareResult | None
    report: ReportResult
    files: dict[str, Path]  # what to look at
    said: list[str] = field(repr=False)

    @property
    def exit_code(self) -> int:
        return max(one.exit_code for one in vars(self).values() if isinstance(one, Result))

    def lines(self) -> list[str]:
        return self.said

    def to_dict(self) -> dict[str, Any]:
        """The scores, with all other results under their names."""
        results = {k: v.to_dict() if isinstance(v, Result) else to_plain(v) for k, v in vars(self).items()}
        del results["said"]
        return {**results.pop("scores"), **results}


@command
def demo(config: DemoConfig) -> DemoResult:
    """Score, sort, draw and bin passages; train a small GPT and compare the two models; compare two orders of bins."""
    texts = _write_passages(config)
    steps = {
        f"scoring with {config.model}": lambda: _scores(config, texts),
        f"cutting into {BINS} bins": lambda: _bins(config),
        "training a second, small model": lambda: small_gpt(config),
        "scoring with it": lambda: second_scores(config, texts),
        "do the models agree?": lambda: agreement(config),
        "comparing two orders of the bins": lambda: comparison(config),
        "writing the report": lambda: _report(config),
    }
    said: list[str] = []
    results: dict[str, Any] = {}
    files: dict[str, Path] = {}
    for number, (name, step) in enumerate(steps.items(), 1):
        log.info(f"step {number} of {len(steps)}: {name}")
        done = step()
        said += done.lines
        results |= done.results
        files |= done.files
    return DemoResult(**results, files=files, said=said)


def _write_passages(config: DemoConfig) -> Path:
    path = config.out / f"passages-{config.passages}.jsonl"
    if config.overwrite or not path.exists():  # a resumed demo keeps its text, whatever was installed since
        records = (json.dumps(record, ensure_ascii=False) + "\n" for record in passages(config.passages))
        write_text(path, "".join(records))
    return path


def _scores(config: DemoConfig, texts: Path) -> Step:
    """Scores, the sorted corpus, and the most and the least uncertain passages, printed and drawn."""
    run = config.out / "run"
    scored = score(
        ScoreConfig(sources=(str(texts),), model=config.model, out=run, offline=True, overwrite=config.overwrite)
    )
    by_entropy = config.out / "sorted_by_entropy.parquet"
    sort(SortConfig(run=str(run), by="entropy_mean", descending=True, out=by_entropy))
    rows = [row for row in pq.read_table(by_entropy).to_pylist() if row["entropy_mean"] is not None]
    heatmap = config.out / "tokens.html"
    _draw(rows, config.model, heatmap)
    lines = [
        f"How uncertain is {config.model} about {len(rows):,} passages of documentation and code?",
        *_extremes("most uncertain, by mean entropy per token in nats", rows[:SHOWN]),
        *_extremes("least uncertain", rows[::-1][:SHOWN]),
        *(f"  {line}" for line in scored.lines()),
    ]
    return Step(lines, {"scores": scored}, {"scores": run / "scores", "sorted": by_entropy, "heatmap": heatmap})


def _draw(rows: list[dict[str, Any]], model: str, out: Path) -> None:
    """The token view of the most and the least uncertain passages."""
    chosen = [*rows[:SHOWN], *rows[SHOWN:][-SHOWN:]]
    scorer, _ = open_scorer(find_model(model), offline=True)
    write_views(token_views(scorer, [(row["id"], row["text"]) for row in chosen]), out)


def _extremes(title: str, rows: list[dict[str, Any]]) -> list[str]:
    lines = [f"  {title}"]
    for row in rows:
        beginning = " ".join(row["text"].split())[:72]
        lines.append(f"    {row['entropy_mean']:5.2f}  {row['source']:<20} {beginning}")
    return lines


def _bins(config: DemoConfig) -> Step:
    """Bins of equal counts, as shards and as blocks of bytes, and the proof that nothing is lost."""
    out = config.out / "bins"
    binned = bin_corpus(
        BinConfig(
            run=str(config.out / "run"),
            bins=BINS,
            tokenize="bytes",
            block_length=BLOCK,
            out=out,
            overwrite=config.overwrite,
        )
    )
    verified = verify(VerifyConfig(dir=out))
    counts = ", ".join(f"{count:,}" for count in binned.counts)
    lines = [
        "",
        f"Bins of rising entropy: {counts} passages, as Arrow shards in {out}",
        f"  {_proof(verified)}",
    ]
    return Step(lines, {"bins": binned, "verify": verified}, {"bins": out})


def _proof(verified: VerifyResult) -> str:
    if verified.exit_code:
        return "not whole: " + "; ".join(one.problem for one in verified.problems)
    return "verified: each passage is in exactly one of them, and no file is damaged"


def _report(config: DemoConfig) -> Step:
    """One page about all of it, and where to look first."""
    out = config.out.resolve()
    page = out / "report.html"
    reported = report(ReportConfig(runs=(str(config.out),), title="fluxentropy demo", out=page))
    places = {
        page: "all of it on one page: open it in a browser",
        out / "tokens.html": f"the {SHOWN} most and the {SHOWN} least uncertain passages, token by token",
        out / "sorted_by_entropy.parquet": "the passages in the order of entropy, with all scores",
        out / "bins": "the bins, for datasets, polars, DuckDB or PyArrow",
        out / "small_gpt" / "export": "the small GPT, a folder for fluxentropy score or transformers",
    }
    width = max(len(str(path)) for path in places)
    lines = ["", "Where to look", *(f"  {path!s:{width}}  {what}" for path, what in places.items())]
    return Step(lines, {"report": reported}, {"report": config.out / "report.html"})
