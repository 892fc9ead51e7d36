"""The policy that is trained, with its tokenizer: a new small GPT, or any decoder of transformers, whole or by LoRA.

A new GPT reads characters by default: its tokenizer is made of those that the task's problems and answers hold.
"""

from __future__ import annotations

import copy
import logging
import string
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fluxentropy.errors import ModelError, UsageError
from fluxentropy.models.gguf import first_line, quiet_transformers
from fluxentropy.rl.grpo.options import LoRAOptions, PolicyOptions
from fluxentropy.rl.grpo.tasks import Task
from fluxentropy.rl.probe.policy import Parameters
from fluxentropy.runs.files import atomic_folder, fingerprint_json

CHARACTERS = "char"  # the name of the tokenizer that is made for the task
SAMPLE = 512  # problems of the training whose characters it knows, beside those held out
PAD, EOS, UNK = "<pad>", "<eos>", "<unk>"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedPolicy:
    """A decoder in evaluation mode (no dropout), the tokenizer, the ids that end a response, and the id of padding.

    With LoRA, `model` holds the adapters inside, and `adapted` is PEFT's view of it.
    """

    model: Any
    tokenizer: Any
    ends: tuple[int, ...]
    pad: int
    fingerprint: str
    adapted: Any = None

    def trainable(self) -> Parameters:
        """The parameters that are trained, by name, as they are now: no copies."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def load(self, weights: Parameters) -> None:
        """Put trained parameters back. Errors: ModelError where they are those of another policy."""
        own = self.trainable()
        if own.keys() != weights.keys():
            raise ModelError(
                f"the weights of a checkpoint belong to another policy: {min(own.keys() ^ weights.keys())}"
            )
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(tensor)

    def encode(self, text: str) -> list[int]:
        """The ids of a prompt, with the special tokens that the tokenizer puts first."""
        ids: list[int] = self.tokenizer(text)["input_ids"]
        while len(ids) > 1 and ids[-1] in self.ends:  # of tokenizers that end every text
            ids = ids[:-1]
        if not ids:
            raise UsageError(f"the prompt {text!r} has no token: give the task another --task.template")
        return ids

    def encode_answer(self, text: str) -> list[int]:
        """The ids of an answer and the one that ends it."""
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.ends[0]]

    def decode(self, ids: list[int]) -> str:
        """The text of a response, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


def open_policy(options: PolicyOptions, task: Task, *, seed: int) -> TrainedPolicy:
    """The policy before any training; new weights follow from the seed alone.

    Errors: ModelError names a model that cannot be loaded, UsageError a size that makes none.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if options.model is None:
            model, tokenizer, fingerprint = _new(options, task)
        else:
            model, tokenizer, fingerprint = _given(options.model, options)
        adapted = None
        if options.lora.rank is not None:
            adapted = _with_adapters(model, options.lora)
            model = adapted.get_base_model()
        else:
            model.requires_grad_(True)
    ends = _ends(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    return TrainedPolicy(
        model=model.eval(), tokenizer=tokenizer, ends=ends, pad=int(pad), fingerprint=fingerprint, adapted=adapted
    )


def export_policy(policy: TrainedPolicy, folder: Path) -> None:
    """Write a folder of transformers with the tokenizer; adapters are merged into the weights.

    A head that is the embedding is untied from it where either has an adapter: merged they differ, as when trained.
    """
    model = policy.model
    if policy.adapted is not None:
        adapted = copy.deepcopy(policy.adapted)
        _untie(adapted.get_base_model())
        model = adapted.merge_and_unload()
    with atomic_folder(folder) as aside, quiet_transformers():
        model.save_pretrained(aside)
        policy.tokenizer.save_pretrained(aside)


def _untie(model: Any) -> None:
    """Give the head weights of its own where it is the embedding, and one of them has an adapter."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    own = [getattr(layer, "base_layer", layer) for layer in (head, embedding)]
    if None in own or own[0].weight is not own[1].weight or own == [head, embedding]:
        return
    own[0].weight = nn.Parameter(own[1].weight.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}  # saving leaves out what stands there


def _ends(model: Any, tokenizer: Any) -> tuple[int, ...]:
    found: list[int] = []
    for value in (tokenizer.eos_token_id, getattr(getattr(model, "generation_config", None), "eos_token_id", None)):
        found += [value] if isinstance(value, int) else list(value or ())
    if not found:
        raise ModelError("the tokenizer has no end-of-text token: responses could not end")
    return tuple(dict.fromkeys(found))


# --- a new GPT --------------------------------------------------------------------------------------------------------


def _new(options: PolicyOptions, task: Task) -> tuple[nn.Module, Any, str]:
    from fluxentropy.pretraining.export import set_special_tokens, to_transformers
    from fluxentropy.pretraining.gpt import GPT, GPTConfig

    if options.tokenizer == CHARACTERS:
        sample = (*task.held_out, *map(task.train, range(SAMPLE)))
        tokenizer = character_tokenizer(text for problem in sample for text in (problem.prompt, problem.answer))
    else:
        tokenizer = _tokenizer_of(options.tokenizer)
    try:
        sizes = GPTConfig(
            vocab_size=len(tokenizer),
            block_size=options.block_size,
            n_layer=options.n_layer,
            n_head=options.n_head,
            n_embd=options.n_embd,
        )
    except ValueError as error:
        raise UsageError(f"--policy: {error}") from error
    model = to_transformers(GPT(sizes))
    set_special_tokens(model, tokenizer)
    fingerprint = fingerprint_json([vars(sizes), tokenizer.backend_tokenizer.to_str()])
    return model, tokenizer, fingerprint


def character_tokenizer(texts: Iterable[str]) -> Any:
    """A fast tokenizer with one token a character: those of the texts and all digits; others are <unk>.

    >>> tokenizer = character_tokenizer(["1 + 2"])
    >>> tokenizer.decode(tokenizer("12 + 1")["input_ids"])
    '12 + 1'
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = sorted({*string.digits, *(character for text in texts for character in text)})
    vocabulary = {token: number for number, token in enumerate([PAD, EOS, UNK, *characters])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )


def _tokenizer_of(name: str) -> Any:
    """The tokenizer of a zoo entry, a folder or a Hub id, without its model."""
    import tempfile

    from transformers import AutoTokenizer

    from fluxentropy.models.tokenizers import find_tokenizer

    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        found = find_tokenizer(name)
        found.write(Path(folder) / "tokenizer")
        return AutoTokenizer.from_pretrained(Path(folder) / "tokenizer")


# --- a given one ------------------------------------------------------------------------------------------------------


def _given(name: str, options: PolicyOptions) -> tuple[nn.Module, Any, str]:
    from fluxentropy.models.loading import load_decoder
    from fluxentropy.models.zoo import find_model

    decoder = load_decoder(find_model(name), device="cpu", dtype="fp32", offline=options.offline)
    return decoder.model, decoder.tokenizer, decoder.fingerprint


def _with_adapters(model: Any, options: LoRAOptions) -> Any:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UsageError("--policy.lora.rank needs PEFT: pip install 'fluxentropy[rl]'") from error
    assert options.rank is not None
    targets: Any = "all-linear" if options.targets is None else list(options.targets)
    adapters = LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=targets, task_type="CAUSAL_LM")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT 0.21 asks transformers 5 by an older name
            warnings.filterwarnings("ignore", ".*a tied layer is part of the adapter", UserWarning)  # see `_untie`
            return get_peft_model(model, adapters)
    except ValueError as error:
        raise UsageError(f"--policy.lora.targets {targets}: {first_line(error)}") from error
