"""The page of a report: a table of what is on it, a section for each run, and what was left out.

The page holds no reference to anything outside and no script, and forbids both by a Content-Security-Policy that names
its one style sheet by hash. It stays below LARGEST bytes: sections enter in order as long as there is room for their
text, then pictures, in order, as long as there is room for them; what is left out is said.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxentropy import __version__
from fluxentropy import reportmodels as models
from fluxentropy import reportsections as texts
from fluxentropy import reporttraining as trainings
from fluxentropy.errors import RunError
from fluxentropy.markdowntext import table
from fluxentropy.markup import Content, Markup, el, given
from fluxentropy.reportorigin import origin
from fluxentropy.reportpictures import Pictures
from fluxentropy.reportruns import KINDS, LeftOut, Run
from fluxentropy.reportsections import Given
from fluxentropy.reporttokens import heat_css

LARGEST = 5_000_000  # bytes of the page
SPARE = 300_000  # bytes for what stands around the sections
SHARE_OF_TEXT = 0.8  # of the page, that sections may take before their pictures

Section = Callable[[Run, Any, Given], Content]
SECTIONS: dict[str, tuple[str, Callable[[Run], Any], Section]] = {
    "score": ("Scores", texts.read_scored, texts.score_section),
    "zoo": ("Agreement of models", models.read_agreement, models.agreement_section),
    "agree": ("Agreement of models", models.read_agreement, models.agreement_section),
    "tokens": ("Tokens", texts.read_tokens, texts.token_section),
    "bin": ("Bins", texts.read_bins, texts.bin_section),
    "schedule": ("Schedule", trainings.read_plan, trainings.plan_section),
    "pretrain": ("Training", trainings.read_training, trainings.training_section),
    "compare": ("Comparison of schedules", trainings.read_words, trainings.words_section),
    "hellaswag": ("Answers", models.read_answers, models.answer_section),
    "diagnose": ("Diagnosis", trainings.read_words, trainings.words_section),
    "grpo": ("Reinforcement learning", trainings.read_rewards, trainings.reward_section),
    "grpo-compare": ("Comparison of controllers", trainings.read_words, trainings.words_section),
}
SHAPES = (KeyError, TypeError, ValueError, AttributeError, IndexError)  # of JSON that is not as it was written


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A run and what is shown of it."""

    run: Run
    data: Any

    @property
    def title(self) -> str:
        return SECTIONS[self.run.kind][0]


def load(run: Run) -> Loaded:
    """Read what the page shows of `run`. Errors: `RunError` names what is damaged."""
    try:
        return Loaded(run=run, data=SECTIONS[run.kind][1](run))
    except SHAPES as error:
        raise _odd(run, error) from error


def _odd(run: Run, error: Exception) -> RunError:
    return RunError(f"{run.path} is not as `fluxentropy {run.kind}` writes it ({error!r}): it is damaged, or edited")


def render(loaded: Sequence[Loaded], left_out: Sequence[LeftOut], *, title: str) -> tuple[str, list[LeftOut]]:
    """The page, and all that is not on it. Runs stand in the order of the pipeline, those of a kind as given."""
    ordered = sorted(loaded, key=lambda one: KINDS.index(one.run.kind))
    sections = _sections(ordered, Pictures(0))
    room = LARGEST * SHARE_OF_TEXT
    kept: list[Loaded] = []
    missing = list(left_out)
    for one, section in zip(ordered, sections, strict=True):
        size = len(section.encode())
        if size <= room:
            kept.append(one)
            room -= size
        else:
            missing.append(LeftOut(name=one.run.name, why="the page is full"))
    used = LARGEST * SHARE_OF_TEXT - room
    head = _head(title)
    pictures = Pictures(max(int(LARGEST - used - len(head.encode()) - SPARE), 0))
    drawn = _sections(kept, pictures)
    missing += pictures.left_out
    body = el(
        "body",
        el("h1", given(title, 300)),
        el("p", f"{len(kept)} {'run' if len(kept) == 1 else 'runs'}, by fluxentropy {__version__}.", class_="note"),
        _contents(kept),
        el("main", _with_trainings(kept, drawn)),
        _missing(missing),
    )
    return f'<!DOCTYPE html>\n<html lang="en">\n{head}\n{body}\n</html>\n', missing


