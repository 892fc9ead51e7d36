"""`fluxentropy zoo`: one corpus, every model of a zoo, and how far the models agree."""

from __future__ import annotations

import dataclasses
import gc
import logging
import traceback
from pathlib import Path
from typing import Any

from fluxentropy.agree import write_agreement
from fluxentropy.agreement import check_scores, unusable
from fluxentropy.config import ScoreConfig, ZooConfig, to_yaml
from fluxentropy.corpus import open_corpus
from fluxentropy.errors import UsageError
from fluxentropy.options import ScoringOptions, SourceOptions
from fluxentropy.outcome import Outcome
from fluxentropy.process import debugging
from fluxentropy.runscores import CONSENSUS, read_runs
from fluxentropy.scores import SCORE_NAMES
from fluxentropy.scoring import score
from fluxentropy.store import RunDirectory
from fluxentropy.versions import versions
from fluxentropy.yamlfile import did_you_mean, to_plain
from fluxentropy.zoo_entries import ZooEntry, read_zoo, zoo_path

LATER = {"scores": (), "columns": None, "drop": ()}  # options of which folders from before them say nothing

log = logging.getLogger(__name__)


def zoo(config: ZooConfig) -> Outcome:
    """Score the sources with one model after the other, each an ordinary run of `score`, then compare the runs.

    A model that cannot be had, does not fit or fails is reported at the end, with exit code 1; the others count.
    """
    entries = _entries(config)
    spool = config.out / "input" / "stdin.jsonl"
    with RunDirectory(config.out, overwrite=config.overwrite, folder=CONSENSUS) as run:
        sources = _check_sources(config, spool)
        run.begin(_identity(config), to_yaml(config), last=True)
        scored: dict[str, Outcome] = {}
        failed: dict[str, str] = {}
        for place, name in enumerate(entries, 1):
            log.info(f"model {place} of {len(entries)}: {name}")
            outcome = _score(_score_config(config, name, sources), failed)
            if outcome is not None:
                scored[name] = outcome
        compared = _compare(config, scored, failed)
        done = isinstance(compared, Outcome)
        run.finish({"models": list(scored), "failed": failed, "compared": done, "versions": versions()})
    return _outcome(config, scored, failed, compared)


def _entries(config: ZooConfig) -> dict[str, ZooEntry]:
    path = zoo_path(config.zoo)
    entries = read_zoo(path)
    for name in config.models or ():
        if name not in entries:
            raise UsageError(f"--models {name}: no such model in {path}{did_you_mean(name, entries)}")
    chosen = {name: entry for name, entry in entries.items() if config.models is None or name in config.models}
    if config.by not in (names := (*SCORE_NAMES, *config.scores)):
        raise UsageError(f"--by {config.by}: no such score{did_you_mean(config.by, names)}")
    return chosen


def _check_sources(config: ZooConfig, spool: Path) -> tuple[str, ...]:
    """Open the corpus once, so that a bad source fails before any model is loaded; standard input is kept in a file."""
    open_corpus(
        config.sources,
        text_field=config.text_field,
        id_field=config.id_field,
        on_error=config.on_error,
        limit=config.limit,
        spool=spool,
        offline=config.offline,
        reserved=(*SCORE_NAMES, *config.scores),
        scans=None,
        columns=config.columns,
        drop=config.drop,
    )
    return tuple(str(spool) if source == "-" else source for source in config.sources)


def _score_config(config: ZooConfig, name: str, sources: tuple[str, ...]) -> ScoreConfig:
    shared = {
        field.name: getattr(config, field.name)
        for cls in (ScoringOptions, SourceOptions)
        for field in dataclasses.fields(cls)
    }
    return ScoreConfig(**{**shared, "sources": sources, "model": name, "zoo": config.zoo, "out": config.out / name})


def _score(config: ScoreConfig, failed: dict[str, str]) -> Outcome | None:
    """Score with one model. Whatever goes wrong with it is this model's failure, by name, and not the zoo's."""
    try:
        outcome = score(config)
    except Exception as error:  # models may run any code, and run out of any memory
        if debugging():
            traceback.print_exc()
        failed[config.model] = " ".join(str(error).split()) or type(error).__name__
        log.warning(f"{config.model}: {failed[config.model]}")
        return None
    finally:
        _free_memory()
    if outcome.exit_code:
        failed[config.model] = outcome.lines[-1]
        return None
    return outcome


def _free_memory() -> None:
    """Let go of the last model before the next one is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _identity(config: ZooConfig) -> dict[str, Any]:
    """What all runs of the folder share. Models may join later; each run looks after its own model and inputs."""
    options = [
        field.name
        for cls in (SourceOptions, ScoringOptions)
        for field in dataclasses.fields(cls)
        if field.name not in ("overwrite", "offline", "device")
        and not (field.name in LATER and getattr(config, field.name) == LATER[field.name])
    ]
    return {"kind": "zoo", **{name: to_plain(getattr(config, name)) for name in options}}


def _compare(config: ZooConfig, scored: dict[str, Outcome], failed: dict[str, str]) -> Outcome | str:
    """The comparison of the models that have scored the texts, or why there is none."""
    names = list(scored)
    if names:
        matrix = read_runs([config.out / name for name in names], config.by)
        if not len(matrix.scores):
            return "no comparison: the sources have no text"
        bad = unusable(matrix.scores, names)
        failed |= {name: f"{config.by} {reason}" for name, reason in bad.items()}
        names = [name for name in names if name not in bad]
    if len(names) < 2:
        return f"no comparison: it needs two models, and {', '.join(names) or 'none'} could be used"
    chosen = matrix.select(names)
    try:
        check_scores(chosen.scores, names)
    except UsageError as error:  # such as too few texts: the scores are what there is
        return f"no comparison: {error}"
    return write_agreement(chosen, config.out, config)


def _outcome(config: ZooConfig, scored: dict[str, Outcome], failed: dict[str, str], compared: Outcome | str) -> Outcome:
    lines = [f"{name}: {outcome.lines[0]}" for name, outcome in scored.items()]
    data: dict[str, Any] = {
        "out": str(config.out),
        "runs": {name: dict(outcome.data) for name, outcome in scored.items()},
        "failed": failed,
    }
    if isinstance(compared, Outcome):
        lines += ["", *compared.lines]
        data["agreement"] = dict(compared.data)
    else:
        lines += [compared]
    if failed:
        lines += ["", f"{len(failed)} of {len(scored | failed)} models failed:"]
        lines += [f"  {name}: {reason}" for name, reason in failed.items()]
    return Outcome(lines=lines, data=data, exit_code=1 if failed else 0)
