"""Validation: the loss of a GPT on held-out blocks, for each bin and overall.

Bits per byte leave out targets that stand for no text, such as the end-of-text token; the loss does not. A label for
each document, such as its source, splits the same sums by it (pretraining/validation.py).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fluxentropy.ordering.within import UNKNOWN, source_name
from fluxentropy.schedules.dataset import BlockSet
from fluxentropy.schedules.strata import read_column

# --- held-out losses --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ValidationLoss:
    """Sums over the held-out blocks of each bin; all arrays float64 (K,)."""

    loss: np.ndarray  # nats, over all targets
    targets: np.ndarray
    text_loss: np.ndarray  # nats, over the targets that stand for text
    bytes: np.ndarray  # of these

    def __add__(self, other: ValidationLoss) -> ValidationLoss:
        return ValidationLoss(
            loss=self.loss + other.loss,
            targets=self.targets + other.targets,
            text_loss=self.text_loss + other.text_loss,
            bytes=self.bytes + other.bytes,
        )

    def stacked(self) -> np.ndarray:
        """All sums as one array (4, K), as ranks exchange them."""
        return np.stack([self.loss, self.targets, self.text_loss, self.bytes])

    @classmethod
    def of(cls, sums: np.ndarray) -> ValidationLoss:
        loss, targets, text_loss, size = sums
        return cls(loss=loss, targets=targets, text_loss=text_loss, bytes=size)

    def metrics(self) -> dict[str, float]:
        """`val_loss` (nats per token), `val_bpb` (bits per byte), and both for each bin that has held-out blocks.

        >>> one = np.ones(2)
        >>> ValidationLoss(loss=one, targets=one, text_loss=one * math.log(2), bytes=one).metrics()["val_bpb"]
        1.0
        """
        found = {
            "val_loss": _ratio(self.loss.sum(), self.targets.sum()),
            "val_bpb": _ratio(self.text_loss.sum() / math.log(2), self.bytes.sum()),
        }
        for number in range(len(self.loss)):
            found[f"val_loss_bin_{number:02d}"] = _ratio(self.loss[number], self.targets[number])
        for number in range(len(self.loss)):
            found[f"val_bpb_bin_{number:02d}"] = _ratio(self.text_loss[number] / math.log(2), self.bytes[number])
        return found

    def by_bin(self, members: list[list[int]]) -> list[float]:
        """The loss of each group of bins, in nats per token; that of all where a group has no held-out block."""
        overall = _ratio(self.loss.sum(), self.targets.sum())
        return [
            _ratio(self.loss[group].sum(), self.targets[group].sum()) if self.targets[group].sum() else overall
            for group in members
        ]


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else math.nan


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Blocks to validate on: from place `first` on in each bin."""

    blocks: BlockSet
    first: np.ndarray  # (K,)

    def numbers(self) -> np.ndarray:
        """Their numbers over all bins, bin by bin."""
        spans = zip(self.blocks.first.tolist(), self.first.tolist(), self.blocks.counts.tolist(), strict=False)
        return np.concatenate([np.arange(start + first, start + count) for start, first, count in spans])

    def __len__(self) -> int:
        return int((self.blocks.counts - self.first).sum())


@torch.no_grad()
def validate(
    model: nn.Module,
    held_out: HeldOut,
    sizes: Tensor,
    *,
    batch: int,
    rank: int = 0,
    world: int = 1,
    document_masks: bool = False,
) -> ValidationLoss:
    """The sums over this rank's share of the held-out blocks; `sizes` (V,) are the bytes of each token.

    The model maps ids (B, T) and `starts` to logits (B, T, V).
    """
    sums = np.zeros((4, held_out.blocks.bins))
    numbers = held_out.numbers()[rank::world]
    for part, losses, size in token_losses(
        model, held_out.blocks, numbers, sizes, batch=batch, document_masks=document_masks
    ):
        bins, _ = held_out.blocks.places(part)
        rows = _row_sums(losses, size)  # (4, B)
        for row in range(4):
            np.add.at(sums[row], bins, rows[row])
    return ValidationLoss.of(sums)


