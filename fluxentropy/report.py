"""`fluxentropy report`: one self-contained HTML page about what the other commands wrote.

reportruns.py -> reportscores.py, tokenview.py -> reportsections.py, reporttraining.py -> reportpage.py;
markup.py has the templates.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fluxentropy.config import ReportConfig
from fluxentropy.errors import UsageError
from fluxentropy.outcome import Outcome
from fluxentropy.progress import Progress
from fluxentropy.reportpage import load, render
from fluxentropy.reportruns import find_runs
from fluxentropy.store import write_text

log = logging.getLogger(__name__)


def report(config: ReportConfig) -> Outcome:
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
    size = len(page.encode())
    kinds: dict[str, int] = {}
    for run in runs:
        kinds[run.kind] = kinds.get(run.kind, 0) + 1
    told = ", ".join(f"{count} of {kind}" for kind, count in kinds.items())
    lines = [f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} ({told}), {size / 1e6:.2f} MB: {config.out}"]
    lines += [f"left out: {one.name}: {one.why}" for one in missing]
    return Outcome(
        lines=lines,
        data={
            "out": str(config.out),
            "bytes": size,
            "runs": [{"kind": run.kind, "run": str(run.path)} for run in runs],
            "left_out": [{"name": one.name, "why": one.why} for one in missing],
        },
    )
