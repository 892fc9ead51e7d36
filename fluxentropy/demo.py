"""`fluxentropy demo`: everything once, offline, on text that every Python installation carries.

    passages-200.jsonl -> run/ -> sorted_by_entropy.parquet, tokens.html, bins/     with the model
    other_passages.parquet -> other_blocks/ -> small_gpt/ -> run_small_gpt/         with a second one, trained here
    run/, run_small_gpt/ -> agreement/      bins/ -> comparison/      all of them -> report.html

Each step is a command of its own, which finds what it has done already.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fluxentropy.binning import bin_corpus
from fluxentropy.config import BinConfig, DemoConfig, ReportConfig, ScoreConfig, SortConfig, VerifyConfig
from fluxentropy.demo_text import passages
from fluxentropy.demo_training import BLOCK, agreement, comparison, second_scores, small_gpt
from fluxentropy.outcome import Outcome
from fluxentropy.report import report
from fluxentropy.scorer import open_scorer
from fluxentropy.scoring import score
from fluxentropy.sorting import sort
from fluxentropy.store import write_text
from fluxentropy.tokens import token_views, write_views
from fluxentropy.verify import verify
from fluxentropy.zoo_entries import find_model

BINS = 4
SHOWN = 3  # passages from either end that are printed and drawn

log = logging.getLogger(__name__)


def demo(config: DemoConfig) -> Outcome:
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
    done = []
    for number, (name, step) in enumerate(steps.items(), 1):
        log.info(f"step {number} of {len(steps)}: {name}")
        done.append(step())
    data: dict[str, Any] = {}
    for outcome in done:
        files = {**data.get("files", {}), **outcome.data.get("files", {})}
        data |= {**outcome.data, "files": files}
    return Outcome(
        lines=[line for outcome in done for line in outcome.lines],
        data=data,
        exit_code=max(outcome.exit_code for outcome in done),
    )


def _write_passages(config: DemoConfig) -> Path:
    path = config.out / f"passages-{config.passages}.jsonl"
    if config.overwrite or not path.exists():  # a resumed demo keeps its text, whatever was installed since
        records = (json.dumps(record, ensure_ascii=False) + "\n" for record in passages(config.passages))
        write_text(path, "".join(records))
    return path


def _scores(config: DemoConfig, texts: Path) -> Outcome:
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
        *(f"  {line}" for line in scored.lines),
    ]
    files = {"scores": str(run / "scores"), "sorted": str(by_entropy), "heatmap": str(heatmap)}
    return Outcome(lines=lines, data={**scored.data, "files": files}, exit_code=scored.exit_code)


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


def _bins(config: DemoConfig) -> Outcome:
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
    counts = ", ".join(f"{count:,}" for count in binned.data["counts"])
    lines = [
        "",
        f"Bins of rising entropy: {counts} passages, as Arrow shards in {out}",
        f"  {_proof(verified)}",
    ]
    data = {"bins": binned.data, "verify": verified.data, "files": {"bins": str(out)}}
    return Outcome(lines=lines, data=data, exit_code=verified.exit_code)


def _proof(verified: Outcome) -> str:
    if verified.exit_code:
        return "not whole: " + "; ".join(str(one["problem"]) for one in verified.data["problems"])
    return "verified: each passage is in exactly one of them, and no file is damaged"


def _report(config: DemoConfig) -> Outcome:
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
    files = {"report": str(config.out / "report.html")}
    return Outcome(lines=lines, data={"report": reported.data, "files": files}, exit_code=reported.exit_code)