@torch.no_grad()
def token_losses(
    model: nn.Module, blocks: BlockSet, numbers: np.ndarray, sizes: Tensor, *, batch: int, document_masks: bool = False
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Batches of the blocks `numbers`: their numbers (B,), the loss of each target (B, L) float64, its bytes (B, L).

    The model is in evaluation mode meanwhile.
    """
    device = next(model.parameters()).device
    sizes = sizes.to(device)
    was_training = model.training
    model.eval()
    try:
        for part in _batches(numbers, batch):
            ids = torch.from_numpy(blocks.gather(part)).to(device)  # (B, L+1)
            starts = torch.from_numpy(blocks.document_starts(part)).to(device) if document_masks else None
            inputs, targets = ids[:, :-1], ids[:, 1:]
            logits = model(inputs, starts=None if starts is None else starts[:, :-1])  # (B, L, V)
            losses = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").double()
            yield part, losses.view(targets.shape), sizes[targets]
    finally:
        model.train(was_training)


def _row_sums(losses: Tensor, size: Tensor) -> np.ndarray:
    """Sums of each row: loss, targets, loss of text, bytes. -> float64 (4, B)"""
    text = losses.masked_fill(size == 0, 0.0)
    counts = torch.full((len(losses),), losses.shape[1], dtype=torch.float64, device=losses.device)
    found = torch.stack([losses.sum(1), counts, text.sum(1), size.sum(1).double()])
    return np.asarray(found.cpu())


def _batches(numbers: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]


# --- losses of sources ------------------------------------------------------------------------------------------------
#
# A block knows where its documents begin, and which rows of the bin's shards they are; the rows say the source.
#
#     starts 0 3, documents 7 8        0 1 2 3 4 5      tokens of the block
#     sources of rows 7 and 8: a b     a a a b b b


MOST = 20  # sources that are told apart; the smaller ones are OTHER
OTHER = "other"


@dataclass(frozen=True, kw_only=True)
class Sources:
    """The source of every row of the bins."""

    names: tuple[str, ...]
    rows: tuple[np.ndarray, ...]  # of each bin: (rows,) places in `names`


def read_sources(blocks: BlockSet, column: str) -> Sources:
    """The column of the bins' shards that holds sources; of a path, such as `WEBMIX/news`, the last part counts.

    Errors: UsageError names a column that the shards do not have.
    """
    texts = [_column(blocks, number, column) for number in range(blocks.bins)]
    counts = Counter(name for part in texts for name in part)
    kept = sorted(name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MOST])
    names = (*kept, *([OTHER] if len(counts) > len(kept) else []))
    places = {name: place for place, name in enumerate(kept)}
    rows = tuple(np.array([places.get(name, len(kept)) for name in part], np.int64) for part in texts)
    return Sources(names=names, rows=rows)


def _column(blocks: BlockSet, number: int, column: str) -> list[str]:
    """The sources of a bin's rows, in their order."""
    values = read_column(blocks, number, column, flag="--sources").to_pylist()
    return [UNKNOWN if value is None else source_name(str(value)) for value in values]


def token_sources(starts: np.ndarray, documents: np.ndarray, rows: np.ndarray, length: int) -> np.ndarray:
    """The source of each target of a block: `starts` and `documents` (S,), `rows` of its bin. -> (length,)

    >>> token_sources(np.array([0, 3]), np.array([1, 0]), np.array([8, 9]), 5)
    array([9, 9, 8, 8, 8])
    """
    segment = np.searchsorted(starts, np.arange(1, length + 1), side="right") - 1
    return np.asarray(rows[documents[segment]])


def bpb_by_source(
    model: nn.Module,
    held_out: HeldOut,
    sources: Sources,
    sizes: Tensor,
    *,
    batch: int,
    document_masks: bool = False,
) -> dict[str, tuple[float, int]]:
    """Bits per byte of each source over the held-out blocks, and its bytes; sources without any are left out.

    `sizes` (V,): bytes of each token. The bytes add up to those of `validate`, and so do the losses.
    """
    loss, size = np.zeros(len(sources.names)), np.zeros(len(sources.names))
    blocks, numbers = held_out.blocks, held_out.numbers()
    for part, losses, sizes_ in token_losses(model, blocks, numbers, sizes, batch=batch, document_masks=document_masks):
        text = losses.masked_fill(sizes_ == 0, 0.0).cpu().numpy()
        for row, (number, block) in enumerate(zip(blocks.places(part)[0].tolist(), blocks.blocks(part), strict=True)):
            at = token_sources(block.starts, block.documents, sources.rows[number], blocks.length)
            np.add.at(loss, at, text[row])
            np.add.at(size, at, sizes_[row].cpu().numpy())
    pairs = zip(sources.names, loss.tolist(), size.tolist(), strict=True)
    return {name: (sum_ / math.log(2) / bytes_, int(bytes_)) for name, sum_, bytes_ in pairs if bytes_}
