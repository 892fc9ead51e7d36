"""One row for each question: the model's answer, and how uncertain it was about the context and the endings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fluxentropy.answering import Prompt, Reading
from fluxentropy.questions import Question
from fluxentropy.truncation import truncated_entropy


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
