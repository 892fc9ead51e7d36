"""The tokenizer of a model, without the model: found by name, kept as files, and fast.

found = find_tokenizer("smollm2-135m-instruct")      # or `bytes`: token b is byte b, and 256 ends a text
found.write(folder)                                  # as `save_pretrained` writes it; always the same bytes
encode(open_backend(folder), ["one two"], found.eos) # -> ids, and how many of them each text has
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fluxentropy.conversion import first_line, gguf_tokenizer, quiet_transformers
from fluxentropy.errors import FluxentropyError, ModelError
from fluxentropy.modelfiles import hub_folder
from fluxentropy.store import atomic_folder, fingerprint_json, sha256_file
from fluxentropy.zoo_entries import ZooEntry, find_model, near_names

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

BYTES = "bytes"  # the name of the built-in tokenizer
BACKEND, CONFIG = "tokenizer.json", "tokenizer_config.json"
LOADED_FROM = ("is_local", "local_files_only", "name_or_path")  # keys of CONFIG that tell where it was, not what it is


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundTokenizer:
    """The files of a fast tokenizer, by name, and what they hold."""

    name: str
    files: Mapping[str, bytes]
    vocabulary: int  # the largest id + 1
    eos: int  # the id that ends a text

    @property
    def fingerprint(self) -> str:
        """That of `fingerprint_files` of a folder it is written to."""
        return _fingerprint({name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()})

    def write(self, folder: Path) -> None:
        """Write the files to `folder`, which must not exist, all or none."""
        with atomic_folder(folder) as aside:
            for name, data in self.files.items():
                (aside / name).write_bytes(data)


def find_tokenizer(name: str) -> FoundTokenizer:
    """The tokenizer that `--tokenize NAME` means: `bytes`, or that of a zoo entry, a folder, a .gguf file or a Hub id.

    Errors: ModelError where it cannot be found or loaded, is not a fast one, or has no end-of-text token.
    """
    entry = None if name == BYTES else find_model(name)
    try:
        with quiet_transformers(), tempfile.TemporaryDirectory() as folder:
            tokenizer = byte_tokenizer() if entry is None else load_tokenizer(entry)
            if not getattr(tokenizer, "is_fast", False):
                raise ModelError(f"the tokenizer of {name!r} is not a fast one, with a {BACKEND}: choose another")
            if tokenizer.eos_token_id is None:
                raise ModelError(
                    f"the tokenizer of {name!r} has no end-of-text token, so documents cannot be told apart: set "
                    f"`eos_token` in its {CONFIG}, or choose another"
                )
            tokenizer.save_pretrained(folder)
            files = {path.name: _plain(path) for path in sorted(Path(folder).iterdir()) if path.is_file()}
    except FluxentropyError:
        raise
    except Exception as error:  # transformers and remote code raise many kinds
        raise ModelError(
            f"the tokenizer of {name!r} cannot be loaded: {first_line(error)}{near_names(name)}"
        ) from error
    return FoundTokenizer(
        name=BYTES if entry is None else entry.name,
        files=files,
        vocabulary=max(*tokenizer.get_vocab().values(), tokenizer.eos_token_id) + 1,
        eos=tokenizer.eos_token_id,
    )


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of 257 ids: each byte of a text in UTF-8, and 256 for the end of the text.

    >>> byte_tokenizer()("é!").input_ids, byte_tokenizer().eos_token_id
    ([195, 169, 33], 256)
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(vocab={char: byte for byte, char in enumerate(_byte_names())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")


def fingerprint_files(folder: Path) -> str:
    """The fingerprint of a tokenizer's folder: the names and contents of all of its files."""
    return _fingerprint({path.name: sha256_file(path) for path in folder.iterdir() if path.is_file()})


def open_backend(folder: Path) -> Tokenizer:
    """The fast tokenizer in `folder`, without `transformers`, which takes seconds to import."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(folder / BACKEND))
    backend.no_truncation()
    backend.no_padding()
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    backend.encode_special_tokens = bool(config.get("split_special_tokens"))
    return backend


def encode(tokenizer: Tokenizer, texts: Sequence[str], eos: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids (n,) of all texts, each ended by `eos`, and how many of them each text has (len(texts),).

    Nothing is put before a text. One without tokens has none, not even `eos`.
    """
    ids: list[int] = []
    sizes = np.zeros(len(texts), np.int64)
    for place, encoding in enumerate(tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)):
        if found := encoding.ids:
            ids += found
            ids.append(eos)
            sizes[place] = len(found) + 1
    return np.array(ids, np.uint32), sizes


def load_tokenizer(entry: ZooEntry) -> PreTrainedTokenizerBase:
    """The tokenizer of a zoo entry, as `transformers` loads it; whatever that raises is not caught."""
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"trust_remote_code": entry.trust_remote_code}
    if entry.hub:
        folder = hub_folder(entry)
        if folder and (folder / BACKEND).is_file() and not entry.trust_remote_code:  # the Hub is not asked
            return AutoTokenizer.from_pretrained(folder, **options)
        return AutoTokenizer.from_pretrained(entry.hub, revision=entry.revision or "main", **options)
    if entry.folder:
        return AutoTokenizer.from_pretrained(Path(entry.folder).expanduser(), **options)
    return gguf_tokenizer(entry)


def _plain(path: Path) -> bytes:
    """The content of a saved file, without what depends on where the tokenizer was loaded from."""
    if path.name != CONFIG:
        return path.read_bytes()
    config = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in config.items() if key not in LOADED_FROM}
    return (json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _byte_names() -> Iterator[str]:
    """The characters that a byte-level pre-tokenizer writes for the bytes 0 to 255: a printable one is its own."""
    others = iter(range(256, 512))
    for byte in range(256):
        printable = 33 <= byte <= 126 or 161 <= byte <= 172 or byte >= 174
        yield chr(byte if printable else next(others))


def _fingerprint(digests: Mapping[str, str]) -> str:
    return "sha256:" + fingerprint_json(dict(digests))
