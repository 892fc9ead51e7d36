"""Tokenizers of GGUF files: llama.cpp's recorded ids, what is refused by name, and the same ids after saving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from fluxentropy.errors import ModelError
from fluxentropy.gguffile import read_gguf
from fluxentropy.gguftokenizer import KEY, RULES, build_tokenizer, open_tokenizer
from fluxentropy.modelfiles import gguf_files
from fluxentropy.zoo_entries import find_model

DATA = json.loads((Path(__file__).parent / "data" / "gguf_tokens.json").read_text(encoding="utf-8"))
TEXTS: list[str] = DATA["texts"]
NAMES = [f"{case['vocabulary']} {' '.join(map(str, case['metadata'].values()))}" for case in DATA["cases"]]

# Texts that llama.cpp cuts otherwise than the models' own rule: it does not normalise, its approximation of letters
# with a case leaves out combining marks, and it takes U+2028 for a vertical tab.
COMBINING, MARKS, LINE_SEPARATOR = "e\u0301 n\u0303 a\u030a combining", ("\u0928\u092e\u0938", "\u0e2a\u0e27"), "\u2028"


def build(vocabulary: str = "bytes", **changes: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of a recorded vocabulary; a change of None removes the key."""
    metadata = DATA["vocabularies"][vocabulary] | {f"{KEY}{key}": value for key, value in changes.items()}
    return build_tokenizer({key: value for key, value in metadata.items() if value is not None}, "x.gguf")


def ids_of(recorded: list[str]) -> list[list[int]]:
    return [[int(token) for token in line.split()] for line in recorded]


def differs_by_intent(rule: str, text: str) -> bool:
    if rule in ("qwen2", "qwen35"):
        return text == COMBINING
    if rule in ("tekken", "gpt-4o"):
        return text == COMBINING or text.startswith(MARKS)
    return rule in ("deepseek-coder", "deepseek-llm") and LINE_SEPARATOR in text


@pytest.mark.parametrize("case", DATA["cases"], ids=NAMES)
def test_ids_are_those_of_llama_cpp(case: dict[str, Any]) -> None:
    tokenizer = build_tokenizer(DATA["vocabularies"][case["vocabulary"]] | case["metadata"], "x.gguf")
    rule = case["metadata"].get(KEY + "pre", "")
    same = [not differs_by_intent(rule, text) for text in TEXTS]
    assert sum(same) >= len(TEXTS) - 3
    found = [ids == right for ids, right in zip(tokenizer(TEXTS).input_ids, ids_of(case["ids"]), strict=True)]
    assert found == same


def test_the_recorded_texts_tell_the_rules_apart() -> None:
    rules = {
        case["metadata"][KEY + "pre"]: tuple(case["ids"])
        for case in DATA["cases"]
        if [*case["metadata"]] == [KEY + "pre"]
    }
    assert len(set(rules.values())) >= len(rules) - 2  # qwen2 and its kin differ in little


@pytest.mark.real_model
def test_the_offline_models_ids_are_those_of_llama_cpp() -> None:
    file = next(path for path in gguf_files(find_model("smollm2-135m-instruct")).values() if path)
    tokenizer = build_tokenizer(read_gguf(Path(file)).metadata, str(file))
    assert tokenizer(TEXTS).input_ids == ids_of(DATA["wheel"])
    assert tokenizer.chat_template
    assert tokenizer.special_tokens_map["eos_token"] == "<|im_end|>"


def test_where_llama_cpp_approximates_the_models_own_rule_stands() -> None:
    """Oracle: transformers' own class for Qwen2, built of the same vocabulary; one piece a word for the cased rules."""
    tokens = DATA["vocabularies"]["bytes"][KEY + "tokens"]
    merges = [tuple(line.split(" ")) for line in DATA["vocabularies"]["bytes"][KEY + "merges"]]
    qwen = Qwen2Tokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)
    ours = build(pre="qwen2", token_type=[1] * len(tokens))  # without added tokens
    plain = [text for text in TEXTS if "<" not in text]
    assert ours(plain).input_ids == qwen(plain, add_special_tokens=False).input_ids
    for rule in ("tekken", "gpt-4o"):
        cut = build(pre=rule).backend_tokenizer.pre_tokenizer.pre_tokenize_str(
            "e\u0301 nn\u0303A \u0928\u092e\u0938\u094d\u0924\u0947"
        )
        assert [span for _, span in cut] == [(0, 2), (2, 6), (6, 7), (7, 14)]


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3", "gpt2"])
def test_a_saved_tokenizer_opens_as_it_was(tmp_path: Path, kind: str) -> None:
    for vocabulary, changes in (("bytes", {"pre": "deepseek-coder", "add_bos_token": True}), ("sentencepiece", {})):
        folder = tmp_path / vocabulary
        tokenizer = build(vocabulary, **changes)
        tokenizer.save_pretrained(folder)
        AutoConfig.for_model(kind).save_pretrained(folder)
        opened = open_tokenizer(folder)
        assert opened(TEXTS).input_ids == tokenizer(TEXTS).input_ids
        assert opened.special_tokens_map == tokenizer.special_tokens_map
        if (kind, vocabulary) == ("qwen2", "bytes"):  # the reason for open_tokenizer
            assert AutoTokenizer.from_pretrained(folder)(TEXTS).input_ids != tokenizer(TEXTS).input_ids


