"""`fluxentropy hellaswag`: a model answers HellaSwag, or any multiple-choice set, and each context is scored."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fluxentropy.answering import Reader
from fluxentropy.config import HellaswagConfig, to_yaml
from fluxentropy.items import SCHEMA, make_item, to_table
from fluxentropy.outcome import Outcome
from fluxentropy.parts import missing_parts
from fluxentropy.progress import Progress
from fluxentropy.questions import ACCURACIES, FORMAT, Question, Questions, open_questions, read_task
from fluxentropy.scorer import open_path
from fluxentropy.store import RunDirectory, atomic_path
from fluxentropy.versions import versions
from fluxentropy.yamlfile import to_plain
from fluxentropy.zoo_entries import find_model

PART_ITEMS = 256  # what a killed run loses at most

log = logging.getLogger(__name__)


def hellaswag(config: HellaswagConfig) -> Outcome:
    """Answer every question of `config.data`, going on where an earlier run of the same command stopped."""
    entry = find_model(
        config.model, zoo=config.zoo, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    with RunDirectory(config.out, overwrite=config.overwrite, folder="items") as run:
        questions = open_questions(
            config.data,
            read_task(config.task),
            limit=config.limit,
            offline=config.offline,
            spool=config.out / "input" / "stdin.jsonl",
        )
        decoder, path, notes = open_path(entry, device=config.device, dtype=config.dtype, offline=config.offline)
        reader = Reader(decoder, path, max_tokens=config.max_tokens, batch_tokens=config.batch_tokens)
        run.begin(_identity(config, questions, reader), to_yaml(config))
        for note in (*notes, reader.note):
            log.info(note)
        return _answer_all(config, questions, reader, run)


def _answer_all(config: HellaswagConfig, questions: Questions, reader: Reader, run: RunDirectory) -> Outcome:
    done = run.done()
    rows_done = {number: part["rows"] for number, part in done.items()}
    resumed = sum(rows_done.values())
    if resumed:
        log.info(f"resuming: {len(done)} parts, {resumed:,} questions are done")
    started, answered = time.perf_counter(), 0
    with Progress(None) as progress:
        for number, group in missing_parts(rows_done, lambda start: _groups(questions.batches(start), PART_ITEMS)):
            prompts = reader.encode(
                [question.context for question in group],
                [question.endings for question in group],
                questions.task.delimiter,
            )
            readings = reader.read(prompts, on_batch=progress.update)
            rows = zip(group, prompts, readings, strict=True)
            table = to_table([make_item(*row, vocabulary=reader.vocabulary) for row in rows])
            with run.part(number, {"rows": len(table)}) as path:
                pq.write_table(table, path, compression="zstd")
            answered += len(table)
            if questions.n_rows:
                progress.total = round(progress.done / answered * (questions.n_rows - resumed))
            progress.update(0, questions=resumed + answered)
    seconds = time.perf_counter() - started
    table = _join(run, config)
    facts = summarise(table)
    run.finish({**facts, "parts": len(run.done()), "task": questions.task.name, "versions": versions()})
    return _outcome(config, facts, resumed, answered, seconds)


def _groups(batches: Iterator[list[Question]], size: int) -> Iterator[list[Question]]:
    rows = itertools.chain.from_iterable(batches)
    while group := list(itertools.islice(rows, size)):
        yield group


def _join(run: RunDirectory, config: HellaswagConfig) -> pa.Table:
    """All parts as one table, written as `items.parquet`."""
    parts = [pq.read_table(path) for path in sorted(run.parts.glob("part-*.parquet"))]
    table = pa.concat_tables([SCHEMA.empty_table(), *parts])
    with atomic_path(config.out / "items.parquet") as path:
        pq.write_table(table, path, compression="zstd")
    return table


def _identity(config: HellaswagConfig, questions: Questions, reader: Reader) -> dict[str, Any]:
    return {
        "kind": "questions",
        "format": FORMAT,
        "model": {"name": config.model, "fingerprint": reader.decoder.fingerprint},
        "dtype": str(reader.decoder.dtype).removeprefix("torch."),
        "device": reader.decoder.device.type,
        "path": reader.path.name,
        "shared_context": reader.shared,
        "task": to_plain(questions.task),
        "data": {file.name: file.fingerprint for file in questions.files},
        "window": reader.window,
        "limit": config.limit,
        "batch_tokens": reader.batch_tokens,
    }


def summarise(items: pa.Table) -> dict[str, Any]:
    """Counts, and accuracies with their standard errors, over the items that have a label and an answer.

    >>> right = {name: [True, False] for name in ("correct", "correct_norm", "correct_bytes")}
    >>> summarise(pa.table({**right, "status": ["ok", "ok"]}))["acc"]
    {'value': 0.5, 'se': 0.5, 'n': 2}
    """
    found: dict[str, Any] = {"items": len(items), "status": dict(sorted(Counter(items["status"].to_pylist()).items()))}
    for name, (column, _) in ACCURACIES.items():
        right = items[column].drop_null()
        n, mean = len(right), pc.mean(right.cast(pa.float64())).as_py()  # None without any
        se = math.sqrt(mean * (1 - mean) / (n - 1)) if n > 1 else None
        found[name] = {"value": mean, "se": se, "n": n}
    return found


def _outcome(config: HellaswagConfig, facts: dict[str, Any], resumed: int, answered: int, seconds: float) -> Outcome:
    lines = [f"{facts['items']:,} questions answered in {config.out / 'items.parquet'}"]
    for name, (_, words) in ACCURACIES.items():
        value, se, n = facts[name].values()
        if n:
            lines.append(f"{name:9} {value:.4f}" + (f" ± {se:.4f}" if se is not None else "") + f"  {words}, n = {n:,}")
    odd = {name: count for name, count in facts["status"].items() if name != "ok"}
    if odd:
        lines.append("not ok: " + ", ".join(f"{count} {name}" for name, count in odd.items()))
    if answered:
        lines.append(f"{answered / seconds:.1f} questions/s")
    lines.append(f"next: fluxentropy diagnose {config.out / 'items.parquet'} --target correct_norm --out DIR")
    data = {"out": str(config.out), "model": config.model, "resumed_items": resumed, **facts}
    return Outcome(lines=lines, data=data)
