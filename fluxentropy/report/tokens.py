"""`fluxentropy tokens`: the statistics of every token of a few texts, as a heat map and a CSV."""

from __future__ import annotations

import csv
import itertools
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
from markupsafe import Markup

from fluxentropy.config.results import Result, command
from fluxentropy.corpus.corpus import open_corpus
from fluxentropy.errors import RunError, SourceError
from fluxentropy.figures import scale_css
from fluxentropy.models.zoo import find_model
from fluxentropy.report import TokensConfig
from fluxentropy.report.html import BIDI_CONTROLS, clipped, page, visible
from fluxentropy.runs.files import atomic_path, write_text
from fluxentropy.runs.find import COLUMNS, NUMBERS, OLD_COLUMNS
from fluxentropy.scoring.scorer import Scorer, open_scorer

# --- the view ---------------------------------------------------------------------------------------------------------
#
# Each token has a class for each measure (e5 v12 s3), and radio buttons decide which of them colours it. Texts and
# tokens are untrusted: they enter a page as escaped text only, never as markup, code or style.


LEVELS = 24  # steps of the colour scale
TEXTS = 16  # of a table that is read for a report
WHOLE = 5000  # tokens of such a table

METRICS = {
    "entropy": ("Entropy", "nats", "how unsure the model is about the token after this one"),
    "varentropy": ("Varentropy", "nats²", "how widely the surprisal of the token after this one varies"),
    "surprisal": ("Surprisal", "nats", "how unexpected this token is after those before it"),
}

NEXT = 3  # likely next tokens of a token that is read for a report


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """One token, aligned as in `tokentable`: surprisal is of the token itself, entropy and varentropy are of the
    distribution after it, and those `before` of the one that it was drawn from."""

    position: int
    token_id: int
    token: str  # its piece of the text; "" for the first tokens of a character that takes several
    entropy: float  # nats
    varentropy: float  # nats²
    surprisal: float | None  # nats; None for a token that nothing comes before
    entropy_before: float | None = None  # nats; None as the surprisal
    varentropy_before: float | None = None  # nats²
    alternatives: Sequence[tuple[str, float]]  # likely next tokens and their probabilities, the likeliest first


@dataclass(frozen=True, kw_only=True)
class TokenView:
    """One text and its tokens, whose pieces join to the text, or to its start where it was cut."""

    text: str
    id: str
    model: str
    tokens: Sequence[TokenRow]


