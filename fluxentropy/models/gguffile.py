"""A GGUF file's metadata and table of tensors, and a split file joined."""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fluxentropy.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


# --- GGUF files -------------------------------------------------------------------------------------------------------


SPLIT = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # of struct
STRING, ARRAY = 8, 9
FLOAT32 = 0  # the type of a tensor
MAGIC = int.from_bytes(b"GGUF", "little")


@dataclass(frozen=True, kw_only=True)
class GGUFFile:
    """What a GGUF file says of its model: its metadata, arrays as lists, and its tensors."""

    path: Path
    architecture: str
    metadata: dict[str, Any]
    tensors: frozenset[str]
    small: dict[str, tuple[float, ...]]
    """The values of vectors in float32 that are no part of a layer."""


def read_gguf(path: Path) -> GGUFFile:
    """Read the header of a GGUF file of version 2 or 3, of whose tensors nothing else is read.

    (The reader of the package `gguf` takes half a minute where a vocabulary has 262,144 tokens.)

    Errors: ModelError for what is no such file or a damaged one, one file of several, or a file that holds no model but
    an adapter.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            metadata, tensors, small = _header(_Cursor(data, 0))
    except (struct.error, ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise ModelError(f"GGUF file {path} cannot be read: {error or type(error).__name__}") from error
    if (count := metadata.get("split.count", 0)) > 1:
        raise ModelError(
            f"GGUF file {path} is file {metadata.get('split.no', 0) + 1} of {count}: keep their names "
            f"(NAME-00001-of-{count:05}.gguf) and give the first"
        )
    if (kind := metadata.get("general.type", "model")) != "model":
        raise ModelError(f"GGUF file {path} holds no model: its general.type is {kind!r}")
    architecture = str(metadata.get("general.architecture", ""))
    return GGUFFile(path=path, architecture=architecture, metadata=metadata, tensors=tensors, small=small)


class _Cursor:
    """A place in the bytes of a file, little-endian."""

    def __init__(self, data: mmap.mmap, place: int) -> None:
        self.data, self.place = data, place

    def numbers(self, kind: str, count: int = 1) -> tuple[Any, ...]:
        form = f"<{count}{kind}"
        found = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return found

    def number(self, kind: str) -> Any:
        return self.numbers(kind)[0]

    def text(self) -> str:
        size = self.number("Q")
        raw = self.data[self.place : self.place + size]
        if len(raw) < size:
            raise ValueError("the file ends within its header")
        self.place += size
        return raw.decode(errors="replace")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(NUMBERS[kind])
        inner, count = self.number("I"), self.number("Q")
        if inner in NUMBERS:
            return list(self.numbers(NUMBERS[inner], count))
        return [self.value(inner) for _ in range(count)]


def _header(at: _Cursor) -> tuple[dict[str, Any], frozenset[str], dict[str, tuple[float, ...]]]:
    magic, version, n_tensors, n_keys = at.number("I"), at.number("I"), at.number("Q"), at.number("Q")
    if magic != MAGIC:
        raise ValueError("it is not a GGUF file")
    if version not in (2, 3):
        raise ValueError(f"version {version} of the format is not known")
    metadata = {}
    for _ in range(n_keys):
        key = at.text()
        metadata[key] = at.value(at.number("I"))
    table = {}
    for _ in range(n_tensors):
        name = at.text()
        table[name] = (at.numbers("Q", at.number("I")), at.number("I"), at.number("Q"))
    alignment = metadata.get("general.alignment", 32)
    start = -(-at.place // alignment) * alignment
    small = {
        name: _Cursor(at.data, start + offset).numbers("f", shape[0])
        for name, (shape, kind, offset) in table.items()
        if len(shape) == 1 and kind == FLOAT32 and not name.startswith("blk.")
    }
    return metadata, frozenset(table), small


# --- one model in several files ---------------------------------------------------------------------------------------


def split_files(path: Path) -> list[Path]:
    """All files of the model that a GGUF file belongs to, by its name; the file alone where it is whole.

    >>> [path.name for path in split_files(Path("big-00002-of-00003.gguf"))]
    ['big-00001-of-00003.gguf', 'big-00002-of-00003.gguf', 'big-00003-of-00003.gguf']
    """
    found = SPLIT.fullmatch(path.name)
    if not found:
        return [path]
    stem, count = found["stem"], int(found["count"])
    return [path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def join_gguf(files: Sequence[Path], whole: Path) -> None:
    """Write one GGUF file with the metadata of the first file and the tensors of all.

    Errors: ModelError names a file that is not the part that its name says, or tensors that are not there.
    """
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    readers = [_part(GGUFReader(file), file, number, len(files)) for number, file in enumerate(files)]
    first = readers[0]
    writer = GGUFWriter(whole, first.fields["general.architecture"].contents())
    writer.data_alignment = first.alignment  # which the metadata name, where it is not the usual one
    for name, field in first.fields.items():
        if name.startswith(("GGUF.", "split.")) or name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        if kind != GGUFValueType.ARRAY or field.contents():  # an empty array cannot be written, and says nothing
            writer.add_key_value(name, field.contents(), kind, inner)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    expected = first.fields["split.tensors.count"].contents() if "split.tensors.count" in first.fields else None
    if expected not in (None, len(tensors)):
        raise ModelError(
            f"GGUF files {files[0]} and following hold {len(tensors)} tensors of {expected}: get them again"
        )
    for tensor in tensors:
        data = tensor.data
        writer.add_tensor_info(tensor.name, data.shape, data.dtype, data.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()


def _part(reader: Any, file: Path, number: int, count: int) -> Any:
    said = [reader.fields[key].contents() if key in reader.fields else None for key in ("split.no", "split.count")]
    if said != [number, count]:
        raise ModelError(
            f"GGUF file {file}: its metadata says part {said[0]} of {said[1]} (from 0), its name otherwise"
        )
    return reader


# --- configurations of GGUF files -------------------------------------------------------------------------------------
#
# transformers reads a part of the metadata and fills the rest with the values of another model. Here each architecture
# is written out: a key that is not known refuses the file. Keys, defaults and what is tied are those
# of llama.cpp (`src/models/*.cpp`), which writes and runs such files.


ROPE_FREQUENCIES = "rope_freqs.weight"
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
HEAD = "output.weight"

NEEDS_HEAD = (
    "nemotron",
    "qwen2moe",
    "stablelm",
)  # llama.cpp ties the head of others to the embedding where it is absent

SAYS_NOTHING = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")  # of the numbers that come out


class _Keys:
    """The metadata of one architecture; what was not taken in the end refuses the file."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        start = f"{file.architecture}."
        self.found = {key.removeprefix(start): v for key, v in file.metadata.items() if key.startswith(start)}
        self.left = set(self.found) - set(SAYS_NOTHING)

    def take(self, key: str, default: Any = None) -> Any:
        """The value of a key, one for all layers."""
        self.left.discard(key)
        value = self.found.get(key, default)
        if isinstance(value, list) and value and all(each == value[0] for each in value):
            return value[0]
        if isinstance(value, list):
            self.refuse(key, "layers that differ in it cannot be honoured")
        return value

    def need(self, key: str) -> Any:
        """The value of a key that has no default, a size or an epsilon."""
        value = self.take(key)
        if not value:
            self.refuse(key, "it is missing" if value is None else "it must be more than 0")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """Take a key that may have these values alone, or be absent."""
        value = self.take(key)
        if value is not None and value not in allowed:
            self.refuse(key, f"only {' or '.join(map(str, allowed))} can be honoured")

    def has(self, tensor: str) -> bool:
        return tensor in self.file.tensors

    def refuse(self, key: str, why: str) -> NoReturn:
        value = f" = {self.found[key]}" if key in self.found else ""
        raise ModelError(
            f"GGUF file {self.file.path}: {self.file.architecture}.{key}{value}: {why}: use the model's folder of "
            f"safetensors instead"
        )


