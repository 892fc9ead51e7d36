"""Texts as people hand them over from Python: one, or many; what is no text is named, with its place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fluxentropy.errors import UsageError


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