@dataclass(frozen=True, kw_only=True)
class Shade:
    """A token as a page shows it."""

    look: str  # its classes
    tip: str
    piece: Markup


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The colour scale of a measure."""

    LEVELS: ClassVar[int] = LEVELS

    metric: str  # of METRICS
    top: float

    @property
    def name(self) -> str:
        return METRICS[self.metric][0]

    @property
    def meaning(self) -> str:
        return METRICS[self.metric][2]

    @property
    def ticks(self) -> list[str]:
        return [
            *(f"{self.top * quarter / 4:.4g}" for quarter in range(4)),
            f"≥ {self.top:.4g} {METRICS[self.metric][1]}",
        ]

    def level(self, row: TokenRow) -> str:
        """The step of the scale for a token, `n` where it has no such number."""
        value = getattr(row, self.metric)
        known = value is not None and math.isfinite(value)
        return str(max(0, min(LEVELS - 1, int(value / self.top * LEVELS)))) if known else "n"


# --- the page ---------------------------------------------------------------------------------------------------------


def render_html(views: Sequence[TokenView], *, title: str) -> str:
    """A page that shows the texts with their tokens coloured by entropy, varentropy or surprisal.

    Numbers are rounded to 3 decimals there; `write_csv` has them in full.
    """
    scales = scales_of(views)
    texts = [
        {"name": view.id, "facts": _facts(view), "tokens": shades(view.tokens, scales), "note": _rest(view)}
        for view in views
    ]
    return page("tokens.html", rules=heat_css(), title=title, scales=scales, texts=texts)


def _facts(view: TokenView) -> list[tuple[str, object]]:
    facts: list[tuple[str, object]] = [("model", view.model), ("tokens", len(view.tokens))]
    if view.tokens:
        facts.append(("mean entropy", f"{_mean([row.entropy for row in view.tokens]):.3f} nats"))
    if surprisals := [row.surprisal for row in view.tokens if row.surprisal is not None]:
        facts.append(("perplexity", f"{_exp(_mean(surprisals)):.4g}"))
    return facts


def _rest(view: TokenView) -> str | None:
    """A note on the end of the text that the model did not see."""
    seen = "".join(row.token for row in view.tokens)
    if not view.tokens:
        return "The text has no tokens."
    if len(seen) < len(view.text) and view.text.startswith(seen):
        return f"The text goes on for {len(view.text) - len(seen):,} more characters."
    return None


# --- tokens -----------------------------------------------------------------------------------------------------------


def scales_of(views: Sequence[TokenView]) -> list[Scale]:
    """The scale of each measure over all `views`."""
    values = {metric: [getattr(row, metric) for view in views for row in view.tokens] for metric in METRICS}
    return [
        Scale(metric=metric, top=scale_top([x for x in found if x is not None and math.isfinite(x)]))
        for metric, found in values.items()
    ]


def shades(rows: Sequence[TokenRow], scales: Sequence[Scale]) -> list[Shade]:
    """Tokens with their colours, and what each says where the pointer or the keyboard is."""
    return [
        Shade(
            look=" ".join(scale.metric[0] + scale.level(row) for scale in scales) + _part(row.token),
            tip=_tip(row, after.token if after else None),
            piece=_piece(row.token),
        )
        for row, after in zip_longest(rows, rows[1:])
    ]


def _part(token: str) -> str:
    """The class of a token that has nothing to be seen: a part of a character, or controls."""
    return "" if any(letter.isprintable() or letter in "\n\t" for letter in token) else " part"


def _piece(token: str) -> Markup:
    """The token, its line ends and tabs marked; an isolate where it could turn the direction of what comes after it."""
    marked = Markup("{}").format(visible(token))
    marked = marked.replace("\n", Markup('<i class="nl"></i>\n')).replace("\t", Markup('<i class="tab"></i>\t'))
    return Markup("<bdi>{}</bdi>").format(marked) if BIDI_CONTROLS.search(token) else marked


def _tip(row: TokenRow, actual: str | None) -> str:
    """Lines: the token's numbers, what the model expected after it with a star at what came, and which token it is."""
    surprisal = "–" if row.surprisal is None else f"{row.surprisal:.3f}"
    numbers = f"{_shown(row.token)}  entropy {row.entropy:.3f}  varentropy {row.varentropy:.3f}  surprisal {surprisal}"
    if row.entropy_before is not None:
        numbers += f"  entropy before {row.entropy_before:.3f}"
    if row.varentropy_before is not None:
        numbers += f"  varentropy before {row.varentropy_before:.3f}"
    likely = ", ".join(f"{_shown(text)} {_percent(share)}{'*' * (text == actual)}" for text, share in row.alternatives)
    probability = "" if row.surprisal is None else f", probability {_percent(_exp(-row.surprisal))}"
    return numbers + f"\nnext: {likely}" * bool(likely) + f"\ntoken {row.token_id} at {row.position}{probability}"


def _percent(share: float) -> str:
    """
    >>> _percent(0.5), _percent(0.01234), _percent(0.000012)
    ('50%', '1.2%', '0.0012%')
    """
    return f"{share:.0%}" if share >= 0.1 else f"{100 * share:.2g}%"


def _shown(token: str) -> str:
    """A token in quotes, on one line, without turning the direction of the rest.

    >>> _shown("a\\n")
    '“a↵”'
    """
    plain = BIDI_CONTROLS.sub("\ufffd", token.replace("\n", "↵").replace("\t", "→"))
    return f"“{clipped(plain, 24) or '▫'}”"


def scale_top(values: Sequence[float]) -> float:
    """The upper end of the colour scale: a round number at or over the 98th percentile, so that a few outliers do not
    take the colours from all others.

    >>> scale_top([1.0] * 97 + [4.7, 4.8, 50.0]), scale_top([-1e-9] * 99 + [3.0]), scale_top([])
    (5.0, 3.0, 1.0)
    """
    if not values or max(values) <= 0:
        return 1.0
    usual = sorted(values)[math.ceil(0.98 * len(values)) - 1]
    reach = usual if usual > 0 else max(values)
    unit = 10.0 ** math.floor(math.log10(reach))
    return next((step * unit for step in (1, 1.2, 1.6, 2, 2.4, 3, 4, 5, 6, 8, 10) if step * unit >= reach), reach)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def heat_css() -> str:
    """The steps of the scale, and what uses them: a token without a number has a line below."""
    rules = [scale_css(LEVELS)]
    looks = {str(k): f"{{background:var(--q{k});color:var(--i{k})}}" for k in range(LEVELS)}
    looks["n"] = "{background:none;color:inherit;box-shadow:inset 0 -1px var(--faint)}"
    first, *others = METRICS
    for level, look in looks.items():
        rules.append(f".q{level},.{first[0]}{level}{look}")
        rules += [f".tokens:has(.by-{metric}:checked) .{metric[0]}{level}{look}" for metric in others]
        rules.append(f".f{level}{{fill:var(--q{level});background:var(--q{level})}}")
    return "\n".join(rules) + "\n"


