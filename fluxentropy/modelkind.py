"""What kind of model a configuration describes, and which class of transformers loads all of it.

A causal decoder is loaded as such. A wrapper that adds eyes or ears to one (LLaVA, Qwen2-VL, Mllama, Voxtral) is loaded
whole, and reads text alone: its logits are those of the decoder inside. `AutoModelForCausalLM` knows some wrappers not
at all, and takes only the text part of others. What has no distribution over a next token gets a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fluxentropy.errors import ModelError


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
