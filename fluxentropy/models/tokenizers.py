"""The tokenizer of a model, without the model: found by name, kept as files, and fast.

found = find_tokenizer("smollm2-135m-instruct")      # or `bytes`: token b is byte b, and 256 ends a text
found.write(folder)                                  # as `save_pretrained` writes it; always the same bytes
encode(open_backend(folder), ["one two"], found.eos) # -> ids, and how many of them each text has
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fluxentropy.errors import FluxentropyError, ModelError
from fluxentropy.models.files import hub_folder
from fluxentropy.models.gguf import first_line, gguf_tokenizer, quiet_transformers
from fluxentropy.models.zoo import ZooEntry, find_model, near_names
from fluxentropy.runs.files import atomic_folder, fingerprint_json, sha256_file

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerBase


# --- tokenizers by name -----------------------------------------------------------------------------------------------


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


# --- bytes of tokens --------------------------------------------------------------------------------------------------
#
# A token's own bytes are those of the text that it holds, in UTF-8:
#
#     vocabulary                    token           own bytes
#     byte-level                    "Ã" "Ġthe"      1, 4: each character is a byte
#     with a sign for spaces        "▁the"          4: the sign is a space
#     with single bytes             "<0xC3>"        1
#     pieces of words               "##ing" "a</w>" 3, 1: what marks a piece is no text
#     added tokens                  "<tool>"        6, where a text has them
#     unknown words                 "[UNK]"         0: the text cannot be had back from it
#
# So a character that is cut counts for each token with the bytes that the token has of it. The text of a token is that
# after the tokenizer's normaliser: where this composes accents or lowers case, the bytes are those of the result, and
# spaces that it drops are no token's. A space in front that the text does not have counts nowhere.


PREDICTED_BYTES = "own bytes of tokens"  # the rule, by which a run is told from those of another one
BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
SPACE = "\u2581"  # what SentencePiece writes for a space
BYTE_SPACE = "\u0120"  # what stands for a space in a byte-level vocabulary
ENDINGS = ("</w>", "@@")  # what vocabularies of tokenizers in Python mark the last or the other pieces of a word with


class TokenBytes:
    """The bytes of a tokenizer's tokens: `sizes` int64 (V,) of each id, V the largest id + 1."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.backend = getattr(tokenizer, "backend_tokenizer", None)
        self.added = {number: str(token) for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items()}
        self._spaces: dict[str, int] = {}  # the first character of a text -> spaces that are put in front of it

    @cached_property
    def sizes(self) -> np.ndarray:
        found = np.zeros(max([*self.vocabulary.values(), *self.added], default=-1) + 1, np.int64)
        for token, number in self.vocabulary.items():
            found[number] = self._size(token)
        for number, token in self.added.items():
            found[number] = _length(self._plain(token))
        if self.unknown is not None and not self._has_all_bytes:
            found[self.unknown] = 0
        return found

    def predicted(self, ids: np.ndarray, n_prefix: int, text: str, encoding: Encoding | None = None) -> int:
        """Bytes of the tokens of `text` that are predicted: all but those of the prefix, or else all but the first.

        `ids` (T,) start with `n_prefix` special tokens; `encoding` says where in the text they stand.
        """
        own = self.sizes[ids]
        total = int(own[max(n_prefix, 1) :].sum())
        if not self._prepended("a"):
            return total
        starts = [n_prefix] if 0 < n_prefix < len(ids) else []  # the first tokens of texts, and of what goes on after
        if encoding is not None and self._everywhere:  # an added token
            after = np.flatnonzero(self._is_added[ids[:-1]]) + 1
            starts += after[after > n_prefix].tolist()
        for at in starts:
            if not self._is_added[ids[at]]:
                begin = 0 if at == n_prefix else token_end(encoding, at - 1)
                total -= min(int(own[at]), self._prepended(text[begin : begin + 1]))
        return total

    # --- what a token holds ---

    def _size(self, token: str) -> int:
        for mark in self._beginnings:
            if token.startswith(mark) and token != mark:
                token = token.removeprefix(mark)
        for mark in self._endings:
            if token.endswith(mark) and token != mark:
                token = token.removesuffix(mark)
        if self.by_byte:
            return len(token)
        return 1 if self._falls_back and BYTE.fullmatch(token) else _length(self._plain(token))

    def _plain(self, token: str) -> str:
        """The token with spaces for what stands for them, outside byte-level vocabularies."""
        if not self.by_byte:
            for mark in self._marks:
                token = token.replace(mark, " ")
        return token

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        return dict(self.tokenizer.get_vocab())

    @cached_property
    def by_byte(self) -> bool:
        """Whether each character of a token is a byte."""
        if self.backend is None:  # GPT-2 and ByT5 write the bytes C3 B8 as the characters of these numbers
            return self._pieces("\u00f8").endswith("\u00c3\u00b8")
        return any(part["type"] == "ByteLevel" for part in self._parts)

    @cached_property
    def unknown(self) -> int | None:
        """The id that stands for what the vocabulary lacks."""
        if self.backend is None:
            return self.tokenizer.unk_token_id
        token = getattr(self.backend.model, "unk_token", None)
        return self._model.get("unk_id") if token is None else self.backend.token_to_id(token)

    @cached_property
    def _has_all_bytes(self) -> bool:
        """Whether any text can be spelt, so that nothing is unknown."""
        if self.by_byte:
            return sum(len(token) == 1 for token in self.vocabulary) >= 256
        return self._falls_back and sum(bool(BYTE.fullmatch(token)) for token in self.vocabulary) >= 256

    @cached_property
    def _falls_back(self) -> bool:
        """Whether `<0x0A>` is a byte."""
        if self.backend is None or any(part["type"] == "ByteFallback" for part in self._parts):
            return True
        return bool(self._model.get("byte_fallback", getattr(self.backend.model, "byte_fallback", False)))

    @cached_property
    def _beginnings(self) -> tuple[str, ...]:
        return self._model_marks("continuing_subword_prefix")

    @cached_property
    def _endings(self) -> tuple[str, ...]:
        return ENDINGS if self.backend is None else self._model_marks("end_of_word_suffix")

    def _model_marks(self, name: str) -> tuple[str, ...]:
        mark = getattr(self.backend.model, name, None) if self.backend is not None else None
        return (mark,) if mark else ()

    @cached_property
    def _model(self) -> dict[str, Any]:
        """What a Unigram model does not tell otherwise."""
        if self.backend is None or type(self.backend.model).__name__ != "Unigram":
            return {}
        return {key: value for key, value in json.loads(self.backend.model.__getstate__()).items() if key != "vocab"}

    @cached_property
    def _parts(self) -> list[dict[str, Any]]:
        """The steps of the normaliser, the pre-tokenizer and the decoder, as the tokenizer's file names them."""
        steps = (self.backend.normalizer, self.backend.pre_tokenizer, self.backend.decoder) if self.backend else ()
        return [part for step in steps if step is not None for part in _walk(_state(step))]

    @cached_property
    def _marks(self) -> tuple[str, ...]:
        """What stands for a space in tokens."""
        if self.backend is None:
            return (BYTE_SPACE,) if self.by_byte else (SPACE,)
        found = [BYTE_SPACE] if self.by_byte else []
        for part in self._parts:
            if part["type"] == "Metaspace":
                found.append(part["replacement"])
            elif part["type"] == "Replace":
                pattern, content = part["pattern"].get("String"), part["content"]
                if " " in (pattern, content) and (mark := content if pattern == " " else pattern):
                    found.append(mark)
        return tuple(dict.fromkeys(found))

    # --- spaces that the text does not have ---

    def _prepended(self, first: str) -> int:
        """How many spaces are put in front of a text that begins with the character `first`.

        What stands before it at the beginning is compared with what stands before it inside of a text.
        """
        if first not in self._spaces:
            begin, inside, before = (self._pieces(text) for text in (f"{first}a", f"a{first}a", "a"))
            self._spaces[first] = max(self._leading(begin) - self._leading(inside[len(before) :]), 0)
        return self._spaces[first]

    def _leading(self, pieces: str) -> int:
        return len(pieces) - len(pieces.lstrip("".join(self._marks))) if self._marks else 0

    def _pieces(self, text: str) -> str:
        """A text as tokens spell it."""
        if self.backend is None:
            return "".join(map(str, self.tokenizer.tokenize(text)))
        if self.backend.normalizer is not None:
            text = self.backend.normalizer.normalize_str(text)
        if self.backend.pre_tokenizer is None:
            return text
        return "".join(piece for piece, _ in self.backend.pre_tokenizer.pre_tokenize_str(text))

    @cached_property
    def _everywhere(self) -> bool:
        """Whether a text that goes on after an added token begins afresh."""
        return not any(part.get("prepend_scheme") == "first" for part in self._parts)

    @cached_property
    def _is_added(self) -> np.ndarray:
        found = np.zeros(len(self.sizes), bool)
        found[list(self.added)] = True
        return found


