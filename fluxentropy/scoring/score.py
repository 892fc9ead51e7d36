"""`fluxentropy score`: a corpus in, a resumable run directory of scores out.

The corpus is cut into parts by its content alone, so a part is the same whenever and however often it is made. Batches
never cross a part's border, which makes every part's bytes independent of where a former run was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from fluxentropy.config.results import Result, command
from fluxentropy.config.yaml import to_yaml
from fluxentropy.corpus.corpus import Corpus, SourceFile, open_corpus
from fluxentropy.models.tokenizers import PREDICTED_BYTES
from fluxentropy.models.zoo import find_model
from fluxentropy.runs.directory import RunDirectory
from fluxentropy.runs.engine import Engine, Local, cut_parts, make_engine, missing_parts, prefetch
from fluxentropy.runs.files import atomic_path, read_json, sha256_file, versions, write_json
from fluxentropy.runs.progress import Progress
from fluxentropy.scoring.lexical import COUNTS_FILE, RULE, WordCounts
from fluxentropy.scoring.options import ScoreConfig
from fluxentropy.scoring.parts import LexicalParts, OpenModel, ScoredPart, ScoreParts, TextPart, Work, peak_memory
from fluxentropy.scoring.scores import MODEL_FREE, NO_MODEL, SCORE_NAMES

# --- `fluxentropy score` ----------------------------------------------------------------------------------------------


CPU_PART_TOKENS, GPU_PART_TOKENS = 2**17, 2**22  # about two minutes of a small model on a CPU, seconds on a GPU
SCANS = ".scans.json"  # what reading the text files once taught: a resumed run need not do it again
COMPARED, COMPARED_TOKENS = 32, 128  # texts whose numbers are compared with float32, and about how much of each
CHARS_PER_TOKEN = 4  # for cutting parts: a part's size is only roughly its number of tokens
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScoreResult(Result):
    """A finished run in the folder `out`; some of its rows may be of an earlier, stopped invocation."""

    out: Path
    model: str
    rows: int  # texts
    resumed_rows: int  # of them, of earlier invocations
    counts: dict[str, int]  # `rows`, `tokens`, `bytes`, `truncated`, and rows with each status, as `status_ok`
    rejected: int  # lines of the sources that are no rows
    duplicate_ids: int  # rows with the id of an earlier one
    parts: int
    tokens: int | None  # None without a model
    scored_tokens: int  # by this invocation, as all that follows
    padded_tokens: int
    seconds: float
    forward_seconds: float  # in the model
    tokens_per_second: float
    peak_memory_bytes: int  # of the largest worker
    device: str
    dtype: str
    path: str  # how the logits are reduced to statistics

    @property
    def all_nan(self) -> bool:
        """Whether the model gave NaN for every text that has a token."""
        nan = self.counts.get("status_nan", 0)
        return nan > 0 and nan + self.counts.get("status_empty", 0) == self.rows

    @property
    def exit_code(self) -> int:
        return int(self.all_nan)

    def lines(self) -> list[str]:
        tokens = "" if self.tokens is None else f", {self.tokens:,} tokens"
        lines = [f"{self.rows:,} texts{tokens} scored in {self.out / 'scores'}, {self.parts} parts"]
        if self.scored_tokens:
            lines.append(
                f"{self.tokens_per_second:,.0f} tok/s, {self.forward_seconds:.1f} s in the forward pass, "
                f"peak memory {self.peak_memory_bytes / 2**30:.2f} GiB"
            )
        odd = {name: n for name, n in self.counts.items() if name.startswith("status_") and name != "status_ok"}
        if odd:
            lines.append("not ok: " + ", ".join(f"{n} {name.removeprefix('status_')}" for name, n in odd.items()))
        if self.rejected:
            lines.append(f"{self.rejected} rows rejected, see {self.out / 'rejected.jsonl'}")
        if self.duplicate_ids:
            lines.append(f"{self.duplicate_ids} texts share an id with an earlier one, see source_file and source_row")
        if self.all_nan:
            lines.append(f"the model {self.model} gave NaN for every text: try --dtype fp32, or another model")
        return lines


@dataclass(frozen=True, kw_only=True)
class ScoreRankResult(Result):
    """The share of one of several invocations on the folder `out`."""

    out: Path
    rank: str  # R/N
    rows: int  # texts scored by it
    scored_tokens: int

    def lines(self) -> list[str]:
        return [
            f"rank {self.rank}: {self.rows:,} texts, {self.scored_tokens:,} tokens scored in {self.out / 'scores'}",
            "when all ranks are done, the same command without --rank fills gaps and completes the run",
        ]


@dataclass(frozen=True, kw_only=True)
class ScorePlanResult(Result):
    """What a dry run found, before anything is written: the inputs, the choices, and a forecast."""

    sources: list[dict[str, Any]]  # `name`, `rows`, `fingerprint` of each file
    rows: int | None  # None for a stream
    estimated_tokens: int | None  # from the first 200 texts; None without a model
    rejected: int
    part_tokens: int
    batch_tokens: int
    out: Path
    notes: list[str]

    def lines(self) -> list[str]:
        size = "a stream of unknown length"
        if self.rows is not None:
            tokens = "" if self.estimated_tokens is None else f", about {self.estimated_tokens:,} tokens"
            size = f"{self.rows:,} texts{tokens}"
        return [
            f"would score {size} from {len(self.sources)} files into {self.out / 'scores'}",
            *self.notes,
            "nothing was written",
        ]


@command
def score(config: ScoreConfig) -> ScoreResult | ScoreRankResult | ScorePlanResult:
    """Score every text of the sources into `config.out`, going on where an earlier run of the same command stopped.

    With `config.rank`, one of several invocations on the same directory: it makes its share of the parts.
    """
    job: ScoreParts | LexicalParts = LexicalParts(config=config)
    if config.model != NO_MODEL:
        find_model(config.model, zoo=config.zoo, revision=config.revision, trust_remote_code=config.trust_remote_code)
        job = ScoreParts(config=config)
    if config.dry_run:
        with tempfile.TemporaryDirectory() as spool:
            return _plan(config, _open_corpus(config, Path(spool)), job)
    shared = config.rank is not None
    with RunDirectory(config.out, overwrite=config.overwrite, shared=shared, owned=[COUNTS_FILE]) as run:
        corpus = _open_corpus(config, config.out)
        if config.rank is None:
            write_json(config.out / SCANS, corpus.scans)
        if isinstance(job, ScoreParts):
            job.batch_tokens = _chosen_by_memory(run)
        engine = make_engine(config.engine, config.workers, config.address, config.gpus_per_worker)
        (model,) = engine.run(job, [None])
        assert isinstance(model, OpenModel)
        if (
            model.batch_tokens and config.batch_tokens is None and (begun := _chosen_by_memory(run))
        ):  # maybe by another rank, meanwhile
            model = dataclasses.replace(model, batch_tokens=begun)
        run.begin(_identity(config, corpus, model), to_yaml(dataclasses.replace(config, rank=None)))
        if "word_frequency" in config.scores and config.word_table is None and not run.complete:
            _count_words(corpus, config.out / COUNTS_FILE)
        if isinstance(job, ScoreParts) and model.dtype == "int8" and not run.done():
            log.info(f"dtype int8: {job.scorer.compared(_first_texts(corpus))}")
            job.scorer.work = Work()
        return _ScoreRun(config, corpus, model, run).run_all(engine, job)


def _count_words(corpus: Corpus, path: Path) -> None:
    """Count the words of all texts into `path`, where that has not been done. Memory grows with the different words."""
    if path.is_file():
        return
    with Progress(corpus.n_rows, unit="texts counted") as progress:

        def texts() -> Iterator[str]:
            for batch in corpus.batches():
                yield from (text or "" for text in batch.column(corpus.text_field).to_pylist())
                progress.update(batch.num_rows)

        WordCounts.of(texts()).write(path)


def _first_texts(corpus: Corpus) -> list[str]:
    """Enough to see how far the entropies of another precision are."""
    sample = next(iter(corpus.batches()), None)
    texts = sample.column(corpus.text_field).to_pylist()[:COMPARED] if sample is not None else []
    return [text[: COMPARED_TOKENS * CHARS_PER_TOKEN] for text in texts if text]


def _chosen_by_memory(run: RunDirectory) -> int | None:
    """The batch size of the run that the directory holds, if it is one of a GPU: other jobs may use its memory now."""
    identity = (read_json(run.manifest) or {}).get("identity", {})
    return identity.get("batch_tokens") if identity.get("device", "cpu") != "cpu" else None


def _open_corpus(config: ScoreConfig, folder: Path) -> Corpus:
    return open_corpus(
        config.sources,
        text_field=config.text_field,
        id_field=config.id_field,
        on_error=config.on_error,
        limit=config.limit,
        spool=folder / "input" / "stdin.jsonl",
        offline=config.offline,
        reserved=(*(("n_bytes", "status") if config.model == NO_MODEL else SCORE_NAMES), *config.scores),
        scans=read_json(folder / SCANS),
        columns=config.columns,
        drop=config.drop,
    )


def _part_tokens(config: ScoreConfig, model: OpenModel) -> int:
    slow = model.device == "cpu" and model.name != NO_MODEL
    return config.part_tokens or (CPU_PART_TOKENS if slow else GPU_PART_TOKENS)


class _ScoreRun:
    """One invocation of `score` on an open run directory."""

    def __init__(self, config: ScoreConfig, corpus: Corpus, model: OpenModel, run: RunDirectory) -> None:
        self.config, self.corpus, self.model, self.run = config, corpus, model, run
        self.texts = 0  # scored by this invocation
        self.work = Work()
        self.peak = 0  # bytes, of any worker

    def run_all(self, engine: Engine, job: ScoreParts | LexicalParts) -> ScoreResult | ScoreRankResult:
        done = self.run.done()
        rows = {number: part["rows"] for number, part in done.items()}
        resumed = sum(rows.values())
        for note in self.model.notes:
            log.info(note)
        if resumed:
            log.info(f"resuming: {len(done)} parts, {resumed:,} texts are done")
        started = time.perf_counter()
        modelled = isinstance(job, ScoreParts)
        texts = None if self.corpus.n_rows is None else self.corpus.n_rows - resumed
        with Progress(None) if modelled else Progress(texts, unit="texts") as progress:
            parts = self._parts(rows)
            if here := isinstance(job, ScoreParts) and isinstance(engine, Local):
                job.on_batch = progress.update
                parts = map(job.encode, parts)
            for part in engine.run(job, prefetch(parts)):
                assert isinstance(part, ScoredPart)
                self._count(part)
                progress.update(0 if here else part.work.tokens if modelled else part.rows)
                if modelled:
                    self._forecast(progress, part.number, resumed)
        seconds = time.perf_counter() - started
        if self.config.rank is not None:
            return ScoreRankResult(
                out=self.config.out, rank=self.config.rank, rows=self.texts, scored_tokens=self.work.tokens
            )
        self._write_rejected()
        done = self.run.done()
        counts: Counter[str] = Counter()
        for facts in done.values():
            counts.update(facts["counts"])
        facts = {
            "counts": dict(sorted(counts.items())),
            "parts": len(done),
            "rejected": len(self.corpus.rejected),
            "duplicate_ids": count_duplicate_ids(self.run.parts),
        }
        self.run.finish({**facts, "inputs": self._inputs(), "versions": versions(), "policies": self._policies()})
        return self._result(facts, resumed, seconds)

    def _count(self, part: ScoredPart) -> None:
        self.texts += part.rows
        self.work.tokens += part.work.tokens
        self.work.padded += part.work.padded
        self.work.seconds += part.work.seconds
        self.peak = max(self.peak, part.peak_memory)

    def _write_rejected(self) -> None:
        if not self.corpus.rejected:
            return
        with atomic_path(self.run.path / "rejected.jsonl") as path, open(path, "w", encoding="utf-8") as file:
            for row in self.corpus.rejected:
                file.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")

    def _parts(self, done: dict[int, int]) -> Iterator[TextPart]:
        """The parts that are not among those done (part -> its rows), and fall to this rank.

        A corpus without rows has one part, so that its columns are known.
        """
        rank, ranks = self.config.share
        parts = missing_parts(done, self._tables)
        first = next(parts, None)
        if first is None and not done:
            first = 0, self.corpus.schema.empty_table()
        for number, table in chain([] if first is None else [first], parts):
            if number % ranks == rank:
                yield TextPart(
                    number=number,
                    table=table,
                    text_field=self.corpus.text_field,
                    batch_tokens=self.model.batch_tokens,
                )

    def _tables(self, start: int) -> Iterator[pa.Table]:
        whole = self.model.stride or self.model.name == NO_MODEL
        cap = None if whole else self.config.max_tokens * CHARS_PER_TOKEN
        part_chars = _part_tokens(self.config, self.model) * CHARS_PER_TOKEN
        return cut_parts(self.corpus.batches(start), self.corpus.text_field, part_chars, cap)

    def _forecast(self, progress: Progress, number: int, resumed: int) -> None:
        """Tell the progress line how many texts are done, and the total of tokens if the others are as long."""
        if self.corpus.n_rows and self.config.rank is None:
            progress.total = round(progress.done / self.texts * (self.corpus.n_rows - resumed))
        progress.update(0, texts=resumed + self.texts, parts=number + 1)

    def _policies(self) -> dict[str, Any]:
        if self.model.name == NO_MODEL:
            return {"words": RULE}
        return {
            "bos_policy": "tokenizer",
            "bos_added": self.model.bos_added,
            "tokenizer": self.model.tokenizer,
            "max_tokens": self.config.max_tokens,
            "positions": "entropy and varentropy at all T positions, surprisal at the T-1 that have a target",
            "window": self.config.window,
        }

    def _inputs(self) -> list[dict[str, Any]]:
        return [_source_facts(file) for file in self.corpus.files]

    def _result(self, facts: dict[str, Any], resumed: int, seconds: float) -> ScoreResult:
        counts, work, model = facts["counts"], self.work, self.model
        return ScoreResult(
            **facts,
            out=self.config.out,
            model=model.name,
            rows=counts.get("rows", 0),
            resumed_rows=resumed,
            tokens=None if model.name == NO_MODEL else counts.get("tokens", 0),
            scored_tokens=work.tokens,
            padded_tokens=work.padded,
            seconds=round(seconds, 3),
            forward_seconds=round(work.seconds, 3),
            tokens_per_second=round(work.tokens / seconds, 1) if work.tokens else 0.0,
            peak_memory_bytes=max(self.peak, peak_memory()),
            device=model.device,
            dtype=model.dtype,
            path=model.path,
        )


def count_duplicate_ids(folder: Path) -> int:
    """Rows of the parts in `folder` whose id an earlier row has too. DuckDB counts, and spills to disk if it must."""
    import duckdb

    files = sorted(str(path) for path in folder.glob("part-*.parquet"))
    if not files:
        return 0
    with duckdb.connect(
        config={"memory_limit": "1GB", "temp_directory": str(folder / ".spill"), "threads": 2}
    ) as connection:
        rows, distinct = connection.execute(
            "SELECT count(id), count(DISTINCT id) FROM read_parquet(?)", [files]
        ).fetchone() or (0, 0)
    return int(rows - distinct)


# --- what a run is ----------------------------------------------------------------------------------------------------


def _identity(config: ScoreConfig, corpus: Corpus, model: OpenModel) -> dict[str, Any]:
    """Everything that decides the bytes of the parts."""
    corpus_facts = ("sources", "text_field", "id_field", "keep_text", "limit", "on_error", "columns", "drop")
    kept = ("model", *corpus_facts, "part_tokens", "scores", "word_table", "words", "zlib")
    facts = {
        "model": {"name": config.model, "fingerprint": model.fingerprint},
        "dtype": model.dtype,
        "device": model.device,
        "path": model.path,
        "sources": {file.name: file.fingerprint for file in corpus.files},
        "text_field": config.text_field,
        "id_field": config.id_field,
        "keep_text": config.text,
        "max_tokens": config.max_tokens,
        "window": config.window,
        "stride": model.stride,
        "limit": config.limit,
        "on_error": config.on_error,
        "part_tokens": _part_tokens(config, model),
        "batch_tokens": model.batch_tokens,
        "predicted_bytes": PREDICTED_BYTES,
        **({} if config.columns is None else {"columns": list(config.columns)}),
        **({"drop": list(config.drop)} if config.drop else {}),
        **_extra_identity(config),
    }
    return facts if model.name != NO_MODEL else {name: facts[name] for name in kept if name in facts}


def _extra_identity(config: ScoreConfig) -> dict[str, Any]:
    """What decides the columns of `--scores`; nothing without them, so that runs without them stay what they are."""
    if not config.scores:
        return {}
    return {
        "scores": list(config.scores),
        "token_counts": None if config.token_counts is None else sha256_file(config.token_counts),
        "zlib": zlib.ZLIB_RUNTIME_VERSION if {"zlib_ratio", "gzip_ratio"} & {*config.scores} else None,
        **({"words": RULE} if {*config.scores} & {*MODEL_FREE} - {"zlib_ratio"} else {}),
        **({"word_table": sha256_file(config.word_table)} if config.word_table is not None else {}),
    }


def _source_facts(file: SourceFile) -> dict[str, Any]:
    return {"name": file.name, "rows": file.n_rows, "fingerprint": file.fingerprint}


def _plan(config: ScoreConfig, corpus: Corpus, job: ScoreParts | LexicalParts) -> ScorePlanResult:
    """What `--dry-run` says: the inputs, the choices, and a forecast from the first texts."""
    model = job.describe()
    tokens = None
    if isinstance(job, ScoreParts) and corpus.n_rows is not None:
        sample = next(iter(corpus.batches()), None)
        texts = sample.column(corpus.text_field).to_pylist()[:200] if sample is not None else []
        per_text = sum(len(item.ids) for item in job.scorer.encode(texts)) / max(len(texts), 1)
        tokens = round(per_text * corpus.n_rows)
    return ScorePlanResult(
        sources=[_source_facts(file) for file in corpus.files],
        rows=corpus.n_rows,
        estimated_tokens=tokens,
        rejected=len(corpus.rejected),
        part_tokens=_part_tokens(config, model),
        batch_tokens=model.batch_tokens,
        out=config.out,
        notes=list(model.notes),
    )
