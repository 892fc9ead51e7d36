"""Scores for people who already hold their texts: a `datasets` data set, or any stream of records."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fluxentropy.errors import UsageError
from fluxentropy.runs.engine import prefetch
from fluxentropy.scoring.scorer import Scorer
from fluxentropy.scoring.scores import SCORE_NAMES
from fluxentropy.scoring.tokens import described

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


WINDOW = 512  # texts that are tokenised, sorted by length and scored together
D = TypeVar("D", "Dataset", "IterableDataset")


def make_scorer(model: str | Scorer, **options: Any) -> Scorer:
    """A `Scorer` for a zoo name, Hub id, folder or GGUF file; a `Scorer` is returned as it is.

    `options` are those of `open_scorer`: device, dtype, offline, max_tokens, window, stride, batch_tokens.
    """
    return model if isinstance(model, Scorer) else Scorer.from_pretrained(model, **options)


def score_dataset(
    dataset: D, model: str | Scorer, *, text_field: str = "text", batch_size: int = WINDOW, **options: Any
) -> D:
    """`dataset` with the score columns added; a streaming data set stays one, and is scored as it is read.

    The result is cached by `datasets` under a fingerprint of the data, the model and the policies, as with `map`.
    A row without a text (None) is kept, with null scores. Errors: UsageError for what is no data set, when the text
    column is missing or holds something else than texts, or a score's name is taken.
    """
    if isinstance(dataset, Mapping):
        raise UsageError(f"dataset has the splits {', '.join(map(str, dataset))}: give one of them")
    if not hasattr(dataset, "column_names"):
        raise UsageError(f"dataset is {described(dataset)}, and none of `datasets`: use score_stream for texts")
    names = dataset.column_names
    if names is not None and text_field not in names:
        raise UsageError(f"no column {text_field!r} in the data set: it has {', '.join(names)}")
    if taken := sorted(set(names or ()) & set(SCORE_NAMES)):
        raise UsageError(f"the data set has a column {taken[0]!r} already: rename or remove it")
    scorer = make_scorer(model, **options)

    streaming = not hasattr(dataset, "_fingerprint")
    shown = {} if streaming else {"desc": "scoring"}
    return dataset.map(scorer.columns(text_field), batched=True, batch_size=batch_size, **shown)


def score_stream(
    records: Iterable[Mapping[str, Any] | str] | str,
    model: str | Scorer,
    *,
    text_field: str = "text",
    window: int = WINDOW,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Yield each record with its scores added, in order, holding at most some `window`s of them in memory.

    A record is a mapping with a `text_field`, or a text itself; one whose field is None is kept, with null scores.
    The next window is read and tokenised while the current one is scored.
    Errors: UsageError that names the record that is neither, has no such field, or another value than a text in it.
    """
    scorer = make_scorer(model, **options)
    if isinstance(records, (Mapping, bytes)) or not isinstance(records, Iterable):
        raise UsageError(f"records is {described(records)}: give texts, or mappings with a field {text_field!r}")
    given = [records] if isinstance(records, str) else records

    def windows() -> Iterator[tuple[list[Mapping[str, Any]], list[Any]]]:
        source = (_record(record, text_field, number) for number, record in enumerate(given))
        while block := list(itertools.islice(source, window)):
            yield block, scorer.encode([record[text_field] for record in block])

    for block, encoded in prefetch(windows()):
        for record, scores in zip(block, scorer.score_encoded(encoded), strict=True):
            yield {**record, **dataclasses.asdict(scores)}


def _record(record: Any, text_field: str, number: int) -> Mapping[str, Any]:
    """A record of a stream, checked; `number` counts from 0."""
    if isinstance(record, str):
        return {text_field: record}
    if not isinstance(record, Mapping):
        raise UsageError(
            f"record {number} is {described(record)}: give a text, or a mapping with a field {text_field!r}"
        )
    if text_field not in record:
        raise UsageError(f"record {number}: a record has no field {text_field!r}: it has {', '.join(map(str, record))}")
    if record[text_field] is not None and not isinstance(record[text_field], str):
        raise UsageError(f"record {number}: its {text_field!r} is {described(record[text_field])}, and no text")
    return record
