"""Sections of a report on texts and models: scores, token views, bins, agreement, answers; and the pictures of all.

A section is a list of parts, each of them markup.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from fluxentropy.errors import RunError
from fluxentropy.evaluation.questions import ACCURACIES
from fluxentropy.report.html import Chart, clipped, columns, given, histogram, parts
from fluxentropy.report.scores import DRAWN, PERCENTS, Distribution, ScoreSummary, TextRow, summarise_scores
from fluxentropy.report.tokens import Scale, TokenView, read_views, scales_of, shades
from fluxentropy.runs.files import read_json
from fluxentropy.runs.find import LeftOut, Run
from fluxentropy.runs.tables import run_parts

LETTERS = 700  # of a text without token view
TOKENS = 500  # of a text with one
CLOSE = 0.05  # nats that two ways to compute a mean entropy may differ by
ROWS = 40  # of a matrix
UNITS = {"entropy": "nats", "varentropy": "nats²", "sqrt_varentropy": "nats", "surprisal": "nats"}
WIDTH = 1500  # pixels, at most
LARGEST = 30_000_000  # pixels of a file that is read at all
TONES = 96  # colours that are kept
WIDE = 1.5  # width over height from which a picture is not made narrower than can be read


class Pictures:
    """Hands out pictures until `room` bytes of the page are used, and remembers those there was no room for."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.left_out: list[LeftOut] = []

    def show(self, path: Path, alt: str, caption: str = "") -> Markup:
        """The picture as a figure; a line where the page is full. RunError where it cannot be read."""
        picture, (width, height) = shrunk(path) if self.room else (b"", (0, 0))
        data = base64.b64encode(picture).decode()
        if not self.room or len(data) > self.room:
            self.left_out.append(LeftOut(name=f"{path.parent.name}/{path.name}", why="the page is full"))
            return parts().note(f"The picture {path.name} is left out: the page is full.")
        self.room -= len(data)
        return parts().picture(data, width, height, alt, caption or alt, width > WIDE * height)


def shrunk(path: Path) -> tuple[bytes, tuple[int, int]]:
    """The picture on white, at most WIDTH pixels wide and in TONES colours, as the bytes of a PNG; and its size."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as found:
            if found.width * found.height > LARGEST:
                raise ValueError(f"{found.width} x {found.height} pixels are too many")
            picture = Image.new("RGBA", found.size, "white")
            picture.alpha_composite(found.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RunError(f"{path} is no picture that can be read ({error}): make it again, or remove it") from error
    flat = picture.convert("RGB")
    if flat.width > WIDTH:
        flat = flat.resize((WIDTH, round(flat.height * WIDTH / flat.width)), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    flat.quantize(TONES, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue(), flat.size


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a section may look at beside its own run."""

    number: int
    views: Sequence[TokenView]  # of all token tables of the page
    shown: Sequence[TokenView]  # of these, those that sections on scores show
    pictures: Pictures


class Section(NamedTuple):
    """What a page says of a run of some kind."""

    title: str
    read: Callable[[Run], Any]
    show: Callable[[Run, Any, Given], list[Markup]]


# --- scores -----------------------------------------------------------------------------------------------------------


def read_scored(run: Run) -> ScoreSummary:
    return summarise_scores(run_parts(run.path), text_field=str(run.identity.get("text_field", "text")))


