"""The job of `score`: a part of the corpus in, the part's file out. It loads the model once, where it runs."""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.config import ScoreConfig
from fluxentropy.encoding import Encoded
from fluxentropy.engine import WORKER
from fluxentropy.extrascores import ExtraScores
from fluxentropy.scorer import Scorer, Work, open_scorer
from fluxentropy.scores import SCORE_FIELDS, score_columns
from fluxentropy.store import RunDirectory
from fluxentropy.tokencounts import checked_counts, vocabulary_fingerprint
from fluxentropy.zoo_entries import find_model


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """The unit: rows of the corpus, cut by their content alone."""

    number: int
    table: pa.Table
    text_field: str
    encoded: list[Encoded] | None = None  # the texts as tokens, where somebody has had the time

    def __str__(self) -> str:
        return f"part {self.number}"

    @property
    def texts(self) -> list[str | None]:
        return self.table[self.text_field].to_pylist()


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
    on_batch: Callable[[int], None] | None = None  # is told the tokens of each batch, in the process that set it
    _scorer: Scorer | None = field(default=None, repr=False)
    _notes: tuple[str, ...] = ()
    _frequency: np.ndarray | None = field(default=None, repr=False)  # ln of each token's, from the token counts

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config, "on_batch": None, "_scorer": None, "_notes": (), "_frequency": None}

    @property
    def scorer(self) -> Scorer:
        config = self.config
        if self._scorer is None:
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
                batch_tokens=config.batch_tokens,
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
        return ExtraScores(config.scores, texts, encoded, vocabulary=scorer.outcomes, log_frequency=self._frequency)

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
        scorer.work = Work()
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
