"""GPT as a model of transformers, with a key-value cache for `generate`.

`fluxentropy score` and the zoo know the class (`register`). An exported folder carries a copy of this file and of those
it imports, so that `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` needs no fluxentropy.

Shape legend: B rows, T positions of the input, S positions with those of the cache, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation.utils import GenerationMixin
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

# relative: in an exported folder these files lie side by side
from .gpt import Body, soft_capped
from .gptconfig import GPTConfig

FIELDS = {field.name: field.default for field in dataclasses.fields(GPTConfig)}
SOFT_CAP = "final_logit_softcapping"  # the name in configurations of Gemma, which tools read
UNSAID = object()


class FluxGPTConfig(PreTrainedConfig):
    """The fields of `GPTConfig` beside those of every configuration.

    `soft_cap` is `final_logit_softcapping` too, in the file as well: what computes logits from the head by itself, as
    TRL's fused head does, looks there. Folders of earlier versions have the first name alone.
    """

    model_type = "fluxgpt"
    keys_to_ignore_at_inference = ("past_key_values",)
    attribute_map = {  # noqa: RUF012  (declared without ClassVar by transformers)
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "block_size",
        "tie_word_embeddings": "tied",
        SOFT_CAP: "soft_cap",
    }

    def __init__(self, **options: Any) -> None:
        cap, other = (options.get(name, UNSAID) for name in ("soft_cap", SOFT_CAP))
        if UNSAID not in (cap, other) and cap != other:
            raise ValueError(f"soft_cap {cap} and {SOFT_CAP} {other}: give one of them, or the same number twice")
        for name, default in FIELDS.items():
            setattr(self, name, options.pop(name, default))
        super().__init__(**options)

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), SOFT_CAP: self.soft_cap}

    def architecture(self) -> GPTConfig:
        return GPTConfig(**{name: getattr(self, name) for name in FIELDS})


class FluxGPTPreTrainedModel(PreTrainedModel):
    config_class = FluxGPTConfig
    base_model_prefix = "model"
    _supports_sdpa = True
    _no_split_modules = ["Block"]  # noqa: RUF012

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: `Body` starts its weights itself."""


class FluxGPTModel(FluxGPTPreTrainedModel):
    """Everything but the head."""

    def __init__(self, config: FluxGPTConfig) -> None:
        super().__init__(config)
        self.body = Body(config.architecture())
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.body.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.body.embed = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """input_ids (B, T), attention_mask (B, S) with 0 for padding -> hidden states (B, T, D)."""
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        seen = 0 if past_key_values is None else int(past_key_values.get_seq_length())
        T = input_ids.shape[1]
        if position_ids is None:
            if attention_mask is None or attention_mask.ndim != 2:
                position_ids = torch.arange(seen, seen + T, device=input_ids.device)[None]
            else:  # the first token that is no padding is at position 0
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -T:]
        mask = attention_mask
        if mask is None or mask.ndim == 2:
            mask = causal_mask(mask, seen, T, input_ids.device)
        hidden = self.body(input_ids, positions=position_ids, mask=mask, cache=past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


class FluxGPTForCausalLM(FluxGPTPreTrainedModel, GenerationMixin):
    """The model with its head, `lm_head`, and the soft cap on its logits."""

    _tied_weights_keys = {"lm_head.weight": "model.body.embed.weight"}  # noqa: RUF012

    def __init__(self, config: FluxGPTConfig) -> None:
        super().__init__(config)
        self.model = FluxGPTModel(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **options: Any,
    ) -> CausalLMOutputWithPast:
        """Logits (B, T, V) in the dtype of the weights, of the last `logits_to_keep` positions only where that is set.

        With `labels` (B, T), the ids themselves, also the mean loss.
        """
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = soft_capped(self.lm_head(output.last_hidden_state[:, kept]), self.config.soft_cap)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **options)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=output.past_key_values)


def causal_mask(padding: Tensor | None, seen: int, T: int, device: torch.device) -> Tensor | None:
    """True where a query may attend: bool (B or 1, 1, T, seen + T), or None for plain causal attention.

    `padding` (B, seen + T) is 0 for padding, which only padding attends to: itself, so that no row is empty.
    """
    if padding is None and not seen:
        return None
    at = torch.arange(seen + T, device=device)
    query = at[seen:, None]
    mask = (at <= query)[None, None]
    if padding is not None:
        mask = mask & (padding.bool()[:, None, None] | (at == query))
    return mask


def register() -> None:
    """Let `AutoConfig` and `AutoModelForCausalLM` know the class in this process, and let saving copy its code."""
    AutoConfig.register(FluxGPTConfig.model_type, FluxGPTConfig, exist_ok=True)
    AutoModelForCausalLM.register(FluxGPTConfig, FluxGPTForCausalLM, exist_ok=True)
    FluxGPTConfig.register_for_auto_class("AutoConfig")
    FluxGPTForCausalLM.register_for_auto_class("AutoModelForCausalLM")