def gguf_config(file: GGUFFile) -> PreTrainedConfig:
    """The configuration that makes a model of transformers compute what the file says.

    Errors: ModelError names the architecture, or the key of the metadata, that cannot be honoured.
    """
    from transformers import CONFIG_MAPPING

    if file.architecture not in ARCHITECTURES:
        raise ModelError(
            f"GGUF file {file.path}: architecture {file.architecture!r} cannot be read exactly; those that can are "
            f"{', '.join(sorted(ARCHITECTURES))}: use the model's folder of safetensors instead"
        )
    kind, fields_of = ARCHITECTURES[file.architecture]
    keys = _Keys(file)
    keys.only("attention.causal", True)
    fields = fields_of(keys)
    fields["tie_word_embeddings"] = not keys.has(HEAD) and file.architecture not in NEEDS_HEAD
    fields["vocab_size"] = len(file.metadata.get("tokenizer.ggml.tokens") or ()) or keys.need("vocab_size")
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        fields[f"{name}_token_id"] = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
    if keys.left:
        keys.refuse(min(keys.left), "it cannot be honoured")
    return CONFIG_MAPPING[kind](**fields)


def used_by_config(file: GGUFFile) -> set[str]:
    """The tensors that went into the configuration instead of the weights."""
    used = {"llama": {ROPE_FREQUENCIES}, "phi3": {LONG, SHORT}}.get(file.architecture, set())
    return used if used <= file.tensors else set()


