"""Adapter folders of `peft` (LoRA and its kin): the base model that they name, with their weights merged into it.

A folder with `adapter_config.json` holds no model: its few weights change a base model, whose name or path the file
gives. The base is loaded in float32 under the rules for any model (zoo name, folder, GGUF file or Hub id; offline or
not), the adapter is merged into its weights by peft, and the merged model is compared with peft's own forward. So every
path through a model serves adapters too.

What would give other numbers than the adapter was trained for is refused by name: weights of the adapter that are
missing or that nothing uses (peft leaves such layers as they were), kinds that live in the input and not in the
weights, tasks other than the next token, settings that the installed peft does not know, quantised bases.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxentropy.errors import ModelError
from fluxentropy.models.files import ADAPTER_CONFIG, adapter_weights, hub_folder, missing_files
from fluxentropy.models.gguf import first_line, quiet_transformers
from fluxentropy.models.zoo import ZooEntry, find_model

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


INSTALL = "pip install 'fluxentropy[peft]'"
CHANGE = 1e-3  # of the logits' spread: how far merging may move them in float32
SHOWN = 3  # names of weights in a message


def adapter_folder(entry: ZooEntry) -> Path | None:
    """The folder on this machine that holds an entry's adapter; None where the entry is a model of its own.

    Errors: ModelError for a folder with both an adapter and a whole model: one of them would be ignored.
    """
    folder = Path(entry.folder).expanduser() if entry.folder else hub_folder(entry) if entry.hub else None
    if folder is None or not (folder / ADAPTER_CONFIG).is_file():
        return None
    if not missing_files(folder, adapters=False):
        raise ModelError(
            f"folder {folder} holds a whole model and {ADAPTER_CONFIG}: move the adapter to a folder of its own, or "
            f"delete {ADAPTER_CONFIG} if the weights have it merged already"
        )
    return folder


def download_adapter(entry: ZooEntry) -> Path | None:
    """Ask the Hub whether a repository is an adapter; if so, bring its files here. Not called offline."""
    from huggingface_hub import snapshot_download
    from transformers.utils.peft_utils import find_adapter_config_file

    revision = entry.revision or "main"
    try:
        if not entry.hub or find_adapter_config_file(entry.hub, revision=revision) is None:
            return None
    except OSError:  # there is no such repository or revision: loading says so
        return None
    patterns = ["adapter_*", "*token*", "vocab*", "merges.txt", "*.model"]
    try:
        snapshot_download(entry.hub, revision=revision, allow_patterns=patterns)
    except Exception as error:  # a network, a disk, or access: huggingface_hub raises many kinds
        raise ModelError(f"adapter {entry.name!r} cannot be downloaded: {first_line(error)}") from error
    return adapter_folder(entry)


def base_entry(entry: ZooEntry, folder: Path) -> ZooEntry:
    """Where the base model of an adapter comes from.

    A relative path counts from the current folder, or from the adapter's. Errors: ModelError when no base is named, it
    is not here, or it is an adapter itself.
    """
    config = read_config(folder)
    name, where = config.get("base_model_name_or_path"), f"base_model_name_or_path in {folder / ADAPTER_CONFIG}"
    if not isinstance(name, str) or not name:
        raise ModelError(f"adapter {entry.name!r} names no base model: write its name or folder as {where}")
    if not Path(name).expanduser().is_dir() and (folder / name).is_dir():
        name = str(folder / name)
    try:
        base = find_model(name, trust_remote_code=entry.trust_remote_code)
    except ModelError as error:
        raise ModelError(f"adapter {entry.name!r}: its base: {error}: correct {where}") from error
    if base.hub and config.get("revision"):
        base = dataclasses.replace(base, revision=str(config["revision"]))
    if adapter_folder(base):
        raise ModelError(f"adapter {entry.name!r}: its base {name!r} is an adapter too: merge that one first")
    return base


def read_config(folder: Path) -> dict[str, Any]:
    """What `adapter_config.json` says. Errors: ModelError names a damaged file."""
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise ModelError(f"{folder / ADAPTER_CONFIG} is damaged: it is no JSON object")
    return config


def merge_adapter(name: str, base: PreTrainedModel, folder: Path, probe: Tensor) -> PreTrainedModel:
    """The base model, float32 on the CPU, with the adapter in its weights; `probe` (T,) are tokens to compare it on.

    Errors: ModelError as the module says.
    """
    try:
        import peft
    except ImportError as error:
        raise ModelError(
            f"model {name!r} is an adapter ({folder / ADAPTER_CONFIG}): scoring it with its base needs peft: {INSTALL}"
        ) from error
    config = _peft_config(peft, name, read_config(folder))
    if getattr(base, "is_quantized", False):
        raise ModelError(
            f"adapter {name!r}: its base {config.base_model_name_or_path!r} is quantised, and adapters are merged in "
            f"float32: name the model before quantisation as base_model_name_or_path in {folder / ADAPTER_CONFIG}"
        )
    try:
        with warnings.catch_warnings(), quiet_transformers():
            warnings.simplefilter("ignore")
            _resize(name, base, folder)
            model = peft.PeftModel(base, config)
            found = model.load_adapter(str(folder), "default", torch_device="cpu")
            model.eval()
            _check_keys(name, folder, found.missing_keys, found.unexpected_keys)
            right = _logits(model, probe)
            merged = model.merge_and_unload(safe_merge=True)
    except ModelError:
        raise
    except Exception as error:  # peft raises many kinds, a KeyError for a module that the file lacks
        raise ModelError(f"adapter {name!r} does not fit its base, or cannot be merged: {first_line(error)}") from error
    change = float((_logits(merged, probe) - right).abs().max() / right.std().clamp(min=1e-30))
    if not change <= CHANGE:
        raise ModelError(
            f"adapter {name!r} cannot be merged: the merged model's logits differ from peft's by {change:.2g} of their "
            f"standard deviation"
        )
    return merged


def _peft_config(peft: Any, name: str, values: dict[str, Any]) -> Any:
    kind, task = values.get("peft_type"), values.get("task_type")
    if kind not in peft.PEFT_TYPE_TO_CONFIG_MAPPING:
        raise ModelError(f"adapter {name!r}: peft {peft.__version__} knows no peft_type {kind!r}: upgrade it")
    if task not in (None, "CAUSAL_LM"):
        raise ModelError(
            f"adapter {name!r} is for the task {task}, and scoring needs one that predicts the next token (CAUSAL_LM)"
        )
    known = {field.name for field in dataclasses.fields(peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind])}
    unknown = [key for key, value in values.items() if key not in known and value]
    if unknown:
        raise ModelError(
            f"adapter {name!r} was saved with settings that peft {peft.__version__} does not know: "
            f"{', '.join(sorted(unknown))}: upgrade peft"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[kind](**{key: values[key] for key in values if key in known})
    except (TypeError, ValueError) as error:
        raise ModelError(f"adapter {name!r}: peft refuses its {ADAPTER_CONFIG}: {first_line(error)}") from error
    config.inference_mode = True
    if config.is_prompt_learning or values.get("alora_invocation_tokens"):
        what = "aLoRA" if values.get("alora_invocation_tokens") else kind
        raise ModelError(
            f"adapter {name!r} is {what}, which depends on the input and cannot be merged into weights: scores need "
            f"an adapter of weights, such as LoRA"
        )
    return config


def _check_keys(name: str, folder: Path, missing: list[str], unused: list[str]) -> None:
    """peft says nothing, or warns, and leaves a layer of the base as it was: the scores would be half the base's."""
    for words, keys in (("lacks", missing), ("holds weights that nothing in its base uses:", unused)):
        if keys:
            shown = ", ".join(sorted(keys)[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")
            raise ModelError(f"adapter {name!r}: {adapter_weights(folder)} {words} {shown}: is this its base?")


def _resize(name: str, base: PreTrainedModel, folder: Path) -> None:
    """Give the base as many embedding rows as the adapter was trained with, where its file holds all of them."""
    from peft.utils.save_and_load import load_peft_weights

    from fluxentropy.models.forward import embedding_rows

    weights = load_peft_weights(str(folder), device="cpu")
    sizes = {"embeddings": base.get_input_embeddings(), "head": base.get_output_embeddings()}
    rows = {}
    for part, module in sizes.items():
        ends = [f"{key}.weight" for key, value in base.named_modules(remove_duplicate=False) if value is module]
        held = [value for key, value in weights.items() if any(key.endswith(f".{end}") for end in ends)]
        rows[part] = len(held[0]) if held else None
    now = embedding_rows(base)
    new = next((count for count in rows.values() if count and count != now), None)
    if new is None:
        return
    tied = base.config.get_text_config().tie_word_embeddings
    if (rows["embeddings"] or (tied and rows["head"])) != new or (rows["head"] or (tied and rows["embeddings"])) != new:
        raise ModelError(
            f"adapter {name!r} was trained with {new} tokens, its base has {now}, and {adapter_weights(folder)} does "
            f"not hold both the embeddings and the head: save it with save_embedding_layers=True"
        )
    base.resize_token_embeddings(new, mean_resizing=False)


def _logits(model: Any, probe: Tensor) -> Tensor:
    import torch

    with torch.inference_mode():
        return model(input_ids=probe[None], use_cache=False).logits[0].float()


def cast_weights(model: PreTrainedModel, dtype: Any) -> None:
    """Round the weights to `dtype` as loading in it does: buffers stay, and so do layers that must be float32."""
    import torch

    kept = {*(model._keep_in_fp32_modules_strict or ())}
    if dtype == torch.float16:
        kept |= {*(model._keep_in_fp32_modules or ())}
    for key, parameter in model.named_parameters():
        if not any(part in key for part in kept):
            parameter.data = parameter.data.to(dtype)
    model.config = copy.deepcopy(model.config)
    model.config.dtype = dtype
