"""A trained GPT -> a model folder of transformers: it scores text, joins a zoo, and generates.

A model of the `gpt2` preset becomes a plain GPT-2, which every tool reads. All others become a `FluxGPTForCausalLM`
whose folder carries its own code.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fluxentropy.conversion import first_line, quiet_transformers
from fluxentropy.errors import ModelError
from fluxentropy.gpt import GPT
from fluxentropy.gpt2 import from_gpt2, is_gpt2, to_gpt2
from fluxentropy.hf_gpt import FluxGPTConfig, FluxGPTForCausalLM, register
from fluxentropy.store import atomic_folder
from fluxentropy.weightcheck import load_checked

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
)
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def export(gpt: GPT, folder: str | Path, *, tokenizer: str | Path | None = None) -> Path:
    """Write the model to `folder`, which must not exist yet, with a copy of the tokenizer's folder; float32.

    Errors: ModelError when the folder is there already, or the tokenizer's is none or knows more tokens than the model.
    """
    folder = Path(folder)
    if folder.exists():
        raise ModelError(f"{folder} exists: export a model to a new folder")
    model = to_transformers(gpt).float()
    if tokenizer is not None:
        _set_special_tokens(model, Path(tokenizer))
    with atomic_folder(folder) as aside, quiet_transformers():
        model.save_pretrained(aside)
        if tokenizer is not None:
            for path in _tokenizer_files(Path(tokenizer)):
                shutil.copyfile(path, aside / path.name)
    return folder


def to_transformers(gpt: GPT) -> PreTrainedModel:
    """The model as one of transformers, on the same device and in evaluation mode. It shares no weights with `gpt`."""
    register()  # so that saving copies the code along
    return to_gpt2(gpt) if is_gpt2(gpt.config) else _to_flux(gpt)


def _to_flux(gpt: GPT) -> FluxGPTForCausalLM:
    fields = {**vars(gpt.config), "vocab_multiple": 1}
    with torch.device("meta"):
        model = FluxGPTForCausalLM(FluxGPTConfig(**fields))
    rows = gpt.config.vocab_size
    weights = {}
    for name, tensor in gpt.state_dict().items():
        name = name.replace("head.", "lm_head.", 1) if name.startswith("head.") else f"model.{name}"
        padded = name.endswith(("embed.weight", "values.weight", "lm_head.weight"))
        weights[name] = (tensor[:rows] if padded else tensor).clone()
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    return model.eval()


def from_export(folder: str | Path) -> GPT:
    """The model in a folder that `export` wrote, float32. Errors: ModelError names weights that are not there."""
    from transformers import AutoConfig, GPT2LMHeadModel

    register()
    with quiet_transformers():
        config = AutoConfig.from_pretrained(folder)
        if not isinstance(config, FluxGPTConfig):
            return from_gpt2(load_checked(GPT2LMHeadModel, folder, name=str(folder))[0])
        weights = load_checked(FluxGPTForCausalLM, folder, name=str(folder))[0].state_dict()
    gpt = GPT(config.architecture())
    gpt.load_state_dict({name.removeprefix("model.").replace("lm_head.", "head."): w for name, w in weights.items()})
    return gpt


def _tokenizer_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})


def _set_special_tokens(model: PreTrainedModel, folder: Path) -> None:
    """Tell the model which tokens begin and end a text, and refuse a tokenizer that is not its own."""
    from transformers import AutoTokenizer

    if not _tokenizer_files(folder):
        raise ModelError(
            f"folder {folder} holds no tokenizer: give the folder of the one that the model was trained with"
        )
    try:
        with quiet_transformers():
            tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise ModelError(f"the tokenizer in {folder} cannot be read: {first_line(error)}") from error
    if len(tokenizer) > model.config.vocab_size:
        raise ModelError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model {model.config.vocab_size}: "
            f"they do not belong together"
        )
    for name in SPECIAL:
        for config in (model.config, model.generation_config):
            setattr(config, name, getattr(tokenizer, name))