def score_section(run: Run, summary: ScoreSummary, beside: Given) -> list[Markup]:
    drawn = [one for one in summary.distributions if one.name in DRAWN] or list(summary.distributions)[:1]
    return [
        parts().facts(_score_facts(run, summary)),
        parts().heading("Distributions"),
        parts().charts(map(distribution_chart, drawn)),
        distribution_table(summary.distributions),
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


def distribution_chart(one: Distribution) -> Chart:
    said = in_words(one.name)
    label = f"{said} ({unit_of(one.name)})".replace(" ()", "")
    median = one.quantiles[PERCENTS.index(50)]
    title = f"{said.capitalize()} of {one.count:,} texts; dashed: the median, {median:.4g}."
    if outside := one.count - round(float(one.counts.sum())):
        title += f" {outside:,} texts lie beyond either end."
    return histogram(one.edges, one.counts, title=title, label=label, mark=median)


def distribution_table(distributions: Sequence[Distribution]) -> Markup:
    """A row for each score: mean, SD and quantiles; how many texts have none, where that is so."""
    lacking = any(one.missing for one in distributions)
    head = ["score", "mean", "SD", "min", *(f"{percent} %" for percent in PERCENTS), "max"]
    rows = [
        [mono(one.name, 60), *map(_number, (one.mean, one.std, one.minimum, *one.quantiles, one.maximum)),
         *([f"{one.missing:,}"] if lacking else [])]
        for one in distributions
    ]  # fmt: skip
    return parts().table([*head, "texts without"] if lacking else head, rows, "quantiles of the scores")


def mono(text: str, limit: int = 200) -> Markup:
    """Text of a user as a name in a cell."""
    return Markup("<code>{}</code>").format(given(text, limit))


def _number(value: float | None) -> str:
    """
    >>> _number(1612.8), _number(0.00024614), _number(None)
    ('1,613', '0.0002461', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _ends(summary: ScoreSummary, beside: Given) -> list[Markup]:
    if summary.by is None or not (summary.lowest or summary.highest):
        return []
    found = views_of(summary, beside.views)
    scales = scales_of(list(found.values()))
    by = in_words(summary.by)
    shown = [parts().switch(f"by-{beside.number}", scales)] if found else []
    for words, rows in (("Highest", summary.highest), ("Lowest", summary.lowest)):
        shown.append(parts().heading(f"{words} {by}"))
        for place, row in enumerate(rows):
            shown.append(_text(row, found.get(row.id), scales, f"{beside.number}-{words}-{place}"))
    return [parts().tokens(shown)]


def views_of(summary: ScoreSummary, views: Sequence[TokenView]) -> dict[str, TokenView]:
    """The token views of the texts at either end, by the text's id."""
    return {row.id: view for row in (*summary.lowest, *summary.highest) for view in views if same_text(view, row)}


def same_text(view: TokenView, row: TextRow) -> bool:
    """Whether `view` shows the text of `row`, as the model of that run sees it."""
    if view.id != row.id or row.text is None or not view.text or not row.text.startswith(view.text[:200]):
        return False
    mean = sum(token.entropy for token in view.tokens) / len(view.tokens)
    known = row.scores.get("entropy_mean")
    return known is None or len(view.tokens) != row.n_tokens or abs(mean - known) < CLOSE


def _text(row: TextRow, view: TokenView | None, scales: Sequence[Scale], key: str) -> Markup:
    facts = [(name.removesuffix("_mean"), f"{value:.3f} {unit_of(name)}") for name in DRAWN
             if (value := row.scores.get(name)) is not None]  # fmt: skip
    if view is not None:
        return _view(4, view, [*facts, ("tokens", row.n_tokens)], scales, key)
    rest = len(row.text or "") - LETTERS
    note = f"{rest:,} more characters are not shown." if rest > 0 else "The run holds no texts." * (row.text is None)
    text = None if row.text is None else parts().text(clipped(row.text, LETTERS))
    return parts().article(4, row.id, [*facts, ("tokens", row.n_tokens)], text, note)


def _view(
    level: int, view: TokenView, facts: Sequence[tuple[str, object]], scales: Sequence[Scale], key: str
) -> Markup:
    """A text with its tokens coloured; each says its numbers where the pointer is."""
    rest = len(view.tokens) - TOKENS
    note = f"{rest:,} more tokens are not shown." if rest > 0 else None
    return parts().article(level, view.id, facts, parts().heat(shades(view.tokens[:TOKENS], scales), key), note)


def _sources(inputs: Any) -> list[Markup]:
    if not isinstance(inputs, list) or not inputs:
        return []
    rows = [[str(one.get("name", "")), f"{one.get('rows', 0):,}"] for one in inputs]
    return [parts().heading("Sources"), parts().table(["file", "rows"], rows, "sources")]


# --- token views ------------------------------------------------------------------------------------------------------


def read_tokens(run: Run) -> list[TokenView]:
    return read_views(run.path)


def token_section(run: Run, views: list[TokenView], beside: Given) -> list[Markup]:
    del run
    here = [view for view in views if view not in beside.shown]
    above = f"{len(views) - len(here)} of {len(views)} texts are shown above, among the highest and lowest."
    note = parts().note(above if len(here) < len(views) else None)
    if not here:
        return [note or parts().note("The table holds no texts.")]
    scales = scales_of(views)
    texts = [
        _view(3, view, [("tokens", len(view.tokens))], scales, f"{beside.number}-{place}")
        for place, view in enumerate(here)
    ]
    return [parts().tokens([note, parts().switch(f"by-{beside.number}", scales), *texts])]


# --- bins -------------------------------------------------------------------------------------------------------------


def read_bins(run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    return read_json(run.path / "bins.json") or {}, read_json(run.path / "_blocks" / "blocks.json") or {}


def bin_section(run: Run, data: tuple[dict[str, Any], dict[str, Any]], beside: Given) -> list[Markup]:
    del run, beside
    bins, blocks = data
    single = isinstance(bins["by"], str) and not bins.get("within")  # else a bin has no edges of its own
    by = bins["by"] if isinstance(bins["by"], str) else ", ".join(bins["by"])
    how = bins["how"] if isinstance(bins["how"], str) else " x ".join(map(str, bins["how"]))
    spans = ["", *(f"> {edge:.6g}" for edge in bins["edges"])] if single else [""] * len(bins["counts"])
    uptos = [*(f"≤ {edge:.6g}" for edge in bins["edges"]), ""] if single else spans
    rows = [
        [f"{k}", " and ".join(filter(None, (spans[k], uptos[k]))), f"{count:,}",
         "unknown" if tokens is None else f"{tokens:,}",
         *([f"{blocks['blocks'][k]:,}"] if blocks else [])]
        for k, (count, tokens) in enumerate(zip(bins["counts"], bins["tokens"], strict=True))
    ]  # fmt: skip
    names = [str(k) for k in range(len(rows))]
    packed = blocks.get("tokenizer") or {}
    charts = [columns(names, bins["counts"], title="Texts of each bin", label="bin", unit="texts")]
    if None not in bins["tokens"]:
        charts.append(columns(names, bins["tokens"], title="Scored tokens of each bin", label="bin", unit="tokens"))
    if blocks:
        of = f"Blocks of {blocks['length']:,} tokens of each bin"
        charts.append(columns(names, blocks["blocks"], title=of, label="bin", unit="blocks"))
    told = [
        ("by", by), ("cut", how), ("texts", bins["rows"]), ("without a score", bins.get("unscored") or None),
        ("order", bins.get("order")), ("seed", bins.get("seed")), ("tokenizer of the blocks", packed.get("name")),
    ]  # fmt: skip
    head = ["bin", clipped(by, 60) if single else "", "texts", "tokens", *(["blocks"] if blocks else [])]
    return [parts().facts(told), parts().charts(charts), parts().table(head, rows, "bins")]


# --- agreement --------------------------------------------------------------------------------------------------------

PLOTS = {
    "pca_models": "Models as points on the first two principal components of their scores",
    "distance_matrix": "Euclidean distance and Spearman correlation of each pair of models",
    "entropies": "Each model's score of each text, in the order of the baseline",
    "ranks": "Each model's rank of each text, in the order of the baseline",
    "explained_variance": "Share of the variance that each principal component explains",
    "rank_spread": "How far the models' ranks of a text lie apart, by its mean rank",
}


def read_agreement(run: Run) -> dict[str, Any]:
    return read_json(run.path / "agreement.json") or {}


def agreement_section(run: Run, found: dict[str, Any], beside: Given) -> list[Markup]:
    failed = run.manifest.get("failed") or {}
    lost = [parts().items(failed.items())] if failed else []
    if not found:
        return [parts().note("The models were not compared."), *lost]
    labels = {name: found.get("labels", {}).get(name, name) for name in found["models"]}
    limits = found.get("bootstrap", {}).get("intervals", {})
    shares = ", ".join(f"{share:.1%}" for share in found["pca"]["explained_variance_ratio"][:3])
    told = [
        ("models", len(labels)), ("texts", found["n_texts"]), ("score", found.get("measure")),
        ("Spearman, mean of the pairs", _limited(found.get("mean_spearman"), limits.get("mean_spearman"))),
        ("Kendall's W", _limited(found["kendall_w"], limits.get("kendall_w"))),
        ("PCA, variance of the first components", shares),
        ("SD of a text's rank, by quintile of its mean rank",
         ", ".join(f"{x:.1f}" for x in found["rank_sd_by_quintile"] if x is not None)),
    ]  # fmt: skip
    short = [clipped(label, 24) for label in labels.values()]
    rows = [
        [name, *("" if x is None else f"{x:.2f}" for x in line[:ROWS])]
        for name, line in zip(short, found["spearman"], strict=True)
    ]
    head = ["", *map(given, short[:ROWS])]
    return [
        parts().facts(told),
        *lost,
        parts().heading("Spearman correlations"),
        parts().table(head, rows, "correlations", ROWS),
        parts().heading("Plots"),
        *plots(run.path, PLOTS, beside.pictures),
    ]


def _limited(value: float | None, limits: Sequence[float] | None) -> str | None:
    if value is None:
        return None
    return f"{value:.3f}" + (f" [{limits[0]:.3f}, {limits[1]:.3f}]" if limits else "")


def plots(folder: Path, known: Mapping[str, str], pictures: Pictures) -> list[Markup]:
    """The pictures `known` that are in `folder`, with what they show."""
    found = {folder / f"{name}.png": words for name, words in known.items()}
    return [pictures.show(path, words) for path, words in found.items() if path.is_file()]


# --- answers ----------------------------------------------------------------------------------------------------------

ITEM_SCORES = ("entropy_mean", "varentropy_mean", "right_surprisal_mean", "right_entropy_mean", "margin", "n_tokens")


def read_answers(run: Run) -> ScoreSummary:
    return summarise_scores([run.path / "items.parquet"], text_field="", names=ITEM_SCORES)


def answer_section(run: Run, summary: ScoreSummary, beside: Given) -> list[Markup]:
    del beside
    rights: list[tuple[str, object]] = []
    old = "format" not in run.identity  # there acc_norm was per byte
    for name, (_, words) in ACCURACIES.items():
        words = "right, " + (words.replace("character", "byte") if old else words)
        value, se, n = ((run.manifest.get(name) or {}).get(key) for key in ("value", "se", "n"))
        if value is not None:
            rights.append((words, f"{value:.1%}" + (f" ± {se:.1%}" if se is not None else "") + f" of {n:,}"))
    told = [("model", (run.identity.get("model") or {}).get("name")), ("task", run.manifest.get("task")),
            ("questions", summary.rows), *rights]  # fmt: skip
    drawn = [one for one in summary.distributions if one.name != "n_tokens" and np.ptp(one.edges) > 0]
    charts = parts().charts(map(distribution_chart, drawn[:4]))
    return [parts().facts(told), charts, distribution_table(summary.distributions)]


TEXT_SECTIONS = {
    "score": Section("Scores", read_scored, score_section),
    "zoo": Section("Agreement of models", read_agreement, agreement_section),
    "agree": Section("Agreement of models", read_agreement, agreement_section),
    "tokens": Section("Tokens", read_tokens, token_section),
    "bin": Section("Bins", read_bins, bin_section),
    "hellaswag": Section("Answers", read_answers, answer_section),
}
