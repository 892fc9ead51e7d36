"""Repairs run directories: damaged files are taken away, and the run's own command makes what is missing.

The files taken away come back where the command fails, or where a repair was killed and the next one starts: a repair
never leaves less than there was.
"""

from __future__ import annotations

import importlib
import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fluxentropy.bincheck import changed_input
from fluxentropy.config import AgreeConfig, BinConfig, HellaswagConfig, ScoreConfig, ZooConfig
from fluxentropy.errors import FluxentropyError, RunError
from fluxentropy.findings import Findings
from fluxentropy.store import RunDirectory, read_json
from fluxentropy.yamlfile import read_yaml

COMMANDS: dict[str, tuple[str, type, str]] = {  # the function, its configuration, the folder of the run's parts
    "score": ("fluxentropy.scoring:score", ScoreConfig, "scores"),
    "bin": ("fluxentropy.binning:bin_corpus", BinConfig, ".pieces"),
    "hellaswag": ("fluxentropy.hellaswag:hellaswag", HellaswagConfig, "items"),
    "zoo": ("fluxentropy.zoo:zoo", ZooConfig, "consensus"),
    "agree": ("fluxentropy.agree:agree", AgreeConfig, "consensus"),
}
KEPT = ".damaged-"  # in front of the name of what a repair has taken away

log = logging.getLogger(__name__)


def undo_killed(path: Path) -> None:
    """Put back what a killed repair took away and did not make again, in the run directory `path` and the runs in it.

    What was made again by then stays. Errors: `RunError` where another process writes one of the runs.
    """
    for run in (manifest.parent for pattern in ("", "*/") for manifest in path.glob(f"{pattern}manifest.json")):
        kept = [file for depth in range(4) for file in run.glob(f"{'*/' * depth}{KEPT}*")]  # _blocks/data/bin=00/
        if kept:
            with RunDirectory(run):
                for file in kept:
                    _put_back(file.with_name(file.name.removeprefix(KEPT)), file)


def repair(found: Sequence[Findings], *, workers: int = 1) -> list[str]:
    """Repair what can be; return what could not, in words. Runs of models come before the folder that compares them."""
    failures = []
    for run in found:
        due = run.repairable
        if run.kind not in COMMANDS or not (due or run.leftovers):
            continue
        try:
            _repair(run, [path for problem in due for path in problem.redo or ()], bool(due), workers)
        except FluxentropyError as error:
            failures.append(str(error) if str(run.run) in str(error) else f"{run.run}: {error}")
    return failures


def _repair(run: Findings, damaged: Sequence[Path], again: bool, workers: int) -> None:
    target, cls, folder = COMMANDS[run.kind]
    config = _config(run.run, cls, workers) if again else None
    if run.kind == "bin" and again and (changed := changed_input(read_json(run.run / "manifest.json") or {})):
        raise RunError(f"{run.run} cannot be repaired: {changed}")
    with RunDirectory(run.run, folder=folder):  # nobody else writes it
        for path in run.leftovers:
            _remove(path)
        aside = _take_away(damaged) if again else []
    if config is None:
        return
    module, _, function = target.partition(":")
    log.info(f"{run.run}: {run.kind} makes again what is damaged")
    try:
        getattr(importlib.import_module(module), function)(config)
    except BaseException:
        for path, kept in aside:
            _put_back(path, kept)
        raise
    for _, kept in aside:
        _remove(kept)


def _take_away(paths: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Rename `paths` so that no reader sees them; (path, new name) of those there were."""
    found = []
    for path in dict.fromkeys(paths):
        if path.exists():
            kept = path.with_name(f"{KEPT}{path.name}")
            if kept.exists():
                _remove(kept)
            path.rename(kept)
            found.append((path, kept))
    return found


def _put_back(path: Path, kept: Path) -> None:
    """What was made again stays."""
    if path.exists():
        _remove(kept)
    else:
        kept.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _config(run: Path, cls: type, workers: int) -> Any:
    """The configuration that the run was made with, to be made in the same place."""
    path = run / "config.resolved.yaml"
    hints = get_type_hints(cls)
    given: dict[str, Any] = {}
    for name, value in read_yaml(path, cls).items():
        kinds = (hints[name], *get_args(hints[name]))
        value = tuple(value) if isinstance(value, list) else value
        given[name] = Path(value) if isinstance(value, str) and Path in kinds else value
    given |= {"out": run, "overwrite": False} | ({"workers": workers} if "workers" in hints else {})
    try:
        return cls(**given)
    except TypeError as error:
        raise RunError(f"{path} is not whole ({error}): give the command that wrote the run once more") from error
