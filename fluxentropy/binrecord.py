"""`bins.json`, the record of all bins: what it holds, whether what it speaks of is there, and what it says in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fluxentropy.bins import UNSCORED, Binning
from fluxentropy.blocks import FOLDER, read_blocks
from fluxentropy.config import BinConfig
from fluxentropy.outcome import Outcome
from fluxentropy.shards import FORMAT, bin_folder, bins_top, read_manifest
from fluxentropy.store import read_json


def bins_json(
    binning: Binning, made: Sequence[dict[str, Any]], stats: Sequence[dict[str, Any]], config: BinConfig
) -> dict[str, Any]:
    """The record, of the manifests `made` of all bins, and then of `unscored`, if any."""
    bins = made[: binning.bins]
    return {
        **binning.to_json(),
        "counts": [record["rows"] for record in bins],
        "tokens": [record["tokens"] for record in bins],
        "stats": stats[0] if len(stats) == 1 else list(stats),
        "rows": sum(record["rows"] for record in made),
        "unscored": sum(record["rows"] for record in made[binning.bins :]),
        "hash": sum(record["hash"] for record in made) % 2**64,
        "order": config.order,
        "seed": config.seed,
        "format": FORMAT,
    }


def all_there(out: Path) -> bool:
    """Whether everything that `bins.json` speaks of is there."""
    found = read_json(out / "bins.json")
    if found is None:
        return False
    bins, top = len(found["counts"]), bins_top(out)
    numbers = [*range(bins), *([UNSCORED] if found["unscored"] else [])]
    return all(read_manifest(out / bin_folder(number, bins, top)) is not None for number in numbers)


def bin_outcome(config: BinConfig) -> Outcome:
    """The bins in `config.out`, by their bins.json, and their blocks where there are any."""
    found = read_json(config.out / "bins.json") or {}
    blocks = read_blocks(config.out)
    top = bins_top(config.out)
    folders = [bin_folder(number, len(found["counts"]), top).name for number in range(len(found["counts"]))]
    by = found["by"] if isinstance(found["by"], str) else ", ".join(found["by"])
    lines = [
        f"{found['rows']:,} rows by {by} in {len(folders)} bins ({_how(found)}), {config.order} order, in {config.out}"
    ]
    edges = found["edges"] if isinstance(found["by"], str) else None
    for number, folder in enumerate(folders):
        span = ""
        if edges is not None:
            low = f"> {edges[number - 1]:.6g}" if number else ""
            high = f"<= {edges[number]:.6g}" if number < len(edges) else ""
            span = f"  {by} {' and '.join(part for part in (low, high) if part)}" if edges else ""
        packed = f", {blocks['blocks'][number]:,} blocks" if blocks else ""
        lines.append(f"  {folder}  {found['counts'][number]:,} rows, {found['tokens'][number]:,} tokens{packed}{span}")
    if found["unscored"]:
        lines.append(f"  unscored  {found['unscored']:,} rows without a score")
    if blocks:
        lines.append(
            f"{sum(blocks['blocks']):,} blocks of {blocks['length']:,} tokens by {blocks['tokenizer']['name']}, "
            f"{sum(blocks['left_over']):,} tokens left over, in {config.out / FOLDER}"
        )
    lines.append(f"edges and counts in {config.out / 'bins.json'}; `fluxentropy verify {config.out}` proves the whole")
    return Outcome(lines=lines, data={"out": str(config.out), **found, **({"blocks": blocks} if blocks else {})})


def _how(found: dict[str, Any]) -> str:
    how = found["how"]
    return how if isinstance(how, str) else " x ".join(how)