# --- rotary positions -------------------------------------------------------------------------------------------------


def _rope(keys: _Keys, head_dim: int, *, partial: bool = False) -> dict[str, Any]:
    """The rotary embedding, scaled as the file says."""
    width = keys.take("rope.dimension_count", head_dim)
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": keys.take("rope.freq_base", 10000.0)}
    if partial:
        rope["partial_rotary_factor"] = width / head_dim
    elif width != head_dim:
        keys.refuse("rope.dimension_count", f"only the whole head, {head_dim}, can be honoured")
    kind = keys.take("rope.scaling.type", "linear" if "rope.scale_linear" in keys.found else "none")
    keys.take("rope.scaling.original_context_length")  # of yarn and longrope alone
    if kind not in ("none", "linear", "yarn") and not (kind == "longrope" and _has_longrope(keys)):
        keys.refuse("rope.scaling.type", "it cannot be honoured")
    factor = keys.take("rope.scaling.factor", keys.take("rope.scale_linear", 1.0)) or 1.0
    if kind == "linear" and factor != 1.0:
        rope |= {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        rope |= _yarn(keys, factor)
    if kind in ("none", "longrope") and factor != 1.0:
        said = f"rope.scaling.type is {kind}" if "rope.scaling.type" in keys.found else "there is no rope.scaling.type"
        keys.refuse("rope.scaling.factor", said)
    return rope


def _yarn(keys: _Keys, factor: float) -> dict[str, Any]:
    keys.only("rope.scaling.yarn_ext_factor", 1.0)
    keys.only("rope.scaling.yarn_log_multiplier", 0.0)
    keys.only("rope.scaling.attn_factor", 1.0)
    given = {
        "attention_factor": keys.take("rope.scaling.yarn_attn_factor"),
        "beta_fast": keys.take("rope.scaling.yarn_beta_fast"),
        "beta_slow": keys.take("rope.scaling.yarn_beta_slow"),
    }
    original = keys.take("rope.scaling.original_context_length") or keys.need("context_length")
    known = {key: value for key, value in given.items() if value is not None}
    return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **known}


def _divided(keys: _Keys, rope: dict[str, Any]) -> dict[str, Any]:
    """Rotary frequencies that a tensor divides one by one (Llama 3.1): LongRoPE with one set for all lengths."""
    if not keys.has(ROPE_FREQUENCIES):
        return rope
    if rope["rope_type"] != "default":
        keys.refuse("rope.scaling.type", f"the file scales its positions with {ROPE_FREQUENCIES} too")
    return rope | _longrope(keys, ROPE_FREQUENCIES, ROPE_FREQUENCIES, keys.need("context_length"), 1.0)


def _has_longrope(keys: _Keys) -> bool:
    return keys.has(LONG) and keys.has(SHORT)


def _longrope(keys: _Keys, short: str, long: str, original: int, attention_factor: float) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": _factors(keys, short),
        "long_factor": _factors(keys, long),
        "factor": keys.need("context_length") / original,
        "attention_factor": attention_factor,
        "original_max_position_embeddings": original,
    }


