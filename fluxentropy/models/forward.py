"""From token ids to per-token statistics with any `AutoModelForCausalLM`, without the full logits tensor.

The fast path runs the base model alone on right-padded rows (exact for causal attention, and no mask is built), keeps
the real positions, and sends them through the model's own head in blocks. "The model's own head" is meant literally:
`TailHead` calls the model's own `forward` with the base model replaced by a stand-in that returns the chosen hidden
states, and the output projection replaced by a slice of its columns. Soft-caps and scalings that the model applies
after its projection are then honoured without being known by name.

The fast path is compared with the model's plain forward on probe rows before anything is scored (`scorer.choose_path`).

Shape legend: B rows, T positions, N chosen positions, D hidden width, C a block of vocabulary columns.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from fluxentropy.entropy import TokenStats, concatenate, token_stats
from fluxentropy.models.linear import PackedLinear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# --- paths through a model --------------------------------------------------------------------------------------------


COLUMNS = 2048  # vocabulary columns projected at once: a block of logits stays in the cache of a CPU
GPU_COLUMNS = 32768  # on a GPU small blocks would cost more in starting kernels than in computing
PROBE_LENGTHS = (33, 12)
PROBE_TOLERANCE = {  # mean, nats
    torch.float32: 1e-3,
    torch.float64: 1e-3,
    torch.bfloat16: 0.1,
    torch.float16: 0.03,
    torch.int8: 0.3,
}


class ForwardPath(Protocol):
    """Runs a decoder on right-padded rows and returns the statistics of chosen positions.

    `vocabulary` tokens can be read and `outcomes` have a probability. `parallel`: threads may call it at once.
    `padded`: padding costs as much as tokens do.
    """

    name: str
    vocabulary: int
    outcomes: int
    parallel: bool
    padded: bool

    def __call__(self, ids: Tensor, keep: Tensor, targets: Tensor | None, *, top_k: int | None = None) -> TokenStats:
        """ids (B, T) right-padded, keep bool (B, T), targets int64 (N,) -> statistics (N,) in row-major order.

        `keep` is on the CPU, so that nobody has to wait for a GPU to learn how many positions there are.
        """
        ...


class PlainPath:
    """Full logits of one row at a time through the model's own forward: slow, and right for every decoder."""

    name = "plain"
    parallel = True
    padded = True

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.vocabulary, self.outcomes = embedding_rows(model), logit_columns(model)

    def __call__(self, ids: Tensor, keep: Tensor, targets: Tensor | None, *, top_k: int | None = None) -> TokenStats:
        parts, start = [], 0
        for row, wanted in zip(ids, keep, strict=True):
            length = int(wanted.nonzero().max()) + 1 if wanted.any() else 0
            if length == 0:
                continue
            logits = self.model(input_ids=row[None, :length], use_cache=False).logits[0]  # (t, V)
            logits = logits[wanted[:length]]
            chosen = None if targets is None else targets[start : start + len(logits)]
            parts.append(token_stats(logits, chosen, top_k=top_k))
            start += len(logits)
        return concatenate(parts)


class FastPath:
    """Base model, then the head in blocks over the chosen positions."""

    name = "fast"
    parallel = True
    padded = True

    def __init__(self, model: PreTrainedModel, *, packed: bool = False) -> None:
        """`packed` rewrites the model's layers in place (see `pack_layers`): it then serves only this path."""
        self.vocabulary, self.outcomes = embedding_rows(model), logit_columns(model)
        self.head = TailHead(model, packed=packed)
        if packed:
            pack_layers(model)
            self.name = "fast, packed"
        self.base = getattr(model, model.base_model_prefix)

    def __call__(self, ids: Tensor, keep: Tensor, targets: Tensor | None, *, top_k: int | None = None) -> TokenStats:
        return token_stats(self.hidden(ids, keep), targets, head=self.head, top_k=top_k)

    def hidden(self, ids: Tensor, keep: Tensor) -> Tensor:
        """Hidden states (N, D) of the kept positions. Which these are is sent to the device before the model runs."""
        places = keep.flatten().nonzero()[:, 0].to(ids.device)
        hidden: Tensor = self.base(input_ids=ids, use_cache=False)[0]  # (B, T, D)
        return hidden.flatten(0, 1)[places]


