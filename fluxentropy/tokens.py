"""`fluxentropy tokens`: the statistics of every token of a few texts, as a heat map and a CSV."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

from fluxentropy.config import TokensConfig
from fluxentropy.corpus import open_corpus
from fluxentropy.encoding import Encoded
from fluxentropy.errors import SourceError
from fluxentropy.outcome import Outcome
from fluxentropy.scorer import Scorer, open_scorer
from fluxentropy.store import write_text
from fluxentropy.tokenview import TokenRow, TokenView, render_html, write_csv
from fluxentropy.zoo_entries import find_model


def tokens(config: TokensConfig) -> Outcome:
    """Write the token view of the first `config.limit` texts of the sources to `config.out` and a CSV beside it."""
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
    rows = [row for batch in corpus.batches() for row in batch.select(["id", corpus.text_field]).to_pylist()]
    texts = [(row["id"], row[corpus.text_field] or "") for row in itertools.islice(rows, config.limit)]
    if not texts:
        raise SourceError(f"no texts in {', '.join(config.sources)}")
    scorer, _ = open_scorer(
        entry, device=config.device, dtype=config.dtype, offline=config.offline, max_tokens=config.max_tokens
    )
    views = token_views(scorer, texts, top_k=config.top_k)
    write_views(views, config.out)
    table = config.out.with_suffix(".csv")
    lines = [f"{len(views)} texts, {sum(len(view.tokens) for view in views):,} tokens", str(config.out), str(table)]
    return Outcome(lines=lines, data={"texts": len(views), "html": str(config.out), "csv": str(table)})


def write_views(views: list[TokenView], out: Path) -> None:
    """The heat map of `views` at `out` and their table at `out` with the suffix .csv, each whole or not at all."""
    write_text(out, render_html(views, title=f"Token uncertainty under {views[0].model}"))
    write_csv(views, out.with_suffix(".csv"))


def token_views(scorer: Scorer, texts: Iterable[tuple[str, str]], *, top_k: int = 5) -> list[TokenView]:
    """One view for each (id, text): every token with its surprisal, and the distribution that follows it."""
    pairs = list(texts)
    encoded = scorer.encode([text for _, text in pairs])
    return [
        TokenView(text=text, id=name, model=scorer.decoder.name, tokens=_token_rows(scorer, item, top_k))
        for (name, text), item in zip(pairs, encoded, strict=True)
    ]


def _token_rows(scorer: Scorer, encoded: Encoded, top_k: int) -> list[TokenRow]:
    rows = scorer.token_table(encoded, top_k=max(top_k, 1)).to_pylist()
    for row in rows:
        row["alternatives"] = [(other["token"], other["probability"]) for other in row["alternatives"][:top_k]]
    return [TokenRow(**row) for row in rows]