# --- the table --------------------------------------------------------------------------------------------------------


def write_csv(views: Iterable[TokenView], path: str | os.PathLike[str]) -> None:
    """All tokens in a CSV: strings quoted and exact, numbers in full, empty fields where nothing is before a token.

    `alternatives` is JSON: `[["the", 0.25], ["a", 0.125]]`. Nothing is done about spreadsheets that take a field such
    as `=1+2` for a formula: import the column as text there.

    Errors: `RunError` when `path` cannot be written.
    """
    with atomic_path(path) as aside, open(aside, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        table.writerow(COLUMNS)
        for view in views:
            for row in view.tokens:
                numbers = [getattr(row, name) for name in NUMBERS]
                alternatives = json.dumps(list(row.alternatives), ensure_ascii=False)
                table.writerow([view.id, row.position, row.token_id, row.token, *numbers, alternatives])


def read_views(path: Path) -> list[TokenView]:
    """The first texts of a table that `write_csv` wrote. Errors: `RunError` where it is not as written."""
    views: list[TokenView] = []
    rows: list[TokenRow] = []
    name, total = "", 0
    try:
        with open(path, encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            for record in reader:
                row = _token_row(record, rows[-1] if rows else None)
                if row.position == 0 and rows:
                    views.append(_view(name, rows))
                    rows = []
                if len(views) == TEXTS or total == WHOLE:
                    break
                name, total = record["text_id"], total + 1
                rows.append(row)
    except (ValueError, TypeError, KeyError, RecursionError, csv.Error, OSError) as error:
        raise RunError(f"{path} is not as `fluxentropy tokens` writes it: {error}") from error
    return [*views, _view(name, rows)] if rows else views


def _token_row(record: dict[str, str], before: TokenRow | None) -> TokenRow:
    """A row of the table. One of an earlier version does not say what is before a token: the row `before` it does."""
    if None in record.values() or set(record) not in (set(COLUMNS), set(OLD_COLUMNS)):
        raise ValueError(f"a row has other columns than {', '.join(COLUMNS)}")
    if "entropy_before" not in record:
        known = before if record["surprisal"] and before is not None else None
        record |= {f"{name}_before": str(getattr(known, name)) if known else "" for name in ("entropy", "varentropy")}
    return TokenRow(
        position=int(record["position"]),
        token_id=int(record["token_id"]),
        token=record["token"],
        entropy=float(record["entropy"]),
        varentropy=float(record["varentropy"]),
        surprisal=float(record["surprisal"]) if record["surprisal"] else None,
        entropy_before=float(record["entropy_before"]) if record["entropy_before"] else None,
        varentropy_before=float(record["varentropy_before"]) if record["varentropy_before"] else None,
        alternatives=[(str(text), float(share)) for text, share in json.loads(record["alternatives"])][:NEXT],
    )


def _view(name: str, rows: Sequence[TokenRow]) -> TokenView:
    return TokenView(text="".join(row.token for row in rows), id=name, model="", tokens=rows)


# --- `fluxentropy tokens` ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TokensResult(Result):
    """The heat map of a few texts, and the table of their tokens beside it."""

    texts: int
    html: Path
    csv: Path
    tokens: int = field(repr=False)  # of all texts

    def lines(self) -> list[str]:
        return [f"{self.texts} texts, {self.tokens:,} tokens", str(self.html), str(self.csv)]


@command
def tokens(config: TokensConfig) -> TokensResult:
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
    shown = sum(len(view.tokens) for view in views)
    return TokensResult(texts=len(views), html=config.out, csv=config.out.with_suffix(".csv"), tokens=shown)


def write_views(views: list[TokenView], out: Path) -> None:
    """The heat map of `views` at `out` and their table at `out` with the suffix .csv, each whole or not at all."""
    write_text(out, render_html(views, title=f"Token uncertainty under {views[0].model}"))
    write_csv(views, out.with_suffix(".csv"))


def token_views(scorer: Scorer, texts: Iterable[tuple[str, str]], *, top_k: int = 5) -> list[TokenView]:
    """One view for each (id, text): every token with its surprisal, and the distribution that follows it."""
    pairs = list(texts)
    encoded = scorer.encode([text for _, text in pairs])
    return [
        TokenView(text=text, id=name, model=scorer.decoder.name, tokens=_token_rows(table, top_k))
        for (name, text), table in zip(pairs, scorer.token_tables(encoded, top_k=max(top_k, 1)), strict=True)
    ]


def _token_rows(table: pa.Table, top_k: int) -> list[TokenRow]:
    rows = table.to_pylist()
    for row in rows:
        row["alternatives"] = [(other["token"], other["probability"]) for other in row["alternatives"][:top_k]]
    return [TokenRow(**row) for row in rows]
