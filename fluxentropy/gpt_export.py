"""A trained GPT -> a model folder of transformers: it scores text, joins a zoo, and generates.

It is a plain NanoChat or GPT-2 (gptweights.py), which `AutoModelForCausalLM` loads without code of ours.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from fluxentropy.conversion import first_line, quiet_transformers
from fluxentropy.errors import ModelError
from fluxentropy.gpt import GPT
from fluxentropy.gptweights import from_transformers, to_transformers
from fluxentropy.modelkind import check_folder
from fluxentropy.store import atomic_folder
from fluxentropy.weightcheck import load_checked

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

    Errors: ModelError when the folder is there already, the tokenizer's is none or knows more tokens than the model, or
    transformers has no such model (`family`).
    """
    folder = Path(folder)
    if folder.exists():
        raise ModelError(f"{folder} exists: export a model to a new folder")
    model = to_transformers(gpt).float()
    if tokenizer is not None:
        set_special_tokens(model, _read_tokenizer(Path(tokenizer), gpt.config.vocab_size))
    with atomic_folder(folder) as aside, quiet_transformers():
        model.save_pretrained(aside)
        if tokenizer is not None:
            for path in _tokenizer_files(Path(tokenizer)):
                shutil.copyfile(path, aside / path.name)
    return folder


def from_export(folder: str | Path) -> GPT:
    """The model in a folder that `export` wrote, or in another one of a NanoChat or a GPT-2.

    Errors: ModelError names weights that are not there, another kind of model, and an export of an earlier version.
    """
    from transformers import AutoModelForCausalLM

    check_folder(str(folder), Path(folder))
    with quiet_transformers():
        return from_transformers(load_checked(AutoModelForCausalLM, folder, name=str(folder))[0])


def _tokenizer_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})


def set_special_tokens(model: Any, tokenizer: Any) -> None:
    """Tell a model which tokens begin and end a text, and which one pads.

    One that both ends a text and pads is no padding in the configuration: NanoChat would not train its embedding.
    """
    for name in SPECIAL:
        value = getattr(tokenizer, name)
        setattr(model.generation_config, name, value)
        shared = name == "pad_token_id" and value in (tokenizer.bos_token_id, tokenizer.eos_token_id)
        setattr(model.config, name, None if shared else value)


def _read_tokenizer(folder: Path, vocabulary: int) -> Any:
    """The tokenizer in a folder, unless it is not that of a model with such a vocabulary."""
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
    if len(tokenizer) > vocabulary:
        raise ModelError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model {vocabulary}: "
            f"they do not belong together"
        )
    return tokenizer
