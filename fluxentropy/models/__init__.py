"""Names -> decoders and tokenizers, whose weights are those of their files.

zoo.py         names, Hub ids, folders, .gguf files -> where a model comes from
files.py       what of a model is on this machine; `fluxentropy models`
loading.py     zoo entry -> a decoder and its tokenizer on a device
weights.py     weights that no file holds or nothing uses refuse a model; does it fit into the memory?
adapters.py    adapter folders of peft: the base with their weights merged into it
gguf.py        GGUF files -> model folders with float32 weights and a tokenizer
gguffile.py    a GGUF file's metadata, tensors and configuration
tokenizers.py  tokenizers without models; texts -> tokens, and the bytes of each token
paths.py       which way through a decoder is taken: the fastest that gives the numbers of its plain forward
fused.py       Llama, Mistral, Qwen on CPU cores: texts end to end, few passes over memory
linear.py      linear layers of packed weights, and of 8-bit integers
forward.py     the layers of transformers -> statistics, without the full logits; which rows may share a batch
fusedhead.py   head and statistics in one Triton kernel, for GPUs
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fluxentropy.config.options import INPUT
from fluxentropy.doors import door

__getattr__, __dir__ = door(
    __name__,
    {
        "Decoder": "loading",
        "ZooEntry": "zoo",
        "find_model": "zoo",
        "find_tokenizer": "tokenizers",
        "load_decoder": "loading",
        "read_zoo": "zoo",
    },
    call="files:models",
)


@dataclass(frozen=True, kw_only=True)
class ModelsConfig:
    """Options of `fluxentropy models`."""

    zoo: Annotated[Path | None, INPUT] = None
    """YAML file of models, or the name of one that comes with the package. Default: all that come with it."""