def token_bytes(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> np.ndarray:
    """Own bytes of each token, for trainings. -> int64 (vocabulary,)

    0 for special tokens, which stand between texts there, and for ids without a token. Over a text's tokens they add
    up to its bytes, but for a space that the tokenizer puts in front.
    """
    sizes = TokenBytes(tokenizer).sizes.copy()
    sizes[[number for number in tokenizer.all_special_ids if number < len(sizes)]] = 0
    found = np.zeros(vocabulary, np.int64)
    found[: len(sizes)] = sizes[:vocabulary]
    return found


def _length(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def token_end(encoding: Encoding | None, token: int) -> int:
    """The character of the text at which a token ends."""
    chars = encoding.token_to_chars(token) if encoding is not None else None
    return chars[1] if chars else 0


def _state(step: Any) -> Any:
    """A step of a tokenizer as its file has it; nothing for one that is written in Python."""
    try:
        return json.loads(step.__getstate__())
    except Exception:  # the library raises a plain Exception for steps that it cannot write
        return None


def _walk(state: Any) -> Iterator[dict[str, Any]]:
    """All steps inside of `state`."""
    if isinstance(state, dict):
        if "type" in state:
            yield state
        state = list(state.values())
    if isinstance(state, list):
        for item in state:
            yield from _walk(item)


# --- texts -> tokens --------------------------------------------------------------------------------------------------


CHARS_PER_TOKEN = 32  # a text's first max_tokens * this many characters are tokenised first; more only where needed
SAFE_CHARS = 256  # tokens that end this close to such a cut may differ from those of the whole text


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """One text as tokens.

    `ids` int64 (T,) start with the `n_prefix` special tokens that the tokenizer adds by itself (a BOS). A text that
    tokenises to nothing has T = 0, also where a BOS would have been added. `n_bytes` counts the whole text in UTF-8,
    `n_predicted_bytes` the own bytes of its tokens 1..T-1 (see `tokenbytes`): what `surprisal_sum` is the code length
    of.
    """

    ids: np.ndarray
    n_prefix: int = 0
    n_bytes: int = 0
    n_predicted_bytes: int = 0
    truncated: bool = False


class Encoder:
    """Tokenises texts, keeping the first `max_tokens` tokens of each, or all of them with None.

    Special tokens that the tokenizer appends by itself (an EOS) are dropped: scores are about the text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int | None) -> None:
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.bytes = TokenBytes(tokenizer)
        self.fast = bool(getattr(tokenizer, "is_fast", False))
        probe = self._tokenize(["a"])[0]
        self.n_prefix = probe.n_prefix

    def encode(self, texts: Sequence[str]) -> list[Encoded]:
        """Token ids of each text. Texts must be valid Unicode (no lone surrogates)."""
        if self.max_tokens is None:
            return self._tokenize(texts)
        limit = self.max_tokens * CHARS_PER_TOKEN
        result = self._tokenize([text[:limit] for text in texts], [len(text) > limit for text in texts])
        for index, text in enumerate(texts):
            if len(text) > limit:
                result[index] = self._widen(text, result[index], limit)
        return result

    def _widen(self, text: str, encoded: Encoded, limit: int) -> Encoded:
        """Tokenise more and more of a text with very long tokens, until the first `max_tokens` of them are certain."""
        assert self.max_tokens is not None
        while len(encoded.ids) < self.max_tokens and limit < len(text):
            limit *= 8
            encoded = self._tokenize([text[:limit]], [limit < len(text)])[0]
        n_bytes = len(text.encode())
        return Encoded(
            ids=encoded.ids,
            n_prefix=encoded.n_prefix,
            n_bytes=n_bytes,
            n_predicted_bytes=encoded.n_predicted_bytes,
            truncated=encoded.truncated,
        )

    def _tokenize(self, texts: Sequence[str], cut: Sequence[bool] | None = None) -> list[Encoded]:
        """Encode `texts`; where `cut`, the text goes on beyond what is given, and tokens near its end are dropped."""
        if not texts:
            return []
        batch: Any = self.tokenizer(
            list(texts),
            add_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_special_tokens_mask=not self.fast,
            verbose=False,
        )
        result = []
        for index, text in enumerate(texts):
            ids = batch["input_ids"][index]
            encoding = batch.encodings[index] if self.fast else None
            special = encoding.special_tokens_mask if encoding is not None else batch["special_tokens_mask"][index]
            result.append(self._encoded(text, ids, special, encoding, cut is not None and cut[index]))
        return result

    def _encoded(self, text: str, ids: list[int], special: list[int], encoding: Encoding | None, cut: bool) -> Encoded:
        n_bytes = len(text.encode())
        start, stop = 0, len(ids)
        while start < stop and special[start]:
            start += 1
        while stop > start and special[stop - 1]:
            stop -= 1
        if cut and encoding is not None:
            while stop > start and token_end(encoding, stop - 1) > len(text) - SAFE_CHARS:
                stop -= 1
        if stop == start:
            return Encoded(ids=np.zeros(0, dtype=np.int64), n_bytes=n_bytes)
        truncated = cut or (self.max_tokens is not None and stop > self.max_tokens)
        if self.max_tokens is not None:
            stop = min(stop, self.max_tokens)
        kept = np.array(ids[:stop], dtype=np.int64)
        return Encoded(
            ids=kept,
            n_prefix=start,
            n_bytes=n_bytes,
            n_predicted_bytes=self.bytes.predicted(kept, start, text, encoding),
            truncated=truncated,
        )
