"""GPT-2 of transformers <-> the `gpt2` preset of our GPT: the same function of the same weights.

Its attention has one matrix for queries, keys and values, and its matrices are stored transposed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from fluxentropy.errors import ModelError
from fluxentropy.gpt import GPT
from fluxentropy.gptconfig import GPTConfig

NEEDED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}
VOCABULARIES = {"transformer.wte.weight": ("body.embed.weight",), "lm_head.weight": ("head.weight",)}
IN_A_BLOCK = {  # their name -> ours; theirs holds several of ours one after another
    "ln_1": ("norm_attention",),
    "attn.c_attn": ("attention.q", "attention.k", "attention.v"),
    "attn.c_proj": ("attention.out",),
    "ln_2": ("norm_mlp",),
    "mlp.c_fc": ("mlp.up",),
    "mlp.c_proj": ("mlp.down",),
}


def from_gpt2(model: GPT2LMHeadModel) -> GPT:
    """The weights of a GPT-2, copied into our model.

    Errors: ModelError names a setting that our preset has not.
    """
    config = model.config
    for name, values in NEEDED.items():
        if getattr(config, name) not in values:
            raise ModelError(f"GPT-2 with {name} {getattr(config, name)!r}: only {values[0]!r} can be taken over")
    gpt = GPT(
        GPTConfig.preset(
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
    )
    theirs: dict[str, Tensor] = model.state_dict()
    ours: dict[str, Tensor] = {}
    for name, parts in _names(config.n_layer).items():
        ours |= dict(zip(parts, _turned(name, theirs[name]).chunk(len(parts)), strict=True))
    gpt.load_state_dict(ours)
    return gpt.to(model.dtype)


def is_gpt2(config: GPTConfig) -> bool:
    """Whether a GPT-2 of transformers can hold such a model."""
    plain = GPTConfig.preset("gpt2")
    names = ("positions", "norm", "qk_norm", "mlp", "bias", "soft_cap", "value_embeddings")
    return config.kv_heads == config.n_head and all(getattr(config, name) == getattr(plain, name) for name in names)


def to_gpt2(gpt: GPT) -> GPT2LMHeadModel:
    """Our model as a GPT-2 of transformers; rows that pad the vocabulary are left out."""
    config = gpt.config
    assert is_gpt2(config), config
    with torch.device("meta"):
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=config.block_size,
                n_embd=config.n_embd,
                n_layer=config.n_layer,
                n_head=config.n_head,
                n_inner=config.n_hidden,
                layer_norm_epsilon=config.norm_eps,
                tie_word_embeddings=config.tied,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
    ours: dict[str, Tensor] = gpt.state_dict()
    theirs: dict[str, Tensor] = {}
    for name, parts in _names(config.n_layer).items():
        weight = _turned(name, torch.cat([ours[part] for part in parts]))
        theirs[name] = weight[: config.vocab_size] if name in VOCABULARIES else weight
    model.load_state_dict({name: weight.clone().contiguous() for name, weight in theirs.items()}, assign=True)
    model.tie_weights()
    return model.eval()


def _names(n_layer: int) -> dict[str, tuple[str, ...]]:
    """The names of a GPT-2's weights, and of those of ours that each holds."""
    names: dict[str, tuple[str, ...]] = {"transformer.wpe.weight": ("body.positions.weight",), **VOCABULARIES}
    for kind in ("weight", "bias"):
        names[f"transformer.ln_f.{kind}"] = (f"body.norm.{kind}",)
        for layer in range(n_layer):
            for name, parts in IN_A_BLOCK.items():
                ours = tuple(f"body.blocks.{layer}.{part}.{kind}" for part in parts)
                names[f"transformer.h.{layer}.{name}.{kind}"] = ours
    return names


def _turned(name: str, weight: Tensor) -> Tensor:
    """The matrices of a GPT-2's blocks are stored (inputs, outputs), ours (outputs, inputs)."""
    return weight.T if weight.ndim == 2 and ".h." in name else weight
