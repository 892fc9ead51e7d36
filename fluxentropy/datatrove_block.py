"""The scores as a block of a datatrove pipeline: documents in, the same documents with scores in their metadata out.

    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.writers import ParquetWriter
    from fluxentropy.datatrove_block import EntropyScorer

    pipeline = [ParquetReader("web"), EntropyScorer("smollm2-135m-instruct"), ParquetWriter("scored")]
    LocalPipelineExecutor(pipeline, tasks=64, workers=2, logging_dir="logs").run()

A block is pickled and copied to each task, so it holds its options alone; a task loads the model when it has its first
document.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal

from fluxentropy.adapters import WINDOW, make_scorer
from fluxentropy.errors import UsageError
from fluxentropy.options import ScoringOptions
from fluxentropy.scores import SCORE_NAMES

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise ImportError("fluxentropy.datatrove_block needs datatrove: pip install 'fluxentropy[datatrove]'") from error

if TYPE_CHECKING:
    from datatrove.data import Document


class EntropyScorer(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """Adds the scores of a document's text to its metadata: `entropy_mean`, all other score columns, and `status`.

    A score that a text does not have is None, and `status` says why. The scores are those of `score_stream` with a
    window of `batch_size`. The step's statistics count tokens and documents by status, and sum up mean entropies.

    Args:
        model: zoo name, Hub id, folder or .gguf file
        prefix: stands before each name, so that several models can score the same documents
        batch_size: documents that are tokenised, sorted by length and scored together
        device, dtype, offline, max_tokens, window, stride, batch_tokens: as for `fluxentropy score`; the device
            "auto" is the first GPU that a task sees

    Errors: UsageError when a document's metadata has one of the names already, and for options that make no sense or
    do not fit the model; ModelError when the model cannot be loaded.
    """

    name = "🎲 Entropy"
    type = "🔢 - SCORER"

    def __init__(
        self,
        model: str,
        *,
        prefix: str = "",
        batch_size: int = WINDOW,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
        max_tokens: int = 512,
        window: Literal["first", "sliding"] = "first",
        stride: int | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UsageError(f"batch_size {batch_size}: use 1 or more")
        if window not in ("first", "sliding"):
            raise UsageError(f"window {window!r}: use first or sliding")
        ScoringOptions(max_tokens=max_tokens, window=window, stride=stride, batch_tokens=batch_tokens)  # checks them
        self.model, self.prefix, self.batch_size = model, prefix, batch_size
        self.options = {
            "device": device,
            "dtype": dtype,
            "offline": offline,
            "max_tokens": max_tokens,
            "window": window,
            "stride": stride,
            "batch_tokens": batch_tokens,
        }

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:  # noqa: ARG002
        """Yield the documents in order, with their scores."""
        documents = iter(data or ())
        scorer = None
        while batch := list(itertools.islice(documents, self.batch_size)):
            self._check_names(batch)
            with self.track_time("batch"):
                scorer = scorer or make_scorer(self.model, **self.options)
                scores = scorer.score_encoded(scorer.encode([document.text for document in batch]))
            for document, found in zip(batch, scores, strict=True):
                document.metadata |= {self.prefix + name: value for name, value in dataclasses.asdict(found).items()}
                self.stat_update("tokens", value=found.n_tokens)
                self.stat_update(f"status_{found.status}")
                if found.entropy_mean is not None:
                    self.stat_update("entropy_mean", value=found.entropy_mean)
                self.update_doc_stats(document)
                yield document

    def _check_names(self, batch: list[Document]) -> None:
        names = {self.prefix + name for name in SCORE_NAMES}
        for document in batch:
            if taken := sorted(names & document.metadata.keys()):
                raise UsageError(
                    f"document {document.id!r} has {taken[0]!r} in its metadata already: "
                    f"remove it, or give {type(self).__name__} another prefix"
                )
