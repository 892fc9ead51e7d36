"""`fluxentropy demo`: the main job on text that every Python installation carries, offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fluxentropy.binning import bin_corpus
from fluxentropy.config import BinConfig, DemoConfig, ScoreConfig, SortConfig
from fluxentropy.demo_text import passages
from fluxentropy.outcome import Outcome
from fluxentropy.scorer import open_scorer
from fluxentropy.scoring import score
from fluxentropy.sorting import sort
from fluxentropy.store import write_text
from fluxentropy.tokens import token_views, write_views
from fluxentropy.zoo_entries import find_model

BINS = 4
SHOWN = 5  # passages printed from either end


def demo(config: DemoConfig) -> Outcome:
    """Score the embedded passages, sort and bin them by entropy, draw the most and the least uncertain ones."""
    texts = config.out / f"passages-{config.passages}.jsonl"
    if config.overwrite or not texts.exists():  # a resumed demo keeps its text, whatever was installed since
        records = (json.dumps(record, ensure_ascii=False) + "\n" for record in passages(config.passages))
        write_text(texts, "".join(records))
    run = config.out / "run"
    scored = score(
        ScoreConfig(sources=(str(texts),), model=config.model, out=run, offline=True, overwrite=config.overwrite)
    )
    by_entropy = config.out / "sorted_by_entropy.parquet"
    sort(SortConfig(run=str(run), by="entropy_mean", descending=True, out=by_entropy))
    rows = [row for row in pq.read_table(by_entropy).to_pylist() if row["entropy_mean"] is not None]
    binned = bin_corpus(BinConfig(run=str(run), bins=BINS, out=config.out / "bins", overwrite=config.overwrite))
    heatmap = config.out / "tokens.html"
    _draw(rows, config.model, heatmap)
    lines = [
        *_extremes("most uncertain", rows[:SHOWN]),
        *_extremes("least uncertain", rows[::-1][:SHOWN]),
        "",
        *scored.lines,
        f"sorted corpus      {by_entropy}",
        f"bins               {config.out / 'bins'}, {len(binned.data['counts'])} of equal counts, as Arrow shards",
        f"token heat maps    {heatmap} (open it in a browser) and {heatmap.with_suffix('.csv')}",
    ]
    files = {"scores": str(run / "scores"), "sorted": str(by_entropy), "bins": str(config.out / "bins")}
    files |= {"heatmap": str(heatmap)}
    return Outcome(lines=lines, data={**scored.data, "files": files}, exit_code=scored.exit_code)


def _draw(rows: list[dict[str, Any]], model: str, out: Path) -> None:
    """The token view of the three most and the three least uncertain passages."""
    chosen = [*rows[:3], *rows[3:][-3:]]
    scorer, _ = open_scorer(find_model(model), offline=True)
    write_views(token_views(scorer, [(row["id"], row["text"]) for row in chosen]), out)


def _extremes(title: str, rows: list[dict[str, Any]]) -> list[str]:
    lines = ["", f"{title} (mean entropy in nats, kind, beginning)"]
    for row in rows:
        beginning = " ".join(row["text"].split())[:80]
        lines.append(f"  {row['entropy_mean']:5.2f}  {row['source']:<20} {beginning}")
    return lines