def _sections(loaded: Sequence[Loaded], pictures: Pictures) -> list[Markup]:
    """A section for each run; token views stand beside the scores of their texts where both are there."""
    views = [view for one in loaded if one.run.kind == "tokens" for view in one.data]
    scored = [one.data for one in loaded if one.run.kind == "score"]
    shown = [view for summary in scored for view in texts.views_of(summary, views).values()]
    return [
        _section(one, Given(number=number, views=views, shown=shown, pictures=pictures))
        for number, one in enumerate(loaded)
    ]


def _section(one: Loaded, beside: Given) -> Markup:
    number = beside.number
    try:
        content = SECTIONS[one.run.kind][2](one.run, one.data, beside)
        heading = el("h2", f"{one.title}: ", given(one.run.name), id=f"run-{number}")
        return el("section", heading, content, origin(one.run), aria_labelledby=f"run-{number}")
    except SHAPES as error:
        raise _odd(one.run, error) from error


# --- around the sections ----------------------------------------------------------------------------------------------


def _head(title: str) -> Markup:
    style = Markup(Path(__file__).with_name("report.css").read_text(encoding="utf-8") + heat_css())
    digest = "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'none'; style-src '{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    return el(
        "head",
        el("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", title),
        el("style", style),
    )


def _contents(kept: Sequence[Loaded]) -> Markup:
    rows: list[list[Content]] = [
        [one.title, el("a", given(one.run.name), href=f"#run-{number}"), given(_gist(one))]
        for number, one in enumerate(kept)
    ]
    return el("nav", table(["what", "run", "of"], *rows, label="contents"), aria_label="Contents")


def _gist(one: Loaded) -> str:
    """What a run is of, in some words."""
    identity = one.run.identity
    model = identity.get("model")
    named = model.get("name") if isinstance(model, dict) else model
    schedule = identity.get("schedule")
    if one.run.kind == "tokens":
        return f"{len(one.data)} texts"
    if one.run.kind == "score":
        return f"{one.data.rows:,} texts, {named}"
    if one.run.kind in ("zoo", "agree"):
        return f"{len(one.data.get('models', []))} models, {one.data.get('n_texts', 0):,} texts"
    if one.run.kind == "bin":
        return f"{one.data[0]['rows']:,} texts in {len(one.data[0]['counts'])} bins"
    if one.run.kind == "schedule":
        return f"{one.data['config']['name']}, {one.data['tokens']:,} tokens"
    if isinstance(schedule, dict):
        return f"{schedule.get('name')}, {one.run.manifest.get('tokens', 0):,} tokens"
    if one.run.kind in ("compare", "grpo-compare"):
        return f"{len(one.run.manifest.get('arms', []))} arms"
    if one.run.kind == "grpo":
        return f"{one.run.manifest.get('steps', 0):,} steps"
    return str(named or identity.get("target") or "")


def _with_trainings(kept: Sequence[Loaded], drawn: Sequence[Markup]) -> list[Content]:
    """The sections; before the first of several trainings one on all of them."""
    places = [place for place, one in enumerate(kept) if one.run.kind == "pretrain"]
    if len(places) < 2:
        return list(drawn)
    runs = [(kept[place].run, kept[place].data) for place in places]
    whole = el("section", el("h2", "Trainings side by side"), trainings.side_by_side(runs))
    return [*drawn[: places[0]], whole, *drawn[places[0] :]]


def _missing(missing: Sequence[LeftOut]) -> Content:
    if not missing:
        return None
    items = [el("li", given(one.name), ": ", given(one.why)) for one in missing[:100]]
    more = el("li", f"and {len(missing) - 100:,} more") if len(missing) > 100 else None
    rule = f"A page has at most {LARGEST / 1e6:g} MB: sections come first, then pictures, both in order."
    return el("footer", el("h2", "Left out"), el("ul", items, more), el("p", rule, class_="note"))
