"""`fluxentropy count`: how often each token of a model's tokenizer occurs in a corpus. No model is run."""

from __future__ import annotations

import numpy as np

from fluxentropy.config import CountConfig
from fluxentropy.conversion import first_line, quiet_transformers
from fluxentropy.corpus import open_corpus
from fluxentropy.encoding import Encoder
from fluxentropy.errors import FluxentropyError, ModelError, SourceError
from fluxentropy.outcome import Outcome
from fluxentropy.progress import Progress
from fluxentropy.tokencounts import TokenCounts, add_counts, vocabulary_fingerprint
from fluxentropy.tokenizing import load_tokenizer
from fluxentropy.zoo_entries import find_model


def count(config: CountConfig) -> Outcome:
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
    seen = int((counts > 0).sum())
    lines = [
        f"{texts:,} texts, {tokens:,} tokens, {seen:,} of {len(counts):,} tokens of the vocabulary occur",
        str(config.out),
        f"next: fluxentropy score SOURCE --model {config.model} --scores all --token-counts {config.out} --out DIR",
    ]
    return Outcome(lines=lines, data={"out": str(config.out), "texts": texts, "tokens": tokens, "distinct": seen})
