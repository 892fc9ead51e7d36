"""What a worker of `score` makes of a part of the corpus: by a model, or of the texts alone."""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.errors import UsageError
from fluxentropy.models.tokenizers import Encoded
from fluxentropy.models.zoo import find_model
from fluxentropy.runs.directory import RunDirectory
from fluxentropy.runs.engine import WORKER
from fluxentropy.scoring.counts import checked_counts, vocabulary_fingerprint
from fluxentropy.scoring.lexical import COUNTS_FILE, RULE, WordCounts
from fluxentropy.scoring.options import ScoreConfig
from fluxentropy.scoring.scores import NO_MODEL, SCORE_FIELDS, ExtraScores, lexical_columns, score_columns

if TYPE_CHECKING:
    from fluxentropy.scoring.scorer import Scorer

# --- what a worker does -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """The unit: rows of the corpus, cut by their content alone."""

    number: int
    table: pa.Table
    text_field: str
    batch_tokens: int  # of the run: a GPU's memory is asked once, not by each worker
    encoded: list[Encoded] | None = None  # the texts as tokens, where somebody has had the time

    def __str__(self) -> str:
        return f"part {self.number}"

    @property
    def texts(self) -> list[str | None]:
        return self.table[self.text_field].to_pylist()


@dataclass(kw_only=True)
class Work:
    """What the forward passes did so far: real tokens (duplicates once, padding not), padded tokens, and seconds by
    the clock, however many threads there were."""

    tokens: int = 0
    padded: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ScoredPart:
    """What a worker says of a part that it has made."""

    number: int
    rows: int
    work: Work
    peak_memory: int  # bytes


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """What the model turned out to be, where it was loaded."""

    name: str
    fingerprint: str
    dtype: str
    device: str
    path: str
    batch_tokens: int
    stride: int | None  # of sliding windows
    bos_added: bool
    tokenizer: str  # the fingerprint of its vocabulary
    notes: tuple[str, ...]


@dataclass(kw_only=True)
class ScoreParts:
    """The job. What it loads stays with it, and does not travel when it is pickled."""

    config: ScoreConfig
    batch_tokens: int | None = None  # of the run that is resumed, where the memory decided
    on_batch: Callable[[int], None] | None = None  # is told the tokens of each batch, in the process that set it
    _scorer: Scorer | None = field(default=None, repr=False)
    _notes: tuple[str, ...] = ()
    _frequency: np.ndarray | None = field(default=None, repr=False)  # ln of each token's, from the token counts
    _words: WordCounts | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "on_batch": None, "_scorer": None, "_notes": (), "_frequency": None, "_words": None}

    @property
    def scorer(self) -> Scorer:
        config = self.config
        if self._scorer is None:
            from fluxentropy.scoring.scorer import open_scorer  # loads torch, which scores of texts alone do without

            entry = find_model(
                config.model, zoo=config.zoo, revision=config.revision, trust_remote_code=config.trust_remote_code
            )
            self._scorer, self._notes = open_scorer(
                entry,
                device=worker_device(config.device),
                dtype=config.dtype,
                offline=config.offline,
                max_tokens=config.max_tokens,
                window=config.window,
                stride=config.stride,
                batch_tokens=config.batch_tokens or self.batch_tokens,
                threads=config.threads,
            )
        return self._scorer

    def _extra(self, texts: list[str | None], encoded: list[Encoded]) -> ExtraScores | None:
        """The scores that `--scores` asks for, none of them made yet."""
        config, scorer = self.config, self.scorer
        if not config.scores:
            return None
        if config.token_counts is not None and self._frequency is None:
            found = checked_counts(config.token_counts, scorer.decoder.tokenizer, config.model)
            self._frequency = found.log_frequency(scorer.outcomes)
        if self._words is None:
            self._words = word_counts(config)
        return ExtraScores(
            config.scores,
            texts,
            encoded,
            vocabulary=scorer.outcomes,
            log_frequency=self._frequency,
            words=self._words,
        )

    def describe(self, _: object = None) -> OpenModel:
        scorer = self.scorer
        self._extra([], [])  # token counts of another tokenizer are refused before anything is written
        return OpenModel(
            name=scorer.decoder.name,
            fingerprint=scorer.decoder.fingerprint,
            dtype=str(scorer.decoder.dtype).removeprefix("torch."),
            device=scorer.decoder.device.type,
            path=scorer.path.name,
            batch_tokens=scorer.batch_tokens,
            stride=scorer.stride if scorer.sliding else None,
            bos_added=scorer.encoder.n_prefix > 0,
            tokenizer=vocabulary_fingerprint(scorer.decoder.tokenizer),
            notes=self._notes,
        )

    def encode(self, part: TextPart) -> TextPart:
        return dataclasses.replace(part, encoded=self.scorer.encode(part.texts))

    def __call__(self, part: TextPart | None) -> ScoredPart | OpenModel:
        """Score a part and write it into the run directory; of None, say what the model is."""
        if part is None:
            return self.describe()
        scorer, table = self.scorer, part.table
        scorer.work, scorer.batch_tokens = Work(), part.batch_tokens
        encoded = scorer.encode(part.texts) if part.encoded is None else part.encoded
        extra = self._extra(part.texts, encoded)
        scores = scorer.score_encoded(encoded, on_batch=self.on_batch, on_text=extra.add if extra else None)
        columns = score_columns(scores, table["input_status"])
        kept = table.drop_columns(["input_status", *([] if self.config.text else [part.text_field])])
        for column in SCORE_FIELDS:
            kept = kept.append_column(column, columns[column.name])
        for name, values in (extra.columns() if extra else {}).items():
            kept = kept.append_column(name, values)
        with RunDirectory(self.config.out).part(part.number, _facts(encoded, columns["status"].to_pylist())) as path:
            pq.write_table(kept, path, compression="zstd", row_group_size=4096)
        return ScoredPart(number=part.number, rows=len(table), work=scorer.work, peak_memory=peak_memory())


