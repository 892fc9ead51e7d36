"""How often each token of a vocabulary occurs in a corpus, and the file that keeps it.

    counts.parquet:  token (int64), count (int64), every token of the vocabulary in order; the metadata says of what

The frequency of a token is (count + 1) / (sum of all counts + V): one is added so that no token has the frequency 0.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fluxentropy.config.results import Result, command
from fluxentropy.corpus.corpus import open_corpus
from fluxentropy.errors import FluxentropyError, ModelError, SourceError, UsageError
from fluxentropy.models.gguf import first_line, quiet_transformers
from fluxentropy.models.tokenizers import Encoder, load_tokenizer
from fluxentropy.models.zoo import find_model
from fluxentropy.runs.files import atomic_path
from fluxentropy.runs.progress import Progress
from fluxentropy.scoring.options import CountConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# --- how often each token of a vocabulary occurs in a corpus, and the file that keeps it ------------------------------


KEY = b"fluxentropy"


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenCounts:
    """`counts` (V,) int64 of the tokens of a corpus; `vocabulary` is the fingerprint of the tokenizer's vocabulary."""

    counts: np.ndarray
    vocabulary: str
    facts: dict[str, Any]  # what was counted

    def log_frequency(self, size: int) -> np.ndarray:
        """ln of the smoothed frequency of each of `size` tokens, float64; tokens beyond those counted have count 0.

        >>> counts = TokenCounts(counts=np.array([2, 0]), vocabulary="", facts={})
        >>> np.exp(counts.log_frequency(3)).round(3)
        array([0.6, 0.2, 0.2])
        """
        counts = np.zeros(max(size, len(self.counts)), np.int64)
        counts[: len(self.counts)] = self.counts
        return np.log((counts + 1) / (counts.sum() + len(counts)))

    def write(self, path: Path) -> None:
        table = pa.table({"token": np.arange(len(self.counts)), "count": self.counts})
        facts = json.dumps({"vocabulary": self.vocabulary, **self.facts}, sort_keys=True)
        with atomic_path(path) as aside:
            pq.write_table(table.replace_schema_metadata({KEY: facts.encode()}), aside, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> TokenCounts:
        """Errors: UsageError where there is no such file, or it holds something else."""
        try:
            table = pq.read_table(path, partitioning=None)
            facts = json.loads((table.schema.metadata or {})[KEY])
            order = np.argsort(table["token"].to_numpy())
            counts = table["count"].to_numpy()[order].astype(np.int64)
            if (
                len(counts) == 0
                or counts.min() < 0
                or table["token"].to_numpy()[order].tolist() != list(range(len(counts)))
            ):
                raise ValueError("tokens are missing, or counts are negative")
            return cls(counts=counts, vocabulary=str(facts.pop("vocabulary")), facts=facts)
        except FileNotFoundError as error:
            raise UsageError(f"--token-counts {path}: no such file; `fluxentropy count` writes it") from error
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise UsageError(f"--token-counts {path} is no file of `fluxentropy count` ({said})") from error


def checked_counts(path: Path, tokenizer: PreTrainedTokenizerBase, model: str) -> TokenCounts:
    """The counts in `path`. UsageError where they are of another tokenizer than that of `model`."""
    found = TokenCounts.read(path)
    if found.vocabulary != vocabulary_fingerprint(tokenizer):
        raise UsageError(
            f"--token-counts {path}: these are tokens of {found.facts.get('model', 'another tokenizer')}, and those of "
            f"{model} are different ones: count again with --model {model}"
        )
    return found


def vocabulary_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """The same for tokenizers with the same tokens and ids."""
    pairs = sorted((number, token) for token, number in tokenizer.get_vocab().items())
    return "sha256:" + hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def add_counts(counts: np.ndarray, texts: Sequence[np.ndarray]) -> np.ndarray:
    """`counts` (V,) and those of the token ids of `texts`; longer where an id lies beyond.

    >>> add_counts(np.zeros(2, np.int64), [np.array([0, 3]), np.array([3])])
    array([1, 0, 0, 2])
    """
    found = np.bincount(np.concatenate([*texts, np.zeros(0, np.int64)]), minlength=len(counts))
    found[: len(counts)] += counts
    return found


# --- `fluxentropy count`: how often each token of a model's tokenizer occurs in a corpus. No model is run -------------


@dataclass(frozen=True, kw_only=True)
class CountResult(Result):
    """What was counted into the file `out`."""

    out: Path
    texts: int
    tokens: int
    distinct: int  # tokens of the vocabulary that occur
    vocabulary: int = field(repr=False)  # its size
    model: str = field(repr=False)

    def lines(self) -> list[str]:
        return [
            f"{self.texts:,} texts, {self.tokens:,} tokens, {self.distinct:,} of {self.vocabulary:,} tokens of the "
            f"vocabulary occur",
            str(self.out),
            f"next: fluxentropy score SOURCE --model {self.model} --scores all --token-counts {self.out} --out DIR",
        ]


@command
def count(config: CountConfig) -> CountResult:
    """Count the tokens of all texts of the sources, each in full, into the file `config.out`.

    Special tokens that the tokenizer puts around a text are left out. Memory does not grow with the corpus.
    """
    entry = find_model(
        config.model, zoo=config.zoo, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    corpus = open_corpus(
        config.sources,
        text_field=config.text_field,
        id_field=config.id_field,
        limit=config.limit,
        offline=config.offline,
        columns=config.columns,
        drop=config.drop,
    )
    try:
        with quiet_transformers():
            tokenizer = load_tokenizer(entry)
    except FluxentropyError:
        raise
    except Exception as error:  # transformers and remote code raise many kinds
        raise ModelError(f"the tokenizer of {config.model!r} cannot be loaded: {first_line(error)}") from error
    encoder = Encoder(tokenizer, None)
    counts = np.zeros(max(tokenizer.get_vocab().values()) + 1, np.int64)
    texts = 0
    with Progress(corpus.n_rows, unit="texts") as progress:
        for batch in corpus.batches():
            encoded = encoder.encode([text or "" for text in batch[corpus.text_field].to_pylist()])
            counts = add_counts(counts, [item.ids[item.n_prefix :] for item in encoded])
            texts += len(encoded)
            progress.update(len(encoded))
    tokens = int(counts.sum())
    if not tokens:
        raise SourceError(f"no tokens in {', '.join(config.sources)}: there is nothing to count")
    facts = {"model": config.model, "sources": {file.name: file.fingerprint for file in corpus.files}, "texts": texts}
    found = TokenCounts(counts=counts, vocabulary=vocabulary_fingerprint(tokenizer), facts=facts)
    found.write(config.out)
    return CountResult(
        out=config.out,
        texts=texts,
        tokens=tokens,
        distinct=int((counts > 0).sum()),
        vocabulary=len(counts),
        model=config.model,
    )
