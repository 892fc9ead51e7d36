"""What `verify` proves of a training: its files are as they were written, and its ledger is true."""

from __future__ import annotations

from typing import Any

from fluxentropy.engine import Engine
from fluxentropy.errors import FluxentropyError
from fluxentropy.findings import Findings
from fluxentropy.store import sha256_file


def check_training(findings: Findings, manifest: dict[str, Any], _: Engine) -> None:
    """Compare the files with the manifest, and draw the blocks of all steps again. A training is not repaired."""
    _check_files(findings, manifest)
    findings.summary = f"{manifest['steps']:,} steps, {manifest['tokens']:,} tokens"
    if any(problem.path.name == "ledger.parquet" for problem in findings.problems):
        return
    from fluxentropy.seen import draw_again

    try:
        findings.rows = sum(len(ids) for ids in draw_again(findings.run)[1])
    except FluxentropyError as error:
        findings.notes.append(f"the ledger could not be compared with the blocks: {error}")


def check_grpo(findings: Findings, manifest: dict[str, Any], _: Engine) -> None:
    """Compare the files with the manifest."""
    _check_files(findings, manifest)
    findings.summary = f"{manifest['steps']:,} steps"


def _check_files(findings: Findings, manifest: dict[str, Any]) -> None:
    for name, known in manifest["files"].items():
        path = findings.run / name
        findings.files += 1
        if not path.is_file():
            findings.add(path, "it is missing", None)
        elif sha256_file(path) != known:
            findings.add(path, "it is not as it was written: its SHA-256 is another one", None)
