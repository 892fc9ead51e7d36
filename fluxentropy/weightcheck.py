"""Are a model's weights those of its files? A weight that no file holds would be random, one that nothing uses is lost.

transformers fills what is missing with random numbers, drops what it does not know, and says so in a log at most. Here
both refuse the model by the names of the weights.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any

from fluxentropy.errors import ModelError

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