def _factors(keys: _Keys, tensor: str) -> list[float]:
    if tensor not in keys.file.small:
        raise ModelError(f"GGUF file {keys.file.path}: tensor {tensor} is not a vector in float32: get the file again")
    return list(keys.file.small[tensor])


# --- architectures ----------------------------------------------------------------------------------------------------


def _sizes(keys: _Keys) -> dict[str, Any]:
    return {
        "max_position_embeddings": keys.need("context_length"),
        "hidden_size": keys.need("embedding_length"),
        "num_hidden_layers": keys.need("block_count"),
        "intermediate_size": keys.need("feed_forward_length"),
        "num_attention_heads": keys.need("attention.head_count"),
        "num_key_value_heads": keys.take("attention.head_count_kv", keys.need("attention.head_count")),
    }


def _dense(keys: _Keys) -> dict[str, Any]:
    """Sizes and norms of the usual decoder without experts."""
    keys.only("expert_count", 0)
    keys.only("expert_used_count", 0)
    return _sizes(keys) | {"rms_norm_eps": keys.need("attention.layer_norm_rms_epsilon")}


def _head_dim(keys: _Keys, fields: dict[str, Any], *, free: bool = True) -> int:
    """The size of a head, that of keys and of values; not free, it is the width over the number of heads."""
    usual = fields["hidden_size"] // fields["num_attention_heads"]
    size = int(keys.take("attention.key_length", usual))
    keys.only("attention.value_length", size)
    if size != usual and not free:
        keys.refuse("attention.key_length", f"only {usual} can be honoured")
    return size


def _llama(keys: _Keys) -> dict[str, Any]:
    keys.need("attention.head_count_kv")  # without it transformers leaves queries and keys in the order of the file
    fields = _dense(keys)
    fields["head_dim"] = _head_dim(keys, fields)
    fields["rope_parameters"] = _divided(keys, _rope(keys, fields["head_dim"]))
    fields["attention_bias"] = keys.has("blk.0.attn_q.bias")
    fields["mlp_bias"] = keys.has("blk.0.ffn_gate.bias")
    return fields


def _qwen2(keys: _Keys) -> dict[str, Any]:
    fields = _dense(keys)
    return fields | {"rope_parameters": _rope(keys, _head_dim(keys, fields, free=False))}


def _qwen3(keys: _Keys) -> dict[str, Any]:
    fields = _dense(keys)
    fields["head_dim"] = _head_dim(keys, fields)
    return fields | {"rope_parameters": _rope(keys, fields["head_dim"])}


