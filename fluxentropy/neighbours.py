"""Which rows may go through a model together, so that no row's result depends on its neighbours, or on earlier rows.

The right value of a text is the model's own, alone on that text in a fresh process. Most decoders give it in any batch
of right-padded rows. Some look at the whole batch, and some remember earlier ones:

- LongRoPE (Phi-3, Phi-3.5, PhiMoE, MiniCPM) takes another rotary table for all rows once the longest passes
  `original_max_position_embeddings`.
- Dynamic NTK makes its table for the longest row beyond `max_position_embeddings`, and keeps it for later batches of
  rows that are shorter, but beyond that length too.
- Experts of a limited capacity drop the tokens that come too late, padding and neighbours counted.

`Grouped` runs such rows apart: up to a length that cannot matter together, longer ones with rows of their own length
only (no padding, and one length for all), or each alone. `row_limit` reads from the configuration what no short probe
can show, a limit of thousands of tokens; everything else is found by probe rows (`scorer.choose_path`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fluxentropy.estimators import TokenStats, concatenate
from fluxentropy.forward import ForwardPath

ALONE = -1  # a limit: not even rows of one length share a batch
STEADY_ROPE = {"default", "linear", "llama3", "yarn", "proportional", "mrope", "axial", "ntk_alpha", "xdrope"}
# rotary tables that do not depend on the input, in transformers 5.23


class Grouped:
    """A path whose rows share a batch only with rows that cannot change their result.

    Rows of up to `limit` tokens go together, padded; longer ones with those of the same length; `ALONE`: every row by
    itself. Before each forward the model's state is as it was after loading.
    """

    def __init__(self, path: ForwardPath, limit: int, state: FreshState | None = None) -> None:
        self.path, self.limit, self.state = path, limit, state
        self.name = f"{path.name}, {_words(limit)}"

    def __call__(self, ids: Tensor, keep: Tensor, targets: Tensor | None, *, top_k: int | None = None) -> TokenStats:
        owner = keep.nonzero()[:, 0]  # (N,) the row of each kept position
        parts, places = [], []
        for width, rows in self._groups(keep):
            at = torch.isin(owner, rows).nonzero()[:, 0]
            if self.state:
                self.state.restore()
            chosen = None if targets is None else targets[at]
            parts.append(self.path(ids[rows, :width], keep[rows, :width], chosen, top_k=top_k))
            places.append(at)
        order = torch.cat(places).argsort()
        return concatenate(parts, lambda column: column[order])

    def _groups(self, keep: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(width, rows) of each group; a row ends with its last kept position."""
        groups: dict[tuple[int, int], list[int]] = {}
        lengths = (keep * torch.arange(1, keep.shape[1] + 1, device=keep.device)).amax(1).tolist()
        for row, length in enumerate(lengths):
            if length:
                key = (length, row) if self.limit == ALONE else (max(length, self.limit), 0)
                groups.setdefault(key, []).append(row)
        for rows in groups.values():
            yield max(lengths[row] for row in rows), torch.tensor(rows, device=keep.device)


def _words(limit: int) -> str:
    if limit == ALONE:
        return "each row alone"
    return f"rows above {limit} tokens by length" if limit else "rows by length"


class FreshState:
    """What a model remembers besides its weights, as it is when this is made: after loading, before the first forward.

    That is what modules without weights of their own keep in buffers and attributes, if they keep tensors: rotary
    embeddings with their tables and the length they were made for.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = [module for module in model.modules() if not list(module.parameters()) and _tensors(module)]
        self.kept = [(_attributes(module), dict(module._buffers)) for module in self.modules]
        self.kept = copy.deepcopy(self.kept)

    def restore(self) -> None:
        """Give the modules back what they kept; the copies stay untouched."""
        with torch.inference_mode(False):
            for module, (attributes, buffers) in zip(self.modules, copy.deepcopy(self.kept), strict=True):
                module.__dict__.update(attributes)
                module._buffers.clear()
                module._buffers.update(buffers)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """A module's plain values: numbers, texts, tensors, and lists and mappings of them."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_") and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(map(_is_plain, value.values()))
    return value is None or isinstance(value, bool | int | float | str | Tensor)


def _tensors(module: nn.Module) -> bool:
    return bool(module._buffers) or any(isinstance(value, Tensor) for value in vars(module).values())


# --- what the configuration says --------------------------------------------------------------------------------------


def row_limit(model: PreTrainedModel) -> int | None:
    """Up to how many tokens rows may share a batch, by the configuration; None: any, `ALONE`: none.

    A rotary embedding of a kind that is not known to be steady counts as one that changes with every length.
    """
    config = model.config.get_text_config()
    if any(_scarce(key, value) for key, value in _entries(model.config.to_dict())):
        return ALONE
    limits = [_rope_limit(config, rope) for rope in _ropes(config)]
    if any("ntk" in key and value is True for key, value in _entries(config.to_dict())):  # `use_dynamic_ntk` of Qwen
        limits.append(0)
    return min((limit for limit in limits if limit is not None), default=None)


def dynamic_factor(config: Any) -> float:
    """By how much dynamic NTK stretches the window that a configuration names; 1 for other models."""
    factors = [rope.get("factor") for rope in _ropes(config) if "dynamic" in _kind(rope)]
    return max([1.0, *(float(factor) for factor in factors if isinstance(factor, int | float))])


def _rope_limit(config: Any, rope: Mapping[str, Any]) -> int | None:
    kind = _kind(rope)
    if kind in STEADY_ROPE:
        return None
    given = [rope.get("original_max_position_embeddings"), getattr(config, "original_max_position_embeddings", None)]
    if "dynamic" in kind:
        given.append(getattr(config, "max_position_embeddings", None))
    elif kind != "longrope":
        given = []
    return min((limit for limit in given if isinstance(limit, int)), default=0)


def _kind(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _ropes(config: Any) -> list[Mapping[str, Any]]:
    """The rotary parameters of a configuration: one mapping, or one for each type of layer."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(rope, Mapping):
        return []
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    return nested or [rope]


def _entries(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key and value of a configuration, also of those inside it."""
    for key, value in values.items():
        yield str(key), value
        if isinstance(value, Mapping):
            yield from _entries(value)


def _scarce(key: str, value: Any) -> bool:
    """Whether an entry says that experts drop tokens: `expert_capacity: 64`, `eval_capacity_factor: 2.0`."""
    number = isinstance(value, int | float) and value > 0  # also True
    return number and ("capacity" in key or key in ("drop_tokens", "token_dropping", "moe_token_dropping"))
