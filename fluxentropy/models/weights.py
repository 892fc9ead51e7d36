"""Are a model's weights those of its files? A weight that no file holds would be random, one that nothing uses is lost.

transformers fills what is missing with random numbers, drops what it does not know, and says so in a log at most. Here
both refuse the model by the names of the weights.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxentropy.errors import ModelError
from fluxentropy.models.zoo import DTYPES

if TYPE_CHECKING:
    import torch


# --- weights and names ------------------------------------------------------------------------------------------------


SHOWN = 6  # names in a message

# Buffers that older versions saved beside the weights: causal masks, and rotary tables that the model makes itself.
OLD_BUFFERS = re.compile(r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias)$")
OLD_MASKS = re.compile(r"(^|\.)(attn|attention)\.(bias|causal_mask)$")
MASKED = ("codegen", "gpt2", "gpt_neo", "gpt_neox", "gptj")  # kinds of models that saved such masks
OTHER_HEADS = re.compile(r"^(score|v_head|value_head|classifier|reward_head|summary)\.")


def load_checked(loader: Any, source: Any, *, name: str, **options: Any) -> tuple[Any, str]:
    """`loader.from_pretrained(source)` and a note, empty where there is nothing to say.

    Errors: ModelError names the weights that the files lack, that nothing uses, or that have other shapes.
    """
    model, found = loader.from_pretrained(source, output_loading_info=True, ignore_mismatched_sizes=True, **options)
    unused = {key for key in found["unexpected_keys"] if not _is_old_buffer(key, model.config.model_type)}
    shapes = [f"{key} {tuple(ours)} for {tuple(theirs)}" for key, ours, theirs in found["mismatched_keys"]]
    check_names(f"model {name!r}", missing=found["missing_keys"], unused=unused, shapes=shapes)
    return model, _untie(model)


def check_names(what: str, *, missing: Collection[str], unused: Collection[str], shapes: Collection[str] = ()) -> None:
    """Refuse a model whose weights are not those of its files.

    >>> check_names("model 'x'", missing=["lm_head.weight"], unused=[])
    Traceback (most recent call last):
        ...
    fluxentropy.errors.ModelError: model 'x': its files do not hold the weights that its configuration describes: \
missing lm_head.weight: if its head is its embedding, set "tie_word_embeddings": true in config.json
    """
    parts = [
        f"{word} {_listed(names)}"
        for word, names in (("missing", missing), ("unused", unused), ("of another shape", shapes))
        if names
    ]
    if parts:
        raise ModelError(
            f"{what}: its files do not hold the weights that its configuration describes: {'; '.join(parts)}: "
            f"{_advice(missing, unused)}"
        )


def check_integers(what: str, names: Collection[str]) -> None:
    """Refuse matrices of integers that nothing dequantised: transformers takes the integers for the weights.

    >>> check_integers("model 'x'", ["lm_head.weight (I8)"])
    Traceback (most recent call last):
        ...
    fluxentropy.errors.ModelError: model 'x': its files hold quantised weights, lm_head.weight (I8), and its \
configuration does not say how to read them: give the unquantised model
    """
    if names:
        raise ModelError(
            f"{what}: its files hold quantised weights, {_listed(names)}, and its configuration does not say how to "
            f"read them: give the unquantised model"
        )


def _advice(missing: Collection[str], unused: Collection[str]) -> str:
    if prefix := _prefix(missing, unused):
        return f"its names begin with {prefix!r}, that of a wrapper: save the model that is inside"
    if any(OTHER_HEADS.search(key) for key in unused):
        return "it is a reward model or a classifier: scoring needs a model with a head over the vocabulary"
    if set(missing) == {"lm_head.weight"} and not unused:
        return 'if its head is its embedding, set "tie_word_embeddings": true in config.json'
    return "get the files again, or give the configuration that they belong to"


def _prefix(missing: Collection[str], unused: Collection[str]) -> str:
    """What stands before every unused name that is missing without it.

    >>> _prefix(["norm.weight"], ["module.norm.weight"])
    'module.'
    """
    names = set(missing)
    found = {key[: dot.end()] for key in unused for dot in re.finditer(r"\.", key) if key[dot.end() :] in names}
    return found.pop() if len(found) == 1 else ""


def _listed(names: Iterable[str]) -> str:
    """The names in order, the numbers in them as numbers, the first few.

    >>> _listed(["h.10.w", "h.2.w"])
    'h.2.w, h.10.w'
    """
    ordered = sorted(names, key=lambda name: re.sub(r"\d+", lambda number: number[0].zfill(9), name))
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more


def _is_old_buffer(key: str, kind: str) -> bool:
    return bool(OLD_BUFFERS.search(key) or (kind in MASKED and OLD_MASKS.search(key)))


def _untie(model: Any) -> str:
    """Say where the configuration ties the head to the embedding and the files hold another head, which is used."""
    embedding = getattr(model.get_input_embeddings(), "weight", None)
    head = getattr(model.get_output_embeddings(), "weight", None)
    configs = (model.config, model.config.get_text_config())
    if head is None or head is embedding or not any(getattr(each, "tie_word_embeddings", False) for each in configs):
        return ""
    for each in configs:
        each.tie_word_embeddings = False  # so that nothing ties them later
    return "its configuration ties the head to the embedding, and its files hold another head: that one is used"


# --- kinds of models --------------------------------------------------------------------------------------------------
#
# A causal decoder is loaded as such. A wrapper that adds eyes or ears to one (LLaVA, Qwen2-VL, Mllama, Voxtral) is
# loaded
# whole, and reads text alone: its logits are those of the decoder inside. `AutoModelForCausalLM` knows some wrappers
# not at all, and takes only the text part of others. What has no distribution over a next token gets a sentence.


def loader_for(name: str, config: Any, *, own_code: bool = False) -> Any:
    """The class whose `from_pretrained` loads the model of a configuration; `own_code`: the code comes with the model.

    Errors: ModelError says what the model is, and what would work.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
        AutoModelForCausalLM,
        AutoModelForMultimodalLM,
    )

    kind = getattr(config, "model_type", "") or type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise _refusal(name, f"{kind} is an encoder-decoder, which predicts one text from another")
    if own_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return AutoModelForCausalLM
    causal, wrapper = (
        type(config) in mapping for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MULTIMODAL_LM_MAPPING)
    )
    if wrapper and (not causal or config.get_text_config() is not config):
        return AutoModelForMultimodalLM
    if causal:
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING:
        raise _refusal(name, f"{kind} is an encoder, which sees the tokens that it predicts")
    described = ", ".join(getattr(config, "architectures", None) or []) or "no architecture named"
    raise _refusal(name, f"transformers has no language model of the type {kind} ({described})")


