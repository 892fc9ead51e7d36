"""A small binned corpus with token blocks, made by the real command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fakes import SENTENCES, make_tokenizer

from fluxentropy.cli.app import main

LENGTH = 16


def write_bins(folder: Path, *, bins: int = 3, texts: int = 60, seed: int = 0, edges: Path | None = None) -> Path:
    """`folder`/bins: `texts` texts of repeated sentences in bins, as blocks of 16 tokens of a BPE of 400 tokens."""
    rng = np.random.default_rng(seed)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = "</s>"
    tokenizer.save_pretrained(folder / "tokenizer")
    table = {
        "id": [f"id-{row}" for row in range(texts)],
        "source_file": ["web.jsonl"] * texts,
        "source_row": list(range(texts)),
        "text": [" ".join(rng.choice(SENTENCES, rng.integers(2, 7))) for _ in range(texts)],
        "entropy_mean": rng.normal(3, 1, texts),
        "source": [f"mix/{'abc'[row % 3]}" for row in range(texts)],
        "n_tokens": [7] * texts,
    }
    pq.write_table(pa.table(table), folder / "scored.parquet")
    cut = ["--bins", str(bins)] if edges is None else ["--edges", str(edges)]
    argv = ["bin", str(folder / "scored.parquet"), *cut, "--tokenize", str(folder / "tokenizer")]
    assert main([*argv, "--block-length", str(LENGTH), "--out", str(folder / "bins")]) == 0
    return folder / "bins"
