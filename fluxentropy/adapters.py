"""Scores for people who already hold their texts: a `datasets` data set, or any stream of records."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fluxentropy.errors import UsageError
from fluxentropy.parts import prefetch
from fluxentropy.scorer import Scorer, open_scorer
from fluxentropy.scores import SCORE_NAMES, Scores
from fluxentropy.tokenbytes import PREDICTED_BYTES
from fluxentropy.zoo_entries import find_model

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

WINDOW = 512  # texts that are tokenised, sorted by length and scored together

D = TypeVar("D", "Dataset", "IterableDataset")


def make_scorer(model: str | Scorer, **options: Any) -> Scorer:
    """A `Scorer` for a zoo name, Hub id, folder or GGUF file; a `Scorer` is returned as it is.

    `options` are those of `open_scorer`: device, dtype, offline, max_tokens, window, stride, batch_tokens.
    """
    return model if isinstance(model, Scorer) else open_scorer(find_model(model), **options)[0]


def score_dataset(
    dataset: D, model: str | Scorer, *, text_field: str = "text", batch_size: int = WINDOW, **options: Any
) -> D:
    """`dataset` with the score columns added; a streaming data set stays one, and is scored as it is read.

    The result is cached by `datasets` under a fingerprint of the data, the model and the policies, as with `map`.
    Errors: UsageError when the text column is missing, or a score's name is taken.
    """
    names = dataset.column_names
    if names is not None and text_field not in names:
        raise UsageError(f"no column {text_field!r} in the data set: it has {', '.join(names)}")
    if taken := sorted(set(names or ()) & set(SCORE_NAMES)):
        raise UsageError(f"the data set has a column {taken[0]!r} already: rename or remove it")
    scorer = make_scorer(model, **options)

    def add(batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        return _columns(scorer.score(batch[text_field]))

    if not hasattr(dataset, "_fingerprint"):  # streaming
        return dataset.map(add, batched=True, batch_size=batch_size)
    from datasets.fingerprint import Hasher

    key = (
        dataset._fingerprint,
        scorer.decoder.fingerprint,
        str(scorer.decoder.dtype),
        scorer.max_tokens,
        scorer.sliding,
        scorer.stride,
        text_field,
        batch_size,
        PREDICTED_BYTES,
    )
    return dataset.map(add, batched=True, batch_size=batch_size, new_fingerprint=Hasher.hash(key), desc="scoring")


def score_stream(
    records: Iterable[Mapping[str, Any] | str],
    model: str | Scorer,
    *,
    text_field: str = "text",
    window: int = WINDOW,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Yield each record with its scores added, in order, holding at most some `window`s of them in memory.

    A record is a mapping with a `text_field`, or a text itself. The next window is read and tokenised while the
    current one is scored. Errors: UsageError for a record without the field.
    """
    scorer = make_scorer(model, **options)

    def windows() -> Iterator[tuple[list[Mapping[str, Any]], list[Any]]]:
        source = ({text_field: record} if isinstance(record, str) else record for record in records)
        while block := list(itertools.islice(source, window)):
            for record in block:
                if text_field not in record:
                    raise UsageError(f"a record has no field {text_field!r}: it has {', '.join(map(str, record))}")
            yield block, scorer.encode([record[text_field] for record in block])

    for block, encoded in prefetch(windows()):
        for record, scores in zip(block, scorer.score_encoded(encoded), strict=True):
            yield {**record, **dataclasses.asdict(scores)}


def _columns(scores: list[Scores]) -> dict[str, list[Any]]:
    return {name: [getattr(row, name) for row in scores] for name in SCORE_NAMES}
