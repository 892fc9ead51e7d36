"""Sections of a report on texts and models: scores, token views, bins, agreement, answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxentropy.charts import columns, histogram
from fluxentropy.heatmap import TokenView
from fluxentropy.markdowntext import table
from fluxentropy.markup import Content, Markup, clipped, el, given
from fluxentropy.reportpictures import Pictures
from fluxentropy.reportruns import Run
from fluxentropy.reportscores import DRAWN, PERCENTS, Distribution, ScoreSummary, TextRow, summarise_scores
from fluxentropy.reporttokens import heat, read_views, same_text, switch, tops_of
from fluxentropy.store import read_json
from fluxentropy.tablefiles import run_parts

LETTERS = 700  # of a text without token view
ROWS = 40  # of a table
UNITS = {"entropy": "nats", "varentropy": "nats²", "sqrt_varentropy": "nats", "surprisal": "nats"}


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a section may look at beside its own run."""

    number: int
    views: Sequence[TokenView]  # of all token tables of the page
    shown: Sequence[TokenView]  # of these, those that sections on scores show
    pictures: Pictures


def facts(pairs: Sequence[tuple[str, object]]) -> Markup:
    """A list of names and values; those that are None or empty are left out."""
    shown = [(name, value) for name, value in pairs if value is not None and value != ""]
    return el(
        "dl",
        (el("div", el("dt", name), el("dd", value if isinstance(value, Markup) else given(_plain(value))))
         for name, value in shown),
        class_="facts",
    )  # fmt: skip


