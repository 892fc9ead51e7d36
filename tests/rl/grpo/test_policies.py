"""What is exported is the policy that was trained: its logits, whichever layers have adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from digits import Digits
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from fluxentropy.rl.grpo.options import LoRAOptions, PolicyOptions
from fluxentropy.rl.grpo.policies import character_tokenizer, export_policy, open_policy

TARGETS = {
    "llama": [("lm_head",), ("embed_tokens",), ("lm_head", "embed_tokens", "q_proj"), ("q_proj",), None],
    "gpt2": [("lm_head",), ("wte",)],
}


def folder_of(kind: str, folder: Path, *, tied: bool) -> Path:
    """A random decoder, its weights large enough for logits of several nats, with a tokenizer of characters."""
    tokenizer = character_tokenizer(["xy=0123456789"])
    options = {
        "vocab_size": len(tokenizer), "tie_word_embeddings": tied, "initializer_range": 0.5, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "llama":
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        LlamaForCausalLM(LlamaConfig(**sizes, **options)).save_pretrained(folder)
    else:
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
        GPT2LMHeadModel(GPT2Config(**sizes, **options)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(("kind", "targets"), [(kind, targets) for kind, all_ in TARGETS.items() for targets in all_])
def test_the_exported_logits_are_those_of_the_trained_policy(
    kind: str, targets: tuple[str, ...] | None, tied: bool, tmp_path: Path
) -> None:
    """A merged adapter of the head would change the embedding too, or the embedding's the head, where they are one."""
    pytest.importorskip("peft")
    folder = folder_of(kind, tmp_path / kind, tied=tied)
    options = PolicyOptions(model=str(folder), lora=LoRAOptions(rank=2, targets=targets))
    policy, rng = open_policy(options, Digits(), seed=0), torch.Generator().manual_seed(1)
    with torch.no_grad():
        before = policy.model(input_ids=(ids := torch.randint(3, 16, (2, 7), generator=rng))).logits
        for parameter in policy.trainable().values():
            parameter.normal_(std=0.5, generator=rng)
        trained = policy.model(input_ids=ids).logits
        export_policy(policy, tmp_path / "export")
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export")(input_ids=ids).logits
        assert float((trained - before).abs().max()) > 1
        torch.testing.assert_close(exported, trained, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(policy.model(input_ids=ids).logits, trained, rtol=0, atol=0)  # and is as it was
