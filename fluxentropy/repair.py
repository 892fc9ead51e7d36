"""Repairs run directories: damaged files are taken away, and the run's own command makes what is missing.

The files taken away come back where the command fails, so a repair never leaves less than there was.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from fluxentropy.bincheck import changed_input
from fluxentropy.config import AgreeConfig, BinConfig, HellaswagConfig, ScoreConfig, ZooConfig
from fluxentropy.errors import FluxentropyError, RunError
from fluxentropy.findings import Findings
from fluxentropy.store import RunDirectory, atomic_path, read_json
from fluxentropy.yamlfile import read_yaml

COMMANDS: dict[str, tuple[str, type, str]] = {  # the function, its configuration, the folder of the run's parts
    "score": ("fluxentropy.scoring:score", ScoreConfig, "scores"),
    "bin": ("fluxentropy.binning:bin_corpus", BinConfig, ".pieces"),
    "hellaswag": ("fluxentropy.hellaswag:hellaswag", HellaswagConfig, "items"),
    "zoo": ("fluxentropy.zoo:zoo", ZooConfig, "consensus"),
    "agree": ("fluxentropy.agree:agree", AgreeConfig, "consensus"),
}

log = logging.getLogger(__name__)


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
        with _same_config(run.run / "config.resolved.yaml"):
            getattr(importlib.import_module(module), function)(config)
    except BaseException:
        for path, kept in aside:
            if path.exists():
                _remove(kept)
            else:
                kept.rename(path)
        raise
    for _, kept in aside:
        _remove(kept)


def _take_away(paths: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Rename `paths` so that no reader sees them; (path, new name) of those there were."""
    found = []
    for path in dict.fromkeys(paths):
        if path.exists():
            kept = path.with_name(f".damaged-{path.name}")
            _remove(kept)
            path.rename(kept)
            found.append((path, kept))
    return found


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


@contextlib.contextmanager
def _same_config(path: Path) -> Iterator[None]:
    """What the file says of where the run was made, and how, stays as it is."""
    before = path.read_bytes()
    try:
        yield
    finally:
        if path.read_bytes() != before:
            with atomic_path(path) as aside:
                aside.write_bytes(before)