@dataclass
class _GivenOutput(BaseModelOutputWithPast):
    """Has every field that some model's output has besides the hidden states: None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _GivenHidden(nn.Module):
    """Stands in for a base model: whatever it is called with, it returns the hidden states it was given."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPast:
        return _GivenOutput(last_hidden_state=self.hidden)


class TailHead:
    """Everything a causal language model does after its base model, in blocks of vocabulary columns.

    Errors: ValueError when the model has no separate base model and linear output projection.
    """

    def __init__(self, model: PreTrainedModel, *, packed: bool = False, columns: int | None = None) -> None:
        projection = model.get_output_embeddings()
        names = [name for name, module in model.named_modules(remove_duplicate=False) if module is projection]
        prefix = model.base_model_prefix
        if not isinstance(projection, nn.Linear) or not names or "." in names[0] or not hasattr(model, prefix):
            raise ValueError("the model has no separate base model and linear output projection")
        self.model, self.prefix, self.name = model, prefix, names[0]
        bias = projection.bias
        columns = columns or (COLUMNS if projection.weight.device.type == "cpu" else GPU_COLUMNS)
        self.slices: list[nn.Module] = []
        for start in range(0, projection.out_features, columns):
            stop = start + columns
            part = nn.Linear(1, 1, bias=False)
            part.weight = nn.Parameter(projection.weight.data[start:stop], requires_grad=False)
            part.bias = None if bias is None else nn.Parameter(bias.data[start:stop], requires_grad=False)
            self.slices.append(PackedLinear(part.weight.data, part.bias) if packed else part)

    def blocks(self, hidden: Tensor) -> Iterator[Tensor]:
        """(R, D) -> logits (R, C), block after block of columns."""
        for part in self.slices:
            yield self.logits(hidden, part)

    def logits(self, hidden: Tensor, projection: nn.Module) -> Tensor:
        """(R, D) -> (R, C) by the model's own code with another projection."""
        tail = copy.copy(self.model)  # shares every weight; its table of submodules is its own: threads may run at once
        given = {self.prefix: _GivenHidden(hidden[None]), self.name: projection}
        tail._modules = {**self.model._modules, **given}
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        logits: Tensor = tail(input_ids=ids, use_cache=False).logits[0]
        return logits


# --- prepacked layers for CPUs ----------------------------------------------------------------------------------------


def can_fuse(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether head and statistics can be one kernel (`fusedhead`): a GPU of NVIDIA's or AMD's, and Triton for it."""
    known = dtype in (torch.float32, torch.bfloat16, torch.float16)
    return device.type == "cuda" and known and importlib.util.find_spec("triton") is not None


class PackedGatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)) with the activation and the product fused into the matrix products."""

    def __init__(self, gate: PackedLinear, up: PackedLinear, down: PackedLinear) -> None:
        super().__init__()
        self.gate, self.up, self.down = gate, up, down

    def forward(self, x: Tensor) -> Tensor:  # (..., D) -> (..., D)
        result: Tensor = self.down(self.up.times(x, self.gate(x, "swish")))
        return result


def pack_layers(model: PreTrainedModel) -> None:
    """Replace every linear layer of the base model by a packed one, releasing the old weight as it goes.

    What is not packed is copied first: a memory-mapped weight file stays in memory while any view into it lives.
    """
    from transformers.activations import SiLUActivation

    base = getattr(model, model.base_model_prefix)
    linear = {id(module.weight) for module in base.modules() if type(module) is nn.Linear}
    for parameter in base.parameters():
        if id(parameter) not in linear:
            parameter.data = parameter.data.clone()
    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child.weight.data, child.bias))
                del child.weight  # the list above still holds the old layer
    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            gated = [getattr(child, key, None) for key in ("gate_proj", "up_proj", "down_proj")]
            silu = isinstance(getattr(child, "act_fn", None), (nn.SiLU, SiLUActivation))
            if silu and all(isinstance(layer, PackedLinear) for layer in gated) and len(list(child.children())) == 4:
                setattr(parent, name, PackedGatedMLP(*gated))  # type: ignore[arg-type]


# --- choosing ---------------------------------------------------------------------------------------------------------


