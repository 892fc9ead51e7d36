"""`fluxentropy score`: a corpus in, a resumable run directory of scores out.

The corpus is cut into parts by its content alone, so a part is the same whenever and however often it is made. Batches
never cross a part's border, which makes every part's bytes independent of where a former run was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.config import ScoreConfig, to_yaml
from fluxentropy.corpus import Corpus, SourceFile, open_corpus
from fluxentropy.encoding import Encoded
from fluxentropy.outcome import Outcome
from fluxentropy.parts import cut_parts, missing_parts, prefetch
from fluxentropy.progress import Progress
from fluxentropy.scorer import Scorer, open_scorer
from fluxentropy.scores import SCORE_FIELDS, SCORE_NAMES, score_columns
from fluxentropy.store import RunDirectory, atomic_path, read_json, write_json
from fluxentropy.versions import versions
from fluxentropy.zoo_entries import ZooEntry, find_model

CPU_PART_TOKENS, GPU_PART_TOKENS = 2**17, 2**22  # about two minutes of a small model on a CPU, seconds on a GPU
SCANS = ".scans.json"  # what reading the text files once taught: a resumed run need not do it again
CHARS_PER_TOKEN = 4  # for cutting parts: a part's size is only roughly its number of tokens

log = logging.getLogger(__name__)


def score(config: ScoreConfig) -> Outcome:
    """Score every text of the sources into `config.out`, going on where an earlier run of the same command stopped."""
    entry = find_model(
        config.model, zoo=config.zoo, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    if config.dry_run:
        with tempfile.TemporaryDirectory() as spool:
            corpus = _open_corpus(config, Path(spool))
            return _plan(config, corpus, *_open_scorer(config, entry))
    with RunDirectory(config.out, overwrite=config.overwrite) as run:
        corpus = _open_corpus(config, config.out)
        write_json(config.out / SCANS, corpus.scans)
        scorer, notes = _open_scorer(config, entry)
        run.begin(_identity(config, corpus, scorer), to_yaml(config))
        return _ScoreRun(config, corpus, scorer, run).run_all(notes)


def _open_corpus(config: ScoreConfig, folder: Path) -> Corpus:
    return open_corpus(
        config.sources,
        text_field=config.text_field,
        id_field=config.id_field,
        on_error=config.on_error,
        limit=config.limit,
        spool=folder / "input" / "stdin.jsonl",
        offline=config.offline,
        reserved=SCORE_NAMES,
        scans=read_json(folder / SCANS),
    )


def _open_scorer(config: ScoreConfig, entry: ZooEntry) -> tuple[Scorer, tuple[str, ...]]:
    return open_scorer(
        entry,
        device=config.device,
        dtype=config.dtype,
        offline=config.offline,
        max_tokens=config.max_tokens,
        window=config.window,
        stride=config.stride,
        batch_tokens=config.batch_tokens,
    )


def _part_tokens(config: ScoreConfig, scorer: Scorer) -> int:
    return config.part_tokens or (CPU_PART_TOKENS if scorer.decoder.device.type == "cpu" else GPU_PART_TOKENS)


class _ScoreRun:
    """One invocation of `score` on an open run directory."""

    def __init__(self, config: ScoreConfig, corpus: Corpus, scorer: Scorer, run: RunDirectory) -> None:
        self.config, self.corpus, self.scorer, self.run = config, corpus, scorer, run
        self.texts = 0  # scored by this invocation

    def run_all(self, notes: tuple[str, ...]) -> Outcome:
        done = self.run.done()
        rows = {number: part["rows"] for number, part in done.items()}
        resumed = sum(rows.values())
        for note in notes:
            log.info(note)
        if resumed:
            log.info(f"resuming: {len(done)} parts, {resumed:,} texts are done")
        self._write_rejected()
        started = time.perf_counter()
        with Progress(None) as progress:
            for number, table, encoded in prefetch(self._parts(rows)):
                self._write_part(number, table, encoded, progress, resumed)
        seconds = time.perf_counter() - started
        done = self.run.done()
        counts: Counter[str] = Counter()
        for part in done.values():
            counts.update(part["counts"])
        facts = {
            "counts": dict(sorted(counts.items())),
            "parts": len(done),
            "rejected": len(self.corpus.rejected),
            "duplicate_ids": count_duplicate_ids(self.run.parts),
        }
        self.run.finish({**facts, "inputs": self._inputs(), "versions": versions(), "policies": _policies(self.scorer)})
        return self._outcome(facts, resumed, seconds)

    def _write_rejected(self) -> None:
        if not self.corpus.rejected:
            return
        with atomic_path(self.run.path / "rejected.jsonl") as path, open(path, "w", encoding="utf-8") as file:
            for row in self.corpus.rejected:
                file.write(json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n")

    def _parts(self, done: dict[int, int]) -> Iterator[tuple[int, pa.Table, list[Encoded]]]:
        """The parts that are not among those done (part -> its rows)."""
        for number, table in missing_parts(done, self._tables):
            yield number, table, self.scorer.encode(table[self.corpus.text_field].to_pylist())

    def _tables(self, start: int) -> Iterator[pa.Table]:
        cap = None if self.scorer.sliding else self.scorer.max_tokens * CHARS_PER_TOKEN
        part_chars = _part_tokens(self.config, self.scorer) * CHARS_PER_TOKEN
        return cut_parts(self.corpus.batches(start), self.corpus.text_field, part_chars, cap)

    def _write_part(
        self, number: int, table: pa.Table, encoded: list[Encoded], progress: Progress, resumed: int
    ) -> None:
        scores = self.scorer.score_encoded(encoded, on_batch=lambda n: progress.update(n))
        columns = score_columns(scores, table["input_status"])
        kept = table.drop_columns(["input_status", *([] if self.config.text else [self.corpus.text_field])])
        for field in SCORE_FIELDS:
            kept = kept.append_column(field, columns[field.name])
        status = Counter(columns["status"].to_pylist())
        counts = {"rows": len(table), "tokens": sum(len(item.ids) for item in encoded)}
        counts |= {"bytes": sum(item.n_bytes for item in encoded), "truncated": sum(item.truncated for item in encoded)}
        counts |= {f"status_{name}": n for name, n in sorted(status.items())}
        with self.run.part(number, {"rows": len(table), "counts": counts}) as path:
            pq.write_table(kept, path, compression="zstd", row_group_size=4096)
        self._forecast(progress, number, len(table), resumed)

    def _forecast(self, progress: Progress, number: int, rows: int, resumed: int) -> None:
        """Tell the progress line how many texts are done, and the total of tokens if the others are as long."""
        self.texts += rows
        if self.corpus.n_rows:
            progress.total = round(progress.done / self.texts * (self.corpus.n_rows - resumed))
        progress.update(0, texts=resumed + self.texts, parts=number + 1)

    def _inputs(self) -> list[dict[str, Any]]:
        return [_source_facts(file) for file in self.corpus.files]

    def _outcome(self, facts: dict[str, Any], resumed: int, seconds: float) -> Outcome:
        counts, work = facts["counts"], self.scorer.work
        rate = work.tokens / seconds if work.tokens else 0.0
        peak = peak_memory()
        data = {
            "out": str(self.config.out),
            "model": self.scorer.decoder.name,
            "rows": counts.get("rows", 0),
            "resumed_rows": resumed,
            "counts": counts,
            "rejected": facts["rejected"],
            "duplicate_ids": facts["duplicate_ids"],
            "parts": facts["parts"],
            "tokens": counts.get("tokens", 0),
            "scored_tokens": work.tokens,
            "padded_tokens": work.padded,
            "seconds": round(seconds, 3),
            "forward_seconds": round(work.seconds, 3),
            "tokens_per_second": round(rate, 1),
            "peak_memory_bytes": peak,
            "device": str(self.scorer.decoder.device),
            "dtype": str(self.scorer.decoder.dtype).removeprefix("torch."),
            "path": self.scorer.path.name,
        }
        odd = {
            name.removeprefix("status_"): n
            for name, n in counts.items()
            if name.startswith("status_") and name != "status_ok"
        }
        lines = [
            f"{data['rows']:,} texts, {data['tokens']:,} tokens scored in {self.config.out / 'scores'}, "
            f"{facts['parts']} parts"
        ]
        if work.tokens:
            lines.append(
                f"{rate:,.0f} tok/s, {work.seconds:.1f} s in the forward pass, peak memory {peak / 2**30:.2f} GiB"
            )
        if odd:
            lines.append("not ok: " + ", ".join(f"{n} {name}" for name, n in odd.items()))
        if facts["rejected"]:
            lines.append(f"{facts['rejected']} rows rejected, see {self.config.out / 'rejected.jsonl'}")
        if facts["duplicate_ids"]:
            lines.append(
                f"{facts['duplicate_ids']} texts share an id with an earlier one, see source_file and source_row"
            )
        all_nan = (
            counts.get("status_nan", 0) > 0
            and counts.get("status_nan", 0) + counts.get("status_empty", 0) == counts["rows"]
        )
        if all_nan:
            lines.append(
                f"the model {self.scorer.decoder.name} gave NaN for every text: try --dtype fp32, or another model"
            )
        return Outcome(lines=lines, data=data, exit_code=1 if all_nan else 0)


def peak_memory() -> int:
    """The most memory, in bytes, that this process has held. Linux's own mark: getrusage would count the parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


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


