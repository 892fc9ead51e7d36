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

from fluxentropy.config.options import INPUT, OUTPUT, ModelOptions, PlaceOptions, SourceOptions, at_least, suffix_of
from fluxentropy.doors import door
from fluxentropy.errors import UsageError

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

    limit: Annotated[int, INPUT] = 8
    """Number of texts to show."""
    top_k: Annotated[int, OUTPUT] = 5
    """Likely alternatives to show for each token."""
    out: Annotated[Path, OUTPUT]
    """HTML file to write; a CSV with the same numbers is put beside it."""

    def __post_init__(self) -> None:
        SourceOptions.__post_init__(self)
        ModelOptions.__post_init__(self)
        PlaceOptions.__post_init__(self)
        at_least(1, self, "limit")
        at_least(0, self, "top_k")
        suffix_of(self, "out", (".html", ".htm"))


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Options of `fluxentropy report`."""

    runs: Annotated[tuple[str, ...], INPUT] = field(kw_only=False)
    """Run directories of any command, tables of `tokens` (.csv), or folders that hold such."""
    title: Annotated[str, OUTPUT] = "fluxentropy report"
    """Title of the page."""
    out: Annotated[Path, OUTPUT] = Path("report.html")
    """HTML file to write."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise UsageError("no run: name run directories, or a folder that holds some")
        suffix_of(self, "out", (".html", ".htm"))