def _facts(encoded: list[Encoded], status: list[str]) -> dict[str, Any]:
    """What the part's manifest says."""
    counts = {"rows": len(encoded), "tokens": sum(len(item.ids) for item in encoded)}
    counts |= {"bytes": sum(item.n_bytes for item in encoded), "truncated": sum(item.truncated for item in encoded)}
    counts |= {f"status_{name}": n for name, n in sorted(Counter(status).items())}
    return {"rows": len(encoded), "counts": counts}


def worker_device(device: str) -> str:
    """`device`, and where it leaves open which GPU: in worker process n the n-th, and again from the first.

    >>> worker_device("cpu")
    'cpu'
    """
    import torch

    if device in ("auto", "cuda") and (number := os.environ.get(WORKER)) and (gpus := torch.cuda.device_count()):
        return f"cuda:{int(number) % gpus}"
    return device


def peak_memory() -> int:
    """The most memory, in bytes, that this process has held. Linux's own mark: getrusage would count the parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- without a model --------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class LexicalParts:
    """The job of `--model none`: no model and no tokenizer is opened, and nothing that needs torch is loaded."""

    config: ScoreConfig
    _words: WordCounts | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_words": None}

    def describe(self) -> OpenModel:
        """What stands for the model. Errors: those of the table of words, before anything is written."""
        if self.config.word_table is not None:
            self._words = word_counts(self.config)
        facts = {"dtype": NO_MODEL, "device": "cpu", "path": "text", "tokenizer": "", "notes": ()}
        return OpenModel(
            name=NO_MODEL,
            fingerprint=RULE,
            batch_tokens=0,
            stride=None,
            bos_added=False,
            **facts,  # type: ignore[arg-type]
        )

    def __call__(self, part: TextPart | None) -> ScoredPart | OpenModel:
        """Score a part and write it into the run directory; of None, say what stands for the model."""
        if part is None:
            return self.describe()
        if self._words is None:
            self._words = word_counts(self.config)
        started = time.perf_counter()
        table, texts = part.table, part.texts
        sizes = [len((text or "").encode()) for text in texts]
        read = table["input_status"].to_pylist()
        status = [said or ("ok" if size else "empty") for said, size in zip(read, sizes, strict=True)]
        kept = table.drop_columns(["input_status", *([] if self.config.text else [part.text_field])])
        kept = kept.append_column("n_bytes", pa.array(sizes, pa.int64()))
        for name, values in lexical_columns(self.config.scores, texts, self._words).items():
            kept = kept.append_column(name, values)
        kept = kept.append_column("status", pa.array(status, pa.string()))
        counts = {"rows": len(table), "bytes": sum(sizes)}
        counts |= {f"status_{name}": n for name, n in sorted(Counter(status).items())}
        with RunDirectory(self.config.out).part(part.number, {"rows": len(table), "counts": counts}) as path:
            pq.write_table(kept, path, compression="zstd", row_group_size=4096)
        work = Work(seconds=time.perf_counter() - started)
        return ScoredPart(number=part.number, rows=len(table), work=work, peak_memory=peak_memory())


def word_counts(config: ScoreConfig) -> WordCounts | None:
    """The counts of words that `--scores word_frequency` goes by: of a table, or of the run's own texts.

    None where they are not asked for, or not counted yet.
    """
    if "word_frequency" not in config.scores:
        return None
    if config.word_table is not None:
        found = WordCounts.read(config.word_table)
        if not found.counts:
            raise UsageError(f"--word-table {config.word_table}: it has no words")
        return found
    path = config.out / COUNTS_FILE
    return WordCounts.read(path) if path.is_file() else None
