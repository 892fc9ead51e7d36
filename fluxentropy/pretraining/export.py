"""A trained GPT -> a model folder of transformers: it scores text, joins a zoo, and generates.

It is a plain NanoChat or GPT-2 (pretraining/export.py), which `AutoModelForCausalLM` loads without code of ours.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fluxentropy.errors import ModelError
from fluxentropy.models.gguf import first_line, quiet_transformers
from fluxentropy.models.weights import check_folder, load_checked
from fluxentropy.pretraining.gpt import GPT, GPTConfig
from fluxentropy.runs.files import atomic_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# --- names and order of weights ---------------------------------------------------------------------------------------
#
# With rotary positions, as in the modern preset, it is a NanoChat; with learned ones, as in the `gpt2` preset, a GPT-2.
#
# NanoChat turns the second half of a head against the first, we the first against the second: the halves of the rows of
# queries and keys change places. GPT-2 has one matrix for queries, keys and values, and stores the matrices of its
# blocks transposed, (inputs, outputs).


Family = Literal["nanochat", "gpt2"]

# What each is in our words; all else it has too.
FIXED: dict[Family, dict[str, Any]] = {
    "nanochat": {"norm": "rms", "qk_norm": True, "bias": False},
    "gpt2": {"norm": "layer", "qk_norm": False, "bias": True, "mlp": "gelu", "soft_cap": None},
}

GELU = ("gelu_pytorch_tanh", "gelu_new")  # two names of one function

# Settings that must have one of these values for the model to be ours.
NEEDED: dict[Family, dict[str, tuple[Any, ...]]] = {
    "nanochat": {"hidden_act": ("relu2", *GELU), "attention_bias": (False,)},
    "gpt2": {
        "activation_function": GELU,
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
}

VOCABULARIES = ("model.embed_tokens.weight", "transformer.wte.weight", "lm_head.weight")

# Their name in a block -> ours; theirs may hold several of ours one after another.
IN_A_BLOCK: dict[Family, dict[str, tuple[str, ...]]] = {
    "nanochat": {
        "self_attn.q_proj": ("attention.q",),
        "self_attn.k_proj": ("attention.k",),
        "self_attn.v_proj": ("attention.v",),
        "self_attn.o_proj": ("attention.out",),
        "mlp.fc1": ("mlp.up",),
        "mlp.fc2": ("mlp.down",),
    },
    "gpt2": {
        "ln_1": ("norm_attention",),
        "attn.c_attn": ("attention.q", "attention.k", "attention.v"),
        "attn.c_proj": ("attention.out",),
        "ln_2": ("norm_mlp",),
        "mlp.c_fc": ("mlp.up",),
        "mlp.c_proj": ("mlp.down",),
    },
}


def family(config: GPTConfig) -> Family:
    """The model of transformers that computes what a GPT of this configuration does.

    Errors: ModelError names an option that it has not.

    >>> family(GPTConfig.preset("modern")), family(GPTConfig.preset("gpt2"))
    ('nanochat', 'gpt2')
    """
    found: Family = "gpt2" if config.positions == "learned" else "nanochat"
    fixed = FIXED[found]
    if found == "gpt2" and config.kv_heads != config.n_head:
        fixed = {**fixed, "n_kv_head": config.n_head}
    for name, value in fixed.items():
        if (ours := getattr(config, name)) != value:
            raise ModelError(
                f"{name} {ours}: with {config.positions} positions the model is exported as a {found} of transformers, "
                f"where {name} is {value}: leave it at that, or use another preset"
            )
    return found


def to_transformers(gpt: GPT) -> PreTrainedModel:
    """The model as one of transformers, on the same device, in evaluation mode; rows that pad the vocabulary are left
    out. It shares no weights with `gpt`, and knows of no special tokens.

    Errors: ModelError as of `family`.
    """
    kind, config = family(gpt.config), gpt.config
    with torch.device("meta"):
        model = _empty(kind, config)
    ours: dict[str, Tensor] = gpt.state_dict()
    theirs: dict[str, Tensor] = {}
    for name, parts in _names(kind, config.n_layer).items():
        weight = _turned(name, torch.cat([ours[part] for part in parts]), config.head_width)
        theirs[name] = (weight[: config.vocab_size] if name in VOCABULARIES else weight).clone().contiguous()
    model.load_state_dict(theirs, assign=True)
    model.tie_weights()
    if kind == "nanochat":  # its table of angles is no weight
        body: Any = model.model
        body.rotary_emb = type(body.rotary_emb)(model.config).to(gpt.head.weight.device)
    return model.eval()


def from_transformers(model: PreTrainedModel) -> GPT:
    """The weights of a NanoChat or a GPT-2, copied into our model.

    Errors: ModelError names another kind of model, or a setting that ours has not.
    """
    config: Any = model.config
    kind: Family = config.model_type
    if kind not in FIXED:
        raise ModelError(f"a model of the type {kind}: only {' and '.join(FIXED)} are our GPT")
    for name, values in NEEDED[kind].items():
        if getattr(config, name) not in values:
            raise ModelError(f"{kind} with {name} {getattr(config, name)!r}: only {values[0]!r} can be taken over")
    gpt = GPT(_nanochat_sizes(config) if kind == "nanochat" else _gpt2_sizes(config))
    theirs: dict[str, Tensor] = model.state_dict()
    ours: dict[str, Tensor] = {}
    for name, parts in _names(kind, gpt.config.n_layer).items():
        ours |= dict(zip(parts, _turned(name, theirs[name], gpt.config.head_width).chunk(len(parts)), strict=True))
    gpt.load_state_dict(ours)
    return gpt.to(model.dtype)


# --- configurations ---------------------------------------------------------------------------------------------------


def _empty(kind: Family, config: GPTConfig) -> Any:
    """A model of transformers of these sizes, without special tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel, NanoChatConfig, NanoChatForCausalLM

    shared: dict[str, Any] = {"vocab_size": config.vocab_size, "tie_word_embeddings": config.tied}
    shared |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    if kind == "nanochat":
        return NanoChatForCausalLM(
            NanoChatConfig(
                **shared,
                hidden_size=config.n_embd,
                intermediate_size=config.hidden,
                num_hidden_layers=config.n_layer,
                num_attention_heads=config.n_head,
                num_key_value_heads=config.kv_heads,
                max_position_embeddings=config.block_size,
                hidden_act=GELU[0] if config.mlp == "gelu" else config.mlp,
                rms_norm_eps=config.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
                final_logit_softcapping=config.soft_cap,
            )
        )
    return GPT2LMHeadModel(
        GPT2Config(
            **shared,
            n_positions=config.block_size,
            n_embd=config.n_embd,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_inner=config.n_hidden,
            layer_norm_epsilon=config.norm_eps,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    )


def _nanochat_sizes(config: Any) -> GPTConfig:
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default":
        raise ModelError(f"nanochat with rope_type {rope['rope_type']!r}: only 'default' can be taken over")
    return GPTConfig.preset(
        "modern",
        vocab_size=config.vocab_size,
        block_size=config.max_position_embeddings,
        n_layer=config.num_hidden_layers,
        n_head=config.num_attention_heads,
        n_kv_head=config.num_key_value_heads,
        n_embd=config.hidden_size,
        n_hidden=config.intermediate_size,
        rope_base=rope["rope_theta"],
        norm_eps=config.rms_norm_eps,
        mlp="gelu" if config.hidden_act in GELU else config.hidden_act,
        soft_cap=config.final_logit_softcapping,
        tied=config.tie_word_embeddings,
    )


def _gpt2_sizes(config: Any) -> GPTConfig:
    return GPTConfig.preset(
        "gpt2",
        vocab_size=config.vocab_size,
        block_size=config.n_positions,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        n_hidden=config.n_inner,
        norm_eps=config.layer_norm_epsilon,
        tied=config.tie_word_embeddings,
    )


# --- weights ----------------------------------------------------------------------------------------------------------


def _names(kind: Family, n_layer: int) -> dict[str, tuple[str, ...]]:
    """The names of their weights, and of those of ours that each holds."""
    names: dict[str, tuple[str, ...]] = {"lm_head.weight": ("head.weight",)}
    kinds: tuple[str, ...] = ("weight",) if kind == "nanochat" else ("weight", "bias")
    if kind == "nanochat":
        names["model.embed_tokens.weight"] = ("body.embed.weight",)
        block = "model.layers"
    else:
        names["transformer.wte.weight"] = ("body.embed.weight",)
        names["transformer.wpe.weight"] = ("body.positions.weight",)
        block = "transformer.h"
        names |= {f"transformer.ln_f.{each}": (f"body.norm.{each}",) for each in kinds}
    for layer in range(n_layer):
        for name, parts in IN_A_BLOCK[kind].items():
            for each in kinds:
                ours = tuple(f"body.blocks.{layer}.{part}.{each}" for part in parts)
                names[f"{block}.{layer}.{name}.{each}"] = ours
    return names


def _turned(name: str, weight: Tensor, head_width: int) -> Tensor:
    """A weight in the other one's layout; the same function goes both ways."""
    if name.endswith(("q_proj.weight", "k_proj.weight")):  # (heads, halves, half a head, inputs)
        return weight.unflatten(0, (-1, 2, head_width // 2)).flip(1).flatten(0, 2)
    return weight.T if weight.ndim == 2 and name.startswith("transformer.h.") else weight


# --- folders ----------------------------------------------------------------------------------------------------------


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


def export(
    gpt: GPT, folder: str | Path, *, tokenizer: str | Path | None = None, beside: Mapping[str, str] | None = None
) -> Path:
    """Write the model to `folder`, which must not exist yet, with a copy of the tokenizer's folder; float32.

    beside: more files, their names and texts.

    Errors: ModelError when the folder is there already, the tokenizer's is none or knows more tokens than the model, or
    transformers has no such model (`family`).
    """
    folder = Path(folder)
    if folder.exists():
        raise ModelError(f"{folder} exists: export a model to a new folder")
    model = to_transformers(gpt).float()
    if tokenizer is not None:
        set_special_tokens(model, read_tokenizer(Path(tokenizer), gpt.config.vocab_size))
    with atomic_folder(folder) as aside, quiet_transformers():
        model.save_pretrained(aside)
        if tokenizer is not None:
            for path in tokenizer_files(Path(tokenizer)):
                shutil.copyfile(path, aside / path.name)
        for name, text in (beside or {}).items():
            (aside / name).write_text(text, encoding="utf-8")
    return folder


def from_export(folder: str | Path) -> GPT:
    """The model in a folder that `export` wrote, or in another one of a NanoChat or a GPT-2.

    Errors: ModelError names weights that are not there, another kind of model, and an export of an earlier version.
    """
    from transformers import AutoModelForCausalLM

    check_folder(str(folder), Path(folder))
    with quiet_transformers():
        return from_transformers(load_checked(AutoModelForCausalLM, folder, name=str(folder))[0])


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of the tokenizer in a folder."""
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


def read_tokenizer(folder: Path, vocabulary: int) -> Any:
    """The tokenizer in a folder, unless it is not that of a model with such a vocabulary."""
    from transformers import AutoTokenizer

    if not tokenizer_files(folder):
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
