"""`fluxentropy models`: what it lists, without the network and without the libraries that load models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import save_model
from modelcopies import block_network, write_hub_cache

from fluxentropy.config import ModelsConfig
from fluxentropy.errors import UsageError
from fluxentropy.model_listing import models
from fluxentropy.zoo_entries import read_zoo, shipped_zoos

ZOO = """
models:
  here: {folder: FOLDER, parameters: 134515008, chat: false, licence: MIT}
  cached: {hub: someone/tiny, revision: 0123456789abcdef0123456789abcdef01234567, chat: true, terms: https://x.org}
  absent: {hub: someone/absent, parameters: 1543714304}
  lost: {gguf: FOLDER/none.gguf}
  extra: {wheel: no-such-wheel, file: x.gguf}
"""


@pytest.fixture(autouse=True)
def _private_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    outcome = models(ModelsConfig(zoo=zoo))
    assert outcome.exit_code == 0
    listed = {facts["name"]: facts for facts in outcome.data["models"]}
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
    assert outcome.data["caches"] == {"hub": str(tmp_path / "hub"), "converted": str(tmp_path / "cache" / "models")}
    json.dumps(outcome.data)
    assert asked == []


def test_the_table_is_aligned_and_says_how_to_get_the_rest(zoo: Path, tmp_path: Path) -> None:
    lines = list(models(ModelsConfig(zoo=zoo)).lines)
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
    outcome = models(ModelsConfig())
    expected = [(path.stem, name) for path in shipped_zoos() for name in read_zoo(path)]
    assert [(facts["zoo"], facts["name"]) for facts in outcome.data["models"]] == expected
    bare = models(ModelsConfig(zoo=Path("offline")))
    assert [facts["name"] for facts in bare.data["models"]] == ["smollm2-135m-instruct", "gemma-3-270m"]
    with pytest.raises(UsageError, match="zoo ofline: no such file"):
        models(ModelsConfig(zoo=Path("ofline")))


def test_the_libraries_that_load_models_are_not_imported() -> None:
    code = (
        "import sys; from fluxentropy.config import ModelsConfig; from fluxentropy.model_listing import models; "
        "models(ModelsConfig()); print({'torch', 'transformers', 'datasets', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