def _identity(config: ScoreConfig, corpus: Corpus, scorer: Scorer) -> dict[str, Any]:
    """Everything that decides the bytes of the parts."""
    return {
        "model": {"name": config.model, "fingerprint": scorer.decoder.fingerprint},
        "dtype": str(scorer.decoder.dtype).removeprefix("torch."),
        "device": scorer.decoder.device.type,
        "path": scorer.path.name,
        "sources": {file.name: file.fingerprint for file in corpus.files},
        "text_field": config.text_field,
        "id_field": config.id_field,
        "keep_text": config.text,
        "max_tokens": config.max_tokens,
        "window": config.window,
        "stride": scorer.stride if scorer.sliding else None,
        "limit": config.limit,
        "on_error": config.on_error,
        "part_tokens": _part_tokens(config, scorer),
        "batch_tokens": scorer.batch_tokens,
    }


def _policies(scorer: Scorer) -> dict[str, Any]:
    return {
        "bos_policy": "tokenizer",
        "bos_added": scorer.encoder.n_prefix > 0,
        "max_tokens": scorer.max_tokens,
        "positions": "entropy and varentropy at all T positions, surprisal at the T-1 that have a target",
        "window": "sliding" if scorer.sliding else "first",
    }


def _source_facts(file: SourceFile) -> dict[str, Any]:
    return {"name": file.name, "rows": file.n_rows, "fingerprint": file.fingerprint}


def _plan(config: ScoreConfig, corpus: Corpus, scorer: Scorer, notes: tuple[str, ...]) -> Outcome:
    """What `--dry-run` says: the inputs, the choices, and a forecast from the first texts."""
    sample = next(iter(corpus.batches()), None)
    texts = sample.column(corpus.text_field).to_pylist()[:200] if sample is not None else []
    per_text = sum(len(item.ids) for item in scorer.encode(texts)) / max(len(texts), 1)
    tokens = None if corpus.n_rows is None else round(per_text * corpus.n_rows)
    data = {
        "sources": [_source_facts(file) for file in corpus.files],
        "rows": corpus.n_rows,
        "estimated_tokens": tokens,
        "rejected": len(corpus.rejected),
        "part_tokens": _part_tokens(config, scorer),
        "batch_tokens": scorer.batch_tokens,
        "out": str(config.out),
        "notes": list(notes),
    }
    size = f"{corpus.n_rows:,} texts, about {tokens:,} tokens" if tokens is not None else "a stream of unknown length"
    lines = [
        f"would score {size} from {len(corpus.files)} files into {config.out / 'scores'}",
        *notes,
        "nothing was written",
    ]
    return Outcome(lines=lines, data=data)
