"""`fluxentropy diagnose`: does a metric predict a yes-or-no outcome? Numbers, summaries and plots in one folder."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from fluxentropy.config import DiagnoseConfig, to_yaml
from fluxentropy.diagnostics import Diagnostics, choose_pairs, diagnose_table
from fluxentropy.diagnostics_record import to_record
from fluxentropy.diagnostics_summary import headline, to_markdown
from fluxentropy.errors import RunError
from fluxentropy.metrictable import MetricTable, balanced, counted, read_metric_table
from fluxentropy.outcome import Outcome
from fluxentropy.progress import Progress
from fluxentropy.store import RunDirectory, read_json, sha256_file, write_json, write_text
from fluxentropy.versions import versions

COMMAND = "diagnose"
PRODUCT = re.compile(
    r"logit_.*\.txt|(surface_.*|distributions|effects|fitted_curves|contingency|correlation_matrices|reliability)\.(png|svg)"
)
SLOW = 3e8  # rows times models times replicates, of some seconds
LIBRARIES = ("numpy", "scipy", "statsmodels", "scikit-learn", "matplotlib", "pyarrow")


def diagnose(config: DiagnoseConfig) -> Outcome:
    """Fit and test every metric of the table, and write what was found into `config.out`.

    Errors: those of `read_metric_table` and `choose_pairs`; `RunError` where `config.out` holds something else.
    """
    table = read_metric_table(config.table, config.target, config.metrics or ())
    pairs = choose_pairs(list(table.metrics), config.pairs)
    if config.balance:
        table = balanced(table, config.seed)
    _check_folder(config.out)
    with RunDirectory(config.out, overwrite=config.overwrite, folder=".parts") as run:
        run.begin(_identity(config, table, pairs), to_yaml(config))
        result = _diagnose(config, table, pairs)
        files = write_diagnosis(result, config.out)
        for file in config.out.iterdir():
            if PRODUCT.fullmatch(file.name) and file not in files:  # of the diagnosis that --overwrite replaces
                file.unlink()
        hashes = {file.name: sha256_file(file) for file in files}
        counts = {"rows": table.n_rows, "used": table.n, "excluded": table.excluded}
        run.finish({"files": hashes, "counts": counts, "versions": versions(LIBRARIES)})
    record = to_record(result)
    names = [file.name for file in files]
    lines = [
        headline(result).replace("**", "").replace("`", ""),
        *_left_out(table),
        "",
        f"summary    {config.out / 'summary.md'}",
        f"numbers    {config.out / 'diagnostics.json'}",
        f"models     {config.out}/: {', '.join(name for name in names if name.endswith('.txt'))}",
        f"plots      {config.out}/: {', '.join(name for name in names if name.endswith('.png'))} (and .svg)",
    ]
    return Outcome(lines=lines, data={"out": str(config.out), "files": names, **record})


def _left_out(table: MetricTable) -> list[str]:
    """What the table has that was not used, in a line a column."""
    lost = [f"{name} of {table.n_rows:,} rows: {counted(faults)}" for name, faults in table.excluded.items()]
    return [f"left out, {text}" for text in lost] + [f"not used, {name}: {why}" for name, why in table.skipped.items()]


def _diagnose(config: DiagnoseConfig, table: MetricTable, pairs: list[tuple[str, str]]) -> Diagnostics:
    """The results; a table that takes a while shows progress."""
    models = len(table.metrics) + len(pairs)
    slow = models * table.n * (config.bootstrap + 100) > SLOW
    with Progress(models, unit="models") if slow else nullcontext() as progress:
        return diagnose_table(
            table,
            pairs,
            balanced=config.balance,
            seed=config.seed,
            replicates=config.bootstrap,
            folds=config.folds,
            on_model=lambda: progress.update(1) if progress else None,
        )


def write_diagnosis(result: Diagnostics, out: Path) -> list[Path]:
    """Write the numbers, the summaries and the plots into the folder `out`, and return the files."""
    from fluxentropy.diagnostics_figures import draw_diagnostics, file_name

    texts = {f"logit_{file_name(key)}.txt": model.fit.summary for key, model in result.models.items()}
    for name, text in texts.items():
        write_text(out / name, text)
    figures = draw_diagnostics(result, out)
    write_json(out / "diagnostics.json", to_record(result))
    write_text(out / "summary.md", to_markdown(result, [file.name for file in figures if file.suffix == ".png"]))
    return [out / "summary.md", out / "diagnostics.json", *(out / name for name in texts), *figures]


def _identity(config: DiagnoseConfig, table: MetricTable, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Everything that decides the bytes of the result."""
    return {
        "command": COMMAND,
        "inputs": dict(table.fingerprints),
        "target": table.target_name,
        "metrics": list(table.metrics),
        "pairs": ["+".join(pair) for pair in pairs],
        "balance": config.balance,
        "bootstrap": config.bootstrap,
        "folds": config.folds,
        "seed": config.seed,
    }


def _check_folder(out: Path) -> None:
    """Refuse a run directory of another command, which --overwrite would destroy."""
    manifest = read_json(out / "manifest.json") if out.is_dir() else None
    if manifest is not None and (manifest.get("identity") or {}).get("command") != COMMAND:
        raise RunError(f"{out} holds a run of another command: choose another --out")