def _refusal(name: str, what: str) -> ModelError:
    return ModelError(
        f"model {name!r} cannot be loaded: {what}: scoring needs a decoder that predicts the next token (…ForCausalLM, "
        f"or such a decoder with eyes or ears)"
    )


def check_folder(name: str, folder: Path, *, own_code: bool = False) -> None:
    """Refuse an embedding model: a decoder trained for its last states, whose head is left over; and a model that an
    earlier version of `pretrain` or `grpo` exported, unless by the code that lies in its folder (`own_code`).

    Errors: ModelError for a folder of sentence-transformers with a pooling layer, and for such an export.
    """
    if not own_code and _peek(folder / "config.json", lambda config: config.get("model_type") == "fluxgpt"):
        raise ModelError(
            f"model {name!r} was exported by an earlier version of fluxentropy, as a model with code of its own (type "
            f"fluxgpt): give --trust-remote-code to load it with the code in its folder, or train it again for an "
            f"export that needs none"
        )
    if _peek(folder / "modules.json", lambda modules: any("Pooling" in str(one.get("type")) for one in modules)):
        raise _refusal(name, "it is an embedding model (modules.json names a pooling layer), its head was not trained")


def _peek(path: Path, says: Callable[[Any], bool]) -> bool:
    """Whether a JSON file is there and `says` so; what is wrong with it is for others to say."""
    try:
        return says(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, AttributeError, TypeError):
        return False


# --- memory -----------------------------------------------------------------------------------------------------------


MARGIN = 1.1  # on the size of the weights: room for activations and the libraries' own copies


def check_memory(
    name: str, parameters: int | None, dtype: torch.dtype, device: torch.device, *, task: str = "its weights"
) -> None:
    """Raise ModelError, with both sizes and the way out, when so many weights do not fit on the device.

    Nothing is said where the number of parameters or the free memory is unknown.
    """
    if parameters is None:
        return
    needed = parameters * dtype.itemsize * MARGIN
    if (free := available_memory(device)) is None or needed <= free:
        return
    give_back_memory(device)  # takes as long as loading a small model: only where it may help
    if (free := available_memory(device)) is None or needed <= free:
        return
    precision = next(short for short, long in DTYPES.items() if str(dtype) == f"torch.{long}")
    halve = "--dtype bf16, " if dtype.itemsize == 4 and task == "its weights" and needed / 2 <= free else ""
    raise ModelError(
        f"model {name!r} needs about {format_bytes(needed)} for {task} in {precision}, and {format_bytes(free)} are "
        f"free on {device}: use {halve}a smaller model or a larger machine"
    )


def available_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device, None where that is unknown (Apple GPUs, systems other than Linux)."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return host_memory() if device.type == "cpu" else None


def give_back_memory(device: torch.device) -> None:
    """Give back to the device what this process no longer uses."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    else:
        trim_memory()


def trim_memory() -> None:
    """Give freed memory back to the system, where the C library is glibc."""
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def host_memory(root: Path = Path("/")) -> int | None:
    """Bytes of main memory that can still be had: MemAvailable, or what a control group leaves; None off Linux.

    `root` is where /proc and /sys are.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min([*free, *_left_by_groups(root / "sys/fs/cgroup", groups)], default=None)


def _left_by_groups(mount: Path, groups: list[str]) -> Iterator[int]:
    """What the limits of this process's control groups, and of those around them, leave: limit - use + file cache."""
    for line in groups:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            base, limit, use, prefix = mount, "memory.max", "memory.current", ""
        elif "memory" in controllers.split(","):  # version 1
            base, limit, use, prefix = mount / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"
        else:
            continue
        folder = base / path.strip("/")
        for group in (folder, *folder.parents):
            try:
                stat = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
                cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                yield int((group / limit).read_text()) - int((group / use).read_text()) + cache
            except (OSError, ValueError):  # no such group from here, or its limit is "max"
                pass
            if group == base:
                break


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out; torch's CPU allocator says so in a plain RuntimeError."""
    import torch

    said = isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "out of memory" in str(error))
    return said or isinstance(error, MemoryError | torch.OutOfMemoryError)


def format_bytes(size: float) -> str:
    """A size in bytes with three digits and a unit.

    >>> format_bytes(12_343_754_752), format_bytes(269_060_552), format_bytes(999)
    ('12.3 GB', '269 MB', '999 B')
    """
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB" if size < 999.5 else f"{size:,.0f} GB"