def _plain(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def capped(head: list[Content], rows: Sequence[list[Content]], *, label: str) -> list[Content]:
    """A table of at most ROWS rows, and how many more there are."""
    more = f"{len(rows) - ROWS:,} more rows are left out." if len(rows) > ROWS else None
    return [table(head, *rows[:ROWS], label=label), el("p", more, class_="note") if more else None]


# --- scores -----------------------------------------------------------------------------------------------------------


def read_scored(run: Run) -> ScoreSummary:
    return summarise_scores(run_parts(run.path), text_field=str(run.identity.get("text_field", "text")))


def score_section(run: Run, summary: ScoreSummary, beside: Given) -> Content:
    drawn = [one for one in summary.distributions if one.name in DRAWN] or list(summary.distributions)[:1]
    return [
        facts(_score_facts(run, summary)),
        el("h3", "Distributions"),
        distribution_charts(drawn),
        *distribution_table(summary.distributions),
        *_ends(summary, beside),
        *_sources(run.manifest.get("inputs")),
    ]


def _score_facts(run: Run, summary: ScoreSummary) -> list[tuple[str, object]]:
    identity, manifest = run.identity, run.manifest
    counts, policies = manifest.get("counts") or {}, manifest.get("policies") or {}
    statuses = {name.removeprefix("status_"): n for name, n in counts.items() if name.startswith("status_") and n}
    cut = policies.get("window", "first") == "first" and policies.get("max_tokens")
    return [
        ("model", (identity.get("model") or {}).get("name")),
        ("texts", summary.rows),
        ("tokens", counts.get("tokens")),
        ("bytes", counts.get("bytes")),
        ("texts cut", f"{counts['truncated']:,} (after {cut:,} tokens)" if cut and counts.get("truncated") else None),
        ("window", f"{policies['window']}, {policies.get('max_tokens')} tokens" if "window" in policies else None),
        ("precision", " on ".join(str(identity[key]) for key in ("dtype", "device") if identity.get(key))),
        ("BOS", "added" if policies.get("bos_added") else "not added" if "bos_added" in policies else None),
        ("status", ", ".join(f"{n:,} {name}" for name, n in statuses.items() if name != "ok")),
        ("rejected rows", manifest.get("rejected") or None),
        ("ids that repeat", manifest.get("duplicate_ids") or None),
    ]


def unit_of(name: str) -> str:
    """The unit of a score, empty where it has none.

    >>> unit_of("varentropy_mean"), unit_of("perplexity")
    ('nats²', '')
    """
    return next((UNITS[stem] for stem in sorted(UNITS, key=len, reverse=True) if name.startswith(stem)), "")


def in_words(name: str) -> str:
    """
    >>> in_words("entropy_mean"), in_words("sqrt_varentropy_mean"), in_words("perplexity")
    ('mean entropy', 'mean √varentropy', 'perplexity')
    """
    stem = name.removesuffix("_mean").replace("sqrt_", "√").replace("_", " ")
    return f"mean {stem}" if name.endswith("_mean") else stem


def distribution_charts(distributions: Sequence[Distribution]) -> Markup:
    return el("div", map(_drawn, distributions), class_="charts")


def _drawn(one: Distribution) -> Markup:
    said = in_words(one.name)
    label = f"{said} ({unit_of(one.name)})".replace(" ()", "")
    median = one.quantiles[PERCENTS.index(50)]
    title = f"{said.capitalize()} of {one.count:,} texts; dashed: the median, {median:.4g}."
    if outside := one.count - round(float(one.counts.sum())):
        title += f" {outside:,} texts lie beyond either end."
    return histogram(one.edges, one.counts, title=title, label=label, mark=median)


def distribution_table(distributions: Sequence[Distribution]) -> list[Content]:
    """A row for each score: mean, SD and quantiles; how many texts have none, where that is so."""
    lacking = any(one.missing for one in distributions)
    rows: list[list[Content]] = []
    for one in distributions:
        numbers = [one.mean, one.std, one.minimum, *one.quantiles, one.maximum]
        row: list[Content] = [el("code", given(one.name, 60)), *map(_number, numbers)]
        rows.append([*row, f"{one.missing:,}"] if lacking else row)
    head: list[Content] = ["score", "mean", "SD", "min", *(f"{percent} %" for percent in PERCENTS), "max"]
    return capped([*head, "texts without"] if lacking else head, rows, label="quantiles of the scores")


def _number(value: float | None) -> str:
    """
    >>> _number(1612.8), _number(0.00024614), _number(None)
    ('1,613', '0.0002461', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _ends(summary: ScoreSummary, beside: Given) -> list[Content]:
    if summary.by is None or not (summary.lowest or summary.highest):
        return []
    found = views_of(summary, beside.views)
    tops = tops_of(list(found.values()))
    by = in_words(summary.by)
    parts: list[Content] = [switch(tops, f"by-{beside.number}") if found else None]
    for words, rows in (("Highest", summary.highest), ("Lowest", summary.lowest)):
        parts += [el("h3", f"{words} {by}"), *(_text(row, found.get(row.id), tops) for row in rows)]
    return [el("div", parts, class_="tokens")]


def views_of(summary: ScoreSummary, views: Sequence[TokenView]) -> dict[str, TokenView]:
    """The token views of the texts at either end, by the text's id."""
    return {row.id: view for row in (*summary.lowest, *summary.highest) for view in views if same_text(view, row)}


def _text(row: TextRow, view: TokenView | None, tops: dict[str, float]) -> Markup:
    shown = [(name.removesuffix("_mean"), f"{value:.3f} {unit_of(name)}") for name in DRAWN
             if (value := row.scores.get(name)) is not None]  # fmt: skip
    head = el("header", el("h4", given(row.id)), facts([*shown, ("tokens", row.n_tokens)]))
    if view is not None:
        return el("article", head, heat(view, tops))
    if row.text is None:
        return el("article", head, el("p", "The run holds no texts.", class_="note"))
    rest = len(row.text) - LETTERS
    note = el("p", f"{rest:,} more characters are not shown.", class_="note") if rest > 0 else None
    return el("article", head, el("div", clipped(row.text, LETTERS), class_="text", dir="auto"), note)


def _sources(inputs: Any) -> list[Content]:
    if not isinstance(inputs, list) or not inputs:
        return []
    rows: list[list[Content]] = [[given(one.get("name", "")), f"{one.get('rows', 0):,}"] for one in inputs]
    return [el("h3", "Sources"), *capped(["file", "rows"], rows, label="sources")]


# --- token views ------------------------------------------------------------------------------------------------------


def read_tokens(run: Run) -> list[TokenView]:
    return read_views(run.path)


def token_section(run: Run, views: list[TokenView], beside: Given) -> Content:
    del run
    here = [view for view in views if view not in beside.shown]
    above = f"{len(views) - len(here)} of {len(views)} texts are shown above, among the highest and lowest."
    tops = tops_of(views)
    texts = [
        el("article", el("header", el("h3", given(view.id)), facts([("tokens", len(view.tokens))])), heat(view, tops))
        for view in here
    ]
    note = el("p", above, class_="note") if len(here) < len(views) else None
    if not here:
        return note or el("p", "The table holds no texts.", class_="note")
    return el("div", note, switch(tops, f"by-{beside.number}"), texts, class_="tokens")


# --- bins -------------------------------------------------------------------------------------------------------------


def read_bins(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    return read_json(run.path / "bins.json") or {}, read_json(run.path / "_blocks" / "blocks.json") or {}


def bin_section(run: Run, data: tuple[dict[str, Any], dict[str, Any]], beside: Given) -> Content:
    del run, beside
    bins, blocks = data
    single = isinstance(bins["by"], str)
    by = bins["by"] if single else ", ".join(bins["by"])
    how = bins["how"] if isinstance(bins["how"], str) else " x ".join(map(str, bins["how"]))
    spans = ["", *(f"> {edge:.6g}" for edge in bins["edges"])] if single else [""] * len(bins["counts"])
    uptos = [*(f"≤ {edge:.6g}" for edge in bins["edges"]), ""] if single else spans
    rows: list[list[Content]] = [
        [f"{k}", " and ".join(filter(None, (spans[k], uptos[k]))), f"{count:,}", f"{tokens:,}",
         *([f"{blocks['blocks'][k]:,}"] if blocks else [])]
        for k, (count, tokens) in enumerate(zip(bins["counts"], bins["tokens"], strict=True))
    ]  # fmt: skip
    names = [str(k) for k in range(len(rows))]
    packed = blocks.get("tokenizer") or {}
    charts = [columns(names, bins["counts"], title="Texts of each bin", label="bin", unit="texts")]
    charts.append(columns(names, bins["tokens"], title="Scored tokens of each bin", label="bin", unit="tokens"))
    if blocks:
        of = f"Blocks of {blocks['length']:,} tokens of each bin"
        charts.append(columns(names, blocks["blocks"], title=of, label="bin", unit="blocks"))
    told = facts(
        [("by", by), ("cut", how), ("texts", bins["rows"]), ("without a score", bins.get("unscored") or None),
         ("order", bins.get("order")), ("seed", bins.get("seed")), ("tokenizer of the blocks", packed.get("name"))]
    )  # fmt: skip
    head: list[Content] = ["bin", clipped(by, 60) if single else "", "texts", "tokens", *(["blocks"] if blocks else [])]
    return [told, el("div", charts, class_="charts"), *capped(head, rows, label="bins")]
