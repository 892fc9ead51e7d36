"""A manifest that is lost, damaged or edited: the run's own command makes it again, if it is sure which run it is.

`.records.json` holds the fingerprint of the run's identity. A stand-in without an identity takes the manifest's place,
and `RunDirectory.begin` goes on from it if the command, with what `config.resolved.yaml` says and the inputs as they
are now, has the identity of this fingerprint.
"""

from __future__ import annotations

from pathlib import Path

from fluxentropy.errors import RunError
from fluxentropy.findings import Findings, read_record
from fluxentropy.store import CONFIG, RECORDS, sha256_file, write_json

PLACES = {"bin": "bins.json", "hellaswag": "items", "score": "scores"}  # what tells the command that wrote a run


def lost_run(run: Path, problem: str) -> Findings | None:
    """What is wrong with a run whose manifest has this `problem`; None where nothing else says that it is a run."""
    manifest = run / "manifest.json"
    kind = next((kind for kind, place in PLACES.items() if (run / place).exists()), None)
    if not manifest.exists() and not (kind and (run / RECORDS).exists()):
        return None
    findings = Findings(run=run, kind=kind or "run")
    if kind and _can_be_made(run):
        findings.add(manifest, problem, (manifest,))
    else:
        findings.add(manifest, f"{problem}; the run has to be made afresh, with --overwrite", None)
    return findings


def check_records(findings: Findings) -> None:
    """Note where the manifest, or what says how the run was made, is not as it was written."""
    run = findings.run
    config, manifest, records = (run / name for name in (CONFIG, "manifest.json", RECORDS))
    if not config.is_file():
        findings.add(config, "it is missing: give the command that wrote the run once more", None)
    if not records.exists():  # as in older runs
        return
    try:
        known = read_record(records)
    except RunError as error:
        findings.add(records, str(error), (records,))
        return
    if config.is_file() and known.get("config_sha256") not in (None, sha256_file(config)):
        again = "put back what it said, or remove it and give the command that wrote the run once more"
        findings.add(config, f"it is not as it was written: {again}", None)
    if known.get("manifest_sha256") not in (None, sha256_file(manifest)):
        redo = (manifest,) if findings.kind in PLACES and _can_be_made(run) else ()
        findings.add(manifest, "it is not as it was written: its SHA-256 is another one", redo)


def _can_be_made(run: Path) -> bool:
    try:
        return (run / CONFIG).is_file() and bool(read_record(run / RECORDS, identity_sha256=str))
    except RunError:
        return False


def put_stand_in(run: Path) -> None:
    """Let the run's own command go on without the manifest, of which nothing is kept here."""
    write_json(run / "manifest.json", {"complete": False})
