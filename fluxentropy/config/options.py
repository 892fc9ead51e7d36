"""Options that several commands share, and the panels of `--help` that they stand in.

Annotations are evaluated here, not kept as text: a class that inherits them elsewhere could not resolve the names.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter, Token

from fluxentropy.config.checks import Check, Min, Options, Separated, Some
from fluxentropy.errors import UsageError

# The panels of `--help`, in this order.
INPUT = Parameter(group=Group("Input", sort_key=1))
MODEL = Parameter(group=Group("Model", sort_key=2))
WORK = Parameter(group=Group("Work", sort_key=3))
OUTPUT = Parameter(group=Group("Output", sort_key=4))
SWITCH = Parameter(negative=(), show_default=False)  # off unless given


def _from_json(_: object, tokens: Sequence[Token]) -> dict[str, Any]:
    try:
        value = json.loads(tokens[0].value)
    except ValueError as error:
        raise UsageError(f"{tokens[0].keyword} {tokens[0].value}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{tokens[0].keyword} {tokens[0].value}: write a mapping, such as {{}}")
    return value


# For dict[str, Any]: on the command line one text of JSON, in YAML a mapping.
JSON = Parameter(accepts_keys=False, n_tokens=1, converter=_from_json, negative=())

BYTE_UNITS = {
    **{unit: 1000**power for power, unit in enumerate(["B", "KB", "MB", "GB", "TB"])},
    **{unit: 1024**power for power, unit in enumerate(["KIB", "MIB", "GIB", "TIB"], start=1)},
}


def _bytes(size: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]+)", size.strip(), re.IGNORECASE)
    return int(float(match[1]) * BYTE_UNITS.get(match[2].upper(), 0)) if match else 0


def parse_bytes(size: str) -> int:
    """Bytes in a size with a unit; `UsageError` says how to write one.

    >>> parse_bytes("1.5GB"), parse_bytes("2 MiB")
    (1500000000, 2097152)
    """
    if not (found := _bytes(size)):
        raise UsageError(f"--memory {size}: {SIZE.fix}")
    return found


SIZE = Check(lambda size: _bytes(size) > 0, "write a number with a unit, such as 500MB, 1GB or 2GiB")
SOURCE = Some("name a file, a folder, a glob, a data set, or - for JSONL on stdin", opening="no source: ")


@dataclass(frozen=True, kw_only=True)
class SourceOptions(Options):
    """Which texts."""

    sources: Annotated[tuple[str, ...], Parameter(allow_leading_hyphen=True), INPUT, SOURCE] = field(kw_only=False)
    """Files (.parquet, .arrow, .jsonl[.gz|.zst], .csv, .txt), folders or globs of them, - for JSONL on stdin, \
hf://datasets/OWNER/NAME[:SPLIT], or the name of a data set."""
    text_field: Annotated[str, INPUT] = "text"
    """Column that holds the text."""
    id_field: Annotated[str | None, INPUT] = None
    """Column that identifies a text. Default: id where it exists, else file name and row number."""
    columns: Annotated[tuple[str, ...] | None, INPUT, Separated()] = None
    """Other columns to keep, separated by commas. Default: all."""
    drop: Annotated[tuple[str, ...], INPUT, Separated()] = ()
    """Columns to leave out, separated by commas."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.columns is not None and self.drop:
            raise UsageError("--columns and --drop: give one of them")


@dataclass(frozen=True, kw_only=True)
class PlaceOptions(Options):
    """Where models run, how much of a text they see, and what they may do."""

    device: Annotated[str, MODEL] = "auto"
    """auto, cpu, cuda, cuda:1, mps, ..."""
    dtype: Annotated[Literal["auto", "fp32", "bf16", "fp16", "int8"], MODEL] = "auto"
    """Precision of the weights; statistics are always accumulated in float32 or better. All but fp32 are approximate; \
int8 is for CPUs and the layers of Llama, Mistral and Qwen."""
    max_tokens: Annotated[int, MODEL, Min(1)] = 512
    """Longest piece of text the model sees at once, in tokens."""
    offline: Annotated[bool, SWITCH, MODEL] = False
    """Use only what is already on this machine."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions(Options):
    """Which model."""

    model: Annotated[str, MODEL, Some("give a zoo name, a Hub id, a folder or a .gguf file")]
    """Name from the zoo, Hub id, local folder, or .gguf file."""
    zoo: Annotated[Path | None, MODEL] = None
    """YAML file with more zoo entries."""
    revision: Annotated[str | None, MODEL] = None
    """Branch, tag or commit of the model on the Hub."""
    trust_remote_code: Annotated[bool, SWITCH, MODEL] = False
    """Allow the model to run the Python code it ships with."""


@dataclass(frozen=True, kw_only=True)
class EngineOptions(Options):
    """Who does the work."""

    workers: Annotated[int, WORK, Min(1)] = 1
    """Processes that share the work; with --engine ray its actors, by default one a core."""
    engine: Annotated[Literal["local", "ray"], WORK] = "local"
    """Where the work is done: on this machine, or on a Ray cluster."""
    address: Annotated[str | None, WORK] = None
    """Address of the Ray cluster. Default: this machine."""
    gpus_per_worker: Annotated[float | None, WORK] = None
    """GPUs of each Ray actor, or a share of one: 0.5 puts two actors on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.address is not None and self.engine != "ray":
            raise UsageError(f"--address {self.address} is that of a Ray cluster: add --engine ray, or drop it")
        if self.gpus_per_worker is not None and not (self.engine == "ray" and self.gpus_per_worker > 0):
            raise UsageError(f"--gpus-per-worker {self.gpus_per_worker:g}: use a number above 0, with --engine ray")
