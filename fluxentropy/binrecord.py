"""`bins.json`, the record of all bins: what it holds, whether what it speaks of is there, and what it says in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxentropy.bins import Binning
from fluxentropy.binset import Bins
from fluxentropy.blocks import FOLDER, read_blocks
from fluxentropy.config import BinConfig
from fluxentropy.outcome import Outcome
from fluxentropy.shards import FORMAT, read_manifest


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


def all_there(bins: Bins) -> bool:
    """Whether every bin that `bins.json` speaks of is there."""
    return all(read_manifest(part.folder) is not None for part in bins.parts)


def bin_outcome(config: BinConfig, bins: Bins) -> Outcome:
    """The bins in `config.out` in words, and their blocks where there are any."""
    found, blocks = bins.facts, read_blocks(config.out)
    how = found["how"] if bins.grid is None else " x ".join(found["how"])
    by = ", ".join(bins.binning.columns)
    lines = [f"{found['rows']:,} rows by {by} in {len(bins)} bins ({how}), {config.order} order, in {config.out}"]
    for one in bins:
        packed = f", {blocks['blocks'][one.number]:,} blocks" if blocks else ""
        span = f"  {one.span}" if one.span and bins.grid is None else ""
        lines.append(f"  {one.folder.name}  {one.rows:,} rows, {one.tokens:,} tokens{packed}{span}")
    if bins.unscored:
        lines.append(f"  unscored  {bins.unscored.rows:,} rows without a score")
    if blocks:
        lines.append(
            f"{sum(blocks['blocks']):,} blocks of {blocks['length']:,} tokens by {blocks['tokenizer']['name']}, "
            f"{sum(blocks['left_over']):,} tokens left over, in {config.out / FOLDER}"
        )
    lines.append(f"edges and counts in {config.out / 'bins.json'}; `fluxentropy verify {config.out}` proves the whole")
    return Outcome(lines=lines, data={"out": str(config.out), **found, **({"blocks": blocks} if blocks else {})})
