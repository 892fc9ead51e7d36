"""A text's tokens as a table, with one alignment wherever a table of tokens stands: the CSV, the pages and Python.

row t                token t of the text, a BOS that the tokenizer adds included
surprisal            of token t itself: -ln of its probability given those before it
entropy_before, …    of the distribution that token t was drawn from; null, as the surprisal, where nothing is before
entropy, …           of the distribution after token t; their means are `entropy_mean` and `varentropy_mean`
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fluxentropy.config.results import html_table
from fluxentropy.entropy import TokenStats
from fluxentropy.errors import UsageError

# --- a text's tokens as a table ---------------------------------------------------------------------------------------


ALTERNATIVE = pa.struct([("token", pa.string()), ("probability", pa.float64())])

SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("token_id", pa.int64()),
        ("token", pa.string()),
        ("surprisal", pa.float64()),
        ("entropy_before", pa.float64()),
        ("varentropy_before", pa.float64()),
        ("entropy", pa.float64()),
        ("varentropy", pa.float64()),
        ("alternatives", pa.list_(ALTERNATIVE)),
    ]
)


@dataclass(frozen=True)
class Tokens:
    """A text's tokens: `table` has a row a token and the columns of `SCHEMA`, and each column is an array here.

    `tokens.entropy` and the like are float64 arrays (T,) in nats or nats², NaN where the table has null; `tokens.token`
    are texts. Whatever else a `pyarrow.Table` can do, this can: `to_pandas()`, `to_pylist()`, `num_rows`, ...
    """

    table: pa.Table

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "table":
            raise AttributeError(name)
        if name not in SCHEMA.names:
            return getattr(self.table, name)
        column = self.table.column(name)
        return column.to_numpy() if name != "alternatives" else column.to_pylist()

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        return self.table[name]

    def __len__(self) -> int:
        return len(self.table)

    def _repr_html_(self) -> str:
        rows = self.table.drop_columns(["alternatives"]).to_pylist()
        return html_table(rows)


def token_table(ids: np.ndarray, stats: TokenStats | None, decode: Callable[..., object]) -> pa.Table:
    """The table of `SCHEMA` of a text's tokens `ids` (T,), from `stats` of their positions; nats and nats².

    `stats.surprisal[t]` is that of token t + 1, as estimators have it. `alternatives` are the likeliest tokens after
    each one, as many as `stats` has. `token` is a piece of the text: the pieces join to the decoded text.
    """
    if stats is None or not len(ids):
        return SCHEMA.empty_table()
    assert stats.surprisal is not None
    surprisal, entropy, varentropy = (
        column.double().tolist() for column in (stats.surprisal, stats.entropy, stats.varentropy)
    )
    columns = {
        "position": list(range(len(ids))),
        "token_id": ids.tolist(),
        "token": pieces(ids.tolist(), decode),
        "surprisal": _moved(surprisal),
        "entropy_before": _moved(entropy),
        "varentropy_before": _moved(varentropy),
        "entropy": entropy,
        "varentropy": varentropy,
        "alternatives": _alternatives(stats, decode),
    }
    return pa.table(columns, schema=SCHEMA)


def _moved(values: Sequence[float]) -> list[float | None]:
    """What the position before each token says."""
    return [None, *values[:-1]]


def _alternatives(stats: TokenStats, decode: Callable[..., object]) -> list[list[tuple[str, float]]]:
    if stats.top_tokens is None or stats.top_probs is None:
        return [[] for _ in range(len(stats.entropy))]
    names = {token: str(decode([token])) for token in set(stats.top_tokens.flatten().tolist())}
    return [
        [(names[token], prob) for token, prob in zip(tokens, probs, strict=True)]
        for tokens, probs in zip(stats.top_tokens.tolist(), stats.top_probs.tolist(), strict=True)
    ]


def pieces(ids: Sequence[int], decode: Callable[..., object]) -> list[str]:
    """The text of each token, such that the pieces join to the decoded text.

    A character that is spread over several tokens (an emoji in byte-level BPE) belongs to the token that completes it;
    the tokens before it have an empty piece.
    """
    found: list[str] = []
    begin = 0  # the first token of the character that is still incomplete
    for end in range(1, len(ids) + 1):
        piece = str(decode(ids[begin:end], clean_up_tokenization_spaces=False))
        if piece.endswith("\ufffd") and end < len(ids) and end - begin < 8:
            found.append("")
            continue
        found.append(piece)
        begin = end
    return found


# --- texts as people hand them over -----------------------------------------------------------------------------------


def as_texts(texts: Any, *, nulls: bool = False) -> list[Any]:
    """One text, or any iterable of texts, as a list of strings; with `nulls`, of None too, for rows without a text.

    Errors: UsageError that names what is no text, and its place, counted from 0.

    >>> as_texts("To be"), as_texts(iter(["To be", "or not"]))
    (['To be'], ['To be', 'or not'])
    """
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (Mapping, bytes)) or not isinstance(texts, Iterable):
        raise UsageError(f"texts is {described(texts)}: give a string, or a list of strings")
    found = texts.to_pylist() if hasattr(texts, "to_pylist") else list(texts)
    for place, text in enumerate(found):
        if not isinstance(text, str) and not (nulls and text is None):
            raise UsageError(f"texts[{place}] is {described(text)}, and no text: give a string")
    return found


def described(value: object) -> str:
    """A value in an error: what it is, and how it begins.

    >>> described({"text": "a"}), described(None)
    ("a dict ({'text': 'a'})", 'None')
    """
    if value is None:
        return "None"
    shown = repr(value)
    return f"a {type(value).__name__} ({shown if len(shown) <= 60 else shown[:57] + '...'})"
