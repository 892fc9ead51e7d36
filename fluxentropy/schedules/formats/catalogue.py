"""The formats of `fluxentropy order` by their names."""

from __future__ import annotations

from fluxentropy.config.yaml import did_you_mean
from fluxentropy.errors import UsageError
from fluxentropy.schedules.formats.format import TextFormat, TokenFormat
from fluxentropy.schedules.formats.mds import Mds
from fluxentropy.schedules.formats.megatron import Megatron
from fluxentropy.schedules.formats.nanogpt import NanoGpt
from fluxentropy.schedules.formats.tables import Arrow, JsonLines, Parquet
from fluxentropy.schedules.formats.webdataset import WebDataset

TEXT_FORMATS: dict[str, TextFormat] = {one.name: one for one in (JsonLines(), Parquet(), Arrow(), Mds(), WebDataset())}
TOKEN_FORMATS: dict[str, TokenFormat] = {one.name: one for one in (NanoGpt(), Megatron())}
FORMATS: dict[str, TextFormat | TokenFormat] = {**TEXT_FORMATS, **TOKEN_FORMATS}


def find_format(name: str) -> TextFormat | TokenFormat:
    """The format called `name`. Errors: UsageError suggests the nearest one.

    >>> find_format("parquet").suffix
    '.parquet'
    """
    if name not in FORMATS:
        raise UsageError(f"--format {name}{did_you_mean(name, FORMATS)}")
    return FORMATS[name]
