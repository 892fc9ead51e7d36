"""The per-token view of a few texts: one self-contained HTML page, and a CSV with the same numbers.

The page holds no reference to the network and forbids it by a Content-Security-Policy. Texts and tokens are untrusted:
they enter the page as escaped text only, never as markup, code or style.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fluxentropy.colours import scale_css
from fluxentropy.markup import BIDI_CONTROLS, escape
from fluxentropy.store import atomic_path

LEVELS = 24  # steps of the colour scale
METRICS = {
    "entropy": ("Entropy", "nats", "how unsure the model is about the token after this one"),
    "varentropy": ("Varentropy", "nats²", "how widely the surprisal of the token after this one varies"),
    "surprisal": ("Surprisal", "nats", "how unexpected this token is after those before it"),
}


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


# --- the page ---------------------------------------------------------------------------------------------------------


def render_html(views: Sequence[TokenView], *, title: str) -> str:
    """A page that shows the texts with their tokens coloured by entropy, varentropy or surprisal.

    Numbers are rounded to 4 decimals there; `write_csv` has them in full.
    """
    tops = {metric: scale_top(_values(views, metric)) for metric in METRICS}
    style = _asset("heatmap.css") + scale_css(LEVELS)
    script = _asset("heatmap.js")
    policy = (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    texts = "\n".join(_article(view, tops["entropy"], number) for number, view in enumerate(views))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<h1>{escape(title)}</h1>
<p class="lead">Point at a token, tap it, or reach it with Tab and the arrow keys to see its numbers.</p>
<div class="bar">
{_switch()}
{"".join(_scale(metric, top) for metric, top in tops.items())}
</div>
<main>
{texts or '<p class="note">There are no texts.</p>'}
</main>
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="data">{_data(views, tops)}</script>
<script>{script}</script>
</body>
</html>
"""


def _switch() -> str:
    labels = "".join(
        f'<label title="{escape(meaning)}"><input type="radio" name="metric" value="{metric}"'
        f"{' checked' if metric == 'entropy' else ''}>{label}</label>"
        for metric, (label, _, meaning) in METRICS.items()
    )
    return f"<fieldset><legend>Colour by</legend>{labels}</fieldset>"


def _scale(metric: str, top: float) -> str:
    label, unit, meaning = METRICS[metric]
    ramp = "".join(f'<i class="q{level}"></i>' for level in range(LEVELS))
    ticks = "".join(f"<span>{top * quarter / 4:.4g}</span>" for quarter in range(4))
    return f"""<figure class="scale" data-metric="{metric}"{"" if metric == "entropy" else " hidden"}>
<div class="ramp" aria-hidden="true">{ramp}</div>
<div class="ticks">{ticks}<span>≥ {top:.4g} {unit}</span></div>
<figcaption>{label}: {meaning}</figcaption>
</figure>
"""


def _article(view: TokenView, top: float, number: int) -> str:
    facts = [("model", escape(view.model)), ("tokens", f"{len(view.tokens):,}")]
    if view.tokens:
        facts.append(("mean entropy", f"{_mean([row.entropy for row in view.tokens]):.3f} nats"))
    surprisals = [row.surprisal for row in view.tokens if row.surprisal is not None]
    if surprisals:
        facts.append(("perplexity", f"{_exp(_mean(surprisals)):.4g}"))
    described = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    pieces = "".join(_token(row, scale_level(row.entropy, top)) for row in view.tokens)
    return f"""<article>
<header><h2 id="text-{number}"><bdi>{escape(view.id)}</bdi></h2><dl>{described}</dl></header>
<div class="text" dir="auto" role="group" aria-labelledby="text-{number}">{pieces}</div>
{_rest(view)}</article>"""


def _rest(view: TokenView) -> str:
    """A note on the end of the text that the model did not see."""
    seen = "".join(row.token for row in view.tokens)
    if not view.tokens:
        return '<p class="note">The text has no tokens.</p>\n'
    if len(seen) < len(view.text) and view.text.startswith(seen):
        return f'<p class="note">The text goes on for {len(view.text) - len(seen):,} more characters.</p>\n'
    return ""


def _token(row: TokenRow, level: str) -> str:
    """A token as an element; an isolate where it could turn the direction of what comes after it."""
    tag = "bdi" if BIDI_CONTROLS.search(row.token) else "span"
    part = "" if any(letter.isprintable() or letter in "\n\t" for letter in row.token) else " part"
    return f'<{tag} class="q{level}{part}">{_visible(row.token)}</{tag}>'


# --- text -> markup ---------------------------------------------------------------------------------------------------


def _visible(token: str) -> str:
    """Like `escape`, with line ends and tabs kept and marked."""
    pieces = re.split("([\n\t])", token)
    marks = {"\n": '<i class="nl"></i>\n', "\t": '<i class="tab"></i>\t'}
    return "".join(marks.get(piece) or escape(piece) for piece in pieces)


def _data(views: Sequence[TokenView], tops: dict[str, float]) -> str:
    """All numbers as JSON that cannot end the script element it stands in; strings are listed once, as `words`."""
    words: dict[str, int] = {}

    def word(text: str) -> int:
        return words.setdefault(text, len(words))

    texts = [
        {
            "id": [row.token_id for row in view.tokens],
            "position": [row.position for row in view.tokens],
            "token": [word(row.token) for row in view.tokens],
            **{metric: [_rounded(getattr(row, metric)) for row in view.tokens] for metric in METRICS},
            "next": [
                [value for text, p in row.alternatives for value in (word(text), _rounded(p))] for row in view.tokens
            ],
        }
        for view in views
    ]
    data = {"levels": LEVELS, "tops": tops, "words": list(words), "texts": texts}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII only
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


# --- numbers ----------------------------------------------------------------------------------------------------------


def _rounded(value: float | None) -> float | None:
    return round(value, 4) if value is not None and math.isfinite(value) else None


def _values(views: Sequence[TokenView], metric: str) -> list[float]:
    values = (getattr(row, metric) for view in views for row in view.tokens)
    return [value for value in values if value is not None and math.isfinite(value)]


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


def scale_level(value: float, top: float) -> str:
    """The step of the colour scale, `n` for a value that is not a number; the script does the same."""
    return str(max(0, min(LEVELS - 1, int(value / top * LEVELS)))) if math.isfinite(value) else "n"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


# --- style and script -------------------------------------------------------------------------------------------------


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    """What a Content-Security-Policy calls a style or script by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()


# --- the table --------------------------------------------------------------------------------------------------------

NUMBERS = ("entropy", "varentropy", "surprisal", "entropy_before", "varentropy_before")
COLUMNS = ("text_id", "position", "token_id", "token", *NUMBERS, "alternatives")
OLD_COLUMNS = tuple(name for name in COLUMNS if not name.endswith("_before"))  # of tables of earlier versions


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
