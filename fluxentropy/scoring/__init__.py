"""Texts -> scores.

lexical.py    scores of a text alone: words, readability, compression
scores.py     every score: formula, source, unit; their columns
batching.py   texts -> batches of similar lengths, windows over long texts
scorer.py     the hot path: texts -> one row of numbers each; `Scorer`
tokens.py     what people hand over as texts; a text's tokens as a table
dataset.py    scores for a `datasets` data set or a stream of records
parts.py      the scores of a part of a corpus, by a model or without one
score.py      `fluxentropy score`: a corpus -> a run directory that can be resumed
counts.py     `fluxentropy count`: how often each token occurs
datatrove.py  scores in a datatrove pipeline (extra `datatrove`)
options.py    options of `score` and `count`
"""

from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "SCORE_NAMES": "scores",
        "Scorer": "scorer",
        "Scores": "scores",
        "Tokens": "tokens",
        "make_scorer": "dataset",
        "open_scorer": "scorer",
        "score_dataset": "dataset",
        "score_stream": "dataset",
    },
)
