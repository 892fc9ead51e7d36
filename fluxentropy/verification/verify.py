"""`fluxentropy verify`: proves that nothing in a run directory is lost or damaged; names what is, and repairs it."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pyarrow.parquet as pq

from fluxentropy.agreement import AgreeConfig, ZooConfig
from fluxentropy.config.results import Result, command
from fluxentropy.config.yaml import from_plain, read_yaml, to_plain
from fluxentropy.errors import FluxentropyError, RunError
from fluxentropy.evaluation import HellaswagConfig
from fluxentropy.ordering.check import changed_input, check_bins, check_blocks
from fluxentropy.ordering.options import BinConfig
from fluxentropy.pretraining.pretrain import check_grpo, check_training
from fluxentropy.runs.check import Findings, Problem, check_parts, check_records, read_record
from fluxentropy.runs.directory import RECORDS, RunDirectory, RunRecord, part_numbers, part_paths
from fluxentropy.runs.engine import Engine, make_engine
from fluxentropy.runs.find import CONSENSUS
from fluxentropy.runs.tables import reading
from fluxentropy.schedules.check import check_order
from fluxentropy.schedules.options import OrderConfig
from fluxentropy.scoring.options import ScoreConfig
from fluxentropy.verification import VerifyConfig

# --- repair -----------------------------------------------------------------------------------------------------------
#
# The files taken away come back where the command fails, or where a repair was killed and the next one starts: a repair
# never leaves less than there was.


COMMANDS: dict[str, tuple[str, type, str]] = {  # the function, its configuration, the folder of the run's parts
    "score": ("fluxentropy.scoring.score:score", ScoreConfig, "scores"),
    "bin": ("fluxentropy.ordering.bin:bin_corpus", BinConfig, ".pieces"),
    "order": ("fluxentropy.schedules.order:order", OrderConfig, "data"),
    "hellaswag": ("fluxentropy.evaluation.hellaswag:hellaswag", HellaswagConfig, "items"),
    "zoo": ("fluxentropy.agreement.agree:zoo", ZooConfig, "consensus"),
    "agree": ("fluxentropy.agreement.agree:agree", AgreeConfig, "consensus"),
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
    if run.kind == "bin" and again and (changed := changed_input(RunRecord.read(run.run).facts)):
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
        if isinstance(value, dict) and is_dataclass(hints[name]):
            value = from_plain(hints[name], value)
        value = tuple(value) if isinstance(value, list) else value
        given[name] = Path(value) if isinstance(value, str) and Path in kinds else value
    given |= {"out": run, "overwrite": False} | ({"workers": workers} if "workers" in hints else {})
    try:
        return cls(**given)
    except TypeError as error:
        raise RunError(f"{path} is not whole ({error}): give the command that wrote the run once more") from error


# --- `fluxentropy verify` ---------------------------------------------------------------------------------------------


ROUNDS = 3  # of repairs: what is wrong with the whole shows once its parts are whole


@dataclass(frozen=True, kw_only=True)
class VerifyResult(Result):
    """What was found in the run directory `dir`: of itself and of the runs in it, after all repairs."""

    dir: Path
    runs: list[Findings]
    repaired: list[Path]  # made again
    not_repaired: list[str]  # why
    repair: bool = field(repr=False)  # whether it was asked for

    @property
    def problems(self) -> list[Problem]:
        """All that is wrong, by path."""
        return [problem for run in self.runs for problem in run.problems]

    @property
    def ok(self) -> bool:
        """Whether nothing is missing and nothing is damaged."""
        return not self.problems

    @property
    def exit_code(self) -> int:
        return 1 if self.problems or self.not_repaired else 0

    def lines(self) -> list[str]:
        lines = [f"{run.run}: {run.kind}" + (f", {run.summary}" if run.summary else "") for run in self.runs]
        lines += [f"  {note}" for run in self.runs for note in run.notes]
        lines += [f"made again: {path}" for path in self.repaired]
        left = [path for run in self.runs for path in run.leftovers]
        lines += [f"left by a command that was stopped, harmless: {path}" for path in left]
        if problems := self.problems:
            lines += [f"{len(problems)} problem{'s' if len(problems) > 1 else ''}:", *(f"  {one}" for one in problems)]
        else:
            lines.append("nothing is missing, nothing is damaged")
        lines += [f"not repaired: {failure}" for failure in self.not_repaired]
        if not self.repair and any(run.repairable for run in self.runs):
            lines.append(f"`fluxentropy verify {self.dir} --repair` makes again what is damaged, and nothing else")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """With all `problems`, `leftovers` and `notes` of the runs beside them."""
        return {
            "dir": str(self.dir),
            "ok": self.ok,
            "runs": [
                {"run": str(run.run), "kind": run.kind, "rows": run.rows, "files": run.files} for run in self.runs
            ],
            "problems": [
                {"path": str(one.path), "problem": one.problem, "repairable": one.redo is not None}
                for one in self.problems
            ],
            "leftovers": [str(path) for run in self.runs for path in run.leftovers],
            "notes": [f"{run.run}: {note}" for run in self.runs for note in run.notes],
            "repaired": to_plain(self.repaired),
            "not_repaired": self.not_repaired,
        }


@command
def verify(config: VerifyConfig) -> VerifyResult:
    """Check the run directory `config.dir`, and with `repair` make again what is damaged, then check once more."""
    engine = make_engine(config.engine, config.workers, config.address)
    if config.repair:
        undo_killed(config.dir)
    found = check(config.dir, engine)
    damaged: dict[Path, None] = {}
    failures: list[str] = []
    for _ in range(ROUNDS if config.repair else 0):
        if failures or not any(run.repairable or run.leftovers for run in found):
            break
        for problem in (problem for run in found for problem in run.problems):
            log.warning(str(problem))
            damaged[problem.path] = None
        failures = repair(found, workers=config.workers)
        found = check(config.dir, engine)
    left = {problem.path for run in found for problem in run.problems}
    made = [path for path in damaged if path not in left]
    return VerifyResult(dir=config.dir, runs=found, repaired=made, not_repaired=failures, repair=config.repair)


# --- what there is to check -------------------------------------------------------------------------------------------


def check(path: Path, engine: Engine) -> list[Findings]:
    """What is found in the run directory `path`; in a folder of `zoo`, in each model's run and then in the folder; in
    one of `compare`, in each finished run.

    Errors: `RunError` where `path` is no run directory, or a run that is not finished.
    """
    try:
        manifest = read_record(path / "manifest.json", identity=dict)
    except RunError as error:
        if not (path / "manifest.json").exists():
            raise RunError(f"{path} {_no_run(path)}") from error
        lost = Findings(run=path, kind="run")
        lost.add(path / "manifest.json", f"{error}; the run has to be made afresh, with --overwrite", None)
        return [lost]
    identity = manifest["identity"]
    if manifest.get("complete") is not True:
        raise RunError(
            f"{path} is not finished: give the command that writes it once more, it resumes where it stopped"
        )
    kind = _kind(path, identity)
    if kind in ("zoo", "agree"):
        return _check_comparison(path, kind, manifest, engine)
    if kind in ("compare", "grpo-compare"):
        runs = [found.parent for found in sorted(path.glob("cells/*/seed-*/manifest.json"))]
        finished = [run for run in runs if RunRecord.read(run).complete]
        return [found for run in finished for found in check(run, engine)]
    return [_check_run(path, kind, manifest, engine)]


def _no_run(path: Path) -> str:
    if not path.is_dir():
        return "is not there" if not path.exists() else "is a file: give the run directory"
    if (path / RECORDS).exists():
        return "has lost its manifest.json: remove the folder, and give the command that wrote it once more"
    inside = sorted(found.parent.name for found in path.glob("*/manifest.json"))
    hint = f": it holds {', '.join(inside[:8])}; give one of them" if inside else ""
    return f"is no run directory, it has no manifest.json{hint}"


def _kind(path: Path, identity: dict[str, Any]) -> str:
    """The command that wrote a run with this identity."""
    known = {"bins": "bin", "zoo": "zoo", "questions": "hellaswag", CONSENSUS: CONSENSUS}
    known |= {name: name for name in ("order", "pretrain", "compare", "grpo", "grpo-compare")}
    if identity.get("kind") in known:
        return known[identity["kind"]]
    if "sources" in identity and "model" in identity:
        return "score"
    if "models" in identity and "inputs" in identity:
        return "agree"
    raise RunError(
        f"{path} is not a run of score, bin, order, pretrain, compare, grpo, grpo-compare, zoo, agree or hellaswag, "
        f"and no other can be verified"
    )


def _check_run(path: Path, kind: str, manifest: dict[str, Any], engine: Engine) -> Findings:
    findings = Findings(run=path, kind=kind)
    check_records(findings)
    try:
        CHECKS[kind](findings, manifest, engine)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:  # JSON of another shape
        findings.add(path / "manifest.json", f"it, or a manifest beside it, is not as it was written ({error!r})", None)
    if kind == CONSENSUS:  # its bytes come from another command: that of the folder it is in
        findings.problems = [dataclasses.replace(problem, redo=None) for problem in findings.problems]
    return findings


def _check_score(findings: Findings, manifest: dict[str, Any], engine: Engine) -> None:
    check_parts(findings, manifest, engine, folder="scores", ordered=True)
    sources = len(manifest.get("inputs") or manifest["identity"]["sources"])
    files = f"{sources} source file{'s' if sources != 1 else ''}"
    findings.summary = f"{findings.rows:,} rows of {files} in {findings.files} parts"


def _check_consensus(findings: Findings, manifest: dict[str, Any], engine: Engine) -> None:
    check_parts(findings, manifest, engine, folder="scores", ordered=False)
    findings.summary = f"{findings.rows:,} rows in {findings.files} parts"


def _check_bins(findings: Findings, manifest: dict[str, Any], engine: Engine) -> None:
    check_blocks(findings, check_bins(findings, manifest, engine), engine)
    findings.summary = f"{findings.rows:,} rows in {findings.files} shards"


def _check_order(findings: Findings, manifest: dict[str, Any], _: Engine) -> None:
    check_order(findings, manifest)


def _check_items(findings: Findings, manifest: dict[str, Any], engine: Engine) -> None:
    check_parts(findings, manifest, engine, folder="items", ordered=False)
    findings.summary = f"{findings.rows:,} questions in {findings.files} parts"
    if findings.problems:
        return
    findings.differs(findings.run / "manifest.json", "questions", manifest.get("items"), findings.rows)
    whole, parts = findings.run / "items.parquet", findings.run / "items"
    if not whole.is_file():
        findings.add(whole, "it is missing")
        return
    try:
        with reading(whole):
            table, at = pq.read_table(whole), 0
        for number in sorted(part_numbers(parts)):
            part = pq.read_table(part_paths(parts, number)[0])
            if not part.equals(table.slice(at, len(part))):
                findings.add(whole, f"it differs from {part_paths(parts, number)[0].name}, at row {at} or after")
                return
            at += len(part)
        findings.differs(whole, "questions", len(table), at)
    except RunError as error:
        findings.add(whole, str(error).removeprefix(f"{whole} "))


CHECKS: dict[str, Callable[[Findings, dict[str, Any], Engine], None]] = {
    "score": _check_score,
    "bin": _check_bins,
    "order": _check_order,
    "hellaswag": _check_items,
    "pretrain": check_training,
    "grpo": check_grpo,
    CONSENSUS: _check_consensus,
}


def _check_comparison(path: Path, kind: str, manifest: dict[str, Any], engine: Engine) -> list[Findings]:
    """The runs in a folder of `zoo`, and the comparison that `zoo` or `agree` wrote."""
    whole = Findings(run=path, kind=kind)
    whole.look_for_leftovers(path)
    check_records(whole)
    found = []
    models = manifest.get("models") or []
    for name in models if kind == "zoo" else []:
        found += _inner(path / name, whole, engine)
    compared = kind == "agree" or manifest.get("compared", len(models) > 1)
    if compared:
        for consensus in _inner(path / CONSENSUS, whole, engine):
            whole.rows, whole.leftovers = consensus.rows, [*whole.leftovers, *consensus.leftovers]
            for problem in consensus.problems:  # the comparison makes the whole consensus again
                whole.add(problem.path, problem.problem)
        try:
            read_record(path / "agreement.json")
        except RunError as error:
            whole.add(path / "agreement.json", str(error))
    whole.summary = f"{len(models)} models, " + (f"compared on {whole.rows:,} rows" if compared else "not compared")
    return [*found, whole]


def _inner(path: Path, whole: Findings, engine: Engine) -> list[Findings]:
    try:
        return check(path, engine)
    except FluxentropyError as error:
        whole.add(path, str(error).removeprefix(f"{path} "))
        return []