def _experts(keys: _Keys) -> dict[str, Any]:
    fields = _sizes(keys) | {"rms_norm_eps": keys.need("attention.layer_norm_rms_epsilon")}
    used = keys.need("expert_used_count")
    fields |= {"num_experts": keys.need("expert_count"), "num_experts_per_tok": used}
    fields["moe_intermediate_size"] = keys.take("expert_feed_forward_length", fields["intermediate_size"] // used)
    return fields


def _qwen2moe(keys: _Keys) -> dict[str, Any]:
    fields = _experts(keys)
    shared = keys.take("expert_shared_feed_forward_length", fields["intermediate_size"])
    fields |= {"shared_expert_intermediate_size": shared, "norm_topk_prob": False}
    return fields | {"rope_parameters": _rope(keys, _head_dim(keys, fields, free=False))}


def _qwen3moe(keys: _Keys) -> dict[str, Any]:
    fields = _experts(keys)
    fields |= {"head_dim": _head_dim(keys, fields), "norm_topk_prob": True}
    return fields | {"rope_parameters": _rope(keys, fields["head_dim"])}


def _gemma(keys: _Keys, *, largest: int, period: int) -> dict[str, Any]:
    """Gemma 2 and 3. The attention of the largest has another scale, which the file does not say."""
    fields = _dense(keys)
    fields["head_dim"] = _head_dim(keys, fields)
    each = fields["hidden_size"] // fields["num_attention_heads"]
    fields["query_pre_attn_scalar"] = each if fields["num_hidden_layers"] == largest else fields["head_dim"]
    keys.only("attention.sliding_window_pattern", period)
    kinds = ("full_attention", "sliding_attention")
    fields["layer_types"] = [kinds[bool((layer + 1) % period)] for layer in range(fields["num_hidden_layers"])]
    return fields


def _gemma2(keys: _Keys) -> dict[str, Any]:
    fields = _gemma(keys, largest=46, period=2)
    fields["sliding_window"] = keys.take("attention.sliding_window", 4096)
    fields["attn_logit_softcapping"] = keys.take("attn_logit_softcapping", 50.0)
    fields["final_logit_softcapping"] = keys.take("final_logit_softcapping", 30.0)
    fields["rope_parameters"] = _rope(keys, fields["head_dim"])
    keys.only("rope.freq_base_swa", fields["rope_parameters"]["rope_theta"])
    return fields


def _gemma3(keys: _Keys) -> dict[str, Any]:
    """Gemma 3 scales the positions of its layers with full attention alone."""
    fields = _gemma(keys, largest=62, period=6)
    fields["sliding_window"] = keys.need("attention.sliding_window")
    fields["final_logit_softcapping"] = keys.take("final_logit_softcapping") or None
    sliding = {"rope_type": "default", "rope_theta": keys.take("rope.freq_base_swa", 10000.0)}
    fields["rope_parameters"] = {"full_attention": _rope(keys, fields["head_dim"]), "sliding_attention": sliding}
    return fields


def _phi3(keys: _Keys) -> dict[str, Any]:
    fields = _dense(keys)
    head_dim = _head_dim(keys, fields, free=False)
    fields["sliding_window"] = keys.take("attention.sliding_window") or None
    rope = _rope(keys, head_dim, partial=True)
    original = keys.take("rope.scaling.original_context_length") or fields["max_position_embeddings"]
    if _has_longrope(keys):
        rope |= _longrope(keys, SHORT, LONG, original, keys.take("rope.scaling.attn_factor", 1.0))
    return fields | {"rope_parameters": rope, "original_max_position_embeddings": original}


def _gpt2(keys: _Keys) -> dict[str, Any]:
    heads = keys.need("attention.head_count")
    keys.only("attention.head_count_kv", heads)
    return {
        "n_positions": keys.need("context_length"),
        "n_embd": keys.need("embedding_length"),
        "n_layer": keys.need("block_count"),
        "n_inner": keys.need("feed_forward_length"),
        "n_head": heads,
        "layer_norm_epsilon": keys.need("attention.layer_norm_epsilon"),
    }


def _starcoder2(keys: _Keys) -> dict[str, Any]:
    fields = _sizes(keys) | {"norm_epsilon": keys.need("attention.layer_norm_epsilon")}
    return fields | {"rope_parameters": _rope(keys, _head_dim(keys, fields, free=False))}


def _stablelm(keys: _Keys) -> dict[str, Any]:
    fields = _sizes(keys) | {"layer_norm_eps": keys.need("attention.layer_norm_epsilon")}
    fields["rope_parameters"] = _rope(keys, _head_dim(keys, fields, free=False), partial=True)
    fields["use_qkv_bias"] = keys.has("blk.0.attn_q.bias")
    fields["use_parallel_residual"] = not keys.has("blk.0.ffn_norm.weight")
    keys.take("use_parallel_residual")  # llama.cpp goes by the tensors
    return fields


def _nemotron(keys: _Keys) -> dict[str, Any]:
    fields = _sizes(keys) | {"norm_eps": keys.need("attention.layer_norm_epsilon")}
    fields["head_dim"] = _head_dim(keys, fields)
    return fields | {"rope_parameters": _rope(keys, fields["head_dim"], partial=True)}


ARCHITECTURES: dict[str, tuple[str, Callable[[_Keys], dict[str, Any]]]] = {
    "gemma2": ("gemma2", _gemma2),
    "gemma3": ("gemma3_text", _gemma3),
    "gpt2": ("gpt2", _gpt2),
    "llama": ("llama", _llama),
    "nemotron": ("nemotron", _nemotron),
    "phi3": ("phi3", _phi3),
    "qwen2": ("qwen2", _qwen2),
    "qwen2moe": ("qwen2_moe", _qwen2moe),
    "qwen3": ("qwen3", _qwen3),
    "qwen3moe": ("qwen3_moe", _qwen3moe),
    "stablelm": ("stablelm", _stablelm),
    "starcoder2": ("starcoder2", _starcoder2),
}
