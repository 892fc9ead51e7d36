"""`fluxentropy hellaswag`: a model answers HellaSwag, or any multiple-choice set, and each context is scored."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fluxentropy.config.results import Result, command
from fluxentropy.config.yaml import to_plain, to_yaml
from fluxentropy.entropy import truncated_entropy
from fluxentropy.evaluation import HellaswagConfig
from fluxentropy.evaluation.answering import Prompt, Reader, Reading
from fluxentropy.evaluation.questions import ACCURACIES, FORMAT, Question, Questions, open_questions, read_task
from fluxentropy.models.paths import open_path
from fluxentropy.models.zoo import find_model
from fluxentropy.runs.directory import RunDirectory
from fluxentropy.runs.engine import missing_parts
from fluxentropy.runs.files import atomic_path, versions
from fluxentropy.runs.progress import Progress

# --- items ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question answered. What does not exist is None; entropies are in nats, varentropies in nats²."""

    id: str
    ind: int
    context: str | None
    label: int | None
    pred: int | None = None  # the ending of largest log-likelihood
    pred_norm: int | None = None  # of largest log-likelihood per character
    pred_bytes: int | None = None  # of largest log-likelihood per UTF-8 byte
    correct: bool | None = None
    correct_norm: bool | None = None
    correct_bytes: bool | None = None
    margin: float | None = None  # log-likelihood of the best ending less that of the second, nats
    margin_norm: float | None = None  # the same per character
    margin_bytes: float | None = None  # the same per byte
    logliks: list[float] | None = None  # (E,)
    ending_tokens: list[int] | None = None
    ending_chars: list[int] | None = None
    ending_bytes: list[int] | None = None
    n_tokens: int = 0  # of the context
    truncated: bool = False
    # the context: over all its positions, and after its last token
    entropy_mean: float | None = None
    entropy_last: float | None = None
    varentropy_mean: float | None = None
    varentropy_last: float | None = None
    sqrt_varentropy_mean: float | None = None
    # the same from the 100 most likely tokens, renormalised
    entropy_top100_mean: float | None = None
    entropy_top100_last: float | None = None
    varentropy_top100_mean: float | None = None
    varentropy_top100_last: float | None = None
    tail_mass_mean: float | None = None  # what these 100 leave out
    tail_mass_last: float | None = None
    entropy_lower_mean: float | None = None  # limits of the whole entropy, given these 100
    entropy_upper_mean: float | None = None
    entropy_lower_last: float | None = None
    entropy_upper_last: float | None = None
    # the right and the chosen ending: of the distributions that predicted its tokens
    right_entropy_mean: float | None = None
    right_surprisal_mean: float | None = None
    chosen_entropy_mean: float | None = None
    chosen_surprisal_mean: float | None = None
    status: str = "ok"


TYPES = {"id": pa.string(), "context": pa.string(), "status": pa.string(), "logliks": pa.list_(pa.float64())}
TYPES |= {name: pa.list_(pa.int64()) for name in ("ending_tokens", "ending_chars", "ending_bytes")}
TYPES |= {name: pa.int64() for name in ("ind", "label", "pred", "pred_norm", "pred_bytes", "n_tokens")}
TYPES |= {name: pa.bool_() for name in ("correct", "correct_norm", "correct_bytes", "truncated")}
SCHEMA = pa.schema([(field.name, TYPES.get(field.name, pa.float64())) for field in dataclasses.fields(Item)])


def to_table(items: Sequence[Item]) -> pa.Table:
    """The items as columns of `SCHEMA`."""
    columns = {name: [getattr(item, name) for item in items] for name in SCHEMA.names}
    return pa.table(columns, schema=SCHEMA)


def make_item(question: Question, prompt: Prompt, reading: Reading | None, vocabulary: int) -> Item:
    """The row of one question. A question that could not be asked, or that gave NaN, has a status and no answer."""
    status = question.status if prompt.status == "ok" else prompt.status
    bare = Item(
        id=question.id,
        ind=question.ind,
        context=question.context,
        label=question.label,
        ending_tokens=[len(ending) for ending in prompt.endings],
        ending_chars=[len(ending) for ending in question.endings],
        ending_bytes=[len(ending.encode()) for ending in question.endings],
        n_tokens=len(prompt.context),
        truncated=prompt.truncated,
        status=status,
    )
    if reading is None:
        return bare
    if not all(np.isfinite(column).all() for column in (reading.entropy, *reading.surprisal)):
        return dataclasses.replace(bare, status="nan")
    return dataclasses.replace(bare, **_answer(question, reading), **_uncertainty(reading, vocabulary))