def test_texts_come_back() -> None:
    for vocabulary, changes in (("bytes", {"pre": "smollm"}), ("gemma4", {})):
        tokenizer = build(vocabulary, **changes)
        for text in TEXTS:
            if "<" not in text:
                assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_control_tokens_outside_the_byte_alphabet_keep_their_ids() -> None:
    tokenizer = build(pre="deepseek-r1-qwen")
    assert len(tokenizer) == len(DATA["vocabularies"]["bytes"][KEY + "tokens"])
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (4, 5)
    assert tokenizer("<\uff5cbegin\u2581of\u2581sentence\uff5c>").input_ids == [4]


def test_a_token_that_ends_a_text_is_whole_whatever_its_type() -> None:
    kinds = [1] * len(DATA["vocabularies"]["bytes"][KEY + "tokens"])
    assert build(pre="gpt-2", token_type=kinds)("<|im_end|>").input_ids == [2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pre": "no-such-rule"}, r"x\.gguf: tokenizer\.ggml\.pre 'no-such-rule' .* not known .*smollm"),
        ({"token_type": [1, 3]}, r"x\.gguf: tokenizer\.ggml\.token_type does not give each token a type"),
        ({"pre": None}, r"x\.gguf does not say .*tokenizer\.ggml\.pre is missing.*--pre-tokenizer"),
        ({"pre": "gpt-2", "model": "rwkv"}, r"tokenizer\.ggml\.model 'rwkv' is a kind .* not known"),
        ({"pre": "gpt-2", "model": None}, r"tokenizer\.ggml\.model None is a kind"),
        ({"pre": "gpt-2", "merges": None}, r"no tokenizer\.ggml\.merges"),
        ({"pre": "gpt-2", "merges": ["no such"]}, r"joins \('no', 'such'\)"),
        ({"pre": "gpt-2", "tokens": ["a", "a"]}, r"holds a token twice"),
        ({"pre": "gpt-2", "tokens": None}, r"tokenizer\.ggml\.tokens is missing"),
        ({"pre": "llama-bpe", "bos_token_id": None}, r"puts a BOS token .*bos_token_id"),
        ({"pre": "gpt-2", "add_eos_token": True, "eos_token_id": None}, r"puts a EOS token .*eos_token_id"),
    ],
)
def test_what_cannot_be_told_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build(**changes)


def test_a_sentencepiece_vocabulary_without_scores_is_refused() -> None:
    for vocabulary in ("sentencepiece", "unigram"):
        with pytest.raises(ModelError, match=r"x\.gguf: tokenizer\.ggml\.scores does not give each token a score"):
            build(vocabulary, scores=[0.0])


def test_gpt2_files_of_old_need_no_name_for_their_rule() -> None:
    metadata = DATA["vocabularies"]["bytes"] | {"general.architecture": "gpt2"}
    assert build_tokenizer(metadata, "x")(TEXTS).input_ids == build(pre="gpt-2")(TEXTS).input_ids


def test_phi_3_strips_what_follows_its_control_tokens() -> None:
    """As llama.cpp does for files of this name, and its own tokenizer.json."""
    metadata = DATA["vocabularies"]["sentencepiece"] | {"general.name": "Phi-3 mini"}
    plain, phi = build("sentencepiece"), build_tokenizer(metadata, "x")
    assert phi("</s>  x").input_ids == plain("</s>x").input_ids != plain("</s>  x").input_ids


def test_every_rule_builds() -> None:
    for name in RULES:
        if RULES[name].spelled:
            assert build(pre=name)("a").input_ids
