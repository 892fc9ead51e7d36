"""The page of a report: a table of what is on it, a section for each run, and what was left out.

The page holds no reference to anything outside and no script, and forbids both by a Content-Security-Policy that names
its one style sheet by hash. It stays below LARGEST bytes: sections enter in order as long as there is room for their
text, then pictures, in order, as long as there is room for them; what is left out is said.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fluxentropy.config.results import Result, command
from fluxentropy.config.yaml import to_plain
from fluxentropy.errors import RunError, UsageError
from fluxentropy.report import ReportConfig
from fluxentropy.report.html import page, parts
from fluxentropy.report.sections import TEXT_SECTIONS, Given, Pictures, mono, views_of
from fluxentropy.report.tokens import heat_css
from fluxentropy.report.trainings import TRAINING_SECTIONS, side_by_side
from fluxentropy.runs.directory import CONFIG
from fluxentropy.runs.files import versions, write_text
from fluxentropy.runs.find import KINDS, LeftOut, Run, find_runs
from fluxentropy.runs.progress import Progress

# --- the page ---------------------------------------------------------------------------------------------------------


LARGEST = 5_000_000  # bytes of the page
SPARE = 300_000  # bytes for what stands around the sections
SHARE_OF_TEXT = 0.8  # of the page, that sections may take before their pictures
SECTIONS = TEXT_SECTIONS | TRAINING_SECTIONS
HASH = re.compile(r"(?:(?:sha256|sampled):)?[0-9a-f]{32,64}(?:/v\d+)?")
SHAPES = (KeyError, TypeError, ValueError, AttributeError, IndexError)  # of JSON that is not as it was written


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A run and what is shown of it."""

    run: Run
    data: Any

    @property
    def title(self) -> str:
        return SECTIONS[self.run.kind].title


def load(run: Run) -> Loaded:
    """Read what the page shows of `run`. Errors: `RunError` names what is damaged."""
    try:
        return Loaded(run=run, data=SECTIONS[run.kind].read(run))
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
    around = len(_page(title, [], [], []).encode())
    pictures = Pictures(max(int(LARGEST - used - around - SPARE), 0))
    drawn = _sections(kept, pictures)
    missing += pictures.left_out
    return _page(title, kept, _with_trainings(kept, drawn), missing), missing


def _page(title: str, kept: Sequence[Loaded], sections: Sequence[Markup], missing: Sequence[LeftOut]) -> str:
    contents = [[one.title, parts().link(f"run-{n}", one.run.name), _gist(one)] for n, one in enumerate(kept)]
    given = {"contents": contents, "sections": sections, "missing": missing}
    return page("page.html", rules=heat_css(), title=title, version=versions()["fluxentropy"], largest=LARGEST, **given)


def _sections(loaded: Sequence[Loaded], pictures: Pictures) -> list[Markup]:
    """A section for each run; token views stand beside the scores of their texts where both are there."""
    views = [view for one in loaded if one.run.kind == "tokens" for view in one.data]
    scored = [one.data for one in loaded if one.run.kind == "score"]
    shown = [view for summary in scored for view in views_of(summary, views).values()]
    return [
        _section(one, Given(number=number, views=views, shown=shown, pictures=pictures))
        for number, one in enumerate(loaded)
    ]


def _section(one: Loaded, beside: Given) -> Markup:
    try:
        content = SECTIONS[one.run.kind].show(one.run, one.data, beside)
        return parts().section(beside.number, one.title, one.run.name, content, _origin(one.run))
    except SHAPES as error:
        raise _odd(one.run, error) from error


# --- around the sections ----------------------------------------------------------------------------------------------


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


def _with_trainings(kept: Sequence[Loaded], drawn: Sequence[Markup]) -> list[Markup]:
    """The sections; before the first of several trainings one on all of them."""
    places = [place for place, one in enumerate(kept) if one.run.kind == "pretrain"]
    if len(places) < 2:
        return list(drawn)
    whole = side_by_side([(kept[place].run, kept[place].data) for place in places])
    return [*drawn[: places[0]], parts().section("all", "Trainings side by side", None, whole), *drawn[places[0] :]]