def embedding_rows(model: PreTrainedModel) -> int:
    """How many tokens the model knows: the rows of its input embedding."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]


def logit_columns(model: PreTrainedModel) -> int:
    """How many tokens the model gives a probability: the rows of its output projection."""
    weight = getattr(model.get_output_embeddings(), "weight", None)
    return len(weight) if isinstance(weight, Tensor) else embedding_rows(model)


def probe_rows(model: PreTrainedModel) -> list[Tensor]:
    """Three rows of pseudo-random token ids on the model's device: a short one, and two of one length with the same
    first half, which begin with it. (Rows that want the same experts compete for them, where those are scarce.)
    """
    rng = np.random.default_rng(0)
    vocabulary = embedding_rows(model)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or PROBE_LENGTHS[0]
    long, short = (min(length, limit) for length in PROBE_LENGTHS)
    first = rng.integers(0, vocabulary, size=long)
    second = np.concatenate([first[: long // 2], rng.integers(0, vocabulary, size=long - long // 2)])
    return [torch.from_numpy(row).to(model.device) for row in (first[:short], first, second)]


def probe_logits(model: PreTrainedModel, rows: list[Tensor], before: Callable[[], None] | None = None) -> list[Tensor]:
    """Logits (t, V) of each row, alone through the model's plain forward; `before` is called before each."""
    found = []
    with torch.inference_mode():
        for row in rows:
            if before:
                before()
            found.append(model(input_ids=row[None], use_cache=False).logits[0])
    return found


def entropies(logits: list[Tensor]) -> Tensor:
    """Entropies (N,) of the positions of some rows, row after row."""
    with torch.inference_mode():
        return torch.cat([token_stats(row).entropy for row in logits])


def is_causal(logits: list[Tensor]) -> bool:
    """Whether the two probe rows of one length have the same logits in the first half: they differ in the second."""
    half = len(logits[1]) // 2
    a, b = (row[:half].float() for row in logits[1:])
    change = (a - b).abs().nanmean() / a.std().clamp(min=1e-30)
    tolerance = 1e-3 if logits[0].dtype in (torch.float32, torch.float64) else 0.2
    return not bool(change > tolerance)  # NaN logits say nothing about causality


def path_error(path: ForwardPath, rows: list[Tensor], reference: Tensor, *, exact: bool = True) -> float:
    """How far the path's entropies on padded probe rows are from the reference, in nats.

    The mean absolute deviation; if `exact`, where rounding is small everywhere, a tenth of the largest if that is more
    (a single token that an expert dropped).
    """
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    keep = torch.arange(ids.shape[1]) < torch.tensor([[len(row)] for row in rows])
    with torch.inference_mode():
        entropy = path(ids, keep, None).entropy
    return distance(entropy, reference, exact=exact)


def distance(entropy: Tensor, reference: Tensor, *, exact: bool) -> float:
    """The mean absolute difference; if `exact`, a tenth of the largest where that is more. Two NaNs are equal."""
    difference = (entropy - reference).abs()
    both_nan = entropy.isnan() & reference.isnan()  # a broken model: its rows get a status of their own
    difference = difference.masked_fill(both_nan, 0.0)
    return float(torch.maximum(difference.mean(), difference.max() / 10) if exact else difference.mean())


# --- which rows may share a batch -------------------------------------------------------------------------------------
#
# The right value of a text is the model's own, alone on that text in a fresh process. Most decoders give it in any
# batch of right-padded rows. Some look at the whole batch, and some remember earlier ones:
#
# - LongRoPE (Phi-3, Phi-3.5, PhiMoE, MiniCPM) takes another rotary table for all rows once the longest passes
#   `original_max_position_embeddings`.
# - Dynamic NTK makes its table for the longest row beyond `max_position_embeddings`, and keeps it for later batches of
#   rows that are shorter, but beyond that length too.
# - Experts of a limited capacity drop the tokens that come too late, padding and neighbours counted.
#
# `Grouped` runs such rows apart: up to a length that cannot matter together, longer ones with rows of their own length
# only (no padding, and one length for all), or each alone. `row_limit` reads from the configuration what no short probe
# can show, a limit of thousands of tokens; everything else is found by probe rows (`scorer.choose_path`).


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
        self.vocabulary, self.outcomes, self.padded = path.vocabulary, path.outcomes, path.padded
        self.parallel = path.parallel and state is None

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
        order = torch.cat(places).argsort().to(ids.device)
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