def _answer(question: Question, reading: Reading) -> dict[str, Any]:
    logliks = np.array([-surprisal.sum() for surprisal in reading.surprisal])
    values = {
        "": logliks,
        "_norm": logliks / np.array([len(ending) for ending in question.endings]),
        "_bytes": logliks / np.array([len(ending.encode()) for ending in question.endings]),
    }
    chosen = {kind: int(found.argmax()) for kind, found in values.items()}  # the first of equal ones
    pred = chosen[""]
    found: dict[str, Any] = {f"pred{kind}": place for kind, place in chosen.items()}
    found |= {f"margin{kind}": _margin(each) for kind, each in values.items()}
    found |= {
        "logliks": logliks.tolist(),
        "chosen_entropy_mean": float(reading.ending_entropy[pred].mean()),
        "chosen_surprisal_mean": float(reading.surprisal[pred].mean()),
    }
    if question.label is not None:
        found |= {f"correct{kind}": place == question.label for kind, place in chosen.items()}
        found |= {
            "right_entropy_mean": float(reading.ending_entropy[question.label].mean()),
            "right_surprisal_mean": float(reading.surprisal[question.label].mean()),
        }
    return found


def _margin(values: np.ndarray) -> float:
    second, best = np.sort(values)[-2:]
    return float(best - second)


def _uncertainty(reading: Reading, vocabulary: int) -> dict[str, Any]:
    seen = truncated_entropy(reading.top_probs, vocabulary)
    columns = {
        "entropy": reading.entropy,
        "varentropy": reading.varentropy,
        "entropy_top100": seen.entropy,
        "varentropy_top100": seen.varentropy,
        "tail_mass": seen.tail_mass,
        "entropy_lower": seen.lower,
        "entropy_upper": seen.upper,
    }
    means = {f"{name}_mean": float(values.mean()) for name, values in columns.items()}
    lasts = {f"{name}_last": float(values[-1]) for name, values in columns.items()}
    return means | lasts | {"sqrt_varentropy_mean": float(np.sqrt(reading.varentropy).mean())}


# --- `fluxentropy hellaswag` ------------------------------------------------------------------------------------------


PART_ITEMS = 256  # what a killed run loses at most
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The share of questions answered right, its standard error, and of how many; None where there are too few."""

    value: float | None
    se: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class HellaswagResult(Result):
    """Questions answered, one row each in `items.parquet` of `out`."""

    out: Path
    model: str
    resumed_items: int  # that an earlier run of the same command answered
    items: int
    status: dict[str, int]  # "ok", or what is wrong, and of how many questions
    acc: Accuracy  # by log-likelihood
    acc_norm: Accuracy  # by log-likelihood per character
    acc_bytes: Accuracy  # by log-likelihood per byte
    speed: float = field(repr=False)  # questions a second; 0 where none was answered now

    def lines(self) -> list[str]:
        items = self.out / "items.parquet"
        lines = [f"{self.items:,} questions answered in {items}"]
        for name, (_, words) in ACCURACIES.items():
            one: Accuracy = getattr(self, name)
            if one.n:
                se = f" ± {one.se:.4f}" if one.se is not None else ""
                lines.append(f"{name:9} {one.value:.4f}{se}  {words}, n = {one.n:,}")
        odd = [f"{count} {name}" for name, count in self.status.items() if name != "ok"]
        lines += [f"not ok: {', '.join(odd)}"] * bool(odd)
        lines += [f"{self.speed:.1f} questions/s"] * bool(self.speed)
        return [*lines, f"next: fluxentropy diagnose {items} --target correct_norm --out DIR"]


@command
def hellaswag(config: HellaswagConfig) -> HellaswagResult:
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
        reader = Reader(
            decoder, path, max_tokens=config.max_tokens, batch_tokens=config.batch_tokens, threads=config.threads
        )
        run.begin(_identity(config, questions, reader), to_yaml(config))
        for note in (*notes, reader.note):
            log.info(note)
        return _answer_all(config, questions, reader, run)


def _answer_all(config: HellaswagConfig, questions: Questions, reader: Reader, run: RunDirectory) -> HellaswagResult:
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
    return HellaswagResult(
        out=config.out,
        model=config.model,
        resumed_items=resumed,
        items=facts["items"],
        status=facts["status"],
        **{name: Accuracy(**facts[name]) for name in ACCURACIES},
        speed=answered / seconds,
    )


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