# --- how a run was made -----------------------------------------------------------------------------------------------


def _origin(run: Run) -> dict[str, Any]:
    """What it takes to make a run again: where it is, its command, configuration, fingerprints and versions."""
    marks = {mark: name for name, mark in fingerprints(run.manifest)}
    versions = run.manifest.get("versions")
    return {
        "path": str(run.path),
        "command": command_line(run),
        "config": _read_config(run.path / CONFIG) if run.path.is_dir() else None,
        "marks": [[name, mono(mark)] for mark, name in marks.items()],
        "versions": ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        if isinstance(versions, dict)
        else "",
    }


def command_line(run: Run) -> str:
    """The command line that makes a run again.

    >>> command_line(Run(kind="score", path=Path("a b"), name="a b"))
    "fluxentropy score --config 'a b/config.resolved.yaml'"
    """
    path = str(run.path / CONFIG)
    return shlex.join(["fluxentropy", run.kind, "--config", f"./{path}" if path.startswith("-") else path])


def _read_config(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path} cannot be read ({error}): the run is damaged") from error


def fingerprints(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The hashes anywhere in a manifest, each with where it stands.

    >>> list(fingerprints({"model": {"name": "m", "fingerprint": "sha256:" + 64 * "0"}}))[0][0]
    'model'
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            inner = key if key not in ("identity", "fingerprint", "sha256") else ""
            yield from fingerprints(item, " · ".join(part for part in (name, str(inner)) if part))
    elif isinstance(value, list):
        for item in value:
            label = item.get("name", "") if isinstance(item, Mapping) else ""
            yield from fingerprints(item, " · ".join(part for part in (name, str(label)) if part))
    elif isinstance(value, str) and HASH.fullmatch(value):
        yield name or "whole", value


# --- `fluxentropy report` ---------------------------------------------------------------------------------------------
#
# runs/find.py -> report/scores.py, report/tokens.py -> report/sections.py, report/trainings.py -> report/page.py;
# report/html.py has the templates.


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ReportResult(Result):
    """The page `out`, of so many `bytes`: the runs on it, and what is not."""

    out: Path
    bytes: int
    runs: list[Run]
    left_out: list[LeftOut]

    def lines(self) -> list[str]:
        count, kinds = len(self.runs), Counter(run.kind for run in self.runs)
        told = ", ".join(f"{n} of {kind}" for kind, n in kinds.items())
        lines = [f"{count} {'run' if count == 1 else 'runs'} ({told}), {self.bytes / 1e6:.2f} MB: {self.out}"]
        return lines + [f"left out: {one.name}: {one.why}" for one in self.left_out]

    def to_dict(self) -> dict[str, Any]:
        """The fields, with the kind and the path of each run."""
        runs = [{"kind": run.kind, "run": str(run.path)} for run in self.runs]
        return {"out": str(self.out), "bytes": self.bytes, "runs": runs, "left_out": to_plain(self.left_out)}


@command
def report(config: ReportConfig) -> ReportResult:
    """Write the page about `config.runs` to `config.out`. The same runs give the same bytes.

    Errors: `SourceError` and `RunError` name a path that is no run, or a damaged or unfinished one.
    """
    runs, left_out = find_runs([Path(run).expanduser() for run in config.runs])
    for run in runs:
        if config.out.resolve() in (run.path.resolve(), run.path.with_suffix(".html").resolve()):
            raise UsageError(f"--out {config.out}: this is a page of {run.name}, choose another name")
    loaded = []
    with Progress(len(runs), unit="runs") as progress:
        for run in runs:
            loaded.append(load(run))
            progress.update(1, last=f"({run.name})")
    page, missing = render(loaded, left_out, title=config.title)
    write_text(config.out, page)
    return ReportResult(out=config.out, bytes=len(page.encode()), runs=runs, left_out=missing)
