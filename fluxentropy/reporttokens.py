"""The tables of `tokens` -> texts whose tokens are coloured, without a script: the page's style sheet does the rest.

Each token has a class for each measure (e5 v12 s3), and radio buttons decide which of them colours it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

from fluxentropy.colours import DARK_STOPS, LIGHT_STOPS, luminance, palette
from fluxentropy.errors import RunError
from fluxentropy.heatmap import COLUMNS, LEVELS, METRICS, OLD_COLUMNS, TokenRow, TokenView, scale_level, scale_top
from fluxentropy.markup import BIDI_CONTROLS, Markup, clipped, el
from fluxentropy.reportscores import TextRow

TEXTS = 16  # of a table
TOKENS = 500  # of a text
WHOLE = 5000  # tokens of a table
PIECE = 60  # characters of a token
NEXT = 3  # likely next tokens that a token names
CLOSE = 0.05  # nats that two ways to compute a mean entropy may differ by


def read_views(path: Path) -> list[TokenView]:
    """The first texts of a table that `heatmap.write_csv` wrote. Errors: `RunError` where it is not as written."""
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


def same_text(view: TokenView, row: TextRow) -> bool:
    """Whether `view` shows the text of `row`, as the model of that run sees it."""
    if view.id != row.id or row.text is None or not view.text or not row.text.startswith(view.text[:200]):
        return False
    mean = sum(token.entropy for token in view.tokens) / len(view.tokens)
    known = row.scores.get("entropy_mean")
    return known is None or len(view.tokens) != row.n_tokens or abs(mean - known) < CLOSE


# --- markup -----------------------------------------------------------------------------------------------------------


def tops_of(views: Sequence[TokenView]) -> dict[str, float]:
    """The upper end of each measure's scale."""
    values = {metric: [getattr(row, metric) for view in views for row in view.tokens] for metric in METRICS}
    return {metric: scale_top([x for x in found if x is not None and x - x == 0]) for metric, found in values.items()}


def switch(tops: dict[str, float], key: str) -> Markup:
    """Which measure the colours show, and its scale. `key` tells this group of buttons from others."""
    labels = [
        el("label", el("input", type="radio", name=key, value=metric, class_=f"by-{metric}",
                       checked=metric == "entropy"), METRICS[metric][0])
        for metric in tops
    ]  # fmt: skip
    scales = [
        el("figure",
           el("div", (el("i", class_=f"q{level}") for level in range(LEVELS)), class_="ramp", aria_hidden="true"),
           el("div", (el("span", f"{top * quarter / 4:.4g}") for quarter in range(4)),
              el("span", f"≥ {top:.4g} {METRICS[metric][1]}"), class_="ends"),
           el("figcaption", f"{METRICS[metric][0]}: {METRICS[metric][2]}"),
           class_=f"scale of-{metric}")
        for metric, top in tops.items()
    ]  # fmt: skip
    hint = el("p", "Point at a token, or tap it, to see its numbers; the CSV has them all.", class_="note")
    return el("div", el("fieldset", el("legend", "Colour by"), labels), scales, hint, class_="switch")


def heat(view: TokenView, tops: dict[str, float]) -> Markup:
    """The text with its tokens coloured; each says its numbers where the pointer is."""
    shown = view.tokens[:TOKENS]
    note = None
    if len(view.tokens) > len(shown):
        note = el("p", f"{len(view.tokens) - len(shown):,} more tokens are not shown.", class_="note")
    return el("div", el("div", (_token(row, tops) for row in shown), class_="text heat", dir="auto"), note)


def _token(row: TokenRow, tops: dict[str, float]) -> Markup:
    levels = [
        metric[0] + (scale_level(value, tops[metric]) if (value := getattr(row, metric)) is not None else "n")
        for metric in METRICS
    ]
    tag = "bdi" if BIDI_CONTROLS.search(row.token) else "span"
    return el(tag, clipped(row.token, PIECE) or "▫", class_=" ".join(levels), data_tip=_tip(row))


def _tip(row: TokenRow) -> str:
    """Two lines: the token's numbers, and what the model expected after it."""
    surprisal = "–" if row.surprisal is None else f"{row.surprisal:.3f}"
    numbers = f"{_shown(row.token)}  entropy {row.entropy:.3f}  varentropy {row.varentropy:.3f}  surprisal {surprisal}"
    if row.entropy_before is not None:
        numbers += f"  entropy before {row.entropy_before:.3f}"
    likely = ", ".join(f"{_shown(text)} {share:.0%}" for text, share in row.alternatives)
    return numbers + (f"\nnext: {likely}" if likely else "")


def _shown(token: str) -> str:
    """A token in quotes, on one line, without turning the direction of the rest.

    >>> _shown("a\\n")
    '“a↵”'
    """
    plain = BIDI_CONTROLS.sub("\ufffd", token.replace("\n", "↵").replace("\t", "→"))
    return f"“{clipped(plain, 24)}”"


# --- style ------------------------------------------------------------------------------------------------------------


def heat_css() -> str:
    """Variables --q0 … and --i0 … (step of the scale, and letters on it) for light and dark, and what uses them."""
    rules = [
        f":root{{{_variables(LIGHT_STOPS)}}}",
        f"@media screen and (prefers-color-scheme:dark){{:root{{{_variables(DARK_STOPS)}}}}}",
    ]
    for level in range(LEVELS):
        look = f"{{background:var(--q{level});color:var(--i{level})}}"
        rules.append(f".q{level},.e{level}{look}")
        rules += [f".tokens:has(.by-{metric}:checked) .{metric[0]}{level}{look}" for metric in list(METRICS)[1:]]
        rules.append(f".f{level}{{fill:var(--q{level});background:var(--q{level})}}")
    return "\n".join(rules) + "\n"


def _variables(stops: Sequence[tuple[float, float, float]]) -> str:
    steps = palette(stops, LEVELS)
    letters = ["#000" if bright else "#fff" for bright in (luminance(steps) > 0.179).tolist()]
    colours = [f"#{bytes(step).hex()}" for step in (steps * 255).round().astype("uint8").tolist()]
    return "".join(
        f"--q{level}:{colour};--i{level}:{letter};"
        for level, (colour, letter) in enumerate(zip(colours, letters, strict=True))
    )
