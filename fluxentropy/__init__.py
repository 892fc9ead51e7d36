"""Score text corpora by the entropy and varentropy of a language model's next-token distributions.

Importing this package loads nothing heavy: the names below import their module when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fluxentropy.adapters import make_scorer as make_scorer
    from fluxentropy.adapters import score_dataset as score_dataset
    from fluxentropy.adapters import score_stream as score_stream
    from fluxentropy.blockset import BlockSet as BlockSet
    from fluxentropy.estimators import token_stats as token_stats
    from fluxentropy.gpt import GPT as GPT
    from fluxentropy.gptconfig import GPTConfig as GPTConfig
    from fluxentropy.sampler import Sampler as Sampler
    from fluxentropy.scorer import Scorer as Scorer

__version__ = "0.1.0"
__all__ = [
    *("GPT", "BlockSet", "GPTConfig", "Sampler", "Scorer"),
    *("make_scorer", "score_dataset", "score_stream", "token_stats"),
]

_MODULES = {
    "BlockSet": "fluxentropy.blockset",
    "GPT": "fluxentropy.gpt",
    "GPTConfig": "fluxentropy.gptconfig",
    "Sampler": "fluxentropy.sampler",
    "Scorer": "fluxentropy.scorer",
    "make_scorer": "fluxentropy.adapters",
    "score_dataset": "fluxentropy.adapters",
    "score_stream": "fluxentropy.adapters",
    "token_stats": "fluxentropy.estimators",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
