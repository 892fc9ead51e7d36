"""One self-contained HTML page of what the other commands wrote, and the view of single tokens.

page.py       `fluxentropy report`
sections.py   sections on scores, bins, agreement, answers
trainings.py  sections on schedules, trainings, comparisons, diagnoses
scores.py     the scores of a run of any size: distributions and both ends
tokens.py     `fluxentropy tokens`: a row and a colour a token
html.py       safe HTML and Markdown from templates/, small charts as SVG
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from fluxentropy.config.checks import Min, Options, Some, Suffix
from fluxentropy.config.options import INPUT, OUTPUT, ModelOptions, PlaceOptions, SourceOptions
from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "render": "page",
    },
    call="page:report",
)


@dataclass(frozen=True, kw_only=True)
class TokensConfig(PlaceOptions, ModelOptions, SourceOptions):
    """Options of `fluxentropy tokens`."""

    limit: Annotated[int, INPUT, Min(1)] = 8
    """Number of texts to show."""
    top_k: Annotated[int, OUTPUT, Min(0)] = 5
    """Likely alternatives to show for each token."""
    out: Annotated[Path, OUTPUT, Suffix(".html", ".htm")]
    """HTML file to write; a CSV with the same numbers is put beside it."""


RUNS = Some("name run directories, or a folder that holds some", opening="no run: ")


@dataclass(frozen=True, kw_only=True)
class ReportConfig(Options):
    """Options of `fluxentropy report`."""

    runs: Annotated[tuple[str, ...], INPUT, RUNS] = field(kw_only=False)
    """Run directories of any command, tables of `tokens` (.csv), or folders that hold such."""
    title: Annotated[str, OUTPUT] = "fluxentropy report"
    """Title of the page."""
    out: Annotated[Path, OUTPUT, Suffix(".html", ".htm")] = Path("report.html")
    """HTML file to write."""
