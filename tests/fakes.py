"""Small models made on the spot: real architectures with random weights, and a real byte-level BPE tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast
from transformers.models.gemma3 import Gemma3TextConfig

SENTENCES = (
    "the quick brown fox jumps over the lazy dog",
    "entropy measures how uncertain a distribution is",
    "a model reads one token after another and predicts the next",
    "def add(a, b):\n    return a + b\n",
    "numbers such as 3.14159 and 2.71828 are tokens too, naïve café 中文 🙂",
)
VOCABULARY = 400


def make_tokenizer(*, bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens without padding token; `bos` and `eos` are added to every text if asked for."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 20, trainer)
    if bos or eos:
        template = ("<s> " if bos else "") + "$A" + (" </s>" if eos else "")
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 0), ("</s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>" if bos else None)


def make_config(kind: str = "llama", *, vocab_size: int = VOCABULARY, **changes: Any) -> Any:
    """The configuration of a tiny decoder: llama, gpt2 or gemma3 (soft-capped logits, sliding attention)."""
    shape = {"vocab_size": vocab_size, "bos_token_id": 0, "eos_token_id": 1}
    if kind == "gpt2":
        return GPT2Config(**shape, n_embd=32, n_layer=2, n_head=2, n_positions=128, **changes)
    shape |= {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    if kind == "gemma3":
        changes = {
            "final_logit_softcapping": 0.5,
            "head_dim": 8,
            "sliding_window": 16,
            "max_position_embeddings": 128,
        } | changes
        return Gemma3TextConfig(**shape, **changes)
    return LlamaConfig(**shape, **{"max_position_embeddings": 256, **changes})


def make_model(kind: str = "llama", *, seed: int = 0, scale: float = 8.0, **changes: Any) -> Any:
    """A tiny decoder with random weights; `scale` sharpens its predictions so that entropies differ between tokens."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(make_config(kind, **changes)).eval()
    head = model.get_output_embeddings()
    head.weight.data.mul_(scale)
    return model


def save_model(folder: Path, kind: str = "llama", *, bos: bool = False, **changes: Any) -> Path:
    """A tiny decoder and its tokenizer as a folder that `--model` accepts."""
    make_model(kind, **changes).save_pretrained(folder)
    make_tokenizer(bos=bos).save_pretrained(folder)
    return folder
